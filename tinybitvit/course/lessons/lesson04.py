"""Checks of lesson 4: layer norm, GELU and cross-entropy, forward and backward, and the training step."""

import numpy as np

from ... import functional as F
from ...nn import Linear
from ...optim import SGD
from ..checker import Task, expect, expect_backward, expect_forward, rule_out, same


def random(*shape, seed=0):
    return np.random.default_rng(seed).integers(-6, 7, shape) / 2


norm = Task("4.1", "layer_norm", part="layer norm", hook="layer_norm.forward")
TOKEN, ONES = np.array([1.0, 1.0, 5.0, 5.0]), np.ones(4)


@norm.check(
    "one token",
    "take away the mean, divide by the root of the mean square of what is left (plus eps)",
    "u = x - x.mean(axis=-1, keepdims=True); s = np.sqrt((u * u).mean(axis=-1, keepdims=True) + eps)",
    "return u / s * weight + bias",
)
def norm_one(answer):
    inputs = {"x": TOKEN, "weight": ONES, "bias": 0 * ONES}
    rule_out(answer, inputs, (TOKEN - 3) / 4, "it divided by the variance: s is its root")
    expect(answer, inputs, np.array([-1.0, -1.0, 1.0, 1.0]))


@norm.check("weight and bias", "z times the weight, plus the bias, for each column")
def norm_weight(answer):
    weight, bias = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 1.0, 1.0])
    expect(answer, {"x": TOKEN, "weight": weight, "bias": bias}, np.array([-1.0, -2.0, 4.0, 5.0]))


@norm.check("several tokens: each for itself", "mean and s run over the last axis: axis=-1, keepdims=True")
def norm_several(answer):
    x = np.array([[1.0, 1.0, 5.0, 5.0], [10.0, 30.0, 10.0, 30.0]])
    inputs = {"x": x, "weight": ONES, "bias": 0 * ONES}
    rule_out(answer, inputs, (x - x.mean()) / x.std(), "all tokens share one mean: each has its own")
    expect(answer, inputs, np.array([[-1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]]))
    expect_forward(answer, "layer_norm", {"x": random(2, 3, 4), "weight": random(4), "bias": random(4)}, eps=1e-6)


@norm.check("a token of equal numbers", "eps stands under the root, so that s is not 0")
def norm_equal(answer):
    expect(answer, {"x": 3 * ONES, "weight": ONES, "bias": 0 * ONES}, 0 * ONES)


learn = Task("4.2", "layer_norm_backward", part="layer norm", hook="layer_norm.backward")


def with_result(x, weight, bias, g):
    u = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((u * u).mean(axis=-1, keepdims=True) + 1e-6)
    inputs = {"g": g, "y": u / s * weight + bias, "x": x, "weight": weight, "bias": bias}
    return inputs, u / s, s, g * weight


NAMES = ["dL/dx", "dL/dweight", "dL/dbias"]


@learn.check(
    "one token",
    "the three parts of the bracket give h_j, the mean of h, and z_j times the mean of h z",
    "dx = (h - h.mean(axis=-1, keepdims=True) - z * (h * z).mean(axis=-1, keepdims=True)) / s",
)
def learn_one(answer):
    g = np.array([[1.0, 0.0, -0.5, 2.0]])
    inputs, z, s, h = with_result(TOKEN[None], ONES, 0 * ONES, g)
    dw, db = (g * z).sum(axis=0), g.sum(axis=0)
    rule_out(answer, inputs, (h / s, dw, db), "mean and s count as constants in it: they move with x, too")
    centred = (h - h.mean()) / s
    rule_out(answer, inputs, (centred, dw, db), "s counts as a constant in it: the term with z is missing")
    expect(answer, inputs, ((h - h.mean() - z * (h * z).mean()) / s, dw, db), NAMES)


