"""Checks of lesson 6: ternary codes, 8-bit activations, the layer forward and backward, a quantiser of one's own."""

import numpy as np

from ...quant import Quantizer
from ..checker import Task, expect

CODES, GRADIENTS = ["codes", "scale"], ["dL/dx", "dL/dw"]


def ternary(w):
    beta = np.maximum(np.abs(w).mean(axis=-1, keepdims=True), 1e-5)
    return np.clip(np.round(w / beta), -1, 1), beta


def absmax(x):
    step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5) / 127
    return np.round(x / step), step


def numbers(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.integers(-9, 10, shape) / 4 for shape in shapes]


codes = Task("6.1", "ternary_codes", part="ternary codes", hook="ternary_codes")


@codes.check(
    "one row",
    "beta is the mean of |w|; the codes are np.round(w / beta)",
)
def codes_of_a_row(answer):
    w = np.array([[1.0, -0.25, 0.75, -1.0]])
    expect(answer, {"w": w}, (np.array([[1.0, 0, 1, -1]]), np.array([[0.75]])), CODES)


@codes.check("large weights", "round(w / beta) may be 2 or 5, and there is no such code: np.clip(..., -1, 1)")
def codes_of_large_weights(answer):
    expect(answer, {"w": np.array([[4.0, -1, 1, -2]])}, (np.array([[1.0, 0, 0, -1]]), np.array([[2.0]])), CODES)


@codes.check("a scale for each row", "the mean over the last axis, with keepdims=True: (out, K) to (out, 1)")
def codes_of_rows(answer):
    (w,) = numbers(1, (3, 4))
    expect(answer, {"w": w}, ternary(w), CODES)


@codes.check("a row of zeros", "its mean is 0, and 0 / 0 is no number: np.maximum(beta, 1e-5) before you divide")
def codes_of_zeros(answer):
    w = np.array([[0.0, 0.0], [1.0, -3.0]])
    expect(answer, {"w": w}, (np.array([[0.0, 0.0], [0.0, -1.0]]), np.array([[1e-5], [2.0]])), CODES)


inputs = Task("6.2", "absmax_codes", part="8-bit activations", hook="absmax_codes")


@inputs.check(
    "one token",
    "the step is what one code is worth: the largest |x| divided by 127",
    "codes = np.round(x / step)",
)
def inputs_of_a_token(answer):
    x = np.array([[0.5, -1.0, 0.25]])
    expect(answer, {"x": x}, (np.array([[64.0, -127, 32]]), np.array([[1 / 127]])), ["codes", "step"])
    x = np.array([[2.0, 254.0, -2.5]])
    expect(answer, {"x": x}, (np.array([[1.0, 127, -1]]), np.array([[2.0]])), ["codes", "step"])


@inputs.check(
    "a step for each token",
    "each token is a row of its own: the largest over the last axis, with keepdims=True",
)
def inputs_of_tokens(answer):
    for shape in ((2, 3), (2, 2, 3)):
        (x,) = numbers(2, shape)
        expect(answer, {"x": x}, absmax(x), ["codes", "step"])


@inputs.check("a token of zeros", "np.maximum(largest, 1e-5), so that nothing is divided by 0")
def inputs_of_zeros(answer):
    x = np.zeros((1, 3))
    expect(answer, {"x": x}, (x, np.array([[1e-5 / 127]])), ["codes", "step"])


forward = Task("6.3", "bit_linear")


@forward.check(
    "one token, one row",
    "codes of both; the product of the codes; then times step and times beta",
    "(c @ t.T) is (n, out); step is (n, 1), beta is (out, 1): which of them must be transposed?",
    "return (c @ t.T) * step * beta.T",
)
def forward_one(answer):
    x, w = np.array([[0.5, -1.0]]), np.array([[0.5, -1.5]])
    expect(answer, {"x": x, "w": w}, np.array([[1.0]]))
    expect(answer, {"x": 2 * x, "w": 3 * w}, np.array([[6.0]]))


@forward.check("tokens and rows", "one step a token (a row of y), one scale a row of w (a column of y)")
def forward_many(answer):
    x, w = numbers(3, (3, 5), (2, 5))
    (c, step), (t, beta) = absmax(x), ternary(w)
    expect(answer, {"x": x, "w": w}, (c * step) @ (t * beta).T)


@forward.check("the rounding is in it", "of x, too: the product of the codes, not of x and w")
def forward_rounds(answer):
    x, w = np.array([[1.0, 0.003, 0.003, 0.003]]), np.array([[0.0, 1.0, 1.0, 2.0]])
    expect(answer, {"x": x, "w": w}, np.array([[0.0]]))


backward = Task("6.4", "bit_linear_backward")


@backward.check(
    "both gradients, of what was multiplied",
    "dL/dx has the shape of x: g @ something (out, K). The forward pass multiplied by the quantised weight",
    "w_q = t * beta and x_q = c * step",
    "return g @ w_q, g.T @ x_q",
)
def backward_both(answer):
    for n, K, out in ((1, 2, 1), (3, 4, 2)):
        g, x, w = numbers(n, (n, out), (n, K), (out, K))
        (c, step), (t, beta) = absmax(x), ternary(w)
        expect(answer, {"g": g, "x": x, "w": w}, (g @ (t * beta), g.T @ (c * step)), GRADIENTS)


own = Task("6.5", "Survivors")


def quantised(answer, w):
    quantizer = answer()
    assert isinstance(quantizer, Quantizer), "it must be a class, a subclass of Quantizer"
    return quantizer.codes(np, w)


@own.check(
    "the codes",
    "0 where |w| is at most 0.7 times self.size(xp, w), else the sign",
    "xp.where(xp.abs(w) > 0.7 * self.size(xp, w), xp.sign(w), 0)",
)
def own_codes(answer):
    for w in (np.array([[4.0, -1, 1, -2]]), np.array([[1.0, -0.8, 0.5, 0.5], [0.1, 0.1, -0.1, 3.0]])):
        expected = np.where(np.abs(w) > 0.7 * np.abs(w).mean(axis=-1, keepdims=True), np.sign(w), 0)
        expect(lambda w: quantised(answer, w)[0], {"w": w}, expected)


@own.check(
    "the scale",
    "the mean |w| of the survivors only: those whose code is not 0",
    "(w * codes).sum(...) is the sum of their |w|; xp.abs(codes).sum(...) is their number",
)
def own_scale(answer):
    expect(lambda w: quantised(answer, w)[1], {"w": np.array([[4.0, -1, 1, -2]])}, np.array([[3.0]]))
    w = np.array([[1.0, -0.8, 0.25, 0.25], [0.1, 0.1, -0.1, 3.0]])
    expect(lambda w: quantised(answer, w)[1], {"w": w}, np.array([[0.9], [3.0]]))


@own.check("a row of zeros", "nothing survives: divide by xp.maximum(number, 1), and let the scale be 1e-5 at least")
def own_zeros(answer):
    w = np.array([[0.0, 0.0]])
    expect(lambda w: quantised(answer, w), {"w": w}, (w, np.array([[1e-5]])), CODES)


@own.check("float32 stays float32", "0.7 and 1 leave a float32 as it is; np.array(0.7) or np.ones(...) would not")
def own_dtype(answer):
    codes, scale = quantised(answer, np.array([[1.0, -2.0]], "float32"))
    for name, one in (("codes", codes), ("a scale", scale)):
        assert one.dtype == "float32", f"for weights of float32 it gave {name} of {one.dtype}"
