# %% [markdown]
# # 04 A Vision Transformer on digits
#
# Tokens (tutorial 02), attention (tutorial 03), and a gradient for everything (tutorial 01): the network is the sum of
# the parts. Here you count its parameters by hand, watch one image go through it, train it twice, once with a loop that
# you write and once with `fit`, and compare it with methods from the time before networks, which is a healthy habit.

# %%
import inspect
import math

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.models import VisionTransformer
from tinybitvit.models.vit import Block
from tinybitvit.optim import AdamW
from tinybitvit.viz.figure import PALETTE, new_figure

digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
print(digits)

# %% [markdown]
# ## 1. The whole network in four lines
#
# $$\begin{aligned}
# z_0 &= [x^1 E; \dots; x^T E] + E_{\text{pos}} && \text{(embedding)} \\
# z'_l &= \text{MSA}(\text{LN}(z_{l-1})) + z_{l-1} && \text{(tokens talk to each other)} \\
# z_l &= \text{MLP}(\text{LN}(z'_l)) + z'_l && \text{(each token thinks alone)} \\
# y &= \text{head}(\text{mean}_t\, \text{LN}(z_L)) && \text{(vote)}
# \end{aligned}$$
#
# These are equations 1 to 4 of Dosovitskiy et al. 2020 (arXiv 2010.11929), with a mean over the patches where the paper
# reads a class token. The two middle lines are a *block*:

# %%
print(inspect.getsource(Block))

# %% [markdown]
# Both branches are *added* to what was there. The derivative of $z + f(z)$ is $1 + f'(z)$: whatever $f$ does, a
# gradient of 1 gets through, from the loss to the first layer. (`ls1` and `ls2` are absent here, `drop` does nothing.)
#
# Follow the shapes of one image through the network. **Predict** them before you run the cell: 8 x 8 pixels, patches of
# 2 x 2, dim 32, 4 heads, an MLP twice as wide, 2 blocks, 10 classes.

# %%
rng = np.random.default_rng(0)
network = VisionTransformer(8, 2, in_channels=1, num_classes=10, dim=32, depth=2, heads=4, mlp_ratio=2, rng=rng)

shapes = {}


def note_shapes(name, module):
    def hook(module, inputs, output):
        shapes[name or "(all)"] = output.shape

    return module.register_forward_hook(hook)


handles = [note_shapes(name, module) for name, module in network.named_modules()]
network(normalize(digits.X_test[:1]))
for handle in handles:
    handle.remove()
for name in ("embed.patch", "embed", "blocks.0.attn.qkv", "blocks.0.attn.attend", "blocks.0.attn"):
    print(f"{name:22} {shapes[name]}")
for name in ("blocks.0.mlp.fc1", "blocks.0.mlp", "blocks.0", "blocks.1", "norm", "(all)"):
    print(f"{name:22} {shapes[name]}")
assert shapes["blocks.0.attn.attend"] == (1, 4, 16, 16)  # 4 heads, 16 tokens look at 16 tokens
assert shapes["(all)"] == (1, 10)

# %% [markdown]
# ## 2. Count
#
# A linear layer from $a$ to $b$ has $ab + b$ numbers, a LayerNorm over $d$ has $2 d$. With $d$ = dim, $r$ = MLP
# ratio and $L$ blocks, a block has
#
# $$\underbrace{3 d^2 + 3 d}_{\text{qkv}} + \underbrace{d^2 + d}_{\text{proj}}
# + \underbrace{2 r d^2 + r d + d}_{\text{MLP}} + \underbrace{4 d}_{\text{2 norms}} .$$
#
# **Predict**: which part holds most of the parameters? And which share of them lies in qkv, proj, fc1 and fc2, the
# layers that tutorials 05 and 06 are going to squeeze?

# %%
d, r, L, T = 32, 2, 2, 16
by_hand = {
    "patch embedding": 4 * d + d,
    "positions": T * d,
    "qkv": L * (3 * d * d + 3 * d),
    "proj": L * (d * d + d),
    "MLP": L * (2 * r * d * d + r * d + d),
    "norms": L * 4 * d + 2 * d,
    "head": 10 * d + 10,
}
counted = sum(p.size for p in network.parameters())
print(f"{counted:,} parameters counted, {sum(by_hand.values()):,} by hand")
assert counted == sum(by_hand.values())

fig = new_figure(8, 2.8)
ax = fig.subplots()
low_bit = ("qkv", "proj", "MLP")
bars = ax.barh(list(by_hand), list(by_hand.values()), color=[PALETTE[name not in low_bit] for name in by_hand])
ax.bar_label(bars, fmt="{:,.0f}", padding=3)
ax.invert_yaxis()
share = sum(by_hand[name] for name in low_bit) / counted
ax.set(xlabel="parameters", title=f"{share:.0%} lie in the linear layers of the blocks (blue)", xlim=(0, 10_500))
assert share > 0.9
fig

# %% [markdown]
# ## 3. Before it has learnt anything
#
# **Predict** the cross-entropy of the untrained network, in nats. (It knows nothing about ten classes. What is $-\ln$
# of the probability that it gives the right one?)

# %%
x, y = normalize(digits.X_train[:256]), digits.y_train[:256]
start = F.cross_entropy(network(x), y).item()
print(f"loss {start:.3f}, ln 10 = {math.log(10):.3f}")
assert abs(start - math.log(10)) < 0.5

