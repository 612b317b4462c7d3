"""Quantisation: straight-through quantisers, bit packing, low-bit linear layers."""

from .functional import absmax, binary, nbit, ternary
from .linear import ACTIVATION_BITS, WEIGHT_BITS, BitLinear, check_bits, make_linear, weight_codes
from .ste import OPS

__all__ = [
    "ACTIVATION_BITS",
    "OPS",
    "WEIGHT_BITS",
    "BitLinear",
    "absmax",
    "binary",
    "check_bits",
    "make_linear",
    "nbit",
    "ternary",
    "weight_codes",
]
