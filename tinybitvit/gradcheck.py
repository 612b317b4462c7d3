"""The public gradient checker: a Function's backward against finite differences.

For y = f(x) and a random upstream gradient g, the number L(x) = sum(g y) has the gradient that `backward(g)` returns.
Central differences measure it one element at a time: (L(x + h e_i) - L(x - h e_i)) / 2h, with an error of order h^2.
A random g matters: with g = 1 the gradient of a softmax is 0, and a backward that returns zeros would pass.
"""

from collections.abc import Sequence
from typing import Any

from . import backend
from .backend import Array
from .ops import Context, Function


def run_forward(
    function: type[Function], arrays: list[Array], params: dict, needs: list[bool] | None = None
) -> tuple[Context, Array]:
    """(ctx, y) of a Function on plain arrays."""
    ctx = Context(backend.array_module(*arrays), tuple(needs or [a.dtype.kind == "f" for a in arrays]))
    return ctx, function.forward(ctx, *arrays, **params)


def numeric_gradient(
    function: type[Function], arrays: list[Array], params: dict, index: int, g: Array, h: float = 1e-5
) -> Array:
    """dL/d(arrays[index]) for L = sum(g f), by central differences in float64."""
    arrays = [a.astype("float64") if a.dtype.kind == "f" else a for a in arrays]
    x = arrays[index] = arrays[index].copy()
    result = backend.host.zeros(x.shape)
    for position in backend.host.ndindex(*x.shape):
        value, sides = float(x[position]), []
        for sign in (1, -1):
            x[position] = value + sign * h
            sides.append(float((g * run_forward(function, arrays, params)[1]).sum()))
        x[position] = value
        result[position] = (sides[0] - sides[1]) / (2 * h)
    return result


def check_op(
    function: type[Function],
    *inputs: Any,
    wrt: Sequence[int] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
    seed: int = 0,
    name: str | None = None,
    **params: Any,
) -> None:
    """Check a Function's backward against finite differences; returns None or raises AssertionError.

    function: a class with `forward(ctx, *arrays, **params)` and `backward(ctx, g)`. inputs: its arrays (floating point
    ones are taken in float64). wrt: positions of the inputs to check (None: all floating point inputs; give it where an
    input has no gradient by design); TypeError where that is none, or one of whole numbers. An element passes if
    |backward - numeric| <= atol + rtol * the largest |numeric| of that input. The error names the function, the input
    and the worst element, with both values. Where the function has a kink (relu at 0) finite differences are
    meaningless: keep inputs 1e-4 away from it.
    """
    name = name or function.__name__
    arrays = [backend.as_array(a) for a in inputs]
    checked = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"] if wrt is None else wrt
    if not checked or any(arrays[i].dtype.kind != "f" for i in checked):
        raise TypeError(f"{name}: whole numbers have no gradient that could be checked; give floats: [1.0, 2.0]")
    arrays = [a.astype("float64") if a.dtype.kind == "f" else a for a in arrays]
    before = [a.copy() for a in arrays]
    ctx, y = run_forward(function, arrays, params)
    y = backend.as_array(y)
    g = backend.as_array(backend.make_rng(seed).standard_normal(y.shape), dtype="float64", like=y)
    g_before = g.copy()
    grads = function.backward(ctx, g)
    assert isinstance(grads, tuple), (
        f"{name}.backward must return a tuple, not {type(grads).__name__}; write `return (dx,)`"
    )
    assert len(grads) == len(arrays), (
        f"{name}.backward returned {len(grads)} gradients for {len(arrays)} array inputs;"
        " return one for each (None where there is none)"
    )
    assert bool((g == g_before).all()), f"{name}.backward changed g in place; compute a new array instead"
    for i, (a, kept) in enumerate(zip(arrays, before, strict=True)):
        assert bool(((a == kept) | (kept != kept)).all()), (
            f"{name} changed its input {i} in place; compute a new array instead"
        )
    for i in checked:
        _compare(name, i, grads[i], arrays[i], numeric_gradient(function, arrays, params, i, g), rtol, atol)


def _compare(name: str, i: int, grad: Array | None, x: Array, numeric: Array, rtol: float, atol: float) -> None:
    assert grad is not None, f"{name}.backward returned None for input {i}, whose gradient is not zero by design"
    assert grad.shape == x.shape, f"{name}.backward returned shape {grad.shape} for input {i} of shape {x.shape}"
    assert grad.dtype == x.dtype, f"{name}.backward returned {grad.dtype} for input {i} of {x.dtype}"
    if not x.size:
        return
    grad = backend.to_numpy(grad)
    error = backend.host.asarray(abs(grad - numeric))
    error[error != error] = float("inf")
    allowed = atol + rtol * float(abs(numeric).max())
    worst = backend.host.unravel_index(int(error.argmax()), error.shape)
    assert error[worst] <= allowed, (
        f"{name}: the gradient of input {i} is wrong, worst at {tuple(int(j) for j in worst)}:"
        f" backward gives {grad[worst]:.6g}, finite differences give {numeric[worst]:.6g}"
    )
