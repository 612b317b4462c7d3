"""The public call of every operation: Tensors (or arrays, or numbers) in, a Tensor out.

Array operations have NumPy's names and `axis`; network operations have the meaning and the argument order of
`torch.nn.functional`. Formulas and derivations stand in the docstrings of the Functions in `tinybitvit.ops`.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from . import backend
from .ops import OPS
from .tensor import Tensor, apply

Axis: TypeAlias = int | tuple[int, ...] | None
Size: TypeAlias = int | tuple[int, int]

# --- elementwise, broadcasting ----------------------------------------------------------------------------------------


def _of_one(name: str, doc: str) -> Callable[[Any], Tensor]:
    def function(x: Any) -> Tensor:
        return apply(OPS[name], x)

    function.__name__, function.__doc__ = name, doc
    return function


def _of_two(name: str, doc: str) -> Callable[[Any, Any], Tensor]:
    def function(a: Any, b: Any) -> Tensor:
        return apply(OPS[name], a, b)

    function.__name__, function.__doc__ = name, doc
    return function


add = _of_two("add", "a + b.")
sub = _of_two("sub", "a - b.")
mul = _of_two("mul", "a * b.")
div = _of_two("div", "a / b.")
power = _of_two("power", "a ** b, element by element.")
maximum = _of_two("maximum", "The larger of a and b, element by element.")
neg = _of_one("neg", "-x.")
exp = _of_one("exp", "e^x.")
log = _of_one("log", "Natural logarithm.")
sqrt = _of_one("sqrt", "Square root.")
tanh = _of_one("tanh", "Hyperbolic tangent.")
sigmoid = _of_one("sigmoid", "1 / (1 + e^-x).")
relu = _of_one("relu", "max(x, 0).")
abs = _of_one("abs", "Absolute value.")


def pow(x: Any, exponent: Any) -> Tensor:
    """x ** exponent, the exponent a number, a Tensor or an array."""
    return as_tensor(x) ** exponent


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x P(X <= x) for a standard normal X; approximate="tanh" is the faster formula."""
    return apply(OPS["gelu"], x, approximate=approximate)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where the condition (a bool array) holds, else b."""
    return apply(OPS["where"], condition, a, b)


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to low..high (numbers; None leaves that side open)."""
    return apply(OPS["clip"], x, low=low, high=high)


