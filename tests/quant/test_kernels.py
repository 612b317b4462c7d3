"""The CUDA kernels, executed on the CPU by `cuda_harness`: the whole numbers and the floats of NumPy, to the bit."""

import re
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_compile
import cuda_harness
import numpy as np
import pytest
from cuda_harness import ORDERS, RawModule, thread_order
from hypothesis import given, settings
from hypothesis import strategies as st

import tinybitvit as tb
from tinybitvit import backend
from tinybitvit.ops.ste import absmax_codes
from tinybitvit.quant import BitLinear, PackedLinear, cuda, pack, sign_bits
from tinybitvit.quant.integer import input_codes

NEEDS_COMPILER = pytest.mark.skipif(bool(cuda_harness.NO_COMPILER), reason=str(cuda_harness.NO_COMPILER))
TEXT = cuda.source()
SIZES = cuda.constants()


def simulated(text=TEXT, *options):
    """NumPy with a RawModule that runs that text on the CPU, with these options too, and junk in what is `empty`."""
    xp = types.ModuleType("simulated")
    vars(xp).update({name: value for name, value in vars(np).items() if not name.startswith("__")})
    more = options
    xp.RawModule = lambda *, code, options: RawModule(code=text, options=(*options, *more))
    xp.empty = lambda shape, dtype: (
        np.full(np.prod(shape) * np.dtype(dtype).itemsize, 0x7F, "uint8").view(dtype).reshape(shape)
    )
    return xp


SIMULATED = simulated()


