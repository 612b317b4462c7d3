"""Optimisers, learning-rate schedule, gradient clipping.

An optimiser keeps the parameters of a group in one flat buffer (each Parameter's `data` becomes a view into it), so
that an update is a handful of vector operations instead of a handful per parameter. Long buffers are updated in
stretches that stay in the cache and that threads can share out among themselves.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias

from . import autograd, backend
from .backend import Array
from .nn import Module
from .ops.base import widened
from .tensor import Tensor

Params: TypeAlias = Iterable[Any]  # Parameters, or the dicts of groups of them

# Elements: weights, gradient, two moments and a result between them take 1.3 MB as float32. Much shorter stretches make
# threads wait for the interpreter lock more than they compute.
CHUNK = 65536


class FlatBuffer:
    """The parameters of one group side by side, with their gradients and the optimiser's arrays of the same length.

    counts: how many updates each parameter has had.
    """

    def __init__(self, params: list[Tensor], slots: int) -> None:
        if any(p.dtype != params[0].dtype for p in params):
            raise ValueError("the parameters of one group must have one dtype")
        xp, ends = backend.array_module(*(p.data for p in params)), list(accumulate(p.size for p in params))
        self.params, self.counts = params, [0] * len(params)
        self.data, self.grad, *self.slots = (xp.zeros(ends[-1], params[0].dtype) for _ in range(2 + slots))
        self.spans = [slice(end - p.size, end) for p, end in zip(params, ends, strict=True)]
        self.views = [self.data[s].reshape(p.shape) for p, s in zip(params, self.spans, strict=True)]
        self.grad_views = [self.grad[s].reshape(p.shape) for p, s in zip(params, self.spans, strict=True)]
        self.attach()

    def __reduce__(self) -> tuple:
        """A copy takes in its own copies of the parameters, which become views of its own buffer."""
        return FlatBuffer, (self.params, len(self.slots)), {"counts": self.counts, "slots": self.slots}

    def attach(self) -> None:
        """Make every Parameter's data a view of the buffer again where somebody replaced it."""
        for p, view in zip(self.params, self.views, strict=True):
            if p.data is not view:
                if p.shape != view.shape:
                    raise RuntimeError(f"a parameter has changed its shape from {view.shape} to {p.shape}")
                view[...] = p.data
                p.data = view
                autograd.writes.note(view)

    def gather(self) -> list[tuple[slice, int]]:
        """Bring all gradients into the buffer; returns the spans to update and for the how manieth time.

        They are those of the parameters with a gradient, in as few pieces as possible.
        """
        self.attach()
        learning = [i for i, p in enumerate(self.params) if p.grad is not None]
        for i in learning:
            grad: Array = self.params[i].grad
            view = self.grad_views[i]
            if grad is not view:
                if grad.shape != view.shape:
                    raise ValueError(f"the gradient of a parameter of shape {view.shape} has shape {grad.shape}")
                view[...] = grad
        pieces: list[tuple[slice, int]] = []
        for i in learning:
            self.counts[i] += 1
            span, count = self.spans[i], self.counts[i]
            if pieces and pieces[-1][0].stop == span.start and pieces[-1][1] == count:
                span = slice(pieces.pop()[0].start, span.stop)
            pieces.append((span, count))
        return pieces

    def stretches(self, pieces: list[tuple[slice, int]]) -> Iterator[tuple]:
        """(data, gradient, count, *slots) of at most CHUNK elements; of whole pieces on a GPU: it has no such cache."""
        size = CHUNK if backend.device_of(self.data) == "cpu" else self.data.size
        for span, count in pieces:
            autograd.writes.note(self.data[span])
            for start in range(span.start, span.stop, size):
                stretch = slice(start, min(start + size, span.stop))
                yield self.data[stretch], self.grad[stretch], count, *(slot[stretch] for slot in self.slots)


def one_after_another(work: Callable, items: list[tuple]) -> None:
    """work(*item) for all items, on this thread."""
    for item in items:
        work(*item)


