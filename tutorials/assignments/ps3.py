# %% [markdown]
# # Problem set 3: straight through
#
# A weight that is only -1, 0 or +1 cannot be learnt by following its derivative: the derivative of a staircase is 0.
# In this set you write the quantisers of BitNet b1.58, give them a gradient that they do not have, and train a Vision
# Transformer through your own code. You need tutorials 05 and 06.
#
# **How it works.** Replace each `raise NotImplementedError()` by your answer. The line `tb.course.score(...)` below it
# checks it at once, shows an input for which something is wrong, and gives a point for each check that passes. Where
# another cell follows, it gives the last point, for inputs that you do not see. Leave these cells as they are. A
# mistake costs its own task and no other. Two tasks have no recipe: **find the method**. Hand in this notebook.

# %%
import numpy as np

import tinybitvit as tb
from tinybitvit.ops import Function
from tinybitvit.tensor import apply

# %% [markdown]
# ## Task 1: ternary codes (4 points)
#
# Take one row of weights, the weights of one output channel:
#
# $$w = (0.9,\; -0.1,\; 0.4,\; -0.6)$$
#
# Their mean absolute value is $\beta = (0.9 + 0.1 + 0.4 + 0.6) / 4 = 0.5$. In units of $\beta$ the row is
# $(1.8, -0.2, 0.8, -1.2)$. The codes are the nearest of -1, 0 and 1: $t = (1, 0, 1, -1)$. What the network multiplies
# by is $\beta t = (0.5, 0, 0.5, -0.5)$.
#
# Write it for a matrix `w` (out, in), with one $\beta$ for each row. Return the codes, of the shape of `w`, and `beta`,
# of shape (out, 1). One kind of row breaks the obvious version: there, let $\beta$ be $10^{-5}$.


# %% nbgrader={"grade_id": "ps3-1", "solution": true}
def ternary_codes(w):
    ### BEGIN SOLUTION
    beta = np.maximum(np.abs(w).mean(axis=-1, keepdims=True), 1e-5)
    return np.clip(np.rint(w / beta), -1, 1), beta
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps3-1-checks", "grade": true, "points": 3}
tb.course.score("ps3.1", ternary_codes)

# %% nbgrader={"grade_id": "ps3-1-more", "grade": true, "points": 1}
codes, beta = ternary_codes(np.array([[0.9, -0.1, 0.4, -0.6]]))
assert np.allclose(beta, [[0.5]]), f"beta is {beta}"
assert np.array_equal(codes, [[1, 0, 1, -1]]), f"the codes are {codes}"
codes, beta = ternary_codes(np.array([[0.9, -0.1], [0.0, 0.0]]))
assert beta.shape == (2, 1), "one beta for each row"
### BEGIN HIDDEN TESTS
for seed in range(5):
    w = np.random.default_rng(seed).normal(0.1 * seed, 1, (seed + 2, 7)).astype("float32")
    w[0] *= 100
    w[-1] = 0
    codes, beta = ternary_codes(w)
    true_codes, true_beta = tb.quant.ste.ternary_codes(np, w)
    assert np.allclose(beta, true_beta), "each row has a beta of its own, and it is never 0"
    assert np.array_equal(codes, true_codes), "some codes differ"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: the gradient of a staircase (5 points)
#
# Nudge a weight by a hair, from 0.40 to 0.41. Its code stays 1, and so does the output; only at 0.25 and 0.75 would
# anything happen. The derivative is 0 nearly everywhere, and 0 teaches nothing.
#
# The *straight-through estimator* passes the gradient on as if the rounding were not there. The version that you write
# here adds one thought: a weight that lies far outside, $|w| > 3 \beta$, is not moved any further. So the forward pass
# is the staircase, $y = \beta t$, and the backward pass is that of another function, the ramp
# $\text{clip}(w, -3\beta, 3\beta)$, with $\beta$ taken as a constant. Draw the ramp, and read its slope off.
#
# For the row of task 1 and $g = (1, 2, 3, 4)$, nothing lies outside, and $dL/dw = (1, 2, 3, 4)$. Take the codes from
# `codes_of`: it is your `ternary_codes`, or the library's where yours does not pass its checks.
#
# Write it as a `Function`: `ctx.save(...)` keeps arrays for the backward pass, `ctx.saved` has them, and `backward`
# returns a tuple with one gradient for each input. The library will pass settings of its own to `forward`; `**options`
# takes them, and you may ignore them.


