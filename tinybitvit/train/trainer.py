"""One training step, on one or several worker threads.

The unit of parallelism is a shard of the batch, not an operation: each worker thread runs forward and backward on its
part with a single-threaded BLAS, and the gradients are summed in a fixed order. Everything, not only the matrix
products, then runs on all cores, on arrays small enough to stay in the caches; NumPy lets go of the interpreter lock
inside.
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
from threadpoolctl import ThreadpoolController

from .. import autograd, backend
from .. import functional as F
from ..nn import Dropout
from ..ops.loss import check_classes
from ..optim import clip_grad_norm, one_after_another
from .convert.objectives import Labels
from .ranks import CHECK_EVERY

# A smaller shard costs more to hand to another thread than it saves (see docs/performance.md)
MIN_SHARD_FLOPS = 2e8
MOST_SKIPPED = 10  # updates in a row that 'skip' leaves out: after that no batch is to blame


def cores():
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _SingleThreadedBlas:
    """BLAS has one setting for the whole process: the first to come in changes it, the last to leave restores it.

    Since threadpoolctl 3.8 OpenBLAS obeys one thread only, the first that sets it, until that thread lets go. Here the
    last to leave may be another one, so every change takes the control over and gives it up again.
    """

    def __init__(self):
        self.lock, self.users, self.controller, self.limiter = threading.Lock(), 0, None, None

    def __enter__(self):
        with self.lock:
            if not self.users:
                self.controller = self.controller or ThreadpoolController()
                self._let_go()
                self.limiter = self.controller.limit(limits=1, user_api="blas")
                self._let_go()
            self.users += 1

    def __exit__(self, *error):
        with self.lock:
            self.users -= 1
            if not self.users:
                self._let_go()
                self.limiter.restore_original_limits()
                self._let_go()

    def _let_go(self):
        for library in self.controller.lib_controllers:
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)


_blas = _SingleThreadedBlas()


def single_threaded_blas():
    """A context manager: within it BLAS uses one thread (in the whole process); restored afterwards."""
    return _blas


def row_flops(model):
    """A rough count of the forward operations for one image: two per weight of every linear layer and token."""
    tokens = getattr(getattr(model, "embed", None), "tokens", 1)
    return 2 * tokens * sum(getattr(m, "in_features", 0) * getattr(m, "out_features", 0) for m in model.modules())


@contextmanager
def memory_advice(what):
    """For a block or a function: MemoryError says what there was too little memory for, and what to lower."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(
            f"not enough memory for {what} ({error or 'no size known'}):"
            " lower batch_size, or make the model smaller (dim, depth, mlp_ratio; a larger patch_size)"
        ) from error


