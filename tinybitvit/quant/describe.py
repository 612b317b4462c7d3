"""What a model weighs: bytes and bits, layer by layer."""

import math
from typing import NamedTuple

from .. import backend
from ..nn import Module
from .linear import BitLinear
from .packed import PackedLinear


class LayerInfo(NamedTuple):
    """A row of `describe`. `bits` is nominal; `effective_bits` counts all its bytes, scales and biases included."""

    name: str
    shape: tuple[int, ...]
    bits: float
    layout: str
    bytes: int
    weights: int
    effective_bits: float
    zeros: float


def describe(model: Module) -> list[LayerInfo]:
    """A row for every module that holds arrays of its own, and a last one, "total", for the model.

    shape: of the weight (out, in), or of the largest array. layout: of the packed bytes, else the dtype. weights:
    numbers the row stands for, all but the scales of quantised weights. zeros: share of zeros among the weights, in a
    low-bit layer those of its integer codes. What several modules share counts for the first of them.
    """
    modules = dict(model.named_modules())
    own: dict[str, dict] = {}
    for name, array in model.state_dict().items():
        holder = name.rpartition(".")[0]
        while holder not in modules:  # one of a list of Parameters
            holder = holder.rpartition(".")[0]
        own.setdefault(holder, {})[name[len(holder) :].lstrip(".")] = array
    rows = [_row(name, modules[name], arrays) for name, arrays in own.items()]
    size, count = sum(r.bytes for r in rows), sum(r.weights for r in rows)
    zeros = sum(r.zeros * r.weights for r in rows) / count if count else 0.0
    bits = 8 * size / count if count else 0.0
    return [*rows, LayerInfo("total", (count,), bits, "", size, count, bits, zeros)]


def _row(name, module, arrays):
    size = sum(a.nbytes for a in arrays.values())
    if isinstance(module, PackedLinear):
        shape, layout = (module.out_features, module.in_features), module.layout
        others = sum(a.size for n, a in arrays.items() if n not in ("packed", "scale"))
    else:
        largest = max(arrays.values(), key=lambda a: a.size)
        shape, layout = largest.shape, str(largest.dtype)
        others = sum(a.size for a in arrays.values()) - largest.size
    count = math.prod(shape) + others
    if isinstance(module, PackedLinear) or (isinstance(module, BitLinear) and "weight" in arrays):
        bits, weight = module.bits, module.codes()[0]
    else:
        bits, weight = 8 * largest.itemsize, largest
    zeros = 1 - int(backend.array_module(weight).count_nonzero(weight)) / weight.size if weight.size else 0.0
    return LayerInfo(name, shape, bits, layout, size, count, 8 * size / count if count else 0.0, zeros)
