"""The training loop: epochs, validation, history, progress."""

import signal
import threading
from contextlib import contextmanager

import numpy as np

from ..ops.norm import log_softmax_array, softmax_array
from ..quant import watch
from .checkpoint import CODES, Progress
from .meter import Meter, say

HISTORY = ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds", *CODES)


def check_options(options):
    """ValueError for attributes of a tb.ViT that no training can have."""
    for name, least in (("epochs", 0), ("batch_size", 1)):
        if not isinstance(value := getattr(options, name), (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")
    for name in ("warmup", "label_smoothing"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name} is a fraction and must lie in 0..1, not {getattr(options, name)!r}")


def soft_targets(teacher, share=1.0):
    """For distillation: targets(x, y) that mixes a teacher's probabilities with the labels.

    The cross-entropy with probabilities t differs from KL(t || p) by the entropy of t, which does not depend on the
    student: to learn from a teacher (Hinton et al. 2015, arXiv 1503.02531) is to train on other targets. share: weight
    of the teacher.
    """

    def targets(x, y):
        logits = teacher.predict(x)
        t = softmax_array(np, logits)
        if share < 1:
            t = share * t + (1 - share) * (y[:, None] == np.arange(t.shape[1])).astype(t.dtype)
        return t

    return targets


def train_epoch(trainer, loader, schedule=None, targets=None, progress=None, checkpoints=None, meter=None):
    """One pass over the loader; returns its mean loss and accuracy (on the images as augmented), their number, and
    `code_diagnostics`.

    progress: where the epoch was cut short, to train on its rest (None: at its start).
    """
    progress = progress or Progress(trainer, loader, schedule)
    for x, y, *rest in progress.batches():
        with no_interrupt():
            last = progress.done == len(loader) - 1
            before = watch.snapshot(trainer.model) if last else []
            weight = rest[0] if rest else None
            loss = trainer.step(x, y if targets is None else targets(x, y), weight)
            if schedule is not None:
                schedule.step()
            sums = batch_sums(trainer, loss, y, weight) if np.isfinite(loss) else {"skipped": 1}
            if last:
                progress.codes = code_diagnostics(trainer.model, before)
            progress.count(**sums, images=len(x))
        if checkpoints is not None:
            checkpoints.save_if_due(progress)
        if meter is not None:
            meter.update(progress)
    sums, weights = progress.sums, max(progress.sums["weights"], 1e-12)
    if sums["skipped"]:
        say(f"{sums['skipped']} updates of this epoch skipped: their loss was not finite")
    found = {"loss": sums["loss"] / weights, "accuracy": sums["hits"] / weights, "images": sums["images"]}
    return {**found, **progress.codes}


def batch_sums(trainer, loss, y, weight):
    """What the last update adds to the sums of its epoch."""
    total = len(y) if weight is None else float(weight.sum())
    guess = np.concatenate([o.argmax(axis=1) for o in trainer.outputs])
    hits = float(((guess == y) * (1 if weight is None else weight)).sum())
    return {"loss": loss * total, "hits": hits, "weights": total}


def code_diagnostics(model, before):
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
def no_interrupt():
    """Ctrl-C within this block is raised at its end, so that an update is made whole or not at all."""
    struck = []

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


def evaluate(trainer, x, y):
    """Mean cross-entropy and accuracy of the trainer's model on normalised images x and class numbers y."""
    logits = trainer.predict(x)
    log_p = log_softmax_array(np, logits)
    return {"loss": -float(log_p[np.arange(len(y)), y].mean()), "accuracy": float((logits.argmax(axis=1) == y).mean())}


class EarlyStopping:
    """Remembers the weights of the epoch with the best val_accuracy; `over` after `patience` without a better."""

    def __init__(self, model, patience):
        self.model, self.patience = model, patience
        self.best, self.state, self.since = -1.0, None, 0

    @property
    def over(self):
        return self.state is not None and self.since >= self.patience

    def note(self, val_accuracy):
        if val_accuracy > self.best:
            self.best, self.since = val_accuracy, 0
            self.state = {name: a.copy() for name, a in self.model.state_dict().items()}
        else:
            self.since += 1

    def restore(self):
        if self.state is not None:
            self.model.load_state_dict(self.state)


def run(
    trainer,
    loader,
    epochs,
    *,
    schedule=None,
    targets=None,
    validation=None,
    history=None,
    patience=None,
    verbose=0,
    checkpoints=None,
):
    """Train for a number of epochs; returns (history, interrupted).

    history: dict of lists, one entry an epoch (keys: HISTORY; val_* None without `validation`, a pair (x, y)); one
    given is continued. patience: stop after this many epochs without a better val_accuracy and go back to the best
    weights. verbose: see `Meter`. checkpoints: a `Checkpoints`, from the newest of which the run goes on, and which
    saves the next ones. Ctrl-C ends the training after the current update, with a checkpoint; what was learnt stays.
    """
    history = {key: [] for key in HISTORY} if history is None else history
    before = len(history["loss"])
    early = None if patience is None else EarlyStopping(trainer.model, patience)
    progress = Progress(trainer, loader, schedule, history, early)
    meter = Meter(verbose, before + epochs, trainer.device)
    if checkpoints is not None:
        checkpoints.restore(progress)
    interrupted = False
    try:
        while len(history["loss"]) < before + epochs and not (early and early.over):
            row, images = run_epoch(trainer, loader, schedule, targets, validation, progress, checkpoints, meter)
            with no_interrupt():
                for key in HISTORY:
                    history[key].append(row[key])
                if early is not None:
                    early.note(row["val_accuracy"])
                progress.start_epoch()
            meter.epoch(history, images)
            if checkpoints is not None:
                checkpoints.save_if_due(progress, epoch_ended=True)
    except KeyboardInterrupt:
        interrupted = True
        if checkpoints is not None:
            checkpoints.save(progress)
        if verbose:
            epoch = len(history["loss"]) - before + 1
            more = f"; resume goes on from {checkpoints.folder}" if checkpoints is not None else ""
            say(f"stopped by Ctrl-C in epoch {epoch}; the model keeps what it has learnt{more}")
    if early is not None:
        if verbose and early.over:
            say(f"no better val_accuracy for {patience} epochs: back to the best epoch")
        early.restore()
    return history, interrupted


def run_epoch(trainer, loader, schedule, targets, validation, progress, checkpoints, meter):
    """One epoch of training and validation, or the rest of it: its row of the history, and how many images it saw."""
    train = train_epoch(trainer, loader, schedule, targets, progress, checkpoints, meter)
    val = {"loss": None, "accuracy": None} if validation is None else evaluate(trainer, *validation)
    row = {"loss": train["loss"], "accuracy": train["accuracy"], "val_loss": val["loss"]}
    row |= {"val_accuracy": val["accuracy"], "lr": progress.lr, "seconds": progress.elapsed()}
    return {**row, **{key: train[key] for key in CODES}}, train["images"]
