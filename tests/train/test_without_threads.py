"""Where no thread and no process can start, as in a browser (Pyodide), the library works on one thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Python reads this module before anything else. The message is that of Pyodide.
FORBID = """
import os, subprocess, threading, _posixsubprocess, _thread

def no_thread(*args, **options):
    raise RuntimeError("can't start new thread")

def no_process(*args, **options):
    raise OSError(138, "no process can start here")

threading.Thread.start = _thread.start_new_thread = threading._start_new_thread = no_thread
subprocess.Popen.__init__ = _posixsubprocess.fork_exec = no_process
for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"):
    if hasattr(os, name):
        setattr(os, name, no_process)
"""
EVENING = """
import hashlib, sys
import numpy as np
import tinybitvit as tb
digits = tb.data.load_digits()
found = hashlib.sha256()
for bits in (32, 1.58):
    model = tb.ViT(bits=bits, dim=32, depth=1, heads=4, epochs=2, random_state=0, verbose=0, WORKERS)
    model.fit(digits.X_train[:300], digits.y_train[:300], eval_set=(digits.X_test[:50], digits.y_test[:50]))
    found.update(model.decision_function(digits.X_test).tobytes())
    model.partial_fit(digits.X_train[:100], digits.y_train[:100])
    found.update(model.decision_function(digits.X_test).tobytes())
packed = model.pack()
found.update(packed.decision_function(digits.X_test).tobytes())
found.update(b"".join(np.ascontiguousarray(m).tobytes() for m in tb.viz.attention(model, digits.X_test[:4]).maps))
loader = tb.data.Loader(digits.X_train, digits.y_train, 64, rng=0, prefetch=3)
found.update(b"".join(x.tobytes() for x, _ in loader))
tb.course.check("ps3.1", lambda w: None)
print(found.hexdigest())
"""


def run(*words, folder, forbid, cwd=ROOT):
    path = [str(ROOT)]
    if forbid:
        (folder / "sitecustomize.py").write_text(FORBID)
        path.insert(0, str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "MPLBACKEND": "agg"}
    environment["LOKY_MAX_CPU_COUNT"] = "1"  # scikit-learn's baselines ask a program for it, and joblib warns
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


def test_it_is_forbidden(tmp_path):
    for code in (
        "import threading; threading.Thread(target=print).start()",
        "import _thread; _thread.start_new_thread(print, ())",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import multiprocessing; multiprocessing.get_context('spawn').Process(target=print).start()",
        "from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor(1).submit(print).result()",
    ):
        assert run("-c", code, folder=tmp_path, forbid=True).returncode == 1


def test_one_thread_gives_the_bits_of_one_worker(tmp_path):
    def evening(workers, forbid):
        done = run("-c", EVENING.replace("WORKERS", workers), folder=tmp_path, forbid=forbid)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    expected = evening("workers=1", forbid=False)
    assert evening("workers=1", forbid=True) == expected
    assert evening("", forbid=True) == expected, "for networks of this size, the usual number of workers is one"


LONG = ("02", "04", "05", "06")
LESSONS = sorted(p.name for p in (ROOT / "tutorials").glob("0[1-7]_*.py"))


@pytest.mark.parametrize("lesson", [pytest.param(n, marks=[pytest.mark.slow] * (n[:2] in LONG)) for n in LESSONS])
def test_a_lesson_runs(lesson, tmp_path):
    done = run(ROOT / "tutorials" / lesson, folder=tmp_path, forbid=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