@learn.check(
    "several tokens share weight and bias",
    "dL/dweight is the sum of g z over all tokens, dL/dbias that of g",
    "return dx, (g * z).sum(axis=tokens), g.sum(axis=tokens)",
)
def learn_several(answer):
    inputs = {"x": random(2, 3, 4), "weight": random(4, seed=1), "bias": random(4, seed=2)}
    expect_backward(lambda *arrays, eps: answer(*arrays), "layer_norm", inputs, eps=1e-6)


@learn.check("a weight that is not 1", "h = g * weight, also in the means")
def learn_weight(answer):
    g, weight = np.array([[1.0, 0.0, -0.5, 2.0]]), np.array([1.0, -2.0, 0.5, 3.0])
    inputs, z, s, h = with_result(TOKEN[None], weight, 0 * ONES, g)
    dx = (h - h.mean() - z * (h * z).mean()) / s
    expect(answer, inputs, (dx, (g * z).sum(axis=0), g.sum(axis=0)), NAMES)


curve = Task("4.3", "gelu", part="GELU", hook="gelu.forward")
POINTS = np.array([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0])
EDGE = 0.7978845608 * (POINTS + 0.044715 * POINTS**3)


@curve.check(
    "six points",
    "u = math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)",
    "return 0.5 * x * (1 + np.tanh(u))",
)
def curve_points(answer):
    sentence = "it lacks the factor x: (1 + tanh u) / 2 is the share that is let through"
    rule_out(answer, {"x": POINTS}, 0.5 * (1 + np.tanh(EDGE)), sentence)
    expect(answer, {"x": POINTS}, 0.5 * POINTS * (1 + np.tanh(EDGE)))


@curve.check("arrays of any shape", "all of it works element by element")
def curve_shape(answer):
    expect(answer, {"x": np.zeros((2, 1, 3))}, np.zeros((2, 1, 3)))


slope = Task("4.4", "gelu_backward", part="GELU", hook="gelu.backward")
SLOPES = 0.5 * (1 + np.tanh(EDGE))
BENT = 0.5 * POINTS * (1 - np.tanh(EDGE) ** 2) * 0.7978845608 * (1 + 3 * 0.044715 * POINTS**2)


@slope.check(
    "the slope at six points",
    "y = x c with c = (1 + tanh u) / 2: y' = c + x c', and c' = (1 - tanh(u)**2) / 2 * u'",
    "u' = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)",
    "return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du) with t = tanh u",
)
def slope_points(answer):
    g = np.ones(6)
    inputs = {"g": g, "y": POINTS * SLOPES, "x": POINTS}
    rule_out(answer, inputs, SLOPES, "the share that is let through depends on x, too: two terms")
    expect(answer, inputs, SLOPES + BENT)


@slope.check("what arrives from above", "everything is multiplied by g")
def slope_above(answer):
    g = np.array([2.0, -1.0, 0.5, 0.0, 3.0, 1.0])
    expect(answer, {"g": g, "y": POINTS * SLOPES, "x": POINTS}, g * (SLOPES + BENT))


loss = Task("4.5", "cross_entropy", part="cross-entropy", hook="cross_entropy.forward")


@loss.check(
    "two rows",
    "(m - s_t) + ln of the sum of e^(s - m), for each row; then the mean of the rows",
    "below = logits - logits.max(axis=-1, keepdims=True); picked = below[np.arange(len(target)), target]",
    "return (np.log(np.exp(below).sum(axis=-1)) - picked).mean()",
)
def loss_rows(answer):
    inputs = {"logits": np.array([[0.0, 0.0], [np.log(3), 0.0]]), "target": np.array([0, 0])}
    rows = np.log(2), np.log(4 / 3)
    rule_out(answer, inputs, sum(rows), "it gave the sum over the rows: the loss is their mean")
    expect(answer, inputs, sum(rows) / 2)


@loss.check("the right class is not always the first", "row n needs the logit of class target[n]")
def loss_classes(answer):
    expect_forward(answer, "cross_entropy", {"logits": random(3, 4), "target": np.array([2, 0, 3])})


