"""Checks of problem set 1: automatic differentiation."""

import numpy as np

from ..ops import Function
from .checker import Task, check_gradient, context, expect, expect_op, same

numeric = Task("ps1.1", "numeric_gradient")


def squares(x: np.ndarray) -> float:
    """the sum of squares"""
    return float((x * x).sum())


def cubes(x: np.ndarray) -> float:
    """the sum of cubes"""
    return float((x**3).sum())


@numeric.check("the sum of squares", "(f(x + h e_i) - f(x - h e_i)) / (2 h), one position i after the other")
def numeric_squares(answer):
    for x in (np.array([3.0]), np.array([1.0, -2.0]), np.array([[0.5, 1.0], [2.0, -1.0]])):
        expect(lambda x: answer(squares, x), {"x": x}, 2 * x)


@numeric.check("both sides", "step down as well as up, and divide by 2 h: on a cube, one side alone is off by 3 x h")
def numeric_cubes(answer):
    x = np.array([1.0, -2.0])
    expect(lambda x, h: answer(cubes, x, h), {"x": x, "h": 0.1}, 3 * x * x + 0.01)


gelu = Task("ps1.2", "QuickGELU")


@gelu.check("forward", "multiply x by sigmoid(1.702 * x)")
def gelu_forward(answer: type[Function]):
    for x in (np.array([0.0]), np.array([1.0, -2.0]), np.array([[0.3], [40.0], [-40.0]])):
        expect_op(answer, {"x": x}, x * (0.5 + 0.5 * np.tanh(0.851 * x)))


@gelu.check("backward", "dy/dx = s + x times the derivative of s(a x), which is a s (1 - s); then multiply by g")
def gelu_backward(answer: type[Function]):
    for x in (np.array([0.0]), np.array([1.0, -2.0]), np.array([[0.3, 2.0], [4.0, -4.0]])):
        check_gradient(answer, x)


linear = Task("ps1.3", "Linear")


def linear_inputs(shape: tuple[int, ...], out: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = {"x": shape, "weight": (out, shape[-1]), "bias": (out,)}
    return {name: random.integers(-9, 10, size) / 2 for name, size in sizes.items()}


LAYERS = [linear_inputs((1, 2), 2, 0), linear_inputs((3, 2), 1, 1), linear_inputs((2, 2, 3), 2, 2)]


@linear.check("forward", "x @ weight.T + bias")
def linear_forward(answer: type[Function]):
    for inputs in LAYERS:
        expect_op(answer, inputs, inputs["x"] @ inputs["weight"].T + inputs["bias"])


@linear.check("backward: rows of tokens", "g @ weight, g.T @ x, and the sum of g over the rows; check the order")
def linear_rows(answer: type[Function]):
    for inputs in LAYERS[:2]:
        check_gradient(answer, *inputs.values())


@linear.check("backward: more leading axes", "make rows of x and of g before you compute dW and db")
def linear_axes(answer: type[Function]):
    check_gradient(answer, *LAYERS[2].values())


entropy = Task("ps1.4", "CrossEntropy")
LOGITS = [np.array([[0.0, 0.0]]), np.array([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]])]
TARGETS = [np.array([1]), np.array([0, 2])]


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_p[range(len(target)), target].mean())


@entropy.check("forward", "minus the mean of log p at the true classes: log_p[np.arange(N), target]")
def entropy_forward(answer: type[Function]):
    for logits, target in zip(LOGITS, TARGETS, strict=True):
        expect_op(answer, {"logits": logits, "target": target}, cross_entropy(logits, target))


@entropy.check("large logits", "subtract each row's maximum before you take the exponential")
def entropy_large(answer: type[Function]):
    with np.errstate(all="ignore"):  # the overflow is what is being looked for
        logits, target = np.array([[1000.0, 0.0], [-1000.0, 0.0]]), np.array([1, 1])
        expect_op(answer, {"logits": logits, "target": target}, cross_entropy(logits, target))


@entropy.check("backward", "(p - truth) / N, with a 1 in truth at the true class; times g; and None for the target")
def entropy_backward(answer: type[Function]):
    for logits, target in zip(LOGITS, TARGETS, strict=True):
        check_gradient(answer, logits, target, wrt=[0])
        ctx = context(logits, target)
        answer.forward(ctx, logits, target)
        assert answer.backward(ctx, np.float64(1))[1] is None, "class numbers have no gradient: return None for them"


walk = Task("ps1.5", "backpropagate")


class Value:
    """A number that knows what it was made of, as in the notebook."""

    def __init__(self, data, inputs=()):
        self.data, self.inputs, self.grad = data, inputs, 0.0

    def __add__(self, other):
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])


class Counted(Value):
    """A value that counts how often the inputs of its graph are read, together with all others of it."""

    def __init__(self, data, inputs, reads):
        self.reads = reads
        super().__init__(data, inputs)

    @property
    def inputs(self):
        self.reads[0] += 1
        assert self.reads[0] <= 2000, "for y = x + x, 20 times over: the inputs of 20 values were read over 2000 times"
        return self._inputs

    @inputs.setter
    def inputs(self, inputs):
        self._inputs = inputs


@walk.check("d = a * b + a", "a value that is used twice adds up two parts: grad += slope * grad of the consumer")
def walk_example(answer):
    a, b = Value(2.0), Value(3.0)
    d = a * b + a
    answer(d)
    for name, value, expected in (("d", d, 1.0), ("a", a, 4.0), ("b", b, 2.0)):
        same(value.grad, expected, "for d = a * b + a with a = 2, b = 3", f" the gradient of {name}")


@walk.check("values used at several depths", "go on from a value only when all of its consumers have delivered")
def walk_depths(answer):
    x = Value(3.0)
    square = x * x
    y = square * x + square
    answer(y)
    same(x.grad, 33.0, "for y = s * x + s with s = x * x, x = 3", " the gradient of x")


@walk.check("20 doublings", "visit each value once, not once for every path that leads to it")
def walk_doublings(answer):
    reads = [0]
    x = y = Counted(1.0, (), reads)
    for _ in range(20):
        y = Counted(2 * y.data, [(y, 1.0), (y, 1.0)], reads)
    answer(y)
    same(x.grad, 2.0**20, "for y = x + x, 20 times over", " the gradient of x")


@walk.check("a chain of 5000", "a loop with a list of what is ready; a function that calls itself is too deep")
def walk_chain(answer):
    x, one = Value(2.0), Value(1.0)
    y = x
    for _ in range(5000):
        y = y * one
    answer(y)
    same(x.grad, 1.0, "for a product of 5000 ones and x", " the gradient of x")
