"""What nbgrader does to a notebook, mended. Imported only where nbgrader is installed."""

import copy
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bleach
import nbformat
from nbconvert.filters import markdown2html
from nbgrader.preprocessors import ClearHiddenTests, NbGraderPreprocessor
from nbgrader.utils import is_grade, is_solution
from traitlets import Integer, Unicode

from . import judge
from .stage import TIMEOUT, Stage

SHOWN = ("text/plain", "text/html", "image/png", "image/jpeg")  # of what a cell displayed
TEXT_TAGS = "h1 h2 h3 h4 h5 h6 p br hr div span pre code table thead tbody tr th td dl dt dd del sub sup img"


def released(folder: str, resources: dict) -> list:
    """The cells of the notebook that was handed out."""
    names = resources["nbgrader"]
    path = Path(folder, names["assignment"], f"{names['notebook']}.ipynb")
    return nbformat.read(path, as_version=4).cells


class RepairCells(NbGraderPreprocessor):
    """The graded cells of a submission as they were handed out: each of them once, with its own metadata.

    A duplicated cell makes nbgrader stop, and with it the grading of everybody after this student (its issue 1083); of
    a deleted test nobody learns. Here the last copy counts, and what is missing is put back in front of the next cell
    that survived. Comes before OverwriteCells, which restores the text of the tests, hidden ones included.
    """

    release = Unicode(help="folder of the released assignments").tag(config=True)

    def preprocess(self, nb, resources):
        known = {c.metadata.nbgrader.grade_id: c for c in released(self.release, resources) if "nbgrader" in c.metadata}
        places: dict[str, int] = {}
        for place, cell in reversed(list(enumerate(nb.cells))):
            grade_id = (cell.metadata.pop("nbgrader", None) or {}).get("grade_id")
            if grade_id in known and grade_id not in places:
                places[grade_id] = place
                cell.metadata["nbgrader"] = copy.deepcopy(known[grade_id].metadata.nbgrader)
        place = len(nb.cells)
        for grade_id, cell in reversed(known.items()):
            place = places.get(grade_id, place)
            if grade_id not in places:
                nb.cells.insert(place, copy.deepcopy(cell))
        return nb, resources


class Perform(NbGraderPreprocessor):
    """Runs a submission: the student's cells in a process of their own, the tests here, where no student's code runs.

    A test has an error as its output until the judge has seen its end: points are given for that, not for silence.
    """

    release = Unicode(help="folder of the released assignments").tag(config=True)
    timeout = Integer(TIMEOUT, help="seconds for a cell").tag(config=True)

    def preprocess(self, nb, resources):
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        for cell in filter(is_grade, code):
            cell.outputs = [_error("NotRun", "grading ended before this test", "")]
        with Stage(Path(resources["metadata"]["path"]), self.timeout) as stage:
            court = judge.Judge(released(self.release, resources), stage)
            for number, cell in enumerate(code, 1):
                began = datetime.now(UTC).isoformat()
                cell.outputs = (
                    court.grade(cell) if is_grade(cell) and not is_solution(cell) else _ran(stage, cell.source)
                )
                cell.execution_count = number
                cell.metadata["execution"] = {"began": began, "ended": datetime.now(UTC).isoformat()}
        return nb, resources


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


class HideHiddenTests(ClearHiddenTests):
    """Feedback without the text of the hidden tests, which nbgrader would print (its issues 917 and 1363)."""

    def preprocess_cell(self, cell, resources, index):
        if self.begin_test_delimeter in cell.source:
            self._remove_hidden_test_region(cell)
            cell.source += "\n# (hidden tests ran here)"
            for output in cell.get("outputs", []):
                if output.output_type == "error":  # the message stays, the lines of code go
                    output.traceback = [f"{output.ename}: {output.evalue}"]
        return cell, resources


class MakeInert(NbGraderPreprocessor):
    """Feedback in which nothing of the student's can run in a browser: text, pictures and tables are left."""

    def preprocess(self, nb, resources):
        nb.metadata = nbformat.from_dict({"language_info": {"name": "python", "pygments_lexer": "ipython3"}})
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, index):
        cell.metadata = nbformat.from_dict({name: v for name, v in cell.metadata.items() if name == "nbgrader"})
        for output in cell.get("outputs", []):
            if "data" in output:
                output.metadata = {}
                output.data = {kind: value for kind, value in output.data.items() if kind in SHOWN}
                if "text/html" in output.data:
                    output.data["text/html"] = clean(output.data["text/html"])
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
        return cell, resources


def inert_markdown(source: str) -> str:
    """Markdown as HTML in which nothing can run; formulas are left to the page."""
    return clean(markdown2html(source))


def clean(text: str) -> str:
    def allowed(tag: str, name: str, value: str) -> bool:
        if name == "href":
            return re.match(r"(https?://|mailto:|#)", value.strip()) is not None
        if name == "src":
            return re.match(r"data:image/(png|jpeg|gif);base64,", value) is not None
        return name in ("class", "id", "title", "alt")

    tags = [*bleach.ALLOWED_TAGS, *TEXT_TAGS.split()]
    return bleach.clean(text, tags=tags, attributes=allowed, protocols=["http", "https", "mailto", "data"])
