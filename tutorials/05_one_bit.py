# %% [markdown]
# # 05 One bit: sign, scale, straight-through
#
# A weight of a network is usually a `float32`: 32 bits. How much of it is needed? Here you keep a single bit of each
# weight, its sign, plus one scale per row, and train a Vision Transformer with that. Two questions have to be answered:
# which scale, and how does one learn through a function whose derivative is zero?
#
# You need: tutorials 01 (gradients) and 04 (the network).

# %%
import copy
import inspect
import itertools
import time

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.course import answer, check, keep, parts, predict, solution, unuse, use, yours
from tinybitvit.ops import ste
from tinybitvit.optim import AdamW
from tinybitvit.quant import BitLinear, find_quantizer
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Four weights
#
# Replace $w = (0.5, -0.3, 0.1, -0.7)$ by $\beta\, b$: four signs $b_i = \pm 1$ and one **scale** $\beta > 0$. The signs
# are those of $w$. Which $\beta$ makes the squared error $\sum_i (w_i - \beta b_i)^2$ smallest?

# %% kind="predict"
guess = predict("best scale")

# %% [markdown]
# What one would write first: try them all. All signs, and a fine grid of scales.


# %% kind="naive"
def try_all(w, scales):
    """The signs and the scale with the smallest squared error, and that error."""
    best = (np.inf, None, None)
    for signs in itertools.product((-1, 1), repeat=len(w)):
        for scale in scales:
            error = sum((w[i] - scale * signs[i]) ** 2 for i in range(len(w)))
            best = min(best, (error, signs, scale), key=lambda found: found[0])
    return best


w = np.array([0.5, -0.3, 0.1, -0.7])
began = time.perf_counter()
error, signs, tried = try_all(w, np.linspace(0, 1, 201))
seconds = time.perf_counter() - began
print(f"{2**4 * 201} tries in {1000 * seconds:.0f} ms; signs {signs}")
print(f"a row of 64 weights would take {2**60 * seconds / 3.2e13:,.0f} million years")

# %% kind="answer"
answer("best scale", 0.4, measured=tried, tolerance=1e-9)

# %% kind="see"
beta = np.linspace(0, 1, 201)
errors = ((w - beta[:, None] * np.sign(w)) ** 2).sum(axis=1)
fig = new_figure(6.5, 3, formulas=True)
left, right = fig.subplots(1, 2)
left.plot(beta, errors, color=PALETTE[0])
left.plot(tried, error, "o", color=PALETTE[1])
left.set(xlabel="scale $\\beta$", ylabel="squared error", title="the best scale", ylim=(0, None))
left.grid(alpha=0.3)
places = np.arange(4)
right.bar(places - 0.2, w, 0.38, color=PALETTE[0], label="$w$")
right.bar(places + 0.2, tried * np.sign(w), 0.38, color=PALETTE[5], label="$\\beta\\, b$")
right.axhline(0, color="0.4", linewidth=0.8)
right.set(title="four weights, four bits, one scale", xticks=places, xlabel="weight")
right.legend(frameon=False)
fig

# %% [markdown]
# Now without trying. For codes $b$ that are given, whatever they are, set the derivative of the error to zero:
#
# $$\frac{\partial}{\partial \beta} \sum_i (w_i - \beta b_i)^2 = -2 \sum_i b_i (w_i - \beta b_i) = 0 .$$
#
# Solve it for $\beta$, and write it for a whole matrix: one scale for each row.


# %% kind="your-turn"
@yours("5.1")
def best_scale(w, b):
    """The scale with the smallest sum of (w - scale b)^2 in each row: w and codes b (out, K) -> (out, 1)."""
    # w = [[0.5, -0.3]], b = [[1, -1]] gives [[0.4]]; b may hold other numbers than 1 and -1
    ...


check(best_scale)


# %% kind="solution"
@solution("5.1")
def best_scale(w, b):
    """The scale with the smallest sum of (w - scale b)^2 in each row: w and codes b (out, K) -> (out, 1)."""
    return (w * b).sum(axis=-1, keepdims=True) / (b * b).sum(axis=-1, keepdims=True)


