"""BitLinear: a linear layer whose weights have 1, 1.58, 2, 3, 4 or 8 bits."""

from .. import backend
from .. import functional as F
from ..autograd import is_recording
from ..nn import Linear, RMSNorm
from ..ops.ste import STE, absmax_codes, binary_codes, nbit_codes, ternary_codes, twn_codes
from ..tensor import Tensor
from .integer import integer_linear

WEIGHT_BITS = (32, 8, 4, 3, 2, 1.58, 1)
ACTIVATION_BITS = (None, 8, 4, 1)


def check_bits(bits, activation_bits=8):
    """ValueError unless both are widths that exist."""
    if bits not in WEIGHT_BITS:
        raise ValueError(f"bits must be one of {', '.join(f'{b:g}' for b in WEIGHT_BITS)}, not {bits!r}")
    if activation_bits not in ACTIVATION_BITS:
        raise ValueError(f"activation_bits must be 8, 4, 1 or None (not quantised), not {activation_bits!r}")


class BitLinear(Linear):
    """y = Q_a(norm(x)) Q_w(W)^T + b: (..., in_features) -> (..., out_features).

    bits: 1 (sign), 1.58 (ternary) or 2, 3, 4, 8 (rounded) for the weights; activation_bits: 8, 4, 1 or None for the
    inputs, one scale per token; granularity: one weight scale per 'row' (output channel) or 'tensor' (BitNet's papers);
    scale: 'absmean', 'absmedian' (or 'twn' at 1.58 bits, 'absmax' from 2 bits up); ste: the gradient of the weight
    quantiser, see `ops.ste`; norm: an RMSNorm on the input (SubLN, Wang et al. 2022, arXiv 2210.06423).

    Three things that are easily confused: `weight` is the latent float weight that the optimiser moves;
    `quantized_weight()` is what the forward pass multiplies by; the packed bytes live in a `PackedLinear`.

    Backward, with straight-through quantisers (BitNet b1.58): dX = g W_q, dW = g^T x_q, db = sum g. Where no graph is
    recorded the forward sums whole numbers and scales last, bit for bit what a `PackedLinear` computes.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bits=1.58,
        activation_bits=8,
        bias=True,
        granularity="row",
        scale="absmean",
        ste="identity",
        norm=False,
        rng=None,
    ):
        super().__init__(in_features, out_features, bias, rng)
        check_bits(bits, activation_bits)
        if bits == 32:
            raise ValueError("BitLinear quantises: bits=32 is nn.Linear (make_linear chooses between the two)")
        if ste not in STE:
            raise ValueError(f"ste must be one of {', '.join(STE)}, not {ste!r}")
        self.bits, self.activation_bits = bits, activation_bits
        self.granularity, self.scale, self.ste = granularity, scale, ste
        self.temperature = 1.0  # of ste='ede'; a training schedule raises it
        self.strength = 1.0  # how much of the quantisers acts, 0..1; a training schedule may raise it
        self.norm = RMSNorm(in_features) if norm else None
        self._quantize(self.weight)  # refuse impossible options here, not in the first forward pass

    def forward(self, x):
        if not is_recording() and self.strength == 1:
            return self._infer(F.as_tensor(x).data)
        if self.norm is not None:
            x = self.norm(x)
        x, w = self._mix(x, self.quantize_input), self._mix(self.weight, self._quantize)
        return F.linear(x, w, self.bias)

    def _mix(self, x, quantize):
        """x + strength (Q(x) - x): between the full-precision layer and the low-bit one."""
        if self.strength == 0:
            return x
        return quantize(x) if self.strength == 1 else x * (1 - self.strength) + quantize(x) * self.strength

    def _infer(self, x):
        xp = backend.array_module(x, self.weight.data)
        codes, scale = self.codes()
        largest = 1 if self.bits < 2 else 2 ** (self.bits - 1)
        weight = [(slice(0, self.out_features), lambda: codes)]
        bias = None if self.bias is None else self.bias.data
        return Tensor(integer_linear(xp, x, weight, scale.reshape(-1), bias, self.activation_bits, largest, self.norm))

    def quantize_input(self, x):
        """Q_a(x), the activations as the matrix product sees them."""
        if self.activation_bits is None:
            return x
        if self.activation_bits == 1:
            return F.binary(x, centre=False, ste="approx_sign", width=2.0)
        return F.absmax(x, self.activation_bits)

    def _quantize(self, w):
        options = {"granularity": self.granularity, "scale": self.scale, "ste": self.ste}
        if self.bits == 1:
            return F.binary(w, **options, width=3.0, temperature=self.temperature)
        if self.bits == 1.58:
            return F.ternary(w, **options, width=3.0 if self.ste == "clipped" else 1.0, temperature=self.temperature)
        return F.nbit(w, self.bits, **options)

    def quantized_weight(self):
        """The deployed weight, codes times scale, as a float array (out, in)."""
        codes, scale = self.codes()
        return codes * scale

    def codes(self):
        """The integer codes of the weight, as floats (out, in), and their scale (out, 1) or (1, 1)."""
        w = self.weight.data
        return weight_codes(w, self.bits, self.granularity, self.scale)

    def centre(self, codes=None, scale=None):
        """Move every latent weight to the middle of its code, times a factor with which its scale stays.

        codes (out, in) and scale (out, 1) or (1, 1): those of another layer to take over, None for the layer's own. The
        codes stay, too; of 2 or 3 bits, or by medians, a few may change. Training gathers weights at the thresholds,
        where a small update in a new direction tips many of them at once.
        """
        if codes is None:
            codes, scale = self.codes()
        w = codes * scale
        # The mean or median over codes is not that over the weights; stretched by this, it is again.
        w *= scale / weight_codes(w, self.bits, self.granularity, self.scale)[1]
        self.weight.data[...] = w

    def input_codes(self, x):
        """The integer codes of an input array, as floats, and their step per token."""
        xp = backend.array_module(x)
        if self.activation_bits == 1:
            return binary_codes(xp, x, centre=False)[:2]
        return absmax_codes(xp, x, self.activation_bits)

    def extra_repr(self):
        widths = f"bits={self.bits:g}, activation_bits={self.activation_bits}"
        return f"{super().extra_repr()}, {widths}, granularity={self.granularity!r}"


def weight_codes(w, bits, granularity="row", scale="absmean"):
    """Integer codes (as floats) and scale of a weight array at a bit width."""
    xp = backend.array_module(w)
    if bits == 1:
        return binary_codes(xp, w, granularity, scale)[:2]
    if bits == 1.58:
        return twn_codes(xp, w, granularity)[:2] if scale == "twn" else ternary_codes(xp, w, granularity, scale)
    return nbit_codes(xp, w, bits, granularity, scale)


def make_linear(in_features, out_features, bits=32, bias=True, rng=None, **options):
    """Linear for 32 bits, else BitLinear with the options."""
    if bits == 32:
        return Linear(in_features, out_features, bias, rng)
    return BitLinear(in_features, out_features, bits, bias=bias, rng=rng, **options)
