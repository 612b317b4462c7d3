"""What a training tells on stdout: how far it is, how well it does, and the time left."""

import contextlib
import math
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

MINUTE = 60.0  # seconds: between two lines within an epoch
LOW, RISING = 0.8, 0.01  # training accuracies, and gains between two parts of a training, that ask for more epochs


class Meter:
    """A line after every epoch of a training, and one a minute within a longer one.

    verbose: 1 (0 in a process of joblib); 0 for nothing; or a text that begins each line, where several trainings share
    a screen: then there is at most one line a minute in all. epochs: of the whole training. device: a name to print.
    floor: the least value that the loss can take, if it is not 0, which the first line tells (see
    `step.smoothing_floor`).
    """

    def __init__(self, verbose: int | str, epochs: int, device: str, floor: float = 0.0):
        self.verbose, self.epochs, self.device, self.floor = verbose, epochs, device, floor
        if verbose == 1 and multiprocessing.current_process().name.startswith("LokyProcess"):
            self.verbose = 0  # a job of joblib, as of GridSearchCV(n_jobs=2): the lines of several would interleave
        self.lead = f"{verbose}: " if isinstance(verbose, str) else ""
        self.told = time.monotonic()

    def update(self, run: Any) -> None:
        """A `loop.Run` has made an update."""
        if self.verbose and self._due() and run.done < len(run.loader):
            self._tell(update_line(run, self.epochs, self.device, self.floor))

    def epoch(self, history: Mapping[str, Sequence], images: int) -> None:
        """An epoch over so many images has ended; its row is the last of the history."""
        if self.verbose and (not self.lead or self._due()):
            self._tell(epoch_line(history, self.epochs, images, self.device, self.floor))

    def _due(self):
        return time.monotonic() - self.told >= MINUTE

    def _tell(self, line):
        say(self.lead + line)
        self.told, self.floor = time.monotonic(), 0.0  # a floor is told once


def update_line(run: Any, epochs: int, device: str, floor: float = 0.0) -> str:
    """One line on an epoch under way: how much of it is done, loss and accuracy so far, speed, the time left."""
    sums, total, epoch = run.sums, len(run.loader), len(run.history["loss"]) + 1
    weights, seconds = sums["weights"] or math.nan, run.elapsed()
    left = (total - run.done + (epochs - epoch) * total) * seconds / run.done
    text = f"epoch {epoch:{len(str(epochs))}}/{epochs}, {100 * run.done // total:2} %"
    text += learnt(sums["loss"] / weights, sums["hits"] / weights, floor)
    return f"{text}  {speed(sums['images'], seconds, device)}  {clock(left)} left"


def epoch_line(history: Mapping[str, Sequence], epochs: int, images: int, device: str, floor: float = 0.0) -> str:
    """One line on the last epoch of a history: losses, accuracies, speed, the time left."""
    done, last = len(history["loss"]), {k: v[-1] for k, v in history.items()}
    text = f"epoch {done:{len(str(epochs))}}/{epochs}" + learnt(last["loss"], last["accuracy"], floor)
    if last["val_accuracy"] is not None:
        text += f"  val_loss {shown(last['val_loss'], 4)}  val_accuracy {last['val_accuracy']:.3f}"
    left = (epochs - done) * sum(history["seconds"]) / done
    return f"{text}  {speed(images, last['seconds'], device)}  {clock(left)} left"


def learnt(loss: float | None, accuracy: float | None, floor: float) -> str:
    """What an epoch shows of the images that are trained on."""
    least = f" (label smoothing's floor: {floor:.4f})" if floor else ""
    return f"  loss {shown(loss, 4)}{least}  training accuracy {shown(accuracy, 3)}"


def shown(value: float | None, digits: int) -> str:
    """A number, or a dash for one that was not finite, which a history holds as None."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def undertrained(history: Mapping[str, Sequence]) -> str | None:
    """Why a training ended too early, in words, or None: its training accuracy is still low, or still rising.

    history: of `loop.Run.train`. Low is below LOW; rising is a gain of RISING from one fifth of the epochs to the next,
    at the end. Fewer epochs than ten are compared one by one; such that made no update, whose accuracy is None, are
    left out.
    """
    accuracy = [value for value in history["accuracy"] if value is not None]
    if not accuracy:
        return "no epoch made an update" if history["accuracy"] else "no epoch was finished"
    part = max(1, len(accuracy) // 5)
    last = sum(accuracy[-part:]) / part
    before = accuracy[-2 * part : -part]
    gain = last - sum(before) / len(before) if before else 0.0
    if last >= LOW and gain < RISING:
        return None
    text = f"the training accuracy is {100 * last:.1f} % after {len(accuracy)} epoch{'s' * (len(accuracy) > 1)}"
    if not before:  # one epoch tells no trend
        return text
    return f"{text} and still rises, by {100 * gain:.1f} points" if gain >= RISING else f"{text} and rises no more"


def speed(images: int, seconds: float, device: str) -> str:
    """Images a second, and where."""
    return f"{images / max(seconds, 1e-9):.0f} images/s on {device}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def say(text: str) -> None:
    """Print a line at once. An output that is closed, full or knows only ASCII costs the line, never the training."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
