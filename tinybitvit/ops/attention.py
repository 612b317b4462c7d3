"""Scaled dot-product attention, Vaswani et al. 2017 (arXiv 1706.03762), equation 1."""

from .. import backend
from .base import Function
from .matmul import transpose_last
from .norm import softmax_array


def attend(xp, q, k, v, scale):
    """The output y = p v and the probabilities p = softmax(scale q k^T) of arrays (..., T, d)."""
    p = softmax_array(xp, xp.matmul(q * scale, transpose_last(k)))
    return xp.matmul(p, v), p


def attend_backward(xp, g, q, k, v, p, scale):
    """dq, dk, dv from g = dL/dy."""
    dv = xp.matmul(transpose_last(p), g)
    ds = xp.matmul(g, transpose_last(v))  # dL/dp, then dL/ds in place
    ds -= xp.einsum("...ij,...ij->...i", ds, p)[..., None]
    ds *= p
    ds *= scale
    return xp.matmul(ds, k), xp.matmul(transpose_last(ds), q), dv


class ScaledDotProductAttention(Function):
    """y = p v with p = softmax(s), s = scale q k^T, for q (..., T, d), k (..., S, d), v (..., S, e): y (..., T, e)

    dv = p^T g and dL/dp = g v^T; through the softmax of each row i: dL/ds_ij = p_ij (dL/dp_ij - sum_l dL/dp_il p_il);
    then dq = scale (dL/ds) k and dk = scale (dL/ds)^T q.
    """

    @staticmethod
    def forward(ctx, q, k, v, *, scale=None):
        ctx.scale = q.shape[-1] ** -0.5 if scale is None else scale
        y, p = attend(ctx.xp, q, k, v, ctx.scale)
        ctx.save(q, k, v, p)
        return y

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved
        return attend_backward(ctx.xp, g, q, k, v, p, ctx.scale)


class MultiHeadAttention(Function):
    """y = softmax(scale q k^T) v of every head at once, from qkv (N, T, 3 h d), q, k, v side by side, to y (N, T, h d)

    Head j works on columns j d .. (j+1) d of q, k and v. Splitting and joining the heads only moves elements, so
    dL/dqkv holds dq, dk and dv of every head where q, k and v were.
    """

    @staticmethod
    def forward(ctx, qkv, *, heads, scale=None):
        xp, (n, t, width) = ctx.xp, qkv.shape
        if width % (3 * heads):
            raise ValueError(f"qkv has {width} columns, which {heads} heads of q, k and v do not divide")
        d = width // (3 * heads)
        ctx.scale = d**-0.5 if scale is None else scale
        y = xp.empty((n, t, heads, d), dtype=qkv.dtype)
        p = xp.empty((n, heads, t, t), dtype=qkv.dtype)
        # A few images at a time, so that their scores stay in the cache
        for block in backend.row_blocks((n, heads * t * t)):
            q, k, v = split_heads(xp, qkv[block], heads)
            out, p[block] = attend(xp, q, k, v, ctx.scale)
            y[block] = out.transpose(0, 2, 1, 3)
        ctx.save(qkv, p)
        return y.reshape(n, t, heads * d)

    @staticmethod
    def backward(ctx, g):
        xp, (qkv, p) = ctx.xp, ctx.saved
        n, heads, t, _ = p.shape
        d = g.shape[-1] // heads
        g = g.reshape(n, t, heads, d)
        dqkv = xp.empty((n, t, 3, heads, d), dtype=g.dtype)
        for block in backend.row_blocks((n, heads * t * t)):
            q, k, v = split_heads(xp, qkv[block], heads)
            gb = xp.ascontiguousarray(g[block].transpose(0, 2, 1, 3))
            for i, part in enumerate(attend_backward(xp, gb, q, k, v, p[block], ctx.scale)):
                dqkv[block, :, i] = part.transpose(0, 2, 1, 3)
        return (dqkv.reshape(qkv.shape),)


def split_heads(xp, qkv, heads):
    """q, k, v (N, h, T, d) from their rows side by side (N, T, 3 h d): one dense copy, as BLAS likes it."""
    n, t, width = qkv.shape
    return xp.ascontiguousarray(qkv.reshape(n, t, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4))
