"""Models in files: full ones, from which training can go on, and packed ones, as small as the bits allow."""

import copy
import math
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .. import backend
from .. import functional as F
from ..data.transforms import Normalize
from ..files import AGAIN, CheckpointError, read_safetensors, write_safetensors
from ..models import VisionTransformer
from ..models.configs import check_room
from ..nn import Module
from ..quant import PackedLinear, choose_layout, pack, unpack, validate

MODEL = "model."  # what the names of a model's arrays begin with in a file


class Checkpoint(NamedTuple):
    """What `load_model` found: the model, and the metadata and arrays that `save_model` was given besides."""

    model: VisionTransformer
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]


def save_model(
    path: str | os.PathLike | BinaryIO,
    model: VisionTransformer,
    metadata: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
    half: bool = False,
    arrays: Mapping[str, Any] | None = None,
) -> None:
    """Save a model, atomically, with anything else that JSON and arrays (of an optimiser, say) can hold.

    packed: bytes instead of latent weights, for inference: a training can start from such a file (`init_from`), not go
    on. half: round the numbers that stay floats (scales, biases, norms, positions, head) to float16 on disk, where they
    are not too small for it; without it a packed file gives back the same logits bit for bit. Tuples in the metadata
    come back as lists. Raises CheckpointError where the file cannot be written, and ValueError for a model with nothing
    to pack or with numbers too large for float16, and for what JSON cannot hold.
    """
    if network_of(model) is not model:
        raise ValueError("this file would have no place for the classes of a tb.ViT: call its own save(path)")
    if packed and not model.config["layout"]:
        model = model.pack()
    is_packed = bool(model.config["layout"])
    if quantizer := model.config.get("quantizer"):
        raise ValueError(
            f"a file of latent weights cannot hold your quantizer {quantizer.name!r}, which is a program: save with "
            "packed=True, whose bytes need none"
        )
    if half and not is_packed:
        raise ValueError("half=True is for packed files: float16 would spoil the latent weights of a full one")
    state = {name: backend.to_numpy(a) for name, a in model.state_dict().items()}
    layouts = {}
    for name, layer in packed_layers(model):
        layouts[name] = _disk_layout(layer)
        state[f"{name}.packed"] = _convert(state[f"{name}.packed"], layer, layer.layout, layouts[name])
    if half:
        state = {name: _half(name, a) if a.dtype.kind == "f" else a for name, a in state.items()}
    others = {name: backend.to_numpy(a) for name, a in (arrays or {}).items()}
    if taken := [name for name in others if name.startswith(MODEL)]:
        raise ValueError(f"arrays: {taken[0]} must not begin with {MODEL!r}, where the model's own arrays are kept")
    info = {
        "kind": "packed" if is_packed else "full",
        "config": model.config,
        "layouts": layouts,
        "preprocessing": getattr(model, "preprocessing", None),
        "extra": dict(metadata or {}),
    }
    write_safetensors(path, {**{MODEL + name: a for name, a in state.items()}, **others}, _with_lists(info))


def _half(name: str, array: np.ndarray) -> np.ndarray:
    """An array as float16, or as it is where rounding would take more than 1 % of it: the smallest numbers become 0."""
    with np.errstate(over="ignore"):
        half = array.astype("float16")
    if not np.isfinite(half).all():
        raise ValueError(f"{name} holds numbers that float16 does not (beyond 65504, or NaN): save without half=True")
    lost = np.linalg.norm(array.astype("float64") - half)
    return half if lost <= 0.01 * np.linalg.norm(array.astype("float64")) else array


