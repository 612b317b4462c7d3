# %% [markdown]
# # 04 A Vision Transformer on digits
#
# Tokens (lesson 02), attention (lesson 03), and a gradient for everything (lesson 01): the network is the sum of the
# parts, and four small ones are missing. Here you write them, count the parameters by hand, train twice, once with a
# step that you write and once with `fit`, and compare with methods from the time before networks, a healthy habit.
#
# You need: lessons 01 to 03.

# %%
import inspect
import math
from timeit import repeat

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import ops
from tinybitvit.course import answer, check, keep, mine, parts, predict, solution, use, yours
from tinybitvit.models import VisionTransformer
from tinybitvit.models.vit import Block
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
numeric_gradient, softmax = mine("numeric_gradient", "softmax")

# %% [markdown]
# ## 1. The whole network in four lines
#
# $$\begin{aligned}
# z_0 &= [x^1 E; \dots; x^T E] + E_{\text{pos}} \\
# z'_l &= \text{MSA}(\text{LN}(z_{l-1})) + z_{l-1} \\
# z_l &= \text{MLP}(\text{LN}(z'_l)) + z'_l \\
# y &= \text{head}(\text{mean}_t\, \text{LN}(z_L))
# \end{aligned}$$
#
# Cut and embed; tokens talk to each other; each token thinks alone; a vote. These are equations 1 to 4 of Dosovitskiy
# et al. 2020 (arXiv 2010.11929), with a mean over the patches where the paper reads a class token. MSA is attention
# with its two linear layers; LN brings every token to one size (section 2); the MLP is two linear layers with a bend
# between them (section 3). The two middle lines are a *block*.
#
# An image of 8 x 8 pixels in patches of 2 x 2, dim 32, 4 heads. How many shares of attention are there in one block?

# %% kind="predict"
guess = predict("shares of attention in one block")

# %% kind="answer"
network = VisionTransformer(8, 2, in_channels=1, num_classes=10, dim=32, depth=2, heads=4, mlp_ratio=2, rng=rng)
shapes = {}
hooks = [
    module.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: output.shape}))
    for name, module in network.named_modules()
]
network(normalize(digits.X_test[:1]))
for hook in hooks:
    hook.remove()
for name in ("embed.patch", "embed", "blocks.0.attn.qkv", "blocks.0.attn.attend", "blocks.0.attn"):
    print(f"{name:22} {shapes[name]}")
for name in ("blocks.0.mlp.fc1", "blocks.0.mlp", "blocks.0", "blocks.1", "norm", ""):
    print(f"{name or '(all)':22} {shapes[name]}")
answer("shares of attention in one block", 1024, measured=math.prod(shapes["blocks.0.attn.attend"]))

# %% [markdown]
# Both branches of a block are *added* to what was there, past the branch on a **skip connection**. The derivative of
# $z + f(z)$ is $1 + f'(z)$: whatever $f$ does, a gradient of 1 gets through, from the loss to the first layer.

# %%
print(inspect.getsource(Block.forward))
print(inspect.getsource(Block.attention_branch))

# %% [markdown]
# You have MSA and the linear layers. Missing are LN, the function between the two layers of the MLP, the loss, and the
# step. First a gradient for later: of the library, on all its own operations.

# %%
x, y = normalize(digits.X_train[:64]), digits.y_train[:64]
F.cross_entropy(network(x), y).backward()
library_gradient = {name: p.grad.copy() for name, p in network.named_parameters()}
network.zero_grad()

# %% [markdown]
# ## 2. Layer norm
#
# Every block adds something to its token, so the numbers grow from block to block, and the learning rate that suits one
# size does not suit the other. **Layer norm** brings each token to one size before it enters a branch: take away its
# mean, divide by its standard deviation. Then comes a learnt weight and bias for each column:
#
# $$\begin{aligned}
# u &= x - \text{mean}(x), \\
# s &= \sqrt{\text{mean}(u^2) + \epsilon}, \\
# y &= z\,w + b, \qquad z = u / s .
# \end{aligned}$$
#
# The means run over the numbers of one token; $\epsilon = 10^{-6}$ keeps $s$ from 0. Somebody multiplies a token by 100
# and adds 7 to each of its numbers. What becomes of y?

