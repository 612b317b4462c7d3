"""What nbgrader does to a notebook, mended. Imported only where nbgrader is installed."""

import re
from pathlib import Path

import bleach
import nbformat
from nbconvert.filters import markdown2html
from nbgrader.preprocessors import ClearHiddenTests, NbGraderPreprocessor
from traitlets import Integer, Unicode

from .perform import SHOWN, perform, repair
from .stage import TIMEOUT

TEXT_TAGS = "h1 h2 h3 h4 h5 h6 p br hr div span pre code table thead tbody tr th td dl dt dd del sub sup img"


def released(folder: str, resources: dict) -> list:
    """The cells of the notebook that was handed out."""
    names = resources["nbgrader"]
    path = Path(folder, names["assignment"], f"{names['notebook']}.ipynb")
    return nbformat.read(path, as_version=4).cells


class RepairCells(NbGraderPreprocessor):
    """The graded cells of a submission as they were handed out: each of them once, with its own metadata.

    A duplicated cell makes nbgrader stop, and with it the grading of everybody after this student (its issue 1083); of
    a deleted test nobody learns. Comes before OverwriteCells, which restores the text of the tests, hidden ones
    included.
    """

    release = Unicode(help="folder of the released assignments").tag(config=True)

    def preprocess(self, nb, resources):
        repair(nb.cells, released(self.release, resources))
        return nb, resources


class Perform(NbGraderPreprocessor):
    """Runs a submission as `perform` does: the student's cells in a process of their own, the tests here."""

    release = Unicode(help="folder of the released assignments").tag(config=True)
    timeout = Integer(TIMEOUT, help="seconds for a cell").tag(config=True)

    def preprocess(self, nb, resources):
        folder = Path(resources["metadata"]["path"])
        perform(nb.cells, released(self.release, resources), folder, self.timeout)
        return nb, resources


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
