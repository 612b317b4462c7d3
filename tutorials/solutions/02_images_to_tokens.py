# %% [markdown]
# # 02 Solutions of the exercises
#
# The exercises of lesson 02, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import time

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import nn
from tinybitvit.course import mine
from tinybitvit.viz.figure import PALETTE, new_figure

patchify = mine("patchify")
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Channels first
#
# Hint: the last `reshape` melts the axes (ph, pw, c) in their order; which order do you want them to have? The product
# $x W^\mathsf{T}$ does not change when the columns of x and of W are permuted alike.


# %% kind="solution"
def patchify_channels_first(x, patch_size):
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    x = x.reshape(n, height // ph, ph, width // pw, pw, c)
    x = x.transpose(0, 1, 3, 5, 2, 4)  # the only line that changes
    return x.reshape(n, -1, c * ph * pw)


images = rng.standard_normal((2, 8, 8, 3)).astype("float32")
embed = nn.PatchEmbed(8, 2, 3, 32, rng=rng)
weight = embed.proj.weight.data.reshape(32, 2, 2, 3).transpose(0, 3, 1, 2).reshape(32, 12)  # of every row alike
tokens = patchify_channels_first(images, (2, 2)) @ weight.T + embed.proj.bias.data
difference = np.abs(tokens - embed(images).numpy()).max()
print(f"largest difference {difference:.0e}")
assert difference < 1e-5

# %% [markdown]
# ## 2. Not guessing
#
# Hint: is (1, 3, 3, 3) channels first or last? And would you want the answer to depend on the size of the image?

# %% kind="solution"
try:
    tb.models.VisionTransformer(32, 4)(np.zeros((2, 3, 32, 32), "float32"))
except ValueError as error:
    print(error)
    assert "x.transpose(0, 2, 3, 1)" in str(error)

# %% [markdown]
# A guess would be right nearly always, and wrong without a word for the one who has images of 3 pixels' height or of 32
# channels. The error costs five seconds once.
#
# ## 3. Patch sizes
#
# Hint: `tb.ViT(patch_size=p, ...)`, with `time.perf_counter()` around `fit`. Nine epochs are enough to see it.


# %% kind="solution"
def trained(patch_size):
    start = time.perf_counter()
    model = tb.ViT(
        bits=32, patch_size=patch_size, dim=16, heads=2, depth=1, epochs=9, augment=None, random_state=0, verbose=0
    )
    model.fit(digits.X_train, digits.y_train)
    return model.score(digits.X_test, digits.y_test), time.perf_counter() - start


results = {p: trained(p) for p in (8, 4, 2, 1)}
for p, (accuracy, seconds) in results.items():
    print(f"{p} x {p}: {(8 // p) ** 2:2} tokens, {accuracy:.1%}, {seconds:.1f} s")
assert results[1][1] > results[4][1]

fig = new_figure(4.6, 4.6)
left, right = fig.subplots(2, 1)
tokens = [(8 // p) ** 2 for p in results]
left.plot(tokens, [100 * accuracy for accuracy, _ in results.values()], "o-", color=PALETTE[0])
right.plot(tokens, [seconds for _, seconds in results.values()], "o-", color=PALETTE[1])
for ax, label in ((left, "test accuracy (%)"), (right, "seconds")):
    ax.set_xscale("log", base=2)
    ax.set(xlabel="tokens", ylabel=label)
fig

# %% [markdown]
# With a single patch attention has nobody else to ask, its only share is 1: the ViT is an MLP with skip connections on
# all 64 pixels. For images as small and as well centred as these that is a good method. A patch of one pixel says next
# to nothing by itself, takes the longest, and has the most to learn: after so few epochs it is behind.
#
# ## 4. Shifts and shuffled patches
#
# Hint: `augment` works on what it is given. What does a shift by one pixel move across the border between two tiles of
# a shuffled image?


# %% kind="solution"
def shuffled(images, order):
    return F.unpatchify(patchify(images, (2, 2))[:, order], 2, 8).numpy()


order = rng.permutation(16)
cases = {
    "as they are": (digits.X_train, digits.X_test),
    "one order for all": (shuffled(digits.X_train, order), shuffled(digits.X_test, order)),
}
for name, (train, test) in cases.items():
    scores = []
    for augment in (None, "shift:1"):
        model = tb.ViT(bits=32, dim=32, depth=2, epochs=4, augment=augment, random_state=0, verbose=0)
        scores.append(model.fit(train, digits.y_train).score(test, digits.y_test))
    print(f"{name:20} without shifts {scores[0]:.1%}, with shifts {scores[1]:.1%}")

# %% [markdown]
# The augmentation comes after your shuffling: it shifts the puzzle, not the digit. A column of pixels then lands in a
# tile that shows quite another part of the digit, and no test image is like that. A shift of the digit as it is gives a
# digit that somebody might have written. An augmentation is a claim about the data, and shuffling has made it false.
# (On these digits, centred with care, both lose by it at first; the puzzle loses more.)
#
# ## 5. Sine waves
#
# Hint: row t, columns 2i and 2i + 1 hold $\sin(t / 10000^{2i/d})$ and $\cos(t / 10000^{2i/d})$, times 0.2, the spread
# of the vectors of a fresh network. Leave out of the optimiser the parameter that *is* `embed.pos_embed`. A control:
# the random vectors of the fresh network, not learnt either. Use several seeds: with 200 images a point is luck.


# %% kind="solution"
def waves(tokens, dim):
    angle = np.arange(tokens)[:, None] / 10000 ** (2 * np.arange(dim // 2) / dim)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(1, tokens, dim)


def score(positions, seed):
    """positions: an array (1, 16, 32) that stays as it is; "as drawn", not learnt; or "learnt"."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(digits.X_train))[:200]
    X, y = normalize(digits.X_train[chosen]), digits.y_train[chosen]
    network = tb.models.VisionTransformer(8, 2, in_channels=1, dim=32, depth=2, heads=4, mlp_ratio=2, rng=rng)
    table = network.embed.pos_embed
    if not isinstance(positions, str):
        table.data[...] = positions
    learning = [p for p in network.parameters() if p is not table or str(positions) == "learnt"]
    optimizer = tb.optim.AdamW(learning, lr=2e-3)
    for _ in range(15):
        for batch in np.array_split(rng.permutation(200), 10):
            optimizer.zero_grad()
            F.cross_entropy(network(X[batch]), y[batch]).backward()
            optimizer.step()
    return (network(normalize(digits.X_test)).numpy().argmax(axis=1) == digits.y_test).mean()


# %% kind="solution"
ways = {"learnt": "learnt", "as drawn": "as drawn", "waves": 0.2 * waves(16, 32), "waves of 1": waves(16, 32)}
runs = {name: [score(way, seed) for seed in range(2)] for name, way in ways.items()}
for name, found in runs.items():
    print(f"{name:11} {np.mean(found):.1%}  ({', '.join(f'{a:.1%}' for a in found)})")
assert np.mean(runs["waves"]) < np.mean(runs["as drawn"]) - 0.1
assert abs(np.mean(runs["as drawn"]) - np.mean(runs["learnt"])) < 0.06

# %% [markdown]
# Waves lose, and the control says why: it is not that nothing is learnt, random vectors that stay as they were drawn do
# nearly as well as learnt ones. It is that neighbouring places have nearly the same wave: of 32 columns most hardly
# move over 16 places. Random vectors are nearly at right angles to each other, so that a query can tell any two places
# apart. Larger waves are easier to tell apart, and lose less. They were made for sentences of thousands of words.
