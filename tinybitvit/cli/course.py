"""The sub-commands of `tinybitvit course`."""

import argparse

from .arguments import add, count, name, small_count

SET_HELP = "a problem set, such as ps1"
ISOLATE = "This runs the students' code, shut in where the system allows it: see docs/instructors.md."


def add_course(commands) -> None:
    """Add `course` and its sub-commands to the parsers of the command line."""
    text = "hand out, collect and grade problem sets"
    course = commands.add_parser("course", help=text, description=f"{text.capitalize()}, with nbgrader.")
    steps = course.add_subparsers(title="steps", metavar="STEP", required=True)

    p = add(steps, new, "set up a course folder with the problem sets")
    p.add_argument("folder", type=name, metavar="FOLDER", help="the folder to make")
    p.add_argument("--assignments", type=name, metavar="DIR", help="folder of masters (default: tutorials/assignments)")

    p = add(steps, release, "write what students get: no solutions, no hidden tests")
    _add_set(p)

    p = add(steps, grade, "grade a folder of submissions into grades.csv", ISOLATE)
    _add_set(p)
    p.add_argument(
        "submissions", type=name, metavar="DIR", help="notebooks <student>.ipynb, or a folder for each student"
    )
    p.add_argument("--timeout", type=count, default=60, metavar="S", help="seconds a cell may take (default: 60)")
    text = "submissions graded at the same time (default: one for each core)"
    p.add_argument("--jobs", type=small_count, metavar="N", help=text)

    p = add(steps, export, "write a set, or grades, for Gradescope, Classroom 50 or Canvas")
    p.add_argument("sets", type=name, nargs="+", metavar="SET", help=f"{SET_HELP}; several for Canvas, a column each")
    text = "what it is for: an autograder, tests.json with its files, or a table of grades"
    p.add_argument("--for", dest="service", required=True, choices=["gradescope", "classroom50", "canvas"], help=text)
    p.add_argument("--to", type=name, metavar="DIR", help="folder to write into (default: export in the course folder)")
    p.add_argument("--roster", type=name, metavar="FILE", help="Canvas: the table that its gradebook exports")
    _add_course(p)

    p = add(steps, feedback, "take over points given by hand and write a page for each student")
    _add_set(p)


def _add_set(p) -> None:
    p.add_argument("set", type=name, metavar="SET", help=SET_HELP)
    _add_course(p)


def _add_course(p) -> None:
    p.add_argument("--course", type=name, metavar="DIR", default=".", help="the course folder (default: this one)")


def new(args: argparse.Namespace) -> int:
    from ..course.grading import new

    sets = new(args.folder, args.assignments)
    print(f"written: {args.folder} with {', '.join(sets)}")
    return 0


def release(args: argparse.Namespace) -> int:
    from ..course.grading import release

    print(f"written: {release(args.set, args.course)}")
    return 0


def grade(args: argparse.Namespace) -> int:
    from ..course.grading import grade

    print(f"written: {grade(args.set, args.submissions, args.course, args.timeout, args.jobs)}")
    return 0


def export(args: argparse.Namespace) -> int:
    from ..course.grading import export

    for path in export(args.sets, args.service, args.course, args.to, args.roster):
        print(f"written: {path}")
    return 0


def feedback(args: argparse.Namespace) -> int:
    from ..course.grading import feedback

    print(f"written: {feedback(args.set, args.course)}")
    return 0
