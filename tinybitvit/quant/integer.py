"""The arithmetic of a low-bit linear layer at inference: whole numbers in, whole numbers summed, one scale at the end.

y = s_x s_w (c Q^T) + b with the integer codes c of the input, one step s_x a token, and Q of the weight, one scale
s_w a row. The codes are kept in floats, because NumPy multiplies integer matrices without BLAS; the sum c Q^T of
whole numbers has no rounding error there, so it does not depend on layout, tiles, blocks or threads.

A norm in front of the quantiser, RMSNorm(x) = x w / r with r = sqrt(mean x^2 + eps), divides a token by one number.
The largest magnitude of the token is divided by it, too, so r cancels in the codes and is left in the step:

    v = x w                                          v = x without a norm
    size = max(max |v|, smallest)                    smallest = 1e-5, with a norm 1e-5 sqrt(eps)
    c = rint(v (top / size))                         top = 127 at 8 bits, 7 at 4 bits; half to even
    s_x = (size / top) (1 / r)                       s_x = size / top without a norm
    y = ((c Q^T) s_x) s_w + b

Every operation is rounded to the dtype of x (to float32 where that is float16, which sums of codes would leave), in the
order of the brackets: top / size and 1 / r are numbers of their own. Only r hangs on the order of a sum (of the squares
of x), so another runtime that follows these lines gets c and c Q^T to the bit and s_x to the last places. `smallest` is
what 1e-5 behind the norm is in front of it where a token is small beside eps (r = sqrt(eps)); a token of zeros gets the
codes 0 and the step 1e-5 / top, with a norm and without.

At 1 bit c = +1 where v >= 0, else -1, and s_x = max(mean |v|, smallest) (1 / r). Inputs that are not quantised are
normalised as `ops.norm.RMSNorm` does it. Training, which has to differentiate the norm, quantises its output instead:
the same formula with another rounding, so that about one code in a million is one step off.
"""

import math
import threading
from itertools import pairwise

from .. import backend
from ..backend import Array
from ..ops.base import widened
from ..ops.norm import inverse_root, mean_product
from ..ops.ste import EPS, absmax_codes, binary_codes

# Rows of activations that go through one matrix product; numbers that stay in a core's cache from pass to pass.
ROWS, BLOCK = 4096, 2**18
# Whole numbers up to here are exact in float32, in any order of summation.
EXACT = 2**24
# Three sums below SMALL fit in the 53 bits of a float64; from LARGE tokens, columns and rows of a weight on, that pays.
SMALL, LARGE = 2**17, 256
HUGE = 2.0**64  # a step of codes that large may overflow before the scale of the weights makes it smaller


class _Scratch(threading.local):
    """Arrays that a thread uses again from call to call: workers of `Trainer.predict` run a layer at the same time."""

    def __init__(self):
        self.buffers = {}

    def array(self, xp, use, shape, dtype):
        size = math.prod(shape)
        buffer = self.buffers.get((xp, use, dtype))
        if buffer is None or buffer.size < size:
            buffer = self.buffers[xp, use, dtype] = xp.empty(size, dtype)
        return buffer[:size].reshape(shape)


scratch = _Scratch()


def integer_linear(
    xp, x: Array, tiles, scale: Array, bias: Array | None, activation_bits: int | None, largest: int, norm
):
    """The layer on plain arrays: x (..., K) -> (..., out).

    tiles: [(slice of the out features, function returning their weight codes (n, K) as floats)]; scale (out,) or
    (1,); bias (out,) or None; largest: the largest magnitude of a weight code; norm: an RMSNorm on x, or None.
    """
    x = widened(x)
    rows = x.reshape(-1, x.shape[-1])
    y = xp.empty((len(rows), tiles[-1][0].stop), x.dtype)
    limit = exact_columns(activation_bits, largest, x.dtype)
    for part in even_slices(len(rows), ROWS):
        codes, step = input_codes(xp, rows[part], activation_bits, norm)
        for columns, tile in tiles:
            accumulate(xp, codes, tile(), limit, out=y[part, columns])
        rescale(xp, y[part], step, scale, bias)
    return y.reshape(*x.shape[:-1], y.shape[1])


