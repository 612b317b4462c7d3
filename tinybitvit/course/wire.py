"""Values as bytes, between the process that grades and the one that runs a student's code. Nothing in them can run.

A message is a table of nodes in JSON and the bytes of the arrays behind it. Numbers, text and None stand in the table
as they are; everything else is [index of its node], so that what is shared stays shared.

The grader lends: its objects arrive as copies of the same class, its functions as calls back to it. The student's
process sends numbers, arrays, text, lists, tuples, dicts and Tensors; of other things only the name of their class.
"""

import contextlib
import functools
import importlib
import json
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from ..tensor import Tensor

NOTEBOOK = "notebook"  # the `__module__` of classes that a notebook defines
KINDS = "biufc"  # of the arrays that travel
LIBRARY = __name__.partition(".")[0]
FUNCTIONS = types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, np.ufunc
PLAIN = bool, int, float, str
MISSING = object()


class Foreign:
    """Stands for a result that is no data: a function, an object of a student's class."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Packing:
    """A message in the making.

    given: values that the other side has already, by index. lend: called with a function of the grader's, it returns
    the number under which the other side may call it; None in the student's process.
    """

    def __init__(self, given: Sequence = (), lend: Callable[[Any], int] | None = None):
        self.values = list(given)
        self.lend = lend
        self._start = len(self.values)
        self._index = {id(value): i for i, value in enumerate(self.values)}
        self._parts: list[bytes] = []
        self._size = 0

    def pack(self, root: Any, changed: Mapping[int, list] | None = None) -> bytes:
        """The message of a value; `changed` has new nodes for given values, made by `node`."""
        start = self.refer(root)
        nodes: list[Any] = []
        while self._start + len(nodes) < len(self.values):
            value = self.values[self._start + len(nodes)]
            nodes.append(None if isinstance(value, np.ndarray) else self.node(value))
        # Arrays last: only now it is known which of them go as views, because their base goes as well.
        nodes = [self.node(self.values[self._start + i]) if n is None else n for i, n in enumerate(nodes)]
        head = json.dumps([self._start, start, list((changed or {}).items()), nodes]).encode()
        return b"".join([len(head).to_bytes(8, "big"), head, *self._parts])

    def refer(self, value: Any) -> Any:
        if self.lend is None and id(value) not in self._index:
            value = plain(value)
        if value is None or type(value) in PLAIN:
            return value
        if id(value) not in self._index:
            self._index[id(value)] = len(self.values)
            self.values.append(value)
        return [self._index[id(value)]]

    def node(self, value: Any) -> list:
        """[kind, what it is made of]"""
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in KINDS:
            return self._array(value)
        if isinstance(value, (list, tuple)):
            return ["tuple" if isinstance(value, tuple) else "list", [self.refer(item) for item in value]]
        if isinstance(value, dict):
            return ["dict", [[self.refer(key), self.refer(item)] for key, item in value.items()]]
        if self.lend is not None:
            return self._lent(value)
        if isinstance(value, Tensor):
            return ["tensor", self.refer(value.data), value.requires_grad]
        if (array := as_array(value)) is not None:
            return self._array(array)
        return ["foreign", type(value).__name__]

    def state(self, value: Any) -> list:
        """The node of something given, with what it holds now."""
        if isinstance(value, (np.ndarray, list, tuple, dict)) or not attributes(value):
            return self.node(value)
        return ["object", self.refer(type(value)), self._attributes(value)]

    def _array(self, value: Any) -> list:
        base = getattr(value, "base", None)
        if self.lend is not None and isinstance(base, np.ndarray) and self._shared(base):
            offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            return ["view", self.refer(base), offset, value.dtype.str, value.shape, value.strides]
        data = np.asarray(value, order="C").tobytes()
        start = self._size
        self._parts.append(data)
        self._size += len(data)
        return ["scalar" if isinstance(value, np.generic) else "array", value.dtype.str, value.shape, start]

    def _shared(self, base: np.ndarray) -> bool:
        """Whether a view of an array may go as one: where the array itself goes as well."""
        return id(base) in self._index and base.flags.c_contiguous

    def _lent(self, value: Any) -> list:
        if isinstance(value, types.ModuleType):
            return ["import", value.__name__, None]
        if isinstance(value, type):
            return ["import", value.__module__, value.__qualname__]
        if isinstance(value, slice):
            return ["slice", [value.start, value.stop, value.step]]
        if isinstance(value, np.random.Generator):
            return ["rng", self.refer(value.bit_generator.state)]
        if isinstance(value, FUNCTIONS) and self.lend is not None:
            name = getattr(value, "__qualname__", "<")
            if (value.__module__ or "").startswith(f"{LIBRARY}.") and "<" not in name and "." not in name:
                return ["import", value.__module__, name]
            return ["function", self.lend(value)]
        return ["object", self.refer(type(value)), self._attributes(value)]

    def _attributes(self, value: Any) -> list:
        return [[name, self.refer(item)] for name, item in attributes(value).items()]


def plain(value: Any) -> Any:
    """A number or text of another type than Python's own, such as Fraction, as one of its own; the rest as it is."""
    if type(value) in PLAIN or (isinstance(value, np.generic) and not isinstance(value, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, Decimal)):
        return float(value)
    return str(value) if isinstance(value, str) else value


