"""The notebooks, made from the tutorials.

    python tutorials/sync.py           write what is stale
    python tutorials/sync.py --check   only say what is stale; exit status 1 if anything is

The source of a tutorial, and of the solutions of its exercises in `solutions/`, is the percent-format `NN_name.py`: it
can be reviewed, linted and run as a script. The `NN_name.ipynb` beside it is for reading in Jupyter; it holds no
outputs, and the same text always gives the same bytes.

A cell's header says its kind, `# %% kind="solution"`: what Jupyter and the site fold follows from that (see KINDS).
"""

import argparse
import hashlib
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# kind -> (the tag that folds it on the site, what the site writes on the fold); Jupyter folds the code of the same
KINDS: dict[str, tuple[str, str] | None] = {
    "predict": None,
    "naive": None,
    "your-turn": None,
    "solution": ("hide-input", "The solution"),
    "see": ("hide-input", "The code of what you see"),
    "answer": ("hide-cell", "The answer"),
}


def folded(metadata: dict) -> dict:
    """Jupyter's metadata for what a cell's header says."""
    kind = metadata.pop("kind", None)
    if kind is None:
        return metadata
    if kind not in KINDS:
        raise ValueError(f"a cell's kind is one of {', '.join(KINDS)}, not {kind!r}")
    if KINDS[kind] is None:
        return {**metadata, "tags": [kind]}
    fold, label = KINDS[kind]
    site = {"code_prompt_show": label, "code_prompt_hide": label}
    return {**metadata, "jupyter": {"source_hidden": True}, "mystnb": site, "tags": [kind, fold]}


def notebook(text: str) -> str:
    """The notebook of a percent-format script, as JSON.

    A cell's id is made from its text, and from how often that text came before: jupytext would draw ids at random, and
    numbers would change for all cells below a new one.
    """
    book = jupytext.reads(text, fmt="py:percent")
    book.metadata, book.nbformat, book.nbformat_minor = nbformat.from_dict(METADATA), 4, 5
    seen: dict[str, int] = {}
    for cell in book.cells:
        count = seen[cell.source] = seen.get(cell.source, 0) + 1
        cell.metadata = nbformat.from_dict(folded(dict(cell.metadata)))
        cell.id = hashlib.sha256(f"{count} {cell.source}".encode()).hexdigest()[:12]
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def stale(folder: Path) -> dict[Path, str | None]:
    """Notebook -> what it should hold, for each one that is missing or differs; None: its script is gone."""
    wanted: dict[Path, str | None] = {
        script.with_suffix(".ipynb"): notebook(script.read_text(encoding="utf-8"))
        for script in sorted([*folder.glob("[0-9][0-9]_*.py"), *folder.glob("solutions/[0-9][0-9]_*.py")])
    }
    books = sorted([*folder.glob("*.ipynb"), *folder.glob("solutions/*.ipynb")])
    orphans = {path: None for path in books if path not in wanted}
    return {
        path: text
        for path, text in (wanted | orphans).items()
        if text is None or not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the notebooks from the tutorials' scripts.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a notebook is stale")
    check = parser.parse_args().check
    found = stale(TUTORIALS)
    for path, text in found.items():
        if text is None:
            print(f"{path.name}: its script is gone, delete it")
        elif check:
            print(f"{path.name}: stale, run python tutorials/sync.py")
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{path.name}: written")
    return int(bool(found) and check)


if __name__ == "__main__":
    raise SystemExit(main())
