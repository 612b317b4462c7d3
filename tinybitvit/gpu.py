"""What is wrong with CUDA on this machine: one sentence that names the cause, or nothing."""

import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

OLDEST_CUPY = 14  # the first with `bitwise_count`
CUPY_INSTALL = 'pip install "cupy-cuda13x[ctk]" (driver for CUDA 13) or "cupy-cuda12x[ctk]" (CUDA 12)'


@cache
def cuda_problem() -> str | None:
    """None where a CUDA device works (one kernel and one matmul are run), else one sentence that names the cause."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {CUPY_INSTALL}"
    try:
        import cupy
    except Exception as error:  # a broken installation raises whatever its innermost import raises
        return f"CuPy is installed but cannot be imported ({_one_line(error)}): reinstall it, {CUPY_INSTALL}"
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        return f"CuPy {cupy.__version__} is too old, {OLDEST_CUPY} is needed: {CUPY_INSTALL}"
    return _device_problem(cupy.cuda.runtime) or _library_problem(cupy)


def _device_problem(runtime: Any) -> str | None:
    """Why no device can be reached, or None."""
    try:
        if runtime.getDeviceCount():
            return None
        error = "none was found"
    except RuntimeError as raised:
        error = _one_line(raised)
    if (driver := runtime.driverGetVersion()) == 0:
        return "CuPy is installed, but no NVIDIA driver was found on this machine"
    if "InsufficientDriver" in error:
        has, needs = _cuda_version(driver), _cuda_version(runtime.runtimeGetVersion())
        return (
            f"the NVIDIA driver is too old (it knows CUDA {has}, this CuPy is made for {needs}):"
            f" update the driver, or install another CuPy, {CUPY_INSTALL}"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    where = "" if hidden is None else f"; CUDA_VISIBLE_DEVICES={hidden!r} may hide it"
    return f"the NVIDIA driver works, but no GPU can be reached ({error}){where}"


def _library_problem(cupy: Any) -> str | None:
    """Why kernels cannot be compiled (NVRTC) or matrices multiplied (cuBLAS), or None: `is_available` tells neither."""
    library, last = "NVRTC", ""
    try:
        a = cupy.ones((2, 2), dtype="float32") + 1
        cupy.cuda.runtime.deviceSynchronize()
        library = "cuBLAS"
        if float((a @ a).sum()) == 32.0:
            return None
        last = "it gave a wrong product"
    except Exception as error:  # each library, and the device itself, has its own class of errors
        last = _one_line(error)
    work = "compile a kernel" if library == "NVRTC" else "multiply matrices"
    return f"CuPy cannot {work} ({last}): {library} is missing or does not work; {CUPY_INSTALL} brings it"


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def cuda_info() -> Iterator[tuple[str, str]]:
    """(name, text) pairs on the GPU in use and the libraries that drive it."""
    import cupy

    runtime = cupy.cuda.runtime
    gpu = runtime.getDeviceProperties(runtime.getDevice())
    name, memory = gpu["name"].decode(), gpu["totalGlobalMem"] / 2**30
    driver, cuda = (_cuda_version(v) for v in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
    yield "GPU", f"{name}, compute capability {gpu['major']}.{gpu['minor']}, {memory:.1f} GiB"
    yield "cupy", f"{cupy.__version__}, made for CUDA {cuda}; the driver knows CUDA {driver}"
