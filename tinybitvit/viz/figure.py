"""What all plots share. Only the plotting modules of `tinybitvit.viz` import matplotlib, and none touches pyplot's
global state.
"""

import io
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from ..files import new_file, printable
from .images import display_images

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"  # both can be read by the colour-blind
# Okabe & Ito's palette: eight hues that the colour-blind can tell apart; here with grey instead of the pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
FLAT = 1e-9  # where all values are alike a scale is 1 wide: its ticks would be noise
LONGEST_NAME = 24  # letters of a class in a figure: longer names would leave the pictures no room
NARROW, ONE_LINE = 14, 11  # of one beside a small picture, and in one line with its probability


class Picture(Figure):
    """A matplotlib Figure that a notebook shows without pyplot; save it with `savefig(path)`.

    Its texts are no formulas unless it is to have some: a class may be called "5$ to 10$", or hold any bytes.
    """

    formulas = False

    def draw(self, renderer: Any) -> None:
        """matplotlib's own, by which every figure passes."""
        for text in self.findobj(Text) if not self.formulas else ():
            text.set_parse_math(False)
            text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
        super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """matplotlib's own; a file becomes the picture in one step. Raises OSError."""
        if not isinstance(fname, (str, PathLike)):
            return super().savefig(fname, **options)
        path = Path(fname)
        form = options.pop("format", None) or path.suffix[1:]
        if not form:  # as matplotlib names it
            form = self.canvas.get_default_filetype()
            path = path.with_name(f"{path.name}.{form}")
        with new_file(path) as file:
            super().savefig(file, format=form, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: float, height: float, formulas: bool = False) -> Picture:
    """An empty figure of so many inches that leaves its labels room. formulas: whether $...$ in its texts are some."""
    figure = Picture(figsize=(width, height), layout="compressed")
    figure.formulas = formulas
    return figure


def shortened(name: Any, most: int = LONGEST_NAME) -> str:
    """A name of so many letters at most: of a longer one the beginning and the end, which tell it from others."""
    text, end = str(name), most // 3
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[-end:]}"


def predicted(label: Any, share: float) -> str:
    """A class and its probability, which stand below each other where they would be wider than a small picture."""
    name = shortened(label, NARROW)
    gap = "\n" if len(name) > ONE_LINE else " "
    return f"{name}{gap}({share:.0%})"


def show_image(ax: Axes, image: np.ndarray) -> None:
    """An RGB image without ticks."""
    ax.imshow(image)
    ax.set_xticks([])
    ax.set_yticks([])


def show_map(ax: Axes, image: np.ndarray, values: np.ndarray, norm: Normalize, cmap: str = SEQUENTIAL) -> None:
    """A map (rows, columns) of patches over its RGB image, which is grey and of low contrast so as to leave the colours
    alone.
    """
    height, width = image.shape[:2]
    ax.imshow(image.mean(axis=2), cmap="gray", vmin=-128, vmax=384)
    ax.imshow(values, cmap=cmap, norm=norm, alpha=0.85, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    ax.set_xticks([])
    ax.set_yticks([])


def show_colors(ax: Axes, colors: np.ndarray, shape: tuple[int, ...]) -> None:
    """Colours (rows, columns, 3) of patches in the place of their image, of this shape."""
    height, width = shape[:2]
    ax.imshow(colors, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    ax.set_xticks([])
    ax.set_yticks([])


def captioned(figure: Picture, text: str) -> Picture:
    """The text below the figure, broken to its width."""
    words, lines = text.split(), [""]
    most = int(figure.get_figwidth() * 15)
    for word in words:
        if len(lines[-1]) + len(word) > most:
            lines.append("")
        lines[-1] += word + " "
    figure.supxlabel("\n".join(line.strip() for line in lines), fontsize=8, color="0.35")
    return figure


def mark_patch(ax: Axes, patch: tuple[int, int], size: tuple[int, int]) -> None:
    """A frame around one patch; size: its (height, width) in pixels."""
    corner = patch[1] * size[1] - 0.5, patch[0] * size[0] - 0.5
    for color, width in (("black", 3.5), ("white", 1.5)):
        ax.add_patch(Rectangle(corner, size[1], size[0], fill=False, edgecolor=color, linewidth=width))


def color_bar(
    figure: Figure, axes: Iterable[Axes], norm: Normalize, label: str, cmap: Any = SEQUENTIAL, ticks: Any = None
) -> None:
    """A horizontal colour bar below the given axes, which all have this scale."""
    axes = list(axes)
    places = [place for ax in axes if (place := ax.get_subplotspec())]
    columns = len({place.colspan.start for place in places})
    width = figure.get_figwidth() * columns / places[0].get_gridspec().ncols
    # the layout takes a bar's height from its aspect: about 0.13 inches whatever the width
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=axes, location="bottom", aspect=width / 0.13, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if ticks is not None:
        bar.set_ticks(ticks)
    else:
        bar.ax.locator_params(nbins=5)


def scale_of(maps: Sequence[np.ndarray], stretch: bool = False) -> Normalize:
    """One scale for all maps, from 0 (stretch: from the smallest value) to the largest."""
    low = min(float(m.min()) for m in maps) if stretch else 0.0
    high = max(float(m.max()) for m in maps)
    return Normalize(low, high if high - low > FLAT else low + 1)


def scale_around_zero(maps: Sequence[np.ndarray]) -> Normalize:
    """One scale for all maps, symmetric about 0."""
    span = max(float(np.abs(m).max()) for m in maps)
    span = span if span > FLAT else 1.0
    return Normalize(-span, span)


def layers_by_heads(ax: Axes, values: np.ndarray, norm: Normalize, title: str, texts: np.ndarray | None = None) -> None:
    """Values (layers, heads) as a grid of colours, with the texts (layers, heads) in its cells where there is room."""
    ax.imshow(values, cmap=SEQUENTIAL, norm=norm, aspect="auto")
    ax.set(title=title, xlabel="head", ylabel="layer")
    ax.set_xticks(range(values.shape[1]))
    ax.set_yticks(range(values.shape[0]))
    if texts is not None and values.shape[1] <= 8:
        write_cells(ax, texts, norm(values) > 0.6)


def write_cells(ax: Axes, texts: np.ndarray, light: np.ndarray, size: float = 8) -> None:
    """A text in each cell of a grid of colours: black where the colour is light, else white."""
    for (row, column), text in np.ndenumerate(texts):
        ax.text(
            column, row, text, ha="center", va="center", fontsize=size, color="black" if light[row, column] else "white"
        )


def chosen_images(images: np.ndarray, numbers: Sequence[int] | None, most: int = 4) -> tuple[list[int], np.ndarray]:
    """The numbers of the images to show (None: the first few) and the images as RGB (n, H, W, 3)."""
    count = len(images)
    numbers = list(range(min(most, count))) if numbers is None else [int(i) for i in numbers]
    if not numbers or any(not -count <= i < count for i in numbers):
        raise ValueError(f"images must hold numbers from 0 to {count - 1}, not {numbers}")
    return numbers, display_images(images)[numbers]
