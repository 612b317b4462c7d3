"""What a student wrote, from one lesson to the next: `keep` writes it to a file, `mine` and `everything` read it."""

import ast
import contextlib
import importlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_file
from .carry import carry, used_names
from .cells import better, is_mark, pieces
from .checker import LESSONS, Task, faults, tasks

FOLDER = "my"
SOLUTIONS = "solutions"  # what functions out of the lessons' scripts say is their module; it cannot be imported


def keep(*written: Any, folder: str = FOLDER) -> None:
    """Write functions and classes of `yours` cells to files `my/<name>.py`, for the lessons that follow.

    folder: taken from the working directory. A file holds the source, and what else of the notebook it needs; whether
    it works without the notebook is tried, and said. One that is there already and differs stays beside it as
    `<name>.py.bak` (`.bak2`, ...). The solution is not written: nothing of it is yours.
    """
    tasks_of = {_task(getattr(one, "piece", ""), one).id: one for one in written}
    if others := [f"{piece} {one.__name__}" for piece, one in tasks_of.items() if not getattr(one, "own", False)]:
        print(f"not yours yet, so not kept: {', '.join(others)}")
    waiting, files = [one for one in written if getattr(one, "own", False)], []
    for one in waiting:
        task, carried = _task(one.piece, one), carry(one)
        path = Path(folder) / f"{task.name}.py"
        note = _write(path, f'"""{task.name}, cell {task.id} of the lessons."""\n\n{carried.text()}')
        files.append((one, task, path, carried, note))
        # what it uses of other cells has to lie beside it
        waiting += [
            other for other in carried.pieces if other not in waiting and not path.with_stem(other.__name__).exists()
        ]
    for one, task, path, carried, note in files:
        lost = ", ".join(carried.lost)
        if problem := _problem(path, task, one):
            needed = lost or ", ".join(carried.copied) or "all that it needs"
            print(
                f"{task.id} {task.name}: {path.as_posix()} does not work without this notebook, {problem}:"
                f" write {needed} into its cell, and keep it again{note}"
            )
        else:
            print(f"{task.id} {task.name}: kept in {path.as_posix()}{lost and f', without {lost}'}{note}")


def _write(path, text):
    """Write a file, and the index beside it; a note on what was there before."""
    note = ""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        backup = _free(path)
        path.replace(backup)
        note = f"; what was there is {backup.name} now"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
    _index(path.parent)
    return note


def _problem(path, task, own):
    """What is wrong with a file of a piece that was not wrong with the piece, or None."""
    try:
        found = faults(task, _imported(path, task))
    except Exception as error:  # whatever is missing there
        return f"{type(error).__name__}: {error}"
    before = faults(task, own) if any(found) else found
    return next((new.partition("\n")[0] for new, old in zip(found, before, strict=True) if new and not old), None)


