"""The training loop: epochs, validation, history, early stopping."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from .. import backend
from ..backend import check_number
from ..data import Loader
from ..nn import Module
from ..ops.norm import log_softmax_array, softmax_array
from ..quant import watch
from .meter import Meter, say
from .resume import Checkpoints
from .step import Trainer

CODES = ("flip_rate", "zero_share", "distance")  # of low-bit layers at the end of an epoch
HISTORY = ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds", *CODES)
POSITION = ("done", "sums", "lr", "seconds", "codes", "rng", "loader_rng")  # where a run stands within its epoch
MODEL, BEST, OPTIMIZER = "model.", "best.", "optimizer."  # what the names of arrays in a checkpoint begin with

History = dict[str, list]


def empty_history() -> History:
    """Lists for the rows to come, one entry an epoch, None where there is no finite number."""
    return {key: [] for key in HISTORY}


@dataclass
class Run:
    """One training: what takes part in it, and where it stands between two updates.

    done, sums: batches of the present epoch that are trained on, and what they add up to. The loader takes one draw
    from its generator for each epoch: with that generator put back it deals the same batches again.
    """

    trainer: Trainer
    loader: Loader
    schedule: Any = None  # a WarmupCosine or Stages: its `step` follows every update
    targets: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # targets(x, y) to learn in place of y
    validation: tuple[np.ndarray, np.ndarray] | None = None  # (x, y), normalised, to measure after every epoch
    history: History = field(default_factory=empty_history)  # that of an earlier run is continued
    patience: int | None = None  # epochs without a better val_accuracy until it stops; it goes back to the best weights
    checkpoints: Checkpoints | None = None  # from the newest of which it goes on, and which saves the next ones
    verbose: int | str = 0  # see `Meter`
    floor: float = 0.0  # the least value that the loss can take, for the log

    def __post_init__(self):
        if self.patience is not None:
            check_number("patience", self.patience, 0, whole=True)
        self.early = None if self.patience is None else EarlyStopping(self.trainer.model, self.patience)
        self.meter: Meter | None = None
        self.before = len(self.history["loss"])  # epochs of earlier runs
        self.start_epoch()
        if self.checkpoints is not None:
            self.checkpoints.restore(self)

    def train(self, epochs: int) -> tuple[History, bool]:
        """Train for a number of epochs; returns the history, one entry an epoch, and whether Ctrl-C ended it.

        Ctrl-C ends the training after the current update, with a checkpoint; what was learnt stays.
        """
        last = self.before + epochs
        if self.verbose:
            self.meter = Meter(self.verbose, last, self.trainer.device, self.floor)
        interrupted = False
        try:
            while len(self.history["loss"]) < last and not (self.early and self.early.over):
                row = self.epoch()
                with no_interrupt():
                    self._note(row)
                if self.checkpoints is not None:
                    self.checkpoints.save_if_due(self, epoch_ended=True)
        except KeyboardInterrupt:
            interrupted = True
            self._stopped(len(self.history["loss"]) - last + epochs + 1)
        finally:  # also after an error: the best weights are at hand, and the last ones may be what it broke on
            if self.early is not None:
                self.early.restore()
        if self.early is not None and self.early.over and self.verbose:
            say(f"no better val_accuracy for {self.patience} epochs: back to the best epoch")
        self.before = len(self.history["loss"])
        return self.history, interrupted

    def epoch(self) -> dict[str, Any]:
        """One pass over the loader, or the rest of it, and the validation after it: a row of the history.

        loss and accuracy are means over the images as augmented, NaN where all updates were skipped; see
        `code_diagnostics` for those of CODES.
        """
        for x, y, *weight in self.batches():
            with no_interrupt():
                last = self.done == len(self.loader) - 1
                before = watch.snapshot(self.trainer.model) if last else []
                loss = self.trainer.step(x, y if self.targets is None else self.targets(x, y), *weight)
                if self.schedule is not None:
                    self.schedule.step()
                if last:
                    codes = code_diagnostics(self.trainer.model, before)
                    self.codes = {name: finite(value) for name, value in codes.items()}
                self.count(**batch_sums(self.trainer, loss, y, *weight), images=len(x))
            if self.checkpoints is not None:
                self.checkpoints.save_if_due(self)
            if self.meter is not None:
                self.meter.update(self)
        sums, weights = self.sums, self.sums["weights"] or math.nan
        if sums["skipped"]:
            say(f"{sums['skipped']} updates of this epoch skipped: their loss was not finite")
        val: dict[str, Any] = {"loss": None, "accuracy": None}
        if self.validation is not None:
            val = evaluate(self.trainer, *self.validation)
        row = {"loss": sums["loss"] / weights, "accuracy": sums["hits"] / weights}
        row |= {"val_loss": val["loss"], "val_accuracy": val["accuracy"]}
        return {**row, "lr": self.lr, "seconds": self.elapsed(), **self.codes}

    # --- where it stands ----------------------------------------------------------------------------------------------

    def start_epoch(self) -> None:
        """Stand before the first update of an epoch."""
        self.done, self.seconds, self.since = 0, 0.0, time.perf_counter()
        self.sums = {"loss": 0.0, "hits": 0.0, "weights": 0.0, "images": 0, "skipped": 0}
        self.codes = dict.fromkeys(CODES)
        self.lr = self.trainer.optimizer.param_groups[0]["lr"]
        self.rng, self.loader_rng = rng_state(self.trainer), rng_state(self.loader)

    def batches(self) -> Iterable[tuple[np.ndarray, ...]]:
        """Those of this epoch that are still to come."""
        if not self.done:
            return iter(self.loader)
        self.loader.rng.bit_generator.state = self.loader_rng
        batches = iter(self.loader)
        self.trainer.rng.bit_generator.state = self.rng  # after the loader's draw: often it is the same generator
        return islice(batches, self.done, None)

    @property
    def updates(self) -> int:
        """How many the optimiser has made."""
        return self.trainer.optimizer.steps

    def count(self, **sums: float) -> None:
        """One more update is made."""
        for name, value in sums.items():
            self.sums[name] += value
        self.done, self.rng = self.done + 1, rng_state(self.trainer)

    def elapsed(self) -> float:
        """Seconds spent in this epoch."""
        return self.seconds + time.perf_counter() - self.since

    def _note(self, row):
        """The end of an epoch: its row goes to the history, and the next one begins."""
        for key in HISTORY:
            self.history[key].append(finite(row[key]))  # files cannot hold NaN
        if self.early is not None:
            self.early.note(row["val_accuracy"])
        images = self.sums["images"]
        self.start_epoch()
        if self.meter is not None:
            self.meter.epoch(self.history, images)

    def _stopped(self, epoch):
        """Ctrl-C: save and tell."""
        if self.checkpoints is not None:
            self.checkpoints.save(self)
        if self.verbose:
            more = f"; resume goes on from {self.checkpoints.folder}" if self.checkpoints is not None else ""
            say(f"stopped by Ctrl-C in epoch {epoch}; the model keeps what it has learnt{more}")

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, metadata) from which `restore` brings everything back."""
        optimizer = self.trainer.optimizer.state_dict()
        groups = {MODEL: self.trainer.model.state_dict(), OPTIMIZER: optimizer.pop("arrays")}
        self.seconds, self.since = self.elapsed(), time.perf_counter()
        info = {name: getattr(self, name) for name in ("history", *POSITION)}
        info |= {"optimizer": optimizer, "schedule": None if self.schedule is None else self.schedule.last}
        if self.early is not None:
            groups[BEST] = self.early.state or {}
            info |= {"best": self.early.best, "epochs_since": self.early.since}
        arrays = {prefix + name: backend.to_numpy(a) for prefix, group in groups.items() for name, a in group.items()}
        return arrays, info

    def restore(self, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        """Go back to where `state` was asked."""
        groups: dict[str, dict[str, np.ndarray]] = {prefix: {} for prefix in (MODEL, BEST, OPTIMIZER)}
        for name, array in arrays.items():
            prefix, _, rest = name.partition(".")
            groups[f"{prefix}."][rest] = array
        self.trainer.model.load_state_dict(groups[MODEL])
        self.trainer.optimizer.load_state_dict({**info["optimizer"], "arrays": groups[OPTIMIZER]})
        if self.schedule is not None:
            self.schedule.resume(info["schedule"])
        if self.early is not None:
            self.early.best, self.early.since = info["best"], info["epochs_since"]
            self.early.state = groups[BEST] or None
        for key, values in self.history.items():
            values[:] = info["history"][key]
        for name in POSITION:
            setattr(self, name, info[name])
        self.since = time.perf_counter()
        self.trainer.rng.bit_generator.state, self.loader.rng.bit_generator.state = self.rng, self.loader_rng


def finite(value: Any) -> Any:
    """A number of a history: None in place of NaN and infinity."""
    return value if value is None or math.isfinite(value) else None


def rng_state(owner: Any) -> Any:
    """The state of the generator of a Trainer or Loader; a list of batches has none."""
    rng = getattr(owner, "rng", None)
    return None if rng is None else rng.bit_generator.state


def soft_targets(teacher: Trainer, share: float = 1.0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """For distillation: targets(x, y) that mixes a teacher's probabilities with the labels.

    The cross-entropy with probabilities t differs from KL(t || p) by the entropy of t, which does not depend on the
    student: to learn from a teacher (Hinton et al. 2015, arXiv 1503.02531) is to train on other targets. share: weight
    of the teacher.
    """

    def targets(x, y):
        logits = teacher.predict(x, check=False)
        t = softmax_array(np, logits)
        if share < 1:
            t = share * t + (1 - share) * (y[:, None] == np.arange(t.shape[1])).astype(t.dtype)
        return t

    return targets


def batch_sums(trainer: Trainer, loss: float, y: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
    """What the last update adds to the sums of its epoch."""
    if not np.isfinite(loss):
        return {"skipped": 1}
    total = len(y) if weight is None else float(weight.sum())
    guess = np.concatenate([o.argmax(axis=1) for o in trainer.outputs])
    hits = float(((guess == y) * (1 if weight is None else weight)).sum())
    return {"loss": loss * total, "hits": hits, "weights": total}


def code_diagnostics(model: Module, before: list) -> dict[str, Any]:
    """What the codes of the low-bit layers do (None without such layers), given those before the last update.

    flip_rate: the share of codes that the last update of the epoch changed; zero_share: the share that is 0; distance:
    of the latent weights to the nearest threshold, their mean, in units of the scale.
    """
    if not before:
        return dict.fromkeys(CODES)
    codes = watch.snapshot(model)
    values = watch.flip_rate(before, codes), watch.zero_share(codes), watch.mean_distance(model)
    return dict(zip(CODES, values, strict=True))


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Ctrl-C within this block is raised at its end, so that an update is made whole or not at all."""
    struck: list[tuple] = []

    def note(*arguments):
        if struck:  # the second one: somebody is in a hurry
            signal.default_int_handler(*arguments)
        struck.append(arguments)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if struck:
        raise KeyboardInterrupt


def evaluate(trainer: Trainer, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy and accuracy of the trainer's model on normalised images x and class numbers y.

    An output that is not finite counts as wrong.
    """
    logits = trainer.predict(x, check=False)
    log_p = log_softmax_array(np, logits)
    right = (logits.argmax(axis=1) == y) & np.isfinite(logits).all(axis=1)
    return {"loss": -float(log_p[np.arange(len(y)), y].mean()), "accuracy": float(right.mean())}


@dataclass
class EarlyStopping:
    """Remembers the weights of the epoch with the best val_accuracy; `over` after `patience` without a better."""

    model: Module
    patience: int
    best: float = -1.0
    since: int = 0
    state: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return self.state is not None and self.since >= self.patience

    def note(self, val_accuracy: float) -> None:
        """An epoch has ended with this accuracy on the validation images."""
        if val_accuracy > self.best:
            self.best, self.since = val_accuracy, 0
            self.state = {name: a.copy() for name, a in self.model.state_dict().items()}
        else:
            self.since += 1

    def restore(self) -> None:
        """Go back to the best weights."""
        if self.state is not None:
            self.model.load_state_dict(self.state)