class Trainer:
    """Trains a model in steps: `step(x, y) -> loss`; `predict(x) -> outputs`.

    model: a Module; optimizer: over its parameters (None for prediction alone); loss(output, y), or with a third
    argument weight, -> a Tensor with one number, the mean over rows. workers: number of threads, or 'auto' (one per
    core, but fewer where shards would be too small to pay). max_norm: clip the gradient to this 2-norm (None: not).
    rng: host Generator that feeds dropout. objective(model, x, y) -> (output, loss): for what needs more than the
    output, such as distillation, instead of `loss`. group: the ranks of MPI (a `ranks.Group`) among which each
    batch is shared out. on_nan: where the loss is not finite 'stop' with an error, or 'skip' the update, but not more
    than 10 in a row. The same number of workers gives the same bits; another number changes the last digits.
    """

    def __init__(
        self,
        model,
        optimizer=None,
        loss=F.cross_entropy,
        workers="auto",
        max_norm=None,
        rng=None,
        group=None,
        objective=None,
        on_nan="stop",
    ):
        if on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan must be 'stop' or 'skip', not {on_nan!r}")
        if workers != "auto" and (not isinstance(workers, int) or workers < 1):
            raise ValueError(f"workers must be 'auto' or a number from 1, not {workers!r}")
        self.model, self.optimizer, self.max_norm = model, optimizer, max_norm
        self.objective = objective or Labels(loss)
        backend.keep_freed_memory()
        self.views = optimizer.gradient_views() if optimizer else {}
        self.params = [p for p in model.parameters() if optimizer is None or p in self.views]
        self.row_flops = row_flops(model)
        self.group = group
        self.device = self.params[0].device if self.params else "cpu"
        self.workers = workers
        self.rng = backend.make_rng(rng)
        self.draws = any(isinstance(m, Dropout) and m.p for m in model.modules())
        self.on_nan, self.skipped_in_a_row = on_nan, 0
        self.outputs = []  # of the last step, one host array a shard
        self.pool = None

    def step(self, x, y, weight=None):
        """One update from a batch: x (N, ...), y (N, ...), weight (N,) or None; returns the (weighted) mean loss."""
        self._check_batch(x, y, weight)
        total = len(x) if weight is None else float(weight.sum())
        n = len(x)
        if self.group is not None:
            mine = self.group.rows(len(x))
            x, y, weight = x[mine], y[mine], None if weight is None else weight[mine]
        shards = self._shards(len(x), cost=3)
        seeds = self._seeds(len(shards))
        counts = [rows.stop - rows.start if weight is None else float(weight[rows].sum()) for rows in shards]
        shares = [count / total if total else 0.0 for count in counts]

        def work(rows, seed, share):
            return self._gradients(x[rows], y[rows], None if weight is None else weight[rows], share, seed)

        losses, outputs, grads = zip(*self._run(work, shards, seeds, shares), strict=True)
        self._sum(grads)
        # Losses and outputs come back together: each transfer from a GPU waits until all of its work is done
        fetched = backend.to_host([*losses, *outputs])
        parts, self.outputs = [float(a) * s for a, s in zip(fetched, shares, strict=False)], fetched[len(shards) :]
        loss = sum(parts) if self.group is None else self._sum_over_ranks(sum(parts), n)
        self.skipped_in_a_row = 0 if math.isfinite(loss) else self.skipped_in_a_row + 1
        if self.skipped_in_a_row:
            self.optimizer.zero_grad()
            if self.on_nan == "stop" or self.skipped_in_a_row > MOST_SKIPPED:
                raise self._diverged(loss, x, y, shards, seeds, parts)
            return loss
        if self.max_norm is not None:
            clip_grad_norm(self.params, self.max_norm)
        self.optimizer.step(self._spread)
        self.optimizer.zero_grad()
        if self.group is not None and self.optimizer.steps % CHECK_EVERY == 0:
            self.group.check_equal([p.data for p in self.params])
        return loss

    def predict(self, x, batch_size=256):
        """The model's outputs for x (N, ...) as one NumPy array, in evaluation mode, without recording a graph."""
        parts = []
        with self.model.evaluating():
            for start in range(0, max(len(x), 1), batch_size):  # no rows: one empty batch, for an output of its shape
                batch = x[start : start + batch_size]
                shards = self._shards(len(batch), cost=1)
                parts += self._run(lambda rows, batch=batch: self._forward(batch[rows]), shards)
        return np.concatenate(parts)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check_batch(self, x, y, weight):
        if len(x) != len(y) or not len(x):
            raise ValueError(f"step: x has {len(x)} rows and y {len(y)}; they must be equal and not 0")
        if weight is not None and len(weight) != len(x):
            raise ValueError(f"step: x has {len(x)} rows and weight {len(weight)}; they must be equal")
        if self.optimizer is None:
            raise RuntimeError("this Trainer was made without an optimizer: it can predict, but not step")

    def _gradients(self, x, y, weight, share, seed):
        with backend.use_rng(seed) if seed is not None else nullcontext():
            if not share:  # the weights of these rows are all 0, and so would be the divisor of their mean loss
                zeros = [backend.array_module(p.data).zeros_like(p.data) for p in self.params]
                return np.zeros(()), self._forward(x), zeros
            extra = () if weight is None else (self._to_tensor(weight),)
            output, loss = self.objective(self.model, self._to_tensor(x), self._to_tensor(y), *extra)
        g = backend.array_module(loss.data).full_like(loss.data, share)
        return loss.data, output.data, autograd.grad(loss, self.params, g)

    def _seeds(self, count):
        """What the dropout of each shard starts from; all ranks draw alike from `rng`, but get other numbers."""
        if not self.draws:
            return [None] * count
        if self.group is None:
            return self.rng.integers(2**63, size=count)
        mine = self.rng.integers(2**63, size=self.group.size)[self.group.rank]
        return backend.make_rng(mine).integers(2**63, size=count)

    def _sum_over_ranks(self, loss, n):
        """Sum gradients and loss, and put the ranks' outputs together, n rows in all; returns the loss."""
        mine = np.concatenate(self.outputs)
        outputs, total = np.zeros((n, *mine.shape[1:]), mine.dtype), np.array([loss], mine.dtype)
        outputs[self.group.rows(n)] = mine
        self.group.sum([*(buffer.grad for buffer in self.optimizer.buffers), outputs, total])
        self.outputs = [outputs]
        return float(total[0])

    def _diverged(self, loss, x, y, shards, seeds, parts):
        """The error that ends the training, naming the first layer whose output is not finite."""
        if self.device != "cpu" and y.ndim == 1 and y.dtype.kind in "iu":
            check_classes(y, self.outputs[0].shape[-1])  # which no operation on a GPU looks at
        layer = "the sum over the batch" if self.group is None else "the rows of another rank"
        for rows, seed, part in zip(shards, seeds, parts, strict=True):
            if not math.isfinite(part):
                layer = self._not_finite(x[rows], seed)
                break
        return FloatingPointError(
            f"the loss became {loss} at update {self.optimizer.steps + 1}, first in {layer}; the weights are as before:"
            " lower the learning rate, lengthen the warm-up, or look for extreme values in the input"
        )

    def _not_finite(self, x, seed):
        """The first layer whose output for x is not finite, found by running the model once more."""
        names = []

        def look(name, module, inputs, output):
            if not names and not bool(backend.array_module(output.data).isfinite(output.data).all()):
                names.append(name or "the last operation")

        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.enter_context(module.register_forward_hook(partial(look, name)))
            stack.enter_context(backend.use_rng(seed))
            stack.enter_context(np.errstate(all="ignore"))
            self._forward(x)
        return names[0] if names else "the loss function"

    def _forward(self, x):
        with autograd.no_grad():
            return self.model(self._to_tensor(x)).numpy()

    def _to_tensor(self, array):
        return F.as_tensor(array).to(self.device)

    def _sum(self, shards):
        """Sum the shards' gradients, first to last, into the optimiser's buffer, as the parameters' `.grad`."""
        for p, first, *others in zip(self.params, *shards, strict=True):
            total = self.views[p]
            if others:
                backend.array_module(total).add(first, others[0], out=total)
            else:
                total[...] = first
            for g in others[1:]:
                total += g
            p.grad = total

    def _threads(self):
        """The most threads that a step may use."""
        if self.workers != "auto":
            return self.workers
        here = 1 if self.group is None else self.group.neighbours
        return max(1, cores() // here) if self.device == "cpu" else 1

    def _shards(self, n, cost):
        """Slices of n rows, one a worker."""
        count = self._threads()
        if self.workers == "auto":
            count = min(count, int(cost * n * self.row_flops / MIN_SHARD_FLOPS))
        return slices(n, count)

    def _run(self, work, shards, *columns):
        """work(shard, ...) for every shard, each on a thread; results in order."""
        # One image cannot be shared out: where it is work enough, BLAS's own threads are the only help.
        alone = shards[-1].stop == 1 and self.workers == "auto" and self.row_flops > MIN_SHARD_FLOPS
        threads = nullcontext() if alone else single_threaded_blas()
        with threads, memory_advice(f"{shards[-1].stop} images at once"):
            return self._on_threads(work, list(zip(shards, *columns, strict=True)))

    def _spread(self, work, items):
        """work(*item) for all items, in any order, on all threads where there are enough items for that to pay."""
        parts = slices(len(items), min(self._threads(), len(items) // 2))
        self._on_threads(one_after_another, [(work, items[part]) for part in parts])

    def _on_threads(self, work, jobs):
        """work(*job) for all jobs, the last one on this thread, the others on the pool; results in order."""
        if self.pool is None and len(jobs) > 1:
            self.pool = ThreadPoolExecutor(max_workers=self._threads() - 1, thread_name_prefix="tinybitvit")
        futures = [self.pool.submit(work, *job) for job in jobs[:-1]]
        try:
            last = work(*jobs[-1])
        finally:
            for future in futures:
                future.exception()  # wait: no worker may run on when an error or Ctrl-C leaves this block
        return [*(future.result() for future in futures), last]


def slices(n, count):
    """Slices of n elements, about equally long: at least one, at most `count` and at most n."""
    count = max(1, min(count, n))
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
