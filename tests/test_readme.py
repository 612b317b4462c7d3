"""The README's promises: its example runs, its quotation is the source, its commands and files exist."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinybitvit.cli import build_parser
from tinybitvit.ops import OPS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]


def test_the_example_learns_the_digits(tmp_path):
    example = next(block for block in PYTHON if "import tinybitvit" in block)
    assert len(example.strip().splitlines()) <= 6
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert float(done.stdout.split("accuracy")[-1]) > 0.95
    assert (tmp_path / "digits.safetensors").stat().st_size < 100_000


def test_the_quotation_is_the_source():
    quoted = next(block for block in PYTHON if block.startswith("class Softmax"))
    assert quoted.strip() == inspect.getsource(OPS["softmax"]).strip()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("tinybitvit")])
def test_commands_parse(command):
    build_parser().parse_args(shlex.split(command)[1:])


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
