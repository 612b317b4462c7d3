"""Models in files, and out to other programs."""

from ..files import CheckpointError, read_safetensors, write_safetensors
from .checkpoint import Checkpoint, load_model, save_model

__all__ = ["Checkpoint", "CheckpointError", "load_model", "read_safetensors", "save_model", "write_safetensors"]
