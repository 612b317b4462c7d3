# %% [markdown]
# # 03 Attention
#
# In a Vision Transformer a patch learns about the other patches in one way only: it asks all of them a question, weighs
# the answers by how well they fit, and takes the average. Nothing else in the network moves information between
# places. The whole mechanism is one line (Vaswani et al. 2017, arXiv 1706.03762, equation 1):
#
# $$\text{Attention}(Q, K, V) = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right) V .$$
#
# You need: tutorials 01 (gradients) and 02 (tokens).

# %%
import inspect

import numpy as np
from matplotlib.colors import Normalize

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import nn, ops
from tinybitvit.viz.figure import PALETTE, color_bar, mark_patch, new_figure, show_map

rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. A dictionary with soft edges
#
# A Python dictionary compares your key with all of its keys and returns the value of the one that is equal. Attention
# compares your *query* $q$ with every *key* $k_j$ by a dot product, turns the scores into shares that sum to 1, and
# returns the average of the *values* $v_j$ with these shares.
#
# Three keys, chosen so that the scores are $0$, $\ln 2$ and $0$ (we leave out the $\sqrt d$ for the moment), and three
# values $0, 10, 40$. The softmax is $e^{s_j} / \sum_l e^{s_l}$.
#
# **Predict** the three shares, and the answer.

# %%
q = np.array([[1.0, 0.0]])
k = np.array([[0.0, 1.0], [np.log(2), 0.0], [0.0, -1.0]])
v = np.array([[0.0], [10.0], [40.0]])

scores = q @ k.T
shares = F.softmax(scores).numpy()
answer = F.scaled_dot_product_attention(q, k, v, scale=1.0).numpy()
print("scores", scores.round(3), " shares", shares, " answer", answer)
assert np.allclose(shares, [[1 / 4, 1 / 2, 1 / 4]])
assert np.isclose(answer, 0 / 4 + 10 / 2 + 40 / 4)

# %% [markdown]
# Make the query longer and the shares get sharper: with $10\,q$ the middle key is $2^{10}$ times as good as the others,
# and the soft dictionary becomes a hard one. With $q = 0$ it averages everything. A head can learn both.

# %%
for factor in (0, 1, 3, 10):
    p = F.softmax(factor * scores).numpy()[0]
    print(f"query x {factor:2}: shares {p.round(3)}  answer {(p @ v).item():.2f}")
assert p[1] > 0.99

# %% [markdown]
# ## 2. Why divide by $\sqrt d$
#
# Let the $d$ components of $q$ and $k$ be independent, with mean 0 and variance 1. The score $q \cdot k$ is a sum of
# $d$ products.
#
# **Predict** the standard deviation of the scores for $d = 64$. What does a softmax over 65 such scores look like, and
# what becomes of its gradient? (The Jacobian is $\partial p_i / \partial s_j = p_i (1[i = j] - p_j)$.)

# %%
dims = 2 ** np.arange(0, 11)
deviation, largest, slope = {}, {}, {}
for name, scale in (("without", lambda d: 1.0), ("with", lambda d: d**-0.5)):
    rows = []
    for d in dims:
        q, k = rng.standard_normal((200, 1, d)), rng.standard_normal((200, 65, d))
        s = scale(d) * (q @ k.transpose(0, 2, 1))
        p = F.softmax(s).numpy()
        rows.append((s.std(), p.max(axis=-1).mean(), (p * (1 - p)).sum(axis=-1).mean()))
    deviation[name], largest[name], slope[name] = np.array(rows).T
at64 = list(dims).index(64)
print("d = 64, standard deviation:", {name: round(float(s[at64]), 2) for name, s in deviation.items()})
assert abs(deviation["without"][at64] - 8) < 0.3
assert abs(deviation["with"][at64] - 1) < 0.05

fig = new_figure(9.5, 3.4)
axes = fig.subplots(1, 3)
panels = (
    (deviation, "standard deviation of the scores"),
    (largest, "largest share, mean"),
    (slope, "slopes $p_i (1 - p_i)$, summed"),
)
for ax, (numbers, title) in zip(axes, panels, strict=True):
    for (name, values), marker, color in zip(numbers.items(), "so", (PALETTE[1], PALETTE[0]), strict=True):
        ax.plot(dims, values, marker + "-", color=color, markersize=4, label=f"{name} $1/\\sqrt{{d}}$")
    ax.set_xscale("log", base=2)
    ax.set(title=title, xlabel="$d$")
    ax.grid(alpha=0.3)
