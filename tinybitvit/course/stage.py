"""The grader's side of a student's process: it starts it, runs cells in it, calls functions in it, and ends it."""

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from os import PathLike
from pathlib import Path
from typing import Any

from ..ops import Function
from . import wire
from .submission import read_cells

TIMEOUT = 60  # seconds for a cell, and for all that one test asks of a submission
FREE = 0.1  # seconds of a request that do not count: a test may make thousands, on a machine that is busy
GRACE = 2  # seconds after which what ignores an interrupt is killed
LARGEST = 32 << 20  # bytes of an answer
RESTARTS = 3
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")


class StudentError(Exception):
    """What a student's code raised, under the name that it had there."""


class NoAnswer(Exception):
    """The student's process ended, took too long, or answered nonsense."""


def apart(path: str | PathLike, timeout: int = TIMEOUT) -> "Stage":
    """The names that a submission defines, run in a process of its own: `with tb.course.apart("ps3.py") as names:`.

    Where `load` gives the student's objects, these are stand-ins that call them there. `check` takes them.
    timeout: seconds for each cell, and for all calls after a name was looked up. ValueError as for `load`.
    """
    cells = read_cells(path)
    stage = Stage(Path(path).parent, timeout, Path(path).stem)
    for source in cells:
        stage.run(source)
    return stage


class Stage(Mapping):
    """A process for one submission: cells run in it, and its public names are the keys of this mapping.

    folder: what lies beside the submission, copied for it. A process that ended, or that had to be ended, is started
    again with all cells but the one at which it happened, at most RESTARTS times.
    """

    def __init__(self, folder: Path, timeout: int = TIMEOUT, name: str = "__main__"):
        self.timeout, self.name = timeout, name
        self.missing: list[str] = []  # walls that the system did not give
        self._kinds: dict[str, str] = {}
        self._ran: list[str] = []
        self._starts = 0
        self._left, self._deadline, self._interrupted = 0.0, math.inf, False
        self._contexts = 0
        self._dropped: list[int] = []
        self._process: subprocess.Popen | None = None
        self._connection: Connection
        self._folder = tempfile.TemporaryDirectory(prefix="submission-", ignore_cleanup_errors=True)
        unwanted = shutil.ignore_patterns("*.ipynb", ".git", "__pycache__")
        shutil.copytree(folder, self._folder.name, symlinks=True, ignore=unwanted, dirs_exist_ok=True)
        with contextlib.suppress(OSError):  # without this, matplotlib looks for fonts for seconds
            shutil.copytree(Path.home() / ".cache" / "matplotlib", Path(self._folder.name, ".cache", "matplotlib"))

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()
        self._folder.cleanup()

    # --- cells and names ------------------------------------------------------------------------------------------

    def run(self, source: str) -> dict[str, Any]:
        """Run a cell: what it printed, displayed and raised, as `player.Notebook.run` says."""
        self.begin()
        try:
            done, kinds = self._ask(("run", source))
            self._kinds = {str(name): str(kind) for name, kind in kinds.items()}
            done = {name: done[name] for name in ("stdout", "stderr", "data", "error")}
        except (NoAnswer, LookupError, TypeError, ValueError, AttributeError) as error:
            return {"stdout": "", "stderr": "", "data": [], "error": ("NoAnswer", str(error), "")}
        if not done["error"] or done["error"][0] != "KeyboardInterrupt":
            self._ran.append(source)
        return done

    def begin(self) -> None:
        """From now on the submission has `timeout` seconds."""
        self._left, self._interrupted = self.timeout, False

    def _names(self) -> dict[str, str]:
        """What each public name is: "class", "function" or "data"."""
        if self._process is None:
            self.run("")  # starts it again
        return self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __getitem__(self, name: str) -> Any:
        kind = self._names()[name]
        self.begin()
        if kind == "data":
            return self._ask(("value", name))[0]
        if kind == "function":
            return self._function(name)
        return self._operation(name)

    def _function(self, name: str) -> Callable:
        def function(*inputs: Any, **options: Any) -> Any:
            return self._call(name, None, None, inputs, options)

        function.__name__ = name
        function.stage_begin = self.begin  # type: ignore[attr-defined]
        return function

    def _operation(self, name: str) -> type[Function]:
        """A Function whose passes are computed by the student's class."""

        def forward(ctx, *arrays, **params):
            self._contexts += 1
            ctx.there = There(self._contexts, tuple(ctx.needs_input_grad))
            weakref.finalize(ctx.there, self._dropped.append, self._contexts)
            return self._call(name, "forward", ctx.there, arrays, params)

        def backward(ctx, g):
            return self._call(name, "backward", ctx.there, (g,), {})

        passes = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(name, (Function,), {**passes, "stage_begin": staticmethod(self.begin)})

    # --- requests -------------------------------------------------------------------------------------------------

    def _call(self, name: str, method: str | None, there: "There | None", inputs: tuple, options: dict) -> Any:
        dropped, self._dropped[:] = self._dropped[:], []
        context = None if there is None else (there.number, there.needs_input_grad)
        return self._ask(("call", name, method, context, inputs, options, dropped), lent=[inputs, options])[0]

    def _ask(self, request: tuple, lent: Any = ()) -> list:
        """The answer. Raises what the student's code raised, and NoAnswer."""
        functions: list[Callable] = []

        def lend(function: Callable) -> int:
            functions.append(function)
            return len(functions) - 1

        packing = wire.Packing(lend=lend)
        message = packing.pack(request)
        began = time.monotonic()
        try:
            self._ensure()
            began = time.monotonic()
            self._deadline = began + max(self._left, 0.0) + FREE
            self._connection.send_bytes(message)
            while True:
                letter = self._receive(packing.values)
                what, *rest = letter.root()
                if what == "call":
                    self._connection.send_bytes(_called(functions[rest[0]], rest[1]))
                elif what == "raise":
                    raise _as_error(*map(str, rest))
                else:
                    _take_over(letter, packing.values, lent)
                    return rest
        except (StudentError, NoAnswer, NotImplementedError, AssertionError):
            raise
        except Exception as error:  # whatever a message from there may bring about
            self._end()
            raise NoAnswer(f"the submission's process ended or sent nonsense ({type(error).__name__})") from None
        finally:
            self._left -= max(0.0, time.monotonic() - began - FREE)
            self._deadline = math.inf

    def _receive(self, given: list) -> wire.Letter:
        """The next message. A submission whose time is up is interrupted; NoAnswer where it does not stop either."""
        left = self._deadline - time.monotonic()
        if left <= 0 or not self._connection.poll(left):
            if self._interrupted:
                self._end()
                raise NoAnswer(f"stopped after {self.timeout} s")
            assert self._process is not None
            self._interrupted, self._deadline = True, time.monotonic() + GRACE
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGINT) if os.name == "posix" else self._process.kill()
            return self._receive(given)
        return wire.Letter(self._connection.recv_bytes(LARGEST), given)

    # --- the process ----------------------------------------------------------------------------------------------

    def _ensure(self) -> None:
        if self._process is not None:
            return
        if self._starts > RESTARTS:
            raise NoAnswer("the process of the submission ended too often")
        self._starts += 1
        self._start()
        again, self._ran = self._ran, []
        for source in again:
            self.run(source)
        self.begin()

    def _start(self) -> None:
        self._deadline = time.monotonic() + TIMEOUT
        key = secrets.token_bytes(16)
        folder = self._folder.name
        inherited = ("PATH", "LANG", "SYSTEMROOT", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "HOME": folder,
            "TMPDIR": folder,
            **THREADS,
        }
        with Listener(authkey=key) as listener:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.player"],
                env={**environment, **THREADS},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([listener.address, key.hex(), folder, self.name]) + "\n")
            self._process.stdin.close()
            watch = threading.Thread(target=self._watch, args=(self._process, listener.address, key), daemon=True)
            watch.start()
            self._connection = listener.accept()
        self.missing = wire.Letter(self._connection.recv_bytes(LARGEST)).root()

    def _end(self) -> None:
        """End the process and all that it started."""
        process, self._process, self._kinds = self._process, None, {}
        if process is None:
            return
        self._connection.close()
        _stop(process)

    def _watch(self, process: subprocess.Popen, address: Any, key: bytes) -> None:
        """End a process that reads nothing, or sends a message byte by byte; free who waits for one that ended."""
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() > self._deadline + 2 * GRACE:
                _stop(process)
        with contextlib.suppress(Exception):
            Client(address, authkey=key).close()


