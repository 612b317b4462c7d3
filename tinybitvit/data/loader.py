"""Batches for training: shuffled, augmented, normalised, and prepared while the last one is being used."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..backend import is_number
from .transforms import Augment, augmented

Batch = tuple[np.ndarray, ...]


class Loader:
    """Iterate over (x, y), or (x, y, w) with ``sample_weight``, in batches; one pass is one epoch.

    X: (N, ...) and y: (N, ...) host arrays; batches are copies. The last one may be smaller unless ``drop_last``.
    ``augment(x, rng)``, then ``transform(x)``, is applied to every batch. A background thread keeps ``prefetch``
    batches ready (0: none); an error in it is raised where the batch would have come out.

    Each epoch takes one draw from ``rng`` (a Generator, or a seed) when iteration starts and feeds everything random
    from it: the batches do not depend on ``prefetch``, nor on what else draws from ``rng`` meanwhile.
    """

    def __init__(
        self,
        X: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = True,
        rng: np.random.Generator | int | None = None,
        augment: Augment | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        sample_weight: np.ndarray | None = None,
        drop_last: bool = False,
        prefetch: int = 1,
    ):
        self.arrays = [np.asarray(array) for array in (X, y, sample_weight) if array is not None]
        lengths = [len(array) for array in self.arrays]
        if len(set(lengths)) > 1:
            raise ValueError(f"X, y and sample_weight must have the same length, got {lengths}")
        if not is_number(batch_size, 1, whole=True) or not is_number(prefetch, 0, whole=True):
            raise ValueError(
                f"batch_size must be at least 1 and prefetch 0, both whole, got {batch_size!r} and {prefetch!r}"
            )
        self.batch_size, self.shuffle, self.drop_last, self.prefetch = batch_size, shuffle, drop_last, prefetch
        self.rng = np.random.default_rng(rng)
        self.augment, self.transform = augment, transform
        if len(self) == 0:
            raise ValueError(f"{lengths[0]} images give no batch of {batch_size}: add images or lower batch_size")

    def __len__(self) -> int:
        """Number of batches."""
        n = len(self.arrays[0])
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches(np.random.default_rng(self.rng.integers(2**63)))
        return _ahead(batches, self.prefetch) if self.prefetch else batches

    def _batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        n = len(self.arrays[0])
        order = rng.permutation(n) if self.shuffle else np.arange(n)
        for i in range(len(self)):
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            x, *rest = (array[chosen] for array in self.arrays)
            if self.augment is not None:
                x = augmented(x, self.augment, rng)
            if self.transform is not None:
                x = self.transform(x)
            yield (x, *rest)


def _ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Yield from ``batches`` while one thread prepares the next ``count``; it ends with this generator."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="tinybitvit-loader")
    try:
        pending = deque(pool.submit(next, batches, None) for _ in range(count))
    except RuntimeError:  # no thread can start here
        yield from batches
        return
    try:
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
