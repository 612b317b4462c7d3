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


def plot_patches(
    records: Any,
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
    named = dict(records) if isinstance(records, Mapping) else {"": records}
    if not named or len({type(record) for record in named.values()}) > 1:
        raise ValueError("give one record, or a dict of records of one kind, as in {'32 bits': a, '1 bit': b}")
    first = next(iter(named.values()))
    if not all(same_images(record.images, first.images) for record in named.values()):
        raise ValueError("the records are of different images: make each of the same X")
    numbers, pictures = chosen_images(first.images, images)
    figure = new_figure(2.3 * (len(named) + 1), 2.2 * len(numbers) + 1.4)
    axes = figure.subplots(len(numbers), len(named) + 1, squeeze=False)
    axes[0, 0].set_title("image", fontsize=10)
    for ax, picture in zip(axes[:, 0], pictures, strict=True):
        show_image(ax, picture)
        if isinstance(query, tuple):
            mark_patch(ax, query, first.layout.patch_size)
    for column, (name, record) in zip(axes.T[1:], named.items(), strict=True):
        column[0].set_title(f"{name}\n{record.title(layer)}".strip(), fontsize=10)
        for ax, i in zip(column, numbers, strict=True):
            ax.set_xlabel(record.note(i), fontsize=8)
    maps = [record.image_map(layer, query)[numbers] for record in named.values()]
    _show_maps(figure, axes[:, 1:], pictures, maps, first.scale, stretch)
    what = "" if query is None else f"{first.layout.names[first.layout.token(query)].capitalize()} and all patches. "
    return captioned(figure, what + first.caption)


def same_images(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two records can be of the same images. Normalised ones, below 0, may differ from network to network."""
    if len(a) != len(b) or a.shape != b.shape or min(a.min(), b.min()) < 0:
        return len(a) == len(b)
    return np.array_equal(a, b)


def _show_maps(
    figure: Any, axes: np.ndarray, pictures: np.ndarray, maps: list[np.ndarray], scale: tuple[str, str], stretch: bool
) -> None:
    """A column of axes for each model's maps, and the bar of their common scale."""
    kind, label = scale
    if kind == "colors":
        for column, colors in zip(axes.T, maps, strict=True):
            for ax, values, picture in zip(column, colors, pictures, strict=True):
                show_colors(ax, values, picture.shape)
        return
    if kind == "around zero":
        maps = [100 * values for values in maps]
        norm, cmap = scale_around_zero(maps), DIVERGING
    else:
        norm, cmap = scale_of(maps, stretch or min(values.min() for values in maps) < 0), SEQUENTIAL
    for column, shown in zip(axes.T, maps, strict=True):
        for ax, values, picture in zip(column, shown, pictures, strict=True):
            show_map(ax, picture, values, norm, cmap)
    color_bar(figure, axes.flat, norm, label, cmap)
