"""results.json: every run of a study, the statistics over its seeds, and how it was made."""

import json
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import tinybitvit as tb

from ..data import Dataset
from ..files import file_problem, printable
from ..train import cores, delete_checkpoints
from ..train.meter import say
from ..train.resume import fingerprint, model_fingerprint, option_text
from .presets import load_data_once
from .report import GROUP, Results, size_of
from .run import Run, Study, source_name

SCORES = ("accuracy", "precision", "recall", "f1")
CONFIDENCE = 0.95
FREE = ("device", "workers", "verbose")  # options that may change from one part of a study to the next
# What tells two studies apart although they have the same options, and how to say so.
APART = {
    "images": "it had other images or classes",
    "teacher": "its teacher was another model",
    "init_from": "it started from another model",
}


# --- the folder -------------------------------------------------------------------------------------------------------


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


def read_results(path: str | os.PathLike) -> Results:
    """The content of a results.json, or of the one in a folder. Raises ValueError for any other file."""
    path = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        if problem := file_problem(path):
            raise ValueError(problem)
        results = json.loads(path.read_text(encoding="utf-8"))
        if not {"models", "summary", "options", "classes"} <= set(results):
            raise ValueError("it lacks the runs of a study")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no results.json of a study ({error}): give the folder of one") from error
    for entry in (*results["models"], *results["summary"]):
        entry.setdefault("recipe", None)  # the first version had no ablations
    for entry in results["summary"]:
        entry["front"] = on_front(entry, results["summary"])  # earlier versions counted the bytes of the arrays alone
    results.setdefault("groups", [])
    return results


def begin(study: Study, data: Dataset, runs: Sequence[Run], resume: bool, command: str | None) -> Results:
    """Fresh results, or (resume) those in the folder without the models that Ctrl-C cut short.

    Raises ValueError where the folder holds an unfinished study and `resume` is False, or another study than this one.
    The same study, finished, is made again and replaced.
    """
    results, path = new_results(study, data, runs, command), study.folder / "results.json"
    earlier = read_results(path) if path.exists() else None
    unfinished = earlier is not None and len(earlier["models"]) < earlier["planned"]
    if not resume:
        if unfinished or list(study.folder.glob("checkpoints/*/checkpoint-*.safetensors")):
            raise ValueError(f"{study.folder} holds an unfinished study: resume it, or delete that folder")
        if earlier is not None:
            replace(study, runs, results, earlier)
    elif earlier is not None:
        if apart := difference(study, results, earlier):
            raise ValueError(f"{study.folder} holds another study: {apart}; give what it was, or choose another folder")
        results["made_of"] |= earlier.get("made_of", {})
        results |= {"settings": earlier["settings"], "seeds": sorted({*earlier["seeds"], *results["seeds"]})}
        results["models"] = [m for m in earlier["models"] if not m["interrupted"]]
        results["planned"] = len({run.name for run in runs} | {m["name"] for m in results["models"]})
        sum_up(results)
    return results


def replace(study: Study, runs: Sequence[Run], results: Results, earlier: Results) -> None:
    """Say that a finished study is made again. ValueError where it is another one: its models are worth a question."""
    apart = difference(study, results, earlier)
    if not apart and {run.name for run in runs} != {model["name"] for model in earlier["models"]}:
        apart = "it has other seeds, bits or sizes; resume it to add these"
    if apart:
        raise ValueError(
            f"{study.folder} holds the models of another study: {apart}; choose another folder, or delete that one"
        )
    say(printable(f"{study.folder.name} holds this study already: its results and models are made again"))


def difference(study: Study, results: Results, earlier: Results) -> str | None:
    """What tells two studies apart, in words; None where all that both of them say is the same."""
    made, before = results["made_of"], earlier.get("made_of", {})  # earlier versions did not tell
    if before.get("kind", made["kind"]) != made["kind"]:
        return f"it was of the kind {before['kind']!r} and is now {made['kind']!r}"
    for name in sorted({*results["options"], *earlier["options"]}):
        mine, theirs = results["options"].get(name), earlier["options"].get(name)
        if mine != theirs:
            return f"{name} was {theirs} and is now {mine}"
    if before.get("seed", made["seed"]) != made["seed"]:  # the images of that seed are those to compare
        made = {**made, "images": images_mark(load_data_once(**study.data, seed=before["seed"]))}
    return next((text for name, text in APART.items() if name in before and before[name] != made.get(name)), None)


