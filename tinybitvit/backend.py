"""NumPy or CuPy: the array decides.

The one file that knows both array modules. `array_module(a)` is numpy for a NumPy array and cupy for a CuPy array;
operations receive it as `ctx.xp`, so the same text runs on either device. All randomness is drawn by a host
`numpy.random.Generator`, so that a run on a GPU starts from the same numbers as a run on the CPU.
"""

import importlib.util
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from .gpu import cuda_problem

# Aliases for the device-blind layers (ops, nn, quant), which must not import numpy themselves.
Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray
Generator = np.random.Generator
host = np


def _is_device_array(a: Any) -> bool:
    # A CuPy array can only exist once cupy has been imported: without it no look-up is needed.
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(a, cupy.ndarray)


def is_number(value: Any, least: float = -math.inf, most: float = math.inf, whole: bool = False) -> bool:
    """Whether the value of an option is a finite number in least..most.

    NumPy's numbers are numbers; bools are not, nor fractions, which would turn arrays into arrays of objects.
    """
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return math.isfinite(value) and bool(least <= value <= most)  # type: ignore[operator]


def plain(value: Any) -> Any:
    """A NumPy scalar as the Python number that it prints as; a tuple or list of them likewise."""
    if isinstance(value, np.floating):
        return float(str(value.item() if value.itemsize == 8 else value))
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else value


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, whole: bool = False) -> None:
    """ValueError, with the name of the option, unless `is_number`."""
    if not is_number(value, least, most, whole):
        limits = f" from {least:g} to {most:g}" if most < math.inf else f" from {least:g}" if least > -math.inf else ""
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number{limits}, not {value!r}")


def array_module(*arrays: Array) -> Any:
    """numpy or cupy, whichever the arrays belong to; arrays of both kinds together raise TypeError."""
    if "cupy" not in sys.modules:
        return np
    on_gpu = [_is_device_array(a) for a in arrays]
    if not any(on_gpu):
        return np
    if not all(on_gpu):
        raise TypeError(
            "an operation got arrays on the CPU and on the GPU; move one of them with .to('cpu') or .to('cuda')"
        )
    return sys.modules["cupy"]


def device_of(array: Array) -> str:
    """'cpu' or 'cuda'."""
    return "cuda" if _is_device_array(array) else "cpu"


def resolve_device(device: str) -> str:
    """'cpu', 'cuda' or 'auto' (a usable GPU, else the CPU) to 'cpu' or 'cuda'.

    Asking for 'cuda' where it cannot work raises RuntimeError; it never falls back in silence.
    """
    if device not in ("cpu", "cuda", "auto"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'auto', not {device!r}")
    if device == "cpu":
        return "cpu"
    problem = cuda_problem()
    if device == "cuda" and problem:
        raise RuntimeError(f"device 'cuda' is not usable: {problem}")
    return "cpu" if problem else "cuda"


def auto_note() -> str | None:
    """What device='auto' chose, as a line to print; None where there was no choice, because CuPy is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return None
    problem = cuda_problem()
    return f"device: cpu, not cuda: {problem}" if problem else "device: cuda"


def to_device(array: Array, device: str) -> Array:
    """The array on 'cpu' or 'cuda'; returned as it is where it is there already."""
    device = resolve_device(device)
    if device == device_of(array):
        return array
    if device == "cpu":
        return array.get()
    import cupy

    return cupy.asarray(array)


def to_numpy(array: Array) -> np.ndarray:
    """A host copy of a device array; a NumPy array is returned as it is."""
    return array.get() if _is_device_array(array) else np.asarray(array)


def addresses(array: Array) -> tuple[int, int]:
    """Where the memory of an array's elements begins, and where it has ended."""
    if not array.size:
        return 0, 0
    start = array.data.ptr if _is_device_array(array) else array.__array_interface__["data"][0]
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.itemsize


def to_host(arrays: Sequence[Array]) -> list[np.ndarray]:
    """NumPy arrays of the given arrays; those on a GPU come in one transfer, since each one waits for the GPU."""
    away = [a for a in arrays if _is_device_array(a)]
    if not away:
        return list(arrays)
    raw = array_module(*away).concatenate([a.ravel().view("uint8") for a in away]).get()
    ends = accumulate(a.nbytes for a in away)
    parts = (raw[end - a.nbytes : end].copy().view(a.dtype).reshape(a.shape) for a, end in zip(away, ends, strict=True))
    return [next(parts) if _is_device_array(a) else a for a in arrays]


def as_index(index: Any, array: Array) -> Any:
    """An index with its lists and host arrays sent to the device of `array`, checked: a GPU wraps what is out of range.

    Returned as it is where the array is on the CPU.
    """
    if not _is_device_array(array):
        return index
    parts = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(part, (list, np.ndarray)) for part in parts):
        return index
    if not any(_is_device_array(part) for part in parts):
        np.broadcast_to(np.False_, array.shape)[index]
    sent = tuple(_sent_index(part) if isinstance(part, (list, np.ndarray)) else part for part in parts)
    return sent if isinstance(index, tuple) else sent[0]


