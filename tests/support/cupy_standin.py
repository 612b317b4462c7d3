"""A strict stand-in for CuPy: device arrays that live in host memory and refuse what a GPU would not take kindly.

It has the names and the keywords of the real CuPy (`cupy_api.json`, see make_cupy_api.py) and computes with NumPy, on
the same memory layout, so that code which is right gives the bits of the CPU. It is stricter than CuPy on purpose:

- no implicit conversion, no mixing with NumPy arrays, no NumPy function on a device array, no list or NumPy array as
  index;
- `empty` is poisoned, an index out of range is an error (CuPy wraps it), and so is an assignment to one place twice (a
  race) and a cast to an integer that cannot hold the number (CuPy and NumPy disagree);
- what waits for the GPU (`float()`, `bool()`, `.get()`, a mask as index, ...) is counted, see `reads`.

It does not show: what a GPU computes, its rounding, its speed, streams, races between threads, memory limits. CUDA
kernels (`RawModule`) run on the CPU by `cuda_harness.py`, which needs g++.
"""

import importlib
import json
import math
import operator
import sys
import warnings
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

API = json.loads(Path(__file__).with_name("cupy_api.json").read_text(encoding="utf-8"))
SCALARS = (bool, int, float, complex, np.number, np.bool_)

# --- what waits for the GPU -------------------------------------------------------------------------------------------

_watchers = []


@contextmanager
def reads(at_most=None):
    """Within the block, the list of everything that read from the device or waited for it: 'what at file:line'.

    at_most: the read after that many raises AssertionError where it happens.
    """
    seen = []
    _watchers.append((seen, at_most))
    try:
        yield seen
    finally:
        _watchers.remove((seen, at_most))


def note_read(what):
    if not _watchers:
        return
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    text = f"{what} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    for seen, at_most in _watchers:
        seen.append(text)
        assert at_most is None or len(seen) <= at_most, f"more than {at_most} reads from the device: {seen}"


# --- in and out of the wrapper ----------------------------------------------------------------------------------------


def wrap(host, inputs=()):
    """What NumPy gave, as CuPy gives it: arrays, also for single numbers. An input that came back stays the object."""
    if isinstance(host, (np.ndarray, np.generic)):
        for a in inputs:
            if isinstance(a, ndarray) and a._host is host:
                return a
        array = object.__new__(ndarray)
        array._host = np.asarray(host)
        return array
    return type(host)(wrap(item) for item in host) if type(host) in (tuple, list) else host


