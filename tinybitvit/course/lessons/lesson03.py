"""Checks of lesson 3: softmax, attention and several heads, each forward and backward."""

import numpy as np

from ..checker import LIBRARY, Task, context, expect, expect_backward, expect_forward, rule_out


def random(*shape, seed=0):
    return np.random.default_rng(seed).integers(-4, 5, shape) / 2


shares = Task("3.1", "softmax", part="softmax", hook="softmax.forward")
THIRD = np.array([[0.0, np.log(2), 0.0]])


@shares.check("three scores", "np.exp(x), divided by its sum", "axis=-1, keepdims=True: each row has a sum of its own")
def shares_three(answer):
    expect(answer, {"x": THIRD[0]}, np.array([0.25, 0.5, 0.25]))


@shares.check(
    "several rows",
    "the sum runs over the last axis, and keepdims=True leaves it there, so that it broadcasts",
    "powers / powers.sum(axis=-1, keepdims=True)",
)
def shares_rows(answer):
    x = np.log(np.array([[1.0, 3.0], [1.0, 1.0]]))
    rule_out(answer, {"x": x}, np.exp(x) / np.exp(x).sum(), "all rows together sum to 1: each row has a sum of its own")
    expect(answer, {"x": x}, np.array([[0.25, 0.75], [0.5, 0.5]]))
    expect_forward(answer, "softmax", {"x": random(2, 2, 3)})


@shares.check(
    "scores of a thousand",
    "add c = -max of the row to all scores: the largest power is then e^0 = 1, the others are smaller",
    "np.exp(x - x.max(axis=-1, keepdims=True))",
)
def shares_large(answer):
    x = 1000 + THIRD
    sentence = "e^1000 is infinite, so that the shares are not numbers: take the largest score of the row away first"
    rule_out(lambda x: np.isnan(answer(x)), {"x": x}, np.ones((1, 3), bool), sentence)
    expect(answer, {"x": x}, np.array([[0.25, 0.5, 0.25]]))


@shares.check("rows of very different height", "take away the maximum of each row, not of the array")
def shares_heights(answer):
    expect(answer, {"x": np.array([[0.0, 0.0], [2000.0, 2000.0]])}, np.full((2, 2), 0.5))


back = Task("3.2", "softmax_backward", part="softmax", hook="softmax.backward")


@back.check(
    "two shares",
    "the part with 1[i=j] leaves g_j p_j; the other one is p_j times the sum of g_i p_i",
    "p_j (g_j - sum_i g_i p_i)",
    "return y * (g - (g * y).sum(axis=-1, keepdims=True))",
)
def back_two(answer):
    y, g = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    inputs = {"g": g, "y": y, "x": np.zeros(2)}
    sentence = "it has the diagonal of the Jacobian alone: each share depends on the other scores, too"
    rule_out(answer, inputs, g * y * (1 - y), sentence)
    expect(answer, {"g": np.array([1.0, 1.0]), "y": y, "x": np.zeros(2)}, np.zeros(2))
    expect(answer, inputs, np.array([0.25, -0.25]))


@back.check("three shares", "the sum of g_i p_i is one number for the row; each score j gets p_j (g_j - that number)")
def back_three(answer):
    y, g = np.array([0.25, 0.5, 0.25]), np.array([1.0, 2.0, -2.0])
    expect(answer, {"g": g, "y": y, "x": THIRD[0]}, y * (g - 0.75))


@back.check("several rows, at every depth", "the sum over the last axis needs keepdims=True to broadcast")
def back_rows(answer):
    expect_backward(answer, "softmax", {"x": random(2, 3)})
    expect_backward(answer, "softmax", {"x": random(2, 2, 3)})


look = Task("3.3", "attention", part="attention", hook="scaled_dot_product_attention.forward")


@look.check(
    "one query, three keys",
    "the scores are q @ k.swapaxes(-1, -2), over the root of d = q.shape[-1]; the shares are their softmax",
    "softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v",
)
def look_three(answer):
    q, k = np.array([[2.0, 0.0, 0.0, 0.0]]), np.zeros((3, 4))
    k[1, 0] = np.log(2)
    inputs = {"q": q, "k": k, "v": np.array([[0.0], [10.0], [40.0]])}
    p = np.array([1.0, 4.0, 1.0]) / 6
    rule_out(answer, inputs, p[None] @ inputs["v"], "the scores are not divided by the root of d")
    p = np.array([1.0, 2.0**0.5, 1.0]) / (2 + 2**0.5)
    rule_out(answer, inputs, p[None] @ inputs["v"], "the scores are divided by d, not by its root")
    expect(answer, inputs, np.array([[15.0]]))


@look.check("several queries", "each row of the scores belongs to one query: softmax over the last axis")
def look_several(answer):
    expect_forward(answer, "scaled_dot_product_attention", {n: random(3, 2, seed=i) for i, n in enumerate("qkv")})


