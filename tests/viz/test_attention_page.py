"""The interactive page: what is written into it, and what it does in a real browser."""

import base64
import html
import json
import re
import time

import numpy as np
import pytest
from chromium import Chromium
from matplotlib import colormaps
from matplotlib.colors import to_hex

from tinybitvit.models import VisionTransformer
from tinybitvit.viz import AttentionRecord, Layout, compare_attention, page


def network(rng, bits=32, depth=3):
    model = VisionTransformer((6, 8), (3, 2), 2, 4, 12, depth, 3, 2, bits, pool="cls", registers=1, rng=rng)
    for name, p in model.named_parameters():
        if p.ndim == 2 and "qkv" in name:
            p.data *= 4
        p.data += 0.05 * rng.standard_normal(p.shape, dtype="float32")
    return model


@pytest.fixture(scope="module")
def comparison():
    rng = np.random.default_rng(1)
    X, labels = rng.standard_normal((3, 6, 8, 2), dtype="float32"), ["cat", "</script><script>alert(1)</script>", "dog"]
    models = {"32 bits": network(rng), "1.58 bits": network(rng, 1.58), '<b>"1 & 1"</b>': network(rng, 1)}
    return compare_attention(models, X, labels, target="predicted")


@pytest.fixture(scope="module")
def record(comparison):
    return comparison.records["32 bits"]


def made_up(images, layers, heads, tokens, size, seed=0):
    """A record of the given size without a network."""
    rng = np.random.default_rng(seed)
    maps = [rng.dirichlet(np.ones(tokens), (images, heads, tokens)).astype("float32") for _ in range(layers)]
    layout = Layout((1, tokens - 1), class_token=True, pool="cls")
    return AttentionRecord(maps, layout, np.zeros((images, size, size, 3)), np.zeros((images, 10)), list(range(10)))


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def unpack(block, *shape):
    values = np.frombuffer(base64.b64decode(block["values"]), "uint8").reshape(shape)
    return values * np.frombuffer(base64.b64decode(block["scale"]), "<f4").reshape(*shape[:-1], 1)


# --- the text ---------------------------------------------------------------------------------------------------------


def test_maps_in_the_page_are_those_of_the_record(record):
    data = data_of(record.to_html())
    model = data["models"][0]
    shape = (3, 3, 10, 10)  # images, layers, tokens
    heads = unpack(model["heads"], 3, 3, 3, 10, 10)
    rollout, gradient = (unpack(model[kind], *shape) for kind in ("rollout", "gradient"))
    for layer in range(3):
        for sent, true in (
            (heads[:, layer], record.maps[layer]),
            (rollout[:, layer], record.rollout(stop=layer + 1)),
            (gradient[:, layer], record.gradient_rollout(stop=layer + 1)),
        ):
            assert (np.abs(sent - true) <= 0.5001 * true.max(-1, keepdims=True) / 255 + 1e-9).all()
    assert data["layout"]["names"][:3] == ["class token", "register 0", "row 0, column 0"]
    assert data["truth"] is None and model["predictions"][1]["label"] == str(record.predictions[1])
    np.testing.assert_allclose(model["overview"]["values"], record.entropy().mean(0), atol=1e-4)


def test_heads_are_sent_in_the_order_of_the_reference(comparison):
    data = data_of(comparison.to_html())
    assert [m["name"] for m in data["models"]] == comparison.names and data["truth"][2] == "dog"
    assert any(len(np.unique(comparison.matches[n], axis=0)) > 1 for n in comparison.others)  # layers differ
    for name, model in zip(comparison.others, data["models"][1:], strict=True):
        assert model["matches"] == comparison.matches[name].tolist()
        heads = unpack(model["heads"], 3, 3, 3, 10, 10)
        for layer, order in enumerate(comparison.matches[name]):
            np.testing.assert_allclose(heads[:, layer], comparison.records[name].maps[layer][:, order], atol=0.002)
        np.testing.assert_allclose(model["overview"]["values"], comparison.divergence[name], atol=1e-4)


def test_a_subset(record):
    data = data_of(record.to_html(layers=[-1, 0], max_images=2))
    assert data["layers"] == [0, 2] and data["images"]["count"] == 2
    rollout = unpack(data["models"][0]["rollout"], 2, 2, 10, 10)
    np.testing.assert_allclose(rollout[:, 1], record.rollout()[:2], atol=0.003)  # of all layers, sent or not
    for layers in ([3], []):
        with pytest.raises(ValueError, match="layers must hold numbers from 0 to 2"):
            record.to_html(layers=layers)
    with pytest.raises(ValueError, match="max_images must be 1 or more"):
        record.to_html(max_images=0)


