"""The command `tinybitvit`: study, train, predict, attention, inspect, export, course, doctor, profile.

What a subcommand needs is imported when it runs, so that `tinybitvit --help` answers at once.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .arguments import (
    BAD_INPUT,
    DATA_HELP,
    Parser,
    add_study_arguments,
    add_training_arguments,
    bit_width,
    command_line,
    count,
    data_arguments,
    model_arguments,
    name,
    one_line,
)
from .course import add_course
from .streams import complain, flush, prepare_streams

EXPORT_FORMATS = ("onnx", "hf", "safetensors", "html")  # tinybitvit.io.FORMATS, not imported because slow, and a page
EXPORT_HELP = (
    "onnx: for ONNX runtimes; hf: for Hugging Face's BitNet; safetensors: this program's own, packed;"
    " html: a web page that holds the model"
)
# What a user can cause or mend: one sentence instead of a traceback. Anything else is a bug and shows where.
ERRORS = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, ImportError)
FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, 1 (a check or the output failed), 2 (bad input) or 130 (Ctrl-C)."""
    prepare_streams()
    words = sys.argv[1:] if argv is None else argv
    try:
        args = build_parser().parse_args(words, argparse.Namespace(words=words))
    except SystemExit as stop:  # after --help and --version, too
        raise SystemExit(stop.code if flush() else FAILED) from None
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # nobody waits for news of its font cache on stderr
    status = run(args)
    return status if flush() else FAILED


def run(args: argparse.Namespace) -> int:
    """The exit status of a command, its errors told."""
    try:
        return args.command(args)
    except KeyboardInterrupt:
        complain("\nstopped by Ctrl-C")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe left, as in `tinybitvit doctor | head`
        return FAILED
    except ERRORS as error:
        complain(f"tinybitvit: {sentence(error)}")
        return BAD_INPUT


