"""Makes `pytest -m ps3_2` known to pytest: a marker for each task."""

import tinybitvit as tb


def pytest_configure(config):
    for task in tb.course.tasks().values():
        config.addinivalue_line("markers", f"{task.id.replace('.', '_')}: {task.name}")
