# %% [markdown]
# # 05 One bit: sign, scale, straight-through
#
# A weight of a network is usually a `float32`: 32 bits. How much of it is needed? Here we keep a single bit of each
# weight, its sign, plus one scale per row, and train a Vision Transformer with that. Two questions have to be answered:
# which scale, and how does one learn through a function whose derivative is zero?
#
# You need: tutorials 01 (gradients) and 04 (the network).

# %%
import copy
import inspect

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.ops import ste
from tinybitvit.optim import SGD
from tinybitvit.quant import BitLinear, weight_codes
from tinybitvit.quant.quantizer import Quantize
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Four weights
#
# Replace $w = (0.5, -0.3, 0.1, -0.7)$ by $\beta\, b$ with $b_i = \pm 1$ and one $\beta > 0$. The signs are clear.
#
# **Predict** the $\beta$ that makes $\sum_i (w_i - \beta b_i)^2$ smallest, before you look at the curve.
#
# With $b_i = \text{sign}(w_i)$ the error is $\sum (|w_i| - \beta)^2$: the best single number for $0.5, 0.3, 0.1,
# 0.7$ is their mean,
#
# $$\beta = \frac{1}{n} \sum_i |w_i| = 0.4$$
#
# (Rastegari et al. 2016, arXiv 1603.05279, section 3.1; the scale of BitNet, Wang et al. 2023, arXiv 2310.11453).

# %%
w = np.array([0.5, -0.3, 0.1, -0.7])
beta = np.linspace(0, 1, 201)
errors = ((w - beta[:, None] * np.sign(w)) ** 2).sum(axis=1)
codes, scale, _ = ste.binary_codes(np, w[None], centre=False)
print("codes", codes, " scale", scale, " in place of w:", codes * scale)
assert np.isclose(scale, 0.4)
assert np.isclose(beta[errors.argmin()], 0.4)

fig = new_figure(8.5, 3.2)
left, right = fig.subplots(1, 2)
left.plot(beta, errors, color=PALETTE[0])
left.plot(0.4, errors.min(), "o", color=PALETTE[1])
left.annotate("mean $|w|$", (0.4, errors.min()), (0.45, 0.5), arrowprops={"arrowstyle": "->"})
left.set(xlabel="scale $\\beta$", ylabel="squared error", title="the best scale", ylim=(0, None))
left.grid(alpha=0.3)
places = np.arange(4)
right.bar(places - 0.2, w, 0.4, color=PALETTE[0], label="$w$")
right.bar(places + 0.2, (codes * scale)[0], 0.4, color=PALETTE[5], label="$\\beta\\, b$")
right.axhline(0, color="0.4", linewidth=0.8)
right.set(title="four weights, four bits, one scale", xticks=places, xlabel="weight")
right.legend(frameon=False)
fig

# %% [markdown]
# Two details, both famous for going wrong.
#
# **Zero.** `np.sign(0)` is 0: a *third* value, which does not fit into a bit. The library says $+1$.
#
# **Centre.** If the weights of a row have a mean $\mu \neq 0$, signs say little. BitNet takes
# $b = \text{sign}(w - \mu)$.

# %%
print("np.sign:", np.sign([-0.2, 0.0, 0.2]), "  library:", ste.binary_codes(np, np.array([-0.2, 0.0, 0.2]))[0])
assert np.sign(0.0) == 0
assert set(ste.binary_codes(np, np.zeros((2, 4)))[0].flat) == {1.0}
print(inspect.getsource(ste.binary_codes))

# %% [markdown]
# What is lost? Take weights from a normal distribution with $\sigma = 1$. Then $\beta = \sqrt{2 / \pi} = 0.798$.
#
# **Predict** the relative error $\sum (w - \beta b)^2 / \sum w^2$. (Expand the square; everything is $\sigma$ or
# $\beta$.)

# %%
w = rng.standard_normal((1, 200_000))
codes, scale, _ = ste.binary_codes(np, w)
error = ((w - codes * scale) ** 2).sum() / (w**2).sum()
print(f"relative error {error:.4f}, 1 - 2 / pi = {1 - 2 / np.pi:.4f}")
assert abs(error - (1 - 2 / np.pi)) < 0.005

