"""Functions that sum, average or pick over axes. `axis` is None (all), an int or a tuple, as in NumPy."""

from .base import Function, normalize_axis


class _Reduction(Function):
    """What reductions share: the axes that went, and how to lay g over the shape of x again."""

    @staticmethod
    def remember(ctx, x, axis):
        ctx.axes = normalize_axis(axis, x.ndim)
        ctx.shape = x.shape
        ctx.count = 1
        for a in ctx.axes:
            ctx.count *= x.shape[a]

    @staticmethod
    def expand(ctx, g):
        """g with the reduced axes put back as size 1, whether or not keepdims left them there."""
        return g.reshape([1 if i in ctx.axes else n for i, n in enumerate(ctx.shape)])


class Sum(_Reduction, name="sum"):
    """y = sum_i x_i

    dy/dx_i = 1, so every element receives g.
    """

    @staticmethod
    def forward(ctx, x, *, axis=None, keepdims=False):
        Sum.remember(ctx, x, axis)
        return x.sum(axis=ctx.axes, keepdims=keepdims)

    @staticmethod
    def backward(ctx, g):
        return (ctx.xp.broadcast_to(Sum.expand(ctx, g), ctx.shape),)


class Mean(_Reduction, name="mean"):
    """y = (1/n) sum_i x_i

    dy/dx_i = 1/n.
    """

    @staticmethod
    def forward(ctx, x, *, axis=None, keepdims=False):
        Mean.remember(ctx, x, axis)
        return x.mean(axis=ctx.axes, keepdims=keepdims)

    @staticmethod
    def backward(ctx, g):
        return (ctx.xp.broadcast_to(Mean.expand(ctx, g) / max(ctx.count, 1), ctx.shape),)


class Max(_Reduction, name="max"):
    """y = max_i x_i

    dy/dx_i = 1 / m where x_i is one of the m elements that reach the maximum, else 0 (as torch.amax shares it).
    """

    @staticmethod
    def forward(ctx, x, *, axis=None, keepdims=False):
        Max.remember(ctx, x, axis)
        y = x.max(axis=ctx.axes, keepdims=True)
        ctx.save(x == y)
        return y if keepdims else y.reshape([n for i, n in enumerate(y.shape) if i not in ctx.axes])

    @staticmethod
    def backward(ctx, g):
        (reached,) = ctx.saved
        share = Max.expand(ctx, g) / reached.sum(axis=ctx.axes, keepdims=True).astype(g.dtype)
        return (reached * share,)


class Var(_Reduction, name="var"):
    """y = sum_i (x_i - m)^2 / (n - ddof), m the mean (ddof=0 as in NumPy; PyTorch's default is 1)

    dy/dx_i = 2 (x_i - m) / (n - ddof); the terms through m cancel, since sum_i (x_i - m) = 0.
    """

    @staticmethod
    def forward(ctx, x, *, axis=None, ddof=0, keepdims=False):
        Var.remember(ctx, x, axis)
        ctx.degrees = ctx.count - ddof
        if ctx.degrees <= 0:
            raise ValueError(
                f"var: {ctx.count} elements with ddof={ddof} have no variance; reduce over more, or lower ddof"
            )
        centred = x - x.mean(axis=ctx.axes, keepdims=True)
        ctx.save(centred)
        return (centred * centred).sum(axis=ctx.axes, keepdims=keepdims) / ctx.degrees

    @staticmethod
    def backward(ctx, g):
        (centred,) = ctx.saved
        return (centred * (Var.expand(ctx, g) * (2 / ctx.degrees)),)
