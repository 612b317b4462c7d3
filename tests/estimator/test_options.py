"""Every option of tb.ViT and every argument of fit: used, or refused by name."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.utils.class_weight import compute_sample_weight

import tinybitvit as tb
from tinybitvit.estimator.inputs import RULES, plain

DIGITS = tb.data.load_digits()
X, Y = DIGITS.X_train[:40], DIGITS.y_train[:40]
TINY = {"dim": 8, "depth": 1, "heads": 2, "epochs": 0, "verbose": 0, "random_state": 0, "workers": 1, "device": "cpu"}


def fit(**options):
    return tb.ViT(**TINY | options).fit(X, Y)


def test_every_option_has_a_rule():
    assert set(RULES) == set(tb.ViT().get_params())
    for name, value in tb.ViT().get_params().items():
        assert RULES[name].holds(value), name


NONSENSE = {
    "lr": [-0.003, "0.1", None, 0, np.nan, np.inf, [0.1], True, 1j],
    "weight_decay": [-1, "0", None, np.nan],
    "patience": [-1, 0, 2.5, None],
    "dim": [2.5, 0, -8, None, "8", True],
    "heads": [None, 0, 1.0, 3],
    "depth": [-1, 1.5],
    "mlp_ratio": [0, -1, "2", None],
    "patch_size": [(2,), (2, 2, 2), 0, -1, 2.0, "2", None, (2, "2"), 3],
    "bits": ["1.58", 5, True, None, 16],
    "activation_bits": [2, "8", True],
    "pool": ["max", None, 1],
    "epochs": [-1, 1.5, None, True],
    "batch_size": [0, 2.5, None],
    "warmup": [-0.1, 1.1, None, "0.1"],
    "label_smoothing": [-0.1, 1.1, None],
    "class_weight": ["equal", 3, {0: -1}, [1, 2], {77: 1}],
    "augment": ["spin", 3, "crop:0"],
    "distill_from": ["model", 3, tb.ViT()],
    "init_from": [3, tb.ViT()],
    "recipe": ["bast", 3],
    "quantizer": ["int5", 3],
    "early_stopping": [1, "yes", None],
    "validation_fraction": [0, 1, 2, "0.1", None],
    "on_nan": ["go", None],
    "device": ["gpu", 0, None],
    "workers": [0, 1.5, "all", None],
    "random_state": [-1, 2**32, "0", 1.5],
    "verbose": [None, 0.5],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in NONSENSE.items() for value in values])
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b") as error:
        fit(**{name: value})
    assert "\n" not in str(error.value)


def test_fractions_and_decimals_are_no_numbers():
    """An array times a Fraction is an array of objects."""
    for value in (Fraction(1, 100), Decimal("0.01")):
        with pytest.raises(ValueError, match=r"\blr\b"):
            fit(lr=value)
        with pytest.raises((ValueError, TypeError), match=r"\blr\b"):
            tb.optim.SGD([tb.nn.Parameter(np.ones(2, "float32"))], lr=value)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(-99, 99),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.sampled_from(["", "auto", "1", "best", "flip"]),
    st.sampled_from([np.int64(2), np.float32(0.5), np.bool_(True), np.array([2, 2]), np.array(0.5)]),
    st.lists(st.integers(0, 4), max_size=3),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.builds(object),
    st.just(print),
    st.dictionaries(st.integers(0, 9), st.floats(0, 2), max_size=2),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(set(RULES) - {"epochs", "verbose", "workers"})), VALUES)
@example("early_stopping", True)  # a class of one image cannot be split
def test_any_option_of_any_type_is_used_or_refused_by_name(name, value):
    try:
        model = fit(**{name: value})
    except (ValueError, TypeError) as error:
        assert name in str(error), error
    else:
        model.predict(X[:2])


def test_numpy_numbers_are_numbers(tmp_path):
    kinds = {"dim": np.int64, "depth": np.int32, "heads": np.uint8, "patch_size": np.int64, "batch_size": np.int64}
    values = {"dim": 8, "depth": 1, "heads": 2, "patch_size": 2, "batch_size": 20}
    options = {name: kind(values[name]) for name, kind in kinds.items()}
    options |= {
        "lr": np.float32(0.003),
        "bits": np.float32(1.58),
        "epochs": np.int64(2),
        "early_stopping": np.bool_(True),
    }
    options |= {"workers": np.int64(1), "validation_fraction": np.float64(0.25), "random_state": np.int64(0)}
    model = tb.ViT(**TINY | options).fit(X, Y % 2)
    usual = tb.ViT(**TINY | {name: plain(value) for name, value in options.items()}).fit(X, Y % 2)
    np.testing.assert_array_equal(model.decision_function(X), usual.decision_function(X))
    assert model.model_.blocks[0].mlp.fc1.weight.dtype == "float32"
    model.save(tmp_path / "m")
    loaded = tb.load(tmp_path / "m").get_params()
    assert all(loaded[name] == plain(value) for name, value in model.get_params().items())


# --- arguments of fit -------------------------------------------------------------------------------------------------

MASKED = np.ma.masked_array(X, X > 200)
ARGUMENTS = [
    ({"X": MASKED}, "X is a masked array"),
    ({"y": np.ma.masked_array(Y, Y == 3)}, "y is a masked array"),
    ({"sample_weight": np.ma.masked_array(np.ones(40), Y == 3)}, "sample_weight is a masked array"),
    ({"sample_weight": np.full(40, np.nan)}, "sample_weight contains NaN"),
    ({"sample_weight": -np.ones(40)}, "sample_weight must not be negative"),
    ({"sample_weight": np.zeros(40)}, "at least one non-zero"),
    ({"sample_weight": np.ones(39)}, "sample_weight"),
    ({"X": X * 1j}, "numbers, not complex128"),
    ({"X": X.astype(object)}, "numbers, not object"),
    ({"X": X.astype(str)}, "numbers, not <U"),
    ({"X": [X[0], X[1, :5]], "y": [0, 1]}, "X cannot be made one array"),
    ({"X": X[:0], "y": Y[:0]}, "no image"),
    ({"X": X[0]}, "1 is required|label|images"),
    ({"y": Y * 0}, "only one class"),
    ({"y": np.array([1, "a", None] * 13 + [2], object)}, "y|label"),
    ({"y": None}, "requires y"),
    ({"y": ["a" if label % 2 else 1 for label in Y]}, "y mixes text with other labels such as 1"),
    ({"y": ["a" if label % 2 else float("nan") for label in Y]}, "y mixes text with other labels such as nan"),
    ({"eval_set": X}, "eval_set must be None or a pair"),
    ({"eval_set": (X, Y[:5])}, "40 images but y has the shape"),
    ({"eval_set": (X,)}, "eval_set must be"),
    ({"every": "hour"}, "every must be"),
    ({"every": -1}, "every must be"),
    ({"resume": 1}, "resume must be"),
    ({"resume": True}, "resume=True .* checkpoint"),
    ({"checkpoint": 3}, "checkpoint must be"),
]


@pytest.mark.parametrize("arguments, words", ARGUMENTS)
def test_bad_arguments_get_one_sentence(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words) as error:
        tb.ViT(**TINY).fit(**{"X": X, "y": Y} | arguments)
    assert "\n" not in str(error.value)


def test_a_mask_without_a_hole_is_no_mask():
    tb.ViT(**TINY).fit(np.ma.masked_array(X), Y)


# --- class_weight -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weight_is_a_weight_an_image(class_weight, weighted):
    y = (np.arange(40) % 4 == 0).astype(int)
    weight = np.linspace(0.5, 2, 40) if weighted else None
    options = TINY | {"epochs": 2}
    model = tb.ViT(**options, class_weight=class_weight).fit(X, y, sample_weight=weight)
    product = compute_sample_weight(class_weight, y).astype("f4") * (1 if weight is None else weight.astype("f4"))
    usual = tb.ViT(**options).fit(X, y, sample_weight=product)
    np.testing.assert_array_equal(model.decision_function(X), usual.decision_function(X))
    assert not np.array_equal(model.decision_function(X), tb.ViT(**options).fit(X, y).decision_function(X))


def test_class_weight_in_partial_fit():
    y = np.arange(40) % 2
    one = tb.ViT(**TINY, class_weight={0: 3.0, 1: 1.0}).partial_fit(X[:20], y[:20]).partial_fit(X[20:22], y[20:22] * 0)
    assert one.n_iter_ == 2
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        tb.ViT(**TINY, class_weight="balanced").partial_fit(X, y)


# --- labels, weights and what else is given ---------------------------------------------------------------------------


def test_objects_that_are_numbers_are_labels():
    model = fit()
    objects = tb.ViT(**TINY).fit(X, Y.astype(object))
    np.testing.assert_array_equal(objects.classes_, model.classes_)
    assert objects.score(X, Y.astype(object)) == model.score(X, Y)
    with pytest.raises(ValueError, match="y contains NaN"):
        tb.ViT(**TINY).fit(X, np.where(Y, Y, np.nan).astype(object))


def test_one_weight_for_all_is_a_weight():
    weighted = tb.ViT(**TINY | {"epochs": 1}).fit(X, Y, sample_weight=2.0)
    expected = tb.ViT(**TINY | {"epochs": 1}).fit(X, Y, sample_weight=np.full(40, 2.0))
    np.testing.assert_array_equal(weighted.decision_function(X), expected.decision_function(X))


@pytest.mark.parametrize("classes", [10, {0, 1, 2}, (label for label in range(10)), [list(range(10))]])
def test_classes_are_a_list(classes):
    with pytest.raises(ValueError, match=r"classes must be a list of all labels, such as \[0, 1, 2\], not"):
        tb.ViT(**TINY).partial_fit(X, Y, classes=classes)
    tb.ViT(**TINY).partial_fit(X, Y, classes=range(10))


def test_a_first_batch_of_one_class_says_what_helps():
    with pytest.raises(ValueError, match="with a list of all labels as classes"):
        tb.ViT(**TINY).partial_fit(X[:3], [1, 1, 1])
    tb.ViT(**TINY).partial_fit(X[:3], [1, 1, 1], classes=[0, 1])


def test_an_evaluation_set_is_not_walked():
    """As lists of Python's numbers it were thirty times as large."""

    class Walked(np.ndarray):
        def tolist(self):
            raise AssertionError("made a list of the images")

    images = X.view(Walked)
    assert tb.ViT(**TINY | {"epochs": 1}).fit(X, Y, eval_set=(images, Y.view(Walked))).history_["val_loss"]


