"""The study on a few images and for a few epochs: what it writes, and what is left when it is cut short."""

import errno
import html
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.data import DataError, Dataset
from tinybitvit.study import report
from tinybitvit.study import results as statistics
from tinybitvit.train import loop

TRAIN_MODEL = "tinybitvit.study.run.train_model"
TINY = {"dim": 16, "depth": 1, "heads": 2, "epochs": 2, "train_size": 60, "test_size": 40}
WIDTHS = ("32 bits", "1.58 bits", "1 bit")
FORM = ["bits", "accuracy", "precision", "recall", "f1", "parameters", "weight_bytes", "seconds", "confusion_matrix"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, results) of a study at three widths."""
    folder = tmp_path_factory.mktemp("study") / "new" / "folder"
    return folder, study.run_study("digits", [32, 1.58, 1], out=folder, seed=3, **TINY)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("tinybitvit.study.pictures.figures", lambda *arguments: [])


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


# --- what is written --------------------------------------------------------------------------------------------------


def test_results_have_the_promised_form(done):
    folder, results = done
    assert results == results_in(folder)
    assert {k: results[k] for k in ("dataset", "train_size", "test_size", "seeds")} == {
        "dataset": "digits",
        "train_size": 60,
        "test_size": 40,
        "seeds": [3],
    }
    assert [model["bits"] for model in results["models"]] == [32, 1.58, 1] and not results["interrupted"]
    for model in results["models"]:
        assert set(FORM) < set(model) and model["seconds"] > 0
        assert all(len(model["history"][key]) == 2 for key in ("loss", "accuracy", "val_loss", "lr", "seconds"))


def test_the_report_says_what_is_taken_for_what(done):
    folder, results = done
    for entry, text in zip(results["summary"], report.mistakes(results), strict=True):
        model = next(m for m in results["models"] if m["bits"] == entry["bits"])
        wrong = np.array(model["confusion_matrix"]) * (1 - np.eye(len(results["classes"]), dtype=int))
        counts = [int(n) for n in re.findall(r"\((\d+)\)", text)]
        assert counts == sorted(wrong[wrong > 0], reverse=True)[:5]
        a, b = re.search(r"bits?: (\S+) for (\S+) ", text).groups()
        assert wrong[results["classes"].index(a), results["classes"].index(b)] == counts[0]
        assert html.escape(text) in (folder / "report.html").read_text(encoding="utf-8")
    assert results["groups"] == [] and report.mistakes_section([]) == ""


def test_scores_are_those_of_the_confusion_matrix(done):
    """Recomputed from their definitions, not by scikit-learn."""
    for model in done[1]["models"]:
        matrix = np.array(model["confusion_matrix"])
        assert matrix.shape == (10, 10) and matrix.sum() == 40 and (matrix.sum(axis=1) == 4).all()
        hits = matrix.diagonal()
        precision = hits / np.maximum(matrix.sum(axis=0), 1)
        recall = hits / matrix.sum(axis=1)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        assert model["accuracy"] == pytest.approx(hits.sum() / 40)
        for name, value in {"precision": precision, "recall": recall, "f1": f1}.items():
            assert model[name] == pytest.approx(value.mean()), name


def test_bytes_are_counted_in_full(done):
    """A row of a layer packs its bits, rounded up to whole bytes, and has one float32 scale; all else is float32."""
    dim, hidden, patch, tokens, classes = 16, 32, 4, 16, 10
    linears = {"qkv": (3 * dim, dim), "proj": (dim, dim), "fc1": (hidden, dim), "fc2": (dim, hidden)}
    weights, rows = sum(out * k for out, k in linears.values()), sum(out for out, _ in linears.values())
    per_byte = {1.58: 5, 1: 8}  # as in a file
    other = rows + 4 * dim + (patch * dim + dim + tokens * dim) + 2 * dim + (dim * classes + classes)
    sub_norms = dim + hidden
    full, *low = done[1]["models"]
    assert full["parameters"] == weights + other and full["weight_bytes"] == 4 * full["parameters"]
    for model in low:
        packed = sum(out * -(-k // per_byte[model["bits"]]) for out, k in linears.values())
        assert model["parameters"] == weights + other + sub_norms
        assert model["weight_bytes"] == packed + 4 * (rows + other + sub_norms)
        assert model["effective_bits"] == pytest.approx(8 * model["weight_bytes"] / model["parameters"])


def test_pictures_are_files_and_in_the_page(done):
    folder, _ = done
    names = {"loss.png", "confusion.png", "attention.png"}
    pages = {"results.json", "report.html", "try.html"}
    assert {path.name for path in folder.iterdir()} == names | pages | {"models"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in names:
        with Image.open(folder / name) as image:
            assert image.format == "PNG" and min(image.size) > 300
    # a picture each for the three confusion matrices, so that they fit a phone
    assert page.count("src='data:image/png;base64,") == page.count("<img") == 5
    assert {f"alt='Confusion matrices, {name}'" for name in WIDTHS} <= set(re.findall("alt='[^']*'", page))


def test_models_are_kept_in_files(done):
    """Full where bits=32, packed below: they predict what results.json counts."""
    folder, results = done
    data = study.load_data("digits", 60, 40, seed=3)
    y = np.array(data.classes)[data.y_test]
    for name in ("32-bits", "1.58-bits", "1-bit"):
        model = tb.load(folder / "models" / f"{name}-seed-3.safetensors")
        found = next(m for m in results["models"] if m["bits"] == model.bits)
        assert (model.predict(data.X_test) == y).mean() == found["accuracy"]
        assert bool(model.model_.config["layout"]) == (model.bits != 32)


class Page(HTMLParser):
    """Collects what a page asks for, whether its elements are closed, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "content")]
        if tag not in ("meta", "img", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_well_formed_and_asks_for_nothing(done):
    text = (done[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and "script" not in page.tags and "link" not in page.tags
    others = [link for link in page.links if not link.startswith(("data:image/png;base64,", "width=device-width"))]
    assert others == ["try.html"] and (done[0] / "try.html").exists()
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert {"1.58 bits", "1 bit", "Confusion matrices", "digits"} <= {t.strip() for t in page.texts} | {"digits"}
    for model in done[1]["models"]:
        score = f"{100 * model['accuracy']:.2f} ±"
        assert any(text.startswith(score) for text in page.texts) and f"{model['bytes']:,}" in page.texts


def test_table_for_the_terminal(done):
    lines = report.text_table(done[1]).splitlines()
    assert lines[0].split()[:3] == ["model", "accuracy", "gap"] and set(lines[1]) == {"-"}
    assert [line.split("  ")[0].strip() for line in lines[2:5]] == ["32 bits", "1.58 bits", "1 bit"]
    assert len({len(line) for line in lines[:5]}) == 1


def entry_with(accuracy, gap, bits=1, size=100):
    """What `report.findings` reads of an entry."""
    shape = {"bits": bits, "recipe": None, "dim": 8, "depth": 1, "bytes": size, "weight_bytes": size}
    return {**shape, "accuracy": {"mean": accuracy}, "gap": gap}


def test_the_report_begins_with_what_was_found(done):
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    for text in report.findings(done[1]):
        assert f"<li>{text}</li>" in page and page.index(text) < page.index("<table")
    full = entry_with(0.98, None, bits=32, size=700)
    close = entry_with(0.97, {"mean": 0.01, "low": -0.005, "high": 0.025})
    apart = entry_with(0.9, {"mean": 0.08, "low": 0.06, "high": 0.1}, bits=1.58)
    better = entry_with(0.99, {"mean": -0.01, "low": None, "high": None}, bits=2)
    assert report.findings({"summary": [full, close, apart, better]}) == [
        "1 bit: 97.00 % of the test images, 1.00 points below 32 bits (95 % interval of the gap: -0.50 to 2.50,"
        " which may be chance), in a file 7.0 times smaller.",
        "1.58 bits: 90.00 % of the test images, 8.00 points below 32 bits (95 % interval of the gap: 6.00 to 10.00),"
        " in a file 7.0 times smaller.",
        "2 bits: 99.00 % of the test images, 1.00 points above 32 bits, in a file 7.0 times smaller.",
    ]
    sizes = [(100, 50), (100, 99), (100, 110)]
    said = ["2.0 times smaller", "of about the same size", "1.1 times as large"]
    assert [report.times(before, now) for before, now in sizes] == said


def test_the_interval_of_a_gap():
    """The example of Newcombe 1998: 56 of 70 and 48 of 80, by method 10."""
    first, second = statistics.binomial_interval(56 / 70, 70), statistics.binomial_interval(48 / 80, 80)
    found = statistics.difference_interval(first, second)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert found["half_width"] == pytest.approx((found["high"] - found["low"]) / 2)


def test_what_is_undertrained_says_so_in_its_row(done):
    """Two epochs of 60 images are too few, for every width."""
    assert all(row[1].endswith(" †") for row in report.rows(done[1]))
    assert any(note.startswith("† undertrained: 32 bits (the training accuracy is ") for note in report.notes(done[1]))


def test_the_curves_say_what_they_are_of(done):
    (figure,) = (figure for file, *_, figure in study.result_figures(done[1]) if file == "loss.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{name}, training" for name in WIDTHS]
    floor = -0.91 * np.log(0.91) - 9 * 0.01 * np.log(0.01)
    (dotted,) = (line for line in figure.axes[0].lines if line.get_linestyle() == ":")
    assert dotted.get_ydata()[0] == pytest.approx(floor)
    assert [text.get_text() for text in figure.axes[0].texts] == ["floor of label smoothing"]
    (caption,) = (caption for file, _, caption, _ in study.result_figures(done[1]) if file == "loss.png")
    assert f"no loss lies below {floor:.3f} nats" in caption and "asks for 0.91 of the probability" in caption


def test_same_seed_same_results(no_figures, tmp_path):
    def without_times(seed):
        results = study.run_study("digits", [1.58], out=tmp_path / str(seed), seed=seed, **TINY)
        for model in results["models"]:
            del model["seconds"], model["history"]["seconds"], model["bytes"]  # the file holds the seconds, too
        return results["models"]

    first = without_times(0)
    assert without_times(0) == first
    assert without_times(1) != first


NASTY = ["<b>bold", "$\\frac$", "a & 'b' \"c\"", "{{x}} ${title} $title"]


def test_names_from_outside_are_text_only(tmp_path):
    """Class and folder names with HTML, matplotlib's formulas and the template's own placeholders in them."""
    data = tmp_path / "<script>alert(1)<"
    rng = np.random.default_rng(0)
    for i, name in enumerate(NASTY):
        (data / name).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 40, (8 + k, 8, 3), dtype=np.uint8) + 60 * np.uint8(i)
            Image.fromarray(pixels).save(data / name / f"{k}.png")
    out = tmp_path / "out"
    with pytest.raises(DataError, match="size="):
        study.run_study(data, [32], out=out)
    results = study.run_study(data, [1], out=out, image_size=8, dim=8, depth=1, heads=2, epochs=1)
    assert results["classes"] == sorted(NASTY) and results["image_shape"] == [8, 8, 3]
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert not {"b", "script"} & set(page.tags)
    text = "".join(page.texts)
    assert all(name in text for name in NASTY) and "<script>alert(1)<" in text


# --- data -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.data())
def test_subset_keeps_every_class_in_proportion(counts, data):
    rng = np.random.default_rng(len(counts))
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    size = data.draw(st.integers(len(counts), len(y)))
    chosen = study.subset(y, size, rng)
    assert len(chosen) == size and (np.diff(chosen) > 0).all() and chosen.min() >= 0
    kept = np.bincount(y[chosen], minlength=len(counts))
    assert (kept >= 1).all()
    if min(counts) >= len(y) / size:  # no class is so rare that its one image distorts the others' shares
        assert (abs(kept - np.array(counts) * size / len(y)) <= 1.5).all()


def test_subset_refuses_what_cannot_be():
    y = np.repeat([0, 1, 2], 5)
    rng = np.random.default_rng(0)
    assert (study.subset(y, None, rng) == np.arange(15)).all()
    for size in (2, 16):
        with pytest.raises(DataError, match=r"take 3 \(one of each class\) to 15"):
            study.subset(y, size, rng, "images of x")


@pytest.mark.parametrize("counts", [[30, 2], [2, 30], [3, 40, 2, 2], [50, 20]])
def test_a_split_has_every_class_on_both_sides(counts):
    """And is scikit-learn's own where that has, too."""
    from sklearn.model_selection import train_test_split

    from tinybitvit.data.datasets import stratified_split

    y = np.repeat(np.arange(len(counts)), counts)
    X, names = np.arange(len(y)), tuple(map(str, range(len(counts))))
    for seed in range(20):
        for share in (0.25, 0.9, len(counts)):
            found = stratified_split("x", X, y, names, share, seed)
            train, test = train_test_split(X, test_size=share, stratify=y, random_state=seed)
            sides = [np.bincount(part, minlength=len(counts)) for part in (found.y_train, found.y_test)]
            assert min(map(min, sides)) >= 1 and (len(found.y_train), len(found.y_test)) == (len(train), len(test))
            assert sorted([*found.X_train, *found.X_test]) == X.tolist()
            assert (y[found.X_train] == found.y_train).all() and (y[found.X_test] == found.y_test).all()
            if all(len({*y[part]}) == len(counts) for part in (train, test)):
                assert (found.X_train == train).all() and (found.X_test == test).all()


def test_numbers_that_are_not_finite_are_none():
    from tinybitvit.study.run import shortened

    found = [shortened(value) for value in (0.12345678, float("nan"), np.float32("inf"), None, 3)]
    assert found == [0.123457, None, None, None, 3]


def test_seed_decides_split_and_images():
    first, again, other = (study.load_data("digits", 50, 30, seed=s) for s in (0, 0, 1))
    assert first.X_train.shape == (50, 8, 8, 1) and first.X_test.shape == (30, 8, 8, 1)
    assert all((a == b).all() for a, b in zip(first[:4], again[:4], strict=True))
    assert not (first.X_train == other.X_train).all()
    with pytest.raises(ValueError, match="seed must lie in"):
        study.load_data("digits", seed=-1)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("digits", (8, 8, 1), 10),
        ("fashion-mnist", (28, 28, 1), 10),
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
    ],
)
def test_presets_fit_their_data(name, shape, classes):
    """And one image of each class, which makes scikit-learn doubt that these are classes, gives no warning."""
    X = np.random.default_rng(0).integers(0, 256, (classes, *shape), dtype=np.uint8)
    y = np.arange(classes)
    data = Dataset(X, y, X, y, tuple(f"class {i}" for i in y), name)
    model, _ = study.train_model(data, **{**study.PRESETS[name], "epochs": 0})
    assert study.measure(model, data, model.predict(X))["parameters"] > 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cifar10", marks=pytest.mark.data("cifar-10-batches-bin")),
        pytest.param("fashion-mnist", marks=pytest.mark.data("fashion-mnist")),
    ],
)
def test_runs_on_the_real_images(name, no_figures, tmp_path):
    sizes = {"train_size": 64, "test_size": 32, "epochs": 1, "dim": 24, "depth": 1, "heads": 2}
    results = study.run_study(name, [1.58], out=tmp_path, **sizes)
    assert results["dataset"] == name and np.sum(results["models"][0]["confusion_matrix"]) == 32


