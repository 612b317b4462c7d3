"""PackedLinear: a low-bit linear layer that computes from its packed bytes."""

import copy

from .. import backend
from ..backend import Array
from ..nn import Module, Parameter, RMSNorm
from ..nn.layers import zeros
from ..ops.base import Function, widened
from ..tensor import Tensor, apply
from . import cuda
from .integer import even_slices, input_codes, integer_linear, rescale, scratch
from .linear import BitLinear
from .pack import LAYOUTS, binary_dot, get_layout, pack, packed_shape, sign_bits, unpack
from .quantizer import OPTIONS, Quantizer, asked, check_bits, find_quantizer

# Weights of one unpacked tile, at most: 16 MiB as float32, so that every layer of a ViT-B is a single tile. Smaller
# tiles would need less memory, but a matrix product of few rows is slower.
TILE = 2**22
# Rows of activations up to which bits are counted. Unpacking for a float product overtakes at about 100 rows in layers
# of 192 x 768 weights and at 600 in 768 x 3072; in between the wrong one of the two takes a quarter more at most.
MOST_COUNTED = 256


class PackedMatmul(Function):
    """y = `compute(xp, x)` of a PackedLinear. No backward: the weights that it would move do not exist any more."""

    @staticmethod
    def forward(ctx, x, *, compute):
        return compute(ctx.xp, x)

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError(
            "a packed model cannot be trained: it has no latent weights; train the model it came from and pack() again,"
            " or start a training from it: tb.ViT(init_from=...)"
        )


class PackedLinear(Module):
    """y = Q_a(norm(x)) Q_w^T + b from packed bytes, for inference only: (..., in_features) -> (..., out_features).

    The weight is the uint8 array `packed` with the float32 `scale` (out,) or (1,); it is unpacked, a tile at a time,
    into memory that all layers share. bits, activation_bits, granularity, norm: as in `BitLinear`; layout: see
    `quant.pack` (None: the fastest for these bits). A new layer holds zero bytes, to be filled by `load_state_dict`;
    `PackedLinear.from_bitlinear` packs a trained layer. Where weights and inputs are both signs and rows are few, their
    products are counted (`binary_dot`); else see `quant.integer`. On a GPU the kernels of `kernels.cu` read the packed
    bytes themselves.
    """

    packed: Array
    scale: Array
    bits, granularity = map(asked, OPTIONS[:2])

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
        bits, self.activation_bits = check_bits(bits, activation_bits)
        self.in_features, self.out_features = in_features, out_features
        self.quantizer = find_quantizer(bits, granularity)
        self.layout = check_layout(layout or self.quantizer.layout(), self.quantizer)
        shape = packed_shape((out_features, in_features), self.layout)
        self.register_buffer("packed", backend.host.zeros(shape, "uint8"))
        self.register_buffer("scale", zeros(out_features if granularity == "row" else 1))
        self.bias = Parameter(zeros(out_features)) if bias else None
        self.norm = RMSNorm(in_features) if norm else None

    @classmethod
    def from_bitlinear(cls, layer: BitLinear, layout: str | None = None) -> "PackedLinear":
        """The trained layer without its latent weight."""
        codes, scale = layer.codes()
        new = cls(
            layer.in_features,
            layer.out_features,
            layer.quantizer.packed_bits,
            layer.activation_bits,
            bias=layer.bias is not None,
            granularity="row" if len(scale) == layer.out_features else "tensor",
            norm=layer.norm is not None,
            layout=layout,
        )
        new.packed, new.scale = pack(codes, new.layout), scale.reshape(-1)
        new.bias, new.norm = copy.deepcopy(layer.bias), copy.deepcopy(layer.norm)
        new.zero_grad()
        return new

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear: the input has {x.shape[-1]} features, needed {self.in_features}")
        return apply(PackedMatmul, x, compute=self._compute)

    def _compute(self, xp, x):
        x, bias = widened(x), None if self.bias is None else self.bias.data
        if cuda.has_kernel(x, self.packed, self.scale, self.layout, self.activation_bits):
            return cuda.packed_linear(
                xp, x, self.packed, self.scale, bias, self.layout, self.activation_bits, self.norm
            )
        rows = x.reshape(-1, self.in_features)
        if self.activation_bits == 1 and self.layout == "1bit" and len(rows) <= MOST_COUNTED:
            codes, step = input_codes(xp, rows, 1, self.norm)
            y = binary_dot(sign_bits(codes), self.packed, self.in_features).astype(x.dtype)
            rescale(xp, y, step, self.scale, bias)
            return y.reshape(*x.shape[:-1], self.out_features)
        largest = max(map(abs, LAYOUTS[self.layout].codes))
        tiles = self._tiles(xp, x.dtype)
        return integer_linear(xp, x, tiles, self.scale, bias, self.activation_bits, largest, self.norm)

    def _tiles(self, xp, dtype):
        """[(slice of output features, function that unpacks their codes)], all in the same memory of this thread."""
        # padded to whole bytes: unpack's fast case
        width = self.packed.shape[1] * LAYOUTS[self.layout].weights_per_byte

        def tile(part):
            out = scratch.array(xp, "tile", (len(part), width), dtype)
            return unpack(part, self.layout, out.shape, out=out)[:, : self.in_features]

        slices = even_slices(self.out_features, TILE // max(1, width))
        if len(slices) == 1:  # unpacked once, however many rows of activations there are
            whole = tile(self.packed)
            return [(slices[0], lambda: whole)]
        return [(part, lambda part=part: tile(self.packed[part])) for part in slices]

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


def check_layout(layout: str, quantizer: Quantizer) -> str:
    """The name of a layout that a `PackedLinear` can compute the codes of a quantiser from, or ValueError."""
    if get_layout(layout).along != "K":
        raise ValueError(f"layout {layout!r} is for files; compute from {quantizer.layout()!r}")
    if not {*quantizer.levels} <= {*LAYOUTS[layout].codes}:
        raise ValueError(
            f"layout {layout!r} cannot hold weights of {quantizer.bits:g} bits; use {quantizer.layout()!r}"
        )
    return layout
