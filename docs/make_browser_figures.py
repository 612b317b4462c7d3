"""Trains three digit classifiers, writes their page, draws on it in Chromium and photographs it for browser.md.

The page itself stays in _build/digits.html, outside of the repository, which holds no weights: open it, or let the
documentation's site show it in a frame.
"""

import sys
from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit.web import to_html

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from chromium import Chromium  # noqa: E402  the browser of the tests
from test_web_page import STROKES, draw  # noqa: E402  and how they write digits


def write_page() -> Path:
    data = tb.data.load_digits()
    models = {
        "1 bit" if bits == 1 else f"{bits} bits": tb.ViT(bits=bits, random_state=0, verbose=0).fit(
            data.X_train, data.y_train
        )
        for bits in (32, 1.58, 1)
    }
    first = [np.flatnonzero(data.y_test == digit)[0] for digit in range(10)]
    path = DOCS / "_build" / "digits.html"
    path.parent.mkdir(exist_ok=True)
    to_html(models, path, X=data.X_test[first], y=data.y_test[first])
    return path


def main() -> None:
    page = write_page()
    print("written:", page)
    with Chromium() as browser:
        for name, digit, width, dark in (("browser-digits", "5", 1100, False), ("browser-phone", "2", 390, True)):
            browser.open(page, width=width, height=720, dark=dark)
            for _ in range(10):  # a browser needs some runs to find out what is worth compiling
                browser.evaluate("document.querySelector('#images button').click()")
            draw(browser, STROKES[digit])
            browser.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
            browser.screenshot(DOCS / "figures" / f"{name}.png")


if __name__ == "__main__":
    main()
