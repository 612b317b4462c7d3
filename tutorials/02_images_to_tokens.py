# %% [markdown]
# # 02 Images to tokens
#
# A Transformer reads a sequence of vectors, its *tokens*. An image is a grid of pixels. In between stands the simplest
# idea that works: cut the image into square patches, lay each patch out as a row of numbers, and multiply each row by
# one matrix. That is all (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1). Here you write it, forward and
# backward, and find out what a network that sees images in this way does not know.
#
# You need: lesson 01, for the word "gradient" and for what you wrote there.

# %%
import inspect
from timeit import repeat

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import nn, ops
from tinybitvit.course import answer, check, keep, mine, parts, predict, solution, use, yours
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)
numeric_gradient, unbroadcast = mine("numeric_gradient", "unbroadcast")

# %% [markdown]
# ## 1. Cutting
#
# An image of 4 x 4 pixels, numbered as one reads:
#
# $$\begin{pmatrix} 0 & 1 & 2 & 3 \\ 4 & 5 & 6 & 7 \\ 8 & 9 & 10 & 11 \\ 12 & 13 & 14 & 15 \end{pmatrix}$$
#
# Cut it into **patches** of 2 x 2 pixels, from left to right, then from top to bottom, and lay each out as a row of
# four numbers, in reading order again. Which numbers are in the second row?

# %% kind="predict"
guess = predict("the second row", choices=["2 3 6 7", "4 5 6 7", "2 3 4 5", "8 9 12 13"])

# %% [markdown]
# What one would write first. Images are always (N, height, width, channels) here, channels last, as matplotlib and
# scikit-learn have them.


