"""Submissions that want points which they did not earn, or harm to others: what each of them gets."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import tinybitvit as tb
from tinybitvit.course import wire
from tinybitvit.course.stage import NoAnswer, Stage, StudentError, apart

pytest.importorskip("nbgrader")
linux = pytest.mark.skipif(sys.platform != "linux", reason="walls of Linux")


def cell(source, grade_id=None, points=None, solution=False):
    made = new_code_cell(source)
    if grade_id:
        made.metadata["nbgrader"] = {"grade_id": grade_id, "grade": points is not None, "solution": solution}
        made.metadata["nbgrader"] |= {"points": points, "locked": not solution, "schema_version": 3, "task": False}
    return made


def dedented(table):
    return {name: textwrap.dedent(text).strip() for name, text in table.items()}


RIGHT = dedented(
    {
        "m-1": """
        def double(x):
            return 2 * x
    """,
        "m-2": """
        class Square(Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save(x)
                return x * x
            @staticmethod
            def backward(ctx, g):
                return (2 * g * ctx.saved[0],)
    """,
        "m-3": """
        def total(values):
            return float(sum(values))
    """,
    }
)
WRONG = {
    "m-1": "def double(x):\n    return x",
    "m-2": RIGHT["m-2"].replace("2 * g", "g").replace("x * x", "x"),
    "m-3": "def total(values):\n    return 0.0",
}
TESTS = {
    "m-1-example": "y = double(np.arange(3.0))\nassert np.array_equal(y, [0, 2, 4])",
    "m-1-more": "x = np.random.default_rng(0).normal(0, 1, 5)\nassert np.allclose(double(x), x + x), 'hidden'",
    "m-2-example": "assert np.allclose(apply(Square, np.array([3.0])).data, [9])",
    "m-2-more": "check_op(Square, np.array([1.0, -2.0]))",
    "m-3-example": "assert total([1.0, 2.0]) == 3",
    "m-3-more": "assert total([]) == 0 and total([4.0]) > 3.5",
}
IMPORTS = (
    "import numpy as np\nfrom tinybitvit.ops import Function\nfrom tinybitvit.tensor import apply\n"
    "from tinybitvit.gradcheck import check_op"
)


def notebook(answers, first="", last=""):
    cells = [cell(IMPORTS), cell(first or "pass")]
    for task, answer in answers.items():
        cells += [cell(answer, task, solution=True)]
        cells += [cell(source, name, 1) for name, source in TESTS.items() if name.startswith(task)]
    return new_notebook(cells=[*cells, cell(last or "pass")])


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    stubs = {name: source.split("\n")[0] + "\n    pass" for name, source in RIGHT.items()}
    for kind, book in (("release", notebook(stubs)), ("source", notebook(RIGHT))):
        (folder / kind / "m").mkdir(parents=True)
        nbformat.write(book, folder / kind / "m" / "m.ipynb")
    (folder / "autograded").mkdir()
    return folder


def graded(course, book, timeout=20):
    """{task: points} of a submission, as nbgrader counts them after Perform."""
    from nbgrader.utils import determine_grade, is_grade

    from tinybitvit.course.preprocessors import Perform

    perform = Perform(release=str(course / "release"), timeout=timeout)
    resources = {"nbgrader": {"assignment": "m", "notebook": "m"}, "metadata": {"path": str(course / "autograded")}}
    book, _ = perform.preprocess(book, resources)
    found = dict.fromkeys((1, 2, 3), 0.0)
    for one in filter(is_grade, book.cells):
        found[int(one.metadata.nbgrader.grade_id[2])] += determine_grade(one)[0]
    return found


NOTHING, ALL = {1: 0, 2: 0, 3: 0}, {1: 2, 2: 2, 3: 2}

# What runs before wrong answers: no test may notice.
TRICKS = dedented(
    {
        "cells rewritten before they run": "get_ipython().input_transformers_cleanup.append(lambda lines: ['pass\\n'])",
        "cells rewritten by other ways": """
        ip = get_ipython()
        ip.input_transformers_post.append(lambda lines: ['pass\\n'])
        import ast
        class T(ast.NodeTransformer):
            def visit_Assert(self, node):
                return ast.Pass()
        ip.ast_transformers.append(T())
    """,
        "NumPy patched": "np.array_equal = np.allclose = lambda *a, **k: True",
        "library patched": """
        import tinybitvit as tb
        tb.gradcheck.check_op = check_op = lambda *a, **k: None
        tb.course.check = lambda *a: True
        tb.course.checker.expect = lambda *a, **k: None
        tb.tensor.apply = None
        import tinybitvit.course.judge
        tinybitvit.course.judge.Judge.grade = lambda *a: []
    """,
        "builtins patched": """
        import builtins
        builtins.AssertionError = ValueError
        builtins.float = lambda *a: 3.0
        builtins.isinstance = lambda *a: True
    """,
        "traced": """
        import sys
        sys.settrace(lambda *a: None)
        sys.setprofile(lambda *a: None)
    """,
        "import hook": """
        import sys
        class Finder:
            def find_spec(self, *a):
                return None
        sys.meta_path.insert(0, Finder())
        import numpy.testing
        sys.modules['numpy'] = None
    """,
        "names of __main__": """
        import __main__
        __main__.apply = __main__.check_op = lambda *a, **k: None
        __main__.points = __main__.score = 6.0
    """,
        "hook on results": """
        import sys
        sys.excepthook = sys.displayhook = print
        get_ipython().showtraceback = lambda *a, **k: None
    """,
        "exit status 0": """
        import atexit, sys
        atexit.register(lambda: 1 / 0)
        sys.exit(0)
    """,
        "process ended": """
        import os
        os._exit(0)
    """,
        "process ended later": """
        import os, threading
        threading.Timer(0.2, os._exit, [0]).start()
    """,
        "answers sent by hand": """
        import gc
        from multiprocessing.connection import Connection
        from tinybitvit.course import wire
        for c in [o for o in gc.get_objects() if isinstance(o, Connection)]:
            for _ in range(99):
                c.send_bytes(wire.Packing().pack(('done', True)))
    """,
        "nonsense sent": """
        import gc
        from multiprocessing.connection import Connection
        for c in [o for o in gc.get_objects() if isinstance(o, Connection)]:
            c.send_bytes(b'{[' * 99)
    """,
        "parents killed": """
        import os
        os.kill(os.getppid(), 9)
        os.kill(-1, 9)
    """,
    }
)

LIES = dedented(
    {
        "equal to all": """
        class Lie:
            def __eq__(self, other):
                return True
            __ge__ = __gt__ = __eq__
            __hash__ = None
            def __array_ufunc__(self, *a, **k):
                return True
            def __array_function__(self, *a, **k):
                return True
            def __bool__(self):
                return True
            __class__ = float
    """,
        "a float that lies": """
        class Lie(float):
            def __eq__(self, other):
                return True
            __gt__ = __ge__ = __eq__
    """,
        "a list that lies": """
        class Lie(list):
            def __eq__(self, other):
                return True
    """,
        "an array that lies": """
        class Array(np.ndarray):
            def __array_function__(self, *a, **k):
                return True
            def __eq__(self, other):
                return True
        def Lie():
            return np.zeros(1).view(Array)
    """,
        "an array of objects": """
        def Lie():
            return np.array([print], dtype=object)
    """,
        "not a number": """
        def Lie():
            return float('nan')
    """,
        "a function": """
        def Lie():
            return print
    """,
        "nested too deeply": """
        def Lie():
            x = ()
            for _ in range(10**5):
                x = (x,)
            return x
    """,
        "itself": """
        def Lie():
            x = []
            x.append(x)
            return x
    """,
    }
)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_earns_nothing(trick, course):
    assert graded(course, notebook(WRONG, TRICKS[trick])) == NOTHING


def test_honest_work_has_all_points_whatever_comes_with_it(course):
    noise = "%matplotlib inline\n!echo hello\nimport sys, warnings\nprint('x', file=sys.stderr)\nwarnings.warn('y')"
    assert graded(course, notebook(RIGHT, noise)) == ALL


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_earns_nothing(lie, course):
    with Stage(course / "autograded") as stage:
        stage.run(f"import numpy as np\n{LIES[lie]}\ndef answer(*inputs):\n    return Lie()")
        answer = stage["answer"]
        for test in (
            lambda: np.array_equal(answer(np.ones(2)), np.ones(2)),
            lambda: np.allclose(answer(1.0), [1.0, 2.0]),
            lambda: answer([1.0, 2.0]) == 3,
        ):
            # A test that raises gives no points either.
            with contextlib.suppress(TypeError, ValueError, NoAnswer, StudentError):
                assert not test()


@pytest.mark.parametrize(
    ("ending", "points"),
    [("0.5", 0.5), ("True", 1), ("None", 1), ("for _ in range(9):\n    pass", 1), ("x = 7", 1)]
    + [("import numpy as np\n(np.ones(2) == 1).all()", 1), ("import numpy as np\nnp.isclose(1, 1)", 1)]
    + [("import numpy as np\n(np.ones(2) == [1, 2]).all()", 0), ("import numpy as np\nnp.ones(2) == 1", 0)]
    + [(ending, 0) for ending in ("False", "float('nan')", "7", "-1", "'text'", "assert False", "raise SystemExit(0)")],
)
def test_a_test_may_end_in_points(ending, points, stageless):
    from nbgrader.utils import determine_grade

    made = cell(f"assert True\n{ending}", "m-1-more", 1)
    made.outputs = stageless.grade(made)
    assert determine_grade(made)[0] == points


@pytest.mark.parametrize(
    ("ending", "sentence"),
    {
        "False": "the test ends in False",
        "import numpy as np\nnp.bool_(0)": "the test ends in False",
        "'text'": "the test ends in text, not in points from 0 to 3",
        "4": "the test ends in 4.0, not in points",
    }.items(),
)
def test_a_test_that_ends_in_no_points_says_so(ending, sentence, stageless):
    from tinybitvit.course.perform import mark

    made = cell(ending, "m-1-more", 3)
    made.outputs = stageless.grade(made)
    assert mark(made).points == 0 and sentence in mark(made).text
    made = cell("import numpy as np\n(np.ones(3) == 1).all()", "m-1-more", 3)
    made.outputs = stageless.grade(made)
    assert mark(made).points == 3, "NumPy's True is all points, not 1"


@pytest.fixture(scope="module")
def stageless():
    """A judge of a notebook in which students write nothing."""
    from tinybitvit.course.judge import Judge

    yield Judge([], SimpleNamespace(begin=lambda: None))


def test_what_a_call_changes(course):
    """Arrays, lists and dicts are lent; objects come back with what was done to them, and with nothing else."""
    with Stage(course / "autograded") as stage:
        stage.run(
            "def zero(x):\n    x[:] = 0\n    return x\n"
            "def clear(x):\n    x.clear()\n"
            "def put(layer):\n    layer.weight.data[:] = 5.0\n    layer.bias.data = layer.bias.data + 1\n"
            "    layer.forward = layer.extra = 7\n"
        )
        x, items = np.ones(3), [1, 2]
        for name, value in (("zero", x), ("clear", items)):
            with pytest.raises(AssertionError, match="changed its input in place"):
                stage[name](value)
        assert x.all() and items == [1, 2]
        layer = tb.nn.Linear(2, 3, rng=np.random.default_rng(0))
        stage["put"](layer)
        assert (layer.weight.data == 5).all() and (layer.bias.data == 1).all()
        assert not {"forward", "extra"} & vars(layer).keys()


def test_a_message_makes_data_only():
    """Whatever a student's process sends, no class is looked up and no function called."""
    for node in (
        ["import", "os", "system"],
        ["object", [1], []],
        ["function", 0],
        ["rng", {}],
        ["view", [0], 0, "f8", [1], [8]],
    ):
        message = (
            wire.Packing()
            .pack(None)
            .replace(b"null", b"[0]")
            .replace(b"[]]", b"[" + str(node).replace("'", '"').encode() + b"]]")
        )
        message = (len(message) - 8).to_bytes(8, "big") + message[8:]
        with pytest.raises(ValueError, match="may not come from a student's process"):
            wire.Letter(message).root()
    arrays = {
        "a": np.arange(6).reshape(2, 3).T,
        "b": np.float32(1.5),
        "c": [True, None, "é", -1, 1e300],
        "d": np.zeros((0, 2)),
    }
    back = wire.Letter(wire.Packing().pack(arrays)).root()
    assert list(back) == list(arrays) and np.array_equal(back["a"], arrays["a"]) and back["d"].shape == (0, 2)
    assert back["b"].dtype == np.float32 and back["c"] == arrays["c"]


@pytest.mark.parametrize(
    ("task", "code", "expected"),
    [
        ("m-2", "while True:\n    pass", {1: 2, 2: 2, 3: 2}),
        ("m-2", "import os\nos._exit(0)", {1: 2, 2: 0, 3: 2}),
        ("m-2", "x = bytearray(64 << 30)", {1: 2, 2: 2, 3: 2}),
        ("m-3", "while True:\n    print('flood ' * 1000)", {1: 2, 2: 2, 3: 2}),
        ("m-3", "import threading, time\nthreading.Thread(target=time.sleep, args=[900]).start()", ALL),
        ("m-3", "import os\nos.open('/dev/zero', os.O_RDONLY)\nopen('big', 'wb').write(bytes(1 << 29))", ALL),
    ],
)
def test_a_cell_that_misbehaves_harms_itself_at_most(task, code, expected, course):
    """The cell defines its answer, then misbehaves."""
    answers = RIGHT | {task: f"{RIGHT[task]}\n{code}"}
    assert graded(course, notebook(answers), timeout=3) == expected


@pytest.mark.parametrize(
    "loop",
    [
        "while True:\n        pass",
        "while True:\n        try:\n            time.sleep(9)\n        except BaseException:\n            pass",
    ],
)
def test_a_loop_in_an_answer_costs_its_task(loop, course):
    answers = RIGHT | {"m-1": f"import time\ndef double(x):\n    {loop}"}
    assert graded(course, notebook(answers), timeout=2) == {1: 0, 2: 2, 3: 2}


STALLS = {
    "sends half a message": "import os\ndef f(x):\n"
    "    os.write(c.fileno(), (99).to_bytes(4, 'big'))\n    time.sleep(900)",
    "reads nothing": "from tinybitvit.course import wire\ndef f(x):\n"
    "    c.send_bytes(wire.Packing().pack(('done', 1)))\n    time.sleep(900)",
}


@pytest.mark.parametrize("stall", STALLS)
def test_a_process_that_stalls_is_ended(stall, course):
    with Stage(course / "autograded", timeout=1) as stage:
        found = "import gc, time\nfrom multiprocessing.connection import Connection\n"
        found += "c = [o for o in gc.get_objects() if isinstance(o, Connection)][0]\n"
        assert stage.run(found + STALLS[stall])["error"] is None
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            for _ in range(2):
                stage["f"](np.zeros(1 << 20))
        assert time.monotonic() - began < 60


@linux
def test_files_network_and_processes_are_out_of_reach(course):
    """Where the system gives the walls; `missing` says where it does not."""
    master = course / "source" / "m" / "m.ipynb"
    with Stage(course / "autograded") as stage:
        attempts = {
            "files": f"open({str(master)!r}).read()",
            "links": f"import os\nos.symlink({str(master)!r}, 'link')\nopen('link').read()",
            "repository": f"open({str(Path(__file__))!r}).read()",
            "writing": f"open({str(course / 'gradebook.db')!r}, 'w')",
            "processes": f"import os\nos.kill({os.getpid()}, 0)",
            "network": "import socket\nsocket.create_connection(('127.0.0.1', 1), timeout=5)",
        }
        results = {what: stage.run(code)["error"] for what, code in attempts.items()}
        if stage.missing:
            pytest.skip("; ".join(stage.missing))
    assert {what: error[0] for what, error in results.items()} == {
        **dict.fromkeys(("files", "links", "repository", "writing"), "PermissionError"),
        "processes": "ProcessLookupError",
        "network": "PermissionError",
    }


@linux
def test_no_process_is_left_behind(course):
    """A daemon and a modest fork bomb end with the submission."""
    mark = f"987{os.getpid()}"
    with Stage(course / "autograded", timeout=3) as stage:
        stage.run(f"import subprocess\nsubprocess.run('setsid sleep {mark} & setsid sleep {mark} &', shell=True)")
        stage.run("import os, time\nfor _ in range(7):\n    os.fork()\ntime.sleep(900)")
    deadline = time.monotonic() + 10
    while left := subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout.split():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


# --- tb.course.apart and pytest ---------------------------------------------------------------------------------------


def classroom(folder, submission):
    """(exit status, what pytest printed) in a repository that holds this ps3.py."""
    for template in (Path(tb.__file__).parents[1] / "tutorials" / "assignments" / "classroom").glob("*.py"):
        (folder / template.name).write_text(template.read_text())
    (folder / "ps3.py").write_text(submission)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "ps3_1", "."]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout


