"""PackedLinear: a low-bit linear layer that computes from its packed bytes."""

import copy
import threading
from typing import Any

from .. import backend
from ..nn import Module, Parameter, RMSNorm
from ..nn.layers import zeros
from ..ops.base import Function
from ..tensor import Tensor, apply
from .linear import BitLinear, check_bits
from .pack import LAYOUTS, binary_dot, choose_layout, get_layout, pack, packed_shape, sign_bits, unpack
from .ste import absmax_codes, binary_codes

Array = Any  # numpy.ndarray or cupy.ndarray

# Weights of one unpacked tile, at most: as float32 it is 4 MiB, and most layers are a single tile.
TILE = 2**20
# Rows of activations that are quantised, multiplied and scaled together: they stay in a core's second-level cache.
BLOCK = 256
# Whole numbers up to here are exact in float32, in any order of summation.
EXACT = 2**24


class _Scratch(threading.local):
    """One tile a thread, kept from call to call: the worker threads of `Trainer.predict` run a layer at the same time."""

    def __init__(self):
        self.buffers = {}

    def tile(self, xp, rows, columns, dtype):
        buffer = self.buffers.get((xp, dtype))
        if buffer is None or buffer.size < rows * columns:
            buffer = self.buffers[xp, dtype] = xp.empty(rows * columns, dtype)
        return buffer[: rows * columns].reshape(rows, columns)


_scratch = _Scratch()


def input_codes(xp, x: Array, activation_bits: int | None) -> tuple[Array, Array | None]:
    """Integer codes of activations x (..., K), as floats, and their step per token; (x, None) where not quantised."""
    if activation_bits is None:
        return x, None
    if activation_bits == 1:
        return binary_codes(xp, x, centre=False)[:2]
    return absmax_codes(xp, x, activation_bits)


def exact_columns(layout: str, activation_bits: int | None, dtype) -> int | None:
    """Over how many columns K float32 sums of code products are exact; None where no sum is too long."""
    if activation_bits is None or dtype != "float32":
        return None
    largest = max(1, 2 ** (activation_bits - 1) - 1) * max(map(abs, LAYOUTS[layout].codes))
    return (EXACT - 1) // largest


def accumulate(xp, codes: Array, tile: Array, limit: int | None, out: Array) -> None:
    """out = codes (T, K) tile^T, tile (out, K): whole numbers summed by a float GEMM, exactly; see `exact_columns`.

    Where K is too long for float32, parts of it are summed in float64.
    """
    K = codes.shape[1]
    if limit is None or limit >= K:
        xp.matmul(codes, tile.T, out=out)
    else:
        starts = range(0, K, limit)
        out[...] = sum((codes[:, k : k + limit] @ tile[:, k : k + limit].T).astype("float64") for k in starts)


class PackedMatmul(Function):
    """y = s_x s_w (c Q^T) + b for x (..., K), Q (out, K) in packed bytes: y (..., out)

    c s_x are the quantised activations, one step s_x a token; Q s_w the weights, one scale s_w (out,) or (1,). The sum
    c Q^T runs over whole numbers, so it has no rounding error. Where both are signs it is counted: x . w = K - 2
    popcount(x xor w). There is no backward: the weights that a gradient would move do not exist any more.
    """

    @staticmethod
    def forward(ctx, x, packed, scale, bias=None, *, layout, activation_bits):
        xp, K, out = ctx.xp, x.shape[-1], packed.shape[0]
        rows = x.reshape(-1, K)
        y = xp.empty((len(rows), out), x.dtype)
        limit = exact_columns(layout, activation_bits, x.dtype)
        for start in range(0, len(rows), BLOCK):
            codes, step = input_codes(xp, rows[start : start + BLOCK], activation_bits)
            block = y[start : start + BLOCK]
            if activation_bits == 1 and layout == "1bit":
                block[...] = binary_dot(sign_bits(codes), packed, K)
            else:
                for columns, tile in tiles(xp, packed, layout, K, x.dtype):
                    accumulate(xp, codes, tile, limit, out=block[:, columns])
            if step is not None:
                block *= step
            block *= scale
            if bias is not None:
                block += bias
        return y.reshape(*x.shape[:-1], out)

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError(
            "a packed model cannot be trained: it has no latent weights; train the full-precision model and pack() it again"
        )


