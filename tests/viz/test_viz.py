"""tb.viz: comparison of models, the matplotlib figures, image files."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

import tinybitvit as tb
from tinybitvit import viz
from tinybitvit.data import DataError
from tinybitvit.models import VisionTransformer
from tinybitvit.viz import measures
from tinybitvit.viz.images import display_images


def network(rng, depth=2, bits=32, classes=3, **options):
    model = VisionTransformer((6, 8), (3, 2), 2, classes, 12, depth, 3, 2, bits, rng=rng, **options)
    for name, p in model.named_parameters():
        if p.ndim == 2 and "qkv" in name:
            p.data *= 4
        p.data += 0.05 * rng.standard_normal(p.shape, dtype="float32")
    return model


def permute_heads(model, orders):
    """A copy of the model with the heads of each layer in another order; its outputs are the same."""
    model = copy.deepcopy(model)
    for block, order in zip(model.blocks, orders, strict=True):
        attn = block.attn
        for p in (attn.qkv.weight, attn.qkv.bias):
            p.data = p.data.reshape(3, 3, 4, -1)[:, order].reshape(p.shape)
        attn.proj.weight.data = attn.proj.weight.data.reshape(12, 3, 4)[:, order].reshape(12, 12)
    return model


@pytest.fixture
def X(rng):
    return rng.standard_normal((5, 6, 8, 2), dtype="float32")


@pytest.fixture
def comparison(rng, X):
    models = {"32 bits": network(rng, pool="cls"), "1.58 bits": network(rng, bits=1.58, pool="cls")}
    return viz.compare_attention({**models, "1 bit": network(rng, bits=1, pool="cls")}, X, [0, 1, 2, 1, 0], target=0)


@pytest.fixture(scope="module")
def fitted():
    """Two estimators on images of two classes, with a validation set."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, (60, 8, 8, 3), dtype="uint8"), np.array(["cat", "dog"])[np.arange(60) % 2]
    X[y == "dog", 2:6] //= 3
    options = {"dim": 8, "depth": 2, "heads": 2, "patch_size": 2, "epochs": 2, "verbose": 0, "random_state": 0}
    models = {f"{b:g} bits": tb.ViT(bits=b, **options).fit(X, y, eval_set=(X[:9], y[:9])) for b in (32, 1.58)}
    return models, X, y


# --- comparison -------------------------------------------------------------------------------------------------------


def test_permuted_heads_are_matched_back(rng, X):
    a, orders = network(rng), [[2, 0, 1], [1, 2, 0]]
    b = permute_heads(a, orders)
    result = viz.compare_attention({"a": a, "b": b}, X)
    np.testing.assert_allclose(result.records["a"].logits, result.records["b"].logits, atol=1e-4)
    np.testing.assert_array_equal(result.matches["b"], np.argsort(orders, axis=1))
    np.testing.assert_allclose(result.divergence["b"], 0, atol=1e-6)
    for head in range(3):
        np.testing.assert_allclose(result.difference("b", head, layer=1), 0, atol=1e-5)
    np.testing.assert_allclose(result.overlap()["b"], 1)
    assert not result.changed()["b"].any()
    kept = viz.compare_attention({"a": a, "b": b}, X, match=False)
    np.testing.assert_array_equal(kept.matches["b"], [[0, 1, 2]] * 2)
    assert (kept.divergence["b"] > 0.01).all()


def test_divergence_is_that_of_the_matched_heads(rng, X):
    result = viz.compare_attention({"a": network(rng), "b": network(rng)}, X)
    a, b = result.records["a"].maps[1], result.records["b"].maps[1]
    for head, match in enumerate(result.matches["b"][1]):
        expected = measures.js_divergence(a[:, head], b[:, match]).mean()
        np.testing.assert_allclose(result.divergence["b"][1, head], expected, atol=1e-9)
    cost = measures.head_divergence(a, b)
    assert result.divergence["b"][1].sum() <= np.trace(cost) + 1e-12


def test_jensen_shannon_against_torch(rng):
    p, q = rng.dirichlet(np.ones(7), (2, 4))
    m = torch.from_numpy((p + q) / 2).log()
    kl = lambda t: torch.nn.functional.kl_div(m, torch.from_numpy(t), reduction="none").sum(-1)  # noqa: E731
    expected = (kl(p) + kl(q)).numpy() / 2 / np.log(2)
    np.testing.assert_allclose(measures.js_divergence(p, q), expected)
    np.testing.assert_array_equal(measures.js_divergence(p, q), measures.js_divergence(q, p))
    np.testing.assert_allclose(measures.js_divergence([1, 0, 0], [0, 0.5, 0.5]), 1)
    np.testing.assert_array_equal(measures.js_divergence(p, p), 0)


