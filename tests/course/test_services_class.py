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
    command,
    fails_hidden,
    grades,
    kills_the_grader,
    kills_the_kernel,
    loops,
    untouched,
)
from test_hostile import LIES, TRICKS

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
NO_NOTEBOOK = "cem"
UNSURE = {"dies later"}  # when it dies is a matter of the machine


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A course with everybody graded by nbgrader, and the graders for the services."""
    root = tmp_path_factory.mktemp("services")
    folder, downloads = root / "demo", root / "downloads"
    command("new", folder, folder=root)
    command("release", SET, folder=folder)
    release = nbformat.read(folder / "release" / SET / f"{SET}.ipynb", as_version=4)
    downloads.mkdir()
    for student, change in {**{s: c for s, (c, _) in CLASS.items()}, **HOSTILE}.items():
        book = release if change is untouched else solved(release, SET)
        if change is not untouched:
            change(book)
        nbformat.write(book, downloads / f"{student}.ipynb")
    (downloads / f"{NO_NOTEBOOK}.ipynb").write_text("not a notebook")
    (downloads / "eve.ipynb").symlink_to(folder / "source" / SET / f"{SET}.ipynb")
    command("grade", SET, downloads, "--timeout", 20, "--course", folder, folder=root)
    for service in ("gradescope", "classroom50", "canvas"):
        command("export", SET, "--for", service, "--course", folder, folder=root)
    return folder, downloads


@pytest.mark.parametrize("student", [*CLASS, *HOSTILE, NO_NOTEBOOK, "eve"])
def test_all_services_give_the_same_points(student, place, tmp_path):
    folder, downloads = place
    row = grades(folder)[student]
    expected = sum(float(row[column] or 0) for column in row if column.startswith("task "))
    for part in ("work", "scope", "room"):
        (tmp_path / part).mkdir()
    work = tmp_path / "work" / f"{SET}.ipynb"
    source = downloads / f"{student}.ipynb"
    work.symlink_to(source.readlink()) if source.is_symlink() else work.write_bytes(source.read_bytes())
    results = gradescope(folder / "export" / "gradescope" / SET, tmp_path / "scope", tmp_path / "work")
    assert results["score"] == expected or student in UNSURE
    result = classroom50(folder / "export" / "classroom50" / SET, tmp_path / "room", tmp_path / "work")
    assert result["score"] == expected or student in UNSURE
    assert result["max-score"] == sum(test["max_score"] for test in results["tests"])
    assert float(row["max_score"]) == result["max-score"] + PROSE
    with open(folder / "export" / "canvas.csv", encoding="utf-8", newline="") as file:
        table = {line["Student"]: line for line in csv.DictReader(file)}
    assert float(table[student][SET]) == float(row["score"])
    assert float(table["    Points Possible"][SET]) == float(row["max_score"])


def test_points_are_what_check_printed(place, tmp_path):
    """Of every graded cell with checks, of every student whose notebook is one."""
    folder, _ = place
    seen = 0
    for student in (*CLASS, *HOSTILE):
        book = nbformat.read(folder / "autograded" / student / SET / f"{SET}.ipynb", as_version=4)
        for cell in book.cells:
            if str(cell.metadata.get("nbgrader", {}).get("grade_id")).endswith("-checks"):
                printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
                values = [o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result"]
                if values:
                    assert f"  {float(values[0]):g} of " in printed.splitlines()[-1]
                    seen += 1
    assert seen > 80
