"""Checkpoints: what a training run is at one moment, in files, so that a run cut short goes on as if it had not been.

The last bit included: weights, the optimiser's moments, the step of the schedule, the generators' states, the place
within the epoch, its sums so far, the history and the best weights of early stopping are all there.
"""

import contextlib
import hashlib
import re
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from .. import backend
from ..files import AGAIN, CheckpointError, read_safetensors, write_safetensors
from . import ranks
from .meter import say

CODES = ("flip_rate", "zero_share", "distance")  # of low-bit layers at the end of an epoch, in a history
KEPT = 2  # should the newest file be damaged, there is one before it
MODEL, BEST, OPTIMIZER, SCHEDULE = "model.", "best.", "optimizer.", "schedule."


class Progress:
    """Where a training run stands, between two updates.

    done, sums: batches of this epoch that are trained on, and what they add up to. The loader takes one draw from its
    generator for each epoch: with that generator put back it deals the same batches again.
    """

    def __init__(self, trainer, loader, schedule=None, history=None, early=None):
        self.trainer, self.loader, self.schedule, self.history, self.early = trainer, loader, schedule, history, early
        self.start_epoch()

    def start_epoch(self):
        self.done, self.seconds, self.since = 0, 0.0, time.perf_counter()
        self.sums = {"loss": 0.0, "hits": 0.0, "weights": 0.0, "images": 0, "skipped": 0}
        self.codes = dict.fromkeys(CODES)
        self.lr = self.trainer.optimizer.param_groups[0]["lr"]
        self.loader_rng, self.rng = rng_state(self.loader), rng_state(self.trainer)

    def batches(self):
        """Those of this epoch that are still to come."""
        if not self.done:
            return iter(self.loader)
        self.loader.rng.bit_generator.state = self.loader_rng
        batches = iter(self.loader)
        self.trainer.rng.bit_generator.state = self.rng  # after the loader's draw: often it is the same generator
        return islice(batches, self.done, None)

    def count(self, **sums):
        """One more update is made."""
        for name, value in sums.items():
            self.sums[name] += value
        self.done, self.rng = self.done + 1, rng_state(self.trainer)

    def elapsed(self):
        """Seconds spent in this epoch."""
        return self.seconds + time.perf_counter() - self.since

    def state(self):
        """(arrays, metadata) from which `restore` brings everything back."""
        optimizer = self.trainer.optimizer.state_dict()
        groups = {MODEL: self.trainer.model.state_dict(), OPTIMIZER: optimizer.pop("arrays")}
        groups[SCHEDULE] = getattr(self.schedule, "arrays", {})
        info = {"done": self.done, "sums": self.sums, "lr": self.lr, "seconds": self.elapsed(), "history": self.history}
        info |= {"optimizer": optimizer, "schedule": None if self.schedule is None else self.schedule.last}
        info |= {"rng": self.rng, "loader_rng": self.loader_rng, "codes": self.codes}
        if self.early is not None:
            groups[BEST] = self.early.state or {}
            info |= {"best": self.early.best, "epochs_since": self.early.since}
        arrays = {prefix + name: backend.to_numpy(a) for prefix, group in groups.items() for name, a in group.items()}
        return arrays, info

    def restore(self, arrays, info):
        groups = {prefix: {} for prefix in (MODEL, BEST, OPTIMIZER, SCHEDULE)}
        for name, array in arrays.items():
            prefix, _, rest = name.partition(".")
            groups[f"{prefix}."][rest] = array
        self.trainer.model.load_state_dict(groups[MODEL])
        self.trainer.optimizer.load_state_dict({**info["optimizer"], "arrays": groups[OPTIMIZER]})
        if self.schedule is not None:
            self.schedule.resume(info["schedule"], *([groups[SCHEDULE]] if groups[SCHEDULE] else []))
        if self.early is not None:
            self.early.best, self.early.since, self.early.state = (
                info["best"],
                info["epochs_since"],
                groups[BEST] or None,
            )
        for key, values in self.history.items():
            values[:] = info["history"][key]
        self.done, self.sums, self.lr = info["done"], info["sums"], info["lr"]
        self.seconds, self.since = info["seconds"], time.perf_counter()
        self.rng, self.loader_rng, self.codes = info["rng"], info["loader_rng"], info["codes"]
        self.trainer.rng.bit_generator.state, self.loader.rng.bit_generator.state = self.rng, self.loader_rng


