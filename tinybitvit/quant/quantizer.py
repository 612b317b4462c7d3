"""What turns weights into codes: the built-in quantisers, and the base class of your own.

A layer has one `Quantizer`, and all that knows of codes asks it: training and prediction for codes, scale and slope,
packing and export for its levels, diagnostics for its thresholds, rounding for the nearest level.
"""

import copy
import math
from collections.abc import Iterable
from functools import partial
from numbers import Real
from typing import Any

from .. import backend
from ..backend import Array
from ..ops import ste
from .pack import LAYOUTS

WEIGHT_BITS = (32, 8, 4, 3, 2, 1.58, 1)
ACTIVATION_BITS = (None, 8, 4, 1)
LAYOUTS_FOR = {"compute": ("1bit", "2bit", "int2", "int4", "int8"), "disk": ("1bit", "base3", "int2", "int4", "int8")}


class Quantizer:
    """Weights W (out, in) as `scale * codes`, the codes being whole numbers out of `levels`.

    A subclass gives itself a `name`, its `levels` in ascending order, and the method `codes`; the rest has a default.
    granularity: one scale per 'row' or for the whole 'tensor'; scale: the typical size of weights, 'absmean' or
    'absmedian' (`size` heeds both); ste: the gradient, one of `ops.ste.STE`; temperature: of ste='ede', which a
    training schedule raises; width: of ste='approx_sign'; thresholds: where the codes change, in the units of
    `units`, halfway between neighbouring levels unless a subclass says otherwise.
    """

    name: str = "quantiser"
    levels: tuple[int, ...] = ()
    width: float = 1.0
    temperature: float = 1.0

    def __init__(self, granularity: str = "row", scale: str = "absmean", ste: str = "identity"):
        self.granularity, self.scale, self.ste = granularity, scale, ste

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def codes(self, xp, w: Array) -> tuple[Array, Array]:
        """Codes (out, in), whole numbers in floats of w's dtype, and their scale (out, 1) or (1, 1), above 0."""
        raise NotImplementedError(f"{type(self).__name__} defines no codes")

    def units(self, xp, w: Array, scale: Array) -> Array:
        """The weights in the units of the thresholds."""
        return w / scale

    def slope(self, xp, w: Array, scale: Array) -> Array | None:
        """a of dL/dw = g a, see `ops.ste`; None for 1 everywhere."""
        if self.ste == "identity":
            return None
        heights = [high - low for low, high in zip(self.levels, self.levels[1:], strict=False)]
        steps = list(zip(self.thresholds, heights, strict=True))
        width = 3.0 if self.ste == "clipped" else self.width
        return ste.staircase_slope(xp, self.units(xp, w, scale), steps, self.ste, width, self.temperature)

    def nearest(self, xp, v: Array) -> Array:
        """The level nearest to v, which is in units of the scale."""
        return xp.clip(xp.rint(v), self.levels[0], self.levels[-1])

    def distance(self, xp, w: Array) -> Array:
        """How far each weight is from the nearest threshold, in the units of the thresholds."""
        v, at = self.units(xp, w, self.codes(xp, w)[1]), xp.asarray(self.thresholds, dtype=w.dtype)
        above = xp.searchsorted(at, v)
        return xp.minimum(xp.abs(v - at[xp.maximum(above - 1, 0)]), xp.abs(v - at[xp.minimum(above, len(at) - 1)]))

    def size(self, xp, w: Array) -> Array:
        """The mean or median |w| (out, 1) or (1, 1), at least 1e-5."""
        return xp.maximum(ste.magnitude(xp, w, self.granularity, self.scale), ste.EPS)

    @property
    def bits(self) -> float:
        """log2 of the number of levels, cut to two places: 1, 1.58, 2, 2.32, ..."""
        bits = math.floor(100 * math.log2(len(self.levels))) / 100
        return int(bits) if bits == int(bits) else bits

    @property
    def built_in(self) -> bool:
        """Whether bits, granularity, scale and ste say all about it, so that a file can name it."""
        return self.name in NAMES and type(self).__module__ == __name__

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple((low + high) / 2 for low, high in zip(self.levels, self.levels[1:], strict=False))

    @property
    def packed_bits(self) -> float:
        """The width that packed weights have: the smallest built-in one with all of these levels. ValueError: none."""
        for bits in BUILT_IN:
            if {*self.levels} <= {*find_quantizer(bits).levels}:
                return bits
        raise ValueError(
            f"quantizer {self.name!r} cannot be packed: its levels {self.levels[0]} .. {self.levels[-1]} fit no layout;"
            " take whole numbers from -128 to 127"
        )

    def layout(self, purpose: str = "compute") -> str:
        """The name of the smallest layout for these levels, to "compute" from or for the "disk"."""
        return choose_layout(self.packed_bits, purpose)

    def smallest(self, layouts: Iterable[str]) -> str:
        """The first of some layouts that holds packed codes of this quantiser."""
        levels = {*find_quantizer(self.packed_bits).levels}
        return next(name for name in layouts if levels <= {*LAYOUTS[name].codes})

    def check(self, w: Array) -> None:
        """ValueError unless the codes, scale and slope for a weight w (out, in) are such as this class describes."""
        if list(self.levels) != sorted({int(level) for level in self.levels}) or len(self.levels) < 2:
            raise ValueError(f"quantizer {self.name!r}: levels must be whole numbers in ascending order, two at least")
        if len(self.thresholds) != len(self.levels) - 1:
            raise ValueError(f"quantizer {self.name!r}: thresholds must be one number fewer than levels")
        xp = backend.array_module(w)
        codes, scale = self.codes(xp, w)
        self.slope(xp, w, scale)
        fits = codes.shape == w.shape and scale.shape in ((len(w), 1), (1, 1))
        if not (fits and codes.dtype == scale.dtype == w.dtype):
            raise ValueError(
                f"quantizer {self.name!r}: for a weight {w.shape} of {w.dtype} its codes are {codes.shape} of "
                f"{codes.dtype} and their scale is {scale.shape} of {scale.dtype}; needed the weight's shape and "
                f"({len(w)}, 1) or (1, 1), both of {w.dtype}"
            )
        if not xp.isin(codes, xp.asarray(self.levels)).all() or not (scale > 0).all():
            raise ValueError(f"quantizer {self.name!r}: some codes are none of its levels, or a scale is not above 0")