# %% [markdown]
# 36 % of the energy is gone, from *every* row of *every* layer. Does a network survive that? Here is one that was
# trained as usual, and whose weights are rounded to one bit afterwards.
#
# **Predict** its accuracy.

# %%
digits = tb.data.load_digits()
options = {"dim": 64, "depth": 2, "epochs": 15, "random_state": 0, "verbose": 0}
full = tb.ViT(bits=32, **options).fit(digits.X_train, digits.y_train)

rounded = copy.deepcopy(full)
for block in rounded.model_.blocks:
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        codes, scale = weight_codes(layer.weight.data, bits=1)
        layer.weight.data[...] = codes * scale

accuracy = {"32 bits": full.score(digits.X_test, digits.y_test)}
accuracy["rounded to 1 bit afterwards"] = rounded.score(digits.X_test, digits.y_test)
for name, value in accuracy.items():
    print(f"{name:30} {value:.1%}")
assert accuracy["rounded to 1 bit afterwards"] < accuracy["32 bits"] - 0.1

# %% [markdown]
# So the network has to be trained *knowing* that only signs count. Which brings us to the second question.
#
# ## 2. A derivative of zero
#
# The code $b = \text{sign}(w)$ is a step: flat on both sides, with a jump at 0. Its derivative is 0 wherever it exists.
# Gradient descent multiplies by it, and nothing ever moves.
#
# The way out looks like cheating. Keep a float $w$, the **latent weight**. Forward: use $b = \text{sign}(w)$. Backward:
# pretend that the step was not there and hand the gradient of $b$ straight through to $w$ (the *straight-through
# estimator*; Bengio et al. 2013, arXiv 1308.3432). The latent weight then adds up evidence, and the sign changes when
# there is enough of it.
#
# One weight, $L = (b - t)^2$, so $g = 2 (b - t)$ and $w \leftarrow w - \eta\, g$ with $\eta = 0.05$. Start: $w = 0.35$.
#
# **Predict** by hand for the target $t = -1$: after how many steps does the sign flip? And then for $t = 0.5$, which no
# sign can reach: what will $b$ do, and what will be its *mean* over many steps?


# %%
def one_weight(target, steps=200, lr=0.05, w=0.35):
    path = []
    for _ in range(steps):
        b = 1.0 if w >= 0 else -1.0
        path.append((w, b))
        w -= lr * 2 * (b - target)
    return np.array(path).T


latent, code = one_weight(target=-1)
print("t = -1:  latent", latent[:5].round(2), " code", code[:5])
assert code[:4].tolist() == [1, 1, -1, -1]  # 0.35, 0.15, -0.05: two steps, and then the gradient is 0

latent, code = one_weight(target=0.5)
print(f"t = 0.5: mean of the code over the last 160 steps {code[-160:].mean():.2f}")
assert abs(code[-160:].mean() - 0.5) < 0.02

# %%
fig = new_figure(9.5, 3.4)
axes = fig.subplots(1, 2, sharey=True)
for ax, target in zip(axes, (-1, 0.5), strict=True):
    latent, code = one_weight(target, steps=30)
    ax.step(range(30), code, where="mid", color=PALETTE[1], label="code $b$ (the forward pass sees this)")
    ax.plot(latent, "o-", markersize=3, color=PALETTE[0], label="latent $w$ (the optimiser sees this)")
    ax.axhline(target, color="0.3", linestyle=":", label="target $t$")
    ax.set(title=f"target {target}", xlabel="step")
    ax.grid(alpha=0.3)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
fig

# %% [markdown]
# A weight that cannot reach its target *oscillates*, and the mean of its signs is the target: at $b = 1$ the latent
# weight falls by 0.05, at $b = -1$ it rises by 0.15, so it is $+1$ three times out of four. Nice for the mean; in a
# network it is noise, and tutorial 08 measures it.
#
# ## 3. Which lie is best?
#
# "Pretend the step is the identity" is one choice. The library has four stand-ins, and each is a slope $a(v)$ that
# multiplies g, at $v = w / \beta$: `identity`; `clipped`, which forgets weights far from 0; `approx_sign`, a tent that
# believes weights near the jump; `ede`, which turns from the identity into the true step as training goes on.

