"""Modules: layers, attention, embeddings."""

from .attention import Attend, MultiHeadAttention
from .embed import PatchEmbed, TokenEmbed
from .layers import GELU, Dropout, LayerNorm, LayerScale, Linear, RMSNorm
from .module import HookHandle, Module, Parameter

__all__ = [
    "GELU",
    "Attend",
    "Dropout",
    "HookHandle",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "Parameter",
    "PatchEmbed",
    "RMSNorm",
    "TokenEmbed",
]
