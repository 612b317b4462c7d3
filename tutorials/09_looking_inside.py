# %% [markdown]
# # 09 Looking inside: attention at 32, 1.58 and 1 bit
#
# A ternary network reads the digits almost as well as the one it came from. Does it also *look* at the same pixels?
# That question is easy to ask and easy to answer wrongly. You need three things: a picture, a number for "different",
# and a *control*, because two networks differ for many reasons, and the number of bits is only one of them.
#
# You need tutorials 03 (attention) and 04 (a Vision Transformer).

# %%
import inspect
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize

import tinybitvit as tb
from tinybitvit.viz import measures
from tinybitvit.viz.figure import new_figure, show_image, show_map

# %% [markdown]
# ## 1. By hand: entropy, divergence, rollout
#
# A row of an attention map is a list of shares that sum to 1: where one token draws its values from.
#
# **Entropy** says how widely it looks, $H(p) = -\sum_j p_j \log_2 p_j$. All on one token: 0 bits. Four tokens evenly: 2
# bits. $(\frac12, \frac14, \frac14)$: $\frac12 \cdot 1 + \frac14 \cdot 2 + \frac14 \cdot 2 = 1.5$ bits.
#
# **Divergence** says how far two rows are apart. Jensen-Shannon's (Lin 1991) is the entropy of their mean minus the
# mean of their entropies. For $p = (\frac12, \frac12, 0)$ and $q = (\frac12, 0, \frac12)$ the mean is
# $(\frac12, \frac14, \frac14)$. **Predict** the divergence. (0 is "the same", 1 bit is "nothing in common".)

# %%
p, q = np.array([0.5, 0.5, 0]), np.array([0.5, 0, 0.5])
print("H(mean) =", measures.entropy((p + q) / 2), " H(p) = H(q) =", measures.entropy(p))
print("divergence:", measures.js_divergence(p, q))
assert measures.entropy([0.5, 0.25, 0.25]) == 1.5
assert measures.js_divergence(p, q) == 1.5 - 1

# %% [markdown]
# **Rollout** (Abnar & Zuidema 2020, arXiv 2005.00928, section 3) asks where a token draws from through *all* layers. A
# layer adds its average to what is there already, so it is taken for half a step of attention, half a step of staying:
#
# $$R_\ell = \left(\tfrac12 I + \tfrac12 A_\ell\right) R_{\ell-1}, \qquad R_0 = I .$$
#
# Two tokens. In the first layer both look at token 0; in the second both look at token 1:
#
# $$A_1 = \begin{pmatrix} 1 & 0 \\ 1 & 0 \end{pmatrix}, \quad A_2 = \begin{pmatrix} 0 & 1 \\ 0 & 1 \end{pmatrix}, \quad
# R_1 = \begin{pmatrix} 1 & 0 \\ \frac12 & \frac12 \end{pmatrix}, \quad
# R_2 = \begin{pmatrix} \frac12 & \frac12 \\ 0 & 1 \end{pmatrix} R_1 .$$
#
# **Predict** the last row of $R_2$: token 1 looked at itself in the last layer. Is it all token 1?

# %%
A1, A2 = np.array([[[1.0, 0], [1, 0]]]), np.array([[[0.0, 1], [0, 1]]])
R2 = measures.rollout([A1, A2])[-1][0]
print(R2)
assert R2.tolist() == [[0.75, 0.25], [0.5, 0.5]]
print(inspect.getsource(measures.rollout))

# %% [markdown]
# Half of token 1 *is* token 0 by then. A map of the last layer alone does not show that.
#
# ## 2. Five networks
#
# One token for each pixel of the 8 x 8 digits, so that the maps are as fine as the images, and a class token that
# collects.
#
# - **32 bits**: the original.
# - **1.58 bits** and **1 bit**: converted from it and repaired with the original as teacher (tutorial 08).
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

for name, model in models.items():
    print(f"{name:20} test accuracy {model.score(digits.X_test, digits.y_test):.3f}")
    assert model.score(digits.X_test, digits.y_test) > 0.8