def test_overlap_of_top_patches():
    a = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    b = np.array([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])
    masks = [measures.top_patches(x, 50) for x in (a, b)]
    np.testing.assert_array_equal(masks[0], [[1, 1, 0, 0], [1, 1, 0, 0]])  # equal values: the first ones
    np.testing.assert_allclose(measures.iou(*masks), [1 / 3, 0])
    assert (measures.top_patches(a, 1).sum(1) == 1).all() and measures.top_patches(a, 100).all()
    for top in (0, 101):
        with pytest.raises(ValueError, match="top is a percentage"):
            measures.top_patches(a, top)


def test_summary(comparison):
    rows = comparison.summary(top=25)
    assert [row["model"] for row in rows] == ["32 bits", "1.58 bits", "1 bit"]
    assert rows[0]["divergence"] < 1e-6 and rows[0]["overlap of top 25 %"] == 1 and rows[0]["changed predictions"] == 0
    predicted = {name: record.logits.argmax(1) for name, record in comparison.records.items()}
    for row in rows[1:]:
        assert row["divergence"] == comparison.divergence[row["model"]].mean() > 0.001
        assert row["changed predictions"] == (predicted[row["model"]] != predicted["32 bits"]).mean()
    assert rows[2]["accuracy"] == (predicted["1 bit"] == [0, 1, 2, 1, 0]).mean()
    assert repr(comparison).startswith("AttentionComparison of 5 images with '32 bits'\n")
    assert "Attention is not explanation" in viz.AttentionComparison.__doc__


def test_difference_is_model_minus_reference(comparison):
    a, b = (comparison.records[n].image_map("mean", 0, (1, 2)) for n in ("32 bits", "1 bit"))
    np.testing.assert_array_equal(comparison.difference("1 bit", "mean", 0, (1, 2)), b - a)


def test_models_without_a_head_can_be_compared(rng, X):
    result = viz.compare_attention({n: network(rng, classes=0, pool="cls") for n in "ab"}, X)
    assert set(result.summary()[1]) == {"model", "divergence", "overlap of top 20 %"}
    check(result.plot(), 4 * 4 + 2)
    check(viz.plot_damage(result), 3)


@pytest.mark.parametrize(
    ("models", "y", "text"),
    [
        (lambda rng: {"a": network(rng)}, None, "at least two models"),
        (lambda rng: {"a": network(rng), "b": network(rng, depth=3)}, None, "compare models of one shape"),
        (lambda rng: {"a": network(rng), "b": network(rng, registers=1)}, None, "compare models of one shape"),
        (lambda rng: {"a": network(rng), "b": network(rng)}, [0, 1], "one label for each of the 5 images"),
    ],
)
def test_what_cannot_be_compared(rng, X, models, y, text):
    with pytest.raises(ValueError, match=text):
        viz.compare_attention(models(rng), X, y)


# --- figures ----------------------------------------------------------------------------------------------------------


def check(figure, axes):
    """So many axes; every axes with data says what it shows; no text is cut off by the edge of the figure."""
    assert isinstance(figure, Figure)
    assert len(figure.axes) == axes
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    for part in [*figure.axes, *figure.legends, *([figure._supxlabel] if figure.get_supxlabel() else [])]:
        box = part.get_tightbbox()  # with titles, labels and those ticks that are drawn
        inside = box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2
        assert inside, f"{part} at {box.extents} leaves {width} x {height}"
    bars = [ax for ax in figure.axes if hasattr(ax, "_colorbar")]
    assert all(bar.get_xlabel() for bar in bars)
    return bars


def overlays(figure):
    """The maps that are drawn over images, as arrays, in the order of the axes."""
    return [ax.images[1] for ax in figure.axes if len(ax.images) == 2]


