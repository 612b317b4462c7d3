"""tb.ViT: the Vision Transformer as a scikit-learn classifier, from its images to its files."""

from .probe import probe
from .quantize import quantize
from .vit import ViT, load

__all__ = ["ViT", "load", "probe", "quantize"]
