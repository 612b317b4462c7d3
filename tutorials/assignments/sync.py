"""The master notebooks of the problem sets, made from `ps<n>.py`.

    python tutorials/assignments/sync.py           write what is stale
    python tutorials/assignments/sync.py --check   only say what is stale; exit status 1 if anything is

The cells are those of tutorials/sync.py. A marker says of a cell only what differs from a plain one, as in
`nbgrader={"grade_id": "ps1-1", "solution": true}`; what nbgrader needs besides is added here.
"""

import argparse
import importlib.util
from pathlib import Path

import nbformat

ASSIGNMENTS = Path(__file__).resolve().parent
PLAIN = {"schema_version": 3, "grade": False, "solution": False, "task": False, "locked": False}


def plain_notebook(text: str) -> str:
    spec = importlib.util.spec_from_file_location("sync_tutorials", ASSIGNMENTS.parent / "sync.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notebook(text)


def master(text: str) -> str:
    """The notebook of a problem set's script, as JSON."""
    book = nbformat.reads(plain_notebook(text), as_version=4)
    for cell in book.cells:
        if "nbgrader" in cell.metadata:
            given = cell.metadata.nbgrader
            locked = given.get("grade", False) and not given.get("solution", False)
            cell.metadata["nbgrader"] = {**PLAIN, "locked": locked, **given}
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def stale() -> dict[Path, str]:
    """Notebook -> what it should hold, for each one that is missing or differs."""
    scripts = sorted(ASSIGNMENTS.glob("ps*.py"))
    wanted = {script.with_suffix(".ipynb"): master(script.read_text(encoding="utf-8")) for script in scripts}
    return {p: text for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text}


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the master notebooks from the problem sets' scripts.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a notebook is stale")
    check = parser.parse_args().check
    found = stale()
    for path, text in found.items():
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path.name}: {'stale, run python tutorials/assignments/sync.py' if check else 'written'}")
    return int(bool(found) and check)


if __name__ == "__main__":
    raise SystemExit(main())
