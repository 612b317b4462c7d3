"""The two commands of the README for a fresh machine, run as they stand in a copy of the repository.

The network is left out: what `pip` would fetch is found in the environment of the tests. The virtual environment, the
editable installation, the entry point and the chain of the commands are real. The second line runs two of the tests
instead of all, which `PYTEST_ADDOPTS` chooses.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
from pages import ROOT, blocks

LINES = [
    line for block in blocks((ROOT / "README.md").read_text(encoding="utf-8"), "sh") for line in block.splitlines()
]
MAIN, TESTS = (line for line in LINES if line.startswith("python3 -m venv"))


def test_both_lines_are_on_the_first_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(text[: text.index(line)].count("\n") < 30 for line in (MAIN, TESTS))
    assert MAIN.endswith("tinybitvit study digits") and TESTS.endswith("pytest -n auto --dist loadfile")


def test_the_lines_of_windows_and_uv_do_the_same():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    windows = re.search(r"```bat\n(.*?)```", text, re.S)[1].splitlines()
    for line, other in zip((MAIN, TESTS), windows, strict=True):
        unix = [step for step in line.split(" && ") if not step.startswith(".")]
        theirs = [re.sub(r"\.venv\\Scripts\\(python -m )?", "", step) for step in other.split(" && ")]
        assert [step.replace("python3 -m", "py -m") for step in unix] == theirs
    short = [line for line in LINES if line.startswith("uv run ")]
    assert [re.sub(r"^uv run (--extra test )?", "", line) for line in short] == [
        line.rpartition(" && ")[2] for line in (MAIN, TESTS)
    ]


@pytest.fixture
def machine(tmp_path):
    """(folder with the repository, environment) of a machine that refuses `pip` outside of a virtual environment."""
    left_out = shutil.ignore_patterns(".git", ".venv", "*cache*", "_build", "build", "*.egg-info", "study-*")
    folder = tmp_path / "clone"
    shutil.copytree(ROOT, folder, ignore=left_out)
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    # The interpreter below the environment of the tests, into which nothing must be installed.
    (tmp_path / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    program = tmp_path / "bin" / "pytest"  # pip would fetch it
    program.write_text('#!/bin/sh\nexec python3 -m pytest "$@"\n')
    program.chmod(0o755)
    environment = {
        "HOME": str(tmp_path / "home"),
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.defpath]),
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say --no-build-isolation
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "LANG": "C.UTF-8",
    }
    return folder, environment


def in_shell(line, machine):
    folder, environment = machine
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
def test_the_first_line_runs_the_main_job(machine):
    done = in_shell(MAIN, machine)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (machine[0] / "study-digits" / "report.html").exists() and re.search(r"\d+ s in all\n$", done.stdout)


@pytest.mark.slow
def test_the_second_line_passes_the_tests(machine):
    machine[1]["PYTEST_ADDOPTS"] = "tests/ops/test_ops_complete.py tests/models/test_config.py -p no:cacheprovider"
    done = in_shell(TESTS, machine)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"\d+ passed", done.stdout.splitlines()[-1])
