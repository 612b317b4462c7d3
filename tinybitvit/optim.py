"""Optimisers, learning-rate schedule, gradient clipping.

An optimiser keeps the parameters of a group in one flat buffer (each Parameter's `data` becomes a view into it), so
that an update is a handful of vector operations instead of a handful per parameter. Long buffers are updated in
stretches that stay in the cache and that threads can share out among themselves.
"""

import math
from functools import partial

from . import backend

# Elements: weights, gradient, two moments and a result between them take 1.3 MB as float32. Much shorter stretches make
# threads wait for the interpreter lock more than they compute.
CHUNK = 65536


class FlatBuffer:
    """The parameters of one group side by side, with their gradients and the optimiser's arrays of the same length."""

    def __init__(self, params, slots):
        self.params = params
        self.build(slots)

    def build(self, slots):
        xp = backend.array_module(*(p.data for p in self.params))
        size, dtype = sum(p.size for p in self.params), self.params[0].dtype
        if any(p.dtype != dtype for p in self.params):
            raise ValueError("the parameters of one group must have one dtype")
        self.data, self.grad = xp.empty(size, dtype), xp.zeros(size, dtype)
        self.slots = [xp.zeros(size, dtype) for _ in range(slots)]
        self.spans, start = [], 0
        for p in self.params:
            self.spans.append(slice(start, start + p.size))
            start += p.size
        self.views = [self.data[s].reshape(p.shape) for p, s in zip(self.params, self.spans, strict=True)]
        self.grad_views = [self.grad[s].reshape(p.shape) for p, s in zip(self.params, self.spans, strict=True)]
        self.attach()

    def attach(self):
        """Make every Parameter's data a view of the buffer again where somebody replaced it."""
        for p, view in zip(self.params, self.views, strict=True):
            if p.data is not view:
                view[...] = p.data
                p.data = view

    def gather(self):
        """Bring all gradients into the buffer; returns the spans to update: those of parameters with a gradient."""
        self.attach()
        spans = []
        for p, view, span in zip(self.params, self.grad_views, self.spans, strict=True):
            if p.grad is None:
                continue
            if p.grad is not view:
                view[...] = p.grad
            if spans and spans[-1].stop == span.start:
                spans[-1] = slice(spans[-1].start, span.stop)
            else:
                spans.append(span)
        return spans

    def chunks(self, spans):
        """(data, grad, *slots) stretches of at most CHUNK elements; on a GPU, which has no such cache, whole spans."""
        arrays = (self.data, self.grad, *self.slots)
        size = CHUNK if backend.device_of(self.data) == "cpu" else self.data.size
        for span in spans:
            for start in range(span.start, span.stop, size):
                stretch = slice(start, min(start + size, span.stop))
                yield [a[stretch] for a in arrays]


def one_after_another(work, items):
    """work(*item) for all items, on this thread."""
    for item in items:
        work(*item)


class Optimizer:
    """What the optimisers share: parameter groups, `zero_grad`, `step`, state.

    params: Parameters, or dicts {"params": [...], "lr": ..., "weight_decay": ...} whose values override the defaults.
    `param_groups` are those dicts; a schedule changes their "lr". A Parameter without a gradient is left as it is.
    """

    slots = 0

    def __init__(self, params, **defaults):
        params = list(params)
        if not params:
            raise ValueError("the optimiser got no parameters")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        groups = [{**defaults, **g, "params": list(g["params"])} for g in groups]
        self.param_groups = [g for g in groups if g["params"]]
        self.buffers = [FlatBuffer(g["params"], self.slots) for g in self.param_groups]
        self.steps = 0

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, spread=one_after_another):
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
            spread(partial(self.update, xp, group), list(buffer.chunks(buffer.gather())))

    def update(self, xp, group, p, g, *slots):
        """Change the stretch p in place, given its gradient g."""
        raise NotImplementedError

    def gradient_views(self):
        """Parameter -> its stretch of the flat gradient buffer: what is written there, `step` need not copy."""
        return {p: v for b in self.buffers for p, v in zip(b.params, b.grad_views, strict=True)}

    def state_dict(self):
        """Plain values and copies of the optimiser's arrays, by name."""
        arrays = {f"{i}.{j}": s.copy() for i, b in enumerate(self.buffers) for j, s in enumerate(b.slots)}
        return {"steps": self.steps, "lr": [g["lr"] for g in self.param_groups], "arrays": arrays}

    def load_state_dict(self, state):
        """Take over what `state_dict` gave, into an optimiser over the same parameters."""
        mine = {f"{i}.{j}": s for i, b in enumerate(self.buffers) for j, s in enumerate(b.slots)}
        if mine.keys() != state["arrays"].keys() or any(a.shape != state["arrays"][k].shape for k, a in mine.items()):
            raise ValueError("load_state_dict: the state belongs to an optimiser over other parameters")
        for name, array in mine.items():
            array[...] = backend.to_device(state["arrays"][name], backend.device_of(array))
        self.steps = int(state["steps"])
        for group, lr in zip(self.param_groups, state["lr"], strict=True):
            group["lr"] = float(lr)


