"""tb.ViT to one HTML text with the model inside: packed weights in base64 and a forward pass in JavaScript (vit.js)."""

import base64
from typing import Any

import numpy as np

from .. import backend
from ..quant import LAYOUTS, BitLinear, PackedLinear, choose_layout, pack


def arrays_of(network: Any) -> dict[str, tuple[str, tuple[int, ...], np.ndarray]]:
    """Name -> (kind, shape, array) of all weights of a network."""
    arrays = {n: ("float32", a.shape, backend.to_numpy(a)) for n, a in network.state_dict().items()}
    for name, layer in network.named_modules():
        if isinstance(layer, (BitLinear, PackedLinear)):
            codes, scale = (backend.to_numpy(a) for a in layer.codes())
            layout = choose_layout(layer.bits, "disk")
            arrays.pop(f"{name}.weight", None)
            arrays[f"{name}.scale"] = ("float32", (scale.size,), scale.reshape(-1))
            arrays[f"{name}.packed"] = (layout, codes.shape, pack(codes, layout))
    return arrays


def model_data(model):
    network = model.model_
    config = network.config
    embed = network.embed
    parts, index, start = [], {}, 0
    entries = sorted(arrays_of(network).items(), key=lambda e: e[1][0] != "float32")
    for name, (kind, shape, array) in entries:
        content = np.ascontiguousarray(array, "<f4" if kind == "float32" else "u1").tobytes()
        index[name] = (kind, list(shape), start, len(content))
        start += len(content)
        parts.append(content)
    used = {e[0] for e in index.values()} - {"float32"}
    norm = model.normalize_
    return {
        "config": {
            "image_shape": [*embed.patch.image_size, embed.patch.in_channels],
            "patch_size": embed.patch.patch_size,
            "prefix": embed.prefix,
            "eps": config["eps"],
            "sub_norm_eps": 1e-6,
            **{k: config[k] for k in ("dim", "depth", "heads", "pool", "gelu", "activation_bits")},
        },
        "normalize": {
            "offset": (norm.mean * np.float32(255)).tolist(),
            "scale": (1 / (norm.std * np.float32(255))).tolist(),
        },
        "layouts": {
            n: {"base": LAYOUTS[n].base, "weights_per_byte": LAYOUTS[n].weights_per_byte, "codes": LAYOUTS[n].codes}
            for n in used
        },
        "arrays": index,
        "bytes": base64.b64encode(b"".join(parts)).decode(),
    }
