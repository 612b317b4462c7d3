"""Image files in, a picture or a page out: what the command `tinybitvit attention` does."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..data import Normalize, read_image
from .observe import attention, compare_attention


def attention_files(
    model: Any,
    paths: Sequence[str | PathLike],
    out: str | PathLike,
    occlude: bool = False,
) -> Path:
    """Write what a model attends to in image files: an interactive page (.html) or a picture (.png, .pdf, .svg).

    model: a fitted `tb.ViT`, a `VisionTransformer`, or a dict from names to such models, which are compared. Images are
    stretched to the model's size and, for a VisionTransformer, normalised by its `preprocessing` (mean and std 0.5,
    the original ViTs', where it has none). occlude: for the page,
    measure what covering each patch does. Returns the path. Raises DataError for a file that is no image.
    """
    out = Path(out)
    if out.suffix not in (".html", ".png", ".pdf", ".svg"):
        raise ValueError(f"{out} must end in .html, .png, .pdf or .svg: the ending chooses what is written")
    if not paths:
        raise ValueError("give at least one image file")
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    first = next(iter(models.values()))
    X = first.read_images(paths) if hasattr(first, "read_images") else _load(first, paths)
    several = len(models) > 1
    occlude = occlude and out.suffix == ".html"
    result = compare_attention(models, X, occlude=occlude) if several else attention(first, X, occlude=occlude)
    if out.suffix == ".html":
        result.to_html(out)
    else:
        result.plot(images=range(len(X))).savefig(out, dpi=150)
    return out


def _load(model: Any, paths: Sequence[str | PathLike]) -> np.ndarray:
    """The files as a VisionTransformer takes images (N, H, W, C): of its shape, and normalised."""
    shape = (*F.as_pair(model.config["image_size"]), model.config["in_channels"])
    normalize = Normalize.from_dict(model.preprocessing or {"mean": [0.5], "std": [0.5]})
    return normalize(np.stack([read_image(path, shape) for path in paths]))
