"""What the cells of a lesson are made of: a prediction and its answer, the student's turn and its solution."""

import ast
import inspect
import linecache
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .checker import UNWRITTEN, faults, find_task

THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")  # any other comma is a decimal one: 2,5

MARKS = ("yours", "solution", "tb.course.yours", "tb.course.solution")

said: dict[str, Any] = {}  # the predictions of this session, None where nobody was asked
pieces: dict[str, Any] = {}  # id of a cell -> what the library and later cells use: the student's, or the solution


class NotYet(NotImplementedError):
    """A piece that a student has not written is needed. A notebook shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Unwritten:
    """What stands in for a function that is not written yet: whatever one does with it raises NotYet."""

    own = False

    def __init__(self, piece: str):
        self.piece = piece

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        raise NotYet(f"needs cell {self.piece}: {find_task(self.piece).name} is not written yet")

    def __getattr__(self, name: str) -> Any:
        return self() if not name.startswith("__") else object.__getattribute__(self, name)


# --- predictions ------------------------------------------------------------------------------------------------------


def predict(name: str, unit: str = "", choices: Sequence[Any] = ()) -> Any:
    """Ask what will come out, and keep what is typed: one of the choices, or a number. Enter alone: no prediction.

    Asks in a notebook only. A script, and a notebook that runs by itself, goes on with None.
    """
    among = f" [{' / '.join(map(str, choices))}]" if choices else f" (in {unit})" if unit else ""
    question = f"Your prediction, {name}{among}: "
    said[name] = None
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        print(question + "(asked in a notebook)")
        return None
    while said[name] is None:
        try:
            typed = input(question).strip()
        except (EOFError, NotImplementedError):  # the second is a notebook's that nobody watches
            print(question + "(asked in a notebook)")
            return None
        if not typed:
            return None
        said[name] = _read(typed, unit, choices)
        if said[name] is None:
            print(f"{typed!r} is none of {', '.join(map(str, choices))}" if choices else f"{typed!r} is no number")
    return said[name]


def _read(typed: str, unit: str, choices: Sequence[Any]) -> Any:
    """The choice or number that was typed, or None."""
    if choices:
        return next((choice for choice in choices if typed.casefold() == str(choice).casefold()), None)
    text = typed.removesuffix(unit.strip()).strip()
    text = text.replace(",", "" if THOUSANDS.fullmatch(text) else ".").replace("_", "")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def answer(name: str, value: Any, measured: Any = None, tolerance: float = 0.0, unit: str = "") -> None:
    """Say how far off the prediction `name` was. value: the answer, which is written out in the cell.

    measured: what this run found. AssertionError unless it is the value, to within the tolerance.
    """
    if measured is not None:
        right = measured == value if isinstance(value, str) else abs(measured - value) <= tolerance
        assert right, f"the answer to {name} is given as {value}, but {measured} was measured"
    guess, shown = said.get(name), f"{_number(value)}{unit}"
    if guess is None:
        print(f"{name}: {shown}")
    elif guess == value:
        print(f"{name}: you said {shown}, and so it is")
    elif isinstance(guess, str) or isinstance(value, str):
        print(f"{name}: you said {guess}; it is {shown}")
    else:
        off = f"{_number(abs(guess - value))}{unit} too {'high' if guess > value else 'low'}"
        print(f"{name}: you said {_number(guess)}{unit}; it is {shown}: {off}")


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


# --- the student's turn, and the solution -----------------------------------------------------------------------------


def yours(piece: str) -> Callable[[Any], Any]:
    """Decorator of the function or class that a student writes in cell `piece`, "1.3" for the third of lesson 1.

    As long as `...` stands in it, later cells that need it say so in one sentence.
    """
    find_task(piece)

    def mark(written: Any) -> Any:
        pieces.pop(piece, None)
        if has_gap(written):
            return Unwritten(piece)
        written.piece, written.own = piece, True
        pieces[piece] = written
        return written

    return mark


def solution(piece: str) -> Callable[[Any], Any]:
    """Decorator of the solution of cell `piece`, in the cell below it: gives the name to whichever is to be used.

    That is the student's own, where it passes its checks; else the solution, with a line that says so.
    """
    task, caller = find_task(piece), sys._getframe(1).f_globals

    def choose(solved: Any) -> Any:
        solved.piece = piece
        pieces[piece] = better(caller.get(task.name), lambda: solved, piece)
        return pieces[piece]

    return choose


def better(own: Any, solve: Callable[[], Any], piece: str) -> Any:
    """The student's own version of a piece if it passes its checks, else the solution, with a line that says so."""
    task = find_task(piece)
    found = faults(task, own) if getattr(own, "own", False) else [UNWRITTEN]
    if not any(found):
        return own
    failed = sum(map(bool, found))
    why = UNWRITTEN if set(found) == {UNWRITTEN} else f"yours fails {failed} of {len(found)} checks"
    print(f"{piece} {task.name}: {why}; the solution is used from here on")
    return solve()


def has_gap(written: Any) -> bool:
    """Whether `...` stands in a function or class where code should: alone, assigned or returned."""
    places = (ast.Expr, ast.Assign, ast.AnnAssign, ast.Return)
    found = [node.value for node in ast.walk(ast.parse(source_of(written))) if isinstance(node, places)]
    return any(isinstance(value, ast.Constant) and value.value is ... for value in found)


def source_of(written: Any) -> str:
    """The source of a function or class, of a notebook's too, without `yours` on it. ValueError if it is not known."""
    unwrapped = inspect.unwrap(written)
    inside = unwrapped if inspect.isfunction(unwrapped) else _first_function(written)
    lines = linecache.getlines(inside.__code__.co_filename, getattr(inside, "__globals__", None))
    line = inside.__code__.co_firstlineno
    for node in ast.walk(ast.parse("".join(lines))) if lines else ():
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name != written.__name__:
            continue
        if min([node.lineno, *(d.lineno for d in node.decorator_list)]) <= line <= (node.end_lineno or 0):
            source = "".join(lines[node.lineno - 1 : node.end_lineno])
            above = [f"@{ast.unparse(d)}\n" for d in node.decorator_list if not is_mark(d)]
            return "".join(above) + (inspect.cleandoc(source) if source[0] == " " else source)
    raise ValueError(f"the source of {written.__name__} is not known: define it in a cell or a file")


def is_mark(decorator: ast.expr) -> bool:
    """Whether a decorator is a lesson's: `@tb.course.yours("1.3")`."""
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in MARKS


def _first_function(written: type) -> Any:
    for value in vars(written).values():
        found = getattr(value, "__func__", value)
        if inspect.isfunction(found):
            return found
    raise ValueError(f"class {written.__name__} defines no function")
