"""Softmax and the normalisations: each one op with one backward, because they are hot."""

from .base import Function


class Softmax(Function):
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


class LogSoftmax(Function):
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


class LayerNorm(Function):
    """y = z w + b with z = (x - mean x) / s, s = sqrt(var x + eps) over the last axis; Ba et al. 2016 (arXiv 1607.06450)

    dw = sum over rows of g z, db = sum over rows of g. With h = g w = dL/dz and means over the last axis:
    dL/dx = (h - mean(h) - z mean(h z)) / s: what h has in the directions 1 and z, which z cannot follow, is taken out.
    """

    @staticmethod
    def forward(ctx, x, weight=None, bias=None, *, eps=1e-5):
        z = x - x.mean(axis=-1, keepdims=True)
        inverse = mean_product(ctx.xp, z, z)
        inverse += eps
        inverse = 1 / ctx.xp.sqrt(inverse)
        z *= inverse
        ctx.save(z, inverse, weight)
        ctx.inputs = 1 + (weight is not None) + (bias is not None)
        if weight is None:
            return z
        y = z * weight
        if bias is not None:
            y += bias
        return y

    @staticmethod
    def backward(ctx, g):
        z, inverse, weight = ctx.saved
        dx = g if weight is None else g * weight
        correction = z * mean_product(ctx.xp, dx, z)
        dx = dx - dx.mean(axis=-1, keepdims=True)
        dx -= correction
        dx *= inverse
        return (dx, *_affine_grads(ctx, g, z))[: ctx.inputs]


class RMSNorm(Function):
    """y = z w with z = x / s, s = sqrt(mean(x^2) + eps) over the last axis; Zhang & Sennrich 2019 (arXiv 1910.07467)

    dw = sum over rows of g z. With h = g w: dL/dx = (h - z mean(h z)) / s.
    """

    @staticmethod
    def forward(ctx, x, weight=None, *, eps=1e-6):
        inverse = mean_product(ctx.xp, x, x)
        inverse += eps
        inverse = 1 / ctx.xp.sqrt(inverse)
        z = x * inverse
        ctx.save(z, inverse, weight)
        ctx.inputs = 1 + (weight is not None)
        return z if weight is None else z * weight

    @staticmethod
    def backward(ctx, g):
        z, inverse, weight = ctx.saved
        h = g if weight is None else g * weight
        dx = h - z * mean_product(ctx.xp, h, z)
        dx *= inverse
        return (dx, *_affine_grads(ctx, g, z))[: ctx.inputs]


class Dropout(Function):
    """y = x m with m = 0 with probability p, else 1 / (1 - p); Srivastava et al. 2014. The mask m is given, drawn outside

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


def softmax_array(xp, x, axis=-1):
    """Softmax of an array along an axis; each slice gives up its own maximum first, so that e^x cannot overflow."""
    y = x - x.max(axis=axis, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def log_softmax_array(xp, x, axis=-1):
    y = x - x.max(axis=axis, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y


def mean_product(xp, a, b):
    """mean(a b) over the last axis, that axis kept, without an array of the products."""
    return (xp.einsum("...i,...i->...", a, b) / a.shape[-1])[..., None]


def _affine_grads(ctx, g, z):
    """dw = sum of g z and db = sum of g over all axes but the last."""
    width = g.shape[-1]
    g = g.reshape(-1, width)
    return ctx.xp.einsum("ri,ri->i", g, z.reshape(-1, width)), g.sum(axis=0)
