"""Straight-through quantisers: low-bit forward passes with explicit surrogate gradients.

A quantiser is piecewise constant, so its true gradient is 0 almost everywhere and nothing would learn. The straight-
through estimator (Bengio et al. 2013, arXiv 1308.3432) passes g on as if the rounding were the identity, or some
smoother stand-in: dL/dw = g a(v), where v is the input in units of its scale and a(v) the slope of the stand-in:

    identity      a = 1                                               BinaryConnect, BitNet
    clipped       a = 1 for |v| <= width, else 0                      BNN, Courbariaux et al. 2016 (1602.02830)
    approx_sign   a = 2 (1 - |v/width|) / width, or 0 if negative     Bi-Real Net, Liu et al. 2018 (arXiv 1808.00278)
    ede           a = k t (1 - tanh(t v)^2), k = max(1/t, 1)          IR-Net, Qin et al. 2020 (arXiv 1909.10788)

The area below approx_sign is 2, the height of the step from -1 to 1, for any width. For ede, t = `temperature` grows
during training from 0.1 (close to the identity) to 10 (close to the true step). Scales and thresholds are treated as
constants in every backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .. import backend
from ..backend import Array
from .base import OPS, Context, Function, Gradients, rows_of
from .norm import largest

Steps = Sequence[tuple[float, float]]  # of a staircase: where each step lies, and how high it is
PART = 2.0**-24  # a power of 2, by which multiplying is exact
EPS = 1e-5  # smallest scale of BitNet b1.58's formulas; keeps an all-zero row from dividing by 0
STE = ("identity", "clipped", "approx_sign", "ede")


def slope(xp: Any, v: Array, ste: str, width: float = 1.0, temperature: float = 1.0) -> Array:
    """a(v) of the table above, or None for the identity."""
    if ste == "identity":
        return None
    if ste == "clipped":
        return xp.abs(v) <= width
    if ste == "approx_sign":
        return xp.maximum(1 - xp.abs(v / width), 0) * (2 / width)
    if ste == "ede":
        return max(1 / temperature, 1.0) * temperature * (1 - xp.tanh(temperature * v) ** 2)
    raise ValueError(f"ste must be one of {', '.join(STE)}, not {ste!r}")


def staircase_slope(xp: Any, v: Array, steps: Steps, ste: str, width: float = 1.0, temperature: float = 1.0) -> Array:
    """a(v) of a staircase with several steps (place, height), or None for the identity.

    Each step is a sign of half its height, and so are its stand-in and its slope: a(v) = sum h/2 a_sign(v - place).
    identity and clipped act on v itself.
    """
    if ste not in ("approx_sign", "ede"):
        return slope(xp, v, ste, width)
    slopes = [height / 2 * slope(xp, v - place, ste, width, temperature) for place, height in steps]
    return sum(slopes[1:], slopes[0])


def nbit_slope(xp: Any, v: Array, bits: int, scale: str, ste: str) -> Array | None:
    """1 where v lies in the range of the codes, else 0; None for 1 everywhere."""
    if ste not in ("identity", "clipped"):
        raise ValueError(f"ste for {bits} bits must be 'identity' or 'clipped', not {ste!r}")
    top = _top(bits)
    # no weight lies beyond absmax, though rounding may put v there
    return None if ste == "identity" or scale == "absmax" else (v >= -top - 1) & (v <= top)


def _axis(granularity: str) -> int | None:
    """Over what a scale is shared: the last axis ('row', one per output channel or token) or everything ('tensor')."""
    if granularity not in ("row", "tensor"):
        raise ValueError(f"granularity must be 'row' or 'tensor', not {granularity!r}")
    return -1 if granularity == "row" else None


def _top(bits: int) -> int:
    """The largest code of signed integers with that many bits."""
    backend.check_number("bits", bits, whole=True)
    if bits < 2:
        raise ValueError(f"rounding needs at least 2 bits, not {bits}; the quantiser for 1 bit is binary")
    return 2 ** (bits - 1) - 1


def _finite(xp: Any, total: Callable[[Array], Array], a: Array) -> Array:
    """total(a), a sum or mean, also where huge numbers would overflow on the way: then of parts of them.

    A GPU would have to wait for the question whether it overflowed: there it is parts always, with the same bits.
    """
    if backend.device_of(a) == "cpu":
        found = total(a)
        if xp.isfinite(found).all():
            return found
    return total(a * a.dtype.type(PART)) * a.dtype.type(1 / PART)


def mean(xp: Any, w: Array, granularity: str) -> Array:
    """The mean of every row, or of all; an axis for each of w's."""
    axis = _axis(granularity)
    return _finite(xp, lambda a: a.mean(axis=axis, keepdims=True), w)