# %%
codes_of = tb.course.settled("ps3.1", globals())


# %% nbgrader={"grade_id": "ps3-2", "solution": true}
class Ternary(Function):
    @staticmethod
    def forward(ctx, w, **options):
        ### BEGIN SOLUTION
        codes, beta = codes_of(w)
        ctx.save(np.abs(w) <= 3 * beta)
        return codes * beta
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        (inside,) = ctx.saved
        return (g * inside,)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps3-2-checks", "grade": true, "points": 4}
tb.course.score("ps3.2", Ternary)

# %% nbgrader={"grade_id": "ps3-2-more", "grade": true, "points": 1}
w = tb.Tensor(np.array([[0.9, -0.1, 0.4, -0.6]]), requires_grad=True)
y = apply(Ternary, w)
y.backward(np.array([[1.0, 2.0, 3.0, 4.0]]))
assert np.allclose(y.data, [[0.5, 0, 0.5, -0.5]]), f"the forward pass gives {y.data}"
assert np.allclose(w.grad, [[1, 2, 3, 4]]), f"the backward pass gives {w.grad}"
w = tb.Tensor(np.array([[8.0, 1, -1, 0, 1, -1, 0, 1]]), requires_grad=True)
apply(Ternary, w).backward(np.ones((1, 8)))
assert w.grad.shape == (1, 8), "one gradient for each weight"
### BEGIN HIDDEN TESTS
assert np.array_equal(w.grad, [[0, 1, 1, 1, 1, 1, 1, 1]]), "8 lies beyond 3 beta = 4.875"
for seed in range(5):
    random = np.random.default_rng(seed)
    array, g = random.standard_t(2, (4, 9)), random.normal(0, 1, (4, 9))
    w = tb.Tensor(array, requires_grad=True)
    y = apply(Ternary, w)
    y.backward(g)
    codes, beta = tb.quant.ste.ternary_codes(np, array)
    assert np.allclose(y.data, beta * codes), "the forward pass differs"
    assert np.allclose(w.grad, np.where(np.abs(array) <= 3 * beta, g, 0)), "the backward pass differs"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: activations of 8 bits (4 points)
#
# The inputs of a layer are quantised too, every token (row) with a scale of its own: the largest entry becomes 127.
# For $x = (0.3, -1.0, 0.25)$ the step is $1 / 127$, and the codes are $(38.1, -127, 31.75)$, rounded $(38, -127, 32)$.
# What the network sees is $(0.2992, -1, 0.252)$.
#
# The gradient passes straight through. `np.rint` rounds halves to the even neighbour. `x` may have any number of
# leading axes, (..., in), and a token may be all zeros, as a row of task 1.


# %% nbgrader={"grade_id": "ps3-3", "solution": true}
class Absmax(Function):
    @staticmethod
    def forward(ctx, x, **options):
        ### BEGIN SOLUTION
        step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5) / 127
        return np.rint(x / step) * step
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        return (g,)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps3-3-checks", "grade": true, "points": 3}
tb.course.score("ps3.3", Absmax)

# %% nbgrader={"grade_id": "ps3-3-more", "grade": true, "points": 1}
x = tb.Tensor(np.array([[0.3, -1.0, 0.25]]), requires_grad=True)
y = apply(Absmax, x)
y.backward(np.array([[1.0, 2.0, 3.0]]))
assert np.allclose(y.data, [[38 / 127, -1, 32 / 127]]), f"the forward pass gives {y.data}"
assert np.allclose(x.grad, [[1, 2, 3]]), f"the backward pass gives {x.grad}"
y = apply(Absmax, tb.Tensor(np.array([[[0.5, -1.0]], [[0.0, 0.0]]])))
assert y.shape == (2, 1, 2), "the shape stays"
### BEGIN HIDDEN TESTS
for seed in range(5):
    random = np.random.default_rng(seed)
    array, g = random.normal(0, 3, (2, 3, 5)), random.normal(0, 1, (2, 3, 5))
    array[0, 0] = 0
    x = tb.Tensor(array, requires_grad=True)
    y = apply(Absmax, x)
    y.backward(g)
    assert np.allclose(y.data, tb.quant.absmax(array).data), "each token has a scale of its own, and it is never 0"
    assert np.allclose(x.grad, g), "the gradient passes straight through"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: the layer (4 points)
