# %% [markdown]
# # 02 Images to tokens
#
# A Transformer reads a sequence of vectors, its *tokens*. An image is a grid of pixels. In between stands the simplest
# idea that works: cut the image into square patches, lay each patch out as a row of numbers, and multiply each row by
# one matrix. That is all (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1).
#
# You need: tutorial 01 for the word "gradient", nothing else.

# %%
import inspect

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import nn, ops
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Sixteen pixels
#
# An image of 4 x 4 pixels, numbered as one reads. Images here are always (N, height, width, channels), channels last,
# as matplotlib and scikit-learn have them.
#
# **Predict**: cut it into patches of 2 x 2 pixels, left to right, then top to bottom. Which four numbers make up patch
# 1 (the second one)?

# %%
image = np.arange(16.0).reshape(1, 4, 4, 1)
tokens = F.patchify(image, patch_size=2).numpy()
print(image[0, :, :, 0], "\n")
print(tokens[0])
assert tokens.shape == (1, 4, 4)  # one image, four patches, four numbers each
assert tokens[0, 1].tolist() == [2, 3, 6, 7]

# %% [markdown]
# The whole operation is two reshapes with a transpose between them:

# %%
print(inspect.getsource(ops.patch.to_patches))

# %% [markdown]
# Read the first reshape as *naming*: the row number of a pixel is (row of the patch) x ph + (row inside the patch), and
# the columns likewise. So the axes are
#
# | axis | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | means | image | patch row | row in patch | patch column | column in patch | channel |
#
# The transpose (0, 1, 3, 2, 4, 5) brings both patch axes to the front, and the last reshape flattens. Nothing is
# computed: numbers only change places. So there is nothing to differentiate either.
#
# **Predict**: the backward pass gets one number per element of the tokens. Where does it put them?

# %%
x = tb.Tensor(image, requires_grad=True)
y = F.patchify(x, 2)
y.backward(y.numpy())  # g = the tokens themselves, so that we can see where each number goes
print(x.grad[0, :, :, 0])
assert np.array_equal(x.grad, image)  # back to where it came from
assert np.array_equal(F.unpatchify(tokens, patch_size=2, image_size=4).numpy(), image)

# %% [markdown]
# ## 2. A digit as a sequence
#
# The data set for these tutorials ships with scikit-learn: 1,797 handwritten digits of 8 x 8 pixels. With patches of 2
# x 2 a digit becomes 16 tokens of 4 numbers.

# %%
digits = tb.data.load_digits()
print(digits)
digit = digits.X_test[:1]
tokens = F.patchify(digit.astype("float32"), 2).numpy()[0]

fig = new_figure(9.5, 3.6)
grid = fig.add_gridspec(2, 9, width_ratios=[4, 0.3, *[1] * 7])
left = fig.add_subplot(grid[:, 0])
left.imshow(digit[0, :, :, 0], cmap="gray_r", extent=(0, 8, 8, 0))
for edge in range(0, 9, 2):
    left.axhline(edge, color=PALETTE[0], linewidth=1.5)
    left.axvline(edge, color=PALETTE[0], linewidth=1.5)
