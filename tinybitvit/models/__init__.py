"""Networks."""

from .convert import start_from
from .vit import MLP, Block, VisionTransformer

__all__ = ["MLP", "Block", "VisionTransformer", "start_from"]
