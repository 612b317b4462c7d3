"""The layout of Hugging Face's BitNet, so that `transformers` can read a ternary or binary model's packed weights."""

import json
import os
from typing import Any

from .. import backend
from ..files import tensor_bytes, write_model
from ..quant import BitLinear, PackedLinear, pack
from .checkpoint import network_of

CONVENTION = (
    "weight: uint8 (out/4, in), layout of transformers.integrations.bitnet: byte row r holds the codes + 1 of rows r, "
    "r + out/4, r + 2 out/4, r + 3 out/4, lowest bits first. weight_scale divides, as in its BitLinear: "
    "y = (x_codes @ codes.T) / (x_scale * weight_scale) + bias, x_scale = 127 / max |x| per token; AutoBitLinear "
    "multiplies instead and needs 1 / weight_scale. rms_norm comes before the quantisation of the inputs. All other "
    "weights are dense. Images are channels-last."
)


def export_hf(model: Any, path: str | os.PathLike, *, per_tensor: bool = False) -> None:
    """Write a model of 1 or 1.58 bits as a safetensors file whose low-bit layers transformers' BitLinear can load.

    model: a fitted tb.ViT or a VisionTransformer. Every low-bit layer becomes `weight` (uint8), `weight_scale` ((1,),
    or (out,) where a scale belongs to a row; it *divides*), `bias` and `rms_norm.weight`; patch embedding, norms,
    positions and head stay dense. The convention stands in the metadata. ValueError for other bits, other inputs than 8
    bits, and rows that are no multiple of 4.

    per_tensor: one scale (1,) a layer, as transformers creates its BitLinear, which then takes the arrays as they are;
    in place of scales for rows it is the one with the least squared error, and the answers change. Exact for a model
    with granularity='tensor'.
    """
    model = network_of(model)
    config = {name: value for name, value in model.config.items() if name != "quantizer"}
    quantizer = model.config.get("quantizer")
    bits = quantizer.packed_bits if quantizer else config["bits"]
    if bits not in (1, 1.58):
        raise ValueError(f"Hugging Face's BitNet has weights of 1.58 or 1 bit, not {bits}: export to ONNX")
    if config["activation_bits"] != 8:
        raise ValueError(f"Hugging Face's BitNet has inputs of 8 bits, not {config['activation_bits']}: export to ONNX")
    arrays = {name: backend.to_numpy(a) for name, a in model.state_dict().items()}
    for name, layer in model.named_modules():
        if not isinstance(layer, (BitLinear, PackedLinear)):
            continue
        if layer.out_features % 4:
            raise ValueError(
                f"{name} has {layer.out_features} rows; Hugging Face's layout needs a multiple of 4: train with a "
                "multiple of 4 for dim and dim * mlp_ratio, or export to ONNX"
            )
        codes, scale = (backend.to_numpy(a) for a in layer.codes())
        if per_tensor and len(scale) > 1:
            counts = (codes * codes).sum(axis=1)
            scale = (scale[:, 0] @ counts / max(counts.sum(), 1)).reshape(1, 1).astype(scale.dtype)
        for own in ("weight", "packed", "scale"):
            arrays.pop(f"{name}.{own}", None)
        arrays |= {f"{name}.weight": pack(codes, "hf"), f"{name}.weight_scale": (1 / scale).reshape(-1)}
        if layer.norm is not None:
            arrays[f"{name}.rms_norm.weight"] = arrays.pop(f"{name}.norm.weight")
    about = {"config": config, "convention": CONVENTION, "preprocessing": model.preprocessing}
    write_model(path, tensor_bytes(arrays, {"format": "pt", "tinybitvit_hf": json.dumps(about)}))
