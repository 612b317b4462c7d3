"""Models in files: full ones, from which training can go on, and packed ones, as small as the bits allow."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..files import AGAIN, CheckpointError, read_safetensors, write_safetensors
from ..models import VisionTransformer
from ..quant import PackedLinear, choose_layout, pack, unpack, validate

MODEL = "model."  # what the names of a model's arrays begin with in a file


class Checkpoint(NamedTuple):
    """What `load_model` found: the model, and the metadata and arrays that `save_model` was given besides."""

    model: VisionTransformer
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]


def save_model(
    path: str | os.PathLike,
    model: VisionTransformer,
    metadata: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
    half: bool = False,
    arrays: Mapping[str, Any] | None = None,
) -> None:
    """Save a model, atomically, with anything else that JSON and arrays (of an optimiser, say) can hold.

    packed: bytes instead of latent weights, for inference alone: training cannot go on from such a file. half: round
    the numbers that stay floats (scales, biases, norms, positions, head) to float16 on disk; without it a packed file
    gives back the same logits bit for bit. Raises CheckpointError where the file cannot be written and ValueError for a
    model with nothing to pack.
    """
    if packed and not model.config["layout"]:
        model = model.pack(choose_layout(model.config["bits"], "disk"))
    is_packed = bool(model.config["layout"])
    if half and not is_packed:
        raise ValueError("half=True is for packed files: float16 would spoil the latent weights of a full one")
    state = {name: backend.to_numpy(a) for name, a in model.state_dict().items()}
    if half:
        state = {name: a.astype("float16") if a.dtype.kind == "f" else a for name, a in state.items()}
    others = {name: backend.to_numpy(a) for name, a in (arrays or {}).items()}
    if taken := [name for name in others if name.startswith(MODEL)]:
        raise ValueError(f"arrays: {taken[0]} must not begin with {MODEL!r}, where the model's own arrays are kept")
    info = {
        "kind": "packed" if is_packed else "full",
        "config": model.config,
        "layouts": {name: m.layout for name, m in model.named_modules() if isinstance(m, PackedLinear)},
        "preprocessing": getattr(model, "preprocessing", None),
        "extra": dict(metadata or {}),
    }
    write_safetensors(path, {**{MODEL + name: a for name, a in state.items()}, **others}, info)


def load_model(path: str | os.PathLike) -> Checkpoint:
    """The model in a file of `save_model`, in evaluation mode, and what was saved with it. Raises CheckpointError.

    A packed model comes back packed, in the layout that is fastest to compute from.
    """
    arrays, info = read_safetensors(path)
    try:
        config, layouts = dict(info["config"]), dict(info["layouts"])
        if info["kind"] == "packed":
            config["layout"] = choose_layout(config["bits"])
        model = VisionTransformer(**config, rng=backend.make_rng(0))
        state = {name.removeprefix(MODEL): a for name, a in arrays.items() if name.startswith(MODEL)}
        for name, layer in model.named_modules():
            if isinstance(layer, PackedLinear):
                state[f"{name}.packed"] = _convert(state[f"{name}.packed"], layouts[name], layer)
        floats = {name for name, a in model.state_dict().items() if a.dtype == "float32"}
        model.load_state_dict(
            {n: a.astype("float32") if n in floats and a.dtype == "float16" else a for n, a in state.items()}
        )
        model.preprocessing = info["preprocessing"]
        others = {name: a for name, a in arrays.items() if not name.startswith(MODEL)}
        return Checkpoint(model.eval(), info["extra"], others)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} does not hold a model that fits its own description ({reason}): {AGAIN}") from error


def _convert(packed, layout, layer):
    """Bytes of a file, checked, in the layout that a PackedLinear computes from."""
    shape = (layer.out_features, layer.in_features)
    validate(packed, layout, shape)
    return packed if layout == layer.layout else pack(unpack(packed, layout, shape, "int8"), layer.layout)
