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
from contextlib import contextmanager, redirect_stdout

import numpy as np

from .. import backend

CHECK_EVERY = 100  # updates between two comparisons of all ranks' weights

_group = None


class Group:
    """The ranks that train one model together, of an MPI communicator; rank 0 prints and writes files."""

    def __init__(self, comm):
        from mpi4py import MPI

        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.in_place, self.neighbours = MPI.IN_PLACE, comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size()

    def rows(self, n):
        """This rank's share of n rows, as a slice."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, arrays):
        """Replace each array by its sum over all ranks: one Allreduce, by way of a host buffer."""
        flat = np.concatenate([backend.to_numpy(a).ravel() for a in arrays])
        self.comm.Allreduce(self.in_place, flat)
        start = 0
        for a in arrays:
            a[...] = backend.to_device(flat[start : start + a.size].reshape(a.shape), backend.device_of(a))
            start += a.size

    def check_equal(self, arrays):
        """RuntimeError unless all ranks hold the same bits."""
        total = hashlib.sha256()
        for a in arrays:
            total.update(np.ascontiguousarray(backend.to_numpy(a)))
        if len(found := set(self.comm.allgather(total.hexdigest()))) > 1:
            raise RuntimeError(
                f"the {self.size} ranks hold {len(found)} different sets of weights: start all with the same data,"
                " versions and kind of processor, and go on from the last checkpoint"
            )


def current():
    """The Group of the `data_parallel` block that is being run, or None."""
    return _group


def first(value):
    """Rank 0's value within a `data_parallel` block; outside, the value itself."""
    return value if _group is None else _group.comm.bcast(value)


def started():
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
def data_parallel():
    """Within this block `tb.ViT.fit` shares its batches out among the ranks of MPI; all must run the same calls.

    Other ranks than 0 print nothing and leave Ctrl-C to it: it saves a checkpoint, and ends the others when it exits.
    """
    global _group
    from mpi4py import MPI

    _group = Group(MPI.COMM_WORLD)
    try:
        if _group.rank == 0:
            yield _group
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield _group
    finally:
        _group = None
