"""Checks of problem set 5: train, measure, explain."""

import math

import numpy as np

from .. import functional as F
from ..nn import Linear, Module
from ..optim import SGD
from ..viz import measures
from .checker import Task, expect, same

confusion = Task("ps5.1", "confusion_matrix")
TRUTH, ANSWERS = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
EXAMPLE = np.array([[1, 1, 0], [0, 2, 0], [1, 0, 1]])


@confusion.check("the worked example", "add 1 at [truth, answer] for each picture: rows are the truth")
def confusion_example(answer):
    expect(answer, {"truth": TRUTH, "answers": ANSWERS, "classes": 3}, EXAMPLE)


@confusion.check("repeated pairs, classes that do not occur", "matrix[truth, answers] += 1 counts repeated pairs once")
def confusion_repeated(answer):
    expected = np.zeros((4, 4), int)
    expected[2, 1] = 3
    expect(answer, {"truth": np.array([2, 2, 2]), "answers": np.array([1, 1, 1]), "classes": 4}, expected)


scores = Task("ps5.2", "macro_scores")
NAMES = ("accuracy", "precision", "recall", "f1")


def macro(matrix: np.ndarray) -> tuple[float, ...]:
    right, called, there = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    parts = right / np.maximum(called, 1), right / np.maximum(there, 1), 2 * right / np.maximum(called + there, 1)
    return right.sum() / matrix.sum(), *(part.mean() for part in parts)


@scores.check("the worked example", "precision divides the diagonal by the columns' sums, recall by the rows'")
def scores_example(answer):
    expect(answer, {"matrix": EXAMPLE}, macro(EXAMPLE), NAMES)


@scores.check("every class counts the same", "first a value for each class, then the mean of the values; F1 too")
def scores_macro(answer):
    matrix = np.array([[8, 1, 1], [1, 2, 0], [2, 0, 1]])
    expect(answer, {"matrix": matrix}, macro(matrix), NAMES)


@scores.check("a class that is never called, or never there", "divide by np.maximum(sum, 1): the count above it is 0")
def scores_empty(answer):
    with np.errstate(all="ignore"):  # the division by 0 is what is being looked for
        for matrix in (np.array([[3, 0], [1, 0]]), np.array([[2, 1], [0, 0]])):
            expect(answer, {"matrix": matrix}, macro(matrix), NAMES)


rate = Task("ps5.3", "learning_rate")


def warmup_cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@rate.check("warm-up", "peak * (step + 1) / warmup while step < warmup")
def rate_warmup(answer):
    for step, warmup in ((0, 1), (0, 2), (1, 2), (3, 10)):
        inputs = {"step": step, "steps": 20, "warmup": warmup, "peak": 0.8}
        expect(answer, inputs, warmup_cosine(**inputs))


@rate.check("cosine", "the angle grows from 0 to pi between the end of the warm-up and the last step")
def rate_cosine(answer):
    for step, warmup in ((0, 0), (2, 2), (5, 2), (5, 0), (19, 4)):
        inputs = {"step": step, "steps": 20, "warmup": warmup, "peak": 0.8}
        expect(answer, inputs, warmup_cosine(**inputs))


loop = Task("ps5.4", "train")
OPTIONS = {"epochs": 2, "batch_size": 4, "warmup": 2, "peak": 0.5}
BATCHES = "for 10 images, batches of 4 and 2 epochs"


class Recorder(Module):
    """A linear layer that writes down which images it was shown: the first number of image i is i."""

    def __init__(self):
        super().__init__()
        self.layer = Linear(2, 3, rng=np.random.default_rng(0))
        self.seen: list[list[int]] = []

    def forward(self, x):
        self.seen.append([round(10 * float(v)) for v in np.asarray(getattr(x, "data", x))[:, 0]])
        return self.layer(x)


class Watched(SGD):
    """SGD that writes down its learning rates."""

    def __init__(self, params):
        super().__init__(params, lr=1.0)
        self.rates: list[float] = []

    def step(self):
        self.rates.append(self.param_groups[0]["lr"])
        super().step()


def run_loop(answer) -> tuple[list[float], Recorder, Watched]:
    model = Recorder()
    optimizer = Watched(model.parameters())
    images = np.stack([np.arange(10) / 10, np.sin(np.arange(10))], axis=1).astype("float32")
    losses = answer(model, optimizer, images, np.arange(10) % 3, **OPTIONS, rng=np.random.default_rng(2))
    assert isinstance(losses, list), f"it returned {type(losses).__name__}, not the list of losses"
    return losses, model, optimizer