class Binary(Quantizer):
    """`ops.ste.binary_codes`: the sign of w - mean w."""

    name, levels, width = "binary", (-1, 1), 3.0

    def codes(self, xp, w):
        return ste.binary_codes(xp, w, self.granularity, self.scale)[:2]

    def units(self, xp, w, scale):
        return (w - ste.mean(xp, w, self.granularity)) / scale

    def nearest(self, xp, v):
        return xp.copysign(1.0, v + 0)


class Ternary(Quantizer):
    """`ops.ste.ternary_codes`: round(w / mean |w|), clipped."""

    name, levels = "ternary", (-1, 0, 1)

    def codes(self, xp, w):
        return ste.ternary_codes(xp, w, self.granularity, self.scale)


class TernaryWeights(Ternary):
    """`ops.ste.twn_codes`; its thresholds lie at halves of a unit of their own, which is not the scale."""

    name = "twn"

    def codes(self, xp, w):
        return ste.twn_codes(xp, w, self.granularity)[:2]

    def units(self, xp, w, scale):
        return w / ste.twn_codes(xp, w, self.granularity)[2]


class Integer(Quantizer):
    """`ops.ste.nbit_codes`: round(w / s), clipped to signed integers of 2 bits or more."""

    def __init__(self, bits: int, *options: str):
        super().__init__(*options)
        self.name, self.levels = f"int{bits}", tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))

    def codes(self, xp, w):
        return ste.nbit_codes(xp, w, self.bits, self.granularity, self.scale)

    def slope(self, xp, w, scale):
        return ste.nbit_slope(xp, w / scale, self.bits, self.scale, self.ste)


BUILT_IN: dict[float, Any] = {1: Binary, 1.58: Ternary, **{bits: partial(Integer, bits) for bits in (2, 3, 4, 8)}}
DEFAULTS = {"granularity": "row", "scale": "absmean", "ste": "identity"}
OPTIONS = ("bits", *DEFAULTS)  # which a quantiser has, and a layer or network without one is given
NAMES = {"binary": 1, "ternary": 1.58, "twn": 1.58, "int2": 2, "int3": 3, "int4": 4, "int8": 8}


class Quantize(ste.StraightThrough):
    """y = s q, the codes q and the scale s of a quantiser of w

    q is a staircase in w, with a derivative of 0 almost everywhere. In the backward pass a smoother function of slope
    a takes its place, and s counts as a constant: dL/dw = g a.
    """

    @staticmethod
    def forward(ctx, w, *, quantizer):
        codes, scale = quantizer.codes(ctx.xp, w)
        ctx.save(quantizer.slope(ctx.xp, w, scale))
        return codes * scale


