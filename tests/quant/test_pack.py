"""Bit packing: round trips, exact bytes, sizes, damaged data, and the XNOR dot product."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybitvit.quant import choose_layout
from tinybitvit.quant.pack import (
    LAYOUTS,
    binary_dot,
    pack,
    packed_nbytes,
    packed_shape,
    sign_bits,
    unpack,
    validate,
)

K_PACKED = [name for name, layout in LAYOUTS.items() if layout.along == "K"]
CODE_DTYPES = ("int8", "int32", "int64", "float16", "float32", "float64")


def random_codes(rng, layout, shape, dtype="int8"):
    return rng.choice(LAYOUTS[layout].codes, size=shape).astype(dtype)


@st.composite
def codes_and_layout(draw):
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    if LAYOUTS[layout].along == "out":
        shape = (4 * draw(st.integers(0, 5)), draw(st.integers(0, 40)))
    else:
        shape = (*draw(st.lists(st.integers(0, 5), max_size=3)), draw(st.integers(0, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random_codes(rng, layout, shape, draw(st.sampled_from(CODE_DTYPES))), layout


# Round trips


@settings(max_examples=300, deadline=None)
@given(codes_and_layout(), st.sampled_from(("float32", "float64", "float16", "int8", "int32")))
def test_unpack_inverts_pack(case, dtype):
    codes, layout = case
    before = codes.copy()
    codes.flags.writeable = False
    packed = pack(codes, layout)
    assert packed.dtype == np.uint8
    assert packed.shape == packed_shape(codes.shape, layout)
    assert packed.nbytes == packed_nbytes(codes.shape, layout)
    packed_before = packed.copy()
    packed.flags.writeable = False
    back = unpack(packed, layout, codes.shape, dtype)
    assert back.dtype == dtype
    assert back.shape == codes.shape
    assert np.array_equal(back, before)
    assert np.array_equal(codes, before)
    assert np.array_equal(packed, packed_before)
    validate(packed, layout, codes.shape)


@pytest.mark.parametrize("K", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize("layout", K_PACKED)
def test_every_remainder_of_K(layout, K):
    codes = random_codes(np.random.default_rng(K), layout, (3, K))
    packed = pack(codes, layout)
    assert packed.nbytes == 3 * -(-K // LAYOUTS[layout].weights_per_byte)
    assert np.array_equal(unpack(packed, layout, (3, K)), codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_code_at_every_place_of_a_byte(layout):
    spec = LAYOUTS[layout]
    for code in spec.codes:
        for place in range(spec.weights_per_byte):
            codes = np.full(spec.weights_per_byte, spec.padding, dtype="int8")
            codes[place] = code
            codes = codes[:, None] if spec.along == "out" else codes
            assert np.array_equal(unpack(pack(codes, layout), layout, codes.shape, "int8"), codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_may_be_strided_views(layout):
    codes = random_codes(np.random.default_rng(0), layout, (44, 16))
    view = codes.T[::2, 1:-3]
    packed = pack(view, layout)
    assert np.array_equal(packed, pack(np.ascontiguousarray(view), layout))
    assert packed.flags.c_contiguous, "files take contiguous arrays only"
    spread = np.repeat(packed, 2, axis=1)[:, ::2]
    assert not spread.flags.c_contiguous
    assert np.array_equal(unpack(spread, layout, view.shape), view)


# The exact bytes: files outlive the code that wrote them


@pytest.mark.parametrize(
    ("layout", "codes", "expected"),
    [
        ("1bit", [1, -1, 1, 1, -1, -1, -1, 1, 1], [0b10001101, 0b00000001]),
        ("2bit", [-1, 0, 1, 1, 1], [0 + 1 * 4 + 2 * 16 + 2 * 64, 2 + 1 * 4 + 1 * 16 + 1 * 64]),
        ("base3", [1, 0, -1, 1, 1, -1], [2 + 1 * 3 + 0 * 9 + 2 * 27 + 2 * 81, 0 + 3 + 9 + 27 + 81]),
        ("int2", [-2, -1, 0, 1, -1], [0b01_00_11_10, 0b00_00_00_11]),
        ("int4", [-8, 7, -1], [0x78, 0x0F]),
        ("int8", [-128, -1, 0, 127], [128, 255, 0, 127]),
        ("hf", [[-1], [0], [1], [1]], [[0 + 1 * 4 + 2 * 16 + 2 * 64]]),
        ("hf", [[-1], [1], [0], [0], [1], [0], [1], [-1]], [[0 + 1 * 4 + 2 * 16 + 2 * 64], [2 + 1 * 4 + 1 * 16]]),
    ],
)
def test_bytes_are_fixed(layout, codes, expected):
    assert pack(np.array(codes), layout).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10), st.integers(1, 40), st.integers(0, 2**32))
def test_hf_equals_the_formula_in_torch(quarter, columns, seed):
    """packed[r, :] = sum over i of (W + 1)[r + i R, :] << 2 i, with R = out / 4."""
    codes = random_codes(np.random.default_rng(seed), "hf", (4 * quarter, columns))
    weight = torch.from_numpy(codes)
    expected = torch.zeros(quarter, columns, dtype=torch.uint8)
    for i in range(4):
        expected |= (weight[i * quarter : (i + 1) * quarter] + 1).to(torch.uint8) << (2 * i)
    assert np.array_equal(pack(codes, "hf"), expected.numpy())


def test_one_bit_bytes_are_those_of_packbits():
    codes = random_codes(np.random.default_rng(0), "1bit", (7, 45))
    assert np.array_equal(pack(codes, "1bit"), np.packbits(codes > 0, axis=-1, bitorder="little"))


@pytest.mark.parametrize("layout", K_PACKED)
def test_padding_holds_zero_weights(layout):
    spec = LAYOUTS[layout]
    codes = np.full((2, 17), spec.high)
    packed = pack(codes, layout)
    width = packed.shape[-1] * spec.weights_per_byte
    padded = unpack(packed, layout, (2, width))  # the padded width is a valid width of the same bytes
    assert np.array_equal(padded[:, :17], codes)
    assert (padded[:, 17:] == (-1 if layout == "1bit" else 0)).all()


# Sizes


@pytest.mark.parametrize(
    ("layout", "ratio"), [("1bit", 31), ("base3", 19.4), ("2bit", 15.5), ("hf", 15.5), ("int4", 8)]
)
@pytest.mark.parametrize("shape", [(192, 192), (576, 192), (192, 768), (2304, 768), (12, 578)])
def test_bytes_are_really_saved(layout, ratio, shape):
    packed = pack(random_codes(np.random.default_rng(0), layout, shape), layout)
    float_bytes = np.zeros(shape, "float32").nbytes
    assert packed.base is None, "a view would keep a larger array alive"
    assert packed.nbytes <= float_bytes / ratio


def test_choose_layout():
    compute = {1: "1bit", 1.58: "2bit", 2: "int2", 3: "int4", 4: "int4", 8: "int8"}
    for bits, layout in compute.items():
        assert choose_layout(bits) == layout
        assert choose_layout(bits, "disk") == ("base3" if bits == 1.58 else layout)
        assert LAYOUTS[layout].bits >= bits
    for bits in (2, 3, 4, 8):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        assert LAYOUTS[choose_layout(bits)].low <= low < high <= LAYOUTS[choose_layout(bits)].high


# A reused tile


@pytest.mark.parametrize("K", [40, 41])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpack_writes_into_out(layout, K):
    codes = random_codes(np.random.default_rng(0), layout, (8, K))
    packed = pack(codes, layout)
    for dtype in ("float32", "int8"):
        tile = np.full((8, K), 99, dtype)
        assert unpack(packed, layout, (8, K), out=tile) is tile
        assert np.array_equal(tile, codes)


@pytest.mark.parametrize("layout", ["1bit", "2bit", "base3"])
def test_a_tile_of_rows_keeps_memory_bounded(layout):
    codes = random_codes(np.random.default_rng(0), layout, (2048, 240))
    packed = pack(codes, layout)
    tile = np.empty((64, 240), "float32")
    unpack(packed[:64], layout, tile.shape, out=tile)  # builds the look-up table
    tracemalloc.start()
    for start in range(0, 2048, 64):
        unpack(packed[start : start + 64], layout, tile.shape, out=tile)
        assert np.array_equal(tile, codes[start : start + 64])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < codes.size * 4 / 10


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 9), "float32"),
        np.empty((4, 8), "float64"),
        np.empty((8, 4), "float32").T,
        np.empty((4, 16), "f4")[:, ::2],
    ],
)
def test_unsuitable_out_is_refused(out):
    packed = pack(np.zeros((4, 8)), "2bit")
    with pytest.raises(ValueError, match=r"out must be a C-contiguous float32 array of shape \(4, 8\)"):
        unpack(packed, "2bit", (4, 8), "float32", out=out)


# Errors


@pytest.mark.parametrize(
    ("codes", "layout", "message"),
    [
        ([[2.0]], "2bit", r"codes for layout '2bit' must lie in -1 \.\. 1, not in 2 \.\. 2"),
        ([[-2, 1]], "base3", r"must lie in -1 \.\. 1, not in -2 \.\. 1; quantise the weights first"),
        ([[2]], "int2", r"must lie in -2 \.\. 1"),
        ([[-9]], "int4", r"must lie in -8 \.\. 7"),
        ([[128]], "int8", r"must lie in -128 \.\. 127"),
        ([[300.0]], "int8", r"must lie in -128 \.\. 127"),
        ([[0, 3]], "1bit", r"must lie in -1 \.\. 1"),
        ([[float("nan"), 1.0]], "2bit", r"must lie in -1 \.\. 1, not in nan \.\. nan"),
        ([[float("inf"), 1.0]], "1bit", r"not in 1 \.\. inf"),
        ([[0.5]], "2bit", "codes must be whole numbers; round the weights first"),
        ([[1.0, -0.5]], "1bit", "codes must be whole numbers"),
        ([[1, 0]], "1bit", r"layout '1bit' has no code 0; take sign\(0\) as \+1, or use layout '2bit'"),
        ([[1]], "3bit", "layout must be one of '1bit', '2bit', 'base3', 'hf', 'int2', 'int4', 'int8', not '3bit'"),
        ([[1], [1]], "hf", r"needs shape \(out, K\) with out a multiple of 4, not \(2, 1\)"),
        ([1, 1, 1, 1], "hf", r"needs shape \(out, K\)"),
        (1, "2bit", r"packing needs a shape \(\.\.\., K\) of at least one axis"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, layout, message):
    with pytest.raises(ValueError, match=message):
        pack(np.array(codes), layout)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"codes must be a NumPy or CuPy array, not list \(of a Tensor, pass \.data\)"):
        pack([1, -1], "1bit")
    with pytest.raises(TypeError, match="codes must be whole numbers, not bool; convert them to int8"):
        pack(np.array([True]), "1bit")
    with pytest.raises(TypeError, match="packed must be a NumPy or CuPy array, not bytes"):
        unpack(b"\0", "1bit", (8,))
    with pytest.raises(TypeError, match="x must be a NumPy or CuPy array, not list"):
        sign_bits([1.0])
    with pytest.raises(ValueError, match="unpack to a float or signed integer dtype, not uint8"):
        unpack(np.zeros(1, "uint8"), "2bit", (4,), "uint8")


@pytest.mark.parametrize(
    ("packed", "shape"),
    [
        (np.zeros((3, 3), "uint8"), (3, 8)),
        (np.zeros((3, 1), "uint8"), (3, 8)),
        (np.zeros((2, 2), "uint8"), (3, 8)),
        (np.zeros(6, "uint8"), (3, 8)),
        (np.zeros((3, 2), "int8"), (3, 8)),
        (np.zeros((3, 2), "float32"), (3, 8)),
    ],
)
def test_wrong_number_of_bytes_is_refused(packed, shape):
    for read in (unpack, validate):
        with pytest.raises(
            ValueError, match=r"weights of shape \(3, 8\) in layout '2bit' are uint8 of shape \(3, 2\), not"
        ):
            read(packed, "2bit", shape)


def test_impossible_shapes_are_refused():
    for shape in ((-1,), (2, -4), ()):
        with pytest.raises(ValueError, match="packing needs a shape"):
            packed_nbytes(shape, "2bit")
    with pytest.raises(TypeError):
        packed_nbytes((2.5,), "2bit")


@pytest.mark.parametrize("bits", [32, 1.5, 16, 0, "1", None])
def test_bits_without_a_layout_are_refused(bits):
    with pytest.raises(ValueError, match=r"only weights of 1, 1\.58, 2, 3, 4, 8 bits can be packed"):
        choose_layout(bits)


def test_unknown_purpose_is_refused():
    with pytest.raises(ValueError, match="purpose must be 'compute' or 'disk', not 'speed'"):
        choose_layout(1, "speed")


# Damaged data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validate_accepts_exactly_the_bytes_that_pack_makes(layout):
    spec = LAYOUTS[layout]
    shape = (spec.weights_per_byte, 1) if spec.along == "out" else (1, spec.weights_per_byte)
    accepted = 0
    for byte in range(256):
        packed = np.array([[byte]], "uint8")
        try:
            validate(packed, layout, shape)
        except ValueError as error:
            assert f"byte {byte} cannot occur in layout '{layout}'" in str(error)
        else:
            accepted += 1
            assert np.array_equal(pack(unpack(packed, layout, shape), layout), packed)
    assert accepted == len(spec.codes) ** spec.weights_per_byte


@pytest.mark.parametrize("layout", [name for name in K_PACKED if LAYOUTS[name].weights_per_byte > 1])
def test_validate_finds_weights_in_the_padding(layout):
    per_byte, high = LAYOUTS[layout].weights_per_byte, LAYOUTS[layout].high
    full = pack(np.full((2, 2 * per_byte), high), layout)
    validate(full, layout, (2, 2 * per_byte))
    with pytest.raises(
        ValueError, match=f"the padding behind column {2 * per_byte - 1} of layout '{layout}' holds weights"
    ):
        validate(full, layout, (2, 2 * per_byte - 1))


# Binary weights and binary activations


def test_sign_bits_are_packed_signs():
    rng = np.random.default_rng(0)
    for shape in ((5, 0), (1, 1), (4, 7), (2, 3, 8), (2, 3, 9), (64,)):
        x = rng.standard_normal(shape).astype("float32")
        assert np.array_equal(sign_bits(x), pack(np.where(x >= 0, 1, -1), "1bit"))
    assert sign_bits(np.array([0.0, -0.0, -1e-45, 3])).tolist() == [0b1011]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=2), st.integers(0, 9), st.integers(0, 200), st.integers(0, 2**32))
def test_binary_dot_equals_the_integer_product(lead, out, K, seed):
    rng = np.random.default_rng(seed)
    x, w = random_codes(rng, "1bit", (*lead, K), "int64"), random_codes(rng, "1bit", (out, K), "int64")
    x_bits, w_bits = pack(x, "1bit"), pack(w, "1bit")
    x_bits.flags.writeable = w_bits.flags.writeable = False
    y = binary_dot(x_bits, w_bits, K)
    assert y.dtype == np.int32
    assert y.shape == (*lead, out)
    assert np.array_equal(y, x @ w.T)


@pytest.mark.parametrize("K", [132_104, 132_105])
def test_binary_dot_does_not_overflow(K):
    """The largest sums there are: K equal signs, K different signs."""
    x = np.ones((2, K), "int64")
    x[1] = -1
    w = np.ones((3, K), "int64")
    w[1] = -1
    w[2, ::2] = -1
    y = binary_dot(sign_bits(x), pack(w, "1bit"), K)
    assert np.array_equal(y, x @ w.T)
    assert y[0, 0] == K
    assert y[1, 0] == -K


def test_binary_dot_over_many_tiles_keeps_memory_bounded():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1500, 320)).astype("float32"), rng.standard_normal((200, 320)).astype("float32")
    x_bits, w_bits = sign_bits(x), sign_bits(w)
    tracemalloc.start()
    y = binary_dot(x_bits, w_bits, 320)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(y, np.where(x >= 0, 1, -1).astype("float32") @ np.where(w >= 0, 1, -1).astype("float32").T)
    assert peak < y.nbytes + 1_000_000, "the result and one tile, not all 64-bit words at once (12 MB)"


def test_binary_dot_refuses_bits_that_do_not_match():
    bits = np.zeros((2, 3), "uint8")
    for K in (16, 25):
        with pytest.raises(
            ValueError, match=rf"x_bits must be uint8 of shape \(\.\.\., {-(-K // 8)}\) for K = {K}, not uint8"
        ):
            binary_dot(bits, bits, K)
    with pytest.raises(ValueError, match=r"w_bits must be uint8 of shape \(out, 3\) for K = 24, not int8 of shape"):
        binary_dot(bits, bits.astype("int8"), 24)
    with pytest.raises(ValueError, match=r"w_bits must have two axes, \(out, 3\), not shape \(1, 2, 3\)"):
        binary_dot(bits, bits[None], 24)
    with pytest.raises(
        ValueError, match=r"x_bits must be uint8 of shape \(\.\.\., 1\) for K = 8, not uint8 of shape \(\)"
    ):
        binary_dot(np.array(0, "uint8"), bits, 8)
    with pytest.raises(TypeError, match="x_bits must be a NumPy or CuPy array, not list"):
        binary_dot([0], bits, 24)
