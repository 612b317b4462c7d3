"""From problem sets to grades: nbgrader without a server, one function for each step.

A course is a folder: `source` (masters with solutions), `release` (what students get), `submitted`, `autograded`,
`feedback` (a page for each student), `gradebook.db`, `grades.csv` and `answers-<set>.csv` (prose, graded by hand).
Each student's code runs in a process of its own, the tests in another; docs/instructors.md says what that prevents.
"""

import io
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from ..files import write_file
from .gradebook import database, gradebook, grades_row, quiet, read_answers, write_answers, write_grades
from .stage import TIMEOUT, Stage
from .submission import MOST_BYTES

# "*" and its like select several students where nbgrader looks for one.
STUDENT = re.compile(r"\w[\w .,@'()=-]*")


def configure(config: Any, root: str | PathLike = ".", timeout: int = TIMEOUT) -> None:
    """Fill an nbgrader configuration for the course in the folder `root`; also what its `nbgrader_config.py` calls."""
    from nbconvert.preprocessors import ClearMetadataPreprocessor, CSSHTMLHeaderPreprocessor
    from nbgrader import preprocessors as stock

    from .preprocessors import HideHiddenTests, MakeInert, Perform, RepairCells, inert_markdown

    root = Path(root).resolve()
    config.CourseDirectory.course_id = "tinybitvit"
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.db_url = database(root)
    config.Perform.timeout = timeout
    config.LimitOutput.max_lines = 200
    # nbgrader gives no points to a cell with text on stderr, and that may be a warning from a library: drop such text.
    config.IgnorePattern.enabled = True
    config.IgnorePattern.pattern = r"(?s)."
    config.RepairCells.release = config.Perform.release = str(root / "release")
    config.Autograde.sanitize_preprocessors = [
        stock.ClearOutput,
        RepairCells,
        stock.DeduplicateIds,
        stock.OverwriteKernelspec,
        stock.OverwriteCells,
        stock.CheckCellMetadata,
    ]
    config.Autograde.autograde_preprocessors = [
        Perform,
        stock.IgnorePattern,
        ClearMetadataPreprocessor,
        stock.LimitOutput,
        stock.SaveAutoGrades,
        stock.AssignLatePenalties,
        stock.CheckCellMetadata,
    ]
    config.GenerateFeedback.preprocessors = [stock.GetGrades, HideHiddenTests, MakeInert, CSSHTMLHeaderPreprocessor]
    config.HTMLExporter.sanitize_html = True
    config.HTMLExporter.filters = {"markdown2html": inert_markdown}


def new(folder: str | PathLike, assignments: str | PathLike | None = None) -> list[str]:
    """Set up a course in a new folder with a copy of every problem set; their names.

    assignments: a folder of masters `<set>.ipynb` (None: those of the checkout that this package runs from).
    """
    _require_nbgrader()
    root = Path(folder)
    masters = Path(__file__).parents[2] / "tutorials" / "assignments" if assignments is None else Path(assignments)
    found = sorted(masters.glob("*.ipynb"))
    if not found:
        raise ValueError(
            f"no problem sets (*.ipynb) in {masters}: name the folder tutorials/assignments of a checkout"
            " with --assignments"
        )
    if (root / "source").exists():
        raise ValueError(f"{root} holds a course already: choose another folder, so that nothing is overwritten")
    for master in found:
        place = root / "source" / master.stem
        place.mkdir(parents=True)
        write_file(place / master.name, master.read_bytes())
    write_file(
        root / "nbgrader_config.py",
        "# For nbgrader's own commands and pages. `tinybitvit course` does not need this file.\n"
        "from tinybitvit.course.grading import configure\n\n"
        "configure(get_config())  # noqa: F821\n",
    )
    return [master.stem for master in found]


def release(name: str, course: str | PathLike = ".") -> Path:
    """Write the students' version of a problem set, without solutions and hidden tests; its path."""
    _require_nbgrader()
    root = Path(course).resolve()
    master = root / "source" / name / f"{name}.ipynb"
    if not master.is_file():
        raise ValueError(f"there is no {master}: start a course with `tinybitvit course new`")
    problem = _convert("GenerateAssignment", root, name)
    if problem:
        raise ValueError(f"nbgrader could not release {name}: {problem}")
    return root / "release" / name / f"{name}.ipynb"


def grade(
    name: str,
    submissions: str | PathLike,
    course: str | PathLike = ".",
    timeout: int = TIMEOUT,
    jobs: int | None = None,
) -> Path:
    """Grade a folder of submissions, print a line for each, and write `grades.csv`; its path.

    submissions: `<student>.ipynb` files, or folders `<student>` that hold one notebook each, at any depth. timeout:
    seconds that a cell may take. jobs: submissions graded at the same time, in processes of their own (None: one for
    each core). What goes wrong with one submission stands in its line and stops no other.
    """
    _require_nbgrader()
    root = Path(course).resolve()
    _require_release(name, root)
    found = find_submissions(Path(submissions))
    _say_what_is_missing()
    odd = {student: problem for student, path in found.items() if (problem := _take_in(path, root, name, student))}
    for student, problem in _autograde(root, name, list(found), timeout, jobs):
        with gradebook(root) as book:
            row = grades_row(root, book.find_submission(name, student))
        problem = odd.get(student, problem)
        print(f"{student}: {problem or '{score:g} of {max_score:g} points'.format(**row)}", flush=True)
    write_answers(root, name)
    return write_grades(root)


