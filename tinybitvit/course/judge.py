"""The tests of a notebook, run where no student's code is: what they call is answered by the student's process."""

import ast
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

import nbformat
import numpy as np

from .player import Output
from .stage import NoAnswer, Stage
from .submission import Compiler, execute, without_magics
from .wire import NOTEBOOK

VALUE = "the last value of a test"  # a name that no test uses
INDEPENDENT = ast.Assert, ast.Expr, ast.For, ast.With, ast.If  # after which other statements still say something


class Judge:
    """Runs the cells of the notebook that was handed out, except those that students fill in, and its tests.

    What a student fills in comes from `stage`: the functions, Functions and data that the solution cells define. Only
    tests may call it; other cells find that it is not written yet.
    """

    def __init__(self, cells: list, stage: Stage):
        self.stage = stage
        self.names: dict[str, Any] = {"__name__": NOTEBOOK}
        self.compile = Compiler()
        code = [cell for cell in cells if cell.cell_type == "code"]
        self.plain = [cell for cell in code if not _kind(cell, "solution")]
        self.wanted = {name for cell in code if _kind(cell, "solution") for name in defined(cell.source)}

    def grade(self, cell: Any) -> list:
        """The outputs of a test: what it found wrong, or nothing but the points that it may give as a number."""
        out, value = Output(), None
        with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(Output()):
            warnings.simplefilter("ignore")
            self._prepare(cell.metadata.nbgrader.grade_id)
            self.names.update(self._answers())
            self.stage.begin()
            failed: list[BaseException] = []
            try:
                value = self._run(cell.source, cell.metadata.nbgrader.points, failed)
            except (Exception, SystemExit) as error:
                failed.append(error)
        outputs = [nbformat.v4.new_output("stream", text="".join(out.parts))] if out.parts else []
        if failed:
            return [*outputs, *map(_as_output, failed)]
        if value is not None:
            outputs.append(nbformat.v4.new_output("execute_result", data={"text/plain": repr(value)}))
        return outputs

    def _prepare(self, grade_id: str) -> None:
        """Run what stands before a test in the notebook that was handed out, each cell once."""
        self.names.update(dict.fromkeys(self.wanted, _not_written))
        while self.plain:
            cell = self.plain.pop(0)
            if _kind(cell, "grade"):
                if cell.metadata.nbgrader.grade_id == grade_id:
                    break
                continue
            with suppress(Exception, SystemExit):
                execute(self.compile(without_magics(cell.source), "cell"), self.names)

    def _answers(self) -> dict[str, Any]:
        found = {}
        for name in self.wanted:
            self.names.pop(name, None)
            with suppress(NoAnswer, KeyError):
                found[name] = self.stage[name]
        return found

    def _run(self, source: str, points: float, failed: list) -> float | None:
        """Run a test; the points that it gives as its last value. An AssertionError for any other value but None.

        An assertion that fails is put into `failed` and does not hide those after it, unless it was to set a name.
        """
        body = ast.parse(without_magics(source)).body
        last = body[-1] if body else None
        if isinstance(last, ast.Expr):
            body[-1] = ast.copy_location(ast.Assign([ast.Name(VALUE, ast.Store())], last.value), last)
        self.names[VALUE] = None
        for statement in body:
            whole = ast.fix_missing_locations(ast.Module([statement], []))
            try:
                execute(self.compile(whole, "test"), self.names)
            except AssertionError as error:
                if not isinstance(statement, INDEPENDENT):
                    raise
                failed.append(error)
        value = self.names.pop(VALUE)
        if isinstance(value, (bool, np.bool_)):
            assert value, "the test ends in False"
        if value is None or isinstance(value, (bool, np.bool_)):
            return None
        with suppress(TypeError, ValueError):
            value = float(value)
        right = isinstance(value, float) and 0 <= value <= points
        assert right, f"the test ends in {value}, not in points from 0 to {points:g}"
        return value


def _kind(cell: Any, name: str) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get(name))


def _not_written(*_: Any, **__: Any) -> None:
    raise NotImplementedError


def defined(source: str) -> set[str]:
    """The names that a cell defines at its top level."""
    names = set()
    for node in ast.parse(without_magics(source)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


def _as_output(error: BaseException) -> Any:
    """What a test's error looks like on the page: in the test, then in the student's code."""
    name, text = type(error).__name__, str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "test"]
    lines = [f"{name}: {text}", *(f"  in the test, line {frame.lineno}" for frame in frames)]
    lines += getattr(error, "student_traceback", "").splitlines()
    return nbformat.v4.new_output("error", ename=name, evalue=text, traceback=lines)