def _with_lists(value: Any) -> Any:
    """Metadata with lists in place of tuples, such as the sizes of a configuration."""
    if isinstance(value, dict):
        return {key: _with_lists(entry) for key, entry in value.items()}
    return [_with_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def network_of(model: Any) -> VisionTransformer:
    """The network of a fitted tb.ViT, or the VisionTransformer that was given. ValueError for anything else."""
    network = getattr(model, "model_", model)
    if not isinstance(network, VisionTransformer):
        kind = type(network).__name__
        raise ValueError(f"only a fitted tb.ViT or a VisionTransformer can be written, not {kind}: call fit first")
    return network


def file_bytes(model: Any) -> int:
    """How many bytes a model has: those of its file, with low-bit weights packed. Everything that is told of a model's
    size says this number.

    model: a fitted tb.ViT or a VisionTransformer. One that came from a packed file has the bytes of that file.
    """
    network = network_of(model)
    if network.file_bytes is not None:
        return network.file_bytes
    written: list[int] = []
    file: Any = SimpleNamespace(write=lambda data: written.append(len(data)))
    packed = network.config["bits"] != 32
    if hasattr(model, "save"):
        model.save(file, packed=packed)
    else:
        save_model(file, network, packed=packed)
    return sum(written)


def load_model(path: str | os.PathLike) -> Checkpoint:
    """The model in a file of `save_model`, in evaluation mode, and what was saved with it. Raises CheckpointError.

    A packed model comes back packed, in the layout that is fastest to compute from.
    """
    arrays, info = read_safetensors(path)
    try:
        config, layouts = dict(info["config"]), dict(info["layouts"])
        if info["kind"] == "packed":
            config["layout"] = choose_layout(config["bits"])
        state = {name.removeprefix(MODEL): a for name, a in arrays.items() if name.startswith(MODEL)}
        _check_sizes(config, state)
        model = VisionTransformer(**config, rng=backend.make_rng(0))
        for name, layer in packed_layers(model):
            state[f"{name}.packed"] = _convert(state[f"{name}.packed"], layer, layouts[name], layer.layout)
        model.load_state_dict({n: a.astype("float32") if a.dtype.kind == "f" else a for n, a in state.items()})
        model.preprocessing = info["preprocessing"]
        if info["kind"] == "packed":  # it cannot be trained, so that this stays true
            model.file_bytes = os.stat(path).st_size
        if model.preprocessing is not None:
            Normalize.from_dict(model.preprocessing)
        others = {name: a for name, a in arrays.items() if not name.startswith(MODEL)}
        return Checkpoint(model.eval(), info["extra"], others)
    except Exception as error:  # whatever a description with a right sha256 can do wrong
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} does not hold the model that it describes ({reason}): {AGAIN}") from error


def _check_sizes(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
    """ValueError where a description asks for a much larger network than the arrays are, before memory is taken."""
    patch = math.prod(F.as_pair(config["patch_size"]))
    tokens = math.prod(F.as_pair(config["image_size"])) // patch + config["registers"]
    dim, others = config["dim"], tokens + patch * config["in_channels"] + config["num_classes"]
    check_room(dim, int(dim * config["mlp_ratio"]), config["depth"], others, state)


def packed_layers(model: Module) -> list[tuple[str, PackedLinear]]:
    """(name, layer) of the packed layers of a model."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLinear)]


def as_on_disk(model: VisionTransformer) -> VisionTransformer:
    """A copy whose packed layers hold the bytes of a file, to be described: loading may have unpacked them a little."""
    model = copy.deepcopy(model)
    for _, layer in packed_layers(model):
        packed, layout = backend.to_numpy(layer.packed), _disk_layout(layer)
        layer.packed, layer.layout = _convert(packed, layer, layer.layout, layout), layout
    return model


def _disk_layout(layer: PackedLinear) -> str:
    """The layout for a file: the smallest one, unless another one than the usual was asked for."""
    return layer.quantizer.layout("disk") if layer.layout == layer.quantizer.layout() else layer.layout


def _convert(packed: np.ndarray, layer: PackedLinear, source: str, target: str) -> np.ndarray:
    """Bytes of a layer's weight, checked, from one layout to another."""
    shape = (layer.out_features, layer.in_features)
    validate(packed, source, shape)
    return packed if source == target else pack(unpack(packed, source, shape, "int8"), target)
