"""Checks of lesson 11: the module of an array, shards' gradients, the ring, random numbers of ranks; and a device
that is only pretended, for computers without a GPU.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from ..checker import Task, same


class FarArray:
    """An array of a pretended device: NumPy may not touch it, and each operation on it starts one kernel."""

    __array_ufunc__ = None
    started: ClassVar[list[str]] = []  # the names of the kernels so far

    def __init__(self, held: Any):
        self.held = np.asarray(held)
        self.shape, self.ndim, self.dtype = self.held.shape, self.held.ndim, self.held.dtype

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        raise TypeError("this array is on the pretended device: NumPy may not touch it")


def _kernel(name: str, compute: Callable) -> Callable:
    def run(*arguments: Any, **options: Any) -> FarArray:
        FarArray.started.append(name)
        return FarArray(compute(*[a.held if isinstance(a, FarArray) else a for a in arguments], **options))

    return run


for _name in ("add", "sub", "mul", "truediv", "matmul", "neg", "pow", "radd", "rsub", "rmul", "rtruediv"):
    setattr(FarArray, f"__{_name}__", _kernel(_name, getattr(np.ndarray, f"__{_name}__")))
for _name in ("max", "sum", "mean"):
    setattr(FarArray, _name, _kernel(_name, getattr(np, _name)))

FUNCTIONS = ("exp", "log", "sqrt", "tanh", "square", "add", "subtract", "multiply", "divide", "maximum", "max", "sum")
far = SimpleNamespace(__name__="far", ndarray=FarArray, **{n: _kernel(n, getattr(np, n)) for n in FUNCTIONS})


# --- the module of an array -------------------------------------------------------------------------------------------

module = Task("11.1", "module_of")


def expect_module(answer: Callable, arrays: tuple, expected: Any) -> None:
    found = answer(arrays, (np, far))
    kinds = " and ".join("far" if isinstance(a, FarArray) else "NumPy" for a in arrays)
    assert found is expected, (
        f"for arrays of {kinds} it gave {getattr(found, '__name__', found)!r}, expected {expected.__name__}"
    )


@module.check(
    "one array",
    "each module names its kind of array `ndarray`: np.ndarray, far.ndarray, cupy.ndarray",
    "go through the modules and return the one with isinstance(array, module.ndarray)",
)
def module_one(answer):
    expect_module(answer, (np.zeros(2),), np)
    expect_module(answer, (FarArray([1.0]),), far)
    expect_module(answer, (FarArray([1.0]), FarArray([2.0])), far)


@module.check(
    "never two devices at once",
    "look at all of the arrays: the module must fit every one, all(isinstance(...) for a in arrays)",
    "where no module fits all, raise TypeError: what is to be moved, the user decides",
)
def module_mixed(answer):
    for arrays in ((np.zeros(2), FarArray([1.0])), (FarArray([1.0]), np.zeros(2))):
        try:
            found = answer(arrays, (np, far))
        except TypeError:
            continue
        raise AssertionError(
            f"for one array of NumPy and one of far it gave {getattr(found, '__name__', found)!r}, expected a TypeError"
        )


# --- shards -----------------------------------------------------------------------------------------------------------

shards = Task("11.2", "sharded_gradient")
ROWS = np.array([1.0, 2.0, 3.0, 4.0, 10.0])


def expect_shards(answer: Callable, n: int, workers: int) -> None:
    asked: list[slice] = []

    def gradient(rows):
        assert isinstance(rows, slice), f"gradient takes a slice of rows, not {type(rows).__name__}"
        asked.append(rows)
        assert ROWS[:n][rows].size, f"it asked for the gradient of no rows, {rows}, for n = {n}, workers = {workers}"
        return ROWS[:n][rows].mean()

    got = answer(gradient, n, workers)
    same(got, ROWS[:n].mean(), f"for rows with gradients {ROWS[:n].tolist()} and {workers} workers")
    seen = sorted(i for rows in asked for i in range(n)[rows])
    assert seen == list(range(n)), f"rows {seen} were computed, expected each of {n} once, for {workers} workers"
    assert len(asked) == min(n, workers), f"it cut {n} rows into {len(asked)} shards for {workers} workers"


@shards.check(
    "each shard by its share",
    "a shard's gradient is a mean over its rows: weigh it by its rows / all rows, and add up",
    "worker r takes slice(n * r // workers, n * (r + 1) // workers)",
)
def shards_share(answer):
    expect_shards(answer, 5, 2)
    expect_shards(answer, 5, 3)


@shards.check("more workers than rows", "some shards are empty, and the mean of nothing is no number: skip them")
def shards_empty(answer):
    expect_shards(answer, 2, 4)


# --- the ring ---------------------------------------------------------------------------------------------------------

ring = Task("11.3", "ring_sum")


class Wire:
    """`send(r, chunk)`: what rank r + 1 gets when rank r sends it a chunk. Counts the numbers that each rank sent."""

    def __init__(self, ranks: int):
        self.sent = [0] * ranks

    def __call__(self, rank: int, chunk: np.ndarray) -> np.ndarray:
        self.sent[rank] += chunk.size
        return chunk.copy()


def run_ring(answer: Callable, ranks: int) -> tuple[list, np.ndarray, Wire]:
    """The ranks' arrays after the student's sum, the right sum, and the wire."""
    rng = np.random.default_rng(ranks)
    arrays = rng.integers(-9, 10, (ranks, 4 * ranks)).astype(float)
    chunks = [list(np.split(a.copy(), ranks)) for a in arrays]
    wire = Wire(ranks)
    answer(chunks, wire)
    return chunks, arrays.sum(axis=0), wire


@ring.check(
    "each sum is complete somewhere",
    "chunk c goes once around: rank r sends chunk (r - s) % R in step s, and its neighbour adds it to its own",
    "R - 1 steps: after them rank r holds the whole sum of chunk (r + 1) % R",
)
def ring_reduce(answer):
    for ranks in (2, 3, 4):
        chunks, total, _ = run_ring(answer, ranks)
        for c, part in enumerate(np.split(total, ranks)):
            held = [r for r in range(ranks) if np.array_equal(chunks[r][c], part)]
            assert held, f"with {ranks} ranks no rank has the sum of chunk {c}, {part}; rank 0 has {chunks[0][c]}"


@ring.check(
    "and comes to all",
    "a second round of R - 1 steps hands the finished chunks on: the neighbour replaces its own, it adds nothing",
    "in step s of the second round rank r sends chunk (r + 1 - s) % R",
)
def ring_gather(answer):
    for ranks in (2, 3, 4):
        chunks, total, _ = run_ring(answer, ranks)
        for r in range(ranks):
            got = np.concatenate(chunks[r])
            assert np.array_equal(got, total), f"with {ranks} ranks, rank {r} ends with {got}, expected {total}"


@ring.check(
    "nobody sends more than 2 (R - 1) chunks",
    "one chunk for each step and rank, to the right neighbour: no rank collects everything",
)
def ring_volume(answer):
    for ranks in (2, 4):
        *_, wire = run_ring(answer, ranks)
        most = 2 * (ranks - 1) * 4
        assert wire.sent == [most] * ranks, f"with {ranks} ranks they sent {wire.sent} numbers, expected {most} each"


# --- random numbers ---------------------------------------------------------------------------------------------------

random = Task("11.4", "rank_rng")


def draws(answer: Callable, seed: int, ranks: int) -> list[float]:
    """The first number of each rank. AssertionError for what is no Generator."""
    rngs = [answer(seed, ranks, rank) for rank in range(ranks)]
    assert all(isinstance(rng, np.random.Generator) for rng in rngs), "it must return an np.random.Generator"
    return [float(rng.random()) for rng in rngs]


@random.check("the same again", "a seed must decide everything: np.random.default_rng(seed), never without")
def random_again(answer):
    assert draws(answer, 3, 4) == draws(answer, 3, 4), "called twice with seed 3 it gave other numbers"


@random.check(
    "each rank its own",
    "the rank must have a part in the seed, or all ranks drop the same units",
)
def random_apart(answer):
    assert len(set(draws(answer, 3, 4))) == 4, f"with seed 3 the four ranks drew {draws(answer, 3, 4)}: some are equal"


@random.check(
    "and no rank that of another run",
    "seed + rank is not enough: seed 3, rank 1 would be seed 4, rank 0. Draw the ranks' seeds with the run's own",
    "np.random.default_rng(seed).integers(2**63, size=ranks) is a seed for each rank, equal on all ranks; take [rank]",
)
def random_runs(answer):
    runs = [draws(answer, seed, 4) for seed in range(5)]
    found = [(s, r, value) for s, run in enumerate(runs) for r, value in enumerate(run)]
    for i, (s, r, value) in enumerate(found):
        for other, rank, again in found[:i]:
            assert not math.isclose(value, again, abs_tol=1e-15), (
                f"seed {other}, rank {rank} and seed {s}, rank {r} draw the same number, {value:.4f}"
            )
