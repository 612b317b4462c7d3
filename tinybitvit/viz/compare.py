"""Two or more models on the same images: how far apart their attention is, head by head and map by map."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import measures
from .layout import Query, layer_number
from .record import RecordedMaps
from .subject import same_kind


@dataclass(frozen=True, eq=False)
class ComparedMaps:
    """The data of an `AttentionComparison`, whose docstring names the fields, and what is computed from it."""

    records: Mapping[str, RecordedMaps]
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

    @property
    def predicts(self) -> bool:
        """Whether all models have a head, for the same classes, so that their predictions can be compared."""
        first = self.records[self.reference]
        return all(r.logits is not None and r.classes == first.classes for r in self.records.values())

    def matrix(self, name: str, method: str | int = "rollout", layer: int = -1, **options: Any) -> np.ndarray:
        """`AttentionRecord.matrix` of a model; a head's number is the reference's, for which the match is taken."""
        if not isinstance(method, str):
            heads = self.matches[name][layer_number(layer, len(self.matches[name]))]
            if not -len(heads) <= method < len(heads):
                raise ValueError(f"there is no head {method}: give a number from 0 to {len(heads) - 1}")
            method = int(heads[method])
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
        if not self.predicts:
            raise ValueError("the predictions cannot be compared: all models need a head, for the same classes")
        return {n: self.records[n].predictions != self.records[self.reference].predictions for n in self.others}

    def summary(self, top: float = 20) -> list[dict[str, Any]]:
        """A row for each model: mean divergence (bits), mean rollout overlap, share of changed predictions (where
        the networks have a head, for the same classes), accuracy (with y, where it holds labels as the classes)."""
        overlap, rows = self.overlap(top), []
        changed = self.changed() if self.predicts else {}
        for name, record in self.records.items():
            row = {
                "model": name,
                "divergence": float(self.divergence[name].mean()),
                f"overlap of top {top:g} %": float(overlap[name].mean()) if name in overlap else 1.0,
            }
            if self.predicts:
                row["changed predictions"] = float(changed[name].mean()) if name in changed else 0.0
            if record.logits is not None and self.y is not None and same_kind(self.y, record.classes):
                row["accuracy"] = float((record.predictions == self.y).mean())
            rows.append(row)
        return rows

    def __repr__(self) -> str:
        rows = self.summary()
        cells = [list(rows[0])] + [[v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return f"{type(self).__name__} of {len(self)} images with {self.reference!r}\n" + "\n".join(lines)


def paired_heads(first: RecordedMaps, record: RecordedMaps, match: bool) -> tuple[np.ndarray, np.ndarray]:
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
