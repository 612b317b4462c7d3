"""One model of a study: trained, measured and saved."""

import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinybitvit as tb

from ..data import Dataset
from ..files import FORMAT, CheckpointError, read_header
from ..io import file_bytes
from ..models import zoo
from ..quant import choose_layout, describe
from ..train import single_threaded_blas
from ..train.convert.recipes import ABLATION
from ..train.meter import say
from . import report
from .presets import load_data_once


class Run(NamedTuple):
    """What one model differs in from the others of its study."""

    bits: float
    seed: int
    shape: dict[str, int]  # dim, depth and heads where they are swept over
    twin: str | None = None  # the argument of tb.ViT as which it takes the full-precision model of its seed and shape
    recipe: str | None = None  # in an ablation

    @property
    def name(self) -> str:
        """The name of its files."""
        kind = report.model_name(self.bits, self.recipe).replace(", ", "-").replace("+ ", "").replace(" ", "-")
        shape = "".join(f"-{key}-{self.shape[key]}" for key in ("dim", "depth") if key in self.shape)
        return f"{kind}{shape}-seed-{self.seed}"

    @property
    def title(self) -> str:
        """Its name for people."""
        shape = f", {self.shape['dim']} wide, {self.shape['depth']} deep" if self.shape else ""
        return f"{report.model_name(self.bits, self.recipe)}{shape}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """What the models of a study have in common, as a process of its own needs it.

    folder: of all files. data: arguments of `load_data` but the seed. options: of tb.ViT. teacher: a file of
    tb.ViT.save that is the full-precision model of every seed, which is then not trained. made_of: see
    `results.made_of`.
    """

    folder: Path
    data: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    teacher: Path | None = None
    made_of: dict[str, Any] = field(default_factory=dict)

    def model_file(self, run: Run) -> Path:
        return self.folder / "models" / f"{run.name}.safetensors"

    def trains(self, run: Run) -> bool:
        """Whether a run trains a model; else its model is the teacher's file."""
        return run.bits != 32 or self.teacher is None

    def checkpoints(self, run: Run) -> Path:
        return self.folder / "checkpoints" / run.name


def train_model(
    data: Dataset, checkpoint: str | PathLike | None = None, resume: bool = False, **options: Any
) -> tuple["tb.ViT", float]:
    """A tb.ViT with these options fitted on the training images, its labels the class names; the seconds that took.

    checkpoint, resume: see `tb.ViT.fit`; the seconds include those before the run was cut short.
    """
    labels = data.named().y_train
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that overflow: the Trainer says it in one sentence
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few images of many classes
        model = tb.ViT(**options).fit(data.X_train, labels, checkpoint=checkpoint, resume=resume)
    if model.interrupted_ and not model.n_iter_:
        raise KeyboardInterrupt  # before the end of the first epoch: there is nothing to report on
    return model, sum(model.history_["seconds"])


def train_run(study: Study, run: Run, resume: bool = False, shared: bool = False) -> report.Results:
    """Train and save one model; returns its entry for results.json, with the study's settings as it met them.

    shared: other runs compute beside it on the same cores, so that it takes one of them and prints at most a line
    a minute, with its title.
    """
    data = load_data_once(**study.data, seed=run.seed)
    options = {**study.options, **run.shape, "bits": run.bits, "random_state": run.seed}
    if run.recipe is not None:
        options["recipe"] = ABLATION[run.recipe]
    if shared:
        serve_parent()
        options |= {"workers": 1, "verbose": options.get("verbose", 1) and run.title}
    if run.twin is not None:
        twin = tb.load(study.model_file(run._replace(bits=32, recipe=None)), options.get("device", "cpu"))
        if study.teacher is None:
            options.pop("init_from", None)  # it starts from its twin, which started from there
        options[run.twin] = twin.set_params(workers=options.get("workers", "auto"))
    if run.twin != "init_from" and "init_from" in options and study.trains(run):
        options["init_from"] = start_model(options["init_from"])
    with single_threaded_blas() if shared else nullcontext():
        if study.trains(run):
            model, seconds = train_model(data, checkpoint=study.checkpoints(run), resume=resume, **options)
        else:
            assert study.teacher is not None
            model = tb.load(study.teacher, options.get("device", "cpu"))
            seconds = sum(model.history_["seconds"])
        guess = model.predict(data.X_test)
    save(model, study.model_file(run))
    found = measure(model, data, guess)
    common = settings(model)
    if run.recipe is not None:
        common["recipe"] = run.recipe
    if "init_from" in study.options:
        common["init_from"] = source_name(study.options["init_from"])
    return {"name": run.name, "seed": run.seed, "recipe": run.recipe, **found, "seconds": seconds, "settings": common}


