"""Tensor: an array that remembers where it came from, and `apply`, the one place where arrays become Tensors."""

from . import autograd, backend, ops
from .ops import Context

OPS = ops.OPS


def apply(function, *inputs, **params):
    """Run a Function on Tensors (or arrays, numbers, None) and record it where a gradient may be asked for.

    A Python number takes the dtype of the Tensors and arrays beside it. Returns a Tensor.
    """
    arrays = [i.data if isinstance(i, Tensor) else _constant(i, inputs) for i in inputs if i is not None]
    for name, value in params.items():
        if isinstance(value, backend.host.generic):
            params[name] = (
                value.item()
            )  # NumPy would let its own scalars, unlike Python's, change the dtype of the result
    xp = backend.array_module(*arrays)
    sources = [i.source if isinstance(i, Tensor) else None for i in inputs if i is not None]
    if not autograd.is_recording() or all(s is None for s in sources):
        ctx = Context(xp, (False,) * len(arrays))
        return Tensor._of(_as_array(xp, function.forward(ctx, *arrays, **params)))
    ctx = Context(xp, tuple(s is not None for s in sources))
    y = _as_array(xp, function.forward(ctx, *arrays, **params))
    return Tensor._of(y, autograd.Node(function, ctx, sources, [(a.shape, a.dtype) for a in arrays]))


def _constant(value, beside):
    """An input that is no Tensor as an array; a number in the dtype of the inputs beside it, where that can hold it."""
    arrays = [
        i.data if isinstance(i, Tensor) else i for i in beside if hasattr(i, "dtype") and not isinstance(i, float)
    ]
    like = next((a for a in arrays if a.dtype.kind == "f"), arrays[0] if arrays else None)
    if like is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return backend.as_array(value, like=like)
    # an int keeps to an integer array, but a fraction must not be cut off by one, nor any number by a mask
    fits = like.dtype.kind == "f" or (like.dtype.kind in "iu" and isinstance(value, int))
    return backend.as_array(value, dtype=like.dtype if fits else None, like=like)


def _as_array(xp, y):
    return y if isinstance(y, xp.ndarray) else xp.asarray(y)  # NumPy gives scalars for full reductions


