"""Quantisation: straight-through quantisers, bit packing, low-bit linear layers."""

from ..functional import absmax, binary, nbit, ternary
from ..ops import ste as ste
from .describe import LayerInfo, describe
from .linear import ACTIVATION_BITS, WEIGHT_BITS, BitLinear, check_bits, make_linear, weight_codes
from .pack import LAYOUTS, binary_dot, choose_layout, pack, packed_nbytes, packed_shape, sign_bits, unpack, validate
from .packed import PackedLinear

__all__ = [
    "ACTIVATION_BITS",
    "LAYOUTS",
    "WEIGHT_BITS",
    "BitLinear",
    "LayerInfo",
    "PackedLinear",
    "absmax",
    "binary",
    "binary_dot",
    "check_bits",
    "choose_layout",
    "describe",
    "make_linear",
    "nbit",
    "pack",
    "packed_nbytes",
    "packed_shape",
    "sign_bits",
    "ternary",
    "unpack",
    "validate",
    "weight_codes",
]