# %% kind="naive"
def cut(images, p):
    """(N, H, W, C) -> (N, T, p p C): one patch at a time."""
    N, H, W, C = images.shape
    tokens = np.empty((N, (H // p) * (W // p), p * p * C), images.dtype)
    for n in range(N):
        for row in range(H // p):
            for column in range(W // p):
                patch = images[n, row * p : (row + 1) * p, column * p : (column + 1) * p]
                tokens[n, row * (W // p) + column] = patch.reshape(-1)
    return tokens


batch = rng.random((64, 32, 32, 3), dtype="float32")
slow = min(repeat(lambda: cut(batch, 4), number=1, repeat=3))
print(f"64 colour images of 32 x 32: {1000 * slow:.1f} ms")

# %% kind="answer"
image = np.arange(16.0).reshape(1, 4, 4, 1)
rows = cut(image, 2)[0]
print(rows)
answer("the second row", "2 3 6 7", measured=" ".join(f"{v:.0f}" for v in rows[1]))

# %% [markdown]
# A trainer cuts every batch, so three nested loops of Python are not what one wants. NumPy moves all numbers at once,
# if we can say where each goes. Give the axes names: the row of a pixel is (row of its patch) x ph + (row in the
# patch), and likewise the column. That is just how `reshape` splits an axis in two:
#
# | axis | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | length | n | height / ph | ph | width / pw | pw | c |
# | means | image | row of the patch | row in it | column of the patch | column in it | channel |
#
# A last `reshape` can melt *neighbouring* axes into one. Which of these together count the patches, and which the
# numbers in a patch? Bring them side by side first.


# %% kind="your-turn"
@yours("2.1")
def patchify(x, patch_size):
    """(N, H, W, C) -> (N, T, ph pw C): patches, and pixels in each, in reading order."""
    # the image above and (2, 2): first the row 0 1 4 5, then the one you predicted
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    x = x.reshape(n, height // ph, ph, width // pw, pw, c)
    ...  # two lines: one transpose, one reshape


check(patchify)


# %% kind="solution"
@solution("2.1")
def patchify(x, patch_size):
    """(N, H, W, C) -> (N, T, ph pw C): patches, and pixels in each, in reading order."""
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    x = x.reshape(n, height // ph, ph, width // pw, pw, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, -1, ph * pw * c)


# %% kind="see"
fast = min(repeat(lambda: patchify(batch, (4, 4)), number=1, repeat=20))
print(f"{1000 * slow:.1f} ms with loops, {1000 * fast:.2f} ms with two reshapes: {slow / fast:.0f} times as fast")
assert np.array_equal(patchify(batch, (4, 4)), cut(batch, 4))
assert slow > 2 * fast

# %% [markdown]
# ## 2. The way back
#
# Cutting computes nothing, numbers only change places. From above arrives one number for each number of the rows. To
# follow them, let g be 10 times the number of the patch plus the place in the patch, both counted from 0:
#
# $$g = \begin{pmatrix} 0 & 1 & 2 & 3 \\ 10 & 11 & 12 & 13 \\ 20 & \cdot & \cdot & \cdot \\ 30 & \cdot & \cdot & \cdot
# \end{pmatrix}$$
#
# What is the gradient of the pixel in row 2 and column 1 of the image (counted from 0, too)?

# %% kind="predict"
guess = predict("the gradient of pixel (2, 1)")

# %% kind="answer"
g = (10 * np.arange(4)[:, None] + np.arange(4)).reshape(1, 4, 4).astype("float64")
gradient = numeric_gradient(lambda x: cut(x, 2), image, g)
print(gradient[0, :, :, 0].round(3))
answer("the gradient of pixel (2, 1)", 21, measured=gradient[0, 2, 1, 0], tolerance=1e-3)

# %% [markdown]
# The numbers of g went back to where they came from. In general: $y_k = x_{\pi(k)}$, where $\pi$ says from which place
# the number at place k was taken. Then $\partial y_k / \partial x_i$ is 1 for $i = \pi(k)$ and else 0, so that
#
# $$\frac{\partial L}{\partial x_i} = \sum_k g_k \frac{\partial y_k}{\partial x_i} = g_{\pi^{-1}(i)} .$$
#
# The backward of a **permutation** is the permutation undone.


# %% kind="your-turn"
@yours("2.2")
def patchify_backward(g, y, x, patch_size):
    """dL/dx of shape (N, H, W, C), from g = dL/dy of shape (N, T, ph pw C)."""
    # for the image above and its g: [[0, 1, 10, 11], [2, 3, 12, 13], ...]
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    ...  # the three steps of patchify undone, the last one first


check(patchify_backward)


# %% kind="solution"
@solution("2.2")
def patchify_backward(g, y, x, patch_size):
    """dL/dx of shape (N, H, W, C), from g = dL/dy of shape (N, T, ph pw C)."""
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    g = g.reshape(n, height // ph, width // pw, ph, pw, c)
    g = g.transpose(0, 1, 3, 2, 4, 5)
    return g.reshape(x.shape)


# %% [markdown]
# Put both into the library. Every image that it cuts from here on, you cut. Its own version moves the numbers in the
# same way; what it has and yours lacks are two questions to the caller, because a wrong shape here would go unnoticed
# until the accuracy disappoints.

# %%
use(patchify=(patchify, patchify_backward))
print(inspect.getsource(ops.patch.to_patches))

# %% [markdown]
# The data set of these lessons ships with scikit-learn: 1,797 handwritten digits of 8 x 8 pixels. With patches of 2 x 2
# a digit becomes 16 tokens of 4 numbers.

# %%
digits = tb.data.load_digits()
digit = digits.X_test[:1]
tokens = F.patchify(digit.astype("float32"), 2).numpy()[0]
print(digits, tokens.shape)

# %% kind="see"
fig = new_figure(4.6, 5.4)
left, right = fig.subplots(2, 1, height_ratios=[2, 1])
left.imshow(digit[0, :, :, 0], cmap="gray_r", extent=(0, 8, 8, 0))
for edge in range(0, 9, 2):
    left.axhline(edge, color=PALETTE[0], linewidth=1.5)
    left.axvline(edge, color=PALETTE[0], linewidth=1.5)
for t in range(16):
    label = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    left.text(2 * (t % 4) + 0.2, 2 * (t // 4) + 0.8, t, fontsize=11, bbox=label)
left.set(title=f"a {digits.classes[digits.y_test[0]]}, 16 patches", xticks=[], yticks=[])
right.imshow(tokens.T, cmap="gray_r", aspect="auto")
right.set(title="the same as 16 tokens", xlabel="token", ylabel="number in it")
right.set(xticks=range(0, 16, 3), yticks=range(4))
assert ops.OPS["patchify"].__name__ == "YourPatchify"
fig

# %% [markdown]
# ## 3. How many, how long, how dear
#
# An image of $H \times W$ pixels and $C$ channels with patches of $p \times p$ has $T = HW / p^2$ tokens of $p^2 C$
# numbers. Attention, the subject of lesson 03, compares every token with every other: $T^2$ comparisons.
#
# An image of 224 x 224 pixels with $p = 14$ has 256 tokens. You halve $p$, to see finer details. How many comparisons
# does it cost, beside those of before?

# %% kind="predict"
guess = predict("comparisons with p = 7", choices=["twice", "4 times", "8 times", "16 times"])

# %% kind="answer"
counts = {}
print("  image   p      T  numbers a token   comparisons")
for size, channels, p in ((8, 1, 2), (8, 1, 4), (32, 3, 4), (32, 3, 2), (224, 3, 14), (224, 3, 7)):
    _, T, length = F.patchify(np.zeros((1, size, size, channels), "float32"), p).shape
    counts[p] = T * T
    print(f"{size:4} px  {p:2}  {T:5}  {length:15}  {T * T:12,}")
    assert (size * size // p**2, p * p * channels) == (T, length)
answer("comparisons with p = 7", "16 times", measured=f"{counts[7] // counts[14]} times")

# %% [markdown]
# ## 4. One matrix for all patches
#
# Every patch, a row $x$ of numbers, becomes a token $z = x E + b$: the same matrix $E$ and the same $b$ for all of
# them. Then a learnt vector is added for each *position* (equation 1 of the paper):
#
# $$z^t = x^t E + b + e^t_{\text{pos}}, \qquad t = 1 \dots T .$$
#
# This is the **patch embedding**. For the digits with patches of 2 x 2 and tokens of 32 numbers: how many numbers are
# there to learn in $E$, $b$ and all $e^t_{\text{pos}}$ together?

# %% kind="predict"
guess = predict("numbers to learn in the embedding")

# %% kind="answer"
embed = nn.TokenEmbed(nn.PatchEmbed(image_size=8, patch_size=2, in_channels=1, dim=32, rng=rng), 32, rng=rng)
for name, parameter in embed.named_parameters():
    print(f"{name:20} {parameter.shape}")
answer("numbers to learn in the embedding", 672, measured=sum(p.size for p in embed.parameters()))

# %% [markdown]
# The shapes show a habit of the field: a weight is kept as (out, in), with a row for each number that comes out. So
# $y_o = b_o + \sum_i x_i W_{oi}$, for each row x: for a patch here, for a token everywhere else in the network. What
# one would write first:


# %% kind="naive"
def linear_with_loops(x, weight, bias):
    """(R, in) -> (R, out)."""
    y = np.empty((len(x), len(weight)))
    for r in range(len(x)):
        for o in range(len(weight)):
            y[r, o] = bias[o]
            for i in range(x.shape[1]):
                y[r, o] += x[r, i] * weight[o, i]
    return y


patches = rng.standard_normal((64, 16, 4))
weight, bias = embed.patch.proj.weight.data, rng.standard_normal(32)
slow = min(repeat(lambda: linear_with_loops(patches.reshape(-1, 4), weight, bias), number=1, repeat=2))
print(f"the patches of 64 digits: {1000 * slow:.0f} ms")


# %% kind="your-turn"
@yours("2.3")
def linear(x, weight, bias):
    """y = x W^T + b: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    # [1, 2] with weight [[1, 0], [0, 1], [1, 1]] and bias [0, 0, 10]: [1, 2, 13]
    return ...


check(linear)


# %% kind="solution"
@solution("2.3")
def linear(x, weight, bias):
    """y = x W^T + b: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    return x @ weight.T + bias


# %% kind="see"
fast = min(repeat(lambda: linear(patches, weight, bias), number=1, repeat=20))
print(f"{1000 * slow:.0f} ms with loops, {1000 * fast:.2f} ms as a product: {slow / fast:,.0f} times as fast")
assert np.allclose(
    linear(patches, weight, bias).reshape(-1, 32), linear_with_loops(patches.reshape(-1, 4), weight, bias)
)
assert slow > 10 * fast

# %% [markdown]
# Its backward, from one element as in lesson 01. With $r$ for the row, $y_{ro} = b_o + \sum_i x_{ri} W_{oi}$:
#
# $$\frac{\partial L}{\partial x_{ri}} = \sum_o g_{ro} \frac{\partial y_{ro}}{\partial x_{ri}}
# = \sum_o g_{ro} W_{oi},$$
#
# which is $g\,W$. For the weight and the bias, ask in which elements of y they take part. $W_{oi}$ and $b_o$ are the
# same for *all* rows, for every patch of every image: each row has its part in their gradient, and parts add up.


# %% kind="your-turn"
@yours("2.4")
def linear_backward(g, y, x, weight, bias):
    """(dL/dx, dL/dweight, dL/dbias): (..., in), (out, in), (out,), as the inputs."""
    # g.reshape(-1, g.shape[-1]) has one line for each row
    ...


check(linear_backward)


# %% kind="solution"
@solution("2.4")
def linear_backward(g, y, x, weight, bias):
    """(dL/dx, dL/dweight, dL/dbias): (..., in), (out, in), (out,), as the inputs."""
    rows = g.reshape(-1, g.shape[-1])
    return g @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(axis=0)


# %% [markdown]
# Never trust a derivative that you have not measured: the instrument is `numeric_gradient` of lesson 01. Then put it
# in. A Vision Transformer is mostly made of this operation.

# %%
few, g = patches[:2, :3], rng.standard_normal((2, 3, 32))
measured = numeric_gradient(lambda w: linear(few, w, bias), weight.astype("float64"), g)
off = np.abs(measured - linear_backward(g, None, few, weight, bias)[1]).max()
print(f"dL/dweight is off by at most {off:.0e}")

use(linear=(linear, linear_backward))
print(inspect.getsource(nn.PatchEmbed.forward))

# %% [markdown]
# Other libraries write the embedding as a convolution with a kernel of $p \times p$ that moves in steps of $p$. It is
# the same thing: a convolution whose windows do not overlap *is* a matrix product for each window. The slowest
# convolution in the world says so, too:

# %% kind="see"
pixels = rng.standard_normal((3, 8, 8, 1)).astype("float32")
kernel = embed.patch.proj.weight.data.reshape(32, 2, 2, 1)  # (out channels, height, width, in channels)

convolved = np.zeros((3, 4, 4, 32), "float32")
for row in range(4):
    for column in range(4):
        window = pixels[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        convolved[:, row, column] = np.einsum("nhwc,ohwc->no", window, kernel) + embed.patch.proj.bias.data

difference = np.abs(embed.patch(pixels).numpy() - convolved.reshape(3, 16, 32)).max()
print(f"convolution with kernel = stride = 2, and patches times a matrix: differ by at most {difference:.0e}")
assert difference < 1e-5
assert off < 1e-6

# %% [markdown]
# ## 5. What is lost: where
#
# Multiplying each patch by the same matrix forgets where the patch was. And what follows does not mend it: attention
# (lesson 03) and a small network for each token (lesson 04) treat all tokens alike, and at the end they are averaged.
#
# Take a fresh network, set its position vectors to zero, and shuffle the patches of an image like the tiles of a
# sliding puzzle. How much do its ten outputs change?

# %% kind="predict"
guess = predict("change of the outputs", choices=["not at all", "a little", "by as much as for another image"])


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

# %% kind="answer"
with_positions = network(normalize(digit)).numpy() - network(normalize(puzzle)).numpy()
network.embed.pos_embed.data[...] = 0
without = network(normalize(digit)).numpy() - network(normalize(puzzle)).numpy()
print(f"largest change of an output: with positions {abs(with_positions).max():.3f}, without {abs(without).max():.7f}")
answer("change of the outputs", "not at all")
assert abs(without).max() < 1e-5
assert abs(with_positions).max() > 0.01

# %% kind="see"
fig = new_figure(4.6, 4.8)
grid = fig.add_gridspec(2, 2)
axes = [fig.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :])]
for ax, picture, title in zip(axes, (digit, puzzle), ("the image", "shuffled"), strict=False):
    ax.imshow(picture[0, :, :, 0], cmap="gray_r")
    ax.set(title=title, xticks=[], yticks=[])
bars = np.arange(10)
axes[2].bar(bars - 0.2, abs(with_positions[0]), 0.4, color=PALETTE[0], label="with positions")
axes[2].bar(bars + 0.2, abs(without[0]), 0.4, color=PALETTE[1], label="without: all 0")
axes[2].set(title="change of the outputs", xlabel="output", xticks=bars[::3])
axes[2].legend(frameon=False, loc="upper right")
axes[2].set_ylim(0, 1.6 * abs(with_positions).max())
fig

# %% [markdown]
# Without positions a ViT sees a **bag of patches**. That is why a vector is added for each place: `x + positions`, with
# x of shape (N, T, dim) and positions of shape (1, T, dim), the same for all N images. The forward of a sum needs no
# exercise. The backward does: what is the gradient of a vector that was added to N images? (Lesson 01 has the tool.) It
# must hold for any two arrays that broadcast: the same operation adds what a block computes to what was there before.


# %% kind="your-turn"
@yours("2.5")
def add_backward(g, y, a, b):
    """What y = a + b hands down: (dL/da, dL/db), of the shapes of a and b."""
    # a (2, 3, 4), b (1, 3, 4), g all ones: dL/da is all ones, dL/db all twos
    ...


check(add_backward)


# %% kind="solution"
@solution("2.5")
def add_backward(g, y, a, b):
    """What y = a + b hands down: (dL/da, dL/db), of the shapes of a and b."""
    return unbroadcast(g, a.shape), unbroadcast(g, b.shape)


# %%
use(add=(None, add_backward))

# %% [markdown]
# ## 6. What the network knows about geometry
#
# The position vectors begin as random numbers. Nobody tells the network that place 5 lies right of place 4. Three
# training runs, the same network each time, on your operations:
#
# 1. the digits as they are;
# 2. the patches of *all* images shuffled in one and the same way;
# 3. the patches of *each* image shuffled in a way of its own.
#
# A convolutional network would lose much in case 2. And this one? Case 3 leaves a bag of patches, out of which one in
# ten is right by guessing.

# %% kind="predict"
guess = predict("case 2, beside case 1", choices=["as good, up to luck", "5 to 20 points worse", "close to guessing"])
guess = predict("accuracy in case 3", "%")


# %%
def accuracy(train, test):
    model = tb.ViT(bits=32, dim=32, depth=2, epochs=20, augment=None, random_state=0, verbose=0)
    return model.fit(train, digits.y_train).score(test, digits.y_test)


def own_orders(n):
    return np.argsort(rng.random((n, 16)), axis=1)


cases = {
    "as they are": (digits.X_train, digits.X_test),
    "one order for all": (shuffled(digits.X_train, order), shuffled(digits.X_test, order)),
    "each its own": tuple(shuffled(X, own_orders(len(X))) for X in (digits.X_train, digits.X_test)),
}
scores = [accuracy(*case) for case in cases.values()]

# %% kind="answer"
for name, score in zip(cases, scores, strict=True):
    print(f"{name:20} {score:.1%}")
answer("case 2, beside case 1", "as good, up to luck")
answer("accuracy in case 3", 68, measured=100 * scores[2], tolerance=7, unit=" %")
assert scores[0] > 0.93
assert abs(scores[0] - scores[1]) < 0.03
assert scores[2] < scores[0] - 0.1

# %% kind="see"
fig = new_figure(4.6, 5)
grid = fig.add_gridspec(4, 4, height_ratios=[1, 1, 1, 2])
for row, (name, (_, test)) in enumerate(cases.items()):
    for column in range(4):
        ax = fig.add_subplot(grid[row, column])
        ax.imshow(test[column, :, :, 0], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        if column == 0:
            ax.set_ylabel(name.replace("order ", "order\n").replace("as ", "as\n"), rotation=0, ha="right", va="center")
ax = fig.add_subplot(grid[3, :])
bars = ax.barh(range(3), [100 * s for s in scores], color=PALETTE[0], height=0.6)
ax.bar_label(bars, fmt="%.0f %%", padding=3)
ax.axvline(10, color="0.4", linestyle=":")
ax.set(xlim=(0, 118), yticks=range(3), xlabel="test accuracy (%); dotted: guessing", ylim=(2.5, -0.5))
ax.set_yticklabels(cases)
fig

# %% [markdown]
# Case 2 looks hopeless to us and is as easy as case 1 to the network: **a ViT has no idea that neighbours are
# neighbours**, it must learn all geometry from the data. That is its weakness with few images (a convolution gets
# geometry as a present) and its strength with many. In case 3 the position vectors are worthless, and the bag of
# patches that is left knows a surprising amount: how much ink there is, and which strokes.
#
# ## What you take along
#
# Cutting moves numbers, and its gradient moves them back. All patches share one matrix, so each has its part in the
# matrix's gradient. $T = HW / p^2$ tokens; attention costs $T^2$. Order is added, not built in.
#
# **You can now**: turn a loop over places into `reshape` and `transpose`; derive the backward of a layer whose weights
# many rows share; say what a ViT knows about an image before it has seen one.

# %%
keep(patchify, patchify_backward, linear, linear_backward, add_backward)
print(parts())

# %% kind="see"
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/02](solutions/02_images_to_tokens.ipynb).
#
# 1. (20 min) Some libraries flatten a patch in the order (channel, row, column) instead of (row, column, channel).
#    Which line of `patchify` changes? Which weights of a trained `PatchEmbed` must be permuted, and how? Hand in a
#    check that the outputs agree.
# 2. (5 min) Hand an array of shape (N, 3, 32, 32) to `tb.models.VisionTransformer(32, 4)`. Read the error. Why can the
#    library not just guess?
# 3. (30 min) Train with `patch_size` 1, 2, 4 and 8 on the digits. Draw accuracy and seconds against the number of
#    tokens. What is a ViT with a single patch?
# 4. (20 min) Repeat cases 1 and 2 with `augment="shift:1"`, which shifts the images by a pixel, and explain what
#    happens: does the augmentation come before or after your shuffling?
# 5. (an evening) Replace the learnt positions by the fixed sine waves of Vaswani et al. 2017 (arXiv 1706.03762, section
#    3.5): write them into `embed.pos_embed.data` and leave that parameter out of the optimiser. Do 200 training images
#    gain? Is it the waves that matter, or that nothing is learnt? Find a control.
