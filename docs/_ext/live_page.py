"""The page of docs/browser.md, live: trained when the site is built, for the repository holds no weights."""

from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit.web import to_html

MARK = "<!-- here the site shows the live page -->"
FRAME = """
<iframe class="live" src="_static/digits.html" title="Vision Transformers that read a digit drawn by hand"></iframe>
<p><a href="_static/digits.html">The page alone</a></p>
"""


def write_page(path: Path, quick: bool = False) -> Path:
    """Digit classifiers with 32, 1.58 and 1 bit side by side, and an example of every digit; quick: barely trained."""
    data = tb.data.load_digits()
    options = {"random_state": 0, "verbose": 0, **({"epochs": 1, "dim": 16, "depth": 1} if quick else {})}
    models = {
        "1 bit" if bits == 1 else f"{bits} bits": tb.ViT(bits=bits, **options).fit(data.X_train, data.y_train)
        for bits in (32, 1.58, 1)
    }
    first = [np.flatnonzero(data.y_test == digit)[0] for digit in range(10)]
    path.parent.mkdir(parents=True, exist_ok=True)
    to_html(models, path, X=data.X_test[first], y=data.y_test[first])
    return path


def show(app, docname, source):
    if docname == "browser":
        source[0] = source[0].replace(MARK, FRAME)


def add_page(app, error):
    path = Path(app.outdir) / "_static" / "digits.html"
    if error is None and app.builder.format == "html" and not path.exists():
        write_page(path, quick=app.config.quick)


def setup(app):
    app.add_config_value("quick", False, "")
    app.connect("source-read", show)
    app.connect("build-finished", add_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
