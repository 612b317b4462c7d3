"""Words of the command line that several commands share: kinds of values, and the options of everything that trains."""

import argparse
import math
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .streams import one_line

BAD_INPUT = 2  # exit status
DATA_HELP = "digits, fashion-mnist, cifar10, cifar100, or a folder with a sub-folder of images for each class"


class Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(formatter_class=partial(argparse.HelpFormatter, max_help_position=28), **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def add(commands: Any, command: Callable, text: str, more: str = "") -> Parser:
    """The parser of a subcommand, named like the function that runs it."""
    p = commands.add_parser(command.__name__, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
    p.set_defaults(command=command)
    return p


def count(text: str, most: int = 10**9) -> int:
    if not text.isdecimal() or not 0 < int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1" + f" to {most:,}" * text.isdecimal())
    return int(text)


def positive(text: str, most: float = 1e30) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0" + f" and below {most:g}" * (value >= most))
    return value


def name(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file or folder")
    return text


small_count = partial(count, most=10_000)
MODEL_OPTIONS: dict[str, tuple[Callable, str]] = {
    "epochs": (count, "passes over the training images (default: the usual, or more where these make few updates)"),
    "batch_size": (count, "images in one update"),
    "lr": (positive, "peak learning rate"),
    "dim": (count, "channels of a token"),
    "depth": (small_count, "number of blocks"),
    "heads": (small_count, "attention heads in a block"),
    "mlp_ratio": (partial(positive, most=1e4), "width of the MLP divided by dim"),
    "patch_size": (count, "side of a patch in pixels"),
}


def add_training_arguments(p: Parser, recipes: Sequence[str], about_recipes: str = "") -> None:
    """What every training has. recipes: the names of those that the command offers."""
    p.add_argument(
        "--train-size", type=count, metavar="N", help="train on N images, classes in proportion (default: all)"
    )
    p.add_argument("--test-size", type=count, metavar="N", help="test on N images (default: all)")
    p.add_argument("--image-size", type=count, metavar="N", help="stretch all images to N x N pixels")
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="decides split, first weights and order of images (default: 0); digits and folders without test images are"
        " split by it, so that a model to start from or to learn from must have been trained on them with this seed",
    )
    p.add_argument("--resume", action="store_true", help="go on from where the same command was cut short")
    group = p.add_argument_group("model and training", "Defaults are chosen for the data set.")
    for option, (kind, text) in MODEL_OPTIONS.items():
        group.add_argument(f"--{option.replace('_', '-')}", type=kind, metavar="N", help=text)
    group.add_argument(
        "--init-from",
        type=name,
        metavar="FILE",
        help="start from this model: a file of `tinybitvit train`, or a folder or file that Hugging Face or timm wrote;"
        " its sizes are taken over",
    )
    group.add_argument(
        "--recipe",
        choices=recipes,
        help=f"how low-bit models are trained: paper, much as in BitNet's papers, or best{about_recipes}",
    )
    group.add_argument(
        "--augment",
        metavar="STEPS",
        help="what happens to training images, such as flip,crop:4,cutout:8, or none (default: flip,crop; in grey"
        " shift; below 16 pixels none)",
    )
    group.add_argument(
        "--device", default="auto", choices=("cpu", "cuda", "auto"), help="where to compute (default: auto)"
    )


def add_study_arguments(p: Parser) -> None:
    """Those of `study` alone."""
    more: dict[str, Any] = {"nargs": "?", "default": "digits", "help": f"{DATA_HELP} (default: %(default)s)"}
    p.add_argument("dataset", type=name, metavar="DATASET", **more)
    p.add_argument(
        "--bits",
        nargs="+",
        type=bit_width,
        help="bit widths of the weights (default: 32 1.58 1; of an ablation: 1)",
    )
    p.add_argument(
        "--out",
        type=name,
        metavar="DIR",
        help="folder for report.html, results.json, figures and models; another study in it is refused, the same one"
        " made again (default: study-DATASET, sweep-DATASET or ablation-DATASET)",
    )
    p.add_argument("--seeds", type=small_count, default=1, metavar="N", help="train everything N times (default: 1)")
    p.add_argument(
        "--jobs", type=small_count, metavar="N", help="models trained at the same time, a core each (default: 1)"
    )
    p.add_argument(
        "--teacher",
        type=name,
        metavar="FILE",
        help="a full-precision model, written by `tinybitvit train` or a study on the same images, to convert: none is"
        " trained then; with --init-from that is where the low-bit models start",
    )
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--sweep", action="store_true", help="train at several widths and depths, too")
    kind.add_argument(
        "--ablation",
        action="store_true",
        help="train low-bit models from the papers' recipe to the best, an ingredient more each time",
    )
    p.add_argument(
        "--widths", nargs="+", type=count, metavar="N", help="of a sweep (default: half, once and twice the usual dim)"
    )
    p.add_argument(
        "--depths", nargs="+", type=small_count, metavar="N", help="of a sweep (default: half and once the usual)"
    )


def bit_width(text: str) -> float:
    """A bit width: 32 stays a whole number, 1.58 a fraction."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no bit width such as 32, 1.58 or 1; the data set comes first"
        ) from None
    return int(value) if value.is_integer() else value


def data_arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("train_size", "test_size", "seed", "image_size")}


def model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given; the others have their defaults elsewhere."""
    names = (*MODEL_OPTIONS, "init_from", "recipe", "augment")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.augment == "none":
        given["augment"] = None
    return {**given, "device": args.device}


def command_line(words: Sequence[str]) -> str:
    """The command as one would type it elsewhere, from nothing: of absolute paths only the last name is kept."""

    def portable(word):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"

    return shlex.join(["tinybitvit", *(portable(word) for word in words if word != "--resume")])
