"""Checks of lesson 9: attention rollout, gradient rollout, similarity of tokens, occlusion."""

import numpy as np

from ..checker import Task, same

rollout = Task("9.1", "attention_rollout")


@rollout.check(
    "one layer",
    "half a step of staying, half a step of attention: (I + A) / 2",
    "np.eye(T) is I; numpy adds it to all N maps",
)
def rollout_one(answer):
    a = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    same(answer([a]), np.array([[[1.0, 0.0], [0.5, 0.5]]]), "for the one map [[[1, 0], [1, 0]]]")


@rollout.check(
    "two layers",
    "token i draws from k in the later layer, and k holds what R of the earlier layers says: the later one stands left",
    "r = (identity + a) / 2 @ r",
)
def rollout_two(answer):
    first, second = np.array([[[1.0, 0.0], [1.0, 0.0]]]), np.array([[[0.0, 1.0], [0.0, 1.0]]])
    expected = np.array([[[0.75, 0.25], [0.5, 0.5]]])
    same(answer([first, second]), expected, "for the maps [[[1, 0], [1, 0]]] and [[[0, 1], [0, 1]]]")


@rollout.check("several images", "@ multiplies the matrices of all images at once: no .T, no loop over images")
def rollout_several(answer):
    maps = list(np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 2, 4)))
    expected = np.eye(4)
    for a in maps:
        expected = (np.eye(4) + a) / 2 @ expected
    got = answer([a.copy() for a in maps])
    same(got, expected, "for three random maps of two images")
    same(np.sum(got, axis=-1), np.ones((2, 4)), "for three random maps of two images", " row sums")


helpful = Task("9.2", "gradient_rollout")


@helpful.check(
    "one layer, one head",
    "only links that raise the logit count: 0 where share x slope is negative",
    "np.maximum(a * g, 0); then R - I is just that, and each row is divided by its sum",
)
def helpful_one(answer):
    a, g = np.array([[[[0.5, 0.5], [0.2, 0.8]]]]), np.array([[[[0.0, 2.0], [-1.0, 1.0]]]])
    expected = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    same(answer([a], [g]), expected, "for A = [[0.5, 0.5], [0.2, 0.8]], dy/dA = [[0, 2], [-1, 1]]")
    same(answer([a], [-np.abs(g) - 1]), np.zeros((1, 2, 2)), "for a map whose gradients are all negative")


@helpful.check(
    "the mean over the heads",
    "first cut off what is negative in each head, then take the mean over axis 1: heads that hinder must not cancel",
)
def helpful_heads(answer):
    a = np.full((1, 2, 2, 2), 0.5)
    g = np.array([[[[4.0, 0.0], [0.0, 4.0]], [[-8.0, 4.0], [4.0, -8.0]]]])
    same(answer([a], [g]), np.full((1, 2, 2), 0.5), "for two heads, A = 0.5 everywhere, with gradients of both signs")


@helpful.check(
    "two layers",
    "a token keeps what it has and adds what it draws from tokens, which hold R of the layers below",
    "r = r + helpful @ r, from r = I; at the end r - I",
)
def helpful_layers(answer):
    rng = np.random.default_rng(1)
    maps, gradients = list(rng.dirichlet(np.ones(3), size=(2, 1, 2, 3))), list(rng.standard_normal((2, 1, 2, 3, 3)))
    r = np.eye(3)
    for a, g in zip(maps, gradients, strict=True):
        r = r + np.maximum(a * g, 0).mean(axis=1) @ r
    drawn = r - np.eye(3)
    expected = drawn / drawn.sum(axis=-1, keepdims=True)
    same(answer([a.copy() for a in maps], gradients), expected, "for two random layers of two heads and three tokens")


alike = Task("9.3", "token_similarity")


@alike.check(
    "by hand",
    "a cosine is a product of two tokens, each divided by its own length",
    "unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True); one token with all: unit @ unit[i]",
)
def alike_hand(answer):
    tokens = np.array([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0], [-3.0, -4.0]])
    expected = np.array([1.0, 1.0, 0.0, -1.0])
    same(answer(tokens.copy(), 0), expected, "for tokens [[3, 4], [6, 8], [-4, 3], [-3, -4]], i = 0")
    same(answer(tokens.copy(), 2), expected[[2, 2, 0, 2]], "for the same tokens, i = 2")


@alike.check("a token of zeros", "0 / 0 is not a number: divide by np.maximum(length, 1e-12)")
def alike_zeros(answer):
    tokens = np.array([[3.0, 4.0], [0.0, 0.0]])
    same(answer(tokens.copy(), 0), np.array([1.0, 0.0]), "for tokens [[3, 4], [0, 0]], i = 0")


covers = Task("9.4", "occlusion_map")


class Network:
    """Stands for a network: sums the pixels of each image with weights, and counts how often it was asked."""

    def __init__(self, weights):
        self.weights, self.calls = weights, 0

    def __call__(self, images):
        self.calls += 1
        assert np.ndim(images) == 4, f"probability takes images (N, H, W, C), not an array of shape {np.shape(images)}"
        return (images * self.weights).sum(axis=(1, 2, 3))


@covers.check(
    "one hole an image",
    "each copy has a hole of its own, and only that: copy the image anew before you cover a patch",
    "covered = np.repeat(image[None], rows * columns, axis=0) has a copy for each patch; cover patch p of covered[p]",
)
def covers_hole(answer):
    image, weights = np.arange(1.0, 7).reshape(2, 3, 1), np.array([[1.0, 0, 2], [0, 3, 1]])[..., None]
    before = image.copy()
    got = answer(Network(weights), image, 1, 0.0)
    assert np.array_equal(image, before), "it covered patches of its input itself: cover copies"
    call = "for pixels [[1, 2, 3], [4, 5, 6]] that count [[1, 0, 2], [0, 3, 1]] times, patch = 1, fill = 0"
    same(got, (image * weights)[..., 0], call)


@covers.check(
    "patches and colours",
    "patch p is in row p // columns and column p % columns, each `patch` pixels high and wide",
    "covered[p, top : top + patch, left : left + patch] = fill, for all channels",
)
def covers_patches(answer):
    rng = np.random.default_rng(0)
    image, weights = rng.random((4, 6, 3)), rng.random((4, 6, 3))
    expected = ((image - 0.5) * weights).reshape(2, 2, 3, 2, 3).sum(axis=(1, 3, 4))
    got = answer(Network(weights), image.copy(), 2, 0.5)
    same(got, expected, "for a random image (4, 6, 3), patch = 2, fill = 0.5")


@covers.check("asked once for all", "give all covered copies to probability in one call: it takes many images at once")
def covers_once(answer):
    network = Network(np.ones((4, 4, 1)))
    answer(network, np.ones((4, 4, 1)), 1, 0.0)
    assert network.calls <= 2, f"it asked the network {network.calls} times for an image of 16 patches; twice will do"
