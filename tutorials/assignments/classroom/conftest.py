"""Makes `pytest -m ps3_2` known to pytest: a marker for each task. Keep this file and test_tasks.py from students."""

import sys
from pathlib import Path

# A file of the submission called numpy.py must not stand in for NumPy, here where the checks run.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import tinybitvit as tb  # noqa: E402


def pytest_configure(config):
    for task in tb.course.tasks().values():
        config.addinivalue_line("markers", f"{task.id.replace('.', '_')}: {task.name}")
