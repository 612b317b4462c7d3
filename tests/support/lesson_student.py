"""A student who works through a lesson: `python tests/support/lesson_student.py SCRIPT HOW` fills its cells, runs them.

HOW: "solutions" writes every solution into the cell of the student, "mistakes" the typical mistakes of
`tests/course/mistakes/` ("mistakes2": the second of those that have one), "nothing" leaves the cells as they are,
"alone" does that and skips the solutions. Prints JSON: for each cell of code its kind, source, what it printed, and its
error.
"""

import ast
import contextlib
import io
import json
import linecache
import runpy
import sys
import tomllib
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "tutorials"
MISTAKES = ROOT / "tests" / "course" / "mistakes"

# Lessons that do not follow the pattern yet: whoever rewrites one removes its number.
PENDING = ("10", "11", "12")

sync = runpy.run_path(str(TUTORIALS / "sync.py"))


def cells(script):
    """[(kind, source)]: kinds are those of sync.py, "text" for markdown and "" for a plain cell of code."""
    book = jupytext.reads(Path(script).read_text(encoding="utf-8"), fmt="py:percent")
    return [("text" if c.cell_type == "markdown" else c.metadata.get("kind", ""), c.source) for c in book.cells]


def marked(source, mark):
    """{id of a piece: its function or class} of a cell, for the decorator `mark`: yours or solution."""
    found = {}
    for node in ast.parse(source).body:
        for decorator in getattr(node, "decorator_list", ()):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == mark:
                found[decorator.args[0].value] = node
    return found


def calls(source, name):
    """The arguments of the calls of a function in a cell: [(first, second, ...)] as nodes."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def solutions(script):
    """{id of a piece: the source of its solution}."""
    found = {}
    for _, source in (c for c in cells(script) if c[0] == "solution"):
        for piece, node in marked(source, "solution").items():
            found[piece] = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
    return found


def mistakes(script):
    """{id of a piece: [{"code": ..., "says": ...}]}, the typical mistakes and the sentence that must appear."""
    path = MISTAKES / f"{Path(script).stem[:2]}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def filled(source, codes):
    """A your-turn cell with other code in the places of its functions."""
    lines = source.splitlines()
    for piece, node in reversed(marked(source, "yours").items()):
        if piece in codes:
            lines[node.lineno - 1 : node.end_lineno] = codes[piece].strip().splitlines()
    return "\n".join(lines)


def prepared(script, how):
    """The cells of code as this student leaves them."""
    codes = {}
    if how == "solutions":
        codes = solutions(script)
    if how.startswith("mistakes"):
        number = int(how.removeprefix("mistakes") or 1)
        codes = {piece: found[min(number, len(found)) - 1]["code"] for piece, found in mistakes(script).items()}
    for number, (kind, source) in enumerate(cells(script)):
        if kind == "text" or (kind == "solution" and how == "alone"):
            continue
        yield number, kind, filled(source, codes) if kind == "your-turn" else source


def play(script, how):
    """Run the cells one after the other, also after an error."""
    import __main__

    names, report = vars(__main__), []
    for number, kind, source in prepared(script, how):
        name = f"<cell {number}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        out, error = io.StringIO(), ""
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(source, name, "exec"), names)
            except Exception as problem:  # the student goes on to the next cell
                error = f"{type(problem).__name__}: {problem}"
        report.append({"kind": kind, "source": source, "out": out.getvalue(), "error": error})
    return report


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    print(json.dumps(play(*sys.argv[1:])))
