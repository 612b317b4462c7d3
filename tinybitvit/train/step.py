"""One training step: forward, gradients, sum, update.

Each worker thread runs forward and backward on its shard of the batch (see `shards`), and the gradients are summed in a
fixed order: the same number of workers gives the same bits; another number changes the last digits.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from .. import autograd, backend
from .. import functional as F
from ..nn import Dropout, Module
from ..optim import Optimizer, clip_grad_norm
from ..tensor import Tensor
from .diverged import divergence
from .ranks import CHECK_EVERY, Group
from .shards import Threads

MOST_SKIPPED = 10  # updates in a row that 'skip' leaves out: after that no batch is to blame


def smoothing_floor(label_smoothing: float, classes: int) -> float:
    """The least cross-entropy that smoothed labels allow: their entropy, which a perfect network still pays."""
    other = label_smoothing / classes
    shares = [1 - label_smoothing + other, *[other] * (classes - 1)]
    return -sum(p * math.log(p) for p in shares if p > 0)


class Shard(NamedTuple):
    """The rows of a batch that one thread works on, and their share of the mean loss."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None
    share: float
    seed: int | None  # what its dropout starts from


class Trainer:
    """Trains a model in steps: `step(x, y) -> loss`; `predict(x) -> outputs`.

    model: a Module; optimizer: over its parameters (None for prediction alone); loss(output, y), or with a third
    argument weight, -> a Tensor with one number, the mean over rows. workers: number of threads, or 'auto' (one per
    core, but fewer where shards would be too small to pay). max_norm: clip the gradient to this 2-norm (None: not).
    rng: host Generator that feeds dropout. objective(model, x, y) -> (output, loss): for what needs more than the
    output, such as distillation, instead of `loss`. group: the ranks of MPI (a `ranks.Group`) among which each
    batch is shared out. on_nan: where the loss, or the gradient that max_norm measures, is not finite 'stop' with an
    error, or 'skip' the update, but not more than 10 in a row.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer | None = None,
        loss: Callable[..., Tensor] = F.cross_entropy,
        workers: int | str = "auto",
        max_norm: float | None = None,
        rng: np.random.Generator | int | None = None,
        group: Group | None = None,
        objective: Callable[..., tuple[Tensor, Tensor]] | None = None,
        on_nan: str = "stop",
    ):
        if on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan must be 'stop' or 'skip', not {on_nan!r}")
        if max_norm is not None:
            backend.check_number("max_norm", max_norm, 0)
        backend.keep_freed_memory()
        self.model, self.max_norm, self.group = model, max_norm, group
        self.optimizer: Any = optimizer
        self.loss, self.objective = loss, objective
        self.views = optimizer.gradient_views() if optimizer else {}
        self.params = [p for p in model.parameters() if p in self.views] if optimizer else []
        self.device = next((p.device for _, p in model.named_parameters()), "cpu")
        self.threads = Threads(workers, model, self.device, group.neighbours if group else 1)
        self.rng = backend.make_rng(rng)
        self.draws = bool(optimizer) and any(isinstance(m, Dropout) and m.p for m in model.modules())
        self.on_nan, self.skipped_in_a_row = on_nan, 0
        # Of the last step, one a shard: its part of the loss, and its outputs as a host array
        self.losses: list[float] = []
        self.outputs: list[np.ndarray] = []

    def step(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> float:
        """One update from a batch: x (N, ...), y (N, ...), weight (N,) or None; returns the (weighted) mean loss."""
        shards = self._cut(x, y, weight)
        with self.threads.limits(len(x)):
            found = self.threads.run(self._forward_and_gradients, [(shard,) for shard in shards])
        loss = self._sum_losses_and_gradients(found, shards, len(x))
        if self._is_finite(loss, shards) and self._is_finite(loss, shards, self._clip()):
            self._update()
        return loss

    def predict(
        self,
        x: np.ndarray,
        batch_size: int | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        check: bool = True,
    ) -> np.ndarray:
        """The model's outputs for x (N, ...) as one NumPy array, in evaluation mode, without recording a graph.

        batch_size: rows at a time (None: at most 256, as the memory for their attention allows). transform(rows): what
        the network gets for some of the rows, such as a normalisation. Raises ValueError where an output is not finite,
        unless `check` is False.
        """
        if batch_size is None:
            batch_size = self.threads.images_at_once
        backend.check_number("batch_size", batch_size, 1, whole=True)

        evaluating = self.model.evaluating()

        def work(rows):
            with evaluating, np.errstate(over="ignore", invalid="ignore"):
                return self._forward(rows if transform is None else transform(rows))

        parts: list[np.ndarray] = []
        for start in range(0, max(len(x), 1), batch_size):  # no rows: one empty batch, for an output of its shape
            batch = x[start : start + batch_size]
            with self.threads.limits(len(batch)):
                parts += self.threads.run(work, [(batch[rows],) for rows in self.threads.shards(len(batch), cost=1)])
        outputs = np.concatenate(parts)
        finite = np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))
        if check and not finite.all():
            raise ValueError(
                f"the output for image {finite.argmin()} is not finite: its pixels, or the weights of the network, are"
                " too large to compute with; give pixels like those of the training"
            )
        return outputs

    # --- inside -------------------------------------------------------------------------------------------------------

    def _cut(self, x, y, weight):
        """The shards of a batch, of this rank's rows where there are several."""
        self._check_batch(x, y, weight)
        total = len(x) if weight is None else float(weight.sum())
        if self.group is not None:
            mine = self.group.rows(len(x))
            x, y, weight = x[mine], y[mine], None if weight is None else weight[mine]
        rows, shards = self.threads.shards(len(x), cost=3), []
        for part, seed in zip(rows, self._seeds(len(rows)), strict=True):
            w = None if weight is None else weight[part]
            count = part.stop - part.start if w is None else float(w.sum())
            shards.append(Shard(x[part], y[part], w, count / total if total else 0.0, seed))
        return shards

    def _check_batch(self, x, y, weight):
        if len(x) != len(y) or not len(x):
            raise ValueError(f"step: x has {len(x)} rows and y {len(y)}; they must be equal and not 0")
        if weight is not None and len(weight) != len(x):
            raise ValueError(f"step: x has {len(x)} rows and weight {len(weight)}; they must be equal")
        if self.optimizer is None:
            raise RuntimeError("this Trainer was made without an optimizer: it can predict, but not step")

    def _seeds(self, count):
        """What the dropout of each shard starts from; all ranks draw alike from `rng`, but get other numbers."""
        if not self.draws:
            return [None] * count
        if self.group is None:
            return self.rng.integers(2**63, size=count)
        mine = self.rng.integers(2**63, size=self.group.size)[self.group.rank]
        return backend.make_rng(mine).integers(2**63, size=count)

    def _forward_and_gradients(self, shard):
        """The loss of a shard, its outputs, and {parameter: its part of the gradient} of those the loss depends on."""
        with backend.use_rng(shard.seed) if shard.seed is not None else nullcontext():
            if not shard.share:  # the weights of these rows are all 0, and so would be the divisor of their mean loss
                return np.zeros(()), self._forward(shard.x), {}
            x, y = self._to_tensor(shard.x), self._to_tensor(shard.y)
            weight = () if shard.weight is None else (self._to_tensor(shard.weight),)
            if self.objective is None:
                output = self.model(x)
                loss = self.loss(output, y, *weight)
            else:
                output, loss = self.objective(self.model, x, y, *weight)
        g = backend.array_module(loss.data).full_like(loss.data, shard.share)
        g = autograd.output_gradient(loss, g)
        return loss.data, output.data, autograd.backpropagate(loss.source, g, self.views)

    def _forward(self, x):
        with autograd.no_grad():
            return self.model(self._to_tensor(x)).numpy()

    def _to_tensor(self, array):
        return F.as_tensor(array).to(self.device)

    def _sum_losses_and_gradients(self, found, shards, n):
        """Sum what the shards gave, also over all ranks; returns the loss of the whole batch of n rows."""
        losses, outputs, grads = zip(*found, strict=True)
        self._sum(grads)
        # Losses and outputs come back together: each transfer from a GPU waits until all of its work is done
        fetched = backend.to_host([*losses, *outputs])
        self.losses = [float(a) * shard.share for a, shard in zip(fetched, shards, strict=False)]
        self.outputs = fetched[len(shards) :]
        loss = sum(self.losses)
        if self.group is not None:
            reached = np.array([p.grad is not None for p in self.params], np.float32)  # afterwards: on how many ranks
            sums = [*(b.grad for b in self.optimizer.buffers), reached]
            loss, self.outputs = self.group.sum_step(sums, loss, self.outputs, n)
            for p, ranks in zip(self.params, reached, strict=True):
                p.grad = self.views[p] if ranks else None
        return loss

    def _sum(self, shards):
        """Sum the shards' gradients, first to last, into the optimiser's buffer, as `.grad` of what a loss reached."""
        for p in self.params:
            total, parts = self.views[p], [found[p] for found in shards if p in found]
            if len(parts) > 1:
                backend.array_module(total).add(parts[0], parts[1], out=total)
            else:
                total[...] = parts[0] if parts else 0  # 0: what other ranks may add to
            for g in parts[2:]:
                total += g
            p.grad = total if parts else None

    def _clip(self):
        """Shorten the gradient to max_norm; returns its length before. 0 without max_norm, and on a GPU: no waiting."""
        norm = 0.0 if self.max_norm is None else clip_grad_norm(self.params, self.max_norm)
        return norm if isinstance(norm, float) else 0.0

    def _is_finite(self, loss, shards, norm=0.0):
        """Whether loss and gradient are finite: else the update is skipped, or FloatingPointError raised."""
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        self.skipped_in_a_row += 1
        self.optimizer.zero_grad()
        if self.on_nan == "stop" or self.skipped_in_a_row > MOST_SKIPPED:
            raise divergence(self, loss, shards)
        return False

    def _update(self):
        self.skipped_in_a_row = 0
        self.optimizer.step(self.threads.spread)
        self.optimizer.zero_grad()
        if self.group is not None and self.optimizer.steps % CHECK_EVERY == 0:
            self.group.check_equal([p.data for p in self.params])
