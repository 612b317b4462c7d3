"""Checks of problem set 4: packing."""

import numpy as np

from ..quant.pack import pack, unpack
from .checker import Task, expect

WIDTHS = (1, 2, 3, 4, 5, 8, 13)


def ternary(width: int, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(width).integers(-1, 2, (rows, width)).astype("int8")


packing = Task("ps4.1", "pack_2bit")


@packing.check("the worked example", "digits are codes + 1; the first digit counts 1, the next 4, then 16 and 64")
def packing_example(answer):
    expect(answer, {"codes": np.array([[1, 0, -1, -1]], "int8")}, np.array([[6]]))


@packing.check("rows that do not fill their last byte", "start from digits that are all 1, of a width that 4 divides")
def packing_filling(answer):
    for width in WIDTHS:
        expect(answer, {"codes": ternary(width)}, pack(ternary(width), "2bit"))


@packing.check("bytes come out, floats go in", "convert the digits to uint8 and the result with .astype('uint8')")
def packing_types(answer):
    for dtype in ("int8", "float32", "int64"):
        got = answer(ternary(6).astype(dtype))
        assert np.asarray(got).dtype == "uint8", f"it gave {np.asarray(got).dtype} for codes of {dtype}, not uint8"
        expect(answer, {"codes": ternary(6).astype(dtype)}, pack(ternary(6), "2bit"))


unpacking = Task("ps4.2", "unpack_2bit")


@unpacking.check("the worked example", "digit i of a byte is packed // 4**i % 4; then subtract 1 from signed numbers")
def unpacking_example(answer):
    expect(answer, {"packed": np.array([[6]], "uint8"), "width": 4}, np.array([[1, 0, -1, -1]]))


@unpacking.check("rows of any width", "put the four digits of a byte side by side, then keep the first `width` columns")
def unpacking_widths(answer):
    for width in WIDTHS:
        expect(answer, {"packed": pack(ternary(width), "2bit"), "width": width}, ternary(width))


@unpacking.check("int8", "finish with .astype('int8')")
def unpacking_type(answer):
    got = np.asarray(answer(pack(ternary(5), "2bit"), 5)).dtype
    assert got == "int8", f"it gave {got}, expected int8"


counting = Task("ps4.3", "effective_bits")


@counting.check("the worked example", "8 bits for every byte of the packed rows and of the scales, over out * width")
def counting_example(answer):
    expect(answer, {"out": 3, "width": 5, "weights_per_byte": 4}, 9.6)


@counting.check("other layers", "a row has ceil(width / weights_per_byte) bytes and one scale of 4 bytes")
def counting_others(answer):
    for out, width, per_byte in ((1, 1, 8), (2, 16, 8), (4, 11, 5), (192, 192, 4)):
        expect(
            answer,
            {"out": out, "width": width, "weights_per_byte": per_byte},
            8 * (-(-width // per_byte) + 4) / width,
        )


dot = Task("ps4.4", "sign_dot")


def signs(rows: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1]), (rows, width))


@dot.check("the worked example", "K minus twice the number of places that differ")
def dot_example(answer):
    expect(answer, {"x": np.array([[1, 1, -1, -1, 1]]), "w": np.array([[1, -1, -1, 1, 1]])}, np.array([[1]]))


@dot.check("every row of x with every row of w", "x_bits[:, None] ^ w_bits has a row for each pair; sum over the bytes")
def dot_rows(answer):
    for rows, out, width in ((1, 2, 3), (2, 1, 8), (2, 3, 9), (3, 4, 40)):
        x, w = signs(rows, width, width), signs(out, width, width + 1)
        expect(answer, {"x": x, "w": w}, x @ w.T)


@dot.check("more than 255 places", "the counts are uint8, which ends at 255: sum them with dtype='int64'")
def dot_long(answer):
    x = signs(2, 1000, 5)
    expect(answer, {"x": x, "w": -x}, x @ -x.T)


tight = Task("ps4.5", "pack_tight, unpack_tight")


def tight_bytes(answer, width: int) -> np.ndarray:
    found = np.asarray(answer[0](ternary(width)))
    assert found.dtype == "uint8" and found.ndim == 2 and len(found) == 2, (
        f"it packed two rows of {width} codes into {found.dtype} of shape {found.shape}, not uint8 of shape (2, bytes)"
    )
    return found


@tight.check("the codes come back", "a byte can hold a number in base 3, digit after digit")
def tight_back(answer):
    for width in WIDTHS:
        expect(
            lambda packed, width: answer[1](packed, width),
            {"packed": tight_bytes(answer, width), "width": width},
            ternary(width),
        )


@tight.check("five codes in a byte", "five digits in base 3 are at most 242")
def tight_size(answer):
    for width in WIDTHS:
        size, most = tight_bytes(answer, width).shape[1], -(-width // 5)
        assert size == most, f"a row of {width} codes takes {size} bytes; {most} suffice"


@tight.check("any five codes", "all 243 combinations are different bytes")
def tight_all(answer):
    codes = (np.arange(243)[:, None] // 3 ** np.arange(5) % 3 - 1).astype("int8")
    packed = np.asarray(answer[0](codes.copy()))
    assert packed.shape == (243, 1), f"243 rows of 5 codes take {packed.shape}, not (243, 1) bytes"
    expect(answer[1], {"packed": packed, "width": 5}, codes)


full = Task("ps4.6", "shortest_overflow")


def counted(answer, bits: int) -> tuple[int, int, int]:
    """(number of places, the dot product, what a counter of so many bits makes of it)"""
    found = answer(bits)
    assert isinstance(found, tuple) and len(found) == 2, "it must return a tuple of two rows"
    x, w = (np.asarray(row) for row in found)
    assert x.ndim == 1 and x.shape == w.shape, f"it gave rows of shape {x.shape} and {w.shape}"
    assert x.size <= 1 << 20 and (np.abs(x) == 1).all() and (np.abs(w) == 1).all(), "signs are -1 and +1"
    total, half = int(x.astype("int64") @ w.astype("int64")), 1 << (bits - 1)
    return len(x), total, (total + half) % (2 * half) - half


@full.check("8 bits: the counter is wrong", "which sums fit into 8 bits with a sign, from where to where?")
def full_wrong(answer):
    _, total, seen = counted(answer, 8)
    assert total != seen, f"the dot product is {total}, and a counter of 8 bits says {seen}: that is right"


@full.check("8 bits: as short as possible", "the two ends of the range are not alike")
def full_short(answer):
    size, total, seen = counted(answer, 8)
    assert total != seen and size <= 128, f"{size} places: a shorter pair overflows, too"


@full.check("other counters", "each bit more doubles the range")
def full_others(answer):
    for bits in (2, 4, 12, 16):
        size, total, seen = counted(answer, bits)
        assert total != seen, f"the dot product is {total}, and a counter of {bits} bits says {seen}: that is right"
        assert size <= 1 << (bits - 1), f"{size} places for {bits} bits: a shorter pair overflows, too"


RIGHT = {
    "ps4.1": lambda codes: pack(codes, "2bit"),
    "ps4.2": lambda packed, width: unpack(packed, "2bit", (len(packed), width), "int8"),
}
