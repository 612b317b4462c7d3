"""Quantisation: straight-through quantisers, bit packing, low-bit linear layers."""

from ..functional import absmax, binary, nbit, ternary
from ..ops import ste as ste
from .describe import LayerInfo, describe
from .linear import BitLinear, make_linear
from .pack import LAYOUTS, binary_dot, pack, packed_nbytes, packed_shape, sign_bits, unpack, validate
from .packed import PackedLinear
from .quantizer import (
    ACTIVATION_BITS,
    WEIGHT_BITS,
    Quantizer,
    check_bits,
    choose_layout,
    find_quantizer,
    weight_codes,
)

__all__ = [
    "ACTIVATION_BITS",
    "LAYOUTS",
    "WEIGHT_BITS",
    "BitLinear",
    "LayerInfo",
    "PackedLinear",
    "Quantizer",
    "absmax",
    "binary",
    "binary_dot",
    "check_bits",
    "choose_layout",
    "describe",
    "find_quantizer",
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
