# %% [markdown]
# # 03 Attention
#
# In a Vision Transformer a patch learns about the other patches in one way only: it asks all of them a question, weighs
# the answers by how well they fit, and takes the average. Nothing else in the network moves information between
# places. The whole mechanism is one line (Vaswani et al. 2017, arXiv 1706.03762, equation 1):
#
# $$\text{Attention}(Q, K, V) = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right) V .$$
#
# Here you write it, derive its gradient, and put both into the library. You need: lessons 01 and 02.

# %%
import inspect
import math
from timeit import repeat

import numpy as np
from matplotlib.colors import Normalize

import tinybitvit as tb
from tinybitvit import nn, ops
from tinybitvit.course import answer, check, keep, mine, parts, predict, solution, use, yours
from tinybitvit.viz.figure import PALETTE, color_bar, mark_patch, new_figure, show_map

rng = np.random.default_rng(0)
numeric_gradient, matmul_backward = mine("numeric_gradient", "matmul_backward")

# %% [markdown]
# ## 1. A dictionary with soft edges
#
# A Python dictionary compares your key with all of its keys and returns the value of the one that is equal.
# **Attention** compares your *query* $q$ with every *key* $k_j$ by a dot product, turns the scores $s_j$ into shares
# $p_j = e^{s_j} / \sum_l e^{s_l}$, which sum to 1, and returns the average of the *values* $v_j$ with these shares.
#
# Three keys, chosen so that the scores are $0$, $\ln 2$ and $0$, and the values $0$, $10$ and $40$. What is returned?

# %% kind="predict"
guess = predict("the answer of the soft dictionary")


