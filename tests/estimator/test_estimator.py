"""tb.ViT: what it learns, what it remembers, and what it says to bad input."""

import pickle
from itertools import combinations

import numpy as np
import pytest
from devices import each_device
from sklearn.exceptions import NotFittedError

import tinybitvit as tb
from tinybitvit.data.images import auto_patch, flat_shape
from tinybitvit.train import Recipe

TINY = {"dim": 16, "depth": 1, "heads": 2, "epochs": 12, "lr": 1e-2, "batch_size": 20, "augment": None, "verbose": 0}
TERNARY_SCALES = Recipe({"scale": "twn", "sub_norm": False})


@pytest.fixture(scope="module")
def data():
    """90 grey 6 x 6 images: class k has a bright pair of rows 2k, 2k + 1."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.random((90, 6, 6)).astype(np.float32)
    for k in range(3):
        X[y == k, 2 * k : 2 * k + 2] += 1
    return X, y


def fit(data, **options):
    return tb.ViT(**{**TINY, "random_state": 0, **options}).fit(*data)


@pytest.mark.parametrize("bits", tb.quant.WEIGHT_BITS)
def test_every_width_learns(data, bits):
    assert fit(data, bits=bits, epochs=25).score(*data) > 0.9


@pytest.mark.parametrize(
    "options", [{"activation_bits": None}, {"activation_bits": 1}, {"pool": "cls"}, {"mlp_ratio": 1.5}]
)
def test_variants_learn(data, options):
    assert fit(data, **options, epochs=25).score(*data) > 0.9


def test_flat_grey_and_channel_inputs_give_the_same_model(data):
    X, y = data
    reference = fit((X[..., None], y)).decision_function(X[..., None])
    for shaped in (X, X.reshape(90, 36)):
        np.testing.assert_array_equal(fit((shaped, y)).decision_function(shaped), reference)


def test_same_seed_same_bits_whatever_ran_before(data):
    first = fit(data, augment="shift:1").model_.state_dict()
    tb.manual_seed(99)
    fit(data, bits=1, random_state=7)
    again = fit(data, augment="shift:1").model_.state_dict()
    other = fit(data, augment="shift:1", random_state=1).model_.state_dict()
    assert all((first[n] == again[n]).all() for n in first)
    assert any((first[n] != other[n]).any() for n in first)


def test_history_and_fitted_attributes(data, capsys):
    X, y = data
    model = fit((X[:60], y[:60]), epochs=3, verbose=1, device="cpu")
    keys = ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds", "flip_rate", "zero_share", "distance")
    assert {k: len(v) for k, v in model.history_.items()} == dict.fromkeys(keys, 3)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and "epoch 3/3" in out and "images/s" in out and err == ""
    assert (model.n_features_in_, model.image_shape_, model.n_iter_, model.interrupted_) == (36, (6, 6, 1), 3, False)
    with_val = tb.ViT(**{**TINY, "epochs": 2}).fit(X[:60], y[:60], eval_set=(X[60:], y[60:]))
    assert all(isinstance(v, float) for v in with_val.history_["val_accuracy"])


@each_device
def test_probabilities_and_labels_of_any_kind(data, device):
    X, y = data
    names = np.array(["cat", "bird", "ant"])[y]
    model = fit((X, names), device=device)
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert list(model.classes_) == ["ant", "bird", "cat"]
    assert (model.predict(X) == model.classes_[p.argmax(axis=1)]).all() and model.score(X, names) > 0.9
    two = y < 2
    binary = fit((X[two], y[two] == 1), device=device)
    assert ((binary.decision_function(X[two]) > 0) == binary.predict(X[two])).all()


def test_sample_weight_zero_means_not_there(data):
    X, y = data
    wrong = np.where(np.arange(90) % 2, y, (y + 1) % 3)
    weight = (np.arange(90) % 2).astype(float)
    model = tb.ViT(**{**TINY, "random_state": 0, "epochs": 30}).fit(X, wrong, sample_weight=weight)
    assert model.score(X, y) > 0.9


@each_device
def test_partial_fit_goes_on(data, device):
    X, y = data
    model = tb.ViT(**TINY, random_state=0, device=device)
    for _ in range(12):
        for k in range(2):
            model.partial_fit(X[k::2], y[k::2], classes=[0, 1, 2])
    assert model.n_iter_ == 24 and model.score(X, y) > 0.9
    fitted = fit(data, device=device)
    before = fitted.model_.state_dict()["head.weight"].copy()
    assert (fitted.partial_fit(X, y).model_.state_dict()["head.weight"] != before).any()


@each_device
def test_early_stopping_goes_back_to_the_best_weights(data, device):
    model = fit(data, device=device, early_stopping=True, patience=3, epochs=60, validation_fraction=0.3)
    val = model.history_["val_accuracy"]
    assert len(val) < 60 and len(val) - 1 - int(np.argmax(val)) == 3


def test_starting_from_and_learning_from_another_model(data):
    X, y = data
    teacher = fit(data, bits=32)
    started = fit(data, bits=1.58, init_from=teacher, epochs=0)
    np.testing.assert_array_equal(
        started.model_.state_dict()["head.weight"], teacher.model_.state_dict()["head.weight"]
    )
    student = fit((X, np.roll(y, 1)), distill_from=teacher, epochs=25)  # the labels are wrong, the teacher is right
    assert student.score(X, y) > 0.9
    with pytest.raises(ValueError, match=r"has dim=16, and dim=8 was given: leave it out"):
        fit(data, init_from=teacher, dim=8)
    with pytest.raises(ValueError, match="other classes"):
        fit((X, y + 1), distill_from=teacher)


def test_a_low_bit_model_for_other_classes_takes_the_head_of_its_teacher(data):
    """Its blocks are what it brings; the teacher of the new classes is of the same shape."""
    X, y = data
    before = fit((X, y % 2), bits=1.58)
    teacher = fit(data, bits=32, init_from=fit((X, y % 2), bits=32))
    options = {"bits": 1.58, "distill_from": teacher, "init_from": before, "epochs": 0}
    started = fit(data, recipe="refine", **options).model_
    for name, source in (("head.weight", teacher), ("head.bias", teacher), ("blocks.0.mlp.fc1.bias", before)):
        np.testing.assert_array_equal(started.state_dict()[name], source.model_.state_dict()[name])
    plain = fit(data, **options).model_  # the teacher only gives targets: it may be of any shape
    assert (plain.state_dict()["head.weight"] != teacher.model_.state_dict()["head.weight"]).any()
    with pytest.raises(ValueError, match="the teacher has depth=2 and the model depth=1"):
        fit(data, recipe="refine", **options | {"distill_from": fit(data, bits=32, depth=2)})


def test_a_student_is_dealt_other_batches_than_its_teacher(data):
    """All with one seed. What the teacher learnt by heart would tell a student little, and itself nothing new."""

    def trained(**options):
        dealt = []

        def augment(X, rng):
            dealt.append(X)
            return X

        options |= {"augment": augment, "epochs": 1, "early_stopping": True, "validation_fraction": 0.3}
        return fit(data, **options), np.concatenate(dealt)

    teacher, first = trained(bits=32)
    np.testing.assert_array_equal(trained(bits=32)[1], first)
    student, second = trained(bits=1.58, recipe="best", distill_from=teacher)
    for options in ({"distill_from": teacher}, {"init_from": teacher}, {"bits": 32, "init_from": teacher}):
        np.testing.assert_array_equal(trained(**options)[1], second, "all who come from one teacher are dealt alike")
    refined = trained(bits=1.58, recipe="refine", distill_from=teacher, init_from=student)[1]
    orders = [first, second, refined]
    assert not any(np.array_equal(one, other) for one, other in combinations(orders, 2))
    kept = [np.unique(order.reshape(len(order), -1), axis=0) for order in orders]
    for images in kept[1:]:  # early stopping asks all of them about images that none has seen
        np.testing.assert_array_equal(images, kept[0])


@pytest.mark.parametrize("bits, recipe", [(1, None), (1.58, None), (8, None), (1.58, TERNARY_SCALES)])
def test_training_goes_on_from_packed_bytes(data, tmp_path, bits, recipe):
    X, _ = data
    fitted = fit(data, bits=bits, recipe=recipe)
    fitted.save(tmp_path / "packed.safetensors", packed=True)
    packed = tb.load(tmp_path / "packed.safetensors")
    again = fit(data, bits=bits, recipe=recipe, init_from=packed, epochs=0)
    codes = [model.model_.blocks[0].mlp.fc1.codes()[0] for model in (fitted, again)]
    np.testing.assert_array_equal(*codes)
    found, expected = again.decision_function(X), packed.decision_function(X)
    # the last digit of a scale may tip a code of an image
    assert np.isclose(found, expected, rtol=1e-4, atol=1e-5).mean() > 0.95
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)
    same = fit(data, bits=bits, init_from=packed, epochs=0)  # without a recipe: its quantisers are those of the source
    np.testing.assert_array_equal(same.decision_function(X), again.decision_function(X))
    longer = fit(data, bits=bits, recipe=recipe, init_from=packed, epochs=3)
    assert longer.history_["loss"][-1] < fitted.history_["loss"][-1]


@each_device
def test_pickle_keeps_the_predictions(data, device):
    model = fit(data, device=device)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.decision_function(data[0]), model.decision_function(data[0]))
    copy.partial_fit(*data)


def test_ctrl_c_keeps_what_was_learnt(data, capsys):
    calls = iter(range(1000))

    def interrupt(X, rng):
        if next(calls) == 22:
            raise KeyboardInterrupt
        return X

    model = fit(data, augment=interrupt, verbose=1)
    assert model.interrupted_ and 0 < model.n_iter_ < 12
    assert "stopped by Ctrl-C" in capsys.readouterr().out
    untrained = fit(data, epochs=0)
    assert model.score(*data) > untrained.score(*data)


X0 = np.zeros((8, 6, 6), np.float32) + np.arange(8)[:, None, None]
Y0 = np.arange(8) % 2


def nan_image():
    X = X0.copy()
    X[3, 2, 2] = np.nan
    return X


@pytest.mark.parametrize(
    "X, y, options, words",
    [
        (nan_image(), Y0, {}, "NaN or inf pixels.*image 3.*remove or replace"),
        (np.full((8, 6, 6), np.inf), Y0, {}, "NaN or inf"),
        (X0[None, None], Y0[:1], {}, "dim"),
        (np.zeros((8, 3, 12, 12)), Y0, {}, r"channels come last.*transpose\(0, 2, 3, 1\)"),
        (X0, Y0, {"patch_size": 4}, "do not tile.*choose a patch_size"),
        (X0, Y0[:5], {}, "8 images but y.*one label per image"),
        (X0, Y0 * 0, {}, "only one class.*at least two"),
        (X0, Y0, {"bits": 5}, "bits must be one of.*1.58, 1, not 5"),
        (X0, Y0, {"activation_bits": 2}, "activation_bits must be"),
        (X0, Y0, {"heads": 3}, "heads must divide dim"),
        (X0, Y0, {"pool": "max"}, "pool must be"),
        (X0, Y0, {"augment": "spin"}, "unknown augmentation 'spin'"),
        (X0, Y0, {"epochs": -1}, "epochs must be"),
        (X0, Y0, {"batch_size": 0}, "batch_size must be"),
        (X0, Y0, {"warmup": 5}, "warmup is a fraction.*not 5"),
        (X0, Y0, {"label_smoothing": 1.5}, "label_smoothing is a fraction.*not 1.5"),
        (X0, Y0, {"device": "gpu"}, "device must be 'cpu', 'cuda' or 'auto'"),
        (X0, Y0, {"workers": 0}, "workers must be"),
        (X0, [0.5, 1.5] * 4, {}, "continuous"),
        (X0[:0], Y0[:0], {}, "no image"),
        (X0.astype(object), Y0, {}, "numbers, not object"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_gets_one_sentence(X, y, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        tb.ViT(**{**TINY, **options}).fit(X, y)
    assert "\n" not in str(caught.value)


def test_bad_input_after_fit(data):
    X, y = data
    with pytest.raises(NotFittedError):
        tb.ViT().predict(X)
    model = fit(data)
    with pytest.raises(ValueError, match=r"shape \(5, 6, 1\).*fitted on \(6, 6, 1\)"):
        model.predict(X[:, :5])
    with pytest.raises(ValueError, match=r"label 7.*not among the classes"):
        tb.ViT(**TINY).fit(X, y, eval_set=(X, y * 0 + 7))
    with pytest.raises(ValueError, match=r"label 7.*not among the classes"):
        model.partial_fit(X, y * 0 + 7)
    with pytest.raises(ValueError, match="at least one non-zero"):
        tb.ViT(**TINY).fit(X, y, sample_weight=np.zeros(90))


def test_nan_loss_stops_with_advice_and_keeps_the_weights(data):
    X, y = data
    model = tb.ViT(**TINY, random_state=0).partial_fit(X, y)
    model.lr = 1e30
    model._optimizer = None
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="lower the learning rate"):
        for _ in range(5):
            model.partial_fit(X, y)


@pytest.mark.parametrize(
    "shape, patch",
    [
        ((8, 8, 1), (2, 2)),
        ((28, 28, 1), (4, 4)),
        ((32, 32, 3), (4, 4)),
        ((1, 30, 1), (1, 1)),
        ((29, 29, 1), (1, 1)),
        ((1, 1, 1), (1, 1)),
        ((56, 112, 3), (7, 14)),
    ],
)
def test_auto_patch(shape, patch):
    assert auto_patch(shape) == patch


@pytest.mark.parametrize(
    "features, shape", [(64, (8, 8, 1)), (3072, (32, 32, 3)), (30, (1, 30, 1)), (4, (1, 4, 1)), (48, (4, 4, 3))]
)
def test_flat_rows_become_images(features, shape):
    assert flat_shape(features) == shape


@pytest.mark.parametrize(
    "labels",
    [
        np.array([3, 1, 2]),
        np.array(["a", "ü", "ccc"]),
        np.array([False, True, True]),
        np.array(["x", "y", "z"], object),
    ],
)
def test_saved_and_loaded_models_predict_the_same(data, tmp_path, labels):
    X, y = data
    model = fit((X, labels[y]), bits=1.58)
    model.save(tmp_path / "full.safetensors")
    model.save(tmp_path / "packed.safetensors", packed=True)
    full, packed = tb.load(tmp_path / "full.safetensors"), tb.load(tmp_path / "packed.safetensors")
    np.testing.assert_array_equal(full.decision_function(X), model.decision_function(X))
    np.testing.assert_array_equal(packed.decision_function(X), model.decision_function(X))
    np.testing.assert_array_equal(model.pack().decision_function(X), model.decision_function(X))
    assert full.classes_.dtype == model.classes_.dtype and (full.predict(X) == model.predict(X)).all()
    assert full.get_params() == model.get_params() and full.history_ == model.history_
    assert full.partial_fit(X, labels[y]).n_iter_ == 13
    with pytest.raises(RuntimeError, match="packed model cannot be trained"):
        packed.partial_fit(X, labels[y])


def test_files_without_an_estimator_are_refused(data, tmp_path):
    model = fit(data)
    tb.io.save_model(tmp_path / "network.safetensors", model.model_)
    with pytest.raises(tb.io.CheckpointError, match=r"no tb.ViT.*tb.io.load_model"):
        tb.load(tmp_path / "network.safetensors")
    with pytest.raises(NotFittedError):
        tb.ViT().save(tmp_path / "x.safetensors")
