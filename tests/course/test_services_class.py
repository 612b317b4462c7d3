"""The class of made-up students, and hostile ones, through all services: each gives the points that nbgrader gives."""

import csv

import nbformat
import pytest
from course_books import solved
from nbformat.v4 import new_code_cell
from services import classroom50, gradescope
from test_course_grading import (
    CLASS,
    PROSE,
    SET,
    cell_of,
    fails_hidden,
    grades,
    kills_the_grader,
    kills_the_kernel,
    loops,
    untouched,
)
from test_hostile import LIES, TRICKS

from tinybitvit.course import grading

pytestmark = pytest.mark.slow


def starts_with(*sources):
    """A change: wrong answers to task 1, after cells that try something."""

    def change(book):
        fails_hidden(book)
        for source in reversed(sources):
            book.cells.insert(1, new_code_cell(source))

    return change


def lies(book):
    cell = cell_of(book, "ps3-1")
    cell.source = f"{LIES['equal to all']}\ndef ternary_codes(w):\n    return Lie(), Lie()"


def hoards(book):
    cell_of(book, "ps3-6").source += "\nx = bytearray(64 << 30)"


def floods(book):
    cell_of(book, "ps3-5").source += "\nfor _ in range(99):\n    print('flood ' * 10_000)"


def writes_formulas(book):
    cell_of(book, "ps3-why").source = "=cmd|' /C calc'!A0 <script>alert(1)</script>"


HOSTILE = {
    "rewrites": starts_with(TRICKS["cells rewritten before they run"], TRICKS["cells rewritten by other ways"]),
    "patches": starts_with(TRICKS["library patched"], TRICKS["builtins patched"], TRICKS["NumPy patched"]),
    "exits": starts_with(TRICKS["exit status 0"]),
    "dies later": starts_with("import os, threading\nthreading.Timer(3.0, os._exit, [0]).start()"),
    "answers by hand": starts_with(TRICKS["answers sent by hand"]),
    "daemon": starts_with("import subprocess\nsubprocess.Popen(['sh', '-c', 'sleep 900 & sleep 900'])"),
    "kills parents": starts_with(TRICKS["parents killed"]),
    "lies": lies,
    "hoards": hoards,
    "floods": floods,
    "writes formulas": writes_formulas,
    "amy": kills_the_kernel,
    "ben": loops,
    "max": kills_the_grader,
}
UNSURE = {"dies later"}  # when it dies is a matter of the machine


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course, and the graders for the services."""
    folder = tmp_path_factory.mktemp("services") / "demo"
    grading.new(folder)
    grading.release(SET, folder)
    for service in ("gradescope", "classroom50"):
        grading.export([SET], service, folder)
    return folder


def hand_in(student, course, path):
    """Write what a student hands in."""
    change = {**{name: change for name, (change, _) in CLASS.items()}, **HOSTILE}.get(student)
    release = nbformat.read(course / "release" / SET / f"{SET}.ipynb", as_version=4)
    if student == "cem":
        path.write_text("not a notebook")
    elif student == "eve":
        path.symlink_to(course / "source" / SET / f"{SET}.ipynb")
    else:
        book = release if change is untouched else solved(release, SET)
        if change is not untouched:
            change(book)
        nbformat.write(book, path)


@pytest.mark.parametrize("student", [*CLASS, *HOSTILE, "cem", "eve"])
def test_all_services_give_the_same_points(student, course, tmp_path, capsys):
    for part in ("downloads", "work", "scope", "room"):
        (tmp_path / part).mkdir()
    hand_in(student, course, tmp_path / "downloads" / f"{student}.ipynb")
    hand_in(student, course, tmp_path / "work" / f"{SET}.ipynb")
    grading.grade(SET, tmp_path / "downloads", course, timeout=20, jobs=1)
    row = grades(course)[student]
    expected = sum(float(row[column] or 0) for column in row if column.startswith("task "))

    results = gradescope(course / "export" / "gradescope" / SET, tmp_path / "scope", tmp_path / "work")
    result = classroom50(course / "export" / "classroom50" / SET, tmp_path / "room", tmp_path / "work")
    if student not in UNSURE:
        assert results["score"] == result["score"] == expected
    assert result["max-score"] == sum(test["max_score"] for test in results["tests"])
    assert float(row["max_score"]) == result["max-score"] + PROSE

    (path,) = grading.export([SET], "canvas", course)
    with open(path, encoding="utf-8", newline="") as file:
        table = {line["Student"]: line for line in csv.DictReader(file)}
    assert float(table[student][SET]) == float(row["score"])
    assert float(table["    Points Possible"][SET]) == float(row["max_score"])
    assert_points_are_what_check_printed(course, student)


def assert_points_are_what_check_printed(course, student):
    path = course / "autograded" / student / SET / f"{SET}.ipynb"
    for cell in nbformat.read(path, as_version=4).cells if path.is_file() else []:
        if str(cell.metadata.get("nbgrader", {}).get("grade_id")).endswith("-checks"):
            printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    assert f"  {float(output.data['text/plain']):g} of " in printed.splitlines()[-1]
