"""One call for every way out."""

import os
from typing import Any

from ..models import VisionTransformer
from .checkpoint import save_model
from .hf import export_hf
from .onnx import export_onnx

FORMATS = ("onnx", "hf", "safetensors")


def export(model: VisionTransformer, path: str | os.PathLike, format: str = "onnx", **options: Any) -> None:  # noqa: A002
    """Write a model for other programs.

    format: 'onnx' (see `export_onnx`: preprocessing, int8, float_images), 'hf' (see `export_hf`: per_tensor) or
    'safetensors' (this library's own packed file, or a full one for 32 bits; see `save_model`: metadata, half).
    """
    if format == "onnx":
        export_onnx(model, path, **options)
    elif format == "hf":
        export_hf(model, path, **options)
    elif format == "safetensors":
        save_model(path, model, **{"packed": model.config["bits"] != 32, **options})
    else:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
