"""What a training tells on stdout."""

import re

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.study.run import Run
from tinybitvit.train import meter, smoothing_floor, undertrained

TINY = {"dim": 8, "depth": 1, "heads": 2, "batch_size": 20, "augment": None, "device": "cpu", "random_state": 0}
FLOOR = r"\(label smoothing's floor: 0\.1985\)"
UPDATE = (
    rf"epoch 1/2, 33 %  loss \d\.\d{{4}} {FLOOR}  training accuracy [01]\.\d{{3}}  \d+ images/s on cpu  \d:\d\d left"
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.random((60, 4, 4, 1), dtype="float32"), np.arange(60) % 2


def lines(capsys):
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_short_epoch_has_one_line(data, capsys):
    tb.ViT(**TINY, epochs=2, verbose=1).fit(*data)
    assert [line[:10] for line in lines(capsys)] == ["epoch 1/2 ", "epoch 2/2 "]


def test_a_long_epoch_has_a_line_a_minute(data, capsys, monkeypatch):
    monkeypatch.setattr(meter, "MINUTE", 0.0)
    tb.ViT(**TINY, epochs=2, verbose=1).fit(*data)
    found = lines(capsys)
    assert [re.match(r"epoch ./2(, .. %)?", line)[0] for line in found] == [
        f"epoch {epoch}/2{part}" for epoch in (1, 2) for part in (", 33 %", ", 66 %", "")
    ]
    assert re.fullmatch(UPDATE, found[0])


def test_a_text_begins_each_line_and_stays_silent_for_a_minute(data, capsys, monkeypatch):
    model = tb.ViT(**TINY, epochs=2, verbose="1 bit, seed 3").fit(*data)
    assert lines(capsys) == []
    monkeypatch.setattr(meter, "MINUTE", 0.0)
    model.fit(*data)
    found = lines(capsys)
    assert len(found) == 6 and all(line.startswith("1 bit, seed 3: epoch ") for line in found)
    model.set_params(verbose=0).fit(*data)
    assert lines(capsys) == []


def test_models_side_by_side_tell_which_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(meter, "MINUTE", 0.0)
    data = {"dataset": "digits", "train_size": 40, "test_size": 20}
    for verbose, count in ((1, 2), (0, 0)):
        setup = study.Study(tmp_path / str(verbose), data, {**TINY, "epochs": 1, "verbose": verbose})
        study.train_run(setup, Run(1, 3, {"dim": 8, "depth": 1, "heads": 2}), shared=True)
        found = lines(capsys)
        assert len(found) == count and all(s.startswith("1 bit, 8 wide, 1 deep, seed 3: epoch 1/1") for s in found)


class Stand:
    """A `Run` after 30 of an epoch's 120 updates, 16 images each, which took a minute; two epochs are done."""

    def __init__(self, loss=240.0, hits=360.0, weights=480.0):
        self.done, self.loader, self.history = 30, range(120), {"loss": [2.0, 1.0]}
        self.sums = {"loss": loss, "hits": hits, "weights": weights, "images": 480}

    def elapsed(self):
        return 60.0


def test_time_left_is_that_of_this_epoch_and_those_to_come():
    line = meter.update_line(Stand(), 12, "cpu")
    assert line == "epoch  3/12, 25 %  loss 0.5000  training accuracy 0.750  8 images/s on cpu  39:00 left"
    rows = {"loss": [2.0, 0.5], "accuracy": [0.5, 0.75], "val_loss": [None, 1.0], "val_accuracy": [None, 0.5]}
    line = meter.epoch_line({**rows, "seconds": [200.0, 100.0]}, 26, 800, "cuda")
    expected = "epoch  2/26  loss 0.5000  training accuracy 0.750  val_loss 1.0000  val_accuracy 0.500"
    assert line == f"{expected}  8 images/s on cuda  1:00:00 left"


def test_an_epoch_without_a_finite_loss_is_told_too():
    assert "loss –  training accuracy –" in meter.update_line(Stand(0.0, 0.0, 0.0), 12, "cpu")


# --- what the numbers mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_the_floor_is_the_least_smoothed_loss(smoothing, classes):
    """At the logits log t of the smoothed labels t; any others cost more."""
    t = (1 - smoothing) * np.eye(classes) + smoothing / classes
    y, floor = np.arange(classes), smoothing_floor(smoothing, classes)
    logits = np.log(np.maximum(t, 1e-300))
    least = tb.functional.cross_entropy(logits, y, label_smoothing=smoothing).data
    assert floor == pytest.approx(float(least), abs=1e-12)
    other = logits + np.random.default_rng(0).normal(size=logits.shape) / 10
    assert float(tb.functional.cross_entropy(other, y, label_smoothing=smoothing).data) > floor or smoothing == 0


def test_the_floor_is_told_where_it_is_one(data, capsys):
    teacher = tb.ViT(**TINY, bits=32, epochs=1, verbose=1).fit(*data)
    tb.ViT(**TINY, epochs=1, label_smoothing=0.0, verbose=1).fit(*data)
    tb.ViT(**TINY, epochs=1, distill_from=teacher, verbose=1).fit(*data)
    assert ["floor: 0.1985" in line for line in lines(capsys)] == [True, False, False]


def test_validation_is_told_beside_the_training_accuracy(data, capsys):
    tb.ViT(**TINY, epochs=1, verbose=1).fit(*data, eval_set=data)
    (line,) = lines(capsys)
    assert re.search(r"  training accuracy \d\.\d{3}  val_loss \d\.\d{4}  val_accuracy \d\.\d{3}  ", line)


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ([], "no epoch was finished"),
        ([0.4], "the training accuracy is 40.0 % after 1 epoch"),
        ([None, None], "no epoch made an update"),
        ([None, 0.4, None, 0.4], "40.0 % after 2 epochs and rises no more"),
        ([0.99], None),
        ([0.5, 0.9], "90.0 % after 2 epochs and still rises, by 40.0 points"),
        ([0.5, 0.9, 0.905], None),
        ([0.7] * 20, "70.0 % after 20 epochs and rises no more"),
        ([*np.linspace(0.1, 0.97, 20), *[0.97] * 10], None),
        (np.linspace(0.1, 0.97, 30).tolist(), "and still rises, by 18.0 points"),
        ([0.1, 0.97, *[0.97, 0.96] * 10], None),
    ],
)
def test_undertrained(accuracy, words):
    found = undertrained({"accuracy": accuracy})
    assert (found is None) if words is None else words in found
    assert accuracy != [0.4] or found == words  # one epoch tells no trend


def test_what_was_not_finite_is_a_dash():
    rows = {"loss": [None], "accuracy": [None], "val_loss": [None], "val_accuracy": [0.5], "seconds": [1.0]}
    expected = "epoch 1/2  loss –  training accuracy –  val_loss –  val_accuracy 0.500  9 images/s on cpu  0:01 left"
    assert meter.epoch_line(rows, 2, 9, "cpu") == expected