def rng_state(owner):
    rng = getattr(owner, "rng", None)  # a list of batches has none
    return None if rng is None else rng.bit_generator.state


class Checkpoints:
    """The checkpoints of one run in a folder: checkpoint-UPDATES.safetensors, the last two of them.

    every: seconds between two (0: after every update), or 'epoch'. run: texts that say which run this is, by name; a
    checkpoint of another run is refused. notes: what JSON can hold and only the start of the run knows; `self.notes`
    are those of the start. Raises ValueError where the folder holds checkpoints and `resume` is False, and OSError
    where it cannot be written.
    """

    def __init__(self, folder, every=60.0, resume=False, run=None, notes=None):
        if every != "epoch" and not (isinstance(every, (int, float)) and every >= 0):
            raise ValueError(f"every must be a number of seconds from 0, or 'epoch', not {every!r}")
        self.folder, self.every, self.run, self.notes = Path(folder), every, run or {}, notes or {}
        self.saved, self.kept, self.last = None, [], time.monotonic()
        self.group = ranks.current()
        if self.group is None or self.group.rank == 0:  # it alone reads and writes: the disk may be its own
            self._open(resume)
        self.saved = ranks.first(self.saved)
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

    def restore(self, progress):
        """Bring a run to where its newest checkpoint was made, if there is one."""
        if self.saved is None:
            return
        try:
            progress.restore(*self.saved)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.folder} does not fit this model ({error!r}): it comes from another version of"
                " TinyBitViT; delete the folder and start anew"
            ) from error
        self.saved = None  # as large as three models

    def save_if_due(self, progress, epoch_ended=False):
        if epoch_ended if self.every == "epoch" else time.monotonic() - self.last >= self.every:
            self.save(progress)

    def save(self, progress):
        """Write a checkpoint. A fault of the disk costs one printed line, not the training; the last ones stay."""
        if self.group is not None and self.group.rank:
            return
        arrays, info = progress.state()
        path = self.folder / f"checkpoint-{info['optimizer']['steps']:09}.safetensors"
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
            for name, mine in self.run.items():
                if (theirs := info["run"].get(name)) != mine:
                    change = "it had other data" if name == "data" else f"{name} was {theirs} and is now {mine}"
                    raise CheckpointError(
                        f"{self.folder} holds the checkpoints of another run: {change};"
                        " give what it was, or choose another folder"
                    )
            self.kept = [path]
            return arrays, info
        raise CheckpointError(f"no checkpoint in {self.folder} is whole: delete the folder and start anew")


def delete_checkpoints(folder, kept=()):
    """Delete the checkpoints in a folder but those to be kept, and the folder if nothing is left in it."""
    for path in Path(folder).glob("checkpoint-*"):  # also the .part files of a run that was killed while writing
        if path not in kept:
            path.unlink(missing_ok=True)
    if not kept:
        with contextlib.suppress(OSError):  # it holds something else, or does not exist
            Path(folder).rmdir()


def describe_run(params, *arrays):
    """The texts for `Checkpoints` that say which run this is: every parameter that decides the result, and the data."""
    free = ("device", "workers", "verbose")
    run = {name: describe(value) for name, value in params.items() if name not in free}
    return {**run, "data": fingerprint(*arrays)}


def describe(value):
    """A parameter as a text that tells two runs apart, whatever the process; a model by its weights."""
    network = getattr(value, "model_", value)
    if hasattr(network, "state_dict"):
        return f"{type(value).__name__} {model_fingerprint(network)}"
    text = getattr(value, "__qualname__", None) or repr(value.item() if isinstance(value, np.generic) else value)
    return re.sub(" at 0x[0-9a-f]+", "", text)


def model_fingerprint(network):
    """A short hash over the weights of a network."""
    return fingerprint(*map(backend.to_numpy, network.state_dict().values()))


def fingerprint(*arrays):
    """A short hash over shapes, dtypes, all of 1-d arrays (labels) and 64 rows of larger ones (images); None counts."""
    total = hashlib.sha256()
    for a in map(np.asarray, arrays):
        a = a.astype(str) if a.dtype.kind == "O" else a
        rows = a if a.ndim < 2 else a[:: max(1, len(a) // 64)]
        total.update(f"{a.shape} {a.dtype.str} ".encode() + np.asarray(rows, order="C").tobytes())
    return total.hexdigest()[:16]