# %% kind="predict"
guess = predict("y of the other token", choices=["100 times as large", "larger by 7", "hardly any change"])


# %% kind="naive"
def normalize_tokens(rows, weight, bias, eps=1e-6):
    """One token after the other, one number at a time."""
    result = []
    for row in rows:
        mean = sum(row) / len(row)
        s = math.sqrt(sum((a - mean) ** 2 for a in row) / len(row) + eps)
        result.append([(a - mean) / s * w + b for a, w, b in zip(row, weight, bias, strict=True)])
    return result


tokens, weight, bias = rng.standard_normal((64 * 16, 32)), rng.standard_normal(32), rng.standard_normal(32)
slow = min(repeat(lambda: normalize_tokens(tokens.tolist(), weight, bias), number=1, repeat=2))
print(f"the tokens of 64 digits: {1000 * slow:.0f} ms")

# %% kind="answer"
for row in ([1.0, 1.0, 5.0, 5.0], [107.0, 107.0, 507.0, 507.0]):
    print(row, "becomes", np.round(normalize_tokens([row], np.ones(4), np.zeros(4))[0], 6).tolist())
change = np.subtract(*(normalize_tokens(t.tolist(), weight, bias) for t in (tokens[:5], 100 * tokens[:5] + 7)))
answer("y of the other token", "hardly any change", measured="hardly any change" if abs(change).max() < 1e-4 else "")


# %% kind="your-turn"
@yours("4.1")
def layer_norm(x, weight, bias, eps=1e-6):
    """z w + b over the last axis: x (..., n), weight (n,), bias (n,) -> (..., n)."""
    # x = [1, 1, 5, 5], weight all 1 and bias all 0: [-1, -1, 1, 1]
    ...


check(layer_norm)


# %% kind="solution"
@solution("4.1")
def layer_norm(x, weight, bias, eps=1e-6):
    """z w + b over the last axis: x (..., n), weight (n,), bias (n,) -> (..., n)."""
    u = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((u * u).mean(axis=-1, keepdims=True) + eps)
    return u / s * weight + bias


# %% [markdown]
# Backward. w and b are linear layers of one number each, you know their kind. The work is z, whose every number depends
# on all numbers of the token, through the mean and through $s$. With n numbers,
#
# $$\begin{aligned}
# \frac{\partial s}{\partial x_j} &= \frac{1}{2 s} \cdot \frac{2 u_j}{n} = \frac{z_j}{n}, \\
# \frac{\partial z_i}{\partial x_j} &= \frac{1[i = j] - 1/n}{s} - \frac{u_i}{s^2} \cdot \frac{z_j}{n} \\
# &= \frac{1}{s} \left( 1[i = j] - \frac1n - \frac{z_i z_j}{n} \right) .
# \end{aligned}$$
#
# It is the softmax once more: a full Jacobian, which nobody needs to build. With $h_i = \partial L / \partial z_i =
# g_i w_i$, put it into $\sum_i h_i\, \partial z_i / \partial x_j$ and write what is left as means over the token.


# %% kind="your-turn"
@yours("4.2")
def layer_norm_backward(g, y, x, weight, bias, eps=1e-6):
    """(dL/dx, dL/dweight, dL/dbias): (..., n), (n,), (n,), as the inputs."""
    u = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((u * u).mean(axis=-1, keepdims=True) + eps)
    z, h = u / s, g * weight
    tokens = tuple(range(x.ndim - 1))  # the axes that count them
    ...


check(layer_norm_backward)


