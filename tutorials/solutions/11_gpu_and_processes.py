# %% [markdown]
# # 11 Solutions of the exercises
#
# The exercises of lesson 11, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit import autograd
from tinybitvit import functional as F
from tinybitvit.course import mine
from tinybitvit.course.lessons.lesson11 import Wire

ring_sum = mine("ring_sum")
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
images, labels = normalize(digits.X_train[:64]), digits.y_train[:64]


def network(dim=32):
    rng = np.random.default_rng(0)
    model = tb.models.VisionTransformer(8, 2, 1, 10, dim=dim, depth=2, heads=4, mlp_ratio=2, bits=32, rng=rng)
    for p in model.parameters():
        p.data = p.data.astype("float64")
    return model


# %% [markdown]
# ## 1. Three ranks, ten rows
#
# Hint: `rows(n)` is `slice(n * rank // size, n * (rank + 1) // size)`. A shard starts with its rows / all rows.
#
# Rows 0 to 2 with g = 0.3, rows 3 to 5 with g = 0.3, rows 6 to 9 with g = 0.4.

# %% kind="solution"
cut = [range(10)[10 * r // 3 : 10 * (r + 1) // 3] for r in range(3)]
print([(list(rows), len(rows) / 10) for rows in cut])
assert [len(rows) for rows in cut] == [3, 3, 4]

# %% [markdown]
# ## 2. Weighted rows
#
# Hint: the weighted mean of a shard divides by the *shard's* weights. By what would the whole batch have divided?
#
# $L = \sum_i w_i \ell_i / W$ and $L_s = \sum_{i \in s} w_i \ell_i / W_s$, so the share is $W_s / W$: that of the
# weights, not of the rows.

# %% kind="solution"
weight = np.random.default_rng(0).integers(1, 6, 13).astype("float64")
model = network()


def weighted_gradient(rows):
    loss = F.cross_entropy(model(tb.Tensor(images[rows].astype("float64"))), tb.Tensor(labels[rows]), weight[rows])
    return np.concatenate([g.ravel() for g in tb.grad(loss, model.parameters())])


whole, shards = weighted_gradient(slice(0, 13)), (slice(0, 6), slice(6, 13))
by_weight = sum(weight[s].sum() / weight.sum() * weighted_gradient(s) for s in shards)
by_rows = sum((s.stop - s.start) / 13 * weighted_gradient(s) for s in shards)
for name, found in {"weights": by_weight, "rows": by_rows}.items():
    print(f"shares of the {name:8} off by {np.abs(found - whole).max() / np.abs(whole).max():.0e}")
assert np.abs(by_weight - whole).max() < 1e-12
assert np.abs(by_rows - whole).max() > 1e-4

# %% [markdown]
# ## 3. One scale for a whole batch
#
# Hint: quantise the inputs x of a layer as `np.rint(127 x / m)` with m the largest size of a number, once of each token
# and once of all there are. What is m in the first shard?


# %% kind="solution"
def rounded(x, per_token):
    m = np.abs(x).max(axis=-1, keepdims=True) if per_token else np.abs(x).max()
    return np.rint(127 * x / m) * m / 127


x, w = np.random.default_rng(0).standard_normal((13, 32)), np.random.default_rng(1).standard_normal((8, 32))
for per_token in (True, False):
    whole = rounded(x, per_token) @ w.T
    parts = np.concatenate([rounded(x[s], per_token) @ w.T for s in (slice(0, 6), slice(6, 13))])
    off = np.abs(whole - parts).max() / np.abs(whole).max()
    print(f"one scale a {'token' if per_token else 'batch'}: off by {off:.0e}")
    assert off < 1e-12 if per_token else off > 1e-4

# %% [markdown]
# A shard does not know the largest number of the other one, rounds with other steps, and another network is trained:
# not a matter of the last digit, but of the number of workers. Each token its own scale, and nothing like it happens.
#
# ## 4. A tree
#
# Hint: in the first step ranks 1, 3, 5, 7 send to 0, 2, 4, 6; in the next 2 and 6 send to 0 and 4. How many steps are
# that for R ranks?


# %% kind="solution"
def tree_sum(arrays, send):
    """Change arrays[r] into the sum over all ranks, whose number is a power of two; returns the number of steps."""
    R, steps, apart = len(arrays), 0, 1
    while apart < R:
        for r in range(0, R, 2 * apart):
            arrays[r] = arrays[r] + send(r + apart, arrays[r + apart])
        apart, steps = 2 * apart, steps + 1
    while apart > 1:
        apart, steps = apart // 2, steps + 1
        for r in range(0, R, 2 * apart):
            arrays[r + apart] = send(r, arrays[r])
    return steps


start = np.random.default_rng(0).integers(-9, 10, (8, 16)).astype("float64")
by_tree, tree = list(start), Wire(8)
steps = tree_sum(by_tree, tree)
by_ring, ring = [np.split(a.copy(), 8) for a in start], Wire(8)
ring_sum(by_ring, ring)
assert all((a == start.sum(axis=0)).all() for a in by_tree)
assert all((np.concatenate(c) == start.sum(axis=0)).all() for c in by_ring)
print(f"tree: {steps} steps, the busiest rank sends {max(tree.sent) / 16} arrays, and each step a whole one")
print(f"ring: {2 * 7} steps, each rank sends {max(ring.sent) / 16} arrays, each step an eighth of one")
for numbers in (100, 100_000_000):
    seconds = {"tree": 6 * (20e-6 + 4 * numbers / 1.25e9), "ring": 14 * (20e-6 + 4 * numbers / 8 / 1.25e9)}
    print(f"{numbers} numbers:", {name: f"{1000 * s:.2f} ms" for name, s in seconds.items()})
    assert min(seconds, key=seconds.get) == ("tree" if numbers == 100 else "ring")

# %% [markdown]
# With 20 microseconds a message and 10 Gbit/s (assumed): few numbers go by tree, whose steps are few; many by ring,
# whose steps are short.
#
# ## 5. From which width on?
#
# Hint: the number of operations does not depend on `dim`; the arithmetic grows with its square.

# %% kind="solution"
microseconds = {}
for dim in (32, 64, 128, 256, 384):
    model = network(dim)
    seen, stack = set(), [F.cross_entropy(model(tb.Tensor(images.astype("float64"))), tb.Tensor(labels)).node]
    while stack:
        node = stack.pop()
        if isinstance(node, autograd.Node) and node not in seen:
            seen.add(node)
            stack.extend(node.inputs)
    arithmetic = 3 * 2 * 64 * 16 * sum(p.size for p in model.parameters() if p.ndim == 2)
    microseconds[dim] = 5 * 4 * len(seen), arithmetic / 10e6
    print(f"dim {dim:3}: kernels {microseconds[dim][0]} microseconds, products {microseconds[dim][1]:.0f}")
assert len({starting for starting, _ in microseconds.values()}) == 1
assert microseconds[128][0] > microseconds[128][1] and microseconds[256][0] < microseconds[256][1]
print('here device="auto" is', tb.backend.resolve_device("auto"))

# %% [markdown]
# From about 256 on. With a GPU, `Trainer.step` on "cpu" and "cuda" tells where the lines really cross: the copies of
# batches and losses, and memory that is read between kernels, come on top.
