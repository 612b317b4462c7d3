"""Checkpoints: what a training run is at one moment, in files, so that a run cut short goes on as if it had not been.

The last bit included: weights, the optimiser's moments, the step of the schedule, the generators' states, the place
within the epoch, its sums so far, the history and the best weights of early stopping are all there (`loop.Run.state`).
"""

import contextlib
import hashlib
import math
import os
import re
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..backend import is_number
from ..files import AGAIN, CheckpointError, read_safetensors, write_safetensors
from ..nn import Module
from . import ranks
from .meter import say

KEPT = 2  # should the newest file be damaged, there is one before it
BLOCK = 2**24  # bytes of an array that are hashed at a time
DATA = "its images and labels"
OTHER_VERSION = "they come from another version of TinyBitViT; delete the folder and start anew"
ROWS = 64  # of each matrix of a network: enough to tell two networks apart


class Checkpoints:
    """The checkpoints of one run in a folder: checkpoint-UPDATES.safetensors, the last two of them.

    every: seconds between two (0: after every update), or 'epoch'. run: texts that say which run this is, by name; a
    checkpoint of another run is refused. notes: what JSON can hold and only the start of the run knows; `self.notes`
    are those of the start. Raises ValueError where the folder holds checkpoints and `resume` is False, and OSError
    where it cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        every: float | str = 60.0,
        resume: bool = False,
        run: dict[str, str] | None = None,
        notes: dict[str, Any] | None = None,
    ):
        if every not in ("epoch", math.inf) and not is_number(every, 0):
            raise ValueError(f"every must be a number of seconds from 0, or 'epoch', not {every!r}")
        self.folder, self.run, self.notes = Path(folder), run or {}, notes or {}
        self.every: Any = every
        self.saved: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None
        self.kept: list[Path] = []
        self.last, self.group = time.monotonic(), ranks.group
        if self.group is None or self.group.rank == 0:  # it alone reads and writes: the disk may be its own
            self._open(resume)
        if self.group is not None:
            self.saved = self.group.first(self.saved)
        if self.saved is not None:
            self.notes = self.saved[1]["notes"]

    def _open(self, resume):
        if found := sorted(self.folder.glob("checkpoint-*.safetensors")):
            if not resume:
                raise ValueError(
                    f"{self.folder} holds the checkpoints of a run: resume it, choose another folder, or delete it"
                )
            self.saved = self._newest(found)
        try:  # a mistake is to cost a second and not the time of a training
            tempfile.TemporaryFile(dir=next(p for p in (self.folder, *self.folder.parents) if p.exists())).close()
        except OSError as error:
            reason = f"cannot save checkpoints in {self.folder}: {error.strerror}; choose another folder"
            raise OSError(error.errno, reason) from error

    def restore(self, run: Any) -> None:
        """Bring a `loop.Run`, or a rounding, to where its newest checkpoint was made, if there is one."""
        if self.saved is None:
            return
        try:
            run.restore(*self.saved)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.folder} does not fit this model ({error!r}): {OTHER_VERSION}"
            ) from error
        self.saved = None  # as large as three models

    def save_if_due(self, run: Any, epoch_ended: bool = False) -> None:
        """Save a `loop.Run` after an update, or after the end of an epoch, if it is time."""
        if epoch_ended if self.every == "epoch" else time.monotonic() - self.last >= self.every:
            self.save(run)

    def save(self, run: Any) -> None:
        """Write a checkpoint, numbered by `run.updates`.

        A fault of the disk costs one printed line, not the training; the last ones stay.
        """
        if self.group is not None and self.group.rank:
            return
        arrays, info = run.state()
        path = self.folder / f"checkpoint-{run.updates:09}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, arrays, {"run": self.run, "notes": self.notes, **info})
        except (OSError, ValueError) as error:
            say(f"no checkpoint saved, the training goes on: {error}")
        else:
            self.kept = [*(p for p in self.kept if p != path), path][-KEPT:]
            delete_checkpoints(self.folder, self.kept)
        self.last = time.monotonic()

    def _newest(self, found):
        """(arrays, metadata) of the newest file that is whole."""
        for path in reversed(found):
            try:
                arrays, info = read_safetensors(path)
                if "notes" not in info:
                    raise CheckpointError(f"{path} is no checkpoint of a training run")
            except CheckpointError as error:
                say(f"{str(error).removesuffix(f': {AGAIN}')}: trying the checkpoint before it")
                continue
            self._check_run(info["run"])
            self.kept = [path]
            return arrays, info
        raise CheckpointError(f"no checkpoint in {self.folder} is whole: delete the folder and start anew")

    def _check_run(self, theirs):
        """CheckpointError where the checkpoints are those of a run with other options or data."""
        for name, mine in self.run.items():
            if name not in theirs:
                raise CheckpointError(
                    f"{self.folder} holds checkpoints that do not say what {name} was: {OTHER_VERSION}"
                )
            if theirs[name] != mine:
                change = "it had other data" if name == DATA else f"{name} was {theirs[name]} and is now {mine}"
                raise CheckpointError(
                    f"{self.folder} holds the checkpoints of another run: {change};"
                    " give what it was, or choose another folder"
                )


def delete_checkpoints(folder: str | os.PathLike, kept: Collection[Path] = ()) -> None:
    """Delete the checkpoints in a folder but those to be kept, and the folder if nothing is left in it."""
    for path in Path(folder).glob("checkpoint-*"):  # also the .part files of a run that was killed while writing
        if path not in kept:
            path.unlink(missing_ok=True)
    if not kept:
        with contextlib.suppress(OSError):  # it holds something else, or does not exist
            Path(folder).rmdir()


def describe_run(params: Mapping[str, Any], *arrays: Any) -> dict[str, str]:
    """The texts for `Checkpoints` that say which run this is: every parameter that decides the result, and the data."""
    free = ("device", "workers", "verbose")
    run = {name: option_text(value) for name, value in params.items() if name not in free}
    return {**run, DATA: fingerprint(*arrays)}


def option_text(value: Any) -> str:
    """A parameter as a text that tells two runs apart, whatever the process; a model by its weights."""
    network = getattr(value, "model_", value)
    if hasattr(network, "state_dict"):
        return f"{type(value).__name__} {fingerprint(*map(backend.to_numpy, network.state_dict().values()))}"
    text = getattr(value, "__qualname__", None) or repr(value.item() if isinstance(value, np.generic) else value)
    return re.sub(" at 0x[0-9a-f]+", "", text)


def model_fingerprint(network: Module) -> str:
    """A short hash over the weights of a network, of which it takes ROWS rows of each matrix."""
    return fingerprint(*map(backend.to_numpy, network.state_dict().values()), rows=ROWS)


def fingerprint(*arrays: Any, rows: int | None = None) -> str:
    """A short hash over shapes, dtypes and every byte of arrays, or over so many rows of those with two axes or more.

    None counts as an array, too. Arrays are read block by block, so that no copy of a large one is made.
    """
    total = hashlib.sha256()
    for a in map(np.asarray, arrays):
        a = a.astype(str) if a.dtype.kind == "O" else a
        total.update(f"{a.shape} {a.dtype.str} ".encode())
        if rows is not None and a.ndim > 1:
            a = a[:: max(1, len(a) // rows)]
        a = np.atleast_1d(a)
        step = max(1, BLOCK // max(a[:1].nbytes, 1))
        for start in range(0, len(a), step):
            total.update(np.ascontiguousarray(a[start : start + step]).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]
