# %% [markdown]
# # Problem set 5: train, measure, explain
#
# Anyone can train a network and print one number. In this set you write the parts of an honest experiment: the
# measures, the schedule, the training loop, and a look inside. Then you use them to compare 32, 1.58 and 1 bit, and
# say what your figures show and what they do not. You need tutorials 04, 08 and 09.
#
# **How it works.** Replace each `raise NotImplementedError()` by your answer. The line `tb.course.score(...)` below it
# checks it at once, shows an input for which something is wrong, and gives a point for each check that passes. Where
# another cell follows, it gives the last point, for inputs that you do not see. Leave these cells as they are. A
# mistake costs its own task and no other. Two tasks have no recipe: **find the method**. Hand in this notebook.

# %%
import math

import numpy as np

import tinybitvit as tb

# %% [markdown]
# ## Task 1: who is taken for whom (3 points)
#
# Six pictures, three classes. The truth is $(0, 0, 1, 1, 2, 2)$, the network says $(0, 1, 1, 1, 2, 0)$. The *confusion
# matrix* counts the pairs: row = truth, column = answer.
#
# $$\begin{pmatrix} 1 & 1 & 0 \\ 0 & 2 & 0 \\ 1 & 0 & 1 \end{pmatrix}$$
#
# One 0 was taken for a 1, and one 2 for a 0. Write it, for class numbers from 0 to `classes` - 1; the result is an
# array of whole numbers, (classes, classes), also where a class does not occur.


# %% nbgrader={"grade_id": "ps5-1", "solution": true}
def confusion_matrix(truth, answers, classes):
    ### BEGIN SOLUTION
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (truth, answers), 1)
    return matrix
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-1-checks", "grade": true, "points": 2}
tb.course.score("ps5.1", confusion_matrix)

# %% nbgrader={"grade_id": "ps5-1-more", "grade": true, "points": 1}
matrix = confusion_matrix(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0]), 3)
assert np.array_equal(matrix, [[1, 1, 0], [0, 2, 0], [1, 0, 1]]), f"it gives {matrix}"
matrix = confusion_matrix(np.array([3, 3, 3]), np.array([0, 0, 0]), 5)
assert matrix.shape == (5, 5), "classes that do not occur have a row and a column too"
### BEGIN HIDDEN TESTS
from sklearn.metrics import confusion_matrix as reference  # noqa: E402

assert matrix[3, 0] == 3 and matrix.sum() == 3, "the same pair three times"
truth, answers = np.random.default_rng(1).integers(0, 7, (2, 300))
assert np.array_equal(confusion_matrix(truth, answers, 7), reference(truth, answers)), "300 pictures"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: four numbers (4 points)
#
# Of the six answers above, four are right: **accuracy** 4/6. Now ask for each class:
#
# - **precision**: of the pictures that were *called* c, which share *is* c? (down the column) $1/2,\; 2/3,\; 1/1$
# - **recall**: of the pictures that *are* c, which share was *called* c? (along the row) $1/2,\; 2/2,\; 1/2$
# - **F1**: their harmonic mean, $2 P R / (P + R)$. $1/2,\; 4/5,\; 2/3$
#
# The *macro* average is the plain mean over the classes, so that rare classes count as much as common ones: precision
# 0.722, recall 0.667, F1 0.656. A class that was never called has precision 0, one that does not occur has recall 0,
# and F1 is 0 where both are: no division by 0, please. Return `accuracy, precision, recall, f1`.


# %% nbgrader={"grade_id": "ps5-2", "solution": true}
def macro_scores(matrix):
    ### BEGIN SOLUTION
    right = np.diag(matrix)
    called, there = matrix.sum(axis=0), matrix.sum(axis=1)
    precision = right / np.maximum(called, 1)
    recall = right / np.maximum(there, 1)
    f1 = 2 * right / np.maximum(called + there, 1)
    return right.sum() / matrix.sum(), precision.mean(), recall.mean(), f1.mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-2-checks", "grade": true, "points": 3}
tb.course.score("ps5.2", macro_scores)

