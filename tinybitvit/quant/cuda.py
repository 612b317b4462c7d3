"""Packed layers on a GPU: compiles kernels.cu when the first of them runs, and launches its kernels.

Kernels are for float32 inputs and the layouts "1bit" and "2bit" with quantised activations; any other layer unpacks
its weight and multiplies by the array module, as on the CPU. Both ways give the same bits (see kernels.cu).
"""

import re
from functools import cache
from pathlib import Path

from .. import backend
from ..backend import Array
from ..ops.norm import inverse_root, mean_product
from .integer import input_codes, smallest_size
from .pack import packed_shape

# Up to so many tokens each warp computes one output of one token; above, tiles share what they read. An estimate: at 8
# of the 32 tokens of a tile, three quarters of its products are wasted.
GEMV_TOKENS = 8
# Sums of K products up to 127 must fit in int32.
MAX_K = (2**31 - 1) // 127
# The second and third size of a grid; the first may be 2^31 - 1.
MAX_GRID_Y = 65_535


@cache
def source() -> str:
    """The text of kernels.cu."""
    return Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")


@cache
def constants() -> dict[str, int]:
    """The numbers that kernels.cu defines: tile sizes, threads a block."""
    return {name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)\b", source(), re.MULTILINE)}


@cache
def _kernel(xp, name):
    """The compiled kernel, which CuPy caches per device (and on disk); the text is compiled as a whole."""
    try:
        return xp.RawModule(code=source(), options=("-std=c++17",)).get_function(name)
    except Exception as error:  # NVRTC, the driver and the loader each have their own error class
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"the CUDA kernels of packed layers cannot be compiled for this GPU ({reason}); run the model on the CPU, "
            "model.to('cpu'), and report this"
        ) from error


def has_kernel(x: Array, packed: Array, scale: Array, layout: str, activation_bits: int | None) -> bool:
    """Whether `packed_linear` can compute this layer."""
    if backend.device_of(x) == "cpu" or not (x.dtype == scale.dtype == "float32"):
        return False
    T, N, K = x.size // max(1, x.shape[-1]), len(packed), x.shape[-1]
    if layout not in ("1bit", "2bit") or activation_bits is None or (activation_bits == 1 and layout != "1bit"):
        return False
    return 0 < K <= MAX_K and T > 0 and 0 < N <= MAX_GRID_Y * constants()["TILE_OUT"]


def packed_linear(
    xp, x: Array, packed: Array, scale: Array, bias: Array | None, layout: str, activation_bits: int, norm=None
) -> Array:
    """What `integer_linear` computes, x (..., K) -> (..., N), from packed (N, bytes): "1bit" or "2bit".

    scale (N,) or (1,); bias (N,) or None; norm: an RMSNorm on x, or None.
    """
    K, N = x.shape[-1], len(packed)
    rows = xp.ascontiguousarray(x.reshape(-1, K))
    if activation_bits == 1:
        codes, step = input_codes(xp, rows, 1, norm)
        words, form = pack_signs(xp, codes), "xnor"
    else:
        words, step = quantize(xp, rows, activation_bits, norm)
        form = layout
    y = multiply(xp, form, words, packed, step, scale, bias, K)
    return y.reshape(*x.shape[:-1], N)


def quantize(xp, x: Array, activation_bits: int, norm=None) -> tuple[Array, Array]:
    """Codes of norm(x), x (T, K), four to a uint32 word, and their step (T, 1): `integer.input_codes` in one pass."""
    T, K = x.shape
    depth = constants()["CODE_DEPTH"]
    width = depth * -(-K // (4 * depth))
    words, step = xp.empty((T, width), "uint32"), xp.empty((T, 1), "float32")
    top, smallest = xp.float32(2 ** (activation_bits - 1) - 1), xp.float32(smallest_size(norm))
    sizes = xp.int32(K), xp.int32(width), top, smallest
    if norm is None:
        _launch(xp, "quantize", (T,), "ROW_THREADS", x, words, step, *sizes)
    else:
        weight = xp.ascontiguousarray(norm.weight.data)
        _launch(xp, "norm_quantize", (T,), "ROW_THREADS", x, weight, words, step, *sizes)
        step *= inverse_root(xp, mean_product(xp, x, x), norm.eps)
    return words, step


def pack_signs(xp, x: Array) -> Array:
    """Signs of x (T, K), 32 to a uint32 word: `pack.sign_bits`, padded with zeros to whole tiles."""
    T, K = x.shape
    depth = constants()["SIGN_DEPTH"]
    width = depth * -(-K // (32 * depth))
    words = xp.empty((T, width), "uint32")
    _launch(xp, "pack_signs", (T,), "ROW_THREADS", x, words, xp.int32(K), xp.int32(width))
    return words


def multiply(
    xp, form: str, words: Array, packed: Array, step: Array, scale: Array, bias: Array | None, K: int
) -> Array:
    """y (T, N) = step scale (codes Q^T) + bias, from the words of `quantize` ("2bit", "1bit") or `pack_signs` ("xnor").

    The sum of codes is exact, each of the three float operations is rounded once.
    """
    T, N = len(words), len(packed)
    if packed.shape != packed_shape((N, K), "2bit" if form == "2bit" else "1bit"):
        raise ValueError(f"the packed weight of shape {packed.shape} does not hold {K} columns")
    y = xp.empty((T, N), "float32")
    scale = xp.ascontiguousarray(scale)
    arrays = words, xp.ascontiguousarray(packed), step, scale, scale if bias is None else xp.ascontiguousarray(bias)
    sizes = [xp.int32(n) for n in (T, N, K, scale.size > 1, bias is not None)]
    kind, grid = product_grid(T, N)
    _launch(xp, f"{kind}_{form}", grid, f"{kind.upper()}_THREADS", *arrays, y, *sizes)
    return y


def product_grid(T: int, N: int) -> tuple[str, tuple[int, int]]:
    """Which kernel multiplies T tokens by N outputs, and its grid: "gemv", (N / 4, T) or "gemm", (T / 32, N / 64)."""
    size = constants()
    if T <= GEMV_TOKENS:
        return "gemv", (-(-N // (size["GEMV_THREADS"] // size["WARP"])), T)
    return "gemm", (-(-T // size["TILE_TOKENS"]), -(-N // size["TILE_OUT"]))


def _launch(xp, name, grid, threads, *arguments):
    _kernel(xp, name)(grid, (constants()[threads],), arguments)
