# %% [markdown]
# # 04 Solutions of the exercises
#
# The exercises of lesson 04, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.course import mine
from tinybitvit.models import VisionTransformer
from tinybitvit.models.vit import Block
from tinybitvit.viz.figure import PALETTE, new_figure

train_step = mine("train_step")
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
X, X_test = normalize(digits.X_train), normalize(digits.X_test)
y, y_test = digits.y_train, digits.y_test


def right(network, images=X_test, classes=y_test):
    with tb.no_grad():
        return float((network(images).numpy().argmax(axis=1) == classes).mean())


# %% [markdown]
# ## 1. ViT-Base
#
# Hint: 12 blocks with the formula of section 4, r = 4; the patch embedding has $16 \cdot 16 \cdot 3 = 768$ inputs;
# there are $14 \cdot 14 + 1$ positions, one class token, one last norm, and a head of 1,000.
#
# A block has $12 d^2 + 13 d = 7{,}087{,}872$ numbers; 12 of them 85,054,464. The embedding has $768^2 + 768 =
# 590{,}592$, positions and class token $198 \cdot 768 = 152{,}064$, the norm 1,536, the head $769{,}000$.

# %% kind="solution"
d = 768
by_hand = 12 * (12 * d * d + 13 * d) + (768 * d + d) + (14 * 14 + 1) * d + d + 2 * d + (1000 * d + 1000)
options = {"dim": d, "depth": 12, "heads": 12, "mlp_ratio": 4, "pool": "cls"}
network = VisionTransformer(224, 16, in_channels=3, num_classes=1000, **options)
counted = sum(p.size for p in network.parameters())
print(f"{by_hand:,} by hand, {counted:,} counted")
assert by_hand == counted == 86_567_656
del network

# %% [markdown]
# ## 2. No blocks
#
# Hint: without a block no token meets another one before the mean. What would the mean over t of $x^t E + e^t$ be, if
# there were no last norm?
#
# It would be $(\text{mean}_t\, x^t)\, E + \text{mean}_t\, e^t$, the mean patch and a constant: four numbers of an image
# of 64 pixels, and nothing about places. The last norm saves some of it, since it divides each token by a size that
# depends on patch and place together; but it has only that. Logistic regression has a weight of its own for each pixel.
# A check: how far does one get with the mean patch alone?

# %% kind="solution"
model = tb.ViT(bits=32, depth=0, dim=32, epochs=15, label_smoothing=0, random_state=0, verbose=0).fit(digits.X_train, y)
mean_patch, mean_patch_test = (F.patchify(images, 2).numpy().mean(axis=1) for images in (X, X_test))
four_numbers = LogisticRegression(max_iter=2000).fit(mean_patch, y).score(mean_patch_test, y_test)
accuracy = model.score(digits.X_test, y_test)
print(f"logistic regression on the mean patch {four_numbers:.1%}; depth 0 {accuracy:.1%}")
assert four_numbers < accuracy < 0.8

# %% [markdown]
# ## 3. Without skip connections
#
# Hint: a Block is a class; `Block.forward = ...` changes all of its networks, and must be put back. Use the same seed,
# step and number of steps for both. Look at the training loss first.


# %% kind="solution"
def trained(depth, lr=2e-3, steps=150):
    rng = np.random.default_rng(0)
    network = VisionTransformer(8, 2, in_channels=1, dim=32, depth=depth, heads=4, mlp_ratio=2, rng=rng)
    optimizer = tb.optim.AdamW(network.parameters(), lr=lr)
    for _ in range(steps):
        chosen = rng.integers(0, len(X), 64)
        train_step(network, optimizer, X[chosen], y[chosen])
    return right(network)


def without_skips(self, x):
    return self.mlp_branch(self.attention_branch(x))


with_skips, results = Block.forward, {}
for depth in (1, 2, 4):
    results[depth] = [trained(depth)]
    Block.forward = without_skips
    results[depth].append(trained(depth))
    Block.forward = with_skips
    print(f"depth {depth}: with skip connections {results[depth][0]:.1%}, without {results[depth][1]:.1%}")
assert all(a > b for a, b in results.values())
assert results[4][1] < results[4][0] - 0.1