def _stop(process: subprocess.Popen) -> None:
    process.terminate()  # its guardian ends the rest
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    process.wait()


@dataclass(frozen=True)
class There:
    """Stands for a Context in the student's process, which is forgotten with it."""

    number: int
    needs_input_grad: tuple[bool, ...]


def _called(function: Callable, inputs: tuple) -> bytes:
    """The reply to a call of a function of the grader's."""
    try:
        return wire.Packing().pack(("return", function(*inputs)))
    except Exception as error:
        return wire.Packing().pack(("raise", type(error).__name__, str(error)))


def _as_error(name: str, text: str, trace: str) -> Exception:
    known = {"NotImplementedError": NotImplementedError, "AssertionError": AssertionError}
    error = known.get(name) or type(name, (StudentError,), {})
    raised = error(text)
    raised.student_traceback = trace
    return raised


def _take_over(letter: wire.Letter, values: list, lent: Any) -> None:
    """What a call changed in the objects that it was given. What it was given as arrays, lists and dicts stays."""
    untouchable = {id(value) for value in wire.lent(lent)}
    for i, (kind, *rest) in letter.changed.items():
        target = values[i]
        if id(target) in untouchable:
            continue
        if kind == "array":
            target[...] = letter.content([kind, *rest])
        elif kind == "list":
            target[:] = [letter.value(item) for item in rest[0]]
        elif kind == "dict":
            target.clear()
            target.update({letter.value(key): letter.value(item) for key, item in rest[0]})
        else:
            has = wire.attributes(target)
            for name, item in rest[1]:
                if name in has:
                    object.__setattr__(target, name, letter.value(item))
