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
from .submission import MOST_BYTES, left_behind, notebooks_in

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
    each core). What goes wrong with one submission stands in its line and stops no other. A student who hands in no
    notebook has 0 points, or those of one that was graded before.
    """
    _require_nbgrader()
    root = Path(course).resolve()
    _require_release(name, root)
    found, left_out = find_submissions(Path(submissions))
    _say_what_is_missing()
    odd = {}
    for student, entry in list(found.items()):
        place = root / "submitted" / student / name / f"{name}.ipynb"
        data, odd[student] = _taken_in(entry)
        if odd[student] and place.is_file():
            left_out.append(f"{student}: {odd[student]}; what was handed in before stays")
            del found[student]
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_file(place, data)
    for line in left_out:
        print(f"not graded: {line}")
    for student, problem in _autograde(root, name, list(found), timeout, jobs):
        with gradebook(root) as book:
            row = grades_row(root, book.find_submission(name, student))
        problem = odd[student] or problem
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


def _taken_in(entry: Path | str) -> tuple[bytes, str | None]:
    """What a notebook holds; or nothing, and why it is no submission."""
    if isinstance(entry, str):
        return b"", entry
    if entry.is_symlink() or not entry.is_file():  # a link may lead to the master
        return b"", "it is a link, a folder or a pipe, not a notebook"
    try:
        if entry.stat().st_size > MOST_BYTES:
            return b"", f"it has over {MOST_BYTES >> 20} MB: its outputs should be cleared"
        return entry.read_bytes(), None
    except OSError as error:
        return b"", f"it cannot be read ({error.strerror}): copy it again"


def find_submissions(folder: Path) -> tuple[dict[str, Path | str], list[str]]:
    """Student -> notebook, or why there is none; and a line for each entry that cannot be a student's.

    ValueError for a folder without any notebook: it may be the wrong one.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the folder that holds the submissions")
    entries: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not left_behind(path.name):
            entries.setdefault(_student(path), []).append(path)
    found: dict[str, Path | str] = {}
    left_out = []
    for student, paths in entries.items():
        if STUDENT.fullmatch(student):
            found[student] = _one_notebook(paths)
        else:
            left_out += [f"{path}: {student!r} cannot be a student's name here: rename it" for path in paths]
    if not any(isinstance(entry, Path) for entry in found.values()):
        problems = "".join(f"; {problem}" for problem in [*found.values(), *left_out])
        raise ValueError(f"no notebook (*.ipynb) in {folder} that can be graded{problems}")
    return found, left_out


def _student(path: Path) -> str:
    """Whose an entry is: `ann.ipynb`, `ann.IPYNB`, `ann.ipynb.txt`, `ann.py` and the folder `ann` are ann's."""
    plain = path.is_file() and not path.is_symlink()
    return re.sub(r"(?i)(\.ipynb)?(\.\w+)?$" if plain else r"(?i)\.ipynb$", "", path.name)


def _one_notebook(paths: list[Path]) -> Path | str:
    """The notebook among the entries of a student; or why there is none, or which is meant."""
    found = []
    for path in paths:
        folder = path.is_dir() and not path.is_symlink() and path.suffix.lower() != ".ipynb"
        named = path.suffix.lower() == ".ipynb" or path.is_symlink()
        found += notebooks_in(path) if folder else [path] * named
    if len(found) == 1:
        return found[0]
    where = " and ".join(map(str, paths))
    if found or any(path.is_dir() for path in paths):
        return f"{where} holds {len(found)} notebooks: leave in it the one to be graded"
    return f"{where} is no notebook (*.ipynb)"


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
