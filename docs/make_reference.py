"""Writes reference.md, every public name with the first sentence of its docstring: `python docs/make_reference.py`."""

import importlib
import inspect
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

from generate import members, public_names  # noqa: E402  what the site documents, too

# The order of reading: what most readers look for first.
GROUPS = {
    "Train, use, look inside": ("data", "train", "viz", "web", "io", "models"),
    "Low bits": ("quant",),
    "The network and its calculus": ("nn", "functional", "optim", "ops", "autograd", "gradcheck", "backend"),
    "Teaching": ("course",),
}
HEAD = """# Reference

Every public name, a line each, from the docstrings: `python docs/make_reference.py` writes this page. `import
tinybitvit as tb` brings it all. Names and order of arguments are PyTorch's where PyTorch has the thing, and
NumPy's for array operations. On the documentation's site every operation has a page with formula, derivation, code and
test cases, and every module one with all signatures:

```{toctree}
:maxdepth: 1

ops/index
api/index
```
"""


def about(value):
    """The first sentence of a docstring, as a cell of a table; of a constant what it is."""
    if type(value).__module__.startswith("tinybitvit") and not callable(value):
        value = type(value)  # an object that the library makes once
    if inspect.ismodule(value) or callable(value):
        doc = inspect.getdoc(value) or ""
        own = doc and not (inspect.isclass(value) and doc in {inspect.getdoc(base) for base in value.__mro__[1:]})
        text = " ".join((doc if own else "").split("\n\n")[0].split())
        text = re.split(r"(?<=[^.][\w)\]`|])\. (?=[A-Z`(])|: (?=[A-Za-z`]+$)", text)[0].rstrip(".")
    else:
        text = ", ".join(map(str, value)) if isinstance(value, (tuple, dict)) else type(value).__name__
    return text.replace("|", "\\|")


def table(prefix, owner, names):
    rows = [f"| `{prefix}{name}` | {about(getattr(owner, name))} |" for name in names]
    return "\n".join(["| name | what it is |", "| --- | --- |", *rows, ""])


def text():
    import tinybitvit as tb

    modules, names = public_names()
    left = set(modules) - {module for group in GROUPS.values() for module in group}
    if left:
        raise ValueError(f"GROUPS lacks {', '.join(sorted(left))}")
    parts = [HEAD, "## `tb`\n", table("tb.", tb, ["ViT", "load", *(n for n in names if n not in ("ViT", "load"))])]
    for title, group in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in group:
            module = importlib.import_module(f"tinybitvit.{name}")
            parts += [f"### `tb.{name}`\n", about(module) + ".\n", table(f"{name}.", module, members(module))]
    return "\n".join(parts)


if __name__ == "__main__":
    (DOCS / "reference.md").write_text(text(), encoding="utf-8")