def as_array(value: Any) -> np.ndarray | None:
    """What NumPy takes for an array of numbers, such as a range, as one; None for anything else."""
    with contextlib.suppress(Exception):  # whatever an object of a student's does when it is asked
        array = np.asarray(value)
        if array.dtype.kind in KINDS:
            return array
    return None


def attributes(value: Any) -> dict[str, Any]:
    """What an object holds, in `__slots__` or `__dict__`."""
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if name != "__weakref__"]
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def lent(arguments: Any) -> list:
    """The arrays, lists and dicts among the arguments of a call, not those inside objects: nobody may change them."""
    found, stack = [], [arguments]
    while stack:
        value = stack.pop()
        if isinstance(value, (np.ndarray, list, dict)):
            found.append(value)
        if isinstance(value, (list, tuple, dict)):
            stack.extend(value.values() if isinstance(value, dict) else value)
    return found


class Letter:
    """A message that came. `changed` has the new nodes of given values.

    borrow: called with the number of a function of the grader's, it returns what calls it; classes: those of the
    notebook. Both are for the student's process only: without them a message can make nothing but data.
    """

    def __init__(
        self,
        data: bytes,
        given: Sequence = (),
        borrow: Callable[[int], Callable] | None = None,
        classes: Mapping[str, Any] | None = None,
    ):
        size = int.from_bytes(data[:8], "big")
        self._start, self._root, changed, self.nodes = json.loads(data[8 : 8 + size])
        self._data = memoryview(data)[8 + size :]
        self.values = [*given[: self._start], *[MISSING] * len(self.nodes)]
        self.changed: dict[int, list] = dict(changed)
        self._borrow, self._classes = borrow, classes or {}
        self._open: list[tuple[Any, list]] = []

    def root(self) -> Any:
        return self.value(self._root)

    def differs(self, i: int) -> bool:
        """Whether value i may have changed since it came; of an array, whether it has."""
        kind, *rest = self.nodes[i]
        if kind != "array":
            return kind in ("list", "dict", "object")
        return self.values[i].tobytes() != self._data[rest[2] : rest[2] + self.values[i].nbytes]

    def value(self, reference: Any) -> Any:
        """What a reference stands for, filled. ValueError and its like for a message that makes no sense."""
        found = self._shell(reference)
        while self._open:
            shell, (kind, *rest) = self._open.pop()
            if kind == "list":
                shell.extend(self._shell(item) for item in rest[0])
            elif kind == "dict":
                shell.update((self._shell(key), self._shell(item)) for key, item in rest[0])
            else:
                for name, item in rest[1]:
                    object.__setattr__(shell, name, self._shell(item))
        return found

    def _shell(self, reference: Any) -> Any:
        """The value, whose items may still be missing: chains of objects may be longer than Python's stack."""
        if not isinstance(reference, list):
            return reference
        (i,) = reference
        if self.values[i] is MISSING:
            kind, *rest = node = self.nodes[i - self._start]
            self.values[i] = self._make(kind, rest)
            if kind in ("list", "dict", "object"):
                self._open.append((self.values[i], node))
        return self.values[i]

    def content(self, node: list) -> np.ndarray:
        """The array of a node in `changed`."""
        return self._array(*node[1:])

    def _make(self, kind: str, rest: list) -> Any:
        if kind in ("list", "dict"):
            return [] if kind == "list" else {}
        if kind == "tuple":
            return tuple(self._shell(item) for item in rest[0])
        if kind in ("array", "scalar"):
            array = self._array(*rest)
            return array[()] if kind == "scalar" else array
        if kind == "tensor":
            return Tensor(self.value(rest[0]), requires_grad=bool(rest[1]))
        if kind == "foreign":
            return Foreign(str(rest[0]))
        if self._borrow is None:
            raise ValueError(f"a {kind} may not come from a student's process")
        return self._borrowed(kind, rest)

    def _array(self, dtype: str, shape: list[int], start: int) -> np.ndarray:
        if np.dtype(dtype).kind not in KINDS:
            raise ValueError(f"no array of {dtype} may travel")
        count = int(np.prod(shape, dtype=object))
        return np.frombuffer(self._data, dtype, count, start).reshape(shape).copy() if count else np.zeros(shape, dtype)

    def _borrowed(self, kind: str, rest: list) -> Any:
        if kind == "import":
            module, name = rest
            if module == NOTEBOOK:
                return self._classes[name]
            found = importlib.import_module(module)
            for part in (name or "").split(".") if name else []:
                found = getattr(found, part)
            return found
        if kind == "view":
            base, offset, dtype, shape, strides = rest
            return np.ndarray(shape, dtype, self._shell(base), offset, strides)
        if kind == "slice":
            return slice(*rest[0])
        if kind == "rng":
            rng = np.random.default_rng()
            rng.bit_generator.state = self.value(rest[0])
            return rng
        if kind == "function":
            assert self._borrow is not None
            return self._borrow(rest[0])
        cls = self._shell(rest[0])
        return cls.__new__(cls)
