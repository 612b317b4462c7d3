"""The checker is checked: `gradcheck.check_op` passes every right backward and rejects every wrong one.

A checker that accepts too much is worse than none, because it is trusted: students and the tests of this project are.
"""

import numpy as np
import pytest
import torch
from op_cases import FUNCTIONS, TABLE, of_op
from ste_reference import freeze

from tinybitvit import gradcheck, ops
from tinybitvit.gradcheck import check_op
from tinybitvit.ops import Context, Function


def first_case(name):
    """An op's plain case: Function, inputs, positions of those with a gradient, parameters."""
    case = of_op(name)[0]
    return case.function, case.arrays("float64"), case.differentiable(), case.params


def spoiled(function, spoil):
    """The Function with its gradients put through spoil(gradients, arrays, g)."""

    class Spoiled(function):
        @staticmethod
        def forward(ctx, *arrays, **params):
            ctx.arrays = arrays
            return function.forward(ctx, *arrays, **params)

        @staticmethod
        def backward(ctx, g):
            return spoil(function.backward(ctx, g), ctx.arrays, g)

    Spoiled.__name__ = function.__name__
    return Spoiled


def each_gradient(change):
    return lambda grads, arrays, g: tuple(None if d is None else change(d) for d in grads)


# --- what is right passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ops.OPS if name not in ops.ste.QUANTISERS])
def test_every_op_passes(name):
    function, arrays, wrt, params = first_case(name)
    assert check_op(function, *arrays, wrt=wrt, rtol=1e-6, atol=1e-8, **params) is None


def test_float32_inputs_are_checked_in_float64():
    check_op(ops.OPS["exp"], np.linspace(-1, 1, 6, dtype="float32"), rtol=1e-7)


def test_lists_and_numbers_are_taken():
    check_op(ops.OPS["mul"], [1.5, -2.0], 3.0)


def test_an_empty_input_passes():
    check_op(ops.OPS["exp"], np.ones((0, 3)))


# --- what is wrong is rejected ----------------------------------------------------------------------------------------

WRONG = {
    "0.05 % too large": lambda d: d * 1.0005,
    "0.05 % too small": lambda d: d * 0.9995,
    "zero": lambda d: d * 0,
    "the wrong sign": lambda d: -d,
    "twice": lambda d: d * 2,
    "not a number": lambda d: d * np.nan,
    "moved by one element": lambda d: np.roll(d, 1),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ops.OPS)
def test_a_wrong_gradient_is_rejected(name, change):
    function, arrays, wrt, params = first_case(name)
    if name in ("sum", "mean"):
        params = {"axis": 0}  # over all axes every element has the same gradient, which can be moved without harm
    for i in wrt:
        with pytest.raises(AssertionError, match=f"{function.__name__}: the gradient of input {i} is wrong"):
            check_op(spoiled(function, each_gradient(change)), *arrays, wrt=[i], **params)


def test_one_wrong_element_among_many_is_rejected(rng):
    def spoil(grads, arrays, g):
        wrong = grads[0].copy()
        wrong[3, 2] *= 1.001
        return (wrong,)

    x = rng.uniform(0.5, 1.0, (5, 4))
    with pytest.raises(AssertionError, match=r"worst at \(3, 2\)"):
        check_op(spoiled(ops.OPS["exp"], spoil), x)


def test_a_transposed_gradient_is_rejected(rng):
    square = rng.standard_normal((4, 4))
    for spoil, words in [
        (lambda grads, arrays, g: (grads[0].T, grads[1]), "input 0 is wrong"),
        (lambda grads, arrays, g: (grads[0], grads[1].T), "input 1 is wrong"),
        (lambda grads, arrays, g: grads[::-1], "input 0 is wrong"),
    ]:
        with pytest.raises(AssertionError, match=words):
            check_op(spoiled(ops.OPS["matmul"], spoil), square, rng.standard_normal((4, 4)))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm"])
