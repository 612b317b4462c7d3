"""The gates of the problem sets, and what a course needs besides nbgrader's run: checks, plugging in, the command."""

import ast
import importlib.util
import re
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
from course_books import (
    ASSIGNMENTS,
    ROOT,
    SETS,
    data,
    grade_id,
    is_test,
    master,
    regions,
    run,
    solved,
    task_number,
    with_tests,
)

import tinybitvit as tb
from tinybitvit.cli.main import main
from tinybitvit.ops import OPS
from tinybitvit.ops.activation import Gelu

# A mistake in the solution of each cell: what the graded cells must notice, and the checks, too.
SABOTAGE = {
    "ps1-1": ("(2 * h)", "h"),
    "ps1-2": ("g * (s + 1.702 * x * s * (1 - s))", "g * (s + x * s * (1 - s))"),
    "ps1-3": ("rows.sum(axis=0)", "rows.mean(axis=0)"),
    "ps1-4": ("(p - truth) / len(p)", "(p - truth)"),
    "ps1-5": ("source.grad += slope", "source.grad = slope"),
    "ps1-6": ("(1 / 3)", "(1 / 2)"),
    "ps1-7": ("np.random.default_rng(0).normal(0, 1, p.shape)", "np.ones(p.shape)"),
    "ps2-1": ("transpose(0, 1, 3, 2, 4, 5)", "transpose(0, 3, 1, 2, 4, 5)"),
    "ps2-2": ("n, height // ph, width // pw, ph, pw, channels", "n, width // pw, height // ph, ph, pw, channels"),
    "ps2-3": ("q.shape[-1] ** -0.5", "0.5"),
    "ps2-4-split": ("transpose(2, 0, 3, 1, 4)", "transpose(2, 0, 3, 1, 4)[::-1]"),
    "ps2-4-join": ("y.transpose(0, 2, 1, 3)", "y"),
    "ps2-5": ("(dp - (p * dp).sum(axis=-1, keepdims=True))", "dp"),
    "ps2-6": ("range(0, tokens, rows)", "range(0, tokens - rows + 1, rows)"),
    "ps2-7": ("np.roll(one, patch, axis=1)", "np.roll(one, 1, axis=1)"),
    "ps3-1": ("mean(axis=-1, keepdims=True)", "mean()[None, None]"),
    "ps3-2": ("(g * inside,)", "(g,)"),
    "ps3-3": ("max(axis=-1, keepdims=True)", "max()"),
    "ps3-4": ("g @ quantized_weight, dweight", "2 * g @ quantized_weight, dweight"),
    "ps3-5": ("(w * codes).sum(axis=-1, keepdims=True)", "np.abs(w).sum(axis=-1, keepdims=True)"),
    "ps3-6": ("2 * n + 2", "n"),
    "ps4-1": ("np.ones((out", "np.zeros((out"),
    "ps4-2": (".reshape(len(packed), -1)[:, :width]", ".reshape(len(packed), -1)"),
    "ps4-3": (" + 4", " + 2"),
    "ps4-4": ('dtype="int64"', 'dtype="uint8"'),
    "ps4-5-pack": ("3 ** np.arange(5)", "2 ** np.arange(5)"),
    "ps4-5-unpack": (" - 1).astype", ").astype"),
    "ps4-6": ("2 ** (bits - 1)", "2**bits"),
    "ps5-1": ("np.add.at(matrix, (truth, answers), 1)", "matrix[truth, answers] += 1"),
    "ps5-2": ("f1 = 2 * right / np.maximum(called + there, 1)", "f1 = precision * recall"),
    "ps5-3": ("(step + 1) / warmup", "step / warmup"),
    "ps5-4": ("optimizer.zero_grad()", "pass"),
    "ps5-5": ("result = (0.5 * layer.mean(axis=1) + 0.5 * identity) @ result", "result = layer.mean(axis=1) @ result"),
    "ps5-6": ("10 * classes", "classes"),
    "ps5-7": ("(a & ~b)", "(~a & ~b)"),
}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course with every set released."""
    from tinybitvit.course import grading

    folder = tmp_path_factory.mktemp("course") / "demo"
    assert grading.new(folder) == list(SETS)
    for name in SETS:
        grading.release(name, folder)
    return folder


@pytest.fixture(scope="module")
def releases(course):
    return {name: nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4) for name in SETS}


# --- the notebooks ----------------------------------------------------------------------------------------------------


def test_the_masters_are_made_from_their_scripts():
    spec = importlib.util.spec_from_file_location("sync_assignments", ASSIGNMENTS / "sync.py")
    sync = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sync)
    assert not sync.stale(), "run python tutorials/assignments/sync.py"
    for name in SETS:
        text = (ASSIGNMENTS / f"{name}.py").read_text(encoding="utf-8")
        ids = [cell.id for cell in nbformat.reads(sync.master(text), as_version=4).cells]
        changed = [
            cell.id for cell in nbformat.reads(sync.master("# %% [markdown]\n# new\n" + text), as_version=4).cells
        ]
        assert changed[1:] == ids and len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", SETS)
def test_the_master_passes_in_its_order(name, capsys):
    """Cells come in the order of the tasks, so that this run also shows that task k needs only the tasks up to k."""
    book = master(name)
    numbers = [k for k in map(task_number, book.cells) if k]
    assert numbers == sorted(numbers) and set(numbers) == set(range(1, max(numbers) + 1))
    started = time.process_time()
    outcome, names = run(book)
    assert time.process_time() - started < 30
    assert len(outcome) >= 10 and not any(outcome.values()), outcome
    out, err = capsys.readouterr()
    assert err == "" and out.count("  no  ") == 0
    reported = {line.split()[0] for line in out.splitlines() if line.startswith(f"{name}.")}
    assert reported == set(tb.course.tasks(name)), "the notebook calls check for every task"
    assert all(tb.course.check(task.id, task.answer(names)) for task in tb.course.tasks(name).values())


@pytest.mark.parametrize("name", SETS)
def test_every_graded_cell_of_the_release_fails(name, releases, capsys):
    outcome, _ = run(releases[name])
    assert len(outcome) >= 10
    assert [grade_id for grade_id, error in outcome.items() if error is None] == []
    out = capsys.readouterr().out
    assert out.count("not written yet") == len(tb.course.tasks(name)) and "  ok  " not in out


@pytest.mark.parametrize("name", SETS)
def test_the_release_holds_no_answer(name, releases):
    text = "\n".join(cell.source for cell in releases[name].cells)
    assert "BEGIN" not in text and "END SOLUTION" not in text
    handed_out = {line.strip() for line in text.splitlines()}
    secret = {line for other in SETS for cell in master(other).cells for line in regions(cell, "SOLUTION")}
    assert len(secret) > 50 and not {line for line in secret & handed_out if len(line) > 20}
    secret = {line for other in SETS for cell in master(other).cells for line in regions(cell, "HIDDEN TESTS")}
    assert len(secret) > 50 and not {line for line in secret & handed_out if line.startswith("assert ")}


@pytest.mark.parametrize("name", SETS)
def test_cells_are_graded_as_they_should_be(name, releases):
    for book in (master(name), releases[name]):
        tests = [cell for cell in book.cells if is_test(cell)]
        for cell in tests:
            if grade_id(cell).endswith("-checks"):
                task = tb.course.tasks(name)[f"{name}.{task_number(cell)}"]
                assert re.fullmatch(rf'tb\.course\.score\("{task.id}", .*\)', cell.source)
                assert data(cell).points == len(task.checks), "a point for each check"
            else:
                assert not isinstance(ast.parse(cell.source).body[-1], ast.Expr), f"{grade_id(cell)} ends in a value"
            assert data(cell).locked and not data(cell).solution
        prose = [cell for cell in book.cells if cell.cell_type == "markdown" and data(cell).get("grade")]
        assert len(prose) == 1 and data(prose[0]).solution
        assert all("outputs" not in cell or not cell.outputs for cell in book.cells)
        points = {k: sum(data(c).points for c in tests if task_number(c) == k) for k in map(task_number, tests)}
        for k, total in points.items():
            (title,) = [c.source for c in book.cells if c.source.startswith(f"## Task {k}:")]
            assert f"({total} points)" in title.splitlines()[0]
            assert f"{name}-{k}-checks" in {grade_id(c) for c in tests} or total <= 2, "partial credit"
        assert f"({data(prose[0]).points} points)" in next(c.source for c in book.cells if "own words" in c.source)


def test_the_hidden_tests_are_only_in_the_second_cell_of_a_task():
    """So that an answer that passes what the student sees gets a part of the points."""
    for name in SETS:
        tests = [cell for cell in master(name).cells if is_test(cell)]
        hidden = {grade_id(cell) for cell in tests if regions(cell, "HIDDEN TESTS")}
        assert hidden == {grade_id(cell) for cell in tests if grade_id(cell).endswith("-more")} and len(hidden) >= 4


def test_each_set_has_two_tasks_without_a_recipe():
    for name in SETS:
        text = "\n".join(cell.source for cell in master(name).cells)
        assert text.count("**Find the method.**") >= 2


def test_every_answer_is_sabotaged_below():
    answers = {grade_id(c) for name in SETS for c in master(name).cells if data(c).get("solution")}
    assert {answer for answer in answers if not answer.endswith("-why")} == set(SABOTAGE)


@pytest.mark.parametrize("answer", SABOTAGE)
def test_a_mistake_costs_its_own_task_and_is_explained(answer, releases, capsys):
    name, number = answer.split("-")[:2]
    book = with_tests(solved(releases[name], name, {answer: SABOTAGE[answer]}), name)
    with np.errstate(all="ignore"):
        outcome, names = run(book)
    capsys.readouterr()
    own = {grade for grade in outcome if grade.startswith(f"{name}-{number}-")}
    assert {grade for grade, error in outcome.items() if error} == own, "its own task loses points, and no other"
    task = tb.course.tasks(name)[f"{name}.{number}"]
    with np.errstate(all="ignore"):
        assert not tb.course.check(task.id, task.answer(names))
    out = capsys.readouterr().out
    assert out.count("hint: ") == 1 and "raised" not in out.partition("hint: ")[0], out


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_reports_every_counter_example_and_one_hint(capsys):
    assert tb.course.check("ps3.1", lambda w: (np.sign(w), np.abs(w).mean(axis=-1, keepdims=True))) is False
    report = """\