# %% kind="solution"
@solution("4.2")
def layer_norm_backward(g, y, x, weight, bias, eps=1e-6):
    """(dL/dx, dL/dweight, dL/dbias): (..., n), (n,), (n,), as the inputs."""
    u = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((u * u).mean(axis=-1, keepdims=True) + eps)
    z, h = u / s, g * weight
    tokens = tuple(range(x.ndim - 1))
    dx = (h - h.mean(axis=-1, keepdims=True) - z * (h * z).mean(axis=-1, keepdims=True)) / s
    return dx, (g * z).sum(axis=tokens), g.sum(axis=tokens)


# %% [markdown]
# Read the result: of h, the part that would move all numbers alike is taken out, and so is the part that would make the
# token longer. Neither can change z.

# %%
use(layer_norm=(layer_norm, layer_norm_backward))

# %% kind="see"
fast = min(repeat(lambda: layer_norm(tokens, weight, bias), number=1, repeat=20))
print(f"{1000 * slow:.0f} ms one by one, {1000 * fast:.2f} ms with arrays: {slow / fast:.0f} times as fast")
few, g = tokens[:3], rng.standard_normal((3, 32))
dx = layer_norm_backward(g, None, few, weight, bias)[0]
off = np.abs(numeric_gradient(lambda x: layer_norm(x, weight, bias), few, g) - dx).max()
print(f"dL/dx is off by at most {off:.0e}; sums over a token: {np.abs(dx.sum(axis=1)).round(12)}")
assert off < 1e-6
assert np.allclose(layer_norm(tokens, weight, bias), normalize_tokens(tokens.tolist(), weight, bias))
assert slow > 2 * fast

# %% [markdown]
# ## 3. GELU
#
# An MLP is two linear layers. Without a function between them they would be one: $(x A) B = x (A B)$. Transformers take
# **GELU** (Hendrycks & Gimpel 2016, arXiv 1606.08415): $y = x\, \Phi(x)$, where $\Phi(x)$ is the probability that a
# standard normal number is at most x. Small x are let through in part, large ones whole, very negative ones not at all.
#
# What is the largest slope of this curve, to two digits behind the point?

# %% kind="predict"
guess = predict("the largest slope of GELU")


# %% kind="naive"
def gelu_one_by_one(numbers):
    """x Phi(x), with Phi(x) = (1 + erf(x / sqrt 2)) / 2."""
    return np.array([a * 0.5 * (1 + math.erf(a / math.sqrt(2))) for a in numbers])


at = np.linspace(-4, 4, 10_001)
curve = gelu_one_by_one(at)
slow = min(repeat(lambda: gelu_one_by_one(at), number=1, repeat=3))
print(f"10,001 numbers: {1000 * slow:.1f} ms")

# %% kind="answer"
slopes = np.diff(curve) / np.diff(at)
print(f"at x = {at[slopes.argmax()]:.2f}, which is the root of 2")
answer("the largest slope of GELU", 1.13, measured=slopes.max(), tolerance=0.005)

# %% [markdown]
# NumPy has no $\Phi$, but it has tanh, another curve from one level to another. Choose u so that $(1 + \tanh u) / 2$
# follows $\Phi(x)$. Near 0, in powers of x,
#
# $$\begin{aligned}
# \Phi(x) &= \frac12 + \frac{1}{\sqrt{2 \pi}} \left(x - \frac{x^3}{6} + \dots\right), \\
# \frac{1 + \tanh u}{2} &= \frac12 + \frac12 \left(u - \frac{u^3}{3} + \dots\right),
# \end{aligned}$$
#
# so u must begin with $\sqrt{2 / \pi}\, x$. With $u = \sqrt{2/\pi}\,(x + a x^3)$ the third powers agree for
# $a = \frac{2}{3 \pi} - \frac16 = 0.0455$; a little less, $a = 0.044715$, serves the whole line best, and is what
# everybody uses: $y = x (1 + \tanh u) / 2$. For the backward you need $\tanh' = 1 - \tanh^2$ and $u'$.


