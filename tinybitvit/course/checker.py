"""`check`: what a student's answer gets right, and a counter-example for each check where it does not.

A Task is what one exercise asks for, with a list of checks: functions that take the student's answer and raise
AssertionError with a counter-example. The checks of problem set n stand in `ps<n>.py`, those of lesson n in
`lessons/lesson<nn>.py`.
"""

import importlib
import importlib.util
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import gradcheck
from ..ops import OPS, Context, Function
from ..tensor import Tensor

SETS = ("ps1", "ps2", "ps3", "ps4", "ps5")
LESSONS = tuple(f"lesson{number:02}" for number in range(1, 13))
UNWRITTEN = "not written yet"
SHOWN = 12  # a counter-example of more numbers than this is described, not printed


@dataclass(frozen=True)
class Check:
    title: str
    hints: tuple[str, ...]  # which open one by one, the next at each failed try
    run: Callable[[Any], None]


@dataclass
class Task:
    """Exercise `id` ("ps3.2"), whose answer is a function or class called `name` (or several: "split, join").

    The id of a cell of a lesson is "1.3", the third of lesson 1. part: what of the network it is; hook: the name under
    which `use` puts it into the library, "matmul.backward" for the second of a pair.
    """

    id: str
    name: str
    part: str = ""
    hook: str = ""
    checks: list[Check] = field(default_factory=list)
    tries: int = 0  # failed so far

    def check(self, title: str, *hints: str) -> Callable:
        """Decorator: adds a check, a function of the student's answer."""

        def add(run):
            self.checks.append(Check(title, hints, run))
            return run

        return add

    def answer(self, names: Mapping[str, Any]) -> Any:
        """The answer among the names that a submission defines. ValueError where it is missing."""
        wanted = self.name.split(", ")
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"the submission defines no {missing[0]}: that is what {self.id} asks for")
        return names[wanted[0]] if len(wanted) == 1 else tuple(names[name] for name in wanted)


def tasks(problem_set: str | None = None) -> dict[str, Task]:
    """The tasks of a problem set ("ps3") or lesson ("lesson03"), by their ids, in order; None: of all problem sets.

    ValueError for an unknown set.
    """
    if problem_set is not None and problem_set not in SETS + LESSONS:
        raise ValueError(f"there is no problem set {problem_set!r}; there are {', '.join(SETS)}")
    found = {}
    for name in SETS if problem_set is None else (problem_set,):
        path = f"{__package__}.{'lessons.' if name in LESSONS else ''}{name}"
        if name in SETS or importlib.util.find_spec(path):
            module = importlib.import_module(path)
            found.update({task.id: task for task in vars(module).values() if isinstance(task, Task)})
    return found


def find_task(task: str) -> Task:
    """The task with this id, "ps3.2" or "1.3". ValueError for an unknown one."""
    number = str(task).partition(".")[0]
    lesson = f"lesson{number:>02}"
    known = tasks(lesson) if lesson in LESSONS else tasks()
    if task not in known:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(known)}")
    return known[task]


def check(task: Any, answer: Any = None) -> bool | None:
    """Try a student's function or class on the checks of a task, print what was found; whether all of them passed.

    task: its id, "ps3.2", or, of a lesson, the answer itself: `check(softmax)`. Each check that fails comes with its
    counter-example, the first one with a hint: the next of its hints at each failed try. ValueError: no such task.
    """
    if not isinstance(task, str):
        piece = getattr(task, "piece", None)
        if piece is None:
            raise ValueError('check(f) needs a function of a cell that says which one it is: @yours("1.3")')
        check(piece, task)
        return None  # which a cell of a lesson would show below what was printed
    chosen = find_task(task)
    found = faults(chosen, answer)
    if task[0].isdigit() and set(found) == {UNWRITTEN}:
        print(f"{UNWRITTEN}: {chosen.name}, cell {task}")
        return False
    chosen.tries += any(found) and set(found) != {UNWRITTEN}
    first = next((number for number, fault in enumerate(found) if fault), None)
    print(f"{task} {chosen.name}")
    for number, (one, fault) in enumerate(zip(chosen.checks, found, strict=True)):
        print(f"  {'no' if fault else 'ok'}  {one.title}")
        if fault and (number == first or fault != UNWRITTEN):
            print(textwrap.indent(fault, " " * 8))
        if number == first and fault != UNWRITTEN:
            print(textwrap.indent(_hint(one.hints, chosen.tries), " " * 8))
    passed = sum(fault is None for fault in found)
    print(f"  {passed} of {len(found)} checks passed")
    return passed == len(found)


def faults(task: Task, answer: Any) -> list[str | None]:
    """For each check of a task what is wrong with an answer, or None."""
    with np.errstate(all="ignore"):  # what a wrong answer divides by 0 is told, not warned of
        return [_fault(one, answer) for one in task.checks]


def _hint(hints: tuple[str, ...], tries: int) -> str:
    number = min(tries, len(hints))
    return f"hint: {hints[0]}" if len(hints) == 1 else f"hint {number} of {len(hints)}: {hints[number - 1]}"


def _fault(one: Check, answer: Any) -> str | None:
    """What is wrong, or None."""
    try:
        one.run(answer)
    except NotImplementedError:
        return UNWRITTEN
    except AssertionError as error:
        return str(error) or "an assertion in it failed"
    except (Exception, SystemExit) as error:
        return f"it raised {type(error).__name__}: {error}"
    return None


# --- what checks are made of ------------------------------------------------------------------------------------------


