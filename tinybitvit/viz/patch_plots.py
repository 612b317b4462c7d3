"""Pictures of token similarity, principal components and occlusion, one model or several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .figure import (
    DIVERGING,
    SEQUENTIAL,
    captioned,
    chosen_images,
    color_bar,
    mark_patch,
    new_figure,
    scale_around_zero,
    scale_of,
    show_colors,
    show_image,
    show_map,
)
from .layout import Query
from .tokens import Components, Occlusion, PatchRecord, Similarity

CAPTIONS = {
    Similarity: "Cosine of the angle between tokens. Compare patches within one map; the level of a map says little.",
    Components: "The tokens' first three principal components as red, green and blue. Colours of different models and"
    " layers cannot be compared.",
    Occlusion: "By how much the predicted probability falls when the patch is covered with the mean colour. Where"
    " several patches say the same thing, covering one changes nothing.",
}


def plot_patches(
    records: PatchRecord | Mapping[str, PatchRecord],
    images: Sequence[int] | None = None,
    layer: int = -1,
    query: Query = None,
    stretch: bool = False,
) -> Figure:
    """A row for each image: the image, then the map of each model, all on one scale.

    records: what `similarity`, `components` or `occlusion` returned, or a dict of such from the models' names. images:
    their numbers (None: the first four). layer: which; query: a patch (row, column), 'cls' or a token number, of a
    `Similarity`. stretch: let the scale of a `Similarity` begin at the smallest value instead of 0.
    """
    named = {"": records} if isinstance(records, PatchRecord) else dict(records)
    if not named or len({type(record) for record in named.values()}) > 1:
        raise ValueError("give one record, or a dict of records of one kind, as in {'32 bits': a, '1 bit': b}")
    first = next(iter(named.values()))
    numbers, pictures = chosen_images(first.images, images)
    maps = {name: record.image_map(layer, query)[numbers] for name, record in named.items()}
    figure = new_figure(2.3 * (len(named) + 1), 2.2 * len(numbers) + 1.4)
    axes = figure.subplots(len(numbers), len(named) + 1, squeeze=False)
    for ax, picture in zip(axes[:, 0], pictures, strict=True):
        show_image(ax, picture)
        if isinstance(query, tuple) and isinstance(first, Similarity):
            mark_patch(ax, query, first.layout.patch_size)
    axes[0, 0].set_title("image", fontsize=10)
    _show_maps(figure, axes[:, 1:], pictures, maps, first, stretch)
    for column, (name, record) in zip(axes.T[1:], named.items(), strict=True):
        column[0].set_title(_title(name, record, layer), fontsize=10)
        if isinstance(record, Occlusion):
            for ax, i in zip(column, numbers, strict=True):
                ax.set_xlabel(f"{record.target[i]} ({record.probability[i]:.0%})", fontsize=8)
    what = f"{first.layout.describe_token(query)} " if isinstance(first, Similarity) else ""
    return captioned(figure, what + CAPTIONS[type(first)])


def _show_maps(
    figure: Any,
    axes: np.ndarray,
    pictures: np.ndarray,
    maps: Mapping[str, np.ndarray],
    first: PatchRecord,
    stretch: bool,
) -> None:
    """A column of axes for each model's maps, and the bar of their common scale."""
    if isinstance(first, Components):
        for column, values in zip(axes.T, maps.values(), strict=True):
            for ax, colors, picture in zip(column, values, pictures, strict=True):
                show_colors(ax, colors, picture.shape)
        return
    factor = 100 if isinstance(first, Occlusion) else 1
    shown = [factor * values for values in maps.values()]
    if isinstance(first, Occlusion):
        norm, cmap, label = scale_around_zero(shown), DIVERGING, "drop in probability (percentage points)"
    else:
        low = min(float(values.min()) for values in shown)
        norm, cmap, label = scale_of(shown, stretch or low < 0), SEQUENTIAL, "cosine"
    for column, values in zip(axes.T, shown, strict=True):
        for ax, values_of_one, picture in zip(column, values, pictures, strict=True):
            show_map(ax, picture, values_of_one, norm, cmap)
    color_bar(figure, axes.flat, norm, label, cmap)


def _title(name: str, record: PatchRecord, layer: int) -> str:
    if isinstance(record, Occlusion):
        return name or "occlusion"
    depth = len(record.maps if isinstance(record, Similarity) else record.scores)  # type: ignore[attr-defined]
    title = f"{name}\n(layer {range(depth)[layer]})"
    if isinstance(record, Components):
        title += f", {record.explained[layer].sum():.0%} of variance"
    return title.strip()
