"""Matrix products, where a Transformer spends its time."""

from .base import Function, unbroadcast


def transpose_last(x):
    """x with its last two axes swapped (a view)."""
    return x.swapaxes(-1, -2)


class Matmul(Function, name="matmul"):
    """y = a @ b over the last two axes, (..., n, k) @ (..., k, m) -> (..., n, m); leading axes broadcast

    y_ij = sum_k a_ik b_kj, so dL/da_ik = sum_j g_ij b_kj, that is da = g b^T, and db = a^T g.
    A 1-D operand counts as one row (a) or one column (b), as in NumPy.
    """

    @staticmethod
    def forward(ctx, a, b):
        if a.ndim == 0 or b.ndim == 0:
            raise ValueError("matmul needs arrays with at least one axis; use * to multiply by a scalar")
        ctx.save(a, b)
        return ctx.xp.matmul(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        a2 = a[None, :] if a.ndim == 1 else a
        b2 = b[:, None] if b.ndim == 1 else b
        if b.ndim == 1:
            g = g[..., None]
        if a.ndim == 1:
            g = g[..., None, :]
        need_a, need_b = ctx.needs_input_grad
        da = unbroadcast(ctx.xp.matmul(g, transpose_last(b2)), a2.shape).reshape(a.shape) if need_a else None
        db = unbroadcast(ctx.xp.matmul(transpose_last(a2), g), b2.shape).reshape(b.shape) if need_b else None
        return da, db


class Linear(Function, name="linear"):
    """y = x W^T + b for rows x (..., in), W (out, in), b (out,): y (..., out)

    y_o = sum_i x_i W_oi + b_o. With the leading axes flattened into rows:
    dx = g W, dW = g^T x, db = sum over rows of g.
    """

    @staticmethod
    def forward(ctx, x, weight, bias=None):
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ weight.T
        if bias is not None:
            y += bias
        ctx.shape = x.shape
        ctx.save(rows, weight)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx, g):
        rows, weight = ctx.saved
        g = g.reshape(-1, weight.shape[0])
        need_x, need_weight, *need_bias = ctx.needs_input_grad
        dx = (g @ weight).reshape(ctx.shape) if need_x else None
        dw = g.T @ rows if need_weight else None
        if not need_bias:
            return dx, dw
        return dx, dw, g.sum(axis=0) if need_bias[0] else None
