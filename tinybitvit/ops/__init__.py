"""Differentiable functions on plain arrays, forward and backward side by side, a family a file.

`OPS` is the table of all of them by their public name; tests, documentation and `tinybitvit doctor` iterate over it.
"""

# To import a family is to enter its operations in OPS.
from . import activation as activation
from . import attention as attention
from . import elementwise as elementwise
from . import loss as loss
from . import matmul as matmul
from . import norm as norm
from . import patch as patch
from . import reduce as reduce
from . import shape as shape
from . import ste as ste
from .base import OPS, Context, Function

__all__ = ["OPS", "Context", "Function"]
