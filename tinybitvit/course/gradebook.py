"""What comes out of nbgrader's database: `grades.csv`, and `answers-<set>.csv` with the prose, which comes back in."""

import codecs
import csv
import io
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files import write_file

ANSWER_COLUMNS = ["student", "question", "answer", "max_points", "points", "comment"]
NEEDED = ["student", "question", "points", "comment"]
MOST_TEXT = 32_000  # characters: a cell of Excel holds 32,767
# Where a spreadsheet, whatever its separator, may see the start of a formula. An apostrophe there says: this is text.
FORMULA = re.compile(r"(^|[;\t\r\n])(?=\s*[=+@\-'\t\r])")
GUARDED = re.compile(FORMULA.pattern.replace("(?=", "'(?="))


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block no warnings of nbgrader's, and the programs of this Python are on the PATH.

    A new gradebook asks the program `alembic` for its version.
    """
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), path])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ["PATH"] = path


@contextmanager
def gradebook(root: Path) -> Iterator[Any]:
    """The database of the course in the folder `root`, as nbgrader's `Gradebook`."""
    from nbgrader.api import Gradebook

    with quiet(), Gradebook(database(root), "tinybitvit") as book:
        yield book


def database(root: Path) -> str:
    """Its address. Several processes write, each for a moment; they wait for their turn, at most a minute."""
    return f"sqlite:///{root / 'gradebook.db'}?timeout=60"


def grades_row(root: Path, submission: Any) -> dict[str, Any]:
    """Its row in `grades.csv`: points in all, in each task and for the prose (missing: not graded yet)."""
    assignment, student = submission.assignment.name, submission.student.id
    row = {"assignment": assignment, "student": student, "score": 0.0, "max_score": 0.0}
    # nbgrader removes what it began to write where it could not go on
    whole = (root / "autograded" / student / assignment).is_dir()
    for grade in (grade for notebook in submission.notebooks for grade in notebook.grades):
        column, points = _column(grade.name), _points(grade) if whole else 0.0
        row["max_score"] += grade.max_score
        row["score"] += points or 0
        if points is not None:
            row[column] = row.get(column, 0.0) + points
    row["note"] = "" if whole else "could not be graded"
    return row


def _points(grade: Any) -> float | None:
    """The points of a graded cell, None while they wait for a human."""
    if grade.manual_score is not None:
        return grade.manual_score + (grade.extra_credit or 0)
    return grade.auto_score


def _column(cell: str) -> str:
    """The column of a graded cell: "ps3-2-hidden" belongs to task 2, "ps3-why" to the prose."""
    match = re.match(r"\w+-(\d+)(-|$)", cell)
    return f"task {match[1]}" if match else "prose"


def write_grades(root: Path) -> Path:
    """Write `grades.csv`, a row for each submission; its path."""
    with gradebook(root) as book:
        submissions = (s for assignment in book.assignments for s in book.assignment_submissions(assignment.name))
        rows = sorted((grades_row(root, s) for s in submissions), key=lambda row: (row["assignment"], row["student"]))
    columns = sorted({c for row in rows for c in row if c.startswith("task ")}, key=lambda c: int(c.split()[1]))
    path = root / "grades.csv"
    header = ["assignment", "student", "score", "max_score", *columns, "prose", "note"]
    _write_csv(path, header, rows)
    return path


def _answers_path(root: Path, name: str) -> Path:
    return root / f"answers-{name}.csv"


def write_answers(root: Path, name: str) -> None:
    """Every answer in prose that waits for its points, or has them."""
    import nbformat

    read_answers(root, name)  # points that were typed in and not yet taken over
    rows = []
    with gradebook(root) as book:
        for submission in book.assignment_submissions(name):
            path = root / "autograded" / submission.student.id / name / f"{name}.ipynb"
            cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
            texts = {c.metadata.nbgrader.grade_id: c.source for c in cells if "nbgrader" in c.metadata}
            for grade in (grade for notebook in submission.notebooks for grade in notebook.grades):
                if _column(grade.name) == "prose":
                    comment = book.find_comment(grade.name, name, name, submission.student.id)
                    rows.append(
                        {
                            "student": submission.student.id,
                            "question": grade.name,
                            "answer": texts.get(grade.name, ""),
                            "max_points": grade.max_score,
                            "points": "" if grade.manual_score is None else grade.manual_score,
                            "comment": comment.manual_comment or "",
                        }
                    )
    _write_csv(_answers_path(root, name), ANSWER_COLUMNS, rows)


def read_answers(root: Path, name: str) -> None:
    """Take the points and comments of `answers-<set>.csv` into the gradebook.

    Any spreadsheet may have written it: with commas, semicolons or tabs, in UTF-8, UTF-16 or cp1252. ValueError for
    points out of range, and for a table that is not this one.
    """
    from nbgrader.api import MissingEntry

    path = _answers_path(root, name)
    if not path.is_file():
        return
    with gradebook(root) as book:
        for row in read_table(path):
            student, question, points = row["student"], row["question"], row["points"].strip()
            try:
                grade = book.find_grade(question, name, name, student)
                comment = book.find_comment(question, name, name, student)
            except MissingEntry:
                raise ValueError(f"{path}: there is no {question!r} of {student!r}: leave these two columns") from None
            try:
                grade.manual_score = float(points.replace(",", ".")) if points else None  # erased: not graded yet
            except ValueError:
                raise ValueError(f"{path}: {points!r} are no points for {student}: type a number") from None
            if points and not 0 <= grade.manual_score <= grade.max_score:
                raise ValueError(f"{path}: {points} points for {student}: {question} has 0 to {grade.max_score:g}")
            grade.needs_manual_grade = _points(grade) is None
            comment.manual_comment = row["comment"].strip() or None
        book.db.commit()


# --- tables -----------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows({name: guarded(value) for name, value in row.items()} for row in rows)
    # Excel takes a file without the mark at its beginning for another encoding.
    write_file(path, "\ufeff" + text.getvalue())


def guarded(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, nor for too much text."""
    if not isinstance(value, str):
        return value
    return FORMULA.sub(r"\1'", value.replace("\0", "")[:MOST_TEXT])


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table of answers, as they were before `guarded`. ValueError where its columns are missing."""
    data = path.read_bytes()
    for encoding in (
        "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig",
        "cp1252",
    ):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            break
    else:
        text = data.decode("latin-1")
    text = re.sub(r"\Asep=.\r?\n", "", text)  # what Excel may put first
    for delimiter in ",;\t":
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        header = [name.strip().lower() for name in rows[0]] if rows else []
        if set(NEEDED) <= set(header):
            break
    else:
        raise ValueError(f"{path} lacks the columns {', '.join(NEEDED)}: save the table as CSV, with its first row")
    cells = [[GUARDED.sub(r"\1", cell) for cell in row] for row in rows[1:]]
    return [dict(zip(header, row + [""] * len(header), strict=False)) for row in cells if any(row)]
