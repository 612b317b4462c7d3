"""The command `tinybitvit`: its words, its exit status, and one sentence instead of a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.cli import main as cli
from tinybitvit.cli.models import EXPORT_FORMATS
from tinybitvit.data import read_image

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--dim=16", "--depth=1", "--heads=2", "--epochs=2", "--train-size=60", "--test-size=40"]


def start(*arguments, folder, **options):
    """`python -W error -m tinybitvit ...` in a folder away from the checkout."""
    command = [sys.executable, "-W", "error", "-m", "tinybitvit", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, **{"env": env, **streams, **options})


def run(*arguments, folder):
    process = start(*arguments, folder=folder)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def status_of(*arguments):
    """Exit status of the program in this process, argparse's own exits included."""
    try:
        return cli.main(list(arguments))
    except SystemExit as stop:
        return stop.code


# --- words ------------------------------------------------------------------------------------------------------------


def test_version_and_help(capsys):
    assert status_of("--version") == 0
    assert capsys.readouterr().out == f"tinybitvit {tb.__version__}\n"
    assert status_of("--help") == 0
    text = capsys.readouterr().out
    for name in ("study", "train", "predict", "attention", "inspect", "quantize", "probe", "export", "doctor"):
        assert re.search(rf"\n +{name}\s+[a-z]", text)
        assert status_of(name, "--help") == 0
        assert f"usage: tinybitvit {name}" in capsys.readouterr().out


