"""Functions that move elements without changing them: their backwards move g the way back."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeAlias

from .. import backend
from ..backend import Array
from .base import Context, Function, Gradients, normalize_axis, unbroadcast

Shape: TypeAlias = int | Sequence[int]


class Reshape(Function, name="reshape"):
    """y = x, the same elements in the same (row-major) order under another shape

    g is reshaped back.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, shape: Shape) -> Array:
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (g.reshape(ctx.shape),)


class Transpose(Function, name="transpose"):
    """y[i_p0, i_p1, ...] = x[i_0, i_1, ...] for the permutation p = axes (None: all axes reversed)

    g goes through the inverse permutation.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axes: Sequence[int] | None = None) -> Array:
        y = x.transpose(axes)  # first, because it refuses axes that are no permutation
        axes = range(x.ndim)[::-1] if axes is None else [a % x.ndim for a in axes]
        ctx.inverse = tuple(axes.index(i) for i in range(x.ndim))
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (g.transpose(ctx.inverse),)


class BroadcastTo(Function, name="broadcast_to"):
    """y = x repeated along the axes of size 1 (and along new leading axes) up to a shape

    A repeated element receives the sum of the g of its copies.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, shape: Shape) -> Array:
        ctx.shape = x.shape
        return ctx.xp.broadcast_to(x, shape)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (unbroadcast(g, ctx.shape),)


class GetItem(Function, name="getitem"):
    """y = x[index] for any NumPy index: ints, slices, None, Ellipsis, integer or bool arrays

    dL/dx[index] = g and 0 elsewhere; an element picked several times receives the sum.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, index: Any) -> Array:
        parts = index if isinstance(index, tuple) else (index,)
        ctx.basic = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)
        # The caller may go on to shuffle the array of an index before the backward
        ctx.index = backend.as_index(index if ctx.basic else deepcopy(index), x)
        ctx.shape = x.shape
        return x[ctx.index]

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        dx = ctx.xp.zeros(ctx.shape, dtype=g.dtype)
        if ctx.basic:
            dx[ctx.index] = g  # basic indexing picks each element once
        else:
            backend.add_at(dx, ctx.index, g)
        return (dx,)


class Concatenate(Function, name="concatenate"):
    """y = the inputs one after another along an axis

    Each input receives its own stretch of g.
    """

    @staticmethod
    def forward(ctx: Context, *arrays: Array, axis: int = 0) -> Array:
        if not isinstance(axis, int):
            raise ValueError(f"concatenate needs one axis, a whole number, not {axis!r}: reshape the inputs to (-1,)")
        (ctx.axis,) = normalize_axis(axis, min(a.ndim for a in arrays))
        ctx.sizes = [a.shape[ctx.axis] for a in arrays]
        return ctx.xp.concatenate(arrays, axis=ctx.axis)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        grads: list[Array] = []
        start = 0
        for size in ctx.sizes:
            grads.append(g[(slice(None),) * ctx.axis + (slice(start, start + size),)])
            start += size
        return tuple(grads)


class Pad(Function, name="pad"):
    """y = x with a border of a constant value, pad_width = ((before, after), ...) per axis as in NumPy

    The border is constant, so x receives the inner part of g.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, pad_width: int | Sequence[Sequence[int]], value: float = 0.0) -> Array:
        pairs = [(pad_width, pad_width)] * x.ndim if isinstance(pad_width, int) else list(pad_width)
        if len(pairs) != x.ndim or any(not hasattr(pair, "__len__") or len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"pad_width needs one (before, after) pair for each of the {x.ndim} axes, not {len(pairs)}: {pad_width}"
            )
        if any(width < 0 for pair in pairs for width in pair):
            raise ValueError(f"pad_width {pad_width} is negative; cut a border off with x[1:-1]")
        ctx.inner = tuple(slice(before, before + n) for (before, _), n in zip(pairs, x.shape, strict=True))
        return ctx.xp.pad(x, pairs, constant_values=value)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (g[ctx.inner],)
