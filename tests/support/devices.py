"""The devices on which tests run: `@each_device`, and helpers to send arrays and fetch results.

"simulated" is device 'cuda' on the stand-in for CuPy (cupy_standin.py); "cuda" is a real card, with the marker `gpu`:
the same tests, `pytest -m gpu`, skipped where there is none.
"""

import cupy_standin
import pytest

from tinybitvit import backend

AWAY = ["simulated", pytest.param("cuda", marks=pytest.mark.gpu)]
DEVICES = ["cpu", *AWAY]

# The fixture `device` of conftest.py turns these names into 'cpu' or 'cuda'
each_device = pytest.mark.parametrize("device", DEVICES, indirect=True)
# float64 on the CPU alone: a GPU is used for float32
RUNS = [("float64", "cpu"), ("float32", "cpu"), ("float32", "simulated")]
RUNS.append(pytest.param("float32", "cuda", marks=pytest.mark.gpu))
each_run = pytest.mark.parametrize(("dtype", "device"), RUNS, indirect=["device"])
each_gpu = pytest.mark.parametrize("device", AWAY, indirect=True)


def send(value, device):
    """An array on the device; in lists and dicts all of them."""
    if isinstance(value, (list, tuple)):
        return type(value)(send(item, device) for item in value)
    if isinstance(value, dict):
        return {key: send(item, device) for key, item in value.items()}
    return backend.to_device(value, device) if hasattr(value, "dtype") else value


def fetch(value):
    """The same on the host, always a copy of what lies on a device."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(fetch, value))
    if isinstance(value, dict):
        return {key: fetch(item) for key, item in value.items()}
    return backend.to_numpy(value) if hasattr(value, "dtype") else value


def slack(device):
    """A factor on tolerances: a real card sums in another order than the CPU; the stand-in has its bits."""
    return 1 if device == "cpu" or cupy_standin.in_use() else 30
