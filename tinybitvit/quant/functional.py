"""The public call of every quantiser; also found in `tinybitvit.functional`. Definitions: `tinybitvit.quant.ste`."""

from ..tensor import apply
from .ste import OPS


def binary(w, granularity="row", scale="absmean", centre=True, ste="identity", width=1.0, temperature=1.0):
    """beta sign(w - mu): one bit per element, one scale per row (last axis) or tensor."""
    params = {"granularity": granularity, "scale": scale, "centre": centre}
    return apply(OPS["binary"], w, **params, ste=ste, width=width, temperature=temperature)


def ternary(w, granularity="row", scale="absmean", ste="identity", width=1.0, temperature=1.0):
    """beta clip(round(w / beta), -1, 1): log2(3) = 1.58 bits per element."""
    params = {"granularity": granularity, "scale": scale}
    return apply(OPS["ternary"], w, **params, ste=ste, width=width, temperature=temperature)


def nbit(w, bits, granularity="row", scale="absmean", ste="identity"):
    """s clip(round(w / s), -2^(bits-1), 2^(bits-1) - 1)."""
    return apply(OPS["nbit"], w, bits=bits, granularity=granularity, scale=scale, ste=ste)


def absmax(x, bits=8):
    """round(x s) / s with s = (2^(bits-1) - 1) / max |x| per token: quantised activations."""
    return apply(OPS["absmax"], x, bits=bits)
