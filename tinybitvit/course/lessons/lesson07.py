"""Checks of lesson 7: one bit, two bits and base 3, there and back; products by counting; the table of sizes."""

import numpy as np

from ...quant import pack
from ..checker import Task, expect

BYTES = {"1bit": 8, "2bit": 4, "base3": 5}
CODES = {"1bit": [-1, 1], "2bit": [-1, 0, 1], "base3": [-1, 0, 1]}


def codes(layout, *shape, seed=0):
    return np.random.default_rng(seed).choice(CODES[layout], shape).astype("int8")


def packs(answer, layout, *rows):
    """One row after the other: its bytes must be the library's."""
    for row in rows:
        row = np.array(row, "int8")
        expect(answer, {"codes": row}, pack(row, layout))


def packs_any(answer, layout, n):
    for shape in ((2, 2 * n), (2, 3, n + 1)):
        given = codes(layout, *shape)
        expect(answer, {"codes": given}, pack(given, layout))
    floats = codes(layout, 1, n).astype("float32")
    expect(answer, {"codes": floats}, pack(floats, layout))
    found = answer(floats)
    assert found.dtype == "uint8", f"it gave bytes of {found.dtype}: .astype('uint8') makes them bytes"


def unpacks(answer, layout, n):
    for K in (n, 2 * n, n + 1, 3):
        given = codes(layout, 1, K, seed=K)
        expect(answer, {"packed": pack(given, layout), "K": K}, given)


def unpacks_any(answer, layout, n):
    given = codes(layout, 2, 3, 2 * n + 1)
    expect(answer, {"packed": pack(given, layout), "K": 2 * n + 1}, given)


pack_signs = Task("7.1", "pack_1bit", part="packing, 1 bit", hook="pack_1bit")


@pack_signs.check(
    "eight signs in a byte",
    "digits = groups(codes, 8, padding=-1) > 0 are eight yes or no; the first of the eight is worth 1",
    "2 ** np.arange(8) are the worths, lowest first; multiply, and add up over the last axis",
)
def pack_signs_byte(answer):
    packs(answer, "1bit", [1, -1, -1, 1, 1, 1, -1, -1], [-1] * 7 + [1])


@pack_signs.check(
    "rows that fill no whole byte", "the digits of the padding are 0, the weight -1: groups(codes, 8, -1)"
)
def pack_signs_padding(answer):
    packs(answer, "1bit", [1, 1, -1], [1] * 9)


@pack_signs.check("any shape, uint8", "sum over the last axis only, and .astype('uint8') at the end")
def pack_signs_any(answer):
    packs_any(answer, "1bit", 8)


unpack_signs = Task("7.2", "unpack_1bit", part="packing, 1 bit", hook="unpack_1bit")


@unpack_signs.check(
    "bytes to signs",
    "(packed[..., None] >> np.arange(8, dtype='uint8')) & 1 are the digits, lowest first",
    "the digit d is the sign 2 d - 1; make it int8 before you subtract: a uint8 has no -1",
    "reshape(*packed.shape[:-1], -1) puts the digits of a row side by side; [..., :K] drops the padding",
)
def unpack_signs_rows(answer):
    unpacks(answer, "1bit", 8)


@unpack_signs.check("any shape", "keep all axes but the last: packed.shape[:-1]")
def unpack_signs_any(answer):
    unpacks_any(answer, "1bit", 8)


pack_pairs = Task("7.3", "pack_2bit", part="packing, 2 bits", hook="pack_2bit")


@pack_pairs.check(
    "four trits in a byte",
    "the digit is code + 1, and the worths are powers of 4",
    "(digits * 4 ** np.arange(4)).sum(axis=-1)",
)
def pack_pairs_byte(answer):
    packs(answer, "2bit", [1, 0, -1, -1], [-1, -1, -1, 1])


@pack_pairs.check(
    "the padding is the weight 0",
    "its digit is 1, not 0: pad the codes before you add 1",
    "groups(codes, 4, padding=0) + 1",
)
def pack_pairs_padding(answer):
    packs(answer, "2bit", [1, 0, -1, -1, 1, 1], [-1])


@pack_pairs.check("any shape, uint8", "sum over the last axis only, and .astype('uint8') at the end")
def pack_pairs_any(answer):
    packs_any(answer, "2bit", 4)


unpack_pairs = Task("7.4", "unpack_2bit", part="packing, 2 bits", hook="unpack_2bit")


