"""The stand-in for CuPy itself: it catches what would go wrong on a GPU, and computes what NumPy computes."""

import copy
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import cupy_standin
import numpy as np
import pytest
from cupy_standin import API, MODULE, reads

import tinybitvit as tb
from tinybitvit import backend, gpu


@pytest.fixture(autouse=True)
def xp():
    with cupy_standin.installed() as module:
        yield module


def device_array(shape=(3, 4), dtype="float32"):
    return MODULE.asarray(np.arange(np.prod(shape)).reshape(shape).astype(dtype))


def numbers(*values, dtype="int64"):
    return MODULE.asarray(np.array(values, dtype))


HOST = np.ones((3, 4), "float32")


def add_in_place(a, b):
    a += b


def multiply_in_place(a, b):
    a @= b


def assign(a, key, value):
    a[key] = value


def generator():
    return MODULE.random.default_rng(0)


class Kernel:
    """A harness that launches nothing: what is refused here never gets to it."""

    def get_function(self, name):
        return lambda *arguments, **options: None


def launch(*arguments):
    module = MODULE.RawModule(code="")
    module.module = Kernel()
    module.get_function("f")((1,), (1,), arguments)


def read_quietly(call):
    with reads(at_most=0):
        call()


# name -> (the mistake, given a device array d (3, 4) of float32; error; words of its message)
MISTAKES = {
    "a NumPy function": (lambda d: np.exp(d), TypeError, "np.exp on a device array"),
    "a NumPy reduction": (lambda d: np.sum(d), TypeError, "np.sum on a device array"),
    "np.asarray": (lambda d: np.asarray(d), TypeError, "Implicit conversion"),
    "np.concatenate": (lambda d: np.concatenate([d, d]), TypeError, "np.concatenate on a device array"),
    "np.add.at": (lambda d: np.add.at(d, 0, 1), TypeError, "np.add on a device array"),
    "np.linalg": (lambda d: np.linalg.norm(d), TypeError, "np.norm on a device array"),
    "device + host": (lambda d: d + HOST, TypeError, "NumPy array beside"),
    "host + device": (lambda d: HOST + d, TypeError, "beside a NumPy array"),
    "device @ host": (lambda d: d @ HOST.T, TypeError, "NumPy array beside"),
    "host @ device": (lambda d: HOST.T @ d, TypeError, "beside a NumPy array"),
    "device < host": (lambda d: d < HOST, TypeError, "NumPy array beside"),
    "device += host": (lambda d: add_in_place(d, HOST), TypeError, "CuPy take device arrays"),
    "host += device": (lambda d: add_in_place(HOST.copy(), d), TypeError, "beside a NumPy array"),
    "ufunc of both": (lambda d: MODULE.multiply(d, HOST), TypeError, "Unsupported type"),
    "matmul of both": (lambda d: MODULE.matmul(d, HOST.T), TypeError, "Unsupported type"),
    "where of both": (lambda d: MODULE.where(HOST > 0, d, d), TypeError, "Unsupported type"),
    "concatenate of both": (lambda d: MODULE.concatenate([d, HOST]), TypeError, "Unsupported type"),
    "einsum of both": (lambda d: MODULE.einsum("ij,ij->i", d, HOST), TypeError, "Unsupported type"),
    "a list in a ufunc": (lambda d: MODULE.exp([1.0, 2.0]), TypeError, "Unsupported type"),
    "a host array in a function": (lambda d: MODULE.sum(HOST), TypeError, "takes a device array"),
    "host values assigned": (lambda d: assign(d, 0, HOST[0]), TypeError, "cannot be assigned"),
    "a list assigned": (lambda d: assign(d, 0, [1, 2, 3, 4]), TypeError, "cannot be assigned"),
    "a host index": (lambda d: d[np.array([0, 1])], TypeError, "index must be a device array"),
    "a list as index": (lambda d: d[[0, 1]], TypeError, "index must be a device array"),
    "a list as index of an assignment": (lambda d: assign(d, [0, 1], 0.0), TypeError, "index must be a device array"),
    "a float index": (lambda d: d[d[0]], IndexError, "integer or boolean"),
    "an index out of range": (lambda d: d[numbers(0, 3)], IndexError, "out of bounds"),
    "a negative index out of range": (lambda d: d[numbers(-4)], IndexError, "out of bounds"),
    "take out of range": (lambda d: MODULE.take(d, numbers(12)), IndexError, "out of bounds"),
    "scatter out of range": (lambda d: MODULE.add.at(d, numbers(5), 1.0), IndexError, "out of bounds"),
    "one place twice": (lambda d: assign(d, numbers(1, 1), 0.0), ValueError, "one place twice"),
    "one place twice, negative": (lambda d: assign(d, numbers(1, -2), 0.0), ValueError, "one place twice"),
    "one element twice": (lambda d: assign(d, (numbers(0, 0), numbers(2, 2)), 0.0), ValueError, "one place twice"),
    "d[i] += 1 with repeats": (lambda d: assign(d, numbers(0, 0), d[numbers(0, 0)] + 1), ValueError, "twice"),
    "maximum.reduce": (lambda d: MODULE.maximum.reduce(d), NotImplementedError, "cupy_maximum.reduce"),
    "bitwise_or.reduce": (lambda d: MODULE.bitwise_or.reduce(numbers(1, 2)), NotImplementedError, "bitwise_or.reduce"),
    "maximum.accumulate": (lambda d: MODULE.maximum.accumulate(d), NotImplementedError, "maximum.accumulate"),
    "multiply.at": (lambda d: MODULE.multiply.at(d, numbers(0), 2.0), NotImplementedError, "multiply.at"),
    "add.at on int8": (lambda d: MODULE.add.at(d.astype("int8"), numbers(0), 1), TypeError, "no atomic add for int8"),
    "errstate": (lambda d: MODULE.errstate(all="ignore"), AttributeError, "has no attribute 'errstate'"),
    "vecdot": (lambda d: MODULE.vecdot(d, d), AttributeError, "has no attribute 'vecdot'"),
    "block": (lambda d: MODULE.block([d, d]), AttributeError, "has no attribute 'block'"),
    "nditer": (lambda d: MODULE.nditer(d), AttributeError, "has no attribute 'nditer'"),
    "multi_dot": (lambda d: MODULE.linalg.multi_dot([d, d]), AttributeError, "has no attribute 'multi_dot'"),
    "a method of NumPy alone": (lambda d: d.newbyteorder(), AttributeError, "newbyteorder"),
    "an attribute on an array": (lambda d: setattr(d, "name", "x"), AttributeError, "name"),
    "sum(where=)": (lambda d: d.sum(where=d > 1), TypeError, "does not take"),
    "max(initial=)": (lambda d: d.max(initial=0.0), TypeError, "does not take"),
    "ufunc(where=)": (lambda d: MODULE.exp(d, where=d > 1), TypeError, "does not take"),
    "take(mode=)": (lambda d: MODULE.take(d, numbers(0), mode="clip"), TypeError, "does not take"),
    "clip(min=)": (lambda d: MODULE.clip(d, min=0.0, max=1.0), TypeError, "does not take"),
    "var(correction=)": (lambda d: MODULE.var(d, correction=1), TypeError, "does not take"),
    "sort(stable=)": (lambda d: MODULE.sort(d, stable=True), TypeError, "does not take"),
    "unpackbits(count=)": (lambda d: MODULE.unpackbits(numbers(1, dtype="uint8"), count=3), TypeError, "does not"),
    "einsum_path": (lambda d: MODULE.einsum_path("ij->i", d), AttributeError, "einsum_path"),
    "Generator.permutation": (lambda d: generator().permutation(3), AttributeError, "no permutation"),
    "Generator.normal": (lambda d: generator().normal(size=3), AttributeError, "no normal"),
    "Generator.choice": (lambda d: generator().choice(3), AttributeError, "no choice"),
    "list[0-d]": (lambda d: [1, 2][numbers(1)[0]], TypeError, "indices must be integers"),
    "range(0-d)": (lambda d: range(numbers(1)[0]), TypeError, "cannot be interpreted as an integer"),
    "out= of NumPy": (lambda d: MODULE.exp(d, out=HOST.copy()), TypeError, "out must be a device array"),
    "out= of NumPy, by position": (lambda d: MODULE.add(d, d, HOST.copy()), TypeError, "out must be a device array"),
    "objects": (lambda d: MODULE.asarray(np.array([None, 1])), ValueError, "Unsupported dtype object"),
    "texts": (lambda d: MODULE.asarray(["a"]), ValueError, "Unsupported dtype"),
    "astype(object)": (lambda d: d.astype(object), ValueError, "Unsupported dtype"),
    "host memory without a copy": (lambda d: MODULE.array(HOST, copy=False), ValueError, "without a copy"),
    "d @= d": (lambda d: multiply_in_place(d, d), TypeError, "no in-place matrix product"),
    "-1.0 to uint8": (lambda d: (-d).astype("uint8"), ValueError, "other numbers on a GPU"),
    "NaN to int": (lambda d: (d * np.nan).astype("int32"), ValueError, "other numbers on a GPU"),
    "300.0 to int8": (lambda d: (d * 100).astype("int8"), ValueError, "other numbers on a GPU"),
    "hash": (lambda d: {d: 1}, TypeError, "unhashable"),
    "a hidden float()": (
        lambda d: read_quietly(lambda: float(d.sum())),
        AssertionError,
        "float.* at test_cupy_standin",
    ),
    "a hidden item()": (lambda d: read_quietly(d.sum().item), AssertionError, "item"),
    "a hidden bool()": (lambda d: read_quietly(lambda: 1 if (d > 0).all() else 0), AssertionError, "bool"),
    "a hidden comparison": (lambda d: read_quietly(lambda: max(d.sum(), d.max())), AssertionError, "bool"),
    "a hidden get()": (lambda d: read_quietly(lambda: MODULE.asnumpy(d)), AssertionError, "get"),
    "a hidden mask": (lambda d: read_quietly(lambda: d[d > 1]), AssertionError, "mask"),
    "a hidden nonzero": (lambda d: read_quietly(lambda: MODULE.nonzero(d)), AssertionError, "nonzero"),
    "a hidden one-argument where": (lambda d: read_quietly(lambda: MODULE.where(d > 1)), AssertionError, "where"),
    "a hidden print": (lambda d: read_quietly(lambda: f"{d.sum():.3f}"), AssertionError, "format"),
    "a kernel with a Python number": (lambda d: launch(d, 0.5), TypeError, "exact type, not <class 'float'>"),
    "a kernel with a host array": (lambda d: launch(HOST), TypeError, "exact type"),
    "a kernel on a view": (lambda d: launch(d.T), ValueError, "not contiguous"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught(name):
    mistake, error, words = MISTAKES[name]
    with pytest.raises(error, match=words):
        mistake(device_array())


def test_there_are_many_mistakes():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "bool"])
def test_uninitialised_memory_spoils_what_reads_it(dtype, xp):
    for made in (xp.empty((2, 3), dtype), xp.empty_like(device_array(dtype=dtype)), xp.ndarray((2,), dtype)):
        values = made.get()
        if dtype.startswith("float"):
            assert np.isnan(values).all()
        else:
            assert (values == {"int8": -128, "int64": -(2**63), "uint8": 255, "bool": True}[dtype]).all()


