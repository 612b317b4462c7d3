"""The commands that take a saved model: predict, attention, inspect, quantize, probe, export."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import BAD_INPUT, DATA_HELP, Parser, add, bit_width, count, name
from .streams import complain, sentence

MODEL_HELP = "a file saved by `tinybitvit train` or tb.ViT.save, or a name from `tinybitvit zoo`"
EXPORT_FORMATS = ("onnx", "hf", "safetensors", "html")  # tinybitvit.io.FORMATS, not imported because slow, and a page
EXPORT_HELP = (
    "onnx: for ONNX runtimes; hf: for Hugging Face's BitNet; safetensors: this program's own, packed;"
    " html: a web page that holds the model"
)


def add_model_commands(commands) -> None:
    """The commands that take a saved model."""

    def add_with_model(command, text: str) -> Parser:
        p = add(commands, command, text)
        p.add_argument("model", type=name, metavar="MODEL", help=MODEL_HELP)
        return p

    images: dict[str, Any] = {
        "nargs": "+",
        "type": name,
        "metavar": "IMAGE",
        "help": "pictures; they are stretched to the model's image size",
    }
    p = add_with_model(predict, "name the class of pictures")
    p.add_argument("images", **images)
    engine_help = "what computes: numpy, or onnxruntime, which is faster (default: %(default)s)"
    p.add_argument("--engine", choices=("numpy", "onnxruntime"), default="numpy", help=engine_help)

    text = "show what a model looks at in pictures, computed by NumPy, as an interactive page or a figure"
    p = add_with_model(attention, text)
    p.add_argument("images", **images)
    out_help = "page (.html) or figure (.png, .pdf, .svg) (default: %(default)s)"
    p.add_argument("--out", type=name, metavar="FILE", default="attention.html", help=out_help)
    p.add_argument("--occlude", action="store_true", help="on the page, too: what covering each patch does, measured")

    add_with_model(inspect, "print the layers of a model: shape, bits, bytes, share of zeros")

    add_conversions(add_with_model)

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


def add_conversions(add_with_model) -> None:
    """The commands that make another model of one, for which they look at a data set."""
    p = add_with_model(quantize, "round a full-precision model to few bits, layer by layer, without training")
    p.add_argument("dataset", type=name, metavar="DATASET", help=f"images like those of its training: {DATA_HELP}")
    p.add_argument("--bits", type=bit_width, default=1.58, help="bit width of the weights (default: %(default)s)")
    p.add_argument(
        "--images", type=count, default=4096, metavar="N", help="training images to fit to (default: %(default)s)"
    )
    p.add_argument("--resume", action="store_true", help="go on from where the same command was cut short")
    seen_by(p, "which images, and their order")

    text = "give the blocks of a trained model a linear head for other classes, without training them"
    p = add_with_model(probe, text)
    p.add_argument("dataset", type=name, metavar="DATASET", help=f"the images with the classes: {DATA_HELP}")
    p.add_argument("--train-size", type=count, metavar="N", help="use only N training images")
    seen_by(p, "which images")


def seen_by(p: Parser, decided: str) -> None:
    """Options of a command that looks at a data set and writes a model."""
    p.add_argument("--image-size", type=count, metavar="N", help="stretch all images to N x N pixels")
    text = f"decides {decided} (default: 0); where MODEL was trained on a part of the same images, it must be its seed"
    p.add_argument("--seed", type=int, default=0, help=text)
    p.add_argument("--out", type=name, metavar="FILE", required=True, help="where to save the model")


# --- commands ---------------------------------------------------------------------------------------------------------


def output(args: argparse.Namespace) -> Path:
    """Where the result is to be saved, tried before it costs anything: neither a folder nor a file that is read."""
    if (out := Path(args.out)).is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of a file in it")
    read = [getattr(args, name, None) for name in ("model", "init_from")]
    for some in ("images", "compare"):
        found = getattr(args, some, None)
        read += found if isinstance(found, list) else []
    if any(path is not None and Path(path).exists() and out.exists() and out.samefile(path) for path in read):
        raise ValueError(f"--out {out} would replace a file that this command reads: give another name")
    return out


def predict(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..files import printable

    model, status = tb.load(args.model, engine=args.engine), 0
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

    out = output(args)
    print("written:", printable(tb.viz.attention_files(tb.load(args.model), args.images, out, args.occlude)))
    return 0


def inspect(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..files import array_bytes
    from ..io.checkpoint import as_on_disk
    from ..models import zoo
    from ..study.report import align

    path = zoo.find(args.model)
    cells = [["layer", "shape", "bits", "layout", "bytes", "bits a weight", "zeros"]]
    for row in tb.quant.describe(as_on_disk(tb.load(path).model_)):
        shape = " x ".join(map(str, row.shape))
        size = f"{row.bytes:,}", f"{row.effective_bits:.2f}", f"{row.zeros:.1%}"
        cells.append([row.name, shape, f"{row.bits:g}", row.layout, *size])
    print(align(cells))
    arrays = array_bytes(path)
    half = f", {arrays:,} of them in the file, where floats have 16 bits" * (arrays < row.bytes)
    line = f"\nfile: {path.stat().st_size:,} bytes; arrays: {row.bytes:,}{half}"
    print(f"{line}; the rest are names, shapes, options and history")
    return 0


def quantize(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..files import printable
    from ..study import check_split, load_data, measure, open_folder
    from ..train import delete_checkpoints
    from ..train.meter import say

    out, model = output(args), tb.load(args.model)
    data = load_data(args.dataset, seed=args.seed, image_size=args.image_size)
    check_split(model, args.model, args.dataset, data, [args.seed])
    open_folder(out.parent)
    say(printable(data))
    checkpoints = out.with_suffix(".checkpoints")
    options = {"random_state": args.seed, "checkpoint": checkpoints, "resume": args.resume}
    rounded = tb.quantize(model, data.X_train, args.bits, args.images, **options)
    rounded.save(out, packed=True)
    delete_checkpoints(checkpoints)
    found = measure(rounded, data, rounded.predict(data.X_test))
    say(f"accuracy {found['accuracy']:.4f} on {len(data.y_test)} test images")
    say(written(out))
    return 0


def probe(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    from ..files import printable
    from ..study import check_split, load_data, open_folder, start_model
    from ..train.meter import say

    out, source = output(args), start_model(args.model)
    data = load_data(args.dataset, seed=args.seed, train_size=args.train_size, image_size=args.image_size)
    check_split(source, args.model, args.dataset, data, [args.seed])
    open_folder(out.parent)
    say(printable(data))
    data = data.named()
    model = tb.probe(source, data.X_train, data.y_train).set_params(random_state=args.seed)
    model.save(out, packed=model.bits != 32)
    say(f"accuracy {model.score(data.X_test, data.y_test):.4f} on {len(data.y_test)} test images")
    say(written(out))
    return 0


def export(args: argparse.Namespace) -> int:
    import tinybitvit as tb

    out, model = output(args), tb.load(args.model)
    if args.int8 and args.format != "onnx":
        raise ValueError("--int8 is for --format onnx")
    if (args.compare or args.images) and args.format != "html":
        raise ValueError("--compare and --images are for --format html")
    if args.format == "safetensors":
        model.save(out, packed=model.bits != 32)
    elif args.format == "onnx":
        tb.io.export(model.model_, out, "onnx", int8=args.int8)
    elif args.format == "html":
        paths = (args.model, *args.compare)
        models = dict(zip(model_names(paths), map(tb.load, paths), strict=True))
        tb.web.to_html(models, out, X=model.read_images(args.images) if args.images else None)
    else:
        tb.io.export(model.model_, out, args.format)
    print(written(out))
    return 0


def model_names(paths: Sequence[str]) -> list[str]:
    """A name for each model file: its own, with its folder's or a number where several files have the same."""
    from ..files import printable

    stems = [printable(path_stem(path)) for path in paths]
    longer = [printable(f"{Path(path).absolute().parent.name}/{path_stem(path)}") for path in paths]
    names = [stem if stems.count(stem) == 1 else long for stem, long in zip(stems, longer, strict=True)]
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]


def path_stem(path: str) -> str:
    """The name of a model file without its ending; the .58bit of digits-1.58bit, a name of the zoo, is none."""
    name = Path(path)
    return name.name if name.suffix.endswith("bit") else name.stem


def written(path: str | Path) -> str:
    """The line that tells of a file."""
    from ..files import printable

    return f"written: {printable(path)} ({Path(path).stat().st_size:,} bytes)"
