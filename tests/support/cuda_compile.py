"""Compile kernels.cu for real GPUs, on a machine that need not have one: registers and shared memory of each kernel.

    python tests/support/cuda_compile.py            # a table from every compiler that is found

nvcc is looked for on the PATH; NVRTC, the compiler that CuPy uses, among the installed packages (`pip install
nvidia-cuda-nvrtc`), in the system's libraries, and where the variable NVRTC_LIBRARY points.
"""

import ctypes
import ctypes.util
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "tinybitvit" / "quant" / "kernels.cu"
ARCHITECTURES = ("75", "80", "90", "100")

NVCC = shutil.which("nvcc")


def find_nvrtc():
    """The path or name of the NVRTC library, or None."""
    if named := os.environ.get("NVRTC_LIBRARY"):
        return named
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            if re.fullmatch(r"libnvrtc\.so\.\d+", path.name):
                return str(path)
    return ctypes.util.find_library("nvrtc")


def compile_nvcc(text, architecture):
    """What nvcc and ptxas say; RuntimeError where they refuse, warnings included."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cu"
        source.write_text(text, "utf-8")
        options = ["-std=c++17", f"-arch=sm_{architecture}", "-cubin", "--Werror", "all-warnings", "-Xptxas", "-v"]
        command = [NVCC, *options, "-o", Path(folder) / "kernels.cubin", source]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr


def ptx_nvcc(text, architecture):
    """The kernels in PTX, the assembler of a GPU that does not exist yet."""
    options = ["-std=c++17", f"-arch=sm_{architecture}", "-ptx", "-x", "cu", "-o", "-", "-"]
    return subprocess.run([NVCC, *options], input=text, capture_output=True, text=True, check=True).stdout


def compile_nvrtc(text, architecture, library=None):
    """What NVRTC and ptxas say; RuntimeError where they refuse."""
    library = library or find_nvrtc()
    for part in Path(library).parent.glob("libnvrtc-builtins.so.*"):  # NVRTC 13 does not look beside itself for it
        ctypes.CDLL(str(part))
    nvrtc = ctypes.CDLL(library)
    program = ctypes.c_void_p()
    options = [b"-std=c++17", f"-arch=sm_{architecture}".encode(), b"--ptxas-options=-v"]
    result = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    if result == 0:
        result = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(max(1, size.value))
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if result:
        raise RuntimeError(f"NVRTC gives error {result}: {log.value.decode()}")
    return log.value.decode()


def resources(log):
    """{kernel: (registers, bytes of shared memory, bytes spilled)} from what `ptxas -v` says."""
    found, name, spilled = {}, None, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = (int(match[1]), int(shared[1]) if shared else 0, spilled)
    return found


def complaints(log):
    """The lines that are not ptxas's report of resources: warnings."""
    known = r"ptxas info|(ptxas\s+\.)?\s*\d+ bytes stack frame|kernels\.cu$|\s*\0*$"
    return [line for line in log.splitlines() if not re.match(known, line)]


def table(compiler, architectures=ARCHITECTURES):
    """Lines: kernel, then registers / shared memory for every architecture."""
    text = KERNELS.read_text("utf-8")
    columns = {architecture: resources(compiler(text, architecture)) for architecture in architectures}
    yield f"{'':15}" + "".join(f"{'sm_' + architecture:>14}" for architecture in columns)
    for name in next(iter(columns.values())):
        cells = (f"{found[name][0]} / {found[name][1]}" for found in columns.values())
        yield f"{name:15}" + "".join(f"{cell:>14}" for cell in cells)


if __name__ == "__main__":
    compilers = {"nvcc": compile_nvcc if NVCC else None, "NVRTC": compile_nvrtc if find_nvrtc() else None}
    for title, compiler in compilers.items():
        print(f"{title}: registers a thread / bytes of shared memory a block" if compiler else f"{title}: not found")
        for row in table(compiler, sys.argv[1:] or ARCHITECTURES) if compiler else ():
            print("  " + row)
