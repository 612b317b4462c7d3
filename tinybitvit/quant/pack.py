"""Bit-packed storage of integer weight codes: the bytes that a low-bit layer really occupies.

| layout            | codes          | weights a byte | use                                                      |
|-------------------|----------------|----------------|----------------------------------------------------------|
| "1bit"            | -1, +1         | 8              | 1-bit compute and storage; XNOR with binary activations  |
| "2bit"            | -1, 0, +1      | 4              | 1.58-bit compute                                         |
| "base3"           | -1, 0, +1      | 5 (3^5 = 243)  | 1.58 bits on disk: 1.6 bits a weight                     |
| "hf"              | -1, 0, +1      | 4              | the layout that Hugging Face's BitNet reads              |
| "int2"            | -2 .. 1        | 4              | 2-bit integers                                           |
| "int4"            | -8 .. 7        | 2              | 4-bit integers, and 3-bit ones: a byte holds two of both |
| "int8"            | -128 .. 127    | 1              | 8-bit integers                                           |

Every layout is one rule. A code becomes a digit (its place in `Layout.codes`), and a byte is the number whose digits,
lowest first, are those of neighbours along the last axis K:  byte = d_0 + d_1 base + d_2 base^2 + ...  The digit of a
ternary code is code + 1; the integer layouts are two's complement, as ONNX stores INT2 and INT4. "hf" alone takes its
four digits from rows that lie out/4 apart. K is padded to whole bytes with code 0, except in "1bit", which has no 0:
there with code -1. A reader drops the padding by slicing to K; in `binary_dot` it cancels, because both operands carry
the same bits there.

`unpack` looks every byte up in a table of 256 rows instead of shifting and masking: one memory copy a byte. ("hf" is
shifted, because its digits lie apart; a byte of "int8" is its code.)
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..backend import Array, array_module


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: a quick key for the tables
class Layout:
    """How codes lie in bytes: `codes[d]` is the code of digit d; `along` is the axis whose values share a byte."""

    name: str
    weights_per_byte: int
    base: int
    codes: tuple[int, ...]
    along: str = "K"

    @property
    def low(self) -> int:
        return min(self.codes)

    @property
    def high(self) -> int:
        return max(self.codes)

    @property
    def bits(self) -> float:
        """Nominal bits a weight, without padding and scales."""
        return 8 / self.weights_per_byte

    @property
    def padding(self) -> int:
        """The code in padded positions: the zero weight where the layout has one."""
        return 0 if 0 in self.codes else self.low


def _twos_complement(bits):
    half = 2 ** (bits - 1)
    return (*range(half), *range(-half, 0))


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("1bit", 8, 2, (-1, 1)),
        Layout("2bit", 4, 4, (-1, 0, 1)),
        Layout("base3", 5, 3, (-1, 0, 1)),
        Layout("hf", 4, 4, (-1, 0, 1), along="out"),
        Layout("int2", 4, 4, _twos_complement(2)),
        Layout("int4", 2, 16, _twos_complement(4)),
        Layout("int8", 1, 256, _twos_complement(8)),
    )
}

# Elements of one tile in binary_dot: its uint64 words (256 KiB) stay in a core's second-level cache.
_TILE = 2**15


def get_layout(name: str) -> Layout:
    """The `Layout` of that name; ValueError for an unknown one."""
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, not {name!r}")
    return LAYOUTS[name]


def packed_shape(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Shape of the uint8 array that holds weights of `shape`: (..., K) -> (..., ceil(K / weights a byte)).

    "hf" takes (out, K) to (out / 4, K), and raises ValueError unless there are two axes and out is a multiple of 4.
    """
    spec, shape = get_layout(layout), tuple(map(operator.index, shape))
    if not shape or min(shape) < 0:
        raise ValueError(f"packing needs a shape (..., K) of at least one axis, no size below 0, not {shape}")
    if spec.along == "K":
        return (*shape[:-1], -(-shape[-1] // spec.weights_per_byte))
    if len(shape) != 2 or shape[0] % spec.weights_per_byte:
        raise ValueError(
            f"layout {layout!r} needs shape (out, K) with out a multiple of {spec.weights_per_byte}, not {shape}; "
            "leave such a layer unpacked or use '2bit'"
        )
    return (shape[0] // spec.weights_per_byte, shape[1])


def packed_nbytes(shape: Sequence[int], layout: str) -> int:
    """Bytes that weights of `shape` occupy in `layout`, scales not included."""
    return math.prod(packed_shape(shape, layout))


def pack(codes: Array, layout: str) -> Array:
    """Codes (..., K), whole numbers of any real dtype, to bytes: uint8 of `packed_shape(codes.shape, layout)`.

    ValueError for codes outside the layout's range or with a fraction. `codes` is not changed.
    """
    xp, spec = array_module(codes), get_layout(layout)
    _require_array(xp, codes, "codes")
    shape = packed_shape(codes.shape, layout)
    small = _checked_codes(codes, spec)
    digits = xp.take(_digit_table(spec, xp), small.view("uint8"))
    if spec.along == "K":
        digits = _pad_last_axis(xp, digits, shape[-1] * spec.weights_per_byte, spec.codes.index(spec.padding))
        planes = xp.moveaxis(digits.reshape(*shape, spec.weights_per_byte), -1, 0)
    else:
        planes = digits.reshape(spec.weights_per_byte, *shape)
    packed = planes[-1]
    for plane in planes[-2::-1]:  # Horner's rule, from the highest digit down
        packed = packed * spec.base + plane
    return packed


def unpack(
    packed: Array, layout: str, shape: Sequence[int], dtype: str | None = None, out: Array | None = None
) -> Array:
    """Bytes to codes of `shape`, as `dtype` (any float or signed integer; by default that of `out`, else float32).

    `out`, C-contiguous and of that shape and dtype, is a tile to reuse. It is fastest where K fills whole bytes: ask
    for the padded width and slice the columns. The look-up needs 8 bytes of scratch a packed byte for a moment, so
    unpack a large matrix in tiles of rows. Bytes that no codes pack to give undefined codes: `validate` what came from
    outside.
    """
    xp, spec, shape = array_module(packed, *(() if out is None else (out,))), get_layout(layout), tuple(shape)
    _check_packed(xp, packed, layout, shape)
    out = _output(xp, shape, dtype, out)
    if spec.weights_per_byte == 1:
        out[...] = packed.view("int8")
    elif spec.along == "out":
        # The four digits fill four blocks of rows: whole-array shifts are faster here than a transposed look-up.
        for i, block in enumerate(out.reshape(spec.weights_per_byte, *packed.shape)):
            block[...] = ((packed >> (2 * i)) & 3).view("int8") - 1
    else:
        width = packed.shape[-1] * spec.weights_per_byte
        whole = out if width == shape[-1] else xp.empty((*shape[:-1], width), out.dtype)
        _look_up(xp, _code_table(spec, out.dtype, xp), packed, whole.reshape(*packed.shape, spec.weights_per_byte))
        if whole is not out:
            out[...] = whole[..., : shape[-1]]
    return out


def validate(packed: Array, layout: str, shape: Sequence[int]) -> None:
    """ValueError unless `packed` could be `pack` of codes of `shape`: its size, every byte and the padding."""
    xp, spec, shape = array_module(packed), get_layout(layout), tuple(shape)
    _check_packed(xp, packed, layout, shape)
    if packed.size == 0:
        return
    bad = packed[~xp.take(_possible_table(spec, xp), packed)]
    if bad.size:
        raise ValueError(
            f"byte {int(bad[0])} cannot occur in layout {layout!r}: the data are damaged or in another layout; "
            "pack the weights again"
        )
    used = shape[-1] % spec.weights_per_byte
    if spec.along == "K" and used:
        last = xp.take(_code_table(spec, "int8", xp), packed[..., -1], axis=0)
        if (last[..., used:] != spec.padding).any():
            raise ValueError(
                f"the padding behind column {shape[-1]} of layout {layout!r} holds weights: the data are damaged or "
                "of another shape; pack the weights again"
            )


def sign_bits(x: Array) -> Array:
    """Signs of x (..., K) as "1bit" bytes, equal to `pack` of +1 where x >= 0 (sign(0) is +1) and -1 elsewhere."""
    xp = array_module(x)
    _require_array(xp, x, "x")
    shape = packed_shape(x.shape, "1bit")
    bits = _pad_last_axis(xp, x >= 0, 8 * shape[-1], False)
    return xp.packbits(bits.reshape(-1), bitorder="little").reshape(shape)  # CuPy's packbits has no axis


def binary_dot(x_bits: Array, w_bits: Array, K: int) -> Array:
    """Dot products of +-1 vectors of length K: "1bit" bytes (..., ceil(K/8)) and (out, ceil(K/8)) to int32 (..., out).

    Equal signs contribute +1 and different ones -1, so  x . w = K - 2 popcount(x xor w)  (XNOR-Net, Rastegari et al.
    2016), exactly for every K < 2^30. Needs `bitwise_count`: NumPy >= 2.0 or CuPy >= 14.
    """
    xp = array_module(x_bits, w_bits)
    width = packed_shape((K,), "1bit")[0]
    for name, bits, axes in (("x_bits", x_bits, "(..., "), ("w_bits", w_bits, "(out, ")):
        _require_array(xp, bits, name)
        if bits.dtype != "uint8" or bits.ndim < 1 or bits.shape[-1] != width:
            raise ValueError(
                f"{name} must be uint8 of shape {axes}{width}) for K = {K}, not {bits.dtype} of shape {bits.shape}; "
                "pack it with sign_bits"
            )
    if w_bits.ndim != 2:
        raise ValueError(f"w_bits must have two axes, (out, {width}), not shape {w_bits.shape}")
    x_words, w_words = _words(xp, x_bits), _words(xp, w_bits)
    rows, columns = x_words.shape[1], w_words.shape[1]
    y = xp.zeros((rows, columns), "int32")
    step = max(1, _TILE // max(1, columns))
    for start in range(0, rows, step):
        tile = y[start : start + step]
        for x_word, w_word in zip(x_words[:, start : start + step], w_words, strict=True):
            tile += xp.bitwise_count(x_word[:, None] ^ w_word)
    y *= -2
    y += K
    return y.reshape(*x_bits.shape[:-1], columns)


def _words(xp, bits):
    """Bytes (..., B) to 64-bit words (ceil(B/8), rows), zeros behind the end: word k of all vectors is contiguous."""
    width, rows = bits.shape[-1], math.prod(bits.shape[:-1])
    padded = xp.zeros((rows, -(-width // 8) * 8), "uint8")
    padded[:, :width] = bits.reshape(rows, width)
    return xp.ascontiguousarray(padded.view("uint64").T)


def _pad_last_axis(xp, array, width, value):
    missing = width - array.shape[-1]
    if not missing:
        return array
    return xp.concatenate([array, xp.full((*array.shape[:-1], missing), value, array.dtype)], axis=-1)


def _require_array(xp, array, name):
    if not isinstance(array, xp.ndarray):
        raise TypeError(f"{name} must be a NumPy or CuPy array, not {type(array).__name__} (of a Tensor, pass .data)")


def _checked_codes(codes, spec):
    """The codes as int8, or ValueError."""
    if codes.dtype.kind not in "iuf":
        raise TypeError(f"codes must be whole numbers, not {codes.dtype}; convert them to int8")
    # Written so that NaN fails too; the range comes first because casting a number that int8 cannot hold is undefined.
    if codes.size and not (codes.min() >= spec.low and codes.max() <= spec.high):
        raise ValueError(
            f"codes for layout {spec.name!r} must lie in {spec.low} .. {spec.high}, not in "
            f"{float(codes.min()):g} .. {float(codes.max()):g}; quantise the weights first"
        )
    small = codes.astype("int8")
    if codes.dtype.kind == "f" and (small != codes).any():
        raise ValueError("codes must be whole numbers; round the weights first")
    if 0 not in spec.codes and (small == 0).any():
        raise ValueError(f"layout {spec.name!r} has no code 0; take sign(0) as +1, or use layout '2bit'")
    return small


def _check_packed(xp, packed, layout, shape):
    _require_array(xp, packed, "packed")
    expected = packed_shape(shape, layout)
    if packed.dtype != "uint8" or packed.shape != expected:
        raise ValueError(
            f"weights of shape {shape} in layout {layout!r} are uint8 of shape {expected}, "
            f"not {packed.dtype} of shape {packed.shape}; pass the shape and layout they were packed with"
        )


def _output(xp, shape, dtype, out):
    """`out` after a check, or a new array."""
    if dtype is None:
        dtype = "float32" if out is None else out.dtype
    dtype = xp.dtype(dtype)
    if dtype.kind not in "if":
        raise ValueError(f"codes have signs: unpack to a float or signed integer dtype, not {dtype}")
    if out is None:
        return xp.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be a C-contiguous {dtype} array of shape {shape}, not {out.dtype} of shape {out.shape}; "
            "leave it out to get a new array"
        )
    return out


def _look_up(xp, table, packed, out):
    # No byte is out of range; but NumPy's mode="raise" buffers `out`, which doubles the time. CuPy has no mode.
    mode = {"mode": "clip"} if xp.__name__ == "numpy" else {}
    xp.take(table, packed, axis=0, out=out, **mode)


@cache
def _code_table(spec, dtype, xp):
    """(256, weights a byte): the codes in every byte; digits without a code read as 0."""
    n, base = spec.weights_per_byte, spec.base
    codes = (*spec.codes, *[0] * (base - len(spec.codes)))
    return xp.asarray([[codes[byte // base**i % base] for i in range(n)] for byte in range(256)], dtype=dtype)


@cache
def _digit_table(spec, xp):
    """(256,): the digit of every code, at the code's two's complement byte (where Python's negative index puts it)."""
    digits = [0] * 256
    for digit, code in enumerate(spec.codes):
        digits[code] = digit
    return xp.asarray(digits, dtype="uint8")


@cache
def _possible_table(spec, xp):
    """(256,): whether a byte can come out of `pack`."""
    n, base = spec.weights_per_byte, spec.base
    known = [all(byte // base**i % base < len(spec.codes) for i in range(n)) for byte in range(base**n)]
    return xp.asarray(known + [False] * (256 - base**n))
