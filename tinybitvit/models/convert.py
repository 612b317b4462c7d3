"""Starting one network from the weights of another."""

import os
from collections.abc import Mapping
from typing import Any

from .. import backend
from .. import functional as F
from ..files import CheckpointError
from ..quant import BitLinear, PackedLinear
from .pretrained import from_pretrained
from .vit import VisionTransformer

SHAPE = ("patch_size", "dim", "depth", "heads", "mlp_ratio")
DETAILS = ("pool", "class_token", "registers", "layer_scale", "eps", "gelu")


def source_of(start: Any, image_size: tuple[int, int]) -> VisionTransformer:
    """The network to start from: `start` itself, that of a fitted tb.ViT, or that of a pretrained file or folder.

    Raises CheckpointError for files, which names the option init_from.
    """
    if isinstance(start, (str, os.PathLike)):
        try:
            return from_pretrained(start, image_size=image_size)
        except CheckpointError as error:
            raise CheckpointError(f"init_from: {error}") from error
    return getattr(start, "model_", start)


def shape_of(source: VisionTransformer, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that make a VisionTransformer of the same architecture as `source`, whatever its bit width.

    given: arguments that somebody chose. Sizes must be those of the source, ValueError names the first that is not; of
    the rest (pool, layer_scale and other details) what was given wins. A low-bit network has the norms and scales of a
    low-bit source, too.
    """
    for name in SHAPE:
        theirs = source.config[name]
        mine = given.get(name, theirs)
        same = F.as_pair(mine) == F.as_pair(theirs) if name == "patch_size" else mine == theirs
        if not same:
            raise ValueError(f"the model to start from has {name}={theirs}, and {name}={mine} was given: leave it out")
    names = [*SHAPE, *DETAILS]
    bits, source_bits = given.get("bits", 32), source.config["bits"]
    if 32 not in (bits, source_bits):
        names += ["granularity", "sub_norm"]
    if bits == source_bits:
        names.append("scale")  # not all of them exist at every width
    return {name: given.get(name, source.config[name]) for name in names}


def start_from(model: VisionTransformer, source: VisionTransformer) -> int:
    """Copy every weight of `source` whose name and shape fit into `model`; returns how many fitted.

    A network of another bit width fits as it is: the latent weights of a low-bit layer are floats too. A packed layer
    has lost them; the model's get the deployed ones, at the same bit width in the middle of their codes. ValueError
    where not even the weights of a block fit.
    """
    packed = {name: m for name, m in source.named_modules() if isinstance(m, PackedLinear)}
    theirs = source.state_dict() | {f"{name}.weight": layer.quantized_weight() for name, layer in packed.items()}
    mine = model.state_dict()
    fitting = {name: backend.to_numpy(a) for name, a in theirs.items() if name in mine and mine[name].shape == a.shape}
    if not any(name.startswith("blocks.") for name in fitting):
        raise ValueError("no block of the given model fits: choose the same dim, heads and mlp_ratio as it has")
    model.load_state_dict({**mine, **{name: a.astype(mine[name].dtype) for name, a in fitting.items()}})
    for name, layer in model.named_modules():
        if name in packed and isinstance(layer, BitLinear) and layer.bits == packed[name].bits:
            layer.centre(*map(backend.to_numpy, packed[name].codes()))
    return len(fitting)