def _free(path):
    number = 1
    while (backup := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")).exists():
        number += 1
    return backup


def _index(folder):
    """So that `from my import softmax` works."""
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__" and path.stem.isidentifier())
    text = '"""What I wrote in the lessons."""\n\nfrom contextlib import suppress\n\n' + "".join(
        f"with suppress(Exception):  # one that does not run stops no other\n    from .{name} import {name} as {name}\n"
        for name in names
    )
    write_file(folder / "__init__.py", text)


# --- reading it again -------------------------------------------------------------------------------------------------


def mine(*names: str, folder: str = FOLDER) -> Any:
    """What was kept under these names, for later lessons: `softmax, attention = mine("softmax", "attention")`.

    A piece that is missing, or does not pass its checks, comes from the solutions, with a line that says so.
    """
    known = {task.name: task for task in all_tasks()}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no lesson has a cell for {unknown[0]!r}; there are {', '.join(known)}")
    found = [_piece(known[name], folder) for name in names]
    _tell(found, folder)
    return found[0] if len(found) == 1 else tuple(found)


def everything(folder: str = FOLDER) -> dict[str, Any]:
    """All that the lessons put into the library, for `use(**everything())`: the student's own, else the solutions."""
    found: dict[str, Any] = {}
    pieces_of = {task.id: _piece(task, folder) for task in all_tasks() if task.hook}
    _tell(pieces_of.values(), folder)
    for task in all_tasks():
        if task.hook:
            hook, _, half = task.hook.partition(".")
            one = pieces_of[task.id]
            pair = found.get(hook, (None, None))
            found[hook] = one if not half else (one, pair[1]) if half == "forward" else (pair[0], one)
    return found


def all_tasks() -> list[Task]:
    """The cells of all lessons, in order."""
    return [task for lesson in LESSONS for task in tasks(lesson).values()]


def _task(piece, one):
    for task in all_tasks():
        if task.id == piece:
            return task
    raise ValueError(f'{getattr(one, "__name__", one)!r} is of no cell of a lesson: decorate it with @yours("1.3")')


def _piece(task, folder):
    """The student's version from this session or the folder; else the solution."""
    own, path = pieces.get(task.id), _file(task, folder)
    if not getattr(own, "own", False):
        own = _load(path, task) if path.exists() else None
    if own is None:
        found = solved(task)
        found.missing = True
        return found
    return better(own, lambda: solved(task), task.id)


def _file(task, folder):
    """Where a piece is kept: in the student's folder here, or beside the folder of the solutions, one above."""
    here, above = (base / folder / f"{task.name}.py" for base in (Path(), Path("..")))
    return above if above.exists() and not here.exists() else here


def _tell(found, folder):
    """Which of some pieces are the student's, and which are not there."""
    yours = [one.__name__ for one in found if getattr(one, "own", False)]
    missing = [f"{one.piece} {one.__name__}" for one in found if getattr(one, "missing", False)]
    if yours:
        print(f"yours, from {folder}/: {', '.join(yours)}")
    if missing:
        print(f"the solutions are used for what is not in {folder}/: {', '.join(missing)}")


def _load(path, task):
    """The function or class in a file of the student's folder; None, and a line, where the file does not run."""
    try:
        own = _imported(path, task)
    except Exception as error:  # whatever is wrong in a file of the student's
        print(f"{path.as_posix()} does not run: {type(error).__name__}: {error}")
        return None
    own.piece, own.own = task.id, True
    return own


def _imported(path, task):
    """The function or class in a file of the student's folder, read anew."""
    package = f"_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(package, path.parent / "__init__.py")
    assert spec is not None
    sys.modules[package] = importlib.util.module_from_spec(spec)
    sys.modules[package].__path__ = [str(path.parent)]
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return getattr(importlib.import_module(f"{package}.{path.stem}"), task.name)


# --- the solutions ----------------------------------------------------------------------------------------------------


def lesson_file(number: int) -> Path:
    """The script of a lesson: in the checkout of this package, or where Jupyter was started."""
    here = Path.cwd()
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "tutorials", here, here.parent, here / "tutorials"):
        if found := sorted(folder.glob(f"{number:02}_*.py")):
            return found[0]
    raise FileNotFoundError(f"lesson {number} is not here: start Jupyter in the folder tutorials of a checkout")


def solved(task: Task) -> Any:
    """The solution of a cell, out of the lesson's script, with what it uses of the others there."""
    path = lesson_file(int(task.id.partition(".")[0]))
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    wanted = {task.name}
    names: dict[str, Any] = {"__name__": SOLUTIONS, "__file__": str(path)}
    chosen = [node for node in reversed(tree.body) if _needed(node, wanted, task.id)]
    module = ast.Module(body=[_bare(node) for node in reversed(chosen)], type_ignores=[])
    with contextlib.redirect_stdout(io.StringIO()):  # which pieces the solution takes from where is no news
        exec(compile(module, str(path), "exec"), names)
    found = names[task.name]
    found.piece = task.id
    return found


