"""What a folder holds and what is asked for: the same study goes on or is made again, another one is refused."""

import json

import numpy as np
import pytest
from PIL import Image

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.cli import main as cli
from tinybitvit.study import report

SMALL = {"dim": 8, "depth": 1, "heads": 2, "epochs": 1, "train_size": 60, "test_size": 40}
TRAIN_MODEL = "tinybitvit.study.run.train_model"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("tinybitvit.study.pictures.figures", lambda *arguments: [])


def folder_of_pets(path, seed, counts=(12, 12)):
    """A data set with the name `pets`, of random pictures."""
    rng = np.random.default_rng(seed)
    for name, count in zip(("cat", "dog"), counts, strict=True):
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path / name / f"{i}.png")
    return path


def saved_model(path, seed=0, random_state=0, **options):
    """A model of 32 bits in a file, its weights those of this seed."""
    data = study.load_data("digits", 60, 40, seed=seed)
    options = {"dim": 8, "depth": 1, "heads": 2, "epochs": 1, "verbose": 0, **options}
    path.parent.mkdir(parents=True, exist_ok=True)
    study.train_model(data, bits=32, random_state=random_state, **options)[0].save(path)
    return path


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 5])
def test_other_images_are_not_added_to_a_study(seed, tmp_path):
    """Whatever seed is asked for: those of the study's own seed are compared."""
    first, second = (folder_of_pets(tmp_path / name / "pets", i) for i, name in enumerate("ab"))
    options = {"bits": [32], "dim": 8, "depth": 1, "heads": 2, "epochs": 1, "out": tmp_path / "out", "resume": True}
    study.run_study(first, **{**options, "resume": False})
    with pytest.raises(ValueError, match="holds another study: it had other images or classes; give what it was, or"):
        study.run_study(second, seed=seed, seeds=2, **options)
    (tmp_path / "moved").mkdir()
    (tmp_path / "a" / "pets").rename(tmp_path / "moved" / "pets")
    assert len(study.run_study(tmp_path / "moved" / "pets", seed=seed, seeds=2, **options)["models"]) == 2 + (seed > 0)


@pytest.mark.parametrize("argument", ["teacher", "init_from"])
def test_another_model_of_the_same_name_is_refused(argument, tmp_path):
    one, two = (saved_model(tmp_path / f"T{i}" / "model.safetensors", lr=1e-3 * (i + 1)) for i in range(2))
    options = {"epochs": 1, "train_size": 60, "test_size": 40, "out": tmp_path / "out"}
    before = study.run_study("digits", [1], **{argument: one}, **options)
    says = {"teacher": "its teacher was another model", "init_from": "it started from another model"}[argument]
    with pytest.raises(ValueError, match=f"holds another study: {says}; give what it was"):
        study.run_study("digits", [1, 1.58], **{argument: two}, resume=True, **options)
    more = study.run_study("digits", [1, 1.58], **{argument: one}, resume=True, **options)
    assert len(more["models"]) == len(before["models"]) + 1


def test_a_sweep_is_no_part_of_a_study(tmp_path):
    study.run_study("digits", [32], out=tmp_path, **SMALL)
    sizes = {name: SMALL[name] for name in ("epochs", "train_size", "test_size")}
    for resume, says in ((True, "holds another study"), (False, "holds the models of another study")):
        with pytest.raises(ValueError, match=f"{says}: it was of the kind 'study' and is now 'sweep'; "):
            study.run_sweep("digits", [32], widths=[8], depths=[1], resume=resume, out=tmp_path, **sizes)


def test_a_study_of_an_earlier_version_goes_on(tmp_path):
    """Its results.json does not say what it was made of: that is not compared."""
    file = saved_model(tmp_path / "model.safetensors")
    options = {"epochs": 1, "train_size": 60, "test_size": 40, "out": tmp_path / "out", "teacher": file}
    study.run_study("digits", [1], **options)
    old = json.loads((tmp_path / "out" / "results.json").read_text())
    del old["made_of"]
    (tmp_path / "out" / "results.json").write_bytes(report.to_json(old))
    more = study.run_study("digits", [1, 1.58], resume=True, **options)
    assert [m["bits"] for m in more["models"]] == [32, 1, 1.58]
    assert set(more["made_of"]) == {"kind", "seed", "images", "teacher"}


# --- again ------------------------------------------------------------------------------------------------------------


def test_a_finished_study_is_replaced_by_itself_alone(monkeypatch, tmp_path, capsys):
    first = study.run_study("digits", [32, 1], out=tmp_path, **SMALL)
    capsys.readouterr()
    again = study.run_study("digits", [32, 1], out=tmp_path, **SMALL)
    assert f"{tmp_path.name} holds this study already: its results and models are made again" in capsys.readouterr().out
    assert [m["confusion_matrix"] for m in again["models"]] == [m["confusion_matrix"] for m in first["models"]]

    def no_training(*arguments, **options):
        raise AssertionError("trained over the models of another study")

    monkeypatch.setattr(TRAIN_MODEL, no_training)
    before = (tmp_path / "results.json").read_bytes()
    for says, more in {
        "epochs was 1 and is now 2": {"epochs": 2},
        "other seeds, bits or sizes; resume it": {"seeds": 2},
    }.items():
        with pytest.raises(ValueError, match=f"holds the models of another study: .*{says}.*choose another folder"):
            study.run_study("digits", [32, 1], out=tmp_path, **{**SMALL, **more})
    assert (tmp_path / "results.json").read_bytes() == before