def expect(
    function: Callable, inputs: Mapping[str, Any], expected: Any, results: Sequence[str] = (), **options
) -> None:
    """AssertionError unless function(*inputs.values(), **options) is `expected`: an array, a number or a tuple of them.

    results: the names of a tuple's items. Arrays are passed as copies, and may not be changed.
    """
    copies = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
    call = f"for {_shown({**inputs, **options})}"
    try:
        got = function(*copies.values(), **options)
    except (NotImplementedError, AssertionError):
        raise
    except (Exception, SystemExit) as error:  # whatever a student's code may do
        raise AssertionError(f"it raised {type(error).__name__}: {error}, {call}") from error
    for name, value in inputs.items():
        assert not isinstance(value, np.ndarray) or np.array_equal(copies[name], value), (
            f"it changed its input {name} in place {call}"
        )
    if isinstance(expected, tuple):
        assert isinstance(got, tuple) and len(got) == len(expected), (
            f"it must return a tuple of {len(expected)} ({', '.join(results)}), not {_kind(got)}, {call}"
        )
        for name, one, other in zip(results, got, expected, strict=True):
            same(one, other, call, f" {name}")
    else:
        same(got, expected, call)


def rule_out(function: Callable, inputs: Mapping[str, Any], wrong: Any, sentence: str) -> None:
    """AssertionError with a sentence that names a mistake where function(*inputs.values()) is `wrong`, its result."""
    try:
        expect(function, inputs, wrong, [""] * len(wrong) if isinstance(wrong, tuple) else ())
    except (Exception, SystemExit):
        return
    raise AssertionError(f"{sentence}, for {_shown(inputs)}")


def expect_op(op: type[Function], inputs: Mapping[str, Any], expected: Any, g: Any = None, grads: Any = (), **options):
    """AssertionError unless op's forward on the inputs is `expected` and, where g is given, its backward `grads`."""
    ctx = context(*inputs.values())
    forward = op.forward
    expect(lambda *arrays: forward(ctx, *arrays, **options), inputs, expected)
    if g is not None:
        names = [f"dL/d{name}" for name in inputs][: len(grads)]
        expect(lambda g: op.backward(ctx, g), {"g": g}, tuple(grads), names)


LIBRARY = dict(OPS)  # the library's own operations, whatever `use` puts in their place


def expect_forward(function: Callable, op: str, inputs: Mapping[str, Any], **options) -> None:
    """AssertionError unless function(*inputs) is what the library's operation `op` computes from them."""
    ctx = context(*inputs.values())
    expect(function, inputs, LIBRARY[op].forward(ctx, *inputs.values(), **options))


def expect_backward(function: Callable, op: str, inputs: Mapping[str, Any], seed: int = 0, **options) -> None:
    """AssertionError unless function(g, y, *inputs) gives the gradients of the operation `op`, for a random g."""
    ctx = context(*inputs.values())
    y = LIBRARY[op].forward(ctx, *inputs.values(), **options)
    g = np.random.default_rng(seed).integers(-9, 10, np.shape(y)) / np.float64(2)
    grads = [grad for grad in LIBRARY[op].backward(ctx, g) if grad is not None]
    names = [f"dL/d{name}" for name in inputs][: len(grads)]
    given = {"g": g, "y": y, **inputs}
    expect(function, given, tuple(grads) if len(grads) > 1 else grads[0], names, **options)


def context(*arrays: np.ndarray) -> Context:
    """A fresh ctx for a forward on these arrays."""
    return Context(np, tuple(a.dtype.kind == "f" for a in arrays))


def check_gradient(op: type[Function], *arrays: np.ndarray, surrogate: Callable | None = None, **options) -> None:
    """`gradcheck.check_op`; with `surrogate`, the function of the arrays whose derivative the backward stands for.

    A quantiser is a staircase with derivative 0, so its straight-through backward is compared with finite differences
    of the smooth function that it pretends to be. The forward still runs, for what it leaves in ctx.
    """
    tried = op if surrogate is None else _with_forward(op, surrogate)
    try:
        gradcheck.check_op(tried, *arrays, name=op.__name__, **options)
    except AssertionError as error:
        raise AssertionError(f"{error}, for the inputs {' and '.join(map(_text, arrays))}") from None


def _with_forward(op: type[Function], surrogate: Callable) -> type[Function]:
    class Surrogate(Function):
        @staticmethod
        def forward(ctx, *inputs, **options):
            op.forward(ctx, *inputs, **options)
            return surrogate(*inputs)

        @staticmethod
        def backward(ctx, g):
            return op.backward(ctx, g)

    return Surrogate


def same(got: Any, expected: Any, call: str, what: str = "") -> None:
    """AssertionError unless two arrays or numbers agree in shape and, to five digits, in value."""
    assert got is not None, f"it returned None{what and ' for' + what} {call}"
    assert not isinstance(got, Tensor), f"it returned a Tensor{what and ' for' + what}: compute with arrays, {call}"
    one, other = np.asarray(got), np.asarray(expected)
    assert one.shape == other.shape, f"it gave{what} of shape {one.shape}, expected {other.shape}, {call}"
    wrong = ~np.isclose(one, other, rtol=1e-5, atol=1e-6)
    if not wrong.any():
        return
    where = ""
    there: Any = (slice(None),) * other.ndim
    if other.size > SHOWN:
        there = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f" at {there}"
    shown = _text(one[there]), _text(other[there])
    if shown[0] == shown[1]:  # they differ further behind
        shown = repr(one[there].tolist()), repr(other[there].tolist())
    raise AssertionError(f"it gave{what}{where} {shown[0]}, expected {shown[1]}, {call}")


def _text(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
    if value.size > SHOWN:
        return f"an array of shape {value.shape}"
    return np.array2string(value, precision=4, suppress_small=True, separator=", ").replace("\n", "")


def _shown(inputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_text(value)}" for name, value in inputs.items()) or "no input"


def _kind(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
