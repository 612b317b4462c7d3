"""Scaled dot-product attention, Vaswani et al. 2017 (arXiv 1706.03762), equation 1."""

from .. import backend
from .base import Function
from .matmul import transpose_last
from .norm import softmax_array


def attend(xp, q, k, v, scale, y=None, p=None):
    """y = p v and the probabilities p = softmax(scale q k^T) of arrays (..., T, d), written to y and p where given."""
    p = xp.matmul(q, transpose_last(k), out=p)
    p *= scale
    softmax_array(xp, p, out=p)
    return xp.matmul(p, v, out=y), p


def attend_backward(xp, g, q, k, v, p, scale, dq=None, dk=None, dv=None):
    """dq, dk, dv from g = dL/dy, written to the arrays where given."""
    dv = xp.matmul(transpose_last(p), g, out=dv)
    ds = xp.matmul(g, transpose_last(v))  # dL/dp, then dL/ds in place
    ds -= xp.einsum("...ij,...ij->...i", ds, p)[..., None]
    ds *= p
    ds *= scale
    return xp.matmul(ds, k, out=dq), xp.matmul(transpose_last(ds), q, out=dk), dv


class ScaledDotProductAttention(Function, name="scaled_dot_product_attention"):
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


class MultiHeadAttention(Function, name="multi_head_attention"):
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
        # A few images at a time, so that their scores stay in the cache; BLAS reads and writes the heads where they are
        for block in backend.row_blocks((n, heads * t * t), xp):
            q, k, v = split_heads(qkv[block], heads)
            attend(xp, q, k, v, ctx.scale, y=y[block].swapaxes(1, 2), p=p[block])
        ctx.save(qkv, p)
        return y.reshape(n, t, heads * d)

    @staticmethod
    def backward(ctx, g):
        xp, (qkv, p) = ctx.xp, ctx.saved
        n, heads, t, _ = p.shape
        g = g.reshape(n, t, heads, g.shape[-1] // heads).swapaxes(1, 2)
        dqkv = xp.empty(qkv.shape, dtype=g.dtype)
        for block in backend.row_blocks((n, heads * t * t), xp):
            parts = split_heads(qkv[block], heads)
            attend_backward(xp, g[block], *parts, p[block], ctx.scale, *split_heads(dqkv[block], heads))
        return (dqkv,)


def split_heads(qkv, heads):
    """Views q, k, v (N, h, T, d) of qkv (N, T, 3 h d), whose rows hold them side by side."""
    n, t, width = qkv.shape
    q, k, v = qkv.reshape(n, t, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
    return q, k, v
