"""How a batch is cut into shards, and the threads that work on them.

The unit of parallelism is a shard of the batch, not an operation: each worker thread runs forward and backward on its
part with a single-threaded BLAS. Everything, not only the matrix products, then runs on all cores, on arrays small
enough to stay in the caches; NumPy lets go of the interpreter lock inside.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import pairwise, starmap
from typing import Any

from threadpoolctl import ThreadpoolController

from ..backend import is_number
from ..nn import Module
from ..optim import one_after_another

# A smaller shard costs more to hand to another thread than it saves (see docs/performance.md)
MIN_SHARD_FLOPS = 2e8
ATTENTION_BYTES = 2**27  # that the probabilities of one layer may take while a network is asked
MOST_IMAGES = 256  # in a batch of such questions


def cores() -> int:
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


def single_threaded_blas() -> AbstractContextManager[None]:
    """A context manager: within it BLAS uses one thread (in the whole process); restored afterwards."""
    return _blas


@contextmanager
def memory_advice(what: str) -> Iterator[None]:
    """For a block or a function: MemoryError says what there was too little memory for, and what to lower."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(
            f"not enough memory for {what} ({error or 'no size known'}):"
            " lower batch_size, or make the model smaller (dim, depth, mlp_ratio; a larger patch_size)"
        ) from error


def row_costs(model: Module) -> tuple[int, int]:
    """For one image, roughly: operations of a forward pass (two per weight of every linear layer and token), and bytes
    of the attention probabilities of one layer.
    """
    tokens, weights, heads = getattr(getattr(model, "embed", None), "tokens", 1), 0, 0
    for m in model.modules():
        weights += getattr(m, "in_features", 0) * getattr(m, "out_features", 0)
        heads = max(heads, getattr(m, "heads", 0))
    return 2 * tokens * weights, 4 * heads * tokens**2


def slices(n: int, count: int) -> list[slice]:
    """Slices of n elements, about equally long: at least one, at most `count` and at most n."""
    count = max(1, min(count, n))
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


class Threads:
    """The worker threads for one model.

    workers: their number, or 'auto': one per core, which `neighbours` processes share, but fewer where shards would be
    too small to pay; on a GPU one. Where no thread can start, one does the work of all, with the same bits.
    """

    def __init__(self, workers: int | str, model: Module, device: str, neighbours: int = 1):
        if workers != "auto" and not is_number(workers, 1, whole=True):
            raise ValueError(f"workers must be 'auto' or a number from 1, not {workers!r}")
        self.auto = workers == "auto"
        self.row_flops, attention = row_costs(model)
        self.images_at_once = max(1, min(MOST_IMAGES, ATTENTION_BYTES // max(attention, 1)))  # to ask the network about
        self.most = (max(1, cores() // neighbours) if device == "cpu" else 1) if self.auto else int(workers)

    @cached_property
    def pool(self) -> ThreadPoolExecutor | None:
        """The other threads; None where none can start."""
        pool = ThreadPoolExecutor(max_workers=self.most - 1, thread_name_prefix="tinybitvit")
        try:
            pool.submit(int)
        except RuntimeError:
            return None
        return pool

    def shards(self, n: int, cost: float) -> list[slice]:
        """Slices of n rows, one a worker. cost: of a row, in units of its forward pass."""
        count = min(self.most, int(cost * n * self.row_flops / MIN_SHARD_FLOPS)) if self.auto else self.most
        return slices(n, count)

    @contextmanager
    def limits(self, n: int) -> Iterator[None]:
        """While n images are computed: BLAS leaves the cores to these threads, and MemoryError says what to lower."""
        # One image cannot be shared out: where it is work enough, BLAS's own threads are the only help.
        alone = n == 1 and self.auto and self.row_flops > MIN_SHARD_FLOPS
        with nullcontext() if alone else single_threaded_blas(), memory_advice(f"{n} images at once"):
            yield

    def run(self, work: Callable, jobs: Sequence[tuple]) -> list[Any]:
        """work(*job) for all jobs, the last one on this thread, the others on the pool; results in order."""
        pool = self.pool if len(jobs) > 1 else None
        if pool is None:
            return list(starmap(work, jobs))
        futures = [pool.submit(work, *job) for job in jobs[:-1]]
        try:
            last = work(*jobs[-1])
        finally:
            for future in futures:
                future.exception()  # wait: no worker may run on when an error or Ctrl-C leaves this block
        return [*(future.result() for future in futures), last]

    def spread(self, work: Callable, items: list[tuple]) -> None:
        """work(*item) for all items, in any order, on all threads where there are enough items for that to pay."""
        parts = slices(len(items), min(self.most, len(items) // 2))
        self.run(one_after_another, [(work, items[part]) for part in parts])