# %% kind="your-turn"
@yours("4.3")
def gelu(x):
    """x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    # gelu(1) = 0.8412, gelu(-1) = -0.1588
    ...


@yours("4.4")
def gelu_backward(g, y, x):
    """dL/dx from g = dL/dy: y is a product, x times (1 + tanh u) / 2."""
    # at x = 1 and g = 1: 1.0830
    ...


check(gelu)
check(gelu_backward)


# %% kind="solution"
@solution("4.3")
def gelu(x):
    """x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@solution("4.4")
def gelu_backward(g, y, x):
    """dL/dx from g = dL/dy: y is a product, x times (1 + tanh u) / 2."""
    root = math.sqrt(2 / math.pi)
    t = np.tanh(root * (x + 0.044715 * x * x * x))
    du = root * (1 + 3 * 0.044715 * x * x)
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)


# %%
use(gelu=(gelu, gelu_backward))

# %% kind="see"
fast = min(repeat(lambda: gelu(at), number=1, repeat=20))
print(f"{1000 * slow:.1f} ms by erf, {1000 * fast:.2f} ms by tanh: {slow / fast:.0f} times as fast")
fig = new_figure(4.6, 5)
left, right = fig.subplots(2, 1, sharex=True)
left.plot(at, curve, color=PALETTE[0], label="GELU")
left.plot(at, gelu_backward(1.0, None, at), "--", color=PALETTE[1], label="its slope")
left.legend(frameon=False)
right.plot(at, 1e4 * (gelu(at) - curve), color=PALETTE[2])
right.set(title="tanh formula - exact, in 1e-4", xlabel="x")
for ax in (left, right):
    ax.grid(alpha=0.3)
assert np.abs(gelu(at) - curve).max() < 5e-4
assert slow > 2 * fast
fig

# %% [markdown]
# ## 4. Count
#
# A linear layer from $a$ to $b$ has $ab + b$ numbers, a layer norm over $d$ has $2 d$. With $d$ = dim, $r$ = width of
# the MLP / dim and $L$ blocks, a block has
#
# $$\begin{aligned}
# &\underbrace{3 d^2 + 3 d}_{\text{qkv}} + \underbrace{d^2 + d}_{\text{proj}} \\
# &+ \underbrace{2 r d^2 + r d + d}_{\text{MLP}} + \underbrace{4 d}_{\text{2 norms}} .
# \end{aligned}$$
#
# Which share of all parameters lies in the linear layers of the blocks, the ones that lessons 05 and 06 are going to
# squeeze? (dim 32, r = 2, 2 blocks, 16 tokens of 4 pixels, 10 classes.)

# %% kind="predict"
guess = predict("share in the linear layers of the blocks", "%")

# %% kind="answer"
d, r, L, T = 32, 2, 2, 16
by_hand = {"patch embedding": 4 * d + d, "positions": T * d}
by_hand |= {"qkv": L * (3 * d * d + 3 * d), "proj": L * (d * d + d), "MLP": L * (2 * r * d * d + r * d + d)}
by_hand |= {"norms": L * 4 * d + 2 * d, "head": 10 * d + 10}
counted = sum(p.size for p in network.parameters())
print(f"{counted:,} parameters counted, {sum(by_hand.values()):,} by hand")
share = sum(by_hand[name] for name in ("qkv", "proj", "MLP")) / counted
answer("share in the linear layers of the blocks", 93, measured=100 * share, tolerance=0.5, unit=" %")
assert counted == sum(by_hand.values())

# %% kind="see"
fig = new_figure(4.8, 3)
ax = fig.subplots()
colors = [PALETTE[name not in ("qkv", "proj", "MLP")] for name in by_hand]
bars = ax.barh(list(by_hand), list(by_hand.values()), color=colors)
ax.bar_label(bars, fmt="{:,.0f}", padding=3)
ax.invert_yaxis()
ax.set(xlabel="parameters", title="blue: linear layers of the blocks", xlim=(0, 11_000), xticks=[0, 4000, 8000])
fig

