"""Writes the live pages to _build/, draws on the digits' in Chromium and photographs it for browser.md.

With --examples the pictures in _static/examples are written first, from the data sets: the first test image of each
class.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "tests" / "support")]

from chromium import Chromium  # noqa: E402  the browser of the tests
from hand import PLAIN, draw  # noqa: E402  and how the tests write digits
from live_page import EXAMPLES, write_pages  # noqa: E402  what the site shows

import tinybitvit as tb  # noqa: E402


def write_examples() -> None:
    EXAMPLES.mkdir(exist_ok=True)
    for name in ("fashion-mnist", "cifar10"):
        data = tb.data.load(name)
        order = np.argsort(data.classes)  # as a classifier has its labels
        first = [np.flatnonzero(data.y_test == c)[0] for c in order]
        sheet = np.concatenate(list(data.X_test[first]), axis=1)
        Image.fromarray(sheet.squeeze()).save(EXAMPLES / f"{name}.png", optimize=True)


def main() -> None:
    if "--examples" in sys.argv[1:]:
        write_examples()
    page, *_ = write_pages(DOCS / "_build")
    print("written:", page.parent)
    with Chromium() as browser:
        for name, digit, width, dark in (("browser-digits", 7, 1100, False), ("browser-phone", 2, 390, True)):
            browser.open(page, width=width, height=760, dark=dark)
            for _ in range(10):  # a browser needs some runs to find out what is worth compiling
                browser.evaluate("document.querySelector('#images button').click()")
            draw(browser, PLAIN[digit][0])
            browser.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
            browser.screenshot(DOCS / "figures" / f"{name}.png", whole=False)


if __name__ == "__main__":
    main()
