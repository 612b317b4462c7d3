"""A submission as cells, and as the names that it defines."""

import __future__

import ast
import contextlib
import functools
import io
import json
import operator
import re
import textwrap
from os import PathLike
from pathlib import Path
from types import CodeType
from typing import Any

from ..files import file_problem

FUTURE = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
MAGIC = re.compile(r"(\s*)([%!?]|[\w., ]+=\s*[%!]|[\w.]+\?+\s*$)")
MOST_BYTES = 64 << 20  # of a notebook with all of its pictures


def load(path: str | PathLike) -> dict[str, Any]:
    """The names defined by a student's notebook or script, whose code is run here: see docs/instructors.md.

    Graded cells of a notebook (its tests) are left out, and a cell that fails does not stop those after it: what it
    failed to define is missing from the result. What the code prints is dropped. ValueError for anything that is no
    notebook or script.
    """
    names: dict[str, Any] = {"__name__": Path(path).stem}
    compiled = Compiler()
    for number, source in enumerate(read_cells(path)):
        with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(io.StringIO()):
            execute(compiled(without_magics(source), f"{Path(path).name}, cell {number}"), names)
    return names


class Compiler:
    """`compile` for the cells of a notebook: what one of them imports `from __future__` holds for those after it."""

    def __init__(self) -> None:
        self.flags = 0

    def __call__(self, source: Any, place: str, mode: str = "exec") -> CodeType:
        code = compile(source, place, mode, self.flags, dont_inherit=True)
        self.flags |= code.co_flags & FUTURE
        return code


def execute(code: CodeType, names: dict[str, Any]) -> None:
    """The one place of this package that runs text: a submission's, and the tests' of a problem set."""
    exec(code, names)


def read_cells(path: str | PathLike) -> list[str]:
    """The code of a notebook's cells that are not graded, or each statement of a script. ValueError as for `load`."""
    path = Path(path)
    if problem := file_problem(path):
        raise ValueError(problem)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has over {MOST_BYTES >> 20} MB: clear the outputs of the notebook")
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix.lower() == ".ipynb":
        return _notebook_cells(text)
    try:
        return [ast.unparse(statement) for statement in ast.parse(text).body]
    except (SyntaxError, ValueError, RecursionError):
        return [text]


def notebooks_in(folder: Path) -> list[Path]:
    """The notebooks in a folder, at any depth, without what file systems and archives leave behind."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".ipynb"]
    return [path for path in found if not any(map(left_behind, path.relative_to(folder).parts))]


def left_behind(name: str) -> bool:
    """Whether a file or folder of this name is nobody's work: `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith((".", "__"))


def _notebook_cells(text: str) -> list[str]:
    try:
        cells = json.loads(text)["cells"]
        code = [c for c in cells if c["cell_type"] == "code" and not c["metadata"].get("nbgrader", {}).get("grade")]
        return ["".join(cell["source"]) for cell in code]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the submission is not a Jupyter notebook: download it from Jupyter again") from error


def without_magics(source: str) -> str:
    """A cell as plain Python: lines for IPython (`%matplotlib inline`, `!pip ...`, `name = !ls`) do nothing.

    Of a cell that starts with `%%`, such as `%%timeit`, what follows that line stays.
    """
    lines = textwrap.dedent(source).splitlines()
    for _ in range(len(lines)):
        try:
            compile("\n".join(lines), "cell", "exec", ast.PyCF_ONLY_AST)
            break
        except (SyntaxError, ValueError) as error:  # only a line that Python cannot read may be one for IPython
            n = (getattr(error, "lineno", None) or 0) - 1
            found = MAGIC.match(lines[n]) if 0 <= n < len(lines) else None
            if found is None:
                break
            while lines[n].endswith("\\") and n + 1 < len(lines):
                lines[n], n = f"{found[1]}pass", n + 1
            lines[n] = f"{found[1]}pass"
    return "\n".join(lines)
