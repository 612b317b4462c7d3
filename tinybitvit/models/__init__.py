"""Networks."""

from .vit import MLP, Block, VisionTransformer

__all__ = ["MLP", "Block", "VisionTransformer"]
