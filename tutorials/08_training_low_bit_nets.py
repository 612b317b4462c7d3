# %% [markdown]
# # 08 Training low-bit networks: flips, latent weights, schedules, distillation
#
# A ternary weight cannot move a little. It stays, or it *flips*. So what does an optimiser do that takes small steps?
# You watch it here: one weight on the whiteboard, then all 16,384 of a small Vision Transformer, one step at a time,
# moved by an optimiser that you wrote. After that you know why a low-bit network needs a rate that goes down, and what
# it gains from a teacher.
#
# You need lessons 05 and 06.

# %%
import inspect
import math

import numpy as np

import tinybitvit as tb
from tinybitvit.course import answer, check, keep, parts, predict, solution, use, yours
from tinybitvit.ops.norm import log_softmax_array, softmax_array
from tinybitvit.quant import BitLinear
from tinybitvit.train import Trainer
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. One weight on the whiteboard
#
# A weight $q = \mathrm{sign}(w)$, and a loss that would like it to be 0.3:
#
# $$L = \tfrac12 (q - 0.3)^2, \qquad \frac{\partial L}{\partial q} = q - 0.3 .$$
#
# The straight-through estimator of lesson 05 hands this to the *latent* weight $w$ unchanged. With a rate of 0.1, from
# $w = 0.2$:
#
# | step | $w$ | $q$ | gradient | next $w$ |
# |---|---|---|---|---|
# | 1 | 0.20 | +1 | 0.7 | 0.13 |
# | 2 | 0.13 | +1 | 0.7 | 0.06 |
# | 3 | 0.06 | +1 | 0.7 | -0.01 |
# | 4 | -0.01 | -1 | -1.3 | 0.12 |
#
# Where does $w$ come to rest? And in what share of 2,000 steps is $q = +1$?

# %% kind="predict"
guess = predict("where w comes to rest", choices=["at 0", "at 0.3", "never"])
guess = predict("steps with q = +1", "%")


# %% kind="naive"
def one_weight(w, lr, target=0.3, steps=2000):
    """SGD through a sign: the latent weights and codes of every step."""
    latent, codes = [], []
    for _ in range(steps):
        q = 1.0 if w >= 0 else -1.0
        latent.append(w)
        codes.append(q)
        w -= lr * (q - target)
    return np.array([*latent, w]), np.array(codes)


latent, codes = one_weight(w=0.2, lr=0.1)

# %% kind="answer"
answer("where w comes to rest", "never")
answer("steps with q = +1", 65, measured=100 * (codes > 0).mean(), tolerance=0.5, unit="%")
print("so the average of q is", codes.mean())
assert np.allclose(latent[:5], [0.2, 0.13, 0.06, -0.01, 0.12])
assert abs(codes.mean() - 0.3) < 0.01
assert np.ptp(latent[-100:]) > 0.1  # it does not come to rest ...
assert np.abs(latent[-100:]).max() < 0.14  # ... and does not run away

# %% kind="see"
figure = new_figure(6.4, 2.6)
ax = figure.subplots()
ax.plot(latent[:60], color=PALETTE[0], label="latent weight w")
ax.plot(codes[:60] / 10, ".", color=PALETTE[1], label="q / 10")
ax.axhline(0, color="black", linewidth=0.6)
ax.set(xlabel="step", ylabel="w")
ax.legend(fontsize=8, loc="upper right")
figure

# %% [markdown]
# It saws up and down around 0. But the *average* is right, and one line proves it. Sum up all updates:
#
# $$w_T = w_0 - \eta \sum_t (q_t - 0.3) \quad\Longrightarrow\quad \frac1T \sum_t q_t = 0.3 + \frac{w_0 - w_T}{\eta T}.$$
#
# Since $w$ stays bounded, the last term dies out. So a **latent weight** is no weight at all: it is an *accumulator of
# gradients*, and the code shows its sign ("latent weights do not exist", Helwegen et al. 2019, arXiv 1906.02107).
#
# At the end you deploy *one* sign, not the average: whoever stops while weights still saw takes a random tooth.
#
# Now double both, the first weight (0.4) and the rate (0.2). How many of the 2,000 codes change?

# %% kind="predict"
guess = predict("codes that change", choices=["none", "half of them", "all"])