def test_nothing_from_outside_and_nothing_injected(comparison, tmp_path):
    text = comparison.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    assert not re.search(r"https?:|\bsrc=|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    assert "default-src 'none'" in text
    assert text.count("</script>") == 2 and "alert(1)</script>" not in text
    assert "&lt;b&gt;&quot;1 &amp; 1&quot;&lt;/b&gt;" in text and "<b>" not in text
    assert not re.search(r"\{\{\w+\}\}", text)
    assert "Attention is not explanation" in text


def test_names_that_look_like_placeholders(comparison):
    odd = AttentionRecord(**{**vars(comparison.records["32 bits"]), "classes": ["{{js}}", "{{data}}", r"\1", "\u2028"]})
    labels = {p["label"] for p in data_of(odd.to_html())["models"][0]["predictions"]}
    assert labels == {str(x) for x in odd.predictions}


def test_size_of_three_models():
    models = {str(i): made_up(4, 12, 6, 17, 32, seed=i) for i in range(3)}
    matches = {name: np.tile(np.arange(6), (12, 1)) for name in models}
    from tinybitvit.viz import AttentionComparison

    comparison = AttentionComparison(models, None, matches, {name: np.zeros((12, 6)) for name in models})
    size = len(comparison.to_html().encode())
    assert size < 3_000_000
    assert 0.9 < page.estimate(models, 12, 4) / size < 1.1


def test_large_models_warn_and_notebooks_get_a_part():
    base = made_up(3, 12, 12, 197, 224)  # the size of ViT-B/16
    with pytest.warns(UserWarning, match=r"about 27 MB .* layers=\[11\] or max_images=1"):
        text = base.to_html()
    assert 26e6 < len(text) < 29e6
    small = base.to_html(layers=[11])  # no warning
    assert len(small) < 3e6
    shown = data_of(html.unescape(base._repr_html_()))
    assert shown["images"]["count"] == 1 and shown["layers"] == list(range(6, 12))
    assert shown["note"].startswith(
        "Only the last 6 of 12 layers and the first 1 of 3 images are shown; .to_html(path)"
    )


def test_in_a_notebook(record):
    frame = record._repr_html_()
    assert frame.startswith('<iframe srcdoc="') and 'sandbox="allow-scripts"' in frame
    inner = re.search(r'srcdoc="([^"]*)"', frame)[1]
    assert html.unescape(inner) == record.to_html()


def test_colours_are_matplotlibs():
    for kind, name in (("attention", "viridis"), ("difference", "RdBu_r")):
        stops = page.COLORS[kind]
        assert stops == [to_hex(colormaps[name](i / (len(stops) - 1))) for i in range(len(stops))]


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with Chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser, comparison, tmp_path):
    """The comparison's page, its maps opaque so that a pixel is the colour of its value."""
    path = tmp_path / "page.html"
    comparison.to_html(path)
    browser.open(path, width=1250)
    browser.evaluate(
        "const o = document.getElementById('overlay'); o.value = 100; o.dispatchEvent(new Event('input')); undefined"
    )
    yield browser
    assert browser.errors == []
    assert browser.requests == [path.resolve().as_uri()]


WIDTH = 560  # of a map's canvas, and the height of the row of extra tokens above the image
STRIP = 60


def centre(token):
    """The centre of a token's cell in pixels of the canvas: class token and register above 2 x 4 patches."""
    if token < 2:
        return 176 * token + 86, 26
    row, column = divmod(token - 2, 4)
    return (column + 0.5) * WIDTH / 4, STRIP + (row + 0.5) * (WIDTH * 6 / 8) / 2


def on_page(browser, model, token):
    """The same place in the window."""
    x, y = centre(token)
    box = browser.evaluate(
        f"(() => {{ const b = document.querySelectorAll('canvas.map')[{model}].getBoundingClientRect();"
        " return [b.left, b.top, b.width]; })()"
    )
    return box[0] + x * box[2] / WIDTH, box[1] + y * box[2] / WIDTH


def pixels(browser, model):
    """The colours (8, 3) in the patches of a model's map, a little off the centre."""
    places = json.dumps([centre(token) for token in range(2, 10)])
    return np.array(
        browser.evaluate(
            f"{places}.map(([x, y]) => [...document.querySelectorAll('canvas.map')[{model}].getContext('2d')"
            ".getImageData(Math.round(x) + 9, Math.round(y) + 9, 1, 1).data].slice(0, 3))"
        )
    )


