"""Networks."""

from .convert import start_from
from .pretrained import from_pretrained
from .vit import MLP, Block, VisionTransformer

__all__ = ["MLP", "Block", "VisionTransformer", "from_pretrained", "start_from"]