def tiles(xp, packed: Array, layout: str, K: int, dtype):
    """(slice of rows, codes (rows, K)) of a packed weight, one tile after another in the same memory of this thread."""
    out = packed.shape[0]
    width = packed.shape[1] * LAYOUTS[layout].weights_per_byte  # K padded to whole bytes: the fast case of unpack
    count = -(-out * width // TILE)
    size = -(-out // max(1, count))
    for start in range(0, out, max(1, size)):
        part = packed[start : start + size]
        tile = _scratch.tile(xp, len(part), width, dtype)
        unpack(part, layout, (len(part), width), out=tile)
        yield slice(start, start + len(part)), tile[:, :K]


class PackedLinear(Module):
    """y = Q_a(norm(x)) Q_w^T + b from packed bytes, for inference only: (..., in_features) -> (..., out_features).

    The weight is the uint8 array `packed` with the float32 `scale` (out,) or (1,); it is unpacked, a tile at a time, into
    memory that all layers share. bits, activation_bits, granularity, norm: as in `BitLinear`; layout: see `quant.pack`
    (None: the fastest for these bits). A new layer holds zero bytes, to be filled by `load_state_dict`;
    `PackedLinear.from_bitlinear` packs a trained layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: float = 1.58,
        activation_bits: int | None = 8,
        bias: bool = True,
        granularity: str = "row",
        norm: bool = False,
        layout: str | None = None,
    ):
        super().__init__()
        check_bits(bits, activation_bits)
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.activation_bits, self.granularity = bits, activation_bits, granularity
        self.layout = check_layout(layout or choose_layout(bits), bits)
        shape = packed_shape((out_features, in_features), self.layout)
        self.register_buffer("packed", backend.host.zeros(shape, "uint8"))
        self.register_buffer("scale", zeros(out_features if granularity == "row" else 1))
        self.bias = Parameter(zeros(out_features)) if bias else None
        self.norm = RMSNorm(in_features) if norm else None

    @classmethod
    def from_bitlinear(cls, layer: BitLinear, layout: str | None = None) -> "PackedLinear":
        """The trained layer without its latent weight."""
        has = {"bias": layer.bias is not None, "norm": layer.norm is not None}
        sizes = layer.in_features, layer.out_features
        new = cls(*sizes, layer.bits, layer.activation_bits, **has, granularity=layer.granularity, layout=layout)
        codes, scale = layer.codes()
        new.packed, new.scale = pack(codes, new.layout), scale.reshape(-1)
        new.bias, new.norm = copy.deepcopy(layer.bias), copy.deepcopy(layer.norm)
        new.zero_grad()
        return new

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear: the input has {x.shape[-1]} features, needed {self.in_features}")
        if self.norm is not None:
            x = self.norm(x)
        options = {"layout": self.layout, "activation_bits": self.activation_bits}
        return apply(PackedMatmul, x, self.packed, self.scale, self.bias, **options)

    def codes(self) -> tuple[Array, Array]:
        """The integer codes of the weight, as floats (out, in), and their scale (out, 1) or (1, 1)."""
        return unpack(self.packed, self.layout, (self.out_features, self.in_features)), self.scale[:, None]

    def quantized_weight(self) -> Array:
        """The deployed weight, codes times scale, as a float array (out, in)."""
        codes, scale = self.codes()
        codes *= scale
        return codes

    @property
    def nbytes(self) -> int:
        """Bytes of everything the layer holds: packed weight, scale, bias, norm."""
        return sum(array.nbytes for array in self.state_dict().values())

    def extra_repr(self):
        kind = f"bits={self.bits:g}, activation_bits={self.activation_bits}, layout={self.layout!r}"
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {kind}"


def check_layout(layout: str, bits: float) -> str:
    """The name of a layout that a `PackedLinear` of `bits` bits can compute from, or ValueError."""
    if get_layout(layout).along != "K":
        raise ValueError(f"layout {layout!r} is for files; compute from {choose_layout(bits)!r}")
    half = 2 ** (int(bits) - 1) if bits > 1.58 else 1
    needed = {-1, 1} if bits == 1 else {-1, 0, 1} if bits == 1.58 else {*range(-half, half)}
    if not needed <= {*LAYOUTS[layout].codes}:
        raise ValueError(f"layout {layout!r} cannot hold weights of {bits:g} bits; use {choose_layout(bits)!r}")
    return layout