def test_help_loads_nothing_slow(tmp_path):
    code = (
        "import sys; from tinybitvit.cli import main; main.build_parser().format_help(); "
        "print(*{'numpy', 'sklearn', 'matplotlib', 'scipy', 'PIL', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_module_is_the_same_program(tmp_path):
    assert run("--version", folder=tmp_path) == (0, f"tinybitvit {tb.__version__}\n", "")


# --- study ------------------------------------------------------------------------------------------------------------


def test_study_writes_to_the_folder_it_names(tmp_path):
    status, out, err = run("study", *TINY, "--bits", "1.58", "--seed", "5", folder=tmp_path)
    assert (status, err) == (0, "")
    results = json.loads((tmp_path / "study-digits" / "results.json").read_text())
    assert results["dataset"] == "digits" and results["seeds"] == [5] and results["models"][0]["bits"] == 1.58
    assert results["settings"]["dim"] == 16 and results["settings"]["patch_size"] == [2, 2]
    assert "1.58 bits, seed 5 (model 1 of 1)\nepoch 1/2  loss " in out and re.search(r"\d+ s in all\n$", out)
    written = re.search(r"written: (.*)", out)[1].split()
    assert {Path(p).name for p in written} == {path.name for path in (tmp_path / "study-digits").iterdir()}
    assert all((tmp_path / path).exists() for path in written)


def test_ctrl_c_ends_a_study_with_a_report(tmp_path):
    """A real signal, in the second epoch of a run that would last minutes."""
    process = start("study", "--bits", "32", "1", "--epochs", "2000", folder=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "stopped by Ctrl-C in epoch" in out and "32 bits*" in out and "1 bit " not in out
    results = json.loads((tmp_path / "study-digits" / "results.json").read_text())
    assert results["interrupted"] and [model["bits"] for model in results["models"]] == [32]
    assert "stopped by Ctrl-C" in (tmp_path / "study-digits" / "report.html").read_text(encoding="utf-8")


def test_options_reach_the_study(monkeypatch):
    seen = {}
    for program in ("run_study", "run_sweep", "run_ablation"):
        note = partial(lambda name, *a, **k: seen.update(program=name, a=a, k=k) or {"interrupted": False}, program)
        monkeypatch.setattr(study, program, note)
    assert status_of("study") == 0
    usual = {"train_size": None, "test_size": None, "image_size": None, "seed": 0, "seeds": 1, "jobs": 1, "out": None}
    usual |= {"device": "auto", "resume": False, "teacher": None, "command": "tinybitvit study"}
    assert seen == {"program": "run_study", "a": ("digits",), "k": usual}
    line = "study some/folder --bits 8 1.58 --out o --train-size 9 --test-size 8 --image-size 7 --seed 6 --epochs 5"
    line += " --batch-size 4 --lr 0.5 --dim 3 --depth 2 --heads 1 --mlp-ratio 1.5 --patch-size 2 --device cpu"
    line += " --seeds 3 --jobs 2 --recipe best --augment flip --init-from /some/where/model"
    line += " --teacher /some/where/else --resume"
    assert status_of(*line.split()) == 0
    assert seen["a"] == ("some/folder",) and [type(b) for b in seen["k"]["bits"]] == [int, float]
    assert seen["k"] == {
        **{
            "bits": [8, 1.58],
            "out": "o",
            "train_size": 9,
            "test_size": 8,
            "image_size": 7,
            "seed": 6,
            "epochs": 5,
            "batch_size": 4,
        },
        **{"lr": 0.5, "dim": 3, "depth": 2, "heads": 1, "mlp_ratio": 1.5, "patch_size": 2, "device": "cpu"},
        **{"seeds": 3, "jobs": 2, "recipe": "best", "augment": "flip", "resume": True},
        "init_from": "/some/where/model",
        "teacher": "/some/where/else",
        "command": f"tinybitvit {line}".replace("/some/where/", "").replace(" --resume", ""),
    }
    assert status_of("study", "--sweep", "--widths", "8", "16", "--depths", "1", "--out=/x/y z") == 0
    command = "tinybitvit study --sweep --widths 8 16 --depths 1 '--out=y z'"
    sizes = {"widths": [8, 16], "depths": [1]}
    more = {**usual, **sizes, "out": "/x/y z", "command": command}
    assert seen == {"program": "run_sweep", "a": ("digits",), "k": more}
    assert status_of("study", "cifar10", "--ablation", "--bits", "1.58") == 0
    more = {**usual, "bits": [1.58], "command": "tinybitvit study cifar10 --ablation --bits 1.58"}
    assert seen == {"program": "run_ablation", "a": ("cifar10",), "k": more}


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "": "required: COMMAND",
    "nosuch": "invalid choice: 'nosuch'",
    "study --nosuch": "unrecognized arguments: --nosuch",
    "study digits cifar10": "unrecognized arguments: cifar10",
    "study nosuch": "'nosuch' is neither a data set (digits, ",
    "study file": "'file' is neither a data set",
    "study empty": "empty holds 0 class folder(s)",
    "study --bits": "argument --bits: expected at least one argument",
    "study --bits 5": "bits must be one of 32, 8, 4, 3, 2, 1.58, 1, not 5",
    "study --bits 32 1.5": "bits must be one of 32, 8, 4, 3, 2, 1.58, 1, not 1.5",
    "study --bits nan": "not nan",
    "study --bits 32 digits": "'digits' is no bit width such as 32, 1.58 or 1; the data set comes first",
    "study --epochs 0": "argument --epochs: '0' is not a whole number from 1",
    "study --epochs 1.5": "'1.5' is not a whole number from 1",
    "study --lr 0": "argument --lr: '0' is not a number above 0",
    "study --lr nan": "'nan' is not a number above 0",
    "study --lr fast": "'fast' is not a number above 0",
    "study --dim -4": "argument --dim: '-4' is not a whole number from 1",
    "study --dim 10 --heads 4": "heads must divide dim: 10 is not a multiple of 4",
    "study --patch-size 3": "choose a patch_size that divides both sides",
    "study --seed -1": "the seed must lie in 0..4294967295, not -1",
    "study --seed x": "argument --seed: invalid int value: 'x'",
    "study --train-size 5": "5 of the 1347 training images of digits were asked for: take 10 (one of each class) to ",
    "study --train-size 1348": "take 10 (one of each class) to 1347",
    "study --test-size 451": "take 10 (one of each class) to 450",
    "study --image-size 9 --patch-size 2": "choose a patch_size that divides both sides",
    "study --image-size 0": "argument --image-size: '0' is not a whole number from 1",
    "study --seeds 0": "argument --seeds: '0' is not a whole number from 1",
    "study --jobs -1": "argument --jobs: '-1' is not a whole number from 1",
    "study --ablation --sweep": "argument --sweep: not allowed with argument --ablation",
    "study --ablation --recipe best": "an ablation has recipes and a teacher of its own: leave recipe and ",
    "study --ablation --bits 32": "an ablation is of low-bit models: give a bit width below 32",
    "study --ablation --widths 8": "--widths and --depths are for --sweep",
    "study --augment spin": "unknown augmentation 'spin': choose from flip, shift, crop, cutout, auto or None",
    "study --recipe good": "argument --recipe: invalid choice: 'good'",
    "study --recipe +rows": "argument --recipe: invalid choice: '+rows'",
    "study --init-from missing": "missing",
    "study --teacher missing": "missing",
    "study --teacher file": "file is not a whole safetensors file",
    "study --teacher file --sweep": "leave out the sweep",
    "study --init-from file": "file is not a whole safetensors file",
    "study --widths 8 16": "--widths and --depths are for --sweep",
    "study --sweep --init-from file": "a sweep trains networks of other widths",
    "study --sweep --widths 8.5": "argument --widths: '8.5' is not a whole number from 1",
    "study --device tpu": "argument --device: invalid choice: 'tpu'",
    "study --out file": "cannot write into file: File exists; choose another folder",
    "study --out file/below": "cannot write into file/below: Not a directory; choose another folder",
    "study --lr 1e20 --dim 16 --heads 2 --epochs 3 --bits 32": "the loss became nan",
    "train": "required: DATASET",
    "train digits --bits 7": "bits must be one of 32, 8, 4, 3, 2, 1.58, 1, not 7",
    "train digits --out file/model.safetensors": "cannot write into file: File exists",
    "train digits --out empty": "--out empty is a folder",
    "train digits --bits 32 --packed": "--packed needs --bits below 32",
    "train digits --recipe imitate": "argument --recipe: invalid choice: 'imitate'",
    "train digits --init-from file --out file": "--out file would replace a file that this command reads: give another",
    "quantize file digits --out ./file": "--out file would replace a file that this command reads",
    "probe file digits --out file": "--out file would replace a file that this command reads",
    "export file --format onnx --out file": "--out file would replace a file that this command reads",
    "export x --format html --compare file --out file": "--out file would replace a file that this command reads",
    "attention x file --out file": "--out file would replace a file that this command reads",
    "predict": "required: MODEL, IMAGE",
    "predict file": "required: IMAGE",
    "quantize file": "required: DATASET, --out",
    "quantize file digits --out x --bits 1": "file is not a whole safetensors file",
    "probe file": "required: DATASET, --out",
    "probe file digits --out x": "file is not a whole safetensors file",
    "probe missing digits --out x": "there is no file missing",
    "export file --out x": "required: --format",
    "export file --out x --format zip": "argument --format: invalid choice: 'zip'",
    "doctor now": "unrecognized arguments: now",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gives_one_sentence(line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert status_of(*line.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("tinybitvit") and BAD[line] in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("two\nlines"), "two lines"),
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "MemoryError"),
        (ImportError("no module named 'onnx': pip install onnx"), "no module named 'onnx': pip install onnx"),
    ],
)
def test_errors_of_the_machine_are_one_sentence(error, expected, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(study, "run_study", fail)
    assert status_of("study") == 2
    assert capsys.readouterr().err == f"tinybitvit: {expected}\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(*arguments, **options):
        raise AttributeError("a slip of ours")

    monkeypatch.setattr(study, "run_study", fail)
    with pytest.raises(AttributeError):
        cli.main(["study"])


def test_ctrl_c_outside_training(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", fail)
    assert status_of("study") == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_a_reader_that_leaves_gets_no_traceback(tmp_path):
    reader, writer = os.pipe()
    process = start("doctor", folder=tmp_path, stdout=writer)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_passes_away_from_the_checkout(tmp_path):
    status, out, err = run("doctor", folder=tmp_path)
    assert (status, err) == (0, "")
    assert "FAILED" not in out and out.endswith("checks passed\n")


# --- one model in a file ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "new" / "model.safetensors"
    assert cli.main(["train", "digits", *TINY, "--bits", "1.58", "--out", str(path)]) == 0
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of other sizes and modes than the model's 8 x 8 grey."""
    rng = np.random.default_rng(0)
    paths = []
    for name, shape in {"grey.png": (8, 8), "colour.png": (30, 20, 3), "clear.png": (9, 8, 4)}.items():
        paths.append(str(tmp_path / name))
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


def test_train_saves_what_it_measured(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert cli.main(["train", "digits", *TINY, "--bits", "1", "--seed", "2", "--out", str(path)]) == 0
    out = capsys.readouterr().out
    data = study.load_data("digits", 60, 40, seed=2)
    model = tb.load(path)
    accuracy = model.score(data.X_test, np.array(data.classes)[data.y_test])
    assert f"accuracy {accuracy:.4f} on 40 test images" in out
    assert f"written: {path} ({path.stat().st_size:,} bytes)" in out
    assert model.bits == 1 and list(model.classes_) == sorted(data.classes)


def test_packed_files_are_small_and_predict_the_same(tmp_path, model_file, pictures, capsys):
    path = tmp_path / "packed.safetensors"
    assert cli.main(["train", "digits", *TINY, "--bits", "1.58", "--packed", "--out", str(path)]) == 0
    assert path.stat().st_size < 0.6 * Path(model_file).stat().st_size
    capsys.readouterr()
    answers = []
    for model in (model_file, path):
        assert cli.main(["predict", str(model), *pictures]) == 0
        answers.append([line.split("  ") for line in capsys.readouterr().out.splitlines()[1:]])
    for full, packed in zip(*answers, strict=True):
        assert full[:2] == packed[:2] and float(full[2]) == pytest.approx(float(packed[2]), abs=0.01)


def test_quantize_rounds_a_model(tmp_path, model_file, capsys):
    full, small = str(tmp_path / "full.safetensors"), tmp_path / "new" / "small.safetensors"
    options = [*TINY, "--epochs", "10", "--train-size", "600"]
    assert cli.main(["train", "digits", *options, "--bits", "32", "--out", full]) == 0
    before = float(re.search(r"accuracy ([\d.]+)", capsys.readouterr().out)[1])
    line = ["quantize", full, "digits", "--bits", "1", "--images", "600", "--out", str(small)]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    data, model = study.load_data("digits"), tb.load(small)
    accuracy = model.score(data.X_test, np.array(data.classes)[data.y_test])
    assert f"accuracy {accuracy:.4f} on 450 test images" in out and accuracy > before - 0.1
    assert f"written: {small} ({small.stat().st_size:,} bytes)" in out and "block 1/" in out
    assert model.bits == 1
    assert status_of("quantize", model_file, "digits", "--out", str(small)) == 2
    assert "give a model of 32 bits" in capsys.readouterr().err


def test_probe_gives_a_model_other_classes(tmp_path, model_file, capsys):
    folder, out = tmp_path / "shapes", tmp_path / "new" / "probed.safetensors"
    rng = np.random.default_rng(0)
    for k, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            image = rng.integers(0, 60, (8, 8), dtype=np.uint8)
            image[:, 4 * k : 4 * k + 4] += 150
            Image.fromarray(image).save(folder / name / f"{i}.png")
    assert cli.main(["probe", model_file, str(folder), "--image-size=8", "--out", str(out)]) == 0
    assert f"written: {out} ({out.stat().st_size:,} bytes)" in capsys.readouterr().out
    model, before = tb.load(out), tb.load(model_file)
    assert model.classes_.tolist() == ["left", "right"] and model.bits == before.bits
    pictures = [str(path) for path in sorted(folder.glob("*/*.png"))]
    guess = model.predict(model.read_images(pictures))
    assert (guess == [Path(path).parent.name for path in pictures]).mean() > 0.9


def test_predict_prints_a_line_for_each_picture(model_file, pictures, capsys):
    assert cli.main(["predict", model_file, *pictures]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ") == ["image", "class", "probability"]
    assert [line.split("  ")[0] for line in lines] == pictures
    model = tb.load(model_file)
    for line, path in zip(lines, pictures, strict=True):
        probabilities = model.predict_proba(model.read_images([path]))[0]  # drawings in its own polarity
        _, label, probability = line.split("  ")
        assert label == model.classes_[probabilities.argmax()]
        assert float(probability) == pytest.approx(probabilities.max(), abs=6e-4)


def test_pictures_become_what_the_model_takes(pictures):
    grey, colour, _ = pictures
    with Image.open(grey) as image:
        assert (read_image(grey, (8, 8, 1))[..., 0] == np.asarray(image)).all()
        assert (read_image(grey, (8, 8, 3)) == np.asarray(image)[..., None]).all()
    with Image.open(colour) as image:
        assert (read_image(colour, (30, 20, 3)) == np.asarray(image)).all()
        luma = np.asarray(image.convert("L")).astype(int)
        assert abs(read_image(colour, (30, 20, 1))[..., 0] - luma).max() <= 1
    for path in pictures:
        for shape in ((5, 7, 1), (5, 7, 3)):
            image = read_image(path, shape)
            assert image.shape == shape and image.dtype == np.uint8


def test_a_bad_picture_or_model_gives_one_sentence(model_file, pictures, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    for arguments in ((model_file, str(bad)), (model_file, "missing.png"), (str(bad), pictures[0]), ("no", "no")):
        assert cli.main(["predict", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("tinybitvit: ")


def test_inspect_counts_every_byte(model_file, capsys):
    assert cli.main(["inspect", model_file]) == 0
    *lines, empty, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"file: {Path(model_file).stat().st_size:,} bytes; arrays: ") and not empty
    assert lines[0].split()[:3] == ["layer", "shape", "bits"] and lines[-1].startswith("total ")
    sizes = [int(re.split(r"\s{2,}", line)[-3].replace(",", "")) for line in lines[2:]]
    assert sum(sizes[:-1]) == sizes[-1] == tb.load(model_file).model_.nbytes
    assert any(line.startswith("blocks.0.attn.qkv ") and " 48 x 16 " in line for line in lines)


@pytest.mark.parametrize("name", ["maps.html", "maps.png"])
def test_attention_writes_a_page_or_a_figure(name, model_file, pictures, tmp_path, capsys):
    out = tmp_path / name
    assert cli.main(["attention", model_file, *pictures, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    assert out.read_bytes().startswith(b"\x89PNG" if name.endswith("png") else b"<!doctype html>")


def test_export_knows_every_format():
    assert (*tb.io.FORMATS, "html") == EXPORT_FORMATS


def test_exported_page_holds_the_models_it_compares(model_file, tmp_path, pictures, capsys):
    other = tmp_path / "other <one>.safetensors"
    other.write_bytes(Path(model_file).read_bytes())
    out = tmp_path / "page.html"
    command = ["export", str(model_file), "--format", "html", "--compare", str(other), "--images", *pictures]
    assert cli.main([*command, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"written: {out}")
    page = out.read_text()
    assert "<one>" not in page and "other" in page and "://" not in page.replace("http://www.w3.org", "")
    with pytest.raises(SystemExit):
        cli.main(["export", str(model_file), "--format", "html"])
    assert cli.main(["export", str(model_file), "--format", "hf", "--compare", str(other), "--out", str(out)]) == 2


def test_exported_onnx_takes_the_same_images(model_file, tmp_path, capsys):
    """uint8 pixels in, the model's own logits out: the normalisation went along."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    X = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    expected = tb.load(model_file).decision_function(X)
    out = tmp_path / "model.onnx"
    assert cli.main(["export", model_file, "--format", "onnx", "--int8", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"written: {out} ({out.stat().st_size:,} bytes)\n"
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": X})
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_exported_safetensors_are_packed(model_file, tmp_path, capsys):
    out = tmp_path / "packed.safetensors"
    assert cli.main(["export", model_file, "--format", "safetensors", "--out", str(out)]) == 0
    assert out.stat().st_size < 0.6 * Path(model_file).stat().st_size
    X = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    assert list(tb.load(out).predict(X)) == list(tb.load(model_file).predict(X))
    assert cli.main(["export", str(out), "--format", "hf", "--out", str(tmp_path / "hf.safetensors")]) == 0
    assert cli.main(["export", model_file, "--format", "hf", "--int8", "--out", "x"]) == 2
    assert capsys.readouterr().err == "tinybitvit: --int8 is for --format onnx\n"
