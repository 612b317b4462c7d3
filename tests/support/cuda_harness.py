"""CUDA kernels executed on the CPU: the text, unchanged, compiled by g++ with `cuda_shim.h`.

    module = RawModule(code=text, options=("-std=c++17",))
    module.get_function("gemm_2bit")(grid, block, args, shared_mem=0)

has the call form of cupy.RawModule, and takes NumPy arrays. It is stricter than CuPy: an argument must be an array of
the pointer's type, contiguous, or a NumPy scalar of the parameter's type; a launch beyond the limits of a GPU, or
beyond __launch_bounds__, raises. Within `thread_order("shuffled", seed)` the threads of a block run in that order.

One thing is replaced in the text: `extern __shared__ T name[];` becomes a pointer to memory of exactly `shared_mem`
bytes. With the options SANITIZE every access is checked, in a process started by `sanitized_python`.
"""

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ORDERS = ("ascending", "descending", "shuffled")
MAX_THREADS, MAX_BLOCK, MAX_GRID = 1024, (1024, 1024, 64), (2**31 - 1, 65535, 65535)
STATIC_SHARED, OPT_IN_SHARED = 48 * 1024, 99 * 1024  # bytes a block: without and with opting in (sm_86, the smallest)
NO_COMPILER = None if shutil.which("g++") else "no g++ on the PATH"

# By default arrays in a section of their own (the shared memory) go unchecked, and the first report ends the process.
# A CPU forgives an address that is not a multiple of the size of what it reads; a GPU does not.
SANITIZE = (
    "-fsanitize=address",
    "-fsanitize-sections=shared_memory",
    "-fsanitize-recover=address",
    "-fsanitize=alignment",
)
_order = ("ascending", 0)
_running = threading.Lock()  # the shim keeps the state of one launch


@contextmanager
def thread_order(order, seed=0):
    """Within the block, threads and blocks run in ascending, descending or shuffled order."""
    global _order
    before, _order = _order, (ORDERS[ORDERS.index(order)], seed)
    try:
        yield
    finally:
        _order = before


class CompileError(RuntimeError):
    """g++ refuses the text; the message is its output."""


class RawModule:
    """cupy.RawModule for the CPU."""

    def __init__(self, *, code, options=()):
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("code must be a string and options a tuple of strings")
        self.code, self.options = code, options

    def get_function(self, name):
        library, kernels, shared = compile_text(self.code, self.options)
        if name not in kernels:
            raise AttributeError(f"no kernel {name!r} in the text, only {', '.join(kernels)}")
        return RawKernel(library, name, shared.get(name, 0))


class RawKernel:
    """cupy.RawKernel for the CPU: kernel(grid, block, args, shared_mem=0)."""

    def __init__(self, library, name, static_shared):
        self.name, self.shared_size_bytes = name, static_shared
        self.max_dynamic_shared_size_bytes = STATIC_SHARED - static_shared  # larger values opt in
        self._launch = getattr(library, f"shim_launch_{name}")
        self._launch.restype = ctypes.c_char_p
        describe = getattr(library, f"shim_parameters_{name}")
        describe.restype = ctypes.c_char_p
        self.parameters = describe().decode().split()
        self.max_threads_per_block = min(MAX_THREADS, getattr(library, f"shim_bounds_{name}")() or MAX_THREADS)

    def __call__(self, grid, block, args, *, shared_mem=0):
        shape = [*self._sizes(grid, MAX_GRID, "grid"), *self._sizes(block, MAX_BLOCK, "block")]
        threads = shape[3] * shape[4] * shape[5]
        if threads > self.max_threads_per_block:
            raise ValueError(f"{self.name}: {threads} threads a block, at most {self.max_threads_per_block}")
        if shared_mem > self.max_dynamic_shared_size_bytes or shared_mem + self.shared_size_bytes > OPT_IN_SHARED:
            raise ValueError(
                f"{self.name}: {self.shared_size_bytes} + {shared_mem} bytes of shared memory are too many: "
                f"at most {self.max_dynamic_shared_size_bytes} dynamic ones, {OPT_IN_SHARED} in all"
            )
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name}: {len(args)} arguments, needed {len(self.parameters)}")
        held = [self._argument(i, *pair) for i, pair in enumerate(zip(args, self.parameters, strict=True))]
        addresses = (ctypes.c_void_p * len(held))(*[ctypes.addressof(value) for value in held])
        order, seed = _order
        with _running:
            error = self._launch(
                addresses,
                (ctypes.c_uint * 6)(*shape),
                ctypes.c_size_t(shared_mem),
                ctypes.c_int(ORDERS.index(order)),
                ctypes.c_uint(seed),
            )
        if error:
            raise RuntimeError(f"{self.name}: {error.decode()}")

    def _sizes(self, sizes, limits, what):
        if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3 or any(type(n) is not int for n in sizes):
            raise TypeError(f"{self.name}: {what} must be a tuple of one to three ints, not {sizes!r}")
        sizes = (*sizes, 1, 1)[:3]
        if any(not 1 <= n <= limit for n, limit in zip(sizes, limits, strict=True)):
            raise ValueError(f"{self.name}: {what} {sizes} must lie in 1 .. {limits}")
        return sizes

    def _argument(self, i, value, parameter):
        """The argument as a ctypes object whose memory holds what the kernel receives."""
        wanted = parameter.removeprefix("const:").removesuffix("*")
        place = f"{self.name}: argument {i}"
        if parameter.endswith("*"):
            if type(value) is not np.ndarray:
                raise TypeError(f"{place} must be an array of {wanted}, not {type(value).__name__}")
            if value.dtype != wanted or not value.flags.c_contiguous:
                raise TypeError(f"{place} must be a contiguous array of {wanted}, not {value.dtype} {value.strides}")
            if not parameter.startswith("const:") and not value.flags.writeable:
                raise TypeError(f"{place} is read-only, and the kernel may write to it")
            return ctypes.c_void_p(value.ctypes.data)
        if not isinstance(value, np.generic) or value.dtype != wanted:
            raise TypeError(f"{place} must be a NumPy scalar of {wanted}, not {type(value).__name__}")
        return ctypes.create_string_buffer(value.tobytes(), value.itemsize)