# --- cut short --------------------------------------------------------------------------------------------------------


def interrupt(monkeypatch, at):
    """Ctrl-C in the epoch with this number, counted over all models."""
    epoch, calls = loop.Run.epoch, iter(range(1, 100))

    def stopped(run):
        if next(calls) == at:
            raise KeyboardInterrupt
        return epoch(run)

    monkeypatch.setattr(loop.Run, "epoch", stopped)


@pytest.mark.parametrize(("epoch", "epochs_of_models"), [(1, []), (2, [1]), (3, [2]), (4, [2, 1])])
def test_ctrl_c_reports_what_is_done(epoch, epochs_of_models, no_figures, monkeypatch, tmp_path, capsys):
    interrupt(monkeypatch, epoch)
    results = study.run_study("digits", [32, 1], out=tmp_path / "out", **TINY)
    assert [len(model["history"]["loss"]) for model in results["models"]] == epochs_of_models
    assert [model["interrupted"] for model in results["models"]] == [n < 2 for n in epochs_of_models]
    assert results["interrupted"]
    if epochs_of_models:
        assert results_in(tmp_path / "out") == results
    files = {path.name for path in (tmp_path / "out").iterdir()}
    reported = {"results.json", "report.html", "try.html", "models"} if epochs_of_models else set()
    assert files == reported | {"checkpoints"}
    current = "32-bits-seed-0" if epoch < 3 else "1-bit-seed-0"
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [current]
    assert ("32 bits*" in capsys.readouterr().out) == (epoch == 2)