# %% [markdown]
# ## 3. Recording
#
# How does one get at the maps, if attention is one fused operation? The probabilities are the output of a module of
# their own, and a module can have a *hook*: a function that sees what comes out. The model is not edited.

# %%
print(inspect.getsource(tb.nn.Attend))
record = tb.viz.attention(models["1.58 bits"], X, target="predicted")
print(record)
print("maps of layer 0:", record.maps[0].shape, "(images, heads, tokens, tokens)")
assert record.maps[0].shape == (60, 4, 65, 65)
assert np.allclose(record.maps[0].sum(axis=-1), 1, atol=1e-5)

# %% [markdown]
# **Predict** before you look: what will the class token of a network that reads digits look at? At the ink? At the
# empty paper? At the edges?

# %%
record.plot(images=[0, 1, 2], stretch=True)

# %% [markdown]
# Every head by itself, then two numbers for each head: entropy, and the mean distance between a patch and what it looks
# at (Dosovitskiy et al. 2020, arXiv 2010.11929, appendix D.7). An even spread over 65 tokens would have
# $\log_2 65 = 6.02$ bits.

# %%
tb.viz.plot_heads(record, image=0)

# %%
assert (record.entropy() <= np.log2(65) + 1e-6).all()
tb.viz.plot_statistics(record)

# %% [markdown]
# ## 4. The comparison, and its control
#
# **Predict**: put the four other networks in the order of their distance from the original.

# %%
comparison = tb.viz.compare_attention(models, X, y)
print(comparison)
distance = {name: float(comparison.divergence[name].mean()) for name in comparison.others}
for name in ("1.58 bits", "1 bit", "32 bits, trained on"):
    assert distance[name] < distance["32 bits, other seed"] / 1.5
assert distance["32 bits, trained on"] > distance["1.58 bits"] / 5

# %%
chosen = {name: model for name, model in models.items() if name != "32 bits, trained on"}
tb.viz.compare_attention(chosen, X[:3], y[:3]).plot(stretch=True)

# %% [markdown]
# Without the controls we would have written: "quantisation to 1.58 bits moves attention by 0.1 bits". But training on
# *without* quantisation moves it, too; only what goes beyond that may be put down to the bits. And the *seed* does more
# than the bits: two networks with 32 bits each read the same digits, almost equally well, by looking at different
# pixels, while the ternary network still looks where the original looks. Had we compared a ternary network trained from
# scratch with the original, we would have seen a large difference, and blamed it on quantisation.
#
# One more trap is in these numbers. Networks that were trained apart number their heads at random, so "head 3 against
# head 3" means nothing. The library first *matches* the heads of each layer, so that the sum of divergences is least
# (Kuhn 1955). **Predict**: which network's heads will keep their places?

# %%
for name in comparison.others:
    print(f"{name:20} head of the original -> matched head: {comparison.matches[name].tolist()}")
places = np.arange(4)
assert (comparison.matches["1.58 bits"] == places).all()
assert measures.match_heads(np.array([[3.0, 1], [0, 2]])).tolist() == [1, 0]  # 1 + 0 is less than 3 + 2
tb.viz.plot_damage(tb.viz.compare_attention(chosen, X, y))

# %% [markdown]
# ## 5. Attention is not explanation
#
# The maps show from where values are *averaged*. Do they show what the decision *depends* on? That can be measured:
# paint one pixel black, and see how much the logit of the predicted class falls (*occlusion*, Zeiler & Fergus 2014). 64
# runs.
#
# Then the test. Cover 15 % of the pixels and count how many predictions stay as they were. Choose them (a) at random,
# (b) where the rollout is largest, (c) where the gradient-weighted rollout is largest (Chefer et al. 2021, arXiv
# 2103.15679), (d) where occlusion hurts most. Black paper painted black is no change at all, so one more control is
# due: (e) simply the brightest pixels. **Predict** the order.