def _needed(node, wanted, piece):
    """Whether a statement binds a wanted name: import, solution, helper. What it uses itself is wanted from then on."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        bound = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        marks = [d for d in node.decorator_list if is_mark(d)]
        bound = {node.name} if not marks or ast.unparse(marks[0].func).endswith("solution") else set()
    elif isinstance(node, ast.Assign) and (isinstance(node.value, ast.Constant) or _is_mine(node.value)):
        bound = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    else:
        return False
    if not bound & wanted:
        return False
    wanted -= bound
    wanted |= {*used_names(ast.unparse(_bare(node)))}
    return True


def _is_mine(value):
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("mine", "tb.course.mine")


def _bare(node):
    """The statement without the decorators of a lesson."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        node.decorator_list = [d for d in node.decorator_list if not is_mark(d)]
    return node


# --- what is yours so far ---------------------------------------------------------------------------------------------


LANES = {  # of the final network: the hooks of its parts, in the order in which an image meets them
    "image to tokens": ("patchify", "linear", "add"),
    "a block": ("layer_norm", "softmax", "scaled_dot_product_attention", "multi_head_attention", "gelu"),
    "the loss": ("cross_entropy",),
    "its gradients": ("mul", "matmul", "unbroadcast", "walk"),
    "a step of training": ("adamw",),
    "few bits": ("binary_codes", "slope", "ternary_codes", "absmax_codes"),
    "in a file": ("pack_1bit", "unpack_1bit", "pack_2bit", "unpack_2bit", "pack_base3", "unpack_base3"),
    "and": (),
}


@dataclass
class Parts:
    """The parts of the final network, and whose each is: a text, and in a notebook a picture."""

    rows: list[tuple[str, str, str]]  # part, cells, "yours" or "solution" or "not yet"
    lanes: dict[str, str]  # part -> what of the network it belongs to

    def __repr__(self) -> str:
        width = max((len(part) for part, *_ in self.rows), default=0)
        own = sum(whose == "yours" for *_, whose in self.rows)
        lines = [f"{part:{width}}  {whose:8}  {cells}" for part, cells, whose in self.rows]
        return "\n".join([*lines, f"{own} of {len(self.rows)} parts are yours"])

    def _repr_html_(self) -> str:
        colours = {"yours": "#009E73", "solution": "#56B4E9", "not yet": "#999999"}
        style = "display:inline-block;margin:3px;padding:5px 9px;border-radius:5px;color:#fff;background:"
        lanes: dict[str, str] = {lane: "" for lane in LANES if lane in self.lanes.values()}
        for part, cells, whose in self.rows:
            note = f"<br><small>{whose}, {escape(cells)}</small>"
            lanes[self.lanes[part]] += f'<span style="{style}{colours[whose]}">{escape(part)}{note}</span>'
        rows = "".join(f"<div><small>{lane}</small><br>{boxes}</div>" for lane, boxes in lanes.items())
        own = sum(whose == "yours" for *_, whose in self.rows)
        return f'<div style="max-width:46rem">{rows}<p>{own} of {len(self.rows)} parts are yours.</p></div>'


def parts(folder: str = FOLDER) -> Parts:
    """What of the final Vision Transformer is the student's own so far."""
    cells: dict[str, list[Task]] = {}
    for task in all_tasks():
        if task.part:
            cells.setdefault(task.part, []).append(task)
    rows, lanes = [], {}
    for part, of in cells.items():
        own = [_owned(task, folder) for task in of]
        whose = "yours" if all(own) else "solution" if any(task.id in pieces for task in of) else "not yet"
        rows.append((part, ", ".join(task.id for task in of), whose))
        hook = of[0].hook.partition(".")[0]
        lanes[part] = next((lane for lane, hooks in LANES.items() if hook in hooks), "and")
    return Parts(rows, lanes)


def _owned(task, folder):
    own, path = pieces.get(task.id), _file(task, folder)
    if own is None and path.exists():
        own = _load(path, task)
    return bool(getattr(own, "own", False)) and not any(faults(task, own))