def unwrap(value):
    """The host side of an argument; a NumPy array, which CuPy would have to send first, is refused."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: a NumPy array among device arrays")
    return type(value)(map(unwrap, value)) if type(value) in (tuple, list) else value


def operand(value):
    """An argument of a ufunc: a device array or a number."""
    if not isinstance(value, (ndarray, *SCALARS)):
        raise TypeError(f"Unsupported type {type(value)}: ufuncs of CuPy take device arrays and numbers")
    return unwrap(value)


def storable(array):
    if array.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {array.dtype}: CuPy has arrays of numbers only")
    return array


def poison(host):
    """Numbers that spoil every result, in place of what happens to be in uninitialised memory."""
    kind = storable(host).dtype.kind
    if kind == "b":
        host[...] = True
    else:
        host[...] = np.nan if kind in "fc" else getattr(np.iinfo(host.dtype), "min" if kind == "i" else "max")
    return wrap(host)


def check_cast(host, dtype):
    """A number that the integer dtype cannot hold becomes something else on a GPU than on a CPU."""
    dtype = np.dtype(dtype)
    if host.dtype.kind == "f" and dtype.kind in "iu" and host.size:
        limits = np.iinfo(dtype)
        if not (np.isfinite(host).all() and host.min() > limits.min - 1 and host.max() < limits.max + 1):
            raise ValueError(f"a cast of {host.min()} .. {host.max()} to {dtype} gives other numbers on a GPU")


# --- functions --------------------------------------------------------------------------------------------------------

ARRAY_FIRST = {"a", "x", "arr", "m", "array", "ary", "prototype", "x1"}  # first parameters that must be device arrays
WAITS = {"nonzero", "flatnonzero", "argwhere", "unique", "compress", "extract"}  # the size of the result must be known
QUIET = {"mean", "var", "std", "median", "nanmean", "nanvar", "nanstd"}  # NumPy warns where there is nothing to average


class Call:
    """A function of CuPy: checks the arguments against the snapshot, computes with NumPy."""

    def __init__(self, name, text, host):
        self.name, self.host = name, host
        parameters = text.split(", ") if text else []
        keyword_only = next((i + 1 for i, p in enumerate(parameters) if p.startswith("*")), len(parameters) + 1)
        plain = [p for p in parameters[: keyword_only - 1] if p != "/"]
        varargs = keyword_only <= len(parameters) and parameters[keyword_only - 1] not in ("*", "**kwargs")
        self.most = math.inf if varargs else len(plain)
        self.keywords = None if "**kwargs" in parameters else {p.partition("=")[0].lstrip("*") for p in parameters}
        self.out_at = next((i for i, p in enumerate(plain) if p.startswith("out=")), None)
        self.needs_array = bool(plain) and plain[0] in ARRAY_FIRST

    def check(self, args, kwargs):
        if len(args) > self.most or not (self.keywords is None or self.keywords.issuperset(kwargs)):
            raise TypeError(f"cupy's {self.name}() does not take these arguments: {len(args)} values, {list(kwargs)}")

    def __call__(self, *args, **kwargs):
        self.check(args, kwargs)
        if self.host is None:
            raise NotImplementedError(f"the stand-in does not simulate {self.name}")
        if self.needs_array and args and not isinstance(args[0], ndarray):
            raise TypeError(f"cupy's {self.name}() takes a device array, not {type(args[0])}")
        if self.name in WAITS or (self.name == "where" and len(args) + len(kwargs) == 1):
            note_read(self.name)
        out = kwargs.get("out")
        if out is None and self.out_at is not None and len(args) > self.out_at:
            out = args[self.out_at]
        if out is not None and not isinstance(out, ndarray):
            raise TypeError(f"out must be a device array, not {type(out)}")
        result = self.run([unwrap(a) for a in args], {k: unwrap(v) for k, v in kwargs.items()})
        if isinstance(result, (bool, int)):
            result = np.asarray(result)
        return wrap(result, args) if out is None else out

    def run(self, args, kwargs):
        with np.errstate(all="ignore"):  # a GPU does not warn
            if self.name not in QUIET:
                return self.host(*args, **kwargs)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                return self.host(*args, **kwargs)


AT = {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"}
ATOMIC = {"int32", "int64", "uint32", "uint64", "float16", "float32", "float64"}


class ufunc(Call):
    """An elementwise function: device arrays and numbers in, `where=` unknown, few methods."""

    def __init__(self, name, text, host):
        super().__init__(name, text, host)
        self.__name__, self.nin, self.needs_array = name, getattr(host, "nin", 1), False
        self.out_at = self.nin

    def __call__(self, *args, **kwargs):
        for a in args[: self.nin]:
            operand(a)
        if not any(isinstance(a, ndarray) for a in args):  # of numbers alone CuPy makes an array, too
            args = (asarray(args[0]), *args[1:])
        return super().__call__(*args, **kwargs)

    def only(self, method, names):
        if self.name not in names:
            raise NotImplementedError(f"`cupy_{self.name}.{method}` is not supported yet")

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        self.only("reduce", {"add", "multiply"})
        return (array.sum if self.name == "add" else array.prod)(axis, dtype, out, keepdims)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        self.only("accumulate", {"add", "multiply"})
        return (array.cumsum if self.name == "add" else array.cumprod)(axis, dtype, out)

    def outer(self, A, B, **kwargs):
        return wrap(self.host.outer(operand(A), operand(B), **kwargs))

    def at(self, a, indices, b=None):
        self.only("at", AT)
        if a.dtype.name not in ATOMIC:
            raise TypeError(f"a GPU has no atomic {self.name} for {a.dtype}")
        if isinstance(b, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        self.host.at(unwrap(a), host_index(indices), operand(b))


def function(name, text):
    host = getattr(np, name, None)
    return Call(name, text, host if callable(host) else None)


# --- the array --------------------------------------------------------------------------------------------------------


def host_index(key):
    """An index for NumPy. Lists and NumPy arrays are refused: CuPy sends them anew, in silence, each time."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if isinstance(part, (list, np.ndarray)):
            raise TypeError(f"an index must be a device array, not {type(part)}, which would be sent each time")
        if isinstance(part, ndarray) and part.dtype.kind not in "iub":
            raise IndexError(f"arrays used as indices must be of integer or boolean type, not {part.dtype}")
    return tuple(map(unwrap, parts)) if isinstance(key, tuple) else unwrap(key)