def check_bits(bits: Any, activation_bits: Any = 8, quantizer: Any = None) -> tuple[float, int | None]:
    """Both as Python numbers; ValueError unless they are widths that exist. A quantiser's own bits are any number."""
    weights = bits if isinstance(quantizer, Quantizer) else _width(bits, WEIGHT_BITS)
    if weights is None:
        raise ValueError(f"bits must be one of {', '.join(f'{b:g}' for b in WEIGHT_BITS)}, not {bits!r}")
    inputs = _width(activation_bits, ACTIVATION_BITS)
    if inputs is None and activation_bits is not None:
        raise ValueError(f"activation_bits must be 8, 4, 1 or None (not quantised), not {activation_bits!r}")
    return weights, inputs


def _width(bits, known):
    """The one of the known widths that a number of any kind means (float32 has no 1.58), or None."""
    if not isinstance(bits, Real) or isinstance(bits, bool):
        return None
    return next((width for width in known if width is not None and math.isclose(bits, width, rel_tol=1e-6)), None)


def find_quantizer(
    kind: "float | str | Quantizer", granularity: str = "row", scale: str = "absmean", ste: str = "identity"
) -> Quantizer:
    """A quantiser of its own for a layer: that of a number of bits or of a name of `NAMES`, or a copy of one given.

    scale='twn', at 1.58 bits, is another name of the quantiser "twn". ValueError for a kind that does not exist, and
    for options beside a given quantiser, which has its own.
    """
    options = {"granularity": granularity, "scale": scale, "ste": ste}
    for option, value in options.items():
        if not isinstance(value, str):
            raise ValueError(f"{option} must be a text such as {DEFAULTS[option]!r}, not {value!r}")
    if isinstance(kind, Quantizer):
        for option, value in options.items():
            if value not in (DEFAULTS[option], getattr(kind, option)):
                raise ValueError(f"{option}={value!r}: a quantizer has its own, give it to {type(kind).__name__}(...)")
        return copy.copy(kind)
    if not isinstance(kind, Real):
        if not isinstance(kind, str) or kind not in NAMES:
            shown = f"an object such as {kind.__name__}()" if isinstance(kind, type) else "a Quantizer"
            raise ValueError(f"quantizer must be {shown} or one of {', '.join(NAMES)}, not {kind!r}")
        kind, scale = NAMES[kind], "twn" if kind == "twn" else scale
    bits, _ = check_bits(kind)
    if bits == 32:
        raise ValueError("bits=32 is nn.Linear, which quantises nothing (make_linear chooses between the two)")
    made = TernaryWeights if (bits, scale) == (1.58, "twn") else BUILT_IN[bits]
    return made(granularity, scale, ste)


def asked(option: str) -> Any:
    """A property of a layer that reads and sets an option of its quantiser."""

    def read(layer):
        return getattr(layer.quantizer, option)

    return property(read, lambda layer, value: setattr(layer.quantizer, option, value))


def bits_beside(quantizer: Quantizer | str | None, bits: float, default: float) -> float:
    """The bits of the quantiser, where one is given, else `bits`; ValueError where both are and differ."""
    if quantizer is None:
        return bits
    own = find_quantizer(quantizer).bits
    if bits not in (default, own):
        raise ValueError(f"bits={bits!r} and quantizer={quantizer!r} contradict each other: leave bits out")
    return own


def own_options(options: dict[str, Any], quantizer: Quantizer | str | None) -> dict[str, Any]:
    """Options of a network with a quantiser in place of bits, granularity, scale and ste, where one is given."""
    if quantizer is None:
        return options
    return {name: value for name, value in options.items() if name not in OPTIONS} | {"quantizer": quantizer}


def weight_codes(w: Array, bits: float, granularity: str = "row", scale: str = "absmean") -> tuple[Array, Array]:
    """Integer codes (as floats) and scale of a weight array at a bit width."""
    return find_quantizer(bits, granularity, scale).codes(backend.array_module(w), w)


def choose_layout(bits: float, purpose: str = "compute") -> str:
    """The name of the layout for weights of `bits` bits, to "compute" from or for the "disk"."""
    if purpose not in LAYOUTS_FOR:
        raise ValueError(f"purpose must be 'compute' or 'disk', not {purpose!r}")
    if bits not in BUILT_IN:
        raise ValueError(f"only weights of {', '.join(map(str, BUILT_IN))} bits can be packed, not {bits!r}")
    return find_quantizer(bits).smallest(LAYOUTS_FOR[purpose])
