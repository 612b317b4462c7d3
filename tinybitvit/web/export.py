"""Models to one HTML text: packed weights in base64, the forward pass in JavaScript (vit.js), a page to try them on."""

import html
import re
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..data import Normalize
from ..data.images import Ground
from ..io.checkpoint import file_bytes
from ..quant import LAYOUTS, BitLinear, PackedLinear, pack
from ..viz import page as attention_page
from ..viz.record import CAVEAT

FOLDER = Path(__file__).parent
SCRIPTS = ("vit.js", "draw.js", "page.js", "pad.js", "pictures.js")
LIMIT = 25e6  # bytes of a page that a phone still opens
UNIT = np.float32(255)  # of an 8-bit pixel, which Normalize divides by

Entry = tuple[str, tuple[int, ...], np.ndarray]  # layout or "float32", shape of the weight, array


def to_html(
    models: Any, path: str | PathLike | None = None, *, X: Any = None, y: Any = None, title: str | None = None
) -> str:
    """A page with the trained models inside, on which one draws or opens an image; written to `path` if given.

    models: a fitted `tb.ViT`, a `VisionTransformer` (its classes are numbers, its pixels 0..1 are normalised by its
    `preprocessing`, else by 0.5), or a dict from names to such models of one image shape, which see the same image.
    X: a few example images as for `predict` of the first model, their labels y. Black and white of a picture become
    those of the images that the model was fitted on, and a drawing of the other polarity is inverted.

    Low-bit weights are packed as densely as the layouts allow, 1.58 bits as "base3". Returns the page. Raises
    ValueError for models that do not fit on one page, with the size where it exceeds 25 MB.
    """
    named = dict(models) if isinstance(models, Mapping) else {"": models}
    if not named:
        raise ValueError("give at least one model")
    networks = {name: getattr(model, "model_", model) for name, model in named.items()}
    shape = _shared_shape(networks)
    X = None if X is None else _check_examples(X, y, next(iter(networks.values())), shape)
    arrays = {name: _arrays(network) for name, network in networks.items()}
    size = 4 / 3 * sum(array.nbytes for entries in arrays.values() for _, _, array in entries.values())
    if size > LIMIT:
        raise ValueError(
            f"the page would have {size / 1e6:.0f} MB, and up to {LIMIT / 1e6:.0f} MB open well in a browser: export"
            " fewer bits, fewer models or a smaller network"
        )
    norms = [_units(model) for model in named.values()]
    ground = next((norm.units.ground for norm in norms if norm.units.ground), None)
    blocks = [_model(name, named[name], arrays[name], ground) for name in named]
    ink = next(block["ink"] for block, norm in zip(blocks, norms, strict=True) if norm.units.ground == ground)
    heading = title or f"Vision Transformer: {', '.join(block['name'] for block in blocks)}"
    data = {
        "shape": shape,
        "frame": _frame(shape, ink),
        "ground": ground,
        "colors": attention_page.COLORS["attention"],
        "examples": None if X is None else _examples(X, y, norms[0]),
        "models": blocks,
    }
    parts = {
        "title": html.escape(heading),
        "caveat": html.escape(CAVEAT),
        "css": attention_page.page_file("theme.css") + attention_page.page_file("page.css") + _file("page.css"),
        "mark": attention_page.page_mark(),
        "js": "".join(map(_file, SCRIPTS)),
        "data": attention_page.page_json(data),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("page.html"))  # one pass: data is not searched
    return attention_page.save(page, path)


# --- models -----------------------------------------------------------------------------------------------------------


def _shared_shape(networks: dict[str, Any]) -> tuple[int, int, int]:
    """(H, W, C) of the images that all of the networks take."""
    shapes = {}
    for name, network in networks.items():
        if not hasattr(network, "embed"):
            kind = type(network).__name__
            raise ValueError(f"a page holds fitted tb.ViT or VisionTransformer models, not {kind}: call fit first")
        if network.head is None:
            raise ValueError("a network without a head (num_classes=0) has no classes to show: give it a head")
        shapes[name] = (*network.embed.patch.image_size, network.embed.patch.in_channels)
    if len(set(shapes.values())) > 1:
        raise ValueError(f"models on one page see the same image, but these take {shapes}: export them one by one")
    return next(iter(shapes.values()))


def _arrays(network: Any) -> dict[str, Entry]:
    """All weights by name: low-bit ones packed as densely as can be, the others float32."""
    arrays = {}
    for name, array in network.state_dict().items():
        array = backend.to_numpy(array)
        arrays[name] = ("float32", array.shape, array.astype("<f4"))
    for name, layer in network.named_modules():
        if isinstance(layer, (BitLinear, PackedLinear)):
            codes, scale = map(backend.to_numpy, layer.codes())
            layout = layer.quantizer.layout("disk")
            arrays.pop(f"{name}.weight", None)
            arrays[f"{name}.packed"] = (layout, codes.shape, pack(codes, layout))
            arrays[f"{name}.scale"] = ("float32", (scale.size,), scale.reshape(-1).astype("<f4"))
    return arrays


