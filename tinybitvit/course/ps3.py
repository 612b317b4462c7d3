"""Checks of problem set 3: straight-through quantisers and BitLinear."""

import numpy as np

from ..ops import Function
from ..ops.ste import absmax_codes, ternary_codes
from .checker import Task, check_gradient, expect, expect_op

ROW = np.array([[0.9, -0.1, 0.4, -0.6]])
MATRICES = [
    np.array([[0.2, -0.7]]),
    np.array([[1.0, 0.0], [-3.0, 0.5]]),
    np.array([[0.3, -0.05, 0.2], [30.0, -5.0, 20.0]]),
    np.random.default_rng(0).normal(0, 1, (5, 16)),
]

codes = Task("ps3.1", "ternary_codes")


@codes.check("the worked example", "divide by the mean of |w|, then round, then clip to -1..1")
def codes_example(answer):
    expect(answer, {"w": ROW}, (np.array([[1.0, 0, 1, -1]]), np.array([[0.5]])), ("codes", "beta"))


@codes.check("one scale for each row", "average over the last axis, and keep that axis: axis=-1, keepdims=True")
def codes_of_rows(answer):
    for w in MATRICES:
        expect(answer, {"w": w}, ternary_codes(np, w), ("codes", "beta"))


@codes.check("a row of zeros", "beta is at least 1e-5, so that nothing is divided by 0")
def codes_of_zeros(answer):
    w = np.array([[0.0, 0.0], [1.0, -2.0]])
    expect(answer, {"w": w}, ternary_codes(np, w), ("codes", "beta"))


ternary = Task("ps3.2", "Ternary")
INSIDE, BEYOND = ROW, np.array([[8.0, 1, -1, 0, 1, -1, 0, 1]])


