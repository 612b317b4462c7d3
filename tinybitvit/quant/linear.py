"""BitLinear: a linear layer whose weights have 1, 1.58, 2, 3, 4 or 8 bits, or the levels of a quantiser of your own."""

from typing import Any

from .. import backend
from .. import functional as F
from ..autograd import is_recording
from ..backend import Array
from ..nn import Linear, RMSNorm
from ..ops import OPS, ste
from ..ops.ste import absmax_codes, binary_codes
from ..tensor import Tensor, apply
from .integer import integer_linear
from .quantizer import OPTIONS, Quantize, Quantizer, asked, check_bits, find_quantizer


class BitLinear(Linear):
    """y = Q_a(norm(x)) Q_w(W)^T + b: (..., in_features) -> (..., out_features).

    bits: 1 (sign), 1.58 (ternary) or 2, 3, 4, 8 (rounded) for the weights; activation_bits: 8, 4, 1 or None for the
    inputs, one scale per token; granularity: one weight scale per 'row' (output channel) or 'tensor' (BitNet's papers);
    scale: 'absmean', 'absmedian' (or 'twn' at 1.58 bits, 'absmax' from 2 bits up); ste: the gradient of the weight
    quantiser, see `ops.ste`; norm: an RMSNorm on the input (SubLN, Wang et al. 2022, arXiv 2210.06423). quantizer: a
    `Quantizer` of your own or a built-in one's name, instead of bits; `layer.quantizer` is the one that the layer asks.

    Three things that are easily confused: `weight` is the latent float weight that the optimiser moves;
    `quantized_weight()` is what the forward pass multiplies by; the packed bytes live in a `PackedLinear`.

    Backward, with straight-through quantisers (BitNet b1.58): dX = g W_q, dW = g^T x_q, db = sum g. Where no graph is
    recorded the forward sums whole numbers and scales last, bit for bit what a `PackedLinear` computes.
    """

    bits, granularity, scale, ste, temperature = map(asked, (*OPTIONS, "temperature"))

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: float = 1.58,
        activation_bits: int | None = 8,
        bias: bool = True,
        granularity: str = "row",
        scale: str = "absmean",
        ste: str = "identity",
        norm: bool = False,
        rng: Any = None,
        quantizer: Quantizer | str | None = None,
    ):
        super().__init__(in_features, out_features, bias, rng)
        bits, self.activation_bits = check_bits(bits, activation_bits)
        self.quantizer = find_quantizer(bits if quantizer is None else quantizer, granularity, scale, ste)
        self.norm = RMSNorm(in_features) if norm else None
        self.quantizer.check(self.weight.data[:16])  # refuse impossible options here, not in the first forward pass

    def forward(self, x: Any) -> Tensor:
        if not is_recording():
            return self._infer(F.as_tensor(x).data)
        if self.norm is not None:
            x = self.norm(x)
        return F.linear(self.quantize_input(x), self._quantize_weight(), self.bias)

    def _quantize_weight(self) -> Tensor:
        quantizer, own = self.quantizer, ste.QUANTISERS.get(self.quantizer.name)
        # The table has another operation under that name where a student put it: see `tb.course.use`.
        if quantizer.built_in and own is not None and OPS[quantizer.name] is not own:
            options = {"granularity": quantizer.granularity, "scale": quantizer.scale, "ste": quantizer.ste}
            return apply(OPS[quantizer.name], self.weight, **options)
        return apply(Quantize, self.weight, quantizer=quantizer)

    def _infer(self, x):
        xp = backend.array_module(x, self.weight.data)
        codes, scale = self.codes()
        largest = max(map(abs, self.quantizer.levels))
        weight = [(slice(0, self.out_features), lambda: codes)]
        bias = None if self.bias is None else self.bias.data
        return Tensor(integer_linear(xp, x, weight, scale.reshape(-1), bias, self.activation_bits, largest, self.norm))

    def quantize_input(self, x: Tensor) -> Tensor:
        """Q_a(x), the activations as the matrix product sees them."""
        if self.activation_bits is None:
            return x
        if self.activation_bits == 1:
            return F.binary(x, centre=False, ste="approx_sign", width=2.0)
        return F.absmax(x, self.activation_bits)

    def quantized_weight(self) -> Array:
        """The deployed weight, codes times scale, as a float array (out, in)."""
        codes, scale = self.codes()
        return codes * scale

    def codes(self) -> tuple[Array, Array]:
        """The integer codes of the weight, as floats (out, in), and their scale (out, 1) or (1, 1)."""
        w = self.weight.data
        return self.quantizer.codes(backend.array_module(w), w)

    def centre(self, codes: Array | None = None, scale: Array | None = None) -> None:
        """Move every latent weight to the middle of its code, times a factor with which its scale stays.

        codes (out, in) and scale (out, 1) or (1, 1): those of another layer to take over, None for the layer's own. The
        codes stay, too; of 2 or 3 bits, or by medians, a few may change. Training gathers weights at the thresholds,
        where a small update in a new direction tips many of them at once.
        """
        if codes is None:
            codes, scale = self.codes()
        w = codes * scale
        # The mean or median over codes is not that over the weights; stretched by this, it is again.
        w *= scale / self.quantizer.codes(backend.array_module(w), w)[1]
        self.weight.data[...] = w

    def input_codes(self, x: Array) -> tuple[Array, Array | None]:
        """The integer codes of an input array, as floats, and their step per token; without any x itself, and None."""
        x = backend.as_array(x)
        xp = backend.array_module(x)
        if self.activation_bits is None:
            return x, None
        if self.activation_bits == 1:
            return binary_codes(xp, x, centre=False)[:2]
        return absmax_codes(xp, x, self.activation_bits)

    def extra_repr(self) -> str:
        kind = f"bits={self.bits:g}" if self.quantizer.built_in else f"quantizer={self.quantizer.name!r}"
        widths = f"{kind}, activation_bits={self.activation_bits}"
        return f"{super().extra_repr()}, {widths}, granularity={self.granularity!r}"


def make_linear(
    in_features: int, out_features: int, bits: float = 32, bias: bool = True, rng: Any = None, **options: Any
) -> Linear:
    """Linear for 32 bits, else BitLinear with the options."""
    if bits == 32:
        return Linear(in_features, out_features, bias, rng)
    return BitLinear(in_features, out_features, bits, bias=bias, rng=rng, **options)