def expected_pixels(values, low, high, kind="attention"):
    """Python's own colours for values (8,) on a scale."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in page.COLORS[kind]], float)
    at = np.clip((values - low) / (high - low), 0, 1) * (len(stops) - 1)
    return np.stack([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)], 1)


def assert_shows(browser, vectors, kind="attention", low=0.0, high=None, models=(0, 1, 2)):
    """The maps of these models show the vectors (tokens,), on one scale."""
    high = max(v[2:].max() for v in vectors) if high is None else high
    for model, vector in zip(models, vectors, strict=True):
        difference = np.abs(pixels(browser, model) - expected_pixels(vector[2:], low, high, kind))
        assert difference.max() <= 8, (model, difference.max())  # a step of the 8-bit values


def state(browser):
    names = ("method", "layer", "head")
    return tuple(browser.evaluate(f"document.getElementById('{name}').value") for name in names)


@pytest.mark.browser
def test_hovering_a_patch_shows_its_row_in_every_model(opened, comparison):
    names = comparison.names
    assert state(opened) == ("rollout", "2", "0")
    first = [comparison.matrix(n)[0] for n in names]
    assert_shows(opened, [m[0] for m in first])  # the class token's row
    opened.mouse("move", *on_page(opened, 1, 7))
    assert_shows(opened, [m[7] for m in first])
    assert opened.evaluate("document.getElementById('query').textContent") == "Where row 1, column 1 looks"
    readout = opened.evaluate("document.getElementById('readout').textContent").split("\n")
    assert readout[0].startswith(
        f"32 bits: most at {comparison.records['32 bits'].layout.names[first[0][7].argmax()]} ("
    )
    opened.mouse("move", *on_page(opened, 0, 9), shift=True)
    assert_shows(opened, [m[:, 9] for m in first])  # shift: who looks at it
    opened.mouse("move", *on_page(opened, 0, 1))
    assert_shows(opened, [m[1] for m in first])  # a register
    opened.mouse("move", 5, 5)
    assert_shows(opened, [m[0] for m in first])


@pytest.mark.browser
def test_keys_change_layer_head_method_and_image(opened, comparison):
    opened.key("ArrowDown")
    assert state(opened) == ("rollout", "1", "0")
    assert_shows(opened, [comparison.matrix(n, "rollout", 1)[0, 0] for n in comparison.names])
    opened.key("ArrowRight")
    opened.key("ArrowRight")
    assert state(opened) == ("head", "1", "2")
    assert_shows(opened, [comparison.matrix(n, 2, 1)[0, 0] for n in comparison.names])
    for key, expected in (("ArrowRight", "2"), ("ArrowLeft", "1")):
        opened.key(key)
        assert state(opened)[2] == expected
    opened.key("ArrowUp")
    opened.key("ArrowUp")
    assert state(opened)[1] == "2"
    opened.key(".")
    assert_shows(opened, [comparison.matrix(n, 1, 2)[1, 0] for n in comparison.names])
    assert opened.evaluate("document.getElementById('truth').textContent").endswith("<script>alert(1)</script>")
    for _ in ("similarity", "components", "norms"):  # see test_views_page.py
        opened.key("m")
    for method in ("rollout", "gradient", "mean", "max", "min"):
        opened.key("m")
        assert state(opened)[0] == method
        assert_shows(opened, [comparison.matrix(n, method)[1, 0] for n in comparison.names])


@pytest.mark.browser
def test_pinning_and_moving_by_keys(opened, comparison):
    rows = [comparison.matrix(n)[0] for n in comparison.names]
    opened.mouse("click", *on_page(opened, 2, 4))
    opened.mouse("move", *on_page(opened, 2, 6))
    assert_shows(opened, [m[4] for m in rows])
    text = opened.evaluate("document.getElementById('readout').textContent").split("\n")[0]
    assert text.endswith(f"; row 1, column 0: {100 * rows[0][4, 6]:.1f} %")
    for key, token in (("s", 8), ("a", 7), ("a", 6), ("a", 6), ("w", 2), ("d", 3)):
        opened.key(key)
        assert_shows(opened, [m[token] for m in rows])
    opened.key("t")
    assert_shows(opened, [m[:, 3] for m in rows])
    opened.key("t")
    opened.key("Escape")
    assert_shows(opened, [m[0] for m in rows])
    opened.mouse("move", 5, 5)
    opened.key("s")  # without a patch, the keys begin in the middle
    opened.key("Enter")
    assert opened.evaluate("document.getElementById('query').textContent") == "Where row 1, column 2 looks (pinned)"
    opened.key("Enter")
    assert opened.evaluate("document.getElementById('query').textContent") == "Where row 1, column 2 looks"


@pytest.mark.browser
def test_difference_and_contrast(opened, comparison):
    rows = [comparison.matrix(n)[0, 0] for n in comparison.names]
    low, high = min(r[2:].min() for r in rows), max(r[2:].max() for r in rows)
    opened.evaluate("document.getElementById('stretch').click()")
    assert_shows(opened, rows, low=low, high=high)
    opened.evaluate("document.getElementById('stretch').click(); document.getElementById('difference').click()")
    assert_shows(opened, rows[:1], models=[0])
    differences = [r - rows[0] for r in rows[1:]]
    span = max(np.abs(d[2:]).max() for d in differences)
    assert_shows(opened, differences, "difference", -span, span, models=[1, 2])
    scales = opened.evaluate("[...document.querySelectorAll('.scale:not([hidden])')].map((s) => s.textContent)")
    assert len(scales) == 2 and f"{100 * span:.{2 if span < 0.1 else 1}f} %" in scales[1]


@pytest.mark.browser
def test_controls_work_by_keyboard_alone(opened):
    """Tab reaches every control and the maps, and what has the focus keeps its own keys."""
    seen = []
    for _ in range(20):
        opened.key("Tab")
        seen.append(opened.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"BUTTON", "method", "layer", "head", "overlay", "incoming", "stretch", "difference", "CANVAS"} <= {*seen}
    opened.evaluate("document.getElementById('layer').focus()")
    opened.key("ArrowLeft")
    assert state(opened) == ("rollout", "1", "0")
    opened.evaluate("document.getElementById('method').focus()")
    opened.key("ArrowDown")
    assert state(opened) == ("gradient", "1", "0")
    opened.evaluate("document.querySelectorAll('#images button')[2].focus()")
    opened.key("Enter")
    assert opened.evaluate("document.getElementById('truth').textContent") == "label: dog"
    labels = opened.evaluate("[...document.querySelectorAll('canvas.map')].map((c) => c.getAttribute('aria-label'))")
    assert labels[0] == "32 bits attention map. What the class token reads"


@pytest.mark.browser
def test_a_click_on_the_overview_chooses_the_head(opened):
    x, y = opened.evaluate(
        "(() => { const b = document.querySelectorAll('canvas.overview')[1].getBoundingClientRect();"
        " return [b.left + b.width * 0.5, b.top + b.height * 0.1]; })()"
    )
    opened.mouse("click", x, y)
    assert state(opened) == ("head", "0", "1")


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 1250])
def test_readable_in_light_and_dark_wide_and_narrow(browser, comparison, tmp_path, dark, width):
    comparison.to_html(tmp_path / "page.html")
    browser.open(tmp_path / "page.html", width=width, dark=dark)
    colors = browser.evaluate(
        "['body', '#caveat', '.overview-title'].map((s) => getComputedStyle(document.querySelector(s)).color)"
        ".concat(getComputedStyle(document.body).backgroundColor)"
    )
    *texts, ground = (luminance([int(v) for v in re.findall(r"\d+", c)[:3]]) for c in colors)
    assert bool(ground < 0.05) == dark
    for text in texts:
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5  # WCAG 2.2, success criterion 1.4.3
    assert browser.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    assert browser.evaluate("document.querySelector('canvas.map').getBoundingClientRect().width") >= 200
    assert browser.errors == []


def luminance(rgb):
    """Relative luminance by WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.divide(rgb, 255)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.browser
def test_a_record_alone_in_a_notebook_cell(browser, record, tmp_path):
    """As a notebook shows it: in a sandboxed iframe, which does not scroll sideways."""
    (tmp_path / "cell.html").write_text(f"<!doctype html><body>{record._repr_html_()}</body>")
    browser.open(tmp_path / "cell.html", width=900, height=1200)
    time.sleep(0.3)  # the iframe's script
    browser.screenshot(tmp_path / "cell.png")
    assert browser.errors == [] and len(browser.requests) <= 2
    assert all(r.startswith(("file:", "about:srcdoc")) for r in browser.requests)


@pytest.mark.browser
def test_three_models_open_in_two_seconds(browser, tmp_path):
    from tinybitvit.viz import AttentionComparison

    models = {str(i): made_up(4, 12, 6, 17, 32, seed=i) for i in range(3)}
    matches = {name: np.tile(np.arange(6), (12, 1)) for name in models}
    comparison = AttentionComparison(models, None, matches, {name: np.zeros((12, 6)) for name in models})
    comparison.to_html(tmp_path / "page.html")
    assert browser.open(tmp_path / "page.html") < 2
    assert browser.evaluate("document.querySelectorAll('canvas.map').length") == 3
    assert browser.errors == []