RIGHT = {
    "operators": lambda xp, a, b: (a + b * 2 - 1) / (b * b + 1) @ a.T,
    "numbers of NumPy": lambda xp, a, b: np.float32(2) * a + b * np.float32(3),
    "in place": lambda xp, a, b: add_in_place(a, b) or a,
    "out=": lambda xp, a, b: xp.exp(a, out=xp.empty_like(a)),
    "a reduction": lambda xp, a, b: a.sum(axis=0, keepdims=True) + xp.max(b) + a.mean(),
    "rows by number": lambda xp, a, b: a[xp.asarray([2, 0, 0])],
    "scatter": lambda xp, a, b: xp.add.at(a, xp.asarray([1, 1]), b[:2]) or a,
    "assignment": lambda xp, a, b: assign(a, (slice(None), 1), b[:, 0]) or a,
    "comparison": lambda xp, a, b: xp.where(a > b, a, 0.5),
    "einsum": lambda xp, a, b: xp.einsum("ij,kj->ik", a, b),
    "bits": lambda xp, a, b: xp.packbits((a > 1).reshape(-1), bitorder="little"),
    "views": lambda xp, a, b: xp.moveaxis(a.reshape(1, 4, 3), -1, 0)[..., None],
    "casts": lambda xp, a, b: a.astype("int8").view("uint8"),
    "linalg": lambda xp, a, b: xp.linalg.norm(a),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_gives_the_bits_of_numpy(name, xp):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)).astype("float32"), rng.standard_normal((3, 4)).astype("float32")
    found = RIGHT[name](xp, xp.asarray(a), xp.asarray(b))
    expected = RIGHT[name](np, a.copy(), b)
    assert isinstance(found, xp.ndarray) and found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(found.get(), expected)