CODES = "import numpy as np\ndef ternary_codes(w):\n    beta = np.maximum(abs(w).mean(axis=-1, keepdims=True), 1e-5)\n"
CODES += "    return np.clip(np.round(w / beta), -1, 1), beta\n"
PATCHES = "import sys\nfor m in list(sys.modules.values()):\n    for n in ('check', 'expect', 'same'):\n"
PATCHES += "        if hasattr(m, n):\n            setattr(m, n, lambda *a, **k: True)\n"


@pytest.mark.parametrize(
    ("submission", "status"),
    {
        "right": (CODES, 0),
        "right, then the process ends": (f"{CODES}import os\nos._exit(0)\n", 0),
        "ends": ("import os\nos._exit(0)\n", 1),
        "ends when it is called": ("import os\ndef ternary_codes(w):\n    os._exit(0)\n", 1),
        "ends in a thread": (
            "import os, threading\nthreading.Timer(0.1, os._exit, [0]).start()\n" + CODES.replace("1e-5", "9"),
            1,
        ),
        "raises SystemExit": ("def ternary_codes(w):\n    raise SystemExit(0)\n", 1),
        "patches all that it finds": (PATCHES + "def ternary_codes(w):\n    return w, w\n", 1),
    }.values(),
)
def test_pytest_says_whether_the_answer_is_right(submission, status, tmp_path):
    assert classroom(tmp_path, submission)[0] == status