def serve_parent() -> None:
    """In a process that joblib started: leave Ctrl-C to the parent, and end when the parent is gone.

    Ctrl-C strikes all processes of a terminal, and one is to tell of it: the parent, which then ends the others. A
    parent that is killed ends nobody. The runs of both go on from their last checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is None or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "watch" not in {thread.name for thread in threading.enumerate()}:
        threading.Thread(target=end_with, args=(parent, os.getppid()), name="watch", daemon=True).start()


def end_with(parent: Any, started_by: int) -> None:
    """Wait until the parent is gone, or what started this process for it (a fork server); then end this process."""
    while is_alive(parent) and os.getppid() == started_by:
        time.sleep(0.5)
    os._exit(1)


def is_alive(parent: Any) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return parent.is_alive()
    try:
        os.kill(parent.pid, 0)
    except ProcessLookupError:
        return False
    return True


def start_model(source: Any) -> Any:
    """A model to start from, as tb.ViT takes it: what tb.load reads, by file or name, anything else as it is."""
    if isinstance(source, str) and not Path(source).exists() and source in zoo.names():
        return tb.load(source)
    if isinstance(source, (str, PathLike)) and Path(source).is_file() and FORMAT in read_header(source):
        return tb.load(source)
    return source


def save(model: "tb.ViT", path: Path) -> None:
    """The model as a file. A fault of the disk costs one printed line: the result is worth more than the model."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path, packed=model.bits != 32)
    except (OSError, CheckpointError) as error:
        say(f"model not saved, the study goes on: {error}")


def measure(model: "tb.ViT", data: Dataset, guess: np.ndarray) -> dict[str, Any]:
    """Scores of its guesses for the test images, and its size: bytes of its file, and of the arrays in it alone
    (weight_bytes). Precision, recall and F1 are means over the classes that occur among truths or guesses.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    y = np.array(data.classes)[data.y_test]
    labels = list(data.classes)
    occurring = np.union1d(y, guess)
    precision, recall, f1, _ = precision_recall_fscore_support(
        y, guess, labels=occurring, average="macro", zero_division=0
    )
    network = model.model_
    shipped = describe(network if model.bits == 32 else network.pack(choose_layout(model.bits, "disk")))[-1]
    return {
        "bits": model.bits,
        "dim": network.config["dim"],
        "depth": network.config["depth"],
        "accuracy": float((guess == y).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "parameters": sum(p.size for p in network.parameters()),
        "bytes": file_bytes(model),
        "weight_bytes": shipped.bytes,
        "effective_bits": shipped.effective_bits,
        "confusion_matrix": confusion_matrix(y, guess, labels=labels).tolist(),
        "history": {key: [shortened(value) for value in values] for key, values in model.history_.items()},
        "interrupted": model.interrupted_,
    }


def shortened(value: Any) -> Any:
    """A float with the six digits that a curve needs: histories are most of results.json. None if it is not finite."""
    if not isinstance(value, (float, np.floating)):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def settings(model: "tb.ViT") -> dict[str, Any]:
    """How a model was made, as JSON takes it."""
    names = ("epochs", "batch_size", "lr", "label_smoothing", "activation_bits", "augment")
    given = {"recipe": model.recipe, **{name: getattr(model, name) for name in names}}
    shape = {name: model.model_.config[name] for name in ("dim", "depth", "heads", "mlp_ratio")}
    return {**given, **shape, "patch_size": list(model.model_.embed.patch.patch_size)}


def source_name(source: Any) -> str:
    """What a model started from, in a word: the name of a file or folder, without the way to it."""
    return Path(source).name if isinstance(source, (str, PathLike)) else type(source).__name__