# %% [markdown]
# For signs, $b_i^2 = 1$ and $b_i w_i = |w_i|$, so the best scale is the mean of the absolute values,
#
# $$\beta = \frac{1}{n} \sum_i |w_i|$$
#
# (Rastegari et al. 2016, arXiv 1603.05279, section 3.1; the scale of BitNet, Wang et al. 2023, arXiv 2310.11453). And
# no other signs are better: the error is $\sum w_i^2 - 2 \beta \sum b_i w_i + n \beta^2$, and the middle term is
# largest where each $b_i w_i$ is positive.
#
# ## 2. Zero, and the mean
#
# Two details, both famous for going wrong.
#
# **Zero.** `np.sign(0)` is 0: a *third* value, which does not fit into a bit. The library says $+1$.
#
# **The mean.** If all weights of a row are positive, all signs are $+1$ and say nothing. BitNet takes the signs of
# $w - \mu$, where $\mu$ is the mean of the matrix; here it is that of the row, so that each row has both signs. And the
# scale? The least-squares one *for what is rounded*.
#
# Take the row $(3, 1, 2, 6)$. What are its codes?

# %% kind="predict"
guess = predict("codes of (3, 1, 2, 6)", choices=["++++", "+--+", "---+"])


# %% kind="your-turn"
@yours("5.2")
def binary_codes(w):
    """Codes +1 and -1 (out, K) of the weights w (out, K), and their scale (out, 1), never below 1e-5."""
    # subtract the mean of each row first; 0 has the code +1. [[4, 0]] gives [[1, -1]] and [[2]]
    ...


check(binary_codes)


# %% kind="solution"
@solution("5.2")
def binary_codes(w):
    """Codes +1 and -1 (out, K) of the weights w (out, K), and their scale (out, 1), never below 1e-5."""
    u = w - w.mean(axis=-1, keepdims=True)
    codes = np.where(u >= 0, 1.0, -1.0)
    return codes, np.maximum(best_scale(u, codes), 1e-5)


# %% kind="answer"
row = np.array([[3.0, 1, 2, 6]])
found = "".join("+" if code > 0 else "-" for code in binary_codes(row)[0][0])
answer("codes of (3, 1, 2, 6)", "+--+", measured=found)
print("the mean is 3, so the first weight is a 0")

# %% [markdown]
# The library's function is yours with options: one scale for the whole tensor (`granularity`), the median in place of
# the mean (`scale`), no mean subtracted (`centre`). `copysign` is a faster `where`. Section 8 tries what they do.

# %%
print(inspect.getsource(ste.binary_codes))

# %% kind="see"
w = rng.standard_normal((8, 64)).astype("float32")
codes, scale, _ = ste.binary_codes(np, w)
assert np.array_equal(binary_codes(w)[0], codes)
assert np.allclose(binary_codes(w)[1], scale, rtol=1e-6)
print("the library's signs and scales are yours")

# %% [markdown]
# From here on the library computes with your function, wherever it takes signs.

# %%
use(binary_codes=binary_codes)

# %% [markdown]
# ## 3. What is lost
#
# Draw weights from a normal distribution with mean 0. How much of their energy is lost, $\sum (w - \beta b)^2$ in
# percent of $\sum w^2$?

# %% kind="predict"
guess = predict("energy lost", "%")

# %% kind="answer"
w = rng.standard_normal((1, 200_000))
codes, scale = binary_codes(w)
lost = 100 * ((w - codes * scale) ** 2).sum() / (w**2).sum()
answer("energy lost", 36.3, measured=lost, tolerance=0.5, unit="%")
print("exactly 1 - 2 / pi: the mean of |w| is the root of 2 / pi, and the error is 1 - beta^2")
assert abs(lost - 100 * (1 - 2 / np.pi)) < 0.5

# %% [markdown]
# So much is gone from *every* row of *every* layer. Does a network survive that? Here is one that was trained as
# usual on images of handwritten digits, and whose weights are rounded to one bit afterwards.