def test_a_file_called_numpy_does_not_replace_it(tmp_path):
    (tmp_path / "tinybitvit.py").write_text("import os\nos._exit(0)\n")
    (tmp_path / "ps3.py").write_text("def ternary_codes(w):\n    return w, w\n")
    for template in (Path(tb.__file__).parents[1] / "tutorials" / "assignments" / "classroom").glob("*.py"):
        (tmp_path / template.name).write_text(template.read_text())
    environment = {**os.environ, "PYTHONPATH": str(Path(tb.__file__).parents[1])}
    words = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider", "-m", "ps3_1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1 and "1 failed" in done.stdout


def test_apart_gives_what_load_gives(tmp_path):
    (tmp_path / "ps3.py").write_text(
        f"{CODES}limit = 3\n1 / 0\nclass Own:\n    pass\nimport helper\nthree = helper.three\n"
    )
    (tmp_path / "helper.py").write_text("three = 3")
    with apart(tmp_path / "ps3.py") as names:
        assert {"ternary_codes", "limit", "Own", "np", "three"} <= set(names) and "nowhere" not in names
        assert names["limit"] == names["three"] == 3
        assert tb.course.check("ps3.1", names["ternary_codes"])
    with pytest.raises(ValueError, match="there is no file"):
        apart(tmp_path / "ps4.py")