def has(key, kinds):
    parts = key if isinstance(key, tuple) else (key,)
    return any(isinstance(part, ndarray) and part.dtype.kind in kinds for part in parts)


class ndarray:
    """An array on the simulated device. Methods that are not written here come from the snapshot."""

    __slots__ = ("_host",)
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in does not simulate memory pointers")
        self._host = poison(np.empty(shape, dtype, order))._host

    # attributes
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: wrap(self._host.T))
    mT = property(lambda self: wrap(self._host.mT))
    real = property(lambda self: wrap(self._host.real, [self]))
    imag = property(lambda self: wrap(self._host.imag))
    device = property(lambda self: Device())
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))

    @property
    def base(self):
        return wrap(self._host.base) if isinstance(self._host.base, np.ndarray) else None

    @property
    def flags(self):
        flags = self._host.flags
        names = ("c_contiguous", "f_contiguous", "owndata", "fnc", "forc")
        return SimpleNamespace(**{name: getattr(flags, name) for name in names})

    # to the host: each of these waits for the GPU
    def get(self, stream=None, order="C", out=None, blocking=True):
        note_read("get()")
        if out is None:
            return self._host.copy(order)
        out[...] = self._host
        return out

    def item(self):
        note_read("item()")
        return self._host.item()

    def tolist(self):
        note_read("tolist()")
        return self._host.tolist()

    def tobytes(self, order="C"):
        note_read("tobytes()")
        return self._host.tobytes(order)

    def nonzero(self):
        note_read("nonzero()")
        return wrap(self._host.nonzero())

    def __bool__(self):
        note_read("bool()")
        return bool(self._host)

    def __float__(self):
        note_read("float()")
        return float(self._host)

    def __int__(self):
        note_read("int()")
        return int(self._host)

    def __complex__(self):
        note_read("complex()")
        return complex(self._host)

    def __repr__(self):
        note_read("repr()")
        return repr(self._host)

    def __str__(self):
        note_read("str()")
        return str(self._host)

    def __format__(self, spec):
        note_read("format()")
        return format(self._host.item() if self._host.ndim == 0 else self._host, spec)

    def __reduce__(self):
        return asarray, (self.get(),)

    # never by accident
    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, used, method, *inputs, **kwargs):
        if method == "__call__" and isinstance(inputs[0], np.generic):  # np.float32(2) * x is fine
            return UFUNCS[used.__name__](*inputs, **kwargs)
        raise TypeError(f"np.{used.__name__} on a device array, or one beside a NumPy array: use its own module")

    def __array_function__(self, used, types, args, kwargs):
        raise TypeError(f"np.{used.__name__} on a device array: use its own module")

    # elements
    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        if has(key, "b"):
            note_read("a mask as index")
        return wrap(self._host[host_index(key)])

    def __setitem__(self, key, value):
        if not isinstance(value, (ndarray, *SCALARS)):
            raise TypeError(f"{type(value)} cannot be assigned to a device array: send it first")
        index = host_index(key)
        if has(key, "iu"):
            places = np.arange(self.size).reshape(self.shape)[index]
            if np.unique(places).size != places.size:
                raise ValueError("an assignment to one place twice: which value stays is chance on a GPU")
        self._host[index] = unwrap(value)

    # copies and conversions
    def copy(self, order="C"):
        return wrap(self._host.copy(order))

    def __copy__(self):
        return self.copy("K")

    def __deepcopy__(self, memo):
        return self.copy("K")

    def astype(self, dtype, order="K", casting="unsafe", subok=None, copy=True):
        check_cast(self._host, dtype)
        with np.errstate(all="ignore"):
            return wrap(storable(self._host.astype(dtype, order, casting, copy=copy)), [self])

    def fill(self, value):
        self._host.fill(operand(value))

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError("set() takes a NumPy array of the same shape and dtype")
        self._host[...] = arr

    def scatter_add(self, slices, value):
        UFUNCS["add"].at(self, slices, value)

    def _inplace(self, compute, other):
        compute(self._host, operand(other))
        return self


