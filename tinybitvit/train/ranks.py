"""Data-parallel training on MPI: every rank holds the whole model and takes its rows of each batch.

    mpiexec -n 4 python -m mpi4py -m tinybitvit train cifar10

All ranks run the same program on the same data from the same seed and so draw the same batches: what is learnt depends,
up to rounding, on the batch size and not on the number of ranks. A step costs one Allreduce of one flat array. Without
`-m mpi4py` a rank that fails would leave the others waiting for it for ever.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np

from .. import backend

CHECK_EVERY = 100  # updates between two comparisons of all ranks' weights


class Group:
    """The ranks that train one model together, of an MPI communicator; rank 0 prints and writes files."""

    def __init__(self, comm: Any):
        from mpi4py import MPI

        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.in_place, self.neighbours = MPI.IN_PLACE, comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size()

    def rows(self, n: int) -> slice:
        """This rank's share of n rows, as a slice."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, arrays: Sequence[Any]) -> None:
        """Replace each array by its sum over all ranks: one Allreduce, by way of a host buffer."""
        flat = np.concatenate([backend.to_numpy(a).ravel() for a in arrays])
        self.comm.Allreduce(self.in_place, flat)
        start = 0
        for a in arrays:
            a[...] = backend.to_device(flat[start : start + a.size].reshape(a.shape), backend.device_of(a))
            start += a.size

    def sum_step(
        self, gradients: Sequence[Any], loss: float, outputs: Sequence[np.ndarray], n: int
    ) -> tuple[float, list[np.ndarray]]:
        """Sum gradients, in place, and losses; returns the loss, and the outputs of all ranks, n rows in all."""
        mine = np.concatenate(outputs)
        whole, total = np.zeros((n, *mine.shape[1:]), mine.dtype), np.array([loss], mine.dtype)
        whole[self.rows(n)] = mine
        self.sum([*gradients, whole, total])
        return float(total[0]), [whole]

    def first(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        return self.comm.bcast(value)

    def check_equal(self, arrays: Sequence[Any]) -> None:
        """RuntimeError unless all ranks hold the same bits."""
        total = hashlib.sha256()
        for a in arrays:
            total.update(np.ascontiguousarray(backend.to_numpy(a)).data)
        if len(found := set(self.comm.allgather(total.hexdigest()))) > 1:
            raise RuntimeError(
                f"the {self.size} ranks hold {len(found)} different sets of weights: start all with the same data,"
                " versions and kind of processor, and go on from the last checkpoint"
            )


group: Group | None = None  # that of the `data_parallel` block that is being run


def started() -> bool:
    """Whether this process is one of several that `mpiexec ... python -m mpi4py` started.

    Raises RuntimeError where mpiexec started several without `-m mpi4py`: they would not know of each other.
    """
    if "mpi4py.run" in sys.modules:
        from mpi4py import MPI

        return MPI.COMM_WORLD.Get_size() > 1
    if any(os.environ.get(name, "1") != "1" for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")):
        raise RuntimeError(
            "mpiexec needs `python -m mpi4py -m tinybitvit ...`, so that a rank that fails ends the others"
        )
    return False


@contextmanager
def data_parallel() -> Iterator[Group]:
    """Within this block `tb.ViT.fit` shares its batches out among the ranks of MPI; all must run the same calls.

    Other ranks than 0 print nothing and leave Ctrl-C to it: it saves a checkpoint, and ends the others when it exits.
    """
    global group
    from mpi4py import MPI

    group = Group(MPI.COMM_WORLD)
    try:
        if group.rank == 0:
            yield group
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield group
    finally:
        group = None
