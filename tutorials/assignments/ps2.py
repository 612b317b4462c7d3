# %% [markdown]
# # Problem set 2: patches and attention
#
# A Vision Transformer reads a picture as a sentence: it cuts it into patches, and lets every patch look at every other.
# In this set you write both halves, forward and backward, and a Vision Transformer trains on your code. You need
# tutorials 02 and 03.
#
# **How it works.** Replace each `raise NotImplementedError()` by your answer. The line `tb.course.score(...)` below it
# checks it at once, shows an input for which something is wrong, and gives a point for each check that passes. Where
# another cell follows, it gives the last point, for inputs that you do not see. Leave these cells as they are. A
# mistake costs its own task and no other. Two tasks have no recipe: **find the method**. Hand in this notebook.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit.gradcheck import check_op
from tinybitvit.ops import Function
from tinybitvit.tensor import apply

# %% [markdown]
# ## Task 1: cut (3 points)
#
# Here is a picture of 2 x 4 pixels, one channel:
#
# | | | | |
# |---|---|---|---|
# | 0 | 1 | 2 | 3 |
# | 4 | 5 | 6 | 7 |
#
# Cut into patches of 2 x 2 it becomes two tokens, read row by row inside each patch: $(0, 1, 4, 5)$ and $(2, 3, 6, 7)$.
# A plain `reshape` gives $(0, 1, 2, 3)$ and $(4, 5, 6, 7)$, which are rows of the picture and no patches: the axes have
# to change places.
#
# Write it for images (N, H, W, C) and a patch of (ph, pw) pixels. The result is (N, T, ph pw C) with
# $T = (H / ph) (W / pw)$ patches, the top row of patches first; inside a patch the order is (ph, pw, C). Three calls
# suffice: a `reshape` to six axes, a `transpose`, a `reshape`.


