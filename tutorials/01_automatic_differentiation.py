# %% [markdown]
# # 01 Tensors and automatic differentiation
#
# A network learns by moving each of its weights a little in the direction that lowers the loss. For that it needs one
# number per weight: the derivative of the loss with respect to it. A Vision Transformer has millions of weights, and
# nobody writes these derivatives down. Here you build the machine that finds them, in fewer than 60 lines of NumPy;
# then you open the library and meet the same machine with the safety catches on.
#
# You need: Python, NumPy, and the chain rule.

# %%
import inspect
import time

import numpy as np

import tinybitvit as tb
from tinybitvit import autograd, ops
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. Three derivatives by hand
#
# One neuron, one example, squared error. Input $x = 3$, target $t = 5$, weight $w = 2$, bias $b = 1$:
#
# $$p = w x = 6, \qquad y = p + b = 7, \qquad d = y - t = 2, \qquad L = d^2 = 4 .$$
#
# **Predict**: the loss is to fall, and you may nudge $w$, $b$ or $x$ by $0.01$. Which one does $L$ react to most
# strongly? Work out $\partial L / \partial w$, $\partial L / \partial b$ and $\partial L / \partial x$ on paper.
#
# Walk *backwards* from $L$, one step at a time, and carry along the derivative of $L$ with respect to where you are:
#
# $$\frac{\partial L}{\partial d} = 2 d = 4, \quad
# \frac{\partial L}{\partial y} = 4, \quad
# \frac{\partial L}{\partial b} = 4, \quad
# \frac{\partial L}{\partial p} = 4, \quad
# \frac{\partial L}{\partial w} = 4 x = 12, \quad
# \frac{\partial L}{\partial x} = 4 w = 8 .$$
#
# If you do not believe it, wiggle: a *finite difference* $\frac{L(w + h) - L(w - h)}{2 h}$ measures the derivative with
# no theory at all.


# %%
def loss(w, x, b, t=5.0):
    return (w * x + b - t) ** 2


h = 1e-5
measured = {
    "w": (loss(2 + h, 3, 1) - loss(2 - h, 3, 1)) / (2 * h),
    "x": (loss(2, 3 + h, 1) - loss(2, 3 - h, 1)) / (2 * h),
    "b": (loss(2, 3, 1 + h) - loss(2, 3, 1 - h)) / (2 * h),
}
print({name: round(value, 6) for name, value in measured.items()})
assert np.allclose(list(measured.values()), [12, 8, 4])

# %% [markdown]
# The picture to remember. Values flow from left to right (black); then the derivatives of $L$ flow from right to left
# (orange). Each box needs to know only its own derivative and the number that arrives from above. We write **g** for
# that number, $g = \partial L / \partial(\text{output of the box})$, here and everywhere in the library.

# %%
boxes = {"w": (0, 2, 2, 12), "x": (0, 1, 3, 8), "b": (2, 2.3, 1, 4), "t": (4, 2.3, 5, None)}
boxes |= {"p = w x": (2, 1.3, 6, 4), "y = p + b": (4, 1.3, 7, 4), "d = y - t": (6, 1.3, 2, 4), "L = d²": (8, 1.3, 4, 1)}
arrows = [("w", "p = w x"), ("x", "p = w x"), ("p = w x", "y = p + b"), ("b", "y = p + b"), ("y = p + b", "d = y - t")]
arrows += [("t", "d = y - t"), ("d = y - t", "L = d²")]

fig = new_figure(9, 3.2)
ax = fig.subplots()
for start, end in arrows:
    ax.annotate(
        "",
        xy=boxes[end][:2],
        xytext=boxes[start][:2],
        arrowprops={"arrowstyle": "-|>", "color": "0.5", "shrinkA": 22, "shrinkB": 18 + 3 * len(end)},
    )
for name, (x, y, value, g) in boxes.items():
    ax.text(x, y, name, ha="center", va="center", fontsize=12, bbox={"boxstyle": "round", "fc": "white", "ec": "0.3"})
    ax.text(x, y - 0.34, f"{value}", ha="center", fontsize=12)
    ax.text(x, y - 0.58, "" if g is None else f"g = {g}", ha="center", fontsize=12, color=PALETTE[1])
ax.set(xlim=(-0.6, 8.7), ylim=(0.2, 2.7))
ax.set_axis_off()
fig

