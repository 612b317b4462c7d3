"""Functions that sum, average or pick over axes. `axis` is None (all), an int or a tuple, as in NumPy."""

import math

from ..backend import Array
from .base import Axis, Context, Function, Gradients, normalize_axis, widened


def remember(ctx: Context, x: Array, axis: Axis) -> None:
    """Keep the shape of x, the axes that go, and the number of elements that become one."""
    ctx.shape, ctx.axes = x.shape, normalize_axis(axis, x.ndim)
    ctx.count = math.prod(x.shape[a] for a in ctx.axes)


def expand(ctx: Context, g: Array) -> Array:
    """g with the reduced axes put back as size 1, whether or not keepdims left them there."""
    return g.reshape([1 if i in ctx.axes else n for i, n in enumerate(ctx.shape)])


def like(x: Array, y: Array) -> Array:
    """y in the floating point numbers of x."""
    return y.astype(x.dtype, copy=False) if x.dtype.kind == "f" else y


class Sum(Function, name="sum"):
    """y = sum_i x_i

    dy/dx_i = 1, so every element receives g.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Array:
        remember(ctx, x, axis)
        return like(x, widened(x).sum(axis=ctx.axes, keepdims=keepdims))

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (ctx.xp.broadcast_to(expand(ctx, g), ctx.shape),)


class Mean(Function, name="mean"):
    """y = (1/n) sum_i x_i

    dy/dx_i = 1/n.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Array:
        remember(ctx, x, axis)
        return x.mean(axis=ctx.axes, keepdims=keepdims)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (ctx.xp.broadcast_to(expand(ctx, g) / max(ctx.count, 1), ctx.shape),)


class Max(Function, name="max"):
    """y = max_i x_i

    dy/dx_i = 1 / m where x_i is one of the m elements that reach the maximum, else 0 (as torch.amax shares it).
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Array:
        remember(ctx, x, axis)
        if not ctx.count:
            raise ValueError(f"an array of shape {x.shape} has no maximum over axis {axis}: there are no elements")
        y = x.max(axis=ctx.axes, keepdims=True)
        ctx.save(x == y)
        return y if keepdims else y.reshape([n for i, n in enumerate(y.shape) if i not in ctx.axes])

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (reached,) = ctx.saved
        share = expand(ctx, g) / reached.sum(axis=ctx.axes, keepdims=True).astype(g.dtype)
        return (reached * share,)


class Var(Function, name="var"):
    """y = sum_i (x_i - m)^2 / (n - ddof), m the mean (ddof=0 as in NumPy; PyTorch's default is 1)

    dy/dx_i = 2 (x_i - m) / (n - ddof); the terms through m cancel, since sum_i (x_i - m) = 0.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
        remember(ctx, x, axis)
        ctx.degrees = ctx.count - ddof
        if ctx.degrees <= 0 < ctx.count:
            raise ValueError(
                f"var: {ctx.count} elements with ddof={ddof} have no variance; reduce over more, or lower ddof"
            )
        wide = widened(x)
        centred = wide - wide.mean(axis=ctx.axes, keepdims=True)
        ctx.save(centred)
        return like(x, (centred * centred).sum(axis=ctx.axes, keepdims=keepdims) / max(ctx.degrees, 0))

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (centred,) = ctx.saved
        return (centred * (expand(ctx, g) * (2 / max(ctx.degrees, 1))),)