# %% [markdown]
# ## 5. How wrong is it?
#
# The network gives ten numbers, the logits s; their softmax p is what it believes. The **cross-entropy** of an image of
# class t is $l = -\ln p_t$, and the loss is the mean over the images: 0 for one who is sure and right.
#
# A network that has learnt nothing knows nothing about ten classes. Which loss, in nats (natural logarithm), does it
# begin with? Think of it as giving each class the same share.

# %% kind="predict"
guess = predict("loss of the untrained network")


# %% kind="naive"
def loss_one_by_one(logits, target):
    """-ln of the share of the right class, image by image."""
    losses = []
    for s, t in zip(logits, target, strict=True):
        powers = [math.exp(a) for a in s]
        losses.append(-math.log(powers[t] / sum(powers)))
    return sum(losses) / len(losses)


# %% kind="answer"
logits = network(x).numpy().astype("float64")
start = loss_one_by_one(logits, y)
print(f"measured: {start:.2f}; ln 10 = {math.log(10):.3f}, and a little more for what it believes by chance")
answer("loss of the untrained network", 2.3, measured=start, tolerance=0.5)

# %% [markdown]
# A first loss far from $\ln C$ is the cheapest bug report that you will ever get: labels in the wrong order, a missing
# normalisation, weights that are too large.
#
# For large logits the powers overflow, as in lesson 03; and taking away the maximum is not enough here, since a share
# may round to 0, whose logarithm is not finite. So never form the share. With $m = \max_j s_j$,
#
# $$\begin{aligned}
# l &= -\ln \frac{e^{s_t}}{\sum_j e^{s_j}} = -s_t + \ln \sum_j e^{s_j} \\
# &= (m - s_t) + \ln \sum_j e^{s_j - m} .
# \end{aligned}$$


# %% kind="your-turn"
@yours("4.5")
def cross_entropy(logits, target):
    """The mean of -ln p_t: logits (N, C), target (N,) whole numbers -> one number."""
    # logits [[0, 1000]] and target [0]: 1000, not infinity
    # s[np.arange(N), target] picks one number of each row
    ...


check(cross_entropy)


# %% kind="solution"
@solution("4.5")
def cross_entropy(logits, target):
    """The mean of -ln p_t: logits (N, C), target (N,) whole numbers -> one number."""
    below = logits - logits.max(axis=-1, keepdims=True)
    picked = below[np.arange(len(target)), target]
    return (np.log(np.exp(below).sum(axis=-1)) - picked).mean()


# %% [markdown]
# The backward is the reason why this loss goes with this softmax. From $l = -s_t + \ln \sum_j e^{s_j}$:
#
# $$\frac{\partial l}{\partial s_j} = -1[j = t] + \frac{e^{s_j}}{\sum_l e^{s_l}} = p_j - 1[j = t] .$$
#
# The exponentials and the logarithm are gone, and with them every danger: what it believes minus what is true. Mind
# that the loss is a mean, and that g, a single number, arrives from above.


# %% kind="your-turn"
@yours("4.6")
def cross_entropy_backward(g, y, logits, target):
    """dL/dlogits (N, C) from the number g = dL/dy."""
    # logits [[0, 0]], target [1], g = 1: [[0.5, -0.5]]
    ...


check(cross_entropy_backward)


# %% kind="solution"
@solution("4.6")
def cross_entropy_backward(g, y, logits, target):
    """dL/dlogits (N, C) from the number g = dL/dy."""
    d = softmax(logits)
    d[np.arange(len(target)), target] -= 1
    return g * d / len(target)


# %%
use(cross_entropy=(cross_entropy, cross_entropy_backward))

# %% [markdown]
# With it, nearly all of the network is yours. Put in the rest, from lessons 02 and 03, and compare your gradient of all
# weights with the library's own, of section 1.

