# %% [markdown]
# # 09 Looking inside: attention at 32, 1.58 and 1 bit
#
# A ternary network reads the digits almost as well as the one it came from. Does it also *look* at the same pixels?
# That question is easy to ask and easy to answer wrongly. You need three things: a picture, a number for "different",
# and a *control*, because two networks differ for many reasons, and the number of bits is only one of them. Here you
# write the pictures yourself, and then test whether they show what a prediction depends on.
#
# You need lessons 03 (attention) and 04 (a Vision Transformer); 08 says where the low-bit networks come from.

# %%
import inspect
import math
import tempfile
import time
from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.course import answer, check, keep, parts, predict, solution, yours
from tinybitvit.ops.norm import softmax_array
from tinybitvit.train import Trainer
from tinybitvit.viz import measures
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. A number for "different"
#
# A row of an attention map is a list of shares that sum to 1: where one token draws its values from. **Entropy** says
# how widely it looks, $H(p) = -\sum_j p_j \log_2 p_j$. All on one token: 0 bits. Four tokens evenly: 2 bits.
# $(\frac12, \frac14, \frac14)$: $\frac12 \cdot 1 + \frac14 \cdot 2 + \frac14 \cdot 2 = 1\frac12$ bits.
#
# **Divergence** says how far two rows are apart. Jensen-Shannon's (Lin 1991) is the entropy of their mean minus the
# mean of their entropies: 0 for equal rows, 1 bit for rows with nothing in common. What is it for
# $p = (\frac12, \frac12, 0)$ and $q = (\frac12, 0, \frac12)$?

# %% kind="predict"
guess = predict("divergence of p and q", "bits")


# %% kind="naive"
def entropy(p):
    """In bits, of one row of shares."""
    bits = 0.0
    for share in p:
        if share > 0:
            bits -= share * math.log2(share)
    return bits