def feedback(name: str, course: str | PathLike = ".") -> Path:
    """Take over the points for prose from `answers-<set>.csv`, write `grades.csv` and a page for each student.

    Returns the folder of the pages, `feedback/<student>/<set>/<set>.html`.
    """
    _require_nbgrader()
    root = Path(course).resolve()
    _require_release(name, root)
    graded = [path.name for path in sorted((root / "autograded").glob("*")) if (path / name).is_dir()]
    if not graded:
        raise ValueError(f"no submission of {name} is graded: run `tinybitvit course grade {name}` first")
    read_answers(root, name)
    for student in graded:
        if problem := _convert("GenerateFeedback", root, name, student):
            raise ValueError(f"nbgrader could not write the feedback for {student}: {problem}")
    write_grades(root)
    return root / "feedback"


def export(
    names: list[str],
    service: str,
    course: str | PathLike = ".",
    to: str | PathLike | None = None,
    roster: str | PathLike | None = None,
) -> list[Path]:
    """Write problem sets for "gradescope" or "classroom50", or their grades for "canvas"; what was written.

    to: a folder (None: `export` in the course folder). roster: the table that Canvas's gradebook exports.
    """
    _require_nbgrader()
    from .export import export

    root = Path(course).resolve()
    for name in names:
        _require_release(name, root)
    place = root / "export" if to is None else Path(to)
    return export(names, service, root, place, None if roster is None else Path(roster))


def _say_what_is_missing() -> None:
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        stage.run("")
        for wall in stage.missing:
            print(f"warning: {wall} of the students' code: docs/instructors.md says what to do")


def _take_in(path: Path, root: Path, name: str, student: str) -> str | None:
    """Copy a submission into the course folder; or an empty file, and say why it is not the submission."""
    problem = None
    if path.is_symlink() or not path.is_file():  # a link may lead to the master
        problem = "it is a link, a folder or a pipe, not a notebook"
    elif path.stat().st_size > MOST_BYTES:
        problem = f"it has over {MOST_BYTES >> 20} MB: its outputs should be cleared"
    place = root / "submitted" / student / name / f"{name}.ipynb"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_file(place, "" if problem else path.read_bytes())
    return problem


def find_submissions(folder: Path) -> dict[str, Path]:
    """Student -> notebook. ValueError where a name cannot be a student's, or a folder does not hold one notebook."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the folder that holds the submissions")
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")):
            continue  # what file systems and archives leave behind
        if path.suffix == ".ipynb" or path.is_symlink():
            inside = [path]
        elif path.is_dir():
            inside = [p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
        else:
            continue
        student = path.stem if path.suffix == ".ipynb" else path.name
        if len(inside) != 1:
            raise ValueError(f"{path} holds {len(inside)} notebooks: leave in it the one to be graded")
        if not STUDENT.fullmatch(student) or student in found:
            raise ValueError(f"{path}: {student!r} cannot be a student's name here, or comes twice: rename it")
        found[student] = inside[0]
    if not found:
        raise ValueError(f"no notebook (*.ipynb) in {folder}")
    return found


# --- nbgrader ---------------------------------------------------------------------------------------------------------


def _require_nbgrader() -> None:
    if find_spec("nbgrader") is None:  # importing it takes seconds, which is left to the processes that grade
        raise ImportError('courses need nbgrader: run pip install "tinybitvit[course]"')


def _require_release(name: str, root: Path) -> None:
    if not (root / "release" / name / f"{name}.ipynb").is_file():
        raise ValueError(f"{name} is not released in {root}: run `tinybitvit course release {name}` there first")


def _convert(converter: str, root: Path, name: str, student: str = ".", timeout: int = TIMEOUT) -> str | None:
    """Run one of nbgrader's converters; None, or what went wrong."""
    from nbgrader import converters
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    config = Config()
    configure(config, root, timeout)
    # A logger of our own: nbgrader's goes to stderr.
    log, text = logging.Logger("nbgrader"), io.StringIO()
    log.addHandler(logging.StreamHandler(text))
    with quiet():
        folder = CourseDirectory(config=config, log=log, assignment_id=name, student_id=student)
        app = getattr(converters, converter)(coursedir=folder, config=config, log=log, force=True)
        try:
            app.start()
        except Exception as error:  # nbgrader raises many kinds, most of them after logging what matters
            lines = [line for line in text.getvalue().splitlines() if re.match(r"\S*(Error|Exception|Died)\b.*:", line)]
            return " ".join((lines[-1] if lines else str(error)).split())
    return None


def _autograde(
    root: Path, name: str, students: list[str], timeout: int, jobs: int | None
) -> Iterator[tuple[str, str | None]]:
    """Each student with None or what went wrong; several are graded at the same time.

    Where a process that grades is killed, those who were not graded yet get a process each, one after the other.
    """
    from joblib import cpu_count
    from joblib.externals.loky import ProcessPoolExecutor

    waiting, together = students, min(jobs or cpu_count(), len(students))
    while waiting:
        left = []
        with ProcessPoolExecutor(together) as pool:
            futures = {s: pool.submit(_convert, "Autograde", root, name, s, timeout) for s in waiting}
            for student, future in futures.items():
                try:
                    yield student, future.result()
                except BrokenProcessPool:
                    left.append(student)
        if together == 1 and left:  # nobody else was graded there
            shutil.rmtree(root / "autograded" / left[0] / name, ignore_errors=True)
            yield left.pop(0), "the process that graded it was killed, perhaps because memory ran out"
        waiting, together = left, 1
