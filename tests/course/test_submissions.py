"""What students hand in, in whatever shape: nothing that is right gets lost on its way to the points."""

import csv
import io
from contextlib import redirect_stdout

import nbformat
import pytest
from course_books import master
from nbformat.v4 import new_code_cell, new_markdown_cell
from test_hostile import ALL, NOTHING, RIGHT, cell, notebook

import tinybitvit as tb
from tinybitvit.course import gradebook, grading, perform
from tinybitvit.course.judge import Judge
from tinybitvit.course.stage import Stage, apart

STUBS = {name: source.split("\n")[0] + "\n    pass" for name, source in RIGHT.items()}
PROSE = {"grade_id": "m-why", "grade": True, "solution": True, "points": 4, "locked": False, "schema_version": 3}


def handed_out(prose="YOUR ANSWER HERE"):
    book = notebook(STUBS)
    return nbformat.from_dict({**book, "cells": [*book.cells, new_markdown_cell(prose, metadata={"nbgrader": PROSE})]})


def answered():
    """The notebook of a student who has everything right."""
    book = handed_out("Because.")
    for one in book.cells:
        if (name := one.metadata.get("nbgrader", {}).get("grade_id")) in RIGHT:
            one.source = RIGHT[name]
    return book


def points(book, tmp_path):
    """{task: points} of a notebook, graded as the services do."""
    (tmp_path / "work").mkdir()
    nbformat.write(handed_out(), tmp_path / "m.ipynb")
    nbformat.write(book, tmp_path / "work" / "m.ipynb")
    marks, _ = perform.marks(tmp_path / "m.ipynb", tmp_path / "work" / "m.ipynb")
    found = dict.fromkeys((1, 2, 3), 0.0)
    for mark in marks:
        found[int(mark.cell[2])] += mark.points
    assert len(marks) == 6
    return found


# --- the cells --------------------------------------------------------------------------------------------------------


def untouched(book):
    pass


def retyped(book):
    book.cells = [new_code_cell(one.source) if one.source in RIGHT.values() else one for one in book.cells]


def split(book):
    """Both halves in new cells, with the tests where they were."""
    place = next(i for i, one in enumerate(book.cells) if one.source == RIGHT["m-3"])
    book.cells[place : place + 1] = [
        new_code_cell("zero = 0.0"),
        new_code_cell(RIGHT["m-3"].replace("sum(", "zero + sum(")),
    ]


def stripped(book):
    for one in book.cells:
        one.metadata.clear()


def made_anew(book):
    stripped(book)
    for one in book.cells:
        one.pop("id")
        one.id = f"new-{book.cells.index(one)}"


def only_answers(book):
    """Nothing but the student's own cells."""
    book.cells = [new_code_cell(text) for text in (book.cells[0].source, *RIGHT.values())] + [
        new_markdown_cell("Because.")
    ]


@pytest.mark.parametrize("change", [untouched, retyped, split, stripped, made_anew, only_answers])
def test_an_answer_counts_in_whatever_cell_it_stands(change, tmp_path):
    book = answered()
    change(book)
    assert points(book, tmp_path) == ALL
    perform.repair(book.cells, handed_out().cells)
    prose = [one.source for one in book.cells if one.metadata.get("nbgrader", {}).get("grade_id") == "m-why"]
    assert prose == ["Because."]


def test_a_stub_is_not_put_back_behind_an_answer(tmp_path):
    """Of what is graded by hand the cell is needed, so it comes first; what nobody answered is as it was handed out."""
    by_hand = cell("def triple(x):\n    pass", "m-hand", 4, solution=True)
    book = handed_out()
    book.cells.insert(2, by_hand)
    cells = [new_code_cell("def triple(x):\n    return 3 * x")]
    perform.repair(cells, book.cells)
    assert [one.source for one in cells[:2]] == [by_hand.source, "def triple(x):\n    return 3 * x"]
    assert cells[-1].source == "YOUR ANSWER HERE" and cells[-1].metadata.nbgrader.grade_id == "m-why"
    assert not any(one.source in STUBS.values() for one in cells)
    assert points(handed_out(), tmp_path) == NOTHING


FUTURE = "from __future__ import annotations"