# --- reductions; axis: None (all), int or tuple -----------------------------------------------------------------------


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over axes."""
    return apply(OPS["sum"], x, axis=axis, keepdims=keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over axes."""
    return apply(OPS["mean"], x, axis=axis, keepdims=keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Maximum over axes; equal maxima share the gradient."""
    return apply(OPS["max"], x, axis=axis, keepdims=keepdims)


def var(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """Variance over axes, divided by n - ddof (NumPy's default 0; PyTorch's is 1)."""
    return apply(OPS["var"], x, axis=axis, ddof=ddof, keepdims=keepdims)


# --- shape ------------------------------------------------------------------------------------------------------------


def reshape(x: Any, shape: Any) -> Tensor:
    """The same elements under another shape; one -1 is worked out."""
    return apply(OPS["reshape"], x, shape=shape)


def transpose(x: Any, axes: tuple[int, ...] | None = None) -> Tensor:
    """Axes permuted, as numpy.transpose (None: reversed)."""
    return apply(OPS["transpose"], x, axes=axes)


def broadcast_to(x: Any, shape: Any) -> Tensor:
    """x repeated up to a shape."""
    return apply(OPS["broadcast_to"], x, shape=shape)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index]."""
    return as_tensor(x)[index]


def concatenate(tensors: Iterable[Any], axis: int = 0) -> Tensor:
    """Tensors one after another along an axis."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("concatenate needs at least one Tensor")
    return apply(OPS["concatenate"], *tensors, axis=axis)


def pad(x: Any, pad_width: Any, value: float = 0.0) -> Tensor:
    """A border of `value`; pad_width: an int, or ((before, after), ...) for each axis."""
    return apply(OPS["pad"], x, pad_width=pad_width, value=value)


# --- networks ---------------------------------------------------------------------------------------------------------


def matmul(a: Any, b: Any) -> Tensor:
    """Matrix product over the last two axes: (..., n, k) @ (..., k, m) -> (..., n, m)."""
    return apply(OPS["matmul"], a, b)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x W^T + b: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    return apply(OPS["linear"], x, weight, bias)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """e^x / sum e^x along an axis."""
    return apply(OPS["softmax"], x, axis=axis)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """ln softmax(x) along an axis."""
    return apply(OPS["log_softmax"], x, axis=axis)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis; weight, bias (D,) or None."""
    if weight is None and bias is not None:
        raise ValueError("layer_norm: a bias without a weight; pass weight=ones or leave out both")
    return apply(OPS["layer_norm"], x, weight, bias, eps=eps)


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; weight (D,) or None."""
    return apply(OPS["rms_norm"], x, weight, eps=eps)


def dropout(x: Any, p: float = 0.5, training: bool = True, rng: backend.Generator | None = None) -> Tensor:
    """Each element is 0 with probability p, else divided by 1 - p; without training x itself.

    The mask is drawn on the host from `rng`, a numpy Generator (None: this thread's, see `tb.manual_seed`).
    """
    x, p = as_tensor(x), as_probability(p)
    if not training or p == 0:
        return x
    rng = backend.current_rng() if rng is None else rng
    keep = (rng.random(x.shape, dtype="float32") >= p) / (1 - p)
    dtype = x.dtype if x.dtype.kind == "f" else "float32"
    return apply(OPS["dropout"], x, backend.to_device(keep.astype(dtype), x.device))


def scaled_dot_product_attention(q: Any, k: Any, v: Any, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v: q (..., T, d), k (..., S, d), v (..., S, e) -> (..., T, e); scale None: 1 / sqrt(d)."""
    return apply(OPS["scaled_dot_product_attention"], q, k, v, scale=scale)


def multi_head_attention(qkv: Any, heads: int, scale: float | None = None) -> Tensor:
    """Attention of all heads from the fused projection: qkv (N, T, 3 h d) -> (N, T, h d)."""
    return apply(OPS["multi_head_attention"], qkv, heads=heads, scale=scale)


def cross_entropy(logits: Any, target: Any, weight: Any = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (N, C) with class numbers (N,) or probabilities (N, C).

    weight: (N,) weights of the rows, the mean is weighted by them (PyTorch's `weight` is one per class). Raises
    ValueError for class numbers outside 0..C-1; on a GPU, where looking at them would take longer than the step, the
    result is NaN instead.
    """
    return apply(OPS["cross_entropy"], logits, target, weight, label_smoothing=label_smoothing)


def mse_loss(x: Any, target: Any) -> Tensor:
    """Mean squared error over all elements of x and a target of the same shape."""
    return apply(OPS["mse_loss"], x, target)


def kl_div(x: Any, target: Any) -> Tensor:
    """KL divergence of probabilities target (N, C) from log-probabilities x (N, C), summed over C, averaged over N."""
    return apply(OPS["kl_div"], x, target)


def patchify(x: Any, patch_size: Size) -> Tensor:
    """(N, H, W, C) -> (N, T, ph pw C): patches row by row, pixels in (ph, pw, C) order. patch_size: int or (ph, pw)."""
    return apply(OPS["patchify"], x, patch_size=as_pair(patch_size))


def unpatchify(x: Any, patch_size: Size, image_size: Size) -> Tensor:
    """(N, T, ph pw C) -> (N, H, W, C), the inverse of patchify. image_size: int or (H, W)."""
    return apply(OPS["unpatchify"], x, patch_size=as_pair(patch_size), image_size=as_pair(image_size))


# --- quantisers: straight-through, see `tinybitvit.ops.ste` ----------------------------------------------------------


def binary(
    w: Any,
    granularity: str = "row",
    scale: str = "absmean",
    centre: bool = True,
    ste: str = "identity",
    width: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """beta sign(w - mu): one bit per element, one scale per row (last axis) or tensor."""
    params = {"granularity": granularity, "scale": scale, "centre": centre}
    return apply(OPS["binary"], w, **params, ste=ste, width=width, temperature=temperature)


def ternary(
    w: Any,
    granularity: str = "row",
    scale: str = "absmean",
    ste: str = "identity",
    width: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """beta clip(round(w / beta), -1, 1): log2(3) = 1.58 bits per element."""
    params = {"granularity": granularity, "scale": scale}
    return apply(OPS["ternary"], w, **params, ste=ste, width=width, temperature=temperature)


def nbit(w: Any, bits: int, granularity: str = "row", scale: str = "absmean", ste: str = "identity") -> Tensor:
    """s clip(round(w / s), -2^(bits-1), 2^(bits-1) - 1)."""
    return apply(OPS["nbit"], w, bits=bits, granularity=granularity, scale=scale, ste=ste)


def absmax(x: Any, bits: int = 8) -> Tensor:
    """round(x s) / s with s = (2^(bits-1) - 1) / max |x| per token: quantised activations."""
    return apply(OPS["absmax"], x, bits=bits)


# --- helpers ----------------------------------------------------------------------------------------------------------


def as_tensor(x: Any) -> Tensor:
    """x as a Tensor; a Tensor is returned as it is."""
    return x if isinstance(x, Tensor) else Tensor(x)


def as_size(name: str, n: Any) -> int:
    """A whole number from 1 as an int; ValueError by this name for anything else."""
    backend.check_number(name, n, 1, whole=True)
    return int(n)


def as_pair(size: Any) -> tuple[int, int]:
    """An int (a square) or a pair of ints as (height, width)."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"a size is one number or a pair (height, width), not {size!r}")
    return as_size("height", pair[0]), as_size("width", pair[1])


def as_probability(p: Any) -> float:
    """The share of elements that dropout zeroes, checked."""
    if not backend.is_number(p, 0) or p >= 1:
        raise ValueError(f"dropout: p must lie in [0, 1), not {p!r}")
    return float(p)