# %%
digits = tb.data.load_digits()
options = {"dim": 64, "depth": 2, "epochs": 12, "random_state": 0, "verbose": 0}
full = tb.ViT(bits=32, **options).fit(digits.X_train, digits.y_train)
accuracy = {"32 bits": full.score(digits.X_test, digits.y_test)}
print(f"32 bits: {accuracy['32 bits']:.1%} of the test images are right")

# %% kind="predict"
guess = predict("right after rounding", "%")

# %%
rounded = copy.deepcopy(full)
for block in rounded.model_.blocks:
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        codes, scale = binary_codes(layer.weight.data)
        layer.weight.data[...] = codes * scale
accuracy["rounded to 1 bit afterwards"] = rounded.score(digits.X_test, digits.y_test)

# %% kind="answer"
answer("right after rounding", 58, measured=100 * accuracy["rounded to 1 bit afterwards"], tolerance=20, unit="%")
print(f"here it was {accuracy['rounded to 1 bit afterwards']:.1%}")
assert accuracy["rounded to 1 bit afterwards"] < accuracy["32 bits"] - 0.1

# %% [markdown]
# So the network has to be trained *knowing* that only signs count. Which brings us to the second question.
#
# ## 4. A derivative of zero
#
# The code $b = \text{sign}(w)$ is a step: flat on both sides, with a jump at 0. Its derivative is 0 wherever it exists.
# Gradient descent multiplies by it, and nothing ever moves.
#
# The way out looks like cheating. Keep a float $w$, the **latent weight**. Forward: use $b = \text{sign}(w)$. Backward:
# pretend that the step was not there and hand the gradient of $b$ straight through to $w$: the **straight-through
# estimator**, STE (Bengio et al. 2013, arXiv 1308.3432). The latent weight adds up evidence, and when there is enough
# of it, the sign changes.
#
# One weight, $L = (b - t)^2$, so $g = 2 (b - t)$ and $w \leftarrow w - \eta\, g$ with $\eta = 0.05$, from $w = 0.35$.


# %% kind="naive"
def one_weight(target, steps=200, lr=0.05, w=0.35):
    path = []
    for _ in range(steps):
        b = 1.0 if w >= 0 else -1.0
        path.append((w, b))
        w -= lr * 2 * (b - target)
    return np.array(path).T


latent, code = one_weight(target=-1)
print("t = -1: latent", latent[:5].round(2), " code", code[:5])

# %% [markdown]
# For $t = -1$ the sign flips after two steps, and then the gradient is 0. For $t = 0.5$, which no sign can reach: what
# will $b$ do? Work out two steps by hand: by how much does $w$ move at $b = +1$, and at $b = -1$?

# %% kind="predict"
guess = predict("b for t = 0.5", choices=["stays at +1", "half the time +1", "+1 three times of four"])

# %% kind="answer"
latent, code = one_weight(target=0.5)
share = (code[-160:] == 1).mean()
print(f"+1 in {share:.0%} of the steps: at +1 the latent weight falls by 0.05, at -1 it rises by 0.15")
answer("b for t = 0.5", "+1 three times of four")
assert abs(share - 0.75) < 0.02

# %% kind="see"
fig = new_figure(6.5, 3.2, formulas=True)
axes = fig.subplots(1, 2, sharey=True)
for ax, target in zip(axes, (-1, 0.5), strict=True):
    latent, code = one_weight(target, steps=30)
    ax.step(range(30), code, where="mid", color=PALETTE[1], label="code $b$: the forward pass")
    ax.plot(latent, "o-", markersize=3, color=PALETTE[0], label="latent $w$: the optimiser")
    ax.axhline(target, color="0.3", linestyle=":", label="target $t$")
    ax.set(title=f"target {target}", xlabel="step")
    ax.grid(alpha=0.3)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
fig

# %% [markdown]
# A weight that cannot reach its target *oscillates*, and the mean of its signs is the target. Nice for the mean; in a
# network it is noise, and tutorial 08 measures it.
#
# ## 5. A student of signs
#
# A teacher with 64 hidden weights $\pm 0.5$. A student who sees inputs $x$ and the teacher's answers $t$, and whose
# weights are signs times a scale. One step of its training is yours. Forward: $y = x\, q^\mathsf{T}$ with
# $q = \beta b$. The loss is the mean of all $(y - t)^2$. For its derivative write out one element,
# $y_{io} = \sum_k x_{ik} q_{ok}$, so that $\partial y_{io} / \partial q_{ok} = x_{ik}$, and add up over the
# examples $i$: a matrix product (tutorial 01). It goes straight through: as if it were the derivative for the latent
# weight.