def test_a_future_import_holds_for_the_cells_after_it(tmp_path):
    book = answered()
    book.cells[0].source = f"{FUTURE}\n{book.cells[0].source}"
    for one in book.cells:
        one.source = one.source.replace("def double(x)", "def double(x: Nothing) -> Unknown")
    assert points(book, tmp_path) == ALL
    nbformat.write(book, tmp_path / "m.ipynb")
    (tmp_path / "m.py").write_text(f'"""Mine."""\n{FUTURE}\ndef double(x: Nothing) -> Unknown:\n    return 2 * x\n')
    for name in ("m.ipynb", "m.py"):
        assert tb.course.load(tmp_path / name)["double"](2) == 4
        with apart(tmp_path / name) as names:
            assert names["double"](2) == 4
    (tmp_path / "m.py").write_text("def double(x: Nothing) -> Unknown:\n    return 2 * x\n")
    assert "double" not in tb.course.load(tmp_path / "m.py"), "without it, the names must be there"


def test_a_future_import_of_the_set_holds_for_its_tests(tmp_path):
    made = cell("def twice(x: Nothing) -> Unknown:\n    return 2 * x\nassert twice(1) == 2", "m-1-more", 1)
    with Stage(tmp_path) as stage:
        made.outputs = Judge([new_code_cell(FUTURE), made], stage).grade(made)
        assert perform.mark(made).points == 1
        made.outputs = Judge([made], stage).grade(made)
        assert "NameError" in perform.mark(made).text


# --- the same points as in the notebook -------------------------------------------------------------------------------

CHANCE = """
import math
import numpy as np
from decimal import Decimal
from fractions import Fraction
def exactly(a, b):
    first, second = int((a & ~b).sum()), int((b & ~a).sum())
    n = first + second
    return min(Fraction(1), Fraction(2 * sum(math.comb(n, k) for k in range(min(first, second) + 1)), 2**n))
"""
TRAIN = next(one.source for one in master("ps5").cells if one.source.startswith("def train"))
MATRIX = "import numpy as np\ndef misleading(classes):\n    matrix = np.eye(classes, dtype=int)\n"
MATRIX += "    matrix[0, 0], matrix[1:, 0], matrix[1:, 1:] = 99 * classes, 1, 0\n"
TABLE = """
class Table:
    def __init__(self, matrix):
        self.matrix = matrix
    def __array__(self, dtype=None, copy=None):
        return self.matrix
"""
UNUSUAL = {
    "a Fraction": ("ps5.7", CHANCE + "chance = exactly", 4),
    "a Decimal": (
        "ps5.7",
        CHANCE + "def chance(a, b):\n    p = exactly(a, b)\n    return Decimal(p.numerator) / p.denominator",
        4,
    ),
    "a float of its own class": (
        "ps5.7",
        CHANCE + "class P(float):\n    pass\ndef chance(a, b):\n    return P(exactly(a, b))",
        4,
    ),
    "an array of no axes": ("ps5.7", CHANCE + "def chance(a, b):\n    return np.array(float(exactly(a, b)))", 4),
    "a list of lists": ("ps5.6", MATRIX + "    return matrix.tolist()", 3),
    "a tuple of deques": (
        "ps5.6",
        "from collections import deque\n" + MATRIX + "    return tuple(map(deque, matrix))",
        3,
    ),
    "an object with __array__": ("ps5.6", TABLE + MATRIX + "    return Table(matrix)", 3),
    "an object without one": ("ps5.6", MATRIX + "    return object()", 0),
    "a string": ("ps5.7", CHANCE + "def chance(a, b):\n    return str(float(exactly(a, b)))", 4),
    "losses that are Tensors": ("ps5.4", TRAIN.replace("loss.item()", "loss"), 3),
    "losses without a graph": ("ps5.4", TRAIN.replace("loss.item()", "loss.detach()"), 4),
    "losses of NumPy": ("ps5.4", TRAIN.replace("loss.item()", "loss.data"), 4),
}


@pytest.mark.parametrize("answer", UNUSUAL)
def test_points_are_what_the_student_saw(answer, tmp_path):
    task, source, expected = UNUSUAL[answer]
    head = "import math\nimport numpy as np\nimport tinybitvit as tb\nfrom tinybitvit import functional as F\n"
    head += "rate = tb.course.settled('ps5.3', {})\n"
    (tmp_path / "answer.py").write_text(head + source)
    with redirect_stdout(io.StringIO()), apart(tmp_path / "answer.py") as names:
        found = tb.course.tasks("ps5")[task]
        seen = tb.course.score(task, found.answer(tb.course.load(tmp_path / "answer.py")))
        assert (seen, tb.course.score(task, found.answer(names))) == (expected, expected)