def divergence(p, q):
    """Jensen-Shannon, in bits, of two rows."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


# %% kind="answer"
p, q = np.array([1, 1, 0]) / 2, np.array([1, 0, 1]) / 2
answer("divergence of p and q", 0.5, measured=divergence(p, q), tolerance=1e-12, unit=" bits")
assert entropy((p + q) / 2) == 1.5
assert entropy(p) == entropy(q) == 1
assert measures.js_divergence(p, q) == divergence(p, q)  # the library's: the same for whole arrays of rows

# %% [markdown]
# ## 2. Where a token draws from
#
# Two tokens, two layers. In the first layer both look at token 0, in the second both look at token 1:
#
# $$A_1 = \begin{pmatrix} 1 & 0 \\ 1 & 0 \end{pmatrix}, \qquad A_2 = \begin{pmatrix} 0 & 1 \\ 0 & 1 \end{pmatrix}.$$
#
# A layer adds its average to what is there already. So take it for half a step of attention and half a step of staying.
# In the last layer token 1 looks at itself only. How much of it stems from *token 0* all the same?

# %% kind="predict"
guess = predict("what token 1 has of token 0", "%")


# %% kind="naive"
def share(maps, i, j):
    """What token i has of the input token j, for maps (T, T): the sum over all paths from i down to j."""
    if not maps:
        return float(i == j)
    *below, a = maps
    total = 0.0
    for k in range(len(a)):
        step = (a[i, k] + (i == k)) / 2
        total += step * share(below, k, j)
    return total


# %% [markdown]
# The function goes down every path: from token $i$ to some $k$, from there to some $l$, and so on; along a path the
# shares multiply, and over paths they add up. With 65 tokens and 12 layers there are $65^{11}$ paths between two
# tokens. But "multiply along, add over $k$" is what a product of matrices does, and what lies below $k$ need not be
# worked out again for each $i$. With $R_0 = I$, that is **attention rollout** (Abnar & Zuidema 2020, arXiv 2005.00928):
#
# $$R_\ell = \tfrac12 (I + A_\ell) \, R_{\ell - 1} .$$


# %% kind="your-turn"
@yours("9.1")
def attention_rollout(maps):
    """Shares (N, T, T) of the input tokens in every token, for maps (N, T, T) from the first layer to the last."""
    # the one map [[[1, 0], [1, 0]]] gives [[[1, 0], [0.5, 0.5]]]
    ...  # np.eye(T), and @ multiplies all N matrices at once


check(attention_rollout)


# %% kind="solution"
@solution("9.1")
def attention_rollout(maps):
    """Shares (N, T, T) of the input tokens in every token, for maps (N, T, T) from the first layer to the last."""
    identity = np.eye(maps[0].shape[-1])
    r = identity
    for a in maps:
        r = (identity + a) / 2 @ r
    return r


# %% kind="answer"
A1, A2 = np.array([[1.0, 0], [1, 0]]), np.array([[0.0, 1], [0, 1]])
answer("what token 1 has of token 0", 50, measured=100 * share([A1, A2], 1, 0), tolerance=1e-9, unit="%")
assert attention_rollout([A1[None], A2[None]])[0].tolist() == [[0.75, 0.25], [0.5, 0.5]]

several = list(np.random.default_rng(0).dirichlet(np.ones(9), size=(3, 9)))  # 3 layers, 9 tokens
start = time.perf_counter()
by_paths = [[share(several, i, j) for j in range(9)] for i in range(9)]
middle = time.perf_counter()
by_products = attention_rollout([a[None] for a in several])[0]
end = time.perf_counter()
assert np.allclose(by_paths, by_products)
print(f"3 layers, 9 tokens: all paths {1e3 * (middle - start):.0f} ms, products {1e3 * (end - middle):.2f} ms")

# %% [markdown]
# Half of token 1 *is* token 0 by then. A map of the last layer alone does not show that.
#
# ## 3. Five networks
#
# One token for each pixel of the 8 x 8 digits, so that the maps are as fine as the images, and a class token that
# collects.
#
# - **32 bits**: the original.
# - **1.58 bits** and **1 bit**: converted from it and repaired with the original as teacher (lesson 08).
# - **32 bits, trained on**: the first *control*. As many further epochs with the same teacher, but no quantisation.
# - **32 bits, other seed**: the second control. The recipe of the original, other random weights at the start.

# %%
digits = tb.data.load_digits()
X, y = digits.X_test[:60], digits.y_test[:60]
size = {"patch_size": 1, "dim": 32, "depth": 2, "heads": 4, "pool": "cls", "lr": 1e-2, "augment": None, "verbose": 0}


def fit(**options):
    return tb.ViT(**size, **options).fit(digits.X_train, digits.y_train)


original = fit(bits=32, epochs=9, random_state=0)
models = {"32 bits": original}
for name, bits in {"1.58 bits": 1.58, "1 bit": 1, "32 bits, trained on": 32}.items():
    models[name] = fit(bits=bits, epochs=4, random_state=2, init_from=original, distill_from=original)
models["32 bits, other seed"] = fit(bits=32, epochs=9, random_state=1)

# %% kind="see"
for name, model in models.items():
    print(f"{name:20} test accuracy {model.score(digits.X_test, digits.y_test):.3f}")
    assert model.score(digits.X_test, digits.y_test) > 0.8

# %% [markdown]
# ## 4. Recording
#
# How does one get at the maps of a network that is trained? First by running its code once more, up to the softmax:


# %% kind="naive"
def maps_by_hand(network, x):
    """The shares (N, heads, T, T) of every layer."""
    found = []
    with tb.no_grad():
        h = network.tokens(x)
        for block in network.blocks:
            qkv = block.attn.qkv(block.norm1(h)).numpy()
            n, t, width = qkv.shape
            heads = block.attn.heads
            q, k, _ = qkv.reshape(n, t, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
            found.append(softmax_array(np, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])))
            h = block(h)
    return found


# %% [markdown]
# That works, and it is a copy of the network that will be wrong as soon as somebody changes the network. The library
# computes the shares in a module of their own, and a module can have a **hook**: a function that sees what comes out.

# %%
print(inspect.getsource(tb.nn.Attend))
record = tb.viz.attention(original, X, target="predicted")
print(record)

# %% [markdown]
# Now to what the class token looks at. A digit is about one half ink and one half paper. In the first layer, does it
# look more at an ink pixel or at a paper pixel? And in the second?

# %% kind="predict"
guess = predict("the first layer looks at", choices=["ink", "paper", "both alike"])
guess = predict("the second layer looks at", choices=["ink", "paper", "both alike"])

# %% kind="answer"
ink = X[..., 0] > 8
for name in ("32 bits", "1.58 bits", "32 bits, other seed"):
    seen = tb.viz.attention(models[name], X)
    over = [seen.image_map("mean", layer=n)[ink].mean() / seen.image_map("mean", layer=n)[~ink].mean() for n in (0, 1)]
    print(f"{name:20} ink gets {over[0]:.1f} times the share of paper in the first layer, {over[1]:.1f} in the second")
    if name == "32 bits":
        answer("the first layer looks at", "ink", measured="ink" if over[0] > 1.5 else "paper")
        answer("the second layer looks at", "paper", measured="paper" if over[1] < 0.85 else "ink")
shares = maps_by_hand(original.model_, original.normalize_(X))
assert all(np.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(shares, record.maps, strict=True))
assert np.allclose(record.maps[0].sum(axis=-1), 1, atol=1e-5)
ours = attention_rollout([record.layer(n) for n in (0, 1)])
assert np.allclose(ours, record.rollout())  # the library's, which can leave layers or weak links out

# %% [markdown]
# Three images that the original reads rightly: the second layer's map, your rollout, and one more that comes next. The
# class token looks at the ink first, and then at the paper around it: that there is no ink *is* information.

# %% kind="see"
read = np.flatnonzero(original.predict(X) == y)[:3]
assert (record.predictions[read] == y[read]).all()
record.plot(images=list(read), stretch=True)

# %% [markdown]
# Every head by itself. An even spread over 65 tokens would have $\log_2 65 = 6.02$ bits.

# %% kind="see"
for layer, row in enumerate(record.entropy().mean(axis=0)):
    print(f"layer {layer}: entropy of the heads", " ".join(f"{bits:.2f}" for bits in row), "bits")
assert (record.entropy() <= np.log2(65) + 1e-6).all()
tb.viz.plot_heads(record, image=int(read[0]))

# %% [markdown]
# ## 5. Only the links that help
#
# Rollout counts each link, whether or not it has to do with the answer. So ask the network: by how much does the logit
# of the class fall when a link is cut? Take a link with a share of 0.2, and a logit that rises by 3 for each unit of
# that share.

# %% kind="predict"
guess = predict("the logit falls by", choices=[0.6, 2.8, 15])

# %% kind="answer"
answer("the logit falls by", 0.6, measured=0.2 * 3, tolerance=1e-12)

# %% [markdown]
# Share times slope: $A_{ij} \, \partial y / \partial A_{ij}$, to the first order. Cut every link of a small map, one
# after the other, and compare.


# %% kind="naive"
def logit(a, v, w):
    """A number that depends on a map a (T, T): the tokens v are averaged, bent, and summed up with weights w."""
    return (F.gelu(a @ v) * w).sum()


rng = np.random.default_rng(0)
a, v, w = rng.dirichlet(np.ones(4), size=4), rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
falls = np.zeros((4, 4))
for i in range(4):
    for j in range(4):
        cut = a.copy()
        cut[i, j] = 0
        falls[i, j] = float(logit(tb.Tensor(a), tb.Tensor(v), tb.Tensor(w)).data) - float(
            logit(tb.Tensor(cut), tb.Tensor(v), tb.Tensor(w)).data
        )

# %% kind="see"
leaf = tb.Tensor(a, requires_grad=True)
logit(leaf, tb.Tensor(v), tb.Tensor(w)).backward()
print(f"cut, 16 runs:\n{falls.round(2)}\n\nshare x slope, one backward pass:\n{(a * leaf.grad).round(2)}")
assert np.corrcoef(falls.ravel(), (a * leaf.grad).ravel())[0, 1] > 0.9

# %% [markdown]
# One backward pass instead of a run for each link, and nearly the same. This is what **gradient rollout** is made of
# (Chefer et al. 2021, arXiv 2103.15679). Links with a negative product speak for *other* classes: leave them out. Then
# take the mean over the heads, and go up the layers. Token $i$ keeps what it has, and adds what it draws through the
# links that help:
#
# $$C_\ell = \mathrm{mean}_h \max\!\left(A_\ell \circ \frac{\partial y}{\partial A_\ell},\, 0\right), \qquad
# R_\ell = R_{\ell-1} + C_\ell R_{\ell-1}, \qquad R_0 = I .$$
#
# At the end take off the $I$, which no attention has brought, and divide each row by its sum.


# %% kind="your-turn"
@yours("9.2")
def gradient_rollout(maps, gradients):
    """R - I with rows divided by their sums (N, T, T); maps, gradients: (N, heads, T, T), from the first layer up."""
    # one layer, one head: A = [[0.5, 0.5], [0.2, 0.8]], dy/dA = [[0, 2], [-1, 1]] give [[0, 1], [0, 1]]
    ...  # a row of zeros stays one: divide by np.maximum(sums, 1e-30)


check(gradient_rollout)


# %% kind="solution"
@solution("9.2")
def gradient_rollout(maps, gradients):
    """R - I with rows divided by their sums (N, T, T); maps, gradients: (N, heads, T, T), from the first layer up."""
    identity = np.eye(maps[0].shape[-1])
    r = identity
    for a, g in zip(maps, gradients, strict=True):
        helpful = np.maximum(a * g, 0).mean(axis=1)
        r = r + helpful @ r
    drawn = r - identity
    return drawn / np.maximum(drawn.sum(axis=-1, keepdims=True), 1e-30)


# %% [markdown]
# The library's differs in one thing: a token that no link helps keeps itself, so that each row sums to 1. The last
# column of the picture above is this map.

# %%
print(inspect.getsource(measures.gradient_rollout))

# %% kind="see"
helped = gradient_rollout([m.astype(float) for m in record.maps], record.gradients)
assert np.allclose(helped[:, 0, 1:].reshape(-1, 8, 8), record.image_map("gradient"), atol=1e-9)
both = np.corrcoef(helped[:, 0, 1:].ravel(), record.image_map("rollout").ravel())[0, 1]
print(f"correlation of gradient rollout and rollout over all pixels: {both:.2f}")

# %% [markdown]
# ## 6. The comparison, and its control
#
# How far is each of the other four networks from the original, as the mean divergence of all rows of all heads? Which
# one is farthest?
#
# There is a trap in that question. Networks that were trained apart number their heads at random, so "head 3 against
# head 3" means nothing. The library first *matches* the heads of each layer, so that the sum of divergences is least
# (Kuhn 1955). Whose heads will not keep their places?

# %% kind="predict"
others = ["1.58 bits", "1 bit", "32 bits, trained on", "32 bits, other seed"]
guess = predict("farthest from the original", choices=["fewest bits", "trained on", "another seed"])
guess = predict("whose heads change places", choices=["fewest bits", "trained on", "another seed"])

# %% kind="answer"
comparison = tb.viz.compare_attention(models, X, y)
print(comparison)
distance = {name: float(comparison.divergence[name].mean()) for name in others}
for name in others:
    print(f"{name:20} head of the original -> matched head: {comparison.matches[name].tolist()}")
farthest = max(others, key=distance.get)
answer("farthest from the original", "another seed", measured={others[3]: "another seed"}.get(farthest, farthest))
moved = [name for name in others if (comparison.matches[name] != np.arange(4)).any()]
answer("whose heads change places", "another seed", measured="another seed" if moved == others[3:] else str(moved))
for name in others[:3]:
    assert distance[name] < distance["32 bits, other seed"] / 1.5
assert distance["32 bits, trained on"] > distance["1.58 bits"] / 5
assert measures.match_heads(np.array([[3.0, 1], [0, 2]])).tolist() == [1, 0]  # 1 + 0 is less than 3 + 2

# %% kind="see"
figure = new_figure(5, 2.2)
ax = figure.subplots()
ax.barh(others[::-1], [distance[name] for name in others[::-1]], color=[PALETTE[1], PALETTE[1], *[PALETTE[0]] * 2])
ax.set(xlabel="mean divergence from the original (bits)")
figure

# %% [markdown]
# Without the controls we would have written: "quantisation to 1.58 bits moves attention by 0.1 bits". But training on
# *without* quantisation moves it, too; only what goes beyond that may be put down to the bits. And the *seed* does more
# than the bits: two networks with 32 bits each read the same digits, almost equally well, by looking at different
# pixels, while the ternary network still looks where the original looks. Had we compared a ternary network trained from
# scratch with the original, we would have seen a large difference, and blamed it on quantisation.

# %% kind="see"
pair = {"32 bits": original, "1.58 bits": models["1.58 bits"]}
tb.viz.compare_attention(pair, X[read], y[read]).plot(stretch=True)

# %% kind="see"
pair = {"32 bits": original, "32 bits, other seed": models["32 bits, other seed"]}
tb.viz.compare_attention(pair, X[read], y[read]).plot(stretch=True)

# %% [markdown]
# ## 7. Which tokens are alike?
#
# Attention says who looks at whom. What do the tokens *hold*? Two that point the same way are treated alike by the
# layers that follow. **Cosine similarity** measures it: $x \cdot y / (|x| \, |y|)$. What is it for $(3, 4)$ and
# $(4, 3)$? And are tokens more alike after the second layer than after the first, on the average?

# %% kind="predict"
guess = predict("cosine of (3, 4) and (4, 3)", choices=[0.48, 0.96, 24])
guess = predict("after the second layer the mean cosine is", choices=["higher", "lower", "about the same"])


# %% kind="naive"
def similarity_by_loops(tokens):
    """Cosines (T, T) of tokens (T, D)."""
    found = np.zeros((len(tokens), len(tokens)))
    for i, x in enumerate(tokens):
        for j, z in enumerate(tokens):
            product = sum(a * b for a, b in zip(x, z, strict=True))
            lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in z))
            found[i, j] = product / lengths
    return found


# %% [markdown]
# Each length is worked out 65 times. Divide every token by its length *once*; then a cosine is a product, and one
# token with all others is a matrix times a vector.


# %% kind="your-turn"
@yours("9.3")
def token_similarity(tokens, i):
    """The cosines (T,) of token i with every token of (T, D); a token of zeros is similar to none."""
    # of [[3, 4], [6, 8], [-4, 3], [0, 0]] and i = 0 they are [1, 1, 0, 0]
    ...  # np.linalg.norm(tokens, axis=1, keepdims=True)


check(token_similarity)


# %% kind="solution"
@solution("9.3")
def token_similarity(tokens, i):
    """The cosines (T,) of token i with every token of (T, D); a token of zeros is similar to none."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
    return unit @ unit[i]


