# %% [markdown]
# # 06 1.58 bits: ternary weights and 8-bit activations
#
# One bit cannot say "this input does not matter". Three values can: $-1, 0, +1$. They carry $\log_2 3 = 1.58$ bits, and
# with activations of 8 bits the matrix product becomes additions of whole numbers. This is BitNet b1.58 (Ma et al.
# 2024, arXiv 2402.17764), the recipe behind `tb.ViT(bits=1.58)`.
#
# At the end you write a quantiser of your own, with a smaller error than BitNet's, and ask whether it is a better one.
#
# You need: tutorial 05.

# %%
import inspect
import math
import time

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.course import answer, check, keep, mine, parts, predict, solution, unuse, use, yours
from tinybitvit.ops import ste
from tinybitvit.optim import AdamW
from tinybitvit.quant import BitLinear, Quantizer
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)
binary_codes = mine("binary_codes")

# %% [markdown]
# ## 1. Four weights again
#
# Equations 1 to 3 of the paper, with a scale for each row where the paper has one for the matrix: divide by the mean
# absolute value, round, clip.
#
# $$\beta = \frac1n \sum_i |w_i|, \qquad t_i = \text{clip}\!\left(\text{round}(w_i / \beta), -1, 1\right), \qquad
# w_i \approx \beta\, t_i .$$
#
# What are the codes of $w = (0.9, -0.1, 0.4, -0.6)$? And which weight comes out far too small?

# %% kind="predict"
guess = predict("codes of (0.9, -0.1, 0.4, -0.6)", choices=["+-+-", "+0+-", "+00-"])


# %% kind="naive"
def ternary_loops(w):
    """Codes and scales, one weight after the other."""
    codes, scales = [], []
    for row in w:
        beta = sum(abs(weight) for weight in row) / len(row)
        codes.append([max(-1, min(1, round(weight / beta))) for weight in row])
        scales.append([beta])
    return np.array(codes), np.array(scales)


# %% [markdown]
# It works, weight by weight, and fails on a row of zeros. Write it for a whole matrix at once, without a loop. (Both
# `round` and `np.round` go to the even neighbour from exactly halfway, as PyTorch does.)


# %% kind="your-turn"
@yours("6.1")
def ternary_codes(w):
    """Codes -1, 0, +1 (out, K) of the weights w (out, K), and their scale (out, 1), never below 1e-5."""
    # [[4, -1, 1, -2]] gives [[1, 0, 0, -1]] and [[2]]
    ...


check(ternary_codes)


# %% kind="solution"
@solution("6.1")
def ternary_codes(w):
    """Codes -1, 0, +1 (out, K) of the weights w (out, K), and their scale (out, 1), never below 1e-5."""
    beta = np.maximum(np.abs(w).mean(axis=-1, keepdims=True), 1e-5)
    return np.clip(np.round(w / beta), -1, 1), beta


# %% kind="answer"
w = np.array([[0.9, -0.1, 0.4, -0.6]])
codes, beta = ternary_codes(w)
found = "".join({-1: "-", 0: "0", 1: "+"}[code] for code in codes[0].tolist())
answer("codes of (0.9, -0.1, 0.4, -0.6)", "+0+-", measured=found)
print(f"beta {beta.item():.2f}, so in place of w: {(codes * beta)[0] + 0}; the 0.9 lost nearly half")

# %%
w = rng.standard_normal((256, 256))
began = time.perf_counter()
slow = ternary_loops(w)
middle = time.perf_counter()
fast = ternary_codes(w)
ended = time.perf_counter()
print(f"256 x 256 weights: loops {1000 * (middle - began):.0f} ms, yours {1000 * (ended - middle):.1f} ms")
print("the same codes:", bool((slow[0] == fast[0]).all()))

# %% [markdown]
# A weight becomes 0 where $|w| < \beta / 2$: half of the mean magnitude is the threshold. For weights from a normal
# distribution, what share is that? (The name says 1.58 bits, the entropy of three *equally* frequent values.)

