# %% [markdown]
# # 08 Solutions of the exercises
#
# The exercises of lesson 08, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit.course import mine, use
from tinybitvit.quant.watch import low_bit_layers
from tinybitvit.train import Trainer

adamw, rate_factor, taught_targets = mine("adamw", "rate_factor", "taught_targets")
use(adamw=adamw)
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
X_test, y_test = normalize(digits.X_test), digits.y_test


def train(bits=1.58, epochs=12, lr=1e-2, falling=True, source=None, targets=None, watch=None, seed=0):
    """That of the lesson."""
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
# ## 1. Where nothing saws
#
# Hint: when does the gradient $q - c$ have the sign of $q$ for both codes, and when for one only?
#
# For a target $c$ of 1 or more the gradient $1 - c$ is at most 0: $w$ grows for ever (at $c = 1$ it rests), and $q$
# stays $+1$. For $c \le -1$ the same downwards. Between them it saws, and $q = +1$ in a share $s$ of the steps with
# $s - (1 - s) = c$, so $s = (1 + c) / 2$: a quarter for $c = -0.5$.


# %% kind="solution"
def one_weight(w, lr, target=0.3, steps=2000):
    codes = []
    for _ in range(steps):
        codes.append(1.0 if w >= 0 else -1.0)
        w -= lr * (codes[-1] - target)
    return w, np.array(codes)


for target in (-0.5, 1.0, 1.5):
    w, codes = one_weight(0.2, 0.1, target)
    print(f"target {target:4}: q = +1 in {(codes > 0).mean():.1%} of the steps, w ends at {w:.2f}")
assert abs((one_weight(0.2, 0.1, -0.5)[1] > 0).mean() - 0.25) < 0.01
assert one_weight(0.2, 0.1, 1.0)[0] == 0.2 and one_weight(0.2, 0.1, 1.5)[0] > 50

# %% [markdown]
# ## 2. Which width suffers from a small rate?
#
# Hint: with Adam a weight moves by about the rate in each step, so in 6 epochs of 22 steps by at most 132 rates (and by
# about half of that under the schedule). Its typical size is 0.02 to 0.1.
#
# The low-bit widths lose 30 points at 0.001, the floats 18: most latent weights cannot reach a threshold in so few
# steps, so hardly a code changes, where of a float weight each small step counts.

# %% kind="solution"
found = {
    (bits, lr): test_accuracy(train(bits, epochs=6, lr=lr)[0])
    for bits in (32, 1.58, 1)
    for lr in (0.001, 0.003, 0.01, 0.03)
}
for bits in (32, 1.58, 1):
    print(f"{bits:5} bits:", "  ".join(f"{lr}: {found[bits, lr]:.1%}" for lr in (0.001, 0.003, 0.01, 0.03)))
loss_at_small = {
    bits: max(found[bits, lr] for lr in (0.003, 0.01, 0.03)) - found[bits, 0.001] for bits in (32, 1.58, 1)
}
print("points lost at 0.001:", {bits: round(100 * lost) for bits, lost in loss_at_small.items()})
assert min(loss_at_small[1.58], loss_at_small[1]) > loss_at_small[32] + 0.05

# %% [markdown]
# ## 3. Labels or a teacher?
#
# Hint: the same seed deals both the same batches, so compare pairs: five differences, their mean, their standard
# deviation divided by the root of 5.
#
# What may be claimed: after three epochs the teacher's targets and the labels do equally well, to within what five
# seeds can tell, about one point.

# %% kind="solution"
teacher, _ = train(bits=32)
asked = Trainer(teacher, workers=1)


def taught(x, y):
    return taught_targets(asked.predict(x), y).astype("float32")


pairs = np.array(
    [
        [100 * test_accuracy(train(epochs=3, source=teacher, targets=t, seed=seed)[0]) for t in (None, taught)]
        for seed in range(5)
    ]
)
difference = pairs[:, 1] - pairs[:, 0]
for name, column in zip(("labels", "teacher"), pairs.T, strict=True):
    print(f"{name:8} {column.mean():.1f} +- {column.std(ddof=1):.1f} %")