# %% [markdown]
# This is *reverse-mode automatic differentiation* (Baydin et al. 2018, arXiv 1502.05767, section 3.2). One sweep
# from right to left gives the derivative with respect to **every** input. Wiggling needs two runs per input: with
# $n$ weights it costs $2n$ forward passes, and even the small ViT of tutorial 04 has tens of thousands.
#
# ## 2. A machine, first version
#
# A `Value` holds an array, the values it was computed from, and a rule: given g, which derivatives do I send to each of
# those? For $y = a b$ the rule is $g b$ for $a$ and $g a$ for $b$.


# %%
class Value:
    """An array that remembers which operation made it."""

    def __init__(self, data, parents=(), rule=None):
        self.data = np.asarray(data, dtype="float64")
        self.parents, self.rule = parents, rule
        self.grad = np.zeros_like(self.data)

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda g: (g, g))

    def __sub__(self, other):
        return Value(self.data - other.data, (self, other), lambda g: (g, -g))

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), lambda g: (g * other.data, g * self.data))

    def __matmul__(self, other):
        return Value(self.data @ other.data, (self, other), lambda g: (g @ other.data.T, self.data.T @ g))

    def tanh(self):
        y = np.tanh(self.data)
        return Value(y, (self,), lambda g: (g * (1 - y * y),))

    def mean(self):
        n, shape = self.data.size, self.data.shape
        return Value(self.data.mean(), (self,), lambda g: (np.full(shape, g / n),))


visits = 0


def send_down(value, g):
    """Hand g to a value, which hands its share to its parents, which hand theirs on ..."""
    global visits
    visits += 1
    value.grad = value.grad + fit(g, value.data.shape)
    if value.rule:
        for parent, part in zip(value.parents, value.rule(g), strict=True):
            send_down(parent, part)


