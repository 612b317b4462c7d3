# %% [markdown]
# # 01 Tensors and automatic differentiation
#
# A network learns by moving each of its weights a little in the direction that lowers the loss. For that it needs one
# number per weight: the derivative of the loss with respect to it. A Vision Transformer has millions of weights, and
# nobody writes these derivatives down. Here you build the machine that finds them, in about 60 lines of NumPy, and then
# put it into the library: by the last lesson the network that trains and ships runs on what you wrote.
#
# You need: Python, NumPy, and the chain rule.
#
# **How a lesson works.** You type a *prediction* before you see the answer, which is folded below. In a cell with `...`
# it is your turn: write the missing lines and run it, and it is checked at once. A hint opens at each failed try. The
# solution is folded right below; it is used where yours is missing or fails, so that *Run all* always goes through.

# %%
import inspect
import time

import numpy as np

import tinybitvit as tb
from tinybitvit import autograd, ops
from tinybitvit.course import answer, check, keep, parts, predict, solution, unuse, use, yours
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. Three derivatives by hand
#
# One neuron, one example, squared error. Input $x = 3$, target $t = 5$, weight $w = 2$, bias $b = 1$:
#
# $$p = w x = 6, \qquad y = p + b = 7, \qquad d = y - t = 2, \qquad L = d^2 = 4 .$$
#
# The loss is to fall, and you may nudge $w$, $b$ or $x$ by $0.01$. Which one does $L$ react to most strongly?

# %% kind="predict"
guess = predict("the strongest of the three", choices=["w", "b", "x"])

# %% [markdown]
# What one would try first: wiggle. Step up and down by a little h, see by how much $L$ moves, and divide. This *finite
# difference*, $\frac{L(w + h) - L(w - h)}{2 h}$, measures a derivative with no theory at all.


# %% kind="naive"
def loss(w=2.0, x=3.0, b=1.0, t=5.0):
    return (w * x + b - t) ** 2


def wiggle(name, value, h=1e-5):
    return (loss(**{name: value + h}) - loss(**{name: value - h})) / (2 * h)


# %% kind="answer"
measured = {"w": wiggle("w", 2.0), "b": wiggle("b", 1.0), "x": wiggle("x", 3.0)}
print({name: round(value, 6) for name, value in measured.items()})
answer("the strongest of the three", "w", measured=max(measured, key=measured.get))
assert np.allclose(list(measured.values()), [12, 4, 8])

# %% [markdown]
# Now with theory. Walk *backwards* from $L$, one step at a time, and carry along the derivative of $L$ with respect to
# where you are:
#
# $$\frac{\partial L}{\partial d} = 2 d = 4, \quad
# \frac{\partial L}{\partial y} = 4, \quad
# \frac{\partial L}{\partial b} = 4, \quad
# \frac{\partial L}{\partial p} = 4, \quad
# \frac{\partial L}{\partial w} = 4 x = 12, \quad
# \frac{\partial L}{\partial x} = 4 w = 8 .$$
#
# One walk gave all of them. Wiggling needs two runs of the network for each: with $n$ weights $2 n$ forward passes, and
# even the small ViT of lesson 04 has tens of thousands of weights.

# %% kind="see"
boxes = {"w": (0, 2, 2, 12), "x": (0, 1, 3, 8), "b": (2, 2.3, 1, 4), "t": (4, 2.3, 5, None)}
boxes |= {"p = w x": (2, 1.3, 6, 4), "y = p + b": (4, 1.3, 7, 4), "d = y - t": (6, 1.3, 2, 4), "L = d²": (8, 1.3, 4, 1)}
arrows = ["w>p = w x", "x>p = w x", "p = w x>y = p + b", "b>y = p + b"]
arrows += ["y = p + b>d = y - t", "t>d = y - t", "d = y - t>L = d²"]
fig = new_figure(6.4, 3)
ax = fig.subplots()
for start, end in (arrow.split(">") for arrow in arrows):
    style = {"arrowstyle": "-|>", "color": "0.5", "shrinkA": 22, "shrinkB": 20 + 3 * len(end)}
    ax.annotate("", xy=boxes[end][:2], xytext=boxes[start][:2], arrowprops=style)
