"""The contract of a differentiable function, and the helpers that every family of operations uses.

Notation in all files of `ops`: x, y arrays in and out; L the scalar loss; g = dL/dy, the gradient that arrives from
above; a backward returns dL/dx for every input x, in the order of the inputs.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ..backend import Array

Axis: TypeAlias = int | Sequence[int] | None  # None: all axes
Gradients: TypeAlias = tuple[Array | None, ...]  # one for each array input
OPS: dict[str, type["Function"]] = {}


class Context:
    """What a forward leaves behind for its backward.

    xp                 numpy or cupy, the module of the input arrays
    saved              the arrays kept by `save`, in order
    needs_input_grad   one bool per array input: whether anybody asks for that gradient
    Parameters (an axis, a shape) are kept as plain attributes.
    """

    saved: tuple[Any, ...] = ()

    def __init__(self, xp: Any, needs_input_grad: tuple[bool, ...]) -> None:
        self.xp = xp
        self.needs_input_grad = needs_input_grad

    def save(self, *arrays: Array | None) -> None:
        self.saved = arrays

    if TYPE_CHECKING:  # any attribute may be kept

        def __setattr__(self, name: str, value: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...


class Function:
    """A differentiable function on arrays: `forward(ctx, *arrays, **params)` and `backward(ctx, g)`.

    The same contract as `torch.autograd.Function`, with arrays where PyTorch has tensors. `backward` returns a tuple
    with one entry per array input, None where there is no gradient, each of its input's shape. Inputs and g are never
    changed in place. A gradient may come in float32 for an input of float16, whose own it becomes when it is added up.
    Gradients of gradients are not supported: a backward is plain array code, not a graph.

    `class Softmax(Function, name="softmax")` enters the class in the table OPS under that name.
    """

    def __init_subclass__(cls, name: str = "") -> None:
        if not name:
            return
        if name in OPS and OPS[name].__module__ != cls.__module__:
            raise ValueError(f"there is an operation {name!r} already, {OPS[name].__name__}: choose another name")
        OPS[name] = cls

    @staticmethod
    def forward(ctx: Context, *arrays: Any, **params: Any) -> Array:
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        raise NotImplementedError


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum g over the axes along which an input of this shape was repeated.

    Broadcasting copies an element along an axis, y_i = x for all i, so dL/dx = sum_i g_i.
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    repeated = tuple(extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1)
    return widened(g).sum(axis=(*range(extra), *repeated), keepdims=True).reshape(shape)


def widened(x: Array) -> Array:
    """x itself, or its float32 copy where it is float16: sums and exponentials need the digits, as in PyTorch."""
    return x.astype("float32") if x.dtype.kind == "f" and x.itemsize == 2 else x


def as_floats(x: Array) -> Array:
    """x itself, or as float32 where it holds whole numbers or bools, as PyTorch has it."""
    return x if x.dtype.kind == "f" else x.astype("float32")


def floating(x: Array) -> Array:
    """`widened(x)`; TypeError for an array without fractions."""
    if x.dtype.kind != "f":
        raise TypeError(f"this operation needs floating point numbers, not {x.dtype}: convert them to float32 first")
    return widened(x)


def rows_of(x: Array) -> Array:
    """x (..., n) as rows (r, n)."""
    if not x.ndim:
        raise ValueError("the input is a single number; an array with at least one axis is needed")
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def normalize_axis(axis: Axis, ndim: int) -> tuple[int, ...]:
    """An axis (None, int or tuple, negative allowed) as a sorted tuple of ints from 0; ValueError if out of range."""
    if axis is None:
        return tuple(range(ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"axis {axis} is out of range for an array with {ndim} dimensions")
    return tuple(sorted(a % ndim for a in axes))
