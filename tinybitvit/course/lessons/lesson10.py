"""Checks of lesson 10: what fits of a pretrained file, reconstruction block by block, rounding without training."""

import numpy as np

from ...tensor import Tensor
from ..checker import Task, expect, same

weights = Task("10.1", "fitting_weights")


def names_of(answer, theirs, mine):
    """The names that an answer takes of arrays of these shapes, with the arrays unchanged."""
    arrays = {name: np.full(shape, float(i)) for i, (name, shape) in enumerate(theirs.items())}
    got = answer(dict(arrays), {name: np.full(shape, -1.0) for name, shape in mine.items()})
    assert isinstance(got, dict), f"it must return a dict {{name: array}}, not {type(got).__name__}"
    wrong = [name for name, a in got.items() if name in arrays and a is not arrays[name]]
    assert not wrong, f"for {wrong[0]!r} it must give theirs, as it is"
    return sorted(got)


@weights.check(
    "the same shape",
    "the same name is not enough: a head of 40 classes does not fit one of 10",
    "mine[name].shape == a.shape",
)
def weights_shape(answer):
    theirs, mine = {"a": (2, 3), "head": (40, 3)}, {"a": (2, 3), "head": (10, 3)}
    got = names_of(answer, theirs, mine)
    assert got == ["a"], f"it gave {got}, expected ['a'], for the shapes theirs = {theirs}, mine = {mine}"


@weights.check("names that only one of them has", "ask whether the name is in mine first: `name in mine and ...`")
def weights_names(answer):
    theirs, mine = {"a": (2,), "extra": (3,)}, {"a": (2,), "new": (3,)}
    got = names_of(answer, theirs, mine)
    assert got == ["a"], f"it gave {got}, expected ['a'], for the shapes theirs = {theirs}, mine = {mine}"


blocks = Task("10.2", "block_by_block")


def plus(number):
    """A block that adds a number."""
    return lambda h: h + number


def loss_of(answer, student, teacher, h):
    loss = answer(student, teacher, Tensor(np.array(h)))
    assert isinstance(loss, Tensor), f"the loss must be a Tensor, to be trained, not {type(loss).__name__}"
    return loss


@blocks.check(
    "one block",
    "relative to what the teacher's block changes: mean (s - t)^2 / mean (t - h)^2",
    "error = block(h) - target, change = target - h; (error * error).mean() / (change * change).mean()",
)
def blocks_one(answer):
    got = loss_of(answer, [plus(1.0)], [plus(3.0)], [1.0])
    same(got.data, 4 / 9, "for a student [h -> h + 1], a teacher [h -> h + 3], h = [1]")
    got = loss_of(answer, [lambda h: h], [lambda h: h * 2.0], [[1.0, -3.0]])
    same(got.data, 1.0, "for a student [h -> h], a teacher [h -> 2 h], h = [[1, -3]]")


@blocks.check(
    "two blocks, each fed with the teacher's tokens",
    "the next block gets what the teacher made, not what the student made: h = target",
)
def blocks_two(answer):
    got = loss_of(answer, [plus(1.0), lambda h: h * 3.0], [plus(2.0), lambda h: h * 2.0], [1.0])
    same(got.data, 1 / 4 + 1, "for a student [h + 1, 3 h], a teacher [h + 2, 2 h], h = [1]")


@blocks.check(
    "gradients for the student alone",
    "run the teacher's block below `with tb.no_grad():`, the student's outside of it",
)
def blocks_gradients(answer):
    w, v = (Tensor(np.array([a]), requires_grad=True) for a in (2.0, 3.0))
    loss_of(answer, [lambda h: h * w], [lambda h: h * v], [1.0]).backward()
    call = "for a student [w h], a teacher [v h], w = 2, v = 3, h = [1]"
    assert v.grad is None, f"the teacher's v got a gradient, {call}"
    same(w.grad, np.array([-0.5]), call, " dL/dw")


columns = Task("10.3", "round_columns")


def nearest_ternary(v):
    return np.clip(np.rint(v), -1, 1)


@columns.check(
    "two weights, inputs alike",
    "where a code is too low, the columns to come go up if inputs are alike: d = -error x H_FF^-1 H_Fj",
    "error = scale x code - w of the column as it is by now; w[:, j + 1 :] -= np.outer(error, solve(H_FF, H_Fj))",
)
def columns_two(answer):
    second, scale = np.array([[1.0, 0.9], [0.9, 1.0]]), np.ones((1, 1))
    for w, expected in (([[0.4, 0.4]], [[0.0, 1.0]]), ([[0.6, 0.6]], [[1.0, 0.0]]), ([[-0.4, -0.4]], [[0.0, -1.0]])):
        inputs = {"w": np.array(w), "scale": scale, "second": second}
        expect(lambda w, scale, second: answer(w, scale, second, nearest_ternary), inputs, np.array(expected))


@columns.check(
    "inputs that have nothing to do with each other",
    "where H is diagonal nothing is fed forward: each weight goes to its nearest code, in units of its row's scale",
    "codes[:, j] = nearest(w[:, j] / scale[:, 0])",
)
def columns_diagonal(answer):
    inputs = {
        "w": np.array([[0.4, -1.6, 0.3], [0.4, -0.1, 9.0]]),
        "scale": np.array([[1.0], [0.5]]),
        "second": np.diag([1.0, 2.0, 3.0]),
    }
    expected = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 1.0]])
    expect(lambda w, scale, second: answer(w, scale, second, nearest_ternary), inputs, expected)


@columns.check(
    "a layer of random weights",
    "each column's error moves all columns to come, jointly: solve with the block second[j + 1 :, j + 1 :]",
)
def columns_random(answer):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((5, 8)), rng.standard_normal((40, 3)) @ rng.standard_normal((3, 8))
    second, scale = x.T @ x / 40 + 0.1 * np.eye(8), np.abs(w).mean(axis=1, keepdims=True)
    moved, expected = w.copy(), np.zeros_like(w)
    for j in range(8):
        expected[:, j] = nearest_ternary(moved[:, j] / scale[:, 0])
        error = scale[:, 0] * expected[:, j] - moved[:, j]
        moved[:, j + 1 :] -= np.outer(error, np.linalg.solve(second[j + 1 :, j + 1 :], second[j + 1 :, j]))
    inputs = {"w": w, "scale": scale, "second": second}
    expect(lambda w, scale, second: answer(w, scale, second, nearest_ternary), inputs, expected)


scales = Task("10.4", "best_scales")


@scales.check(
    "inputs of different size",
    "the derivative by the scale: 2 b H (scale b - w) = 0, with H between the two",
    "scale = b H w / b H b, row by row: codes @ second holds all rows b H",
)
def scales_size(answer):
    inputs = {"codes": np.array([[1.0, 1.0]]), "w": np.array([[1.0, 0.0]]), "second": np.diag([3.0, 1.0])}
    expect(answer, inputs, np.array([[0.75]]))


@scales.check("each row by itself", "sum over axis 1, keepdims=True: (m, 1)")
def scales_rows(answer):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((3, 4)), rng.standard_normal((20, 4))
    second, codes = x.T @ x / 20, np.sign(w)
    expected = np.array([[b @ second @ v / (b @ second @ b)] for b, v in zip(codes, w, strict=True)])
    expect(answer, {"codes": codes, "w": w, "second": second}, expected)


@scales.check("a row of zeros", "0 / 0 is not a number: divide by np.maximum(..., 1e-30)")
def scales_zeros(answer):
    expect(answer, {"codes": np.zeros((1, 2)), "w": np.ones((1, 2)), "second": np.eye(2)}, np.zeros((1, 1)))