class SGD(Optimizer):
    """v = momentum v + (g + weight_decay p);  p -= lr v, or p -= lr (g + momentum v) with nesterov."""

    slots = 1

    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0, nesterov=False):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def update(self, xp, group, p, g, v):
        g = g + group["weight_decay"] * p
        v *= group["momentum"]
        v += g
        p -= group["lr"] * (g + group["momentum"] * v if group["nesterov"] else v)


class AdamW(Optimizer):
    """Adam with decoupled weight decay; Kingma & Ba 2015 (arXiv 1412.6980), Loshchilov & Hutter 2019 (arXiv
    1711.05101).

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    p = p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
    """

    slots = 2

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, xp, group, p, g, m, v):
        b1, b2 = group["betas"]
        t = g - m
        t *= 1 - b1
        m += t
        xp.multiply(g, g, out=t)
        t -= v
        t *= 1 - b2
        v += t
        xp.sqrt(v, out=t)
        t *= 1 / math.sqrt(1 - b2**self.steps)
        t += group["eps"]
        xp.divide(m, t, out=t)
        t *= group["lr"] / (1 - b1**self.steps)
        if group["weight_decay"]:
            p *= 1 - group["lr"] * group["weight_decay"]
        p -= t


class WarmupCosine:
    """Learning-rate factor that rises linearly over `warmup` steps, then falls to `final` along half a cosine.

    Call `step()` after every `optimizer.step()`; the groups' learning rates at construction are the peak.
    """

    def __init__(self, optimizer, total, warmup=0, final=0.0):
        if total < 1 or not 0 <= warmup <= total:
            raise ValueError(
                f"the schedule needs total >= 1 and 0 <= warmup <= total, not total={total}, warmup={warmup}"
            )
        self.optimizer, self.total, self.warmup, self.final = optimizer, total, warmup, final
        self.peak = [g["lr"] for g in optimizer.param_groups]
        self.resume(0)

    def factor(self, step):
        """The factor for the update with number `step`, counted from 0."""
        return warmup_cosine(step, self.total, self.warmup, self.final)

    def step(self):
        self.resume(self.last + 1)

    def resume(self, last):
        """Set the learning rates for the update after the `last`-th."""
        self.last = last
        for group, peak in zip(self.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * self.factor(last)


def warmup_cosine(step, total, warmup=0, final=0.0):
    """A factor that rises linearly to 1 over `warmup` steps, then falls to `final` along half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def clip_grad_norm(parameters, max_norm):
    """Scale all gradients by one factor so that their joint 2-norm is at most max_norm; returns the norm before.

    The norm is a number; on a GPU an array without axes, which nobody has to wait for.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    squares = [(g * g).sum() for g in grads]
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


def decay_groups(model, weight_decay):
    """Parameter groups for a model: weight decay for matrices; none for biases, norms, tokens and positions.

    The latent weights of low-bit layers, whose learning rate means something else, are a group of their own, with
    "low_bit" True.
    """
    latent = {m.weight for m in model.modules() if hasattr(m, "centre")}  # the BitLinear layers
    low_bit = {"params": [], "weight_decay": weight_decay, "low_bit": True}
    matrices = {"params": [], "weight_decay": weight_decay}
    rest = {"params": [], "weight_decay": 0.0}
    for p in model.parameters():
        (low_bit if p in latent else matrices if p.ndim == 2 else rest)["params"].append(p)
    return [low_bit, matrices, rest]
