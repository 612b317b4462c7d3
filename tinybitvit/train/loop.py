"""The training loop: epochs, validation, history, progress."""

import time

import numpy as np

from .. import backend
from ..ops.norm import log_softmax_array, softmax_array

HISTORY = ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds")


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


def train_epoch(trainer, loader, schedule=None, targets=None):
    """One pass over the loader; returns its mean loss and accuracy (on the images as augmented) and their number."""
    loss = hits = weights = images = 0.0
    for x, y, *rest in loader:
        weight = rest[0] if rest else None
        step_loss = trainer.step(x, y if targets is None else targets(x, y), weight)
        if schedule is not None:
            schedule.step()
        total = len(x) if weight is None else float(weight.sum())
        guess = np.concatenate([backend.to_numpy(o.argmax(axis=1)) for o in trainer.outputs])
        loss += step_loss * total
        hits += float(((guess == y) * (1 if weight is None else weight)).sum())
        weights += total
        images += len(x)
    return {"loss": loss / max(weights, 1e-12), "accuracy": hits / max(weights, 1e-12), "images": images}


def evaluate(trainer, x, y):
    """Mean cross-entropy and accuracy of the trainer's model on normalised images x and class numbers y."""
    logits = trainer.predict(x)
    log_p = log_softmax_array(np, logits)
    return {"loss": -float(log_p[np.arange(len(y)), y].mean()), "accuracy": float((logits.argmax(axis=1) == y).mean())}


def clock(seconds):
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def progress_line(history, epochs, images):
    """One line on the last epoch of a history: losses, accuracies, speed and the time left."""
    done, last = len(history["loss"]), {k: v[-1] for k, v in history.items()}
    text = f"epoch {done:{len(str(epochs))}}/{epochs}  loss {last['loss']:.4f}  accuracy {last['accuracy']:.3f}"
    if last["val_accuracy"] is not None:
        text += f"  val_loss {last['val_loss']:.4f}  val_accuracy {last['val_accuracy']:.3f}"
    left = (epochs - done) * sum(history["seconds"]) / done
    return f"{text}  {images / max(last['seconds'], 1e-9):.0f} images/s  {clock(left)} left"


class EarlyStopping:
    """Remembers the weights of the epoch with the best val_accuracy; `done` after `patience` without a better."""

    def __init__(self, model, patience):
        self.model, self.patience = model, patience
        self.best, self.state, self.since = -1.0, None, 0

    def done(self, val_accuracy):
        if val_accuracy > self.best:
            self.best, self.since = val_accuracy, 0
            self.state = {name: a.copy() for name, a in self.model.state_dict().items()}
        else:
            self.since += 1
        return self.since >= self.patience

    def restore(self):
        if self.state is not None:
            self.model.load_state_dict(self.state)


def run(
    trainer, loader, epochs, *, schedule=None, targets=None, validation=None, history=None, patience=None, verbose=0
):
    """Train for a number of epochs; returns (history, interrupted).

    history: dict of lists, one entry an epoch (keys: HISTORY; val_* None without `validation`, a pair (x, y)); one
    given is continued. patience: stop after this many epochs without a better val_accuracy and go back to the best
    weights. Ctrl-C ends the training after the current update; what was learnt stays.
    """
    history = {key: [] for key in HISTORY} if history is None else history
    before = len(history["loss"])
    early = None if patience is None else EarlyStopping(trainer.model, patience)
    interrupted = False
    try:
        for _ in range(epochs):
            row, images = run_epoch(trainer, loader, schedule, targets, validation)
            for key in HISTORY:
                history[key].append(row[key])
            if verbose:
                print(progress_line(history, before + epochs, images), flush=True)
            if early is not None and early.done(row["val_accuracy"]):
                if verbose:
                    print(f"no better val_accuracy for {patience} epochs: back to the best epoch", flush=True)
                break
    except KeyboardInterrupt:
        interrupted = True
        for values in history.values():  # all of the same length, wherever it struck
            del values[len(history["seconds"]) :]
        if verbose:
            epoch = len(history["loss"]) - before + 1
            print(f"stopped by Ctrl-C in epoch {epoch}; the model keeps what it has learnt", flush=True)
    if early is not None:
        early.restore()
    return history, interrupted


def run_epoch(trainer, loader, schedule, targets, validation):
    """One epoch of training and validation: its row of the history, and how many images it saw."""
    start, lr = time.perf_counter(), trainer.optimizer.param_groups[0]["lr"]
    train = train_epoch(trainer, loader, schedule, targets)
    val = {"loss": None, "accuracy": None} if validation is None else evaluate(trainer, *validation)
    values = (train["loss"], train["accuracy"], val["loss"], val["accuracy"], lr, time.perf_counter() - start)
    return dict(zip(HISTORY, values, strict=True)), train["images"]
