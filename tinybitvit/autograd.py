"""Reverse-mode automatic differentiation on a recorded graph.

Every operation on Tensors leaves a Node that remembers its Function, the Context of its forward, and where its inputs
came from: another Node, a leaf Tensor that wants a gradient, or None. `backpropagate` walks from the output towards
the leaves and visits a node only when all of its consumers have delivered their part of dL/dy, so each backward runs
once. The walk is a loop, not a recursion: the depth of a graph is limited by memory alone.
"""

import threading
from contextlib import contextmanager

from . import backend


class _Mode(threading.local):
    recording = True


_mode = _Mode()


def is_recording():
    """Whether operations of this thread are recorded for a backward pass."""
    return _mode.recording


@contextmanager
def no_grad():
    """Within the block, operations of this thread record no graph: less memory, and results that need no gradient."""
    before, _mode.recording = _mode.recording, False
    try:
        yield
    finally:
        _mode.recording = before


class Node:
    """One recorded operation.

    It points to its inputs and never to its output. Were it to hold its output Tensor, which holds the node, the two
    would keep each other alive until Python's garbage collector comes by, with all the arrays of a training step.
    """

    __slots__ = ("ctx", "function", "inputs", "like")

    def __init__(self, function, ctx, inputs, like):
        self.function = function
        self.ctx = ctx
        self.inputs = inputs  # per array input: a Node, a leaf Tensor, or None where no gradient goes
        self.like = like  # per array input: (shape, dtype), which its gradient must have

    def backward(self, g):
        """One gradient per input, checked; the saved arrays are let go."""
        if self.ctx is None:
            raise RuntimeError(
                "this graph was already used by a backward pass, which freed its arrays; run the forward pass again"
            )
        grads = self.function.backward(self.ctx, g)
        self.ctx = None
        name = self.function.__name__
        if not isinstance(grads, tuple) or len(grads) != len(self.inputs):
            raise TypeError(f"{name}.backward must return a tuple of {len(self.inputs)} gradients, one per array input")
        for source, grad, (shape, _) in zip(self.inputs, grads, self.like, strict=True):
            if source is not None and (grad is None or grad.shape != shape):
                got = "None" if grad is None else f"shape {grad.shape}"
                raise ValueError(f"{name}.backward returned {got} as the gradient of an input of shape {shape}")
        return grads


def consumers(root):
    """For every node and leaf below root: by how many edges of the graph its gradient will be fed."""
    count = {root: 1}
    stack = [root]
    while stack:
        node = stack.pop()
        for source in node.inputs if isinstance(node, Node) else ():
            if source is None:
                continue
            if source in count:
                count[source] += 1
            else:
                count[source] = 1
                stack.append(source)
    return count


def backpropagate(root, g, wanted=None):
    """The gradients dL/dsource for the leaves below root (or for `wanted` nodes and leaves), as a dict source -> array.

    root: the Node or leaf of the output; g: dL/d(output). No returned array shares memory with another or with g.
    """
    waiting = consumers(root)
    arrived, owned = {root: g}, set()
    result = {}
    ready = [root]
    while ready:
        source = ready.pop()
        grad = arrived.pop(source)
        is_node = isinstance(source, Node)
        if (not is_node) if wanted is None else (source in wanted):
            result[source] = backend.as_array(
                grad if source in owned else grad.copy()
            )  # NumPy has scalars for 0-d results
        if not is_node:
            continue
        like, inputs = source.like, source.inputs
        held = source.ctx.saved if source.ctx else ()
        parts = source.backward(grad)
        for below, part, (_, dtype) in zip(inputs, parts, like, strict=True):
            if below is None:
                continue
            # g itself, a view, a saved array or one given twice may be in other hands; any other was made for us alone.
            fresh = (
                part.base is None and not any(part is a for a in (grad, *held)) and sum(part is p for p in parts) == 1
            )
            if part.dtype != dtype:
                part, fresh = part.astype(dtype), True
            if below not in arrived:
                arrived[below] = part
                if fresh:
                    owned.add(below)
            elif below in owned:
                arrived[below] += part
            else:
                arrived[below] = arrived[below] + part
                owned.add(below)
            waiting[below] -= 1
            if not waiting[below]:
                ready.append(below)
    return result


def output_gradient(output, g):
    """g as an array of the output's shape and dtype; for a single number it may be left out and is 1."""
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


def grad(output, inputs, g=None):
    """dL/dinput for each Tensor in `inputs`, as a list of arrays; no Tensor's `.grad` is touched.

    output: Tensor; inputs: Tensors that want a gradient, leaves or intermediate results; g: dL/doutput, an array of the
    output's shape (left out: 1, for a single number). An input that the output does not depend on gets zeros.
    The graph is freed: call the forward again before the next gradient.
    """
    sources = [t.source for t in inputs]
    if any(source is None for source in sources):
        raise ValueError("grad: every input must have requires_grad=True")
    found = backpropagate(output.source, output_gradient(output, g), wanted=set(sources))
    return [
        found[s] if s in found else backend.array_module(t.data).zeros_like(t.data)
        for s, t in zip(sources, inputs, strict=True)
    ]