# %% kind="predict"
guess = predict("share of zeros", "%")

# %% kind="answer"
w = rng.standard_normal((1, 200_000))
codes, beta = ternary_codes(w)
shares = np.array([(codes == c).mean() for c in (-1, 0, 1)])
entropy = -(shares * np.log2(shares)).sum()
answer("share of zeros", 31, measured=100 * shares[1], tolerance=0.7, unit="%")
print(f"shares of -1, 0, +1: {shares.round(3)}; entropy {entropy:.4f} bits, of at most {math.log2(3):.4f}")
assert entropy > 1.58

# %% kind="see"
fig = new_figure(5, 3)
ax = fig.subplots()
bins = np.linspace(-3.5, 3.5, 141)
for code, color, hatch in zip((-1, 0, 1), (PALETTE[0], "0.75", PALETTE[1]), ("//", "", "\\\\"), strict=True):
    ax.hist(w[codes == code], bins, color=color, hatch=hatch, edgecolor="white", linewidth=0, label=f"code {code}")
for level in (-1, 0, 1):
    ax.axvline(level * beta.item(), color="black", linestyle="--", label="the three levels" if level == 1 else None)
ax.set(xlabel="weight", ylabel="how many", title="normal weights, three levels: nearly a third each")
ax.legend(frameon=False)
fig

# %% [markdown]
# With one bit 36 % of the energy of such weights was lost. How much is it with three values?

# %% kind="predict"
guess = predict("energy lost with three values", "%")


# %% kind="answer"
def relative_error(w, codes, scale):
    """What is lost of the energy of w, from 0 to 1."""
    return ((w - codes * scale) ** 2).sum() / (w**2).sum()


lost = 100 * relative_error(w, codes, beta)
answer("energy lost with three values", 26.3, measured=lost, tolerance=0.5, unit="%")
print(f"one bit, with your binary_codes: {100 * relative_error(w, *binary_codes(w)):.1f}%")

# %% [markdown]
# The library's function is yours, with a choice of the scale.

# %%
print(inspect.getsource(ste.ternary_codes))

# %% [markdown]
# ## 2. Activations: 8 bits a token
#
# The inputs of the layer, its **activations**, are quantised too, to the whole numbers from $-127$ to 127. Each token
# has a scale of its own, so that its largest number becomes 127:
#
# $$s = \frac{127}{\max_i |x_i|}, \qquad c_i = \text{round}(s\, x_i), \qquad x_i \approx c_i / s .$$
#
# The code of 0.5 in the token $(0.5, -1, 0.25)$ is 64. $1 / s$ is called the **step**: value = code times step.


# %% kind="your-turn"
@yours("6.2")
def absmax_codes(x):
    """Codes from -127 to 127 of x (..., K), and the step (..., 1) of each token, its largest |x| never below 1e-5."""
    # [[0.5, -1.0, 0.25]] gives [[64, -127, 32]] and [[1 / 127]]
    ...


check(absmax_codes)


# %% kind="solution"
@solution("6.2")
def absmax_codes(x):
    """Codes from -127 to 127 of x (..., K), and the step (..., 1) of each token, its largest |x| never below 1e-5."""
    step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5) / 127
    return np.round(x / step), step


# %% [markdown]
# A token of 256 normal numbers uses about 120 different codes. Now one of its numbers becomes 100, an *outlier*. How
# many different codes are left for the token?

# %% kind="predict"
guess = predict("codes with an outlier", choices=["about 10", "about 40", "about 100"])

# %%
token = rng.standard_normal((1, 256))
spoilt = token.copy()
spoilt[0, 0] = 100

# %% kind="answer"
used = [len(np.unique(absmax_codes(values)[0])) for values in (token, spoilt)]
print(f"without the outlier {used[0]} different codes, with it {used[1]}")
answer("codes with an outlier", "about 10")
assert used[1] < 15

