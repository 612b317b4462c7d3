"""The page of the networks that come with the library: digits drawn with a mouse, pictures dropped, on a phone."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium
from hand import PLAIN, draw
from PIL import Image

import tinybitvit as tb
from tinybitvit.models import zoo
from tinybitvit.web import to_html

DOCS = Path(__file__).parents[2] / "docs"
DIGITS = {"32 bits": "digits-32bit", "1.58 bits": "digits-1.58bit", "1 bit": "digits-1bit"}


@pytest.fixture
def live_page(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module("live_page")


@pytest.fixture(scope="module")
def browser():
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    data = tb.data.load_digits()
    first = [np.flatnonzero(data.y_test == digit)[0] for digit in range(10)]
    path = tmp_path_factory.mktemp("zoo") / "digits.html"
    models = {name: tb.load(file) for name, file in DIGITS.items()}
    to_html(models, path, X=data.X_test[first], y=data.y_test[first])
    return path


def answers(browser):
    return browser.evaluate("[...document.querySelectorAll('.answer b')].map((b) => b.textContent)")


@pytest.mark.browser
def test_digits_drawn_with_a_mouse_are_read(browser, page):
    """Two plain styles of all ten, apart from those of the training: 18 of 20 at every width, a plain 7 always."""
    browser.open(page)
    found = {}
    for digit, styles in PLAIN.items():
        for style, strokes in enumerate(styles):
            browser.evaluate("byId('clear').click()")
            draw(browser, strokes)
            found[digit, style] = answers(browser)
    right = np.array([[said == str(digit) for said in said_by] for (digit, _), said_by in found.items()])
    assert (right.sum(axis=0) >= 18).all(), (right.sum(axis=0), found)
    assert found[7, 0] == found[7, 1] == ["7"] * 3
    assert browser.errors == [] and browser.requests == [page.resolve().as_uri()]


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_drawing_and_answers_are_in_sight_together(browser, page, dark):
    browser.open(page, width=390, height=844, dark=dark)
    assert answers(browser)[0] != ""  # an example is chosen: no black squares
    boxes = browser.evaluate(
        "['#pad', '#pen', ...[0, 1, 2].map((i) => `#panels figure:nth-child(${i + 1}) canvas`)]"
        ".map((s) => document.querySelector(s).getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom])"
    )
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= 390 and bottom <= 844
    assert max(top for _, top, _, _ in boxes[2:]) == min(top for _, top, _, _ in boxes[2:])  # side by side


@pytest.mark.browser
def test_in_the_frame_of_the_home_they_are_so_too(browser, page):
    """As wide as the frame is on a phone; tests/pages/test_docs.py says where it begins."""
    browser.open(page, width=354, height=1400)
    browser.evaluate("document.body.classList.add('framed')")
    bottoms = browser.evaluate(
        "[...document.querySelectorAll('#panels canvas')].map((c) => c.getBoundingClientRect().bottom)"
    )
    assert len(bottoms) == 3 and max(bottoms) < 590


@pytest.mark.browser
def test_all_panels_fit_a_window_of_a_laptop(browser, page):
    browser.open(page, width=1280, height=800)
    bottoms = browser.evaluate("[...document.querySelectorAll('.bars')].map((b) => b.getBoundingClientRect().bottom)")
    assert len(bottoms) == 3 and max(bottoms) <= 800


def models_of(page):
    return json.loads(page.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])["models"]


def test_the_bytes_are_those_of_the_files(page):
    for model, name in zip(models_of(page), DIGITS.values(), strict=True):
        assert model["size"]["bytes"] == zoo.card(name).bytes


def test_the_page_is_small(page):
    assert page.stat().st_size < 3_000_000


def test_the_site_shows_every_network_of_the_zoo(live_page, tmp_path):
    pages = live_page.write_pages(tmp_path)
    shown = [model for page in pages for model in models_of(page)]
    assert len(shown) == len(zoo.names()) and all(page.stat().st_size < 3_000_000 for page in pages)
    assert [page.stem for page in pages] == live_page.datasets()
    assert all(f'src="_static/{page.name}"' in live_page.frames() for page in pages)


@pytest.mark.parametrize("name", [name for name in zoo.names() if not name.startswith("digits")])
def test_examples_bear_the_right_labels(live_page, name):
    card = zoo.card(name)
    X, y = live_page.examples(card.data, card.classes)
    assert (tb.load(name).predict(X) == y).mean() >= 0.7


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("size", [(32, 32), (500, 333), (17, 40), (20, 32), (2000, 1500)])
def test_pictures_are_resized_as_the_library_does_it(browser, tmp_path, rng, size):
    """But for the order of two roundings, which Pillow's versions choose differently; and the same class."""
    X = rng.integers(0, 256, (20, 32, 32, 3), dtype="uint8")
    model = tb.ViT(bits=1, dim=16, depth=1, epochs=1, verbose=0, random_state=0).fit(X, np.arange(20) % 10)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype="uint8")).resize(size)
    noisy = np.clip(np.asarray(smooth) + rng.normal(0, 30, (*size[::-1], 3)), 0, 255).astype("uint8")
    Image.fromarray(noisy).save(tmp_path / "photo.png")
    to_html(model, tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    drop(browser, tmp_path / "photo.png")
    expected = model.read_images([tmp_path / "photo.png"])
    found = np.array(browser.evaluate("[...state.image]")) - expected.ravel()
    assert np.abs(found).max() <= (0 if 32 in size else 1)
    assert answers(browser) == [str(model.predict(expected)[0])]


def drop(browser, path):
    """As if the file were dropped; waits until it is shown."""
    content = json.dumps(list(path.read_bytes()))
    browser.evaluate(
        f"(async () => {{ await openFile(new File([new Uint8Array({content})], {json.dumps(path.name)})); }})()"
    )


@pytest.mark.browser
@pytest.mark.data("cifar-10-batches-bin")
@pytest.mark.parametrize("name", [None, *(name for name in zoo.names() if name.startswith("cifar10-"))])
def test_a_cifar_image_dropped_on_the_page_gets_the_librarys_class(browser, tmp_path, name):
    """None: a small network trained here."""
    data = tb.data.load_cifar10(download=False)
    if name is None:
        model = tb.ViT(bits=1, dim=32, epochs=2, augment=None, verbose=0, random_state=0)
        model.fit(data.X_train[:3000], np.array(data.classes)[data.y_train[:3000]])
    else:
        model = tb.load(name)
    to_html(model, tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    for i in range(20):
        Image.fromarray(data.X_test[i]).save(tmp_path / "image.png")
        drop(browser, tmp_path / "image.png")
        assert browser.evaluate("[...state.image]") == data.X_test[i].ravel().tolist()
        assert answers(browser) == [str(model.predict(data.X_test[i : i + 1])[0])]
