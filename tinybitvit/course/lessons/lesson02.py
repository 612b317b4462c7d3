"""Checks of lesson 2: patches and their way back, the linear layer, what is added at every position."""

import numpy as np

from ..checker import Task, expect, rule_out

IMAGE = np.arange(16.0).reshape(1, 4, 4, 1)
WIDE = np.arange(24.0).reshape(1, 2, 6, 2)  # 2 x 6 pixels of two channels


def in_order(x, patch_size):
    """The numbers of all patches, one after the other, as slices find them."""
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    corners = [(row, column) for row in range(0, height, ph) for column in range(0, width, pw)]
    return np.stack([x[:, i : i + ph, j : j + pw].reshape(n, ph * pw * c) for i, j in corners], axis=1)


patches = Task("2.1", "patchify", part="patches", hook="patchify.forward")


@patches.check(
    "the numbered image, patches of 2 x 2",
    "axes 1 and 3 count the patches; 2, 4 and 5 count the numbers in one",
    "x.transpose(0, 1, 3, 2, 4, 5): then the axes that belong together are neighbours",
    "x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, ph * pw * c)",
)
def patches_numbered(answer):
    inputs = {"x": IMAGE, "patch_size": (2, 2)}
    rule_out(answer, inputs, IMAGE.reshape(1, 4, 4), "it cut rows of the image in pieces: no axis changed its place")
    expect(answer, inputs, in_order(IMAGE, (2, 2)))


@patches.check("patches that are no squares", "ph belongs to the height, pw to the width: check each reshape")
def patches_wide(answer):
    for size in ((1, 3), (2, 1), (1, 2)):
        expect(answer, {"x": WIDE, "patch_size": size}, in_order(WIDE, size))


@patches.check("several images", "the first axis, the image, stays the first")
def patches_several(answer):
    x = np.arange(2 * 16 * 3.0).reshape(2, 4, 4, 3)
    expect(answer, {"x": x, "patch_size": (2, 2)}, in_order(x, (2, 2)))


back = Task("2.2", "patchify_backward", part="patches", hook="patchify.backward")


@back.check(
    "the numbered image: each number back to its pixel",
    "begin with g.reshape(n, height // ph, width // pw, ph, pw, c): the axes as patchify had them before its last line",
    "the transpose that exchanges axes 2 and 3 is undone by exchanging them again",
    "g.reshape(...).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)",
)
def back_numbered(answer):
    g = (10 * np.arange(4)[:, None] + np.arange(4.0)).reshape(1, 4, 4)
    inputs = {"g": g, "y": in_order(IMAGE, (2, 2)), "x": IMAGE, "patch_size": (2, 2)}
    rule_out(answer, inputs, g.reshape(IMAGE.shape), "a patch became a row of pixels: the axes must change places back")
    expect(
        answer,
        inputs,
        np.array([[0, 1, 10, 11], [2, 3, 12, 13], [20, 21, 30, 31], [22, 23, 32, 33.0]])[None, ..., None],
    )


@back.check("patches that are no squares, several channels", "g has the axes patch row, patch column, ph, pw, c")
def back_wide(answer):
    for size in ((1, 3), (2, 1), (2, 3)):
        y = in_order(WIDE, size)
        expect(answer, {"g": y, "y": y, "x": WIDE, "patch_size": size}, WIDE)


layer = Task("2.3", "linear", part="linear layer", hook="linear.forward")
WEIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
SQUARE = np.array([[1.0, 2.0], [0.0, 3.0]])


@layer.check(
    "one row",
    "x is (..., in), the weight (out, in): the product of x with what is (..., out)?",
    "x @ weight.T + bias",
)
def layer_row(answer):
    inputs = {"x": np.array([[1.0, 2.0]]), "weight": WEIGHT, "bias": np.array([0.0, 0.0, 10.0])}
    expect(answer, inputs, np.array([[1.0, 2.0, 13.0]]))


@layer.check("a square weight: rows are outputs", "row o of the weight belongs to output o: multiply with weight.T")
def layer_square(answer):
    x, bias = np.array([[1.0, 10.0], [2.0, 0.0]]), np.zeros(2)
    sentence = "it multiplied with the weight, not with its transpose: a row of the weight belongs to one output"
    rule_out(answer, {"x": x, "weight": SQUARE, "bias": bias}, x @ SQUARE, sentence)
    expect(answer, {"x": x, "weight": SQUARE, "bias": bias}, np.array([[21.0, 30.0], [2.0, 0.0]]))


