"""The networks that come with the library: what their cards say is what their files do."""

import json
import os
import resource
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.cli import main as cli
from tinybitvit.cli.main import build_parser
from tinybitvit.data import DOWNLOADED
from tinybitvit.files import CheckpointError
from tinybitvit.models import zoo
from tinybitvit.study.results import binomial_interval

ROOT = Path(__file__).parents[2]
FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary", "fashion-mnist": "fashion-mnist"}
NEEDS = {name: [pytest.mark.slow, pytest.mark.data(FOLDERS[name])] for name in DOWNLOADED}
NAMES = zoo.names()


def test_the_promised_networks_are_there():
    digits = {"digits-32bit", "digits-1.58bit", "digits-1bit"}
    assert digits | {"fashion-mnist-1.58bit", "fashion-mnist-1bit", "cifar10-1bit"} <= set(NAMES)
    assert zoo.card("cifar10-1bit").correct >= 8_200 and zoo.card("cifar10-1bit").bytes <= 600_000
    assert {path.stem for path in zoo.FOLDER.glob("*.json")} == set(NAMES)
    assert [zoo.card(name).bits for name in NAMES[:3]] == [32, 1.58, 1]


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS.get(zoo.card(name).data, [])) for name in NAMES])
def test_a_card_repeats_to_the_digit_from_its_file(name):
    """On the full test set, counted here and not by the tool that wrote the card."""
    card, model = zoo.card(name), tb.load(name)
    data = study.load_data(card.data, seed=card.seed)
    order = [card.classes.index(label) for label in data.classes]
    guess = [card.classes.index(str(label)) for label in model.predict(data.X_test)]
    counts = np.zeros((len(order), len(order)), int)
    np.add.at(counts, ([order[i] for i in data.y_test], guess), 1)
    assert counts.tolist() == card.confusion and card.tested == len(data.y_test)


@pytest.mark.parametrize("name", NAMES)
def test_no_number_stands_twice(name):
    """What a file or the confusion matrix says is not written into the card."""
    notes = json.loads((zoo.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert set(notes) == {"data", "command", "seed", "confusion", "limits"}
    assert not any(c.isdigit() for c in notes["limits"].replace("8 x 8", "")), "numbers come from the matrix"
    card = zoo.card(name)
    assert name.endswith(f"-{card.bits:g}bit") and name.startswith(card.data)
    assert card.bytes == (zoo.FOLDER / f"{name}.safetensors").stat().st_size
    assert tb.load(name).bits == card.bits


@pytest.mark.parametrize("name", NAMES)
def test_a_command_can_be_run(name):
    program, *words = shlex.split(zoo.card(name).command.splitlines()[0])
    if program == "tinybitvit":
        build_parser().parse_args(words)
    else:
        assert program == "python" and (ROOT / words[0]).is_file()


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in zoo.FOLDER.iterdir() if path.is_file()) <= 1_500_000
    assert all(len(zoo.card(name).command) > 20 and zoo.card(name).limits for name in NAMES)


def test_the_wheel_holds_the_zoo_and_is_small(tmp_path):
    """A zip of what the package data name, as a wheel is one."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tinybitvit"]
    package = ROOT / "tinybitvit"
    files = {path for pattern in (*patterns, "**/*.py") for path in package.glob(pattern)}
    assert {path for path in zoo.FOLDER.iterdir() if path.is_file()} <= files
    with zipfile.ZipFile(tmp_path / "wheel", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files:
            wheel.write(path, path.relative_to(ROOT))
    assert (tmp_path / "wheel").stat().st_size <= 2_200_000


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_file_of_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tb.load("digits-1.58bit").save("digits-1bit", packed=True)
    assert tb.load("digits-1bit").bits == 1.58
    os.remove("digits-1bit")
    assert tb.load("digits-1bit").bits == 1


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file digits-2bit, and no network of that name") as caught:
        tb.load("digits-2bit")
    assert all(name in str(caught.value) for name in NAMES)
    for path in ("a/digits-1bit", "digits-1bit.safetensors"):
        with pytest.raises(CheckpointError, match="there is no file"):
            tb.load(path)
    assert cli.main(["zoo", "digits-2bit"]) == 2
    assert "digits-1bit" in capsys.readouterr().err


def test_a_training_starts_from_a_network_of_the_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = study.start_model("digits-1bit")
    assert start.bits == 1 and study.start_model("some/folder") == "some/folder"


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each(capsys):
    assert cli.main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "data", "bits", "accuracy", "bytes"]
    for name, line in zip(NAMES, lines[2:], strict=False):
        card = zoo.card(name)
        half = binomial_interval(card.correct / card.tested, card.tested)["half_width"]
        shown = f"{100 * card.correct / card.tested:.2f} ± {100 * half:.2f}"
        assert line.split("  ")[0] == name and shown in line and line.endswith(f" {card.bytes:,}")


def test_a_card_is_printed(capsys):
    assert cli.main(["zoo", "digits-1bit"]) == 0
    out, card = " ".join(capsys.readouterr().out.split()), zoo.card("digits-1bit")
    assert f"{card.bytes:,} bytes" in out and card.command in out and card.limits in out
    assert f"{100 * card.correct / card.tested:.2f} % of {card.tested} test images" in out


def test_hardest_classes():
    matrix = [[8, 2, 0], [1, 5, 4], [0, 0, 10]]
    card = zoo.card("digits-1bit")._replace(confusion=matrix, classes=["a", "b", "c"])
    assert card.confused(2) == [("b", 0.5, "c"), ("a", 0.8, "b")]
    assert (card.correct, card.tested) == (23, 30)


@pytest.mark.parametrize("name", ["digits-1bit", max(NAMES, key=lambda name: zoo.card(name).bytes)])
def test_predict_answers_within_two_seconds(name, tmp_path):
    """Of this process's own computing, its imports included: a busy machine is no fault of the program."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    words = [sys.executable, "-m", "tinybitvit", "predict", name, "photo.jpg"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 2
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 2, seconds
