"""Checks of lesson 8: AdamW, the rate that falls, the distance to a flip, a teacher's targets."""

import math

import numpy as np

from ..checker import Task, expect, same

FIXED = {"b1": 0.9, "b2": 0.98, "eps": 1e-8}

optimiser = Task("8.1", "adamw", part="the optimiser", hook="adamw")


def expect_steps(answer, gradients, expected, lr=0.1, weight_decay=0.0, start=1.0):
    """AssertionError unless p is `expected` after an update with each of the gradients."""
    p, m, v = np.full(1, start), np.zeros(1), np.zeros(1)
    for t, g in enumerate(gradients, 1):
        returned = answer(p, np.full(1, g), m, v, t, lr, *FIXED.values(), weight_decay)
        assert returned is None, "it must change p, m and v in place and return nothing: p -= ... or p[...] = ..."
    same(p, np.array([expected]), f"from p = {start:g}, after gradients {gradients}, lr = {lr:g}", " p")


@optimiser.check(
    "the first step",
    "m and v start at 0, so the first averages are too small: m by the factor 1 - b1, v by 1 - b2. Divide them out",
    "m_hat = m / (1 - b1**t), v_hat = v / (1 - b2**t), and the step is lr * m_hat / (sqrt(v_hat) + eps)",
    "m += (1 - b1) * (g - m); v += (1 - b2) * (g * g - v); then p -= lr * m_hat / (np.sqrt(v_hat) + eps)",
)
def optimiser_first(answer):
    for g in (0.001, 1000.0):
        expect_steps(answer, [g], 0.9)


@optimiser.check("three steps", "t counts the updates: by the third, m and v lack 1 - b1**3 and 1 - b2**3")
def optimiser_three(answer):
    gradients, m, v, p = [1.0, -0.5, 2.0], 0.0, 0.0, 1.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        p -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.98**t)) + 1e-8)
    expect_steps(answer, gradients, p)


@optimiser.check(
    "weight decay, apart from the gradient",
    "decoupled: p shrinks by the factor 1 - lr * weight_decay; the gradient, m and v do not hear of it",
    "p *= 1 - lr * weight_decay, before the step",
)
def optimiser_decay(answer):
    expect_steps(answer, [1.0], 2.0 * 0.95 - 0.1, weight_decay=0.5, start=2.0)
    expect_steps(answer, [0.0], 2.0 * 0.95, weight_decay=0.5, start=2.0)


falling = Task("8.2", "rate_factor")


@falling.check(
    "it rises",
    "in the warm-up the factor of step s, counted from 0, is (s + 1) / warmup",
)
def falling_rises(answer):
    for step, expected in ((0, 0.25), (1, 0.5), (3, 1.0)):
        expect(answer, {"step": step, "total": 12, "warmup": 4}, expected)


@falling.check(
    "and falls along half a cosine",
    "done = (step - warmup) / (total - warmup) goes from 0 to 1; the cosine of pi done goes from 1 to -1",
    "half of 1 + cos goes from 1 to 0: 0.5 * (1 + math.cos(math.pi * done))",
)
def falling_falls(answer):
    for step, expected in ((4, 1.0), (8, 0.5), (12, 0.0), (6, 0.5 + 0.25 * math.sqrt(2))):
        expect(answer, {"step": step, "total": 12, "warmup": 4}, expected)
    expect(answer, {"step": 0, "total": 10, "warmup": 0}, 1.0)


distance = Task("8.3", "distance_to_flip")


@distance.check(
    "the nearest of two thresholds",
    "the thresholds are at -1/2 and +1/2; by symmetry only the size of v counts",
    "how far is |v| from 1/2?",
    "np.abs(np.abs(v) - 0.5)",
)
def distance_nearest(answer):
    v = np.array([0.0, 0.5, -0.5, 0.7, -2.0, 0.1])
    expect(answer, {"v": v}, np.array([0.5, 0.0, 0.0, 0.2, 1.5, 0.4]))


teacher = Task("8.4", "taught_targets", part="a teacher's targets")


@teacher.check(
    "the teacher's probabilities",
    "they are the softmax of its logits, row by row; the largest is taken off first, for numbers above 700 have no e^x",
    "t = np.exp(z - z.max(axis=1, keepdims=True)), then divide each row by its sum",
)
def teacher_probabilities(answer):
    logits, y = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])), np.array([1, 2])
    expect(answer, {"logits": logits, "y": y}, np.exp(logits))
    expect(answer, {"logits": np.array([[1000.0, 1000.0]]), "y": np.array([0])}, np.array([[0.5, 0.5]]))


@teacher.check(
    "mixed with the labels",
    "a label is a row with a 1 at its class: y[:, None] == np.arange(classes)",
    "share * t + (1 - share) * labels",
)
def teacher_mixed(answer):
    logits, y = np.log(np.array([[0.5, 0.25, 0.25]])), np.array([2])
    expect(answer, {"logits": logits, "y": y, "share": 0.5}, np.array([[0.25, 0.125, 0.625]]))
    expect(answer, {"logits": logits, "y": y, "share": 0.0}, np.array([[0.0, 0.0, 1.0]]))
