"""Pages that are made from the source whenever the site is built: one per operation, one per module of the API, and
the tutorials. They lie in docs/ops, docs/api and docs/tutorials, which git ignores.
"""

import ast
import importlib
import inspect
import re
import shutil
from pathlib import Path

from plain_docstrings import escape, to_rst
from typeset import raw

import tinybitvit
from tinybitvit import functional, ops
from tinybitvit.cli.zoo import card_text, zoo_table
from tinybitvit.models import zoo

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
FAMILIES = {
    "elementwise": "Elementwise",
    "activation": "Activations",
    "reduce": "Reductions",
    "shape": "Shape",
    "matmul": "Matrix products",
    "norm": "Softmax and normalisation",
    "attention": "Attention",
    "loss": "Losses",
    "patch": "Patches",
    "ste": "Straight-through quantisers",
}


def write(folder, pages):
    """Write {name: text} into a folder of docs/, and remove what else lies there. An equal file keeps its time."""
    folder = DOCS / folder
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        if path.is_file() and path.name not in pages:
            path.unlink()
        elif path.is_dir() and not any(name.startswith(f"{path.name}/") for name in pages):
            shutil.rmtree(path)


def heading(text, line="="):
    return f"{text}\n{line * len(text)}\n"


def relative(path):
    return Path(path).relative_to(ROOT).as_posix()


def toctree(names):
    return ".. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in names)


def table(head, rows):
    """A list-table in reStructuredText, of cells that are markup already."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
    for row in (head, *rows):
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


# --- one page per operation -------------------------------------------------------------------------------------------


def quote(obj, name=None):
    """A literalinclude of a class or function, found by its name, so that it cannot be stale."""
    path = f"/../{relative(inspect.getsourcefile(obj))}"
    return f".. literalinclude:: {path}\n   :pyobject: {name or obj.__qualname__}\n   :language: python\n"


def names_in(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def helpers(cls):
    """The functions of `ops` and `quant` that a class calls, directly or by one of them, in the order of calling."""
    found, waiting = [], [cls]
    while waiting:
        obj = waiting.pop(0)
        module, source = inspect.getmodule(obj), ast.parse(inspect.getsource(obj))
        called = [node.id for node in ast.walk(source) if isinstance(node, ast.Name) and node.id in vars(module)]
        for helper in (vars(module)[name] for name in dict.fromkeys(called)):
            ours = getattr(helper, "__module__", "").startswith(("tinybitvit.ops", "tinybitvit.quant"))
            if inspect.isfunction(helper) and ours and helper not in found:
                found.append(helper)
                waiting.append(helper)
    return found


class Cases:
    """The table of tests/op_cases.py as source: which statements add the cases of an op, and what they speak of."""

    def __init__(self, path=ROOT / "tests" / "op_cases.py"):
        text = path.read_text(encoding="utf-8")
        self.lines, self.body = text.splitlines(), ast.parse(text).body
        start = next(i for i, node in enumerate(self.body) if getattr(node, "name", None) == "cases")
        self.named = {}  # what the table defines for itself: reference functions, lists of shapes
        for node in self.body[start + 1 :]:
            if isinstance(node, ast.FunctionDef):
                self.named[node.name] = node
            elif isinstance(node, ast.Assign):
                self.named |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}

    def adds(self, statement, op):
        """Whether a statement calls `cases` for this op: by its name, or in a loop over names."""
        names = [
            node.args[0]
            for node in ast.walk(statement)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "cases" and node.args
        ]
        if any(isinstance(name, ast.Constant) and name.value == op for name in names):
            return True
        if not isinstance(statement, ast.For) or not any(isinstance(name, ast.Name) for name in names):
            return False
        over = [statement.iter, *(self.named[name] for name in names_in(statement.iter) & self.named.keys())]
        return any(isinstance(node, ast.Constant) and node.value == op for tree in over for node in ast.walk(tree))

    def quote(self, op):
        """A code block of all that, in the order of the file."""
        found = [node for node in self.body if self.adds(node, op)]
        for node in found:  # which grows meanwhile
            found += [self.named[n] for n in names_in(node) & self.named.keys() if self.named[n] not in found]
        found.sort(key=lambda node: node.lineno)
        text = "\n\n".join("\n".join(self.lines[node.lineno - 1 : node.end_lineno]) for node in found)
        return ".. code-block:: python\n\n" + "".join(f"   {line}".rstrip() + "\n" for line in text.splitlines())


def first_paragraph(obj):
    """(formula, derivation) of a Function's docstring."""
    formula, _, derivation = inspect.getdoc(obj).partition("\n\n")
    return formula, derivation


