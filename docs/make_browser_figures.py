"""Trains three digit classifiers, writes their page, draws on it in Chromium and photographs it for browser.md.

The page itself stays in _build/digits.html, outside of the repository, which holds no weights.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "tests")]

from chromium import Chromium  # noqa: E402  the browser of the tests
from live_page import write_page  # noqa: E402  what the site trains
from test_web_page import STROKES, draw  # noqa: E402  and how the tests write digits


def main() -> None:
    page = write_page(DOCS / "_build" / "digits.html")
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