def test_every_shape_of_a_sweep_is_tried_before_training(monkeypatch, tmp_path):
    def no_training(*arguments, **options):
        raise AssertionError("trained before it was known that a later width cannot be")

    monkeypatch.setattr(TRAIN_MODEL, no_training)
    with pytest.raises(ValueError, match="heads must divide dim: 32"):
        study.run_sweep("digits", [32], widths=[24, 32], depths=[1], heads=3, epochs=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_augmentation_is_a_choice(tmp_path):
    """None is what was chosen, and remembered, where the default is another."""
    options = {"epochs": 1, "train_size": 60, "test_size": 40, "image_size": 16, "dim": 8, "depth": 1, "heads": 2}
    results = study.run_study("digits", [32], augment=None, out=tmp_path / "a", **options)
    assert results["settings"]["augment"] is None and results["options"]["augment"] == "None"
    assert study.chosen("digits", 1347, {"augment": None, "epochs": None, "lr": None}) == {"augment": None}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert cli.main(["study", *words, "--bits=32", "--augment=none", f"--out={tmp_path / 'b'}"]) == 0
    assert study.read_results(tmp_path / "b")["settings"]["augment"] is None


# --- images that a model knows ----------------------------------------------------------------------------------------


def test_a_model_is_not_tested_on_its_own_training_images(tmp_path, capsys):
    """Another seed would split the digits otherwise."""
    file = str(saved_model(tmp_path / "tf.safetensors"))
    out = ["--out", str(tmp_path / "out" / "model.safetensors")]
    few = ["--epochs=1", "--train-size=60", "--test-size=40"]
    for words in (
        ["study", "digits", "--bits=1", f"--teacher={file}", "--seed=1", f"--out={tmp_path / 'study'}", *few],
        ["study", "digits", "--bits=1", f"--teacher={file}", "--seeds=2", f"--out={tmp_path / 'study'}", *few],
        ["study", "digits", "--bits=1", f"--init-from={file}", "--seed=1", f"--out={tmp_path / 'study'}", *few],
        ["train", "digits", f"--init-from={file}", "--seed=1", *few, *out],
        ["quantize", file, "digits", "--seed=1", *out],
        ["probe", file, "digits", "--seed=1", *out],
    ):
        assert cli.main(words) == 2, words
        err = capsys.readouterr().err
        assert "tf.safetensors was trained with seed 0, and another one would put images of its training among" in err
        assert "the test images of digits: give that seed, and one run of it" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "study").exists()
    assert cli.main(["quantize", file, "digits", "--images=20", *out]) == 0
    assert cli.main(["train", "digits", f"--init-from={out[1]}", "--bits=1.58", *few, *out[:1], f"{out[1]}.2"]) == 0


def test_a_probed_model_keeps_the_seed_of_its_images(tmp_path):
    pets = folder_of_pets(tmp_path / "pets", 0)
    words = ["probe", str(saved_model(tmp_path / "tf.safetensors")), str(pets), "--seed=3"]
    assert cli.main([*words, "--out", str(tmp_path / "probed.safetensors")]) == 0  # other classes, other images
    assert tb.load(tmp_path / "probed.safetensors").random_state == 3


def test_what_a_model_does_not_tell_is_said(tmp_path, capsys):
    pets = folder_of_pets(tmp_path / "pets", 0)
    data = study.load_data(pets)
    model = tb.ViT(bits=32, dim=8, depth=1, heads=2, epochs=1, verbose=0).fit(data.X_train, data.named().y_train)
    study.check_split(model, "m.safetensors", pets, data, [0, 1])
    assert "m.safetensors does not say with which seed it was trained" in capsys.readouterr().out
    model.set_params(random_state=4)
    with pytest.raises(ValueError, match="trained with seed 4"):
        study.check_split(model, "m.safetensors", pets, data, [0])
    own = tmp_path / "split"
    for part in ("train", "test"):
        folder_of_pets(own / part, 1)
    study.check_split(model, "m.safetensors", own, study.load_data(own), [0])
    study.check_split(model, "m.safetensors", "digits", study.load_data("digits"), [0])  # it knows other classes
    study.check_split(model, "m.safetensors", "cifar10", data, [0])  # whose test images are always the same


# --- classes without images -------------------------------------------------------------------------------------------


def test_classes_that_no_test_image_has_do_not_count(tmp_path):
    """An accuracy of 100 % is a precision of 100 %, and the notes name the class."""
    data = study.load_data("digits", 60, 40)
    model, _ = study.train_model(data, bits=32, dim=8, depth=1, heads=2, epochs=0, random_state=0)
    few = data._replace(X_test=data.X_test[data.y_test < 8], y_test=data.y_test[data.y_test < 8])
    right = np.array(data.classes)[few.y_test]
    found = study.measure(model, few, right)
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1")] == [1, 1, 1, 1]
    one_wrong = right.copy()
    one_wrong[0] = "9"  # a class that is answered counts, as 0
    found = study.measure(model, few, one_wrong)
    assert found["recall"] == pytest.approx(np.mean([1] * 7 + [1 - 1 / (right == right[0]).sum(), 0]))
    results = {"classes": list(data.classes), "models": [found]}
    assert report.absent_classes(results) == ["8", "9"]
    own = tmp_path / "pets"
    folder_of_pets(own / "train", 0)
    folder_of_pets(own / "test", 1, counts=(6, 0))
    (own / "test" / "dog").rmdir()
    results = study.run_study(own, [32], out=tmp_path / "out", dim=8, depth=1, heads=2, epochs=1)
    assert "There is no test image of dog: the means count such a class" in report.text_table(results)
