"""Reverse-mode automatic differentiation on a recorded graph.

Every operation on Tensors leaves a Node that remembers its Function, the Context of its forward, and where its inputs
came from: another Node, a leaf Tensor that wants a gradient, or None. `backpropagate` walks from the output towards
the leaves and visits a node only when all of its consumers have delivered their part of dL/dy, so each backward runs
once. The walk is a loop, not a recursion: the depth of a graph is limited by memory alone.
"""

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeAlias

from . import backend
from .backend import Array
from .ops import Context, Function

Source: TypeAlias = Any  # where a gradient goes: a Node or a leaf Tensor


class _Mode(threading.local):
    recording = True


_mode = _Mode()


def is_recording() -> bool:
    """Whether operations of this thread are recorded for a backward pass."""
    return _mode.recording


@contextmanager
def no_grad() -> Iterator[None]:
    """Within the block, operations of this thread record no graph: less memory, and results that need no gradient."""
    before, _mode.recording = _mode.recording, False
    try:
        yield
    finally:
        _mode.recording = before


class _Writes:
    """When arrays that a graph may have saved were changed in place, on the clock that also numbers the nodes."""

    def __init__(self) -> None:
        self.clock, self.latest, self.lock = count(1), 0, threading.Lock()
        self.times: dict[tuple[int, int], int] = {}  # (first address, the one behind the last) -> when

    def note(self, array: Array) -> None:
        """The array was changed in place."""
        with self.lock:
            self.latest = self.times[backend.addresses(array)] = next(self.clock)

    def touched(self, values: list, since: int) -> bool:
        """Whether memory of one of these arrays (other values are left out) was changed after a moment.

        What an array holds cannot be freed and given to another one meanwhile: addresses say whose it is.
        """
        with self.lock:
            changed = [span for span, when in self.times.items() if when > since]
        spans = [backend.addresses(a) for a in values if hasattr(a, "strides")] if changed else []
        return any(first < end and start < last for first, last in changed for start, end in spans)


writes = _Writes()


class Node:
    """One recorded operation.

    It points to its inputs and never to its output. Were it to hold its output Tensor, which holds the node, the two
    would keep each other alive until Python's garbage collector comes by, with all the arrays of a training step.
    """

    __slots__ = ("born", "ctx", "function", "inputs", "like")

    def __init__(self, function: type[Function], ctx: Context, inputs: list[Source], like: list[tuple]) -> None:
        self.function = function
        self.ctx: Context | None = ctx
        self.inputs = inputs  # per array input: a Node, a leaf Tensor, or None where no gradient goes
        self.like = like  # per array input: (shape, dtype), which its gradient must have
        self.born = next(writes.clock)

    def __reduce__(self) -> str:
        raise TypeError("a Tensor that was computed cannot be copied with its graph or pickled: use its .detach()")

    def backward(self, g: Array) -> list[tuple[Source, Array, bool]]:
        """(source, its gradient, whether that array is ours alone) for the inputs that want one; frees what was saved.

        g itself, a view, one that is given twice or that the forward left in ctx may be in other hands; any other was
        made for us.
        """
        ctx, name = self.ctx, self.function.__name__
        if ctx is None:
            raise RuntimeError(
                "this graph was already used by a backward pass, which freed its arrays; run the forward pass again"
            )
        left = vars(ctx).values()  # what `save` was given is a tuple among them
        kept = [a for value in left for a in (value if isinstance(value, (tuple, list)) else (value,))]
        if writes.latest > self.born and writes.touched(kept, self.born):
            raise RuntimeError(
                f"backward: an array that {name} had saved was changed since, by an optimiser's step, load_state_dict"
                " or `p.data -= ...`; run the forward pass again"
            )
        grads = self.function.backward(ctx, g)
        self.ctx = None
        if not isinstance(grads, tuple) or len(grads) != len(self.inputs):
            raise TypeError(f"{name}.backward must return a tuple of {len(self.inputs)} gradients, one per array input")
        held, wanted = [id(a) for a in (g, *kept, *grads)], []
        for source, grad, (shape, dtype) in zip(self.inputs, grads, self.like, strict=True):
            if source is None:
                continue
            if grad is None or grad.shape != shape:
                got = "None" if grad is None else f"shape {grad.shape}"
                way_out = "; pass that input as .detach()" if grad is None else ""
                raise ValueError(
                    f"{name}.backward returned {got} as the gradient of an input of shape {shape}{way_out}"
                )
            ours = grad.base is None and held.count(id(grad)) == 1
            wanted.append((source, grad, ours) if grad.dtype == dtype else (source, grad.astype(dtype), True))
        return wanted