# %% kind="answer"
by_hand = token_similarity(np.array([[3.0, 4.0], [4.0, 3.0]]), 0)[1]
answer("cosine of (3, 4) and (4, 3)", 0.96, measured=by_hand, tolerance=1e-9)
means = [float(record.similarity(layer).mean()) for layer in (0, 1)]
rises = "higher" if means[1] > means[0] + 0.05 else "not higher"
answer("after the second layer the mean cosine is", "higher", measured=rises)
patches = [tokens[:, 1:].astype(float) for tokens in record.tokens]
for layer, tokens in enumerate(patches):
    alike = [np.array([token_similarity(image, i) for i in range(64)]) for image in tokens[:20]]
    on = ink[:20].reshape(20, 64)
    inside = np.mean([s[np.ix_(o, o)].mean() for s, o in zip(alike, on, strict=True)])
    across = np.mean([s[np.ix_(o, ~o)].mean() for s, o in zip(alike, on, strict=True)])
    print(f"layer {layer}: mean cosine {means[layer]:.2f}; ink with ink {inside:.2f}, ink with paper {across:.2f}")
    assert inside > across + 0.15
assert np.allclose(similarity_by_loops(patches[0][0]), alike_0 := measures.cosine_similarity(patches[0][0]))
assert np.allclose(token_similarity(patches[0][0], 5), alike_0[5])