@loss.check("logits of a thousand", "never form the share: its logarithm is (s_t - m) - ln of the sum")
def loss_large(answer):
    inputs = {"logits": np.array([[0.0, 1000.0], [1000.0, 0.0]]), "target": np.array([0, 0])}
    sentence = "a share was rounded to 0 or overflowed, so that the loss is not finite: work with logarithms"
    rule_out(lambda *given: np.isfinite(answer(*given)), inputs, np.array(False), sentence)
    expect(answer, inputs, 500.0)


error = Task("4.6", "cross_entropy_backward", part="cross-entropy", hook="cross_entropy.backward")


@error.check(
    "one row",
    "p = softmax(logits), less 1 at the right class",
    "d = softmax(logits); d[np.arange(len(target)), target] -= 1",
    "return g * d / len(target)",
)
def error_one(answer):
    inputs = {"g": 1.0, "y": np.log(2), "logits": np.zeros((1, 2)), "target": np.array([1])}
    rule_out(answer, inputs, np.array([[-0.5, 0.5]]), "the sign is wrong: the logit of the right class must rise")
    expect(answer, inputs, np.array([[0.5, -0.5]]))


@error.check("the mean over the rows", "the loss is a mean: each row has 1 / N of the gradient")
def error_mean(answer):
    inputs = {"g": 1.0, "y": np.log(2), "logits": np.zeros((2, 2)), "target": np.array([0, 1])}
    whole = np.array([[-0.5, 0.5], [0.5, -0.5]])
    rule_out(answer, inputs, whole, "it is too large by the number of rows: the loss is their mean")
    expect(answer, inputs, whole / 2)


@error.check("three rows and what arrives from above", "everything is multiplied by g, the single number from above")
def error_above(answer):
    expect_backward(answer, "cross_entropy", {"logits": random(3, 4), "target": np.array([2, 0, 3])})


step = Task("4.7", "train_step", part="the training step")
X, Y = np.array([[1.0, -1.0], [2.0, 0.5], [0.0, 1.0]], "float32"), np.array([0, 1, 1])


def started():
    network = Linear(2, 2)
    network.weight.data[...] = [[0.5, -0.5], [1.0, 0.0]]
    return network, SGD(network.parameters(), lr=0.5)


def right_steps(count):
    """The loss before each of the steps, and the weights after the last."""
    network, optimizer = started()
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        value = F.cross_entropy(network(X), Y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, network.weight.data.copy()


@step.check(
    "the loss, as a number",
    "loss = F.cross_entropy(network(x), y) is a Tensor; loss.item() is its number",
    "the five lines: zero_grad, cross_entropy, backward, step, return loss.item()",
)
def step_loss(answer):
    network, optimizer = started()
    given = answer(network, optimizer, X, Y)
    assert isinstance(given, float), f"it returned {type(given).__name__}, not a number: loss.item()"
    same(given, right_steps(1)[0][0], "for a linear layer and three points", " the loss before the step")


@step.check("one step: the weights", "loss.backward() fills .grad, optimizer.step() moves the weights by it")
def step_weights(answer):
    network, optimizer = started()
    before = network.weight.data.copy()
    answer(network, optimizer, X, Y)
    assert not np.array_equal(network.weight.data, before), "the weights did not move: backward, then optimizer.step()"
    same(network.weight.data, right_steps(1)[1], "for a linear layer and three points", " weights after one step")


@step.check(
    "three steps, one after the other",
    "backward adds to .grad: forget what is left of the step before",
    "optimizer.zero_grad() comes before loss.backward()",
)
def step_three(answer):
    network, optimizer = started()
    for _ in range(3):
        answer(network, optimizer, X, Y)
    tale, (kept, added) = "after three steps of a linear layer", started()
    for _ in range(3):
        F.cross_entropy(kept(X), Y).backward()
        added.step()
    forgotten = not np.allclose(network.weight.data, kept.weight.data, rtol=1e-5)
    assert forgotten, f"the gradients of the steps before are still in .grad: zero_grad() first, {tale}"
    same(network.weight.data, right_steps(3)[1], tale, " weights")