print(f"teacher - labels, pair by pair: {difference.mean():.1f} +- {difference.std(ddof=1) / 5**0.5:.1f} points")
assert abs(difference.mean()) < 2.5

# %% [markdown]
# ## 4. Freezing
#
# Hint: keep, for each layer, the step of its last flips; after an update put back the latent weights of those that have
# been quiet for 50 steps.
#
# It stops the flips, and gains half of what the cosine gains. A weight that saws is quiet for 50 steps sooner or later,
# and then it stays where it happens to stand: a random tooth for ever. Under the cosine the last flips are small
# decisions, made while all the others rest.


# %% kind="solution"
class Freezer:
    """Puts back the latent weights whose codes have been quiet for `patience` steps."""

    def __init__(self, patience=50):
        self.patience, self.step, self.before, self.quiet, self.flips = patience, 0, None, None, []

    def __call__(self, model):
        layers = low_bit_layers(model)
        codes = [layer.codes()[0].copy() for layer in layers]
        if self.before is None:
            self.quiet = [np.zeros(c.shape, int) for c in codes]
        else:
            flipped = [c != old for c, old in zip(codes, self.codes, strict=True)]
            self.flips.append(float(np.concatenate([f.ravel() for f in flipped]).mean()))
            self.quiet = [np.where(f, 0, q + 1) for f, q in zip(flipped, self.quiet, strict=True)]
            for layer, old, quiet in zip(layers, self.before, self.quiet, strict=True):
                layer.weight.data[...] = np.where(quiet >= self.patience, old, layer.weight.data)
        self.before = [layer.weight.data.copy() for layer in layers]
        self.codes = [layer.codes()[0].copy() for layer in layers]


def last_flips(falling, patience):
    freezer = Freezer(patience)
    model, losses = train(falling=falling, watch=freezer)
    return np.mean(freezer.flips[-20:]), losses[-20:].mean(), test_accuracy(model)


rows = {
    "constant": last_flips(False, 10**9),
    "constant, frozen": last_flips(False, 50),
    "cosine": last_flips(True, 10**9),
}
for name, (flips, loss, accuracy) in rows.items():
    print(f"{name:17} flips a step at the end {flips:.3%}, loss {loss:.3f}, accuracy {accuracy:.1%}")
assert rows["constant, frozen"][0] < 0.1 * rows["constant"][0]
assert rows["cosine"][1] < rows["constant, frozen"][1] < rows["constant"][1]

# %% [markdown]
# ## 5. Averaging latent weights
#
# Hint: the weight of section 1 spends 65 % of its time at +1, with latent values spread evenly around 0.
#
# The average of a sawing latent weight is a number near 0, while the average of its sign is 0.3: the first says nothing
# of *how much*. But it does say *which way*: it is positive, as the majority of the codes is. So a network of averaged
# latent weights takes the majority in place of a random tooth. Measured: under a constant rate that mends nearly all
# that the missing schedule costs, under a cosine there is nothing left to mend. It does not harm.

# %% kind="solution"
w, latent = 0.2, []
for _ in range(2000):
    latent.append(w)
    w -= 0.1 * ((1.0 if w >= 0 else -1.0) - 0.3)
latent = np.array(latent)
print(f"average of the latent weight {latent.mean():.3f}, of its sign {np.where(latent >= 0, 1, -1).mean():.3f}")


class Average:
    """The moving average of all latent weights."""

    weights = None

    def __call__(self, model):
        now = [layer.weight.data for layer in low_bit_layers(model)]
        if self.weights is None:
            self.weights = [w.copy() for w in now]
        for mean, w in zip(self.weights, now, strict=True):
            mean += 0.05 * (w - mean)


gained = {}
for name, falling in (("constant", False), ("cosine", True)):
    average = Average()
    model, _ = train(falling=falling, watch=average)
    last = test_accuracy(model)
    for layer, mean in zip(low_bit_layers(model), average.weights, strict=True):
        layer.weight.data[...] = mean
    gained[name] = test_accuracy(model) - last
    print(f"{name:9} last weights {last:.1%}, averaged {test_accuracy(model):.1%}")
assert gained["constant"] > 0.02 and gained["cosine"] > -0.02