def reference_loop(model, optimizer, images, labels, *, epochs, batch_size, warmup, peak, rng):
    losses: list[float] = []
    steps = epochs * math.ceil(len(images) / batch_size)
    for _ in range(epochs):
        for rows in np.split(rng.permutation(len(images)), range(batch_size, len(images), batch_size)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.param_groups[0]["lr"] = warmup_cosine(len(losses), steps, warmup, peak)
            optimizer.step()
            losses.append(loss.item())
    return losses


@loop.check("a loss for every step", "batches start at 0, batch_size, 2 batch_size ...; the last one may be smaller")
def loop_steps(answer):
    losses, _, optimizer = run_loop(answer)
    same(len(optimizer.rates), 6, BATCHES, " as the number of steps")
    same(len(losses), 6, BATCHES, " as the number of losses")


@loop.check(
    "every image once in each epoch", "rng.permutation(len(images)) at the start of an epoch; take slices of it"
)
def loop_images(answer):
    seen = run_loop(answer)[1].seen
    for epoch, part in enumerate((seen[:3], seen[3:6])):
        same(np.sort(np.concatenate(part)), np.arange(10), BATCHES, f" as the images of epoch {epoch}, sorted,")


@loop.check("the learning rate of each step", "set group['lr'] before optimizer.step(); count steps through all epochs")
def loop_rates(answer):
    expected = [warmup_cosine(step, 6, 2, 0.5) for step in range(6)]
    same(np.array(run_loop(answer)[2].rates), np.array(expected), BATCHES, " as the rates")


@loop.check("the same losses as a correct loop", "forget the gradients of the last step: optimizer.zero_grad()")
def loop_losses(answer):
    expected = np.array(run_loop(reference_loop)[0])
    same(np.array(run_loop(answer)[0], dtype=float), expected, BATCHES, " as the losses")


look = Task("ps5.5", "rollout")


def maps(layers: int, n: int, heads: int, tokens: int) -> list[np.ndarray]:
    raw = np.random.default_rng(layers).random((layers, n, heads, tokens, tokens))
    return list(raw / raw.sum(axis=-1, keepdims=True))


@look.check("the worked example", "0.5 * A + 0.5 * np.eye(T)")
def look_example(answer):
    a = np.array([[[[0.0, 1.0], [0.0, 1.0]]]])
    expect(lambda a: answer([a]), {"A": a}, np.array([[[0.5, 0.5], [0, 1]]]))


@look.check("several heads", "average over axis 1 first")
def look_heads(answer):
    expect(lambda a: answer([a]), {"A": maps(1, 1, 2, 2)[0]}, measures.rollout([maps(1, 1, 2, 2)[0].mean(axis=1)])[-1])


@look.check("several layers, in order", "later layers stand on the left: result = A_l @ result")
def look_layers(answer):
    for sizes in ((2, 1, 1, 2), (3, 2, 2, 4)):
        layers = maps(*sizes)
        inputs = {f"A{i}": layer for i, layer in enumerate(layers, 1)}
        expect(lambda *a: answer(list(a)), inputs, measures.rollout([a.mean(axis=1) for a in layers])[-1])


lie = Task("ps5.6", "misleading")
CLASSES = (2, 3, 10)


def counts(answer, classes: int) -> np.ndarray:
    matrix = np.asarray(answer(classes))
    assert matrix.shape == (classes, classes), f"it gave a matrix of shape {matrix.shape} for {classes} classes"
    assert np.array_equal(matrix, np.rint(matrix)) and (matrix >= 0).all(), "counts are whole numbers from 0 up"
    missing = np.flatnonzero(matrix.sum(axis=1) == 0)
    assert not len(missing), f"class {missing[0]} does not occur, for {classes} classes"
    return matrix


@lie.check("every class occurs", "each row needs at least one picture")
def lie_occurs(answer):
    for classes in CLASSES:
        counts(answer, classes)


@lie.check("an accuracy of 90 % or more", "accuracy counts pictures, and a class may have very many of them")
def lie_accuracy(answer):
    for classes in CLASSES:
        found = macro(counts(answer, classes))[0]
        assert found >= 0.9, f"the accuracy is {found:.1%}, for {classes} classes"


@lie.check("the mean recall of guessing", "recall counts classes: what if all but one are never called?")
def lie_recall(answer):
    for classes in CLASSES:
        found = macro(counts(answer, classes))[2]
        assert found <= 1 / classes + 1e-9, f"the mean recall is {found:.1%}, above 1/{classes}"


luck = Task("ps5.7", "chance")


def outcomes(both: int, first: int, second: int, none: int) -> dict[str, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, first, second, none])
    b = np.repeat([True, False, True, False], [both, first, second, none])
    order = np.random.default_rng(both).permutation(len(a))
    return {"a": a[order], "b": b[order]}


def sign_test(first: int, second: int) -> float:
    n, fewer = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def try_chance(answer, both: int, first: int, second: int, none: int) -> None:
    found, right = float(answer(**outcomes(both, first, second, none))), sign_test(first, second)
    assert abs(found - right) <= 0.05, (
        f"it gave {found:.3f}, expected {right:.3f}, where {both} images are right for both, {first} for the first,"
        f" {second} for the second alone and {none} for none"
    )


@luck.check("no difference", "as many for one as for the other: any difference is at least that large")
def luck_none(answer):
    try_chance(answer, 40, 5, 5, 3)
    try_chance(answer, 10, 0, 0, 3)


@luck.check("a clear difference", "with 30 coins, all heads is no luck")
def luck_clear(answer):
    try_chance(answer, 40, 0, 30, 3)
    try_chance(answer, 40, 25, 2, 3)


@luck.check("images that say nothing", "an image that both get right does not say which is better")
def luck_pairs(answer):
    for both in (0, 50, 1000):
        try_chance(answer, both, 4, 10, 5)


@luck.check("between luck and better", "both directions count; of n images that only one gets right, each is a coin")
def luck_between(answer):
    for first, second in ((1, 2), (2, 7), (9, 3), (30, 18)):
        try_chance(answer, 100, first, second, 10)


def confusion_matrix(truth: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(truth * classes + answers, minlength=classes**2).reshape(classes, classes)


def rollout(layers: list[np.ndarray]) -> np.ndarray:
    return measures.rollout([a.mean(axis=1) for a in layers])[-1]


RIGHT = {
    "ps5.1": confusion_matrix,
    "ps5.2": macro,
    "ps5.3": warmup_cosine,
    "ps5.4": reference_loop,
    "ps5.5": rollout,
}
