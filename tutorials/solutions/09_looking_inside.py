# %% [markdown]
# # 09 Solutions of the exercises
#
# The exercises of lesson 09, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit.course import mine
from tinybitvit.train import Trainer

attention_rollout, token_similarity = mine("attention_rollout", "token_similarity")
digits = tb.data.load_digits()
X, y = digits.X_test[:60], digits.y_test[:60]
size = {"patch_size": 1, "dim": 32, "depth": 2, "heads": 4, "pool": "cls", "lr": 1e-2, "augment": None, "verbose": 0}


def fit(**options):
    return tb.ViT(**size, epochs=9, **options).fit(digits.X_train, digits.y_train)


original = fit(bits=32, random_state=0)

# %% [markdown]
# ## 1. Rows that are all equal
#
# Hint: if all rows of $R_1$ are equal, what does the second layer do to them? For $r = \frac12$, try two tokens that
# look at each other.
#
# A layer averages rows, so equal rows stay equal: it is enough that the first layer makes them so. With $r = 0$ that is
# any $A_1$ whose rows are equal. With $r = \frac12$ take $A_1 = \begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}$: half a
# step of staying, half a step of exchanging. For more than two tokens one layer cannot do it: $\frac12 (I + A)$ would
# have rank 1, so $A$ the eigenvalue $-1$ exactly $T - 1$ times, and the trace $1 - (T - 1)$, which is negative; but
# shares are not. And softmax makes no share of exactly 0: with $r = \frac12$ rows come close and never meet.

# %% kind="solution"
swap = np.array([[[0.0, 1.0], [1.0, 0.0]]])
any_map = np.array([[[0.3, 0.7], [0.9, 0.1]]])
print(attention_rollout([swap, any_map])[0])
assert np.allclose(attention_rollout([swap, any_map]), 0.5)

# %% [markdown]
# ## 2. Trained apart
#
# Hint: `fit(bits=1.58)`, and a third name in the dictionary of `compare_attention`.

# %% kind="solution"
models = {
    "32 bits": original,
    "32 bits, other seed": fit(bits=32, random_state=1),
    "1.58 bits, from scratch": fit(bits=1.58, random_state=0),
}
comparison = tb.viz.compare_attention(models, X, y)
apart = {name: float(comparison.divergence[name].mean()) for name in comparison.others}
print(apart)
assert apart["1.58 bits, from scratch"] > 0.25

# %% [markdown]
# It is nearly as far from the original as the other seed is, although it began with the same `random_state`: the first
# layers of the two networks are not of the same kind, so the same random numbers mean different networks. A paper that
# compares maps of networks trained apart measures the seed, and needs several seeds of each to say more.
#
# ## 3. Without the mean token
#
# Hint: `tokens - tokens.mean(axis=0)`, image by image. The mean cosine of all pairs must then be close to 0. Why?

# %% kind="solution"
record = tb.viz.attention(original, X[:20])
ink = X[:20, ..., 0].reshape(20, 64) > 8
for layer, all_tokens in enumerate(record.tokens):
    for name, shift in (("as they are", 0.0), ("without the mean", 1.0)):
        inside, across, level = [], [], []
        for tokens, on in zip(all_tokens[:, 1:].astype(float), ink, strict=True):
            tokens = tokens - shift * tokens.mean(axis=0)
            s = np.array([token_similarity(tokens, i) for i in range(64)])
            inside.append(s[np.ix_(on, on)].mean())
            across.append(s[np.ix_(on, ~on)].mean())
            level.append(s.mean())
        gap = np.mean(inside) - np.mean(across)
        print(f"layer {layer}, {name:16}: mean cosine {np.mean(level):.2f}, ink-ink minus ink-paper {gap:.2f}")
        assert gap > 0.15
    assert abs(np.mean(level)) < 0.1

# %% [markdown]
# The mean is gone, so the directions cancel and the level is near 0 in both layers: the rise was a direction that all
# tokens share. The gap between ink and paper stays, and is larger than before: that is what the map shows.
#
# ## 4. Which head may be lost?
#
# Hint: `qkv.weight` is (3 dim, dim); the values are its last third, and head $h$ has 8 rows of that. Put the old weight
# back afterwards.

# %% kind="solution"
entropy = tb.viz.attention(original, X).entropy().mean(axis=0)
whole, prepared = original.score(digits.X_test, digits.y_test), original.normalize_(digits.X_test)
lost = np.zeros((2, 4))
for layer, head in np.ndindex(2, 4):
    qkv = original.model_.blocks[layer].attn.qkv
    rows = slice(2 * 32 + 8 * head, 2 * 32 + 8 * (head + 1))
    before = qkv.weight.data[rows].copy(), qkv.bias.data[rows].copy()
    qkv.weight.data[rows], qkv.bias.data[rows] = 0, 0
    found = Trainer(original.model_, workers=1).predict(prepared).argmax(axis=1)
    qkv.weight.data[rows], qkv.bias.data[rows] = before
    lost[layer, head] = whole - (found == digits.y_test).mean()
print("entropy in bits\n", entropy.round(2), "\naccuracy lost\n", lost.round(3))
print(f"correlation over eight heads: {np.corrcoef(entropy.ravel(), lost.ravel())[0, 1]:.2f}")
assert original.score(digits.X_test, digits.y_test) == whole
assert lost.max() > 0.05

# %% [markdown]
# Heads differ much in what they are worth. Eight heads of one network are too few to say that entropy predicts it: with
# eight points a correlation below about 0.7 is within what chance gives. More seeds would tell.
#
# ## 5. One after the other
#
# Hint: `occluded[pixel] = 0` (the mean colour), then all pixels that are left once more, in the image as it is now. Ten
# pixels are 15 % of 64.


# %% kind="solution"
def probabilities(images, c):
    logits = Trainer(original.model_, workers=1).predict(images).astype(float)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True))[:, c]


def with_holes(image, more):
    """A copy of an image for each pixel, with that pixel covered besides."""
    copies = np.repeat(image[None], 64, axis=0)
    copies.reshape(64, 64)[np.arange(64), np.arange(64)] = more
    return copies


image = original.normalize_(X[:1])[0]
c = int(original.predict(X[:1])[0])
before = probabilities(image[None], c)[0]
order = probabilities(with_holes(image, 0.0), c).argsort()[:10]
singly = image.copy()
singly.reshape(-1)[order] = 0
greedy = image.copy()
for _ in range(10):
    greedy.reshape(-1)[probabilities(with_holes(greedy, 0.0), c).argmin()] = 0
after = [probabilities(found[None], c)[0] for found in (singly, greedy)]
print(f"probability of {c}: {before:.3f}; ten pixels chosen singly {after[0]:.4f}, one after the other {after[1]:.4f}")
assert after[1] < before / 2

# %% [markdown]
# It costs ten times as many runs. Where two pixels say the same thing, covering one changes nothing, so that measuring
# singly takes neither; the search takes the second as soon as the first is gone.