for name, (x, y, value, g) in boxes.items():
    ax.text(x, y, name, ha="center", va="center", fontsize=13, bbox={"boxstyle": "round", "fc": "white", "ec": "0.3"})
    ax.text(x, y - 0.38, f"{value}", ha="center", fontsize=13)
    ax.text(x, y - 0.66, "" if g is None else f"g = {g}", ha="center", fontsize=13, color=PALETTE[1])
ax.set(xlim=(-0.7, 8.8), ylim=(0.2, 2.7))
ax.set_axis_off()
fig

# %% [markdown]
# The picture to remember. Values flow from left to right (black); then the derivatives of $L$ flow from right to left
# (orange). A box needs to know only its own derivative and the number that arrives from above. We write **g** for that
# number, $g = \partial L / \partial(\text{output of the box})$, here and everywhere in the library.
#
# ## 2. A box
#
# A `Value` holds an array, the values that it was computed from (its parents), and a rule: given g, what do I hand
# down to each parent? For a sum both get g. The rule of a product is yours: $y = a b$, and nudging $a$ by $h$ moves $y$
# by ...


# %% kind="your-turn"
@yours("1.1")
def mul_backward(g, y, a, b):
    """What y = a b hands down: (dL/da, dL/db), given g = dL/dy."""
    # mul_backward(4.0, 6.0, 2.0, 3.0) gives (12.0, 8.0): the w and x of the picture
    ...


check(mul_backward)


# %% kind="solution"
@solution("1.1")
def mul_backward(g, y, a, b):
    """What y = a b hands down: (dL/da, dL/db), given g = dL/dy."""
    return g * b, g * a


# %% [markdown]
# With it, a class that computes and remembers:


# %%
class Value:
    """An array that remembers what it was computed from."""

    def __init__(self, data, parents=(), hand_down=None):
        self.data = np.asarray(data, dtype="float64")
        self.parents, self.hand_down, self.grad = parents, hand_down, 0.0

    def rule(self, g):
        """The derivatives for the parents, given this value's own; nothing for a value that was not computed."""
        return self.hand_down(g) if self.parents else ()

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda g: (g, g))

    def __sub__(self, other):
        return Value(self.data - other.data, (self, other), lambda g: (g, -g))

    def __mul__(self, other):
        y = self.data * other.data
        return Value(y, (self, other), lambda g: mul_backward(g, y, self.data, other.data))


# %% [markdown]
# ## 3. The walk
#
# The first thing that one would write: hand g to a value, which hands its share to its parents, which hand theirs on.


# %% kind="naive"
def send_down(value, g):
    global visits
    visits += 1
    value.grad = value.grad + g
    for parent, part in zip(value.parents, value.rule(g), strict=True):
        send_down(parent, part)


visits = 0
w, x, b, t = Value(2), Value(3), Value(1), Value(5)
d = w * x + b - t
send_down(d * d, 1.0)
print("dL/dw =", w.grad, "  dL/dx =", x.grad, "  dL/db =", b.grad)

# %% [markdown]
# Note `value.grad + g` instead of `value.grad = g`. In $L = d \cdot d$ the value $d$ is used twice, and each use
# contributes: $\partial L / \partial d = d + d$. **Where a value is used several times, its derivatives add up.** That
# is the chain rule for several variables, and it is the line that people forget most often.
#
# It works on this graph. Now build $y = x + x$, then $z = y + y$, and so on: 16 doublings, 17 values. How often does
# `send_down` run?

# %% kind="predict"
guess = predict("visits")

# %% kind="answer"
counts = []
for n in range(1, 17):
    y = start = Value(1)
    for _ in range(n):
        y = y + y
    visits = 0
    send_down(y, 1.0)
    counts.append(visits)
    assert start.grad == 2**n
answer("visits", 131071, measured=visits)

# %% [markdown]
# Right, and exponentially slow: it walks every *path* from the output down, and there are $2^n$ of them. In a Vision
# Transformer $x + f(x)$ occurs dozens of times (lesson 04), and each is such a doubling.
#
# The cure: a value waits until **all** of its consumers have delivered, and only then hands on the sum, once. So count
# the deliveries first, then walk. Both walks are loops, not recursions, because Python gives up at 1,000 nested calls,
# and a training graph may be deeper. The count is written; the walk is yours.


