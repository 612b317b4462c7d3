"""The interactive page: one HTML text with its data, style and script inside, which asks the network for nothing."""

import base64
import html
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_file
from . import measures
from .compare import ComparedMaps
from .images import display_images
from .record import CAVEAT, RecordedMaps

FOLDER = Path(__file__).parent
SCRIPTS = ("maps.js", "views.js", "page.js")
LIMIT = 8e6  # bytes from which a page is slow to open and heavy in a notebook
# Evenly spaced colours of matplotlib's viridis (sequential) and RdBu_r (diverging); the page interpolates between them.
# fmt: off
COLORS = {
    "attention": [
        "#440154", "#48186a", "#472d7b", "#424086", "#3b528b", "#33638d", "#2c728e", "#26828e", "#21918c", "#1fa088",
        "#28ae80", "#3fbc73", "#5ec962", "#84d44b", "#addc30", "#d8e219", "#fde725",
    ],
    "difference": [
        "#053061", "#2065ab", "#4393c3", "#90c4dd", "#d1e5f0", "#f7f6f6", "#fddbc7", "#f3a481", "#d6604d", "#b1182b",
        "#67001f",
    ],
}
# fmt: on


def render(
    source: RecordedMaps | ComparedMaps,
    *,
    layers: Sequence[int] | None = None,
    max_images: int | None = None,
    note: str = "",
) -> str:
    """The page for a record, or for a comparison with its models side by side.

    Every map is sent with one byte a value and one scale a row, so a value is off by 0.2 % of its row's largest at
    most. layers: which layers to send (None: all; a rollout still counts the layers below); max_images: send the first
    so many. A page above 8 MB gives a UserWarning that names its size and these two arguments.
    """
    records = _records(source)
    first = next(iter(records.values()))
    chosen = _layer_numbers(layers, first.depth)
    count = len(first) if max_images is None else min(max_images, len(first))
    if count < 1:
        raise ValueError(f"max_images must be 1 or more, not {max_images}")
    size = estimate(records, len(chosen), count)
    if size > LIMIT:
        warnings.warn(
            f"the page has about {size / 1e6:.0f} MB and will open slowly: send a part of it with"
            f" layers=[{first.depth - 1}] or max_images=1",
            stacklevel=3,
        )
    parts = {
        "title": html.escape(_title(records)),
        "caveat": html.escape(CAVEAT),
        "css": page_file("theme.css") + page_file("page.css"),
        "mark": page_mark(),
        "js": "".join(map(page_file, SCRIPTS)),
        "data": page_json(_data(source, chosen, count, note)),
    }
    return re.sub(
        r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page_file("page.html")
    )  # one pass: data is never searched


def to_html(
    source: RecordedMaps | ComparedMaps,
    path: str | PathLike | None = None,
    *,
    layers: Sequence[int] | None = None,
    max_images: int | None = None,
) -> str:
    """The interactive page, models side by side, as one text, written to `path` if given; see `page.render`."""
    return save(render(source, layers=layers, max_images=max_images), path)


def save(page: str, path: str | PathLike | None) -> str:
    """Write the page to `path` unless that is None; returns the page. Raises OSError."""
    if path is not None:
        write_file(path, page)
    return page


def frame(source: RecordedMaps | ComparedMaps) -> str:
    """The page in an iframe for a notebook; what would make it larger than 8 MB is left out, and the page says so."""
    records = _records(source)
    first = next(iter(records.values()))
    depth, count = first.depth, len(first)
    while estimate(records, depth, count) > LIMIT and (count > 1 or depth > 1):
        depth, count = (depth, math.ceil(count / 2)) if count > 1 else (math.ceil(depth / 2), 1)
    note = ""
    if (depth, count) != (first.depth, len(first)):
        whole = estimate(records, first.depth, len(first)) / 1e6
        note = (
            f"Only the last {depth} of {first.depth} layers and the first {count} of {len(first)} images are shown;"
            f" .to_html(path) writes all of them ({whole:.0f} MB)."
        )
    page = render(source, layers=range(first.depth - depth, first.depth), max_images=count, note=note)
    rows = math.ceil((len(records) + 1) / 4)  # of panels, in a cell about 900 pixels wide
    overview = 20 * depth * max(1, round(12 / first.heads / 2))
    height = 440 + rows * (400 + min(overview, 280))
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts" loading="lazy" title="attention maps"'
        f' style="width: 100%; height: {height}px; border: 0"></iframe>'
    )


def estimate(records: Mapping[str, RecordedMaps], layers: int, images: int) -> float:
    """The size in bytes of a page with so many layers and images."""
    total = 0.0
    for record in records.values():
        kinds = record.heads + 2 + (record.gradients is not None) + (record.tokens is not None)
        total += images * layers * kinds * record.layout.tokens * (record.layout.tokens + 4)
    height, width = record.images.shape[1:3]
    return (total + images * height * width * 3) * 4 / 3 + 40_000


# --- what the page is told --------------------------------------------------------------------------------------------


def _records(source: Any) -> Mapping[str, RecordedMaps]:
    return {"": source} if isinstance(source, RecordedMaps) else source.records