axes[0].legend(frameon=False)
fig

# %% [markdown]
# Without the factor, a fresh network with wide heads looks at a single token, chosen by chance, and the slope is close
# to 0: it can hardly learn to look elsewhere. With it, all widths start alike.
#
# ## 3. The library's version
#
# One Function for the whole formula, forward and backward. Find the softmax rule $p_i (1[i=j] - p_j)$ in the second
# half: it is the line with `einsum`.

# %%
print(inspect.getsource(ops.attention.attend))
print(inspect.getsource(ops.attention.attend_backward))

# %% [markdown]
# The slow reference is a chain of small operations, as equation 1 has it. They must agree in value and in all three
# gradients. And the scores' gradients in each row must sum to 0.
#
# **Predict** why: what happens to the output if all scores of a row rise by the same amount?

# %%
T, d = 6, 8
arrays = [rng.standard_normal((T, d)) for _ in range(3)]
g = rng.standard_normal((T, d))


def gradients(attention):
    q, k, v = (tb.Tensor(a, requires_grad=True) for a in arrays)
    y = attention(q, k, v)
    y.backward(g)
    return [y.numpy(), q.grad, k.grad, v.grad]


fused = gradients(F.scaled_dot_product_attention)
chain = gradients(lambda q, k, v: F.softmax(q @ k.T * d**-0.5) @ v)
assert all(np.allclose(a, b) for a, b in zip(fused, chain, strict=True))

s = tb.Tensor(arrays[0] @ arrays[1].T, requires_grad=True)
(F.softmax(s) @ tb.Tensor(arrays[2])).backward(g)
print("row sums of dL/ds:", s.grad.sum(axis=1).round(12))
assert np.abs(s.grad.sum(axis=1)).max() < 1e-12

tb.gradcheck.check_op(ops.OPS["scaled_dot_product_attention"], *arrays)
print("one fused operation  ==  softmax(q k^T / sqrt d) v, in value and gradients")

# %% [markdown]
# ## 4. Several heads
#
# One softmax per token can point in one direction only. So the `dim` columns are split among $h$ heads of $d = dim / h$
# columns each; every head has its own queries, keys and values, and a last matrix mixes what they bring home.
#
# **Predict**: a layer with dim = 64. How many parameters with 1 head? With 8?

# %%
print(inspect.getsource(nn.MultiHeadAttention))
for heads in (1, 8):
    layer = nn.MultiHeadAttention(64, heads)
    count = sum(p.size for p in layer.parameters())
    print(f"{heads} heads: {count:,} parameters")
    assert count == 3 * 64 * 64 + 3 * 64 + 64 * 64 + 64  # qkv and its bias, proj and its bias

# %% [markdown]
# `attend` is a module of its own for one reason: so that you can look. A hook on it is handed the shares of every
# head. (Without hooks the layer takes the fused operation: same numbers, less memory.)
#
# ## 5. A head built by hand
#
# What can a head compute? Let us *write* the weights of one instead of learning them. The image has 4 x 4 patches; the
# content of a token is its address, as two one-hot vectors: row (4 numbers), column (4 numbers).
#
# The plan for a head that says "look at my left neighbour": the key of a patch is its address; the query is the address
# *with the column moved by one*. Row and column both match: score 2; one of them: 1; none: 0. Multiply the
# query by a large number and the softmax picks the best. A second head does the same with the row: "look up".
#
# **Predict**: what will the patches in the leftmost column look at, which have no left neighbour?