# %%
clean = original.predict(X)
seen = tb.viz.attention(original, X, target="predicted")
rows, column = np.arange(len(X)), seen.logits.argmax(axis=1)

occlusion = np.zeros((len(X), 8, 8))
for i, j in np.ndindex(8, 8):
    covered = X.copy()
    covered[:, i, j] = 0
    occlusion[:, i, j] = seen.logits[rows, column] - original.decision_function(covered)[rows, column]

maps = {
    "random": np.random.default_rng(0).random((len(X), 8, 8)),
    "ink": X[..., 0] + 0.001 * np.random.default_rng(0).random((len(X), 8, 8)),
    "rollout": seen.image_map("rollout"),
    "gradient rollout": seen.image_map("gradient"),
    "occlusion": occlusion,
}
kept = {}
for name, values in maps.items():
    covered = X.copy()
    covered[measures.top_patches(values.reshape(len(X), -1), 15).reshape(-1, 8, 8)] = 0
    kept[name] = float((original.predict(covered) == clean).mean())
    print(f"covered where {name:16} is largest: {kept[name]:4.0%} of the predictions stay")

assert kept["occlusion"] < 0.3
assert kept["rollout"] > kept["occlusion"] + 0.15 and kept["rollout"] > kept["ink"]

figure = new_figure(7.5, 6)
axes = figure.subplots(3, 4)
for row, image in zip(axes, (0, 1, 2), strict=True):
    show_image(row[0], np.repeat(X[image], 3, axis=2))
    for ax, name in zip(row[1:], ("rollout", "gradient rollout", "occlusion"), strict=True):
        values = maps[name][image]
        span = max(abs(values.min()), abs(values.max()))
        low, cmap = (-span, "RdBu_r") if name == "occlusion" else (0, "viridis")
        show_map(ax, np.repeat(X[image], 3, axis=2), values, Normalize(low, span), cmap)
        ax.set_title(name if image == 0 else "", fontsize=10)
figure

# %% [markdown]
# Hide what the rollout shows, and about half of the predictions survive. Hide the brightest pixels, which takes no
# network at all to find, and far fewer do; hide those that occlusion found, and almost none. The class token looks at
# empty paper as well: that there is no ink *is* information, only not for this test. So the map of attention is a
# picture of the *mechanism*, not of the *reasons* (Jain & Wallace 2019, arXiv 1902.10186). Where you want to say that a
# pixel matters, cover it and measure.
#
# ## 6. The interactive page
#
# The same comparison as one file that asks the network for nothing: hover over a patch to see where it looks. In
# Jupyter, the last line of this cell shows it; `to_html` writes it to a file that you can mail.

# %%
small = tb.viz.compare_attention(chosen, X[:4], y[:4])
with tempfile.TemporaryDirectory() as folder:
    page = Path(folder) / "attention.html"
    small.to_html(page)
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB")
    assert page.stat().st_size < 2e6
small

# %% [markdown]
# ## Exercises
#
# 1. *(by hand)* Which attention maps $A_1, A_2$ make every row of $R_2$ equal? Can it be done with `residual=0.5`? With
#    0?
# 2. *(measure)* Train "1.58 bits" from scratch (no `init_from`), and add it to the comparison. Is it nearer to the
#    original or to the other seed? What follows for papers that compare attention maps of networks trained apart?
# 3. *(measure)* Draw `record.image_map("mean", layer=0, query=(3, 3))` for all widths: where one *patch* looks, not the
#    class token. Which layer is the more local one? Compare with `plot_statistics`.
# 4. *(code)* `tb.viz.plot_weights(models["1.58 bits"])` shows the ternary weights of a block. Set all rows of `v` of
#    one head to 0 (latent weights), and measure the accuracy. Do it for all eight heads. Does entropy predict which
#    head may be lost?
# 5. *(harder)* The control says that the seed does more than the bits. How many seeds would you need to put an error
#    bar on that, and what exactly would you resample? Do it with five, and give the interval.
