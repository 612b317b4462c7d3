"""The command `tinybitvit`: study, train, zoo, predict, attention, inspect, export, course, doctor, profile.

What a subcommand needs is imported when it runs, so that `tinybitvit --help` answers at once.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from .. import __version__
from .arguments import (
    BAD_INPUT,
    DATA_HELP,
    Parser,
    add,
    add_study_arguments,
    add_training_arguments,
    bit_width,
    command_line,
    count,
    data_arguments,
    model_arguments,
    name,
)
from .course import add_course
from .models import add_model_commands, output, written
from .streams import complain, flush, prepare_streams, sentence
from .zoo import add_zoo

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


# --- arguments --------------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    parser = Parser(
        prog="tinybitvit", description="Low-bit Vision Transformers from scratch: train, compare, look inside."
    )
    parser.add_argument("--version", action="version", version=f"tinybitvit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    p = add(commands, study, "train the same ViT at several bit widths and compare them in a report")
    add_study_arguments(p)
    more = "; imitate, refine: go on from a low-bit model that is there (--init-from) with its --teacher"
    add_training_arguments(p, ("best", "paper", "imitate", "refine"), more)

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
    add_training_arguments(p, ("best", "paper"))

    add_zoo(commands)
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
    from ..files import printable
    from ..study import check_split, chosen, load_data, measure, open_folder, start_model, train_model
    from ..train import delete_checkpoints, undertrained
    from ..train.meter import say

    if args.packed and args.bits == 32:
        raise ValueError("--packed needs --bits below 32: weights of 32 bits cannot be packed")
    if args.recipe and args.bits == 32:
        raise ValueError("--recipe needs --bits below 32: it is a way to low bits")
    out = output(args)
    data = load_data(args.dataset, **data_arguments(args))
    start = None if args.init_from is None else start_model(args.init_from)
    check_split(start, args.init_from, args.dataset, data, [args.seed])
    open_folder(out.parent)
    say(printable(data))
    options = chosen(args.dataset, len(data.y_train), model_arguments(args), args.init_from)
    options |= {"bits": args.bits, "random_state": args.seed}
    if start is not None:
        options["init_from"] = start
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


def profile(args: argparse.Namespace) -> int:
    from .profiling import profile_step, report

    sizes = {k: v for k, v in vars(args).items() if k not in ("command", "words")}
    print(report(profile_step(**sizes)))
    return 0


def doctor(args: argparse.Namespace) -> int:
    from .doctor import run

    return run(args.device)
