# %% [markdown]
# # 08 Training low-bit networks: flips, latent weights, schedules, distillation
#
# A ternary weight cannot move a little. It stays, or it *flips*. So what does an optimiser do that takes small steps?
# This tutorial watches it: one weight on the whiteboard, then all 16,384 of a small Vision Transformer, one step at a
# time. After that you know why a low-bit network needs its learning rate to *fall*, and what it gains from a teacher.
#
# You need tutorials 05 and 06.

# %%
import inspect

import numpy as np

import tinybitvit as tb
from tinybitvit.ops.norm import log_softmax_array, softmax_array
from tinybitvit.quant import BitLinear
from tinybitvit.train import Trainer, soft_targets
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. One weight on the whiteboard
#
# A weight $q = \mathrm{sign}(w)$, and a loss that would like it to be 0.3:
#
# $$L = \tfrac12 (q - 0.3)^2, \qquad \frac{\partial L}{\partial q} = q - 0.3 .$$
#
# The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) hands this to the *latent* weight $w$ unchanged.
# With learning rate 0.1, from $w = 0.2$:
#
# | step | $w$ | $q$ | gradient | next $w$ |
# |---|---|---|---|---|
# | 0 | 0.20 | +1 | 0.7 | 0.13 |
# | 1 | 0.13 | +1 | 0.7 | 0.06 |
# | 2 | 0.06 | +1 | 0.7 | -0.01 |
# | 3 | -0.01 | -1 | -1.3 | 0.12 |
#
# **Predict**: where does $w$ converge to? And what is the *average* of $q$ over many steps?


# %%
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
print("w:", latent[:5].round(2), "  q:", codes[:5])
print("average of q:", codes.mean())
assert np.allclose(latent[:5], [0.2, 0.13, 0.06, -0.01, 0.12])
assert abs(codes.mean() - 0.3) < 0.01
assert np.abs(latent[-100:]).max() < 0.14  # it never comes to rest, and never runs away

figure = new_figure(8, 2.6)
ax = figure.subplots()
ax.plot(latent[:60], color=PALETTE[0], label="latent weight w")
ax.plot(codes[:60] / 10, ".", color=PALETTE[1], label="q / 10")
ax.axhline(0, color="black", linewidth=0.6)
ax.set(xlabel="step", ylabel="w")
ax.legend(fontsize=8, loc="upper right")
figure

# %% [markdown]
# It does not converge: it saws up and down around 0. But the *average* is right, and one line proves it. Sum up all
# updates:
#
# $$w_T = w_0 - \eta \sum_t (q_t - 0.3) \quad\Longrightarrow\quad \frac1T \sum_t q_t = 0.3 + \frac{w_0 - w_T}{\eta T}.$$
#
# Since $w$ stays bounded, the last term dies out. So a latent weight is no weight at all: it is an *accumulator of
# gradients*, and the code shows its sign ("latent weights do not exist", Helwegen et al. 2019, arXiv 1906.02107).
#
# Two consequences. First, at the end you deploy *one* sign, not the average: whoever stops while weights still saw
# takes a random tooth. Second, only the ratio of learning rate to weight counts. **Predict** what changes if both are
# doubled.

# %%
T = len(codes)
assert np.isclose(codes.mean(), 0.3 + (latent[0] - latent[-1]) / (0.1 * T))
doubled, same_codes = one_weight(w=0.4, lr=0.2)
assert (codes == same_codes).all() and (doubled == 2 * latent).all()
print("twice the weight, twice the rate: the same", T, "codes")

# %% [markdown]
# ## 2. Flips in a real network
#
# A ViT with 1.58 bits for the digits. The loop below is `tb.ViT.fit` in small, and looks at all codes after every step.

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