# %% nbgrader={"grade_id": "ps5-2-more", "grade": true, "points": 1}
scores = macro_scores(np.array([[1, 1, 0], [0, 2, 0], [1, 0, 1]]))
assert np.allclose(scores, [4 / 6, 0.7222, 0.6667, 0.6556], atol=1e-4), f"it gives {scores}"
scores = macro_scores(np.array([[3, 0], [1, 0]]))
assert np.allclose(scores, [0.75, 0.375, 0.5, 0.428571]), f"class 1 is never called; it gives {scores}"
### BEGIN HIDDEN TESTS
from sklearn.metrics import accuracy_score, precision_recall_fscore_support  # noqa: E402

random = np.random.default_rng(2)
truth = random.integers(0, 5, 200)
answers = np.where(random.random(200) < 0.6, truth, random.integers(0, 5, 200))
expected = precision_recall_fscore_support(truth, answers, average="macro")[:3]
counts = np.zeros((5, 5), dtype=int)
np.add.at(counts, (truth, answers), 1)
assert np.allclose(macro_scores(counts), [accuracy_score(truth, answers), *expected]), "200 pictures"
assert np.isfinite(macro_scores(np.array([[2, 0, 0], [0, 0, 0], [0, 0, 1]]))).all(), "a class that does not occur"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: the learning rate (3 points)
#
# Adam's first steps are blind, so the learning rate starts small and *warms up*; at the end only small steps settle, so
# it *falls*, along half a cosine. Count the steps from 0. With 2 steps of warm-up, 6 in all and a peak of 0.8:
#
# | step | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | rate | 0.4 | 0.8 | 0.8 | 0.683 | 0.4 | 0.117 |
#
# $$\text{rate} = \begin{cases} \text{peak} \cdot (\text{step} + 1) / \text{warmup} & \text{step} < \text{warmup}
# \\[4pt] \text{peak} \cdot \frac12 \left(1 + \cos\left(\pi \, \frac{\text{step} - \text{warmup}}{\text{steps} -
# \text{warmup}}\right)\right) & \text{else} \end{cases}$$


# %% nbgrader={"grade_id": "ps5-3", "solution": true}
def learning_rate(step, steps, warmup, peak):
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-3-checks", "grade": true, "points": 2}
tb.course.score("ps5.3", learning_rate)

# %% nbgrader={"grade_id": "ps5-3-more", "grade": true, "points": 1}
rates = [learning_rate(step, 6, 2, 0.8) for step in range(6)]
assert np.allclose(rates, [0.4, 0.8, 0.8, 0.6828, 0.4, 0.1172], atol=1e-4), f"it gives {rates}"
assert learning_rate(0, 10, 0, 1.0) == 1, "without a warm-up it starts at the peak"
### BEGIN HIDDEN TESTS
optimizer = tb.optim.SGD([tb.Tensor(np.zeros(1), requires_grad=True)], lr=0.3)
schedule = tb.optim.WarmupCosine(optimizer, total=50, warmup=7)
for step in range(50):
    assert np.isclose(learning_rate(step, 50, 7, 0.3), 0.3 * schedule.factor(step)), f"step {step} of 50"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: the loop (5 points)
#
# Five lines that every deep-learning program has, in this order:
#
# ```
# loss = tb.functional.cross_entropy(model(images), labels)
# optimizer.zero_grad()        # gradients add up: forget those of the last step
# loss.backward()
# optimizer.step()
# ```
#
# (The fifth one sets the rate: each dictionary in the list `optimizer.param_groups` has an entry `"lr"`.)
#
# Write `train`. Each epoch starts with `rng.permutation(len(images))`, drawn once, and takes the images in this order,
# `batch_size` at a time; the last batch may be smaller. The rate is that of task 3, with the steps counted through all
# epochs: 10 images, batches of 4 and 2 epochs are 6 steps, numbered 0 to 5. Return the list of losses
# (`loss.item()`), one for each step. `rate` is your `learning_rate`, or the library's where yours does not pass its
# checks.


# %%
rate = tb.course.settled("ps5.3", globals())


# %% nbgrader={"grade_id": "ps5-4", "solution": true}
def train(model, optimizer, images, labels, *, epochs, batch_size, warmup, peak, rng):
    ### BEGIN SOLUTION
    steps = epochs * math.ceil(len(images) / batch_size)
    losses = []
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images), batch_size):
            rows = order[start : start + batch_size]
            for group in optimizer.param_groups:
                group["lr"] = rate(len(losses), steps, warmup, peak)
            loss = tb.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-4-checks", "grade": true, "points": 4}