ps3.1 ternary_codes
  no  the worked example
        it gave codes [[ 1., -1.,  1., -1.]], expected [[ 1.,  0.,  1., -1.]], for w = [[ 0.9, -0.1,  0.4, -0.6]]
        hint: divide by the mean of |w|, then round, then clip to -1..1
  no  one scale for each row
        it gave codes [[ 1., -1.]], expected [[ 0., -1.]], for w = [[ 0.2, -0.7]]
  no  a row of zeros
        it gave beta [[0.0], [1.5]], expected [[1e-05], [1.5]], for w = [[ 0.,  0.], [ 1., -2.]]
  0 of 3 checks passed
"""
    assert capsys.readouterr().out == report


ANSWERS = {
    "not written yet": "raise NotImplementedError()",
    "it raised ZeroDivisionError: division by zero, for w = [[ 0.9, ": "1 / 0",
    "an assertion in it failed": "assert False",
    "it raised SystemExit: 1": "raise SystemExit(1)",
    "it must return a tuple of 2 (codes, beta), not an array of shape (1, 4)": "return w",
    "it must return a tuple of 2 (codes, beta), not NoneType": "pass",
    "it gave codes of shape (3,), expected (1, 4)": "return np.zeros(3), w",
    "it changed its input w in place": "w /= 2",
    "it returned None for codes": "return None, w",
    "it returned a Tensor for codes": "return tb.Tensor(w), w",
}


@pytest.mark.parametrize("message", ANSWERS)
def test_check_says_what_is_wrong(message, capsys):
    names = {"np": np, "tb": tb}
    exec(f"def answer(w):\n    {ANSWERS[message]}", names)
    assert not tb.course.check("ps3.1", names["answer"])
    assert message in capsys.readouterr().out


def test_a_large_counter_example_is_pointed_at(capsys):
    right = tb.quant.ste.ternary_codes

    def answer(w):
        codes, beta = right(np, w)
        codes[4:] *= -1
        return codes, beta

    assert not tb.course.check("ps3.1", answer)
    assert "it gave codes at (4, " in capsys.readouterr().out


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"there is no task 'ps9.1'; there are ps1.1, "):
        tb.course.check("ps9.1", None)
    with pytest.raises(ValueError, match="there is no problem set 'ps9'"):
        tb.course.tasks("ps9")
    with pytest.raises(ValueError, match=r"defines no join_heads: that is what ps2.4 asks for"):
        tb.course.tasks("ps2")["ps2.4"].answer({"split_heads": 1})


# --- use --------------------------------------------------------------------------------------------------------------


def test_use_puts_an_operation_in_and_takes_it_out_again():
    class Tripled(Gelu):
        @staticmethod
        def forward(ctx, x, **options):
            return 3 * x

    block = tb.nn.GELU()
    x = np.ones(2, "float32")
    with tb.course.use(gelu=Tripled, ternary=Tripled):
        assert np.array_equal(block(x).data, 3 * x) and np.array_equal(tb.functional.ternary(x).data, 3 * x)
    with pytest.raises(KeyError), tb.course.use(gelu=Tripled):
        raise KeyError
    assert OPS["gelu"] is Gelu and tb.ops.OPS["ternary"] is not Tripled
    with pytest.raises(ValueError, match="no operation 'gelo'; it has abs, absmax"), tb.course.use(gelo=Gelu):
        pass


@pytest.mark.parametrize("name", ["ternary", "absmax", "linear", "gelu", "cross_entropy"])
def test_a_network_learns_through_what_was_put_in(name):
    class Mine(tb.ops.Function):
        @staticmethod
        def forward(ctx, *inputs, **options):
            raise ArithmeticError("mine")

    model = tb.ViT(bits=1.58, dim=8, depth=1, heads=2, epochs=1, workers=1, verbose=0)
    with pytest.raises(ArithmeticError, match="mine"), tb.course.use(**{name: Mine}):
        model.fit(np.zeros((8, 8, 8)), np.arange(8) % 2)


# --- submissions without nbgrader -------------------------------------------------------------------------------------


def test_load_skips_tests_and_cells_that_fail(tmp_path, releases, capsys):
    book = solved(releases["ps4"], "ps4")
    book.cells.insert(1, nbformat.v4.new_code_cell("this is no Python"))
    book.cells.insert(2, nbformat.v4.new_code_cell("print('hello')\nexit()"))
    book.cells.append(nbformat.v4.new_code_cell("def last(): pass"))
    book.cells[-1].metadata["nbgrader"] = {"grade": True, "grade_id": "x"}
    nbformat.write(book, tmp_path / "ps4.ipynb")
    names = tb.course.load(tmp_path / "ps4.ipynb")
    assert {"pack_2bit", "sign_dot"} <= names.keys() and "last" not in names
    assert capsys.readouterr().out == ""
    (tmp_path / "ps4.py").write_text("def f(x):\n    return x\n1 / 0\n")
    assert tb.course.load(tmp_path / "ps4.py")["f"](2) == 2
    with pytest.raises(ValueError, match="there is no file"):
        tb.course.load(tmp_path / "ps5.ipynb")
    (tmp_path / "ps5.ipynb").write_text("[]")
    with pytest.raises(ValueError, match="not a Jupyter notebook"):
        tb.course.load(tmp_path / "ps5.ipynb")


def test_the_template_for_pytest(tmp_path, releases):
    for template in (ASSIGNMENTS / "classroom").glob("*.py"):
        (tmp_path / template.name).write_text(template.read_text())
    nbformat.write(solved(releases["ps3"], "ps3", {"ps3-2": SABOTAGE["ps3-2"]}), tmp_path / "ps3.ipynb")

    def pytest_says(*options):
        words = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", *options]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout

    status, out = pytest_says("-W", "error")
    assert status == 1 and "1 failed, 5 passed" in out
    assert "FAILED test_tasks.py::test_task[ps3.2]" in out and "hint: where is the ramp flat" in out
    status, out = pytest_says("-m", "ps3_1 or ps3_4")
    assert status == 0 and "2 passed, 4 deselected" in out


# --- the command ------------------------------------------------------------------------------------------------------


def test_nbgrader_is_not_needed_for_checks():
    code = "import sys; sys.modules['nbgrader'] = None; import tinybitvit as tb; tb.course.check('ps3.1', None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "0 of 3" in done.stdout


@pytest.mark.parametrize("step", ["new x", "release ps1", "grade ps1 x", "export ps1 --for canvas", "feedback ps1"])
def test_without_nbgrader_the_command_says_what_to_install(step, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    assert main(["course", *step.split()]) == 2
    assert capsys.readouterr().err == 'tinybitvit: courses need nbgrader: run pip install "tinybitvit[course]"\n'


BAD = {
    "new .": "holds a course already: choose another folder",
    "new other --assignments source": "name the folder tutorials/assignments of a checkout with --assignments",
    "release ps9": "start a course with `tinybitvit course new`",
    "grade ps1 nowhere": "nowhere is not a folder",
    "export ps1 ps9 --for canvas": "ps9 is not released",
    "export ps1 --for gradescope --roster x.csv": "a roster is for Canvas, not for gradescope",
    "export ps1 --for canvas --roster nowhere.csv": "nowhere.csv",
    "grade ps9 subs": "ps9 is not released",
    "grade ps1 empty": "no notebook (*.ipynb) in",
    "grade ps1 twice": "ann holds 2 notebooks: leave in it the one to be graded",
    "grade ps1 stars": "'a*' cannot be a student's name here",
    "feedback ps1": "no submission of ps1 is graded: run `tinybitvit course grade ps1` first",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_one_sentence(words, course, monkeypatch, capsys):
    monkeypatch.chdir(course)
    for name in ("subs/bob.ipynb", "empty/.x", "twice/ann/1.ipynb", "twice/ann/2.ipynb", "stars/a*.ipynb"):
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        (course / name).write_text("")
    assert main(["course", *words.split()]) == 2
    err = capsys.readouterr().err
    assert BAD[words] in err and err.count("\n") == 1


def test_the_configuration_for_nbgraders_own_commands(course, monkeypatch):
    from traitlets.config.loader import PyFileConfigLoader

    monkeypatch.chdir(course)
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    assert config.CourseDirectory.root == str(course) and config.IgnorePattern.enabled
    assert [p.__name__ for p in config.Autograde.sanitize_preprocessors][1] == "RepairCells"


def test_release_says_what_is_wrong_with_a_master(course):
    from tinybitvit.course import grading

    broken = master("ps1")
    next(c for c in broken.cells if data(c).get("solution")).source += "\n### BEGIN SOLUTION"
    (course / "source" / "broken").mkdir(parents=True)
    nbformat.write(broken, course / "source" / "broken" / "broken.ipynb")
    with pytest.raises(ValueError, match=r"nbgrader could not release broken: .*no end solution"):
        grading.release("broken", course)
