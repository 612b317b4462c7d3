"""Problem sets as lists of cells, for the tests: what a student could hand in."""

import ast
import copy
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = ROOT / "tutorials" / "assignments"
SETS = ("ps1", "ps2", "ps3", "ps4", "ps5")
REGION = re.compile(r"^[ #]*BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)^[ #]*END \1$", re.M | re.S)


def master(name):
    return nbformat.read(ASSIGNMENTS / f"{name}.ipynb", as_version=4)


def data(cell):
    """nbgrader's metadata of a cell, {} for a plain one."""
    return cell.metadata.get("nbgrader", {})


def grade_id(cell):
    return data(cell).get("grade_id")


def is_test(cell):
    """Whether the cell is graded by running it."""
    return cell.cell_type == "code" and data(cell).get("grade", False)


def task_number(cell):
    """The k of a cell of task k; None for prose and plain cells."""
    match = re.match(r"ps\d-(\d+)", grade_id(cell) or "")
    return int(match[1]) if match else None


def regions(cell, kind):
    """The lines inside the cell's regions of a kind, SOLUTION or HIDDEN TESTS."""
    return [line.strip() for k, text in REGION.findall(cell.source) if k == kind for line in text.splitlines()]


def solved(release, name, sabotage=None):
    """A copy of the released notebook with the master's solutions in it; sabotage: grade_id -> (old, new)."""
    book, answers = copy.deepcopy(release), {grade_id(cell): cell for cell in master(name).cells}
    for cell in book.cells:
        if data(cell).get("solution"):
            cell.source = re.sub(r"^[ #]*(BEGIN|END) SOLUTION\n?", "", answers[grade_id(cell)].source, flags=re.M)
            for old, new in [sabotage[grade_id(cell)]] if grade_id(cell) in (sabotage or {}) else []:
                assert cell.source.count(old) >= 1, f"{grade_id(cell)} holds no {old!r}"
                cell.source = cell.source.replace(old, new)
    return book


def run(book):
    """Run the code cells in order; {grade_id of a graded cell: the exception it raised, "1 of 3" points, or None}.

    Ungraded cells may fail.
    """
    names, outcome = {"__name__": "submission"}, {}
    for cell in book.cells:
        error = None
        if cell.cell_type == "code":
            body = ast.parse(cell.source).body if is_test(cell) else []
            try:
                if body and isinstance(body[-1], ast.Expr):
                    points = eval(cell.source, names)
                    error = None if points == data(cell).points else f"{points} of {data(cell).points}"
                else:
                    exec(compile(cell.source, f"cell {grade_id(cell)}", "exec"), names)
            except Exception as raised:
                error = raised
        if is_test(cell):
            outcome[grade_id(cell)] = error
    return outcome, names


def with_tests(book, name):
    """The notebook with the hidden tests put back, as for grading."""
    graded = {grade_id(cell): cell for cell in master(name).cells}
    for cell in filter(is_test, book.cells):
        cell.source = graded[grade_id(cell)].source
    return book