for t in range(16):
    label = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    left.text(2 * (t % 4) + 0.2, 2 * (t // 4) + 0.6, t, fontsize=10, bbox=label)
left.set(title=f"a {digits.classes[digits.y_test[0]]}, 8 x 8 pixels, 16 patches", xticks=[], yticks=[])
right = fig.add_subplot(grid[:, 2:])
right.imshow(tokens.T, cmap="gray_r", aspect="auto")
right.set(title="the same as a sequence of tokens", xlabel="token", ylabel="number in the token")
right.set(xticks=range(16), yticks=range(4))
fig

# %% [markdown]
# ## 3. How many, how long, how dear
#
# An image of $H \times W$ pixels and $C$ channels with patches of $p \times p$ has $T = HW / p^2$ tokens of $p^2 C$
# numbers. Attention compares every token with every other: $T^2$ comparisons.
#
# **Predict** the row of the table for 224 x 224 colour images and $p = 16$ (the model that gave the paper its title,
# "An image is worth 16x16 words"). And if you halve $p$: how do $T$ and the comparisons grow?

# %%
print("  image   p      T  numbers a token   comparisons")
for size, channels, p in ((8, 1, 2), (8, 1, 4), (32, 3, 4), (32, 3, 2), (224, 3, 16), (224, 3, 8)):
    _, T, length = F.patchify(np.zeros((1, size, size, channels), "float32"), p).shape
    print(f"{size:4} px  {p:2}  {T:5}  {length:15}  {T * T:12,}")
    assert (size * size // p**2, p * p * channels) == (T, length)
assert (T, length) == (784, 192)  # 224 px, p = 8: 4 times the tokens of p = 16, and 16 times the comparisons

# %% [markdown]
# ## 4. One matrix for all patches
#
# Every patch $x^i$ is multiplied by the same matrix $E$, and a learnt vector per *position* is added (equation 1 of the
# paper; with a class token there is one more row in front):
#
# $$z^i = x^i E + e^i_{\text{pos}}, \qquad i = 1 \dots T .$$

# %%
print(inspect.getsource(nn.PatchEmbed))

# %% [markdown]
# Other implementations write this as a convolution with a kernel of $p \times p$ that moves in steps of $p$. It is the
# same thing: a convolution whose windows do not overlap *is* a matrix product per window. Check, with the slowest
# convolution in the world:

# %%
embed = nn.PatchEmbed(image_size=8, patch_size=2, in_channels=1, dim=32, rng=rng)
pixels = rng.standard_normal((3, 8, 8, 1)).astype("float32")
kernel = embed.proj.weight.data.reshape(32, 2, 2, 1)  # (out channels, height, width, in channels)

convolved = np.zeros((3, 4, 4, 32), "float32")
for row in range(4):
    for column in range(4):
        window = pixels[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        convolved[:, row, column] = np.einsum("nhwc,ohwc->no", window, kernel) + embed.proj.bias.data

assert np.allclose(embed(pixels).numpy(), convolved.reshape(3, 16, 32), atol=1e-6)
print("convolution with kernel = stride = 2  ==  patches times a matrix")

# %% [markdown]
# ## 5. What is lost: where
#
# Multiplying each patch by the same matrix forgets where the patch was. And what follows does not mend it: attention
# and MLP treat all tokens alike, and at the end the tokens are averaged.
#
# **Predict**: take a fresh network, set its position vectors to zero, and shuffle the patches of an image like the
# tiles of a sliding puzzle. How much do the ten outputs change? And with position vectors?


# %%
def shuffled(images, order):
    """The same patches in another order: order (T,), or (N, T) for an order per image."""
    patches = F.patchify(images, 2).numpy()
    patches = patches[:, order] if order.ndim == 1 else np.take_along_axis(patches, order[..., None], axis=1)
    return F.unpatchify(patches, 2, 8).numpy()


normalize = tb.data.Normalize.fit(digits.X_train)
order = rng.permutation(16)
puzzle = shuffled(digit, order)

network = tb.models.VisionTransformer(8, 2, in_channels=1, dim=32, depth=2, heads=4, mlp_ratio=2, rng=rng)
with_positions = network(normalize(digit)).numpy() - network(normalize(puzzle)).numpy()
network.embed.pos_embed.data[...] = 0
without = network(normalize(digit)).numpy() - network(normalize(puzzle)).numpy()
print(f"largest change of an output: with positions {abs(with_positions).max():.3f}, without {abs(without).max():.7f}")
assert abs(without).max() < 1e-5
assert abs(with_positions).max() > 0.01

# %%
fig = new_figure(9, 3)
axes = fig.subplots(1, 3, width_ratios=[1, 1, 1.6])
for ax, picture, title in zip(axes, (digit, puzzle), ("the image", "its patches, shuffled"), strict=False):
    ax.imshow(picture[0, :, :, 0], cmap="gray_r")
    ax.set(title=title, xticks=[], yticks=[])
bars = np.arange(10)
axes[2].bar(bars - 0.2, abs(with_positions[0]), 0.4, color=PALETTE[0], label="with positions")
axes[2].bar(bars + 0.2, abs(without[0]), 0.4, color=PALETTE[1], label="without (all zero)")
axes[2].set(title="change of the ten outputs", xlabel="output", ylabel="absolute change", xticks=bars)
axes[2].legend(frameon=False)
fig

# %% [markdown]
# Without positions a ViT sees a *bag of patches*. That is why `TokenEmbed` adds `pos_embed`, one learnt vector for each
# place.

# %%
print(inspect.getsource(nn.TokenEmbed.forward))

# %% [markdown]
# ## 6. What the network knows about geometry: nothing
#
# The position vectors begin as random numbers. The network is not told that place 5 lies right of place 4. Three
# training runs, the same network each time:
#
# 1. the digits as they are;
# 2. the patches of **all** images shuffled in one and the same way;
# 3. the patches of **each** image shuffled in a way of its own.
#
# **Predict** the order of the three test accuracies, and the sizes of the gaps, before you run the cell. (A
# convolutional network would lose in case 2.)


# %%
def accuracy(train, test):
    model = tb.ViT(bits=32, dim=32, depth=2, epochs=20, augment=None, random_state=0, verbose=0)
    return model.fit(train, digits.y_train).score(test, digits.y_test)


def own_orders(n):
    return np.argsort(rng.random((n, 16)), axis=1)


cases = {
    "as they are": (digits.X_train, digits.X_test),
    "one order for all": (shuffled(digits.X_train, order), shuffled(digits.X_test, order)),
    "each its own order": (
        shuffled(digits.X_train, own_orders(len(digits.X_train))),
        shuffled(digits.X_test, own_orders(len(digits.X_test))),
    ),
}
scores = [accuracy(*case) for case in cases.values()]
for name, score in zip(cases, scores, strict=True):
    print(f"{name:20} {score:.1%}")
assert scores[0] > 0.93
assert abs(scores[0] - scores[1]) < 0.03  # the same, up to the luck of a run
assert scores[2] < scores[0] - 0.1

# %%
fig = new_figure(9.5, 3.6)
grid = fig.add_gridspec(3, 6, width_ratios=[1, 1, 1, 1, 1, 4])
for row, (name, (_, test)) in enumerate(cases.items()):
    for column in range(5):
        ax = fig.add_subplot(grid[row, column])
        ax.imshow(test[column, :, :, 0], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        if column == 0:
            ax.set_ylabel(name.replace(" order", "\norder").replace("as ", "as\n"), rotation=0, ha="right", va="center")
        if row == 0:
            ax.set_title(f"a {digits.classes[digits.y_test[column]]}", fontsize=10)
ax = fig.add_subplot(grid[:, 5])
bars = ax.barh(range(3), [100 * s for s in scores], color=PALETTE[0], height=0.6)
ax.bar_label(bars, fmt="%.0f %%", padding=3)
ax.axvline(10, color="0.4", linestyle=":")
ax.text(11, 2.42, "guessing", color="0.3", fontsize=9)
ax.set(xlim=(0, 115), yticks=[], xlabel="test accuracy (%)", ylim=(2.5, -0.5))
fig

# %% [markdown]
# Case 2 looks hopeless to us and is as easy as case 1 to the network: **a ViT has no idea that neighbours are
# neighbours**, it must learn everything about geometry from the data. That is its weakness with few images (a
# convolution gets geometry as a present) and its strength with many. In case 3 the position vectors are worthless, and
# what is left is the bag of patches, which knows a surprising amount: how much ink there is, and which strokes.
#
# ## What you take along
#
# - Patchify moves numbers and computes nothing; its gradient moves them back.
# - $T = HW / p^2$ tokens; the cost of attention goes with $T^2$, so half the patch size is 16 times the comparisons.
# - Order is added, not built in: without position vectors a ViT sees a bag of patches.
#
# ## Exercises
#
# 1. Flatten in the order (channel, row, column) instead of (row, column, channel). Which line of `to_patches` changes?
#    Which weights of a trained `PatchEmbed` would you have to permute, and how?
# 2. Hand an array of shape (N, 3, 32, 32) to `tb.models.VisionTransformer(32, 4)`. Read the error. Why can the library
#    not just guess?
# 3. Train with `patch_size` 1, 2, 4 and 8 on the digits. Draw accuracy and seconds against the number of tokens. What
#    is a ViT with a single patch?
# 4. Repeat case 2 with `augment="auto"` (which shifts the images by a pixel) and explain what happens: does the
#    augmentation come before or after your shuffling?
# 5. *(harder)* Replace the learnt positions by the fixed sine waves of Vaswani et al. 2017 (arXiv 1706.03762, section
#    3.5): write them into `embed.pos_embed.data` and leave that parameter out of the optimiser. Does a small data set
#    gain?
