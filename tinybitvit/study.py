"""The study: one Vision Transformer trained at several bit widths on the same images, and what that costs."""

import io
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

import tinybitvit as tb

from . import report, viz, web
from .data import DOWNLOADED, DataError, Dataset, load
from .files import write_file
from .quant import check_bits, describe
from .train import delete_checkpoints

# What differs from the defaults of tb.ViT, which are for the digits and serve any folder of small pictures.
LARGE = {"depth": 6, "patch_size": 4, "batch_size": 128, "epochs": 10, "lr": 1e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "fashion-mnist": {**LARGE, "dim": 128, "heads": 4},
    "cifar10": {**LARGE, "dim": 192, "heads": 3, "mlp_ratio": 4},
    "cifar100": {**LARGE, "dim": 192, "heads": 3, "mlp_ratio": 4},
}
LARGEST_PAGE = 5_000_000  # bytes of try.html, the page that holds the models; larger ones are left out
PICTURED = 4  # test images in the attention figure


# --- data -------------------------------------------------------------------------------------------------------------


def load_data(
    dataset: str | PathLike,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> Dataset:
    """A data set by name or folder, cut down to so many training and test images (None: all), classes in proportion.

    The seed chooses these images, and the split where the data set has none of its own (digits, a folder without train/
    and test/). image_size: the side to which the images of a folder are stretched.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed must lie in 0..{2**32 - 1}, not {seed}")
    options: dict[str, Any] = {} if dataset in DOWNLOADED else {"seed": seed}
    if image_size is not None:
        if dataset in PRESETS:
            raise ValueError(f"--image-size is for folders of images; those of {dataset} have one size already")
        options["size"] = image_size
    data = load(dataset, **options)
    rng = np.random.default_rng(seed)
    train = subset(data.y_train, train_size, rng, f"training images of {data.name}")
    test = subset(data.y_test, test_size, rng, f"test images of {data.name}")
    return data._replace(
        X_train=data.X_train[train], y_train=data.y_train[train], X_test=data.X_test[test], y_test=data.y_test[test]
    )


def subset(y: np.ndarray, size: int | None, rng: np.random.Generator, what: str = "images") -> np.ndarray:
    """Positions of `size` random elements of the labels y, rising; classes in proportion, each at least once."""
    if size is None:
        return np.arange(len(y))
    classes = np.unique(y)
    if not len(classes) <= size <= len(y):
        raise DataError(
            f"{size} of the {len(y)} {what} were asked for: take {len(classes)} (one of each class) to {len(y)}"
        )
    order, place = rng.permutation(len(y)), np.empty(len(y))
    for c in classes:
        members = order[y[order] == c]
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
        place[members[0]] = -1.0
    return np.sort(np.argsort(place, kind="stable")[:size])


# --- one model --------------------------------------------------------------------------------------------------------


def train_model(
    data: Dataset, checkpoint: str | PathLike | None = None, resume: bool = False, **options: Any
) -> tuple["tb.ViT", float]:
    """A tb.ViT with these options fitted on the training images, its labels the class names; the seconds that took.

    checkpoint, resume: see `tb.ViT.fit`; the seconds include those before the run was cut short.
    """
    names = np.array(data.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that overflow: the Trainer says it in one sentence
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few images of many classes
        model = tb.ViT(**options).fit(data.X_train, names[data.y_train], checkpoint=checkpoint, resume=resume)
    if model.interrupted_ and not model.n_iter_:
        raise KeyboardInterrupt  # before the end of the first epoch: there is nothing to report on
    return model, sum(model.history_["seconds"])


def measure(model: "tb.ViT", data: Dataset, guess: np.ndarray) -> dict[str, Any]:
    """Scores of its guesses for the test images (macro means over classes), and its size as it would be shipped."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    y = np.array(data.classes)[data.y_test]
    labels = list(data.classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        y, guess, labels=labels, average="macro", zero_division=0
    )
    network = model.model_
    shipped = describe(network if model.bits == 32 else network.pack())[-1]
    return {
        "bits": model.bits,
        "accuracy": float((guess == y).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "parameters": sum(p.size for p in network.parameters()),
        "weight_bytes": shipped.bytes,
        "effective_bits": shipped.effective_bits,
        "confusion_matrix": confusion_matrix(y, guess, labels=labels).tolist(),
        "history": model.history_,
        "interrupted": model.interrupted_,
    }


def settings(model: "tb.ViT") -> dict[str, Any]:
    """What the models of a study have in common, as JSON takes it."""
    names = ("epochs", "batch_size", "lr", "dim", "depth", "heads", "mlp_ratio", "activation_bits", "augment")
    patch = list(model.model_.embed.patch.patch_size)
    return {**{name: getattr(model, name) for name in names}, "patch_size": patch}


# --- all of them ------------------------------------------------------------------------------------------------------


def run_study(
    dataset: str | PathLike = "digits",
    bits: Sequence[float] = (32, 1.58, 1),
    *,
    out: str | PathLike | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    resume: bool = False,
    **options: Any,
) -> report.Results:
    """Train the same ViT at each width; write results.json, report.html and figures into the folder `out`.

    dataset, train_size, test_size, seed, image_size: see `load_data`. out: study-DATASET unless given. options: of
    tb.ViT, before those of PRESETS. results.json is written after every model; Ctrl-C ends the study early, and what is
    done is reported. Every minute the model in training is saved into `out`; with `resume` a study that was cut short
    goes on from there. Returns the content of results.json. Raises ValueError for impossible arguments and OSError
    where `out` cannot be written, before any training, and CheckpointError where it cannot be written later.
    """
    began = time.perf_counter()
    bits = list(dict.fromkeys(bits))
    for b in bits:
        check_bits(b)
    data = load_data(dataset, train_size, test_size, seed, image_size)
    folder = Path(out if out is not None else f"study-{data.name}")
    open_folder(folder)
    if not resume and (found := sorted(folder.glob("checkpoints-*/*.safetensors"))):
        raise ValueError(f"{found[0].parent} holds the checkpoints of a run: resume it, or delete that folder")
    print(data, flush=True)
    options = {**PRESETS.get(str(dataset), {}), **options, "random_state": seed, "resume": resume}
    results, models, guesses = new_results(data, seed), {}, {}
    try:
        for number, b in enumerate(bits, 1):
            name = report.model_name(b)
            print(f"\n{name} (model {number} of {len(bits)})", flush=True)
            model, seconds = train_model(data, bits=b, checkpoint=folder / f"checkpoints-{b:g}", **options)
            guess = model.predict(data.X_test)
            results["models"].append({**measure(model, data, guess), "seconds": seconds})
            results.update(settings=settings(model), interrupted=model.interrupted_)
            models[name], guesses[name] = model, guess
            write_file(folder / "results.json", report.to_json(results))
            if model.interrupted_:
                break
        else:
            for b in bits:
                delete_checkpoints(folder / f"checkpoints-{b:g}")
    except KeyboardInterrupt:
        results["interrupted"] = True
    finally:  # also where a later model fails or the disk is full: hours of training are not lost from sight
        if models:
            print(f"\n{report.text_table(results)}\n", flush=True)
            write_report(folder, results, data, models, guesses)
        print(f"{time.perf_counter() - began:.0f} s in all")
    return results


def open_folder(folder: Path) -> None:
    """Make the folder and write into it for a trial: a mistake is to cost a second and not the time of a training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(1 << 20))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {folder}: {error.strerror}; choose another folder") from error


def new_results(data: Dataset, seed: int) -> report.Results:
    return {
        "dataset": data.name,
        "train_size": len(data.y_train),
        "test_size": len(data.y_test),
        "seed": seed,
        "classes": list(data.classes),
        "image_shape": list(data.X_train.shape[1:]),
        "settings": {},
        "interrupted": False,
        "environment": {
            "tinybitvit": tb.__version__,
            "numpy": version("numpy"),
            "scikit-learn": version("scikit-learn"),
        },
        "models": [],
    }


# --- pictures ---------------------------------------------------------------------------------------------------------


def write_report(
    folder: Path, results: report.Results, data: Dataset, models: dict[str, "tb.ViT"], guesses: dict[str, np.ndarray]
) -> None:
    """results.json, figures as PNG files, and report.html that holds them; prints what the folder holds."""
    pictures, written = {}, ["results.json", "report.html"]
    write_file(folder / "results.json", report.to_json(results))
    for file, heading, caption, figure in figures(data, models, guesses):
        for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
            text.set_parse_math(False)  # a class name may hold dollar signs that are no formula
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
        pictures[heading] = buffer.getvalue(), caption
        write_file(folder / file, buffer.getvalue())
        written.append(file)
    write_file(folder / "report.html", report.page(results, pictures).encode())
    page = web.to_html(models, X=data.X_test[:10]).encode()
    if len(page) < LARGEST_PAGE:
        write_file(folder / "try.html", page)
        written.append("try.html")
    print("written:", *(folder / name for name in written))


def figures(data: Dataset, models: dict[str, "tb.ViT"], guesses: dict[str, np.ndarray]) -> Iterator[tuple]:
    """(file name, heading, caption, matplotlib Figure) of each picture in the report."""
    labels = np.array(data.classes)[data.y_test]
    yield (
        "loss.png",
        "Training",
        "Loss and accuracy on the training images as they were seen, augmented, in each epoch.",
        viz.plot_history(models),
    )
    yield (
        "confusion.png",
        "Confusion matrices",
        "Test images: true classes down, predicted ones across.",
        viz.plot_confusion(labels, guesses, data.classes),
    )
    shown = np.unique(data.y_test, return_index=True)[1][:PICTURED]  # the first image of each of the first classes
    X, y = data.X_test[shown], labels[shown]
    several = len(models) > 1
    record = viz.compare_attention(models, X, y) if several else viz.attention(next(iter(models.values())), X)
    yield (
        "attention.png",
        "Attention",
        "From which patches the last layer's tokens draw, by attention rollout through all layers.",
        record.plot(),
    )
