"""The interactive page beyond attention: similarity, components, norms, occlusion; pointing at the image."""

import base64
import json

import numpy as np
import pytest
from chromium import Chromium
from test_attention_page import assert_shows, centre, data_of, expected_pixels, made_up, network, on_page, pixels, state

from tinybitvit.viz import compare_attention

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def comparison():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((3, 6, 8, 2), dtype="float32")
    return compare_attention({f"{b} bits": network(rng, b) for b in (32, 1.58, 1)}, X, ["a", "b", "c"], occlude=True)


@pytest.fixture(scope="module")
def browser():
    with Chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser, comparison, tmp_path):
    path = tmp_path / "page.html"
    comparison.to_html(path)
    assert path.stat().st_size < 3_000_000
    browser.open(path, width=1250)
    choose(browser, overlay=100)
    yield browser
    assert browser.errors == []
    assert browser.requests == [path.resolve().as_uri()]


def choose(browser, **controls):
    for name, value in controls.items():
        browser.evaluate(
            f"(() => {{ const node = document.getElementById('{name}'); node.value = {json.dumps(value)};"
            " node.dispatchEvent(new Event('input')); })()"
        )


def text(browser, name):
    return browser.evaluate(f"document.getElementById('{name}').textContent")


def on_image(browser, token):
    x, y = centre(token)
    left, top, width = browser.evaluate(
        "(() => { const b = document.getElementById('original').getBoundingClientRect();"
        " return [b.left, b.top, b.width]; })()"
    )
    return left + x * width / 560, top + y * width / 560


def test_pointing_at_the_image_is_pointing_at_the_map(opened, comparison):
    maps = [comparison.matrix(name)[0] for name in comparison.names]
    opened.mouse("move", *on_image(opened, 7))
    assert_shows(opened, [m[7] for m in maps])
    assert text(opened, "query") == "Where row 1, column 1 looks"
    opened.mouse("move", *on_image(opened, 7), shift=True)
    assert_shows(opened, [m[:, 7] for m in maps])
    opened.mouse("click", *on_image(opened, 4))
    opened.mouse("move", 5, 5)
    assert_shows(opened, [m[4] for m in maps])
    assert text(opened, "query").endswith("(pinned)")
    opened.key("Escape")
    opened.mouse("move", *on_image(opened, 0))  # above the image: it has no extra tokens
    assert text(opened, "query") == "What the class token reads"


def test_similarity_of_the_patch_that_is_pointed_at(opened, comparison):
    choose(opened, method="similarity", layer=1)
    cosines = [record.similarity(1)[0] for record in comparison.records.values()]
    low = min(0, *(c[0, 2:].min() for c in cosines))
    assert_shows(opened, [c[0] for c in cosines], low=low)
    assert text(opened, "query") == "Cosine with what the classifier reads, on average"
    opened.mouse("move", *on_image(opened, 5))
    low = min(0, *(c[5, 2:].min() for c in cosines))
    assert_shows(opened, [c[5] for c in cosines], low=low)
    near = np.argsort(-np.delete(cosines[0][5], 5))[0]
    name = comparison.records["32 bits"].layout.names[near + (near >= 5)]
    assert text(opened, "readout").startswith(f"32 bits: most at {name} (")
    assert "x_i · x_j" in text(opened, "about") and "compare patches within one map" in text(opened, "about")
    label = opened.evaluate("document.querySelector('canvas.map').getAttribute('aria-label')")
    assert label == "32 bits similarity of tokens. Cosine between row 0, column 3 and all tokens"


def test_components_are_shown_as_colours(opened, comparison):
    choose(opened, method="components", layer=2)
    for model, record in enumerate(comparison.records.values()):
        expected = 255 * record.component_colors(2)[0].reshape(-1, 3)
        assert np.abs(pixels(opened, model) - expected).max() <= 1
    assert opened.evaluate("document.querySelectorAll('.scale:not([hidden])').length") == 0
    assert opened.evaluate("document.getElementById('difference-label').hidden")
    opened.mouse("move", *on_page(opened, 1, 6))
    assert text(opened, "readout") == "row 1, column 0"


def test_norms_and_a_clipped_outlier(opened, comparison):
    choose(opened, method="norms", layer=0)
    norms = [record.norms(0)[0] for record in comparison.records.values()]
    assert_shows(opened, norms)
    choose(opened, clip=20)
    patches = np.sort(np.concatenate([n[2:] for n in norms]))
    high = patches[int(np.ceil(0.8 * len(patches))) - 1]
    assert high < patches[-1]
    assert_shows(opened, [np.minimum(n, high) for n in norms], high=high)
    assert "registers" in text(opened, "about")
    opened.mouse("move", *on_page(opened, 0, 4))
    assert text(opened, "readout").split("\n")[0].endswith(f"; row 0, column 2: {norms[0][4]:.1f}")


def test_clipping_serves_attention_too(opened, comparison):
    rows = [comparison.matrix(name)[0, 0] for name in comparison.names]
    choose(opened, clip=20)
    patches = np.sort(np.concatenate([r[2:] for r in rows]))
    high = patches[int(np.ceil(0.8 * len(patches))) - 1]
    assert_shows(opened, [np.minimum(r, high) for r in rows], high=high)


def test_occlusion_is_shown_around_zero(opened, comparison):
    choose(opened, method="occlusion")
    opened.key(".")
    drops = [record.occlusion[1].ravel() for record in comparison.records.values()]
    span = max(np.abs(d).max() for d in drops)
    for model, values in enumerate(drops):
        expected = expected_pixels(values, -span, span, "difference")
        assert np.abs(pixels(opened, model) - expected).max() <= 8
    assert f"{100 * span:.1f} points" in text(opened, "scales")
    opened.mouse("move", *on_image(opened, 9))
    assert text(opened, "readout").split("\n")[1].endswith(f"; row 1, column 3: {100 * drops[1][7]:.1f} points")
    assert "never saw images with holes" in text(opened, "about")


def test_keys_go_through_all_views(opened):
    seen = []
    for _ in range(9):
        opened.key("m")
        seen.append(state(opened)[0])
    assert seen == ["mean", "max", "min", "head", "similarity", "components", "norms", "occlusion", "rollout"]


def test_what_was_not_recorded_is_not_offered(browser, tmp_path):
    made_up(1, 2, 2, 5, 8).to_html(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    offered = browser.evaluate("[...document.querySelectorAll('#method option')].map((o) => o.value)")
    assert offered == ["rollout", "mean", "max", "min", "head"] and browser.errors == []


def test_the_page_holds_what_the_record_holds(comparison):
    data = data_of(comparison.to_html(layers=[1], max_images=2))
    for model, record in zip(data["models"], comparison.records.values(), strict=True):
        cosines = np.frombuffer(base64.b64decode(model["similarity"]), "int8").reshape(2, 10, 10) / 127
        np.testing.assert_allclose(cosines, record.similarity(1)[:2], atol=0.5001 / 127)
        drops = np.frombuffer(base64.b64decode(model["occlusion"]), "<f4").reshape(2, 2, 4)
        np.testing.assert_allclose(drops, record.occlusion[:2], atol=1e-6)