def test_plot_attention(comparison):
    record = comparison.records["1.58 bits"]
    figure = viz.plot_attention(record, images=[3, 0])
    assert len(check(figure, 2 * 4 + 3)) == 3
    shown = overlays(figure)
    np.testing.assert_array_equal(shown[3].get_array(), 100 * record.image_map("mean")[0])
    np.testing.assert_array_equal(shown[4].get_array(), 100 * record.image_map("rollout")[0])
    np.testing.assert_array_equal(shown[2].get_array(), 100 * record.image_map("gradient")[3])
    assert shown[1].norm is shown[4].norm and shown[1].norm is not shown[0].norm
    assert shown[1].norm.vmin == 0 and shown[1].norm.vmax == 100 * record.image_map("rollout")[[3, 0]].max()
    stretched = overlays(record.plot(images=[3, 0], stretch=True))[1]
    assert stretched.norm.vmin == 100 * record.image_map("rollout")[[3, 0]].min()
    assert "Attention is not explanation" in figure.get_supxlabel().replace("\n", " ")
    assert "What the class token reads" in figure.get_supxlabel()


def test_plot_attention_of_a_patch_and_heads(comparison):
    record = comparison.records["1 bit"]
    figure = viz.plot_attention(record, methods=["max", 2], layer=0, query=(1, 3))
    check(figure, 4 * 3 + 2)
    np.testing.assert_array_equal(overlays(figure)[3].get_array(), 100 * record.image_map(2, 0, (1, 3))[1])
    assert "Where row 1, column 3 looks" in figure.get_supxlabel()
    assert all(len(ax.patches) == 2 for ax in figure.axes[:12:3])  # the frame around the patch


def test_plot_heads(comparison):
    record = comparison.records["32 bits"]
    figure = viz.plot_heads(record, image=4, query="cls")
    assert len(check(figure, 2 * 3 + 1)) == 1
    shown = overlays(figure)
    np.testing.assert_array_equal(shown[5].get_array(), 100 * record.image_map(2, 1, "cls")[4])
    assert len({id(image.norm) for image in shown}) == 1
    check(viz.plot_heads(record, layers=[1], query=(0, 0)), 4)


def test_plot_statistics(comparison):
    record = comparison.records["32 bits"]
    figure = viz.plot_statistics(record)
    check(figure, 4)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), record.entropy().mean(0))
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), record.distance().mean(0))


def test_plot_comparison(comparison):
    figure = comparison.plot(images=[1, 2], method=1, layer=0)
    assert len(check(figure, 2 * 6 + 2)) == 2
    shown = overlays(figure)  # a row: three models, two differences
    for i, name in enumerate(comparison.names):
        np.testing.assert_array_equal(shown[5 + i].get_array(), 100 * comparison.image_map(name, 1, 0)[2])
    np.testing.assert_allclose(shown[4].get_array(), 100 * comparison.difference("1 bit", 1, 0)[1])
    models, differences = {id(s.norm) for s in shown[:3] + shown[5:8]}, [*shown[3:5], *shown[8:]]
    assert len(models) == 1 and len({id(s.norm) for s in differences}) == 1  # one scale for all models
    norm = differences[0].norm
    assert norm.vmin == -norm.vmax and norm.vmax == max(np.abs(s.get_array()).max() for s in differences)
    assert {s.get_cmap().name for s in differences} == {"RdBu_r"}


def test_plot_damage(comparison):
    figure = viz.plot_damage(comparison, top=30)
    assert len(check(figure, 4)) == 1
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), comparison.divergence["1 bit"])
    assert figure.axes[0].images[0].norm is figure.axes[1].images[0].norm
    assert [t.get_text() for t in figure.axes[0].texts] == [str(i) for i in comparison.matches["1.58 bits"].flat]
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    overlap, changed = comparison.overlap(30), comparison.changed()
    expected = [100 * values[n].mean() for values in (overlap, changed) for n in ("1.58 bits", "1 bit")]
    np.testing.assert_allclose(widths, expected)


def test_plot_history(fitted):
    models, _, _ = fitted
    figure = viz.plot_history(models)
    check(figure, 2)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines[:2]] == ["32 bits, training", "32 bits, validation"]
    np.testing.assert_array_equal(lines[3].get_ydata(), models["1.58 bits"].history_["val_loss"])
    np.testing.assert_array_equal(lines[0].get_xdata(), [1, 2])
    accuracy = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(accuracy, np.multiply(100, models["32 bits"].history_["accuracy"]))
    alone = models["32 bits"].history_ | {"val_loss": [None, None], "val_accuracy": [None, None]}
    for history in (models["32 bits"], alone):
        check(viz.plot_history(history), 2)
    assert len(viz.plot_history(alone).axes[0].lines) == 1
    with pytest.raises(ValueError, match="history must be"):
        viz.plot_history([1, 2])