# %% kind="your-turn"
@yours("5.3")
def signs_step(latent, x, t, lr):
    """The latent weight (out, K) after a step: x (n, K), answers t (n, out), loss = mean of (y - t)^2."""
    # binary_codes(latent) gives the b and beta of the forward pass; then y, then g = dL/dq, then the step
    ...


check(signs_step)


# %% kind="solution"
@solution("5.3")
def signs_step(latent, x, t, lr):
    """The latent weight (out, K) after a step: x (n, K), answers t (n, out), loss = mean of (y - t)^2."""
    codes, scale = binary_codes(latent)
    y = x @ (codes * scale).T
    g = 2 * (y - t).T @ x / t.size
    return latent - lr * g


# %% [markdown]
# How many of the 64 signs will the student get right in 150 steps, from a random start?

# %% kind="predict"
guess = predict("right signs at the end", "%")

# %%
teacher = 0.5 * rng.choice([-1.0, 1.0], size=(1, 64))
x = rng.standard_normal((256, 64))
latent = 0.3 * rng.standard_normal((1, 64))
path = [latent]
for _ in range(150):
    path.append(signs_step(path[-1], x, x @ teacher.T, lr=0.01))
path = np.concatenate(path)
right_signs = ((path - path.mean(axis=1, keepdims=True) > 0) == (teacher > 0)).mean(axis=1)

# %% kind="answer"
print(f"at the start {right_signs[0]:.0%}")
answer("right signs at the end", 100, measured=100 * right_signs[-1], tolerance=4, unit="%")
codes = binary_codes(path[:1])[0]
assert all((binary_codes(path[:1] + h)[0] == codes).all() for h in (1e-9, -1e-9)), "the true derivative is 0"

# %% kind="see"
fig = new_figure(6.5, 3.2)
left, right = fig.subplots(1, 2)
left.plot(100 * right_signs, color=PALETTE[0], label="straight-through")
left.axhline(100 * right_signs[0], linestyle="--", color=PALETTE[1], label="true derivative: 0")
left.set(xlabel="step", ylabel="right signs (%)", ylim=(0, 105), title="the student's signs")
left.legend(frameon=False, loc="lower right")
for i in range(24):
    crosses = path[0, i] * path[-1, i] < 0
    right.plot(path[:, i], color=PALETTE[1] if crosses else "0.75", linewidth=1.2, zorder=2 + crosses)
right.axhline(0, color="black", linewidth=0.8)
right.set(xlabel="step", ylabel="latent weight", title="24 weights; orange: flipped")
for ax in (left, right):
    ax.grid(alpha=0.3)
fig

# %% [markdown]
# ## 6. Which lie is best?
#
# "Pretend the step is the identity" is one lie. Others pretend that it was a smooth curve: a ramp, an S. Its slope
# $a(v)$ at $v = (w - \mu) / \beta$ then multiplies $g$. So a weight near the jump, which may soon flip, gets more of
# the gradient than one far away.
#
# Yours is the tent: highest at 0, falling on a straight line to 0 at $v = \pm$ `width` (Liu et al. 2018, arXiv
# 1808.00278, with width 1). Its curve climbs from $-1$ to $+1$, as the step does, so its slope has an *area* of 2. How
# high must it be?


# %% kind="your-turn"
@yours("5.4")
def slope(v, width=3.0):
    """The slope a(v) of the tent between -width and width, 0 outside; the area below it is 2."""
    # slope([0, 1, 2, 5], width=2.0) gives [1, 0.5, 0, 0]
    ...


check(slope)


# %% kind="solution"
@solution("5.4")
def slope(v, width=3.0):
    """The slope a(v) of the tent between -width and width, 0 outside; the area below it is 2."""
    return np.maximum(1 - np.abs(v) / width, 0) * 2 / width