# %% kind="naive"
def ask(query, keys, values):
    """The average of the values for one query, one number at a time."""
    scores = [sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    powers = [math.exp(score) for score in scores]
    shares = [power / sum(powers) for power in powers]
    return sum(share * value for share, value in zip(shares, values, strict=True)), shares


query = [1.0, 0.0]
keys = [[0.0, 1.0], [math.log(2), 0.0], [0.0, -1.0]]

# %% kind="answer"
found, shares = ask(query, keys, [0.0, 10.0, 40.0])
print("shares", [round(share, 3) for share in shares])
answer("the answer of the soft dictionary", 15, measured=found, tolerance=1e-9)

# %% [markdown]
# Make the query longer and the shares get sharper: ten times as long, and the middle key is $2^{10}$ times as good as
# the others; the soft dictionary has become a hard one. With a query of zeros it averages everything. A network can
# learn either.

# %%
for factor in (0, 1, 3, 10):
    found, shares = ask([factor * a for a in query], keys, [0.0, 10.0, 40.0])
    print(f"query x {factor:2}: shares {np.round(shares, 3)}  answer {found:.2f}")

# %% [markdown]
# ## 2. Softmax, and its gradient
#
# The function that turns scores into shares is the **softmax**. For two scores of 1000 both shares ought to be one
# half. What does NumPy make of `np.exp(s) / np.exp(s).sum()`?

# %% kind="predict"
guess = predict("softmax of (1000, 1000), written like this", choices=["0.5, 0.5", "nan, nan", "1, 1", "an error"])

# %% kind="naive"
with np.errstate(over="ignore", invalid="ignore"):
    s = np.array([1000.0, 1000.0])
    naive = np.exp(s) / np.exp(s).sum()

# %% kind="answer"
print("e^1000 =", math.inf, " so the shares are", naive)
answer("softmax of (1000, 1000), written like this", "nan, nan", measured=", ".join(map(str, naive)))

# %% [markdown]
# A score of 1000 is no rarity in a network that has gone astray, and one share that is not a number is enough to spoil
# every weight. The cure costs a subtraction: add the same $c$ to all scores, and
#
# $$\frac{e^{s_j + c}}{\sum_l e^{s_l + c}} = \frac{e^c e^{s_j}}{e^c \sum_l e^{s_l}} = p_j$$
#
# stays what it was. Which $c$ makes sure that no power is larger than 1?


# %% kind="your-turn"
@yours("3.1")
def softmax(x):
    """e^x over the sum of e^x along the last axis, without overflow."""
    # [0, ln 2, 0] gives [0.25, 0.5, 0.25]; so does [1000, 1000 + ln 2, 1000]
    ...


check(softmax)


# %% kind="solution"
@solution("3.1")
def softmax(x):
    """e^x over the sum of e^x along the last axis, without overflow."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# %% [markdown]
# Now backward. Every share depends on every score, so there is a whole matrix of derivatives, the **Jacobian**. By the
# quotient rule, with $Z = \sum_l e^{s_l}$, the derivative of $p_i = e^{s_i} / Z$ with respect to $s_j$ is
#
# $$\begin{aligned}
# \frac{\partial p_i}{\partial s_j} &= \frac{1[i = j]\, e^{s_i} Z - e^{s_i} e^{s_j}}{Z^2} \\
# &= p_i \,(1[i = j] - p_j) .
# \end{aligned}$$
#
# From above arrives $g_i = \partial L / \partial p_i$. Before you go on: all scores of a row rise by 1. How does L
# change, and so, what do the numbers $\partial L / \partial s_j$ of a row add up to, whatever g is?

# %% kind="predict"
guess = predict("the sum of dL/ds over a row", choices=["nothing: 0", "always 1", "the sum of g"])


# %% kind="naive"
def softmax_backward_by_jacobian(g, p):
    """Row by row: build the n x n Jacobian, and multiply."""
    result = np.empty_like(p)
    for r in range(len(p)):
        jacobian = np.diag(p[r]) - np.outer(p[r], p[r])
        result[r] = jacobian.T @ g[r]
    return result


p, g = softmax(rng.standard_normal((500, 65))), rng.standard_normal((500, 65))
slow = min(repeat(lambda: softmax_backward_by_jacobian(g, p), number=1, repeat=3))
print(f"500 rows of 65 shares: {1000 * slow:.1f} ms, and {65 * 65} numbers of Jacobian for each")

# %% kind="answer"
sums = softmax_backward_by_jacobian(g, p).sum(axis=1)
print("sums of the first rows:", np.abs(sums[:4]).round(12))
answer("the sum of dL/ds over a row", "nothing: 0")
assert np.abs(sums).max() < 1e-12

# %% [markdown]
# The shares do not change when all scores rise alike, so neither does L. And the Jacobian need not be built. Put it
# into the sum,
#
# $$\frac{\partial L}{\partial s_j} = \sum_i g_i \, p_i \,(1[i = j] - p_j),$$
#
# and split the bracket. One of the two parts keeps a single term of the sum; in the other, $p_j$ comes out in front.


# %% kind="your-turn"
@yours("3.2")
def softmax_backward(g, y, x):
    """dL/dx from g = dL/dy, for y = softmax(x); without the Jacobian."""
    # y = [0.5, 0.5], g = [1, 0] gives [0.25, -0.25]
    ...


check(softmax_backward)


# %% kind="solution"
@solution("3.2")
def softmax_backward(g, y, x):
    """dL/dx from g = dL/dy, for y = softmax(x); without the Jacobian."""
    return y * (g - (g * y).sum(axis=-1, keepdims=True))


# %% kind="see"
fast = min(repeat(lambda: softmax_backward(g, p, None), number=1, repeat=20))
print(f"{1000 * slow:.1f} ms with Jacobians, {1000 * fast:.2f} ms without: {slow / fast:.0f} times as fast")
x = rng.standard_normal((2, 5))
measured = numeric_gradient(softmax, x, g[:2, :5])
assert np.abs(measured - softmax_backward(g[:2, :5], softmax(x), x)).max() < 1e-6
assert np.allclose(softmax_backward(g, p, None), softmax_backward_by_jacobian(g, p))
assert slow > 2 * fast

# %%
use(softmax=(softmax, softmax_backward))

# %% [markdown]
# ## 3. Why divide by the root of d
#
# Let the $d$ numbers in $q$ and in $k$ be independent, with mean 0 and variance 1. The score $q \cdot k$ is a sum of
# $d$ products. What is the standard deviation of the scores for $d = 64$?

# %% kind="predict"
guess = predict("standard deviation of the scores")

# %%
dims = 2 ** np.arange(0, 11)
deviation, largest, slope = {}, {}, {}
for name, scale in (("without", lambda d: 1.0), ("with", lambda d: d**-0.5)):
    rows = []
    for d in dims:
        q, k = rng.standard_normal((200, 1, d)), rng.standard_normal((200, 65, d))
        s = scale(d) * (q @ k.transpose(0, 2, 1))
        p = softmax(s)
        rows.append((s.std(), p.max(axis=-1).mean(), (p * (1 - p)).sum(axis=-1).mean()))
    deviation[name], largest[name], slope[name] = np.array(rows).T

# %% kind="answer"
at64 = list(dims).index(64)
print(f"measured: {deviation['without'][at64]:.2f}")
answer("standard deviation of the scores", 8, measured=deviation["without"][at64], tolerance=0.3)
assert abs(deviation["with"][at64] - 1) < 0.05

# %% [markdown]
# A product of two independent numbers of variance 1 has variance 1; variances of independent numbers add up; so the
# score has variance $d$ and deviation $\sqrt d$. The second picture says what the softmax makes of it, the last one
# what is left for learning: its slopes $p_i (1 - p_i)$, from the diagonal of the Jacobian.

# %% kind="see"
fig = new_figure(4.6, 6.4, formulas=True)
axes = fig.subplots(3, 1, sharex=True)
panels = ((deviation, "deviation of scores"), (largest, "largest share, mean"), (slope, "slopes, summed"))
for ax, (numbers, title) in zip(axes, panels, strict=True):
    for (name, values), marker, color in zip(numbers.items(), "so", (PALETTE[1], PALETTE[0]), strict=True):
        ax.plot(dims, values, marker + "-", color=color, markersize=4, label=f"{name} $1/\\sqrt{{d}}$")
    ax.set_xscale("log", base=2)
    ax.set_title(title, fontsize=11)
    ax.grid(alpha=0.3)
axes[0].legend(frameon=False)
axes[2].set_xlabel("$d$")
assert slope["without"][-1] < 0.1 < 0.5 < slope["with"][-1]
fig

# %% [markdown]
# Without the factor, a fresh network with wide heads looks at a single token, chosen by chance, and the slope is close
# to 0: it can hardly learn to look elsewhere. With it, all widths start alike.
#
# ## 4. Attention
#
# Each of $T$ tokens asks each of $T$ tokens, so `ask` would run $T$ times, with $T d$ products in each. How many times
# as fast are matrices, for 65 tokens of 64 numbers?

# %% kind="predict"
guess = predict("times as fast", choices=["about 2", "about 20", "100 or more"])

# %% kind="naive"
q, k, v = (rng.standard_normal((65, 64)) for _ in range(3))
Q, K, V = q.tolist(), k.tolist(), v.tolist()


def ask_all(Q, K, V):
    """Every query, one number of its answer after the other."""
    answers = []
    for query in Q:
        _, shares = ask([a / 8 for a in query], K, [0.0] * len(K))
        answers.append([sum(p * row[i] for p, row in zip(shares, V, strict=True)) for i in range(len(V[0]))])
    return answers


slow = min(repeat(lambda: ask_all(Q, K, V), number=1, repeat=2))
print(f"65 tokens, one number at a time: {1000 * slow:.0f} ms")


# %% kind="your-turn"
@yours("3.3")
def attention(q, k, v):
    """softmax(q k^T / sqrt d) v: (..., T, d), (..., S, d), (..., S, e) -> (..., T, e)."""
    # swapaxes(-1, -2) transposes each matrix of a stack
    ...


check(attention)


# %% kind="solution"
@solution("3.3")
def attention(q, k, v):
    """softmax(q k^T / sqrt d) v: (..., T, d), (..., S, d), (..., S, e) -> (..., T, e)."""
    return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v


# %% kind="answer"
fast = min(repeat(lambda: attention(q, k, v), number=1, repeat=20))
print(f"{1000 * slow:.0f} ms with loops, {1000 * fast:.2f} ms with matrices: {slow / fast:,.0f} times as fast")
answer("times as fast", "100 or more", measured="100 or more" if slow > 100 * fast else f"{slow / fast:.0f}")
assert np.allclose(attention(q, k, v), ask_all(Q, K, V))

# %% [markdown]
# Its backward is a chain of rules that you have already: three steps forward, the same three back.
#
# $$s = \frac{q k^\top}{\sqrt d}, \qquad p = \text{softmax}(s), \qquad y = p v .$$
#
# From $y = p v$ and g the rule of the matrix product gives $\partial L / \partial p$ and $\partial L / \partial v$.
# From $\partial L / \partial p$ the rule of the softmax gives $\partial L / \partial s$. And $s = q\, k^\top / \sqrt d$
# is a matrix product again, of $q$ and of what is $k$ transposed, over $\sqrt d$. Nobody kept p: work it out again.


# %% kind="your-turn"
@yours("3.4")
def attention_backward(g, y, q, k, v):
    """(dL/dq, dL/dk, dL/dv) from g = dL/dy, for y = attention(q, k, v)."""
    # matmul_backward(g, y, a, b) gives the two gradients of y = a @ b
    scale = 1 / math.sqrt(q.shape[-1])
    p = softmax(scale * q @ k.swapaxes(-1, -2))
    ...  # four lines: dp, dv; ds; dq, dk (mind the order of k's axes); return


check(attention_backward)


# %% kind="solution"
@solution("3.4")
def attention_backward(g, y, q, k, v):
    """(dL/dq, dL/dk, dL/dv) from g = dL/dy, for y = attention(q, k, v)."""
    scale = 1 / math.sqrt(q.shape[-1])
    p = softmax(scale * q @ k.swapaxes(-1, -2))
    dp, dv = matmul_backward(g, y, p, v)
    ds = scale * softmax_backward(dp, p, None)
    dq, dk = matmul_backward(ds, None, q, k.swapaxes(-1, -2))
    return dq, dk.swapaxes(-1, -2), dv


# %% [markdown]
# The library has the same lines. It keeps p from the forward instead of working it out again, writes over arrays that
# nobody needs any more, and takes the row sums by `einsum`, which makes no array of products.

# %%
use(scaled_dot_product_attention=(attention, attention_backward))
print(inspect.getsource(ops.attention.attend_backward))

# %% kind="see"
small = [a[:5, :4] for a in (q, k, v)]
g = rng.standard_normal((5, 4))
for name, position, gradient in zip("qkv", range(3), attention_backward(g, None, *small), strict=True):
    measured = numeric_gradient(lambda x, i=position: attention(*small[:i], x, *small[i + 1 :]), small[position], g)
    print(f"dL/d{name} is off by at most {np.abs(measured - gradient).max():.0e}")
    assert np.abs(measured - gradient).max() < 1e-6

# %% [markdown]
# ## 5. Several heads
#
# One softmax per token can point in one direction only. So the `dim` numbers of a token are split among $h$ **heads**
# of $d = \text{dim} / h$ numbers each. Every head has its own queries, keys and values; what the heads bring home is
# laid side by side again, and a last matrix mixes it.
#
# A layer with dim = 64: one linear layer with bias makes queries, keys and values out of each token, another one mixes.
# How many parameters does it have with 8 heads? And with one?

# %% kind="predict"
guess = predict("parameters with 8 heads")

# %% kind="answer"
counts = {heads: sum(p.size for p in nn.MultiHeadAttention(64, heads).parameters()) for heads in (1, 8)}
print(f"with one head {counts[1]:,}, with 8 heads {counts[8]:,}: heads cost no parameters")
answer("parameters with 8 heads", 16640, measured=counts[8])
assert counts[1] == counts[8]

# %% [markdown]
# The first linear layer lays q, k and v of all heads side by side in one row: `qkv` is (N, T, 3 h d). One head after
# the other:


# %% kind="naive"
def head_by_head(qkv, heads):
    """(N, T, 3 h d) -> (N, T, h d)."""
    N, T, width = qkv.shape
    d, y = width // (3 * heads), np.empty((N, T, width // 3), qkv.dtype)
    for n in range(N):
        for h in range(heads):
            q, k, v = (qkv[n, :, i * heads * d + h * d :][:, :d] for i in range(3))
            y[n, :, h * d : (h + 1) * d] = attention(q, k, v)
    return y


qkv = rng.standard_normal((64, 16, 3 * 32)).astype("float32")
slow = min(repeat(lambda: head_by_head(qkv, 8), number=1, repeat=3))
print(f"64 digits, 8 heads: {1000 * slow:.1f} ms")

# %% [markdown]
# Your `attention` takes stacks of matrices, so all heads of all images can go at once, as (N, h, T, d). That is
# `reshape` and `transpose` again, as in lesson 02: a column of qkv is (q, k or v) x h d + (head) x d + (number in the
# head).


# %% kind="your-turn"
@yours("3.5")
def multi_head_attention(qkv, heads):
    """Attention of every head: (N, T, 3 h d), q beside k beside v, -> (N, T, h d)."""
    n, t, width = qkv.shape
    qkv = qkv.reshape(n, t, 3, heads, width // (3 * heads))
    ...  # q, k, v as (n, heads, t, d); attention; heads side by side again


check(multi_head_attention)


# %% kind="solution"
@solution("3.5")
def multi_head_attention(qkv, heads):
    """Attention of every head: (N, T, 3 h d), q beside k beside v, -> (N, T, h d)."""
    n, t, width = qkv.shape
    qkv = qkv.reshape(n, t, 3, heads, width // (3 * heads))
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    return attention(q, k, v).transpose(0, 2, 1, 3).reshape(n, t, width // 3)


# %% [markdown]
# Splitting and joining only move numbers, and you know what that means for the backward: g goes the way of y backwards,
# `attention_backward` does its work, and dq, dk and dv go to where q, k and v came from.


# %% kind="your-turn"
@yours("3.6")
def multi_head_attention_backward(g, y, qkv, heads):
    """dL/dqkv (N, T, 3 h d) from g = dL/dy (N, T, h d)."""
    n, t, width = qkv.shape
    split = qkv.reshape(n, t, 3, heads, width // (3 * heads))
    split = split.transpose(2, 0, 3, 1, 4)  # q, k, v
    ...  # g as (n, heads, t, d); np.stack of dq, dk, dv is (3, n, heads, t, d)


check(multi_head_attention_backward)


# %% kind="solution"
@solution("3.6")
def multi_head_attention_backward(g, y, qkv, heads):
    """dL/dqkv (N, T, 3 h d) from g = dL/dy (N, T, h d)."""
    n, t, width = qkv.shape
    split = qkv.reshape(n, t, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
    g = g.reshape(n, t, heads, width // (3 * heads)).transpose(0, 2, 1, 3)
    gradients = np.stack(attention_backward(g, None, *split))
    return gradients.transpose(1, 3, 0, 2, 4).reshape(n, t, width)


# %% [markdown]
# From here on all attention in the library is yours, in a network that learns, too.

# %%
digits = tb.data.load_digits()
options = {"dim": 32, "depth": 1, "heads": 4, "epochs": 8, "verbose": 0, "random_state": 0, "workers": 1}
theirs = tb.ViT(**options).fit(digits.X_train, digits.y_train).score(digits.X_test, digits.y_test)
use(multi_head_attention=(multi_head_attention, multi_head_attention_backward))
yours_inside = tb.ViT(**options).fit(digits.X_train, digits.y_train).score(digits.X_test, digits.y_test)
print(f"handwritten digits, 8 epochs: {theirs:.1%} with the library's, {yours_inside:.1%} with yours")

# %% kind="see"
fast = min(repeat(lambda: multi_head_attention(qkv, 8), number=1, repeat=10))
print(f"all heads at once: {1000 * fast:.1f} ms, {slow / fast:.1f} times as fast as head by head")
assert np.allclose(multi_head_attention(qkv, 8), head_by_head(qkv, 8), atol=1e-5)
assert ops.OPS["multi_head_attention"].__name__ == "YourMultiHeadAttention"
assert abs(theirs - yours_inside) < 0.03
assert theirs > 0.5

# %% [markdown]
# ## 6. A head built by hand
#
# What can a head compute? Let us *write* the weights of one instead of learning them. The image has 4 x 4 patches; the
# content of a token is its address, as two one-hot vectors: row (4 numbers), column (4 numbers).
#
# A head that says "look at my left neighbour": the key of a patch is its address; the query is the address *with the
# column moved by one*. Row and column both match: score 2; one of them: 1; none: 0. Make the query long, and the
# softmax picks the best. Patches in the leftmost column have no left neighbour. What will they look at?

# %% kind="predict"
guess = predict("a patch at the left edge looks at", choices=["itself", "its whole row", "its whole column", "all"])

# %%
address = np.zeros((1, 16, 16), "float32")  # (image, token, dim): row, column, and 8 unused columns
for t in range(16):
    address[0, t, t // 4] = address[0, t, 4 + t % 4] = 1

same, shift = np.eye(4), np.eye(4, k=-1).T  # shift: one-hot of c -> one-hot of c - 1
query = np.zeros((2, 8, 16))  # (head, d, dim)
query[0, :4, :4], query[0, 4:, 4:8] = same, shift  # head 0: same row, column - 1
query[1, :4, :4], query[1, 4:, 4:8] = shift, same  # head 1: row - 1, same column
key = np.zeros((2, 8, 16))
key[:, :, :8] = np.eye(8)

layer = nn.MultiHeadAttention(16, heads=2)
weight = np.concatenate([30.0 * query.reshape(16, 16), key.reshape(16, 16), key.reshape(16, 16)])
layer.qkv.weight.data[...] = weight
layer.proj.weight.data[...] = np.eye(16)
maps = []
with layer.attend.register_forward_hook(lambda module, inputs, output: maps.append(output.numpy())):
    output = layer(address).numpy()

# %% [markdown]
# `attend` is a module of the layer for one reason: so that you can look. A hook on it is handed the shares of every
# head.

# %% kind="answer"
(shares,) = maps
token, edge = 2 * 4 + 2, 2 * 4  # row 2, column 2; row 2, column 0
looks = {int(t) // 4 for t in np.flatnonzero(shares[0, 0, edge] > 0.2)}
print("shares of row 2, column 0:", np.round(shares[0, 0, edge].reshape(4, 4), 2).tolist())
answer("a patch at the left edge looks at", "its whole row", measured="its whole row" if looks == {2} else "else")
assert np.allclose(shares.sum(axis=-1), 1)
assert shares[0, 0, token].argmax() == token - 1  # the left neighbour
assert shares[0, 1, token].argmax() == token - 4  # the one above
assert shares[0, 0, token].max() > 0.99
assert output[0, token, :8].round(2).tolist() == address[0, token - 1, :8].tolist()  # head 0 brings its address home

# %% kind="see"
fig = new_figure(4.6, 6.6)
axes = fig.subplots(4, 2)
norm = Normalize(0, 100)
grey = np.full((8, 8, 3), 255, "uint8")
for head, name in enumerate(("head 0: left", "head 1: up")):
    for ax, at in zip(axes[:, head], [(2, 2), (1, 3), (2, 0), (0, 2)], strict=True):
        values = 100 * shares[0, head, at[0] * 4 + at[1]].reshape(4, 4)
        show_map(ax, grey, values, norm)
        mark_patch(ax, at, (2, 2))
        ax.set_xlabel(f"row {at[0]}, column {at[1]}")
    axes[0, head].set_title(name)
color_bar(fig, axes.flat, norm, "share (%); framed: the patch that asks")
fig

# %% [markdown]
# At the border half of the question has no answer: every patch of the row (or column) fits equally well, and the head
# spreads its attention over them. Row 2, column 0 asks for "row 2, column -1" and gets all of row 2.
#
# Heads that look one step left, right, up, down are a *convolution*: with enough heads, attention can express any of
# them (Cordonnier et al. 2020, arXiv 1911.03584, theorem 1). It need not, and it has to learn it.
#
# ## 7. What it costs
#
# The shares are $h\,T^2$ numbers per image and layer, and the backward pass needs them again. With 64 images, 3 heads
# and float32 (4 bytes a number), the 65 tokens of a 32 x 32 image ($p = 4$ and a class token) make 3.2 MB. You halve
# the side of the patches, and have 257 tokens. How many megabytes for each layer?

# %% kind="predict"
guess = predict("megabytes of shares", "MB")

# %% kind="answer"
kept = {}
for T in (65, 257):
    ctx = ops.Context(np, (True,))
    ops.attention.MultiHeadAttention.forward(ctx, np.zeros((64, T, 3 * 192), "float32"), heads=3)
    kept[T] = ctx.saved[1].nbytes / 1e6
    print(f"{T} tokens: {kept[T]:6.1f} MB of shares for each layer")
answer("megabytes of shares", 50.7, measured=kept[257], tolerance=0.05, unit=" MB")

# %% [markdown]
# ## What you take along
#
# Attention is a soft dictionary: shares from dot products, an average of values. $1/\sqrt d$ keeps the spread of the
# scores at 1, so that a wide head does not start out with a hard choice. Heads are blocks of columns and cost no
# parameters. A map of shares says where values were *taken from*; it is not an explanation, and lesson 09 comes back to
# that.
#
# **You can now**: derive the backward of a function with a full Jacobian without building it; write multi-head
# attention, forward and backward, from an empty page; say what attention costs in time and memory.

# %%
keep(softmax, softmax_backward, attention, attention_backward, multi_head_attention, multi_head_attention_backward)
print(parts())

# %% kind="see"
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/03](solutions/03_attention.ipynb).
#
# 1. (10 min) By hand: two tokens with $q_1 = k_1 = (1, 0)$, $q_2 = k_2 = (0, 1)$, $v = (0, 1)$, $d = 2$. Work out both
#    outputs to two digits, then check.
# 2. (20 min) Show that a layer of attention without positions commutes with any permutation of the tokens, first on
#    paper (what does $P$ do to $Q K^\top$?), then with `nn.MultiHeadAttention`. Hand in both.
# 3. (30 min) Make the hand-built heads look *right* and *down*. Then build a head that looks at the mean of all patches
#    in the same row. What is the smallest factor (30 above) for which left neighbours get 90 %?
# 4. (20 min) Give half of the scores $-\infty$ (a mask) and derive the gradient with respect to those scores. Does your
#    `softmax_backward` handle it as it stands?
# 5. (an evening) Write attention that never holds the $T \times T$ shares: go through the keys in blocks, with a
#    running maximum and a running sum (Dao et al. 2022, arXiv 2205.14135). Check it against your `attention`.