def test_plot_confusion():
    true, pred = ["cat", "cat", "dog", "eel"], ["cat", "dog", "dog", "dog"]
    figure = viz.plot_confusion(true, pred, names=["a cat", "a dog", "an eel"])
    check(figure, 2)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), [[1, 1, 0], [0, 1, 0], [0, 1, 0]])
    figure = viz.plot_confusion(true, {"a": pred, "b": true}, classes=["eel", "dog", "cat"], normalize=True)
    check(figure, 3)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), [[0, 100, 0], [0, 100, 0], [0, 50, 50]])
    assert [t.get_text() for t in figure.axes[1].texts][:4] == ["100", "0", "0", "0"]
    assert [ax.images[0].get_clim() for ax in figure.axes[:2]] == [(0, 100)] * 2
    many = np.arange(100)
    figure = viz.plot_confusion(many, many, names=[f"a long class name {i}" for i in many])
    check(figure, 2)
    assert not figure.axes[0].texts
    with pytest.raises(ValueError, match="2 texts for 3 classes"):
        viz.plot_confusion(true, pred, names=["a", "b"])


def test_classes_of_a_kind_stand_together():
    matrix = np.arange(16).reshape(4, 4)
    figure = viz.plot_confusion_matrices({"a": matrix}, ["ant", "cat", "bee", "dog"], groups=["insect", "pet"] * 2)
    check(figure, 2)
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix[[0, 2, 1, 3]][:, [0, 2, 1, 3]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["insect", "pet"] and list(ax.get_yticks()) == [0.5, 2.5]
    assert next(line.get_ydata()[0] for line in ax.lines) == 1.5


@pytest.mark.parametrize("bits", [32, 4, 1.58, 1])
def test_plot_weights(rng, bits):
    model = network(rng, bits=bits)
    figure = viz.plot_weights(model, layer=1)
    check(figure, 7)
    layer = model.blocks[1].attn.qkv
    expected = layer.weight.data if bits == 32 else layer.codes()[0]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), expected[12:24])
    title = figure.axes[1].get_title()
    if bits == 1.58:
        zeros = (expected[12:24] == 0).mean()
        assert f"  0: {zeros:.0%}  " in title and 0.1 < zeros < 0.6
    elif bits == 1:
        assert "  0: 0%  " in title
    else:
        assert ("zeros" if bits == 4 else "standard deviation") in title


def test_plot_predictions(fitted):
    models, X, _ = fitted
    model = models["32 bits"]
    wrong = np.where(model.predict(X) == "cat", "dog", "cat")
    names = {"cat": "a cat", "dog": "a dog"}
    figure = viz.plot_predictions(model, X, wrong, images=[5, 7], names=names)
    check(figure, 2)
    assert figure.axes[1].get_xlabel() == f"wrong: {names[wrong[7]]}"
    assert figure.axes[1].get_title() == f"{names[model.predict(X)[7]]} ({model.predict_proba(X)[7].max():.0%})"
    figure = viz.plot_predictions(model, X)
    check(figure, 16)
    assert not any(ax.get_xlabel() for ax in figure.axes)
    with pytest.raises(ValueError, match="images must hold numbers from 0 to 59"):
        viz.plot_predictions(model, X, images=[60])


def test_a_figure_shows_itself_in_a_notebook(comparison):
    data = viz.plot_statistics(comparison.records["1 bit"])._repr_png_()
    assert data.startswith(b"\x89PNG")