# %% [markdown]
# Ink is like ink, more than like paper: the network has sorted the pixels. But mind the *level*. It rises from layer to
# layer because all tokens come to share a direction, and not because they come to mean the same thing. So compare
# pixels within one map, never the level of two maps.
#
# `tb.viz.similarity` draws it for one pixel, the framed one. `tb.viz.components` asks without a pixel: three directions
# in which the tokens differ most, as red, green and blue.

# %% kind="see"
brightest = np.unravel_index(X[read[0], :, :, 0].argmax(), (8, 8))
alike = tb.viz.similarity(original, X[read])
assert np.allclose(alike.maps[0][0][6, 1:], token_similarity(record.tokens[0][read[0]].astype(float), 6)[1:], atol=1e-5)
alike.plot(query=tuple(int(i) for i in brightest), images=[0, 1], stretch=True)

# %% kind="see"
tb.viz.components(original, X[read]).plot(layer=0)

# %% [markdown]
# ## 8. Attention is not explanation
#
# The maps show from where values are *averaged*. Do they show what the prediction *depends* on? That can be measured:
# cover one pixel, and see how much the probability of the class falls (*occlusion*, Zeiler & Fergus 2014).


# %%
def probability_of(c, model=original):
    """A function of normalised images (N, H, W, C): the probability of class c in each, (N,)."""
    network = Trainer(model.model_, workers=1)
    return lambda prepared: softmax_array(np, network.predict(prepared).astype(float))[:, c]


