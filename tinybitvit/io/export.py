"""One call for every way out."""

import os
from typing import Any

from .checkpoint import network_of, save_model
from .hf import export_hf
from .onnx import export_onnx

FORMATS = ("onnx", "hf", "safetensors")


def export(model: Any, path: str | os.PathLike, format: str = "onnx", **options: Any) -> None:  # noqa: A002
    """Write a model for other programs.

    model: a fitted tb.ViT or a VisionTransformer.
    format: 'onnx' (see `export_onnx`: preprocessing, int8, float_images), 'hf' (see `export_hf`: per_tensor) or
    'safetensors' (this library's own packed file, or a full one for 32 bits; see `save_model`: metadata, half; of a
    tb.ViT see its `save`).
    """
    if format == "onnx":
        export_onnx(model, path, **options)
    elif format == "hf":
        export_hf(model, path, **options)
    elif format == "safetensors":
        options = {"packed": network_of(model).config["bits"] != 32, **options}
        if hasattr(model, "save"):  # of a tb.ViT, which has classes to keep
            model.save(path, **options)
        else:
            save_model(path, model, **options)
    else:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