tb.course.score("ps5.4", train)

# %% nbgrader={"grade_id": "ps5-4-more", "grade": true, "points": 1}
options = {"epochs": 2, "batch_size": 4, "warmup": 2, "peak": 0.5}
line = tb.nn.Linear(2, 3, rng=np.random.default_rng(0))
points, colours = np.random.default_rng(1).normal(0, 1, (10, 2)).astype("float32"), np.arange(10) % 3
losses = train(line, tb.optim.SGD(line.parameters(), lr=1), points, colours, **options, rng=np.random.default_rng(2))
assert len(losses) == 6, f"2 epochs of 3 batches are 6 steps, not {len(losses)}"
assert all(isinstance(loss, float) for loss in losses), "a list of Python numbers: loss.item()"
### BEGIN HIDDEN TESTS
random, start = np.random.default_rng(2), np.random.default_rng(0)
reference, expected = tb.nn.Linear(2, 3, rng=start), []
sgd = tb.optim.SGD(reference.parameters(), lr=0.5)
schedule = tb.optim.WarmupCosine(sgd, total=6, warmup=2)
for _ in range(2):
    for batch in np.split(random.permutation(10), [4, 8]):
        reference.zero_grad()
        value = tb.functional.cross_entropy(reference(points[batch]), colours[batch])
        value.backward()
        sgd.step()
        schedule.step()
        expected.append(value.item())
assert np.allclose(losses, expected, atol=1e-5), f"the losses differ: {losses} instead of {expected}"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: look inside (4 points)
#
# Layer 1 mixes the tokens with its attention map $A_1$, layer 2 mixes the mixtures with $A_2$. From which *patches*
# does a token draw in the end? If layers did nothing but average, from $A_2 A_1$. But each layer also keeps its input
# (the residual connection), half and half: $\tilde A = \frac12 A + \frac12 I$. *Attention rollout* is the product
#
# $$R = \tilde A_L \cdots \tilde A_2 \tilde A_1 .$$
#
# With one layer and $A = \begin{pmatrix} 0 & 1 \\ 0 & 1 \end{pmatrix}$ (everybody looks at token 1), it is
# $\begin{pmatrix} 0.5 & 0.5 \\ 0 & 1 \end{pmatrix}$.
#
# Write it for `maps`, a list of arrays (N, heads, T, T), first layer first. Average the heads of each layer. Return
# (N, T, T).


# %% nbgrader={"grade_id": "ps5-5", "solution": true}
def rollout(maps):
    ### BEGIN SOLUTION
    identity = np.eye(maps[0].shape[-1])
    result = identity
    for layer in maps:
        result = (0.5 * layer.mean(axis=1) + 0.5 * identity) @ result
    return result
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-5-checks", "grade": true, "points": 3}
tb.course.score("ps5.5", rollout)

# %% nbgrader={"grade_id": "ps5-5-more", "grade": true, "points": 1}
flow = rollout([np.array([[[[0.0, 1.0], [0.0, 1.0]]]])])
assert np.allclose(flow, [[[0.5, 0.5], [0, 1]]]), f"it gives {flow}"
assert rollout([np.full((2, 3, 4, 4), 0.25)] * 2).shape == (2, 4, 4), "the shape"
### BEGIN HIDDEN TESTS
raw = np.random.default_rng(5).random((3, 2, 4, 5, 5))
shares = raw / raw.sum(axis=-1, keepdims=True)
expected = tb.viz.measures.rollout([a.mean(axis=1) for a in shares])[-1]
assert np.allclose(rollout(list(shares)), expected), "three layers, in the right order"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6: when accuracy lies (3 points)
#
# "Our network is right in more than 90 % of all cases." It may have learnt nothing at all.
#
# **Find the method.** Write `misleading`: a confusion matrix (classes, classes) of whole numbers in which every class
# occurs, the accuracy is at least 90 %, and the mean recall is no better than guessing's, 1 / classes.


# %% nbgrader={"grade_id": "ps5-6", "solution": true}
def misleading(classes):
    ### BEGIN SOLUTION
    # All is called class 0, and nearly all is.
    matrix = np.zeros((classes, classes), dtype=int)
    matrix[:, 0] = 1
    matrix[0, 0] = 10 * classes
    return matrix
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-6-checks", "grade": true, "points": 3}
tb.course.score("ps5.6", misleading)

