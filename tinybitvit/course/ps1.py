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


@numeric.check("the sum of squares", "push one position at a time, and put it back")
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


@gelu.check("backward", "the product rule for x times s(a x); the chain rule brings an a; then multiply by g")
def gelu_backward(answer: type[Function]):
    for x in (np.array([0.0]), np.array([1.0, -2.0]), np.array([[0.3, 2.0], [4.0, -4.0]])):
        check_gradient(answer, x)


linear = Task("ps1.3", "Linear")


def linear_inputs(shape: tuple[int, ...], out: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = {"x": shape, "weight": (out, shape[-1]), "bias": (out,)}
    return {name: random.integers(-9, 10, size) / 2 for name, size in sizes.items()}


LAYERS = [linear_inputs((1, 2), 2, 0), linear_inputs((3, 2), 1, 1), linear_inputs((2, 2, 3), 2, 2)]


@linear.check("forward", "the shapes say where the weight must be turned")
def linear_forward(answer: type[Function]):
    for inputs in LAYERS:
        expect_op(answer, inputs, inputs["x"] @ inputs["weight"].T + inputs["bias"])


@linear.check(
    "backward: rows of tokens",
    "which product of two of g, x and weight has the shape that you need? What adds up over the rows?",
)
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


@entropy.check(
    "backward",
    "compare p with 1 at the true class and 0 elsewhere; the mean over N images; times g; and None for the target",
)
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


step = Task("ps1.6", "good_step")


def slope_error(dtype: str, h: float) -> float:
    """The largest error of the two-sided slope of sin at values near 1, computed in numbers of this type."""
    x = np.linspace(0.5, 1.5, 99).astype(dtype)
    step = np.asarray(h, dtype)
    with np.errstate(all="ignore"):
        slope = (np.sin(x + step) - np.sin(x - step)) / (step + step)
    return float(np.abs(slope.astype("float64") - np.cos(x.astype("float64"))).max())


def try_step(answer, dtype: str) -> None:
    h = answer(dtype)
    assert np.ndim(h) == 0 and h > 0, f"it gave {h} for {dtype!r}: a step is a number above 0"
    error, best = slope_error(dtype, h), min(slope_error(dtype, 2.0**-k) for k in range(30))
    assert error < 10 * best, (
        f"with h = {h:.2g} the slope of sin in {dtype} is off by {error:.1g}; {best:.1g} can be had"
    )


@step.check("float64", "try steps from 1e-1 to 1e-12, and look at the error of each: there is a valley")
def step_double(answer):
    try_step(answer, "float64")


@step.check("float32", "a rounding error is divided by 2 h; what does bending cost? Where are the two alike?")
def step_single(answer):
    try_step(answer, "float32")


@step.check("float16", "the same law with another eps")
def step_half(answer):
    try_step(answer, "float16")


telling = Task("ps1.7", "telling_gradient")
ROWS = [np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.15, 0.25, 0.5])]
WRONG = {
    "zeros": lambda p, g: 0 * g,
    "half of the right answer": lambda p, g: p * (g - (g * p).sum()) / 2,
    "one that forgets the sum": lambda p, g: p * g,
    "one with the mean of g": lambda p, g: p * (g - g.mean()),
    "one without the other classes": lambda p, g: p * (1 - p) * g,
}


def try_gradient(answer, wrong: list[str]) -> None:
    for p in ROWS:
        g = np.asarray(answer(p.copy()))
        assert g.shape == p.shape, f"it gave g of shape {g.shape}, expected {p.shape}, for p = {p}"
        right = p * (g - (g * p).sum())
        for name in wrong:
            gap = np.abs(WRONG[name](p, g) - right).max()
            assert gap > 1e-3, f"g = {np.round(g, 4)} does not tell {name} from the right one, for p = {p}"


@telling.check("tells zeros and halves", "what is the right gradient for g = (1, 1, 1)? And why?")
def telling_zeros(answer):
    try_gradient(answer, list(WRONG)[:2])


@telling.check("tells the other three", "a g without any pattern is right by luck nowhere")
def telling_others(answer):
    try_gradient(answer, list(WRONG)[2:])
