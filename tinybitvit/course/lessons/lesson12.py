"""Checks of lesson 12: the bytes of a low-bit network, a safetensors file, the product of bytes, the roofline."""

import json

import numpy as np

from ..checker import Task, expect, rule_out

size = Task("12.1", "low_bit_bytes")


@size.check(
    "the codes",
    "n codes share a byte, and each row begins a new one: a row of 64 in fives takes 13 bytes",
    "ceil(K / n) without floats: -(-K // n); times the number of rows",
)
def size_codes(answer):
    rule_out(answer, {"shapes": [(2, 11)], "n": 5}, (5, 16), "each row begins a new byte: round up row by row")
    for shapes, n in (([(2, 11)], 5), ([(2, 10)], 5), ([(3, 8), (4, 9)], 8)):
        codes = sum(row * -(-K // n) for row, K in shapes)
        expect(lambda shapes, n: answer(shapes, n)[0], {"shapes": shapes, "n": n}, codes)


@size.check("the rest", "each row has a scale and a bias, both float32: how many bytes is that?")
def size_rest(answer):
    expect(answer, {"shapes": [(7, 8)], "n": 8}, (7, 56), ("the codes", "the rest"))


file = Task("12.2", "file_bytes", part="the file")
ARRAYS = {"a": np.array([[1, 2, 3]], "uint8"), "b": np.array([0.5, -1.0], "float32"), "c": np.arange(4, dtype="int64")}


def header_of(answer):
    """The header of the student's file as a dict, and the bytes after it. AssertionError for what is no header."""
    found = answer(dict(ARRAYS), {"by": "me"})
    assert isinstance(found, bytes), f"it must return bytes, not {type(found).__name__}"
    length = int.from_bytes(found[:8], "little")
    assert length <= len(found) - 8, (
        f"its first 8 bytes, {found[:8]!r}, say that the header has {length} bytes, but the file has {len(found)}"
    )
    try:
        return json.loads(found[8 : 8 + length]), found[8 + length :]
    except ValueError:
        raise AssertionError(
            f"the {length} bytes after the first 8 are no JSON: {found[8 : 8 + length]!r:.60}"
        ) from None


@file.check(
    "the length, then JSON",
    "first the length of the header, 8 bytes, the lowest first; then the header: json.dumps(header).encode()",
    'struct.pack("<Q", len(head)) are the 8 bytes; "<" is the lowest byte first, "Q" a whole number of 8 bytes',
)
def file_length(answer):
    header, _ = header_of(answer)
    assert header.get("__metadata__") == {"by": "me"}, 'the text belongs into the header, as "__metadata__"'


@file.check(
    "an entry for each array",
    "dtype (F32, U8, I64), shape as a list, data_offsets as [begin, end]",
    "array.dtype.kind is f, u or i, and array.itemsize the bytes of a number",
)
def file_entries(answer):
    header, _ = header_of(answer)
    for name, kind, shape in (("a", "U8", [1, 3]), ("b", "F32", [2]), ("c", "I64", [4])):
        entry = header.get(name)
        assert isinstance(entry, dict), f"the header has no entry for the array {name!r}"
        for key, expected in (("dtype", kind), ("shape", shape)):
            assert entry.get(key) == expected, f"the {key} of {name!r} is {entry.get(key)!r}, expected {expected!r}"


@file.check(
    "the bytes, where the entries say",
    "offsets count from the end of the header: the first array begins at 0, the next where that one ends",
    "an array takes array.nbytes bytes, and array.tobytes() gives them",
)
def file_arrays(answer):
    header, data = header_of(answer)
    offsets = {name: header.get(name, {}).get("data_offsets") for name in ARRAYS}
    assert all(isinstance(found, list) and len(found) == 2 for found in offsets.values()), (
        f"data_offsets must be [begin, end], not {offsets}"
    )
    end = 0
    for name, array in ARRAYS.items():
        begin, end = end, end + array.nbytes
        assert offsets[name] == [begin, end], (
            f"{name!r} has data_offsets {offsets[name]}, expected {[begin, end]}: they count bytes, from 0"
        )
        assert data[begin:end] == array.tobytes(), f"at {begin} to {end} the bytes of {name!r} do not stand"
    assert len(data) == end, f"after the header come {len(data)} bytes, expected {end}"


product = Task("12.3", "byte_product")


def expect_product(answer, codes, w):
    """AssertionError unless the bytes code + 128 by w are the codes' product."""
    expected = codes.astype("int64") @ w.astype("int64")
    expect(answer, {"u": (codes + 128).astype("uint8"), "w": w.astype("int8"), "zero": 128}, expected)


@product.check(
    "codes by weights",
    "u = code + zero, so u w = code w + zero w: how much too much is the sum over K?",
    "zero times the sum of the weights in a column: w.sum(axis=0)",
)
def product_codes(answer):
    expect_product(answer, np.array([[3, -2]]), np.array([[1, 0], [1, -1]]))
    expect_product(answer, np.array([[-127, 127, 5], [0, 1, -1]]), np.array([[1], [1], [-1]]))


@product.check(
    "nothing runs over",
    "NumPy keeps uint8 by int8 in 16 bits, where sums end at 32,767: let the sums have 32",
    'u.astype("int32") @ w, and w.sum(axis=0, dtype="int32")',
)
def product_long(answer):
    expect_product(answer, np.full((1, 300), 127), np.ones((300, 2), int))
    expect_product(answer, np.full((2, 300), -127), -np.ones((300, 1), int))


bound = Task("12.4", "roof")


@bound.check(
    "few operations a byte: memory decides",
    "2 R K N operations; the bytes are width for each number of the two inputs, and 4 for each of the output",
    "a byte arrives every 1 / bandwidth seconds, so bandwidth times the operations a byte",
)
def bound_memory(answer):
    given = {"R": 1, "K": 100, "N": 100, "width": 4, "bandwidth": 1e9, "peak": 1e12}
    expect(answer, given, 1e9 * 20_000 / (4 * 10_100 + 400))
    expect(answer, given | {"width": 1}, 1e9 * 20_000 / (10_100 + 400))


@bound.check("many: the processor decides", "it computes no faster than its peak: the smaller of the two")
def bound_peak(answer):
    expect(answer, {"R": 1000, "K": 1000, "N": 1000, "width": 4, "bandwidth": 1e9, "peak": 2e9}, 2e9)
