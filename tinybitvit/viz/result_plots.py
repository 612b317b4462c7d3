"""The plots of what a study found: a table, accuracy against size or by recipe. Each function returns a Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .figure import PALETTE, new_figure


def plot_pareto(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against bytes, on a logarithmic scale: a colour for each group, a line along the Pareto front.

    points: dicts with `label`, `group` (a name; a bit width, say), `bytes`, `accuracy`, `low` and `high` (shares in
    0..1; the ends of its interval, or None) and `front` (whether it lies on the front; such points show their label).
    """
    figure = new_figure(8.5, 5)
    ax = figure.subplots()
    for i, group in enumerate(dict.fromkeys(p["group"] for p in points)):
        members = [p for p in points if p["group"] == group]
        color = PALETTE[i % len(PALETTE)]
        x, y = [p["bytes"] / 1000 for p in members], [100 * p["accuracy"] for p in members]
        ax.plot(x, y, "o", color=color, label=group)
        for p in members:
            if p["low"] is not None:
                ax.plot([p["bytes"] / 1000] * 2, [100 * p["low"], 100 * p["high"]], color=color, alpha=0.4)
    front = sorted((p for p in points if p["front"]), key=lambda p: p["bytes"])
    x, y = [p["bytes"] / 1000 for p in front], [100 * p["accuracy"] for p in front]
    ax.plot(x, y, color="#444444", linewidth=1, zorder=0, drawstyle="steps-post", label="Pareto front")
    for i, p in enumerate(front):  # labels in turns on either side, so that neighbours do not cover each other
        place = {"xytext": (-5, 5), "ha": "right"} if i % 2 else {"xytext": (5, -11)}
        at = p["bytes"] / 1000, 100 * p["accuracy"]
        ax.annotate(p["label"], at, textcoords="offset points", fontsize=8, **place)
    ax.set_xscale("log")
    ax.margins(x=0.08)
    ax.set(xlabel="kilobytes (1,000 bytes)", ylabel="accuracy (%)")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    ax.xaxis.set_minor_formatter(lambda value, _: f"{value:,.10g}" if f"{value:e}"[0] in "25" else "")
    ax.tick_params(axis="x", which="both", labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, frameon=False)
    return figure


def plot_ablation(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy step by step: a row for each label, the first on top, a colour for each group, bars for the intervals.

    points: as for `plot_pareto`; `bytes` and `front` are not needed. One whose label is None is what the others are
    compared with: a line across all rows, its interval a band.
    """
    steps = [p for p in points if p["label"] is not None]
    labels, groups = (list(dict.fromkeys(p[key] for p in steps)) for key in ("label", "group"))
    figure = new_figure(8.5, 1.2 + 0.45 * len(labels) * max(1, len(groups)))
    ax = figure.subplots()
    for i, group in enumerate(groups):
        color = PALETTE[i % len(PALETTE)]
        members = [p for p in steps if p["group"] == group]
        x = [100 * p["accuracy"] for p in members]
        y = [labels.index(p["label"]) + (i + 0.5) / len(groups) - 0.5 for p in members]
        ax.plot(x, y, "o", color=color, label=group)
        for p, value, row in zip(members, x, y, strict=True):
            if p["low"] is not None:
                ax.plot([100 * p["low"], 100 * p["high"]], [row, row], color=color, alpha=0.4)
            ax.annotate(
                f"{value:.1f}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
            )
    for p in points:
        if p["label"] is None:
            ax.axvline(100 * p["accuracy"], color="#444444", linewidth=1, label=p["group"])
            if p["low"] is not None:
                ax.axvspan(100 * p["low"], 100 * p["high"], color="#444444", alpha=0.1, linewidth=0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set(xlabel="accuracy (%)")
    ax.margins(x=0.08)
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def plot_table(rows: Sequence[Sequence[str]]) -> Figure:
    """Rows of texts as a table, the first one its head, the first column to the left."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    figure = new_figure(0.085 * sum(widths), 0.3 * len(rows))
    ax = figure.subplots()
    ax.set_axis_off()
    shares = [width / sum(widths) for width in widths]
    table = ax.table([list(row) for row in rows], colWidths=shares, cellLoc="right", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.visible_edges = "B"
        cell.set_edgecolor("#bbbbbb")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
        if row == 0:
            cell.get_text().set_fontweight("bold")
    return figure
