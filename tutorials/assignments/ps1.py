# %% [markdown]
# # Problem set 1: automatic differentiation
#
# A network learns because somebody can say, for each of its million numbers, which way to push it. In this set you
# build that somebody: you measure a derivative, write three backward passes, and walk a graph. At the end a Vision
# Transformer trains on your code. You need tutorial 01.
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
# ## Task 1: measure a derivative (3 points)
#
# Before you trust a formula, measure. Let $f(x) = x_0^2 + x_1^2$ at $x = (1, -2)$. Push $x_0$ up by $h = 0.1$: $f$ goes
# from 5 to 5.21. Push it down: 4.81. The slope between the two is $(5.21 - 4.81) / 0.2 = 2$, which is exactly
# $2 x_0$. (One-sided, $(5.21 - 5) / 0.1 = 2.1$, is off by $h$; two-sided errors shrink with $h^2$.)
#
# $$\frac{\partial f}{\partial x_i} \approx \frac{f(x + h e_i) - f(x - h e_i)}{2 h}$$
#
# Write it for a function `f` from an array of any shape to a number. Return an array of the shape of `x`, and leave `x`
# itself unchanged. `np.ndindex(*x.shape)` runs over all positions.


# %% nbgrader={"grade_id": "ps1-1", "solution": true}
def numeric_gradient(f, x, h=1e-5):
    ### BEGIN SOLUTION
    gradient = np.zeros_like(x)
    for position in np.ndindex(*x.shape):
        push = np.zeros_like(x)
        push[position] = h
        gradient[position] = (f(x + push) - f(x - push)) / (2 * h)
    return gradient
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-1-checks", "grade": true, "points": 2}
tb.course.score("ps1.1", numeric_gradient)

# %% nbgrader={"grade_id": "ps1-1-more", "grade": true, "points": 1}
gradient = numeric_gradient(lambda x: (x * x).sum(), np.array([1.0, -2.0]))
assert np.allclose(gradient, [2, -4]), f"it gives {gradient}"
gradient = numeric_gradient(lambda x: (x**3).sum(), np.array([[1.0, 2.0, 3.0]]), h=0.1)
assert gradient.shape == (1, 3), "the shape of x"
### BEGIN HIDDEN TESTS
assert np.allclose(gradient, [[3.01, 12.01, 27.01]]), "two-sided, the error of a cube is h^2 = 0.01"
x = np.random.default_rng(1).normal(0, 1, (2, 3, 2))
before = x.copy()
assert np.allclose(numeric_gradient(lambda x: np.sin(x).sum(), x), np.cos(x), atol=1e-6), "three axes"
assert np.array_equal(x, before), "x was changed"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: your first backward pass (3 points)
#
# A `Function` has a `forward`, from arrays to an array, and a `backward`: given $g = dL/dy$, how the loss $L$ changes
# with the *output*, it returns how the loss changes with each *input*, as a tuple. Here is one:


# %%
class Cube(Function):
    """y = x^3, so dL/dx = g 3 x^2"""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)  # kept for the backward pass
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return (g * 3 * x**2,)


x = tb.Tensor(np.array([1.0, 2.0]), requires_grad=True)
apply(Cube, x).backward(np.array([10.0, 1.0]))
print(x.grad)  # 10 * 3 and 1 * 12

# %% [markdown]
# Transformers bend their numbers with GELU. A quick version of it is
#
# $$y = x\, s(a x), \qquad s(z) = \frac{1}{1 + e^{-z}}, \qquad a = 1.702 .$$
#
# The derivative of the sigmoid is $s' = s (1 - s)$. With the product rule and the chain rule, find $dy/dx$ on paper,
# then write the class. The library will pass a setting of its own to `forward`; `**options` takes it, and you may
# ignore it.


# %%
def sigmoid(z):
    return 0.5 + 0.5 * np.tanh(0.5 * z)  # the same as 1 / (1 + e^-z), without overflow


# %% nbgrader={"grade_id": "ps1-2", "solution": true}
class QuickGELU(Function):
    @staticmethod
    def forward(ctx, x, **options):
        ### BEGIN SOLUTION
        s = sigmoid(1.702 * x)
        ctx.save(x, s)
        return x * s
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        x, s = ctx.saved
        return (g * (s + 1.702 * x * s * (1 - s)),)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-2-checks", "grade": true, "points": 2}
tb.course.score("ps1.2", QuickGELU)

