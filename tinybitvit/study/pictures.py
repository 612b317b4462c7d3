"""The figures of a study, most of them from results.json alone, and its report."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tinybitvit as tb

from .. import viz, web
from ..data import Dataset
from ..files import printable, write_file
from ..train import smoothing_floor
from ..train.meter import say
from . import report
from .run import Run, Study

LARGEST_PAGE = 5_000_000  # bytes of the models in try.html, which holds them as text; larger pages are left out
PICTURED = 4  # test images in the attention figure
MOST = 8  # entries, as many as there are colours: more would not be told apart
SMALLER = 0.85  # of the attention figure, whose texts keep their size: a page shows it smaller than it is


def write_report(study: Study, results: report.Results, data: Dataset, runs: Sequence[Run]) -> None:
    """results.json, figures as PNG files, and report.html that holds them; prints what the folder holds.

    data: the images of the first seed; attention maps and try.html are of its models, one for each bit width, and left
    out for a sweep or an ablation.
    """
    folder, pictures, written = study.folder, {}, ["results.json", "report.html"]
    write_file(folder / "results.json", report.to_json(results))
    models = {}
    if not any(run.shape or run.recipe for run in runs):
        first = [run for run in runs if run.seed == runs[0].seed and study.model_file(run).exists()]
        models = {report.model_name(run.bits): tb.load(study.model_file(run)) for run in first}
    for file, heading, caption, figure in figures(results, data, models):
        png = png_bytes(figure)
        pictures[heading] = confusion_panels(results) if file == "confusion.png" else {"": png}, caption
        write_file(folder / file, png)
        written.append(file)
    sizes = [4 / 3 * entry["weight_bytes"] for entry in results["summary"]]
    live = "try.html" if models and sum(sizes) < LARGEST_PAGE else None
    if live:
        write_file(folder / live, web.to_html(models, X=data.X_test[:10]))
        written.append(live)
    write_file(folder / "report.html", report.page(results, pictures, live))
    names = [*written, *(["models"] if (folder / "models").is_dir() else [])]
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    say(printable(" ".join(["written:", *(str(shown / name) for name in names)])))


def png_bytes(figure: Any) -> bytes:
    """A matplotlib Figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def groups_of(results: report.Results) -> dict[str, list]:
    """The models of each entry's name."""
    return {report.entry_name(entry, results): report.members(entry, results) for entry in results["summary"]}


def confusion_panels(results: report.Results) -> dict[str, bytes]:
    """A picture for each matrix, so that a phone shows them one below the other: name -> PNG."""
    side = 0.28 * len(results["classes"]) + 1
    return {
        name: png_bytes(confusion_figure({name: models}, results, side)) for name, models in groups_of(results).items()
    }


def confusion_figure(groups: dict[str, list], results: report.Results, side: float | None = None) -> Any:
    """The confusion matrices of some groups of models. side: see `viz.plot_confusion_matrices`."""
    matrices = {name: report.confusion(models) for name, models in groups.items()}
    classes = list(map(printable, results["classes"]))
    return viz.plot_confusion_matrices(matrices, classes, side=side, groups=results["groups"])


def figures(results: report.Results, data: Dataset, models: dict[str, "tb.ViT"]) -> Iterator[tuple]:
    """(file name, heading, caption, matplotlib Figure) of each picture in the report."""
    yield from result_figures(results)
    if not models:
        return
    labels = np.array(list(map(printable, data.classes)))[data.y_test]
    shown = np.unique(data.y_test, return_index=True)[1][:PICTURED]  # the first image of each of the first classes
    X, y = data.X_test[shown], labels[shown]
    several = len(models) > 1
    record = viz.compare_attention(models, X, y) if several else viz.attention(next(iter(models.values())), X)
    figure = record.plot()
    figure.set_size_inches(SMALLER * figure.get_size_inches())
    yield (
        "attention.png",
        "Attention",
        "From which patches the last layer's tokens draw, by attention rollout through all layers.",
        figure,
    )


