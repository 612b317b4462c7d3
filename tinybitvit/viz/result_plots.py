"""The plots of what a study found: a table, and accuracy against size. Each function returns a Figure."""

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
    for p in front:
        ax.annotate(
            p["label"],
            (p["bytes"] / 1000, 100 * p["accuracy"]),
            xytext=(5, -11),
            textcoords="offset points",
            fontsize=8,
        )
    ax.set_xscale("log")
    ax.margins(x=0.08)
    ax.set(xlabel="kilobytes (1,000 bytes)", ylabel="accuracy (%)")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    ax.xaxis.set_minor_formatter(lambda value, _: f"{value:,.10g}" if f"{value:e}"[0] in "25" else "")
    ax.tick_params(axis="x", which="both", labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, frameon=False)
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
