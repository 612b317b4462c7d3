"""Models in files, and out to other programs."""

from ..files import CheckpointError, read_safetensors, write_safetensors
from .checkpoint import Checkpoint, file_bytes, load_model, save_model
from .export import FORMATS, export
from .hf import export_hf
from .onnx import export_onnx

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "FORMATS",
    "export",
    "export_hf",
    "export_onnx",
    "file_bytes",
    "load_model",
    "read_safetensors",
    "save_model",
    "write_safetensors",
]
