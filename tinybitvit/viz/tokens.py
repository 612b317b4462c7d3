"""Looking at tokens and at the prediction instead of attention: `similarity`, `components` and `occlusion`.

Each asks a network once and returns its arrays, with `plot()` for a picture; `plot_patches` sets several models side by
side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import autograd
from ..models import Block
from ..tensor import Tensor
from . import measures
from .layout import Layout, Query, layer_number
from .subject import Subject, answers, check_numbers, observed, occluded, subject_of


@dataclass(frozen=True, eq=False)
class PatchRecord:
    """What `Similarity`, `Components` and `Occlusion` share: images (N, H, W, C) as given, and a map of each."""

    scale: ClassVar[tuple[str, str]] = ("colors", "")  # how maps are coloured, and what the colour bar says
    caption: ClassVar[str]

    layout: Layout
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def title(self, layer: int) -> str:
        """What stands above the maps of a layer."""
        return ""

    def note(self, image: int) -> str:
        """What stands below the map of an image."""
        return ""

    def image_map(self, layer: int = -1, query: Query = None) -> np.ndarray:
        """What the plot shows: (N, rows, columns), or colours (N, rows, columns, 3)."""
        raise NotImplementedError

    def plot(self, **options: Any) -> Any:
        """Images beside their maps, as a matplotlib Figure; see `plot_patches`."""
        from .patch_plots import plot_patches

        return plot_patches(self, **options)


@dataclass(frozen=True, eq=False)
class Similarity(PatchRecord):
    """Cosines s_ij = x_i . x_j / (|x_i| |x_j|) between all tokens after each layer; made by `similarity`.

    maps: a list with one float array (N, T, T) a layer.

    Tokens that point the same way are treated alike by the layers that follow, up to their length. They need not mean
    the same thing: a direction that all tokens of a network share raises every cosine, so compare patches within one
    map and not the level of two maps.
    """

    scale = ("sequential", "cosine")
    caption = "Cosine between tokens. Compare patches within one map; the level of a map says little."

    maps: list[np.ndarray]

    def title(self, layer: int) -> str:
        return f"layer {layer_number(layer, len(self.maps))}"

    def image_map(self, layer: int = -1, query: Query = None) -> np.ndarray:
        """The cosines of one token with all patches, (N, rows, columns); query: a patch (row, column), 'cls' or a token
        number; None: the mean over the tokens that the classifier reads.
        """
        return self.layout.image_map(self.maps[layer_number(layer, len(self.maps))], query)


@dataclass(frozen=True, eq=False)
class Components(PatchRecord):
    """The patches' tokens after each layer on their first three principal components; made by `components`.

    scores: a list with one array (N, rows, columns, 3) a layer, (x - mean x) V with the mean and the components V of
    all patches of all N images, so that one colour means one thing in all of them. explained: (layers, 3), the share of
    the variance that each component holds.

    Colours cannot be compared between models or layers: each has axes of its own. What three components leave out may
    be most of the token; `explained` says how much.
    """

    caption = (
        "The tokens' first three principal components as red, green and blue. Colours of different models and layers"
        " cannot be compared."
    )

    scores: list[np.ndarray]
    explained: np.ndarray

    def title(self, layer: int) -> str:
        layer = layer_number(layer, len(self.scores))
        return f"layer {layer}, {self.explained[layer].sum():.0%} of variance"

    def image_map(self, layer: int = -1, query: Query = None) -> np.ndarray:
        """Red, green, blue (N, rows, columns, 3) in 0..1: each component from its 1st to its 99th percentile."""
        return measures.component_colors(self.scores[layer_number(layer, len(self.scores))])


@dataclass(frozen=True, eq=False)
class Occlusion(PatchRecord):
    """What covering one patch does to the prediction; made by `occlusion`. Zeiler & Fergus 2014 (arXiv 1311.2901).

    drops: (N, rows, columns), P(c | x) - P(c | x without the patch): above 0 the patch speaks for the class. target:
    the classes c (N,), as labels. probability: P(c | x), (N,).

    This is measured, not read off: the prediction really changes so. But an image with a hole is one that the network
    never saw, and where several patches say the same thing, covering one of them changes nothing.
    """

    scale = ("around zero", "drop in probability (percentage points)")
    caption = (
        "By how much the probability of the class falls when a patch is covered with the mean colour. Where several"
        " patches say the same thing, covering one of them changes nothing."
    )

    drops: np.ndarray
    target: list
    probability: np.ndarray

    def note(self, image: int) -> str:
        return f"{self.target[image]} ({self.probability[image]:.0%})"

    def image_map(self, layer: int = -1, query: Query = None) -> np.ndarray:
        """The drops; there are neither layers nor tokens to choose."""
        return self.drops


def similarity(model: Any, X: Any, *, layout: Layout | None = None, batch_size: int = 32) -> Similarity:
    """How alike the tokens of the images X are after every layer. model, X, layout: as for `attention`."""
    subject = subject_of(model, X, layout)
    maps = [measures.cosine_similarity(tokens) for tokens in record_tokens(subject, batch_size)]
    return Similarity(subject.layout, subject.images, maps)


def components(model: Any, X: Any, *, layout: Layout | None = None, batch_size: int = 32) -> Components:
    """The tokens of the images X after every layer, as three numbers each. model, X, layout: as for `attention`."""
    subject = subject_of(model, X, layout)
    tokens = record_tokens(subject, batch_size)
    found = [measures.principal_components(x[:, subject.layout.prefix :]) for x in tokens]
    scores = [score.reshape(-1, *subject.layout.grid, 3) for score, _ in found]
    return Components(subject.layout, subject.images, scores, np.stack([share for _, share in found]))


def occlusion(
    model: Any, X: Any, *, target: Any = "predicted", layout: Layout | None = None, batch_size: int = 32
) -> Occlusion:
    """Cover every patch of the images X in turn with the training images' mean colour, and measure the prediction.

    target: the class whose probability counts: the 'predicted' one, one class, or one for each image. model, X, layout:
    as for `attention`. It takes as many forward passes as there are patches.
    """
    subject = subject_of(model, X, layout)
    numbers = subject.class_numbers(target)
    whole = answers(subject, subject.prepared, batch_size)
    numbers = whole.argmax(axis=1) if isinstance(numbers, str) else numbers
    check_numbers(numbers, whole.shape[1])
    drops = occluded(subject, numbers, batch_size)
    names: Sequence[Any] = range(whole.shape[1]) if subject.classes is None else subject.classes
    probability = whole[np.arange(len(whole)), numbers]
    return Occlusion(subject.layout, subject.images, drops, [names[i] for i in numbers], probability)


def record_tokens(subject: Subject, batch_size: int) -> list[np.ndarray]:
    """The tokens (N, T, dim) after every layer of the network, before its last norm."""
    network, images = subject.network, subject.prepared
    if not any(isinstance(m, Block) for m in network.modules()):
        raise RuntimeError(f"{type(network).__name__} holds no tb.models.Block, so there are no layers with tokens")
    device = next((p.device for p in network.parameters()), "cpu")
    parts = []
    with observed(network, Block) as seen, autograd.no_grad():
        for start in range(0, len(images), batch_size):
            seen.clear()
            network(Tensor(images[start : start + batch_size], device=device))
            parts.append([output.numpy() for _, output in seen])
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]