# %%
print(inspect.getsource(ste.slope))
print(inspect.getsource(ste.Binary))

# %%
grid = np.linspace(-2, 2, 401)  # mean |w| is 1, so that w is v
fig = new_figure(9.5, 3.2)
left, right = fig.subplots(1, 2)
left.plot(grid, tb.functional.binary(grid, centre=False).numpy(), color=PALETTE[0])
left.set(title="forward: a step", xlabel="$v = w / \\beta$", ylabel="$y / \\beta$", yticks=[-1, 0, 1])
for name, line, color in zip(ste.STE, ("-", "--", "-.", ":"), PALETTE, strict=False):
    w = tb.Tensor(grid, requires_grad=True)
    tb.functional.binary(w, centre=False, ste=name, temperature=2.0).backward(np.ones_like(grid))
    right.plot(grid, w.grad, line, color=color, linewidth=2, label=name)
    if name == "approx_sign":
        assert abs(w.grad.sum() * (grid[1] - grid[0]) - 2) < 0.02  # as high as the step: from -1 to 1
right.set(title="backward: the slope it pretends", xlabel="$v = w / \\beta$", ylabel="$a(v)$")
right.legend(frameon=False)
for ax in (left, right):
    ax.grid(alpha=0.3)
fig

# %% [markdown]
# **Predict**: what does the gradient checker of tutorial 01 say about `Binary`?

# %%
try:
    tb.gradcheck.check_op(ste.Binary, rng.standard_normal((3, 8)))
    raise RuntimeError("the checker believed it")
except AssertionError as error:
    print(error)

# %% [markdown]
# It refuses, rightly: the backward pass is *not* the derivative of the forward pass. (The finite difference is not
# exactly 0, because the scale $\beta$ moves a little with every weight; the library treats scales as constants.) A
# straight-through gradient is tested against what it claims to be: the identity, with the signs and scales frozen.
#
# ## 4. A student of signs
#
# A teacher with hidden weights $\pm 0.5$, 64 of them. A student who sees inputs and answers, and whose weights are
# signs times a scale. Gradient descent on the latent weights, once with the true derivative of the code (0), once
# straight through.
#
# **Predict**: what share of the signs does the student get right at the start? And at the end?

# %%
teacher = 0.5 * rng.choice([-1.0, 1.0], size=(1, 64)).astype("float32")
x = rng.standard_normal((256, 64), dtype="float32")
answers = x @ teacher.T
start = 0.3 * rng.standard_normal((1, 64), dtype="float32")


def learn(straight_through, steps=150):
    latent = tb.nn.Parameter(start.copy())
    optimizer, right, path = SGD([latent], lr=0.01), [], []
    for _ in range(steps):
        weight = tb.functional.binary(latent)
        if not straight_through:
            weight = weight.detach() + 0.0 * latent  # the same forward; the derivative of the code is 0
        loss = F.mse_loss(F.linear(tb.Tensor(x), weight), tb.Tensor(answers))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append(float(((weight.numpy() > 0) == (teacher > 0)).mean()))
        path.append(latent.data[0].copy())
    return right, np.array(path)


honest, still = learn(straight_through=False)
right_signs, path = learn(straight_through=True)
print(f"right signs: at the start {right_signs[0]:.0%}, true derivative {honest[-1]:.0%}, STE {right_signs[-1]:.0%}")
assert np.array_equal(still[0], still[-1])  # nothing moved at all
assert right_signs[-1] > 0.95

# %%
fig = new_figure(9.5, 3.4)
left, right = fig.subplots(1, 2)
left.plot(100 * np.array(right_signs), color=PALETTE[0], label="straight-through")
left.plot(100 * np.array(honest), "--", color=PALETTE[1], label="true derivative")
left.set(xlabel="step", ylabel="right signs (%)", ylim=(0, 105), title="the student's signs")
left.legend(frameon=False, loc="lower right")
for i in range(24):
    crosses = path[0, i] * path[-1, i] < 0
    right.plot(path[:, i], color=PALETTE[1] if crosses else "0.75", linewidth=1.2, zorder=2 + crosses)