def binary(compute, swapped=False):
    def method(self, other):
        if isinstance(other, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>: a NumPy array beside a device array")
        if not isinstance(other, (ndarray, *SCALARS)):
            return NotImplemented
        pair = (self._host, unwrap(other))
        with np.errstate(all="ignore"):
            return wrap(compute(*(pair[::-1] if swapped else pair)))

    return method


def in_place(compute):
    def method(self, other):
        with np.errstate(all="ignore"):
            return self._inplace(compute, other)

    return method


def unary(compute):
    return lambda self: wrap(compute(self._host))


def add_methods():
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor"):
        compute = getattr(operator, f"__{name}__")
        setattr(ndarray, f"__{name}__", binary(compute))
        setattr(ndarray, f"__r{name}__", binary(compute, swapped=True))
        setattr(ndarray, f"__i{name}__", in_place(getattr(operator, f"__i{name}__")))
    for name in ("matmul", "lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__{name}__", binary(getattr(operator, f"__{name}__")))
    ndarray.__rmatmul__ = binary(operator.matmul, swapped=True)
    for name in ("neg", "pos", "abs", "invert"):
        setattr(ndarray, f"__{name}__", unary(getattr(operator, f"__{name}__")))
    for name, text in API["ndarray"].items():
        if text is not None and name not in vars(ndarray):
            host = getattr(np.ndarray, name, None)
            call = Call(name, f"self, {text}" if text else "self", host)
            setattr(ndarray, name, lambda self, *args, call=call, **kwargs: call(self, *args, **kwargs))


def __imatmul__(self, other):
    raise TypeError("CuPy has no in-place matrix product")


ndarray.__imatmul__ = __imatmul__

# --- functions that send, make or fetch -------------------------------------------------------------------------------


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """To the device; host memory is copied, as it has to be."""
    if isinstance(a, ndarray):
        check_cast(a._host, a.dtype if dtype is None else dtype)
        return wrap(np.array(a._host, dtype, copy=copy, order=order or "K"), [a])
    if copy is False:
        raise ValueError("host memory cannot become a device array without a copy")
    return wrap(storable(np.array(unwrap(a) if isinstance(a, (list, tuple)) else a, dtype, order=order or "K")))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    made = asarray(obj, dtype, order, copy=copy)
    return made if ndmin <= made.ndim else made.reshape((1,) * (ndmin - made.ndim) + made.shape)


def contiguous(order):
    def convert(a, dtype=None):
        a = asarray(a, dtype)
        return wrap((np.ascontiguousarray if order == "C" else np.asfortranarray)(a._host), [a]) if a.ndim else a

    return convert


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def empty(shape, dtype=float, order="C"):
    return poison(np.empty(shape, dtype, order))


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    if not isinstance(prototype, ndarray):
        raise TypeError(f"cupy's empty_like() takes a device array, not {type(prototype)}")
    return poison(np.empty_like(prototype._host, dtype, order, shape=shape))


def get_array_module(*args):
    return MODULE if any(isinstance(a, ndarray) for a in args) else np


def erf(x):
    from scipy.special import erf as host_erf

    return wrap(host_erf(operand(x)))


# --- kernels, random numbers, the device ------------------------------------------------------------------------------


class RawModule:
    """CUDA source, compiled by g++ and run on the CPU by `cuda_harness.RawModule`."""

    def __init__(self, code=None, *, options=(), backend="nvrtc"):
        self.code, self.options, self.module = code, tuple(options), None

    def compile(self, log_stream=None):
        if self.module is None:
            self.module = importlib.import_module("cuda_harness").RawModule(code=self.code, options=self.options)

    def get_function(self, name):
        self.compile()
        kernel = self.module.get_function(name)

        def launch(grid, block, args, *, shared_mem=0, stream=None):
            for a in args:
                if isinstance(a, ndarray) and not a.flags.c_contiguous:
                    raise ValueError(f"{name}: a kernel sees bare memory, and this array is not contiguous")
                if not isinstance(a, (ndarray, np.generic)):
                    raise TypeError(f"{name}: pass device arrays and NumPy scalars of the exact type, not {type(a)}")
            kernel(grid, block, tuple(map(unwrap, args)), shared_mem=shared_mem)

        return launch


def RawKernel(code, name, options=(), backend="nvrtc"):
    return RawModule(code, options=options).get_function(name)


class Generator:
    """Other numbers than NumPy's for a seed, and only the draws that CuPy has."""

    def __init__(self, seed=None):
        self._rng = np.random.Generator(np.random.Philox(seed))

    def __getattr__(self, name):
        if API["Generator"].get(name) is None:
            raise AttributeError(f"CuPy's Generator has no {name}")
        return Call(name, API["Generator"][name], getattr(self._rng, name))


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    id, compute_capability = 0, "80"

    def __init__(self, device=0):
        self.mem_info = (2**33, 2**34)

    def synchronize(self):
        note_read("synchronize()")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Stream:
    def __init__(self, *args, **kwargs):
        pass

    def synchronize(self):
        note_read("synchronize()")


Stream.null = Stream()
POOL = SimpleNamespace(used_bytes=lambda: 0, total_bytes=lambda: 0, free_all_blocks=lambda: None)
RUNTIME = {
    "getDeviceCount": lambda: 1,
    "getDevice": lambda: 0,
    "driverGetVersion": lambda: 13000,
    "runtimeGetVersion": lambda: 13000,
    "getDeviceProperties": lambda device: {
        "name": b"simulated GPU",
        "totalGlobalMem": 2**34,
        "major": 8,
        "minor": 0,
        "multiProcessorCount": 1,
        "sharedMemPerBlock": 49152,
    },
    "memGetInfo": lambda: (2**33, 2**34),
    "deviceSynchronize": lambda: note_read("synchronize()"),
    "CUDARuntimeError": CUDARuntimeError,
}
OWN = {
    "": {
        "ndarray": ndarray,
        "ufunc": ufunc,
        "RawModule": RawModule,
        "RawKernel": RawKernel,
        "array": array,
        "asarray": asarray,
        "asanyarray": asarray,
        "ascontiguousarray": contiguous("C"),
        "asfortranarray": contiguous("F"),
        "asnumpy": asnumpy,
        "empty": empty,
        "empty_like": empty_like,
        "get_array_module": get_array_module,
        "is_available": lambda: True,
        "get_default_memory_pool": lambda: POOL,
    },
    "random": {"Generator": Generator, "default_rng": Generator},
    "cuda": {"is_available": lambda: True, "Device": Device, "Stream": Stream},
    "cuda.runtime": RUNTIME,
    "cuda.nvrtc": {"getVersion": lambda: (13, 0)},
}
SENDING = ("array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray")

# --- the modules ------------------------------------------------------------------------------------------------------


class Missing(ModuleType):
    """A module that says for a name which it lacks whether CuPy lacks it, too."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} (CuPy {API['cupy']} has none)")


def make_module(name, sections, own):
    module = Missing(f"cupy.{name}".rstrip("."))
    module.__spec__ = ModuleSpec(module.__name__, None)
    hosts = getattr(np, name, None) if name else np
    for section, members in sections.items():
        for member, text in members.items():
            if section == "constants":
                value = getattr(np, member, None)
            elif section == "ufuncs":
                value = UFUNCS[member]
            elif section == "classes":
                value = Call(member, "*args, **kwargs", None)
            else:
                host = getattr(hosts, member, None) if name != "random" else None
                value = Call(member, text, host if callable(host) else None)
            setattr(module, member, value)
    for member, value in own.items():
        setattr(module, member, value)
    return module


UFUNCS = {name: ufunc(name, text, getattr(np, name, None)) for name, text in API["modules"][""]["ufuncs"].items()}
add_methods()
MODULE = make_module("", API["modules"][""], OWN[""])
MODULE.__version__ = API["cupy"]
MODULE.__name__ = "cupy"
for _path, _sections in API["modules"].items():
    if _path:
        _parent = MODULE
        *_folders, _last = _path.split(".")
        for _folder in _folders:
            _parent = getattr(_parent, _folder)
        setattr(_parent, _last, make_module(_path, _sections, OWN.get(_path, {})))

CUPYX = Missing("cupyx")
CUPYX.scatter_add = lambda a, slices, value: a.scatter_add(slices, value)
CUPYX.scipy = Missing("cupyx.scipy")
CUPYX.scipy.special = Missing("cupyx.scipy.special")
CUPYX.scipy.special.erf = erf
MODULES = {"cupy": MODULE, "cupyx": CUPYX, "cupyx.scipy": CUPYX.scipy, "cupyx.scipy.special": CUPYX.scipy.special}


@contextmanager
def installed():
    """Within the block `import cupy` gives the stand-in, and the library finds a usable GPU."""
    with _modules(MODULES):
        yield MODULE


@contextmanager
def removed():
    """Within the block `import cupy` gives what is installed, as if there were no stand-in."""
    with _modules({} if in_use() else {name: sys.modules[name] for name in MODULES if name in sys.modules}):
        yield


@contextmanager
def _modules(modules):
    """sys.modules has these for the names of MODULES, and no others; what was there comes back."""
    from tinybitvit import backend

    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.modules.update(modules)
    backend.cuda_problem.cache_clear()
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        backend.cuda_problem.cache_clear()


def in_use():
    """Whether `cupy` is the stand-in at the moment, and not the real thing."""
    return sys.modules.get("cupy") is MODULE