class Optimizer:
    """What the optimisers share: parameter groups, `zero_grad`, `step`, state.

    params: Parameters, or dicts {"params": [...], "lr": ..., "weight_decay": ...} whose values override the defaults.
    `param_groups` are those dicts; a schedule changes their "lr". A Parameter without a gradient is left as it is.
    """

    slots = 0

    def __init__(self, params: Params, **defaults: Any) -> None:
        if isinstance(params, (Tensor, Module, dict)):
            raise TypeError("the optimiser needs a list of Parameters, such as model.parameters()")
        params = list(params)
        if not params:
            raise ValueError("the optimiser got no parameters")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        groups = [{**defaults, **g, "params": list(g["params"])} for g in groups]
        self.param_groups: list[dict[str, Any]] = [g for g in groups if g["params"]]
        _check_params([p for g in groups for p in g["params"]])
        for group in self.param_groups:
            _check_options(group)
        self.buffers = [FlatBuffer(g["params"], self.slots) for g in self.param_groups]
        self.steps = 0

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, spread: Callable[[Callable, list[tuple]], None] = one_after_another) -> None:
        """Update all parameters from their `.grad`.

        spread(work, items) calls work(*item) for all items of a list, which threads may share out among themselves:
        each is a stretch of its own, so the bits do not depend on who takes which.
        """
        self.steps += 1
        for group, buffer in zip(self.param_groups, self.buffers, strict=True):
            if buffer.params[0].device != backend.device_of(buffer.data):
                raise RuntimeError(
                    "the model moved to another device after the optimiser was made; make the optimiser after .to()"
                )
            xp = backend.array_module(buffer.data)
            spread(partial(self.update, xp, group), list(buffer.stretches(buffer.gather())))

    def update(self, xp: Any, group: dict, p: Array, g: Array, count: int, *slots: Array) -> None:
        """Change the stretch p in place for the `count`-th time, given its gradient g."""
        raise NotImplementedError

    def gradient_views(self) -> dict[Tensor, Array]:
        """Parameter -> its stretch of the flat gradient buffer: what is written there, `step` need not copy."""
        return {p: v for b in self.buffers for p, v in zip(b.params, b.grad_views, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Plain values and copies of the optimiser's arrays, by name."""
        arrays = {name: slot.copy() for name, slot in self._named_slots().items()}
        counts = [list(b.counts) for b in self.buffers]
        return {"steps": self.steps, "counts": counts, "lr": [g["lr"] for g in self.param_groups], "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, into an optimiser over the same parameters."""
        mine, steps = self._named_slots(), int(state["steps"])
        # a state without counts comes from an optimiser that took the same count for all
        counts = state.get("counts") or [[steps] * len(b.params) for b in self.buffers]
        shapes, given = ({name: a.shape for name, a in arrays.items()} for arrays in (mine, state["arrays"]))
        if shapes != given or [len(c) for c in counts] != [len(b.params) for b in self.buffers]:
            raise ValueError("load_state_dict: the state belongs to an optimiser over other parameters")
        for name, array in mine.items():
            array[...] = backend.to_device(state["arrays"][name], backend.device_of(array))
        self.steps = steps
        for group, rate in zip(self.param_groups, state["lr"], strict=True):
            group["lr"] = float(rate)
        for buffer, own in zip(self.buffers, counts, strict=True):
            buffer.counts = list(own)

    def _named_slots(self) -> dict[str, Array]:
        return {f"{i}.{j}": slot for i, b in enumerate(self.buffers) for j, slot in enumerate(b.slots)}


def _check_params(params: list[Any]) -> None:
    for p in params:
        if not isinstance(p, Tensor) or p.node is not None or p.dtype.kind != "f":
            raise TypeError(f"an optimiser updates Parameters, not {p!r:.80}")
    if len(set(params)) != len(params):
        raise ValueError("the optimiser got the same Parameter twice")


def _check_options(group: dict[str, Any]) -> None:
    for name in group.keys() & {"lr", "momentum", "weight_decay", "eps"}:
        backend.check_number(name, group[name], 0)
    betas = group.get("betas", (0, 0))
    if len(betas) != 2 or not all(backend.is_number(b, 0) and b < 1 for b in betas):
        raise ValueError(f"betas must be two numbers from 0 and below 1, not {betas!r}")


class SGD(Optimizer):
    """v = momentum v + (g + weight_decay p);  p -= lr v, or p -= lr (g + momentum v) with nesterov."""

    slots = 1

    def __init__(
        self, params: Params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def update(self, xp: Any, group: dict, p: Array, g: Array, count: int, *slots: Array) -> None:
        (v,) = slots
        g = g + group["weight_decay"] * p
        v *= group["momentum"]
        v += g
        p -= group["lr"] * (g + group["momentum"] * v if group["nesterov"] else v)


class AdamW(Optimizer):
    """Adam with decoupled weight decay; Kingma & Ba 2015 (arXiv 1412.6980), Loshchilov & Hutter 2019 (arXiv
    1711.05101).

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    p = p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) in the t-th update of p.
    """

    slots = 2

    def __init__(
        self, params: Params, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, xp: Any, group: dict, p: Array, g: Array, count: int, *slots: Array) -> None:
        m, v = slots
        b1, b2 = group["betas"]
        t = g - m
        t *= 1 - b1
        m += t
        xp.multiply(g, g, out=t)
        t -= v
        t *= 1 - b2
        v += t
        xp.sqrt(v, out=t)
        t *= 1 / math.sqrt(1 - b2**count)
        t += group["eps"]
        xp.divide(m, t, out=t)
        t *= group["lr"] / (1 - b1**count)
        if group["weight_decay"]:
            p *= 1 - group["lr"] * group["weight_decay"]
        p -= t


class WarmupCosine:
    """Learning-rate factor that rises linearly over `warmup` steps, then falls to `final` along half a cosine.

    Call `step()` after every `optimizer.step()`; the groups' learning rates at construction are the peak.
    """

    def __init__(self, optimizer: Any, total: int, warmup: int = 0, final: float = 0.0) -> None:
        counts = backend.is_number(total, 1, whole=True) and backend.is_number(warmup, 0, total, whole=True)
        if not counts or not backend.is_number(final, 0):
            raise ValueError(
                "the schedule needs whole numbers total >= 1 and 0 <= warmup <= total, and final >= 0,"
                f" not total={total}, warmup={warmup}, final={final}"
            )
        self.optimizer, self.total, self.warmup, self.final = optimizer, total, warmup, final
        self.peak = [g["lr"] for g in optimizer.param_groups]
        self.resume(0)

    def factor(self, step: int) -> float:
        """The factor for the update with number `step`, counted from 0."""
        return warmup_cosine(step, self.total, self.warmup, self.final)

    def step(self) -> None:
        self.resume(self.last + 1)

    def resume(self, last: int) -> None:
        """Set the learning rates for the update after the `last`-th."""
        self.last = last
        for group, peak in zip(self.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * self.factor(last)


def warmup_cosine(step: int, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """A factor that rises linearly to 1 over `warmup` steps, then falls to `final` along half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Any:
    """Scale all gradients by one factor so that their joint 2-norm is at most max_norm; returns the norm before.

    The norm is a number; on a GPU an array without axes, which nobody has to wait for.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be a number from 0, not {max_norm!r}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    learning = [p for p in parameters if p.grad is not None]
    for p in learning:
        # one set by hand, whose `*=` would make another Tensor
        p.grad = p.grad.data if isinstance(p.grad, Tensor) else p.grad
    grads: list[Array] = [p.grad for p in learning]
    squares = [(wide * wide).sum() for wide in map(widened, grads)]
    if not grads or backend.device_of(grads[0]) == "cpu":
        norm = math.sqrt(sum(map(float, squares)))
        if norm > max_norm:
            for g in grads:
                g *= max_norm / (norm + 1e-6)
        return norm
    xp = backend.array_module(*grads)
    norm = xp.sqrt(sum(square.astype("float64") for square in squares))
    factor = xp.where(norm > max_norm, max_norm / (norm + 1e-6), 1.0)
    for g in grads:
        g *= factor.astype(g.dtype)
    return norm


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for a model: weight decay for matrices; none for biases, norms, tokens and positions.

    The latent weights of low-bit layers, whose learning rate means something else, are a group of their own, with
    "low_bit" True.
    """
    bit_linear: list[Any] = [m for m in model.modules() if hasattr(m, "centre")]
    latent = {layer.weight for layer in bit_linear}
    low_bit: dict[str, Any] = {"params": [], "weight_decay": weight_decay, "low_bit": True}
    matrices: dict[str, Any] = {"params": [], "weight_decay": weight_decay}
    rest: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for p in model.parameters():
        (low_bit if p in latent else matrices if p.ndim == 2 else rest)["params"].append(p)
    return [low_bit, matrices, rest]