# %% kind="your-turn"
@yours("1.2")
def backward(output, g):
    """Give every value below output its .grad, 0.0 before; g = dL/d(output). Each rule runs once."""
    waiting, stack = {output: 0}, [output]
    while stack:  # how many parts of its gradient will each value get?
        for parent in stack.pop().parents:
            if parent not in waiting:
                waiting[parent] = 0
                stack.append(parent)
            waiting[parent] += 1
    output.grad, ready = g, [output]
    while ready:  # whoever has got everything hands it on
        value = ready.pop()
        ...  # value.rule(value.grad) has a part for each of value.parents: four lines


check(backward)


# %% kind="solution"
@solution("1.2")
def backward(output, g):
    """Give every value below output its .grad, 0.0 before; g = dL/d(output). Each rule runs once."""
    waiting, stack = {output: 0}, [output]
    while stack:
        for parent in stack.pop().parents:
            if parent not in waiting:
                waiting[parent] = 0
                stack.append(parent)
            waiting[parent] += 1
    output.grad, ready = g, [output]
    while ready:
        value = ready.pop()
        for parent, part in zip(value.parents, value.rule(value.grad), strict=True):
            parent.grad = parent.grad + part
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)


# %% [markdown]
# Sixty doublings would keep `send_down` busy for thousands of years. Yours:

# %%
y = start = Value(1)
for _ in range(60):
    y = y + y
began = time.perf_counter()
backward(y, 1.0)
print(f"60 doublings in {1000 * (time.perf_counter() - began):.2f} ms, dy/dx = {start.grad:.0f}")

# %% kind="see"
fig = new_figure(5.5, 3.2)
ax = fig.subplots()
n = np.arange(1, 17)
ax.semilogy(n, counts, "o-", color=PALETTE[1], label="every path (first version)")
ax.semilogy(n, n + 1, "s-", color=PALETTE[0], label="every value once (yours)")
ax.set(xlabel="doublings", ylabel="visits", title="Why the order matters")
ax.legend(frameon=False)
ax.grid(alpha=0.3)
assert start.grad == 2.0**60
fig

# %% [markdown]
# ## 4. Arrays
#
# So far a value was a number. NumPy adds arrays of different shapes by *broadcasting*: in `x + b` with x of shape
# (3, 2) and b of shape (1, 2), the row b is added to each of three rows. From above arrives
#
# $$g = \begin{pmatrix} 1 & 2 \\ 3 & 4 \\ 5 & 6 \end{pmatrix},$$
#
# one number for each element of $x + b$. What is $\partial L / \partial b_1$, the derivative for the first number of b?

# %% kind="predict"
guess = predict("dL/db_1")

# %% kind="answer"
g, ones = np.array([[1.0, 2], [3, 4], [5, 6]]), np.ones((3, 2))
b, h = np.array([[0.5, -1.0]]), 1e-6
nudge = np.array([[h, 0.0]])
moved = (g * ((ones + (b + nudge)) - (ones + (b - nudge)))).sum() / (2 * h)
answer("dL/db_1", 9, measured=moved, tolerance=1e-6)

# %% [markdown]
# Broadcasting copies: $y_{ij} = x_{ij} + b_j$ for each row $i$. So $b_j$ is used three times, and uses add up:
#
# $$\frac{\partial L}{\partial b_j} = \sum_i \frac{\partial L}{\partial y_{ij}} \frac{\partial y_{ij}}{\partial b_j}
# = \sum_i g_{ij} .$$
#
# **Un-broadcasting** is this sum, over each axis along which an array was repeated. There are two kinds of such axes:
# those of length 1 that were stretched, and those that NumPy added in front, as when (2,) is added to (3, 2).


# %% kind="your-turn"
@yours("1.3")
def unbroadcast(g, shape):
    """Sum g over the axes along which an array of this shape was repeated; the result has that shape."""
    # of the g above: shape (1, 2) gives [[9, 12]], shape (2,) gives [9, 12], shape (3, 1) gives [[3], [7], [11]]
    ...  # first the axes that were added in front, then those of length 1


check(unbroadcast)