right.axhline(0, color="black", linewidth=0.8)
right.set(xlabel="step", ylabel="latent weight", title="24 latent weights; orange: changed sign")
for ax in (left, right):
    ax.grid(alpha=0.3)
fig

# %% [markdown]
# ## 5. The layer
#
# `BitLinear` puts the pieces together. `quantize_input` rounds the activations to 8 bits, which is the subject of
# tutorial 06; the signs are taken by `layer.quantizer`, which `Quantize` asks for codes and scale. (Without a graph to
# record, the layer computes with whole numbers: tutorial 07.)

# %%
print(inspect.getsource(BitLinear.forward))
print(inspect.getsource(Quantize.forward))

# %% [markdown]
# "My weights are still floats!" is the most asked question of this field. Three things have three names:
#
# - `layer.weight`: the latent weight. A float; the optimiser moves it; it exists during training only.
# - `layer.quantized_weight()`: what the forward pass multiplies by. Two values a row.
# - the bytes that are shipped: a `PackedLinear`, tutorial 07.
#
# **Predict**: how many different numbers does each row of the three hold?

# %%
layer = BitLinear(64, 8, bits=1, rng=rng)
packed = tb.quant.PackedLinear.from_bitlinear(layer)
for name, weight in (("latent", layer.weight.data), ("quantised", layer.quantized_weight())):
    print(f"{name:9} {weight[0, :5].round(3)} ... {len(np.unique(weight[0]))} different values in row 0")
print(f"packed    {packed.packed.shape} {packed.packed.dtype}: {packed.packed.nbytes} bytes for 512 weights")
assert all(len(np.unique(row)) == 2 for row in layer.quantized_weight())
assert packed.packed.nbytes == 512 // 8

# %% [markdown]
# ## 6. A Vision Transformer of signs
#
# **Predict** its accuracy, given what rounding afterwards did.

# %%
signs = tb.ViT(bits=1, **options).fit(digits.X_train, digits.y_train)
accuracy["trained with 1 bit"] = signs.score(digits.X_test, digits.y_test)
for name, value in accuracy.items():
    print(f"{name:30} {value:.1%}")
assert accuracy["trained with 1 bit"] > 0.9
assert accuracy["trained with 1 bit"] > accuracy["rounded to 1 bit afterwards"] + 0.1

fig = new_figure(8, 2.2)
ax = fig.subplots()
bars = ax.barh(list(accuracy), [100 * a for a in accuracy.values()], color=[PALETTE[0], PALETTE[1], PALETTE[2]])
ax.bar_label(bars, fmt="%.1f %%", padding=3)
ax.invert_yaxis()
ax.set(xlim=(0, 112), xlabel="test accuracy (%)")
fig

# %% [markdown]
# ## What you take along
#
# - One bit: $w \approx \beta\, \text{sign}(w - \mu)$. The best scale is a mean of absolute values.
# - The code's derivative is 0, so the backward pass lies, and the latent weight collects the evidence.
# - Rounding after training destroys; training through the rounding repairs.
#
# ## Exercises
#
# 1. By hand: quantise the row $(0.9, 0.5, 0.7, 0.3)$ with and without centring. Which squared error is smaller?
#    Now write $w \approx \mu + \beta b$ instead of $\beta b$ and do it again. What would it cost to store $\mu$?
# 2. Show that $\beta = \text{mean} |w|$ minimises the squared error for the signs of $w$, and that these signs are the
#    best ones.
# 3. In `one_weight`, derive the share of steps with $b = +1$ for any target $|t| < 1$, and check it. What does a
#    smaller learning rate change? What would momentum?
# 4. Train the ViT with `ste="clipped"` and `"approx_sign"` (`tb.models.VisionTransformer` and `tb.train.Trainer`, as in
#    tutorial 06), three seeds each. Is any difference larger than the scatter between seeds?
# 5. *(harder)* How low can the batch size go before the student of section 4 fails? Explain with the step size of the
#    latent weights and their distance from 0.