def test_numbers_of_any_type_travel(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run("import enum, numpy as np\nfrom fractions import Fraction\nclass Five(enum.IntEnum):\n    five = 5\n")
        stage.run(
            "def f():\n    return Fraction(1, 2), Five.five, np.str_('a'), range(3), np.float32(2), [Fraction(3)], True"
        )
        half, five, text, numbers, two, three, yes = stage["f"]()
    assert (half, five, text, three, yes) == (0.5, 5, "a", [3.0], True) and type(five) is int and type(text) is str
    assert numbers.tolist() == [0, 1, 2] and two.dtype == "float32"


# --- the folder of submissions ----------------------------------------------------------------------------------------


def folder_of(tmp_path, *names):
    for name in names:
        path = tmp_path / "downloads" / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    return tmp_path / "downloads"


def test_every_entry_is_somebodys_or_said_to_be_nobodys(tmp_path):
    folder = folder_of(
        tmp_path,
        *("ann.ipynb", "bob.IPYNB", "J. Smith.ipynb", "carol.ipynb.txt", "dan.json", "eve.py", "frank.zip", "gus/"),
        *(
            "zoe/ps1.IpYnB",
            "zoe/__MACOSX/._ps1.ipynb",
            "zoe/.ipynb_checkpoints/ps1.ipynb",
            "two/a.ipynb",
            "two/b.ipynb",
        ),
        *("hal/notes.txt", "ida.ipynb", "ida/ps1.ipynb", "jan.ipynb", "jan.py", "a*.ipynb", ".hidden", "__MACOSX/x"),
    )
    found, left_out = grading.find_submissions(folder)
    notebooks = {"ann": "ann.ipynb", "bob": "bob.IPYNB", "J. Smith": "J. Smith.ipynb", "zoe": "zoe/ps1.IpYnB"}
    notebooks |= {"jan": "jan.ipynb"}
    assert {student: entry for student, entry in found.items() if not isinstance(entry, str)} == {
        student: folder / name for student, name in notebooks.items()
    }
    problems = {student: entry for student, entry in found.items() if isinstance(entry, str)}
    assert set(problems) == {"carol", "dan", "eve", "frank", "gus", "two", "hal", "ida"}
    assert problems["eve"].endswith("eve.py is no notebook (*.ipynb)")
    assert problems["gus"].endswith("gus holds 0 notebooks: leave in it the one to be graded")
    assert "holds 2 notebooks" in problems["two"] and "ida and " in problems["ida"] and "holds 2" in problems["ida"]
    assert len(left_out) == 1 and "'a*' cannot be a student's name here: rename it" in left_out[0]


def test_a_folder_without_any_notebook_is_the_wrong_one(tmp_path):
    with pytest.raises(ValueError, match=r"no notebook \(\*.ipynb\) in .*; .*eve.py is no notebook"):
        grading.find_submissions(folder_of(tmp_path, "eve.py", "gus/"))


def test_a_service_takes_any_spelling_of_the_ending(tmp_path):
    nbformat.write(handed_out(), tmp_path / "m.ipynb")
    folder = folder_of(tmp_path, "deep/__MACOSX/._m.ipynb")
    nbformat.write(answered(), folder / "M.IPYNB.part")
    (folder / "M.IPYNB.part").rename(folder / "deep" / "M.IPYNB")
    marks, _ = perform.marks_of_folder(tmp_path / "m.ipynb", folder)
    assert sum(mark.points for mark in marks) == 6


# --- points by hand ---------------------------------------------------------------------------------------------------


def test_points_that_are_erased_are_gone(tmp_path):
    pytest.importorskip("nbgrader")
    (tmp_path / "autograded" / "ann" / "ps1").mkdir(parents=True)
    with gradebook.gradebook(tmp_path) as book:
        book.add_assignment("ps1")
        book.add_notebook("ps1", "ps1")
        book.add_grade_cell("ps1-why", "ps1", "ps1", max_score=4, cell_type="markdown")
        book.add_solution_cell("ps1-why", "ps1", "ps1")
        book.add_student("ann")
        book.add_submission("ps1", "ann")

    def after(points):
        row = {"student": "ann", "question": "ps1-why", "points": points, "comment": ""}
        with open(tmp_path / "answers-ps1.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
        gradebook.read_answers(tmp_path, "ps1")
        with gradebook.gradebook(tmp_path) as book:
            grade = book.find_grade("ps1-why", "ps1", "ps1", "ann")
            return gradebook.grades_row(tmp_path, book.find_submission("ps1", "ann"))["score"], grade.needs_manual_grade

    assert [after(points) for points in ("3,5", "", "0", " ")] == [(3.5, False), (0.0, True), (0.0, False), (0.0, True)]
