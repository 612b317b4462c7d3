"""Softmax and the normalisations: each one op with one backward, because they are hot."""

from .. import backend
from .base import Function


class Softmax(Function, name="softmax"):
    """y_i = e^(x_i - max x) / sum_j e^(x_j - max x) along an axis

    dy_i/dx_j = y_i (1[i=j] - y_j); contracted with g it is dL/dx_j = y_j (g_j - sum_i g_i y_i), so the n x n
    Jacobian is never built.
    """

    @staticmethod
    def forward(ctx, x, *, axis=-1):
        y = softmax_array(ctx.xp, x, axis)
        ctx.axis = axis
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return (y * (g - (g * y).sum(axis=ctx.axis, keepdims=True)),)


class LogSoftmax(Function, name="log_softmax"):
    """y_i = x_i - ln sum_j e^(x_j) along an axis, with the maximum taken out of the sum

    dy_i/dx_j = 1[i=j] - p_j with p = e^y = softmax x; hence dL/dx_j = g_j - p_j sum_i g_i.
    """

    @staticmethod
    def forward(ctx, x, *, axis=-1):
        y = log_softmax_array(ctx.xp, x, axis)
        ctx.axis = axis
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return (g - ctx.xp.exp(y) * g.sum(axis=ctx.axis, keepdims=True),)


class LayerNorm(Function, name="layer_norm"):
    """y = z w + b with z = (x - mean x) / s, s = sqrt(var x + eps) over the last axis; Ba et al. 2016 (arXiv
    1607.06450)

    dw = sum over rows of g z, db = sum over rows of g. With h = g w = dL/dz and means over the last axis:
    dL/dx = (h - mean(h) - z mean(h z)) / s: what h has in the directions 1 and z, which z cannot follow, is taken out.
    """

    @staticmethod
    def forward(ctx, x, weight=None, bias=None, *, eps=1e-5):
        xp, rows = ctx.xp, x.reshape(-1, x.shape[-1])
        y = xp.empty_like(rows)
        mean, inverse = (xp.empty((len(rows), 1), dtype=x.dtype) for _ in range(2))
        for block in backend.row_blocks(rows.shape, xp):
            mean[block] = row_mean(xp, rows[block])
            z = xp.subtract(rows[block], mean[block], out=y[block])
            inverse[block] = inverse_root(xp, mean_product(xp, z, z), eps)
            z *= inverse[block]
            if weight is not None:
                z *= weight
            if bias is not None:
                z += bias
        ctx.save(rows, mean, inverse, weight)
        ctx.shape = x.shape
        ctx.inputs = 1 + (weight is not None) + (bias is not None)
        return y.reshape(x.shape)

    @staticmethod
    def backward(ctx, g):
        xp, (rows, mean, inverse, weight) = ctx.xp, ctx.saved
        dx = xp.empty_like(rows)
        dw, db = (xp.zeros(rows.shape[1], dtype=g.dtype) for _ in range(2))
        g = g.reshape(rows.shape)
        for block in backend.row_blocks(rows.shape, xp):
            z = (rows[block] - mean[block]) * inverse[block]  # again: cheaper than keeping it
            h = g[block]
            if weight is not None:
                dw += xp.einsum("ri,ri->i", h, z)
                db += h.sum(axis=0)
                h = h * weight
            z *= mean_product(xp, h, z)
            out = xp.subtract(h, row_mean(xp, h), out=dx[block])
            out -= z
            out *= inverse[block]
        return (dx.reshape(ctx.shape), dw, db)[: ctx.inputs]


class RMSNorm(Function, name="rms_norm"):
    """y = z w with z = x / s, s = sqrt(mean(x^2) + eps) over the last axis; Zhang & Sennrich 2019 (arXiv 1910.07467)

    dw = sum over rows of g z. With h = g w: dL/dx = (h - z mean(h z)) / s.
    """

    @staticmethod
    def forward(ctx, x, weight=None, *, eps=1e-6):
        xp, rows = ctx.xp, x.reshape(-1, x.shape[-1])
        y = xp.empty_like(rows)
        inverse = xp.empty((len(rows), 1), dtype=x.dtype)
        for block in backend.row_blocks(rows.shape, xp):
            inverse[block] = inverse_root(xp, mean_product(xp, rows[block], rows[block]), eps)
            z = xp.multiply(rows[block], inverse[block], out=y[block])
            if weight is not None:
                z *= weight
        ctx.save(rows, inverse, weight)
        ctx.shape = x.shape
        ctx.inputs = 1 + (weight is not None)
        return y.reshape(x.shape)

    @staticmethod
    def backward(ctx, g):
        xp, (rows, inverse, weight) = ctx.xp, ctx.saved
        dx = xp.empty_like(rows)
        dw = xp.zeros(rows.shape[1], dtype=g.dtype)
        g = g.reshape(rows.shape)
        for block in backend.row_blocks(rows.shape, xp):
            z = rows[block] * inverse[block]
            h = g[block]
            if weight is not None:
                dw += xp.einsum("ri,ri->i", h, z)
                h = h * weight
            z *= mean_product(xp, h, z)
            out = xp.subtract(h, z, out=dx[block])
            out *= inverse[block]
        return (dx.reshape(ctx.shape), dw)[: ctx.inputs]


class Dropout(Function, name="dropout"):
    """y = x m with a given mask m: 0 with probability p, else 1 / (1 - p); Srivastava et al. 2014

    dy/dx = m. The mean of y over masks is x, so evaluation needs no change of scale.
    """

    @staticmethod
    def forward(ctx, x, mask):
        ctx.save(mask)
        return x * mask

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved
        return g * mask, None


def softmax_array(xp, x, axis=-1, out=None):
    """Softmax along an axis (out may be x); each slice gives up its own maximum first, so that e^x cannot overflow."""
    y = xp.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def log_softmax_array(xp, x, axis=-1):
    y = x - x.max(axis=axis, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y


def row_mean(xp, x):
    """The mean of each row of x (r, n), as (r, 1), by a matrix product: four times faster than NumPy's mean."""
    return (x @ xp.ones((x.shape[1], 1), x.dtype)) / x.dtype.type(x.shape[1])


def mean_product(xp, a, b):
    """mean(a b) over the last axis, that axis kept, without an array of the products."""
    return (xp.einsum("...i,...i->...", a, b) / a.shape[-1])[..., None]


def inverse_root(xp, mean_square, eps):
    """1 / sqrt(mean_square + eps), in the array it is given."""
    mean_square += eps
    xp.sqrt(mean_square, out=mean_square)
    return xp.divide(1, mean_square, out=mean_square)