@cache
def _folder():
    folder = tempfile.mkdtemp(prefix="kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# The word __launch_bounds__ stands on either side of void; its expression may use the macros of the text.
_KERNEL = re.compile(r"__global__\s+(?:void\s+)?(?:__launch_bounds__\(([^()]*)\)\s*)?(?:void\s+)?(\w+)\s*\(")
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(\w+)\s+(\w+)\s*\[\s*\]\s*;")
_ENTRY = """
extern "C" const char* shim_launch_{name}(void** a, const unsigned* shape, size_t bytes, int order, unsigned seed) {{
    return shim::launch([](void** args) {{ shim::call({name}, args); }}, a, shape, bytes, order, seed);
}}
extern "C" const char* shim_parameters_{name}() {{ return shim::parameters({name}); }}
extern "C" int shim_bounds_{name}() {{ return {bounds}; }}
"""


def compile_text(code, options=()):
    """(library, names of the kernels, {kernel: bytes of static shared memory}); each text is compiled once."""
    with _running:
        return _compile(code, options)


@cache
def _compile(code, options):
    allowed = [option for option in options if option.startswith(("-D", "-std=", "-fsanitize"))]
    if len(allowed) != len(options):
        raise ValueError(f"options must be -D, -std= or -fsanitize, not {options}")
    if SANITIZE[0] in options and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError("the address sanitizer must be loaded before Python: use sanitized_python")
    kernels = {match[2]: (match[1] or "0").split(",")[0] for match in _KERNEL.finditer(code)}
    text = _DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(shim::dynamic);", code)
    entries = "".join(_ENTRY.format(name=name, bounds=bounds) for name, bounds in kernels.items())
    stem = _folder() / hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16]
    source, target = stem.with_suffix(".cpp"), stem.with_suffix(".so")
    source.write_text(f'#include "cuda_shim.h"\n#line 1 "kernel.cu"\n{text}\n#line 1 "entries"\n{entries}', "utf-8")
    # -ffp-contract=off: a CPU's fused multiply-add would round once where the kernels ask for two roundings
    flags = ["-O1", "-g1", "-shared", "-fPIC", "-ffp-contract=off", "-w", f"-I{Path(__file__).parent}"]
    done = subprocess.run(["g++", *flags, *allowed, "-o", target, source], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr)
    return ctypes.CDLL(str(target)), tuple(kernels), _static_shared(target)


def _static_shared(target):
    """{kernel: bytes}: the symbols "kernel(...)::array" that __shared__ arrays of a kernel have."""
    lines = subprocess.run(["nm", "-S", "-C", target], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for line in lines:
        if match := re.fullmatch(r"\w+ (\w+) [bBdD] (\w+)(?:\(.*\))?::\w+", line):
            found[match[2]] = found.get(match[2], 0) + int(match[1], 16)
    return found


def sanitizer_runtime():
    """The path of libasan.so, or only its name where g++ has none."""
    return subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()


def sanitized_python(code, timeout=300):
    """Run Python code in a process of its own with the address sanitizer loaded; the finished process."""
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer_runtime(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=0",
    }
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
