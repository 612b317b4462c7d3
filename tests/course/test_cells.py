"""The cells of a lesson: predictions and answers, the student's turn and its solution, what is kept for later."""

import linecache
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client.manager import start_new_kernel

import tinybitvit as tb
from tinybitvit.course import cells, kept
from tinybitvit.course.checker import find_task

ROOT = Path(__file__).resolve().parents[2]
RIGHT = "def unbroadcast(g, shape):\n    return addup(g, shape)\n"
ADDUP = """\
def addup(g, shape):
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n < g.shape[i]), keepdims=True)

"""
WRONG = "def unbroadcast(g, shape):\n    return np.asarray(g)\n"
GAP = 'def unbroadcast(g, shape):\n    """Sum."""\n    extra = g.ndim - len(shape)\n    return ...\n'
SOLUTION = f"@tb.course.solution('1.3')\n{RIGHT}"


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A session of its own, in an empty folder."""
    monkeypatch.setattr(cells, "pieces", {})
    monkeypatch.setattr(kept, "pieces", cells.pieces)
    monkeypatch.setattr(cells, "said", {})
    monkeypatch.setattr(find_task("1.3"), "tries", 0)
    monkeypatch.chdir(tmp_path)


class Notebook:
    """Cells that share their names, with sources that Python can find."""

    def __init__(self):
        self.names = {"__name__": "__main__"}
        self.run("import numpy as np\nimport tinybitvit as tb\n" + ADDUP)

    def run(self, source):
        name = f"<a cell of {id(self)}, {len(linecache.cache)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self.names)

    def turn(self, source):
        self.run(f"@tb.course.yours('1.3')\n{source}\ntb.course.check(unbroadcast)")


# --- predictions ------------------------------------------------------------------------------------------------------


def in_a_notebook(monkeypatch, *typed):
    answers = iter(typed)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: "a shell"))
    monkeypatch.setattr("builtins.input", lambda question: next(answers))


def test_nobody_is_asked_in_a_script(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert tb.course.predict("beta", choices=[0.3, 0.4]) is None
    tb.course.answer("beta", 0.4)
    out, err = capsys.readouterr()
    assert out == "Your prediction, beta [0.3 / 0.4]: (asked in a notebook)\nbeta: 0.4\n" and err == ""


@pytest.mark.parametrize("error", [EOFError, NotImplementedError])
def test_a_notebook_that_runs_by_itself_goes_on(error, monkeypatch, capsys):
    in_a_notebook(monkeypatch)

    def nobody(question):
        raise error("nobody is there")

    monkeypatch.setattr("builtins.input", nobody)
    assert tb.course.predict("accuracy", "%") is None
    assert capsys.readouterr().out == "Your prediction, accuracy (in %): (asked in a notebook)\n"


@pytest.mark.parametrize(
    ("typed", "options", "kept", "said"),
    [
        (["0.5"], {"choices": [0.3, 0.4, 0.5]}, 0.5, "you said 0.5; it is 0.4: 0.1 too high"),
        (["7", ".3", "0.3"], {"choices": [0.3, 0.4, 0.5]}, 0.3, "you said 0.3; it is 0.4: 0.1 too low"),
        (["many", "1,000"], {}, 1000.0, "you said 1,000; it is 0.4: 999.6 too high"),
        (["0.4 %"], {"unit": "%"}, 0.4, "you said 0.4, and so it is"),
        (["0.4%"], {"unit": " %"}, 0.4, "you said 0.4, and so it is"),
        (["2,5"], {}, 2.5, "you said 2.5; it is 0.4: 2.1 too high"),
        (["0,4"], {}, 0.4, "you said 0.4, and so it is"),
        (["0,400"], {}, 0.4, "you said 0.4, and so it is"),
        (["-1,234,567.5"], {}, -1234567.5, "too low"),
        (["nan", "inf", "1,2,3", "1e999", "-3"], {}, -3.0, "3.4 too low"),
        ([""], {}, None, "beta: 0.4"),
    ],
)
def test_what_was_typed_is_kept(typed, options, kept, said, monkeypatch, capsys):
    in_a_notebook(monkeypatch, *typed)
    assert tb.course.predict("beta", **options) == kept
    tb.course.answer("beta", 0.4)
    assert said in capsys.readouterr().out


def test_words_are_choices_too(monkeypatch, capsys):
    in_a_notebook(monkeypatch, "W")
    assert tb.course.predict("which", choices=["w", "b"]) == "w"
    tb.course.answer("which", "b", measured="b")
    assert "you said w; it is b" in capsys.readouterr().out


def test_an_answer_that_was_not_measured_is_an_error():
    tb.course.answer("beta", 0.4, measured=0.41, tolerance=0.02)
    with pytest.raises(AssertionError, match=r"the answer to beta is given as 0.4, but 0.5 was measured"):
        tb.course.answer("beta", 0.4, measured=0.5, tolerance=0.02)


# --- the student's turn -----------------------------------------------------------------------------------------------


def test_a_gap_is_named_and_the_solution_takes_its_place(capsys):
    book = Notebook()
    book.turn(GAP)
    assert capsys.readouterr().out == "not written yet: unbroadcast, cell 1.3\n"
    with pytest.raises(tb.course.NotYet, match=r"^needs cell 1.3: unbroadcast is not written yet$") as caught:
        book.run("unbroadcast(np.ones(3), ())")
    assert caught.value._render_traceback_() == ["needs cell 1.3: unbroadcast is not written yet"]
    with pytest.raises(tb.course.NotYet):
        book.run("tb.course.use(unbroadcast=unbroadcast)")
    book.run(SOLUTION)
    assert capsys.readouterr().out == "1.3 unbroadcast: not written yet; the solution is used from here on\n"
    book.run("assert unbroadcast(np.ones(3), ()) == 3")


def test_hints_open_one_by_one(capsys):
    book = Notebook()
    for number in (1, 2, 3, 3):
        book.turn(WRONG)
        out = capsys.readouterr().out
        assert f"hint {number} of 3: {find_task('1.3').checks[0].hints[number - 1]}" in out
        assert "it gave of shape (3, 2), expected (1, 2), for g = " in out
        assert out.count("hint ") == 1 and out.count("  no  ") == 3 and out.count("it gave") == 3
    book.run(SOLUTION)
    assert "1.3 unbroadcast: yours fails 3 of 3 checks; the solution is used from here on" in capsys.readouterr().out


def test_what_is_right_is_used_in_place_of_the_solution(capsys):
    book = Notebook()
    book.turn(RIGHT)
    assert "3 of 3 checks passed" in capsys.readouterr().out
    assert tb.course.check(book.names["unbroadcast"]) is None
    assert tb.course.check("1.3", book.names["unbroadcast"]) is True
    capsys.readouterr()
    book.run(SOLUTION)
    assert book.names["unbroadcast"].own and capsys.readouterr().out == ""
    book.turn(GAP)  # written anew: then the solution is needed again
    book.run(SOLUTION)
    assert not hasattr(book.names["unbroadcast"], "own")


def test_a_function_of_no_cell_is_refused():
    with pytest.raises(ValueError, match=r'needs a function of a cell that says which one it is: @yours\("1.3"\)'):
        tb.course.check(len)
    with pytest.raises(ValueError, match=r"there is no task '1.9'; there are 1.1, "):
        tb.course.yours("1.9")


def test_an_ellipsis_in_an_index_is_no_gap():
    book = Notebook()
    book.turn("def unbroadcast(g, shape):\n    return g[..., None]\n")
    assert book.names["unbroadcast"].own


def test_in_a_real_notebook(tmp_path):
    """Somebody types a prediction, and uses a function that is not written: a sentence, no traceback."""
    manager, client = start_new_kernel(cwd=str(tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT)})
    typed, asked, said = iter(["7", "0.5"]), [], []

    def answer(message):
        asked.append(message["content"]["prompt"])
        client.input(next(typed))

    def run(source):
        client.execute_interactive(
            source,
            allow_stdin=True,
            stdin_hook=answer,
            output_hook=lambda message: said.append(message["content"].get("text") or message["content"]),
            timeout=60,
        )

    try:
        run("import tinybitvit as tb\nguess = tb.course.predict('beta', choices=[0.3, 0.4, 0.5])")
        run("tb.course.answer('beta', 0.4)")
        run(f"@tb.course.yours('1.3')\n{GAP}\ntb.course.check(unbroadcast)")
        run("unbroadcast(1, 2)")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert asked == ["Your prediction, beta [0.3 / 0.4 / 0.5]: "] * 2
    texts = [text for text in said if isinstance(text, str)]
    assert texts[:2] == ["'7' is none of 0.3, 0.4, 0.5\n", "beta: you said 0.5; it is 0.4: 0.1 too high\n"]
    assert texts[2:] == ["not written yet: unbroadcast, cell 1.3\n"]
    errors = [content["traceback"] for content in said if isinstance(content, dict) and "traceback" in content]
    assert errors == [["needs cell 1.3: unbroadcast is not written yet"]]


# --- kept -------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_there_in_the_next_lesson(tmp_path, capsys):
    book = Notebook()
    book.turn(RIGHT)
    book.run("tb.course.keep(unbroadcast)")
    assert "1.3 unbroadcast: kept in my/unbroadcast.py\n" in capsys.readouterr().out
    text = (tmp_path / "my" / "unbroadcast.py").read_text()
    assert text == f'"""unbroadcast, cell 1.3 of the lessons."""\n\n{ADDUP}\n{RIGHT}'
    cells.pieces.clear()
    found = tb.course.mine("unbroadcast")
    assert found.own and found.__module__.startswith("_my")
    (tmp_path / "solutions").mkdir()
    os.chdir(tmp_path / "solutions")  # whose notebooks find the folder above
    assert tb.course.mine("unbroadcast").own
    os.chdir(tmp_path)
    cells.pieces.clear()
    assert capsys.readouterr().out == "yours, from my/: unbroadcast\n" * 2
    everything = tb.course.everything()
    assert everything["unbroadcast"].own and everything["mul"][0] is None and not hasattr(everything["walk"], "own")
    out = capsys.readouterr().out
    assert "yours, from my/: unbroadcast" in out
    assert "the solutions are used for what is not in my/: 1.1 mul_backward, 1.2 backward, " in out
    row = next(row for row in tb.course.parts().rows if row[1] == "1.3")
    assert row[2] == "yours" and "yours" in repr(tb.course.parts()) and "yours, 1.3" in tb.course.parts()._repr_html_()


def test_a_file_that_differs_is_not_lost(tmp_path, capsys):
    book = Notebook()
    book.turn(RIGHT)
    book.run("tb.course.keep(unbroadcast)")
    path = tmp_path / "my" / "unbroadcast.py"
    for number, backup in ((1, "unbroadcast.py.bak"), (2, "unbroadcast.py.bak2")):
        path.write_text(f"# mine {number}")
        book.run("tb.course.keep(unbroadcast)")
        assert f"kept in my/unbroadcast.py; what was there is {backup} now" in capsys.readouterr().out
        assert path.with_name(backup).read_text() == f"# mine {number}"
    book.run("tb.course.keep(unbroadcast)")
    assert len(list(path.parent.glob("*.bak*"))) == 2, "the same text needs no copy"


def test_numpy_and_other_pieces_are_imported(tmp_path):
    book = Notebook()
    book.turn(RIGHT)
    book.run("LIMIT = 3\nlocal = 4\nfrom math import prod as product")
    book.run(
        "@tb.course.yours('1.4')\ndef matmul_backward(g, y, a, b):\n"
        "    local = product(a.shape)\n    assert local > -LIMIT\n"
        "    da = np.matmul(g, b.swapaxes(-1, -2))\n    return unbroadcast(da, a.shape), a.swapaxes(-1, -2) @ g\n"
    )
    book.run("tb.course.keep(unbroadcast, matmul_backward)")
    text = (tmp_path / "my" / "matmul_backward.py").read_text()
    for line in ("import numpy as np", "from .unbroadcast import unbroadcast", "from math import prod as product"):
        assert f"{line}\n" in text
    assert "LIMIT = 3\n" in text and "local = 4" not in text
    cells.pieces.clear()
    assert all(one.own for one in tb.course.mine("matmul_backward", "unbroadcast"))


def test_a_solution_that_a_piece_uses_is_kept_with_it(tmp_path):
    book = Notebook()
    book.run("matmul_backward = tb.course.mine('matmul_backward')")
    book.run(
        "@tb.course.yours('1.3')\ndef unbroadcast(g, shape):\n"
        "    assert matmul_backward(g[..., None], None, g[..., None], g[..., None])\n    return addup(g, shape)\n"
    )
    book.run("tb.course.keep(unbroadcast)")
    text = (tmp_path / "my" / "unbroadcast.py").read_text()
    assert "def matmul_backward" in text and "solutions" not in text and "import numpy" not in text
    cells.pieces.clear()
    assert tb.course.mine("unbroadcast").__module__.startswith("_my")


def kept_alone(book, *names):
    """Keep pieces, forget the session, and take them from their files."""
    book.run(f"tb.course.keep({', '.join(names)})")
    cells.pieces.clear()
    return [tb.course.mine(name) for name in names]


HELPERS = {
    "an array": ("ONE = np.array([1, 2])[:1]", "ONE[0] * addup(g, shape)"),
    "an array made of another": ("TWO = np.ones(2)\nONE: np.ndarray = TWO[:1]", "ONE[0] * addup(g, shape)"),
    "one of two that are set together": ("ONE, NAMES = np.float64(1), {'a': np.ones(1)}", "ONE * addup(g, shape)"),
    "no literal": ("import math\nLOW = -math.inf", "np.maximum(addup(g, shape), LOW)"),
    "a decorated helper": (
        "import functools\n@functools.lru_cache\ndef one(n):\n    return n**0",
        "one(3) * addup(g, shape)",
    ),
    "a decorator of one's own": (
        "def twice(f):\n    def run(n):\n        return 2 * f(n)\n    return run\n@twice\ndef one(n):\n    return 0.5",
        "one(3) * addup(g, shape)",
    ),
    "a helper by another name": ("plus = addup", "plus(g, shape)"),
    "a helper made of another": ("import functools\nplus = functools.partial(addup)", "plus(g, shape)"),
    "a lambda": ("plus = lambda g, shape: addup(g, shape)", "plus(g, shape)"),
    "a class without functions": (
        "from dataclasses import dataclass\n@dataclass\nclass Size:\n    n: int = 1",
        "Size().n * addup(g, shape)",
    ),
    "what is imported from a module": ("from numpy import s_, newaxis as new", "addup(g[new][s_[0]], shape)"),
    "a constant that was changed": ("ONE = [2]\nONE[0] = 1", "ONE[0] * addup(g, shape)"),
}


@pytest.mark.parametrize("helper", HELPERS)
def test_what_a_piece_needs_is_kept_with_it(helper, tmp_path, capsys):
    source, value = HELPERS[helper]
    book = Notebook()
    book.run(source)
    book.turn(f"def unbroadcast(g, shape):\n    return {value}\n")
    assert "3 of 3 checks passed" in capsys.readouterr().out
    (found,) = kept_alone(book, "unbroadcast")
    assert found.own, (tmp_path / "my" / "unbroadcast.py").read_text()
    assert capsys.readouterr().out == "1.3 unbroadcast: kept in my/unbroadcast.py\nyours, from my/: unbroadcast\n"


def test_the_last_cell_that_ran_counts():
    """IPython lists what was typed in the order in which it ran; its names for equal cells are equal."""
    book = Notebook()
    book.run("ONE = np.float64(1)")
    book.run("ONE = np.float64(2)")
    book.run("ONE = np.float64(1)")
    linecache.cache.pop(next(reversed(linecache.cache)))
    book.names["In"] = ["", "ONE = np.float64(1)", "ONE = np.float64(2)", "%time\nONE = np.float64(1)"]
    book.turn("def unbroadcast(g, shape):\n    return ONE * addup(g, shape)\n")
    assert kept_alone(book, "unbroadcast")[0].own


def test_annotations_that_nobody_evaluates_stay_so():
    book = Notebook()
    annotated = RIGHT.replace("shape):", "shape: Unknown) -> Nothing:")
    book.run(f"from __future__ import annotations\n@tb.course.yours('1.3')\n{annotated}")
    assert kept_alone(book, "unbroadcast")[0].own


MATMUL = (
    "@tb.course.yours('1.4')\ndef matmul_backward(g, y, a, b):\n"
    "    return unbroadcast(g @ b.swapaxes(-1, -2), a.shape), a.swapaxes(-1, -2) @ g\n"
)


@pytest.mark.parametrize("names", [["matmul_backward"], ["matmul_backward", "unbroadcast"]])
def test_what_a_piece_uses_of_other_cells_is_kept_too(names, tmp_path, capsys):
    book = Notebook()
    book.turn(RIGHT)
    book.run(MATMUL)
    capsys.readouterr()
    assert all(one.own for one in kept_alone(book, *names))
    out = capsys.readouterr().out
    assert out.startswith(
        "1.4 matmul_backward: kept in my/matmul_backward.py\n1.3 unbroadcast: kept in my/unbroadcast.py\n"
    )


def test_what_cannot_work_alone_is_not_called_kept(capsys):
    book = Notebook()
    book.run("for LOOPED in [np.float64(1)]:\n    pass\nZERO = np.zeros(1)\nZERO[0] = 1")
    book.turn("def unbroadcast(g, shape):\n    return LOOPED * addup(g, shape)\n")
    book.run(MATMUL.replace("return unbroadcast(g @", "return ZERO[0] * addup(g @"))
    capsys.readouterr()
    book.run("tb.course.keep(unbroadcast, matmul_backward)")
    one, other = capsys.readouterr().out.splitlines()
    alone = "does not work without this notebook, it"
    assert one.startswith(f"1.3 unbroadcast: my/unbroadcast.py {alone} raised NameError: name 'LOOPED' is not defined")
    assert one.endswith(": write LOOPED into its cell, and keep it again")
    assert other.startswith(f"1.4 matmul_backward: my/matmul_backward.py {alone} gave dL/da [[")
    assert other.endswith(": write ZERO into its cell, and keep it again")


def test_what_is_wrong_is_kept_as_it_is(capsys):
    book = Notebook()
    book.turn(WRONG)
    capsys.readouterr()
    book.run("tb.course.keep(unbroadcast)")
    assert capsys.readouterr().out == "1.3 unbroadcast: kept in my/unbroadcast.py\n"


def test_a_broken_file_stops_no_other(tmp_path, monkeypatch):
    book = Notebook()
    book.turn(RIGHT)
    for name in ("broken", "my-notes", "walk"):
        (tmp_path / "my").mkdir(exist_ok=True)
        (tmp_path / "my" / f"{name}.py").write_text("1 / 0" if name == "broken" else "no Python")
    book.run("tb.course.keep(unbroadcast)")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my"]:
        monkeypatch.delitem(sys.modules, name)
    names = {}
    exec("from my import unbroadcast", names)
    assert callable(names["unbroadcast"])
    with pytest.raises(ZeroDivisionError):
        exec("from my import broken", names)


def test_what_is_not_right_or_not_yours_is_not_taken(tmp_path, capsys):
    book = Notebook()
    book.turn(GAP)
    book.run(SOLUTION)
    book.run("tb.course.keep(unbroadcast)")
    assert "not yours yet, so not kept: 1.3 unbroadcast\n" in capsys.readouterr().out and not (tmp_path / "my").exists()
    assert [row[2] for row in tb.course.parts().rows if row[1] == "1.3"] == ["solution"]


def test_names_of_no_cell_are_refused():
    with pytest.raises(ValueError, match="no lesson has a cell for 'softmux'"):
        tb.course.mine("softmux")
