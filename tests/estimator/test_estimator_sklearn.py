"""tb.ViT as a scikit-learn classifier: scikit-learn's own checks, and its tools on images."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import tinybitvit as tb

TINY = {"dim": 8, "depth": 1, "heads": 2, "epochs": 30, "lr": 5e-3, "augment": None, "verbose": 0, "random_state": 0}

# Each exception with its reason.
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a weight of 2 and an image given twice lead to different mini-batches, so the weights agree only roughly"
    )
}


@parametrize_with_checks([tb.ViT(**TINY)], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def images():
    """Sixty 4 x 4 x 3 images of three classes that differ in brightness, with text labels."""
    rng = np.random.default_rng(5)
    codes = np.arange(60) % 3
    X = (rng.random((60, 4, 4, 3)) * 60 + 80 * codes[:, None, None, None]).astype(np.uint8)
    return X, np.array(["dark", "mid", "bright"])[codes]


def test_clone_keeps_every_parameter_object(images):
    augment = lambda X, rng: X  # noqa: E731
    model = tb.ViT(**{**TINY, "augment": augment, "patch_size": (2, 2)})
    assert clone(model).get_params() == model.get_params()


@pytest.mark.parametrize("role", ["distill_from", "init_from"])
def test_a_clone_keeps_the_fitted_models(role, images):
    X, y = images[0], np.unique(images[1], return_inverse=True)[1]  # BaggingClassifier would number the names
    first = tb.ViT(**TINY, bits=32).fit(X, y)
    before = first.get_params()
    model = tb.ViT(**TINY, **{role: first}).fit(X, y)
    again = clone(model)
    assert getattr(again, role) is first and not hasattr(again, "model_")
    np.testing.assert_array_equal(again.fit(X, y).decision_function(X), model.decision_function(X))
    short = model.set_params(epochs=1)
    assert np.isfinite(cross_val_score(short, X, y, cv=2, error_score="raise")).all()
    GridSearchCV(short, {"lr": [0.001, 0.01]}, cv=2, error_score="raise").fit(X, y)
    BaggingClassifier(short, n_estimators=2).fit(X.reshape(60, -1), y)
    assert first.get_params() == before and set(model.get_params()) == set(tb.ViT().get_params())


@pytest.mark.parametrize("scaler", [MinMaxScaler, MaxAbsScaler, StandardScaler])
def test_scaled_columns_may_go_beyond_the_range_of_the_fit(scaler, tmp_path):
    """The brightest image of all is held out: some of its pixels are twice as large as any of the fit."""
    digits = tb.data.load_digits()
    X, y = digits.X_train[:200].reshape(200, -1) // 16 * 1.0, digits.y_train[:200]
    X[0] = X.max(axis=0) * 2 + 1
    model = make_pipeline(scaler(), tb.ViT(**TINY | {"epochs": 1}))
    assert np.isfinite(cross_val_score(model, X, y, cv=4, error_score="raise")).all()
    fitted = model.fit(X[1:], y[1:])[-1]
    fitted.save(tmp_path / "m")
    for one in (fitted, tb.load(tmp_path / "m")):
        assert one.predict(model[0].transform(X[:1])) == model.predict(X[:1])
        for raw in (X, X.astype("uint8"), digits.X_train[:20]):
            with pytest.raises(ValueError, match="columns were each scaled for itself"):
                one.predict(raw)
    assert not fitted.fit(digits.X_train[:50] / 255, y[:50]).normalize_.units.scaled, "images are not flat rows"


def test_jobs_of_a_search_do_not_interleave_their_lines(tmp_path):
    """Two at a time print nothing; the last training, which is alone, tells of its epochs."""
    code = (
        "import tinybitvit as tb\nfrom sklearn.model_selection import GridSearchCV\n"
        "d = tb.data.load_digits()\nmodel = tb.ViT(dim=8, depth=1, heads=2, epochs=2, device='cpu', random_state=0)\n"
        "GridSearchCV(model, {'bits': [32, 1]}, cv=2, n_jobs=2).fit(d.X_train[:80], d.y_train[:80])\n"
    )
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(tb.__file__))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["epoch", "1/2"], ["epoch", "2/2"]]


def test_grid_search_and_cross_validation_take_images(images):
    X, y = images
    search = GridSearchCV(tb.ViT(**TINY), {"bits": [32, 1]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.8
    assert cross_val_score(tb.ViT(**TINY), X, y, cv=3).mean() > 0.8


def test_pipeline_with_a_function_in_front(images):
    X, y = images
    model = make_pipeline(FunctionTransformer(lambda a: a[:, ::2, ::2]), tb.ViT(**TINY))
    assert model.fit(X, y).score(X, y) > 0.8
    assert model[-1].image_shape_ == (2, 2, 3)


def test_confusion_matrix_display_has_the_labels(images):
    X, y = images
    model = tb.ViT(**TINY).fit(X, y)
    display = ConfusionMatrixDisplay.from_estimator(model, X, y)
    assert list(display.display_labels) == ["bright", "dark", "mid"]
    assert display.confusion_matrix.trace() > 48
