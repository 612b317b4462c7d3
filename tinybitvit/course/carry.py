"""A piece of a notebook as a file that works on its own: its source, below all that it uses of the notebook."""

import __future__

import ast
import inspect
import linecache
import symtable
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from .cells import Unwritten, source_of
from .submission import without_magics

ONE_NAME = ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom


@dataclass
class Carried:
    """What a file is made of.

    pieces: functions of other cells, which lie beside it. copied: names whose value is what a statement says, whatever
    was done to it later. lost: names of unknown source.
    """

    imports: set[str] = field(default_factory=set)
    body: list[str] = field(default_factory=list)
    pieces: list[Any] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def text(self) -> str:
        head = sorted(self.imports, key=lambda line: ("__future__" not in line, line))
        return "\n".join([*head, ""] if head else []) + "\n\n" * bool(head) + "\n\n".join(self.body)


def carry(one: Any) -> Carried:
    """A function or class with the imports, constants and helpers that it uses."""
    carried = Carried(seen={one.__name__})
    first = one if inspect.isfunction(inspect.unwrap(one)) else next(filter(inspect.isfunction, _methods(one)))
    _add(carried, source_of(one), inspect.unwrap(first))
    return carried


def _methods(one: type) -> list[Any]:
    return [getattr(value, "__func__", value) for value in vars(one).values()]


def _add(carried: Carried, source: str, where: FunctionType) -> None:
    """A piece of source below what it takes from around it. where: a function that is defined in the same place."""
    if where.__code__.co_flags & __future__.annotations.compiler_flag:
        carried.imports.add("from __future__ import annotations")
    for name in used_names(source):
        if name in where.__globals__ and name not in carried.seen:
            carried.seen.add(name)
            _add_name(carried, name, where)
    if source not in carried.body:
        carried.body.append(source)


def _add_name(carried: Carried, name: str, where: FunctionType) -> None:
    value = where.__globals__[name]
    as_name = "" if getattr(value, "__name__", name) == name else f" as {name}"
    inside = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, Unwritten):
        carried.lost.append(name)
    elif isinstance(value, ModuleType):
        carried.imports.add(f"import {value.__name__}{as_name}")
    elif getattr(value, "piece", None) and getattr(value, "own", False):
        carried.pieces.append(value)
        carried.imports.add(f"from .{value.__name__} import {value.__name__}{as_name}")
    elif _importable(value):
        carried.imports.add(f"from {value.__module__} import {value.__name__}{as_name}")
    elif inspect.isfunction(inside) and inside.__name__ == name and (source := _known_source(inside)):
        _add(carried, source, inside)
    elif _is_literal(value):  # what it is now, not what it was when it was written
        carried.body.append(f"{name} = {value!r}\n")
    elif statement := _statement(name, where):
        if statement.startswith(("import ", "from ")):
            carried.imports.add(statement.rstrip())
        else:
            carried.copied.append(name)
            _add(carried, statement, where)
    else:
        carried.lost.append(name)


def used_names(source: str) -> list[str]:
    """The names that a piece of code takes from around it, sorted: no locals, nothing that it defines itself."""
    top = symtable.symtable(source, "source", "exec")
    tables, found = [*top.get_children()], {symbol.get_name() for symbol in top.get_symbols()}
    while tables:
        table = tables.pop()
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables += table.get_children()
    return sorted(found - {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()})


def _importable(value: Any) -> bool:
    """Whether a function or class comes from a module, under its own name."""
    name = getattr(value, "__module__", None)
    if not callable(value) or name in (None, "__main__"):
        return False
    return getattr(sys.modules.get(name), getattr(value, "__name__", ""), None) is value


def _is_literal(value: Any) -> bool:
    """Whether a constant's `repr` is Python code for it."""
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        again = ast.literal_eval(repr(value))
        return type(again) is type(value) and bool(again == value)
    return False


def _known_source(function: FunctionType) -> str:
    with suppress(ValueError):
        return source_of(function)
    return ""


def _statement(name: str, where: FunctionType) -> str:
    """The last statement that gave a name its value, in a file or in the cells of a notebook; "" if there is none."""
    file = where.__code__.co_filename
    texts = ["".join(linecache.getlines(file))]
    if not Path(file).is_file():
        texts = ["".join(entry[2]) for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
        # IPython's list of what was typed: in the order in which the cells ran
        typed = where.__globals__.get("In")
        texts += [text for text in typed if isinstance(text, str)] if isinstance(typed, list) else []
    for text in reversed(texts):
        with suppress(SyntaxError, ValueError):
            for node in reversed(ast.parse(without_magics(text)).body):
                if isinstance(node, ONE_NAME) and name in _bound(node):
                    return ast.unparse(node) + "\n"
    return ""


def _bound(node: ast.stmt) -> set[str]:
    symbols = symtable.symtable(ast.unparse(node), "source", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