# %% kind="answer"
doubled, other_codes = one_weight(w=0.4, lr=0.2)
answer("codes that change", "none", measured="none" if (codes == other_codes).all() else "some")
assert np.isclose(codes.mean(), 0.3 + (latent[0] - latent[-1]) / (0.1 * len(codes)))
assert (doubled == 2 * latent).all()

# %% [markdown]
# Only the *ratio* of rate to weight counts: a rate of 0.01 is large for small weights and small for large ones. Keep
# that in mind whenever somebody reports a learning rate for a low-bit network.
#
# ## 2. Your optimiser
#
# Two weights of a network with 32 bits. The gradient of one is about 0.001, that of the other about 1000, and both
# ought to move by about 0.1 a step. Plain gradient descent, $w \leftarrow w - \eta\, g$, has one rate for both.

# %% kind="naive"
gradients = np.array([0.001, 1000.0])
for lr in (100.0, 0.0001):
    print(f"rate {lr:g}: the two weights move by {lr * gradients}")

# %% [markdown]
# Adam (Kingma & Ba 2015, arXiv 1412.6980) divides each gradient by its own typical size. It keeps two running averages
# for each weight, of the gradient and of its square, and in the $t$-th update
#
# $$m \leftarrow m + (1 - b_1)(g - m), \quad v \leftarrow v + (1 - b_2)(g^2 - v), \quad
# w \leftarrow w - \eta \, \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon} .$$
#
# $m$ and $v$ start at 0. Why is $1 - b_1^t$ there? After one update $m = (1 - b_1)\, g$: too small by just that factor,
# because the average remembers a gradient of 0 that never was. After $t$ updates the zeros still weigh $b_1^t$.
#
# How far does the weight with $g = 1000$ move in its *first* update, compared with the rate $\eta$?

# %% kind="predict"
guess = predict("its first step and the rate", choices=["equal", "a step 1000 times as long", "a thousandth"])

# %% [markdown]
# **Decoupled weight decay** (AdamW; Loshchilov & Hutter 2019, arXiv 1711.05101) shrinks each weight besides, by the
# factor $1 - \eta\, \lambda$, and keeps that out of $m$ and $v$.


# %% kind="your-turn"
@yours("8.1")
def adamw(p, g, m, v, t, lr, b1, b2, eps, weight_decay):
    """The t-th update (from 1) of the weights p with gradients g: changes the arrays p, m and v in place."""
    # of p = 2, g = 0, m = v = 0, lr = 0.1 and weight_decay = 0.5 comes p = 1.9
    ...  # in place: m += ..., v += ..., p *= ..., p -= ...


check(adamw)


# %% kind="solution"
@solution("8.1")
def adamw(p, g, m, v, t, lr, b1, b2, eps, weight_decay):
    """The t-th update (from 1) of the weights p with gradients g: changes the arrays p, m and v in place."""
    m += (1 - b1) * (g - m)
    v += (1 - b2) * (g * g - v)
    p *= 1 - lr * weight_decay
    p -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


# %% kind="answer"
p, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
adamw(p, gradients, m, v, 1, 0.1, 0.9, 0.98, 1e-8, 0.0)
answer("its first step and the rate", "equal", measured="equal" if abs(p[1] + 0.1) < 1e-6 else "apart")
assert np.allclose(p, -0.1, atol=1e-5)

# %% [markdown]
# Both move by 0.1: with a constant gradient a step of Adam is the rate itself, whatever the gradient's size. For latent
# weights that is just right, because of a gradient only its sign tells where the code should go.
#
# The rate should not stay what it is. A **schedule** gives a factor for each step: it rises in a short warm-up, while
# $m$ and $v$ are still averages of a few numbers, and then falls along half a cosine:
#
# $$f(s) = \tfrac12 \left( 1 + \cos \pi \, \frac{s - \text{warmup}}{\text{total} - \text{warmup}} \right).$$


# %% kind="your-turn"
@yours("8.2")
def rate_factor(step, total, warmup):
    """The factor of the rate in a step, counted from 0: (step + 1) / warmup in the warm-up, then half a cosine."""
    # rate_factor(1, 12, 4) = 0.5, rate_factor(4, 12, 4) = 1, rate_factor(8, 12, 4) = 0.5, rate_factor(12, 12, 4) = 0
    ...  # math.cos, math.pi


check(rate_factor)


