"""Grade `submission/` into `results/results.json`, as Gradescope's specification of autograders says."""

import json
import sys
from pathlib import Path

from ...files import write_file
from ..perform import marks_of_folder
from . import PATIENCE


def main(name: str, here: Path) -> None:
    """Grade the submission of the set `name`; the rest of the page is for the teacher, on standard output."""
    found, missing = marks_of_folder(here / "source" / f"{name}.ipynb", here / "submission", PATIENCE)
    tests = [
        {
            "name": mark.cell,
            "score": mark.points,
            "max_score": mark.most,
            "status": "passed" if mark.points == mark.most else "failed",
            "output": mark.text,
            "output_format": "text",
        }
        for mark in found
    ]
    results = {"score": sum(mark.points for mark in found), "tests": tests, "stdout_visibility": "hidden"}
    write_file(here / "results" / "results.json", json.dumps(results, indent=2))
    print(f"{results['score']:g} of {sum(mark.most for mark in found):g} points")
    for wall in missing:
        print(f"warning: {wall} of the student's code: see docs/instructors.md")


if __name__ == "__main__":
    main(sys.argv[1], Path.cwd())