def test_a_missing_correction_is_rejected(name, rng):
    """With g = 1 these gradients are (nearly) 0 and the terms that are left out here would not be missed."""
    x = rng.standard_normal((3, 5))
    with pytest.raises(AssertionError, match="is wrong"):
        check_op(spoiled(FUNCTIONS[name], lambda grads, arrays, g: (g * 0.1, *grads[1:])), x)


def change_g(grads, arrays, g):
    g *= 2
    return grads


def change_input(value):
    def spoil(grads, arrays, g):
        arrays[1][0] = value
        return grads

    return spoil


BROKEN = {  # what breaks the contract -> (spoil, words of the error)
    "a list": (
        lambda grads, arrays, g: list(grads),
        "Mul.backward must return a tuple, not list; write `return .dx,.`",
    ),
    "an array": (lambda grads, arrays, g: grads[0], "Mul.backward must return a tuple, not ndarray"),
    "too few": (lambda grads, arrays, g: grads[:1], "Mul.backward returned 1 gradients for 2 array inputs"),
    "too many": (lambda grads, arrays, g: (*grads, None), "Mul.backward returned 3 gradients for 2 array inputs"),
    "None": (lambda grads, arrays, g: (grads[0], None), "Mul.backward returned None for input 1"),
    "not summed": (
        lambda grads, arrays, g: (grads[0], g * arrays[0]),
        r"returned shape \(3, 4\) for input 1 of shape \(4,\)",
    ),
    "too flat": (lambda grads, arrays, g: (grads[0].ravel(), grads[1]), r"shape \(12,\) for input 0 of shape \(3, 4\)"),
    "float32": (
        lambda grads, arrays, g: (grads[0].astype("float32"), grads[1]),
        "returned float32 for input 0 of float64",
    ),
    "changes g": (change_g, "Mul.backward changed g in place"),
    "changes an input": (change_input(5.0), "Mul changed its input 1 in place"),
    "spoils an input": (change_input(np.nan), "Mul changed its input 1 in place"),
}


@pytest.mark.parametrize("spoil, words", BROKEN.values(), ids=BROKEN)
def test_a_broken_contract_is_rejected(spoil, words, rng):
    with pytest.raises(AssertionError, match=words):
        check_op(spoiled(ops.OPS["mul"], spoil), rng.standard_normal((3, 4)), rng.standard_normal(4))


def test_an_input_changed_by_forward_is_rejected():
    class Shift(Function):
        @staticmethod
        def forward(ctx, x):
            x += 1
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return (g,)

    with pytest.raises(AssertionError, match="Shift changed its input 0 in place"):
        check_op(Shift, np.ones(3))


def test_the_error_names_op_input_element_and_both_values():
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    wrong = spoiled(ops.OPS["mul"], lambda grads, arrays, g: (grads[0], grads[1] * [[1, 1], [1, 3]]))
    with pytest.raises(AssertionError) as caught:
        check_op(wrong, x, x, name="my product")
    message = str(caught.value)
    assert message.startswith("my product: the gradient of input 1 is wrong, worst at (1, 1): backward gives ")
    given, measured = message.split("backward gives ")[1].split(", finite differences give ")
    assert float(given) == pytest.approx(3 * float(measured), rel=1e-4) and float(measured) != 0


def test_tolerances():
    """rtol is a part of the largest gradient of the input; atol is for gradients that are 0."""
    x = np.array([0.5, 1.0, 2.0])
    for name, params, off, given in [("exp", {}, 1.01, {"rtol": 0.1}), ("pow", {"exponent": 0}, 1.0, {"atol": 1e-2})]:
        wrong = spoiled(FUNCTIONS[name], lambda grads, arrays, g, off=off: (grads[0] * off + (off == 1) * 1e-3,))
        check_op(wrong, x, **given, **params)
        with pytest.raises(AssertionError, match="is wrong"):
            check_op(wrong, x, **params)


