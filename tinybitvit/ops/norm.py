"""Softmax and the normalisations: each one op with one backward, because they are hot."""

from typing import Any

from .. import backend
from ..backend import Array
from .base import Axis, Context, Function, Gradients, as_floats, floating, normalize_axis, rows_of, widened


class Softmax(Function, name="softmax"):
    """y_i = e^(x_i - max x) / sum_j e^(x_j - max x) along an axis

    dy_i/dx_j = y_i (1[i=j] - y_j); contracted with g it is dL/dx_j = y_j (g_j - sum_i g_i y_i), so the n x n
    Jacobian is never built.
    Plainly: `softmax` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axis: Axis = -1) -> Array:
        ctx.axis = normalize_axis(axis, x.ndim)
        y = softmax_array(ctx.xp, floating(x), ctx.axis)
        ctx.save(y)
        return y.astype(x.dtype, copy=False)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (y,) = ctx.saved
        return (y * (g - (g * y).sum(axis=ctx.axis, keepdims=True)),)


class LogSoftmax(Function, name="log_softmax"):
    """y_i = x_i - ln sum_j e^(x_j) along an axis, with the maximum taken out of the sum

    dy_i/dx_j = 1[i=j] - p_j with p = e^y = softmax x; hence dL/dx_j = g_j - p_j sum_i g_i.
    Plainly: `log_softmax` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axis: Axis = -1) -> Array:
        ctx.axis = normalize_axis(axis, x.ndim)
        y = log_softmax_array(ctx.xp, floating(x), ctx.axis)
        ctx.save(y)
        return y.astype(x.dtype, copy=False)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (y,) = ctx.saved
        g = widened(g)
        return (g - ctx.xp.exp(y) * g.sum(axis=ctx.axis, keepdims=True),)


class LayerNorm(Function, name="layer_norm"):
    """y = z w + b with z = (x - mean x) / s, s = sqrt(var x + eps) over the last axis; Ba et al. 2016 (arXiv
    1607.06450)

    dw = sum over rows of g z, db = sum over rows of g. With h = g w = dL/dz and means over the last axis:
    dL/dx = (h - mean(h) - z mean(h z)) / s: what h has in the directions 1 and z, which z cannot follow, is taken out.
    Plainly: `layer_norm` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
    ) -> Array:
        return normalize(ctx, x, weight, bias, eps, centred=True)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return normalize_backward(ctx, g)


class RMSNorm(Function, name="rms_norm"):
    """y = z w with z = x / s, s = sqrt(mean(x^2) + eps) over the last axis; Zhang & Sennrich 2019 (arXiv 1910.07467)

    dw = sum over rows of g z. With h = g w: dL/dx = (h - z mean(h z)) / s.
    Plainly: `rms_norm` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array | None = None, *, eps: float = 1e-6) -> Array:
        return normalize(ctx, x, weight, None, eps, centred=False)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return normalize_backward(ctx, g)


def normalize(ctx: Context, x: Array, weight: Array | None, bias: Array | None, eps: float, centred: bool) -> Array:
    """y of LayerNorm, or where it is not centred of RMSNorm: the rows go through the cache once, a block at a time."""
    xp, rows = ctx.xp, rows_of(floating(x))
    for a in (weight, bias):
        if a is not None and a.shape != x.shape[-1:]:
            raise ValueError(f"weight and bias need one number for each of {x.shape[-1]} columns, not shape {a.shape}")
    y = xp.empty_like(rows)
    mean, inverse = (xp.empty((len(rows), 1), dtype=rows.dtype) for _ in range(2))
    for block in backend.row_blocks(rows.shape, xp):
        z, out = rows[block], y[block]
        if centred:
            mean[block] = row_mean(xp, z)
            z = xp.subtract(z, mean[block], out=out)
        inverse[block] = inverse_root(xp, mean_product(xp, z, z), eps)
        xp.multiply(z, inverse[block], out=out)
        if weight is not None:
            out *= weight
        if bias is not None:
            out += bias
    ctx.save(rows, mean if centred else None, inverse, weight, bias)
    ctx.shape = x.shape
    return y.reshape(x.shape).astype(x.dtype, copy=False)


def normalize_backward(ctx: Context, g: Array) -> Gradients:
    """dx and, where they were given, dw and db."""
    xp, (rows, mean, inverse, weight, bias) = ctx.xp, ctx.saved
    dx, dw, db = xp.empty_like(rows), None, None
    if weight is not None:
        dw, db = (xp.zeros(rows.shape[1], dtype=rows.dtype) for _ in range(2))
    g = widened(g).reshape(rows.shape)
    for block in backend.row_blocks(rows.shape, xp):
        # z again: cheaper than keeping it
        z = (rows[block] if mean is None else rows[block] - mean[block]) * inverse[block]
        h, out = g[block], dx[block]
        if weight is not None:
            dw += xp.einsum("ri,ri->i", h, z)
            if bias is not None:
                db += h.sum(axis=0)
            h = h * weight
        z *= mean_product(xp, h, z)
        if mean is not None:
            h = xp.subtract(h, row_mean(xp, h), out=out)
        xp.subtract(h, z, out=out)
        out *= inverse[block]
    return (dx.reshape(ctx.shape), dw, db)[: len(ctx.needs_input_grad)]


class Dropout(Function, name="dropout"):
    """y = x m with a given mask m: 0 with probability p, else 1 / (1 - p); Srivastava et al. 2014

    dy/dx = m. The mean of y over masks is x, so evaluation needs no change of scale.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, mask: Array) -> Array:
        ctx.save(mask)
        return as_floats(x) * mask

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (mask,) = ctx.saved
        return g * mask, None


def softmax_array(xp: Any, x: Array, axis: Axis = -1, out: Array | None = None) -> Array:
    """Softmax along an axis (out may be x); each slice gives up its own maximum first, so that e^x cannot overflow."""
    y = xp.subtract(x, largest(x, axis), out=out)
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def log_softmax_array(xp: Any, x: Array, axis: Axis = -1) -> Array:
    """ln softmax(x) along an axis."""
    y = x - largest(x, axis)
    if y.size:
        y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y


def largest(x: Array, axis: Axis) -> Array:
    """The maximum of each slice along an axis, which is kept; 0 for slices of nothing, which have none."""
    return x.max(axis=axis, keepdims=True) if x.size else x.sum(axis=axis, keepdims=True)


def row_mean(xp: Any, x: Array) -> Array:
    """The mean of each row of x (r, n), as (r, 1), by a matrix product: four times faster than NumPy's mean."""
    return (x @ xp.ones((x.shape[1], 1), x.dtype)) / x.dtype.type(x.shape[1])


def mean_product(xp: Any, a: Array, b: Array) -> Array:
    """mean(a b) over the last axis, that axis kept, without an array of the products."""
    return (xp.einsum("...i,...i->...", a, b) / a.shape[-1])[..., None]


def inverse_root(xp: Any, mean_square: Array, eps: float) -> Array:
    """1 / sqrt(mean_square + eps), in the array it is given."""
    mean_square += eps
    xp.sqrt(mean_square, out=mean_square)
    return xp.divide(1, mean_square, out=mean_square)