def _layer_numbers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """The chosen layers in rising order, counted from 0; None: all."""
    if layers is None:
        return list(range(depth))
    if not len(layers) or any(not -depth <= layer < depth for layer in layers):
        raise ValueError(f"layers must hold numbers from 0 to {depth - 1}, not {list(layers)}")
    return sorted({layer % depth for layer in layers})


def _title(records: Mapping[str, RecordedMaps]) -> str:
    return "Attention" if len(records) == 1 else f"Attention: {', '.join(records)}"


def _data(source: Any, layers: list[int], count: int, note: str) -> dict[str, Any]:
    records = _records(source)
    first = next(iter(records.values()))
    layout, y = first.layout, getattr(source, "y", None)
    rgb = display_images(first.images[:count])
    short = ["CLS"] * layout.class_token + [f"R{i}" for i in range(layout.registers)]
    return {
        "note": note,
        "layout": {
            "grid": layout.grid,
            "prefix": layout.prefix,
            "readout": layout.readout.tolist(),
            "reads": layout.describe(),
            "names": layout.names,
            "short": short,
        },
        "layers": layers,
        "heads": first.heads,
        "images": {"count": count, "height": rgb.shape[1], "width": rgb.shape[2], "rgb": page_base64(rgb)},
        "truth": None if y is None else [str(label) for label in y[:count]],
        "colors": COLORS,
        "models": [_model(source, name, record, layers, count) for name, record in records.items()],
    }


def _model(source: Any, name: str, record: RecordedMaps, layers: list[int], count: int) -> dict[str, Any]:
    """Maps, predictions and the layers-by-heads overview of one model; its heads in the order of the reference's."""
    matches = (
        source.matches[name] if hasattr(source, "matches") else np.tile(np.arange(record.heads), (record.depth, 1))
    )
    other = hasattr(source, "divergence") and name != source.reference
    overview = source.divergence[name] if other else record.entropy()[:count].mean(axis=0)
    heads = np.stack([record.maps[layer][:count, matches[layer]] for layer in layers], axis=1)
    fused = [measures.fuse_heads(a[:count]) for a in record.maps]
    result: dict[str, Any] = {
        "name": name,
        "heads": _packed(heads),
        "min": _packed(_stacked([measures.fuse_heads(a[:count], "min") for a in record.maps], layers)),
        "rollout": _packed(_stacked(measures.rollout(fused), layers)),
        "gradient": None,
        **_views(record, layers, count),
        "matches": matches[layers].tolist() if other else None,
        "overview": {
            "title": f"Layers by heads: divergence from {source.reference}" if other else "Layers by heads: entropy",
            "values": np.round(overview[layers], 4).tolist(),
        },
        "predictions": None,
    }
    if record.gradients is not None and record.target is not None:
        gradients = measures.gradient_rollout([a[:count] for a in record.maps], [g[:count] for g in record.gradients])
        result["gradient"] = _packed(_stacked(gradients, layers))
        result["target"] = [str(record.classes[i]) for i in record.target[:count]]
    if record.logits is not None:
        likely = record.probabilities[:count].max(axis=1)
        result["predictions"] = [
            {"label": str(label), "probability": float(p)} for label, p in zip(record.predictions, likely, strict=False)
        ]
    return result


def _views(record: RecordedMaps, layers: list[int], count: int) -> dict[str, str | None]:
    """What is known of tokens and of covered patches, in base64; None: not recorded.

    Cosines (images, layers, T, T) as int8 of 127ths, norms (images, layers, T) and occlusion (images, P) as float32,
    colours (images, layers, P, 3) as bytes.
    """
    views: dict[str, np.ndarray | None] = dict.fromkeys(("similarity", "norms", "components", "occlusion"))
    if record.tokens is not None:
        shown = replace(record, tokens=[x[:count] for x in record.tokens], images=record.images[:count])
        cosines, norms, colors = (
            np.stack([of(layer) for layer in layers], axis=1)
            for of in (shown.similarity, shown.norms, shown.component_colors)
        )
        views["similarity"] = np.rint(127 * cosines).astype(np.int8)
        views["norms"] = norms.astype("<f4")
        views["components"] = np.rint(255 * colors).astype(np.uint8)
    if record.occlusion is not None:
        views["occlusion"] = record.occlusion[:count].astype("<f4")
    return {name: None if a is None else page_base64(a) for name, a in views.items()}


def _stacked(maps: list[np.ndarray], layers: list[int]) -> np.ndarray:
    return np.stack([maps[layer] for layer in layers], axis=1)


def _packed(a: np.ndarray) -> dict[str, str]:
    """Matrices (..., T, T), none negative, as uint8 and one float32 scale a row, both in base64."""
    scale = np.maximum(a.max(axis=-1, keepdims=True), 1e-12) / 255
    return {"values": page_base64(np.rint(a / scale).astype(np.uint8)), "scale": page_base64(scale.astype("<f4"))}


def page_base64(a: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(a).tobytes()).decode("ascii")


def page_json(data: Any) -> str:
    # The text stands inside <script>: without any "<" no class name can end that element.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def page_mark() -> str:
    """The mark for the header of a page, as an element of HTML, which needs no namespace."""
    return page_file("mark.svg").replace(' xmlns="http://www.w3.org/2000/svg"', "").strip()


@cache
def page_file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