def train(bits=1.58, epochs=12, lr=1e-2, falling=True, source=None, targets=None, watch=None, seed=0):
    """A small ViT after some epochs, and the loss of every step. watch(model) is called after every step."""
    rng = np.random.default_rng(seed)
    model = tb.models.VisionTransformer(8, 2, 1, 10, dim=32, depth=2, heads=4, mlp_ratio=2, bits=bits, rng=rng)
    if source is not None:
        tb.models.start_from(model, source)
    optimizer = tb.optim.AdamW(tb.optim.decay_groups(model, 0.05), lr=lr, betas=(0.9, 0.98))
    loader = tb.data.Loader(digits.X_train, digits.y_train, 64, rng=rng, transform=normalize, prefetch=0)
    total = epochs * len(loader)
    schedule = tb.optim.WarmupCosine(optimizer, total, warmup=total // 10) if falling else None
    trainer, losses = Trainer(model, optimizer, workers=1, rng=rng), []
    for _ in range(epochs):
        for x, y in loader:
            losses.append(trainer.step(x, y if targets is None else targets(x, y)))
            if schedule is not None:
                schedule.step()
            if watch is not None:
                watch(model)
    return model, np.array(losses)


def test_accuracy(model):
    return float((Trainer(model, workers=1).predict(X_test).argmax(axis=1) == y_test).mean())


# %% [markdown]
# Twice the same network, once with the library's schedule and once with a constant learning rate:

# %%
print(inspect.getsource(tb.optim.warmup_cosine))

# %% [markdown]
# **Predict**: what share of the weights flips in a step, in the middle of training? Does it fall to zero by itself,
# because the loss becomes small?

# %%
runs, codes_of, latent_of = {}, {}, {}
for name, falling in {"cosine": True, "constant": False}.items():
    codes_of[name], latent_of[name] = [], []

    def watch(model, name=name):
        codes_of[name].append(all_codes(model).astype("int8"))
        latent_of[name].append(all_latent(model))

    runs[name] = train(falling=falling, watch=watch)

flips = {name: (np.diff(codes, axis=0) != 0).mean(axis=1) for name, codes in codes_of.items()}
for name, (model, losses) in runs.items():
    ever = (np.array(codes_of[name]) != codes_of[name][0]).any(axis=0).mean()
    middle, end = flips[name][100:180].mean(), flips[name][-20:].mean()
    print(f"{name:8} flips a step: middle {middle:.2%}, end {end:.3%}; weights that ever flipped: {ever:.0%}")
    print(f"{'':8} last losses {losses[-20:].mean():.3f}, test accuracy {test_accuracy(model):.3f}")

smooth = np.ones(8) / 8
figure = new_figure(9, 3)
left, right = figure.subplots(1, 2)
for i, (name, (_, losses)) in enumerate(runs.items()):
    left.plot(100 * np.convolve(flips[name], smooth, "valid"), color=PALETTE[i], label=name)
    right.plot(np.convolve(losses, smooth, "valid"), color=PALETTE[i], label=name)
left.set(xlabel="step", ylabel="weights that flip (%)")
right.set(xlabel="step", ylabel="training loss", yscale="log")
left.legend(fontsize=8, title="learning rate", title_fontsize=8)

assert flips["cosine"][-20:].mean() < flips["constant"][-20:].mean() / 10
assert runs["cosine"][1][-20:].mean() < runs["constant"][1][-20:].mean()
figure

# %% [markdown]
# The flips do not stop because the network has finished. They stop because the *schedule* stops them. With a constant
# rate the network goes on sawing like our one weight, and its loss stays higher: every step some eighty weights change,
# each by a whole scale. In a full-precision network too high a rate at the end costs a little; here it is the
# difference between the average tooth and a random one. (BitNet's authors observe the same as an S-shaped loss curve,
# with a large drop when the rate falls: "Training Tips, Code and FAQ" of The Era of 1-bit LLMs, 2024.)
#
# ## 3. Where the latent weights are
#
# In units of the scale, $v = w / \beta$, the code is $-1$ below $-\frac12$, $+1$ above $+\frac12$, and 0 between. First
# the paths of a few weights, then the histogram. **Predict** the shape of the histogram after training.

# %%
paths = np.array(latent_of["constant"])
number_of_flips = (np.diff(codes_of["constant"], axis=0) != 0).sum(axis=0)
busy = np.argsort(number_of_flips)[-200::50]  # four of the busiest
calm = np.flatnonzero(number_of_flips == 0)[:4]

figure = new_figure(9, 3.2)
left, right = figure.subplots(1, 2)
for chosen, color, label in ((calm, PALETTE[0], "never flips"), (busy, PALETTE[1], "flips often")):
    for i, path in enumerate(paths[:, chosen].T):
        left.plot(path, color=color, linewidth=0.8, label=label if i == 0 else None)
bins = np.linspace(-4, 4, 81)
for name, latent, color in (("start", paths[0], "0.6"), ("end", paths[-1], PALETTE[2])):
    right.hist(latent, bins, histtype="step", color=color, label=name)
for ax, lines in ((left, (left.axhline,)), (right, (right.axvline,))):
    for line in lines:
        line(-0.5, color="black", linestyle="--", linewidth=0.8)
        line(0.5, color="black", linestyle="--", linewidth=0.8)
    ax.legend(fontsize=8)
left.set(xlabel="step", ylabel="w / scale")
right.set(xlabel="w / scale", ylabel="weights")

near = [float((np.abs(np.abs(latent) - 0.5) < 0.1).mean()) for latent in (paths[0], paths[-1])]
print(f"within 0.1 of a threshold: {near[0]:.1%} of the weights at the start, {near[1]:.1%} at the end")
assert near[1] > 1.1 * near[0]
figure

# %% [markdown]
# Two peaks, exactly at the thresholds. We have met them on the whiteboard: a weight that would like to be something
# between two codes saws at the border between them.
#
# A weight far from a threshold needs many gradients in the same direction before its code changes. So the *distance* is
# something like confidence. Test it: sort the weights by their distance from the nearest threshold half-way through the
# run, and count who flips in the second half. **Predict** the ratio of the first fifth to the last.

# %%
half = len(paths) // 2
distance = np.abs(np.abs(paths[half]) - 0.5)
flips_later = (np.diff(codes_of["constant"][half:], axis=0) != 0).any(axis=0)
fifths = np.array_split(np.argsort(distance), 5)
share = [float(flips_later[fifth].mean()) for fifth in fifths]

figure = new_figure(6, 2.6)
ax = figure.subplots()
bars = ax.bar(range(1, 6), [100 * s for s in share], color=PALETTE[0])
ax.bar_label(bars, fmt="%.0f")
ax.set(xlabel="fifth of the weights, nearest to a threshold first", ylabel="flip in the second half (%)")
ax.margins(y=0.15)
assert share[0] > 5 * share[-1]
figure

# %% [markdown]
# This is also why **weight decay** is a delicate thing here. It pulls $w$ towards 0, but the scale $\beta$ shrinks with
# it, and the codes stay as they are: what shrinks is the *distance* in units of the learning rate, so it makes flips
# easier. BitNet's training tips switch it off for the second half of the training.
#
# ## 4. A good start
#
# So far we began with random weights. Now we begin with a trained network of 32 bits. The code is short, because the
# latent weights of a low-bit layer *are* floats:

# %%
print(inspect.getsource(tb.models.start_from))

# %% [markdown]
# **Predict**, in this order: the accuracy of the ternary network *right after* the conversion (chance is 10 %); after
# three epochs; and after three epochs from random weights.

# %%
teacher, _ = train(bits=32)
rows = {"32 bits, 12 epochs": test_accuracy(teacher)}
for name, bits in {"1.58 bits": 1.58, "1 bit": 1}.items():
    converted, _ = train(bits=bits, epochs=0, falling=False, source=teacher)
    rows[f"{name}, converted, untrained"] = test_accuracy(converted)
    rows[f"{name}, converted, 3 epochs"] = test_accuracy(train(bits=bits, epochs=3, source=teacher)[0])
    rows[f"{name}, random start, 3 epochs"] = test_accuracy(train(bits=bits, epochs=3)[0])
for name, accuracy in rows.items():
    print(f"{name:32} {accuracy:6.1%}")

assert rows["32 bits, 12 epochs"] > 0.93
for name in ("1.58 bits", "1 bit"):
    repaired = rows[f"{name}, converted, 3 epochs"]
    assert repaired > rows[f"{name}, converted, untrained"] + 0.1
    assert repaired > rows[f"{name}, random start, 3 epochs"] + 0.08

# %% [markdown]
# Two lessons. Rounding a trained network (*post-training quantisation*) breaks it. And
# what is broken still is an excellent *start*: three epochs repair it, where a random network is far away. (Larger
# networks break more thoroughly: there the converted one begins at chance. Tutorial 10 deals with that.)
#
# ## 5. A teacher
#
# *Distillation* (Hinton et al. 2015, arXiv 1503.02531) trains the student on the teacher's probabilities $t$ instead of
# the labels. Worked example, three classes, $t = (0.7, 0.2, 0.1)$ and the student's $p = (0.5, 0.3, 0.2)$:
#
# $$\underbrace{-\sum t_i \ln p_i}_{\text{cross-entropy } 0.887} =
# \underbrace{-\sum t_i \ln t_i}_{\text{entropy } 0.802} +
# \underbrace{\sum t_i \ln \frac{t_i}{p_i}}_{\mathrm{KL}(t \,\|\, p)\ 0.085}$$
#
# The entropy does not depend on the student. So minimising the divergence from the teacher *is* cross-entropy with soft
# targets, and the library needs no new loss, only new targets:

# %%
t, p = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
cross_entropy, entropy, divergence = -(t * np.log(p)).sum(), -(t * np.log(t)).sum(), (t * np.log(t / p)).sum()
print(f"{cross_entropy:.3f} = {entropy:.3f} + {divergence:.3f}")
assert np.isclose(cross_entropy, entropy + divergence)

logits = tb.Tensor(np.log(p)[None].astype("float32"), requires_grad=True)
tb.functional.cross_entropy(logits, tb.Tensor(t[None].astype("float32"))).backward()
assert np.allclose(logits.grad, [p - t], atol=1e-6)  # the student moves by the difference of probabilities

print(inspect.getsource(soft_targets))

# %% [markdown]
# Look at what the inner function does with `y` while `share` is 1: nothing. **Predict**: what happens if all labels are
# replaced by zeros?

# %%
taught = soft_targets(Trainer(teacher, workers=1))


def no_labels(x, y):
    return taught(x, np.zeros_like(y))


teacher_p = softmax_array(np, Trainer(teacher, workers=1).predict(X_test).astype("float64"))


def divergence_from_teacher(model):
    """Mean KL(teacher || model) over the test images, in nats."""
    log_p = log_softmax_array(np, Trainer(model, workers=1).predict(X_test).astype("float64"))
    return float((teacher_p * (np.log(teacher_p + 1e-12) - log_p)).sum(axis=1).mean())


students = {
    "random start, labels": train(epochs=3)[0],
    "random start, teacher": train(epochs=3, targets=taught)[0],
    "converted, labels": train(epochs=3, source=teacher)[0],
    "converted, teacher": train(epochs=3, source=teacher, targets=taught)[0],
    "converted, teacher, no labels": train(epochs=3, source=teacher, targets=no_labels)[0],
}
apart = {name: divergence_from_teacher(model) for name, model in students.items()}
for name, model in students.items():
    print(f"{name:30} accuracy {test_accuracy(model):.3f}   KL from the teacher {apart[name]:.3f}")

assert (all_codes(students["converted, teacher"]) == all_codes(students["converted, teacher, no labels"])).all()
assert test_accuracy(students["converted, teacher, no labels"]) > 0.9
assert divergence_from_teacher(students["converted, teacher"]) < divergence_from_teacher(
    students["random start, teacher"]
)

# %% [markdown]
# The student without a single label ends with *the same codes*. Where you have a network but not its data set, any
# images of the kind will do.
#
# And did the teacher *help*, compared with labels? Look at the two rows "converted, labels" and "converted, teacher"
# again: on the digits they differ by less than two random seeds do (exercise 3). The teacher is almost certain of every
# training image, so it says little that the label does not say. We do not assert a gain that we cannot measure. The
# *start* was the gain.
#
# In `tb.ViT` these two are parameters: `tb.ViT(bits=1.58, init_from=teacher, distill_from=teacher)`.
#
# ## Exercises
#
# 1. *(by hand)* In section 1, for which targets does the weight *not* saw? What is the share of time at $+1$ for a
#    target of $-0.5$? Check with `one_weight`.
# 2. *(measure)* `train(lr=...)` with 0.001, 0.003, 0.01, 0.03 for 32, 1.58 and 1 bit, six epochs each. Which width
#    suffers most from a small rate? Relate it to the distance that a weight has to go before it flips.
# 3. *(measure)* Repeat "converted, labels" and "converted, teacher" with seeds 0 to 4. Give mean and standard deviation
#    of both, and say in one sentence what may be claimed.
# 4. *(code)* Freeze every weight whose code has not flipped during the last 50 steps of the run with the constant rate,
#    by putting its latent weight back after every step. Does it do what the cosine does?
# 5. *(think)* Exponential moving averages of the weights help full-precision networks. Averaging *latent* weights is
#    reported to harm ternary ones. Use section 1 to explain why the average of an accumulator is not the average of its
#    sign, and test it.