def _sent_index(part: Any) -> Array:
    return to_device(np.asarray(part, dtype=None if len(part) else int), "cuda")


def as_array(value: Any, dtype: Any = None, like: Array | None = None) -> Array:
    """An array from nested lists, scalars or arrays, on the device of `like` (default: where it is, else the CPU).

    Raises TypeError for what holds no numbers or bools. Numbers in another machine's byte order are turned around.
    """
    if _is_device_array(value) or type(value) is np.ndarray:
        array = value if dtype is None else value.astype(dtype, copy=False)
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask: fill it first, with .filled(number)")
    else:
        try:
            array = (np if like is None else array_module(like)).asarray(value, dtype=dtype)
        except ValueError as error:
            raise ValueError(f"a Tensor needs numbers, in lists of equal length at each depth: {error}") from error
        if dtype is None and array.dtype == "float64" and not isinstance(value, (np.generic, np.ndarray)):
            array = array.astype("float32")  # Python floats have no width of their own: float32 is the default here
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a Tensor needs numbers, not {type(value).__name__} of dtype {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# Elements of a block: large enough that worker threads seldom wait for each other at the interpreter lock, which every
# NumPy call takes again when it is done; small enough that a handful of temporaries stay in the caches of a core.
BLOCK = 2**18


def row_blocks(shape: tuple[int, int], xp: Any = np) -> list[slice]:
    """Slices that cut the rows of a (rows, columns) array of a module into blocks of about BLOCK elements.

    A chain of elementwise operations on a block needs temporaries of its size only, found in the cache. On a GPU one
    block holds all rows: it has no such cache, and every operation costs the start of a kernel.
    """
    rows, columns = shape
    if xp is not np:
        return [slice(0, rows)] if rows else []
    step = max(1, BLOCK // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next training step; returns whether it could (glibc only).

    By default glibc hands the arrays of a step back to the operating system as they are freed, which clears every page
    anew in the next step: a tenth of the time of a step. The process then stays at its peak size.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h: no array gets pages of its own, the heap does not
    # shrink, and all threads share it
    return all([mallopt(-3, 2**30), mallopt(-1, 2**31 - 1), mallopt(-8, 1)])


def erf(x: Array) -> Array:
    """The error function, elementwise (NumPy has none: SciPy's on the CPU, CuPy's copy of it on the GPU)."""
    if _is_device_array(x):
        from cupyx.scipy.special import erf as special_erf
    else:
        from scipy.special import erf as special_erf
    return special_erf(x)


def add_at(target: Array, index: Any, values: Array) -> None:
    """target[index] += values with repeated indices counted each time, in place."""
    array_module(target).add.at(target, index, values)


class _Random(threading.local):
    """Each thread's own generator, so that worker threads draw reproducibly and never share a state."""

    generator: Generator | None = None


_random = _Random()


def make_rng(seed: Any = None) -> Generator:
    """A host Generator from an int, None (fresh entropy) or a Generator (returned as it is)."""
    return np.random.default_rng(seed)


def current_rng() -> Generator:
    """The generator that layers draw from in this thread: that of `use_rng`, else one made from fresh entropy."""
    if _random.generator is None:
        _random.generator = make_rng()
    return _random.generator


@contextmanager
def use_rng(seed: Any) -> Iterator[Generator]:
    """Within the block, `current_rng()` of this thread is `make_rng(seed)`."""
    before, _random.generator = _random.generator, make_rng(seed)
    try:
        yield _random.generator
    finally:
        _random.generator = before


def manual_seed(seed: Any) -> Generator:
    """Seed the generator that this thread's layers (weight initialisation, dropout) draw from when given no `rng`."""
    _random.generator = make_rng(seed)
    return _random.generator
