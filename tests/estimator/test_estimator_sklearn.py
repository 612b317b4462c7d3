"""tb.ViT as a scikit-learn classifier: scikit-learn's own checks, and its tools on images."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
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
