# %% [markdown]
# # 03 Solutions of the exercises
#
# The exercises of lesson 03, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import math

import numpy as np

from tinybitvit import nn
from tinybitvit.course import mine

attention, softmax, softmax_backward = mine("attention", "softmax", "softmax_backward")
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Two tokens by hand
#
# Hint: the scores of token 1 are $1/\sqrt 2$ (itself) and 0 (the other one). The share of two scores depends on their
# difference only: $1 / (1 + e^{-\Delta})$.
#
# $e^{-0.7071} = 0.493$, so the larger share is $1 / 1.493 = 0.67$, the smaller one $0.33$. Token 1 gives
# $0.67 \cdot 0 + 0.33 \cdot 1 = 0.33$; token 2, the other way round, $0.67$.

# %% kind="solution"
y = attention(np.eye(2), np.eye(2), np.array([[0.0], [1.0]]))
print(y.ravel().round(3))
assert y.ravel().round(2).tolist() == [0.33, 0.67]

# %% [markdown]
# ## 2. Permuted tokens
#
# Hint: with $X \to P X$ also $Q \to P Q$, and so on. What does $P$ do to the columns of $Q K^\top$, and what does that
# do to the shares? $P^\top P = 1$.
#
# $Q K^\top$ becomes $P Q K^\top P^\top$: rows and columns change places alike. Softmax works in each row and does not
# care for the order in it, so the shares become $P\,S P^\top$, and the output $P S P^\top P V = P S V$: the outputs
# change places as the tokens did. The linear layers treat each token by itself, so this holds for the whole layer.

# %% kind="solution"
layer = nn.MultiHeadAttention(32, heads=4)
x, order = rng.standard_normal((2, 10, 32)).astype("float32"), rng.permutation(10)
difference = np.abs(layer(x[:, order]).numpy() - layer(x).numpy()[:, order]).max()
print(f"largest difference {difference:.0e}")
assert difference < 1e-5

# %% [markdown]
# ## 3. Other heads by hand
#
# Hint: `np.eye(4, k=1).T` moves a one-hot vector the other way. For the mean of a row the query must not say anything
# about the column. For the smallest factor, write the share of the left neighbour: one score of 2, six scores of 1 (its
# row and its column have three more patches each), nine of 0, all times factor / $\sqrt 8$.

# %% kind="solution"
address = np.zeros((16, 8))
for t in range(16):
    address[t, t // 4] = address[t, 4 + t % 4] = 1
same, forward = np.eye(4), np.eye(4, k=1).T  # forward: one-hot of c -> one-hot of c + 1
nothing = np.zeros((4, 4))


def looks(rows, columns, factor=30.0):
    """The shares (16, 16) of a head whose query changes the address by these two matrices."""
    query = address @ np.block([[rows, nothing], [nothing, columns]]).T
    return softmax(factor * query @ address.T / math.sqrt(8))


right, down, row = looks(same, forward), looks(forward, same), looks(same, nothing)
token = 2 * 4 + 1  # row 2, column 1
print("right:", divmod(int(right[token].argmax()), 4), " down:", divmod(int(down[token].argmax()), 4))
print("mean of the row:", row[token].reshape(4, 4)[2].round(3))
assert right[token].argmax() == token + 1
assert down[token].argmax() == token + 4
assert np.allclose(row[token].reshape(4, 4)[2], 0.25, atol=1e-3)

left = np.eye(4, k=-1).T
shares = {factor: looks(same, left, factor)[2 * 4 + 2, 2 * 4 + 1] for factor in np.arange(1, 30, 0.1)}
smallest = min(factor for factor, share in shares.items() if share >= 0.9)
print(f"from a factor of {smallest:.1f} on the left neighbour gets 90 %")
assert 11 < smallest < 13

# %% [markdown]
# With $u = e^{f / \sqrt 8}$ the share is $u^2 / (u^2 + 6 u + 9) = (u / (u + 3))^2$. It is 0.9 for
# $u = 3 \sqrt{0.9} / (1 - \sqrt{0.9})$, which is $f = \sqrt 8 \ln 55.5 = 11.4$.
#
# ## 4. A mask
#
# Hint: $p_j = 0$ for a masked score. Put that into $\partial L / \partial s_j = p_j (g_j - \sum_i g_i p_i)$.
#
# The gradient of a masked score is 0 times something finite, so 0: a nudge does not move it from $-\infty$. The shares
# of the others are those of a softmax without it, and so are their gradients. `softmax_backward` handles it as it
# stands, since it sees p alone. One case breaks the forward: a row in which *all* scores are masked, where
# $-\infty - (-\infty)$ is not a number.

# %% kind="solution"
s, g = rng.standard_normal((3, 6)), rng.standard_normal((3, 6))
masked = np.where(np.arange(6) < 3, s, -np.inf)
p = softmax(masked)
gradient = softmax_backward(g, p, masked)
print(gradient.round(3) + 0)
assert np.all(gradient[:, 3:] == 0)
assert np.allclose(gradient[:, :3], softmax_backward(g[:, :3], softmax(s[:, :3]), None))

# %% [markdown]
# ## 5. Attention without the shares
#
# Hint: after some blocks of keys you have, for each query, the largest score so far m, the sum z of $e^{s - m}$, and
# the sum a of $e^{s - m} v$. A new block raises m to $m'$: multiply z and a by $e^{m - m'}$, then add what is new.


# %% kind="solution"
def blockwise_attention(q, k, v, block=16):
    """attention(q, k, v), with T x block scores at a time."""
    scale = 1 / math.sqrt(q.shape[-1])
    largest = np.full((len(q), 1), -np.inf)
    total, weighted = np.zeros((len(q), 1)), np.zeros((len(q), v.shape[-1]))
    for start in range(0, len(k), block):
        s = scale * q @ k[start : start + block].T
        higher = np.maximum(largest, s.max(axis=1, keepdims=True))
        powers, shrink = np.exp(s - higher), np.exp(largest - higher)
        total = shrink * total + powers.sum(axis=1, keepdims=True)
        weighted = shrink * weighted + powers @ v[start : start + block]
        largest = higher
    return weighted / total


q, k, v = (30 * rng.standard_normal((100, 8)) for _ in range(3))
difference = np.abs(blockwise_attention(q, k, v) - attention(q, k, v)).max()
print(f"largest difference {difference:.0e}, with {100 * 16:,} scores in memory instead of {100 * 100:,}")
assert difference < 1e-9

# %% [markdown]
# The backward works out the scores of each block anew, from q, k and the row's maximum and sum: more arithmetic and
# less memory, which on a GPU is faster, because moving numbers takes longer than multiplying them.
