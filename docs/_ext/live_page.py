"""The pages of the zoo's networks, one for each data set, shown on the home of the site and in browser.md."""

import html
from pathlib import Path

import numpy as np
from PIL import Image

import tinybitvit as tb
from tinybitvit.models import zoo
from tinybitvit.web import to_html

MARK = "<!-- here the site shows the live page -->"
EXAMPLES = Path(__file__).parents[1] / "_static" / "examples"
INVITATIONS = {"digits": "Draw a digit", "fashion-mnist": "Show clothes", "cifar10": "Show a photo"}


def datasets() -> list[str]:
    """The data sets for which the zoo has networks, in its order."""
    return list(dict.fromkeys(zoo.card(name).data for name in zoo.names()))


def invitation(data: str) -> str:
    return INVITATIONS.get(data, f"Try {data}")


def examples(data: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """A test image of each class and its label; those of large data sets lie side by side in one picture."""
    if data == "digits":
        digits = tb.data.load_digits()
        first = [np.flatnonzero(digits.y_test == digit)[0] for digit in range(10)]
        return digits.X_test[first], digits.y_test[first]
    path = EXAMPLES / f"{data}.png"
    if not path.exists():
        return None, None
    sheet = np.asarray(Image.open(path))
    tiles = np.stack(np.split(sheet, len(classes), axis=1))
    return (tiles[..., None] if tiles.ndim == 3 else tiles), np.array(classes)


def write_pages(folder: Path) -> list[Path]:
    """FOLDER/DATASET.html: the networks of every width side by side, and an example of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for data in datasets():
        cards = [card for card in map(zoo.card, zoo.names()) if card.data == data]
        models = {"1 bit" if card.bits == 1 else f"{card.bits:g} bits": tb.load(card.name) for card in cards}
        X, y = examples(data, cards[0].classes)
        pages.append(folder / f"{data}.html")
        to_html(models, pages[-1], X=X, y=y, title=invitation(data))
    return pages


def frames() -> str:
    """A choice of data sets and their pages, of which the chosen one is shown. The others are loaded when they are."""
    choices, pages = [], []
    for i, data in enumerate(datasets()):
        name = html.escape(invitation(data))
        checked = " checked" if i == 0 else ""
        choices.append(
            f'<input type="radio" name="live" id="live-{data}"{checked}><label for="live-{data}">{name}</label>'
        )
        later = ' loading="lazy"' if i else ""
        pages.append(f'<iframe class="live" src="_static/{data}.html" title="{name}"{later} allow="camera"></iframe>')
    group = '<div class="try" role="group" aria-label="Try the networks">'
    return f"\n{group}\n{''.join(choices)}\n{''.join(pages)}\n</div>\n"


def show(app, docname, source):
    if docname in ("index", "browser"):
        source[0] = source[0].replace(MARK, frames())


def add_pages(app, error):
    if error is None and app.builder.format == "html":
        write_pages(Path(app.outdir) / "_static")


def setup(app):
    app.connect("source-read", show)
    app.connect("build-finished", add_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
