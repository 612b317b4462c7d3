"""The harness that runs CUDA kernels on the CPU: what it computes, what it refuses, which races it shows."""

import cuda_harness
import numpy as np
import pytest
from cuda_harness import ORDERS, RawModule, thread_order

from tinybitvit.quant import cuda

pytestmark = pytest.mark.skipif(bool(cuda_harness.NO_COMPILER), reason=str(cuda_harness.NO_COMPILER))
TEXT = cuda.source()

SMALL = """
extern "C" __global__ void __launch_bounds__(64) small_{i}(const float* x, float* y, int n) {{
    __shared__ float s[64];
    {body}
}}
"""


def small_kernel(body):
    """The kernel of one of the tables below; all of them are one text, compiled once."""
    bodies = [row[0] for row in LANGUAGE + UNREACHED] + RACES
    text = "".join(SMALL.format(i=i, body=body) for i, body in enumerate(bodies))
    return RawModule(code=text).get_function(f"small_{bodies.index(body)}")


def run_small(body):
    x, y = np.arange(64, dtype="float32"), np.zeros(64, "float32")
    small_kernel(body)((1,), (64,), (x, y, np.int32(64)))
    return y


def in_all_orders(run):
    results = []
    for order in ORDERS:
        with thread_order(order, 5):
            results.append(run())
    return results


