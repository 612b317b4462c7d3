"""Tensor: an array that remembers where it came from, and `apply`, the one place where arrays become Tensors."""

import math
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NoReturn

from . import autograd, backend, ops
from .backend import Array
from .ops import Context, Function

OPS = ops.OPS


def apply(function: type[Function], *inputs: Any, **params: Any) -> "Tensor":
    """Run a Function on Tensors (or arrays, numbers, None) and record it where a gradient may be asked for.

    A number, Python's or NumPy's, takes the dtype of the Tensors and arrays beside it. Returns a Tensor.
    """
    arrays, sources = [], []
    for i in inputs:
        if isinstance(i, Tensor):
            arrays.append(i._data)
            sources.append(i.source)
        elif i is not None:
            arrays.append(_constant(i, inputs))
            sources.append(None)
    for name, value in params.items():
        if isinstance(value, backend.host.generic):
            # NumPy would let its own scalars, unlike Python's, change the dtype of the result
            params[name] = value.item()
    xp = backend.array_module(*arrays)
    needs = tuple([s is not None for s in sources])
    recorded = True in needs and autograd.is_recording()
    ctx = Context(xp, needs if recorded else (False,) * len(needs))
    try:
        y = _as_array(xp, function.forward(ctx, *arrays, **params))
    except (ValueError, IndexError) as error:
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise type(error)(f"{function.__name__} of {shapes}: {error}") from error
    if not recorded:
        return Tensor._of(y)
    return Tensor._of(y, autograd.Node(function, ctx, sources, [(a.shape, a.dtype) for a in arrays]))


def _constant(value: Any, beside: tuple) -> Array:
    """An input that is no Tensor as an array; a number in the dtype of the inputs beside it, where that can hold it."""
    scalar = backend.host.generic
    arrays = [
        i.data if isinstance(i, Tensor) else i for i in beside if hasattr(i, "dtype") and not isinstance(i, scalar)
    ]
    like = next((a for a in arrays if a.dtype.kind == "f"), arrays[0] if arrays else None)
    if like is not None and isinstance(value, scalar):
        value = value.item()
    if like is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return backend.as_array(value, like=like)
    dtype = like.dtype
    if isinstance(value, int) and dtype.kind in "iu":
        limits = backend.host.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"{value} is no {dtype}: make the Tensor beside it with dtype='int64' or 'float32'")
    elif dtype.kind != "f":  # a fraction must not be cut off by an integer array, nor any number by a mask
        dtype = None if isinstance(value, int) else backend.host.result_type(dtype, "float32")
    return backend.as_array(value, dtype=dtype, like=like)


def _as_array(xp: Any, y: Any) -> Array:
    return y if isinstance(y, xp.ndarray) else xp.asarray(y)  # NumPy gives scalars for full reductions


def _operator(name: str) -> tuple[Callable[["Tensor", Any], "Tensor"], Callable[["Tensor", Any], "Tensor"]]:
    """The methods for `self + other` and `other + self` of an operation with two inputs."""

    def forward(self: "Tensor", other: Any) -> "Tensor":
        return NotImplemented if other is None else apply(OPS[name], self, other)

    def reflected(self: "Tensor", other: Any) -> "Tensor":
        return NotImplemented if other is None else apply(OPS[name], other, self)

    return forward, reflected


def _comparison(name: str) -> Callable[["Tensor", Any], "Tensor"]:
    """The method that compares element by element, with NumPy's function of this name: a Tensor of bools."""

    def compare(self: "Tensor", other: Any) -> "Tensor":
        try:
            other = other._data if isinstance(other, Tensor) else _constant(other, (self,))
        except TypeError:
            # no numbers at all: Python then asks the other side, and has an answer of its own
            return NotImplemented
        except OverflowError:
            # beyond all numbers of this dtype
            other = backend.as_array(math.inf if other > 0 else -math.inf, like=self._data)
        xp = backend.array_module(self._data, other)
        return Tensor._of(_as_array(xp, getattr(xp, name)(self._data, other)))

    return compare