@pytest.mark.parametrize("images", [-5, 0, 2.5, "all", True, None])
def test_quantize_refuses_numbers_of_images(images):
    with pytest.raises(ValueError, match="images must be a whole number from 1, not"):
        tb.quantize(fit(bits=32), X, images=images, verbose=0)


@pytest.mark.parametrize("name, value", [("bits", 32), ("num_classes", 20), ("dim", 16), ("quantizer", "int4")])
def test_a_recipe_cannot_say_what_the_options_say(name, value):
    with pytest.raises(ValueError, match=f"network of a recipe must leave out '{name}'"):
        fit(recipe=tb.train.Recipe({name: value}))


def test_no_blocks_can_learn_block_by_block():
    teacher = fit(bits=32, depth=0)
    with pytest.raises(ValueError, match="depth=0 leaves no block that could learn from a teacher"):
        fit(depth=0, recipe="best", distill_from=teacher)
    with pytest.raises(ValueError, match="quantize rounds the blocks of a model, and this one has none"):
        tb.quantize(teacher, X, verbose=0)


@pytest.mark.parametrize("name", ["init_from", "distill_from"])
def test_a_model_is_not_its_own_model(name):
    model = fit(bits=32)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=f"{name} is the model itself"):
            model.set_params(**{name: model})
            call(X, Y)
    model.set_params(lr=0.1)  # without end, where parameters of parameters are listed
    assert len(repr(model)) < 1000


def test_images_are_read_from_one_path_or_several(tmp_path):
    Image.fromarray(X[3, ..., 0]).save(tmp_path / "a.png")
    model, path = fit(), tmp_path / "a.png"
    for paths in (path, str(path), [path], iter([path])):
        np.testing.assert_array_equal(model.read_images(paths), X[3:4])
    with pytest.raises(ValueError, match="read_images got no path"):
        model.read_images([])