def consumers(root: Source) -> dict[Source, int]:
    """For every node and leaf below root: by how many edges of the graph its gradient will be fed."""
    count, stack = {root: 1}, [root]
    while stack:
        node = stack.pop()
        for source in node.inputs if isinstance(node, Node) else ():
            if source is not None:
                if source not in count:
                    stack.append(source)
                count[source] = count.get(source, 0) + 1
    return count


class _Sums(dict):
    """source -> (the sum of the gradients that have arrived for it, whether that array is ours to add into)."""

    def add(self, source: Source, part: Array, ours: bool) -> None:
        if source not in self:
            self[source] = part, ours
            return
        total, ours = self[source]
        if ours:
            total += part
        else:
            total = total + part
        self[source] = total, True


def backpropagate(root: Source, g: Array, wanted: Container[Source] | None = None) -> dict[Source, Array]:
    """The gradients dL/dsource for the leaves below root (or for `wanted` nodes and leaves), as a dict source -> array.

    root: the Node or leaf of the output; g: dL/d(output). No returned array shares memory with another or with g.
    """
    waiting, arrived, result, ready = consumers(root), _Sums(), {}, [root]
    arrived.add(root, g, ours=False)
    while ready:
        source = ready.pop()
        grad, ours = arrived.pop(source)
        if (not isinstance(source, Node)) if wanted is None else (source in wanted):
            result[source] = backend.as_array(grad if ours else grad.copy())  # NumPy has scalars for 0-d results
        for below, part, fresh in source.backward(grad) if isinstance(source, Node) else ():
            arrived.add(below, part, fresh)
            waiting[below] -= 1
            if not waiting[below]:
                ready.append(below)
    return result


def output_gradient(output: Any, g: Any) -> Array:
    """g as an array of the shape and dtype of a Tensor `output`; for a single number it may be left out and is 1."""
    data = output.data
    if not output.requires_grad:
        raise RuntimeError(
            "this Tensor does not depend on any Tensor with requires_grad=True: there is nothing to differentiate"
        )
    if g is None:
        if data.size != 1:
            raise RuntimeError(
                f"backward() without a gradient needs a single number, not shape {data.shape}: reduce it with .sum()"
                " or .mean(), or pass dL/dy as g"
            )
        return backend.array_module(data).ones_like(data)
    g = g.data if hasattr(g, "requires_grad") else backend.as_array(g, like=data)
    backend.array_module(g, data)  # refuses to mix devices
    if g.shape != data.shape:
        raise ValueError(
            f"the gradient passed to backward has shape {g.shape}, the Tensor {data.shape}; they must be equal"
        )
    return g.astype(data.dtype, copy=False)


def grad(output: Any, inputs: Sequence[Any], g: Any = None) -> list[Array]:
    """dL/dinput for each Tensor in `inputs`, as a list of arrays; no Tensor's `.grad` is touched.

    output: Tensor; inputs: Tensors that want a gradient, leaves or intermediate results; g: dL/doutput, an array of the
    output's shape (left out: 1, for a single number). An input that the output does not depend on gets zeros.
    The graph is freed: call the forward again before the next gradient.
    """
    sources = [t.source for t in inputs]
    if any(source is None for source in sources):
        raise ValueError("grad: every input must have requires_grad=True")
    found = backpropagate(output.source, output_gradient(output, g), wanted=set(sources))
    grads: list[Array] = []
    given = set()
    for source, t in zip(sources, inputs, strict=True):
        array = found[source] if source in found else backend.array_module(t.data).zeros_like(t.data)
        grads.append(array.copy() if source in given else array)
        given.add(source)
    return grads