def input_codes(xp, x: Array, activation_bits: int | None, norm=None) -> tuple[Array, Array | None]:
    """Integer codes of norm(x), x (T, K), as floats, and their step (T, 1), by the formulas above.

    Without activation_bits norm(x) itself, and None. The codes lie in memory that the next call of this thread reuses.
    """
    if activation_bits is None and norm is None:
        return x, None
    codes = scratch.array(xp, "codes", x.shape, x.dtype)
    step: Array = None if activation_bits is None else xp.empty((len(x), 1), x.dtype)
    eps, parts = smallest_size(norm), even_slices(len(x), BLOCK // max(1, x.shape[1]))
    weight: Array = None if norm is None else for_blocks(xp, norm.weight.data, parts)
    for part in parts:
        block, out = x[part], codes[part]
        if norm is not None:
            inverse = inverse_root(xp, mean_product(xp, block, block), norm.eps)
            if step is None:
                block = xp.multiply(block, inverse, out=out)
            block = xp.multiply(block, weight[: len(block)], out=out)
        if activation_bits == 1:
            out[...], step[part], _ = binary_codes(xp, block, centre=False, eps=eps)
        elif activation_bits is not None:
            step[part] = absmax_codes(xp, block, activation_bits, out, eps)[1]
        if norm is not None and step is not None:
            step[part] *= inverse
    return codes, step


def smallest_size(norm) -> float:
    """The least largest (or mean) magnitude that a token counts with, in front of a norm (None: of the quantiser)."""
    return EPS if norm is None else EPS * math.sqrt(norm.eps)


def rescale(xp, y: Array, step: Array | None, scale: Array, bias: Array | None) -> None:
    """Accumulators (T, out) to outputs, in place: y = s_x s_w y + b.

    y s_x may overflow where the output does not: where an input is huge, s_x is divided by a power of 2 until the end.
    """
    part_of_step = 1.0
    if step is not None and len(step) and backend.device_of(step) == "cpu" and step.max() > HUGE:
        step, part_of_step = step / HUGE, HUGE
    parts = even_slices(len(y), BLOCK // max(1, y.shape[1]))
    scale = for_blocks(xp, scale, parts)
    bias = None if bias is None else for_blocks(xp, bias, parts)
    for part in parts:
        block = y[part]
        if step is not None:
            block *= step[part]
        block *= scale[: len(block)]
        if part_of_step != 1:
            block *= part_of_step
        if bias is not None:
            block += bias[: len(block)]


def for_blocks(xp, row: Array, parts: list[slice]) -> Array:
    """row (n,) as (1, n); for several blocks of rows as (rows, n), because NumPy copies anew what it broadcasts."""
    if len(parts) < 3 or len(row) == 1:
        return row[None]
    rows = xp.empty((max(part.stop - part.start for part in parts), len(row)), row.dtype)
    rows[...] = row
    return rows


def exact_columns(activation_bits: int | None, largest: int, dtype) -> int | None:
    """Over how many columns K products of codes sum up exactly in `dtype`; None: over all that fit in memory."""
    if activation_bits is None or dtype != "float32":
        return None
    return (EXACT - 1) // (largest * max(1, 2 ** (activation_bits - 1) - 1))


def accumulate(xp, codes: Array, tile: Array, limit: int | None, out: Array) -> None:
    """out = codes (T, K) tile^T, tile (n, K): whole numbers summed by a float GEMM, exactly; see `exact_columns`.

    Where K is too long for float32, parts of it are summed in float64. Where all sizes are large, but the sums small,
    three of them are found at a time.
    """
    (T, K), n = codes.shape, len(tile)
    if limit is None:
        xp.matmul(codes, tile.T, out=out)
    elif min(T, K, n) >= LARGE and limit // (EXACT // SMALL) >= K and backend.device_of(codes) == "cpu":
        whole = n - n % 3
        accumulate_three(xp, codes, tile[:whole], out[:, :whole])
        accumulate(xp, codes, tile[whole:], limit, out[:, whole:])
    elif limit >= K:
        xp.matmul(codes, tile.T, out=out)
    else:
        starts = range(0, K, limit)
        out[...] = sum((codes[:, k : k + limit] @ tile[:, k : k + limit].T).astype("float64") for k in starts)


def accumulate_three(xp, codes: Array, tile: Array, out: Array) -> None:
    """`accumulate` of sums below 2^17, with three rows of weights in one of float64, which costs as much as two.

    Rows a, b, c of weights become a + b / F + c / F^2 with F = 2^18, and their product with codes is s_a + s_b / F
    + s_c / F^2: a whole number of units of F^-2, below 2^53 of them, so that float64 has it exactly in any order of
    summation. It holds the three sums like digits. As each |s| < F / 2, what stands behind the point is less than 1/2
    and rounding gives s_a; the rest times F is s_b + s_c / F, and so on.
    """
    third, F = len(tile) // 3, 2.0 * SMALL
    a, b, c = (slice(i * third, (i + 1) * third) for i in range(3))
    rows = (tile[c].astype("float64") / F + tile[b]) / F + tile[a]
    sums = codes.astype("float64") @ rows.T
    for part in even_slices(len(sums), BLOCK // third):
        digits, found = sums[part], out[part]
        for place in (a, b):
            digit = xp.rint(digits)
            found[:, place] = digit
            digits -= digit
            digits *= F
        found[:, c] = digits


def even_slices(n: int, size: int) -> list[slice]:
    """0 .. n in slices of `size` at most (and 1 at least), all about equally long: a short last one would be slow."""
    count = -(-n // max(1, size))
    edges = [n * i // count for i in range(count + 1)] if count else []
    return [slice(a, b) for a, b in pairwise(edges)]
