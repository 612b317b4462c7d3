"""The views of the interactive page, for papers and reports; each function returns a Figure."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .compare import ComparedMaps
from .figure import (
    DIVERGING,
    NARROW,
    PALETTE,
    captioned,
    chosen_images,
    color_bar,
    layers_by_heads,
    mark_patch,
    new_figure,
    predicted,
    scale_around_zero,
    scale_of,
    shortened,
    show_image,
    show_map,
)
from .layout import Layout, Query, layer_number
from .record import CAVEAT, RecordedMaps

SHARE = "share of attention (%)"


def method_title(method: str | int) -> str:
    """A method's name for people."""
    names = {"gradient": "gradient-weighted rollout", "rollout": "rollout"}
    return names.get(method, f"{method} of heads") if isinstance(method, str) else f"head {method}"


def plot_attention(
    record: RecordedMaps,
    images: Sequence[int] | None = None,
    methods: Sequence[str | int] | None = None,
    layer: int = -1,
    query: Query = None,
    stretch: bool = False,
) -> Figure:
    """A row for each image: the image itself, then one map for each method, each column on a scale of its own.

    images: their numbers (None: the first four). methods: see `AttentionRecord.matrix` (None: mean over heads, rollout
    and, if recorded, gradient rollout). layer, query: see `AttentionRecord.image_map`. stretch: let the scale begin at
    the smallest value instead of 0, which shows more and exaggerates.
    """
    numbers, pictures = chosen_images(record.images, images)
    if methods is None:
        methods = ["mean", "rollout"] + ["gradient"] * (record.gradients is not None)
    figure = new_figure(2.3 * (len(methods) + 1), 2.2 * len(numbers) + 1.2)
    axes = figure.subplots(len(numbers), len(methods) + 1, squeeze=False)
    _show_originals(axes[:, 0], pictures, [_prediction(record, i) for i in numbers], query, record.layout)
    for column, method in zip(axes.T[1:], methods, strict=True):
        maps = 100 * record.image_map(method, layer, query)[numbers]
        norm = scale_of([maps], stretch)
        for ax, image, values in zip(column, pictures, maps, strict=True):
            show_map(ax, image, values, norm)
        depth = layer_number(layer, record.depth)
        column[0].set_title(f"{method_title(method)}\n{_extent(method, depth)}", fontsize=10)
        color_bar(figure, column, norm, SHARE)
    return captioned(figure, f"{record.layout.describe(query)}. {CAVEAT}")


def plot_heads(
    record: RecordedMaps,
    image: int = 0,
    layers: Sequence[int] | None = None,
    query: Query = None,
    stretch: bool = False,
) -> Figure:
    """Every head of every layer for one image, on one scale: a row for each layer, a column for each head.

    layers: which (None: all). query: a patch (row, column), 'cls' or a token number; None: what the classifier reads.
    """
    layers = list(range(record.depth)) if layers is None else list(layers)
    (number,), (picture,) = chosen_images(record.images, [image])
    maps = [[100 * record.image_map(h, layer, query)[number] for h in range(record.heads)] for layer in layers]
    norm = scale_of([m for row in maps for m in row], stretch)
    figure = new_figure(1.3 * record.heads + 0.6, 1.3 * len(layers) + 1.5)
    axes = figure.subplots(len(layers), record.heads, squeeze=False)
    for ax, values in zip(axes.flat, (m for row in maps for m in row), strict=True):
        show_map(ax, picture, values, norm)
        if isinstance(query, tuple):
            mark_patch(ax, query, record.layout.patch_size)
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        ax.set_ylabel(f"layer {layer}", fontsize=9)
    for head, ax in enumerate(axes[0]):
        ax.set_title(f"head {head}", fontsize=9)
    color_bar(figure, axes.flat, norm, SHARE)
    return captioned(figure, f"{record.layout.describe(query)}. {CAVEAT}")


def plot_statistics(record: RecordedMaps) -> Figure:
    """Entropy and mean distance of every head, as means over the images: layers by heads."""
    entropy, distance = record.entropy().mean(axis=0), record.distance("patches").mean(axis=0)
    figure = new_figure(max(7.5, 1.0 * record.heads), 0.35 * record.depth + 2.4)
    axes = figure.subplots(1, 2)
    top = math.log2(record.layout.tokens)
    for ax, values, norm, title, label in (
        (axes[0], entropy, scale_of([entropy], True), "entropy", f"bits (an even spread has {top:.2f})"),
        (axes[1], distance, scale_of([distance], True), "mean distance", "patches"),
    ):
        layers_by_heads(ax, values, norm, title, np.vectorize("{:.2f}".format)(values))
        color_bar(figure, [ax], norm, label)
    return figure