# %% [markdown]
# A race of lies. Each is a function of $v$ and of how far the training is, from 0 to 1. The last turns the lie into the
# truth as it goes on: $a(v) = \max(t, 1)\, (1 - \tanh^2 (t v))$ with a **temperature** $t$ from 0.1, nearly the
# identity, to 10, nearly the step (Qin et al. 2020, arXiv 1909.10788).


# %%
def sharpening(v, t):
    return max(t, 1.0) * (1 - np.tanh(t * v) ** 2)


LIES = {
    "identity": lambda v, done: np.ones_like(v),
    "clip": lambda v, done: np.abs(v) <= 3,
    "wide": lambda v, done: slope(v, width=3.0),
    "narrow": lambda v, done: slope(v, width=0.3),
    "sharp": lambda v, done: sharpening(v, t=10.0),
    "rising": lambda v, done: sharpening(v, t=0.1 * 100**done),
}

# %% kind="see"
grid = np.linspace(-4, 4, 801)
fig = new_figure(6.5, 3.2, formulas=True)
axes = fig.subplots(1, 2)
for (name, lie), line, color in zip(LIES.items(), ("-", "--", "-.", ":", "--", ":"), PALETTE[:6], strict=True):
    ax = axes[int(name in ("narrow", "sharp", "rising"))]
    for done in (0, 0.5, 1) if name == "rising" else (0,):
        ax.plot(grid, lie(grid, done), line, color=color, linewidth=2, label=name if done == 0 else None)
for ax, title in zip(axes, ("gentle", "close to the truth, or on the way to it"), strict=True):
    ax.set(xlabel="$v$", ylabel="slope $a(v)$", title=title)
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
area = slope(grid).sum() * (grid[1] - grid[0])
assert abs(area - 2) < 0.01
assert np.allclose(slope(grid, 0.3), ste.slope(np, grid, "approx_sign", width=0.3))
assert np.allclose(sharpening(grid, 10.0), ste.slope(np, grid, "ede", temperature=10.0))
fig

# %% [markdown]
# The track: three layers of signs, 32 wide, that read the digits as rows of 64 numbers; 300 steps; **five seeds** each
# (a seed decides the random first weights and the order of the images), because one training proves nothing. `use` puts
# each lie into the library.


# %%
def rows(images):
    return ((images - digits.X_train.mean()) / digits.X_train.std()).reshape(len(images), -1).astype("float32")


def run(layers, x):
    h = tb.Tensor(x)
    for layer in layers[:-1]:
        h = F.gelu(layer(h))
    return layers[-1](h)