# %% kind="solution"
@solution("8.2")
def rate_factor(step, total, warmup):
    """The factor of the rate in a step, counted from 0: (step + 1) / warmup in the warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


# %% [markdown]
# From here on the library updates its weights with your AdamW, and the loop below follows your schedule.

# %%
use(adamw=adamw)

# %% [markdown]
# ## 3. Flips in a real network
#
# A ViT with 1.58 bits for the digits. The loop is `tb.ViT.fit` in small, and looks at all codes after each step.

# %%
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
X_test, y_test = normalize(digits.X_test), digits.y_test


def low_bit_layers(model):
    return [m for m in model.modules() if isinstance(m, BitLinear)]


def all_codes(model):
    return np.concatenate([layer.codes()[0].ravel() for layer in low_bit_layers(model)])


def all_latent(model):
    """Latent weights in units of their row's scale: the code changes where they cross +-1/2."""
    return np.concatenate([(layer.weight.data / layer.codes()[1]).ravel() for layer in low_bit_layers(model)])


# %%
def train(bits=1.58, epochs=12, lr=1e-2, falling=True, source=None, targets=None, watch=None, seed=0):
    """A small ViT after some epochs, and the loss of every step. watch(model) is called after every step."""
    rng = np.random.default_rng(seed)
    model = tb.models.VisionTransformer(8, 2, 1, 10, dim=32, depth=2, heads=4, mlp_ratio=2, bits=bits, rng=rng)
    if source is not None:
        tb.models.start_from(model, source)
    optimizer = tb.optim.AdamW(tb.optim.decay_groups(model, 0.05), lr=lr, betas=(0.9, 0.98))
    loader = tb.data.Loader(digits.X_train, digits.y_train, 64, rng=rng, transform=normalize, prefetch=0)
    total, losses = epochs * len(loader), []
    trainer = Trainer(model, optimizer, workers=1, rng=rng)
    for _ in range(epochs):
        for x, y in loader:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate_factor(len(losses), total, total // 10) if falling else lr
            losses.append(trainer.step(x, y if targets is None else targets(x, y)))
            if watch is not None:
                watch(model)
    return model, np.array(losses)


def test_accuracy(model):
    return float((Trainer(model, workers=1).predict(X_test).argmax(axis=1) == y_test).mean())


# %% [markdown]
# Twice the same network, once with your schedule and once with a constant rate. In the middle of the training, what
# share of the weights flips in a single step? And why do the flips become fewer towards the end?

# %% kind="predict"
guess = predict("weights that flip in a step", choices=["0.4 %", "4 %", "40 %"])
guess = predict("what makes the flips fewer", choices=["the loss is small by then", "the schedule"])

# %%
runs, codes_of, latent_of = {}, {}, {}
for name, falling in {"cosine": True, "constant": False}.items():
    codes_of[name], latent_of[name] = [], []

    def watch(model, name=name):
        codes_of[name].append(all_codes(model).astype("int8"))
        latent_of[name].append(all_latent(model))

    runs[name] = train(falling=falling, watch=watch)

# %% kind="answer"
flips = {name: (np.diff(codes, axis=0) != 0).mean(axis=1) for name, codes in codes_of.items()}
for name, (model, losses) in runs.items():
    ever = (np.array(codes_of[name]) != codes_of[name][0]).any(axis=0).mean()
    middle, end = flips[name][100:180].mean(), flips[name][-20:].mean()
    print(f"{name:8} flips a step: middle {middle:.2%}, end {end:.3%}; weights that ever flipped: {ever:.0%}")
    print(f"{'':8} last losses {losses[-20:].mean():.3f}, test accuracy {test_accuracy(model):.3f}")
answer("weights that flip in a step", "0.4 %")
answer("what makes the flips fewer", "the schedule")
assert 0.002 < flips["cosine"][100:180].mean() < 0.006
assert flips["cosine"][-20:].mean() < flips["constant"][-20:].mean() / 10
assert flips["constant"][-20:].mean() > 0.8 * flips["constant"][100:180].mean()
assert runs["cosine"][1][-20:].mean() < runs["constant"][1][-20:].mean()

# %% kind="see"
smooth = np.ones(8) / 8
figure = new_figure(5, 5)
left, right = figure.subplots(2, 1)
for i, name in enumerate(("cosine", "constant")):
    left.plot(100 * np.convolve(flips[name], smooth, "valid"), color=PALETTE[i], label=name)
    right.plot(np.convolve(runs[name][1], smooth, "valid"), color=PALETTE[i], label=name)
left.set(xlabel="step", ylabel="weights that flip (%)")
right.set(xlabel="step", ylabel="training loss", yscale="log")
left.legend(fontsize=8, title="learning rate", title_fontsize=8)
figure

# %% [markdown]
# The flips do not stop because the network has finished. They stop because the rate goes to 0. With a constant rate the
# network goes on sawing like our one weight, and its loss stays higher: in each step some hundred weights change, each
# by a whole scale. In a full-precision network too high a rate at the end costs a little; here it is the difference
# between the average tooth and a random one. (BitNet's authors see the same as an S-shaped loss curve, with a large
# drop when the rate falls: "Training Tips, Code and FAQ" of The Era of 1-bit LLMs, 2024.)
#
# ## 4. Where the latent weights are
#
# In units of the scale, $v = w / \beta$, the code is $-1$ below $-\frac12$, $+1$ above $+\frac12$, and 0 between. A
# weight far from both thresholds needs many gradients in one direction before its code changes. So is the distance
# something like confidence?


# %% kind="your-turn"
@yours("8.3")
def distance_to_flip(v):
    """How far latent weights v, in units of their scale, are from the nearer of the thresholds -1/2 and 1/2."""
    # of [0, 0.5, -2] it is [0.5, 0, 1.5]
    ...


check(distance_to_flip)


# %% kind="solution"
@solution("8.3")
def distance_to_flip(v):
    """How far latent weights v, in units of their scale, are from the nearer of the thresholds -1/2 and 1/2."""
    return np.abs(np.abs(v) - 0.5)


# %% [markdown]
# Sort the weights by it half-way through the run with the constant rate, and count who flips in the second half. By
# which factor do more of the nearest fifth flip than of the farthest fifth? And where will the weights be at the end:
# evenly spread, near the thresholds, or far from them?

# %% kind="predict"
guess = predict("nearest fifth over farthest fifth", choices=["about 1", "about 2", "over 5"])
guess = predict("where latent weights gather", choices=["nowhere", "at the thresholds", "half-way between them"])

# %% kind="answer"
paths = np.array(latent_of["constant"])
half = len(paths) // 2
flips_later = (np.diff(codes_of["constant"][half:], axis=0) != 0).any(axis=0)
fifths = np.array_split(np.argsort(distance_to_flip(paths[half])), 5)
share = [float(flips_later[fifth].mean()) for fifth in fifths]
print("flip in the second half, nearest fifth first:", " ".join(f"{s:.0%}" for s in share))
answer("nearest fifth over farthest fifth", "over 5")
assert share[0] > 5 * share[-1]

near = [float((distance_to_flip(latent) < 0.1).mean()) for latent in (paths[0], paths[-1])]
print(f"within 0.1 of a threshold: {near[0]:.1%} of the weights at the start, {near[1]:.1%} at the end")
answer("where latent weights gather", "at the thresholds")
assert near[1] > 1.1 * near[0]

# %% kind="see"
number_of_flips = (np.diff(codes_of["constant"], axis=0) != 0).sum(axis=0)
busy = np.argsort(number_of_flips)[-200::50]  # four of the busiest
calm = np.flatnonzero(number_of_flips == 0)[:4]
figure = new_figure(5, 5.4)
left, right = figure.subplots(2, 1)
for chosen, color, label in ((calm, PALETTE[0], "never flips"), (busy, PALETTE[1], "flips often")):
    for i, path in enumerate(paths[:, chosen].T):
        left.plot(path, color=color, linewidth=0.8, label=label if i == 0 else None)
for name, latent, color in (("start", paths[0], "0.6"), ("end", paths[-1], PALETTE[2])):
    right.hist(latent, np.linspace(-4, 4, 81), histtype="step", color=color, label=name)
for ax, line in ((left, left.axhline), (right, right.axvline)):
    for threshold in (-0.5, 0.5):
        line(threshold, color="black", linestyle="--", linewidth=0.8)
    ax.legend(fontsize=8)
left.set(xlabel="step", ylabel="w / scale")
right.set(xlabel="w / scale", ylabel="weights")
figure

# %% [markdown]
# Two peaks, exactly at the thresholds. We met them on the whiteboard: a weight that would like to be something between
# two codes saws at the border between them.
#
# This is also why **weight decay** is a delicate thing here. It pulls $w$ towards 0, but the scale $\beta$ shrinks with
# it, and the codes stay as they are: what shrinks is the *distance* in units of the rate, so it makes flips easier.
# BitNet's training tips switch it off for the second half of the training.
#
# ## 5. A good start
#
# So far we began with random weights. Now begin with a trained network of 32 bits. The code is short, because the
# latent weights of a low-bit layer *are* floats: copy every weight whose name and shape fit.
#
# The teacher below has about 97 % on the test images. Chance is 10 %. What has its ternary copy *right after* the
# conversion? And after three epochs: is the copy ahead of a network that began with random weights?

# %% kind="predict"
guess = predict("converted to 1.58 bits, untrained", "%")
guess = predict("three epochs later it leads by", choices=["nothing", "5 points", "20 points"])

# %%
teacher, _ = train(bits=32)
rows = {"32 bits, 12 epochs": test_accuracy(teacher)}
for name, bits in {"1.58 bits": 1.58, "1 bit": 1}.items():
    converted, _ = train(bits=bits, epochs=0, source=teacher)
    rows[f"{name}, converted, untrained"] = test_accuracy(converted)
    rows[f"{name}, converted, 3 epochs"] = test_accuracy(train(bits=bits, epochs=3, source=teacher)[0])
    rows[f"{name}, random start, 3 epochs"] = test_accuracy(train(bits=bits, epochs=3)[0])

# %% kind="answer"
for name, accuracy in rows.items():
    print(f"{name:32} {accuracy:6.1%}")
untrained = 100 * rows["1.58 bits, converted, untrained"]
answer("converted to 1.58 bits, untrained", 70, measured=untrained, tolerance=6, unit="%")
answer("three epochs later it leads by", "20 points")
assert rows["32 bits, 12 epochs"] > 0.93
for name in ("1.58 bits", "1 bit"):
    repaired = rows[f"{name}, converted, 3 epochs"]
    assert repaired > rows[f"{name}, converted, untrained"] + 0.1
    assert repaired > rows[f"{name}, random start, 3 epochs"] + 0.12

# %% [markdown]
# Rounding a trained network (*post-training quantisation*) breaks it. And what is broken still is an excellent *start*:
# three epochs repair it, where a random network is far away. (Larger networks break more thoroughly: there the
# converted one begins at chance. Lesson 10 deals with that, and with rounding that breaks less.)
#
# ## 6. A teacher
#
# **Distillation** (Hinton et al. 2015, arXiv 1503.02531) trains the student on the teacher's probabilities $t$ instead
# of the labels. Three classes, $t = (0.7, 0.2, 0.1)$ and the student's $p = (0.5, 0.3, 0.2)$:
#
# $$\underbrace{-\sum t_i \ln p_i}_{\text{cross-entropy } 0.887} =
# \underbrace{-\sum t_i \ln t_i}_{\text{entropy } 0.802} +
# \underbrace{\sum t_i \ln \frac{t_i}{p_i}}_{\mathrm{KL}(t \,\|\, p)\ 0.085}$$
#
# The entropy does not depend on the student. So to minimise the divergence from the teacher *is* cross-entropy with
# soft targets: no new loss, only new targets. A `share` of them may come from the teacher, the rest from the labels.


# %% kind="your-turn"
@yours("8.4")
def taught_targets(logits, y, share=1.0):
    """share x softmax of the teacher's logits (N, classes) + (1 - share) x the labels y (N,) as rows of 0 and 1."""
    # logits = ln [[0.5, 0.25, 0.25]], y = [2]: share 1 gives [[0.5, 0.25, 0.25]], share 0.5 [[0.25, 0.125, 0.625]]
    ...


check(taught_targets)


# %% kind="solution"
@solution("8.4")
def taught_targets(logits, y, share=1.0):
    """share x softmax of the teacher's logits (N, classes) + (1 - share) x the labels y (N,) as rows of 0 and 1."""
    t = np.exp(logits - logits.max(axis=1, keepdims=True))
    t /= t.sum(axis=1, keepdims=True)
    labels = y[:, None] == np.arange(t.shape[1])
    return share * t + (1 - share) * labels


# %% [markdown]
# Look at what it does with y while `share` is 1. Now replace all labels by zeros: how many of the 16,384 codes of the
# student become others?

# %% kind="predict"
guess = predict("codes that need the labels", choices=["none", "about 100", "nearly all"])

# %%
asked = Trainer(teacher, workers=1)


def taught(x, y):
    return taught_targets(asked.predict(x), y).astype("float32")


def no_labels(x, y):
    return taught(x, np.zeros_like(y))


students = {
    "random start, labels": train(epochs=3)[0],
    "random start, teacher": train(epochs=3, targets=taught)[0],
    "converted, labels": train(epochs=3, source=teacher)[0],
    "converted, teacher": train(epochs=3, source=teacher, targets=taught)[0],
    "converted, teacher, no labels": train(epochs=3, source=teacher, targets=no_labels)[0],
}


# %%
def divergence_from_teacher(model):
    """Mean KL(teacher || model) over the test images, in nats."""
    t, log_p = softmax_array(np, asked.predict(X_test)), log_softmax_array(np, Trainer(model).predict(X_test))
    return float((t * (np.log(t + 1e-12) - log_p)).sum(axis=1).mean())


# %% kind="answer"
apart = {name: divergence_from_teacher(model) for name, model in students.items()}
for name, model in students.items():
    print(f"{name:30} accuracy {test_accuracy(model):.3f}   KL from the teacher {apart[name]:.3f}")
same = (all_codes(students["converted, teacher"]) == all_codes(students["converted, teacher, no labels"])).all()
answer("codes that need the labels", "none", measured="none" if same else "some")
assert test_accuracy(students["converted, teacher, no labels"]) > 0.9
assert apart["converted, teacher"] < apart["random start, teacher"]

# %% kind="see"
t, p = np.array([[0.7, 0.2, 0.1]]), np.array([[0.5, 0.3, 0.2]])
cross_entropy, entropy, divergence = -(t * np.log(p)).sum(), -(t * np.log(t)).sum(), (t * np.log(t / p)).sum()
print(f"the worked example: {cross_entropy:.3f} = {entropy:.3f} + {divergence:.3f}")
assert np.isclose(cross_entropy, entropy + divergence)
logits = tb.Tensor(np.log(p).astype("float32"), requires_grad=True)
tb.functional.cross_entropy(logits, tb.Tensor(t.astype("float32"))).backward()
print("and the gradient at its logits:", logits.grad.round(3), "= p - t")
assert np.allclose(logits.grad, p - t, atol=1e-6)

# %% [markdown]
# The student without a single label ends with *the same codes*. Where you have a network but not its data set, any
# images of the kind will do.
#
# And did the teacher *help*, compared with labels? On the digits "converted, labels" and "converted, teacher" differ by
# less than two random seeds do (exercise 3). The teacher is almost certain of each training image, so it says little
# that the label does not say. We do not assert a gain that we cannot measure. The *start* was the gain.
#
# In `tb.ViT` these two are parameters: `tb.ViT(bits=1.58, init_from=teacher, distill_from=teacher)`. The library's
# function is yours with another line: it asks the teacher for each batch, as augmented.

# %%
print(inspect.getsource(tb.train.soft_targets))

# %% [markdown]
# ## What you take along
#
# A latent weight is an accumulator; its code shows on which side of a threshold it stands. Flips do not stop by
# themselves: the schedule stops them. Only the ratio of rate to weight counts. A trained network is the best start, and
# its outputs can stand in for labels.
#
# **You can now**: write AdamW and its schedule; look at flips and distances to see whether a low-bit training settles;
# convert a network and teach it with or without labels.

# %%
keep(adamw, rate_factor, distance_to_flip, taught_targets)
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/08](solutions/08_training_low_bit_nets.ipynb).
#
# 1. (10 min, by hand) In section 1, for which targets does the weight *not* saw? In what share of the steps is $q = +1$
#    for a target of $-0.5$? Check with `one_weight`.
# 2. (15 min, measure) `train(lr=...)` with 0.001, 0.003, 0.01 and 0.03 for 32, 1.58 and 1 bit, six epochs each. Which
#    width suffers most from a small rate? Relate it to the distance that a weight has to go before it flips.
# 3. (15 min, measure) Repeat "converted, labels" and "converted, teacher" with seeds 0 to 4. Give mean and standard
#    deviation of both, and say in one sentence what may be claimed.
# 4. (30 min, code) Freeze each weight whose code has not flipped during the last 50 steps of the run with the constant
#    rate, by putting its latent weight back after each step. Does it do what the cosine does?
# 5. (30 min, think) Moving averages of the weights help full-precision networks. Use section 1 to explain why the
#    average of an accumulator is not the average of its sign, and test whether averaging *latent* weights harms.