# %% kind="naive"
def cover_one_by_one(probability, image, fill):
    """By how much the probability falls when a pixel of the image (H, W, C) is covered: (H, W)."""
    drops = np.zeros(image.shape[:2])
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            covered = image.copy()
            covered[row, column] = fill
            drops[row, column] = probability(image[None])[0] - probability(covered[None])[0]
    return drops


# %% [markdown]
# It asks the network 128 times, for one image at a time. A network is much faster with many images at once: make all
# the covered copies first. And let a patch be larger than a pixel, for photographs.


# %% kind="your-turn"
@yours("9.4")
def occlusion_map(probability, image, patch, fill):
    """By how much probability(images (N, H, W, C)) -> (N,) falls when a patch of image (H, W, C) is covered with fill.

    patch: its side in pixels, a divisor of H and W. Returns (H / patch, W / patch).
    """
    # probability = lambda images: images.sum(axis=(1, 2, 3)), an image of ones (2, 4, 1), patch 2, fill 0: [[4, 4]]
    ...  # np.repeat(image[None], count, axis=0) makes copies


check(occlusion_map)


# %% kind="solution"
@solution("9.4")
def occlusion_map(probability, image, patch, fill):
    """By how much probability(images (N, H, W, C)) -> (N,) falls when a patch of image (H, W, C) is covered with fill.

    patch: its side in pixels, a divisor of H and W. Returns (H / patch, W / patch).
    """
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    covered = np.repeat(image[None], rows * columns, axis=0)
    for p in range(rows * columns):
        top, left = patch * (p // columns), patch * (p % columns)
        covered[p, top : top + patch, left : left + patch] = fill
    return probability(image[None])[0] - probability(covered).reshape(rows, columns)


# %% [markdown]
# Then the test. Cover 15 % of the pixels of each image, and count how many predictions stay as they were. Choose them
# (a) at random, (b) the brightest ones, for which no network is needed, (c) where the rollout is largest, (d) where
# the gradient rollout is largest, (e) where covering a single pixel hurts most.
#
# What to cover *with*? Black is what paper looks like. Grey, the mean colour of the training images, is what the
# library takes. Two questions: what hides a digit best? And when rollout says what to cover with grey, how many of the
# predictions stay?

# %% kind="predict"
guess = predict("what hides a digit best", choices=["the brightest", "by rollout", "by covering singly"])
guess = predict("predictions that stay, rollout and grey", "%")

# %%
prepared, clean = original.normalize_(X), original.predict(X)
fills = {"black": float(prepared.min()), "grey": 0.0}
rows = np.arange(len(X))
noise = np.random.default_rng(0).random((len(X), 8, 8))
chosen = {
    "at random": noise,
    "the brightest": X[..., 0] + 0.001 * noise,
    "by rollout": record.image_map("rollout"),
    "by gradient rollout": record.image_map("gradient"),
}
singly = {
    name: np.array([occlusion_map(probability_of(c), x, 1, fill) for x, c in zip(prepared, clean, strict=True)])
    for name, fill in fills.items()
}


def stay(values, fill):
    """The share of predictions that stay when the 15 % of pixels with the largest values are covered."""
    covered = prepared.copy()
    covered[measures.top_patches(values.reshape(len(X), -1), 15).reshape(-1, 8, 8)] = fill
    return float((Trainer(original.model_, workers=1).predict(covered).argmax(axis=1) == clean).mean())


# %% kind="answer"
stays = {what: {name: stay(values, fill) for name, fill in fills.items()} for what, values in chosen.items()}
stays["by covering singly"] = {name: stay(singly[name], fill) for name, fill in fills.items()}
for what, found in stays.items():
    print(f"{what:20} " + "   ".join(f"{name}: {share:4.0%} stay" for name, share in found.items()))
best = [min(stays, key=lambda what: stays[what][name]) for name in fills]
assert best[0] == best[1]
answer("what hides a digit best", "by covering singly", measured=best[1])
measured = 100 * stays["by rollout"]["grey"]
answer("predictions that stay, rollout and grey", 55, measured=measured, tolerance=8, unit="%")
assert stays["the brightest"]["black"] < stays["by rollout"]["black"] - 0.1
assert stays["the brightest"]["grey"] > stays["by rollout"]["grey"] + 0.1
few = tb.viz.occlusion(original, X[:2])
assert np.allclose(few.drops, singly["grey"][:2], atol=1e-5)  # the library covers with grey
naive = cover_one_by_one(probability_of(clean[0]), prepared[0], 0.0)
assert np.allclose(naive, singly["grey"][0], atol=1e-5)

# %% [markdown]
# Hide what the rollout shows, and about half of the predictions survive; hide what was *measured*, and few do. Whether
# rollout beats "the brightest pixels", which takes no network at all, depends on the colour: with black, ink turns to
# paper and the digit is gone; with grey, paper changes too. Whoever reports one colour only can choose who wins. So the
# map of attention is a picture of the *mechanism*, not of the *reasons* (Jain & Wallace 2019, arXiv 1902.10186). Where
# you want to say that a pixel matters, cover it and measure; and say with what you covered it.
#
# It also works for what went wrong. Below is an image that the original reads wrongly: what speaks for its answer
# (red), and what for the true one?

# %% kind="see"
wrong = int(np.flatnonzero(clean != y)[0])
print(f"a {y[wrong]} that was read as {clean[wrong]}")
asked = {f"for {label}": tb.viz.occlusion(original, X[[wrong]], target=[label]) for label in (clean[wrong], y[wrong])}
tb.viz.plot_patches(asked)

# %% [markdown]
# Pixels that speak for the one speak against the other: the two probabilities share what there is. A pixel is not
# "important"; it is important for one answer rather than another.
#
# ## 9. The interactive page
#
# The same comparison as one file that asks the network for nothing: hover over a patch to see where it looks. In
# Jupyter, the last line of this cell shows it; `to_html` writes it to a file that you can mail.

# %%
widths = {name: models[name] for name in ("32 bits", "1.58 bits", "1 bit", "32 bits, other seed")}
small = tb.viz.compare_attention(widths, X[read], y[read])
with tempfile.TemporaryDirectory() as folder:
    page = Path(folder) / "attention.html"
    small.to_html(page)
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB")
    assert page.stat().st_size < 2e6
small

# %% [markdown]
# ## What you take along
#
# A rollout is the sum over all paths, as a product of matrices. Share times slope says, in one backward pass, what
# cutting a link would cost. A difference between two networks means nothing without a control: here the seed did more
# than the bits. And a map of attention does not say what a prediction depends on; covering does.
#
# **You can now**: write rollout, gradient rollout, token similarity and occlusion for any ViT; compare two networks
# with a control; say what such a picture shows and what it does not.

# %%
keep(attention_rollout, gradient_rollout, token_similarity, occlusion_map)
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/09](solutions/09_looking_inside.ipynb).
#
# 1. (10 min) By hand: which attention maps $A_1, A_2$ make all rows of $R_2$ equal, where the step is
#    $r I + (1 - r) A$? Can it be done with $r = \frac12$? With 0? Hand in the maps, or the reason why there are none.
# 2. (15 min) Train "1.58 bits" from scratch (no `init_from`), and add it to the comparison. Is it nearer to the
#    original or to the other seed? What follows for papers that compare maps of networks that were trained apart?
# 3. (15 min) Subtract the mean token of the image before `token_similarity`. What becomes of the rise from layer to
#    layer, and of the gap between ink and paper?
# 4. (30 min) Set the values of one head to 0 (its rows of `v` in `qkv`), and measure the accuracy, for all eight heads.
#    Does entropy predict which head may be lost?
# 5. (30 min) "By covering singly" looks at one pixel at a time. Find 15 % of the pixels of *one* image that hide the
#    digit better: cover the worst pixel, then look for the next one in the covered image. What does it cost?
