"""Functions that act on each element alone. Inputs broadcast against one another as in NumPy."""

from .base import Function, unbroadcast


class Add(Function, name="add"):
    """y = a + b

    dy/da = dy/db = 1, so both inputs receive g.
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = a.shape, b.shape
        return a + b

    @staticmethod
    def backward(ctx, g):
        return tuple(unbroadcast(g, shape) for shape in ctx.shapes)


class Sub(Function, name="sub"):
    """y = a - b

    dy/da = 1 and dy/db = -1.
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = a.shape, b.shape
        return a - b

    @staticmethod
    def backward(ctx, g):
        return unbroadcast(g, ctx.shapes[0]), unbroadcast(-g, ctx.shapes[1])


class Mul(Function, name="mul"):
    """y = a b

    dy/da = b and dy/db = a.
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        return unbroadcast(g * b, a.shape) if need_a else None, unbroadcast(g * a, b.shape) if need_b else None


class Div(Function, name="div"):
    """y = a / b

    dy/da = 1 / b and dy/db = -a / b^2 = -y / b.
    """

    @staticmethod
    def forward(ctx, a, b):
        y = a / b
        ctx.shape = a.shape
        ctx.save(b, y)
        return y

    @staticmethod
    def backward(ctx, g):
        b, y = ctx.saved
        da = g / b
        return unbroadcast(da, ctx.shape), unbroadcast(-da * y, b.shape)


class Neg(Function, name="neg"):
    """y = -x

    dy/dx = -1.
    """

    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    def backward(ctx, g):
        return (-g,)


class Pow(Function, name="pow"):
    """y = x^p for a constant exponent p

    dy/dx = p x^(p-1); for p = 0 it is 0 everywhere, also at x = 0.
    """

    @staticmethod
    def forward(ctx, x, *, exponent):
        ctx.exponent = exponent
        ctx.save(x)
        return x**exponent

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        p = ctx.exponent
        return (g * 0 if p == 0 else g * (p * x ** (p - 1)),)


class Power(Function, name="power"):
    """y = a^b

    dy/da = b a^(b-1) and dy/db = y ln a; 0 for b = 0 and, where b >= 0, for a = 0, as PyTorch has it.
    """

    @staticmethod
    def forward(ctx, a, b):
        y = a**b
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx, g):
        xp, (a, b, y) = ctx.xp, ctx.saved
        need_a, need_b = ctx.needs_input_grad
        da = db = None
        if need_a:
            da = unbroadcast(xp.where(b == 0, 0, g * (b * a ** xp.where(b == 0, 1, b - 1))), a.shape)
        if need_b:
            flat = (a == 0) & (b >= 0)
            db = unbroadcast(xp.where(flat, 0, g * (y * xp.log(xp.where(flat, 1, a)))), b.shape)
        return da, db


class Exp(Function, name="exp"):
    """y = e^x

    dy/dx = y.
    """

    @staticmethod
    def forward(ctx, x):
        y = ctx.xp.exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return (g * y,)


class Log(Function, name="log"):
    """y = ln x

    dy/dx = 1 / x.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return ctx.xp.log(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return (g / x,)


class Sqrt(Function, name="sqrt"):
    """y = sqrt(x)

    dy/dx = 1 / (2 y).
    """

    @staticmethod
    def forward(ctx, x):
        y = ctx.xp.sqrt(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return (g / (2 * y),)


class Where(Function, name="where"):
    """y = a where the condition holds, else b (the condition gets no gradient)

    g flows to a where the condition holds and to b elsewhere.
    """

    @staticmethod
    def forward(ctx, condition, a, b):
        ctx.shapes = a.shape, b.shape
        ctx.save(condition)
        return ctx.xp.where(condition, a, b)

    @staticmethod
    def backward(ctx, g):
        (condition,) = ctx.saved
        zero = g.dtype.type(0)
        da, db = ctx.xp.where(condition, g, zero), ctx.xp.where(condition, zero, g)
        return None, unbroadcast(da, ctx.shapes[0]), unbroadcast(db, ctx.shapes[1])


class Abs(Function, name="abs"):
    """y = |x|

    dy/dx = sign x, with 0 at x = 0.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return ctx.xp.abs(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return (g * ctx.xp.sign(x),)


class Maximum(Function, name="maximum"):
    """y = max(a, b), elementwise

    g flows to the larger input; where they are equal each gets half, as PyTorch has it.
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return ctx.xp.maximum(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        tie = (a == b) * g.dtype.type(0.5)
        return unbroadcast(g * ((a > b) + tie), a.shape), unbroadcast(g * ((b > a) + tie), b.shape)


class Clip(Function, name="clip"):
    """y = min(max(x, low), high); None leaves that side open

    dy/dx = 1 where low <= x <= high (the ends included, as PyTorch has it), else 0.
    """

    @staticmethod
    def forward(ctx, x, *, low=None, high=None):
        if low is None and high is None:
            raise ValueError("clip needs low, high or both")
        inside = True if low is None else x >= low
        ctx.save(inside if high is None else inside & (x <= high))
        return ctx.xp.clip(x, low, high)

    @staticmethod
    def backward(ctx, g):
        (inside,) = ctx.saved
        return (g * inside,)
