"""Write tests/support/cupy_api.json: what the installed CuPy has, by name and keyword; no GPU is needed.

    python tests/support/make_cupy_api.py            # writes the file
    python tests/support/make_cupy_api.py --check    # compares instead, and fails where they differ

The stand-in `cupy_standin.py` offers exactly these names and keywords, so that it cannot be more generous than CuPy.
Signatures come from `inspect`, or, for compiled methods and ufuncs, from the first line of the docstring; defaults are
not kept (every optional parameter is written `name=0`).
"""

import argparse
import ast
import inspect
import json
import re
import types
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("cupy_api.json")
MODULES = ("linalg", "random", "cuda", "cuda.runtime", "cuda.nvrtc", "exceptions")


def from_signature(signature):
    """'a, axis=0, *, out=0, **kwargs' from an inspect.Signature."""
    parts, star = [], False
    for p in signature.parameters.values():
        default = "" if p.default is p.empty else "=0"
        if p.kind is p.VAR_POSITIONAL:
            parts.append(f"*{p.name}")
            star = True
        elif p.kind is p.VAR_KEYWORD:
            parts.append(f"**{p.name}")
        else:
            if p.kind is p.KEYWORD_ONLY and not star:
                parts.append("*")
                star = True
            parts.append(p.name + default)
    return ", ".join(parts)


def from_docstring(text):
    """The same from a first line such as '_ndarray_base.take(self, indices, axis=None, out=None) -> _ndarray_base'."""
    found = re.match(r"[\w. ]*?(\w+)\((.*)\)", (text or "").strip().split("\n")[0].replace("\\*", "*"))
    if not found:
        return None
    # Cython writes the types before the names: "Py_ssize_t axis1", "_ndarray_base out=None", "bool use_ptds=False"
    inner = re.sub(r"(?<![\w.])[\w.]+ (?=\*{0,2}\w+)", "", found[2])
    try:
        arguments = ast.parse(f"def f({inner}): pass").body[0].args
    except SyntaxError:
        return None
    optional = len(arguments.defaults)
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    parts = [name + "=0" * (i >= len(names) - optional) for i, name in enumerate(names)]
    if arguments.posonlyargs:
        parts.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg or arguments.kwonlyargs:
        parts.append(f"*{arguments.vararg.arg if arguments.vararg else ''}")
    for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(a.arg + ("=0" if default is not None else ""))
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    return ", ".join(part for part in parts if part != "self")


def signature_of(value):
    """What may be passed to a function, as text, or '*args, **kwargs' where nothing says so."""
    try:
        text = from_signature(inspect.signature(value))
        return ", ".join(part for part in text.split(", ") if part != "self")
    except (TypeError, ValueError):
        found = from_docstring(getattr(value, "__doc__", None))
        return "*args, **kwargs" if found is None else found


def kind_of(name, value, ufunc):
    """(section, description) of one public name of a module; None for what has no place in a snapshot."""
    if isinstance(value, types.ModuleType):
        return None
    if isinstance(value, ufunc):
        return "ufuncs", signature_of(value)
    if vars(np).get(name) is value or isinstance(value, (int, float, str, type(None))):
        return "constants", type(value).__name__  # dtypes and numbers that CuPy takes from NumPy
    if inspect.isclass(value):
        return "classes", signature_of(value)
    return ("functions", signature_of(value)) if callable(value) else None


def describe(module, ufunc):
    """{section: {name: signature}} of a module's public names."""
    found = {}
    for name in sorted(n for n in dir(module) if not n.startswith("_")):
        if entry := kind_of(name, getattr(module, name), ufunc):
            found.setdefault(entry[0], {})[name] = entry[1]
    return found


def members(cls):
    """{name: signature, or None for an attribute} of a class; special methods by name alone."""
    found = {}
    for name in sorted(dir(cls)):
        if name.startswith("_"):
            if name.startswith("__") and name not in dir(object) and not name.startswith("__pyx"):
                found[name] = None
            continue
        value = getattr(cls, name)
        found[name] = signature_of(value) if callable(value) else None
    return found


def snapshot():
    """Everything the stand-in needs to know, from the CuPy that is installed."""
    import cupy
    import cupyx
    import cupyx.scipy.special

    ufunc = type(cupy.add)
    modules = {"": describe(cupy, ufunc)}
    for name in MODULES:
        module = cupy
        for part in name.split("."):
            module = getattr(module, part)
        modules[name] = describe(module, ufunc)
    special = describe(cupyx.scipy.special, ufunc)
    return {
        "cupy": cupy.__version__,
        "modules": modules,
        "cupyx": {"functions": describe(cupyx, ufunc)["functions"]},
        "cupyx.scipy.special": {"ufuncs": special["ufuncs"]},
        "ndarray": members(cupy.ndarray),
        "ufunc": members(ufunc),
        "Generator": members(cupy.random.Generator),
        "RawModule": members(cupy.RawModule),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    text = json.dumps(snapshot(), indent=0, sort_keys=True) + "\n"
    if parser.parse_args().check:
        raise SystemExit(0 if PATH.read_text(encoding="utf-8") == text else f"{PATH.name} differs: write it anew")
    PATH.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