#
# Now put them together: a BitLinear layer quantises its weight, quantises its input, and multiplies.
#
# $$x_q = \text{Absmax}(x), \qquad W_q = \beta t, \qquad y = x_q W_q^T + b$$
#
# Which matrices belong into the backward pass, those that came in or those that were multiplied? Both quantisers pass
# the gradient on unchanged (leave out the ramp of task 2), so think of $y$ as a function of $x_q$, $W_q$ and $b$, and
# take the gradients of a linear layer at these. `x` is (..., in), the weight (out, in), the bias (out,).
# `x.reshape(-1, x.shape[-1])` makes rows of any number of leading axes. Besides `codes_of` there is `rounded(x)`, the
# forward pass of task 3: yours, if it passes its checks.


# %%
absmax = tb.course.settled("ps3.3", globals())


def rounded(x):
    return absmax.forward(tb.ops.Context(np, (False,)), x)


# %% nbgrader={"grade_id": "ps3-4", "solution": true}
class BitLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ### BEGIN SOLUTION
        codes, beta = codes_of(weight)
        quantized_x, quantized_weight = rounded(x), codes * beta
        ctx.save(quantized_x, quantized_weight)
        return quantized_x @ quantized_weight.T + bias
        ### END SOLUTION

    @staticmethod
    def backward(ctx, g):
        ### BEGIN SOLUTION
        quantized_x, quantized_weight = ctx.saved
        rows = g.reshape(-1, g.shape[-1])
        dweight = rows.T @ quantized_x.reshape(-1, quantized_x.shape[-1])
        return g @ quantized_weight, dweight, rows.sum(axis=0)
        ### END SOLUTION


# %% nbgrader={"grade_id": "ps3-4-checks", "grade": true, "points": 3}
tb.course.score("ps3.4", BitLinear)