def test_numeric_gradient_works_in_float64_and_on_a_copy():
    x = np.array([0.5, -1.0], dtype="float32")
    x.flags.writeable = False
    g = np.array([1.0, 2.0])
    numeric = gradcheck.numeric_gradient(FUNCTIONS["exp"], [x], {}, 0, g)
    np.testing.assert_allclose(numeric, g * np.exp(x.astype("float64")), rtol=1e-8)


def test_inputs_are_left_as_they_were(rng):
    x, w = rng.standard_normal((3, 4)), rng.standard_normal((2, 4))
    kept = x.copy(), w.copy()
    check_op(ops.OPS["linear"], x, w)
    assert np.array_equal(x, kept[0]) and np.array_equal(w, kept[1])


def test_wrt_leaves_out_inputs_without_a_gradient(rng):
    x, target = rng.standard_normal((2, 3)), np.full((2, 3), 1 / 3)
    check_op(ops.OPS["kl_div"], x, target, wrt=[0])
    with pytest.raises(AssertionError, match=r"KLDiv\.backward returned None for input 1"):
        check_op(ops.OPS["kl_div"], x, target)


# --- straight-through quantisers --------------------------------------------------------------------------------------

PLAIN = {(4, 6), (3, 5), (4, 7)}  # shapes of the cases with normal weights, away from the kinks of the surrogates
QUANTISED = [case for case in TABLE if case.op in ops.ste.QUANTISERS and case.arrays("float64")[0].shape in PLAIN]


@pytest.mark.parametrize("case", QUANTISED, ids=lambda case: case.id)
def test_straight_through_gradient_is_that_of_the_surrogate(case):
    """Finite differences of the surrogate, with scale and threshold frozen where they are, give the gradient."""
    (w,) = case.arrays("float64")
    _, surrogate = freeze(case.op, torch.tensor(w), **case.params)

    class Surrogate(Function):
        @staticmethod
        def forward(ctx, w):
            ctx.straight = Context(np, (True,))
            case.function.forward(ctx.straight, w, **case.params)
            return surrogate(torch.tensor(w)).numpy()

        @staticmethod
        def backward(ctx, g):
            return case.function.backward(ctx.straight, g)

    check_op(Surrogate, w, rtol=1e-5)


@pytest.mark.parametrize("name", ops.ste.QUANTISERS)
def test_the_true_gradient_is_something_else(name):
    """Why no quantiser is checked by finite differences of itself: with codes that do not move, what is left of the
    true gradient is that of the scale, which the straight-through estimator takes as a constant. check_op rejects it.
    """
    w = np.random.default_rng(3).standard_normal((3, 5))
    params = {"bits": 4} if name == "nbit" else {}
    with pytest.raises(AssertionError, match="is wrong"):
        check_op(FUNCTIONS[name], w, **params)


def test_a_frozen_rounding_has_no_gradient_at_all():
    """One activation row whose largest element, and so whose scale, stays: moving the others a little moves nothing."""
    x = np.array([[0.30, -0.62, 1.0, 0.11]])
    numeric = gradcheck.numeric_gradient(FUNCTIONS["absmax"], [x], {"bits": 4}, 0, np.ones((1, 4)))
    assert np.array_equal(numeric[0, [0, 1, 3]], [0, 0, 0])


@pytest.mark.parametrize(
    "inputs, wrt", [([[1, 2, 3]], None), ([[1, 2, 3]], [0]), ([[1.0], [2]], [1]), ([[1.0], [2]], [])]
)
def test_whole_numbers_are_not_passed_unseen(inputs, wrt):
    """Nothing can be differentiated along them: any backward would pass."""
    name = "exp" if len(inputs) == 1 else "mul"
    with pytest.raises(TypeError, match=r"whole numbers have no gradient.*give floats: \[1.0, 2.0\]"):
        check_op(spoiled(ops.OPS[name], each_gradient(lambda d: d * 17)), *inputs, wrt=wrt)
    check_op(ops.OPS["mul"], [1.0, 2.0], [3, 4])
