"""What a training tells on stdout: how far it is, how well it does, and the time left."""

import contextlib
import sys
import time

MINUTE = 60.0  # seconds: between two lines within an epoch


class Meter:
    """A line after every epoch of a training, and one a minute within a longer one.

    verbose: 1; 0 for nothing; or a text that begins each line, where several trainings share a screen: then there is at
    most one line a minute in all. epochs: of the whole training. device: a name to print.
    """

    def __init__(self, verbose, epochs, device):
        self.verbose, self.epochs, self.device = verbose, epochs, device
        self.lead = f"{verbose}: " if isinstance(verbose, str) else ""
        self.told = time.monotonic()

    def update(self, progress):
        """An update was made, to where a `Progress` stands."""
        if self.verbose and self._due() and progress.done < len(progress.loader):
            self._tell(update_line(progress, self.epochs, self.device))

    def epoch(self, history, images):
        """An epoch over so many images has ended; its row is the last of the history."""
        if self.verbose and (not self.lead or self._due()):
            self._tell(epoch_line(history, self.epochs, images, self.device))

    def _due(self):
        return time.monotonic() - self.told >= MINUTE

    def _tell(self, line):
        say(self.lead + line)
        self.told = time.monotonic()


def update_line(progress, epochs, device):
    """One line on an epoch under way: how much of it is done, loss and accuracy so far, speed, the time left."""
    sums, total, epoch = progress.sums, len(progress.loader), len(progress.history["loss"]) + 1
    weights, seconds = max(sums["weights"], 1e-12), progress.elapsed()
    left = (total - progress.done + (epochs - epoch) * total) * seconds / progress.done
    text = f"epoch {epoch:{len(str(epochs))}}/{epochs}, {100 * progress.done // total:2} %"
    text += f"  loss {sums['loss'] / weights:.4f}  accuracy {sums['hits'] / weights:.3f}"
    return f"{text}  {speed(sums['images'], seconds, device)}  {clock(left)} left"


def epoch_line(history, epochs, images, device):
    """One line on the last epoch of a history: losses, accuracies, speed, the time left."""
    done, last = len(history["loss"]), {k: v[-1] for k, v in history.items()}
    text = f"epoch {done:{len(str(epochs))}}/{epochs}  loss {last['loss']:.4f}  accuracy {last['accuracy']:.3f}"
    if last["val_accuracy"] is not None:
        text += f"  val_loss {last['val_loss']:.4f}  val_accuracy {last['val_accuracy']:.3f}"
    left = (epochs - done) * sum(history["seconds"]) / done
    return f"{text}  {speed(images, last['seconds'], device)}  {clock(left)} left"


def speed(images, seconds, device):
    return f"{images / max(seconds, 1e-9):.0f} images/s on {device}"


def clock(seconds):
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def say(text: str) -> None:
    """Print a line at once. An output that is closed, full or knows only ASCII costs the line, never the training."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
