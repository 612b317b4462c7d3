"""Whether a GPU can be used: one sentence for each reason why not, with CuPy missing, installed, or simulated."""

import importlib.util
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import cupy_standin
import pytest

import tinybitvit as tb
from tinybitvit import backend, gpu

PIP = r'pip install "cupy-cuda13x\[ctk\]"'
ROOT = Path(__file__).resolve().parents[2]


def fails(message, error=RuntimeError):
    def call(*arguments, **options):
        raise error(message)

    return call


class Arrays:
    """What `cupy.ones` gives: kernels and products work, or fail with an error each."""

    def __init__(self, kernel=None, product=None, value=32.0):
        self.kernel, self.product, self.value = kernel, product, value

    def __add__(self, other):
        if self.kernel:
            raise self.kernel
        return self

    def __matmul__(self, other):
        if self.product:
            raise self.product
        return types.SimpleNamespace(sum=lambda: self.value)


def fake_cupy(monkeypatch, count=lambda: 1, driver=13000, arrays=None, version="14.2.0"):
    """A module in place of cupy, just enough to be looked at by `cuda_problem`."""
    module = types.ModuleType("cupy")
    module.__spec__, module.__version__ = ModuleSpec("cupy", None), version
    module.ndarray, module.ones = Arrays, lambda *a, **k: arrays or Arrays()
    runtime = {"getDeviceCount": count, "driverGetVersion": lambda: driver, "runtimeGetVersion": lambda: 13020}
    module.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(**runtime, deviceSynchronize=lambda: None))
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture(autouse=True)
def nothing_remembered():
    backend.cuda_problem.cache_clear()
    yield
    backend.cuda_problem.cache_clear()


OLD = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
CAUSES = {
    "no driver": ({"count": fails(OLD), "driver": 0}, "no NVIDIA driver was found on this machine"),
    "old driver": ({"count": fails(OLD), "driver": 12040}, "too old .it knows CUDA 12.4, this CuPy is made for 13.2"),
    "no GPU": (
        {"count": fails("cudaErrorNoDevice: no CUDA-capable device")},
        "driver works, but no GPU can be reached",
    ),
    "no GPU, no error": ({"count": lambda: 0}, r"driver works, but no GPU can be reached \(none was found\)"),
    "no NVRTC": (
        {"arrays": Arrays(kernel=RuntimeError("libnvrtc.so.13"))},
        "cannot compile a kernel.*libnvrtc.*NVRTC is",
    ),
    "no cuBLAS": (
        {"arrays": Arrays(product=ImportError("libcublas"))},
        "cannot multiply matrices .*libcublas.*cuBLAS is",
    ),
    "wrong product": ({"arrays": Arrays(value=31.0)}, "cannot multiply matrices .it gave a wrong product"),
    "old CuPy": ({"version": "13.6.0"}, f"CuPy 13.6.0 is too old, 14 is needed: {PIP}"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_sentence(cause, monkeypatch):
    options, words = CAUSES[cause]
    fake_cupy(monkeypatch, **options)
    with pytest.raises(RuntimeError, match=f"device 'cuda' is not usable: .*{words}") as caught:
        backend.resolve_device("cuda")
    assert "\n" not in str(caught.value)
    assert backend.resolve_device("auto") == backend.resolve_device("cpu") == "cpu"
    assert backend.auto_note() == f"device: cpu, not cuda: {backend.cuda_problem()}"
    assert ("pip install" in str(caught.value)) == (cause not in ("no driver", "no GPU", "no GPU, no error"))


def test_a_hidden_gpu_names_the_variable_that_may_hide_it(monkeypatch):
    fake_cupy(monkeypatch, count=fails("cudaErrorNoDevice"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert backend.cuda_problem().endswith("CUDA_VISIBLE_DEVICES='' may hide it")


def test_without_cupy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=f"not usable: CuPy is not installed: {PIP}"):
        tb.Tensor([1.0]).to("cuda")
    assert backend.resolve_device("auto") == "cpu" and backend.auto_note() is None


def test_a_cupy_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert "cannot be imported (ImportError: libcudart.so.13: cannot open shared" in backend.cuda_problem()


def test_a_usable_gpu(monkeypatch):
    fake_cupy(monkeypatch)
    assert backend.cuda_problem() is None and backend.resolve_device("auto") == backend.resolve_device("cuda") == "cuda"
    assert backend.auto_note() == "device: cuda"


def test_the_stand_in_is_a_usable_gpu():
    with cupy_standin.installed():
        assert backend.resolve_device("auto") == "cuda"
        assert dict(gpu.cuda_info())["GPU"].startswith("simulated GPU, compute capability 8.0")


REAL = """
import sys, tinybitvit as tb
assert "cupy" not in sys.modules, "imported for nothing"
from tinybitvit import backend, gpu
assert tb.Tensor([1.0]).device == tb.Tensor([1.0], device="auto").device == "cpu"
try:
    tb.Tensor([1.0], device="cuda")
except RuntimeError as error:
    print(error)
print(tb.Tensor([2.0]).to("auto") * 2)
"""


def test_the_real_cupy_without_a_gpu():
    """Runs where CuPy is installed and no GPU can be used; nothing is written to stderr."""
    with cupy_standin.removed():
        if importlib.util.find_spec("cupy") is None:
            pytest.skip("CuPy is not installed")
        if (problem := backend.cuda_problem()) is None:
            pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-W", "error", "-c", REAL], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"device 'cuda' is not usable: {problem}", "Tensor([4.])"]


def test_the_header_of_the_report_says_what_was_tested(monkeypatch):
    import conftest

    with cupy_standin.installed():
        assert conftest.pytest_report_header().startswith("GPU: simulated GPU")
    monkeypatch.setattr(backend, "cuda_problem", lambda: "no driver")
    assert conftest.pytest_report_header() == "GPU: simulated, no code ran on one (no driver)"
    monkeypatch.undo()
