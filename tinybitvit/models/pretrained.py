"""Weights that others have trained: ViT, DeiT and DINOv2 as Hugging Face writes them, and timm's ViTs."""

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..files import CheckpointError, read_arrays
from .positions import resize_positions
from .vit import VisionTransformer

PREFIX = r"(?:module\.|model\.)?(?:vit\.|deit\.|dinov2\.|dinov2_with_registers\.|base_model\.)?"
BLOCK = r"(?:blocks|(?:encoder\.)?layers?)\.(\d+)\."

# Their names -> ours, each a whole name. One table for timm, Hugging Face 4 (and on disk) and Hugging Face 5.
NAMES = [
    (r"(?:embeddings\.)?cls_token", "cls"),
    (r"embeddings\.distillation_token|dist_token", "dist"),
    (r"embeddings\.register_tokens|reg_token", "reg"),
    (r"embeddings\.position_embeddings|pos_embed", "pos"),
    (r"(?:embeddings\.patch_embeddings\.projection|patch_embed\.proj)\.(weight|bias)", r"patch.\1"),
    (BLOCK + r"(?:layernorm_before|norm1)\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (BLOCK + r"(?:layernorm_after|norm2)\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (BLOCK + r"attn\.qkv\.(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (BLOCK + r"attention\.(?:attention\.)?(?:query|q_proj)\.(weight|bias)", r"blocks.\1.q.\2"),
    (BLOCK + r"attention\.(?:attention\.)?(?:key|k_proj)\.(weight|bias)", r"blocks.\1.k.\2"),
    (BLOCK + r"attention\.(?:attention\.)?(?:value|v_proj)\.(weight|bias)", r"blocks.\1.v.\2"),
    (BLOCK + r"(?:attn\.proj|attention\.output\.dense|attention\.o_proj)\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (BLOCK + r"(?:mlp\.fc1|intermediate\.dense)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"(?:mlp\.fc2|output\.dense)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (BLOCK + r"(?:layer_scale|ls)([12])\.(?:lambda1|gamma)", r"blocks.\1.ls\2.gamma"),
    (r"(?:layernorm|norm)\.(weight|bias)", r"norm.\1"),
    (r"(?:head|classifier|cls_classifier)\.(weight|bias)", r"head.\1"),
    (r"(?:head_dist|distillation_classifier)\.(weight|bias)", r"head_dist.\1"),
    (r"pooler\.dense\.(?:weight|bias)|(?:embeddings\.)?mask_token", ""),  # of other tasks: left out
]
RULES = [(re.compile(PREFIX + f"(?:{pattern})"), ours) for pattern, ours in NAMES]

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}


@dataclass
class Source:
    """A file in this library's terms: arrays under our short names, and what the arrays cannot tell."""

    arrays: dict[str, Any]
    heads: int
    eps: float
    gelu: str = "none"
    pool: str = "cls"
    antialias: bool = False
    grid: tuple[int, int] = (0, 0)
    preprocessing: dict[str, Any] | None = None
    state: dict[str, Any] = field(default_factory=dict)


def from_pretrained(
    path: str | os.PathLike,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    bits: float = 32,
    **options: Any,
) -> VisionTransformer:
    """A VisionTransformer with the weights of a file or folder that Hugging Face or timm wrote.

    path: a folder with config.json and model.safetensors, or a timm .safetensors file. Of Hugging Face: ViT, DeiT (with
    one head or two) and DINOv2 (with or without registers); a plain model gives features, one with a head logits.
    image_size: int or (height, width) in pixels (None: the file's); positions are resampled as the original model does
    it. num_classes: another number than the file's gets a new head, 0 none. bits and `options` go to
    VisionTransformer; below 32 bits the weights become latent weights, and the norms before proj and fc2 are new.
    heads=...: only for timm files with heads that are not 64 channels wide. `model.preprocessing` keeps the mean and
    std of the pixels (0..1) where the files tell. Raises CheckpointError for whatever cannot be read.
    """
    path = Path(path)
    try:
        source = _read(path, options.pop("heads", None))
        shape = _shape(source)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a foreign file can do wrong
        raise CheckpointError(f"{path} cannot be read as a ViT ({type(error).__name__}: {error})") from error
    patch = shape["patch_size"]
    size = F.as_pair(image_size) if image_size else tuple(g * p for g, p in zip(source.grid, patch, strict=True))
    pool = options.pop("pool", source.pool)
    head = source.arrays.get("head.weight")
    in_file = len(head) if head is not None and pool == source.pool else 0
    classes = in_file if num_classes is None else num_classes
    model = VisionTransformer(size, num_classes=classes, pool=pool, bits=bits, **shape, **options)
    model.preprocessing = source.preprocessing
    state = {**source.state, **_position_state(source, model.embed.patch.grid)}
    if classes and classes == in_file:
        state |= _head_state(source.arrays)
    new = {"proj.norm.weight", "fc2.norm.weight"} | ({"head.weight", "head.bias"} if classes != in_file else set())
    start = {name: a for name, a in model.state_dict().items() if name.endswith(tuple(new))}
    try:
        model.load_state_dict({**start, **{name: _float32(a) for name, a in state.items()}})
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit the network that its config describes: {error}") from error
    return model.eval()


def _read(path, heads):
    """The Source in a file or folder."""
    weights = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not weights.exists():
        raise CheckpointError(
            f"{path} has no model.safetensors: download that file of the model; one in parts, or a .bin file, must be "
            "saved as a single model.safetensors first"
        )
    config = _json(weights.parent / "config.json")
    arrays = _rename(read_arrays(weights), weights)
    if "model_type" in config:
        source = _hugging_face(arrays, config, weights)
    else:
        source = _timm(arrays, config, heads)
    stated = {**config.get("pretrained_cfg", {}), **config, **_json(weights.parent / "preprocessor_config.json")}
    mean, std = stated.get("image_mean", stated.get("mean")), stated.get("image_std", stated.get("std"))
    if mean is not None and std is not None:
        source.preprocessing = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    return source


def _json(path):
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download it again")
    return values


def _rename(arrays, path):
    renamed = {}
    for name, array in arrays.items():
        for pattern, ours in RULES:
            if match := pattern.fullmatch(name):
                if ours:
                    renamed[match.expand(ours)] = array
                break
        else:
            raise CheckpointError(
                f"{path} is not a plain ViT, DeiT or DINOv2: there is no place for {name} of shape {array.shape} here "
                "(SwiGLU, fc_norm, attention pooling, QK norm and relative positions are not supported)"
            )
    return renamed


def _hugging_face(arrays, config, path):
    kind = config["model_type"]
    if kind not in ("vit", "deit", "dinov2", "dinov2_with_registers"):
        raise CheckpointError(f"{path} holds a {kind!r} model; supported are vit, deit, dinov2, dinov2_with_registers")
    gelu = config.get("hidden_act", "gelu")
    if gelu not in ACTIVATIONS:
        raise CheckpointError(f"{path} uses the activation {gelu!r}; supported are {', '.join(ACTIVATIONS)}")
    eps = config.get("layer_norm_eps", 1e-6 if kind.startswith("dinov2") else 1e-12)
    pool = "cls"
    if "head_dist.weight" in arrays:
        pool = "cls+dist"
    elif kind.startswith("dinov2") and "head.weight" in arrays:
        pool = "cls+mean"
    source = Source(arrays, int(config["num_attention_heads"]), float(eps), ACTIVATIONS[gelu], pool)
    source.antialias = kind == "dinov2_with_registers"
    source.grid = _grid(arrays, config.get("image_size"))
    return source


def _timm(arrays, config, heads):
    arguments, published = config.get("model_args", {}), config.get("pretrained_cfg", {})
    pool = "cls+dist" if "head_dist.weight" in arrays else "cls"
    if config.get("global_pool", "token") == "avg" or "cls" not in arrays:
        pool = "mean"
    heads = heads or arguments.get("num_heads") or max(1, arrays["patch.weight"].shape[0] // 64)
    sizes = (arguments.get("img_size"), published.get("input_size", (0, 0, 0))[1:])
    source = Source(arrays, int(heads), 1e-6, pool=pool, antialias=True)
    source.grid = _grid(arrays, *sizes)
    return source


def _grid(arrays, *image_sizes):
    """(rows, columns) of the position grid: that of an image size in the config where it fits, else a square."""
    patch, count = arrays["patch.weight"].shape[2:], arrays["pos"].shape[1]
    prefixes = {_prefix(arrays), int("cls" in arrays), 0}
    for size in filter(None, image_sizes):
        rows, columns = (int(n) // p for n, p in zip(F.as_pair(size), patch, strict=True))
        if rows > 0 and columns > 0 and count - rows * columns in prefixes:
            return rows, columns
    for prefix in sorted(prefixes, reverse=True):
        side = math.isqrt(max(0, count - prefix))
        if side and side * side == count - prefix:
            return side, side
    raise CheckpointError(f"{count} positions are no square grid: put the model's config.json beside the file")


def _prefix(arrays):
    """How many tokens come before the patches."""
    registers = arrays["reg"].shape[1] if "reg" in arrays else 0
    return ("cls" in arrays) + ("dist" in arrays) + registers


def _shape(source):
    """Arguments of VisionTransformer that follow from the arrays, checked; fills source.state with their new names."""
    a = source.arrays
    dim, channels, *patch = a["patch.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in a if name.startswith("blocks."))
    hidden = a["blocks.0.mlp.fc1.weight"].shape[0]
    if not 0 < source.heads <= dim or dim % source.heads or not 0 < source.eps < 1:
        raise ValueError(f"{source.heads} heads for {dim} channels, eps {source.eps}")
    if depth > len(a):
        raise ValueError(f"block {depth - 1} is there, others are missing")
    state = {"embed.patch.proj.weight": a["patch.weight"].transpose(0, 2, 3, 1).reshape(dim, -1)}
    state |= {"embed.patch.proj.bias": a["patch.bias"], "norm.weight": a["norm.weight"], "norm.bias": a["norm.bias"]}
    for i in range(depth):
        state |= _block_state(a, f"blocks.{i}.")
    source.state = state
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    return {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "dim": dim,
        "depth": depth,
        "heads": source.heads,
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in a else None,
        "class_token": "cls" in a,
        "registers": _prefix(a) - ("cls" in a),
        "eps": source.eps,
        "gelu": source.gelu,
    }


def _block_state(arrays, block):
    """The arrays of one block; separate query, key and value are joined, and a missing qkv bias is 0."""
    state = {name: a for name, a in arrays.items() if name.startswith(block) and name[len(block)] not in "qkv"}
    if f"{block}q.weight" in arrays:
        state[f"{block}attn.qkv.weight"] = np.concatenate([arrays[f"{block}{part}.weight"] for part in "qkv"])
        if f"{block}q.bias" in arrays:
            state[f"{block}attn.qkv.bias"] = np.concatenate([arrays[f"{block}{part}.bias"] for part in "qkv"])
    if f"{block}attn.qkv.bias" not in state:
        state[f"{block}attn.qkv.bias"] = np.zeros(len(state[f"{block}attn.qkv.weight"]), "float32")
    return state


def _position_state(source, grid):
    """Positions and the tokens before the patches: all but the class token's own position is added into the tokens."""
    a, dim = source.arrays, source.arrays["patch.weight"].shape[0]
    pos = _float32(a["pos"])[0]
    prefix = len(pos) - source.grid[0] * source.grid[1]
    patches = pos[prefix:].reshape(*source.grid, dim)
    if grid != source.grid:
        patches = resize_positions(patches, grid, source.antialias)
    has_class = "cls" in a
    before = np.zeros((_prefix(a), dim), "float32")
    before[:prefix] = pos[:prefix]
    state = {"embed.pos_embed": np.concatenate([before[:has_class], patches.reshape(-1, dim)])[None]}
    if has_class:
        state["embed.cls_token"] = a["cls"]
    if tokens := [_float32(a[name]) for name in ("dist", "reg") if name in a]:
        state["embed.reg_token"] = np.concatenate(tokens, axis=1) + before[has_class:]
    return state


def _head_state(arrays):
    """The head; the mean of DeiT's two heads is one head on both tokens."""
    weight, bias = _float32(arrays["head.weight"]), _float32(arrays["head.bias"])
    if "head_dist.weight" in arrays:
        weight = np.concatenate([weight, _float32(arrays["head_dist.weight"])], axis=1) / 2
        bias = (bias + _float32(arrays["head_dist.bias"])) / 2
    return {"head.weight": weight, "head.bias": bias}


def _float32(array):
    return array.astype("float32", copy=False)
