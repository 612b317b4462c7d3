"""Networks."""

from . import zoo
from .convert import shape_of, source_of, start_from
from .pretrained import from_pretrained
from .vit import MLP, Block, VisionTransformer, ViTConfig

__all__ = [
    "MLP",
    "Block",
    "ViTConfig",
    "VisionTransformer",
    "from_pretrained",
    "shape_of",
    "source_of",
    "start_from",
    "zoo",
]