# %% nbgrader={"grade_id": "ps1-2-more", "grade": true, "points": 1}
x = tb.Tensor(np.array([0.0, 1.0]), requires_grad=True)
y = apply(QuickGELU, x)
y.backward(np.array([1.0, 0.0]))
assert np.allclose(y.data, [0, 0.845796], atol=1e-5), f"the forward pass gives {y.data}"
assert np.allclose(x.grad, [0.5, 0]), f"the slope at 0 is 1/2, and g = 0 gives 0; not {x.grad}"
check_op(QuickGELU, np.array([0.5]))
assert apply(QuickGELU, np.array([[0.5, 1.0]])).shape == (1, 2), "the shape stays"
### BEGIN HIDDEN TESTS
check_op(QuickGELU, np.random.default_rng(2).normal(0, 3, (3, 4)))
x = tb.Tensor(np.array([1.0, -30.0], "float32"), requires_grad=True)
apply(QuickGELU, x).backward(np.array([1.0, 1.0], "float32"))
assert np.isfinite(x.grad).all(), "far from 0"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: the linear layer (4 points)
#
# One token, $x = (1, 2)$; a weight with two outputs, $W = \begin{pmatrix} 3 & 0 \\ 1 & -1 \end{pmatrix}$; a bias
# $b = (10, 20)$. Then $y = x W^T + b = (3 + 10,\; 1 - 2 + 20) = (13, 19)$.
#
# Now let $g = (1, 100)$. Each $x_i$ goes into both outputs, so it collects from both: $dL/dx_0 = 1 \cdot 3 + 100 \cdot
# 1 = 103$. Each $W_{oi}$ goes into one product: $dL/dW_{10} = 100 \cdot x_0 = 100$. For many tokens, the rows of $x$
# and of $g$, weight and bias collect from all of them. Write these sums down for one $x_i$, one $W_{oi}$ and one $b_o$,
# and find for each of the three the matrix product (or the sum) that is all of them at once. Your `numeric_gradient`
# can tell you whether you are right.
#
# `x` is (..., in) with any number of leading axes, the weight (out, in), the bias (out,).
# `x.reshape(-1, x.shape[-1])` makes rows of all tokens.


# %% nbgrader={"grade_id": "ps1-3", "solution": true}
class Linear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ### BEGIN SOLUTION
        ctx.save(x, weight)
        return x @ weight.T + bias
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        x, weight = ctx.saved
        tokens, rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        return g @ weight, rows.T @ tokens, rows.sum(axis=0)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-3-checks", "grade": true, "points": 3}
tb.course.score("ps1.3", Linear)

# %% nbgrader={"grade_id": "ps1-3-more", "grade": true, "points": 1}
arrays = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0], [1.0, -1.0]]), np.array([10.0, 20.0])
inputs = [tb.Tensor(a, requires_grad=True) for a in arrays]
y = apply(Linear, *inputs)
y.backward(np.array([[1.0, 100.0]]))
assert np.allclose(y.data, [[13, 19]]), f"the forward pass gives {y.data}"
assert np.allclose(inputs[0].grad, [[103, -100]]), f"dL/dx is {inputs[0].grad}"
assert np.allclose(inputs[1].grad, [[1, 2], [100, 200]]), f"dL/dW is {inputs[1].grad}"
### BEGIN HIDDEN TESTS
random = np.random.default_rng(3)
for shape in ((5, 3), (2, 4, 3), (2, 1, 2, 3)):
    check_op(Linear, random.normal(0, 1, shape), random.normal(0, 1, (6, 3)), random.normal(0, 1, 6))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: the loss (4 points)
#
# The last layer gives one number for each class, the *logits*. Softmax makes probabilities of them, and the loss is
# minus the logarithm of the probability of the true class, averaged over the images. With logits $(0, 0)$ both classes
# have probability 1/2, and the loss is $\ln 2 = 0.693$, whatever the truth.
#
# $$p = \text{softmax}(z), \qquad L = -\frac{1}{N} \sum_n \ln p_{n, t_n}$$
#
# The gradient is one of the nicest of all. Find it: write $\ln p_t = z_t - \ln \sum_c e^{z_c}$ and take the derivative
# by $z_t$, then by another $z_c$. In the example, with class 1 true, it is $(0.5, -0.5)$: compare it with what the
# network said and with what was true. (The factor $g$, a single number here, still has to be multiplied in.)
#
# Logits are (N, C) and may be as large as 1000: $e^{1000}$ overflows, so subtract each row's maximum first, which
# changes no probability. Targets (N,) are class numbers; they have no gradient, so `backward` returns `None` for them.