def sentence(error: BaseException) -> str:
    """An error as one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) and "memory" not in text:
        text = f"not enough memory ({text}): make images, batches or the model smaller"
    return one_line(text)


# --- arguments --------------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    parser = Parser(
        prog="tinybitvit", description="Low-bit Vision Transformers from scratch: train, compare, look inside."
    )
    parser.add_argument("--version", action="version", version=f"tinybitvit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    p = add(commands, study, "train the same ViT at several bit widths and compare them in a report")
    add_study_arguments(p)
    add_training_arguments(p)

    p = add(commands, train, "train one model and save it")
    p.add_argument("dataset", type=name, metavar="DATASET", help=DATA_HELP)
    p.add_argument("--bits", type=bit_width, default=1.58, help="bit width of the weights (default: %(default)s)")
    p.add_argument(
        "--out", type=name, metavar="FILE", default="model.safetensors", help="where to save it (default: %(default)s)"
    )
    p.add_argument(
        "--packed",
        action="store_true",
        help="save packed bits only: small; a new training can start from it (--init-from)",
    )
    add_training_arguments(p)

    add_model_commands(commands)
    add_course(commands)
    p = add(commands, doctor, "print versions and device, and check every operation on this machine")
    p.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="cuda: compare every calculation with the CPU"
    )
    p = add(commands, profile, "show where a training step spends its time, beside its matrix products alone")
    p.add_argument("--bits", type=bit_width, default=32, help="bit width of the weights (default: %(default)s)")
    for option, size in (
        ("dim", 192),
        ("depth", 6),
        ("heads", 3),
        ("image-size", 32),
        ("patch-size", 4),
        ("batch", 64),
    ):
        p.add_argument(f"--{option}", type=count, default=size, metavar="N", help="default: %(default)s")
    return parser


def add_model_commands(commands) -> None:
    """The commands that take a saved model."""

    def add_with_model(command, text: str) -> Parser:
        p = add(commands, command, text)
        p.add_argument("model", type=name, metavar="MODEL", help="a file saved by `tinybitvit train` or tb.ViT.save")
        return p

    images: dict[str, Any] = {
        "nargs": "+",
        "type": name,
        "metavar": "IMAGE",
        "help": "pictures; they are stretched to the model's image size",
    }
    add_with_model(predict, "name the class of pictures").add_argument("images", **images)

    p = add_with_model(attention, "show what a model looks at in pictures, as an interactive page or a figure")
    p.add_argument("images", **images)
    out_help = "page (.html) or figure (.png, .pdf, .svg) (default: %(default)s)"
    p.add_argument("--out", type=name, metavar="FILE", default="attention.html", help=out_help)

    add_with_model(inspect, "print the layers of a model: shape, bits, bytes, share of zeros")

    p = add_with_model(quantize, "round a full-precision model to few bits, layer by layer, without training")
    p.add_argument("dataset", type=name, metavar="DATASET", help=f"images like those of its training: {DATA_HELP}")
    p.add_argument("--bits", type=bit_width, default=1.58, help="bit width of the weights (default: %(default)s)")
    p.add_argument(
        "--images", type=count, default=4096, metavar="N", help="training images to fit to (default: %(default)s)"
    )
    p.add_argument("--image-size", type=count, metavar="N", help="stretch all images to N x N pixels")
    p.add_argument("--seed", type=int, default=0, help="decides which images, and their order (default: 0)")
    p.add_argument("--out", type=name, metavar="FILE", required=True, help="where to save the packed model")

    p = add_with_model(export, "write a model for other programs")
    p.add_argument("--format", required=True, choices=EXPORT_FORMATS, help=EXPORT_HELP)
    p.add_argument(
        "--int8", action="store_true", help="onnx: weights of 8 bits, for runtimes that know no smaller ones"
    )
    p.add_argument(
        "--compare", type=name, nargs="+", default=[], metavar="MODEL", help="html: more models, side by side"
    )
    p.add_argument(
        "--images", type=name, nargs="+", default=[], metavar="IMAGE", help="html: examples to put into the page"
    )
    p.add_argument("--out", type=name, metavar="FILE", required=True, help="the file to write")


def add(commands, command, text: str) -> Parser:
    """The parser of a subcommand, named like the function that runs it."""
    p = commands.add_parser(command.__name__, help=text, description=f"{text[0].upper()}{text[1:]}.")
    p.set_defaults(command=command)
    return p


# --- commands ---------------------------------------------------------------------------------------------------------


def study(args: argparse.Namespace) -> int:
    from .. import study
    from ..train.ranks import started

    if started():
        raise ValueError("a study runs in one process: start it without mpiexec, or train one model with `train`")
    options = {**data_arguments(args), **model_arguments(args), "seeds": args.seeds, "jobs": args.jobs or 1}
    options |= {"out": args.out, "resume": args.resume, "teacher": args.teacher, "command": command_line(args.words)}
    if args.bits is not None:
        options["bits"] = args.bits
    if args.recipe and args.bits is not None and {*args.bits} == {32}:
        raise ValueError("--recipe needs --bits below 32: it is a way to low bits")
    if args.sweep:
        results = study.run_sweep(args.dataset, widths=args.widths, depths=args.depths, **options)
    elif args.widths or args.depths:
        raise ValueError("--widths and --depths are for --sweep; one study has one --dim and one --depth")
    else:
        results = (study.run_ablation if args.ablation else study.run_study)(args.dataset, **options)
    return INTERRUPTED if results["interrupted"] else 0


def train(args: argparse.Namespace) -> int:
    from ..train import ranks

    if not ranks.started():
        return train_one(args)
    with ranks.data_parallel() as group:
        status = train_one(args, write=group.rank == 0)
        if status == INTERRUPTED:
            sys.stdout.flush()
            group.comm.Abort(status)  # the other ranks know of no Ctrl-C and wait for this one
        return status


def train_one(args: argparse.Namespace, write: bool = True) -> int:
    """Train, and save what came out unless another process does."""
    from ..study import chosen, load_data, measure, open_folder, start_model, train_model
    from ..train import delete_checkpoints, undertrained
    from ..train.meter import say

    if args.packed and args.bits == 32:
        raise ValueError("--packed needs --bits below 32: weights of 32 bits cannot be packed")
    if args.recipe and args.bits == 32:
        raise ValueError("--recipe needs --bits below 32: it is a way to low bits")
    out = output(args)
    data = load_data(args.dataset, **data_arguments(args))
    open_folder(out.parent)
    say(str(data))
    options = chosen(args.dataset, len(data.y_train), model_arguments(args), args.init_from)
    options |= {"bits": args.bits, "random_state": args.seed}
    if args.init_from is not None:
        options["init_from"] = start_model(args.init_from)
    checkpoints = out.with_suffix(".checkpoints")
    model, seconds = train_model(data, checkpoints, args.resume, **options)
    if write:
        model.save(out, packed=args.packed)
    if write and not model.interrupted_:
        delete_checkpoints(checkpoints)
    found = measure(model, data, model.predict(data.X_test))
    say(f"accuracy {found['accuracy']:.4f} on {len(data.y_test)} test images, {seconds:.0f} s of training")
    if not model.interrupted_ and (why := undertrained(model.history_)):
        say(f"undertrained: {why}; train for more epochs (--epochs)")
    if write:
        say(written(out))
    return INTERRUPTED if model.interrupted_ else 0


def output(args: argparse.Namespace) -> Path:
    """Where a model is to be saved, tried before it costs anything."""
    if (out := Path(args.out)).is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of a file in it")
    return out


def predict(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..files import printable

    model, status = tb.load(args.model), 0
    print("image  class  probability", flush=True)
    for path in args.images:
        try:
            images = model.read_images([path])
        except tb.data.DataError as error:  # the other pictures are answered all the same
            complain(f"tinybitvit: {sentence(error)}")
            status = BAD_INPUT
            continue
        probabilities = model.predict_proba(images)[0]
        best = probabilities.argmax()
        print(f"{printable(path)}  {printable(model.classes_[best])}  {probabilities[best]:.3f}", flush=True)
    return status


def attention(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..files import printable

    print("written:", printable(tb.viz.attention_files(tb.load(args.model), args.images, args.out)))
    return 0


def inspect(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..study.report import align

    cells = [["layer", "shape", "bits", "layout", "bytes", "bits a weight", "zeros"]]
    for row in tb.quant.describe(tb.load(args.model).model_):
        shape = " x ".join(map(str, row.shape))
        size = f"{row.bytes:,}", f"{row.effective_bits:.2f}", f"{row.zeros:.1%}"
        cells.append([row.name, shape, f"{row.bits:g}", row.layout, *size])
    print(align(cells))
    return 0


def quantize(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..study import load_data, measure, open_folder
    from ..train.meter import say

    out, model = output(args), tb.load(args.model)
    data = load_data(args.dataset, seed=args.seed, image_size=args.image_size)
    open_folder(out.parent)
    say(str(data))
    rounded = tb.quantize(model, data.X_train, args.bits, args.images, random_state=args.seed)
    rounded.save(out, packed=True)
    found = measure(rounded, data, rounded.predict(data.X_test))
    say(f"accuracy {found['accuracy']:.4f} on {len(data.y_test)} test images")
    say(written(out))
    return 0


def export(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    model = tb.load(args.model)
    if args.int8 and args.format != "onnx":
        raise ValueError("--int8 is for --format onnx")
    if (args.compare or args.images) and args.format != "html":
        raise ValueError("--compare and --images are for --format html")
    if args.format == "safetensors":
        model.save(args.out, packed=model.bits != 32)
    elif args.format == "onnx":
        tb.io.export(model.model_, args.out, "onnx", int8=args.int8)
    elif args.format == "html":
        paths = (args.model, *args.compare)
        models = dict(zip(model_names(paths), map(tb.load, paths), strict=True))
        tb.web.to_html(models, args.out, X=model.read_images(args.images) if args.images else None)
    else:
        tb.io.export(model.model_, args.out, args.format)
    print(written(args.out))
    return 0


def model_names(paths: Sequence[str]) -> list[str]:
    """A name for each model file: its own, with its folder's or a number where several files have the same."""
    from ..files import printable

    stems = [printable(Path(path).stem) for path in paths]
    longer = [printable(f"{Path(path).absolute().parent.name}/{Path(path).stem}") for path in paths]
    names = [stem if stems.count(stem) == 1 else long for stem, long in zip(stems, longer, strict=True)]
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]


def written(path: str | Path) -> str:
    """The line that tells of a file."""
    from ..files import printable

    return f"written: {printable(path)} ({Path(path).stat().st_size:,} bytes)"


def profile(args: argparse.Namespace) -> int:
    from .profiling import profile_step, report

    sizes = {k: v for k, v in vars(args).items() if k not in ("command", "words")}
    print(report(profile_step(**sizes)))
    return 0


def doctor(args: argparse.Namespace) -> int:
    from .doctor import run

    return run(args.device)