@layer.check("images of several tokens", "@ multiplies the last axis of x, whatever stands before it")
def layer_tokens(answer):
    x = np.arange(12.0).reshape(2, 3, 2)
    expect(answer, {"x": x, "weight": WEIGHT, "bias": np.ones(3)}, np.einsum("nti,oi->nto", x, WEIGHT) + 1)


gradients = Task("2.4", "linear_backward", part="linear layer", hook="linear.backward")
NAMES = ["dL/dx", "dL/dweight", "dL/dbias"]


@gradients.check(
    "one row",
    "W_oi has a part in y_ro alone, with x_ri as its slope: dL/dW_oi = sum over r of g_ro x_ri",
    "g.T @ x has the shape (out, in) of the weight",
    "g @ weight, g.T @ x, g.sum(axis=0), for g and x with one line for each row",
)
def gradients_row(answer):
    x, g = np.array([[1.0, 2.0]]), np.array([[1.0, -1.0, 0.5]])
    inputs = {"g": g, "y": x @ WEIGHT.T, "x": x, "weight": WEIGHT, "bias": np.zeros(3)}
    expect(answer, inputs, (np.array([[1.5, -0.5]]), g.T @ x, g[0]), NAMES)


def rows_and_gradients(g, x):
    g = g.reshape(-1, 3)
    return (g @ WEIGHT).reshape(x.shape), g.T @ x.reshape(-1, 2), g.sum(axis=0)


@gradients.check(
    "several rows: their parts add up",
    "the bias is used in every row: its gradient is the sum over all rows, of shape (out,)",
    "rows = g.reshape(-1, g.shape[-1]); rows.sum(axis=0)",
)
def gradients_rows(answer):
    x, g = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[1.0, -1.0, 0.5], [2.0, 0.0, 1.0]])
    inputs = {"g": g, "y": x @ WEIGHT.T, "x": x, "weight": WEIGHT, "bias": np.zeros(3)}
    dx, dw, db = rows_and_gradients(g, x)
    rule_out(answer, inputs, (dx, dw, g), "it gave dL/dbias for each row: the rows share the bias, their parts add up")
    rule_out(answer, inputs, (dx, dw, g.mean(axis=0)), "it gave the mean over the rows as dL/dbias: parts add up")
    expect(answer, inputs, (dx, dw, db), NAMES)


@gradients.check(
    "several images of several tokens",
    "the sum runs over images and tokens: flatten both g and x to rows first",
    "rows.T @ x.reshape(-1, x.shape[-1])",
)
def gradients_images(answer):
    x, g = np.arange(12.0).reshape(2, 3, 2) / 2 - 2, np.arange(18.0).reshape(2, 3, 3) / 2 - 4
    inputs = {"g": g, "y": x @ WEIGHT.T, "x": x, "weight": WEIGHT, "bias": np.zeros(3)}
    expect(answer, inputs, rows_and_gradients(g, x), NAMES)


added = Task("2.5", "add_backward", part="positions and skip connections", hook="add.backward")


@added.check("two arrays of one shape", "y moves by as much as a does, and by as much as b: each gets g")
def added_alike(answer):
    g = np.array([[1.0, -2.0], [0.5, 3.0]])
    expect(answer, {"g": g, "y": g, "a": g, "b": -g}, (g, g), ["dL/da", "dL/db"])


@added.check(
    "positions: one vector for all images",
    "the vector was added to every image, and uses add up: a sum over the images",
    "unbroadcast(g, b.shape), of lesson 01",
    "return unbroadcast(g, a.shape), unbroadcast(g, b.shape)",
)
def added_positions(answer):
    g, a, b = np.array([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]]), np.zeros((3, 1, 2)), np.ones((1, 1, 2))
    inputs = {"g": g, "y": a + b, "a": a, "b": b}
    rule_out(answer, inputs, (g, g), "it gave dL/db for each image: b is one for all of them, so their parts add up")
    expect(answer, inputs, (g, np.array([[[9.0, 12.0]]])), ["dL/da", "dL/db"])


@added.check("either of the two may be the smaller one", "a can have been broadcast just as well as b")
def added_either(answer):
    g, a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros(2), np.ones((2, 1))
    expect(
        answer,
        {"g": g, "y": a + b, "a": a, "b": b},
        (np.array([4.0, 6.0]), np.array([[3.0], [7.0]])),
        ["dL/da", "dL/db"],
    )