# %%
names = "patchify", "patchify_backward", "linear", "linear_backward", "add_backward", "softmax_backward"
patchify, patchify_backward, linear, linear_backward, add_backward, softmax_backward = mine(*names)
multi_head_attention, multi_head_attention_backward = mine("multi_head_attention", "multi_head_attention_backward")
use(
    patchify=(patchify, patchify_backward),
    linear=(linear, linear_backward),
    add=(None, add_backward),
    softmax=(softmax, softmax_backward),
    multi_head_attention=(multi_head_attention, multi_head_attention_backward),
)
F.cross_entropy(network(x), y).backward()
difference = max(np.abs(p.grad - library_gradient[name]).max() for name, p in network.named_parameters())
print(f"largest difference among {counted:,} numbers: {difference:.0e}")

# %% kind="see"
print("yours:", ", ".join(name for name, op in ops.OPS.items() if op.__name__.startswith("Your")))
assert difference < 1e-5
assert abs(cross_entropy(logits, y) - start) < 1e-6

# %% [markdown]
# ## 6. The step, by hand
#
# Training is one step, many times: work out the loss of some images, walk the gradient down, move each weight a little
# against its gradient. The **optimiser** does the moving: it holds all weights and says how far (`tb.optim.SGD`:
# learning rate times gradient; `AdamW`, which everybody uses for Transformers, divides by the usual size of each
# weight's gradient). One trap: gradients are *added* to what is in `.grad` already, so a step must forget the old ones
# first.


# %% kind="your-turn"
@yours("4.7")
def train_step(network, optimizer, x, y):
    """One step on images x of classes y; returns the loss before it, a number."""
    # optimizer.zero_grad(), optimizer.step(), F.cross_entropy(network(x), y),
    # loss.backward(), loss.item(): in which order?
    ...


check(train_step)


# %% kind="solution"
@solution("4.7")
def train_step(network, optimizer, x, y):
    """One step on images x of classes y; returns the loss before it, a number."""
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


# %% [markdown]
# The second cheapest test of a network: *can it learn twenty images by heart?* If not, do not start a long run. With
# 60 steps it can. How many of the 450 test images, none of which it has seen, does it then get right?

# %% kind="predict"
guess = predict("test accuracy after twenty images", "%")

# %%
x, y = normalize(digits.X_train[:20]), digits.y_train[:20]
optimizer = tb.optim.AdamW(network.parameters(), lr=3e-3)
losses = [train_step(network, optimizer, x, y) for _ in range(60)]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}")

# %% kind="answer"
test = network(normalize(digits.X_test)).numpy().argmax(axis=1)
right = 100 * (test == digits.y_test).mean()
print(f"measured: {right:.1f} %; guessing gets 10 %")
answer("test accuracy after twenty images", 34, measured=right, tolerance=10, unit=" %")
assert losses[-1] < 0.05

# %% [markdown]
# ## 7. `fit`
#
# `tb.ViT` wraps network, optimiser, learning-rate schedule and normalisation as a scikit-learn classifier, and takes
# such a step some 300 times. `eval_set` only measures; nothing is chosen by it. After how many passes over the 1,347
# training images, called *epochs*, is it right on 90 % of the test images?

# %% kind="predict"
guess = predict("epochs until 90 %", choices=["fewer than 6", "6 to 10", "more than 10"])

# %%
model = tb.ViT(bits=32, dim=64, depth=2, epochs=15, label_smoothing=0, random_state=0, verbose=0)
model.fit(digits.X_train, digits.y_train, eval_set=(digits.X_test, digits.y_test))
accuracy = model.score(digits.X_test, digits.y_test)

# %% kind="answer"
passed = next(i + 1 for i, a in enumerate(model.history_["val_accuracy"]) if a > 0.9)
print(f"{passed} epochs; after all of them {accuracy:.1%}")
found = "fewer than 6" if passed < 6 else "6 to 10" if passed < 11 else "more than 10"
answer("epochs until 90 %", "fewer than 6", measured=found)
assert accuracy > 0.94

# %% kind="see"
tb.viz.plot_history(model)

# %% [markdown]
# The training loss of an epoch is a mean over all its steps, in which the network was still getting better, and the
# test loss (dashed) is measured at its end: in the first epochs the test loss may lie below. That is no mistake. Later
# it is the other way round, since the training images are learnt by heart. Compare only what was measured alike.
#
# Which digits are taken for which others? Say two pairs before you look.

