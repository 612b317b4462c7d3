"""Rounding a trained network layer by layer, without a label and without a single update."""

from contextlib import ExitStack

import numpy as np

from ... import autograd, backend
from ... import functional as F
from ...autograd import no_grad
from .descent import best_weight, round_weight
from .objectives import LEAST_CHANGE

CHUNK = 256  # images at a time
BATCH = 64  # images in a forward and backward pass
TEMPERATURE = 2.0  # as in `objectives.Distill`


def device_of(network):
    """Where the parameters of a network are."""
    return network.parameters()[0].device


def block_layers(block):
    """The four linear layers of a block, in the order in which it uses them."""
    return block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2


def output_metrics(teacher, batches, rng, hidden=1.0):
    """M = E[d d^T] of `train.descent` for every linear layer of the teacher's blocks, in units of its mean diagonal.

    d: gradients at the layer's outputs of what `objectives.Distill` measures. Its Hessian, to the first order in the
    errors, is the covariance of gradients whose targets are drawn from the teacher's own outputs: classes from
    softmax(logits / T), and tokens with normal noise (Martens 2014, arXiv 1412.1193). batches: of normalised images.
    """
    layers = [layer for block in teacher.blocks for layer in block_layers(block)]
    sums, outputs = [np.zeros((layer.out_features,) * 2) for layer in layers], []
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(lambda *call: outputs.append(call[2])))
        for x in batches:
            outputs.clear()
            loss = drawn_loss(teacher, x, rng, hidden)
            for total, g in zip(sums, autograd.grad(loss, outputs), strict=True):
                d = backend.to_numpy(g).reshape(-1, g.shape[-1])
                total += d.T @ d
    return [total / max(np.diag(total).mean(), 1e-30) for total in sums]


def drawn_loss(teacher, x, rng, hidden):
    """A number whose gradients, batch for batch, have the covariance that is the Hessian of Distill's mean loss."""
    h, loss = teacher.tokens(F.as_tensor(x).to(device_of(teacher))), 0.0
    for block in teacher.blocks:
        after = block(h)
        # a block that does nothing has no error in units of what it does
        change = max(float(((after - h).data ** 2).mean()), LEAST_CHANGE * float((h.data**2).mean()), 1e-30)
        noise = rng.standard_normal(h.shape) * (2 * hidden / (len(teacher.blocks) * change * h.size)) ** 0.5
        loss = loss + (after * F.as_tensor(noise.astype(h.dtype)).to(h.device)).sum()
        h = after
    logits = teacher.classify(teacher.norm(h)) * (1 / TEMPERATURE)
    classes = draw(F.softmax(logits).numpy(), rng)
    drawn = F.cross_entropy(logits, F.as_tensor(classes).to(h.device))
    return loss + drawn * (TEMPERATURE * len(classes) ** 0.5)  # a mean of N gradients has an N-th of their variance


