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
