"""Fixtures and skip rules that all test files share."""

import os
import shutil
import signal
import sys
import zlib

import cupy_standin
import numpy as np
import pytest

from tinybitvit import backend, gpu
from tinybitvit.data import download

DATA_ROOT = download.data_root()
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side: BLAS threads of what each starts would only wait for each other, at full load.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def rng(request):
    """A Generator seeded by the test's own id, its folder apart: the same numbers in every run and order."""
    _, _, name = request.node.nodeid.partition("test_")
    return np.random.default_rng(zlib.crc32(f"tests/test_{name}".encode()))


@pytest.fixture
def device(request):
    """'cpu' or 'cuda' for the names in `devices.DEVICES`; "simulated" is 'cuda' on the stand-in for CuPy."""
    if request.param == "simulated":
        with cupy_standin.installed():
            yield "cuda"
    else:
        yield request.param


@pytest.fixture(scope="session")
def data_root():
    """The folder of the downloaded data sets; a test that needs one is marked `data("cifar-10-batches-bin")`."""
    return DATA_ROOT


def missing_requirement(item):
    """The reason why a test cannot run on this machine, or None."""
    for marker in item.iter_markers("data"):
        if not marker.args:
            raise pytest.UsageError(f'{item.nodeid}: name what it needs, as in @pytest.mark.data("fashion-mnist")')
        absent = [name for name in marker.args if not (DATA_ROOT / name).exists()]
        if absent:
            return f"no {', '.join(absent)} in {DATA_ROOT}"
    if item.get_closest_marker("gpu") and backend.cuda_problem():
        return backend.cuda_problem()
    if item.get_closest_marker("browser") and not shutil.which("chromium"):
        return "no chromium on the PATH"
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if reason := missing_requirement(item):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionstart():
    # A shell starts background jobs with Ctrl-C ignored, and child processes inherit that: the tests of Ctrl-C need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    # Small tensors gain nothing from more threads, and on a large machine waking them takes longer than the test.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)


def pytest_report_header():
    problem = backend.cuda_problem()
    if problem:
        return f"GPU: simulated, no code ran on one ({problem})"
    return "GPU: " + "; ".join(text for _, text in gpu.cuda_info())