def op_page(name, cls, cases, mutants):
    formula, derivation = first_paragraph(cls)
    public = getattr(functional, name)
    path = relative(inspect.getsourcefile(cls))
    module = "quant" if name in ops.ste.QUANTISERS else "functional"
    parts = [
        heading(name),
        *(raw(paragraph, "derivation") for paragraph in inspect.getdoc(public).split("\n\n")),
        f":py:func:`tinybitvit.{module}.{name}`\\ ``{inspect.signature(public)}`` in the code of a model;"
        f" ``{cls.__name__}`` in ``{path}`` does the work.\n",
        heading("Formula", "-"),
        raw(formula, "formula"),
        heading("Derivation", "-"),
        "With x, y the arrays in and out, L the loss and g = dL/dy, the gradient that arrives from above:\n",
        *(raw(paragraph, "derivation") for paragraph in derivation.split("\n\n")),
        heading("Code", "-"),
        quote(cls),
        *(quote(base) for base in cls.__mro__[1:-1] if base is not ops.Function),  # a backward that several share
    ]
    if below := helpers(cls):
        parts += ["What it calls:\n", *(quote(helper) for helper in below)]
    parts += [heading("Test cases", "-")]
    parts += [
        "Value, shape, dtype and every gradient are compared with PyTorch, for a random upstream gradient, in float64"
        " and float32. From ``tests/op_cases.py``:\n",
        cases.quote(name),
    ]
    if cls in ops.ste.QUANTISERS.values():
        parts += [
            "The same quantiser in torch, written from its formula (``tests/support/ste_reference.py``): what it rounds"
            " to, and the surrogate that torch differentiates.\n",
            f".. literalinclude:: /../tests/support/ste_reference.py\n   :pyobject: {name}\n   :language: python\n",
        ]
    if found := mutants.get(f"{Path(path).stem}.{cls.__name__}"):
        parts += [f"The :doc:`mutation run </mutation>` broke this class in {found} ways, one at a time.\n"]
    return "\n".join(parts)


def op_pages():
    cases = Cases()
    rows = re.findall(r"\| `(\S+)` \| (\d+) \|", (DOCS / "mutation.md").read_text(encoding="utf-8"))
    mutants = dict(rows)
    functions = ops.OPS
    pages = {f"{name}.rst": op_page(name, cls, cases, mutants) for name, cls in functions.items()}
    index = [
        heading("Operations"),
        "Every operation is a class with a forward and a backward on plain arrays; a page each shows its formula, the"
        " derivation of its gradient, its code and its test cases, all taken from the source.\n",
        toctree(functions),
    ]
    for family, title in FAMILIES.items():
        members = {n: c for n, c in functions.items() if c.__module__.endswith("." + family)}
        rows = [(f":doc:`{name}`", raw(first_paragraph(cls)[0], "formula", "     ")) for name, cls in members.items()]
        path = relative(inspect.getsourcefile(next(iter(members.values()))))
        index += [heading(title, "-"), f"``{path}``\n", table(("operation", "formula"), rows)]
    return {**pages, "index.rst": "\n".join(index)}


# --- the API reference ------------------------------------------------------------------------------------------------