def _model(name: str, model: Any, arrays: dict[str, Entry], ground: Ground | None) -> dict[str, Any]:
    """What the page, whose images have that ground, is told of a model: configuration, pixels, sizes and weights."""
    network = getattr(model, "model_", model)
    config, patch = network.config, network.embed.patch
    floats_first = sorted(arrays.items(), key=lambda item: item[1][0] != "float32")  # they must lie at multiples of 4
    index, start = {}, 0
    for key, (kind, shape, array) in floats_first:
        index[key] = kind, shape, start, array.nbytes
        start += array.nbytes
    content = b"".join(array.tobytes() for _, (_, _, array) in floats_first)
    weights = sum(int(np.prod(shape)) for key, (_, shape, _) in arrays.items() if not key.endswith(".scale"))
    used = sorted({kind for kind, _, _ in arrays.values()} - {"float32"})
    normalize, ink = _normalize(_units(model), ground)
    sub_norms = (m.norm for m in network.modules() if isinstance(m, (BitLinear, PackedLinear)) and m.norm is not None)
    return {
        "name": name or ("1 bit" if config["bits"] == 1 else f"{config['bits']:g} bits"),
        "bits": config["bits"],
        "classes": [str(label) for label in getattr(model, "classes_", range(config["num_classes"]))],
        "config": {
            **{key: config[key] for key in ("dim", "depth", "heads", "pool", "eps", "gelu", "activation_bits")},
            "image_shape": (*patch.image_size, patch.in_channels),
            "patch_size": patch.patch_size,
            "prefix": network.embed.prefix,
            "sub_norm_eps": next((norm.eps for norm in sub_norms), None),
        },
        "normalize": normalize,
        "ink": ink,
        "size": {"bytes": file_bytes(model), "effective_bits": 8 * len(content) / weights},
        "layouts": {layout: _layout(layout) for layout in used},
        "arrays": index,
        "bytes": attention_page.page_base64(np.frombuffer(content, np.uint8)),
    }


def _layout(name: str) -> dict[str, Any]:
    layout = LAYOUTS[name]
    return {"base": layout.base, "weights_per_byte": layout.weights_per_byte, "codes": layout.codes}


# --- pixels -----------------------------------------------------------------------------------------------------------


def _units(model: Any) -> Normalize:
    """What is known of a model's pixels; those of a network are in 0..1."""
    stated = getattr(model, "preprocessing", None) or {"mean": 0.5, "std": 0.5}
    return model.normalize_ if hasattr(model, "normalize_") else Normalize(stated["mean"], stated["std"])


def _normalize(norm: Normalize, ground: Ground | None) -> tuple[dict[str, Any], float]:
    """How bytes of the page become what the network takes, (low + step byte - offset) scale, and the training images'
    ink: the mean pixel as a share of the way from the ground, black where none is known, to the other end.
    """
    low, high = norm.ends
    mean, std, span = norm.mean, norm.std, high - low
    ink = float((mean.mean() - low) / span)
    if (low, high) == (0.0, 1.0):  # pixels were bytes, or floats in 0..1: what Normalize does to bytes, bit for bit
        mean, std, span = mean * UNIT, std * UNIT, 255
    step = span / 255
    if norm.units.ground not in (None, ground):  # the page's images are negatives of those of the training
        low, step = low + span, -step
    result = {"low": low, "step": step, "offset": mean.tolist(), "scale": (1 / std).tolist()}
    return result, 1 - ink if norm.units.ground == "light" else ink


def _frame(shape: tuple[int, int, int], ink: float) -> dict[str, Any] | None:
    """How drawings are brought into the form of the training images (see `drawnImage` in draw.js); None: not at all.

    8 x 8 digits (UCI, by NIST's routines) fill 20 x 32 samples, and all have as much ink; MNIST's fill 20 x 20 of 28 x
    28 pixels around their centre of mass; other grey images, such as Fashion-MNIST's, touch their borders.
    """
    height, width, channels = shape
    if channels != 1 or not 4 <= min(height, width) <= max(height, width) <= 64:
        return None
    if (height, width) == (8, 8):
        return {"box": (20 / 32, 1), "stretch": True, "centre": "box", "pen": None, "ink": ink}
    if (height, width) == (28, 28) and ink < 0.2:
        return {"box": (20 / 28, 20 / 28), "stretch": False, "centre": "mass", "pen": 2.4, "ink": None}
    return {"box": (1, 1), "stretch": False, "centre": "box", "pen": None, "ink": None}


def _check_examples(X: Any, y: Any, network: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The examples as (n, H, W, C)."""
    X = np.asarray(X)
    if X.ndim in (2, 3) and X[0].size == np.prod(shape):
        X = X.reshape(len(X), *shape)
    network._check_images(X)
    if y is not None and len(y) != len(X):
        raise ValueError(f"X holds {len(X)} images and y {len(y)} labels; give one label per image")
    return X


def _examples(X: np.ndarray, y: Any, norm: Normalize) -> dict[str, Any]:
    X = norm.units.conversion(X)(X)
    if X.dtype != np.uint8:
        low, high = norm.ends
        X = np.clip(np.rint((X - low) / ((high - low) / 255)), 0, 255).astype(np.uint8)
    return {"pixels": attention_page.page_base64(X), "labels": None if y is None else [str(label) for label in y]}


@cache
def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