def learnt_from_teacher(results: report.Results) -> bool:
    """Whether there are low-bit models whose loss is not the cross-entropy with the labels alone."""
    options = results["options"]
    taught = "distill_from" in options or options.get("recipe") not in (None, repr("paper"))
    return report.is_ablation(results) or (taught and any(model["bits"] != 32 for model in results["models"]))


def result_figures(results: report.Results) -> Iterator[tuple]:
    """(file name, heading, caption, matplotlib Figure) of each picture that results.json alone gives."""
    groups = groups_of(results)
    if report.is_sweep(results):
        yield (
            "pareto.png",
            "Accuracy against bytes",
            "Bytes of the whole model with its low-bit weights packed; bars are 95 % intervals. The line joins the"
            " models that no other beats in both: the Pareto front.",
            viz.plot_pareto(report.points(results)),
        )
    if report.is_ablation(results):
        yield (
            "ablation.png",
            "What each ingredient is worth",
            "Accuracy on the test images; bars, and the grey band around the 32-bit model, are 95 % intervals.",
            viz.plot_ablation(report.points(results)),
        )
    if len(groups) <= MOST:
        yield training_figure(results, groups)
        yield (
            "confusion.png",
            "Confusion matrices",
            f"Test images{' of all seeds' * (len(results['seeds']) > 1)}: true classes down, predicted ones across."
            + " Classes of a kind stand together; the axes name the kinds." * bool(results["groups"]),
            confusion_figure(groups, results),
        )


def training_figure(results: report.Results, groups: dict[str, list]) -> tuple:
    """The curves of the training, as `result_figures` yields it. groups: the models of each entry's name."""
    curves = {name: mean_history(models) for name, models in groups.items()}
    caption = "Solid: on the training images as they were seen, augmented, in each epoch"
    caption += ", mean over the seeds" * (len(results["seeds"]) > 1)
    if any(value is not None for curve in curves.values() for value in curve["val_loss"]):
        caption += "; dashed: on the validation images"
    else:
        caption += ". Nothing was measured on other images on the way; the accuracies in the table are of test images"
    caption += "."
    if learnt_from_teacher(results):
        caption += " Models with a teacher learn what it does, in stages: their losses are other quantities."
        return "loss.png", "Training", caption, viz.plot_history(curves, "loss of the stage")
    figure = viz.plot_history(curves, "cross-entropy (nats)")
    if smoothing := results["settings"].get("label_smoothing"):
        floor = smoothing_floor(smoothing, len(results["classes"]))
        figure.axes[0].axhline(floor, color="0.5", linestyle=":")
        axes = figure.axes[0]
        across = axes.get_yaxis_transform()
        axes.text(0.98, 0.93 * floor, "floor of label smoothing", fontsize=8, ha="right", va="top", transform=across)
        caption += (
            f" Dotted: no loss lies below {floor:.3f} nats. Label smoothing of {smoothing:g} asks for"
            f" {1 - smoothing + smoothing / len(results['classes']):.2f} of the probability on the true class and for"
            " the rest on the others, and even a network that answers just so pays the entropy of that."
        )
    return "loss.png", "Training", caption, figure


def table_figure(results: report.Results) -> Any:
    """The table of a report as a matplotlib Figure."""
    return viz.plot_table([list(report.columns(results)), *report.rows(results)])


def mean_history(models: Sequence[report.Results]) -> dict[str, list]:
    """The curves of several runs as one: the mean over those that have the epoch."""
    histories = [model["history"] for model in models]
    mean: dict[str, list] = {}
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        epochs = range(max(len(history[key]) for history in histories))
        values = [[h[key][e] for h in histories if e < len(h[key]) and h[key][e] is not None] for e in epochs]
        mean[key] = [sum(v) / len(v) if v else None for v in values]
    return mean


def draw(folder: Path, results: report.Results) -> list[Path]:
    """Write table.png and `result_figures` into a folder; returns their paths."""
    pictures = [("table.png", table_figure(results))]
    pictures += [(file, figure) for file, _, _, figure in result_figures(results)]
    for file, figure in pictures:
        write_file(folder / file, png_bytes(figure))
    return [folder / file for file, _ in pictures]
