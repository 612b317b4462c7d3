# %% [markdown]
# # 06 Solutions of the exercises
#
# The exercises of lesson 06, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.course import mine
from tinybitvit.optim import AdamW
from tinybitvit.quant import BitLinear, Quantizer

absmax_codes, ternary_codes = mine("absmax_codes", "ternary_codes")
digits = tb.data.load_digits()


def run(layers, images):
    pixels = (images - digits.X_train.mean()) / digits.X_train.std()
    h = tb.Tensor(pixels.reshape(len(images), -1).astype("float32"))
    for layer in layers[:-1]:
        h = F.gelu(layer(h))
    return layers[-1](h)


def train(seed, kind, steps=300, **options):
    """The three layers of section 6; the accuracy in percent, and the layers."""
    rng, widths = np.random.default_rng(seed), ((64, 32, False), (32, 32, True), (32, 10, True))
    layers = [BitLinear(a, b, quantizer=kind, norm=norm, rng=rng, **options) for a, b, norm in widths]
    optimizer = AdamW([p for layer in layers for p in layer.parameters()], lr=0.01, weight_decay=0)
    for _ in range(steps):
        pick = rng.integers(0, len(digits.X_train), 128)
        loss = F.cross_entropy(run(layers, digits.X_train[pick]), digits.y_train[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return right(layers), layers


def right(layers):
    with tb.no_grad():
        return 100 * (run(layers, digits.X_test).numpy().argmax(axis=1) == digits.y_test).mean()


# %% [markdown]
# ## 1. Mean and median
#
# Hint: the mean of $|w|$ is $0.4$, and $0.2$ is exactly half of it. Which way does `round(0.5)` go? The median is
# $0.2$.
#
# With the mean, $w / \beta = (0.5, 0.5, 0.5, -2.5)$: three zeros and a $-1$, so the row becomes $(0, 0, 0, -0.4)$.
# With the median, $w / \beta = (1, 1, 1, -5)$: no zeros, $(0.2, 0.2, 0.2, -0.2)$. The three small ones are exact, and
# the large one is worse.

# %% kind="solution"
w = np.array([[0.2, 0.2, 0.2, -1.0]])
for name, beta in (("mean", np.abs(w).mean()), ("median", np.median(np.abs(w)))):
    codes = np.clip(np.round(w / beta), -1, 1)
    print(f"{name:7} codes {codes[0] + 0}, squared error {((w - beta * codes) ** 2).sum():.2f}")
assert np.isclose(((w - 0.4 * ternary_codes(w)[0]) ** 2).sum(), 0.48)

# %% [markdown]
# ## 2. Divided instead of multiplied
#
# Hint: when is $1 / \beta = \beta$? And by what factor is a row wrong otherwise?
#
# Nobody notices at $\beta = 1$. Otherwise the row is too large by $1 / \beta^2$: with $\beta = 0.05$, 400 times. A norm
# behind the layer divides by the size of its input, so that a factor common to *all* rows vanishes. The factors of the
# rows differ, though: those with small weights become the loud ones. With one scale for the whole tensor the mistake
# can hide for good.

# %% kind="solution"
rng = np.random.default_rng(0)
w = 0.1 * rng.standard_normal((32, 64)) * rng.uniform(0.5, 2, (32, 1))
x = rng.standard_normal((100, 64))
codes, beta = ternary_codes(w)


def normed(y):
    return y / np.sqrt((y * y).mean(axis=-1, keepdims=True))


scales = {"one for each row": beta, "one for all": np.full_like(beta, beta.mean())}
off = {}
for name, scale in scales.items():
    good, bad = normed(x @ (codes * scale).T), normed(x @ (codes / scale).T)
    off[name] = np.abs(good - bad).mean()
    print(f"behind a norm, {name:16}: off by {off[name]:.2f} on average")
assert off["one for all"] < 1e-9 < off["one for each row"]

# %% [markdown]
# ## 3. The best threshold
#
# Hint: with the best level, the error is $\sum w^2 - n_\Delta\, m_\Delta^2$, where $n_\Delta$ weights survive, and
# $m_\Delta$ is the mean of their sizes. So maximise $n_\Delta\, m_\Delta^2$ over $\Delta$.
#
# For a normal distribution: the share that survives is $2 (1 - \Phi(\Delta))$, the sum of sizes
# $2\, \varphi(\Delta)$ for each weight. Sort the sizes, and cumulative sums give all thresholds at once.

# %% kind="solution"
size = np.sort(np.abs(rng.standard_normal(1_000_000)))[::-1]
total, count = np.cumsum(size), np.arange(1, len(size) + 1)
k = (total**2 / count).argmax()
threshold, level, zeros = size[k], total[k] / count[k], 1 - count[k] / len(size)
print(f"threshold {threshold:.2f}, level {level:.2f}, zeros {zeros:.0%}")
print(f"relative error {1 - (total[k] ** 2 / count[k]) / (size**2).sum():.3f}")
assert abs(threshold - 0.61) < 0.03
assert abs(level - 1.22) < 0.03

# %% [markdown]
# ## 4. Activations of 4 bits
#
# Hint: the codes run from $-7$ to 7. Exchange `activation_bits` of one layer at a time in a network that was trained
# with 8 bits, and see where it hurts.
#
# In training it costs little: the network learns around the coarse steps, as it does for the weights. Afterwards the
# layers behind a GELU suffer: most of their inputs are near 0 and lie within half a step of it.

# %% kind="solution"
four = np.array([train(seed, "ternary", activation_bits=4)[0] for seed in range(5)])
trained = [train(seed, "ternary") for seed in range(5)]
eight = np.array([found for found, _ in trained])
print(f"8 bits {eight.mean():.1f}% +- {eight.std(ddof=1):.1f}, 4 bits {four.mean():.1f}% +- {four.std(ddof=1):.1f}")
lost = []
for place in range(3):
    after = []
    for _, layers in trained:
        layers[place].activation_bits = 4
        after.append(right(layers))
        layers[place].activation_bits = 8
    lost.append(eight.mean() - np.mean(after))
    print(f"only layer {place} at 4 bits, afterwards: {lost[-1]:.1f} points lost")
assert eight.mean() - four.mean() < 8

# %% [markdown]
# ## 5. Zeros or level
#
# Hint: a quantiser with two numbers, the threshold and the level, both in units of the mean $|w|$. `Largest` has about
# 1.3 and 2.6 of them on these rows; BitNet has 0.5 and 1. Cross them: that is four quantisers.
#
# A prediction that can fail: "the zeros cost it, because 80 % of the inputs are not heard; the level alone is undone by
# the norm of the next layer." If the level alone costs as much, it is wrong.


# %% kind="solution"
class Knobs(Quantizer):
    name, levels = "knobs", (-1, 0, 1)

    def __init__(self, threshold, level):
        super().__init__()
        self.threshold, self.level = threshold, level

    def codes(self, xp, w):
        size = self.size(xp, w)
        return xp.where(xp.abs(w) > self.threshold * size, xp.sign(w), 0), self.level * size


found = {}
for knobs in ((0.5, 1.0), (0.5, 2.6), (1.3, 1.0), (1.3, 2.6)):
    runs = [train(seed, Knobs(*knobs)) for seed in range(5)]
    found[knobs] = np.array([value for value, _ in runs])
    zeros = np.mean([(layer.codes()[0] == 0).mean() for _, layers in runs for layer in layers])
    print(
        f"threshold {knobs[0]}, level {knobs[1]}: {found[knobs].mean():.1f}% +- {found[knobs].std(ddof=1):.1f}, ",
        end="",
    )
    print(f"zeros {zeros:.0%}")
assert min(values.mean() for values in found.values()) > 80
