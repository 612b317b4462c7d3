"""Networks."""

from .convert import shape_of, source_of, start_from
from .pretrained import from_pretrained
from .vit import MLP, Block, VisionTransformer

__all__ = ["MLP", "Block", "VisionTransformer", "from_pretrained", "shape_of", "source_of", "start_from"]
