"""The program's own stdin, stdout and stderr: closed, broken, full or narrow, none of them ends in a traceback."""

import contextlib
import os
import sys

NAMES = ("stdin", "stdout", "stderr")


def prepare_streams() -> None:
    """The null device for what the program was started without (`>&-`); escapes for what an encoding lacks."""
    for number, name in enumerate(NAMES):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            # Nothing may be opened under this number later: what a library prints would go into that file.
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        if number and hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush() -> bool:
    """Whether all that was printed has arrived. What has not is dropped, or Python would complain of it at its end."""
    arrived = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            arrived = arrived and stream is not sys.stdout
            if not isinstance(error, BrokenPipeError):  # a reader that leaves, such as `head`, has what it wanted
                complain(f"tinybitvit: the output is not whole: {error.strerror}")
    return arrived


def complain(text: str) -> None:
    """A line on stderr, where there is one."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """An error as one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) and "memory" not in text.lower():
        text = f"not enough memory ({text}): make images, batches or the model smaller"
    return one_line(text)


def one_line(text: str) -> str:
    """A text that may hold file names as one line that does nothing to a terminal."""
    from ..files import printable

    return printable(" ".join(text.split()))