# %% nbgrader={"grade_id": "ps1-4", "solution": true}
class CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, target, **options):
        ### BEGIN SOLUTION
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        ctx.save(np.exp(log_p), target)
        return -log_p[np.arange(len(target)), target].mean()
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        p, target = ctx.saved
        truth = np.zeros_like(p)
        truth[np.arange(len(target)), target] = 1
        return g * (p - truth) / len(p), None
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-4-checks", "grade": true, "points": 3}
tb.course.score("ps1.4", CrossEntropy)

# %% nbgrader={"grade_id": "ps1-4-more", "grade": true, "points": 1}
logits = tb.Tensor(np.array([[0.0, 0.0]]), requires_grad=True)
loss = apply(CrossEntropy, logits, np.array([1]))
loss.backward()
assert np.isclose(loss.item(), np.log(2)), f"the loss is {loss.item()}"
assert np.allclose(logits.grad, [[0.5, -0.5]]), f"the gradient is {logits.grad}"
loss = apply(CrossEntropy, tb.Tensor(np.array([[1000.0, 0.0]])), np.array([0]))
assert np.isclose(loss.item(), 0), f"sure, and right: the loss is 0, not {loss.item()}"
### BEGIN HIDDEN TESTS
random = np.random.default_rng(4)
array, target = random.normal(0, 2, (5, 4)), random.integers(0, 4, 5)
check_op(CrossEntropy, array, target, wrt=[0])
loss = apply(CrossEntropy, tb.Tensor(array), target)
assert np.isclose(loss.item(), tb.functional.cross_entropy(array, target).item()), "the mean over the images"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: the walk (5 points)
#
# Backward passes are the stations; now for the journey. A computation is a graph: here `c = a * b` and `d = c + a`.


# %%
class Value:
    """A number that knows what it was made of: pairs (another Value, the derivative with respect to it)."""

    def __init__(self, data, inputs=()):
        self.data, self.inputs, self.grad = data, inputs, 0.0

    def __add__(self, other):
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])


a, b = Value(2.0), Value(3.0)
c = a * b
d = c + a

# %% [markdown]
# $d = ab + a$, so $dd/da = b + 1 = 4$. The graph finds this out by walking from `d` down: `d` gives 1 to `c` and 1 to
# `a`; `c` gives $1 \cdot 3$ to `a` and $1 \cdot 2$ to `b`. Together `a` has 4. The one rule: **a value passes on its
# gradient when it has received all of its parts, and then only once.** Who breaks it gets wrong numbers, or visits a
# graph of 60 doublings `x = x + x` along all its $2^{60}$ paths.
#
# Write `backpropagate(root)`: it sets the `grad` of every value below to $d\,\text{root} / d\,\text{value}$, that of
# the root to 1. One way: first count, for each value, how many parts it will receive; then walk, and go on from a value
# when the last part has come. Use loops: a recursion ends at a chain of about 1000.


# %% nbgrader={"grade_id": "ps1-5", "solution": true}
def backpropagate(root):
    ### BEGIN SOLUTION
    expected, stack = {root: 0}, [root]
    while stack:
        for source, _ in stack.pop().inputs:
            if source not in expected:
                expected[source] = 0
                stack.append(source)
            expected[source] += 1
    root.grad, ready = 1.0, [root]
    while ready:
        value = ready.pop()
        for source, slope in value.inputs:
            source.grad += slope * value.grad
            expected[source] -= 1
            if expected[source] == 0:
                ready.append(source)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-5-checks", "grade": true, "points": 4}
tb.course.score("ps1.5", backpropagate)

# %% nbgrader={"grade_id": "ps1-5-more", "grade": true, "points": 1}
a, b = Value(2.0), Value(3.0)
d = a * b + a
backpropagate(d)
assert (d.grad, a.grad, b.grad) == (1, 4, 2), f"it gives {(d.grad, a.grad, b.grad)}"
x = Value(1.0)
backpropagate(x + x)
assert x.grad == 2, "both operands are the same value"
### BEGIN HIDDEN TESTS
x = Value(1.0)
y = x
for _ in range(60):
    y = y + y
backpropagate(y)
assert x.grad == 2.0**60, "60 doublings"
x = Value(1.0)
y, one = x, Value(1.0)
for _ in range(20_000):
    y = y * one
