"""What plots are asked for by mistake, and names and numbers from outside: an error of one sentence, or readable."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

import tinybitvit as tb
from tinybitvit import viz
from tinybitvit.models import VisionTransformer
from tinybitvit.viz.figure import PALETTE, new_figure, scale_around_zero, scale_of, shortened

SIZE = {"dim": 8, "depth": 2, "heads": 2, "patch_size": 2, "epochs": 1, "verbose": 0, "random_state": 0}
NAMES = ["A$\\x$", "5$ to 10$", "US$ & C$"]


@pytest.fixture(scope="module")
def digits():
    """Images and labels of three classes, as text and as numbers."""
    X = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 1), dtype="uint8")
    y = np.arange(30) % 3
    return X, y, y.astype(str)


@pytest.fixture(scope="module")
def numbered(digits):
    return tb.ViT(bits=32, **SIZE).fit(digits[0], digits[1])


@pytest.fixture(scope="module")
def named(digits):
    return tb.ViT(bits=32, **SIZE).fit(digits[0], digits[2])


# --- labels -----------------------------------------------------------------------------------------------------------


def test_text_and_numbers_are_never_compared(digits, numbered, named):
    X, y, text = digits
    mixed = "labels such as .* cannot be compared with such as .*: give all as text, or all as numbers"
    for wrong in (
        lambda: viz.compare_attention({"a": named, "b": named}, X, y),
        lambda: viz.compare_attention({"a": numbered, "b": named}, X),
        lambda: viz.plot_predictions(named, X, y),
        lambda: viz.plot_predictions(numbered, X, text),
        lambda: viz.plot_confusion(y, named.predict(X)),
    ):
        with pytest.raises(ValueError, match=mixed):
            wrong()
    row = viz.compare_attention({"a": named, "b": named}, X, text).summary()[1]
    assert row["accuracy"] == named.score(X, text) and row["changed predictions"] == 0


def test_predictions_of_other_classes_are_not_compared(digits, numbered):
    X, y, _ = digits
    other = tb.ViT(bits=32, **SIZE).fit(X, y + 1)
    found = viz.compare_attention({"a": numbered, "b": other}, X, y)
    assert [set(row) for row in found.summary()] == [{"model", "divergence", "overlap of top 20 %", "accuracy"}] * 2
    assert found.summary()[1]["accuracy"] == (other.predict(X) == y).mean()
    with pytest.raises(ValueError, match="all models need a head, for the same classes"):
        found.changed()


@pytest.mark.parametrize("count", [8, 30])
def test_a_label_for_each_image(digits, numbered, count):
    X, y, _ = digits
    with pytest.raises(ValueError, match=r"y must hold one label for each of the 9 images, not shape"):
        viz.plot_predictions(numbered, X[10:19], y[:count])


def test_maps_of_other_images_are_not_set_side_by_side(digits, numbered):
    X = digits[0]
    a = viz.similarity(numbered, X[:3])
    for other in (X[10:13], X[:2]):
        with pytest.raises(ValueError, match="the records are of different images: make each of the same X"):
            viz.plot_patches({"a": a, "b": viz.similarity(numbered, other)})
    bare = [viz.similarity(numbered.model_, shift + numbered.prepare(X[:3])) for shift in (0, 0.1)]
    viz.plot_patches(dict(zip("ab", bare, strict=True)))  # each network normalises as it was trained


def test_models_may_be_named_by_numbers(digits, numbered):
    found = viz.compare_attention({32: numbered, 1.58: numbered}, digits[0][:2])
    assert found.names == ["32", "1.58"] and "1.58" in repr(found)
    assert "Attention: 32, 1.58" in found.to_html()
    with pytest.raises(ValueError, match=r"names that differ as text, not \[1, '1'\]"):
        viz.compare_attention({1: numbered, "1": numbered}, digits[0][:2])


# --- numbers of layers, heads, classes --------------------------------------------------------------------------------


def test_what_there_is_not_is_named(digits, numbered):
    X = digits[0][:2]
    record, both = viz.attention(numbered, X), viz.compare_attention({"a": numbered, "b": numbered}, X)
    network, prepared = numbered.model_, numbered.prepare(X)
    layer = r"there is no layer 5: give a number from 0 to 1, or -1 for the last one"
    for says, wrong in (
        (layer, lambda: record.plot(layer=5)),
        (layer, lambda: record.matrix("rollout", 5)),
        (layer, lambda: record.layer(5)),
        (layer, lambda: record.norms(5)),
        (layer, lambda: both.plot(layer=5)),
        (layer, lambda: both.matrix("b", 0, 5)),
        (layer, lambda: viz.plot_weights(numbered, 5)),
        (layer, lambda: viz.similarity(numbered, X).plot(layer=5)),
        (layer, lambda: viz.components(numbered, X).image_map(5)),
        ("there is no head 7: give a number from 0 to 1", lambda: both.matrix("b", 7)),
        (r"one of 'rollout', 'gradient', 'mean', .* not 'rolout'", lambda: record.matrix("rolout")),
        ("class numbers from 0 to 2, not -1", lambda: viz.occlusion(network, prepared, target=-1)),
        ("class numbers from 0 to 2, not 99", lambda: viz.occlusion(network, prepared, target=99)),
    ):
        with pytest.raises(ValueError, match=says):
            wrong()
    np.testing.assert_array_equal(record.layer(-1), record.layer(1))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Glyph")
def test_class_names_are_no_formulas(digits, tmp_path):
    X, y, _ = digits
    labels = np.array([*NAMES])[y]
    model = tb.ViT(bits=32, **SIZE).fit(X, labels)
    for i, figure in enumerate(
        (
            viz.plot_predictions(model, X[:4], labels[:4]),
            viz.plot_confusion(labels, model.predict(X)),
            viz.attention(model, X[:2]).plot(),
            viz.compare_attention({"$x_1$": model, "\\frac$": model}, X[:2], labels[:2]).plot(),
            viz.plot_history({"a$^$": model}),
        )
    ):
        figure.savefig(tmp_path / f"{i}.png")
        assert figure._repr_png_()
        figure.draw_without_rendering()
    assert figure.legends[0].get_texts()[0].get_text() == "a$^$, training"


def test_long_names_leave_the_matrix_its_room():
    names = [f"a class with a very long name, which goes on and on and on, number {i}" for i in range(4)]
    figure = viz.plot_confusion_matrices({"a": np.eye(4)}, names)
    texts = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(set(texts)) == 4 and all(len(text) == 24 and "…" in text for text in texts)
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().width > 0.3 * figure.bbox.width
    assert shortened("dog") == "dog" and shortened("0123456789", 6) == "012…89"


# --- colours and scales -----------------------------------------------------------------------------------------------


def test_every_bit_width_has_a_curve_of_its_own():
    assert len(PALETTE) >= 8  # the entries that a study draws
    histories = {f"{i}": {"loss": [1.0, 0.5], "accuracy": [0.1, 0.2]} for i in range(2 * len(PALETTE))}
    lines = viz.plot_history(histories).axes[0].lines
    looks = {(to_hex(line.get_color()), line.get_linewidth()) for line in lines}
    assert len(looks) == len(lines) == 2 * len(PALETTE)


def test_a_scale_of_equal_values_is_no_noise():
    zeros = [np.zeros((2, 2))]
    assert (scale_of(zeros).vmin, scale_of(zeros).vmax) == (0, 1)
    assert (scale_around_zero(zeros).vmin, scale_around_zero(zeros).vmax) == (-1, 1)
    half = scale_of([np.full((2, 2), 0.5)], stretch=True)
    assert (half.vmin, half.vmax) == (0.5, 1.5)


def test_gaps_in_a_history_are_left_out():
    history = {"loss": [2.0, None, 1.0], "accuracy": [0.1, None, 0.3], "val_loss": [None] * 3}
    (line,) = viz.plot_history(history).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 2], [3, 1]]


def test_a_network_without_a_head_takes_any_labels(rng):
    X = rng.standard_normal((2, 8, 8, 1), dtype="float32")
    nets = {name: VisionTransformer(8, 4, 1, 0, dim=8, depth=1, heads=2, rng=rng) for name in "ab"}
    assert viz.compare_attention(nets, X, ["cat", "dog"]).y.tolist() == ["cat", "dog"]


def test_a_figure_may_have_formulas():
    for formulas in (False, True):
        figure = new_figure(2, 1, formulas=formulas)
        text = figure.text(0.5, 0.5, "$x_1$")
        figure.savefig(io.BytesIO(), format="png")
        assert text.get_parse_math() == formulas