def magnitude(xp: Any, w: Array, granularity: str, scale: str) -> Array:
    """The typical size of the elements of w, by row or of all: their mean or median absolute value."""
    if scale not in ("absmean", "absmedian"):
        raise ValueError(f"scale must be 'absmean' or 'absmedian' (or 'twn' for 1.58 bits), not {scale!r}")
    size = xp.abs(w)
    if scale == "absmean":
        return mean(xp, size, granularity)
    rows = size if _axis(granularity) == -1 else size.reshape((1,) * (w.ndim - 1) + (-1,))
    ordered = xp.sort(rows, axis=-1)  # eight times faster than NumPy's median
    n = ordered.shape[-1]
    return ordered[..., (n - 1) // 2, None] / 2 + ordered[..., n // 2, None] / 2


def binary_codes(
    xp: Any, w: Array, granularity: str = "row", scale: str = "absmean", centre: bool = True, eps: float = EPS
) -> tuple[Array, Array, Array]:
    """Codes b = +1 where w >= mu else -1, their scale beta, and u = w - mu; sign(0) is +1, never a third value.

    mu = mean w. Per tensor beta = mean |w| (BitNet, Wang et al. 2023, arXiv 2310.11453, equations 1-3, 12); per row
    beta = mean |w - mu|, the least-squares scale of sign(w - mu). Without `centre` mu = 0. eps: the smallest beta.
    """
    u = w - mean(xp, w, granularity) if centre else w
    beta = xp.maximum(magnitude(xp, w if granularity == "tensor" else u, granularity, scale), eps)
    codes = xp.copysign(w.dtype.type(1), u + 0)  # + 0 makes -0.0 a plain 0; much faster than where(u >= 0, 1, -1)
    return codes, beta, u


def ternary_codes(xp: Any, w: Array, granularity: str = "row", scale: str = "absmean") -> tuple[Array, Array]:
    """Codes t = clip(round(w / beta), -1, 1), round half to even, and beta = max(mean |w|, 1e-5).

    BitNet b1.58, Ma et al. 2024 (arXiv 2402.17764), equations 1-3; scale='absmedian' is that of Nielsen &
    Schneider-Kamp 2024 (arXiv 2407.09527) for small networks.
    """
    beta = xp.maximum(magnitude(xp, w, granularity, scale), EPS)
    codes = w / beta
    xp.rint(codes, out=codes)
    return xp.clip(codes, -1, 1), beta


def twn_codes(xp: Any, w: Array, granularity: str = "row") -> tuple[Array, Array, Array]:
    """Codes t = sign(w) where |w| > d, else 0, with d = 0.7 mean |w|; beta = the mean of those |w|; and 2 d.

    Ternary Weight Networks, Li, Zhang and Liu 2016 (arXiv 1605.04711), equations 5 and 6: nearly the codes and, for
    these codes, exactly the scale with the least ||w - beta t||^2. In units of 2 d the thresholds lie at +-1/2, as
    those of `ternary_codes` do in units of beta.
    """
    axis = _axis(granularity)
    unit = xp.maximum(magnitude(xp, w, granularity, "absmean") * 1.4, EPS)
    codes = w / unit
    xp.rint(codes, out=codes)
    xp.clip(codes, -1, 1, out=codes)
    count = (codes * codes).sum(axis=axis, keepdims=True)
    beta = _finite(xp, lambda a: a.sum(axis=axis, keepdims=True) / xp.maximum(count, 1), w * codes)
    return codes, xp.maximum(beta, EPS), unit


def nbit_codes(xp: Any, w: Array, bits: int, granularity: str = "row", scale: str = "absmean") -> tuple[Array, Array]:
    """Codes clip(round(w / s), -2^(bits-1), 2^(bits-1) - 1) and the step s.

    scale='absmax': s = max |w| / top, top = 2^(bits-1) - 1. 'absmean' and 'absmedian': s = 2 m / sqrt(top) with m the
    mean (median) of |w|, the initial step of LSQ, Esser et al. 2020 (arXiv 1902.08153).
    """
    top = _top(bits)
    axis = _axis(granularity)
    if scale == "absmax":
        step = largest(xp.abs(w), axis) / top
    else:
        step = magnitude(xp, w, granularity, scale) * (2 / top**0.5)
    step = xp.maximum(step, EPS)
    codes = w / step
    xp.rint(codes, out=codes)
    return xp.clip(codes, -top - 1, top), step


def absmax_codes(xp: Any, x: Array, bits: int, out: Array | None = None, eps: float = EPS) -> tuple[Array, Array]:
    """Codes round(x s), s = top / max(max |x|, eps) per token (last axis), top = 2^(bits-1) - 1, and the step 1 / s.

    BitNet b1.58's activations: Ma et al. 2024; the clip to -top-1..top in its formula never acts, since |x| s <= top.
    out: array for the codes, which may be x but not overlap it otherwise.
    """
    top = _top(bits)
    size = xp.abs(x, out=None if out is x else out)
    # Floats that are not negative order as their bits do, and a row maximum of integers takes half the time.
    size = size.view(f"int{8 * x.itemsize}").max(axis=-1, keepdims=True).view(x.dtype)
    size = xp.maximum(size, x.dtype.type(eps))
    codes = xp.multiply(x, top / size, out=out)
    return xp.rint(codes, out=codes), size / top


class StraightThrough(Function):
    """A quantiser: its forward saves the slope a of what stands in for it, None for 1 everywhere; dL/dw = g a."""

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (a,) = ctx.saved
        return (g if a is None else g * a,)


class Binary(StraightThrough, name="binary"):
    """y = beta b, b = sign(w - mu), sign(0) = +1 (see `binary_codes`)

    b is a step of v = (w - mu) / beta; its stand-in has the slope a(v), so dL/dw = g beta a(v) / beta = g a(v).
    """

    @staticmethod
    def forward(
        ctx: Context,
        w: Array,
        *,
        granularity: str = "row",
        scale: str = "absmean",
        centre: bool = True,
        ste: str = "identity",
        width: float = 1.0,
        temperature: float = 1.0,
    ) -> Array:
        codes, beta, u = binary_codes(ctx.xp, w, granularity, scale, centre)
        ctx.save(slope(ctx.xp, u / beta, ste, width, temperature))
        codes *= beta
        return codes


class Ternary(StraightThrough, name="ternary"):
    """y = beta t, t = clip(round(w / beta), -1, 1) (see `ternary_codes`)

    With v = w / beta, t = (sign(v - 1/2) + sign(v + 1/2)) / 2: two steps of half height. approx_sign and ede replace
    each of them by its stand-in: dL/dw = g (a(v - 1/2) + a(v + 1/2)) / 2; identity and clipped act on v itself: dL/dw =
    g a(v). scale='twn': the codes and scale of `twn_codes`, and v = w / (2 d).
    """

    @staticmethod
    def forward(
        ctx: Context,
        w: Array,
        *,
        granularity: str = "row",
        scale: str = "absmean",
        ste: str = "identity",
        width: float = 1.0,
        temperature: float = 1.0,
    ) -> Array:
        xp = ctx.xp
        if scale == "twn":
            codes, beta, unit = twn_codes(xp, w, granularity)
        else:
            codes, beta = ternary_codes(xp, w, granularity, scale)
            unit = beta
        ctx.save(staircase_slope(xp, w / unit, ((-0.5, 1), (0.5, 1)), ste, width, temperature))
        codes *= beta
        return codes


class NBit(StraightThrough, name="nbit"):
    """y = s c, c = clip(round(w / s), low, top) (see `nbit_codes`)

    identity: dL/dw = g. clipped: dL/dw = g where low <= w / s <= top, else 0: where the clip acts, y does not move.
    """

    @staticmethod
    def forward(
        ctx: Context, w: Array, *, bits: int, granularity: str = "row", scale: str = "absmean", ste: str = "identity"
    ) -> Array:
        codes, step = nbit_codes(ctx.xp, w, bits, granularity, scale)
        ctx.save(nbit_slope(ctx.xp, w / step, bits, scale, ste))
        codes *= step
        return codes


class Absmax(Function, name="absmax"):
    """y = round(x s) / s for activations, s = top / max |x| per token, top = 2^(bits-1) - 1 (see `absmax_codes`)

    Straight through: dL/dx = g.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, bits: int = 8) -> Array:
        xp, rows = ctx.xp, rows_of(x)
        y = xp.empty_like(rows)
        for block in backend.row_blocks(rows.shape, xp) if x.size else ():
            codes, step = absmax_codes(xp, rows[block], bits, out=y[block])
            codes *= step
        return y.reshape(x.shape)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (g,)


QUANTISERS = {name: OPS[name] for name in ("binary", "ternary", "nbit", "absmax")}
