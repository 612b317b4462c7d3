"""The tutorials: the notebooks are fresh, the scripts of the solutions run, nothing goes to stderr.

The lessons run in tests/course/test_lessons*.py, and as notebooks where the documentation is built, which fails for
whatever a cell writes to stderr.
"""

import ast
import os
import re
import resource
import runpy
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - so that its cache is built here: that takes seconds, and says so on stderr
import nbformat
import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
SOLUTIONS = sorted(TUTORIALS.glob("solutions/[0-9][0-9]_*.py"))
QUICK = ("01", "03")  # a few seconds each; those of the others are run by `pytest -m slow`
MOST_SECONDS = 60

NO_NETWORK = TUTORIALS.parent / "tests" / "support" / "no_network"

sync = runpy.run_path(str(TUTORIALS / "sync.py"))


def names(path):
    return path.stem


def quick_or_slow(scripts):
    return [
        pytest.param(
            s, marks=[] if s.name.startswith(QUICK) else pytest.mark.slow, id=s.relative_to(TUTORIALS).as_posix()
        )
        for s in scripts
    ]


@pytest.fixture
def tutorial_environment(tmp_path, monkeypatch):
    """An empty working folder without network and without downloaded data; returns the folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NO_NETWORK), str(TUTORIALS.parent)]))
    monkeypatch.setenv("TINYBITVIT_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    work = tmp_path / "work"
    work.mkdir()
    return work


# --- the text ---------------------------------------------------------------------------------------------------------


def test_there_are_tutorials():
    assert SCRIPTS
    assert [s.name[:2] for s in SCRIPTS] == [f"{i + 1:02}" for i in range(len(SCRIPTS))], "numbers without a gap"


def test_notebooks_are_fresh():
    assert [path.name for path in sync["stale"](TUTORIALS)] == [], "run python tutorials/sync.py"


def test_a_stale_notebook_is_found(tmp_path):
    script = tmp_path / "01_small.py"
    script.write_text("# %% [markdown]\n# # 01 Small\n\n# %%\nx = 1\n", encoding="utf-8")
    notebook = script.with_suffix(".ipynb")
    (tmp_path / "02_gone.ipynb").write_text("{}", encoding="utf-8")

    found = sync["stale"](tmp_path)
    assert found[tmp_path / "02_gone.ipynb"] is None
    notebook.write_text(found[notebook], encoding="utf-8")
    assert notebook not in sync["stale"](tmp_path)
    notebook.write_text(found[notebook].replace("x = 1", "x = 2"), encoding="utf-8")
    assert notebook in sync["stale"](tmp_path)


def test_a_new_cell_leaves_the_other_ids_alone():
    before = nbformat.reads(sync["notebook"]("# %%\nx = 1\n\n# %%\nx = 1\n\n# %%\ny = 2\n"), as_version=4)
    after = nbformat.reads(sync["notebook"]("# %%\nx = 1\n\n# %%\nz = 3\n\n# %%\nx = 1\n\n# %%\ny = 2\n"), as_version=4)
    assert len({cell.id for cell in before.cells}) == 3
    assert [cell.id for cell in before.cells] == [cell.id for cell in after.cells if cell.source != "z = 3"]


def test_the_kind_of_a_cell_says_what_is_folded():
    kinds = ("predict", "naive", "your-turn", "solution", "see", "answer")
    text = "# %%\nplain = 1\n" + "".join(f'\n# %% kind="{kind}"\nx = 1\n' for kind in kinds)
    plain, *cells = nbformat.reads(sync["notebook"](text), as_version=4).cells
    assert plain.metadata == {}
    assert [cell.metadata.tags[0] for cell in cells] == list(kinds)
    hidden = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in cells]
    assert hidden == [False, False, False, True, True, True]
    assert [cell.metadata.tags[1:] for cell in cells] == [[], [], [], ["hide-input"], ["hide-input"], ["hide-cell"]]
    with pytest.raises(ValueError, match=r"a cell's kind is one of predict, .*, not 'sea'"):
        sync["notebook"]('# %% kind="sea"\nx = 1\n')


def markdown(script):
    cells = nbformat.reads(sync["notebook"](script.read_text(encoding="utf-8")), as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_structure(script):
    text = markdown(script)
    assert re.match(rf"# {script.name[:2]} \S", text), "the first line is the title, with the number"
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings[-1] == "Exercises"
    exercises = re.findall(r"^\d\. ", text.rpartition("## Exercises")[2], flags=re.MULTILINE)
    assert 3 <= len(exercises) <= 5
    asked = re.findall(r"\*\*Predict", text) + re.findall(r"\bpredict\(", script.read_text(encoding="utf-8"))
    assert len(asked) >= 3, "a question before each result"
    assert script.stem in (TUTORIALS / "README.md").read_text(encoding="utf-8"), "listed in README.md"


@pytest.mark.parametrize("script", SOLUTIONS, ids=names)
def test_each_exercise_has_a_hint_and_a_worked_solution(script):
    lesson, text = markdown(TUTORIALS / script.name).rpartition("## Exercises")[2], markdown(script)
    exercises = re.findall(r"^(\d)\. \((\d+ min|an hour|an evening)[^)]*\) ", lesson, flags=re.MULTILINE)
    assert [number for number, _ in exercises] == re.findall(r"^## (\d)\. ", text, flags=re.MULTILINE), "with its time"
    assert f"solutions/{script.stem}.ipynb" in lesson
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert all("Hint: " in section for section in sections)


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_claims_are_asserts_and_paths_are_relative(script):
    source = script.read_text(encoding="utf-8")
    assert "inspect.getsource(" in source, "the library's code is quoted, not copied"
    tree = ast.parse(source)
    answers = re.findall(r"^answer\(", source, flags=re.MULTILINE)
    assert len(answers) + sum(isinstance(node, ast.Assert) for node in ast.walk(tree)) >= 5
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert not [t for t in texts if re.match(r"(/\w|~/|[A-Za-z]:\\|https?:)", t)]


# --- running them -----------------------------------------------------------------------------------------------------


def test_the_guard_refuses_the_network(tutorial_environment):
    command = [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "a tutorial asked the network for 192.0.2.1" in done.stderr


@pytest.mark.parametrize("script", quick_or_slow(SOLUTIONS))
def test_script(script, tutorial_environment):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-W", "error::SyntaxWarning", str(script)]
    done = subprocess.run(command, cwd=tutorial_environment, capture_output=True, text=True, timeout=10 * MOST_SECONDS)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout
    assert list(tutorial_environment.iterdir()) == [], "it left files behind"
    # Others may use the machine too: then the wall clock says nothing, but the time on the processor does.
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(wall, cpu) < MOST_SECONDS
