"""The process that runs a student's code and answers calls to it. The tests are in another process: see `stage`.

Whatever the student's code does here, to this module too, it can only change what is answered.
"""

import ast
import base64
import builtins
import contextlib
import io
import json
import linecache
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional, nn, optim  # noqa: F401  what notebooks need is imported before the walls go up
from ..ops import Context
from . import cage, wire
from .submission import Compiler, execute, without_magics

SHOWN = 200_000  # characters of output kept from a cell


class Output(io.TextIOBase):
    """A stream of which the beginning is kept."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.left = SHOWN

    def write(self, text: str) -> int:
        self.parts.append(text[: self.left])
        self.left -= len(self.parts[-1])
        return len(text)


class Notebook:
    """The names of a notebook, and what runs its cells: with IPython's magics and displays where it is installed."""

    def __init__(self, name: str) -> None:
        self.names: dict[str, Any] = {}
        self.shell: Any = None
        self.cells = 0
        self.compile = Compiler()
        with contextlib.suppress(ImportError):
            from IPython.core.displaypub import CapturingDisplayPublisher
            from IPython.core.interactiveshell import InteractiveShell
            from traitlets.config import Config

            quiet = Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}})
            self.shell = InteractiveShell.instance(config=quiet)
            self.shell.display_pub = CapturingDisplayPublisher()
            self.shell.system = _system
            self.names = self.shell.user_ns
            os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as in a notebook
        self.names["__name__"] = name

    def run(self, source: str) -> dict[str, Any]:
        """What a cell printed ("stdout", "stderr"), displayed ("data") and raised ("error": name, text, traceback)."""
        self.cells += 1
        place = f"cell {self.cells}"
        linecache.cache[place] = len(source), None, source.splitlines(keepends=True), place
        out, err, data = Output(), Output(), []
        error = None
        sys.displayhook = lambda value: data.append(self._shown(value)) if value is not None else None
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self._execute(source, place)
        except BaseException as raised:  # SystemExit and the interrupt of a loop, too
            error = fault(raised)
        if self.shell is not None:
            data += [_text_only(output["data"]) for output in self.shell.display_pub.outputs]
            self.shell.display_pub.outputs = []
        return {"stdout": "".join(out.parts), "stderr": "".join(err.parts), "data": data, "error": error}

    def _execute(self, source: str, place: str) -> None:
        """As a notebook does: the value of the last expression is displayed."""
        plain = self.shell.transform_cell(source) if self.shell is not None else without_magics(source)
        body, last = ast.parse(plain, place).body, []
        if body and isinstance(body[-1], ast.Expr) and not plain.rstrip().endswith(";"):
            last = [body.pop()]
        execute(self.compile(ast.Module(body, []), place), self.names)
        execute(self.compile(ast.Interactive(last), place, "single"), self.names)
        if self.shell is not None:
            self.shell.events.trigger("post_execute")  # where matplotlib shows its figures

    def _shown(self, value: Any) -> dict[str, str]:
        data = {"text/plain": repr(value)} if self.shell is None else self.shell.display_formatter.format(value)[0]
        return _text_only(data)

    def kinds(self) -> dict[str, str]:
        """What the notebook's public names are: "class", "function" or "data"."""
        public = {name: value for name, value in self.names.items() if not name.startswith("_")}
        return {
            name: "class" if isinstance(value, type) else "function" if callable(value) else "data"
            for name, value in public.items()
        }


def _system(command: str) -> None:
    """What `!command` does: IPython's own way needs a terminal."""
    print(subprocess.run(command, shell=True, capture_output=True, text=True, errors="replace").stdout, end="")


def _text_only(data: dict[str, Any]) -> dict[str, str]:
    shown = {kind: base64.b64encode(v).decode() if isinstance(v, bytes) else v for kind, v in data.items()}
    return {kind: value for kind, value in shown.items() if isinstance(value, str)}


def fault(error: BaseException) -> tuple[str, str, str]:
    """(name, text, traceback from the student's code on) of what was raised."""
    frames = error.__traceback__
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("cell "):
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames, limit=-20, chain=False)
    return type(error).__name__, str(error)[:SHOWN], "".join(lines)[:SHOWN]


class Player:
    """Answers the grader's requests, one after the other."""

    def __init__(self, connection: Connection, notebook: Notebook):
        self.connection, self.notebook = connection, notebook
        self.contexts: dict[int, Context] = {}

    def serve(self) -> None:
        while True:
            data = self.connection.recv_bytes()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                reply = self.answer(data)
            except BaseException as error:  # an interrupt between two of the student's statements
                reply = wire.Packing().pack(("raise", *fault(error)))
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.connection.send_bytes(reply)

    def answer(self, data: bytes) -> bytes:
        letter = wire.Letter(data, borrow=self.borrowed, classes=self.notebook.names)
        what, *rest = letter.root()
        if what == "run":
            return wire.Packing().pack(("done", self.notebook.run(*rest), self.notebook.kinds()))
        if what == "value":
            return wire.Packing().pack(("done", self.notebook.names[rest[0]]))
        return self.call(letter, *rest)

    def call(self, letter: wire.Letter, name: str, method: str | None, context: Any, inputs, options, dropped) -> bytes:
        """The result of a function, or of a Function's method with the Context of that number; and what it changed."""
        for number in dropped:
            self.contexts.pop(number, None)
        arguments = inputs
        function = self.notebook.names[name]
        if method is not None:
            number, needs = context
            function = getattr(function, method)
            arguments = (self.contexts.setdefault(number, Context(np, needs)), *inputs)
        result = function(*arguments, **options)
        packing, changed = wire.Packing(letter.values), {}
        for i, value in enumerate(letter.values):
            if letter.differs(i) and (node := packing.state(value)) != letter.nodes[i]:
                changed[i] = node
        kept = {id(value) for value in wire.lent([inputs, options])}
        if any(id(letter.values[i]) in kept for i in changed):
            raise AssertionError("it changed its input in place: compute a new array instead")
        return packing.pack(("done", result), changed)

    def borrowed(self, number: int) -> Any:
        """What calls a function of the grader's."""

        def call(*inputs: Any) -> Any:
            self.connection.send_bytes(wire.Packing().pack(("call", number, inputs)))
            what, *rest = wire.Letter(self.connection.recv_bytes()).root()
            if what == "raise":
                raise getattr(builtins, rest[0], RuntimeError)(rest[1])
            return rest[0]

        return call


def main() -> None:
    address, key, folder, name = json.loads(sys.stdin.readline())
    connection = Client(address, authkey=bytes.fromhex(key))
    os.chdir(folder)
    sys.path.insert(0, folder)
    notebook = Notebook(name)
    missing = cage.enter(Path(folder))
    connection.send_bytes(wire.Packing().pack(missing))
    with contextlib.suppress(EOFError):
        Player(connection, notebook).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
