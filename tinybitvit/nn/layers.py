"""The layers that a Transformer is made of. Weights are drawn from `rng` (None: this thread's, `tb.manual_seed`)."""

import math
from typing import Any

from .. import backend
from .. import functional as F
from ..backend import Array, Generator
from ..tensor import Tensor
from .module import Module, Parameter


def ones(n: int) -> Array:
    return backend.host.ones(F.as_size("dim", n), dtype="float32")


def zeros(*shape: int) -> Array:
    return backend.host.zeros(shape, dtype="float32")


def xavier_uniform(rng: Generator, shape: tuple[int, int]) -> Array:
    """Uniform in +-sqrt(6 / (in + out)) for a weight (out, in); Glorot & Bengio 2010, equation 16."""
    bound = math.sqrt(6 / (shape[0] + shape[1]))
    return rng.uniform(-bound, bound, shape).astype("float32")


def normal(rng: Generator, shape: tuple[int, ...], std: float = 0.02) -> Array:
    """Normal with mean 0 and standard deviation `std`, values beyond two deviations drawn back to them."""
    return (rng.standard_normal(shape, dtype="float32") * std).clip(-2 * std, 2 * std)


class Linear(Module):
    """y = x W^T + b: (..., in_features) -> (..., out_features); weight (out, in)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, rng: Generator | None = None) -> None:
        super().__init__()
        rng = backend.current_rng() if rng is None else rng
        self.in_features = in_features = F.as_size("in_features", in_features)
        self.out_features = out_features = F.as_size("out_features", out_features)
        self.weight = Parameter(xavier_uniform(rng, (out_features, in_features)))
        self.bias = Parameter(zeros(out_features)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class LayerNorm(Module):
    """Layer normalisation over the last axis, of size `dim`, with weight and bias."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = Parameter(ones(dim)), Parameter(zeros(dim))

    def forward(self, x: Any) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps:g}"


class RMSNorm(Module):
    """Root-mean-square normalisation over the last axis, of size `dim`, with weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = Parameter(ones(dim))

    def forward(self, x: Any) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps:g}"


class LayerScale(Module):
    """y = gamma x, one learnt factor per channel; Touvron et al. 2021 (arXiv 2103.17239)."""

    def __init__(self, dim: int, value: float = 1e-5) -> None:
        super().__init__()
        self.gamma = Parameter(ones(dim) * value)

    def forward(self, x: Any) -> Tensor:
        return x * self.gamma

    def extra_repr(self) -> str:
        return f"{len(self.gamma)}"


class GELU(Module):
    """x P(X <= x); approximate='none' (exact) or 'tanh' (faster)."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Any) -> Tensor:
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return self.approximate


class Dropout(Module):
    """In training, zeroes elements with probability p and divides the rest by 1 - p."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = F.as_probability(p)

    def forward(self, x: Any) -> Tensor:
        return F.dropout(x, self.p, self.training) if self.p else x

    def extra_repr(self) -> str:
        return f"{self.p}"