@look.check("stacks of heads, other numbers of keys", "swapaxes(-1, -2) where .T would reverse all axes")
def look_stacks(answer):
    inputs = {"q": random(2, 2, 3, 4), "k": random(2, 2, 5, 4, seed=1), "v": random(2, 2, 5, 3, seed=2)}
    expect_forward(answer, "scaled_dot_product_attention", inputs)


learn = Task("3.4", "attention_backward", part="attention", hook="scaled_dot_product_attention.backward")


@learn.check(
    "two tokens",
    "dp, dv = matmul_backward(g, y, p, v), then ds = scale * softmax_backward(dp, p, None)",
    "dq, dk = matmul_backward(ds, None, q, k.swapaxes(-1, -2)): the second one is the gradient of k transposed",
    "return dq, dk.swapaxes(-1, -2), dv",
)
def learn_two(answer):
    q, k, v, g = (random(2, 2, seed=seed) for seed in range(4))
    ctx = context(q, k, v)
    y = LIBRARY["scaled_dot_product_attention"].forward(ctx, q, k, v)
    dq, dk, dv = LIBRARY["scaled_dot_product_attention"].backward(ctx, g)
    inputs, root = {"g": g, "y": y, "q": q, "k": k, "v": v}, 2**0.5
    sentence = "dL/dq and dL/dk are too large by the root of d, which divides the scores and so their gradients"
    rule_out(answer, inputs, (root * dq, root * dk, dv), sentence)
    rule_out(answer, inputs, (dq, dk.T, dv), "it gave the gradient of k transposed: transpose it back")
    expect(answer, inputs, (dq, dk, dv), ["dL/dq", "dL/dk", "dL/dv"])


@learn.check("stacks of heads, other numbers of keys", "swapaxes(-1, -2) where .T would reverse all axes")
def learn_stacks(answer):
    inputs = {"q": random(2, 2, 3, 4), "k": random(2, 2, 5, 4, seed=1), "v": random(2, 2, 5, 3, seed=2)}
    expect_backward(answer, "scaled_dot_product_attention", inputs)


heads = Task("3.5", "multi_head_attention", part="several heads", hook="multi_head_attention.forward")


def forward_of(qkv, count):
    return LIBRARY["multi_head_attention"].forward(context(qkv), qkv, heads=count)


def heads_as_tokens(qkv, count):
    """What comes out if a head is taken for a part of the tokens: transposed too little."""
    n, t, width = qkv.shape
    q, k, v = qkv.reshape(n, t, 3, count, -1).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True) @ v).reshape(n, t, width // 3)


@heads.check("one head", "q, k, v = qkv.transpose(2, 0, 3, 1, 4): which of the three, image, head, token, number")
def heads_one(answer):
    qkv = random(1, 2, 6)
    expect(answer, {"qkv": qkv, "heads": 1}, forward_of(qkv, 1))


@heads.check(
    "two heads, two images",
    "attention gives (n, heads, t, d); a row of the result belongs to one token, so heads and t change places first",
    "attention(q, k, v).transpose(0, 2, 1, 3).reshape(n, t, width // 3)",
)
def heads_two(answer):
    qkv = random(2, 3, 12)
    sentence = "a token got numbers of other tokens: bring heads beside d before the last reshape"
    rule_out(answer, {"qkv": qkv, "heads": 2}, heads_as_tokens(qkv, 2), sentence)
    expect(answer, {"qkv": qkv, "heads": 2}, forward_of(qkv, 2))


several = Task("3.6", "multi_head_attention_backward", part="several heads", hook="multi_head_attention.backward")


def backward_of(g, qkv, count):
    ctx = context(qkv)
    y = LIBRARY["multi_head_attention"].forward(ctx, qkv, heads=count)
    return y, LIBRARY["multi_head_attention"].backward(ctx, g)[0]


@several.check(
    "one head",
    "g.reshape(n, t, heads, d).transpose(0, 2, 1, 3) is g as attention_backward wants it",
    "np.stack(attention_backward(g, None, q, k, v)) has the axes (which of the three, n, heads, t, d)",
)
def several_one(answer):
    g, qkv = random(1, 2, 2, seed=3), random(1, 2, 6)
    y, expected = backward_of(g, qkv, 1)
    expect(answer, {"g": g, "y": y, "qkv": qkv, "heads": 1}, expected)


@several.check(
    "two heads, two images",
    "the axes (3, n, heads, t, d) must become (n, t, 3, heads, d), and then melt to (n, t, width)",
    "np.stack(...).transpose(1, 3, 0, 2, 4).reshape(n, t, width)",
)
def several_two(answer):
    g, qkv = random(2, 3, 4, seed=3), random(2, 3, 12)
    y, expected = backward_of(g, qkv, 2)
    d = expected.reshape(2, 3, 3, 2, 2).transpose(2, 0, 3, 1, 4)
    sentence = "dq, dk and dv lie one after the other, not side by side in the row of each token: transpose first"
    rule_out(answer, {"g": g, "y": y, "qkv": qkv, "heads": 2}, d.reshape(2, 3, 12), sentence)
    expect(answer, {"g": g, "y": y, "qkv": qkv, "heads": 2}, expected)