# %%
def train_signs(seed, lie=LIES["identity"], steps=300, kind="clipped"):
    """The accuracy of a small network of signs, and the share of its codes that changed."""
    rng, done = np.random.default_rng(seed), 0.0
    widths = ((64, 32, False), (32, 32, True), (32, 10, True))
    quantizer = find_quantizer("binary", ste=kind)
    layers = [BitLinear(a, b, quantizer=quantizer, norm=norm, rng=rng) for a, b, norm in widths]
    before = [layer.codes()[0] for layer in layers]
    optimizer = AdamW([p for layer in layers for p in layer.parameters()], lr=0.01, weight_decay=0)
    with use(slope=lambda v: lie(v, done)):
        for step in range(steps):
            done, pick = step / steps, rng.integers(0, len(digits.X_train), 128)
            loss = F.cross_entropy(run(layers, rows(digits.X_train[pick])), digits.y_train[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with tb.no_grad():
        right = run(layers, rows(digits.X_test)).numpy().argmax(axis=1) == digits.y_test
    flipped = np.mean([(layer.codes()[0] != old).mean() for layer, old in zip(layers, before, strict=True)])
    return 100 * right.mean(), 100 * flipped


# %% [markdown]
# Two predictions. Which lie comes out worst? And is the identity, the crudest of them, far behind the best one?

# %% kind="predict"
guess = predict("the worst lie", choices=list(LIES))
guess = predict("the identity, behind the best", choices=["by 0 to 4 points", "by 4 to 10 points", "by more"])

# %%
race = {name: np.array([train_signs(seed, lie) for seed in range(5)]) for name, lie in LIES.items()}

# %% kind="answer"
for name, found in race.items():
    accuracies, flipped = found.T
    print(f"{name:9} {accuracies.mean():5.1f}% +- {accuracies.std(ddof=1):3.1f}   codes changed {flipped.mean():4.1f}%")
means = {name: found[:, 0].mean() for name, found in race.items()}
answer("the worst lie", "narrow", measured=min(means, key=means.get))
answer("the identity, behind the best", "by 0 to 4 points")
assert max(means.values()) - means["identity"] < 4
assert means["narrow"] < means["identity"] - 8

# %% kind="see"
fig = new_figure(5, 3)
ax = fig.subplots()
for place, found in enumerate(race.values()):
    ax.plot(found[:, 0], [place] * 5, "o", color=PALETTE[0], markersize=8, alpha=0.6)
    ax.plot(found[:, 0].mean(), place, "|", color=PALETTE[1], markersize=22, markeredgewidth=3)
ax.set(yticks=range(len(race)), yticklabels=list(race), xlabel="test accuracy (%), five seeds; bar: their mean")
ax.invert_yaxis()
ax.grid(alpha=0.3)
fig

# %% [markdown]
# The lie closest to the truth is the worst one. The narrow tent hears only the weights within $0.3$ of the jump, and
# there are few; all others never move, so that few codes change. Each lie that lets most weights move is fine, the
# identity included, and they differ by little more than the scatter between seeds. The rising temperature is gentle
# while much has to change and near the truth when little has; whether that is worth a point, five seeds cannot say.
# BitNet takes the identity, and so does the library unless it is told otherwise.
#
# No straight-through gradient passes the checker of tutorial 01: it is not the derivative of the forward pass.

# %%
try:
    tb.gradcheck.check_op(ste.Binary, rng.standard_normal((3, 8)))
except AssertionError as error:
    print(error)

# %% [markdown]
# ## 7. A Vision Transformer of signs
#
# `BitLinear` puts the pieces together: codes and scale from `layer.quantizer`, the slope in the backward pass. Its
# inputs are rounded to 8 bits, the subject of tutorial 06.

# %%
print(inspect.getsource(BitLinear.forward))
print(inspect.getsource(tb.quant.quantizer.Quantize.forward))
print(inspect.getsource(ste.StraightThrough.backward))

# %% [markdown]
# "My weights are still floats!" is the most asked question of this field. Three things have three names:
#
# - `layer.weight`: the latent weight. A float; the optimiser moves it; it exists during training only.
# - `layer.quantized_weight()`: what the forward pass multiplies by. Two values a row.
# - the bytes that are shipped: a `PackedLinear`, tutorial 07.

# %%
layer = BitLinear(64, 8, bits=1, rng=rng)
for name, weight in (("latent", layer.weight.data), ("quantised", layer.quantized_weight())):
    print(f"{name:9} {weight[0, :5].round(3)} ... {len(np.unique(weight[0]))} different values in row 0")

# %% [markdown]
# Now train the Transformer of section 3 through its signs: your codes, your scale, your slope. Rounded afterwards, it
# lost much. Trained with one bit from the start, how many of the test images will it get right?

# %% kind="predict"
guess = predict("right when trained with 1 bit", "%")

# %%
use(slope=slope)
one_bit = find_quantizer("binary", ste="approx_sign")  # any but "identity": the slope is yours
signs = tb.ViT(quantizer=one_bit, **options).fit(digits.X_train, digits.y_train)
accuracy["trained with 1 bit"] = signs.score(digits.X_test, digits.y_test)

# %% kind="answer"
answer("right when trained with 1 bit", 95, measured=100 * accuracy["trained with 1 bit"], tolerance=4, unit="%")
for name, value in accuracy.items():
    print(f"{name:30} {value:.1%}")
assert accuracy["trained with 1 bit"] > accuracy["rounded to 1 bit afterwards"] + 0.1

# %% kind="see"
fig = new_figure(5, 2.2)
ax = fig.subplots()
bars = ax.barh(list(accuracy), [100 * a for a in accuracy.values()], color=[PALETTE[0], PALETTE[1], PALETTE[2]])
ax.bar_label(bars, fmt="%.1f %%", padding=3)
ax.invert_yaxis()
ax.set(xlim=(0, 115), xlabel="test accuracy (%)")
fig

# %% [markdown]
# ## 8. What the options do
#
# `granularity`: one scale a row, or one for the whole weight. `scale`: the mean or the median of $|w|$. `centre`: with
# the mean of the row subtracted, or not. Each is a few lines in place of yours, so try them on the track of section 6.


# %%
def one_scale(w):
    codes, _ = binary_codes(w)
    return codes, np.full((len(w), 1), np.abs(w).mean())


def median(w):
    codes, _ = binary_codes(w)
    u = w - w.mean(axis=-1, keepdims=True)
    return codes, np.maximum(np.median(np.abs(u), axis=-1, keepdims=True), 1e-5)


def not_centred(w):
    return np.where(w >= 0, 1.0, -1.0), np.maximum(np.abs(w).mean(axis=-1, keepdims=True), 1e-5)


VARIANTS = {"as yours": binary_codes, "one scale": one_scale, "median": median, "not centred": not_centred}

# %% kind="predict"
guess = predict("largest gain or loss", choices=["below 3 points", "above 3 points"])

# %%
tried = {}
for name, codes in VARIANTS.items():
    with use(binary_codes=codes):
        tried[name] = np.array([train_signs(seed, kind="identity")[0] for seed in range(5)])

# %% kind="answer"
for name, found in tried.items():
    gain = found - tried["as yours"]
    print(f"{name:12} {found.mean():5.1f}% +- {found.std(ddof=1):3.1f}   gain for each seed {gain.round(1)}")
largest = max(abs(found.mean() - tried["as yours"].mean()) for found in tried.values())
answer("largest gain or loss", "below 3 points", measured="below 3 points" if largest < 3 else "above 3 points")
unuse()

# %% [markdown]
# None of them matters here: seeds differ more than options do. The latent weights go where the codes need them, and the
# norm in front of the next layer undoes a scale. What they cost is another matter: a scale for each row is four bytes
# for each output. The mean costs nothing: it decides the signs, and is forgotten. Where nothing is trained any more
# they do matter: rows of very different size need a scale each.
#
# `temperature` and `width` belong to the lie: the width of the tent in units of the scale, which must not be small; the
# temperature of the S, which a training lets rise.
#
# ## What you take along
#
# One bit: $w \approx \beta\, \text{sign}(w - \mu)$, and the best scale is a mean of absolute values. The code's
# derivative is 0, so the backward pass lies, and the latent weight collects the evidence. Any lie that lets most
# weights move will do. Rounding after training destroys; training through the rounding repairs.
#
# **You can now**: find the best scale for any codes; train weights that have only a sign; judge a straight-through
# estimator by five seeds instead of by its looks.

# %%
keep(best_scale, binary_codes, signs_step, slope)

# %% kind="see"
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/05](solutions/05_one_bit.ipynb).
#
# 1. (10 min) By hand: quantise the row $(0.9, 0.5, 0.7, 0.3)$ with and without subtracting its mean. Which squared
#    error is smaller? Now write $w \approx \mu + \beta b$ instead of $\beta b$. What would it cost to store $\mu$?
#    Hand in three errors and a sentence.
# 2. (20 min) In `one_weight`, derive the share of steps with $b = +1$ for any target $|t| < 1$, and check it for five
#    targets. What does a smaller learning rate change?
# 3. (30 min) Sweep the width of the tent over 0.1, 0.3, 1, 3, 10 on the track of section 6, five seeds each. Hand in
#    the accuracies, and beside them the share of codes that changed.
# 4. (30 min) Let the student of section 5 draw a fresh batch in each step. Which of the batches of 1, 4, 16, 64 fail at
#    `lr=0.1`, and which at 0.03? Hand in a table, and the rule behind it: by what factor does a step change the error
#    $y - t$ of its own example?
# 5. (an evening) Race the lies with plain gradient descent (`tb.optim.SGD`) in place of AdamW, for three learning
#    rates. Why does the height of a slope matter now, and did not before?