# %% nbgrader={"grade_id": "ps2-1", "solution": true}
def patchify(images, patch_size):
    n, height, width, channels = images.shape
    ph, pw = patch_size
    ### BEGIN SOLUTION
    cut = images.reshape(n, height // ph, ph, width // pw, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, -1, ph * pw * channels)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-1-checks", "grade": true, "points": 2}
tb.course.score("ps2.1", patchify)

# %% nbgrader={"grade_id": "ps2-1-more", "grade": true, "points": 1}
picture = np.arange(8.0).reshape(1, 2, 4, 1)
tokens = patchify(picture, (2, 2))
assert np.array_equal(tokens, [[[0, 1, 4, 5], [2, 3, 6, 7]]]), f"it gives {tokens}"
assert patchify(np.zeros((3, 4, 6, 2)), (2, 3)).shape == (3, 4, 12), "the shape"
### BEGIN HIDDEN TESTS
for shape, patch in (((2, 4, 6, 3), (2, 3)), ((1, 6, 2, 1), (3, 2)), ((3, 4, 4, 2), (4, 4)), ((1, 2, 3, 2), (1, 1))):
    images = np.random.default_rng(sum(shape)).normal(0, 1, shape)
    assert np.array_equal(patchify(images, patch), tb.functional.patchify(images, patch).data), (
        f"images {shape}, patches {patch}"
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: and glue (2 points)
#
# What is the gradient of cutting? Every pixel goes to exactly one place, and nothing is computed. So `g`, which has the
# shape of the tokens, only has to be laid back into the picture: the same three steps, backwards. In the example,
# $g = ((10, 11, 12, 13), (14, 15, 16, 17))$ lies in the picture as
#
# | | | | |
# |---|---|---|---|
# | 10 | 11 | 14 | 15 |
# | 12 | 13 | 16 | 17 |
#
# `ctx` can carry what is not an array: `ctx.patch_size = patch_size`. `cut` is your `patchify`, or the library's where
# yours does not pass its checks.


# %%
cut = tb.course.settled("ps2.1", globals())


# %% nbgrader={"grade_id": "ps2-2", "solution": true}
class Patchify(Function):
    @staticmethod
    def forward(ctx, images, *, patch_size):
        ctx.patch_size, ctx.shape = patch_size, images.shape
        return cut(images, patch_size)

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        (n, height, width, channels), (ph, pw) = ctx.shape, ctx.patch_size
        patches = g.reshape(n, height // ph, width // pw, ph, pw, channels)
        return (patches.transpose(0, 1, 3, 2, 4, 5).reshape(ctx.shape),)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-2-checks", "grade": true, "points": 1}
tb.course.score("ps2.2", Patchify)

# %% nbgrader={"grade_id": "ps2-2-more", "grade": true, "points": 1}
x = tb.Tensor(picture, requires_grad=True)
apply(Patchify, x, patch_size=(2, 2)).backward(np.arange(10.0, 18).reshape(1, 2, 4))
assert np.array_equal(x.grad[0, :, :, 0], [[10, 11, 14, 15], [12, 13, 16, 17]]), f"it gives {x.grad[0, :, :, 0]}"
for patch in ((2, 1), (1, 2)):
    check_op(Patchify, picture, patch_size=patch)
### BEGIN HIDDEN TESTS
random = np.random.default_rng(2)
for shape, patch in (((2, 4, 6, 2), (2, 3)), ((1, 6, 2, 3), (3, 2))):
    check_op(Patchify, random.normal(0, 1, shape), patch_size=patch)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: attention (4 points)
#
# Every token asks a question $q$, offers a key $k$ and carries a value $v$. With one question $q = (1, 0)$, two keys
# $(2, 0)$ and $(0, 5)$ and values 10 and 20, the scores $q \cdot k$ are 2 and 0. Divided by $\sqrt{d} = \sqrt 2$ they
# are 1.41 and 0; softmax makes $p = (0.804, 0.196)$ of them; the answer is $0.804 \cdot 10 + 0.196 \cdot 20 = 11.96$.
#
# $$p = \text{softmax}\left(\frac{q k^T}{\sqrt d}\right), \qquad y = p v$$
#
# with softmax over the keys, the last axis. `q`, `k` and `v` are (..., T, d); return `y` and `p`. Scores may be large:
# subtract each row's maximum before the exponential, which changes no probability. `k.swapaxes(-1, -2)` is $k^T$.


# %% nbgrader={"grade_id": "ps2-3", "solution": true}
def attention(q, k, v):
    ### BEGIN SOLUTION
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = weights / weights.sum(axis=-1, keepdims=True)
    return p @ v, p
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-3-checks", "grade": true, "points": 3}
tb.course.score("ps2.3", attention)

# %% nbgrader={"grade_id": "ps2-3-more", "grade": true, "points": 1}
y, p = attention(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 5.0]]), np.array([[10.0], [20.0]]))
assert np.allclose(p, [[0.8044, 0.1956]], atol=1e-3), f"the probabilities are {p}"
assert np.allclose(y, [[11.956]], atol=1e-2), f"the answer is {y}"
y, p = attention(*np.ones((3, 2, 4, 5, 6)))
assert y.shape == (2, 4, 5, 6) and p.shape == (2, 4, 5, 5), "leading axes stay"
### BEGIN HIDDEN TESTS
q, k, v = np.random.default_rng(3).normal(0, 1, (3, 2, 2, 4, 3))
y, p = attention(q, k, v)
assert np.allclose(p.sum(axis=-1), 1), "the probabilities of each token add up to 1"
assert np.allclose(y, tb.functional.scaled_dot_product_attention(q, k, v).data), "random tokens"
y, p = attention(1000 * q, k, v)
assert np.isfinite(y).all(), "large scores"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: heads (3 points)
#
# One layer looks in several ways at once. It computes $q$, $k$ and $v$ of all heads with one matrix, so that a row of
# its output holds, side by side, $q$ of head 0, $q$ of head 1, ..., then all $k$, then all $v$. For 2 heads of 2
# numbers a token's row is
#
# $$(\underbrace{q_0\, q_0'}_{\text{head 0}}\; \underbrace{q_1\, q_1'}_{\text{head 1}}\;\;
# \underbrace{k_0\, k_0'}_{\text{head 0}}\; \underbrace{k_1\, k_1'}_{\text{head 1}}\;\;
# \underbrace{v_0\, v_0'}_{\text{head 0}}\; \underbrace{v_1\, v_1'}_{\text{head 1}})$$
#
# `split_heads` takes `qkv` (N, T, 3 h d) to a triple `q, k, v`, each (N, h, T, d). `join_heads` takes the heads'
# answers (N, h, T, d) to (N, T, h d), head 0 first.