# %% kind="solution"
@solution("1.3")
def unbroadcast(g, shape):
    """Sum g over the axes along which an array of this shape was repeated; the result has that shape."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(axis for axis, n in enumerate(shape) if n == 1 and g.shape[axis] > 1)
    return g.sum(axis=stretched, keepdims=True)


# %% [markdown]
# The other operation on arrays that a network is made of is the matrix product. Write out one element and you have its
# rule, too. Of $y = a b$, with a of shape (m, k) and b of shape (k, n):
#
# $$y_{il} = \sum_j a_{ij} b_{jl}, \qquad \frac{\partial y_{il}}{\partial a_{ij}} = b_{jl}, \qquad
# \frac{\partial L}{\partial a_{ij}} = \sum_l g_{il} b_{jl} .$$
#
# The last sum runs over the *second* index of both: as a matrix product it is $g\, b^\mathsf{T}$. Find
# $\partial L / \partial b_{jl}$ in the same way; the shapes allow only one answer.


# %% kind="your-turn"
@yours("1.4")
def matmul_backward(g, y, a, b):
    """What y = a @ b hands down: (dL/da, dL/db). a (..., m, k), b (..., k, n), g and y (..., m, n)."""
    # x.swapaxes(-1, -2) transposes the last two axes of a matrix, or of each matrix in a stack of them
    ...


check(matmul_backward)


# %% kind="solution"
@solution("1.4")
def matmul_backward(g, y, a, b):
    """What y = a @ b hands down: (dL/da, dL/db). a (..., m, k), b (..., k, n), g and y (..., m, n)."""
    return g @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ g


# %% [markdown]
# Both go into `Value`: the same class, in which a rule now fits each part to its parent's shape, with three operations
# more. The mean of $n$ numbers hands $g / n$ to each; $y = \tanh x$ has the derivative $1 - y^2$.


# %%
class Value(Value):
    """A Value of any shape."""

    def rule(self, g):
        parts = super().rule(g)
        return tuple(unbroadcast(part, parent.data.shape) for part, parent in zip(parts, self.parents, strict=True))

    def __matmul__(self, other):
        y = self.data @ other.data
        return Value(y, (self, other), lambda g: matmul_backward(g, y, self.data, other.data))

    def tanh(self):
        y = np.tanh(self.data)
        return Value(y, (self,), lambda g: (g * (1 - y * y),))

    def mean(self):
        n, shape = self.data.size, self.data.shape
        return Value(self.data.mean(), (self,), lambda g: (np.full(shape, g / n),))


# %% [markdown]
# ## 5. It learns, and so does the library with it
#
# That is the engine. Let it learn something: two interlocked half-moons, a network of one hidden layer, plain gradient
# descent.

# %%
rng = np.random.default_rng(0)
angle = rng.uniform(0, np.pi, 200)
label = np.arange(200) % 2
moon = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
points = np.where(label[:, None] == 0, moon, -moon)
points += 0.08 * rng.standard_normal(points.shape)
target = (2.0 * label - 1)[:, None]  # -1 or +1

shapes = {"W1": (2, 16), "b1": (1, 16), "W2": (16, 1), "b2": (1, 1)}
spread = {"W1": 2.0, "b1": 1.0, "W2": 0.3, "b2": 0.0}
weights = {name: spread[name] * rng.standard_normal(shape) for name, shape in shapes.items()}


# %%
def network(x, W1, b1, W2, b2):
    return (x @ W1 + b1).tanh() @ W2 + b2


def train(steps, lr=0.1):
    values, losses = {name: Value(w) for name, w in weights.items()}, []
    for _ in range(steps):
        error = network(Value(points), **values) - Value(target)
        loss = (error * error).mean()
        backward(loss, np.ones(()))
        values = {name: Value(v.data - lr * v.grad) for name, v in values.items()}
        losses.append(float(loss.data))
    return losses


our_losses = train(600)
print(f"loss {our_losses[0]:.3f} -> {our_losses[-1]:.3f}")

# %% [markdown]
# The library's `Tensor` is our `Value` under PyTorch's name. `network` was written against nothing but `@`, `+` and
# `.tanh()`, so it runs on Tensors as it stands. How far apart will the two losses ever be in the 600 steps? Both
# compute with 16 digits.

# %% kind="predict"
guess = predict("largest difference of the losses", choices=["only last digits", "about 1e-8", "about 0.01"])


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


params, their_losses = train_library(600)

# %% kind="answer"
gap = max(abs(a - b) for a, b in zip(our_losses, their_losses, strict=True))
print(f"largest difference: {gap:.1e}; a sum in another order has other last digits")
answer("largest difference of the losses", "only last digits")
assert gap < 1e-11
assert our_losses[-1] < 0.1 * our_losses[0]

# %% kind="see"
fig = new_figure(4.6, 6, formulas=True)
left, right = fig.subplots(2, 1)
left.semilogy(our_losses, color=PALETTE[0], linewidth=5, alpha=0.4, label="your engine")
left.semilogy(their_losses, color="black", linewidth=1.2, linestyle="--", label="tinybitvit")
left.set(xlabel="step", ylabel="mean squared error", title="the same numbers")
left.legend(frameon=False)
left.grid(alpha=0.3, which="both")
grid = np.stack(np.meshgrid(np.linspace(-2, 2, 80), np.linspace(-1.6, 1.6, 64)), axis=-1)
with tb.no_grad():
    surface = network(tb.Tensor(grid.reshape(-1, 2)), **params).numpy().reshape(grid.shape[:2])
right.contourf(grid[..., 0], grid[..., 1], surface, levels=[-9, 0, 9], colors=[PALETTE[4], PALETTE[5]], alpha=0.35)
for kind, (marker, color) in enumerate((("o", PALETTE[0]), ("^", PALETTE[1]))):
    right.scatter(*points[label == kind].T, marker=marker, color=color, s=14)
right.set(title="what it learnt", xlabel="$x_1$", ylabel="$x_2$", xlim=(-2, 2), ylim=(-1.6, 1.6))
fig

# %% [markdown]
# Now you may read the library's walk: it is the one you wrote, with other names. `consumers` counts the deliveries.
# Where it has a line that yours lacks, somebody was bitten: `ours` keeps two gradients from sharing memory, `wanted`
# serves those who ask for the gradient of some values only.

# %%
print(inspect.getsource(autograd.backpropagate))

# %% [markdown]
# Its rules are not lambdas but classes, so that each has a name, a formula and a test. A rule does its own
# un-broadcasting, and works out no gradient that nobody asked for.

# %%
print(inspect.getsource(ops.OPS["mul"]))

# %% [markdown]
# And it can do without them: `use` puts *your* functions into the library (`None`: that half, the forward, stays its
# own). From here on every product, every matrix product and every walk of gradients in it is yours, in a whole Vision
# Transformer as well.

# %%
digits = tb.data.load_digits()
options = {"dim": 24, "depth": 1, "heads": 2, "epochs": 12, "verbose": 0, "random_state": 0, "workers": 1}
theirs = tb.ViT(**options).fit(digits.X_train, digits.y_train).score(digits.X_test, digits.y_test)

use(walk=backward, unbroadcast=unbroadcast, mul=(None, mul_backward), matmul=(None, matmul_backward))
yours_inside = tb.ViT(**options).fit(digits.X_train, digits.y_train).score(digits.X_test, digits.y_test)
print(f"handwritten digits: {theirs:.1%} with the library's, {yours_inside:.1%} with yours")

# %% kind="see"
assert ops.OPS["mul"].__name__ == "YourMul"
assert abs(train_library(50)[1][-1] - their_losses[49]) < 1e-12
assert abs(theirs - yours_inside) < 0.03
assert theirs > 0.5

# %% [markdown]
# ## 6. Never trust a derivative that you have not measured
#
# How would you test a rule? Many tests in the wild compute `y.sum().backward()`, which is the rule for g = 1
# everywhere, and compare. Take the softmax, $p_i = e^{x_i} / \sum_j e^{x_j}$: what is the gradient of the sum of p?


# %% kind="predict"
guess = predict("the gradient of softmax(x).sum()", choices=["all zeros", "all ones", "p itself"])

# %% kind="answer"
x = tb.Tensor(rng.standard_normal(5), requires_grad=True)
tb.functional.softmax(x).sum().backward()
print("softmax(x).sum():", np.abs(x.grad).round(6))
answer("the gradient of softmax(x).sum()", "all zeros")
assert np.abs(x.grad).max() < 1e-6

# %% [markdown]
# The sum of a softmax is always 1, so nothing moves it: a backward that returns nothing but zeros passes this test. The
# remedy is a **random g**. A rule claims that $\partial L / \partial x_k$ is what it hands down when g arrives from
# above; so wiggle $x_k$ and measure how $L = \sum_i g_i\, y_i(x)$ moves:
#
# $$\frac{\partial L}{\partial x_k} \approx \sum_i g_i \, \frac{y_i(x + h e_k) - y_i(x - h e_k)}{2 h} .$$


# %% kind="your-turn"
@yours("1.5")
def numeric_gradient(f, x, g, h=1e-6):
    """sum_i g_i dy_i/dx_k for each number x_k of the array x, measured; y = f(x). x itself is not changed."""
    slopes = np.zeros_like(x)
    for k in np.ndindex(x.shape):  # k is the place of one number: x[k]
        ...  # step up, step down: three lines
    return slopes


check(numeric_gradient)


# %% kind="solution"
@solution("1.5")
def numeric_gradient(f, x, g, h=1e-6):
    """sum_i g_i dy_i/dx_k for each number x_k of the array x, measured; y = f(x). x itself is not changed."""
    slopes = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[k] = h
        slopes[k] = (g * (f(x + step) - f(x - step))).sum() / (2 * h)
    return slopes


# %% [markdown]
# Put it on two rules for $y = a b$ with a of shape (3, 4) and b of shape (1, 4): yours with `unbroadcast`, and one
# that a tired colleague wrote. The library's `tb.gradcheck.check_op` does the same for a whole operation.

# %%
a, b, g = rng.standard_normal((3, 4)), rng.standard_normal((1, 4)), rng.standard_normal((3, 4))
measured = numeric_gradient(lambda b: a * b, b, g)
rules = {
    "yours": unbroadcast(mul_backward(g, a * b, a, b)[1], b.shape),
    "a colleague's": (g * a).mean(axis=0, keepdims=True),
}
for whose, claimed in rules.items():
    print(f"{whose:14} off by at most {np.abs(claimed - measured).max():.1e}")

# %% kind="see"
assert np.abs(rules["yours"] - measured).max() < 1e-6
assert np.abs(rules["a colleague's"] - measured).max() > 0.1
tb.gradcheck.check_op(ops.OPS["mul"], a, b)
print("the library's product, with your rule in it: right, says tb.gradcheck.check_op")

# %% [markdown]
# ## 7. Safety catches
#
# What the library refuses and `Value` does not. Say for each of the three what your engine would do, then run the cell.


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


unuse()  # the library's own walk again
for mistake in (three_numbers, twice, integers):
    try:
        mistake()
    except (RuntimeError, TypeError) as error:
        print(f"{mistake.__name__}: {error}\n")

# %% [markdown]
# Yours adds up three derivatives for the first, counts too much in the second, since the parts of the first walk are
# still there, and takes any numbers for the third, without a word.
#
# ## What you take along
#
# A gradient is found by walking the graph backwards once. g is what arrives from above; where a value is used several
# times, or was repeated by broadcasting, the parts add up; each rule runs once, when all of its consumers have
# delivered. A rule is believed when a measurement with a random g agrees.
#
# **You can now**: derive the backward of an operation from one element of its output; write the engine that PyTorch's
# `backward` is; test a gradient so that a wrong one does not pass.
#
# What you wrote is kept in `my/`, a folder of plain files beside the lessons that is yours to read and change.

# %%
keep(mul_backward, backward, unbroadcast, matmul_backward, numeric_gradient)
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/01](solutions/01_automatic_differentiation.ipynb).
#
# 1. (10 min) Add `exp` and `__truediv__` to `Value`, two lines each, and verify $\tanh x = (e^{2x} - 1) / (e^{2x} + 1)$
#    with its gradient. Hand in the two rules, and the largest difference.
# 2. (10 min) In your `backward`, replace `parent.grad + part` by `part` alone. Which of the cells above notice, and
#    which do not? What does that say about testing?
# 3. (15 min) `ready.pop()` takes the last one. Would `ready.pop(0)` give other gradients? Other bits? Argue first, then
#    try with float32 and a value that is used three times.
# 4. (30 min) Your `Value` keeps `grad` on every intermediate result, the library only on leaves. Measure what that
#    costs for the half-moons with 10,000 points: sum `array.nbytes` over the graph.
# 5. (an evening) A `Node` of the library points to its inputs and never to its output. Give `Value` a reference to its
#    children as well, switch off the garbage collector (`gc.disable()`), train 50 steps and watch the memory. Then read
#    the docstring of `autograd.Node`.
