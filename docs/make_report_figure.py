"""Makes the README's picture: `python docs/make_report_figure.py [FOLDER]`, some minutes and Chromium.

It runs `tinybitvit study digits` (or takes the FOLDER of one that ran) and photographs its report, light, 1,100 pixels
wide, down to the confusion matrices. Within the PNG stands what the table says, which a test compares with the program.
"""

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests" / "support")]

from chromium import Chromium  # noqa: E402  the browser of the tests

from tinybitvit import study  # noqa: E402
from tinybitvit.study import report  # noqa: E402

PICTURE = DOCS / "figures" / "study-digits.png"
WIDTH, LAST = 1100, "Confusion matrices"


def main(folder: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as empty:
        if folder is None:
            study.run_study("digits", out=empty, command="tinybitvit study digits")
        photograph(Path(folder or empty))


def photograph(folder: Path) -> None:
    results = study.read_results(folder)
    with Chromium() as browser:
        browser.open(folder / "report.html", width=WIDTH)
        bottom = browser.evaluate(
            f"[...document.querySelectorAll('section')].find((s) => s.querySelector('h2').textContent === '{LAST}')"
            ".getBoundingClientRect().bottom + window.scrollY"
        )
        with tempfile.TemporaryDirectory() as place:
            browser.screenshot(Path(place) / "page.png")
            image = Image.open(Path(place) / "page.png").convert("RGB").crop((0, 0, WIDTH, round(bottom) + 12))
    shown = PngInfo()
    content = {"columns": report.columns(results), "rows": report.rows(results), "summary": results["summary"]}
    shown.add_text("table", json.dumps(content))
    image.quantize(256, dither=Image.Dither.NONE).save(PICTURE, optimize=True, pnginfo=shown)
    print(f"written: {PICTURE} ({PICTURE.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main(*sys.argv[1:])