class Tensor:
    """An array with a gradient.

    data: numbers and nested lists of them (fractions become float32) or an array or Tensor (dtype kept). requires_grad:
    whether to compute dL/d(this). device: 'cpu', 'cuda' or 'auto' (None: where the array is). dtype: convert to it.

    `data` is the NumPy or CuPy array, `grad` the accumulated gradient (an array, or None), filled by `backward` for
    leaves only: Tensors that were created, not computed. `==` compares element by element; as a key of a dict or a
    member of a set a Tensor is itself and no other.
    """

    __slots__ = ("__weakref__", "_data", "_requires_grad", "grad", "node")
    __array_ufunc__ = None  # let `array * tensor` come to Tensor.__rmul__ instead of NumPy's element-by-element loop
    __array_priority__ = 1000
    __hash__ = object.__hash__
    _data: Array
    _requires_grad: bool

    def __init__(self, data: Any, requires_grad: bool = False, *, dtype: Any = None, device: str | None = None) -> None:
        if isinstance(data, (list, tuple)) and data and all(isinstance(d, Tensor) for d in data):
            data = backend.host.stack(data)
        array = backend.as_array(data._data if isinstance(data, Tensor) else data, dtype=dtype)
        self._data = array if device is None else backend.to_device(array, device)
        self.grad: Array | None = None
        self.node: autograd.Node | None = None
        self.requires_grad = requires_grad

    @classmethod
    def _of(cls, array: Array, node: autograd.Node | None = None) -> "Tensor":
        t = cls.__new__(cls)
        t._data, t.node, t.grad = array, node, None
        t._requires_grad = node is not None
        return t

    # --- what it is -------------------------------------------------------------------------------------------------

    def _set_data(self, array: Any) -> None:
        if array is self._data:
            # `p.data -= step` comes here with the array that it has changed
            autograd.writes.note(array)
        array = backend.as_array(array._data if isinstance(array, Tensor) else array)
        if self._requires_grad:
            _check_floats(array)
        self._data = array

    data = property(attrgetter("_data"), _set_data)

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node is not None:
            raise RuntimeError(
                "requires_grad can be set on leaves only; use .detach() to cut a computed Tensor off its graph"
            )
        if value:
            _check_floats(self._data)
        self._requires_grad = bool(value)

    @property
    def source(self) -> autograd.Source | None:
        """Where this Tensor's gradient goes: its Node, itself where it is a leaf that wants one, else None."""
        return self.node if self.node is not None else (self if self._requires_grad else None)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return self._data.size

    @property
    def dtype(self) -> Any:
        return self._data.dtype

    @property
    def device(self) -> str:
        return backend.device_of(self._data)

    @property
    def T(self) -> "Tensor":
        return self.transpose()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a Tensor without axes")
        return len(self._data)

    def __iter__(self) -> Iterator["Tensor"]:
        if not self.ndim:
            raise TypeError("a Tensor without axes cannot be iterated over; .item() gives its number")
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        equal = self == value
        return isinstance(equal, Tensor) and bool(equal._data.any())

    def __repr__(self) -> str:
        values = str(self.numpy()) if self.size <= 100 else f"{self.shape}, {self.dtype}"
        wants = ", requires_grad=True" if self._requires_grad else ""
        where = ", device='cuda'" if self.device == "cuda" else ""
        return f"Tensor({values}{wants}{where})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def item(self) -> Any:
        """The one number as a Python number."""
        if self.size != 1:
            raise ValueError(f"a Tensor of shape {self.shape} is not one number; pick one by an index, or reduce it")
        return self._data.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self._requires_grad:
            raise TypeError("NumPy would drop the graph of a Tensor that requires a gradient; use its .numpy()")
        return backend.host.array(self.numpy(), dtype=dtype, copy=copy)

    def numpy(self) -> Any:
        """The values as a NumPy array (not a copy when they are on the CPU)."""
        return backend.to_numpy(self._data)

    def detach(self) -> "Tensor":
        """The same array without its history."""
        return Tensor._of(self._data)

    def to(self, device: str) -> "Tensor":
        """This Tensor on 'cpu' or 'cuda' ('auto': a usable GPU, else the CPU); a new leaf where it has to move."""
        device = backend.resolve_device(device)
        if device == self.device:
            return self
        moved = Tensor._of(backend.to_device(self._data, device))
        moved._requires_grad = self._requires_grad
        return moved

    # --- gradients --------------------------------------------------------------------------------------------------

    def backward(self, g: Any = None) -> None:
        """Add dL/dleaf to the `.grad` of every leaf below; g = dL/d(this), left out (1) for a single number."""
        for leaf, gradient in autograd.backpropagate(self.source, autograd.output_gradient(self, g)).items():
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    # --- operators --------------------------------------------------------------------------------------------------

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("sub")
    __mul__, __rmul__ = _operator("mul")
    __truediv__, __rtruediv__ = _operator("div")
    __matmul__, __rmatmul__ = _operator("matmul")
    _power, __rpow__ = _operator("power")

    def __pow__(self, exponent: Any) -> "Tensor":
        if isinstance(exponent, (int, float, backend.host.generic)):
            return apply(OPS["pow"], self, exponent=exponent)
        return self._power(exponent)

    def __neg__(self) -> "Tensor":
        return apply(OPS["neg"], self)

    __eq__ = _comparison("equal")  # type: ignore[assignment]
    __ne__ = _comparison("not_equal")  # type: ignore[assignment]
    __lt__ = _comparison("less")
    __le__ = _comparison("less_equal")
    __gt__ = _comparison("greater")
    __ge__ = _comparison("greater_equal")

    def _no_update(self, other: Any) -> Any:
        """x -= y is x = x - y, a new Tensor; where it is meant to update a weight, that would be lost."""
        if self.node is None and self._requires_grad and not autograd.is_recording():
            raise TypeError("-= and the like would put a Tensor that does not learn in its place; write p.data -= step")
        return NotImplemented

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imatmul__ = _no_update

    def __getitem__(self, index: Any) -> "Tensor":
        return apply(OPS["getitem"], self, index=_plain_index(index))

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise TypeError("Tensors have no in-place operations; build a new one with tb.functional.where or concatenate")

    # --- the methods that read better than functions ----------------------------------------------------------------

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return apply(OPS["sum"], self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return apply(OPS["mean"], self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return apply(OPS["max"], self, axis=axis, keepdims=keepdims)

    def var(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> "Tensor":
        return apply(OPS["var"], self, axis=axis, ddof=ddof, keepdims=keepdims)

    def reshape(self, *shape: Any) -> "Tensor":
        return apply(OPS["reshape"], self, shape=_unpacked(shape))

    def transpose(self, *axes: Any) -> "Tensor":
        return apply(OPS["transpose"], self, axes=tuple(_unpacked(axes)) or None)

    def exp(self) -> "Tensor":
        return apply(OPS["exp"], self)

    def log(self) -> "Tensor":
        return apply(OPS["log"], self)

    def sqrt(self) -> "Tensor":
        return apply(OPS["sqrt"], self)

    def tanh(self) -> "Tensor":
        return apply(OPS["tanh"], self)


def _check_floats(array: Array) -> None:
    if array.dtype.kind != "f":
        raise TypeError(
            f"only floating point Tensors can have a gradient, not {array.dtype}; convert it with dtype='float32'"
        )


def _unpacked(numbers: tuple) -> Any:
    """f(2, 3) and f((2, 3)) mean the same."""
    return numbers[0] if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)) else numbers


def _plain_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_plain_index(i) for i in index)
    return index._data if isinstance(index, Tensor) else index
