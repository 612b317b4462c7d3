"""tb.ViT from fit to fit: units at every entrance, what a refusal leaves, what files and copies hold."""

import copy
import pickle
import threading

import joblib
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from PIL import Image
from sklearn.base import clone

import tinybitvit as tb
from tinybitvit.cli import main as cli
from tinybitvit.data import Normalize

DIGITS = tb.data.load_digits()
X, Y = DIGITS.X_train[:80], DIGITS.y_train[:80]
NAMES = np.array(list("abcdefghij"))[Y]
TINY = {"dim": 8, "depth": 1, "heads": 2, "epochs": 2, "verbose": 0, "random_state": 0, "workers": 1, "device": "cpu"}


def fit(X=X, y=Y, **options):
    return tb.ViT(**TINY | options).fit(X, y)


@pytest.fixture(scope="module")
def model():
    return fit(epochs=6)


# --- units ------------------------------------------------------------------------------------------------------------


def test_every_entrance_takes_other_units(model):
    pixels, right = X.astype("float32"), model.decision_function(X)
    np.testing.assert_array_equal(model.decision_function(pixels), right)
    np.testing.assert_array_equal(model.decision_function(pixels.reshape(len(X), -1).tolist()), right)
    np.testing.assert_array_equal(model.predict_proba(pixels), model.predict_proba(X))
    assert model.score(pixels, Y) == model.score(X, Y)
    np.testing.assert_array_equal(model.prepare(pixels), model.prepare(X))
    np.testing.assert_array_equal(tb.viz.attention(model, pixels[:3]).logits, tb.viz.attention(model, X[:3]).logits)
    one, two = (copy.deepcopy(model).partial_fit(images, Y) for images in (X, pixels))
    np.testing.assert_array_equal(one.decision_function(X), two.decision_function(X))
    one, two = (
        fit(eval_set=None) if images is None else tb.ViT(**TINY).fit(X, Y, (images, Y)) for images in (X, pixels)
    )
    assert one.history_["val_loss"] == two.history_["val_loss"]
    rounded = [tb.quantize(fit(bits=32), images, images=20, verbose=0) for images in (X, pixels)]
    np.testing.assert_array_equal(*(r.decision_function(X) for r in rounded))


def test_every_entrance_refuses_strange_units(model):
    strange = X / 255 * 4 - 2
    for ask in (model.predict, model.prepare, model.check_images, lambda X: model.score(X, Y)):
        with pytest.raises(ValueError, match="fitted on uint8 pixels from 0 to 255"):
            ask(strange)
    before = model.decision_function(X)
    for change in (
        lambda: model.partial_fit(strange, Y),
        lambda: tb.ViT(**TINY).fit(X, Y, eval_set=(strange, Y)),
        lambda: tb.ViT(**TINY, init_from=model).fit(strange, Y),
        lambda: tb.ViT(**TINY, distill_from=model).fit(strange, Y),
        lambda: tb.quantize(fit(bits=32), strange, verbose=0),
        lambda: tb.web.to_html(model, X=strange),
    ):
        with pytest.raises(ValueError, match="fitted on uint8 pixels from 0 to 255"):
            change()
    np.testing.assert_array_equal(model.decision_function(X), before)


def test_what_starts_from_a_model_has_its_units(model):
    started = fit(X.astype("float32"), init_from=model, epochs=0)
    np.testing.assert_array_equal(started.decision_function(X), model.decision_function(X))
    assert started.normalize_.units.dtype == "uint8"


@pytest.mark.parametrize("scale", [1, 1 / 4, 1 / 255, 1 / 1020])
def test_a_teacher_sees_its_own_units(scale):
    teacher, images, seen = fit(bits=32, augment=None), X * scale if scale != 1 else X, []
    if scale == 1 / 4:
        images = X // 4
    with teacher.model_.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy())):
        fit(images, distill_from=teacher, batch_size=80, epochs=1, augment=None)
    got, right = np.concatenate(seen), teacher.prepare(images)
    np.testing.assert_allclose(np.sort(got, axis=0), np.sort(right, axis=0), atol=1e-4)


def test_files_keep_the_units(model, tmp_path):
    model.save(tmp_path / "m")
    loaded = tb.load(tmp_path / "m")
    assert loaded.normalize_.units == model.normalize_.units
    np.testing.assert_array_equal(loaded.predict(X.astype(int)), model.predict(X))