def ramp(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes times beta, and 3 beta."""
    t, beta = ternary_codes(np, w)
    return t * beta, 3 * beta


@ternary.check("forward: beta times the codes", "it is ternary_codes of task 1, multiplied together")
def ternary_forward(answer: type[Function]):
    for w in [ROW, *MATRICES]:
        expect_op(answer, {"w": w}, ramp(w)[0])


@ternary.check("backward: g where nothing lies outside", "return (g,) there: the rounding counts as the identity")
def ternary_inside(answer: type[Function]):
    g = np.array([[1.0, 2, 3, 4]])
    expect_op(answer, {"w": INSIDE}, ramp(INSIDE)[0], g, (g,))


@ternary.check("backward: 0 beyond 3 beta", "where is the ramp flat? forward knows, and ctx.save keeps it")
def ternary_beyond(answer: type[Function]):
    g = np.arange(1.0, 9)[None]
    expect_op(answer, {"w": BEYOND}, ramp(BEYOND)[0], g, (g * (BEYOND <= 4.875),))


@ternary.check("backward: the slope of the ramp", "beta is a constant for the gradient: no term comes from it")
def ternary_ramp(answer: type[Function]):
    for w in (ROW, BEYOND, *MATRICES):
        edge = ramp(w)[1]
        check_gradient(answer, w, surrogate=lambda x, edge=edge: np.clip(x, -edge, edge))


absmax = Task("ps3.3", "Absmax")
# No entry of these is halfway between two codes: which way it would go is a matter of one rounding error.
TOKENS = [np.array([[0.3, -1.0, 0.25]]), np.array([[1.0, 0.3], [-40.0, 7.0]]), np.zeros((1, 2))]
TOKENS.append(np.random.default_rng(1).normal(0, 1, (2, 3, 8)))


def quantized(x: np.ndarray) -> np.ndarray:
    c, step = absmax_codes(np, x, 8)
    return c * step


@absmax.check("the worked example", "what is the size of one step, if the largest entry is 127 steps?")
def absmax_example(answer: type[Function]):
    expect_op(answer, {"x": TOKENS[0]}, np.array([[38, -127, 32]]) / 127)


@absmax.check("one scale for each token, never 0", "take the maximum over the last axis, and at least 1e-5")
def absmax_tokens(answer: type[Function]):
    for x in TOKENS:
        expect_op(answer, {"x": x}, quantized(x))


@absmax.check("backward: straight through", "backward returns the tuple (g,)")
def absmax_backward(answer: type[Function]):
    for x in TOKENS:
        check_gradient(answer, x, surrogate=lambda x: 1.0 * x)


bitlinear = Task("ps3.4", "BitLinear")


def layer_inputs(shape: tuple[int, ...], out: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = {"x": shape, "weight": (out, shape[-1]), "bias": (out,)}
    return {name: random.normal(0, 1, size) for name, size in sizes.items()}


def layer_output(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return quantized(x) @ ramp(weight)[0].T + bias


LAYERS = [layer_inputs((1, 2), 1, 0), layer_inputs((3, 4), 2, 1), layer_inputs((2, 3, 5), 4, 2)]


@bitlinear.check("forward: rows of tokens", "quantise x and the weight, then x_q @ W_q.T + bias")
def bitlinear_rows(answer: type[Function]):
    for inputs in LAYERS[:2]:
        expect_op(answer, inputs, layer_output(**inputs))


@bitlinear.check("forward: more leading axes", "@ multiplies over the last axis, whatever comes before it")
def bitlinear_axes(answer: type[Function]):
    expect_op(answer, LAYERS[2], layer_output(**LAYERS[2]))


@bitlinear.check(
    "backward: of the quantised matrices",
    "which matrices were multiplied? Rows of tokens for the weight and the bias, as in any linear layer",
)
def bitlinear_backward(answer: type[Function]):
    for inputs in LAYERS:
        x_q, w_q = quantized(inputs["x"]), ramp(inputs["weight"])[0]
        # linear in each of the three, with the slopes that straight-through asks for
        check_gradient(answer, *inputs.values(), surrogate=lambda x, w, b, x_q=x_q, w_q=w_q: x @ w_q.T + x_q @ w.T + b)


scale = Task("ps3.5", "best_scale")


def least_squares(w: np.ndarray, t: np.ndarray) -> np.ndarray:
    return (w * t).sum(axis=-1, keepdims=True) / np.maximum((t * t).sum(axis=-1, keepdims=True), 1)


@scale.check("the worked example", "the error is a parabola in the scale: where is its lowest point?")
def scale_example(answer):
    expect(answer, {"w": ROW, "codes": np.array([[1.0, 0, 1, -1]])}, np.array([[1.9 / 3]]))


@scale.check("every row has its own", "sums over the last axis, and keep that axis")
def scale_rows(answer):
    for w in MATRICES:
        t = ternary_codes(np, w)[0]
        expect(answer, {"w": w, "codes": t}, least_squares(w, t))


@scale.check("a row without codes", "nothing is divided by 0: such a row has the scale 0")
def scale_zeros(answer):
    with np.errstate(all="ignore"):  # the division by 0 is what is being looked for
        w, t = np.array([[0.1, -0.2], [1.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])
        expect(answer, {"w": w, "codes": t}, least_squares(w, t))


lost = Task("ps3.6", "lost_row")
LENGTHS = (2, 3, 4, 10, 1000)


def row_of(answer, n: int) -> np.ndarray:
    row = np.asarray(answer(n), dtype="float64")
    assert row.shape == (n,), f"it gave an array of shape {row.shape}, expected {(n,)}, for n = {n}"
    assert np.isfinite(row).all() and row.all(), f"a weight of the row is 0 or no number, for n = {n}"
    return row


@lost.check(
    "four weights, one code", "which weights get the code 0? Those below half of the scale. What makes it large?"
)
def lost_four(answer):
    kept = int(np.count_nonzero(ternary_codes(np, row_of(answer, 4)[None])[0]))
    assert kept == 1, f"{kept} of the 4 codes are not 0"


@lost.check("any number of weights", "the longer the row, the larger the outlier has to be")
def lost_any(answer):
    for n in LENGTHS:
        kept = int(np.count_nonzero(ternary_codes(np, row_of(answer, n)[None])[0]))
        assert kept == 1, f"{kept} of the {n} codes are not 0"


@lost.check("the others are lost through it alone", "without the outlier the rest should be of about one size")
def lost_rest(answer):
    for n in LENGTHS:
        row = row_of(answer, n)
        rest = np.delete(row, np.abs(row).argmax())
        kept = int(np.count_nonzero(ternary_codes(np, rest[None])[0]))
        assert kept == n - 1, f"without the largest, {kept} of the other {n - 1} codes are not 0, for n = {n}"


class RightAbsmax(Function):
    """8-bit activations with the straight-through gradient, for what is built on task 3."""

    @staticmethod
    def forward(ctx, x, **options):
        return quantized(x)

    @staticmethod
    def backward(ctx, g):
        return (g,)


RIGHT = {"ps3.1": lambda w: ternary_codes(np, w), "ps3.3": RightAbsmax}