# %% [markdown]
# The deeper, the worse without them: what is left of the gradient has gone through every branch, and what is left of a
# token is what the last branch made of it. With them depth costs nothing.
#
# ## 4. How many images?
#
# Hint: draw the same images for all three methods. `warm_start` is off, so that every `fit` begins anew.


# %% kind="solution"
sizes, draws = (20, 100, 500, 1347), 3
flat, flat_test = digits.X_train.reshape(-1, 64) / 255, digits.X_test.reshape(-1, 64) / 255
scores = {"ViT": {}, "logistic regression": {}, "vote of three": {}}
for n in sizes:
    for seed in range(draws if n < 1347 else 1):
        chosen = np.random.default_rng(seed).permutation(1347)[:n]
        vit = tb.ViT(dim=32, depth=1, heads=4, epochs=max(15, min(150, 12000 // n)), random_state=seed, verbose=0)
        vit.fit(digits.X_train[chosen], y[chosen])
        scores["ViT"].setdefault(n, []).append(vit.score(digits.X_test, y_test))
        rivals = {"logistic regression": LogisticRegression(max_iter=500), "vote of three": KNeighborsClassifier(3)}
        for name, rival in rivals.items():
            rival.fit(flat[chosen], y[chosen])
            scores[name].setdefault(n, []).append(rival.score(flat_test, y_test))
for name, found in scores.items():
    print(f"{name:20}", "  ".join(f"{n:,}: {np.mean(a):.1%}" for n, a in found.items()))

# %% kind="see"
fig = new_figure(4.8, 3.4)
ax = fig.subplots()
for (name, found), color in zip(scores.items(), PALETTE, strict=False):
    means = [100 * np.mean(a) for a in found.values()]
    errors = [100 * np.std(a) for a in found.values()]
    ax.errorbar(list(found), means, yerr=errors, marker="o", color=color, label=name, capsize=3)
ax.set_xscale("log")
ax.set(xlabel="training images", ylabel="test accuracy (%)")
ax.legend(frameon=False)
fig

# %% [markdown]
# With few images the two that know something beforehand win: the vote, that images alike belong to one class; logistic
# regression, that a place in the image always means the same. The ViT has to learn even that. It catches up as images
# come in, and large data sets are where it passes them.
#
# ## 5. Norms behind
#
# Hint: post-norm is $x = \text{LN}(x + f(x))$, without the norms in front. To see what reaches the first block, compare
# the sizes of the gradients of `blocks[0]` and `blocks[-1]` of a fresh network.


# %% kind="solution"
def post_norm(self, x):
    x = self.norm1(x + self.attn(x))
    return self.norm2(x + self.mlp(x))


def first_over_last():
    """The size of the gradient of the first block's fc1, beside that of the last block's; a fresh network."""
    rng = np.random.default_rng(0)
    network = VisionTransformer(8, 2, in_channels=1, dim=32, depth=6, heads=4, mlp_ratio=2, rng=rng)
    F.cross_entropy(network(X[:64]), y[:64]).backward()
    sizes = [np.linalg.norm(network.blocks[i].mlp.fc1.weight.grad) for i in (0, -1)]
    return sizes[0] / sizes[1]


# %% kind="solution"
rates, ratios, table = (1e-3, 4e-3, 1.6e-2), {}, {}
for name, forward in (("pre-norm", with_skips), ("post-norm", post_norm)):
    Block.forward = forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run that flies apart says so
        ratios[name] = first_over_last()
        table[name] = [trained(6, lr, steps=60) for lr in rates]
    Block.forward = with_skips
    row = "  ".join(f"{lr:g}: {a:.1%}" for lr, a in zip(rates, table[name], strict=True))
    print(f"{name:9} {row}   gradient of the first block / last block: {ratios[name]:.2f}")
assert ratios["post-norm"] < ratios["pre-norm"]

# %% [markdown]
# Both train up to 0.004; at 0.016 pre-norm limps and post-norm does not train at all. With post-norm every block has a
# norm in the way of the skip connection, so less of the gradient arrives at the first block, beside the last one. With
# 6 blocks the difference is a third, with dozens it is everything: there post-norm needs a warm-up, small steps until
# the last blocks have settled, and pre-norm does without.