def test_device_memory_is_not_host_memory(xp):
    host = np.zeros(3)
    away = xp.asarray(host)
    host[0] = 1
    back = away.get()
    back[1] = 1
    assert away.get().tolist() == [0, 0, 0]


def test_what_comes_back_unchanged_is_the_same_object(xp):
    """Or two names for one memory would pass for two arrays."""
    a = device_array()
    assert a.astype("float32", copy=False) is a and xp.asarray(a) is a and xp.ascontiguousarray(a) is a
    assert a.base is None and a.T.base is not None and a.reshape(-1).base is not None


def test_reads_are_counted_and_named(xp):
    a = device_array()
    with reads() as seen:
        a + a
        a[1:, None].sum()
        float(a.sum())
        a.get()
    assert [text.partition(" at ")[0] for text in seen] == ["float()", "get()"]
    assert all("test_cupy_standin.py:" in text for text in seen)


def test_copies(xp):
    a = device_array()
    for twin in (a.copy(), copy.copy(a), copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert twin is not a and np.array_equal(twin.get(), a.get())
        twin[0, 0] = 99
        assert a.get()[0, 0] == 0


def test_nothing_stays_when_it_leaves():
    """The fixture has installed it; inside of another block, and after it, the library finds what was there before."""
    assert cupy_standin.in_use() and backend.cuda_problem() is None
    with cupy_standin.installed():
        assert tb.Tensor([1.0], device="cuda").device == "cuda"
    assert cupy_standin.in_use()


def test_the_snapshot_is_small_and_says_its_version():
    path = Path(cupy_standin.__file__).with_name("cupy_api.json")
    assert path.stat().st_size < 200_000 and int(API["cupy"].partition(".")[0]) >= gpu.OLDEST_CUPY


def real_cupy():
    """The version of the CuPy that is installed, or None."""
    with cupy_standin.removed():
        if importlib.util.find_spec("cupy") is None:
            return None
    code = "import cupy; print(cupy.__version__)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


def test_the_snapshot_is_that_of_the_installed_cupy():
    version = real_cupy()
    if version != API["cupy"]:
        pytest.skip(f"the snapshot is of CuPy {API['cupy']}, installed is {version}")
    script = Path(__file__).parents[1] / "support" / "make_cupy_api.py"
    assert subprocess.run([sys.executable, str(script), "--check"], capture_output=True).returncode == 0
