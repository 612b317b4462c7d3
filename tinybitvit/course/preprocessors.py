"""What nbgrader does to a notebook, mended in three places. Imported only where nbgrader is installed."""

import copy
import subprocess
from pathlib import Path

import nbformat
from nbgrader.preprocessors import ClearHiddenTests, Execute, NbGraderPreprocessor
from traitlets import Unicode


class RepairCells(NbGraderPreprocessor):
    """The graded cells of a submission as they were handed out: each of them once, with its own metadata.

    A duplicated cell makes nbgrader stop, and with it the grading of everybody after this student (its issue 1083); of
    a deleted test nobody learns. Here the last copy counts, and what is missing is put back in front of the next cell
    that survived. Comes before OverwriteCells, which restores the text of the tests, hidden ones included.
    """

    release = Unicode(help="folder of the released assignments").tag(config=True)

    def preprocess(self, nb, resources):
        names = resources["nbgrader"]
        path = Path(self.release, names["assignment"], f"{names['notebook']}.ipynb")
        known = {
            cell.metadata.nbgrader.grade_id: cell
            for cell in nbformat.read(path, as_version=4).cells
            if "nbgrader" in cell.metadata
        }
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


class ExecuteQuietly(Execute):
    """Without what a kernel says of itself, such as that it was stopped in the middle of a word.

    What the student's code writes to stderr takes another way, into the notebook.
    """

    def start_new_kernel(self, **kwargs):
        super().start_new_kernel(stderr=subprocess.DEVNULL, **kwargs)


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