# %% nbgrader={"grade_id": "ps3-4-more", "grade": true, "points": 1}
x, bias = np.array([[1.0, 0.0, -1.0, 0.0]]), np.array([10.0])
y = apply(BitLinear, x, np.array([[0.9, -0.1, 0.4, -0.6]]), bias)
assert np.allclose(y.data, [[10.0]]), f"0.5 * 1 + 0.5 * (-1) + 10 is not {y.data}"
inputs = [tb.Tensor(a, requires_grad=True) for a in (x, np.array([[0.9, -0.1, 0.4, -0.6]]), bias)]
apply(BitLinear, *inputs).backward(np.array([[2.0]]))
assert np.allclose(inputs[0].grad, [[1, 0, 1, -1]]), f"dL/dx is {inputs[0].grad}"
### BEGIN HIDDEN TESTS
random = np.random.default_rng(4)
arrays = random.normal(0, 1, (2, 3, 6)), random.normal(0, 1, (5, 6)), random.normal(0, 1, 5)
g = random.normal(0, 1, (2, 3, 5))
mine, theirs = ([tb.Tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
y = apply(BitLinear, *mine)
y.backward(g)
expected = tb.functional.linear(tb.quant.absmax(theirs[0]), tb.quant.ternary(theirs[1]), theirs[2])
expected.backward(g)
assert np.allclose(y.data, expected.data), "the forward pass differs for three axes"
for name, a, b in zip(("x", "the weight", "the bias"), mine, theirs, strict=True):
    assert np.allclose(a.grad, b.grad), f"the gradient of {name} differs"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: a better scale (3 points)
#
# Who says that $\beta t$ is the best that the codes $t$ can do? For the row of task 1 the squared error
# $\sum_i (w_i - \beta t_i)^2$ is $0.16 + 0.01 + 0.01 + 0.01 = 0.19$ with $\beta = 0.5$. With another scale for the same
# codes it is less than 0.14.
#
# **Find the method.** Write `best_scale`: for a matrix `w` (out, in) and its codes, the scale of each row, (out, 1),
# whose squared error is the smallest. A row whose codes are all 0 has the scale 0.


# %% nbgrader={"grade_id": "ps3-5", "solution": true}
def best_scale(w, codes):
    ### BEGIN SOLUTION
    # the derivative by the scale is 0 where the sum of t (w - s t) is
    return (w * codes).sum(axis=-1, keepdims=True) / np.maximum((codes * codes).sum(axis=-1, keepdims=True), 1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps3-5-checks", "grade": true, "points": 3}
tb.course.score("ps3.5", best_scale)

# %% [markdown]
# ## Task 6: a row that is lost (3 points)
#
# Networks of this kind sometimes have a row in which nearly all weights get the code 0: what they had learnt is gone.
#
# **Find the method.** Write `lost_row`: a row (n,) of weights, none of them 0, of which `ternary_codes` leaves a single
# one other than 0, for any n from 2 up. Without that one, the others would all keep a code other than 0. What does
# that say about the mean as a scale?


# %% nbgrader={"grade_id": "ps3-6", "solution": true}
def lost_row(n):
    ### BEGIN SOLUTION
    # One outlier lifts the mean above twice the size of all the others.
    row = np.ones(n)
    row[0] = 2 * n + 2
    return row
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps3-6-checks", "grade": true, "points": 3}
tb.course.score("ps3.6", lost_row)

# %% [markdown]
# ## Task 7: a Vision Transformer learns through your code (2 points)
#
# Nothing to write: this is what the work was for. First `tb.course.use` puts your quantisers, those that pass their
# checks, into the library, in the place of its own, and `tb.ViT` trains on digits with them. Then your layer takes the
# place of every linear layer of a network in full precision. Both would get one digit in ten right by guessing.

# %%
digits = tb.data.load_digits()
size = {"dim": 32, "depth": 1, "heads": 4}


class YourLinear(tb.nn.Linear):
    def forward(self, x):
        return apply(BitLinear, x, self.weight, self.bias)


def put_in(network, layer):
    """Replace every linear layer in the blocks of a network."""
    for block in network.blocks:
        for part, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            old = getattr(part, name)
            setattr(part, name, layer(old.in_features, old.out_features, rng=np.random.default_rng(0)))
    return network


# %% nbgrader={"grade_id": "ps3-7-vit", "grade": true, "points": 2}
names = {"ps3.2": "ternary", "ps3.3": "absmax", "ps3.4": "BitLinear"}
yours = {names[task]: operation for task, operation in tb.course.own(globals(), *names).items()}
assert yours, "no operation of yours passes its checks yet"
with tb.course.use(**{name: operation for name, operation in yours.items() if name != "BitLinear"}):
    model = tb.ViT(bits=1.58, **size, epochs=8, augment=None, workers=1, random_state=0, verbose=0)
    model.fit(digits.X_train[:700], digits.y_train[:700])
accuracy = model.score(digits.X_test, digits.y_test)
print(f"with your {', '.join(yours)}: {accuracy:.1%} of the test images are right")
assert accuracy > 0.4, "the network did not learn"
if "BitLinear" in yours:
    network = put_in(tb.models.VisionTransformer(8, 2, 1, 10, **size, rng=np.random.default_rng(1)), YourLinear)
    trainer = tb.train.Trainer(network, tb.optim.AdamW(network.parameters(), lr=3e-3), workers=1)
    images, order = digits.X_train.astype("float32") / 255, np.random.default_rng(2)
    for _ in range(80):
        batch = order.integers(0, len(images), 64)
        loss = trainer.step(images[batch], digits.y_train[batch])
    print(f"with your layer: the loss is {loss:.2f}, guessing has 2.30")
    assert loss < 1.8, "the network with your layer did not learn"

# %% [markdown]
# ## In your own words (4 points)
#
# After training, your ternary network multiplies by nothing but -1, 0 and +1. Why does the optimiser nevertheless keep
# every weight as a float? Say what would go wrong if it kept only the codes, and use a learning rate of 0.001 and a
# weight of 0.40 with $\beta = 0.5$ as your example. Four or five sentences.

# %% [markdown] nbgrader={"grade_id": "ps3-why", "grade": true, "solution": true, "points": 4}
# ### BEGIN SOLUTION
# One step moves a weight by about 0.001. From 0.40 (code 1) it has to come down to 0.25 before its code becomes 0: some
# 150 steps in the same direction. The float adds up these small steps, so that many weak hints from many batches decide
# together. Kept as a code, the weight would be rounded back to 1 after every step, and nothing would ever be learnt
# (or, with steps large enough to cross a threshold, single noisy batches would make it jump). The float, the latent
# weight, is a memory of the training; the deployed network does not need it.
#
# Full points: thresholds, accumulation over many steps, rounding undoes a single step, only needed in training.
# ### END SOLUTION