def draw(p, rng):
    """One class for every row of probabilities (N, classes)."""
    return (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(0, p.shape[1] - 1)


class Moments:
    """E[x], E[y], and the covariances of inputs x with themselves and with outputs y, collected chunk by chunk."""

    def __init__(self):
        self.count, self.sums = 0, [0.0] * 4

    def add(self, x, y):
        """x (..., k), y (..., m): Tensors."""
        x, y = (a.numpy().reshape(-1, a.shape[-1]) for a in (x, y))
        self.count += len(x)
        for i, part in enumerate((x.sum(axis=0), y.sum(axis=0), x.T @ x, y.T @ x)):
            self.sums[i] = self.sums[i] + part.astype(np.float64)

    def centred(self):
        """mean x (k,), mean y (m,), covariance of x (k, k), covariance of y and x (m, k)."""
        x, y, xx, yx = (total / self.count for total in self.sums)
        return x, y, xx - np.outer(x, x), yx - np.outer(y, x)


class LayerByLayer:
    """Rounds every low-bit layer of a student that holds the teacher's weights, from the first to the last.

    x (N, H, W, C): normalised images. Each layer is fitted to the inputs that it will get, those of the student so far,
    and to the outputs of the teacher; proj and fc2, which write to the tokens, to what makes the tokens the teacher's
    again, so that the errors of earlier layers are made good, not handed on. `costs` collects what every layer lost.
    checkpoints: a `Checkpoints`, which saves the student after every block and from whose newest the rounding goes on.
    """

    def __init__(self, student, teacher, x, metrics, rng, damping=(0.003, 0.05), checkpoints=None):
        self.student, self.teacher, self.rng, self.damping = student, teacher, rng, damping
        self.metrics, self.costs, self.checkpoints = metrics, [], checkpoints
        if checkpoints is not None:
            checkpoints.restore(self)
        device = device_of(teacher)
        chunks = [F.as_tensor(x[start : start + CHUNK]).to(device) for start in range(0, len(x), CHUNK)]
        with no_grad(), student.evaluating(), teacher.evaluating():
            self.theirs, self.mine = ([through(net, c, self.updates) for c in chunks] for net in (teacher, student))

    @property
    def updates(self):
        """How many blocks are rounded."""
        return len(self.costs) // 4

    def run(self, tell=lambda line: None):
        """Round the blocks that are left; tell(line) hears of every one."""
        with no_grad(), self.student.evaluating(), self.teacher.evaluating():
            for block, theirs in list(zip(self.student.blocks, self.teacher.blocks, strict=True))[self.updates :]:
                self._attention(block, theirs)
                self._mlp(block, theirs)
                if self.checkpoints is not None:
                    self.checkpoints.save(self)
                found = ", ".join(f"{cost:.3f}" for cost in self.costs[-4:])
                tell(f"block {self.updates}/{len(self.student.blocks)}  lost in qkv, proj, fc1, fc2: {found}")

    def state(self):
        """(arrays, metadata) from which `restore` goes on."""
        arrays = {name: backend.to_numpy(a) for name, a in self.student.state_dict().items()}
        return arrays, {"costs": self.costs, "rng": self.rng.bit_generator.state}

    def restore(self, arrays, info):
        """Go back to where `state` was asked."""
        self.student.load_state_dict(arrays)
        self.costs, self.rng.bit_generator.state = info["costs"], info["rng"]

    def _attention(self, block, theirs):
        normed = [block.norm1(m) for m in self.mine]
        self._round(block.attn.qkv, normed, (theirs.attn.qkv(theirs.norm1(h)) for h in self.theirs))
        self.theirs = [h + theirs.attention_branch(h) for h in self.theirs]
        inputs = [F.multi_head_attention(block.attn.qkv(m), block.attn.heads) for m in normed]
        self._write(block.attn.proj, inputs, block.ls1)

    def _mlp(self, block, theirs):
        normed = [block.norm2(m) for m in self.mine]
        self._round(block.mlp.fc1, normed, (theirs.mlp.fc1(theirs.norm2(h)) for h in self.theirs))
        self.theirs = [h + theirs.mlp_branch(h) for h in self.theirs]
        self._write(block.mlp.fc2, [block.mlp.act(block.mlp.fc1(m)) for m in normed], block.ls2)

    def _write(self, layer, inputs, scale):
        """Round a layer whose outputs, times a LayerScale (or None), are added to the tokens, and add them."""
        self._round(layer, inputs, self._missing(scale))
        for i, x in enumerate(inputs):
            y = layer(x)
            self.mine[i] = self.mine[i] + (y if scale is None else scale(y))

    def _missing(self, scale):
        """Chunk by chunk, what a layer before a LayerScale (or None) must give to make the tokens the teacher's."""
        factor = 1.0
        if scale is not None:
            gamma = scale.gamma.numpy()
            factor = F.as_tensor(1 / np.where(gamma == 0, gamma.dtype.type(1), gamma)).to(scale.gamma.device)
        return ((h - m) * factor for h, m in zip(self.theirs, self.mine, strict=True))

    def _round(self, layer, inputs, targets):
        """inputs, targets: what the layer gets from the student's tokens, and what it should give, chunk by chunk."""
        moments = Moments()
        for x, target in zip(inputs, targets, strict=True):
            moments.add(layer.quantize_input(x if layer.norm is None else layer.norm(x)), target)
        self.costs.append(round_layer(layer, moments, self.metrics[len(self.costs)], self.damping, self.rng))


def through(network, x, blocks):
    """The tokens of images x behind so many blocks."""
    h = network.tokens(x)
    for block in network.blocks[:blocks]:
        h = block(h)
    return h


def round_layer(layer, moments, metric, damping, rng):
    """Give a BitLinear the codes, scales and bias that do best what `moments` says; returns its relative cost.

    The bias takes the mean error, so only covariances count. damping: of the inputs' covariance and of the metric, in
    units of their mean diagonals.
    """
    mean_x, mean_y, second, cross = moments.centred()
    second, metric = (damped(a, d) for a, d in zip((second, metric), damping, strict=True))
    weight = best_weight(second, cross, layer.weight.numpy().astype(np.float64))
    codes, scale, cost = round_weight(weight, second, metric, layer.quantizer, rng=rng)
    layer.centre(*(on_device(layer, a) for a in (codes, scale)))
    if layer.bias is not None:
        layer.bias.data[...] = on_device(layer, mean_y - (codes * scale) @ mean_x)
    return cost


def damped(a, share):
    """a + share x its mean diagonal, or a tiny one where a is 0, on the diagonal; more until it is positive definite.

    A covariance need not be so: of inputs that hardly vary, rounding alone is left of a difference of squares.
    """
    ridge, one = max(share * np.diag(a).mean(), 1e-12), np.eye(len(a))
    while np.isfinite(a).all() and not positive_definite(a + ridge / 2 * one):
        ridge *= 10
    return a + ridge * one


def positive_definite(a):
    """Whether a symmetric matrix has positive eigenvalues only."""
    try:
        np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        return False
    return True


def on_device(layer, array):
    """A host array as one of the layer's kind, where the layer is."""
    return backend.to_device(array.astype(layer.weight.dtype), layer.weight.device)
