"""A submission as the names that it defines, for tests without nbgrader."""

import ast
import contextlib
import io
import json
from os import PathLike
from pathlib import Path
from typing import Any


def load(path: str | PathLike) -> dict[str, Any]:
    """The names defined by a student's notebook or script, whose code is run: see docs/instructors.md.

    Graded cells of a notebook (its tests) are left out, and a cell that fails does not stop those after it: what it
    failed to define is missing from the result. What the code prints is dropped. ValueError for anything that is no
    notebook or script.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: put the submission there")
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": path.stem}
    for number, source in enumerate(_cells(text) if path.suffix == ".ipynb" else [text]):
        with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(ast.parse(source), f"{path.name}, cell {number}", "exec"), names)
    return names


def _cells(text: str) -> list[str]:
    """The code cells of a notebook that are not graded."""
    try:
        cells = json.loads(text)["cells"]
        code = [c for c in cells if c["cell_type"] == "code" and not c["metadata"].get("nbgrader", {}).get("grade")]
        return ["".join(cell["source"]) for cell in code]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("the submission is not a Jupyter notebook: download it from Jupyter again") from error