def test_nothing_global(comparison):
    """No pyplot, and so no list of open figures that grows; and no matplotlib before the first plot."""
    code = (
        "import sys, numpy as np, tinybitvit as tb; tb.viz.attention; tb.viz.compare_attention;"
        "assert 'matplotlib' not in sys.modules and 'scipy' not in sys.modules;"
        "tb.viz.plot_history({'loss': [1, 2], 'accuracy': [0.5, 0.6]})._repr_png_();"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_display_images(rng):
    grey = np.array([0.0, 4, 16]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(display_images(grey)[0, 0, :, 1], [0, 64, 255])
    unit = rng.random((2, 3, 4, 3)) * 0.5
    np.testing.assert_array_equal(display_images(unit), np.rint(unit * 255))
    whole = rng.integers(0, 255, (2, 3, 4, 4), dtype="uint8")
    np.testing.assert_array_equal(display_images(whole), whole[..., :3])
    assert display_images(np.full((1, 2, 2, 2), -3.0)).shape == (1, 2, 2, 3)


def test_colour_maps_go_from_dark_to_light():
    """What makes a map readable without hue: viridis rises in lightness, RdBu falls from the middle to both sides."""
    lightness = lambda name: colormaps[name](np.linspace(0, 1, 33))[:, :3] @ [0.2126, 0.7152, 0.0722]  # noqa: E731
    from tinybitvit.viz import figure

    assert (np.diff(lightness(figure.SEQUENTIAL)) > 0).all()
    diverging = lightness(figure.DIVERGING)
    assert (np.diff(diverging[:17]) > 0).all() and (np.diff(diverging[16:]) < 0).all()


# --- files ------------------------------------------------------------------------------------------------------------


def test_attention_files(fitted, tmp_path, rng):
    models, _, _ = fitted
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.fromarray(rng.integers(0, 255, (20, 31, 3), dtype="uint8")).save(paths[0])
    Image.fromarray(rng.integers(0, 255, (8, 8), dtype="uint8")).save(paths[1])
    assert viz.attention_files(models["32 bits"], paths, tmp_path / "out.png") == tmp_path / "out.png"
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 400
    viz.attention_files(models, paths, tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert "32 bits, 1.58 bits" in text and '"count":2' in text and text.count('"occlusion":null') == 2
    viz.attention_files(models, paths, tmp_path / "out.html", occlude=True)
    assert '"occlusion":null' not in (tmp_path / "out.html").read_text()
    network = VisionTransformer(8, 4, 1, dim=8, depth=1, heads=2)
    viz.attention_files(network, paths, tmp_path / "grey.html")
    with pytest.raises(ValueError, match=r"must end in \.html"):
        viz.attention_files(network, paths, tmp_path / "out.gif")
    with pytest.raises(ValueError, match="at least one image file"):
        viz.attention_files(network, [], tmp_path / "out.html")
    with pytest.raises(DataError, match="cannot be read as an image"):
        viz.attention_files(network, [tmp_path / "out.html"], tmp_path / "x.html")


@pytest.mark.parametrize("preprocessing", [None, {"mean": [0.2], "std": [0.1]}])
def test_attention_files_normalise_for_a_network(tmp_path, monkeypatch, rng, preprocessing):
    pixels = rng.integers(0, 255, (8, 8), dtype="uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = []
    from tinybitvit.viz import files

    monkeypatch.setattr(files, "attention", lambda model, X, **_: seen.append(X) or viz.attention(model, X))
    network = VisionTransformer(8, 4, 1, dim=8, depth=1, heads=2)
    network.preprocessing = preprocessing
    viz.attention_files(network, [tmp_path / "a.png"], tmp_path / "o.html")
    mean, std = (0.2, 0.1) if preprocessing else (0.5, 0.5)
    np.testing.assert_allclose(seen[0][0, :, :, 0], (pixels / 255 - mean) / std, atol=1e-5)


# --- the page of the documentation ------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def test_every_picture_in_the_docs_is_made_by_the_page():
    text = (DOCS / "attention.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^\]]+\]\(figures/(\w+)\.png\)", text))
    saved = set(re.findall(r'savefig\("figures/(\w+)\.png"', text))
    assert shown == saved | {"page"} and len(shown) == 13
    for name in shown:
        assert 5_000 < (DOCS / "figures" / f"{name}.png").stat().st_size < 150_000
    for name in set(re.findall(r"tb\.viz\.(\w+)", text)):
        assert hasattr(viz, name), name


@pytest.mark.slow
def test_the_code_of_the_docs_runs(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("attention.md", "make_attention_figures.py"):
        shutil.copy(DOCS / name, tmp_path / name)
    code = "import sys; sys.path[:0] = sys.argv[1:]; import make_attention_figures as m; m.main()"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path), str(DOCS.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    shown = set(re.findall(r"\(figures/(\S+\.png)\)", (DOCS / "attention.md").read_text()))
    assert made | {"page.png"} == shown
    assert shown <= {path.name for path in (DOCS / "figures").iterdir()}