def full_disk(monkeypatch, after):
    """From the write with this number on, the disk is full."""
    fsync, calls = os.fsync, iter(range(1, 100))

    def full(descriptor):
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


def test_full_disk_costs_no_finished_result(monkeypatch, tmp_path, capsys):
    full_disk(monkeypatch, after=4)  # the trial, the first model and its results, then full
    with pytest.raises(OSError, match=r"cannot write .*results.json: No space left on device"):
        study.run_study("digits", [32, 1.58, 1], out=tmp_path, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "models"}
    assert [model["bits"] for model in results_in(tmp_path)["models"]] == [32]
    out = capsys.readouterr().out
    assert "model not saved, the study goes on: cannot write" in out
    table = out.partition("model  ")[2]
    assert "\n32 bits " in table and "\n1.58 bits " in table


def test_a_model_that_fails_costs_no_finished_result(no_figures, monkeypatch, tmp_path):
    train_model = study.train_model

    def diverging(data, bits, **options):
        if bits == 1:
            raise FloatingPointError("the loss became nan")
        return train_model(data, bits=bits, **options)

    monkeypatch.setattr(TRAIN_MODEL, diverging)
    with pytest.raises(FloatingPointError):
        study.run_study("digits", [32, 1], out=tmp_path, **TINY)
    assert [model["bits"] for model in results_in(tmp_path)["models"]] == [32]
    assert "32 bits" in (tmp_path / "report.html").read_text(encoding="utf-8")


def no_training(*arguments, **options):
    raise AssertionError("trained before it was known that nothing can be written")


def test_folder_is_tried_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(TRAIN_MODEL, no_training)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot write into .*; choose another folder"):
            study.run_study("digits", out=out)
    full_disk(monkeypatch, after=1)
    with pytest.raises(OSError, match="No space left on device; choose another folder"):
        study.run_study("digits", out=tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_mistakes_leave_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(TRAIN_MODEL, no_training)
    for arguments in (("digits", [5]), ("no-such-data",), (tmp_path,)):
        with pytest.raises(ValueError):
            study.run_study(*arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