# %%
address = np.zeros((1, 16, 16), "float32")  # (image, token, dim): row, column, and 8 unused columns
for t in range(16):
    address[0, t, t // 4] = address[0, t, 4 + t % 4] = 1

keep, shift = np.eye(4), np.eye(4, k=-1).T  # shift: one-hot of c -> one-hot of c - 1
query = np.zeros((2, 8, 16))  # (head, d, dim)
query[0, :4, :4], query[0, 4:, 4:8] = keep, shift  # head 0: same row, column - 1
query[1, :4, :4], query[1, 4:, 4:8] = shift, keep  # head 1: row - 1, same column
key = np.zeros((2, 8, 16))
key[:, :, :8] = np.eye(8)

layer = nn.MultiHeadAttention(16, heads=2)
sharpness = 30.0
weight = np.concatenate([sharpness * query.reshape(16, 16), key.reshape(16, 16), key.reshape(16, 16)])
layer.qkv.weight.data[...] = weight
layer.proj.weight.data[...] = np.eye(16)

maps = []
with layer.attend.register_forward_hook(lambda module, inputs, output: maps.append(output.numpy())):
    output = layer(address).numpy()
(shares,) = maps
print("shares:", shares.shape, "= (images, heads, tokens, tokens)")
assert np.allclose(shares.sum(axis=-1), 1)

patch = (2, 2)
token = patch[0] * 4 + patch[1]
assert shares[0, 0, token].argmax() == token - 1  # the left neighbour
assert shares[0, 1, token].argmax() == token - 4  # the one above
assert shares[0, 0, token].max() > 0.99
assert output[0, token, :8].round(2).tolist() == address[0, token - 1, :8].tolist()  # head 0 brings its address home

# %%
fig = new_figure(9.5, 4.6)
axes = fig.subplots(2, 4)
norm = Normalize(0, 100)
grey = np.full((8, 8, 3), 255, "uint8")
for row, name in enumerate(("head 0: left", "head 1: up")):
    for ax, at in zip(axes[row], [(2, 2), (1, 3), (2, 0), (0, 2)], strict=True):
        values = 100 * shares[0, row, at[0] * 4 + at[1]].reshape(4, 4)
        show_map(ax, grey, values, norm)
        mark_patch(ax, at, (2, 2))
        ax.set_title(f"row {at[0]}, column {at[1]} looks at", fontsize=9)
    axes[row, 0].set_ylabel(name, fontsize=11)
color_bar(fig, axes.flat, norm, "share of attention (%); the frame marks the patch that asks")
fig

# %% [markdown]
# At the border half of the question has no answer: every patch of the row (or column) fits equally well, and the
# head spreads its attention over them. Row 2, column 0 asks for "row 2, column -1" and gets all of row 2.
#
# Heads that look one step left, right, up, down are a *convolution*: with enough heads, attention can express any of
# them (Cordonnier et al. 2020, arXiv 1911.03584, theorem 1). It need not, and it has to learn it.
#
# ## 6. What it costs
#
# The shares are $h\,T^2$ numbers per image and layer, and the backward pass needs them again.
#
# **Predict**: `float32`, 3 heads, 64 images. How many megabytes for the 65 tokens of a 32 x 32 image ($p = 4$, with a
# class token)? How many for 257 tokens ($p = 2$)?

# %%
for T in (65, 257):
    ctx = ops.Context(np, (True,))
    ops.OPS["multi_head_attention"].forward(ctx, np.zeros((64, T, 3 * 192), "float32"), heads=3)
    kept = ctx.saved[1].nbytes
    print(f"{T} tokens: {kept / 1e6:6.1f} MB of shares for each layer")
    assert kept == 64 * 3 * T * T * 4

# %% [markdown]
# ## What you take along
#
# - Attention is a soft dictionary: shares from dot products, an average of values.
# - $1/\sqrt d$ keeps the scores' spread at 1, so that a wide head does not start out with a hard choice.
# - Heads are column blocks: more of them cost no parameters.
# - A map of shares says where values were *taken from*. It is not an explanation; tutorial 09 comes back to that.
#
# ## Exercises
#
# 1. By hand: two tokens with $q_1 = k_1 = (1, 0)$, $q_2 = k_2 = (0, 1)$, $v = (0, 1)$, $d = 2$. Work out both outputs
#    to two digits, then check.
# 2. Show that a layer of attention without positions commutes with any permutation of the tokens, first on paper
#    (what does $P$ do to $Q K^\top$?), then with `nn.MultiHeadAttention`.
# 3. Make the hand-built heads look *right* and *down*, and draw them. Then build a head that looks at the mean of all
#    patches in the same row. What is the smallest `sharpness` for which left neighbours get 90 %?
# 4. Give half of the scores $-\infty$ (a mask) and derive the gradient with respect to those scores. Does the
#    `attend_backward` above handle it as it stands?
# 5. *(harder)* Write attention that never holds the $T \times T$ shares: go through the keys in blocks, with a running
#    maximum and a running sum (Dao et al. 2022, arXiv 2205.14135). Check it against
#    `F.scaled_dot_product_attention`.