def made_of(kind: str, data: Dataset, seed: int, models: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of a study do not tell, for results.json: its kind, and short hashes.

    They are of the images and classes of one seed, and of the weights of the models that it starts or learns from.
    """
    marks = {name: model_fingerprint(network) for name, network in models.items()}
    return {"kind": kind, "seed": seed, "images": images_mark(data), **marks}


def images_mark(data: Dataset) -> str:
    return fingerprint(data.X_train, data.y_train, data.X_test, data.y_test, np.array(data.classes))


def new_results(study: Study, data: Dataset, runs: Sequence[Run], command: str | None) -> Results:
    given = {name: value for name, value in study.data.items() if value is not None}
    options = given | {name: value for name, value in study.options.items() if name not in FREE}
    options["dataset"] = data.name  # a folder may have been moved
    if "init_from" in options:
        options["init_from"] = source_name(options["init_from"])
    if study.teacher is not None:
        options["teacher"] = study.teacher.name
    return {
        "dataset": data.name,
        "train_size": len(data.y_train),
        "test_size": len(data.y_test),
        "image_shape": list(data.X_train.shape[1:]),
        "classes": list(data.classes),
        "groups": list(data.groups),
        "seeds": sorted({run.seed for run in runs}),
        "command": command,
        "options": {name: option_text(value) for name, value in options.items()},
        "made_of": dict(study.made_of),
        "settings": {},
        "environment": {"tinybitvit": tb.__version__, "Python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scikit-learn")},
        "machine": machine(),
        "planned": len(runs),
        "interrupted": False,
        "seconds": 0.0,
        "summary": [],
        "models": [],
    }


def machine() -> str:
    """What computes, without the name of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that does not tell
        model = platform.machine()
    return f"{cores()} cores, {model}, {platform.system()}"


def add_run(results: Results, found: Results, order: Sequence[str]) -> None:
    """Put the entry of a model that was trained into the results, in the order of the names of all runs."""
    own = found.pop("settings")
    common = results["settings"] or own
    results["settings"] = {name: value for name, value in common.items() if own.get(name) == value}
    models = [m for m in results["models"] if m["name"] != found["name"]] + [found]
    place = {name: i for i, name in enumerate(order)}
    results["models"] = sorted(models, key=lambda m: place.get(m["name"], len(place)))
    results["interrupted"] = results["interrupted"] or found["interrupted"]
    sum_up(results)


def sum_up(results: Results) -> None:
    """Bring what follows from the models up to date."""
    results["seconds"] = sum(m["seconds"] for m in results["models"])
    results["summary"] = summarize(results["models"], results["test_size"])


def close(study: Study, runs: Iterable[Run]) -> None:
    """Delete the checkpoints of runs whose results are written."""
    for run in runs:
        delete_checkpoints(study.checkpoints(run))
    if (parent := study.folder / "checkpoints").is_dir() and not list(parent.iterdir()):
        parent.rmdir()


# --- statistics -------------------------------------------------------------------------------------------------------


def summarize(models: Sequence[Results], test_size: int) -> list[dict[str, Any]]:
    """An entry for each bit width, recipe and shape, over its seeds: scores with their intervals, size, mean seconds.

    `recipe` is None but in an ablation. `gap` is the accuracy of the full-precision model of the same seed and shape
    less its own (None where there is no such model). `front`: whether no other entry has fewer bytes and at least its
    accuracy, or as few and a better one.
    """
    groups: dict[tuple, list[Results]] = {}
    one_seed = len({model["seed"] for model in models}) == 1
    for model in models:
        groups.setdefault(tuple(model[key] for key in GROUP), []).append(model)
    summary = []
    for (bits, recipe, dim, depth), members in groups.items():
        entry = {"bits": bits, "recipe": recipe, "dim": dim, "depth": depth, "seeds": [m["seed"] for m in members]}
        entry |= {score: interval([m[score] for m in members]) for score in SCORES}
        if one_seed:
            entry["accuracy"] = binomial_interval(members[0]["accuracy"], test_size)
        seed = members[0]["seed"]
        twins = {m["seed"]: m["accuracy"] for m in groups.get((32, None, dim, depth), [])}
        gaps = [twins[m["seed"]] - m["accuracy"] for m in members if m["seed"] in twins]
        entry["gap"] = interval(gaps) if gaps and bits != 32 else None
        if entry["gap"] and one_seed:
            entry["gap"] = difference_interval(binomial_interval(twins[seed], test_size), entry["accuracy"])
        sizes = ("parameters", "bytes", "weight_bytes", "effective_bits")
        entry |= {key: members[0][key] for key in sizes if key in members[0]}  # earlier versions had no "bytes"
        entry["seconds"] = sum(m["seconds"] for m in members) / len(members)
        entry["interrupted"] = any(m["interrupted"] for m in members)
        summary.append(entry)
    for entry in summary:
        entry["front"] = on_front(entry, summary)
    return summary


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half the width of its 95 % confidence interval by Student's t; None for one value, which tells none."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"mean": mean, "half_width": None, "low": None, "high": None}
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1)) / math.sqrt(n)
    return {"mean": mean, "half_width": half, "low": mean - half, "high": mean + half}


def binomial_interval(share: float, n: int) -> dict[str, Any]:
    """The 95 % confidence interval (Wilson 1927) of a share that was counted in n images, as `interval` gives it.

    It says what other test images would change, and nothing about other seeds. It is not symmetric about the share.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {"mean": share, "half_width": half, "low": centre - half, "high": centre + half}


def difference_interval(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The 95 % confidence interval of first - second, two shares with intervals of `binomial_interval`.

    Newcombe 1998, method 10, for shares of different images. Two models that are asked about the same images agree
    more often than that, so that the interval is rather too wide.
    """
    difference = first["mean"] - second["mean"]
    low = difference - math.hypot(first["mean"] - first["low"], second["high"] - second["mean"])
    high = difference + math.hypot(first["high"] - first["mean"], second["mean"] - second["low"])
    return {"mean": difference, "half_width": (high - low) / 2, "low": low, "high": high}


def on_front(entry: dict[str, Any], others: Iterable[dict[str, Any]]) -> bool:
    """Whether an entry is Pareto-optimal in bytes, those of the table, and mean accuracy."""
    size, accuracy = size_of(entry), entry["accuracy"]["mean"]
    return not any(
        size_of(other) <= size
        and other["accuracy"]["mean"] >= accuracy
        and (size_of(other) < size or other["accuracy"]["mean"] > accuracy)
        for other in others
    )
