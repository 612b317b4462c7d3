"""The program on bad terminals and under signals: no traceback, nothing lost, no half files, no process left."""

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import ROOT, TINY, start, status_of

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.cli.arguments import Parser
from tinybitvit.cli.main import build_parser
from tinybitvit.cli.models import model_names
from tinybitvit.files import printable
from tinybitvit.study.presets import UPDATES
from tinybitvit.train.meter import say

STUDY = ["study", *TINY, "--bits", "1.58"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two models, a picture, and files that are none."""
    place = tmp_path_factory.mktemp("terminal")
    data = study.load_data("digits", 60, 40)
    for name, bits in (("full", 32), ("low", 1.58)):
        study.train_model(data, bits=bits, dim=8, depth=1, heads=2, epochs=1, verbose=0)[0].save(place / f"{name}.st")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(place / "good.png")
    (place / "cut.png").write_bytes((place / "good.png").read_bytes()[:50])  # within its pixels
    (place / "text.png").write_text("no picture")
    (place / "folder.png").mkdir()
    return place


# --- words that are no sense ------------------------------------------------------------------------------------------

NONSENSE = ["", "\0", "-1", "0", "nan", "inf", "1e999", "0x10", "9" * 40, "NaN", " ", "a\x1b[31m\nb"]
NAMES = {
    "dataset",
    "out",
    "model",
    "images",
    "compare",
    "init_from",
    "teacher",
    "course",
    "folder",
    "submissions",
    "set",
    "to",
    "roster",
    "name",
}
NAMES |= {"assignments"}


def options(parser, path=()):
    """(words of the subcommand, action) of all options and arguments."""
    for action in parser._actions:
        if isinstance(action.choices, dict) and all(isinstance(p, Parser) for p in action.choices.values()):
            for name, sub in action.choices.items():
                yield from options(sub, (*path, name))
        elif path and action.nargs != 0:
            yield path, action


@pytest.mark.parametrize(
    ("path", "action"), [pytest.param(p, a, id=f"{' '.join(p)} {a.dest}") for p, a in options(build_parser())]
)
def test_no_option_takes_nonsense(path, action, capsys):
    """By its own type or choices, so before anything is read, computed or written."""
    for value in NONSENSE:
        kind = action.type or str
        if action.dest in NAMES and value not in ("", "\0"):
            continue
        if action.dest in ("augment", "seed", "bits"):  # checked by those who know them, see test_cli.BAD
            continue
        words = [f"{action.option_strings[0]}={value}"] if action.option_strings else [value]
        assert status_of(*path, *words) == 2, (value, kind)
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("tinybitvit ") and "\x1b" not in err
        if action.option_strings:
            assert action.option_strings[0] in err


@pytest.mark.parametrize(
    ("line", "words"),
    {
        "study --seed 4294967295 --seeds 2": "the seed must lie in 0..4294967295, not 4294967296",
        "study --seed 99999999999999999999": "the seed must lie in",
        "study --bits inf": "not inf",
        "study --bits 32 --recipe best": "--recipe needs --bits below 32",
        "study --image-size 1000000": "not enough memory",
        "train digits --bits 32 --recipe paper": "--recipe needs --bits below 32",
        "train digits --recipe refine --bits 1": "invalid choice: 'refine'",
        "study --recipe refine --bits 1": "this recipe goes on with a low-bit model",
        "quantize full.st digits --bits 1 --out .": "--out . is a folder",
        "quantize low.st digits --bits 1 --out q": "give a model of 32 bits",
        "probe low.st digits --out .": "--out . is a folder",
        "export low.st --format onnx --out x --compare full.st": "--compare and --images are for --format html",
        "export low.st --format html --out x --int8": "--int8 is for --format onnx",
        "export low.st --format html --out x --images text.png": "text.png is not an image",
        "attention low.st missing.png": "there is no file missing.png",
        "attention low.st folder.png": "folder.png is a folder",
        "attention low.st cut.png": "cut.png cannot be read as an image",
        "attention low.st good.png --out a.txt": "must end in .html, .png, .pdf or .svg",
        "predict text.png good.png": "text.png is not a whole safetensors file",
        "inspect folder.png": "folder.png is a folder",
        "profile --image-size 1000000 --patch-size 1": "not enough memory",
    }.items(),
)
def test_contradictions_cost_a_sentence(line, words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert status_of(*line.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(words, err)
    assert not (folder / "q").exists() and not (folder / "x").exists()


def test_a_bad_picture_does_not_lose_the_others(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    bad = {
        "missing.png": "no file",
        "folder.png": "is a folder",
        "text.png": "not an image",
        "cut.png": "cannot be read",
    }
    assert status_of("predict", "low.st", "good.png", *bad, "good.png") == 2
    out, err = capsys.readouterr()
    head, *lines = out.splitlines()
    assert head.split("  ") == ["image", "class", "probability"]
    assert [line.split("  ")[0] for line in lines] == ["good.png", "good.png"]
    assert len(err.splitlines()) == len(bad)
    for line, (name, words) in zip(err.splitlines(), bad.items(), strict=True):
        assert line.startswith("tinybitvit: ") and name in line and words in line


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_are_shown_without_their_effects():
    assert printable("a\nb\x1b[31m\udce8 é±") == r"a\nb\x1b[31m\udce8 é±"


def test_models_of_one_name_keep_apart():
    assert model_names(["a/m.st", "b.st"]) == ["m", "b"]
    assert model_names(["a/m.st", "b/m.st", "n.st"]) == ["a/m", "b/m", "n"]
    assert model_names(["a/m.st", "a/m.st"]) == ["a/m", "a/m (2)"]


def test_files_of_any_name(folder, tmp_path):
    """A model, a picture, a data set and a class whose names hold escape codes, line ends and no UTF-8."""
    nasty = os.fsdecode(b"\xe8\x1b[31m\n$x$")
    for kind in ("one", nasty):
        (tmp_path / nasty / kind).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8), 50 * i + (kind == "one"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / nasty / kind / f"{nasty}{i}.png")
    model, picture = f"{nasty}.st", f"{nasty}/one/{nasty}0.png"
    small = ["--dim=8", "--depth=1", "--heads=2", "--epochs=1", "--bits=1"]
    for words in (
        ["study", nasty, *small, f"--out=out{nasty}"],
        ["train", nasty, *small, "--out", model],
        ["predict", model, picture],
        ["attention", model, picture, f"--out={nasty}.html"],
        ["export", model, "--format=html", "--compare", model, "--images", picture, f"--out={nasty}2.html"],
    ):
        process = start(*words, folder=tmp_path)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), words
        assert "\x1b" not in out
    assert {"report.html", "results.json"} <= {p.name for p in (tmp_path / f"out{nasty}").iterdir()}


# --- streams ----------------------------------------------------------------------------------------------------------


def reader_that_left():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def ended(process):
    out, err = (text or "" for text in process.communicate(timeout=120))
    assert "Traceback" not in out + err and "Exception ignored" not in err and process.returncode >= 0
    return process.returncode, out, err


CHEAP = {
    "predict": ["predict", "low.st", "good.png", "text.png"],
    "attention": ["attention", "low.st", "good.png", "--out=page.html"],
    "inspect": ["inspect", "low.st"],
    "export": ["export", "low.st", "--format=html", "--out=try.html"],
    "profile": ["profile", "--dim=8", "--depth=1", "--heads=2", "--image-size=8", "--batch=4"],
    "help": ["--help"],
    "wrong": ["study", "--nosuch"],
    "course": ["course", "release", "ps1"],
}
DEAR = {
    "study": [*STUDY, "--out=out"],
    "train": ["train", "digits", *TINY, "--out=m.st"],
    "quantize": ["quantize", "full.st", "digits", "--images=64", "--out=q.st"],
    "probe": ["probe", "full.st", "digits", "--train-size=64", "--out=q.st"],
    "doctor": ["doctor"],
}
CLOSED = {"stdin": 0, "stdout": 1, "stderr": 2}


@pytest.fixture
def full():
    """A file on a disk without space."""
    with open("/dev/full", "w") as file:
        yield file


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHEAP, *DEAR])
@pytest.mark.parametrize("fault", [*CLOSED, "broken", "full", "ascii", "narrow"])
def test_every_command_on_a_bad_terminal(name, fault, folder, full, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    options, env = {}, {}
    if fault in CLOSED:
        options = {fault: None, "preexec_fn": lambda: os.close(CLOSED[fault])}
    elif fault == "broken":
        options = {"stdout": reader_that_left()}
    elif fault == "full":
        options = {"stdout": full}
    else:
        env = {"PYTHONIOENCODING": "ascii"} if fault == "ascii" else {"COLUMNS": "1", "LC_ALL": "C"}
    process = start(
        *{**CHEAP, **DEAR}[name], folder=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, **options
    )
    if not isinstance(process.args, list):
        raise AssertionError
    status, _, _ = ended(process)
    expected = {"predict": 2, "wrong": 2, "course": 2}.get(name, 0)
    assert status == expected or fault in ("broken", "full")
    if name in ("study", "train"):
        assert (tmp_path / ("out/report.html" if name == "study" else "m.st")).is_file()


def test_training_survives_a_reader_that_leaves(tmp_path):
    """And ends with what it is for: the model in a file."""
    writer = reader_that_left()
    status, _, err = ended(start("train", "digits", *TINY, "--out=m.st", folder=tmp_path, stdout=writer))
    assert status in (0, 1) and err == "" and tb.load(tmp_path / "m.st").n_iter_ == 2
    os.close(writer)


def test_a_study_without_stdout_or_utf8(tmp_path):
    closed = {"stdout": None, "preexec_fn": lambda: os.close(1)}
    assert ended(start(*STUDY, "--out=a", folder=tmp_path, **closed)) == (0, "", "")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    status, out, err = ended(start(*STUDY, "--out=b", folder=tmp_path, env=env))
    assert (status, err) == (0, "") and r"\xb1" in out
    for name in "ab":
        assert (tmp_path / name / "report.html").is_file() and not (tmp_path / name / "checkpoints").exists()


def test_what_is_said_costs_no_training(monkeypatch):
    class Full:
        encoding = "ascii"

        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    say("± 1")
    monkeypatch.setattr(sys, "stdout", None)
    say("± 1")


# --- undertrained -----------------------------------------------------------------------------------------------------


def test_few_images_get_enough_updates(capsys):
    """135 images in batches of 64 are three updates an epoch."""
    assert study.chosen("digits", 1347, {}) == {}
    assert study.chosen("digits", 135, {"bits": 1, "lr": None}) == {"bits": 1, "epochs": 167} and UPDATES <= 3 * 167
    assert "167 epochs, so that there are 500 updates" in capsys.readouterr().out
    assert study.chosen("digits", 135, {"epochs": 2}) == {"epochs": 2}
    assert study.chosen("digits", 135, {"batch_size": 8})["batch_size"] == 8
    assert "epochs" not in study.chosen("digits", 135, {"batch_size": 8})
    assert study.chosen("cifar10", 50_000, {})["epochs"] == 10 and study.chosen("cifar10", 1000, {})["epochs"] == 63


def test_log_and_report_say_undertrained(tmp_path, capsys):
    assert status_of(*STUDY, "--out", str(tmp_path / "out")) == 0
    assert "undertrained: 1.58 bits (the training accuracy is" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "undertrained: 1.58 bits" in page and "no loss lies below 0.500 nats. Label smoothing of 0.1" in page
    assert status_of("train", "digits", *TINY, "--out", str(tmp_path / "m.st")) == 0
    assert "undertrained: the training accuracy is" in capsys.readouterr().out


# --- killed -----------------------------------------------------------------------------------------------------------


def alive(group):
    """The processes of a group that still run, by the system's table."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgid = place.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgid) == group and state != "Z":
            found.append(place.parent.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize(
    "moment", [0.5, pytest.param(0.0, marks=pytest.mark.slow), pytest.param(3.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)),
    ],
)
def test_a_killed_study_leaves_no_worker(how, moment, tmp_path):
    """The parent alone is struck, while its workers train or still start."""
    words = ["study", "digits", "--bits", "32", "1.58", "--epochs", "2000", "--jobs", "2", "--out", "out"]
    process = start(*words, folder=tmp_path, start_new_session=True)
    try:
        for line in process.stdout:
            if line.startswith("Dataset"):
                break
        time.sleep(moment)
        if moment:
            waited = time.monotonic() + 60
            while len(alive(process.pid)) < 3 and time.monotonic() < waited:
                time.sleep(0.1)
            time.sleep(moment)
        os.kill(process.pid, how)
        process.wait(timeout=60)
        waited = time.monotonic() + 60
        while alive(process.pid) and time.monotonic() < waited:
            time.sleep(0.2)
        assert not alive(process.pid)
    finally:
        for left in alive(process.pid):
            os.kill(int(left), signal.SIGKILL)
        process.communicate()


WRITES = {
    "train": (["train", "digits", *TINY, "--out=m.st"], "m.st"),
    "quantize": (["quantize", "full.st", "digits", "--images=64", "--out=q.st"], "q.st"),
    "probe": (["probe", "full.st", "digits", "--train-size=64", "--out=q.st"], "q.st"),
    "packed": (["export", "low.st", "--format=safetensors", "--out=p.st"], "p.st"),
    "page": (["export", "low.st", "--format=html", "--out=page.html"], "page.html"),
    "maps": (["attention", "low.st", "good.png", "--out=maps.png"], "maps.png"),
    "study": ([*STUDY, "--out=out"], "out/results.json"),
}


def whole(path):
    """Whether a file of this ending is complete."""
    if path.suffix == ".st":
        return tb.load(path).classes_.size == 10
    if path.suffix == ".json":
        return bool(json.loads(path.read_text())["models"])
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
        return True
    return path.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.parametrize("name", ["page", "train", *(pytest.param(n, marks=pytest.mark.slow) for n in WRITES)])
def test_killed_at_any_moment_a_command_leaves_old_or_new(name, folder, tmp_path, request):
    """Never half a file under the name that was asked for."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    words, out = WRITES[name]
    again = [*words, "--resume"] if name in ("study", "train", "quantize") else words
    began = time.monotonic()
    assert ended(start(*words, folder=tmp_path))[0] == 0
    seconds = time.monotonic() - began
    assert whole(tmp_path / out)
    rng = random.Random(0)
    for _ in range(12 if request.node.get_closest_marker("slow") else 2):
        if rng.random() < 0.5 and out != "out/results.json":
            (tmp_path / out).unlink(missing_ok=True)
        there = (tmp_path / out).exists()
        process = start(*again, folder=tmp_path)
        time.sleep(seconds * rng.uniform(0.4, 1.0))
        process.kill()
        process.communicate()
        assert whole(tmp_path / out) if there or (tmp_path / out).exists() else True
    assert ended(start(*again, folder=tmp_path))[0] == 0
    assert whole(tmp_path / out)
