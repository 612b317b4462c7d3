"""The command `zoo`: the networks that come with the library, and the card of one."""

import argparse
import textwrap

from .arguments import add


def add_zoo(commands) -> None:
    text = "list the trained networks that come with the library, or print the card of one"
    add(commands, zoo, text).add_argument("name", nargs="?", metavar="NAME", help="a network of the list")


def zoo(args: argparse.Namespace) -> int:
    from ..models import zoo
    from ..study.report import align

    if args.name:
        print(card_text(zoo.card(args.name)))
        return 0
    print(align(zoo_table()))
    print("\n`tinybitvit zoo NAME` prints a card; `tinybitvit predict NAME IMAGE` and tb.load(NAME) use a network.")
    return 0


def zoo_table() -> list[list[str]]:
    """The list as rows of texts, the first one its head."""
    from ..models import zoo
    from ..study.report import in_per_cent
    from ..study.results import binomial_interval

    rows = [["name", "data", "bits", "accuracy", "bytes"]]
    for card in map(zoo.card, zoo.names()):
        accuracy = in_per_cent(binomial_interval(card.correct / card.tested, card.tested))
        rows.append([card.name, card.data, f"{card.bits:g}", accuracy, f"{card.bytes:,}"])
    return rows


def card_text(card) -> str:
    """A card for a terminal, one line a fact."""
    from ..study.results import binomial_interval

    found = binomial_interval(card.correct / card.tested, card.tested)
    share, low, high = (f"{100 * found[key]:.2f}" for key in ("mean", "low", "high"))
    hard = [f"{name} ({share:.1%} right, taken for {other})" for name, share, other in card.confused()]
    height, width, channels = card.image_shape
    facts = {
        "data": f"{card.data}, {height} x {width} pixels, {'grey' if channels == 1 else 'colour'}",
        "classes": ", ".join(card.classes),
        "network": f"{card.bits:g} bit{'s' * (card.bits != 1)} a weight, dim {card.dim}, depth {card.depth}",
        "file": f"{card.bytes:,} bytes",
        "accuracy": f"{share} % of {card.tested:,} test images (95 % interval for other images: {low} to {high})",
        "seed": str(card.seed),
        "bad at": f"{'; '.join(hard)}. {card.limits}",
    }
    fill = textwrap.TextWrapper(80, subsequent_indent=" " * 10, break_on_hyphens=False).fill
    lines = [fill(f"{key:10}{value}") for key, value in facts.items()]
    return "\n".join([card.name, *lines, f"made by   {card.command}"])  # a command is copied: it stays on one line