# %% kind="see"
fig = new_figure(6.5, 3.4)
axes = fig.subplots(1, 2, sharey=True)
for ax, values, title in zip(axes, (token, spoilt), ("a good token", "with one outlier of 100"), strict=True):
    codes, step = absmax_codes(values)
    back = codes * step
    assert abs(back - values).max() <= step.item() / 2 * 1.0001  # rounding errs by half a step, never more
    ax.plot(values[0], back[0], "o", markersize=4, color=PALETTE[0])
    ax.plot([-3, 3], [-3, 3], color="0.5", linewidth=0.8, zorder=0)
    ax.set(title=title, xlabel="activation", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
    ax.grid(alpha=0.3)
axes[0].set_ylabel("after 8 bits")
fig

# %% [markdown]
# One large number takes the resolution from all others. That is why there is a scale per *token*, and why a norm stands
# directly in front of each low-bit matrix product (**SubLN**; Wang et al. 2022, arXiv 2210.06423).
#
# ## 3. Whole numbers
#
# With codes $c$ of the token and $t$ of a row of weights, the product needs no multiplication:
#
# $$y = \frac{\beta}{s} \sum_i c_i t_i = \frac{\beta}{s} \Big( \sum_{t_i = +1} c_i - \sum_{t_i = -1} c_i \Big) .$$


# %% kind="naive"
def by_adding(c, t):
    """c (n, K) times t (out, K): only sums and differences of whole numbers."""
    y = np.zeros((len(c), len(t)), dtype=int)
    for n, token in enumerate(c.astype(int).tolist()):
        for o, row in enumerate(t.astype(int).tolist()):
            for number, weight in zip(token, row, strict=True):
                if weight == 1:
                    y[n, o] += number
                elif weight == -1:
                    y[n, o] -= number
    return y


# %% [markdown]
# A chip may do that; a program calls a matrix product of floats, which is fast and, for whole numbers, exact: a
# `float32` holds every whole number up to $2^{24}$. No partial sum is larger than $127 K$. How long may a row be?

# %% kind="predict"
guess = predict("longest exact row, K")

# %% kind="answer"
answer("longest exact row, K", 132104, measured=2**24 // 127)
print("2^24 + 1 as a float32:", int(np.float32(2**24) + np.float32(1)))

# %% [markdown]
# The forward pass of the layer: codes of both, one product of whole numbers, and then one scale a token and one a row.


# %% kind="your-turn"
@yours("6.3")
def bit_linear(x, w):
    """y = x_q w_q^T (n, out), from the codes: x (n, K) tokens of 8 bits, w (out, K) ternary."""
    # x = [[0.5, -1]], w = [[0.5, -1.5]]: codes (64, -127) and (0, -1), so 127 / 127 * 1 = 1
    ...


check(bit_linear)


# %% kind="solution"
@solution("6.3")
def bit_linear(x, w):
    """y = x_q w_q^T (n, out), from the codes: x (n, K) tokens of 8 bits, w (out, K) ternary."""
    c, step = absmax_codes(x)
    t, beta = ternary_codes(w)
    return (c @ t.T) * step * beta.T


# %% [markdown]
# In training the same layer has gradients, straight through both quantisers. The forward pass multiplied $x_q$ by
# $w_q^\mathsf{T}$, so the two gradients are those of a matrix product (tutorial 01) *of these two*: each is computed
# with the quantised other one, and then handed on as if nothing had been rounded.


# %% kind="your-turn"
@yours("6.4")
def bit_linear_backward(g, x, w):
    """(dL/dx, dL/dw) of y = x_q w_q^T, straight through both quantisers; g = dL/dy (n, out)."""
    ...


check(bit_linear_backward)


# %% kind="solution"
@solution("6.4")
def bit_linear_backward(g, x, w):
    """(dL/dx, dL/dw) of y = x_q w_q^T, straight through both quantisers; g = dL/dy (n, out)."""
    c, step = absmax_codes(x)
    t, beta = ternary_codes(w)
    return g @ (t * beta), g.T @ (c * step)


# %% [markdown]
# The library's layer, with your two quantisers in it:

# %%
use(ternary_codes=ternary_codes, absmax_codes=absmax_codes)
layer = BitLinear(96, 10, bits=1.58, bias=False, rng=rng)
x = tb.Tensor(rng.standard_normal((4, 96), dtype="float32"), requires_grad=True)
y, g = layer(x), rng.standard_normal((4, 10), dtype="float32")
y.backward(g)
pairs = {"y": (y.data, bit_linear(x.data, layer.weight.data))}
mine_dx, mine_dw = bit_linear_backward(g, x.data, layer.weight.data)
pairs |= {"dL/dx": (x.grad, mine_dx), "dL/dw": (layer.weight.grad, mine_dw)}
for name, (theirs, own) in pairs.items():
    print(f"{name:6} the layer's and yours differ by {np.abs(theirs - own).max():.1e}")

# %% kind="see"
assert all(np.allclose(theirs, own, atol=1e-4) for theirs, own in pairs.values())
c, _ = absmax_codes(x.data)
t, _ = ternary_codes(layer.weight.data)
assert np.array_equal(by_adding(c, t), c @ t.T), "the float product of whole numbers is exact"
print("by adding, and by a product of floats: the same whole numbers")

# %% [markdown]
# What the library does differently: the sums run through one scratch array, a norm may stand in front, and 1-bit inputs
# have codes, too. Where a graph is recorded, `forward` multiplies floats, so that the engine finds the gradients.

# %%
print(inspect.getsource(BitLinear._infer))

# %% [markdown]
# ## 4. The landscape of errors
#
# A ternary quantiser has two knobs: the threshold $\Delta$ up to which a weight becomes 0, and the level $\beta$ of the
# others. BitNet chooses $\beta = \text{mean}|w|$ and $\Delta = \beta / 2$. For normal weights, which pair has the
# smallest error $\sum (w - \hat w)^2$?

# %% kind="predict"
guess = predict(
    "the smallest error is at", choices=["BitNet's own", "more zeros, higher level", "fewer zeros, lower level"]
)

# %%
size = np.sort(np.abs(rng.standard_normal(20_000)))
head = np.concatenate([[0], np.cumsum(size)])
thresholds, levels = np.linspace(0, 2.4, 97), np.linspace(0.3, 2.6, 93)
zeros = np.searchsorted(size, thresholds)  # so many become 0
n, energy = len(size), (size**2).sum()
landscape = 1 + ((n - zeros) * levels[:, None] ** 2 - 2 * levels[:, None] * (head[-1] - head[zeros])) / energy
lowest = np.unravel_index(landscape.argmin(), landscape.shape)
mean, median = size.mean(), np.median(size)
rules = {
    "mean (BitNet)": (mean / 2, mean),
    "median": (median / 2, median),
    "lowest": (thresholds[lowest[1]], levels[lowest[0]]),
}

# %% kind="answer"
for name, (threshold, level) in rules.items():
    error = ((size - level * (size > threshold)) ** 2).sum() / energy
    print(f"{name:14} threshold {threshold:.2f}  level {level:.2f}  relative error {error:.3f}")
answer("the smallest error is at", "more zeros, higher level")
assert rules["lowest"][0] > 1.3 * mean / 2
assert rules["lowest"][1] > 1.3 * mean

# %% kind="see"
fig = new_figure(5, 3.8, formulas=True)
ax = fig.subplots()
lines = ax.contour(thresholds, levels, landscape, levels=[0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1.2, 2], colors="0.45")
ax.clabel(lines, fmt="%g", fontsize=9)
for (name, knobs), marker, color in zip(rules.items(), "osD", PALETTE, strict=False):
    ax.plot(*knobs, marker, markersize=10, color=color, label=name)
ax.set(xlabel="threshold $\\Delta$ (in $\\sigma$)", ylabel="level $\\beta$ (in $\\sigma$)")
ax.set_title("relative error of ternary weights")
ax.legend(framealpha=1)
fig

# %% [markdown]
# BitNet's level is too small and so is its threshold, by the measure of this picture: the error could be 0.19 instead
# of 0.26. And for small networks even the *median*, with 0.31, is recommended (Nielsen & Schneider-Kamp 2024, arXiv
# 2407.09527). Is something wrong with BitNet, or with the measure?
#
# ## 5. Your own quantiser
#
# Find out: build the better one. Everything in the library that knows of codes asks one object, a `Quantizer`, whether
# it trains, packs or exports. A class with `levels` and `codes` is enough (`docs/quantiser.md` has it all).
# Yours are Ternary Weight Networks (Li et al. 2016, arXiv 1605.04711): a weight is 0 up to $0.7\, \text{mean}|w|$, and
# the level is the best one for those that survive, the mean of *their* $|w|$.
#
# `self.size(xp, w)` is the mean $|w|$ of each row (out, 1). Write `xp.abs` instead of `np.abs`, and it runs on a GPU.


# %% kind="your-turn"
@yours("6.5")
class Survivors(Quantizer):
    """Three levels; 0 up to 0.7 mean |w|, and the scale is the mean |w| of the others."""

    name, levels, thresholds = "survivors", (-1, 0, 1), (-0.7, 0.7)

    def codes(self, xp, w):
        """Codes (out, K) of w (out, K), and their scale (out, 1), never below 1e-5."""
        # [[4, -1, 1, -2]]: the mean |w| is 2, so the codes are [[1, 0, 0, -1]], and the scale is [[3]]
        ...

    def units(self, xp, w, scale):
        return w / self.size(xp, w)  # the thresholds are multiples of the mean, not of the scale


check(Survivors)


# %% kind="solution"
@solution("6.5")
class Survivors(Quantizer):
    """Three levels; 0 up to 0.7 mean |w|, and the scale is the mean |w| of the others."""

    name, levels, thresholds = "survivors", (-1, 0, 1), (-0.7, 0.7)

    def codes(self, xp, w):
        """Codes (out, K) of w (out, K), and their scale (out, 1), never below 1e-5."""
        codes = xp.where(xp.abs(w) > 0.7 * self.size(xp, w), xp.sign(w), 0)
        count = xp.maximum(xp.abs(codes).sum(axis=-1, keepdims=True), 1)
        return codes, xp.maximum((w * codes).sum(axis=-1, keepdims=True) / count, 1e-5)

    def units(self, xp, w, scale):
        return w / self.size(xp, w)  # the thresholds are multiples of the mean, not of the scale


# %% [markdown]
# And one that nobody would call good: the level is the *largest* weight of the row, so that most others become 0.


# %%
class Largest(Quantizer):
    name, levels = "largest", (-1, 0, 1)

    def codes(self, xp, w):
        scale = xp.maximum(xp.abs(w).max(axis=-1, keepdims=True), 1e-5)
        return xp.rint(w / scale), scale


KINDS = {"mean": "ternary", "survivors": Survivors(), "largest": Largest()}
w = rng.standard_normal((64, 256)).astype("float32")
for name, kind in KINDS.items():
    codes, scale = BitLinear(256, 64, quantizer=kind).quantizer.codes(np, w)
    print(f"{name:9} zeros {np.mean(codes == 0):.0%}, relative error {relative_error(w, codes, scale):.2f}")

# %% [markdown]
# It goes into a whole network, and out of it as packed bytes, like any other:

# %%
digits = tb.data.load_digits()
own = tb.ViT(quantizer=Survivors(), dim=32, depth=1, epochs=8, random_state=0, verbose=0)
own.fit(digits.X_train, digits.y_train)
packed = own.pack()
same = np.array_equal(packed.predict(digits.X_test), own.predict(digits.X_test))
print(f"a ViT on your quantiser: {own.score(digits.X_test, digits.y_test):.1%}; packed, the same answers: {same}")

# %% kind="see"
codes, scale = Survivors().codes(np, w)
assert np.array_equal(codes, ste.twn_codes(np, w)[0])
assert np.allclose(scale, ste.twn_codes(np, w)[1], rtol=1e-5)
assert same
assert own.score(digits.X_test, digits.y_test) > 0.6

# %% [markdown]
# ## 6. The smaller error is not always the better one
#
# **The error of the weights is not the error of the outputs.** Two weights, $w = (1, 0.4)$. Quantiser A says $(1, 0)$,
# with an error of 0.16; quantiser B says $(0.7, 0.7)$, with an error of 0.18. The second input is ten times as large as
# the first. Whose *output* $w \cdot x$ is closer to the truth?

# %% kind="predict"
guess = predict("the better output", choices=["A", "B"])

# %% kind="answer"
w, x = np.array([1, 0.4]), rng.standard_normal((100_000, 2)) * [1, 10]
errors = {name: (((w - q) @ x.T) ** 2).mean() for name, q in (("A", [1, 0]), ("B", [0.7, 0.7]))}
print({name: f"{error:.1f}" for name, error in errors.items()}, "is the mean squared error of the output")
answer("the better output", "B", measured=min(errors, key=errors.get))

# %% [markdown]
# **And training goes on.** The error compares codes with latent weights, and who says that these are right? They are
# the place where gradients are added up. If the quantiser changes, training moves them elsewhere.
#
# So measure, on the track of tutorial 05, with eight seeds. Each quantiser is used in two ways: to round a network that
# was trained with 8 bits a weight (*afterwards*: only its `quantizer` is exchanged), and in training.


# %%
def run(layers, images):
    pixels = (images - digits.X_train.mean()) / digits.X_train.std()
    h = tb.Tensor(pixels.reshape(len(images), -1).astype("float32"))
    for layer in layers[:-1]:
        h = F.gelu(layer(h))
    return layers[-1](h)


def train(seed, kind, steps=300, **options):
    """Three layers, trained with a quantiser."""
    rng, widths = np.random.default_rng(seed), ((64, 32, False), (32, 32, True), (32, 10, True))
    layers = [BitLinear(a, b, quantizer=kind, norm=norm, rng=rng, **options) for a, b, norm in widths]
    optimizer = AdamW([p for layer in layers for p in layer.parameters()], lr=0.01, weight_decay=0)
    for _ in range(steps):
        pick = rng.integers(0, len(digits.X_train), 128)
        loss = F.cross_entropy(run(layers, digits.X_train[pick]), digits.y_train[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layers


# %%
def measure(layers):
    """Relative error of the weights, and test accuracy in percent."""
    errors = [relative_error(layer.weight.data, *layer.codes()) for layer in layers]
    with tb.no_grad():
        right = run(layers, digits.X_test).numpy().argmax(axis=1) == digits.y_test
    return np.mean(errors), 100 * right.mean()


def exchanged(layers, kind):
    for layer in layers:
        layer.quantizer = tb.quant.find_quantizer(kind)
    return layers


# %% [markdown]
# Your quantiser has a smaller error than the mean's, and the largest one twice as much. What will they be worth?

# %% kind="predict"
guess = predict("yours in training, against the mean", choices=["over 2 points better", "within 2 points", "worse"])
guess = predict("the largest afterwards, behind the mean", "points")
guess = predict("the largest in training, behind the mean", "points")

# %%
seeds = range(8)
eight_bits = [train(seed, "int8") for seed in seeds]
results = {("8 bits", "in training"): np.array([measure(layers) for layers in eight_bits])}
for name, kind in KINDS.items():
    results[name, "afterwards"] = np.array([measure(exchanged(layers, kind)) for layers in eight_bits])
    results[name, "in training"] = np.array([measure(train(seed, kind)) for seed in seeds])

# %% kind="answer"
for (name, when), found in results.items():
    error, right = found.T
    print(f"{name:9} {when:11}  error {error.mean():.2f}  {right.mean():5.1f}% +- {right.std(ddof=1):.1f}")
means = {key: found[:, 1].mean() for key, found in results.items()}
behind = {(name, when): means["mean", when] - means[name, when] for name, when in results if name != "8 bits"}
answer("yours in training, against the mean", "within 2 points")
answer("the largest afterwards, behind the mean", 25, measured=behind["largest", "afterwards"], tolerance=20)
answer("the largest in training, behind the mean", 1.8, measured=behind["largest", "in training"], tolerance=3)
assert abs(behind["survivors", "in training"]) < 2
assert results["survivors", "in training"][:, 0].mean() < 0.85 * results["mean", "in training"][:, 0].mean()
unuse()

# %% kind="see"
fig = new_figure(5.2, 3.8)
ax = fig.subplots()
markers = {"mean": "o", "survivors": "^", "largest": "s"}
for (name, when), found in results.items():
    if name != "8 bits":
        error, right = found.T
        color = PALETTE[int(when == "afterwards")]
        ax.plot([error.mean()] * 8, right, markers[name], color=color, markersize=8, alpha=0.5, label=f"{name}, {when}")
ax.axhline(means["8 bits", "in training"], color="0.4", linestyle=":", label="8 bits")
ax.set(xlabel="relative error of the weights", ylabel="test accuracy (%)", ylim=(20, 101), xlim=(0, 0.65))
ax.legend(frameon=False, loc="lower left", fontsize=9)
ax.grid(alpha=0.3)
fig

# %% [markdown]
# In training (blue) an error a quarter smaller buys nothing that eight seeds can see, and one twice as large costs a
# couple of points. Where training is over (orange), the same doubling costs ten times as many: there the weights are
# all we have, and their error does count.
#
# A proxy points the way from afar: half of the energy lost is bad. It does not choose between neighbours. **If you can
# measure the goal, measure it**, with several seeds, and report the scatter.
#
# ## What you take along
#
# Ternary: $\beta = \text{mean}|w|$, zero up to $\beta / 2$; nearly a third of each code. Activations: 8 bits, one scale
# a token, a norm in front. The product is a sum of whole numbers, exact in float32, and one scale at the end. A
# quantiser is judged by the trained network.
#
# **You can now**: write the forward and the backward pass of BitNet's layer; put a quantiser of your own into any
# network of the library; test a claim about quantisers with seeds and scatter.

# %%
keep(ternary_codes, absmax_codes, bit_linear, bit_linear_backward, Survivors)

# %% kind="see"
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/06](solutions/06_ternary_weights.ipynb).
#
# 1. (10 min) By hand: the row $(0.2, 0.2, 0.2, -1.0)$ with the mean and with the median of $|w|$ as $\beta$. Which
#    codes change? Hand in both errors.
# 2. (15 min) An article dequantises with $\hat w = t / \beta$ where it should say $\hat w = t\, \beta$. For which
#    $\beta$ would nobody notice? What does a norm behind the layer make of the mistake?
# 3. (30 min) Find the best threshold for normal weights: for a given $\Delta$ the best level is the mean of the
#    $|w| > \Delta$; minimise what remains. Hand in $\Delta$, the level, the share of zeros.
# 4. (30 min) Activations of 4 bits in place of 8: `train(seed, "ternary", activation_bits=4)`, five seeds. How many
#    points does it cost? Which layer suffers most?
# 5. (an evening) `Largest` has more zeros *and* a higher level. Which of them costs the points? Design quantisers
#    that separate the two, say beforehand which outcome would prove you wrong, and run five seeds of each.
