"""The plots of a study: training curves, confusion matrices, weights, predictions. Each function returns a Figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure

from ..backend import to_numpy
from .figure import (
    DIVERGING,
    NARROW,
    ONE_LINE,
    PALETTE,
    SEQUENTIAL,
    chosen_images,
    color_bar,
    new_figure,
    predicted,
    scale_around_zero,
    shortened,
    show_image,
    write_cells,
)
from .layout import layer_number
from .subject import check_kinds, check_labels

MOST_NUMBERED = 20  # classes of a confusion matrix whose numbers, and names, can be read
TERNARY = ("#2166ac", "#f2f2f2", "#b2182b")  # -1, 0, +1


def plot_history(history: Any, loss: str = "cross-entropy (nats)") -> Figure:
    """Loss and accuracy over the epochs, solid for training and dashed for validation.

    history: a `history_` (dict of lists: loss, accuracy, val_loss, val_accuracy), a fitted `tb.ViT`, or a dict from
    names to either, which are drawn together, each in its own colour; where there are more than colours, thicker lines.
    Values that are None are left out. loss: what the loss is.
    """
    histories = _named(history)
    figure = new_figure(9.5, 3.6)
    axes = figure.subplots(1, 2)
    for ax, key, factor, label in (
        (axes[0], "loss", 1, loss),
        (axes[1], "accuracy", 100, "accuracy (%)"),
    ):
        for i, (name, values) in enumerate(histories.items()):
            for prefix, line in (("", "-"), ("val_", "--")):
                points = [(e + 1, factor * v) for e, v in enumerate(values.get(prefix + key) or []) if v is not None]
                if points:
                    kind = "validation" if prefix else "training"
                    text = f"{name}, {kind}" if name else kind
                    rest = {"marker": "o" if len(points) == 1 else None, "linewidth": 1.5 * (1 + i // len(PALETTE))}
                    ax.plot(*zip(*points, strict=True), line, color=PALETTE[i % len(PALETTE)], label=text, **rest)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def plot_confusion(
    y_true: Any,
    y_pred: Any,
    classes: Sequence | None = None,
    normalize: bool = False,
    names: Sequence[str] | None = None,
) -> Figure:
    """Confusion matrices, true classes down and predicted ones across, all on one scale.

    y_true: labels (N,). y_pred: labels (N,), or a dict from model names to them for one matrix each. classes: the
    labels in order (None: all that occur). names: what to write for them (None: the labels). normalize: show the
    percentage of the row's class instead of images. Up to 20 classes the numbers are written into the cells.
    """
    from sklearn.metrics import confusion_matrix

    predictions = dict(y_pred) if isinstance(y_pred, Mapping) else {"": y_pred}
    for guess in predictions.values():
        check_kinds(guess, y_true)
    occurring = np.unique(np.concatenate([np.asarray(y_true), *map(np.asarray, predictions.values())]))
    labels = list(occurring if classes is None else classes)
    names = [str(label) for label in (labels if names is None else names)]
    if len(names) != len(labels):
        raise ValueError(f"names holds {len(names)} texts for {len(labels)} classes: give one for each")
    matrices = {k: confusion_matrix(y_true, v, labels=labels) for k, v in predictions.items()}
    return plot_confusion_matrices(matrices, names, normalize)


def plot_confusion_matrices(
    matrices: Mapping[str, Any],
    names: Sequence[str],
    normalize: bool = False,
    side: float | None = None,
    groups: Sequence[str] = (),
) -> Figure:
    """The same from confusion matrices (classes, classes) by model name. names: of the classes. side: inches of one.

    groups: what each class is a kind of; then classes of a kind stand together, and the axes name the kinds.
    """
    counts = {k: np.asarray(m, dtype=float) for k, m in matrices.items()}
    if normalize:
        counts = {k: 100 * m / np.maximum(m.sum(axis=1, keepdims=True), 1) for k, m in counts.items()}
    order = sorted(range(len(names)), key=lambda i: groups[i]) if groups else list(range(len(names)))
    counts = {k: m[np.ix_(order, order)] for k, m in counts.items()}
    names, kinds = [shortened(names[i]) for i in order], [groups[i] for i in order] if groups else []
    most = 100 if normalize else max(1.0, *(m.max() for m in counts.values()))
    # Where no numbers are written, few errors must be seen beside many right answers.
    norm = Normalize(0, most) if len(names) <= MOST_NUMBERED else PowerNorm(0.5, 0, most)
    side = min(6.0, max(3.2, side or 0.38 * len(names) + 1.2))
    columns = len(counts) if len(counts) <= 4 else 3
    rows = math.ceil(len(counts) / columns)
    figure = new_figure(side * columns, side * rows + 0.9)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(counts) :]:
        ax.set_axis_off()
    for ax, (name, matrix) in zip(axes, counts.items(), strict=False):
        ax.imshow(matrix, cmap=SEQUENTIAL, norm=norm)
        ax.set(title=name, xlabel="predicted", ylabel="true")
        places, texts = _blocks(ax, kinds) if kinds else _some(names)
        ax.set_xticks(places, texts, rotation=90 if max(map(len, texts)) > 2 else 0, fontsize=8)
        ax.set_yticks(places, texts, fontsize=8)
        if len(names) <= MOST_NUMBERED:
            write_cells(ax, np.vectorize("{:.0f}".format)(matrix), norm(matrix) > 0.6, size=7)
    color_bar(figure, axes, norm, "% of the true class" if normalize else "images")
    return figure


def _some(names: Sequence[str]) -> tuple[list[float], list[str]]:
    """Ticks at as many classes as can be read."""
    shown = range(0, len(names), math.ceil(len(names) / MOST_NUMBERED))
    return list(map(float, shown)), [names[i] for i in shown]


def _blocks(ax: Any, kinds: Sequence[str]) -> tuple[list[float], list[str]]:
    """Lines between classes of different kinds, and a tick in the middle of each kind."""
    edges = [i for i in range(len(kinds) + 1) if i in (0, len(kinds)) or kinds[i] != kinds[i - 1]]
    for edge in edges[1:-1]:
        for line in (ax.axhline, ax.axvline):
            line(edge - 0.5, color="white", linewidth=0.5, alpha=0.5)
    return [(a + b - 1) / 2 for a, b in pairwise(edges)], [kinds[a] for a in edges[:-1]]


def plot_weights(model: Any, layer: int = 0) -> Figure:
    """The weights of one block as planes, outputs down and inputs across: q, k, v, proj, fc1, fc2.

    model: a fitted `tb.ViT` or a network with `blocks`, packed or not. Low-bit layers show their integer codes and the
    share of each for up to three values (-1, 0, +1); full-precision layers show the floats.
    """
    blocks = getattr(model, "model_", model).blocks
    block = blocks[layer_number(layer, len(blocks))]
    q, k, v = np.split(_weight(block.attn.qkv), 3)
    planes = {"q": q, "k": k, "v": v, "proj": _weight(block.attn.proj)}
    planes |= {"fc1": _weight(block.mlp.fc1), "fc2": _weight(block.mlp.fc2)}
    codes = hasattr(block.attn.qkv, "codes")
    figure = new_figure(9.5, 6.2)
    axes = figure.subplots(2, 3)
    ternary = codes and all(np.abs(p).max() <= 1 for p in planes.values())
    norm: Normalize
    cmap: Any
    if ternary:
        norm, cmap = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3), ListedColormap(TERNARY)
    else:
        norm, cmap = scale_around_zero(list(planes.values())), DIVERGING
    for ax, (name, plane) in zip(axes.flat, planes.items(), strict=True):
        ax.imshow(plane, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
        shares = (
            "  ".join(f"{c:+d}: {(plane == c).mean():.0%}" for c in (-1, 0, 1)) if ternary else _spread(plane, codes)
        )
        ax.set_title(f"{name} ({plane.shape[0]} x {plane.shape[1]})\n{shares.replace('+0', '0')}", fontsize=9)
        ax.set(xlabel="input", ylabel="output")
        ax.tick_params(labelsize=7)
    color_bar(figure, axes.flat, norm, "weight code" if codes else "weight", cmap, (-1, 0, 1) if ternary else None)
    figure.suptitle(f"layer {layer}", fontsize=10)
    return figure


def plot_predictions(
    model: Any, X: Any, y: Any = None, images: Sequence[int] | None = None, names: Any = None
) -> Figure:
    """Images with the predicted class and its probability; wrong ones say what was right and have a thick frame.

    model: a fitted `tb.ViT`. X: images as for `predict`; y: their true labels. images: which to show (None: the first
    16). names: label -> text (a dict, or a list where labels are numbers).
    """
    numbers, pictures = chosen_images(np.reshape(X, (len(X), *model.image_shape_)), images, most=16)
    y = None if y is None else check_labels(y, model.classes_, len(X))
    probabilities = model.predict_proba(X)[numbers]
    labels = model.classes_[probabilities.argmax(axis=1)]
    columns = min(8, len(numbers))
    rows = math.ceil(len(numbers) / columns)
    figure = new_figure(max(1.35 * columns, 3), 1.85 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(numbers) :]:
        ax.set_axis_off()
    for i, (ax, image, label) in enumerate(zip(axes.flat, pictures, labels, strict=False)):
        show_image(ax, image)
        ax.set_title(predicted(_name(names, label), probabilities[i].max()), fontsize=9)
        truth = label if y is None else y[numbers[i]]
        if truth != label:
            name = shortened(_name(names, truth), NARROW)
            gap = "\n" if len(name) > ONE_LINE else " "
            ax.set_xlabel(f"wrong:{gap}{name}", fontsize=9, color=PALETTE[1])
            for spine in ax.spines.values():
                spine.set(edgecolor=PALETTE[1], linewidth=3)
    return figure


# --- inside -----------------------------------------------------------------------------------------------------------


def _named(history: Any) -> dict[str, Mapping]:
    """name -> dict of lists; one history alone has the name ''."""
    if hasattr(history, "history_"):
        return {"": history.history_}
    if not isinstance(history, Mapping) or not history:
        raise ValueError("history must be a history_ (dict of lists), a fitted tb.ViT, or a dict from names to either")
    if "loss" in history:
        return {"": history}
    return {str(name): h.history_ if hasattr(h, "history_") else h for name, h in history.items()}


def _weight(layer: Any) -> np.ndarray:
    """The integer codes of a low-bit layer, else the float weight, as a host array (out, in)."""
    return to_numpy(layer.codes()[0] if hasattr(layer, "codes") else layer.weight.data)


def _spread(plane: np.ndarray, codes: bool) -> str:
    return f"{(plane == 0).mean():.0%} zeros" if codes else f"standard deviation {plane.std():.3f}"


def _name(names: Any, label: Any) -> str:
    return str(label if names is None else names[label])
