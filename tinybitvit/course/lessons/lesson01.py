"""Checks of lesson 1: the rule of a product, the walk, un-broadcasting, the matrix product, measuring a derivative."""

import numpy as np

from ..checker import Task, expect, expect_backward, same

product = Task("1.1", "mul_backward", part="product", hook="mul.backward")


@product.check(
    "each factor gets the other one",
    "nudge a by h: by how much does a b change?",
    "dy/da = b and dy/db = a; each is multiplied by g, which comes from above",
    "return g * b, g * a",
)
def product_factors(answer):
    for g, a, b in ((1.0, 2.0, 3.0), (4.0, 2.0, 3.0), (-0.5, 7.0, 0.0)):
        expect(answer, {"g": g, "y": a * b, "a": a, "b": b}, (g * b, g * a), ["dL/da", "dL/db"])


@product.check("arrays, element by element", "the same line works for arrays: * multiplies element by element")
def product_arrays(answer):
    expect_backward(answer, "mul", {"a": np.array([1.0, -2.0]), "b": np.array([0.5, 3.0])})


class Value:
    """A number that knows its parents and the rule that hands a gradient down to them."""

    def __init__(self, data, parents=(), slopes=()):
        self.data, self.parents, self.slopes, self.grad = data, parents, slopes, 0.0

    def rule(self, g):
        return tuple(slope * g for slope in self.slopes)

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), (other.data, self.data))


class Counted(Value):
    """A value that counts how often rules of its graph run, together with all others of it."""

    rules = 0

    def rule(self, g):
        Counted.rules += 1
        assert Counted.rules <= 21, "for y = x + x, 20 times over: 21 values, and a rule ran for the 22nd time"
        return super().rule(g)


walk = Task("1.2", "backward", part="the walk of gradients", hook="walk")


@walk.check(
    "d = a b + a, g = 1",
    "a value that is used twice gets two parts: add a part to parent.grad, do not replace it",
    "each value hands on value.rule(value.grad): one part for each of its parents, in their order",
    "for parent, part in zip(value.parents, value.rule(value.grad)): parent.grad = parent.grad + part",
)
def walk_example(answer):
    a, b = Value(2.0), Value(3.0)
    d = a * b + a
    answer(d, 1.0)
    for name, value, expected in (("d", d, 1.0), ("a", a, 4.0), ("b", b, 2.0)):
        same(value.grad, expected, "for d = a b + a with a = 2, b = 3", f" the gradient of {name}")


@walk.check("what arrives from above", "the first gradient is g: output.grad = g")
def walk_above(answer):
    a = Value(2.0)
    answer(a * a, 0.5)
    same(a.grad, 2.0, "for y = a a with a = 2, g = 0.5", " the gradient of a")


@walk.check(
    "values used at several depths",
    "go on from a value only when all of its consumers have delivered",
    "waiting[parent] -= 1 for each part that arrives; at 0 the parent is ready",
)
def walk_depths(answer):
    x = Value(3.0)
    square = x * x
    y = square * x + square
    answer(y, 1.0)
    same(x.grad, 33.0, "for y = s x + s with s = x x, x = 3", " the gradient of x")


@walk.check("20 doublings: every value once", "run each value's rule once, not once for every path that leads to it")
def walk_doublings(answer):
    x = y = Counted(1.0)
    Counted.rules = 0
    for _ in range(20):
        y = Counted(2 * y.data, (y, y), (1.0, 1.0))
    answer(y, 1.0)
    same(x.grad, 2.0**20, "for y = x + x, 20 times over", " the gradient of x")


@walk.check("a chain of 5000 values", "a loop over what is ready; a function that calls itself is too deep")
def walk_chain(answer):
    x, one = Value(2.0), Value(1.0)
    y = x
    for _ in range(5000):
        y = y * one
    answer(y, 1.0)
    same(x.grad, 1.0, "for a product of 5000 ones and x", " the gradient of x")


sums = Task("1.3", "unbroadcast", part="un-broadcasting", hook="unbroadcast")


@sums.check(
    "an axis of length 1 was repeated",
    "which axes of g are longer than they were in the input? An element there was copied, and its copies' parts add up",
    "g.sum(axis=..., keepdims=True) over the axes where shape has a 1 and g has not",
    "axes = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1)",
)
def sums_repeated(answer):
    g = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expect(answer, {"g": g, "shape": (1, 2)}, np.array([[9.0, 12.0]]))
    expect(answer, {"g": g, "shape": (3, 1)}, np.array([[3.0], [7.0], [11.0]]))


@sums.check(
    "axes that were added in front",
    "broadcasting also adds axes on the left: (2,) + (3, 2). g has them, shape has not: sum them away first",
    "g = g.sum(axis=tuple(range(g.ndim - len(shape))))",
)
def sums_added(answer):
    g = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expect(answer, {"g": g, "shape": (2,)}, np.array([9.0, 12.0]))
    expect(answer, {"g": g, "shape": ()}, np.array(21.0))


@sums.check("both, and neither", "sum the added axes first: then the axes of g and of shape have the same numbers")
def sums_both(answer):
    g = np.arange(24.0).reshape(2, 3, 4)
    expect(answer, {"g": g, "shape": (1, 4)}, g.sum(axis=(0, 1), keepdims=True)[0])
    expect(answer, {"g": g, "shape": (2, 3, 4)}, g)


matrices = Task("1.4", "matmul_backward", part="matrix product", hook="matmul.backward")


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(-9, 10, shape) / 2 for shape in shapes]


@matrices.check(
    "two matrices",
    "which shape must dL/db have? There is one way to multiply g and a to it",
    "a is (m, k), b is (k, n), g is (m, n): dL/da is (m, k), so the n of g and of b must meet",
    "g @ b.T for a, a.T @ g for b",
)
def matrices_two(answer):
    for a, b in (((1, 2), (2, 1)), ((2, 3), (3, 4)), ((3, 3), (3, 3))):
        expect_backward(answer, "matmul", dict(zip("ab", random(a, b), strict=True)))


@matrices.check(
    "stacks of matrices",
    "of a stack only the last two axes change places: .T reverses all of them",
    "b.swapaxes(-1, -2)",
)
def matrices_stack(answer):
    expect_backward(answer, "matmul", dict(zip("ab", random((2, 2, 3), (2, 3, 2)), strict=True)))


measure = Task("1.5", "numeric_gradient")


@measure.check(
    "the square, one number",
    "step up and down by h: (f(x + h) - f(x - h)) / (2 h), times g",
    "f gives an array as large as g: what counts is (g * f(x)).sum()",
)
def measure_square(answer):
    for x, g in ((3.0, 1.0), (3.0, -2.0)):
        inputs = {"x": np.array([x]), "g": np.array([g])}
        expect(lambda x, g: answer(lambda x: x * x, x, g), inputs, np.array([2 * g * x]))


@measure.check("both sides", "one side alone is off by about h times the second derivative: step down as well as up")
def measure_sides(answer):
    inputs = {"x": np.array([1.0]), "g": np.array([1.0]), "h": 0.1}
    expect(lambda x, g, h: answer(lambda x: x**3, x, g, h), inputs, np.array([3.01]))


@measure.check("many numbers, one after the other", "put x back after each step: the next number starts from x itself")
def measure_many(answer):
    x, g = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[1.0, -1.0], [2.0, 0.5]])
    expect(lambda x, g: answer(lambda x: x * x.sum(), x, g), {"x": x, "g": g}, g * x.sum() + (g * x).sum())
