# %% [markdown]
# # 01 Solutions of the exercises
#
# The exercises of lesson 01, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import gc

import numpy as np

import tinybitvit as tb
from tinybitvit.course import mine

backward, mul_backward, matmul_backward, unbroadcast = mine(
    "backward", "mul_backward", "matmul_backward", "unbroadcast"
)


class Value:
    """That of the lesson; arrays keep their dtype."""

    def __init__(self, data, parents=(), hand_down=None):
        self.data, self.parents, self.hand_down, self.grad = np.asarray(data), parents, hand_down, 0.0

    def rule(self, g):
        parts = self.hand_down(g) if self.parents else ()
        return tuple(unbroadcast(part, p.data.shape) for part, p in zip(parts, self.parents, strict=True))

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda g: (g, g))

    def __sub__(self, other):
        return Value(self.data - other.data, (self, other), lambda g: (g, -g))

    def __mul__(self, other):
        y = self.data * other.data
        return Value(y, (self, other), lambda g: mul_backward(g, y, self.data, other.data))

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
# ## 1. exp and division
#
# Hint: $y = e^x$ is its own derivative. For $y = a / b$ wiggle $b$: $\partial y / \partial b = -a / b^2 = -y / b$.


# %% kind="solution"
def exp(x):
    y = np.exp(x.data)
    return Value(y, (x,), lambda g: (g * y,))


def divide(a, b):
    y = a.data / b.data
    return Value(y, (a, b), lambda g: (g / b.data, -g * y / b.data))


x = Value(np.linspace(-2, 2, 9))
e, one = exp(x + x), Value(1.0)
y = divide(e - one, e + one)
backward(y, np.ones(9))
t = tb.Tensor(x.data, requires_grad=True)
z = tb.functional.tanh(t)
z.backward(np.ones(9))
print(f"tanh: {np.abs(y.data - z.data).max():.1e}, its gradient: {np.abs(x.grad - t.grad).max():.1e}")
assert np.abs(y.data - z.data).max() < 1e-12
assert np.abs(x.grad - t.grad).max() < 1e-12

# %% [markdown]
# ## 2. Without adding up
#
# Hint: which of the graphs of the lesson uses a value more than once? Draw $L = d \cdot d$, the doublings, and the
# half-moons.


# %% kind="solution"
def walk(output, g, add=True, take=-1):
    """`backward`, that adds up or not, and takes the last or the first of what is ready."""
    waiting, stack = {output: 0}, [output]
    while stack:
        for parent in stack.pop().parents:
            if parent not in waiting:
                waiting[parent] = 0
                stack.append(parent)
            waiting[parent] += 1
    output.grad, ready = g, [output]
    while ready:
        value = ready.pop(take)
        for parent, part in zip(value.parents, value.rule(value.grad), strict=True):
            parent.grad = parent.grad + part if add else part
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)


w, x, b = Value(2.0), Value(3.0), Value(1.0)
y = w * x + b
walk(y, np.ones(()), add=False)
assert (w.grad, x.grad, b.grad) == (3, 2, 1)  # every value is used once: nothing is noticed
d = w * x + b
walk(d * d, np.ones(()), add=False)
print("L = d d: dL/db =", b.grad, "instead of 14")
assert b.grad == 7  # half of it, which d gets twice
print("A test on a graph in which nothing is used twice cannot see the mistake: choose a graph that can.")

rng = np.random.default_rng(0)
points, W = rng.standard_normal((20, 2)), rng.standard_normal((2, 1))
gradients = []
for add in (True, False):
    weights = Value(W)
    error = (Value(points) @ weights).tanh() - Value(np.ones((20, 1)))
    walk((error * error).mean(), np.ones(()), add=add)
    gradients.append(weights.grad)
assert np.allclose(gradients[0], 2 * gradients[1])

# %% [markdown]
# The doublings notice, and so do the half-moons: `error * error` uses the error twice. All gradients of the half-moons
# are then half as large, and the network still learns, at half the learning rate: a falling loss proves nothing.
#
# ## 3. The first or the last that is ready
#
# Hint: what must hold before a value becomes ready, whichever is taken? And is $(a + b) + c$ equal to $a + (b + c)$?


# %% kind="solution"
factors = np.random.default_rng(0).standard_normal((3, 1000)).astype("float32")
gradients = []
for take in (0, -1):
    x = Value(np.ones(1000, "float32"))
    parts = [x * Value(f) for f in factors]
    walk(parts[0] + parts[1] + parts[2], np.ones(1000, "float32"), take=take)
    gradients.append(x.grad)
same = (gradients[0] == gradients[1]).mean()
print(f"{same:.1%} of the gradients have the same bits; largest difference {np.ptp(gradients, axis=0).max():.1e}")
assert same < 1
assert np.ptp(gradients, axis=0).max() < 1e-5

# %% [markdown]
# The same gradients, since a value is ready only when it is complete; other last digits, since the three parts are
# added in another order.
#
# ## 4. What intermediate gradients cost
#
# Hint: walk the graph from the loss with a stack and a set of what was seen; sum `value.grad.nbytes` for those with
# parents, and `value.data.nbytes` beside it.

# %% kind="solution"
rng = np.random.default_rng(0)
points, target = rng.standard_normal((10_000, 2)), rng.standard_normal((10_000, 1))
W1, b1, W2, b2 = (Value(rng.standard_normal(s)) for s in ((2, 16), (1, 16), (16, 1), (1, 1)))
error = (Value(points) @ W1 + b1).tanh() @ W2 + b2 - Value(target)
loss = (error * error).mean()
backward(loss, np.ones(()))
seen, stack = {loss}, [loss]
while stack:
    for parent in stack.pop().parents:
        if parent not in seen:
            seen.add(parent)
            stack.append(parent)
between = sum(v.grad.nbytes for v in seen if v.parents)
leaves = sum(v.grad.nbytes for v in (W1, b1, W2, b2))
print(f"{between / 1e6:.1f} MB of gradients of intermediate values, {leaves} bytes for the four weights")
assert between > 1000 * leaves

# %% [markdown]
# ## 5. Children
#
# Hint: a parent that knows its child and a child that knows its parent keep each other alive. Count the living values
# with `sum(isinstance(o, Value) for o in gc.get_objects())` after each step, with the collector off.


# %% kind="solution"
class Family(Value):
    def __init__(self, data, parents=(), hand_down=None):
        super().__init__(data, parents, hand_down)
        self.children = []
        for parent in parents:
            parent.children.append(self)


def living(kind, steps=50):
    """How many values are alive after some steps of y = x x that nobody holds any more."""
    gc.collect()
    before = sum(isinstance(o, Value) for o in gc.get_objects())
    gc.disable()
    for _ in range(steps):
        x = kind(np.ones(10))
        y = kind(x.data * x.data, (x, x), lambda g: (g, g))
        backward(y, np.ones(10))
    del x, y
    after = sum(isinstance(o, Value) for o in gc.get_objects())
    gc.enable()
    return after - before


print(f"left behind by 50 steps: {living(Value)} values, with children {living(Family)}")
assert living(Value) == 0
assert living(Family) == 100

# %% [markdown]
# Without children a step's values are freed when the last name for them goes. With children they wait for the garbage
# collector, and so do all their arrays: on a GPU, that is how training runs out of memory.