def plot_comparison(
    comparison: ComparedMaps,
    images: Sequence[int] | None = None,
    method: str | int = "rollout",
    layer: int = -1,
    query: Query = None,
    stretch: bool = False,
) -> Figure:
    """A row for each image: the image, each model's map on one scale, each difference to the first model on another.

    method: see `AttentionRecord.matrix`; a head's number means the first model's head and the heads matched to it.
    """
    first = comparison.records[comparison.reference]
    numbers, pictures = chosen_images(first.images, images)
    names, others = comparison.names, comparison.others
    maps = {n: 100 * comparison.image_map(n, method, layer, query)[numbers] for n in names}
    figure = new_figure(2.1 * (1 + len(names) + len(others)), 2.1 * len(numbers) + 1.3)
    axes = figure.subplots(len(numbers), 1 + len(names) + len(others), squeeze=False)
    labels = None if comparison.y is None else [f"label: {shortened(comparison.y[i], NARROW)}" for i in numbers]
    _show_originals(axes[:, 0], pictures, labels, query, first.layout)
    norm = scale_of(list(maps.values()), stretch)
    for column, name in zip(axes.T[1:], names, strict=False):
        for ax, number, image, values in zip(column, numbers, pictures, maps[name], strict=True):
            show_map(ax, image, values, norm)
            ax.set_xlabel(_prediction(comparison.records[name], number), fontsize=8)
        column[0].set_title(name, fontsize=10)
    color_bar(figure, axes[:, 1 : 1 + len(names)].flat, norm, f"{method_title(method)}: {SHARE}")
    differences = {n: maps[n] - maps[comparison.reference] for n in others}
    norm = scale_around_zero(list(differences.values()))
    for column, name in zip(axes.T[1 + len(names) :], others, strict=True):
        for ax, image, values in zip(column, pictures, differences[name], strict=True):
            show_map(ax, image, values, norm, DIVERGING)
        column[0].set_title(f"{name}\nminus {comparison.reference}", fontsize=10)
    color_bar(figure, axes[:, 1 + len(names) :].flat, norm, "difference (percentage points)", DIVERGING)
    return captioned(figure, f"{first.layout.describe(query)}. {CAVEAT}")


def plot_damage(comparison: ComparedMaps, top: float = 20) -> Figure:
    """How far every head is from the first model's, and what became of rollouts and predictions.

    A grid of layers by heads for each other model: Jensen-Shannon divergence in bits, one scale for all; the cells name
    the head that was matched. Then bars: mean overlap of the `top` percent of the rollout's patches, and changed
    predictions.
    """
    others, depth = comparison.others, comparison.records[comparison.reference].depth
    figure = new_figure(3.1 * len(others) + 3.2, 0.35 * depth + 2.6)
    axes = figure.subplots(1, len(others) + 1)
    norm = scale_of([comparison.divergence[n] for n in others])
    for ax, name in zip(axes, others, strict=False):
        texts = np.vectorize(str)(comparison.matches[name])
        layers_by_heads(ax, comparison.divergence[name], norm, f"{name}\n(in the cells: its matched head)", texts)
        ax.set_xlabel(f"head of {comparison.reference}")
    color_bar(figure, axes[:-1], norm, f"Jensen-Shannon divergence from {comparison.reference} (bits)")
    rows = {row.pop("model"): row for row in comparison.summary(top)}
    kinds = [k for k in next(iter(rows.values())) if k not in ("divergence", "accuracy")]
    height = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        bars = axes[-1].barh(
            np.arange(len(others)) + i * height,
            [100 * rows[n][kind] for n in others],
            0.9 * height,
            label=kind,
            color=PALETTE[i],
        )
        axes[-1].bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
    axes[-1].set(xlim=(0, 112), xlabel=f"% ({len(comparison)} images)", title="rollouts and predictions")
    axes[-1].set_yticks(np.arange(len(others)) + 0.4 - height / 2, others)
    axes[-1].invert_yaxis()
    axes[-1].legend(loc="upper left", bbox_to_anchor=(0, -0.3), fontsize=8, frameon=False)
    return figure


# --- inside -----------------------------------------------------------------------------------------------------------


def _extent(method, layer):
    return f"(layers 0 to {layer})" if method in ("rollout", "gradient") else f"(layer {layer})"


def _show_originals(axes: Iterable[Axes], pictures, labels, query: Query, layout: Layout) -> None:
    for i, (ax, image) in enumerate(zip(axes, pictures, strict=True)):
        show_image(ax, image)
        if labels is not None:
            ax.set_xlabel(labels[i], fontsize=8)
        if isinstance(query, tuple):
            mark_patch(ax, query, layout.patch_size)
        ax.set_title("image" if i == 0 else "", fontsize=10)


def _prediction(record: RecordedMaps, number: int) -> str:
    if record.logits is None:
        return ""
    return f"predicts {predicted(record.predictions[number], record.probabilities[number].max())}"
