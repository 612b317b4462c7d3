"""The ablation: what each recipe starts and learns from, that it resumes, and what is written about it."""

import json
import runpy
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from test_study import interrupt
from test_study_sweep import results_in, without_times

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.study import report
from tinybitvit.train.convert.recipes import ABLATION

ROOT = Path(__file__).resolve().parents[2]
TINY = {"dim": 8, "depth": 1, "heads": 2, "epochs": 2, "train_size": 60, "test_size": 40}
FROM_LABELS = ["paper", "+ rows"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, results) of an ablation of one seed."""
    folder = tmp_path_factory.mktemp("ablation")
    return folder, study.run_ablation("digits", out=folder, seed=3, **TINY)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("tinybitvit.study.pictures.figures", lambda *arguments: [])


@pytest.fixture
def trainings(monkeypatch):
    """A dict for every model that is trained: its options, and the model as `trained`."""
    seen = []
    train_model = study.train_model

    def noting(data, **options):
        model, seconds = train_model(data, **options)
        names = [name for name, recipe in ABLATION.items() if recipe is options.get("recipe")]
        seen.append({**options, "recipe": names[0] if names else None, "trained": model})
        return model, seconds

    monkeypatch.setattr("tinybitvit.study.run.train_model", noting)
    return seen


def same_weights(a, b):
    a, b = a.model_.state_dict(), b.model_.state_dict()
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


# --- what is trained --------------------------------------------------------------------------------------------------


def test_every_recipe_starts_from_the_twin(no_figures, trainings, tmp_path):
    study.run_ablation("digits", [1, 32, 1.58], out=tmp_path, seeds=2, **TINY)
    plan = [(32, None), *((bits, recipe) for bits in (1, 1.58) for recipe in ABLATION)]
    assert [(t["random_state"], t["bits"], t.get("recipe")) for t in trainings] == [
        (seed, *model) for seed in (0, 1) for model in plan
    ]
    for i, training in enumerate(trainings):
        given = {name: training[name] for name in ("init_from", "distill_from") if name in training}
        if training["bits"] == 32:
            assert given == {}
            continue
        (argument,) = given
        assert argument == ("init_from" if training["recipe"] in FROM_LABELS else "distill_from")
        assert same_weights(given[argument], trainings[i - i % len(plan)]["trained"])
    common = [{k: v for k, v in t.items() if k in TINY} for t in trainings]
    assert all(options == common[0] for options in common) and common[0]["epochs"] == 2


def test_a_model_to_start_from_is_for_the_twin(no_figures, trainings, tmp_path):
    data = study.load_data("digits", 60, 40)
    start, _ = study.train_model(data, bits=32, dim=8, depth=1, heads=2, epochs=0, random_state=0)
    start.model_.head.weight.data += 1  # or it would be what the twin is without it
    start.save(tmp_path / "start.safetensors")
    options = {"epochs": 1, "train_size": 60, "test_size": 40, "init_from": tmp_path / "start.safetensors"}
    study.run_ablation("digits", out=tmp_path / "out", **options)
    twin, *low = trainings
    assert same_weights(twin["init_from"], start) and not same_weights(twin["trained"], start)
    for training in low:
        argument = "init_from" if training["recipe"] in FROM_LABELS else "distill_from"
        assert same_weights(training[argument], twin["trained"])


def test_a_study_by_a_recipe_with_a_teacher_has_a_twin(no_figures, trainings, tmp_path):
    results = study.run_study("digits", [1], out=tmp_path, recipe="best", **TINY)
    assert [(t["bits"], "distill_from" in t) for t in trainings] == [(32, False), (1, True)]
    assert [model["recipe"] for model in results["models"]] == [None, None]
    assert results["settings"]["recipe"] == "best"


def test_threads_wait_for_the_twins(no_figures, tmp_path):
    alone = study.run_ablation("digits", out=tmp_path / "a", seeds=2, **TINY)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        together = study.run_ablation("digits", out=tmp_path / "b", seeds=2, **TINY)
    assert without_times(together) == without_times(alone)
    for entry in alone["summary"]:
        members = [m for m in alone["models"] if (m["bits"], m["recipe"]) == (entry["bits"], entry["recipe"])]
        assert entry["seeds"] == [m["seed"] for m in members] == [0, 1]
        assert entry["accuracy"]["mean"] == pytest.approx(np.mean([m["accuracy"] for m in members]))


@pytest.mark.parametrize(("epoch", "name"), [(2, "32-bits"), (4, "1-bit-paper"), (12, "1-bit-blocks")])
def test_it_goes_on_where_it_was_cut_short(epoch, name, done, no_figures, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt(patch, epoch)
        cut = study.run_ablation("digits", out=tmp_path, seed=3, **TINY)
    assert cut["interrupted"] and len(cut["models"]) == (epoch + 1) // 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{name}-seed-3"]
    whole = study.run_ablation("digits", out=tmp_path, seed=3, resume=True, **TINY)
    assert without_times(whole) == without_times(done[1]) and not (tmp_path / "checkpoints").exists()


def test_impossible_ablations(tmp_path):
    for options, said in (
        ({"recipe": "best"}, "leave recipe and distill_from out"),
        ({"distill_from": tb.ViT()}, "leave recipe and distill_from out"),
        ({"bits": [32]}, "give a bit width below 32"),
        ({"bits": []}, "give a bit width below 32"),
    ):
        with pytest.raises(ValueError, match=said):
            study.run_ablation("digits", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- what is written --------------------------------------------------------------------------------------------------


def test_results_name_the_recipes(done):
    folder, results = done
    assert results == results_in(folder) == study.read_results(folder)
    for entries in (results["models"], results["summary"]):
        assert [(e["bits"], e["recipe"]) for e in entries] == [(32, None), *((1, recipe) for recipe in ABLATION)]
    twin, *low = results["models"]
    for model, entry in zip(low, results["summary"][1:], strict=True):
        assert entry["gap"]["mean"] == twin["accuracy"] - model["accuracy"]
    names = [
        "32-bits",
        *(f"1-bit-{word}" for word in ("paper", "rows", "outputs", "tokens", "blocks", "median", "centred")),
    ]
    assert [model["name"] for model in results["models"]] == [f"{name}-seed-3" for name in names]
    assert {path.stem for path in (folder / "models").iterdir()} == {f"{name}-seed-3" for name in names}
    assert "recipe" not in results["settings"] and results["settings"]["epochs"] == 2


def test_the_report_has_a_row_for_each_recipe(done):
    folder, results = done
    names = ["32 bits", *(f"1 bit, {recipe}" for recipe in ABLATION)]
    assert [row[0] for row in report.rows(results)] == names
    assert {path.name for path in folder.iterdir()} == {
        *("results.json", "report.html", "ablation.png", "loss.png", "confusion.png", "models")
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in names) and "all start from the 32-bit model" in page
    with Image.open(folder / "ablation.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_every_recipe_has_a_curve_and_a_matrix_of_its_own(done, monkeypatch):
    drawn = {}
    for plot in ("plot_history", "plot_confusion_matrices"):
        monkeypatch.setattr(tb.viz, plot, lambda drawings, *more, plot=plot, **options: drawn.update({plot: drawings}))
    list(study.result_figures(done[1]))
    models = {report.entry_name(e, done[1]): m for e, m in zip(done[1]["summary"], done[1]["models"], strict=True)}
    assert list(drawn["plot_history"]) == list(drawn["plot_confusion_matrices"]) == list(models)
    for name, model in models.items():
        assert drawn["plot_history"][name]["loss"] == model["history"]["loss"]
        assert (drawn["plot_confusion_matrices"][name] == model["confusion_matrix"]).all()


def test_figures_come_from_results_alone(done, tmp_path, capsys):
    (tmp_path / "results.json").write_bytes((done[0] / "results.json").read_bytes())
    runpy.run_path(str(ROOT / "docs" / "results" / "make_figures.py"))["main"]([str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "table.png", "ablation.png", "loss.png", "confusion.png")
    }
    assert "| 1 bit, + tokens | " in capsys.readouterr().out


def test_results_from_before_there_were_ablations(no_figures, tmp_path):
    """They are read, drawn and gone on with."""
    new = study.run_study("digits", [32, 1], out=tmp_path, **TINY)
    old = json.loads((tmp_path / "results.json").read_text())
    for entry in (*old["models"], *old["summary"]):
        del entry["recipe"]
    (tmp_path / "results.json").write_bytes(report.to_json(old))
    read = study.read_results(tmp_path)
    assert read == new and [row[0] for row in report.rows(read)] == ["32 bits", "1 bit"]
    assert "ablation.png" not in [file for file, *_ in study.result_figures(read)]
    more = study.run_study("digits", [32, 1], out=tmp_path, seeds=2, resume=True, **TINY)
    assert [(e["bits"], e["seeds"]) for e in more["summary"]] == [(32, [0, 1]), (1, [0, 1])]


def test_the_plot_has_a_row_for_each_label():
    def point(label, group, accuracy, half=None):
        low, high = (None, None) if half is None else (accuracy - half, accuracy + half)
        return {"label": label, "group": group, "accuracy": accuracy, "low": low, "high": high}

    points = [point(None, "32 bits", 0.9, 0.05), point("x", "1 bit", 0.5, 0.1), point("+ y", "1 bit", 0.75)]
    (ax,) = tb.viz.plot_ablation([*points, point("+ y", "2 bits", 0.8)]).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["x", "+ y"] and ax.yaxis_inverted()
    lines = {line.get_label(): np.round(line.get_xydata(), 6).tolist() for line in ax.lines}
    assert lines["1 bit"] == [[50, -0.25], [75, 0.75]] and lines["2 bits"] == [[80, 1.25]]
    assert [x for x, _ in lines["32 bits"]] == [90, 90]
    assert [[40, -0.25], [60, -0.25]] in lines.values()
    (band,) = ax.patches
    assert (band.get_x(), band.get_width()) == (pytest.approx(85), pytest.approx(10))
    assert [text.get_text() for text in ax.texts] == ["50.0", "75.0", "80.0"]


def test_many_matrices_fill_several_rows():
    def places(count):
        figure = tb.viz.plot_confusion_matrices({str(i): np.eye(3) for i in range(count)}, ["a", "b", "c"])
        shown = [ax for ax in figure.axes if ax.axison and ax.get_title()]
        return [(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in shown]

    assert places(4) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert places(5) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
