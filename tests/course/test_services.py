"""Graders for Gradescope and Classroom 50, grades for Canvas: each as the service would use it, on a small set."""

import csv
import json
import os
import stat
import zipfile

import nbformat
import pytest
from services import classroom50, gradescope
from test_hostile import ALL, NOTHING, RIGHT, TRICKS, WRONG, cell, graded, notebook

from tinybitvit.course import export, perform

pytest.importorskip("nbgrader")

HIDDEN = "\n### BEGIN HIDDEN TESTS\nassert double(np.array([7.0]))[0] == 14\n### END HIDDEN TESTS"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A set `m` of three tasks, two points each, with a hidden test; exported."""
    folder = tmp_path_factory.mktemp("course")
    stubs = {name: source.split("\n")[0] + "\n    pass" for name, source in RIGHT.items()}
    for kind, book in (("release", notebook(stubs)), ("source", notebook(RIGHT))):
        (folder / kind / "m").mkdir(parents=True)
        if kind == "source":
            next(c for c in book.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "m-1-more").source += HIDDEN
        nbformat.write(book, folder / kind / "m" / "m.ipynb")
    (folder / "autograded").mkdir()
    for write in (export.gradescope, export.classroom50):
        write("m", folder, folder / "export")
    return folder


SUBMISSIONS = {
    "right": (notebook(RIGHT), ALL),
    "wrong": (notebook(WRONG), NOTHING),
    "hostile": (notebook(WRONG, "\n".join(TRICKS[t] for t in ("library patched", "builtins patched"))), NOTHING),
    "ends its process": (notebook(RIGHT | {"m-2": f"{RIGHT['m-2']}\nimport os\nos._exit(0)"}), {1: 2, 2: 0, 3: 2}),
}


KINDS = [trick for trick in TRICKS if trick != "process ended later"]


def by_task(rows):
    """{task: points} of pairs (graded cell, points)."""
    found = dict.fromkeys((1, 2, 3), 0.0)
    for name, points in rows:
        found[int(name[2])] += points
    return found


SUBMISSIONS |= {trick: (notebook(WRONG, TRICKS[trick]), NOTHING) for trick in KINDS}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in KINDS)) for n in SUBMISSIONS])
def test_each_service_gives_nbgraders_points(name, course, tmp_path):
    book, points = SUBMISSIONS[name]
    (tmp_path / "work").mkdir()
    nbformat.write(book, tmp_path / "work" / "m.ipynb")
    (tmp_path / "scope").mkdir()
    (tmp_path / "room").mkdir()
    results = gradescope(course / "export" / "gradescope" / "m", tmp_path / "scope", tmp_path / "work")
    assert by_task((t["name"], t["score"]) for t in results["tests"]) == points
    result = classroom50(course / "export" / "classroom50" / "m", tmp_path / "room", tmp_path / "work")
    assert by_task((t["test-name"], t["score"]) for t in result["tests"] if t["max-score"]) == points
    assert result["max-score"] == 6
    assert graded(course, book) == points


ODD = {
    "nothing": (lambda folder: None, "hand in m.ipynb: there are 0 notebooks"),
    "two notebooks": (
        lambda folder: [(folder / f"{name}.ipynb").write_text("{}") for name in "ab"],
        "hand in m.ipynb: there are 2 notebooks",
    ),
    "no notebook": (lambda folder: (folder / "m.ipynb").write_text("not a notebook"), "is not a Jupyter notebook"),
    "cells of nonsense": (
        lambda folder: (folder / "m.ipynb").write_text('{"nbformat": 4, "nbformat_minor": 5, "cells": [3]}'),
        "is not a Jupyter notebook",
    ),
    "a folder": (lambda folder: (folder / "m.ipynb").mkdir(), "is a folder"),
    "a link": (lambda folder: (folder / "m.ipynb").symlink_to("/etc/passwd"), "is a link"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_graded_has_no_points_and_a_sentence(name, course, tmp_path):
    make, sentence = ODD[name]
    make(tmp_path)
    marks, _ = perform.marks_of_folder(course / "export" / "gradescope" / "m" / "m.ipynb", tmp_path)
    assert len(marks) == 6 and not sum(mark.points for mark in marks) and all(sentence in mark.text for mark in marks)


def test_a_notebook_by_another_name_is_found(course, tmp_path):
    (tmp_path / "deep").mkdir()
    nbformat.write(notebook(RIGHT), tmp_path / "deep" / "Copy of m (1).ipynb")
    marks, _ = perform.marks_of_folder(course / "export" / "gradescope" / "m" / "m.ipynb", tmp_path)
    assert sum(mark.points for mark in marks) == 6


def test_a_missing_and_a_doubled_test_count_once(course, tmp_path):
    book = notebook(RIGHT)
    book.cells = [c for c in book.cells if c.metadata.get("nbgrader", {}).get("grade_id") != "m-1-more"]
    doubled = next(c for c in book.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "m-2-more")
    book.cells.append(nbformat.from_dict({**doubled, "id": "another"}))
    nbformat.write(book, tmp_path / "m.ipynb")
    marks, _ = perform.marks_of_folder(course / "export" / "gradescope" / "m" / "m.ipynb", tmp_path)
    assert sorted(mark.cell for mark in marks) == sorted(
        f"m-{k}-{part}" for k in (1, 2, 3) for part in ("example", "more")
    )
    assert sum(mark.points for mark in marks) == 6


def test_the_first_failure_hides_no_other():
    """Each assertion of a test is tried, but for those after one that was to set a name."""
    from types import SimpleNamespace

    from tinybitvit.course.judge import Judge

    def found(source):
        outputs = Judge([], SimpleNamespace(begin=lambda: None)).grade(cell(source, "m-1-more", 1))
        return [output.evalue for output in outputs if output.output_type == "error"]

    assert found("assert 0, 'a'\nassert 1\nfor i in range(9):\n    assert i < 3, 'b'\nassert 0, 'c'") == ["a", "b", "c"]
    assert found("def f():\n    assert 0, 'a'\nx = f()\nassert x, 'b'") == ["a"]
    assert found("assert 0, 'a'\n1 / 0\nassert 0, 'b'") == ["a", "division by zero"]
    assert found("assert 0, 'a'\n1.0") == ["a"], "no points for a test in which something failed"


def test_what_is_exported_holds_no_solution_and_is_complete(course):
    folder = course / "export" / "gradescope" / "m"
    text = (folder / "m.ipynb").read_text()
    assert "14" in text and "return 2 * x" not in text
    for script in ("run_autograder", "setup.sh"):
        assert (folder / script).read_text().startswith("#!/usr/bin/env bash\n")
        assert os.stat(folder / script).st_mode & stat.S_IXUSR
    with zipfile.ZipFile(course / "export" / "gradescope" / "m.zip") as archive:
        names = set(archive.namelist())
        mode = archive.getinfo("run_autograder").external_attr >> 16
    assert {"run_autograder", "setup.sh", "m.ipynb", "tinybitvit/course/perform.py"} <= names and mode & stat.S_IXUSR
    assert not any("__pycache__" in name for name in names)
    assert json.loads((course / "export" / "classroom50" / "m" / "runtime.json").read_text()) == {"python": "3.13"}


def test_a_folder_of_somebody_elses_is_left_alone(course, tmp_path):
    (tmp_path / "gradescope" / "m").mkdir(parents=True)
    (tmp_path / "gradescope" / "m" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="exists and is none of these"):
        export.gradescope("m", course, tmp_path)
    assert (tmp_path / "gradescope" / "m" / "thesis.txt").is_file()
    export.gradescope("m", course, course / "export")  # a second time: fresh


# --- Canvas -----------------------------------------------------------------------------------------------------------

ROSTER = (
    "\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Essay (77),Final Score\r\n"
    ",,,,,Manual Posting,(read only)\r\n"
    "    Points Possible,,,,,10.00,(read only)\r\n"
    '"Lovelace, Ann",1001,u1,ann,CS-1,9,90\r\n'
    '"Bell, Bob",1002,u2,bell2,CS-1,8,80\r\n'
    '"Cole, Cyd",1003,u3,cyd,CS-1,7,70\r\n'
)
POINTS = {"ann": {"ps1": 20.0, "ps3": 12.5}, "u2": {"ps1": 7.0}, "zoe": {"ps1": 1.0}}


def canvas(monkeypatch, tmp_path, roster=None, points=POINTS, waiting=0):
    fake = points, {"ps1": 27.0, "ps3": 25.0}, {"ps1": waiting, "ps3": 0}
    monkeypatch.setattr(export, "_points", lambda names, root: fake)
    (path,) = export.canvas(["ps1", "ps3"], tmp_path, tmp_path / "out", roster)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_grades_for_canvas(monkeypatch, tmp_path, capsys):
    """The columns of its own table, with those of the sets, and the points possible in the second row."""
    (tmp_path / "roster.csv").write_text(ROSTER, encoding="utf-8", newline="")
    rows = canvas(monkeypatch, tmp_path, tmp_path / "roster.csv", waiting=2)
    assert rows == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "ps1", "ps3"],
        ["    Points Possible", "", "", "", "", "27.0", "25.0"],
        ["Lovelace, Ann", "1001", "u1", "ann", "CS-1", "20.0", "12.5"],
        ["Bell, Bob", "1002", "u2", "bell2", "CS-1", "7.0", ""],
        ["Cole, Cyd", "1003", "u3", "cyd", "CS-1", "", ""],
    ]
    out = capsys.readouterr().out
    assert "zoe is graded and not in" in out and "2 answers in prose of ps1 have no points yet" in out


@pytest.mark.parametrize("order", [1, -1])
def test_nobody_gets_the_points_of_somebody_else(order, monkeypatch, tmp_path, capsys):
    """One person's login may be another's SIS id, or name: points go to one row, and a row has those of one student."""
    people = [
        '"A",1,u1,ann,S',
        '"Z",2,ann,zoe,S',
        '"B",3,ann,bob,S',
        '"ann",4,u4,eve,S',
        '"J",5,u5,jo,S',
        '"J",6,u6,jo,S',
    ]
    text = "\r\n".join(["Student,ID,SIS User ID,SIS Login ID,Section", *people[::order]])
    (tmp_path / "roster.csv").write_text(text)
    given = {name: {"ps1": float(number)} for number, name in enumerate(["u1", "ann", "zoe", "jo", "J"][::order])}
    rows = canvas(monkeypatch, tmp_path, tmp_path / "roster.csv", points=given)[2:]
    assert {row[1]: row[5] for row in rows if row[5]} == {"1": str(given["ann"]["ps1"]), "2": str(given["zoe"]["ps1"])}
    out = capsys.readouterr().out
    assert [name for name in given if f"warning: {name} is graded and not in" in out] == [
        name for name in given if name in ("u1", "jo", "J")
    ]


def test_grades_for_canvas_without_its_table(monkeypatch, tmp_path):
    rows = canvas(monkeypatch, tmp_path)
    assert rows[2:] == [
        ["ann", "", "", "ann", "", "20.0", "12.5"],
        ["u2", "", "", "u2", "", "7.0", ""],
        ["zoe", "", "", "zoe", "", "1.0", ""],
    ]


def test_another_table_is_no_roster(monkeypatch, tmp_path):
    for text in ("", "a,b\n1,2\n", "\x00"):
        (tmp_path / "roster.csv").write_text(text)
        with pytest.raises(ValueError, match="is no table of Canvas's"):
            canvas(monkeypatch, tmp_path, tmp_path / "roster.csv")


def test_names_that_are_formulas_stay_text(monkeypatch, tmp_path):
    rows = canvas(monkeypatch, tmp_path, points={"=1+1": {"ps1": 1.0}})
    assert rows[2][0] == "'=1+1", "an apostrophe says: this is text"