# %% nbgrader={"grade_id": "ps2-4-split", "solution": true}
def split_heads(qkv, heads):
    n, tokens, width = qkv.shape
    ### BEGIN SOLUTION
    q, k, v = qkv.reshape(n, tokens, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
    return q, k, v
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-4-join", "solution": true}
def join_heads(y):
    n, heads, tokens, size = y.shape
    ### BEGIN SOLUTION
    return y.transpose(0, 2, 1, 3).reshape(n, tokens, heads * size)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-4-checks", "grade": true, "points": 2}
tb.course.score("ps2.4", (split_heads, join_heads))

# %% nbgrader={"grade_id": "ps2-4-more", "grade": true, "points": 1}
q, k, v = split_heads(np.arange(12.0).reshape(1, 1, 12), heads=2)
assert q.shape == (1, 2, 1, 2), f"q has the shape {q.shape}"
assert np.array_equal(q.ravel(), [0, 1, 2, 3]) and np.array_equal(v.ravel(), [8, 9, 10, 11]), f"q is {q}, v is {v}"
assert join_heads(np.zeros((2, 3, 4, 5))).shape == (2, 4, 15), "the shape after joining"
### BEGIN HIDDEN TESTS
random = np.random.default_rng(4)
qkv = random.normal(0, 1, (2, 5, 18))
q, k, v = split_heads(qkv, heads=3)
assert np.array_equal(q[1, 2, 4], qkv[1, 4, 4:6]), "q of head 2"
assert np.array_equal(k[0, 1, 3], qkv[0, 3, 8:10]), "k of head 1"
assert np.array_equal(v[1, 0, 2], qkv[1, 2, 12:14]), "v of head 0"
assert np.array_equal(join_heads(q), qkv[:, :, :6]), "joining undoes the splitting"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: attention, backwards (3 points)
#
# Given $g = dL/dy$, walk the formula of task 3 from its end to its beginning, for each head:
#
# $$\frac{dL}{dv} = p^T g, \qquad P = \frac{dL}{dp} = g v^T, \qquad
# S_{ij} = p_{ij} \Big(P_{ij} - \sum_l p_{il} P_{il}\Big), \qquad
# \frac{dL}{dq} = \frac{S k}{\sqrt d}, \qquad \frac{dL}{dk} = \frac{S^T q}{\sqrt d}$$
#
# The middle one is softmax: raising one score lowers all other probabilities of its row, hence the sum that is taken
# off. The gradient of `qkv` holds those of $q$, $k$ and $v$ where $q$, $k$ and $v$ were. `g` comes as (N, T, h d), the
# heads joined. (Splitting heads only moves numbers about: its gradient is the way back. For three arrays side by side,
# `np.concatenate([...], axis=-1)`.) `look`, `split` and `join` are yours of tasks 3 and 4, if they pass.


# %%
look = tb.course.settled("ps2.3", globals())
split, join = tb.course.settled("ps2.4", globals())


# %% nbgrader={"grade_id": "ps2-5", "solution": true}
class MultiHeadAttention(Function):
    @staticmethod
    def forward(ctx, qkv, *, heads, scale=None):
        q, k, v = split(qkv, heads)
        y, p = look(q, k, v)
        ctx.save(q, k, v, p)
        return join(y)

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved
        ### BEGIN SOLUTION
        n, heads, tokens, size = q.shape
        g = g.reshape(n, tokens, heads, size).transpose(0, 2, 1, 3)
        dp = g @ v.swapaxes(-1, -2)
        ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * size**-0.5
        parts = ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g
        return (np.concatenate([join(part) for part in parts], axis=-1),)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-5-checks", "grade": true, "points": 2}
tb.course.score("ps2.5", MultiHeadAttention)

# %% nbgrader={"grade_id": "ps2-5-more", "grade": true, "points": 1}
qkv = np.random.default_rng(0).normal(0, 1, (1, 3, 6))
for count in (1, 2):
    check_op(MultiHeadAttention, qkv, heads=count)
x = tb.Tensor(qkv, requires_grad=True)
apply(MultiHeadAttention, x, heads=2).backward(np.ones((1, 3, 2)))
assert x.grad.shape == qkv.shape, "the gradient has the shape of qkv"
### BEGIN HIDDEN TESTS
random = np.random.default_rng(5)
check_op(MultiHeadAttention, random.normal(0, 1, (2, 3, 12)), heads=2)
array, g = random.normal(0, 1, (2, 5, 36)), random.normal(0, 1, (2, 5, 12))
mine, theirs = tb.Tensor(array, requires_grad=True), tb.Tensor(array, requires_grad=True)
apply(MultiHeadAttention, mine, heads=3).backward(g)
tb.functional.multi_head_attention(theirs, 3).backward(g)
assert np.allclose(mine.grad, theirs.grad), "three heads"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6: attention in little memory (3 points)
#
# A picture of 10,000 patches has 100 million scores a head: 400 MB, and they are needed for a moment only. The library
# that you are given has `attend(q, k, v)`, which returns `y` for as many questions as it is asked, and needs memory for
# all of their scores at once.
#
# **Find the method.** Write `attention_in_rows`: the `y` of all questions `q` (..., T, d), but never more than `rows`
# of them in one call of `attend`, and in as few calls as that allows.


# %% nbgrader={"grade_id": "ps2-6", "solution": true}
def attention_in_rows(attend, q, k, v, rows):
    ### BEGIN SOLUTION
    # The softmax of a row needs that row alone: questions may be asked one after the other.
    tokens = q.shape[-2]
    parts = [attend(q[..., start : start + rows, :], k, v) for start in range(0, tokens, rows)]
    return np.concatenate(parts, axis=-2)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-6-checks", "grade": true, "points": 3}
tb.course.score("ps2.6", attention_in_rows)

# %% [markdown]
# ## Task 7: what it cannot see (3 points)
#
# Attention treats its tokens as a set. So there are pictures that a Vision Transformer without position embeddings,
# one that averages its tokens at the end, cannot tell apart, however long it is trained.
#
# **Find the method.** Write `twins`: two different pictures (size, size, 1) that are the same to such a network, whose
# patches are `patch` x `patch` pixels. `size` is a multiple of `patch`, at least twice as large. No two patches of a
# picture may be equal, so that it does have something to see.


# %% nbgrader={"grade_id": "ps2-7", "solution": true}
def twins(size, patch):
    ### BEGIN SOLUTION
    one = np.arange(float(size * size)).reshape(size, size, 1)
    # the patches change places, and are not changed themselves
    return one, np.roll(one, patch, axis=1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps2-7-checks", "grade": true, "points": 3}
tb.course.score("ps2.7", twins)

# %% [markdown]
# ## Task 8: a Vision Transformer learns through your code (2 points)
#
# Nothing to write: this is what the work was for. `tb.course.use` puts your Functions, those that pass their checks,
# into the library, in the place of its own, and a Vision Transformer trains on digits with them. Guessing gets one
# digit in ten right.

# %% nbgrader={"grade_id": "ps2-8-vit", "grade": true, "points": 2}
digits = tb.data.load_digits()
size = {"dim": 32, "depth": 1, "heads": 4, "epochs": 8}
names = {"ps2.2": "patchify", "ps2.5": "multi_head_attention"}
yours = {names[task]: operation for task, operation in tb.course.own(globals(), *names).items()}
assert yours, "no operation of yours passes its checks yet"
with tb.course.use(**yours):
    model = tb.ViT(bits=32, **size, augment=None, workers=1, random_state=0, verbose=0)
    model.fit(digits.X_train[:700], digits.y_train[:700])
    accuracy = model.score(digits.X_test, digits.y_test)
print(f"with your {', '.join(yours)}: {accuracy:.1%} of the test images are right")
assert accuracy > 0.5, "the network did not learn"

# %% [markdown]
# ## In your own words (4 points)
#
# Suppose that the patches of every picture are shuffled, each picture in the same way, before they come to a
# Vision Transformer *without* position embeddings that averages its tokens at the end. What happens to its answer, and
# which property of attention is the reason? And what changes for a network *with* position embeddings that was trained
# on unshuffled pictures? Four or five sentences.

# %% [markdown] nbgrader={"grade_id": "ps2-why", "grade": true, "solution": true, "points": 4}
# ### BEGIN SOLUTION
# Nothing happens to the answer. Attention treats its tokens as a set: shuffle the tokens, and the rows of its output
# are shuffled in the same way (it is permutation equivariant), as are those of the layers that work on each token by
# itself. The average over tokens does not depend on their order. So without positions the network cannot know where a
# patch was. With position embeddings each patch is marked with its place; shuffled patches get the marks of other
# places, which is a different input, and a network that was trained on unshuffled pictures gets worse.
#
# Full points: output unchanged; equivariance and the symmetric mean; the position is added before attention; worse.
# ### END SOLUTION