def public_names():
    """(modules, other names) of tinybitvit/__init__.pyi."""
    tree = ast.parse((ROOT / "tinybitvit" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules = [alias.name for node in imports if node.module is None for alias in node.names]
    names = [alias.asname for node in imports if node.module for alias in node.names]
    return sorted(modules), sorted(name for name in names if not inspect.ismodule(getattr(tinybitvit, name)))


def members(module):
    """The public names of a module: its `__all__`, or what it defines itself without a leading underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def describe(module_name, name):
    """The autodoc directive of one public name."""
    full, value = f"{module_name}.{name}", getattr(importlib.import_module(module_name), name)
    if inspect.ismodule(value):
        return f"``{name}``: a module with a page of its own, :doc:`{full}`.\n"
    if inspect.isclass(value):
        kind, options = "autoexception" if issubclass(value, BaseException) else "autoclass", "   :members:\n"
        if value.__module__ == "tinybitvit.viz.pictured":  # whose methods are those of the data below it
            options += "   :inherited-members:\n"
        return f".. {kind}:: {full}\n{options}"
    if callable(value):
        return f".. autofunction:: {full}\n"
    shown = ", ".join(map(repr, value)) if isinstance(value, (tuple, dict)) and len(value) < 12 else ""
    text = f"``{type(value).__name__}`` of {shown}." if shown else f"``{type(value).__name__}``"
    return f".. py:data:: {name}\n\n   {text}\n"


PAGED = ("tinybitvit.viz.measures", "tinybitvit.models.zoo")  # modules in a package that have a page of their own


def module_page(name):
    module = importlib.import_module(name)
    parts = [heading(name), *to_rst(inspect.getdoc(module)), f".. py:module:: {name}\n"]
    names = [n for n in members(module) if f"{name}.{n}" in PAGED or not inspect.ismodule(getattr(module, n))]
    parts += [describe(name, member) for member in names]
    if name == "tinybitvit.ops":
        parts.insert(2, "The operations themselves have a page each: :doc:`/ops/index`.\n")
    return "\n".join(parts)


def api_pages():
    modules, names = public_names()
    names = ["ViT", "load", *(n for n in names if n not in ("ViT", "load"))]  # what most readers look for comes first
    full = [f"tinybitvit.{module}" for module in modules]
    for name in PAGED:
        full.insert(full.index(name.rpartition(".")[0]) + 1, name)
    pages = {f"{name}.rst": module_page(name) for name in full}
    pages["tinybitvit.rst"] = "\n".join(
        [heading("tinybitvit"), *to_rst(inspect.getdoc(tinybitvit)), ".. py:module:: tinybitvit\n"]
        + [describe("tinybitvit", name) for name in names]
    )
    everything = ["tinybitvit", *full]
    about = {name: inspect.getdoc(importlib.import_module(name)).split("\n\n")[0] for name in everything}
    rows = [(f":doc:`{name}`", escape(" ".join(text.split()))) for name, text in about.items()]
    text = (
        "All public names, from the docstrings. Names and order of arguments are PyTorch's where PyTorch has the thing,"
    )
    index = [
        heading("API reference"),
        f"{text} and NumPy's for array operations. ``import tinybitvit as tb`` loads a module when it is first used.\n",
        toctree(everything),
        table(("module", "what it is"), rows),
    ]
    return {**pages, "index.rst": "\n".join(index)}


# --- tutorials --------------------------------------------------------------------------------------------------------


def tutorial_pages():
    """The notebooks of tutorials/ and of its solutions, below the README of that folder."""
    folder = ROOT / "tutorials"
    notebooks = sorted(folder.glob("[0-9]*.ipynb"))
    solved = {f"solutions/{path.name}": path for path in sorted(folder.glob("solutions/[0-9]*.ipynb"))}
    names = "".join(f"{path.stem}\n" for path in notebooks) + "".join(f"{name[:-6]}\n" for name in solved)
    text = (folder / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"`(\d\d_\w+)` \|", lambda m: f"[{m[1]}]({m[1]}.ipynb) |" if m[1] in names.split() else m[0], text)
    index = f"{text}\n```{{toctree}}\n:hidden:\n\n{names}```\n"
    pages = {path.name: path for path in notebooks} | solved
    # A link from tutorials/ to docs/ is one from docs/tutorials/ to the folder above.
    texts = {name: path.read_text(encoding="utf-8").replace("](../docs/", "](../") for name, path in pages.items()}
    return {**texts, "index.md": index}


# --- the zoo ----------------------------------------------------------------------------------------------------------


def zoo_pages():
    """The table of the zoo and all cards, as `tinybitvit zoo` prints them."""
    cells = zoo_table()
    parts = [
        heading("The zoo: trained networks that come along"),
        "``tinybitvit predict NAME IMAGE``, ``tinybitvit attention NAME IMAGE`` and ``tb.load(NAME)`` take them by"
        " name; nothing is downloaded. ± is half of the 95 % interval for the full test set (Wilson); bytes are those"
        " of the file.\n",
        table(cells[0], cells[1:]),
        heading("Cards", "-"),
    ]
    for name in zoo.names():
        text = "\n".join(f"   {line}" for line in card_text(zoo.card(name)).splitlines())
        parts.append(f".. code-block:: text\n\n{text}\n")
    return {"index.rst": "\n".join(parts)}


def generate(app=None):
    write("ops", op_pages())
    write("zoo", zoo_pages())
    write("api", api_pages())
    write("tutorials", tutorial_pages())


def setup(app):
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
