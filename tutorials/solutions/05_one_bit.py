# %% [markdown]
# # 05 Solutions of the exercises
#
# The exercises of lesson 05, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.course import mine, use
from tinybitvit.optim import SGD, AdamW
from tinybitvit.quant import BitLinear, find_quantizer

binary_codes, signs_step, slope = mine("binary_codes", "signs_step", "slope")
digits = tb.data.load_digits()


def rows(images):
    return ((images - digits.X_train.mean()) / digits.X_train.std()).reshape(len(images), -1).astype("float32")


def run(layers, x):
    h = tb.Tensor(x)
    for layer in layers[:-1]:
        h = F.gelu(layer(h))
    return layers[-1](h)


def train_signs(seed, lie, steps=150, optimizer=AdamW, lr=0.01):
    """The track of section 6, half as long: the accuracy, and the share of codes that changed, in percent."""
    rng, quantizer = np.random.default_rng(seed), find_quantizer("binary", ste="clipped")
    widths = ((64, 32, False), (32, 32, True), (32, 10, True))
    layers = [BitLinear(a, b, quantizer=quantizer, norm=norm, rng=rng) for a, b, norm in widths]
    before = [layer.codes()[0] for layer in layers]
    steps_of = optimizer([p for layer in layers for p in layer.parameters()], lr=lr, weight_decay=0.0)
    with use(slope=lie):
        for _ in range(steps):
            pick = rng.integers(0, len(digits.X_train), 128)
            loss = F.cross_entropy(run(layers, rows(digits.X_train[pick])), digits.y_train[pick])
            steps_of.zero_grad()
            loss.backward()
            steps_of.step()
    with tb.no_grad():
        right = run(layers, rows(digits.X_test)).numpy().argmax(axis=1) == digits.y_test
    flipped = np.mean([(layer.codes()[0] != old).mean() for layer, old in zip(layers, before, strict=True)])
    return 100 * right.mean(), 100 * flipped


# %% [markdown]
# ## 1. With a mean, without, and with the mean kept
#
# Hint: the mean is $0.6$. What are the four $w - \mu$, and what is the mean of their sizes?
#
# Without subtracting, all signs are $+1$ and $\beta = 0.6$: the row becomes $0.6$ four times, and the error is
# $0.09 + 0.01 + 0.01 + 0.09 = 0.2$. With signs of $w - \mu$ the codes are $+ - + -$ and $\beta = 0.2$: the row becomes
# $\pm 0.2$, and the error *grows*, because the mean itself is lost. With $\mu + \beta b$ both are kept.

# %% kind="solution"
w = np.array([[0.9, 0.5, 0.7, 0.3]])
codes, beta = binary_codes(w)
mean = w.mean()
errors = {
    "signs of w": ((w - np.abs(w).mean() * np.sign(w)) ** 2).sum(),
    "signs of w - mean": ((w - beta * codes) ** 2).sum(),
    "mean + signs": ((w - mean - beta * codes) ** 2).sum(),
}
for name, error in errors.items():
    print(f"{name:18} {error:.2f}")
assert np.allclose(list(errors.values()), [0.2, 1.48, 0.04])
print("to store the mean: 4 bytes a row, and a second sum: (mean + beta b) x = mean sum(x) + beta (b x)")

# %% [markdown]
# A network can live without the mean, because a constant added to all weights of a row adds $\mu \sum x$ to its output,
# and behind a norm with a mean of 0 (or for a bias) that is little.
#
# ## 2. The share of +1
#
# Hint: in the long run the latent weight stays where it is. How much does it fall at $b = +1$, and rise at $b = -1$?
#
# At $+1$ it falls by $2 \eta (1 - t)$, at $-1$ it rises by $2 \eta (1 + t)$. With the share $p$ of $+1$ the two cancel:
# $p (1 - t) = (1 - p) (1 + t)$, so $p = (1 + t) / 2$, and the mean of $b$ is $p - (1 - p) = t$. The rate cancels: a
# smaller $\eta$ makes the swings of $w$ smaller, not rarer. It only takes longer to come to 0.