# %% kind="see"
guesses = model.predict(digits.X_test)
tb.viz.plot_confusion(digits.y_test, guesses)

# %% kind="see"
wrong = np.flatnonzero(guesses != digits.y_test)
print(f"{len(wrong)} of {len(guesses)} wrong; the first ones:")
tb.viz.plot_predictions(model, digits.X_test, digits.y_test, images=list(wrong[:4]))

# %% [markdown]
# ## 8. Is it any good?
#
# A number means something beside another number. Two rivals: logistic regression on the 64 pixels, one linear layer and
# a softmax; and no training at all, a vote of the three training images that are most like the new one. Who is best?

# %% kind="predict"
guess = predict("the best on the digits", choices=["the ViT", "logistic regression", "the vote of three images"])

# %%
flat_train, flat_test = digits.X_train.reshape(-1, 64) / 255, digits.X_test.reshape(-1, 64) / 255
rivals = {"regression": LogisticRegression(max_iter=1000), "vote": KNeighborsClassifier(3)}
scores = {name: rival.fit(flat_train, digits.y_train).score(flat_test, digits.y_test) for name, rival in rivals.items()}

# %% kind="answer"
scores["ViT"] = accuracy
for name, score in scores.items():
    error = math.sqrt(score * (1 - score) / len(digits.y_test))
    print(f"{name:12} {score:.1%} +- {error:.1%}")
answer("the best on the digits", "the vote of three images")
assert max(scores.values()) - min(scores.values()) < 0.05
assert scores["ViT"] < scores["vote"] + 0.02

# %% [markdown]
# On 1,347 tiny grey images, comparing pixels is hard to beat, and with 450 test images half a point is luck: the
# standard error of an accuracy $a$ is $\sqrt{a(1-a)/n}$. The digits are our laboratory animal, small enough that every
# experiment takes seconds. They are not a reason to use a Transformer; large, varied images are.
#
# ## 9. A look inside
#
# Which patches do the tokens draw on? *Rollout* multiplies the shares of the layers, with the skip connection as a
# second path. The picture is the library's; lesson 09 explains and doubts it.

# %% kind="see"
tb.viz.attention(model, digits.X_test[:3]).plot()

# %% [markdown]
# ## What you take along
#
# A ViT is: cut, project, add positions; blocks of "talk" and "think", each behind a layer norm and beside a skip
# connection; average; classify. Nearly all parameters lie in four linear layers a block: who shrinks those has shrunk
# the network. Before a long run: the first loss is $\ln C$, and twenty images can be learnt by heart.
#
# **You can now**: write every operation of a Vision Transformer and its gradient; count its parameters on paper; train
# it with a step of your own, and judge the result by its rivals.

# %%
keep(layer_norm, layer_norm_backward, gelu, gelu_backward, cross_entropy, cross_entropy_backward, train_step)
print(parts())

# %% kind="see"
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/04](solutions/04_vision_transformer.ipynb).
#
# 1. (10 min) Work out the number of parameters of ViT-Base (dim 768, depth 12, MLP ratio 4, patches of 16 x 16 x 3
#    pixels, 224 x 224, class token, 1,000 classes) by hand. Then build it and count.
# 2. (20 min) Train with `depth=0`: embed, average, classify. Why is it so much worse than logistic regression, although
#    it has more parameters? Hand in one sentence and a check of it.
# 3. (30 min) Remove the skip connections: replace `Block.forward` by one without the additions, train at depths 1, 2
#    and 4 and compare.
# 4. (30 min) Draw the accuracy against the number of training images (20, 100, 500, 1,347) for the ViT, logistic
#    regression and the vote, three random draws each. Who wins where?
# 5. (an evening) Move the norms behind the additions (post-norm, as in Vaswani et al. 2017). Find the largest learning
#    rate that still trains, for both variants at depth 6. What does it say about the gradient that reaches the first
#    block?
