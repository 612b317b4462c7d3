"""Activation functions: the elementwise functions that networks put between their matrix products."""

import math
from typing import Any

from .. import backend
from ..backend import Array
from .base import Context, Function, Gradients, as_floats, floating

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
# u(x) / x in powers of x^2, such that (1 + tanh u) / 2 = P(X <= x) for |x| <= 6, to 4e-8: half a unit in float32's last
# place at 1. Fitted by weighted least squares to u = artanh erf(x / sqrt 2). GELU's tanh formula has the first two.
CDF_BY_TANH = (
    0.797885032,
    0.0363326462,
    -3.20944455e-05,
    -5.55198723e-05,
    4.00439037e-06,
    -1.35465416e-07,
    1.84726971e-09,
)


class Tanh(Function, name="tanh"):
    """y = tanh x

    dy/dx = 1 - y^2.
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        y = ctx.xp.tanh(as_floats(x))
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (y,) = ctx.saved
        return (g * (1 - y * y),)


class Sigmoid(Function, name="sigmoid"):
    """y = 1 / (1 + e^-x), computed from z = e^-|x|, which cannot overflow: 1 / (1 + z) for x >= 0, else z / (1 + z)

    dy/dx = y (1 - y).
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        x = as_floats(x)
        z = ctx.xp.exp(-ctx.xp.abs(x))
        y = ctx.xp.where(x >= 0, x.dtype.type(1), z) / (1 + z)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (y,) = ctx.saved
        return (g * (y * (1 - y)),)


class Relu(Function, name="relu"):
    """y = max(x, 0)

    dy/dx = 0 where x <= 0 (at x = 0 the subgradient 0), else 1, also where x is not a number, as PyTorch has it.
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        ctx.save(x)
        return ctx.xp.maximum(x, 0)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (x,) = ctx.saved
        return (ctx.xp.where(x <= 0, 0, g),)


class Gelu(Function, name="gelu"):
    """y = x P(X <= x), X standard normal = x (1 + erf(x / sqrt 2)) / 2; Hendrycks & Gimpel 2016 (arXiv 1606.08415)

    approximate="tanh": y = x (1 + t) / 2 with t = tanh u, u = sqrt(2/pi) (x + 0.044715 x^3).
    Exact: dy/dx = (1 + erf(x / sqrt 2)) / 2 + x e^(-x^2/2) / sqrt(2 pi).
    Tanh:  dy/dx = (1 + t) / 2 + x (1 - t^2) u' / 2, u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2).
    The slope is computed while x is at hand and kept instead of x: one array, and backward is one product.
    Plainly: `gelu_tanh` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, approximate: str = "none") -> Array:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', not {approximate!r}")
        gelu = _gelu_tanh if approximate == "tanh" else _gelu_erf
        flat = floating(x).reshape(-1, 1)
        y = ctx.xp.empty_like(flat)
        slope = ctx.xp.empty_like(flat) if ctx.needs_input_grad[0] else None
        for block in backend.row_blocks(flat.shape, ctx.xp):
            gelu(ctx.xp, flat[block], y[block], None if slope is None else slope[block])
        if slope is not None:
            ctx.save(slope.reshape(x.shape))
        return y.reshape(x.shape).astype(x.dtype, copy=False)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (slope,) = ctx.saved
        return (g * slope,)


def _gelu_erf(xp: Any, x: Array, y: Array, slope: Array | None) -> None:
    """Write y and, unless it is None, dy/dx for a block x."""
    cdf = _normal_cdf(xp, x)
    xp.multiply(x, cdf, out=y)
    if slope is not None:
        xp.multiply(x, -0.5 * x, out=slope)
        xp.exp(slope, out=slope)
        slope *= x
        slope *= 1 / math.sqrt(2 * math.pi)
        slope += cdf


def _gelu_tanh(xp: Any, x: Array, y: Array, slope: Array | None) -> None:
    """The same by the tanh formula: h = (1 + t) / 2 gives 1 - t^2 = 4 h (1 - h), so dy/dx = h (1 + 2 x u' (1 - h))."""
    square = x * x
    h = square * (0.044715 * SQRT_2_OVER_PI)
    h += SQRT_2_OVER_PI
    h *= x  # u
    xp.tanh(h, out=h)
    h *= 0.5
    h += 0.5
    xp.multiply(x, h, out=y)
    if slope is not None:
        square *= 6 * 0.044715 * SQRT_2_OVER_PI
        square += 2 * SQRT_2_OVER_PI  # 2 u'
        square *= x
        xp.subtract(1, h, out=slope)
        slope *= square
        slope += 1
        slope *= h


def _normal_cdf(xp: Any, x: Array) -> Array:
    """P(X <= x) = (1 + erf(x / sqrt 2)) / 2; in float32 from tanh, which NumPy computes many times faster than erf."""
    if x.dtype == "float32":
        cdf = xp.clip(x, -6, 6)
        square = cdf * cdf
        series = square * CDF_BY_TANH[-1]
        for c in CDF_BY_TANH[-2:0:-1]:
            series += c
            series *= square
        series += CDF_BY_TANH[0]
        cdf *= series
        xp.tanh(cdf, out=cdf)
    else:
        cdf = backend.erf(x * math.sqrt(0.5))
    cdf += 1
    cdf *= 0.5
    return cdf
