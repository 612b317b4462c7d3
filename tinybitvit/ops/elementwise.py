"""Functions that act on each element alone. Inputs broadcast against one another as in NumPy."""

from ..backend import Array
from .base import Context, Function, Gradients, as_floats, unbroadcast


class Add(Function, name="add"):
    """y = a + b

    dy/da = dy/db = 1, so both inputs receive g.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        ctx.shapes = a.shape, b.shape
        return a + b

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return tuple(unbroadcast(g, shape) for shape in ctx.shapes)


class Sub(Function, name="sub"):
    """y = a - b

    dy/da = 1 and dy/db = -1.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        ctx.shapes = a.shape, b.shape
        return a - b

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return unbroadcast(g, ctx.shapes[0]), unbroadcast(-g, ctx.shapes[1])


class Mul(Function, name="mul"):
    """y = a b

    dy/da = b and dy/db = a.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        a, b = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        return unbroadcast(g * b, a.shape) if need_a else None, unbroadcast(g * a, b.shape) if need_b else None


class Div(Function, name="div"):
    """y = a / b

    dy/da = 1 / b and dy/db = -a / b^2 = -y / b.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        y = a / b
        ctx.shape = a.shape
        ctx.save(b, y)
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        b, y = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        da = unbroadcast(g / b, ctx.shape) if need_a else None
        return da, unbroadcast(-g * (y / b), b.shape) if need_b else None


class Neg(Function, name="neg"):
    """y = -x

    dy/dx = -1.
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        return -x

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (-g,)


class Pow(Function, name="pow"):
    """y = x^p for a constant exponent p

    dy/dx = p x^(p-1); for p = 0 it is 0 everywhere, also at x = 0.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, exponent: float) -> Array:
        ctx.exponent = exponent
        ctx.save(x)
        return x**exponent

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (x,) = ctx.saved
        p = ctx.exponent
        return (ctx.xp.zeros_like(g) if p == 0 else g * (p * x ** (p - 1)),)


class Power(Function, name="power"):
    """y = a^b

    dy/da = b a^(b-1) and dy/db = y ln a; 0 for b = 0 and, where b >= 0, for a = 0, as PyTorch has it.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        y = a**b
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        xp, (a, b, y) = ctx.xp, ctx.saved
        need_a, need_b = ctx.needs_input_grad
        da = db = None
        if need_a:
            one = b == 0
            da = unbroadcast(xp.where(one, 0, g * (b * a ** xp.where(one, 1, b - 1))), a.shape)
        if need_b:
            flat = (a == 0) & (b >= 0)
            db = unbroadcast(g * xp.where(flat, 0, y * xp.log(xp.where(flat, 1, a))), b.shape)
        return da, db


class Exp(Function, name="exp"):
    """y = e^x

    dy/dx = y.
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        y = ctx.xp.exp(as_floats(x))
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (y,) = ctx.saved
        return (g * y,)


class Log(Function, name="log"):
    """y = ln x

    dy/dx = 1 / x.
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        ctx.save(x)
        return ctx.xp.log(as_floats(x))

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (x,) = ctx.saved
        return (g / x,)


class Sqrt(Function, name="sqrt"):
    """y = sqrt(x)

    dy/dx = 1 / (2 y).
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        y = ctx.xp.sqrt(as_floats(x))
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (y,) = ctx.saved
        return (g / (2 * y),)


class Where(Function, name="where"):
    """y = a where the condition holds, else b (the condition gets no gradient)

    g flows to a where the condition holds and to b elsewhere.
    """

    @staticmethod
    def forward(ctx: Context, condition: Array, a: Array, b: Array) -> Array:
        ctx.shapes = a.shape, b.shape
        ctx.save(condition)
        return ctx.xp.where(condition, a, b)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (condition,) = ctx.saved
        da, db = ctx.xp.where(condition, g, 0), ctx.xp.where(condition, 0, g)
        return None, unbroadcast(da, ctx.shapes[0]), unbroadcast(db, ctx.shapes[1])


class Abs(Function, name="abs"):
    """y = |x|

    dy/dx = sign x, with 0 where x is 0 or not a number, as PyTorch has it.
    """

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        ctx.save(x)
        return ctx.xp.abs(x)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (x,) = ctx.saved
        return (g * ctx.xp.where(ctx.xp.isnan(x), 0, ctx.xp.sign(x)),)


class Maximum(Function, name="maximum"):
    """y = max(a, b), elementwise

    g flows to the larger input; where they are equal each gets half, and where one of them is not a number each gets
    all, as PyTorch has it.
    """

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return ctx.xp.maximum(a, b)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        xp, (a, b) = ctx.xp, ctx.saved
        part = xp.where(a == b, g / 2, g)
        return unbroadcast(xp.where(a < b, 0, part), a.shape), unbroadcast(xp.where(b < a, 0, part), b.shape)


class Clip(Function, name="clip"):
    """y = min(max(x, low), high); None leaves that side open

    dy/dx = 1 where low <= x <= high (the ends included, as PyTorch has it), else 0.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, low: float | None = None, high: float | None = None) -> Array:
        if low is None and high is None:
            raise ValueError("clip needs low, high or both")
        inside = True if low is None else x >= low
        ctx.save(inside if high is None else inside & (x <= high))
        return ctx.xp.clip(x, low, high)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (inside,) = ctx.saved
        return (ctx.xp.where(inside, g, 0),)
