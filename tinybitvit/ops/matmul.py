"""Matrix products, where a Transformer spends its time."""

from ..backend import Array
from .base import Context, Function, Gradients, rows_of, unbroadcast, widened


def transpose_last(x: Array) -> Array:
    """x with its last two axes swapped (a view)."""
    return x.swapaxes(-1, -2)


class Matmul(Function, name="matmul"):
    """y = a @ b over the last two axes, (..., n, k) @ (..., k, m) -> (..., n, m); leading axes broadcast

    y_ij = sum_k a_ik b_kj, so dL/da_ik = sum_j g_ij b_kj, that is da = g b^T, and db = a^T g.
    A 1-D operand counts as one row (a) or one column (b), as in NumPy.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        if a.ndim == 0 or b.ndim == 0:
            raise ValueError("matmul needs arrays with at least one axis; use * to multiply by a scalar")
        if a.shape[-1] != b.shape[b.ndim - 2]:
            raise ValueError(f"matmul: the rows of a have {a.shape[-1]} numbers, the columns of b {b.shape[-2:][0]}")
        ctx.save(a, b)
        return ctx.xp.matmul(a, b)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
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
    Plainly: `linear` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None = None) -> Array:
        rows = rows_of(x)
        if weight.ndim != 2 or weight.shape[1] != rows.shape[1]:
            raise ValueError(f"linear: the weight must be (out, {rows.shape[1]}) for this input, not {weight.shape}")
        y = rows @ weight.T
        if bias is not None:
            if bias.shape != weight.shape[:1]:
                raise ValueError(f"linear: the bias must be ({weight.shape[0]},) for this weight, not {bias.shape}")
            y += bias
        ctx.shape = x.shape
        ctx.save(rows, weight)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        rows, weight = ctx.saved
        g = g.reshape(len(rows), weight.shape[0])
        need_x, need_weight, *need_bias = ctx.needs_input_grad
        dx = (g @ weight).reshape(ctx.shape) if need_x else None
        dw = g.T @ rows if need_weight else None
        if not need_bias:
            return dx, dw
        return dx, dw, widened(g).sum(axis=0) if need_bias[0] else None
