"""A submission graded without nbgrader: its cells repaired and run, its tests judged, the points that each gives.

nbgrader's converters (`preprocessors`), and the graders for other services (`export`), do it with these functions.
"""

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from ..files import file_problem
from .judge import Judge
from .stage import TIMEOUT, Stage
from .submission import MOST_BYTES, notebooks_in

SHOWN = ("text/plain", "text/html", "image/png", "image/jpeg")  # of what a cell displayed


@dataclass(frozen=True)
class Mark:
    """What a graded cell gave: points, of how many, and what it printed and found wrong."""

    cell: str
    points: float
    most: float
    text: str


def about(cell: Any) -> Any:
    """nbgrader's metadata of a cell; {} for a plain one."""
    return cell.metadata.get("nbgrader") or {}


def is_test(cell: Any) -> bool:
    """Whether a cell is graded by running it."""
    return cell.cell_type == "code" and bool(about(cell).get("grade")) and not about(cell).get("solution")


def repair(cells: list, handed_out: Sequence) -> None:
    """Give a submission the graded cells that were handed out: each of them once, with its own metadata.

    Of a cell that comes twice the last copy counts; what is missing is put back in front of the next that survived.
    Not so the code that students write: where its cell is gone, the answer may stand in any other, retyped or split,
    and a stub behind it would undo it. An answer in prose without its cell is what was written besides the handed out.
    """
    known = {about(cell)["grade_id"]: cell for cell in handed_out if about(cell)}
    places = _find_again(cells, known)
    texts = {cell.source.strip() for cell in handed_out}
    prose = [cell.source for cell in cells if cell.cell_type == "markdown" and not about(cell)]
    prose = [text for text in prose if text.strip() not in texts]
    place = len(cells)
    stubs: list[Any] = []
    for grade_id, cell in reversed(known.items()):
        place = places.get(grade_id, place)
        if grade_id in places:
            continue
        new = copy.deepcopy(cell)
        if not about(cell).get("solution"):
            cells.insert(place, new)
        elif cell.cell_type == "markdown":
            new.source = "\n\n".join(prose) or new.source
            cells.insert(place, new)
        elif about(cell).get("grade"):  # code that is graded by hand
            stubs.insert(0, new)
    cells[:0] = stubs


def _find_again(cells: list, known: Mapping) -> dict[str, int]:
    """{grade_id: its place} of what is left of the known cells, which get their metadata back."""
    ids = {cell.id: grade_id for grade_id, cell in known.items() if "id" in cell}
    places: dict[str, int] = {}
    for place, cell in reversed(list(enumerate(cells))):
        given = cell.metadata.pop("nbgrader", None)
        # some tools strip the metadata of a cell and leave its id
        grade_id = given.get("grade_id") if isinstance(given, dict) else ids.get(cell.get("id"))
        if isinstance(grade_id, str) and grade_id in known and grade_id not in places:
            places[grade_id] = place
            cell.metadata["nbgrader"] = copy.deepcopy(known[grade_id].metadata.nbgrader)
    return places


def perform(cells: list, handed_out: list, folder: Path, timeout: int = TIMEOUT) -> list[str]:
    """Run the cells of a submission in a process of its own, and its tests here, where no student's code runs.

    Fills in the outputs. A test has an error as its output until the judge has seen its end: points are given for that,
    not for silence. Returns the walls that are missing round the student's process.
    """
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in filter(is_test, code):
        cell.outputs = [_error("NotRun", "grading ended before this test", "")]
    with Stage(folder, timeout) as stage:
        court = Judge(handed_out, stage)
        for number, cell in enumerate(code, 1):
            began = datetime.now(UTC).isoformat()
            cell.outputs = court.grade(cell) if is_test(cell) else _ran(stage, cell.source)
            cell.execution_count = number
            cell.metadata["execution"] = {"began": began, "ended": datetime.now(UTC).isoformat()}
        return stage.missing


def _ran(stage: Stage, source: str) -> list:
    """The outputs of a cell of the student's."""
    done = stage.run(source)
    outputs = [
        nbformat.v4.new_output("stream", name=name, text=str(done[name])) for name in ("stdout", "stderr") if done[name]
    ]
    for data in done["data"]:
        shown = {kind: str(value) for kind, value in data.items() if kind in SHOWN}
        outputs.append(nbformat.v4.new_output("display_data", data=shown))
    if done["error"] is not None:
        outputs.append(_error(*map(str, done["error"])))
    return outputs


def _error(name: str, text: str, trace: str) -> Any:
    return nbformat.v4.new_output("error", ename=name, evalue=text, traceback=(trace or f"{name}: {text}").splitlines())


# --- points without nbgrader ------------------------------------------------------------------------------------------


def marks(tests: Path, submission: Path, timeout: int = TIMEOUT) -> tuple[list[Mark], list[str]]:
    """The marks of a submission, a notebook, and the walls that are missing: the points that nbgrader would give.

    tests: the set with its hidden tests, as `export` writes it. ValueError for what is no notebook.
    """
    handed_out = nbformat.read(tests, as_version=4).cells
    cells = _read(submission)
    repair(cells, handed_out)
    texts = {about(cell)["grade_id"]: cell.source for cell in filter(is_test, handed_out)}
    for cell in cells:
        if about(cell).get("grade_id") in texts:
            cell.cell_type, cell.source = "code", texts[about(cell)["grade_id"]]
    missing = perform(cells, handed_out, submission.parent, timeout)
    return [mark(cell) for cell in cells if is_test(cell)], missing


def marks_of_folder(tests: Path, folder: Path, timeout: int = TIMEOUT) -> tuple[list[Mark], list[str]]:
    """`marks` of the notebook in a folder: that with the set's name, or the only one. No points where there is none."""
    path = folder / tests.name
    if not os.path.lexists(path):
        found = notebooks_in(folder)
        if len(found) != 1:
            return no_marks(tests, f"hand in {tests.name}: there are {len(found)} notebooks"), []
        path = found[0]
    try:
        return marks(tests, path, timeout)
    except ValueError as error:
        return no_marks(tests, str(error)), []


def no_marks(tests: Path, why: str) -> list[Mark]:
    """The marks of a submission that cannot be graded."""
    return [
        Mark(about(c)["grade_id"], 0.0, about(c)["points"], why)
        for c in nbformat.read(tests, as_version=4).cells
        if is_test(c)
    ]


def mark(cell: Any) -> Mark:
    """What a test gave that was run: nothing for an error, its value where it has one, else all of its points."""
    most = points = float(about(cell)["points"])
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            points = 0.0
            parts.append(f"{output.ename}: {output.evalue}")
        else:
            points = float(output.data["text/plain"])
    return Mark(about(cell)["grade_id"], points, most, "\n".join(part.rstrip() for part in parts))


def _read(path: Path) -> list:
    if path.is_symlink():
        raise ValueError("the submission is a link, not a notebook")
    if problem := file_problem(path):
        raise ValueError(problem)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"the submission has over {MOST_BYTES >> 20} MB: its outputs should be cleared")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cells that were copied
            book = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        cells = list(book.cells)
        for cell in cells:
            if not isinstance(cell.source, str) or not isinstance(cell.metadata, dict):
                raise TypeError(cell.cell_type)
            if cell.cell_type == "code":
                cell.outputs = []
        return cells
    except Exception as error:  # nbformat raises many kinds for what is no notebook
        raise ValueError("the submission is not a Jupyter notebook: download it from Jupyter again") from error
