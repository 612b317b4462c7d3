"""Checks a submission, a notebook `ps<n>.ipynb` or a script `ps<n>.py` in this folder.

pytest             every task of the sets that are here
pytest -m ps3_2    one task
"""

import contextlib
from pathlib import Path

import pytest

import tinybitvit as tb

HERE = Path(__file__).parent
FILES = {path.stem: path for pattern in ("ps?.py", "ps?.ipynb") for path in sorted(HERE.glob(pattern))}
TASKS = [
    pytest.param(path, task, id=task.id, marks=getattr(pytest.mark, task.id.replace(".", "_")))
    for name, path in FILES.items()
    for task in tb.course.tasks(name).values()
]


@pytest.fixture(scope="session")
def submissions():
    """The submissions, each in a process of its own: whatever it does there, the checks are here."""
    with contextlib.ExitStack() as stack:
        yield {path: stack.enter_context(tb.course.apart(path)) for path in FILES.values()}


@pytest.mark.parametrize(("path", "task"), TASKS)
def test_task(submissions, path, task):
    assert tb.course.check(task.id, task.answer(submissions[path])), "see the printed report"
