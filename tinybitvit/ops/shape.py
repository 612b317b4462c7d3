"""Functions that move elements without changing them: their backwards move g the way back."""

from .. import backend
from .base import Function, unbroadcast


class Reshape(Function, name="reshape"):
    """y = x, the same elements in the same (row-major) order under another shape

    g is reshaped back.
    """

    @staticmethod
    def forward(ctx, x, *, shape):
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx, g):
        return (g.reshape(ctx.shape),)


class Transpose(Function, name="transpose"):
    """y[i_p0, i_p1, ...] = x[i_0, i_1, ...] for the permutation p = axes (None: all axes reversed)

    g goes through the inverse permutation.
    """

    @staticmethod
    def forward(ctx, x, *, axes=None):
        y = x.transpose(axes)  # first, because it refuses axes that are no permutation
        axes = range(x.ndim)[::-1] if axes is None else [a % x.ndim for a in axes]
        ctx.inverse = tuple(axes.index(i) for i in range(x.ndim))
        return y

    @staticmethod
    def backward(ctx, g):
        return (g.transpose(ctx.inverse),)


class BroadcastTo(Function, name="broadcast_to"):
    """y = x repeated along the axes of size 1 (and along new leading axes) up to a shape

    A repeated element receives the sum of the g of its copies.
    """

    @staticmethod
    def forward(ctx, x, *, shape):
        ctx.shape = x.shape
        return ctx.xp.broadcast_to(x, shape)

    @staticmethod
    def backward(ctx, g):
        return (unbroadcast(g, ctx.shape),)


class GetItem(Function, name="getitem"):
    """y = x[index] for any NumPy index: ints, slices, None, Ellipsis, integer or bool arrays

    dL/dx[index] = g and 0 elsewhere; an element picked several times receives the sum.
    """

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.index, ctx.shape = backend.as_index(index, x), x.shape
        return x[ctx.index]

    @staticmethod
    def backward(ctx, g):
        dx = ctx.xp.zeros(ctx.shape, dtype=g.dtype)
        parts = ctx.index if isinstance(ctx.index, tuple) else (ctx.index,)
        if all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
            dx[ctx.index] = g  # basic indexing picks each element once
        else:
            backend.add_at(dx, ctx.index, g)
        return (dx,)


class Concatenate(Function, name="concatenate"):
    """y = the inputs one after another along an axis

    Each input receives its own stretch of g.
    """

    @staticmethod
    def forward(ctx, *arrays, axis=0):
        ctx.axis = axis
        ctx.sizes = [a.shape[axis] for a in arrays]
        return ctx.xp.concatenate(arrays, axis=axis)

    @staticmethod
    def backward(ctx, g):
        grads, start = [], 0
        for size in ctx.sizes:
            stretch = [slice(None)] * g.ndim
            stretch[ctx.axis] = slice(start, start + size)
            grads.append(g[tuple(stretch)])
            start += size
        return tuple(grads)


class Pad(Function, name="pad"):
    """y = x with a border of a constant value, pad_width = ((before, after), ...) per axis as in NumPy

    The border is constant, so x receives the inner part of g.
    """

    @staticmethod
    def forward(ctx, x, *, pad_width, value=0.0):
        pairs = [(pad_width, pad_width)] * x.ndim if isinstance(pad_width, int) else list(pad_width)
        if len(pairs) != x.ndim:
            raise ValueError(
                f"pad_width needs one (before, after) pair for each of the {x.ndim} axes, not {len(pairs)}"
            )
        ctx.inner = tuple(slice(before, before + n) for (before, _), n in zip(pairs, x.shape, strict=True))
        return ctx.xp.pad(x, pairs, constant_values=value)

    @staticmethod
    def backward(ctx, g):
        return (g[ctx.inner],)
