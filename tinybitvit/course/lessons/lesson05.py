"""Checks of lesson 5: the best scale, signs and their scale, a step straight through the signs, the slope."""

import numpy as np

from ..checker import Task, expect, same

scale = Task("5.1", "best_scale")


@scale.check(
    "signs",
    "solve sum b (w - scale b) = 0 for the scale, which does not depend on i and may leave the sum",
    "scale = sum(w b) / sum(b b)",
)
def scale_of_signs(answer):
    w = np.array([[0.5, -0.3, 0.1, -0.75]])
    expect(answer, {"w": w, "b": np.array([[1.0, -1.0, 1.0, -1.0]])}, np.array([[0.4125]]))
    expect(answer, {"w": w, "b": np.array([[1.0, 1.0, 1.0, -1.0]])}, np.array([[0.2625]]))


@scale.check(
    "any codes",
    "the codes may be 0 or 2: then sum(b b) is not the number of weights",
    "divide by (b * b).sum(...), not by the length",
)
def scale_of_codes(answer):
    expect(answer, {"w": np.array([[0.8, -0.1, -0.4]]), "b": np.array([[1.0, 0.0, -1.0]])}, np.array([[0.6]]))
    expect(answer, {"w": np.array([[1.0, 0.6]]), "b": np.array([[2.0, 1.0]])}, np.array([[0.52]]))


@scale.check("a scale for each row", "sum over the last axis with keepdims=True: (out, K) to (out, 1)")
def scale_of_rows(answer):
    w = np.array([[1.0, -3.0], [0.5, -0.5], [2.0, -1.0]])
    expect(answer, {"w": w, "b": np.sign(w)}, np.array([[2.0], [0.5], [1.5]]))


signs = Task("5.2", "binary_codes", part="sign and scale", hook="binary_codes")
CODES = ["codes", "scale"]


@signs.check(
    "signs around the mean of the row",
    "u = w - mean, with a mean for each row; the codes are the signs of u",
    "the scale is the best one for u, not for w: best_scale(u, codes), the mean of |u|",
)
def signs_centred(answer):
    expect(answer, {"w": np.array([[4.0, 0.0]])}, (np.array([[1.0, -1.0]]), np.array([[2.0]])), CODES)
    w, codes = np.array([[3.0, 1.0, 2.0, 7.0], [-2.0, 1.0, -4.0, 1.0]]), [[-1.0, -1, -1, 1], [-1.0, 1, -1, 1]]
    expect(answer, {"w": w}, (np.array(codes), np.array([[1.875], [2.0]])), CODES)


@signs.check(
    "two codes, never a third",
    "np.sign(0) is 0: take +1 where u >= 0, and -1 elsewhere",
    "np.where(u >= 0, 1.0, -1.0)",
)
def signs_of_zero(answer):
    w = np.array([[1.0, 3.0, 2.0]])
    expect(answer, {"w": w}, (np.array([[-1.0, 1.0, 1.0]]), np.array([[2 / 3]])), CODES)


@signs.check(
    "a row of equal weights",
    "its scale would be 0, and something will be divided by it: np.maximum(..., 1e-5)",
)
def signs_of_equal_weights(answer):
    expect(answer, {"w": np.full((2, 3), 0.5)}, (np.ones((2, 3)), np.full((2, 1), 1e-5)), CODES)


step = Task("5.3", "signs_step")


def inputs(seed, n, K, out):
    rng = np.random.default_rng(seed)
    latent, x, t = (rng.integers(-6, 7, shape) / 4 for shape in ((out, K), (n, K), (n, out)))
    return {"latent": latent, "x": x, "t": t, "lr": 0.5}


def stepped(latent, x, t, lr):
    u = latent - latent.mean(axis=-1, keepdims=True)
    q = np.where(u >= 0, 1.0, -1.0) * np.abs(u).mean(axis=-1, keepdims=True)
    return latent - lr * 2 * (x @ q.T - t).T @ x / t.size


@step.check(
    "one example, one output",
    "y = x @ (codes * scale).T, as the forward pass sees it; the latent weight itself is multiplied by nothing",
    "L = (y - t)^2, so dL/dq = 2 (y - t) x; the latent weight moves by -lr times that",
    "return latent - lr * 2 * (y - t).T @ x / t.size",
)
def step_of_one(answer):
    given = {"latent": np.array([[1.0, -0.5]]), "x": np.array([[2.0, 1.0]]), "t": np.array([[0.25]]), "lr": 0.1}
    expect(answer, given, stepped(**given))


@step.check(
    "many examples and outputs",
    "the loss is a mean: divide by the number of answers, n times out",
    "of g, (n, out), and x, (n, K), make (out, K): g.T @ x",
)
def step_of_many(answer):
    for n, K, out in ((4, 3, 1), (3, 4, 2)):
        given = inputs(n, n, K, out)
        expect(answer, given, stepped(**given))


tent = Task("5.4", "slope", part="straight-through slope", hook="slope")


@tent.check(
    "the tent of width 2",
    "two triangles side by side: their area is width times height, and it must be 2",
    "2 / width at the top, times 1 - |v| / width",
)
def tent_of_two(answer):
    v = np.array([0.0, 1.0, 2.0, -0.5])
    expect(lambda v, width: answer(v, width=width), {"v": v, "width": 2.0}, np.array([1.0, 0.5, 0.0, 0.75]))


@tent.check("nothing outside", "beyond the width the line goes on below 0: np.maximum(..., 0)")
def tent_outside(answer):
    expect(lambda v, width: answer(v, width=width), {"v": np.array([-5.0, 1.5]), "width": 1.0}, np.zeros(2))


@tent.check("an area of 2 for every width", "the height depends on the width: 2 / width")
def tent_area(answer):
    v = np.linspace(-8, 8, 6401)
    for width in (0.5, 1.0, 4.0):
        area = np.asarray(answer(v, width=width)).sum() * (v[1] - v[0])
        same(np.round(area, 2), 2.0, f"for width = {width}", " an area")


@tent.check("width 3, unless it is told", "def slope(v, width=3.0)")
def tent_default(answer):
    expect(answer, {"v": np.array([[0.0, -1.5], [3.0, 4.0]])}, np.array([[2 / 3, 1 / 3], [0.0, 0.0]]))