class Tensor:
    """An array with a gradient.

    data: nested lists, numbers (float32) or an array (dtype kept). requires_grad: whether to compute dL/d(this).
    device: 'cpu', 'cuda' or 'auto' (None: where the array is). dtype: convert to it.

    `data` is the NumPy or CuPy array, `grad` the accumulated gradient (an array, or None), filled by `backward` for
    leaves only: Tensors that were created, not computed.
    """

    __slots__ = ("__weakref__", "_requires_grad", "data", "grad", "node")
    __array_ufunc__ = None  # let `array * tensor` come to Tensor.__rmul__ instead of NumPy's element-by-element loop
    __array_priority__ = 1000

    def __init__(self, data, requires_grad=False, *, dtype=None, device=None):
        data = data.data if isinstance(data, Tensor) else data
        array = backend.as_array(data, dtype=dtype)
        self.data = array if device is None else backend.to_device(array, device)
        self.grad = None
        self.node = None
        self.requires_grad = requires_grad

    @classmethod
    def _of(cls, array, node=None):
        t = cls.__new__(cls)
        t.data, t.node, t.grad = array, node, None
        t._requires_grad = node is not None
        return t

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self):
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value):
        if self.node is not None:
            raise RuntimeError(
                "requires_grad can be set on leaves only; use .detach() to cut a computed Tensor off its graph"
            )
        if value and self.data.dtype.kind != "f":
            raise TypeError(
                f"only floating point Tensors can have a gradient, not {self.data.dtype};"
                " convert it with dtype='float32'"
            )
        self._requires_grad = bool(value)

    @property
    def source(self):
        """Where this Tensor's gradient goes: its Node, itself where it is a leaf that wants one, else None."""
        return self.node if self.node is not None else (self if self._requires_grad else None)

    @property
    def shape(self):
        return self.data.shape

    @property
    def ndim(self):
        return self.data.ndim

    @property
    def size(self):
        return self.data.size

    @property
    def dtype(self):
        return self.data.dtype

    @property
    def device(self):
        return backend.device_of(self.data)

    @property
    def T(self):
        return self.transpose()

    def __len__(self):
        if not self.data.ndim:
            raise TypeError("len() of a Tensor without axes")
        return len(self.data)

    def __repr__(self):
        values = str(backend.to_numpy(self.data)) if self.size <= 100 else f"{self.shape}, {self.dtype}"
        wants = ", requires_grad=True" if self._requires_grad else ""
        where = ", device='cuda'" if self.device == "cuda" else ""
        return f"Tensor({values}{wants}{where})"

    def __bool__(self):
        return bool(self.data)

    def __float__(self):
        return float(self.data)

    def __int__(self):
        return int(self.data)

    def item(self):
        """The one number as a Python number."""
        return self.data.item()

    def numpy(self):
        """The values as a NumPy array (not a copy when they are on the CPU)."""
        return backend.to_numpy(self.data)

    def detach(self):
        """The same array without its history."""
        return Tensor._of(self.data)

    def to(self, device):
        """This Tensor on 'cpu' or 'cuda' ('auto': a usable GPU, else the CPU); a new leaf where it has to move."""
        device = backend.resolve_device(device)
        if device == self.device:
            return self
        moved = Tensor._of(backend.to_device(self.data, device))
        moved._requires_grad = self._requires_grad
        return moved

    # --- gradients --------------------------------------------------------------------------------------------------

    def backward(self, g=None):
        """Add dL/dleaf to the `.grad` of every leaf below; g = dL/d(this), left out (1) for a single number."""
        for leaf, gradient in autograd.backpropagate(self.source, autograd.output_gradient(self, g)).items():
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    # --- operators --------------------------------------------------------------------------------------------------

    def __add__(self, other):
        return apply(OPS["add"], self, other)

    def __radd__(self, other):
        return apply(OPS["add"], other, self)

    def __sub__(self, other):
        return apply(OPS["sub"], self, other)

    def __rsub__(self, other):
        return apply(OPS["sub"], other, self)

    def __mul__(self, other):
        return apply(OPS["mul"], self, other)

    def __rmul__(self, other):
        return apply(OPS["mul"], other, self)

    def __truediv__(self, other):
        return apply(OPS["div"], self, other)

    def __rtruediv__(self, other):
        return apply(OPS["div"], other, self)

    def __matmul__(self, other):
        return apply(OPS["matmul"], self, other)

    def __rmatmul__(self, other):
        return apply(OPS["matmul"], other, self)

    def __neg__(self):
        return apply(OPS["neg"], self)

    def __pow__(self, exponent):
        return apply(OPS["pow"], self, exponent=_number(exponent))

    def __lt__(self, other):
        return self._compare("less", other)

    def __le__(self, other):
        return self._compare("less_equal", other)

    def __gt__(self, other):
        return self._compare("greater", other)

    def __ge__(self, other):
        return self._compare("greater_equal", other)

    def _compare(self, name, other):
        other = other.data if isinstance(other, Tensor) else _constant(other, (self,))
        xp = backend.array_module(self.data, other)
        return Tensor._of(_as_array(xp, getattr(xp, name)(self.data, other)))

    def __getitem__(self, index):
        return apply(OPS["getitem"], self, index=_plain_index(index))

    def __setitem__(self, index, value):
        raise TypeError("Tensors have no in-place operations; build a new one with tb.functional.where or concatenate")

    # --- the methods that read better than functions ----------------------------------------------------------------

    def sum(self, axis=None, keepdims=False):
        return apply(OPS["sum"], self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims=False):
        return apply(OPS["mean"], self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims=False):
        return apply(OPS["max"], self, axis=axis, keepdims=keepdims)

    def var(self, axis=None, ddof=0, keepdims=False):
        return apply(OPS["var"], self, axis=axis, ddof=ddof, keepdims=keepdims)

    def reshape(self, *shape):
        return apply(
            OPS["reshape"], self, shape=shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        )

    def transpose(self, *axes):
        axes = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
        return apply(OPS["transpose"], self, axes=tuple(axes) or None)

    def exp(self):
        return apply(OPS["exp"], self)

    def log(self):
        return apply(OPS["log"], self)

    def sqrt(self):
        return apply(OPS["sqrt"], self)

    def tanh(self):
        return apply(OPS["tanh"], self)


def _number(value):
    if not isinstance(value, (int, float)):
        raise TypeError(
            "the exponent of a power must be a Python number; use exp(p * log(x)) for a Tensor of exponents"
        )
    return value


def _plain_index(index):
    if isinstance(index, tuple):
        return tuple(i.data if isinstance(i, Tensor) else i for i in index)
    return index.data if isinstance(index, Tensor) else index
