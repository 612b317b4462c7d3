"""A command of Classroom 50's tests: `grade.py SET` grades the checkout that it runs in, and remembers the points;
`grade.py SET CELL N` succeeds if the graded cell has at least N points.

It lies in the assignment's bundle, beside the library and the tests, and runs in the student's checkout.
"""

import json
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parent


def marks(name: str) -> dict[str, list]:
    """{graded cell: [points, of how many, what it printed]}, graded once for each commit."""
    known = BUNDLE / "points.json"
    if not known.is_file():
        _grade(BUNDLE / f"{name}.ipynb", known)
    return json.loads(known.read_text(encoding="utf-8"))


def _grade(tests: Path, known: Path) -> None:
    sys.path.insert(0, str(BUNDLE))  # this library, whatever is installed or lies in the checkout
    from tinybitvit.course.perform import marks_of_folder, no_marks
    from tinybitvit.course.services import PATIENCE
    from tinybitvit.files import write_file

    def remember(found: list) -> None:
        write_file(known, json.dumps({mark.cell: [mark.points, mark.most, mark.text] for mark in found}))

    # Where grading itself is stopped, it is not begun again for each point.
    remember(no_marks(tests, "grading was stopped before its end"))
    found, missing = marks_of_folder(tests, Path.cwd(), PATIENCE)
    for wall in missing:
        print(f"warning: {wall} of the student's code")
    remember(found)


def main(name: str, cell: str = "", point: str = "0") -> int:
    """The exit status: 0 where the points are there."""
    found = marks(name)
    if not cell:
        print(f"{sum(m[0] for m in found.values()):g} of {sum(m[1] for m in found.values()):g} points")
        return 0
    print(found[cell][2])
    return int(found[cell][0] < int(point))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
