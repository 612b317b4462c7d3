"""Two or more models on the same images: how far apart their attention is, head by head and map by map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import measures
from .layout import Query
from .observe import attention
from .record import AttentionRecord


@dataclass(frozen=True, eq=False)
class AttentionComparison:
    """The records of several models, the first of which is the reference; made by `compare_attention`.

    records: name -> `AttentionRecord`. y: true labels (N,) or None. matches: name -> int array (layers, heads); entry
    (l, i) is the model's head that is compared with the reference's head i of layer l. divergence: name -> (layers,
    heads), Jensen-Shannon divergence in bits between these two heads, mean over images and tokens: 0 the same, 1
    nothing shared.

    Attention is not explanation, and neither is its difference: heads can move without a change of the output, and the
    output can change while heads stay (see `AttentionRecord`). Read it beside `changed()` and the accuracy.
    """

    records: dict[str, AttentionRecord]
    y: np.ndarray | None
    matches: dict[str, np.ndarray]
    divergence: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.records[self.reference])

    @property
    def names(self) -> list[str]:
        return list(self.records)

    @property
    def reference(self) -> str:
        """The name of the first model, with which the others are compared."""
        return next(iter(self.records))

    @property
    def others(self) -> list[str]:
        return self.names[1:]

    def matrix(self, name: str, method: str | int = "rollout", layer: int = -1, **options: Any) -> np.ndarray:
        """`AttentionRecord.matrix` of a model; a head's number is the reference's, for which the match is taken."""
        if not isinstance(method, str):
            method = int(self.matches[name][layer, method])
        return self.records[name].matrix(method, layer, **options)

    def image_map(
        self, name: str, method: str | int = "rollout", layer: int = -1, query: Query = None, **options: Any
    ) -> np.ndarray:
        """`AttentionRecord.image_map` of a model, heads matched as in `matrix`: (N, rows, columns)."""
        return self.records[name].layout.image_map(self.matrix(name, method, layer, **options), query)

    def difference(
        self, name: str, method: str | int = "rollout", layer: int = -1, query: Query = None, **options: Any
    ) -> np.ndarray:
        """The model's image map minus the reference's, (N, rows, columns)."""
        mine, theirs = (self.image_map(n, method, layer, query, **options) for n in (name, self.reference))
        return mine - theirs

    def overlap(self, top: float = 20, method: str | int = "rollout", layer: int = -1) -> dict[str, np.ndarray]:
        """For every other model, intersection over union (N,) of its `top` percent of patches with the reference's."""
        masks = {
            n: measures.top_patches(self.image_map(n, method, layer).reshape(len(self), -1), top) for n in self.names
        }
        return {n: measures.iou(masks[n], masks[self.reference]) for n in self.others}

    def changed(self) -> dict[str, np.ndarray]:
        """For every other model, for which images (N,) its prediction differs from the reference's."""
        return {n: self.records[n].predictions != self.records[self.reference].predictions for n in self.others}

    def summary(self, top: float = 20) -> list[dict[str, Any]]:
        """A row for each model: mean divergence (bits), mean rollout overlap, share of changed predictions (where
        the networks have a head), accuracy (with y)."""
        overlap, rows = self.overlap(top), []
        predicts = all(record.logits is not None for record in self.records.values())
        changed = self.changed() if predicts else {}
        for name, record in self.records.items():
            row = {
                "model": name,
                "divergence": float(self.divergence[name].mean()),
                f"overlap of top {top:g} %": float(overlap[name].mean()) if name in overlap else 1.0,
            }
            if predicts:
                row["changed predictions"] = float(changed[name].mean()) if name in changed else 0.0
            if predicts and self.y is not None:
                row["accuracy"] = float((record.predictions == self.y).mean())
            rows.append(row)
        return rows

    def __repr__(self) -> str:
        rows = self.summary()
        cells = [list(rows[0])] + [[v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return f"AttentionComparison of {len(self)} images with {self.reference!r}\n" + "\n".join(lines)

    # --- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, **options: Any):
        """Original, each model, differences, as a matplotlib Figure; see `plot_comparison`."""
        from .attention_plots import plot_comparison

        return plot_comparison(self, **options)

    def to_html(
        self, path: str | PathLike | None = None, *, layers: Sequence[int] | None = None, max_images: int | None = None
    ) -> str:
        """The interactive page with all models side by side, as one text, written to `path` if given; see
        `page.render`.
        """
        from . import page

        return page.save(page.render(self, layers=layers, max_images=max_images), path)

    def _repr_html_(self) -> str:
        from . import page

        return page.frame(self)


def compare_attention(
    models: Mapping[str, Any], X: Any, y: Any = None, *, match: bool = True, **options: Any
) -> AttentionComparison:
    """Record several models on the images X (N, ...) and compare each with the first.

    models: name -> model, as `attention` takes them, all with the same patch grid, depth and number of heads. y: true
    labels. options go to `attention` (target, batch_size).

    match: pair the heads of each layer so that the sum of their divergences is least (Hungarian method). Models that
    were trained apart number their heads at random: head 3 of one has nothing to do with head 3 of the other. Where one
    was trained from the other's weights, heads keep their places and match=False compares head i with head i.
    """
    if len(models) < 2:
        raise ValueError("compare_attention needs at least two models, as in {'32 bits': a, '1.58 bits': b}")
    records = {name: attention(model, X, **options) for name, model in models.items()}
    reference, first = next(iter(records.items()))
    for name, record in records.items():
        if (record.layout, record.depth, record.heads) != (first.layout, first.depth, first.heads):
            raise ValueError(
                f"{name!r} and {reference!r} differ in patch grid, tokens, depth or heads; compare models of one shape:"
                f" {record!r}, {first!r}"
            )
    y = None if y is None else np.asarray(y)
    if y is not None and y.shape != (len(first),):
        raise ValueError(f"y must hold one label for each of the {len(first)} images, not shape {y.shape}")
    matches, divergence = {}, {}
    for name, record in records.items():
        matches[name], divergence[name] = _paired_heads(first, record, match and name != reference)
    return AttentionComparison(records, y, matches, divergence)


def _paired_heads(first: AttentionRecord, record: AttentionRecord, match: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each layer and head of `first` the head of `record` that it is compared with, and their divergence."""
    heads = np.arange(first.heads)
    matches, divergence = [], []
    for a, b in zip(first.maps, record.maps, strict=True):
        if match:
            cost = measures.head_divergence(a, b)
            pairs = measures.match_heads(cost)
            divergence.append(cost[heads, pairs])
        else:
            pairs = heads
            divergence.append(measures.js_divergence(a, b).mean((0, 2)))
        matches.append(pairs)
    return np.stack(matches), np.stack(divergence)
