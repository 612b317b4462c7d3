"""What the heads of a network looked at: the recorded arrays, and what can be computed from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ops.norm import softmax_array
from . import measures
from .layout import Layout, Query, layer_number

FUSED = ("mean", "max", "min")  # ways to make one map of all heads
CAVEAT = (
    "Attention is not explanation: a map shows from which patches values were averaged, not what the prediction depends"
    " on (Jain & Wallace 2019, arXiv 1902.10186)."
)


@dataclass(frozen=True, eq=False)
class RecordedMaps:
    """The data of an `AttentionRecord`, whose docstring names the fields, and what is computed from it."""

    maps: list[np.ndarray]
    layout: Layout
    images: np.ndarray
    logits: np.ndarray | None
    classes: list
    gradients: list[np.ndarray] | None = None
    target: np.ndarray | None = None
    tokens: list[np.ndarray] | None = None
    occlusion: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        rows, columns = self.layout.grid
        parts = [f"{len(self)} images, {self.depth} layers, {self.heads} heads, {rows} x {columns} patches"]
        parts += [f"{self.layout.prefix} extra tokens"] * (self.layout.prefix > 0) + ["gradients"] * bool(
            self.gradients
        )
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def depth(self) -> int:
        return len(self.maps)

    @property
    def heads(self) -> int:
        return self.maps[0].shape[1]

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, float64 (N, classes)."""
        if self.logits is None:
            raise RuntimeError(
                "the network has no classification head, so there are no probabilities and no predictions"
            )
        return softmax_array(np, self.logits.astype(np.float64))

    @property
    def predictions(self) -> np.ndarray:
        """The label of the largest logit for each image (N,)."""
        return np.asarray(self.classes)[self.probabilities.argmax(axis=1)]

    # --- maps (N, T, T), float64, rows summing to 1 -------------------------------------------------------------------

    def layer(self, layer: int, heads: str | int = "mean") -> np.ndarray:
        """The attention of one layer: of one head (its number), or the 'mean', 'max' or 'min' over heads."""
        return measures.fuse_heads(self.maps[layer_number(layer, self.depth)], heads)

    def rollout(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        residual: float = 0.5,
        discard: float = 0.0,
        heads: str | int = "mean",
    ) -> np.ndarray:
        """From which input patches each token draws after the layers start..stop-1, if layers did nothing but average.

        residual: the weight r of the skip connection in r I + (1 - r) A (0.5 in Abnar & Zuidema 2020, arXiv
        2005.00928); discard: the share of each row's weakest links that is left out first; heads: how heads are fused.
        Early layers spread evenly and wash out a rollout of all layers: a later `start` shows more.
        """
        fused = [
            measures.discard_weakest(measures.fuse_heads(a, heads), discard)
            for a in self._chosen(self.maps, start, stop)
        ]
        return measures.rollout(fused, residual)[-1]

    def gradient_rollout(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rollout in which each link counts by how much it raises the target class's logit (Chefer et al. 2021).

        Needs a record with gradients: `attention(model, X, target=...)`. Formula: `measures.gradient_rollout`.
        """
        if self.gradients is None:
            raise RuntimeError(
                "this record has no gradients: record again with attention(model, X, target='predicted') or a class"
            )
        chosen = self._chosen(self.maps, start, stop), self._chosen(self.gradients, start, stop)
        return measures.gradient_rollout(*chosen)[-1]

    def matrix(self, method: str | int = "rollout", layer: int = -1, **options: Any) -> np.ndarray:
        """The map (N, T, T) by the name of a method.

        method: 'rollout' or 'gradient' (gradient-weighted rollout), both from the first layer up to and with `layer`;
        'mean', 'max', 'min' or a head's number for that layer alone. options go to `rollout`.
        """
        if method in ("rollout", "gradient"):
            run = self.rollout if method == "rollout" else self.gradient_rollout
            return run(stop=layer_number(layer, self.depth) + 1, **options)
        if isinstance(method, str) and method not in FUSED:
            known = ", ".join(map(repr, ("rollout", "gradient", *FUSED)))
            raise ValueError(f"method must be one of {known}, or the number of a head, not {method!r}")
        return self.layer(layer, method)

    def image_map(
        self, method: str | int = "rollout", layer: int = -1, query: Query = None, **options: Any
    ) -> np.ndarray:
        """One row of `matrix(method, layer)` laid out as the patch grid: (N, rows, columns).

        query: a patch (row, column), 'cls' or a token number; None: what the classifier reads (class token or mean of
        patches).
        """
        return self.layout.image_map(self.matrix(method, layer, **options), query)

    # --- tokens: what a block hands to the next one -------------------------------------------------------------------

    def norms(self, layer: int = -1) -> np.ndarray:
        """Length |x_i| of every token (N, T) after a layer.

        A few patches of very large norm, as DINOv2 has them, hold no part of the image: the network stores there what
        concerns all of it, unless it has registers for that (Darcet et al. 2023, arXiv 2309.16588).
        """
        return np.linalg.norm(self._tokens(layer), axis=-1)

    def similarity(self, layer: int = -1) -> np.ndarray:
        """Cosine (N, T, T) between all tokens after a layer: `measures.cosine_similarity`."""
        return measures.cosine_similarity(self._tokens(layer))

    def component_colors(self, layer: int = -1) -> np.ndarray:
        """The patches' first three principal components after a layer as colours (N, rows, columns, 3) in 0..1."""
        scores, _ = measures.principal_components(self._tokens(layer)[:, self.layout.prefix :])
        return measures.component_colors(scores).reshape(len(self), *self.layout.grid, 3)

    def _tokens(self, layer: int) -> np.ndarray:
        if self.tokens is None:
            raise RuntimeError("this record has no tokens: they come from networks whose layers are tb.models.Block")
        return self.tokens[layer_number(layer, self.depth)]

    # --- numbers per head ---------------------------------------------------------------------------------------------

    def entropy(self) -> np.ndarray:
        """Mean entropy of the patches' attention in bits, (N, layers, heads): 0 looks at one token, log2 T at all
        evenly.
        """
        return np.stack([measures.entropy(a[:, :, self.layout.prefix :]).mean(-1) for a in self.maps], axis=1)

    def distance(self, unit: str = "patches") -> np.ndarray:
        """Mean distance between a patch and what it attends to, (N, layers, heads), in 'patches' or 'pixels'.

        Weighted by the attention from patch to patch (divided by its sum): how local a head is. Dosovitskiy et al. 2020
        (arXiv 2010.11929), appendix D.7.
        """
        if unit not in ("patches", "pixels"):
            raise ValueError(f"unit must be 'patches' or 'pixels', not {unit!r}")
        d = measures.patch_distances(self.layout.grid, self.layout.patch_size if unit == "pixels" else (1, 1))
        prefix = self.layout.prefix
        shares = (measures.normalize_rows(a[:, :, prefix:, prefix:]) for a in self.maps)
        return np.stack([(p * d).sum(-1).mean(-1) for p in shares], axis=1)

    def _chosen(self, layers: list, start: int, stop: int | None) -> list:
        chosen = layers[start:stop]
        if not chosen:
            raise ValueError(f"no layer between start={start} and stop={stop}: there are {self.depth}, counted from 0")
        return chosen
