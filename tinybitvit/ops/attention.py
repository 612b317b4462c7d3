"""Scaled dot-product attention, Vaswani et al. 2017 (arXiv 1706.03762), equation 1."""

from typing import Any

from .. import backend
from ..backend import Array
from .base import Context, Function, Gradients, floating, unbroadcast
from .matmul import transpose_last
from .norm import softmax_array


def attend(
    xp: Any, q: Array, k: Array, v: Array, scale: float, y: Array | None = None, p: Array | None = None
) -> tuple[Array, Array]:
    """y = p v and the probabilities p = softmax(scale q k^T) of arrays (..., T, d), written to y and p where given."""
    p = xp.matmul(q, transpose_last(k), out=p)
    p *= scale
    softmax_array(xp, p, out=p)
    return xp.matmul(p, v, out=y), p


def attend_backward(
    xp: Any, g: Array, q: Array, k: Array, v: Array, p: Array, scale: float, out: tuple = (None, None, None)
) -> tuple[Array, Array, Array]:
    """dq, dk, dv from g = dL/dy, written to the arrays `out` where given."""
    dq, dk, dv = out
    dv = xp.matmul(transpose_last(p), g, out=dv)
    ds = xp.matmul(g, transpose_last(v))  # dL/dp, then dL/ds in place
    ds -= xp.einsum("...ij,...ij->...i", ds, p)[..., None]
    ds *= p
    ds *= scale
    return xp.matmul(ds, k, out=dq), xp.matmul(transpose_last(ds), q, out=dk), dv


class ScaledDotProductAttention(Function, name="scaled_dot_product_attention"):
    """y = p v with p = softmax(s), s = scale q k^T, for q (..., T, d), k (..., S, d), v (..., S, e): y (..., T, e)

    dv = p^T g and dL/dp = g v^T; through the softmax of each row i: dL/ds_ij = p_ij (dL/dp_ij - sum_l dL/dp_il p_il);
    then dq = scale (dL/ds) k and dk = scale (dL/ds)^T q. Leading axes broadcast.
    Plainly: `attention` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, q: Array, k: Array, v: Array, *, scale: float | None = None) -> Array:
        shapes = f"q {q.shape}, k {k.shape} and v {v.shape}"
        if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
            raise ValueError(f"attention needs q (..., T, d), k (..., S, d) and v (..., S, e), not {shapes}")
        ctx.scale = default_scale(q.shape[-1]) if scale is None else scale
        ctx.shapes = q.shape, k.shape, v.shape
        parts = floating(q), floating(k), floating(v)
        y, p = attend(ctx.xp, *parts, ctx.scale)
        ctx.save(*parts, p)
        return y.astype(q.dtype, copy=False)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        q, k, v, p = ctx.saved
        grads = attend_backward(ctx.xp, g, q, k, v, p, ctx.scale)
        return tuple(unbroadcast(d, shape) for d, shape in zip(grads, ctx.shapes, strict=True))


class MultiHeadAttention(Function, name="multi_head_attention"):
    """y = softmax(scale q k^T) v of every head at once, from qkv (N, T, 3 h d), q, k, v side by side, to y (N, T, h d)

    Head j works on columns j d .. (j+1) d of q, k and v. Splitting and joining the heads only moves elements, so
    dL/dqkv holds dq, dk and dv of every head where q, k and v were.
    Plainly: `multi_head_attention` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, qkv: Array, *, heads: int, scale: float | None = None) -> Array:
        xp, dtype, qkv = ctx.xp, qkv.dtype, floating(qkv)
        if qkv.ndim != 3:
            raise ValueError(f"qkv must be (N, T, 3 * heads * d), not {qkv.shape}")
        n, t, width = qkv.shape
        if heads < 1 or width % (3 * heads):
            raise ValueError(f"qkv has {width} columns, which {heads} heads of q, k and v do not divide")
        d = width // (3 * heads)
        ctx.scale = default_scale(d) if scale is None else scale
        y = xp.empty((n, t, heads, d), dtype=qkv.dtype)
        p = xp.empty((n, heads, t, t), dtype=qkv.dtype)
        # A few images at a time, so that their scores stay in the cache; BLAS reads and writes the heads where they are
        for block in backend.row_blocks((n, heads * t * t), xp):
            q, k, v = split_heads(qkv[block], heads)
            attend(xp, q, k, v, ctx.scale, y=y[block].swapaxes(1, 2), p=p[block])
        ctx.save(qkv, p)
        return y.reshape(n, t, heads * d).astype(dtype, copy=False)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        xp, (qkv, p) = ctx.xp, ctx.saved
        n, heads, t, _ = p.shape
        g = g.reshape(n, t, heads, g.shape[-1] // heads).swapaxes(1, 2)
        dqkv = xp.empty(qkv.shape, dtype=qkv.dtype)
        for block in backend.row_blocks((n, heads * t * t), xp):
            parts = split_heads(qkv[block], heads)
            attend_backward(xp, g[block], *parts, p[block], ctx.scale, split_heads(dqkv[block], heads))
        return (dqkv,)


def default_scale(d: int) -> float:
    """1 / sqrt(d) for heads of d channels, which keeps the scores of random q and k at variance 1."""
    return max(d, 1) ** -0.5


def split_heads(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """Views q, k, v (N, h, T, d) of qkv (N, T, 3 h d), whose rows hold them side by side."""
    n, t, width = qkv.shape
    q, k, v = qkv.reshape(n, t, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
    return q, k, v