@unpack_pairs.check(
    "bytes to trits",
    "(packed[..., None] >> np.array([0, 2, 4, 6], 'uint8')) & 3 are the digits",
    "the trit is digit - 1, in int8: a uint8 has no -1",
)
def unpack_pairs_rows(answer):
    unpacks(answer, "2bit", 4)


@unpack_pairs.check("any shape", "keep all axes but the last: packed.shape[:-1]")
def unpack_pairs_any(answer):
    unpacks_any(answer, "2bit", 4)


pack_five = Task("7.5", "pack_base3", part="packing, base 3", hook="pack_base3")


@pack_five.check(
    "five trits in a byte",
    "as with two bits: groups of 5, and the worths are powers of 3",
    "the largest byte is 242: 2 + 6 + 18 + 54 + 162",
)
def pack_five_byte(answer):
    packs(answer, "base3", [1, -1, -1, -1, -1], [1, 0, -1, -1, 1], [1, 1, 1, 1, 1])


@pack_five.check("the padding is the weight 0", "groups(codes, 5, padding=0) + 1")
def pack_five_padding(answer):
    packs(answer, "base3", [1], [-1, 0, 0, 1, 1, 1])


@pack_five.check("any shape, uint8", "sum over the last axis only, and .astype('uint8') at the end")
def pack_five_any(answer):
    packs_any(answer, "base3", 5)


unpack_five = Task("7.6", "unpack_base3", part="packing, base 3", hook="unpack_base3")


@unpack_five.check(
    "bytes to trits",
    "row b of the table: b % 3, b // 3 % 3, b // 9 % 3, b // 27 % 3, b // 81 % 3, each minus 1",
    "np.arange(256)[:, None] // 3 ** np.arange(5) % 3 - 1 is the table",
    "table.take(packed, axis=0).reshape(*packed.shape[:-1], -1)[..., :K]",
)
def unpack_five_rows(answer):
    unpacks(answer, "base3", 5)


@unpack_five.check("any shape", "keep all axes but the last: packed.shape[:-1]")
def unpack_five_any(answer):
    unpacks_any(answer, "base3", 5)


dots = Task("7.7", "signs_dot")


@dots.check(
    "one pair",
    "of K places D differ, so K - D are equal: the sum is (K - D) - D",
    "D is the number of ones in x ^ w, summed over the bytes: np.bitwise_count(...).sum(axis=-1)",
    "K - 2 * np.bitwise_count(x_bits[:, None] ^ w_bits).sum(axis=-1, dtype=int)",
)
def dots_pair(answer):
    products(answer, 1, 1, 8)
    products(answer, 1, 1, 3)


@dots.check("all pairs", "x_bits[:, None] ^ w_bits has shape (n, out, B)")
def dots_all(answer):
    products(answer, 3, 2, 20)


@dots.check("long rows", "a sum of uint8 may run over, and K - 2 D is below 0: sum(..., dtype=int)")
def dots_long(answer):
    products(answer, 1, 2, 4000)


def products(answer, n, out, K):
    x, w = codes("1bit", n, K), codes("1bit", out, K, seed=1)
    expected = x.astype(int) @ w.T.astype(int)
    expect(answer, {"x_bits": pack(x, "1bit"), "w_bits": pack(w, "1bit"), "K": K}, expected)


sizes = Task("7.8", "size_table")


def row_of(layout):
    def check(answer):
        for shapes, others in (([(2, 40)], 0), ([(3, 40), (40, 80)], 7), ([(2, 33)], 1)):
            if layout == "float32":
                expected = 4 * (others + sum(out * K for out, K in shapes))
            else:
                expected = 4 * others + sum(out * (-(-K // BYTES[layout]) + 4) for out, K in shapes)
            given = {"shapes": shapes, "others": others}
            expect(lambda shapes, others: answer(shapes, others)[layout], given, expected)

    return check


sizes.check("float32", "four bytes for each number, the others included: sum(out * K for out, K in shapes)")(
    row_of("float32")
)
sizes.check(
    "1 bit",
    "out rows, each with its own bytes, its own padding and its own scale: out * (bytes of a row + 4)",
    "ceil(K / 8) is -(-K // 8); the others are four bytes each, here too",
)(row_of("1bit"))
sizes.check("2 bits", "as with 1 bit, with ceil(K / 4)")(row_of("2bit"))
sizes.check("base 3", "as with 1 bit, with ceil(K / 5)")(row_of("base3"))
