"""Problem sets and grades for other services: Gradescope, Classroom 50, Canvas.

What is written grades with `perform.marks`, so that each service gives nbgrader's points. It needs neither nbgrader nor
this library on the other side: the library comes along.
"""

import csv
import io
import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat

from ..files import write_file
from .gradebook import gradebook, grades_row, guarded, read_answers
from .perform import is_test

HERE = Path(__file__).parent / "services"
SECONDS = 600  # the most that Classroom 50 gives a command
CANVAS = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
POSSIBLE = "    Points Possible"  # with the spaces that Canvas writes itself


def tests_of(name: str, root: Path) -> Any:
    """The notebook that was handed out, with the hidden tests: what a grader needs, and no solutions."""
    book = nbformat.read(root / "release" / name / f"{name}.ipynb", as_version=4)
    master = root / "source" / name / f"{name}.ipynb"
    if not master.is_file():
        raise ValueError(f"there is no {master}: the hidden tests are in it")
    cells = nbformat.read(master, as_version=4).cells
    texts = {cell.metadata.nbgrader.grade_id: cell.source for cell in filter(is_test, cells)}
    for cell in filter(is_test, book.cells):
        cell.source = texts[cell.metadata.nbgrader.grade_id]
    return book


def gradescope(name: str, root: Path, to: Path) -> list[Path]:
    """Write an autograder for Gradescope: a folder, and the zip file of it that is uploaded there."""
    folder = to / "gradescope" / name
    _write_grader(name, root, folder)
    for script, source in (("setup.sh", "setup.sh"), ("run_autograder", "run_autograder.sh")):
        write_file(folder / script, (HERE / source).read_text(encoding="utf-8").replace("SET", name))
        (folder / script).chmod(0o755)
    archive = shutil.make_archive(str(folder), "zip", folder)
    return [folder, Path(archive)]


def classroom50(name: str, root: Path, to: Path) -> list[Path]:
    """Write `tests.json` for Classroom 50, and the folder of files that its tests read."""
    folder = to / "classroom50" / name
    _write_grader(name, root, folder / "bundle")
    write_file(folder / "bundle" / "grade.py", (HERE / "grade.py").read_text(encoding="utf-8"))
    path = folder / "tests.json"
    write_file(path, json.dumps(_entries(name, root), indent=2) + "\n")
    write_file(folder / "runtime.json", '{"python": "3.13"}\n')
    return [path, folder / "bundle", folder / "runtime.json"]


def _entries(name: str, root: Path) -> list[dict[str, Any]]:
    """A test of Classroom 50 gives all of its points or none: so each point is one."""
    call = f'python3 "$CLASSROOM50_BUNDLE_DIR/grade.py" {name}'
    install = 'python3 -m pip install --quiet -r "$CLASSROOM50_BUNDLE_DIR/requirements.txt"'
    entries = [
        {"name": "setup", "type": "run", "run": install, "timeout": SECONDS, "points": 0},
        {"name": "grading", "type": "run", "run": call, "timeout": SECONDS, "points": 0, "show-output": True},
    ]
    for cell in filter(is_test, tests_of(name, root).cells):
        grade_id, most = cell.metadata.nbgrader.grade_id, cell.metadata.nbgrader.points
        if most != int(most):
            raise ValueError(f"{grade_id} has {most} points, and Classroom 50 counts whole ones")
        for point in range(1, int(most) + 1):
            entry = {
                "name": f"{grade_id}, point {point} of {int(most)}",
                "type": "run",
                "timeout": SECONDS,
                "points": 1,
            }
            entries.append({**entry, "run": f"{call} {grade_id} {point}"})
    return entries


def _write_grader(name: str, root: Path, folder: Path) -> None:
    """The tests, the library and the names of what it needs, into a new folder."""
    if folder.exists():
        if not (folder / "requirements.txt").is_file():
            raise ValueError(f"{folder} exists and is none of these: name another folder with --to")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_file(folder / f"{name}.ipynb", nbformat.writes(tests_of(name, root)) + "\n")
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    needed = [line for line in metadata.requires("tinybitvit") or [] if "extra ==" not in line]
    write_file(folder / "requirements.txt", "\n".join([*needed, "nbformat", "ipython"]) + "\n")


# --- Canvas -----------------------------------------------------------------------------------------------------------


def canvas(names: list[str], root: Path, to: Path, roster: Path | None = None) -> list[Path]:
    """Write the grades of these sets as a table that the gradebook of Canvas imports.

    roster: the table that Canvas exports, for its students' ids; None: a row a student, whose name is taken for the
    login. Says who is missing on either side, and whose prose has no points yet. ValueError for a table that is none
    of Canvas's.
    """
    points, possible, waiting = _points(names, root)
    rows: list[dict[str, Any]]
    rows = _roster(roster) if roster is not None else [{"Student": s, "SIS Login ID": s} for s in sorted(points)]
    found = _found(list(points), rows)
    for student, row in found.items():
        row.update(points[student])
    for student in sorted(points.keys() - found.keys()):
        print(f"warning: {student} is graded and not in {roster}, or not alone: no grade is written")
    for name, count in waiting.items():
        if count:
            print(f"warning: {count} answers in prose of {name} have no points yet: they count as 0")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*CANVAS, *names], restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerow({"Student": POSSIBLE, **possible})
    writer.writerows(rows if roster is not None else [{k: guarded(v) for k, v in row.items()} for row in rows])
    path = to / "canvas.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.getvalue())
    return [path]


def _found(students: list[str], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{student: row}, a row for one student only: by the first column that has the name, and has it once."""
    found: dict[str, dict[str, Any]] = {}
    left = list(rows)
    for column in ("SIS Login ID", "SIS User ID", "ID", "Student"):
        for student in students:
            matches = [row for row in left if row.get(column) == student]
            if student not in found and len(matches) == 1:
                found[student] = matches[0]
                left = [row for row in left if row is not matches[0]]
    return found


def _points(names: list[str], root: Path) -> tuple[dict[str, dict[str, float]], dict[str, float], dict[str, int]]:
    """({student: {set: points}}, {set: points possible}, {set: answers in prose without points})"""
    points: dict[str, dict[str, float]] = {}
    possible, waiting = {}, dict.fromkeys(names, 0)
    for name in names:
        read_answers(root, name)
        with gradebook(root) as book:
            possible[name] = book.find_assignment(name).max_score
            for submission in book.assignment_submissions(name):
                points.setdefault(submission.student.id, {})[name] = grades_row(root, submission)["score"]
                grades = (grade for notebook in submission.notebooks for grade in notebook.grades)
                waiting[name] += sum(grade.auto_score is None and grade.manual_score is None for grade in grades)
    return points, possible, waiting


def _roster(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes().decode("utf-8-sig", "replace")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not rows or not set(CANVAS[:2]) <= rows[0].keys():
        raise ValueError(f"{path} is no table of Canvas's: export the gradebook there, and give that file")
    people = [row for row in rows if re.fullmatch(r"\d+", row["ID"] or "")]  # not the row of points possible
    return [{column: row.get(column) or "" for column in CANVAS} for row in people]


SERVICES = {"gradescope": gradescope, "classroom50": classroom50}


def export(names: list[str], service: str, root: Path, to: Path, roster: Path | None = None) -> list[Path]:
    """Write these sets, or for Canvas their grades, for a service, into the folder `to`; what was written."""
    if service == "canvas":
        return canvas(names, root, to, roster)
    if roster is not None:
        raise ValueError(f"a roster is for Canvas, not for {service}")
    return [path for name in names for path in SERVICES[service](name, root, to)]
