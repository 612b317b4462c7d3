"""CONTRIBUTING's "Add an operation", followed literally in a copy of the tree."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = (
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add an operation")[2].partition("\n## ")[0]
)


def steps():
    """(language, code, the file that the step names or None) of each code block."""
    for step in re.split(r"^\d\. ", SECTION, flags=re.M)[1:]:
        for language, code in re.findall(r"```(\w+)\n(.*?)```", step, re.S):
            named = re.search(r"`((?:tinybitvit|tests)/[\w/]+\.py)`", step)
            yield language, textwrap.dedent(" " * 3 + code.strip(" ")), named and named[1]


def add(path, code):
    """A row of a table goes to its head, anything else to the end of the file."""
    text = path.read_text(encoding="utf-8")
    if code.startswith('"'):
        head = "    return {\n"
        assert text.count(head) == 1
        text = text.replace(head, head + textwrap.indent(code, " " * 8))
    else:
        text += "\n\n" + code
    path.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_steps_add_an_operation(tmp_path):
    for folder in ("tinybitvit", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    commands, touched = [], []
    for language, code, file in steps():
        if language == "sh":
            commands += code.splitlines()
        else:
            add(tmp_path / file, code)
            touched.append(file)
    assert touched[-1] == "tests/op_cases.py" and len(set(touched[:-1])) <= 3, touched
    assert len(commands) == 2
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    for command in commands:
        program, *arguments = shlex.split(command)
        program = [sys.executable, *(["-m", "pytest"] if program == "pytest" else [])]
        done = subprocess.run([*program, *arguments], cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert re.search(r"\d+ passed" if "pytest" in command else r"\d+ mutants, 0 survived", done.stdout)