def test_picture_page_command_and_onnx_prepare_alike(model, tmp_path, capsys):
    """Also drawings of the other polarity, and of models in other units."""
    Image.fromarray(255 - X[3, ..., 0]).save(tmp_path / "paper.png")
    Image.fromarray(X[3, ..., 0]).save(tmp_path / "screen.png")
    model.save(tmp_path / "m")
    for of in (model, fit(X / 255 * 16, epochs=6)):
        stated = of.model_.preprocessing
        network = Normalize(stated["mean"], stated["std"])(X[3:4])  # as the page and ONNX do it
        for name in ("paper.png", "screen.png"):
            np.testing.assert_allclose(of.prepare(of.read_images([tmp_path / name])), network, atol=1e-4)
    assert cli.main(["predict", str(tmp_path / "m"), str(tmp_path / "paper.png"), str(tmp_path / "screen.png")]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len({line.split("  ", 1)[1] for line in lines}) == 1


def test_threads_answer_alike(model):
    right, got = model.decision_function(X), []
    threads = [threading.Thread(target=lambda: got.append(model.decision_function(X))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6 and all(np.array_equal(a, right) for a in got)


# --- state ------------------------------------------------------------------------------------------------------------


def interrupt(X, rng):
    raise KeyboardInterrupt


class Interrupting:
    """An array that is interrupted while it is read."""

    shape, ndim = X.shape, 4

    def __array__(self, *args, **kwargs):
        raise KeyboardInterrupt


REFUSED = {
    "weights": (lambda m: m.fit(X, NAMES, sample_weight=-np.ones(80)), ValueError),
    "lr": (lambda m: m.set_params(lr="0.1").fit(X, NAMES), ValueError),
    "bits": (lambda m: m.set_params(bits=5).fit(X, NAMES), ValueError),
    "patch": (lambda m: m.set_params(patch_size=3).fit(X, NAMES), ValueError),
    "heads": (lambda m: m.set_params(heads=3).fit(X, NAMES), ValueError),
    "augment": (lambda m: m.set_params(augment="spin").fit(X, NAMES), ValueError),
    "teacher": (lambda m: m.set_params(distill_from=fit()).fit(X, NAMES), ValueError),
    "recipe": (lambda m: m.set_params(recipe="best of all").fit(X, NAMES), ValueError),
    "device": (lambda m: m.set_params(device="gpu").fit(X, NAMES), ValueError),
    "eval_set": (lambda m: m.fit(X, NAMES, eval_set=(X, Y)), ValueError),
    "shape": (lambda m: m.fit(X[:5], NAMES), ValueError),
    "resume": (lambda m: m.fit(X, NAMES, resume=True), ValueError),
    "checkpoint": (lambda m: m.fit(X, NAMES, checkpoint="x", every=-1), ValueError),
    "interrupt": (lambda m: m.fit(X, NAMES, eval_set=(Interrupting(), NAMES)), KeyboardInterrupt),
    "partial_fit labels": (lambda m: m.partial_fit(X, NAMES), (ValueError, TypeError)),
    "partial_fit bits": (lambda m: m.set_params(bits=1).partial_fit(X, Y), ValueError),
    "partial_fit dim": (lambda m: m.set_params(dim=16).partial_fit(X, Y), ValueError),
    "partial_fit classes": (lambda m: m.partial_fit(X, Y, classes=[0, 1]), ValueError),
    "partial_fit balanced": (lambda m: m.set_params(class_weight="balanced").partial_fit(X, Y), ValueError),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused_leaves_the_old_model(model, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = copy.deepcopy(model)
    call, error = REFUSED[why]
    before = {name: value for name, value in vars(asked).items() if name.endswith("_")}
    with pytest.raises(error):
        call(asked)
    after = {name: value for name, value in vars(asked).items() if name.endswith("_")}
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    np.testing.assert_array_equal(asked.decision_function(X), model.decision_function(X))
    asked.save("m")
    np.testing.assert_array_equal(tb.load("m").predict(X), model.predict(X))
    assert tb.load("m").bits == 1.58
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_training_that_breaks_off_leaves_a_model_that_can_be_saved(tmp_path):
    model = fit()
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError):
        model.set_params(lr=1e30, warmup=0.0, epochs=9).fit(X, NAMES)
    assert model.interrupted_ and model.n_iter_ == len(model.history_["loss"]) and model.classes_[0] == "a"
    model.set_params(lr=1e-3).save(tmp_path / "m")
    assert tb.load(tmp_path / "m").interrupted_


class Life(RuleBasedStateMachine):
    """Any order of fit, refused fit, save, load, copy and partial_fit; a twin that is only fitted answers alike."""

    def __init__(self):
        super().__init__()
        self.model = tb.ViT(**TINY | {"epochs": 1})
        self.twin, self.known = None, None

    @rule(names=st.booleans(), units=st.sampled_from(["uint8", "float32"]))
    def fit(self, names, units):
        self.known = NAMES if names else Y
        self.model.fit(X.astype(units), self.known)
        self.twin = clone(self.model).fit(X.astype(units), self.known)

    @rule(why=st.sampled_from([why for why in REFUSED if "partial" not in why and why != "teacher"]))
    def refused(self, why):
        call, error = REFUSED[why]
        params = self.model.get_params()
        with pytest.raises(error):
            call(self.model)
        self.model.set_params(**params)

    @precondition(lambda self: self.twin)
    @rule()
    def partial_fit(self):
        self.model.partial_fit(X[:40], self.known[:40])
        self.twin.partial_fit(X[:40], self.known[:40])

    @precondition(lambda self: self.twin)
    @rule(how=st.sampled_from([copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]))
    def replace_by_copy(self, how):
        self.model = how(self.model)

    @precondition(lambda self: self.twin)
    @rule()
    def replace_by_file(self):
        self.model.save("life.safetensors")
        self.model, params = tb.load("life.safetensors"), self.model.get_params()
        assert self.model.get_params() == params
        self.twin = copy.deepcopy(self.model)  # the optimiser stays behind

    @invariant()
    def answers_like_its_twin(self):
        if self.twin is not None:
            np.testing.assert_array_equal(self.model.decision_function(X[:9]), self.twin.decision_function(X[:9]))
            assert self.model.n_iter_ == self.twin.n_iter_ and set(self.model.classes_) == set(self.known)


def test_any_order_keeps_a_consistent_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_state_machine_as_test(Life, settings=settings(max_examples=12, stateful_step_count=8, deadline=None))


# --- what is set between two calls of partial_fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "was, now",
    [
        ({"dim": 16}, {"dim": 64, "heads": 4}),
        ({"pool": "cls"}, {"pool": "mean"}),
        ({"patch_size": 4}, {"patch_size": "auto"}),
        ({"activation_bits": 4}, {"activation_bits": 8}),
        ({}, {"quantizer": "binary"}),
        ({"quantizer": "int4"}, {"quantizer": None}),
        ({"quantizer": "int4"}, {"quantizer": "int8"}),
        ({"quantizer": tb.quant.find_quantizer(2)}, {"quantizer": tb.quant.find_quantizer(3)}),
    ],
    ids=str,
)
def test_what_a_network_is_built_from_cannot_be_set_later(was, now, tmp_path):
    """Also to a default; a file says what the network is."""
    model = fit(**was, epochs=1)
    answers, (name, value) = model.decision_function(X), next(iter(now.items()))
    model.save(tmp_path / "right")
    model.set_params(**now).save(tmp_path / "m")
    loaded = tb.load(tmp_path / "m")
    assert loaded.get_params() == tb.load(tmp_path / "right").get_params()
    np.testing.assert_array_equal(loaded.partial_fit(X, Y).history_["lr"], [model.history_["lr"][0], 0.003])
    for one in (model, pickle.loads(pickle.dumps(model)), tb.load(tmp_path / "right").set_params(**now)):
        with pytest.raises(ValueError, match=rf"{name} was set to .*, but the network was built with"):
            one.partial_fit(X, Y)
        np.testing.assert_array_equal(one.decision_function(X), answers)
    assert model.fit(X, Y).get_params()[name] is value


def test_what_came_from_a_source_is_not_called_set():
    source = fit(activation_bits=4, dim=16)
    tb.ViT(**{name: v for name, v in TINY.items() if name not in ("dim", "depth", "heads")}, init_from=source).fit(
        X, Y
    ).partial_fit(X, Y)


def test_rates_may_be_set_between_two_calls():
    def train(**change):
        return tb.ViT(**TINY, weight_decay=0.0).partial_fit(X, Y).set_params(**change).partial_fit(X, Y)

    usual = train().decision_function(X)
    for change in ({"weight_decay": 50.0}, {"lr": 0.1}):
        assert np.abs(train(**change).decision_function(X) - usual).max() > 1e-3
    np.testing.assert_array_equal(train(weight_decay=0.0).decision_function(X), usual)


@pytest.mark.parametrize("recipe", [None, "paper", "best", tb.train.Recipe({"sub_norm": False})], ids=str)
def test_partial_fit_learns_from_the_teacher(recipe):
    """Whatever the recipe: the labels do not matter."""
    teacher, other = fit(bits=32), (Y + 1) % 10
    one, two = (tb.ViT(**TINY, recipe=recipe, distill_from=teacher).partial_fit(X, y) for y in (Y, other))
    np.testing.assert_array_equal(one.decision_function(X), two.decision_function(X))


# --- copies -----------------------------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "joblib": lambda model: joblib.Parallel(n_jobs=2, prefer="threads")([joblib.delayed(copy.deepcopy)(model)])[0],
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_learn_on_alike(how):
    model = tb.ViT(**TINY).partial_fit(X, Y).partial_fit(X, Y)
    twin = COPIES[how](model)
    for _ in range(2):
        model.partial_fit(X, Y)
        twin.partial_fit(X, Y)
        np.testing.assert_array_equal(twin.decision_function(X), model.decision_function(X))
    assert twin.n_iter_ == model.n_iter_ == 4


def test_a_clone_is_unfitted_and_trains_alike(model):
    again = clone(model)
    assert not hasattr(again, "model_")
    np.testing.assert_array_equal(again.fit(X, Y).decision_function(X), model.decision_function(X))


# --- files ------------------------------------------------------------------------------------------------------------


def same_with_types(a, b):
    return (
        type(a) is type(b) and a == b and (not isinstance(a, tuple | list) or list(map(type, a)) == list(map(type, b)))
    )


def test_parameters_come_back_with_their_types(tmp_path):
    options = {"patch_size": (2, 4), "class_weight": {3: 2.0, 5: 1}, "mlp_ratio": 2.5, "random_state": 7}
    model = fit(**options)
    model.save(tmp_path / "m")
    was, now = model.get_params(), tb.load(tmp_path / "m").get_params()
    assert all(same_with_types(was[name], now[name]) for name in was)


def test_a_file_says_what_it_cannot_hold(tmp_path):
    teacher = fit(bits=32)
    fit(augment=lambda X, rng: X, distill_from=teacher, init_from=teacher, random_state=np.random.RandomState(0)).save(
        tmp_path / "m"
    )
    loaded = tb.load(tmp_path / "m")
    assert loaded.distill_from == loaded.init_from == "<ViT>" and "lambda" in loaded.augment
    assert loaded.random_state is None
    before = loaded.predict(X)
    for name, value in (("distill_from", teacher), ("augment", None)):
        with pytest.raises((ValueError, TypeError), match=name):
            loaded.partial_fit(X, Y)
        np.testing.assert_array_equal(loaded.predict(X), before)
        loaded.set_params(**{name: value})
    loaded.partial_fit(X, Y)  # which starts from nothing else
    with pytest.raises(ValueError, match="<ViT>"):
        loaded.fit(X, Y)
    loaded.set_params(init_from=None).fit(X, Y)


def test_a_file_describes_its_network(tmp_path):
    model = fit().set_params(bits=1, dim=32, heads=4, patch_size=4, pool="cls", activation_bits=4, mlp_ratio=1)
    model.save(tmp_path / "m")
    loaded = tb.load(tmp_path / "m")
    for name in ("bits", "dim", "heads", "pool", "activation_bits", "mlp_ratio"):
        assert getattr(loaded, name) == loaded.model_.config[name], name
    loaded.partial_fit(X, Y)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["2026-01-01", "2026-01-02"], "M8[D]"),
        np.array(["a", "b"], object),
        np.array([True, False]),
        np.array([3, 4], "uint8"),
        np.array([1.0, 2.0]),
    ],
    ids=lambda labels: labels.dtype.str,
)
def test_labels_come_back_as_they_were(labels, tmp_path):
    model = fit(y=labels[Y % 2], epochs=0)
    model.save(tmp_path / "m")
    loaded = tb.load(tmp_path / "m")
    assert loaded.classes_.dtype == model.classes_.dtype and loaded.predict(X).tolist() == model.predict(X).tolist()


def test_labels_that_no_file_holds_are_refused(tmp_path):
    y = np.array([1, 2], "longdouble")[Y % 2]
    model = fit(y=y, epochs=0)
    with pytest.raises(ValueError, match="cannot hold labels such as"):
        model.save(tmp_path / "m")
    with pytest.raises(ValueError, match="cannot hold labels such as"):
        tb.ViT(**TINY).fit(X, y, checkpoint=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_names_of_columns_and_interruption_are_saved(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X.reshape(80, -1)).add_prefix("pixel")
    model = fit(frame, augment=None)
    model.interrupted_ = True
    model.save(tmp_path / "m")
    loaded = tb.load(tmp_path / "m")
    assert loaded.interrupted_ and list(loaded.feature_names_in_) == list(frame.columns)
    np.testing.assert_array_equal(loaded.predict(frame), model.predict(frame))
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame.iloc[:, ::-1])
    assert not hasattr(model.fit(X, Y), "feature_names_in_")
