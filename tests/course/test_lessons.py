"""The lessons as a student meets them: with solutions, with nothing; predictions; length."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
import time

import pytest
from lesson_student import PENDING, ROOT, TUTORIALS, calls, cells, marked, mistakes, solutions

import tinybitvit as tb
from tinybitvit.course.kept import all_tasks

SCRIPTS = [s for s in sorted(TUTORIALS.glob("[0-9][0-9]_*.py")) if not s.name.startswith(PENDING)]
QUICK = ("01",)  # the others are run by `pytest -m slow`
MOST_SECONDS = 60
LONGEST = 25  # lines of a cell that is no solution
PLOTS = re.compile(r"new_figure|\.subplots\(|\.imshow\(|\.set_x?y?label|matplotlib")

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
each_played = pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[] if s.name.startswith(QUICK) else pytest.mark.slow, id=s.stem) for s in SCRIPTS],
)


def play(script, how, folder):
    """What a student sees, cell by cell; nothing on stderr, without network and downloaded data."""
    path = os.pathsep.join([str(ROOT / "tests" / "support" / "no_network"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "TINYBITVIT_DATA": str(folder / "none")}
    command = [sys.executable, str(ROOT / "tests" / "support" / "lesson_student.py"), str(script), how]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    assert (done.returncode, done.stderr) == (0, "")
    # Others may use the machine too: then the wall clock says nothing, but the time on the processor does.
    assert min(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) < MOST_SECONDS
    return json.loads(done.stdout)


def pieces(script):
    """The ids of what the student writes, in order."""
    return [piece for kind, source in cells(script) if kind == "your-turn" for piece in marked(source, "yours")]


# --- the text ---------------------------------------------------------------------------------------------------------


@each
def test_every_turn_has_checks_a_solution_and_mistakes(script):
    number = int(script.name[:2])
    wanted = list(tb.course.tasks(f"lesson{number:02}"))
    assert pieces(script) == wanted == [f"{number}.{i + 1}" for i in range(len(wanted))]
    assert list(solutions(script)) == wanted
    assert list(mistakes(script)) == wanted
    kinds = [kind for kind, _ in cells(script) if kind not in ("text", "")]
    assert all(kinds[i + 1] == "solution" for i, kind in enumerate(kinds) if kind == "your-turn")
    assert 3 <= kinds.count("your-turn") <= 6


@each
def test_cells_are_short_and_show_no_plot_code(script):
    for kind, source in cells(script):
        if kind == "text":
            continue
        if kind != "solution":
            assert len(source.splitlines()) <= LONGEST, source
        if kind not in ("solution", "see", "answer"):
            assert not PLOTS.search(re.sub(r"^(from|import) .*$", "", source, flags=re.M)), source


def predictions(script):
    """{name: (number of the cell that asks, number of the cell that answers, the answer)}."""
    asked, found = {}, {}
    for number, (kind, source) in enumerate(cells(script)):
        if kind == "predict":
            asked |= {call.args[0].value: number for call in calls(source, "predict")}
        if kind == "answer":
            for call in calls(source, "answer"):
                name = call.args[0].value
                found[name] = asked[name], number, ast.literal_eval(call.args[1])
    assert asked.keys() == found.keys(), "each prediction has its answer"
    return found


def spellings(value):
    """A pattern for an answer in a text: 131071, 131,071, 0.4, .4, or the word."""
    if isinstance(value, str):
        return re.compile(rf"\b{re.escape(value)}\b") if len(value) > 6 else None
    plain = f"{value:g}" if abs(value) < 1e6 else str(value)
    forms = {plain, f"{value:,}", str(value), plain.replace("0.", ".")}
    return re.compile(rf"(?<![\w.,])({'|'.join(map(re.escape, forms))})(?![\w]|[.,]\d)")


def above(script, number):
    """The cells of the section above a cell, as far up as its heading."""
    found = []
    for kind, source in reversed(cells(script)[:number]):
        found.append((kind, source))
        if kind == "text" and re.search(r"^## ", source, flags=re.M):
            return found
    return found


@each
def test_no_answer_stands_above_its_cell(script, tmp_path):
    assert len(predictions(script)) >= 3
    for name, (asks, answers, value) in predictions(script).items():
        assert answers > asks
        pattern = spellings(value)
        for kind, source in above(script, answers) if pattern else ():
            if kind != "predict":
                assert not pattern.search(source), f"the answer to {name}, {value}, stands above it:\n{source}"


# --- the student ------------------------------------------------------------------------------------------------------


@each_played
def test_with_the_solutions_every_check_passes(script, tmp_path):
    report = play(script, "solutions", tmp_path)
    assert [cell["error"] for cell in report if cell["error"]] == []
    turns = [cell for cell in report if cell["kind"] == "your-turn"]
    assert all("checks passed" in cell["out"] and "  no  " not in cell["out"] for cell in turns)
    assert not any("the solution is used" in cell["out"] for cell in report if cell["kind"] == "solution")

    outputs = iter(cell["out"] for cell in report)
    outs = ["" if kind == "text" else next(outputs) for kind, _ in cells(script)]
    for name, (_, answers, value) in predictions(script).items():
        first = answers - len(above(script, answers))
        for number in range(first, answers):
            pattern = None if cells(script)[number][0] == "predict" else spellings(value)
            assert not (pattern and pattern.search(outs[number])), f"the answer to {name} is printed:\n{outs[number]}"


@each_played
def test_with_nothing_written_the_lesson_goes_on(script, tmp_path):
    report = play(script, "nothing", tmp_path)
    assert [cell["error"] for cell in report if cell["error"]] == []
    for piece in pieces(script):
        assert any(re.search(rf"not written yet: \w+, cell {piece}", cell["out"]) for cell in report)
    assert list(tmp_path.iterdir()) == [], "nothing is the student's, so nothing is kept"


@each_played
def test_without_the_solutions_the_first_cell_in_need_names_the_missing_one(script, tmp_path):
    errors = [cell["error"] for cell in play(script, "alone", tmp_path) if cell["error"]]
    assert re.match(r"NotYet: needs cell \d+\.\d: \w+ is not written yet", errors[0])


def test_names_are_unique():
    names = [task.name for task in all_tasks()]
    assert len(set(names)) == len(names), "a piece is kept in my/<name>.py"


def test_no_lesson_is_pending_that_follows_the_pattern():
    for script in sorted(TUTORIALS.glob("[0-9][0-9]_*.py")):
        assert (script.name[:2] in PENDING) == ("your-turn" not in [kind for kind, _ in cells(script)])
