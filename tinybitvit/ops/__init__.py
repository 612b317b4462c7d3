"""Differentiable functions on plain arrays, forward and backward side by side, a family a file.

`OPS` is the table of all of them by their public name; tests, documentation and `tinybitvit doctor` iterate over it.
"""

from . import activation, attention, elementwise, loss, matmul, norm, patch, reduce, shape, ste
from .base import OPS, Context, Function

OPS.update(ste.QUANTISERS)

__all__ = ["OPS", "Context", "Function"]
__all__ += ["activation", "attention", "elementwise", "loss", "matmul", "norm", "patch", "reduce", "shape", "ste"]