backpropagate(y)
assert x.grad == 1 and one.grad == 20_000, "a long chain"
a, b = Value(2.0), Value(3.0)
c = a * b
y = (c + a) * (c + b) * c
backpropagate(y)
assert (a.grad, b.grad, c.grad) == (576.0, 396.0, 174.0), "values that are used at several depths"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6: which step? (3 points)
#
# `h=1e-5` is a good step for `float64`. For `float32` it is a bad one: the slope of $\sin$ comes out wrong in the third
# digit, and `h=0.1` is no better. Try it, for a few steps between. Two errors pull in opposite directions: why does
# the slope get worse when the step gets *smaller*?
#
# **Find the method.** Write `good_step`, which takes the name of a type, `"float64"`, `"float32"` or `"float16"`, and
# returns a step for functions like $\sin$, at values near 1, whose error is less than ten times that of the best one.
# One formula serves all three; `np.finfo(dtype).eps` is the relative error of one rounding.


# %% nbgrader={"grade_id": "ps1-6", "solution": true}
def good_step(dtype):
    ### BEGIN SOLUTION
    # The curve bends away by h^2 / 6, rounding costs eps / h: they are alike where h^3 is about eps.
    return float(np.finfo(dtype).eps) ** (1 / 3)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-6-checks", "grade": true, "points": 3}
tb.course.score("ps1.6", good_step)

# %% [markdown]
# ## Task 7: a test that tells (2 points)
#
# A backward pass is tested with an upstream gradient $g$: does it return what was measured? Some choices of $g$ are
# blind. Here five classmates hand in a backward pass of softmax, for the probabilities `p` of one row. One returns
# zeros, one half of the right answer; one forgets the sum in $p_i (g_i - \sum_j g_j p_j)$, one has the mean of $g$ in
# its place, and one keeps only $p_i (1 - p_i)\, g_i$.
#
# **Find the method.** Write `telling_gradient`: it takes `p` (n,) and returns a $g$ (n,) for which each of the five
# gives something else than the right one.


# %% nbgrader={"grade_id": "ps1-7", "solution": true}
def telling_gradient(p):
    ### BEGIN SOLUTION
    return np.random.default_rng(0).normal(0, 1, p.shape)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps1-7-checks", "grade": true, "points": 2}
tb.course.score("ps1.7", telling_gradient)

# %% [markdown]
# ## Task 8: a Vision Transformer learns through your code (2 points)
#
# Nothing to write: this is what the work was for. `tb.course.use` puts your Functions, those that pass their checks,
# into the library, in the place of its own, and a Vision Transformer trains on digits with them: every linear layer,
# every GELU and the loss. Guessing gets one digit in ten right.

# %% nbgrader={"grade_id": "ps1-8-vit", "grade": true, "points": 2}
digits = tb.data.load_digits()
size = {"dim": 32, "depth": 1, "heads": 4, "epochs": 8}
names = {"ps1.2": "gelu", "ps1.3": "linear", "ps1.4": "cross_entropy"}
yours = {names[task]: operation for task, operation in tb.course.own(globals(), *names).items()}
assert yours, "no operation of yours passes its checks yet"
with tb.course.use(**yours):
    model = tb.ViT(bits=32, **size, label_smoothing=0, augment=None, workers=1, random_state=0, verbose=0)
    model.fit(digits.X_train[:700], digits.y_train[:700])
    accuracy = model.score(digits.X_test, digits.y_test)
print(f"with your {', '.join(yours)}: {accuracy:.1%} of the test images are right")
assert accuracy > 0.5, "the network did not learn"

# %% [markdown]
# ## In your own words (4 points)
#
# A classmate tests a backward pass of softmax with the loss $L = \sum_i y_i$. Finite differences and the backward pass
# agree: all gradients are 0. Why does this test say nothing about the backward pass? Which loss would you take
# instead? Three or four sentences.

# %% [markdown] nbgrader={"grade_id": "ps1-why", "grade": true, "solution": true, "points": 4}
# ### BEGIN SOLUTION
# The outputs of a softmax add up to 1, whatever the input: this loss is a constant, and its true gradient is 0. A
# backward pass that returns zeros, or half of the right answer, or its negative, passes as well. A weighted sum with
# random weights, $L = \sum_i g_i y_i$, has a gradient that depends on every entry of the Jacobian, so a mistake shows.
#
# Full points: the sum is constant; any multiple of the right gradient passes; random upstream gradient g.
# ### END SOLUTION