@pytest.fixture(
    params=[
        *[pytest.param(order, marks=NEEDS_COMPILER) for order in ORDERS],
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def xp(request):
    """CuPy on a real GPU, else NumPy with simulated kernels whose threads run in one of three orders."""
    if request.param == "cuda":
        import cupy

        yield cupy
    else:
        with thread_order(request.param, seed=1):
            yield SIMULATED


# --- products ---------------------------------------------------------------------------------------------------------


def words_of(codes, depth):
    """int8 codes (T, K) as uint32 words, rows padded with zeros to whole tiles."""
    T, K = codes.shape
    padded = np.zeros((T, 4 * depth * -(-K // (4 * depth))), "int8")
    padded[:, :K] = codes
    return padded.view("uint32")


def sign_words_of(codes, depth):
    bits = sign_bits(codes)
    padded = np.zeros((len(codes), 4 * depth * -(-codes.shape[1] // (32 * depth))), "uint8")
    padded[:, : bits.shape[1]] = bits
    return padded.view("uint32")


def product(xp, form, codes, q, step, scale, bias):
    """`cuda.multiply` from unpacked codes, and the same in int64."""
    K = codes.shape[1]
    words = sign_words_of(codes, SIZES["SIGN_DEPTH"]) if form == "xnor" else words_of(codes, SIZES["CODE_DEPTH"])
    packed = pack(q, "2bit" if form == "2bit" else "1bit")
    arrays = [None if a is None else xp.asarray(a) for a in (words, packed, step, scale, bias)]
    y = backend.to_numpy(cuda.multiply(xp, form, *arrays, K))
    expected = (codes.astype("int64") @ q.astype("int64").T).astype("float32")
    expected *= step
    expected *= scale
    if bias is not None:
        expected += bias
    return y, expected


def random_codes(rng, form, T, N, K):
    codes = rng.choice([-1, 1], (T, K)) if form == "xnor" else rng.integers(-127, 128, (T, K))
    q = rng.integers(-1, 2, (N, K)) if form == "2bit" else rng.choice([-1, 1], (N, K))
    return codes.astype("int8"), q.astype("int8")


FORMS = ("2bit", "1bit", "xnor")
SHAPES = [
    (1, 1, 1),
    (1, 192, 192),
    (8, 5, 3),
    (3, 2, 4099),
    (9, 65, 66),  # the first gemm, and one more than a tile of outputs
    (32, 64, 256),
    (33, 129, 257),
    (65, 192, 192),
    (197, 70, 100),
    (40, 33, 3072),
    (10, 3072, 31),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("T", "N", "K"), SHAPES)
def test_products_equal_numpy(xp, rng, form, T, N, K):
    codes, q = random_codes(rng, form, T, N, K)
    ones = np.ones((T, 1), "float32")
    y, expected = product(xp, form, codes, q, ones, ones[:1, 0], None)  # the sums of codes themselves
    assert np.abs(expected).max() < 2**24 and np.array_equal(y, expected)
    step, scale, bias = (rng.uniform(0.01, 3, shape).astype("float32") for shape in ((T, 1), N, N))
    y, expected = product(xp, form, codes, q, step, scale, bias - 1)
    assert y.dtype == np.float32 and np.array_equal(y, expected)


@NEEDS_COMPILER
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.sampled_from(ORDERS),
    st.integers(1, 70),
    st.integers(1, 140),
    st.integers(1, 300),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_products_of_any_shape(form, order, T, N, K, per_row, has_bias, seed):
    rng = np.random.default_rng(seed)
    step, bias = rng.normal(size=(T, 1)).astype("float32"), rng.normal(size=N).astype("float32")
    scale = rng.normal(size=N if per_row else 1).astype("float32")
    with thread_order(order, seed):
        y, expected = product(
            SIMULATED, form, *random_codes(rng, form, T, N, K), step, scale, bias if has_bias else None
        )
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [2, 33])
@pytest.mark.parametrize("K", [64, 3072, 40_003])
def test_longest_sums_of_one_sign(xp, form, T, K):
    """All +127 or -127 against all +1 or -1: nothing cancels, neither in a byte nor in a sum."""
    top = 1 if form == "xnor" else 127
    codes = np.where(np.arange(T)[:, None] % 2, -top, top).astype("int8") * np.ones((1, K), "int8")
    q = np.array([[1], [-1]], "int8") * np.ones((1, K), "int8")
    ones = np.ones((T, 1), "float32")
    y, expected = product(xp, form, codes, q, ones, ones[:1, 0], None)
    assert np.array_equal(y, expected) and abs(y[0, 0]) == top * K


@NEEDS_COMPILER
def test_largest_K_of_int32():
    K = cuda.MAX_K
    assert 127 * K <= 2**31 - 1 < 127 * (K + 1)
    codes, q = np.full((1, K), 127, "int8"), np.ones((1, K), "int8")
    words, packed, one = words_of(codes, SIZES["CODE_DEPTH"]), pack(q, "1bit"), np.ones((1, 1), "float32")
    y = cuda.multiply(SIMULATED, "1bit", words, packed, one, one[0], None, K)
    assert y[0, 0] == np.float32(127 * K)


@NEEDS_COMPILER
@pytest.mark.parametrize("form", ["2bit", "1bit"])
@pytest.mark.parametrize("T", [1, 33])
def test_gpus_without_dp4a_compute_the_same(rng, form, T):
    codes, q = random_codes(rng, form, T, 66, 131)
    step, scale = np.full((T, 1), 0.1, "float32"), np.full(66, 0.3, "float32")
    old = simulated(TEXT, "-D__CUDA_ARCH__=600")
    assert np.array_equal(*product(old, form, codes, q, step, scale, None))


def test_weight_rows_may_begin_anywhere(xp, rng):
    """A view into a larger buffer, at every offset from a multiple of 4 bytes."""
    codes, q = random_codes(rng, "2bit", 2, 5, 64)
    packed, ones = pack(q, "2bit"), np.ones((2, 1), "float32")
    for offset in range(4):
        buffer = xp.zeros(packed.size + 4, "uint8")
        view = buffer[offset : offset + packed.size].reshape(packed.shape)
        view[...] = xp.asarray(packed)
        words = xp.asarray(words_of(codes, SIZES["CODE_DEPTH"]))
        y = cuda.multiply(xp, "2bit", words, view, xp.asarray(ones), xp.asarray(ones[0]), None, 64)
        assert np.array_equal(backend.to_numpy(y), codes.astype(int) @ q.T.astype(int))


# --- quantise ---------------------------------------------------------------------------------------------------------


def rows_to_quantise(rng, K):
    x = rng.standard_normal((12, K)).astype("float32")
    x[1] = 0
    x[2] = -0.0
    x[3] *= 1e-6  # below the smallest scale
    x[4] *= 1e-42  # denormal
    x[5] *= 3e37
    x[6] = np.arange(K) % 127 + 0.5  # with s = 1 every code is a tie
    x[6, 0] = 127
    x[7] = -np.abs(x[7])
    x[8] = 1
    x[9, -1] = 100  # the largest is the last
    x[10] = (np.arange(K) % 127 + 0.5) * np.float32(1.7 / 127)  # about a tie each: the last bit of x s decides
    x[10, 0] = 1.7
    return x


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("K", [1, 3, 64, 65, 192, 300, 3072])
def test_quantize_equals_numpy(xp, rng, K, bits):
    x = rows_to_quantise(rng, K)
    codes, step = absmax_codes(np, x, bits)
    words, steps = map(backend.to_numpy, cuda.quantize(xp, xp.asarray(x), bits))
    assert np.array_equal(words, words_of(codes.astype("int8"), SIZES["CODE_DEPTH"]))
    assert steps.dtype == np.float32 and np.array_equal(steps, step)


@pytest.mark.parametrize("K", [1, 65, 192, 3072])
def test_norm_quantize_equals_numpy(xp, rng, K):
    """The codes are equal to the bit, and so are the steps but for a root, which the array module computes."""
    x = rows_to_quantise(rng, K)
    norm = tb.nn.RMSNorm(K)
    norm.weight.data = rng.uniform(-2, 2, K).astype("float32")
    codes, step = input_codes(np, x, 8, norm)
    norm.weight.data = xp.asarray(norm.weight.data)
    words, steps = map(backend.to_numpy, cuda.quantize(xp, xp.asarray(x), 8, norm))
    assert np.array_equal(words, words_of(codes.astype("int8"), SIZES["CODE_DEPTH"]))
    if xp is SIMULATED:
        assert np.array_equal(steps, step)
    else:  # mean x^2 is a sum of floats: another order, another last bit
        np.testing.assert_allclose(steps, step, rtol=1e-5)


@pytest.mark.parametrize("K", [1, 31, 32, 33, 256, 257, 3072])
def test_pack_signs_equals_numpy(xp, rng, K):
    x = rng.standard_normal((5, K)).astype("float32")
    x[1], x[2], x[3] = 0.0, -0.0, np.nan
    words = backend.to_numpy(cuda.pack_signs(xp, xp.asarray(x)))
    assert np.array_equal(words, sign_words_of(x, SIZES["SIGN_DEPTH"]))


# --- PackedLinear -----------------------------------------------------------------------------------------------------


def make_packed(rng, K, N, bits, activation_bits, norm=False, granularity="row"):
    layer = BitLinear(K, N, bits, activation_bits, norm=norm, granularity=granularity, rng=rng)
    packed = PackedLinear.from_bitlinear(layer)
    packed.bias.data = rng.standard_normal(N).astype("float32")
    if norm:
        packed.norm.weight.data = rng.uniform(0.5, 2, K).astype("float32")
    return packed


def forward(layer, x):
    with tb.no_grad():
        return layer(tb.Tensor(x)).data


LAYERS = [(1.58, 8), (1.58, 4), (1, 8), (1, 1), (1.58, 1), (1.58, None), (4, 8)]


@NEEDS_COMPILER
@pytest.mark.parametrize(("bits", "activation_bits"), LAYERS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_layer_on_the_device_has_the_bits_of_the_cpu(rng, bits, activation_bits, norm, granularity):
    import cupy_standin

    layer = make_packed(rng, 100, 70, bits, activation_bits, norm, granularity)
    x = rng.standard_normal((3, 17, 100)).astype("float32")
    x[0, 0], x[0, 1, 5], x[0, 2, 6] = 0, np.nan, np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        expected = [forward(layer, x), forward(layer, x[0, :1])]
    with cupy_standin.installed() as cupy:
        layer.to("cuda")
        for order in ORDERS:
            with thread_order(order, 2), cupy_standin.reads(at_most=0):  # the layer never waits for the device
                y = [forward(layer, cupy.asarray(part)) for part in (x, x[0, :1])]
            for one, other in zip(y, expected, strict=True):
                assert type(one) is cupy.ndarray and np.array_equal(one.get(), other, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "activation_bits"), LAYERS)
@pytest.mark.parametrize("norm", [False, True])
def test_layer_on_a_gpu(rng, bits, activation_bits, norm):
    layer = make_packed(rng, 100, 70, bits, activation_bits, norm)
    x = rng.standard_normal((3, 17, 100)).astype("float32")
    expected = forward(layer, x)
    y = backend.to_numpy(forward(layer.to("cuda"), backend.to_device(x, "cuda")))
    if activation_bits in (8, 4) and not norm:
        assert np.array_equal(y, expected)
    else:
        np.testing.assert_allclose(y, expected, rtol=0, atol=0.05 * np.abs(expected).max())
        assert np.median(np.abs(y - expected)) < 1e-5 * np.abs(expected).max()


def test_which_layers_have_kernels(monkeypatch):
    x, packed, scale = np.zeros((2, 3, 8), "float32"), np.zeros((5, 2), "uint8"), np.zeros(5, "float32")
    assert not cuda.has_kernel(x, packed, scale, "2bit", 8), "an array on the CPU"
    monkeypatch.setattr(backend, "device_of", lambda array: "cuda")
    assert cuda.has_kernel(x, packed, scale, "2bit", 8) and cuda.has_kernel(x, packed, scale, "1bit", 1)
    assert not cuda.has_kernel(x, packed, scale, "2bit", 1)
    assert not cuda.has_kernel(x, packed, scale, "2bit", None)
    assert not cuda.has_kernel(x, packed, scale, "base3", 8)
    assert not cuda.has_kernel(x.astype("float64"), packed, scale, "2bit", 8)
    assert not cuda.has_kernel(x, packed, scale.astype("float64"), "2bit", 8)
    assert not cuda.has_kernel(x[:0], packed, scale, "2bit", 8) and not cuda.has_kernel(x, packed[:0], scale, "2bit", 8)
    wide = np.broadcast_to(np.float32(0), (1, cuda.MAX_K + 1))
    assert not cuda.has_kernel(wide, packed, scale, "2bit", 8), "its sums need more than 32 bits"
    tall = np.broadcast_to(np.uint8(0), (64 * 65535 + 1, 2))
    assert cuda.has_kernel(x, tall[1:], scale, "2bit", 8) and not cuda.has_kernel(x, tall, scale, "2bit", 8)


@NEEDS_COMPILER
def test_a_text_that_does_not_compile_costs_one_sentence():
    with pytest.raises(RuntimeError, match=r"cannot be compiled for this GPU .*kernel.cu:1.*model.to\('cpu'\)"):
        cuda.pack_signs(simulated("what is this;"), np.zeros((1, 1), "float32"))


def test_a_weight_of_another_width_is_refused():
    ones = np.ones((1, 1), "float32")
    with pytest.raises(ValueError, match="does not hold 65 columns"):
        cuda.multiply(SIMULATED, "1bit", np.zeros((1, 32), "uint32"), np.zeros((3, 8), "uint8"), ones, ones, None, 65)


# --- races and bounds -------------------------------------------------------------------------------------------------


def all_kernels_agree(xp):
    """Whether every kernel gives what NumPy gives, on shapes with several tiles and remainders everywhere."""
    rng, pairs = np.random.default_rng(0), []
    for T in (2, 35):
        step, scale = rng.normal(size=(T, 1)).astype("float32"), rng.normal(size=67).astype("float32")
        pairs += [product(xp, form, *random_codes(rng, form, T, 67, 301), step, scale, scale) for form in FORMS]
    x, norm = rng.standard_normal((3, 301)).astype("float32"), tb.nn.RMSNorm(301)
    for option in (None, norm):
        codes, step = input_codes(np, x, 8, option)
        pairs += zip(
            cuda.quantize(xp, x, 8, option), (words_of(codes.astype("int8"), SIZES["CODE_DEPTH"]), step), strict=True
        )
    pairs.append((cuda.pack_signs(xp, x), sign_words_of(x, SIZES["SIGN_DEPTH"])))
    return all([np.array_equal(one, other) for one, other in pairs])


BARRIER = "__syncthreads();"


@NEEDS_COMPILER
@pytest.mark.parametrize("removed", [None, *range(TEXT.count(BARRIER))])
def test_every_barrier_is_needed(removed):
    parts = TEXT.split(BARRIER)
    joints = ["" if i == removed else BARRIER for i in range(len(parts) - 1)] + [""]
    xp = simulated("".join(part + joint for part, joint in zip(parts, joints, strict=True)))
    caught = []
    for order in ORDERS:
        with thread_order(order, 0):
            if not all_kernels_agree(xp):
                caught.append(order)
    print(f"barrier {removed}: caught in {caught}")
    assert bool(caught) == (removed is not None)


# What a planted fault replaces, and what the sanitizer calls the access.
FAULTS = [
    ("token < T ? x[", "token <= T ? x[", "heap-buffer-overflow"),
    ("if (token < T && out < N)", "if (token <= T && out < N)", "heap-buffer-overflow"),
    ("if (b < left) four", "four", "heap-buffer-overflow"),
    ("of_warp[threadIdx.x / WARP] = most", "of_warp[threadIdx.x / WARP + 1] = most", "global-buffer-overflow"),
    ("left >= 4 && (size_t)at % 4 == 0", "left >= 4", "load of misaligned address"),
]
SANITIZED = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]!r}
import test_kernels as t
texts = [t.TEXT, t.with_faults()]
for text in texts:  # a library that is loaded after the first report would be reported without lines
    t.cuda_harness.compile_text(text, ("-std=c++17", *t.cuda_harness.SANITIZE))
for text in texts:
    print("next text", file=sys.stderr, flush=True)
    assert t.all_kernels_agree(t.simulated(text, *t.cuda_harness.SANITIZE)) or text != t.TEXT
"""


def with_faults():
    text = TEXT
    for old, new, _ in FAULTS:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@NEEDS_COMPILER
def test_the_sanitizer_finds_every_planted_fault_and_no_other():
    if not Path(cuda_harness.sanitizer_runtime()).is_file():
        pytest.skip("g++ has no address sanitizer here")
    done = cuda_harness.sanitized_python(SANITIZED)
    assert done.returncode == 0, done.stderr
    before, good, planted = done.stderr.split("next text\n")
    assert before == good == "", "the kernels as they are"
    reports = re.split("ERROR: AddressSanitizer: |(?=kernel.cu:.* runtime error:)", planted)
    for old, _, kind in FAULTS:
        line = TEXT[: TEXT.index(old)].count("\n") + 1
        place = re.compile(rf"kernel\.cu:({line}|{line + 1})\b")  # of a guard, or of what it guards
        assert any(kind in report and place.search(report) for report in reports), (old, reports)


# --- launch limits and real compilers ---------------------------------------------------------------------------------


@given(st.integers(1, 2**31 - 1), st.integers(1, 64 * 65535))
def test_grids_stay_within_the_limits_and_cover_everything(T, N):
    kind, (x, y) = cuda.product_grid(T, N)
    assert 1 <= x <= 2**31 - 1 and 1 <= y <= 65535
    if kind == "gemv":
        assert y == T and 4 * (x - 1) < N <= 4 * x
    else:
        assert 32 * (x - 1) < T <= 32 * x and 64 * (y - 1) < N <= 64 * y


def test_numbers_that_belong_together():
    assert SIZES["GEMM_THREADS"] * 16 == SIZES["TILE_TOKENS"] * SIZES["TILE_OUT"], "a thread owns 4 x 4 sums"
    for name in ("GEMM_THREADS", "GEMV_THREADS", "ROW_THREADS"):
        assert SIZES[name] % SIZES["WARP"] == 0 and SIZES[name] <= 1024
    assert SIZES["CODE_DEPTH"] % 8 == 0, "a packed word of the 1-bit form fills 8 words of a tile"


def check_compiled(log):
    found = cuda_compile.resources(log)
    assert not cuda_compile.complaints(log)
    assert sorted(found) == sorted([f"{kind}_{form}" for kind in ("gemm", "gemv") for form in FORMS] + ROW_KERNELS)
    for name, (registers, shared, spilled) in found.items():
        print(f"{name}: {registers} registers, {shared} bytes of shared memory")
        assert not spilled and shared <= 48 * 1024
        assert registers * 256 <= 65536, "a block of at most 256 threads finds its registers"
    return {name: shared for name, (_, shared, _) in found.items()}


ROW_KERNELS = ["norm_quantize", "pack_signs", "quantize"]


@pytest.mark.skipif(not cuda_compile.NVCC, reason="no nvcc on the PATH")
@pytest.mark.parametrize("architecture", cuda_compile.ARCHITECTURES)
def test_nvcc_compiles_without_a_warning(architecture):
    shared = check_compiled(cuda_compile.compile_nvcc(TEXT, architecture))
    if not cuda_harness.NO_COMPILER:
        simulated_sizes = {n: RawModule(code=TEXT).get_function(n).shared_size_bytes for n in shared}
        assert shared == simulated_sizes, "the harness counts shared memory as ptxas does"


@pytest.mark.skipif(not cuda_compile.find_nvrtc(), reason="no NVRTC: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", cuda_compile.ARCHITECTURES)
def test_nvrtc_compiles_without_a_warning(architecture):
    check_compiled(cuda_compile.compile_nvrtc(TEXT, architecture))


@pytest.mark.skipif(not cuda_compile.NVCC, reason="no nvcc on the PATH")
def test_float_operations_are_rounded_one_by_one():
    """No multiply-add, no approximate division, no denormals taken for 0: what the bits of NumPy depend on."""
    ptx = cuda_compile.ptx_nvcc(TEXT, "80")
    assert not re.findall(r"\b(?:fma|mad)\.\S*f32|\S*\.ftz\S*|\S*\.approx\S*", ptx)
    for wanted in ("mul.rn.f32", "add.rn.f32", "div.rn.f32", "dp4a.s32.s32", "popc.b32"):
        assert wanted in ptx, wanted
    loose = TEXT.replace("__fadd_rn(y, bias[out])", "y + bias[out]").replace("__fmul_rn(y, scale[", "(y * scale[")
    assert "fma.rn.f32" in cuda_compile.ptx_nvcc(loose, "80"), "what the compiler does if it may"


@pytest.mark.skipif(not cuda_compile.NVCC, reason="no nvcc on the PATH")
def test_a_warning_is_an_error():
    with pytest.raises(RuntimeError, match="never referenced"):
        cuda_compile.compile_nvcc("__global__ void f() { int unused = 1; }", "80")


# --- the ways to run them --------------------------------------------------------------------------------------------


@NEEDS_COMPILER
def test_threads_of_python_may_launch_at_the_same_time(rng):
    x = rng.standard_normal((4, 500)).astype("float32")
    expected, start = cuda.quantize(SIMULATED, x, 8)[0], threading.Barrier(4)

    def work(_):
        start.wait(timeout=30)
        return all(np.array_equal(cuda.quantize(SIMULATED, x, 8)[0], expected) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@NEEDS_COMPILER
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ucontext of the C library")
def test_fibers_without_assembler():
    """On processors other than x86-64 the harness changes stacks by the C library's swapcontext."""
    assert all_kernels_agree(simulated(TEXT, "-DSHIM_UCONTEXT"))
