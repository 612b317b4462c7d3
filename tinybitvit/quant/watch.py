"""What the codes of low-bit layers do while they are trained: how many flip, how many are 0, how close to a flip.

A latent weight matters only through its code, and a code changes only where its weight crosses a threshold. A rate of
flips that does not fall means a learning rate too high for the weights to settle (Liu et al. 2021, arXiv 2106.11309).
"""

from .. import backend
from ..backend import Array
from ..nn import Module
from .linear import BitLinear


def low_bit_layers(model: Module) -> list[BitLinear]:
    """The BitLinear layers of a model."""
    return [m for m in model.modules() if isinstance(m, BitLinear)]


def snapshot(model: Module) -> list[Array]:
    """The codes of all low-bit layers as int8 arrays."""
    return [layer.codes()[0].astype("int8") for layer in low_bit_layers(model)]


def flip_rate(before: list[Array], after: list[Array]) -> float:
    """The share of codes in which two snapshots differ."""
    counts = backend.to_host([(a != b).sum() for a, b in zip(before, after, strict=True)])
    return sum(map(int, counts)) / sum(a.size for a in after)


def zero_share(codes: list[Array]) -> float:
    """The share of codes in a snapshot that are 0."""
    return sum(map(int, backend.to_host([(a == 0).sum() for a in codes]))) / sum(a.size for a in codes)


def mean_distance(model: Module) -> float:
    """The mean of `Quantizer.distance` over all low-bit weights of a model."""
    layers = low_bit_layers(model)
    weights = [(layer.quantizer, layer.weight.data) for layer in layers]
    sums = backend.to_host([quantizer.distance(backend.array_module(w), w).sum() for quantizer, w in weights])
    return sum(map(float, sums)) / sum(layer.weight.size for layer in layers)
