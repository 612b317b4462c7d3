"""Weights that others have trained: ViT, DeiT and DINOv2 as Hugging Face writes them, and timm's ViTs."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..files import CheckpointError, file_problem, read_arrays
from . import configs, zoo
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
PART = re.compile(r".*-\d+-of-(?!0*1\.)\d+\.safetensors")  # of more than one
OWN = "model.embed.pos_embed"  # is in every file of `io.save_model`
RULES = [(re.compile(PREFIX + f"(?:{pattern})"), ours) for pattern, ours in NAMES]


@dataclass
class Source:
    """A file in this library's terms: arrays under our short names, and what the arrays cannot tell."""

    arrays: dict[str, Any]
    heads: int
    eps: float
    gelu: str
    pool: str
    antialias: bool
    grid: tuple[int, int]
    preprocessing: dict[str, Any] | None


def from_pretrained(
    path: str | os.PathLike,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    bits: float = 32,
    **options: Any,
) -> VisionTransformer:
    """A VisionTransformer with the weights of a file or folder that Hugging Face or timm wrote.

    path: a folder with config.json and model.safetensors (or model.safetensors.index.json and the parts that it names),
    or a timm .safetensors file. Of Hugging Face: ViT, DeiT (with one head or two) and DINOv2 (with or without
    registers); a plain model gives features, one with a head logits. image_size: int or (height, width) in pixels
    (None: the file's); positions are resampled as the original model does it. num_classes: another number than the
    file's gets a new head, 0 none; so does every number with another pool=... than the file's, whose head is then of no
    use. bits and `options` go to VisionTransformer, but for sizes and details that the weights need as they are; below
    32 bits the weights become latent weights, and the norms before proj and fc2 are new. heads=...: for timm files
    without a config whose heads are not 64 channels wide. `model.preprocessing` keeps the mean and std of the pixels
    (0..1) where the files tell. Raises CheckpointError for whatever cannot be read, and for a config that asks for what
    a network here cannot do, and ValueError for options that do not fit the file.
    """
    path = Path(path)
    try:
        source = _read(path, options.pop("heads", None))
        shape, state = _shape(source), _block_states(source.arrays)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a foreign file can do wrong
        reasons = {ValueError: f"{error}", KeyError: f"it lacks {error}"}
        reason = reasons.get(type(error), f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{path} cannot be read as a ViT: {reason}") from error
    if taken := sorted(shape.keys() & options.keys()):
        raise ValueError(f"{taken[0]} is {shape[taken[0]]!r} in {path}, as its weights need it: leave {taken[0]} out")
    size = tuple(g * p for g, p in zip(source.grid, shape["patch_size"], strict=True))
    if image_size:
        size = F.as_pair(image_size)
    pool, in_file = _pooling(path, source, options.pop("pool", None), num_classes)
    classes = in_file if num_classes is None else num_classes
    model = VisionTransformer(size, num_classes=classes, pool=pool, bits=bits, **shape, **options)
    model.preprocessing = source.preprocessing
    new = {"proj.norm.weight", "fc2.norm.weight"} | ({"head.weight", "head.bias"} if classes != in_file else set())
    start = {name: a for name, a in model.state_dict().items() if name.endswith(tuple(new))}
    try:
        state |= _position_state(source, model.embed.patch.grid)
        if classes and classes == in_file:
            state |= _head_state(source.arrays)
        model.load_state_dict({**start, **{name: _float32(a) for name, a in state.items()}})
    except (ValueError, LookupError) as error:
        raise CheckpointError(f"{path} does not fit the network that its config describes: {error}") from error
    return model.eval()


def _pooling(path: Path, source: Source, pool: str | None, num_classes: int | None) -> tuple[str, int]:
    """The tokens that are pooled, and how many classes the file's head on them has, 0 without one."""
    in_file = configs.sizes_of(source.arrays)["classes"]
    if pool is None and num_classes is None and source.pool == "cls+dist" and not in_file:
        raise CheckpointError(
            f"{path} is a distilled DeiT without heads, whose features are the mean of two tokens, which is not"
            " supported: call from_pretrained with num_classes= for a new head on both, or with pool='cls'"
        )
    if pool in (None, source.pool):
        return source.pool, in_file
    if in_file and num_classes is None:
        raise ValueError(
            f"the head in {path} is for pool={source.pool!r}, not {pool!r}: give num_classes= for a new one, 0 for none"
        )
    return str(pool), 0


def _read(path: Path, heads: int | None) -> Source:
    """The Source in a file or folder."""
    folder = path if path.is_dir() else path.parent
    arrays = _rename(_arrays(path))
    if "reg" in arrays and not arrays["reg"].size:  # a model with registers may have none
        del arrays["reg"]
    config, stated = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    if wrong := [name for name, a in arrays.items() if not a.size or a.dtype.kind != "f"]:
        raise ValueError(f"{wrong[0]} holds no floats but {arrays[wrong[0]].dtype}, shape {arrays[wrong[0]].shape}")
    told = configs.hugging_face(arrays, config) if "model_type" in config else configs.timm(arrays, config, heads)
    channels = arrays["patch.weight"].shape[1]
    return Source(arrays, **told, preprocessing=configs.preprocessing(config, stated, channels))


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file, or of the file or the parts in a folder."""
    if not path.is_dir():
        return _whole_model(path)
    if (path / "model.safetensors").exists():
        return _whole_model(path / "model.safetensors")
    index = path / "model.safetensors.index.json"
    if not index.exists():
        raise CheckpointError(
            f"{path} has no model.safetensors: download that file of the model (a .bin file cannot be read)"
        )
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise CheckpointError(f"{index} has no weight_map from arrays to files: download it again")
    arrays = {}
    for part in sorted(set(places.values())):
        if Path(part).name != part or "\\" in part:
            raise CheckpointError(f"{index} names the file {part!r}: the parts of a model must lie beside it")
        for name, array in read_arrays(path / part).items():
            if places.get(name) != part:
                raise CheckpointError(f"{path / part} holds {name}, which {index.name} finds in {places.get(name)}")
            arrays[name] = array
    if lacking := places.keys() - arrays.keys():
        raise CheckpointError(f"{path / places[min(lacking)]} lacks {min(lacking)}: download that file again")
    return arrays


def _whole_model(path: Path) -> dict[str, Any]:
    """The arrays of a file that holds all of a model. CheckpointError for files that have another way in."""
    if not path.exists() and str(path) in zoo.names():
        raise CheckpointError(f"{path} is a network of the zoo: take tb.load({str(path)!r})")
    if path.exists() and (path.suffix == ".json" or PART.fullmatch(path.name)):
        kind = "JSON, not weights" if path.suffix == ".json" else "one part of a model"
        raise CheckpointError(f"{path} is {kind}: give the folder that it lies in")
    arrays = read_arrays(path)
    if OWN in arrays:
        raise CheckpointError(f"{path} is one of TinyBitViT's own files: take tb.load({str(path)!r})")
    return arrays


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    if problem := file_problem(path):
        raise CheckpointError(problem)
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download it again")
    return values


def _rename(arrays: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, array in arrays.items():
        for pattern, ours in RULES:
            if match := pattern.fullmatch(name):
                if ours and renamed.setdefault(match.expand(ours), array) is not array:
                    raise ValueError(f"it holds {match.expand(ours)} under several names, one of them {name}")
                break
        else:
            raise ValueError(
                f"it is no plain ViT, DeiT or DINOv2: there is no place for {name} of shape {array.shape} here "
                "(SwiGLU, fc_norm, attention pooling, QK norm and relative positions are not supported)"
            )
    return renamed


def _shape(source: Source) -> dict[str, Any]:
    """Arguments of VisionTransformer, checked against the arrays."""
    a, sizes = source.arrays, configs.sizes_of(source.arrays)
    dim, hidden, heads = sizes["dim"], sizes["hidden"], source.heads
    if type(heads) is not int or not 0 < heads <= dim or dim % heads or not 0 < source.eps < 1:
        raise ValueError(f"{heads!r} heads for {dim} channels, eps {source.eps}")
    before = configs.prefix_of(a) - sizes["class_token"]
    others = sizes["classes"] + math.prod(sizes["patch"]) * sizes["channels"] + math.prod(source.grid) + before
    configs.check_room(dim, hidden, sizes["depth"], others, a)
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    return {
        "patch_size": tuple(sizes["patch"]),
        "in_channels": sizes["channels"],
        "dim": dim,
        "depth": sizes["depth"],
        "heads": heads,
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "layer_scale": 1.0 if sizes["layer_scale"] else None,
        "class_token": sizes["class_token"],
        "registers": before,
        "eps": source.eps,
        "gelu": source.gelu,
    }


def _block_states(arrays: dict[str, Any]) -> dict[str, Any]:
    """Patch embedding, blocks and last norm; query, key and value are joined, and a missing qkv bias is 0."""
    patch = arrays["patch.weight"]
    state = {"embed.patch.proj.weight": patch.transpose(0, 2, 3, 1).reshape(len(patch), -1)}
    state["embed.patch.proj.bias"] = arrays["patch.bias"]
    state |= {name: a for name, a in arrays.items() if name.startswith("norm.")}
    for i in range(configs.sizes_of(arrays)["depth"]):
        state |= _block_state(arrays, f"blocks.{i}.")
    return state


def _block_state(arrays: dict[str, Any], block: str) -> dict[str, Any]:
    state = {name: a for name, a in arrays.items() if name.startswith(block) and name[len(block)] not in "qkv"}
    if f"{block}q.weight" in arrays:
        state[f"{block}attn.qkv.weight"] = np.concatenate([arrays[f"{block}{part}.weight"] for part in "qkv"])
        if f"{block}q.bias" in arrays:
            state[f"{block}attn.qkv.bias"] = np.concatenate([arrays[f"{block}{part}.bias"] for part in "qkv"])
    if f"{block}attn.qkv.bias" not in state:
        state[f"{block}attn.qkv.bias"] = np.zeros(len(state[f"{block}attn.qkv.weight"]), "float32")
    return state


def _position_state(source: Source, grid: tuple[int, int]) -> dict[str, Any]:
    """Positions and the tokens before the patches: all but the class token's own position is added into the tokens."""
    a, dim = source.arrays, source.arrays["patch.weight"].shape[0]
    pos = _float32(a["pos"])[0]
    prefix = len(pos) - source.grid[0] * source.grid[1]
    patches = pos[prefix:].reshape(*source.grid, dim)
    if grid != source.grid:
        patches = resize_positions(patches, grid, source.antialias)
    has_class = "cls" in a
    before = np.zeros((configs.prefix_of(a), dim), "float32")
    before[:prefix] = pos[:prefix]
    state = {"embed.pos_embed": np.concatenate([before[:has_class], patches.reshape(-1, dim)])[None]}
    if has_class:
        state["embed.cls_token"] = a["cls"]
    if tokens := [_float32(a[name]) for name in ("dist", "reg") if name in a]:
        state["embed.reg_token"] = np.concatenate(tokens, axis=1) + before[has_class:]
    return state


def _head_state(arrays: dict[str, Any]) -> dict[str, Any]:
    """The head; the mean of DeiT's two heads is one head on both tokens."""
    weight, bias = _float32(arrays["head.weight"]), _float32(arrays["head.bias"])
    if "head_dist.weight" in arrays:
        weight = np.concatenate([weight, _float32(arrays["head_dist.weight"])], axis=1) / 2
        bias = (bias + _float32(arrays["head_dist.bias"])) / 2
    return {"head.weight": weight, "head.bias": bias}


def _float32(array: Any) -> Any:
    return array.astype("float32", copy=False)