# %% [markdown]
# ## Task 7: luck or better? (4 points)
#
# Two networks answer the same test images. `a` and `b` say for each image whether the first and the second was right.
# Of 450 images one has 430, the other 436. Is it better, or was it lucky? Suppose that both are equally good: then it
# is a matter of chance which of the two is right where only one is. How likely is a difference of 6 or more, in either
# direction?
#
# **Find the method.** Write `chance`, which returns this probability, to within 0.05. You may compute it, or try it out
# thousands of times with random numbers. Think first about which images say anything.


# %% nbgrader={"grade_id": "ps5-7", "solution": true}
def chance(a, b):
    ### BEGIN SOLUTION
    # Only images on which they differ tell anything, and there each is a coin: an exact sign test.
    first, second = int((a & ~b).sum()), int((b & ~a).sum())
    n, fewer = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps5-7-checks", "grade": true, "points": 4}
tb.course.score("ps5.7", chance)

# %% [markdown]
# ## Task 8: the experiment (2 points)
#
# Nothing to write: this is what the work was for. Your loop trains three Vision Transformers that differ in their bits
# alone, your measures judge them, and your rollout looks inside. (The matrices are small, and one thread is quickest.
# Where a part of yours does not pass its checks, the library's is taken.)

# %%
digits = tb.data.load_digits()
as_floats = {"train": digits.X_train[:900].astype("float32") / 255, "test": digits.X_test.astype("float32") / 255}
answers, flows = {}, {}


def experiment(bits, train, rollout):
    network = tb.models.VisionTransformer(8, 2, 1, 10, 32, 1, 4, bits=bits, rng=np.random.default_rng(0))
    optimizer = tb.optim.AdamW(network.parameters())
    schedule = {"epochs": 6, "batch_size": 64, "warmup": 9, "peak": 4e-3}
    train(network, optimizer, as_floats["train"], digits.y_train[:900], **schedule, rng=np.random.default_rng(1))
    with tb.no_grad():
        answers[bits] = network(as_floats["test"]).data.argmax(axis=1)
    flows[bits] = rollout(tb.viz.attention(network, as_floats["test"][:8]).maps)


# %% nbgrader={"grade_id": "ps5-8-experiment", "grade": true, "points": 2}
parts = "ps5.1", "ps5.2", "ps5.4", "ps5.5"
assert tb.course.own(globals(), *parts), "no part of it passes its checks yet"
count, judge, fit, look = (tb.course.settled(part, globals()) for part in parts)
print("bits  accuracy  precision  recall     F1")
for bits in (32, 1.58, 1):
    with tb.train.single_threaded_blas():
        experiment(bits, fit, look)
    found = judge(count(digits.y_test, answers[bits], 10))
    print(f"{bits:4}  {found[0]:8.1%}  {found[1]:9.1%}  {found[2]:6.1%}  {found[3]:5.1%}")
    assert (answers[bits] == digits.y_test).mean() > 0.3, f"the network of {bits} bits did not learn"
    assert np.allclose(flows[bits].sum(axis=-1), 1), "the shares of each token add up to 1"

# %% [markdown]
# ## In your own words (6 points)
#
# Write up your experiment, in about ten sentences. What do your figures show about 32, 1.58 and 1 bit? Give numbers.
# For one of the networks, which two digits are confused most often (your confusion matrix knows), and why might that
# be? And what may a reader *not* conclude from one run, on one small data set, with one seed and the same learning
# rate for all?

# %% [markdown] nbgrader={"grade_id": "ps5-why", "grade": true, "solution": true, "points": 6}
# ### BEGIN SOLUTION
# Two points for figures that are read correctly: the differences in accuracy between the three, in percentage points,
# and that recall equals accuracy nearly, because the classes are about equally frequent. Two points for a look at the
# matrix: a pair of classes, the count, and a reason that can be seen in the pictures (for 8 x 8 pixels typically 8
# and 1, or 9 and 3). Two points for limits: another seed may change the order of 1.58 and 1 bit, 450 test images give
# an uncertainty of about two points, the learning rate was tuned for none (low bits like a higher one), six epochs
# are short, and digits say little about photographs.
# ### END SOLUTION