def fit(g, shape):
    """Sum g over the axes along which broadcasting repeated an array of this shape."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1)
    return g.sum(axis=repeated, keepdims=True) if repeated else g


w, x, b, t = Value(2), Value(3), Value(1), Value(5)
d = w * x + b - t
L = d * d
send_down(L, np.ones(()))
print("dL/dw =", w.grad, "  dL/dx =", x.grad, "  dL/db =", b.grad)
assert (w.grad, x.grad, b.grad) == (12, 8, 4)

# %% [markdown]
# Note `value.grad + ...` instead of `value.grad = ...`. In $L = d \cdot d$ the value $d$ is used twice, and each use
# contributes: $\partial L / \partial d = d + d$. **Where a value is used several times, its derivatives add up.** That
# is the chain rule for several variables, and it is the line that people forget most often.
#
# It works, and it is useless. Build $y = x + x$, then $z = y + y$, and so on, $n$ times.
#
# **Predict**: how often does `send_down` run for $n = 16$ doublings?

# %%
counts = []
for n in range(1, 17):
    y = start = Value(1)
    for _ in range(n):
        y = y + y
    visits = 0
    send_down(y, np.ones(()))
    assert start.grad == 2**n
    counts.append(visits)
print(f"{counts[-1]:,} visits for a graph of 17 values")
assert counts[-1] == 2**17 - 1

# %% [markdown]
# Right and exponentially slow: it walks every *path* from $L$ down, and there are $2^n$ of them. A residual connection
# $x + f(x)$ is such a doubling; a Transformer of 12 blocks has 24 of them.
#
# The cure: a value must wait until **all** of its consumers have delivered, and only then pass the sum on, once. So
# count the consumers first, then walk. Both walks are loops, not recursions, because Python gives up at 1,000 nested
# calls and a training graph may be deeper.


# %%
def backward(output):
    waiting, stack = {output: 0}, [output]
    while stack:  # first walk: how many deliveries will each value get?
        for parent in stack.pop().parents:
            if parent not in waiting:
                waiting[parent] = 0
                stack.append(parent)
            waiting[parent] += 1

    output.grad, ready = np.ones_like(output.data), [output]
    while ready:  # second walk: whoever has got everything passes it on
        value = ready.pop()
        for parent, part in zip(value.parents, value.rule(value.grad) if value.rule else (), strict=True):
            parent.grad = parent.grad + fit(part, parent.data.shape)
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return len(waiting)


y = start = Value(1)
for _ in range(60):
    y = y + y
began = time.perf_counter()
visited = backward(y)
print(f"60 doublings: {visited} visits, {1000 * (time.perf_counter() - began):.2f} ms, dy/dx = {start.grad:.0f}")
assert visited == 61
assert start.grad == 2.0**60

# %%
fig = new_figure(6.5, 3.4)
ax = fig.subplots()
n = np.arange(1, 17)
ax.semilogy(n, counts, "o-", color=PALETTE[1], label="every path (first version)")
ax.semilogy(n, n + 1, "s-", color=PALETTE[0], label="every value once (second version)")
ax.set(xlabel="doublings", ylabel="visits", title="Why the order matters")
ax.legend(frameon=False)
ax.grid(alpha=0.3)
fig

# %% [markdown]
# That is the engine: `Value`, `fit` and `backward`, fewer than 60 lines. Let it learn something: two interlocked
# half-moons, a network of one hidden layer, plain gradient descent.

# %%
rng = np.random.default_rng(0)
angle = rng.uniform(0, np.pi, 200)
label = np.arange(200) % 2
moon = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
points = np.where(label[:, None] == 0, moon, -moon)
points += 0.08 * rng.standard_normal(points.shape)
target = (2.0 * label - 1)[:, None]  # -1 or +1

weights = {
    "W1": 2 * rng.standard_normal((2, 16)),
    "b1": rng.standard_normal((1, 16)),
    "W2": 0.3 * rng.standard_normal((16, 1)),
    "b2": np.zeros((1, 1)),
}


def network(x, W1, b1, W2, b2):
    return (x @ W1 + b1).tanh() @ W2 + b2


def train_ours(steps, lr=0.1):
    values, losses = {name: Value(w) for name, w in weights.items()}, []
    for _ in range(steps):
        error = network(Value(points), **values) - Value(target)
        loss = (error * error).mean()
        backward(loss)
        values = {name: Value(v.data - lr * v.grad) for name, v in values.items()}
        losses.append(float(loss.data))
    return values, losses


ours, our_losses = train_ours(600)
print(f"loss {our_losses[0]:.3f} -> {our_losses[-1]:.3f}")
assert our_losses[-1] < 0.1 * our_losses[0]

# %% [markdown]
# ## 3. Meet the real one
#
# The library's `Tensor` is our `Value` under PyTorch's name. `network` above was written against nothing but `@`, `+`
# and `.tanh()`, so it runs on Tensors as it stands.
#
# **Predict**: how far apart will the two losses be after 600 steps? (Both compute in float64.)


# %%
def train_library(steps, lr=0.1):
    params, losses = {name: tb.Tensor(w, requires_grad=True) for name, w in weights.items()}, []
    for _ in range(steps):
        error = network(tb.Tensor(points), **params) - tb.Tensor(target)
        loss = (error * error).mean()
        loss.backward()
        params = {name: tb.Tensor(p.data - lr * p.grad, requires_grad=True) for name, p in params.items()}
        losses.append(loss.item())
    return params, losses


theirs, their_losses = train_library(600)
gap = max(abs(a - b) for a, b in zip(our_losses, their_losses, strict=True))
print(f"largest difference of the losses over 600 steps: {gap:.1e}")
assert gap < 1e-10
assert all(np.allclose(ours[name].data, theirs[name].numpy(), atol=1e-8) for name in weights)

# %%
fig = new_figure(9.5, 3.6)
left, right = fig.subplots(1, 2)
left.semilogy(our_losses, color=PALETTE[0], linewidth=5, alpha=0.4, label="our 60 lines")
left.semilogy(their_losses, color="black", linewidth=1.2, linestyle="--", label="tinybitvit")
left.set(xlabel="step", ylabel="mean squared error", title="the same numbers")
left.legend(frameon=False)
left.grid(alpha=0.3, which="both")
grid = np.stack(np.meshgrid(np.linspace(-2, 2, 80), np.linspace(-1.6, 1.6, 64)), axis=-1)
with tb.no_grad():
    surface = network(tb.Tensor(grid.reshape(-1, 2)), **theirs).numpy().reshape(grid.shape[:2])
right.contourf(grid[..., 0], grid[..., 1], surface, levels=[-9, 0, 9], colors=[PALETTE[4], PALETTE[5]], alpha=0.35)
for kind, (marker, color) in enumerate((("o", PALETTE[0]), ("^", PALETTE[1]))):
    right.scatter(*points[label == kind].T, marker=marker, color=color, s=16, label=f"class {kind}")
right.set(title="what it learnt", xlabel="$x_1$", ylabel="$x_2$", xlim=(-2, 2), ylim=(-1.6, 1.6))
right.legend(frameon=False, loc="lower left")
fig

# %% [markdown]
# Now read the real thing. It is the code you wrote, with other names. First walk: *how many deliveries will each one
# get?*

# %%
print(inspect.getsource(autograd.consumers))

# %% [markdown]
# Second walk: *whoever has got everything passes it on.* Where the library has lines that ours lacks, somebody
# was bitten: `ours` keeps two gradients from sharing memory, and `Node.backward` keeps float32 networks in float32 and
# empties a graph that was used, so that the arrays of a training step do not pile up.

# %%
print(inspect.getsource(autograd.backpropagate))

# %% [markdown]
# The rules are not lambdas but classes, so that each has a name, a formula and a test. `forward` and `backward` stand
# side by side; they see plain arrays, never Tensors; `unbroadcast` is our `fit`.

# %%
print(inspect.getsource(ops.OPS["mul"]))

# %% [markdown]
# What the safety catches are for. **Predict**, for each line, what a naive engine would do.


# %%
def three_numbers():
    x = tb.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * x).backward()  # the derivative of which of the three?


def twice():
    loss = (tb.Tensor([1.0, 2.0, 3.0], requires_grad=True) * 2.0).sum()
    loss.backward()
    loss.backward()


def integers():
    tb.Tensor(np.arange(3), requires_grad=True)  # what is 0.01 more than the integer 1?


for mistake in (three_numbers, twice, integers):
    try:
        mistake()
    except (RuntimeError, TypeError) as error:
        print(f"{mistake.__name__}: {error}\n")
    else:
        raise AssertionError(f"{mistake.__name__} was not refused")

deep = tb.Tensor(1.0, requires_grad=True)
y = deep
for _ in range(100_000):
    y = y + 1.0
y.backward()
assert deep.grad == 1  # 100,000 operations deep, and no RecursionError

# %% [markdown]
# ## 4. Never trust a derivative that you have not measured
#
# Every rule in the library is compared with finite differences (and with PyTorch). The checker is public, because you
# will need it for your own operations: `check_op` runs `backward` with a **random** g and measures
# $\sum_i g_i\, y_i(x)$ by wiggling.

# %%
tb.gradcheck.check_op(ops.OPS["mul"], rng.standard_normal((3, 4)), rng.standard_normal((1, 4)))
print("mul: right, and broadcasting is summed up")


class ForgetfulMul(ops.Function):
    """y = a b, with a backward that forgets that b was broadcast"""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        return g * b, g * a


try:
    tb.gradcheck.check_op(ForgetfulMul, rng.standard_normal((3, 4)), rng.standard_normal((1, 4)))
    raise AssertionError("the checker missed it")
except AssertionError as error:
    print(error)
    assert "shape" in str(error)

# %% [markdown]
# Why a random g? Many tests in the wild call `y.sum().backward()`, which is g = 1.
#
# **Predict** the gradient of `softmax(x).sum()`. (What is the sum of a softmax?)


# %%
class LazySoftmax(ops.OPS["softmax"]):
    """The right forward, and a backward that does nothing."""

    @staticmethod
    def backward(ctx, g):
        return (np.zeros_like(g),)


x = tb.Tensor(rng.standard_normal(5), requires_grad=True)
tb.functional.softmax(x).sum().backward()
print("softmax(x).sum():", x.grad)
assert np.abs(x.grad).max() < 1e-6  # the sum is always 1: a test with g = 1 cannot tell right from lazy

try:
    tb.gradcheck.check_op(LazySoftmax, rng.standard_normal(5))
    raise RuntimeError("the checker missed it")
except AssertionError as error:
    print(error)

# %% [markdown]
# ## What you take along
#
# - A gradient is found by walking the graph backwards once; g is what arrives from above; uses add up.
# - The order is everything: every node once, when all its consumers have delivered.
# - `loss.backward()` is two loops, and you have read them.
#
# ## Exercises
#
# 1. Add `exp` and `__truediv__` to `Value` (two lines each) and verify $\tanh x = (e^{2x} - 1) / (e^{2x} + 1)$ with its
#    gradient against the library's `tanh`.
# 2. In `backward`, replace `parent.grad + fit(...)` by `fit(...)` alone. Which of the cells above notice, and which do
#    not? What does that say about testing?
# 3. `ready.pop()` takes the last one. Would `ready.pop(0)` give other gradients? Other bits? Argue first, then try with
#    float32 and a value that is used three times.
# 4. Our `Value` keeps `grad` on every intermediate result, the library only on leaves. Measure what that costs for the
#    half-moons with 10,000 points (`sys.getsizeof`, or `array.nbytes`).
# 5. *(harder)* `Node` points to its inputs and never to its output. Give `Value` a reference to its children as well,
#    switch off the garbage collector (`gc.disable()`), train 50 steps and watch the memory. Then read the docstring of
#    `autograd.Node`.