LANGUAGE = [
    ("y[threadIdx.x] = x[threadIdx.x] * n;", lambda i: i * 64),
    ("s[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[threadIdx.x] = s[63 - threadIdx.x];", lambda i: 63 - i),
    ("y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 3);", lambda i: i ^ 3),
    ("y[threadIdx.x] = __shfl_down_sync(~0u, x[threadIdx.x], 4);", lambda i: np.where(i % 32 < 28, i + 4, i)),
    ("y[threadIdx.x] = __shfl_up_sync(~0u, x[threadIdx.x], 4);", lambda i: np.where(i % 32 < 4, i, i - 4)),
    ("y[threadIdx.x] = __shfl_sync(~0u, x[threadIdx.x], 7);", lambda i: i // 32 * 32 + 7),
    ("y[threadIdx.x] = __popc(__ballot_sync(~0u, threadIdx.x < 40));", lambda i: np.where(i < 32, 32, 8)),
    ("s[threadIdx.x] = x[threadIdx.x]; __syncwarp(); y[threadIdx.x] = s[threadIdx.x ^ 1];", lambda i: i ^ 1),
    ("atomicAdd(&y[threadIdx.x % 2], 1.0f); atomicMax((int*)&y[2], (int)threadIdx.x);", None),
    ("y[threadIdx.x] = __dp4a((int)0x80ff7f01, 0x01020304, (int)threadIdx.x);", lambda i: i - 128 - 2 + 381 + 4),
    ("y[threadIdx.x] = s[threadIdx.x] == s[threadIdx.x];", lambda i: 0 * i),  # nobody wrote: NaN
]


@pytest.mark.parametrize(("body", "expected"), LANGUAGE)
def test_the_language(body, expected):
    first, *others = in_all_orders(lambda: run_small(body))
    assert all(np.array_equal(first, other) for other in others)
    if expected is not None:
        assert np.array_equal(first, expected(np.arange(64)))
    else:
        assert first[0] == first[1] == 32 and first[2].view("int32") == 63


UNREACHED = [
    ("if (threadIdx.x < 9) return; __syncthreads();", r"thread 8 has ended while others wait for it in line \d+"),
    (
        "if (threadIdx.x < 9) { __syncthreads(); } else {\n __syncthreads(); }",
        r"threads of one block wait at different barriers, in lines \d+ and \d+",
    ),
    ("if (threadIdx.x < 32) __syncthreads(); else __syncwarp();", "has ended while others wait"),
    ("if (threadIdx.x < 40) { __syncthreads(); } else __shfl_sync(~0u, 1, 0);", "never reach"),
]


@pytest.mark.parametrize(("body", "message"), UNREACHED)
def test_barriers_that_not_all_threads_reach(body, message):
    def fails():
        with pytest.raises(RuntimeError, match=message):
            run_small(body)

    in_all_orders(fails)


RACES = [
    "s[threadIdx.x] = x[threadIdx.x]; y[threadIdx.x] = s[63 - threadIdx.x];",
    "s[threadIdx.x] = x[threadIdx.x]; y[threadIdx.x] = s[threadIdx.x ^ 1];",
    "y[0] = x[threadIdx.x];",
]


@pytest.mark.parametrize("body", RACES)
def test_races_show_in_some_order(body):
    first, *others = in_all_orders(lambda: run_small(body))
    assert any(not np.array_equal(first, other, equal_nan=True) for other in others)


def test_three_dimensions_and_dynamic_shared_memory():
    code = """
    extern "C" __global__ void place(int* y) {
        extern __shared__ int of[];
        int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        of[thread] = 100 * threadIdx.z + 10 * threadIdx.y + threadIdx.x;
        __syncthreads();
        int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        y[24 * block + thread] = of[23 - thread] + 1000 * block;
    }"""
    kernel = RawModule(code=code).get_function("place")

    def run():
        y = np.zeros((12, 24), "int32")
        kernel((2, 3, 2), (2, 3, 4), (y,), shared_mem=96)
        return y

    places = [100 * z + 10 * y + x for z in range(4) for y in range(3) for x in range(2)]
    for y in in_all_orders(run):
        assert np.array_equal(y, 1000 * np.arange(12)[:, None] + places[::-1])


def test_calls_that_a_gpu_would_not_forgive():
    kernel = RawModule(code=TEXT).get_function("pack_signs")
    x, bits = np.zeros((2, 8), "float32"), np.zeros((2, 8), "uint32")
    good = (x, bits, np.int32(8), np.int32(8))
    kernel((2,), (256,), good)
    for args, message in [
        ((*good[:3], 8), "argument 3 must be a NumPy scalar of int32, not int"),
        ((*good[:3], np.int64(8)), "argument 3 must be a NumPy scalar of int32, not int64"),
        ((x.astype("float64"), *good[1:]), "argument 0 must be a contiguous array of float32"),
        ((x[:, ::2], *good[1:]), "argument 0 must be a contiguous array"),
        ((x.tolist(), *good[1:]), "argument 0 must be an array of float32, not list"),
        (good[:3], "3 arguments, needed 4"),
    ]:
        with pytest.raises(TypeError, match=message):
            kernel((2,), (256,), args)
    bits.flags.writeable = False
    with pytest.raises(TypeError, match="argument 1 is read-only"):
        kernel((2,), (256,), good)
    for grid, block, shared_mem, message in [
        ((1, 65536), (32,), 0, "grid"),
        ((0,), (32,), 0, "grid"),
        ((1,), (288,), 0, "288 threads a block, at most 256"),
        ((1,), (1, 1, 65), 0, "block"),
        ((1,), (32,), 48 * 1024 + 1, "shared memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernel(grid, block, good, shared_mem=shared_mem)
    for grid in (2, (2.0,), (np.int32(2),), [2]):
        with pytest.raises(TypeError, match="grid must be a tuple"):
            kernel(grid, (32,), good)
    with pytest.raises(AttributeError, match="no kernel 'other'"):
        RawModule(code=TEXT).get_function("other")
    with pytest.raises(ValueError, match="options must be"):
        RawModule(code=TEXT, options=("--use_fast_math",)).get_function("pack_signs")


def test_more_shared_memory_only_after_opting_in():
    kernel = small_kernel(RACES[0])
    assert kernel.shared_size_bytes == 256
    args = (np.zeros(64, "float32"), np.zeros(64, "float32"), np.int32(64))
    kernel((1,), (64,), args, shared_mem=48 * 1024 - 256)
    with pytest.raises(ValueError, match="256 \\+ 49152 bytes"):
        kernel((1,), (64,), args, shared_mem=48 * 1024)
    kernel.max_dynamic_shared_size_bytes = 64 * 1024
    kernel((1,), (64,), args, shared_mem=64 * 1024)