# %% kind="solution"
def share_of_plus(target, lr, steps=4000, w=0.35):
    codes = []
    for _ in range(steps):
        codes.append(1.0 if w >= 0 else -1.0)
        w -= lr * 2 * (codes[-1] - target)
    return (np.array(codes[steps // 2 :]) > 0).mean()


for target in (-0.8, -0.3, 0.0, 0.5, 0.9):
    shares = [share_of_plus(target, lr) for lr in (0.05, 0.005)]
    print(
        f"t = {target:4}: +1 in {shares[0]:.1%} and {shares[1]:.1%} of the steps, (1 + t) / 2 = {(1 + target) / 2:.1%}"
    )
    assert np.allclose(shares, (1 + target) / 2, atol=0.01)

# %% [markdown]
# ## 3. The width of the tent
#
# Hint: `train_signs(seed, lie=lambda v: slope(v, width))`. How many weights of a normal distribution lie within 0.1
# scales of 0?
#
# Few: with a width of 0.1, 6 % of the weights can move at all. With AdamW the height does not matter, since it divides
# each gradient by its usual size; what matters is who gets any.

# %% kind="solution"
found = {}
for width in (0.1, 0.3, 1.0, 3.0, 10.0):
    found[width] = np.mean([train_signs(seed, lambda v, width=width: slope(v, width)) for seed in range(5)], axis=0)
    print(f"width {width:4}: {found[width][0]:.1f}% right, {found[width][1]:.1f}% of the codes changed")
assert found[0.1][0] < found[0.3][0] < found[1.0][0]
assert found[0.1][1] < found[1.0][1]

# %% [markdown]
# ## 4. Small batches
#
# Hint: with a batch of $n$ the latent weight moves by $2 \eta (y - t)\, x / n$ for each example. What does that do to
# the $y$ of the same example, if the weight were used as it is?
#
# It changes $y$ by $2 \eta |x|^2 / n$ times the error. With 64 inputs $|x|^2$ is about 64, so the factor is
# $128\, \eta / n$: below 1 the step goes towards $t$, far above 1 it overshoots, and the signs are shaken at random.

# %% kind="solution"
rng = np.random.default_rng(0)
teacher = 0.5 * rng.choice([-1.0, 1.0], size=(1, 64))
for lr in (0.03, 0.1):
    for batch in (1, 4, 16, 64):
        latent = 0.3 * rng.standard_normal((1, 64))
        for _ in range(150):
            x = rng.standard_normal((batch, 64))
            latent = signs_step(latent, x, x @ teacher.T, lr)
        right, factor = ((latent > latent.mean()) == (teacher > 0)).mean(), 128 * lr / batch
        print(f"lr {lr}, batch {batch:2}: {right:.0%} of the signs right, factor {factor:.2f}")
        assert (right > 0.9) == (factor < 1)

# %% [markdown]
# ## 5. Plain gradient descent
#
# Hint: what does AdamW do with a gradient that is ten times as large, in all steps?
#
# It divides it out. SGD does not: there a slope of 0.67 is two thirds of the learning rate, and each lie has a rate of
# its own at which it is best. Compare each at its best rate, or you compare rates.

# %% kind="solution"
lies = {"identity": np.ones_like, "wide": lambda v: slope(v, 3.0), "narrow": lambda v: slope(v, 0.3)}
best = {}
for name, lie in lies.items():
    by_rate = {lr: np.mean([train_signs(s, lie, optimizer=SGD, lr=lr)[0] for s in range(3)]) for lr in (0.1, 0.3, 1)}
    best[name] = max(by_rate.values())
    print(f"{name:9}", {lr: f"{value:.1f}%" for lr, value in by_rate.items()})
assert best["narrow"] < best["identity"]