# %% [markdown]
# A first loss far from $\ln C$ is the cheapest bug report that you will ever get: labels in the wrong order, a missing
# normalisation, weights that are too large.
#
# ## 4. The loop, by hand
#
# Four lines, the same as in PyTorch. The second cheapest test: *can it learn twenty images by heart?* If not, do not
# start a long run.
#
# **Predict**: what loss can be reached on 20 images, in the best case?

# %%
x, y = normalize(digits.X_train[:20]), digits.y_train[:20]
optimizer = AdamW(network.parameters(), lr=3e-3)
losses = []
for _ in range(60):
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}")
assert losses[-1] < 0.05

test = network(normalize(digits.X_test)).numpy().argmax(axis=1)
print(f"20 images by heart: {(test == digits.y_test).mean():.0%} of the test images right")
assert 0.15 < (test == digits.y_test).mean() < 0.8

# %% [markdown]
# Learnt by heart, and on images that it has never seen still better than guessing (10 %).
#
# ## 5. `fit`
#
# `tb.ViT` wraps network, optimiser, learning-rate schedule, augmentation and normalisation as a scikit-learn
# classifier. `eval_set` only measures; nothing is chosen by it.
#
# **Predict**: after how many epochs does it pass 90 %? Will the training loss go to 0 as above? (Read `label_smoothing`
# and `augment` in `help(tb.ViT)`.)

# %%
model = tb.ViT(bits=32, dim=64, depth=2, epochs=15, random_state=0, verbose=0)
model.fit(digits.X_train, digits.y_train, eval_set=(digits.X_test, digits.y_test))
accuracy = model.score(digits.X_test, digits.y_test)
passed = next(i + 1 for i, a in enumerate(model.history_["val_accuracy"]) if a > 0.9)
print(f"test accuracy {accuracy:.1%}; above 90 % after {passed} epochs; training loss {model.history_['loss'][-1]:.2f}")
assert accuracy > 0.95
assert model.history_["loss"][-1] > 0.4  # label smoothing: certainty is punished, 0 cannot be reached
tb.viz.plot_history(model)

# %% [markdown]
# The *validation* loss (dashed) may lie below the training loss. That is no mistake: training images are shifted at
# random, targets are smoothed, and the training figure is a mean over an epoch in which the network was still
# getting better. Compare only what was measured alike.
#
# **Predict**: which digits are taken for which others?

# %%
guesses = model.predict(digits.X_test)
tb.viz.plot_confusion(digits.y_test, guesses)

# %%
wrong = np.flatnonzero(guesses != digits.y_test)
print(f"{len(wrong)} of {len(guesses)} wrong; the first ones:")
tb.viz.plot_predictions(model, digits.X_test, digits.y_test, images=[*range(8 - min(len(wrong), 4)), *wrong[:4]])

# %% [markdown]
# ## 6. Is it any good?
#
# A number means something beside another number.
#
# **Predict** the order: logistic regression on the 64 pixels, the 3 nearest neighbours (no training at all), the ViT.

# %%
flat_train, flat_test = digits.X_train.reshape(-1, 64) / 255, digits.X_test.reshape(-1, 64) / 255
scores = {
    "logistic regression": LogisticRegression(max_iter=1000).fit(flat_train, digits.y_train),
    "3 nearest neighbours": KNeighborsClassifier(3).fit(flat_train, digits.y_train),
}
scores = {name: rival.score(flat_test, digits.y_test) for name, rival in scores.items()} | {"ViT": accuracy}
for name, score in scores.items():
    error = math.sqrt(score * (1 - score) / len(digits.y_test))
    print(f"{name:22} {score:.1%} +- {error:.1%}")
assert max(scores.values()) - min(scores.values()) < 0.05
assert scores["ViT"] < scores["3 nearest neighbours"] + 0.02

# %% [markdown]
# On 1,347 tiny grey images, comparing pixels is hard to beat, and with 450 test images half a point is luck: the
# standard error of an accuracy $a$ is $\sqrt{a(1-a)/n}$. The digits are our laboratory animal, small enough that every
# experiment takes seconds. They are not a reason to use a Transformer; large, varied images are.
#
# ## 7. A look inside
#
# Which patches do the tokens draw on? *Rollout* multiplies the shares of the layers, with the residual connection as a
# second path. The picture is the library's; tutorial 09 explains and doubts it.

# %%
tb.viz.attention(model, digits.X_test[:3]).plot()

# %% [markdown]
# ## What you take along
#
# - A ViT is: cut, project, add positions; blocks of "talk" and "think"; average; classify.
# - Nearly all parameters lie in four linear layers a block. Whoever shrinks those has shrunk the network.
# - Before a long run: the first loss is $\ln C$, and twenty images can be learnt by heart.
#
# ## Exercises
#
# 1. Work out the number of parameters of ViT-Base (dim 768, depth 12, MLP ratio 4, patches of 16 x 16 x 3 pixels, 224 x
#    224, class token, 1,000 classes). Then build it and count. (86.6 million.)
# 2. Train with `depth=0`: embed, average, classify. Why is it so much worse than logistic regression, although it has
#    more parameters?
# 3. Remove the residual connections: write a Block with `x = y`, train it at depths 1, 2, 4, 8 and compare.
# 4. Draw the accuracy against the number of training images (20, 50, 100, ..., 1,347) for the ViT, logistic regression
#    and nearest neighbours, five random draws each, with error bars. Who wins where?
# 5. *(harder)* Move the norms behind the additions (post-norm, as in Vaswani et al. 2017). Find the largest learning
#    rate that still trains, for both variants at depth 8. What does a warm-up change?
