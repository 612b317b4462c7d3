"""Checkpoints: what a training run is at one moment, in files, so that a run cut short goes on as if it had not been.

The last bit included: weights, the optimiser's moments, the step of the schedule, the generators' states, the place
within the epoch, its sums so far, the history and the best weights of early stopping are all there (`loop.Run.state`).
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import reprlib
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .. import backend
from ..backend import is_number
from ..files import AGAIN, CheckpointError, read_safetensors, write_safetensors
from ..nn import Module
from ..quant import Quantizer
from . import ranks
from .meter import say

KEPT = 2  # should the newest file be damaged, there is one before it
BLOCK = 2**24  # bytes of an array that are hashed at a time
DATA = "its images and labels"
KIND = "the kind of run"
OTHER_VERSION = "they come from another version of TinyBitViT; go on with that version, or choose another folder"
# What differs between two Python processes or versions and changes nothing that a class does
NO_MARKS = {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__"}
NO_MARKS |= {"__firstlineno__", "__static_attributes__"}
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
        whole = []  # what is wrong with files that are not damaged
        for path in reversed(found):
            try:
                arrays, info = read_safetensors(path)
                if "notes" not in info:
                    raise CheckpointError(f"{path} is no checkpoint of a training run")
            except CheckpointError as error:
                say(f"{str(error).removesuffix(f': {AGAIN}')}: trying the checkpoint before it")
                if AGAIN not in str(error):
                    whole.append(error)
                continue
            self._check_run(info["run"])
            self.kept = [path]
            return arrays, info
        if whole:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: {whole[0]}") from whole[0]
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


def describe_run(params: Mapping[str, Any], *arrays: Any, kind: str = "fit") -> dict[str, str]:
    """The texts for `Checkpoints` that say which run this is: every parameter that decides the result, and the data."""
    free = ("device", "workers", "verbose")
    run = {name: option_text(value) for name, value in params.items() if name not in free}
    return {KIND: kind, **run, DATA: fingerprint(*arrays)}


# The texts of functions, by the function. One that counts its calls is another one after a training that was cut short,
# and a run may go on with it all the same: what counts is what it was at first.
_told: WeakKeyDictionary = WeakKeyDictionary()


def option_text(value: Any) -> str:
    """A parameter as a text that tells two runs apart, whatever the process: a hash stands for what has no such text.

    A model is its weights, its sizes and its normalisation; a function or a quantiser its code and the plain values
    that it holds; a generator its state.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray):
        return f"{reprlib.repr(value.tolist())} {fingerprint(value)}"
    if isinstance(value, np.random.RandomState):
        _, key, *place = value.get_state()
        return f"RandomState {fingerprint(key, place)}"
    name = getattr(value, "__qualname__", type(value).__name__)
    if hasattr(getattr(value, "model_", value), "state_dict"):
        return f"{name} {_short_hash(_marks_of_model(value))}"
    if callable(value) or isinstance(value, Quantizer):
        text = f"{name} {_short_hash(_marks(value, set()))}"
        with contextlib.suppress(TypeError):  # of a value that no such dictionary holds
            return _told.setdefault(value, text) if callable(value) else text
        return text
    return re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))


def _short_hash(texts: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _marks_of_model(model: Any) -> Iterator[str]:
    """What a network, or a fitted tb.ViT, computes."""
    network, normalize = getattr(model, "model_", model), getattr(model, "normalize_", None)
    yield fingerprint(*map(backend.to_numpy, network.state_dict().values()))
    yield json.dumps(getattr(network, "config", {}), default=option_text)  # tuples and lists alike, as after a file
    yield json.dumps(None if normalize is None else normalize.to_dict())


def _marks(value: Any, seen: set[int]) -> Iterator[str]:
    """What a function or an object does, as far as its code and the plain values that it holds tell.

    Lists, dicts and iterators are left out: they may count the calls, and so be others when a run goes on.
    """
    plain = (int, float, complex, str, bytes, type(None), type(...))
    if isinstance(value, plain):
        yield repr(value)
    elif isinstance(value, np.ndarray):
        yield fingerprint(value)
    elif isinstance(value, frozenset):  # its order depends on the process
        yield from sorted(map(repr, value))
    elif isinstance(value, tuple) or id(value) not in seen:
        seen.add(id(value))  # what refers to itself would never end
        for part in _parts(value):
            yield from _marks(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    """What `_marks` looks at next."""
    if isinstance(value, tuple):
        yield from value
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, FunctionType):
        yield from (value.__qualname__, value.__code__, value.__defaults__)
        yield from sorted((value.__kwdefaults__ or {}).items())
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield name
            with contextlib.suppress(ValueError):  # of a cell that is still empty
                yield cell.cell_contents
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, *sorted(value.keywords.items()))
    elif isinstance(value, property):
        yield value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        yield value.__func__
    elif isinstance(value, type):
        yield value.__qualname__
        if value.__module__.partition(".")[0] not in ("builtins", __package__.partition(".")[0]):
            yield from value.__bases__
            yield from ((name, part) for name, part in sorted(vars(value).items()) if name not in NO_MARKS)
    else:
        yield getattr(value, "__qualname__", type(value).__qualname__)
        if callable(value) or isinstance(value, Quantizer):
            yield type(value)
            yield from sorted(getattr(value, "__dict__", {}).items())


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
