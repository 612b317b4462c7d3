"""Which token is which: the patch grid, and the extra tokens in front of it."""

from dataclasses import dataclass

import numpy as np

from ..nn import Module, TokenEmbed

Query = str | int | tuple[int, int] | None


def layer_number(layer: int, depth: int) -> int:
    """A layer counted from 0, which may be given from the end, as -1. ValueError where there is none."""
    if not -depth <= layer < depth:
        raise ValueError(f"there is no layer {layer}: give a number from 0 to {depth - 1}, or -1 for the last one")
    return layer % depth


@dataclass(frozen=True)
class Layout:
    """The order of a network's tokens: the class token if there is one, the registers, then the patches row by row.

    grid: (rows, columns) of patches; patch_size: (height, width) in pixels; pool: what the classifier reads, the 'mean'
    of the patches, the class token ('cls') or DeiT's distillation token, the first register ('dist'), or two of them
    joined by '+'.
    """

    grid: tuple[int, int]
    patch_size: tuple[int, int] = (1, 1)
    class_token: bool = False
    registers: int = 0
    pool: str = "mean"

    def __post_init__(self):
        known = {"mean": True, "cls": self.class_token, "dist": self.class_token and self.registers > 0}
        if not all(known.get(part) for part in self.pool.split("+")):
            raise ValueError(
                f"pool names tokens that this layout has, 'mean' or 'cls' where it has one, not {self.pool!r}"
            )

    @classmethod
    def of(cls, model: Module) -> "Layout":
        """The layout of a network with a `TokenEmbed`; ValueError for any other."""
        embed = next((m for m in model.modules() if isinstance(m, TokenEmbed)), None)
        if embed is None:
            raise ValueError(
                f"{type(model).__name__} has no TokenEmbed that tells which token is which patch:"
                " pass layout=tb.viz.Layout(...)"
            )
        class_token = embed.cls_token is not None
        pool = getattr(model, "config", {}).get("pool", "cls" if class_token else "mean")
        return cls(embed.patch.grid, embed.patch.patch_size, class_token, embed.prefix - class_token, pool)

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return self.class_token + self.registers

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def names(self) -> list[str]:
        """A name for every token, patches as 'row 0, column 2'."""
        rows, columns = self.grid
        special = ["class token"] * self.class_token + [f"register {i}" for i in range(self.registers)]
        return special + [f"row {r}, column {c}" for r in range(rows) for c in range(columns)]

    def token(self, query: str | int | tuple[int, int]) -> int:
        """The number of a token: a patch (row, column), 'cls', or a number already."""
        if query == "cls" and self.class_token:
            return 0
        if (
            isinstance(query, tuple)
            and len(query) == 2
            and all(0 <= q < n for q, n in zip(query, self.grid, strict=True))
        ):
            return self.prefix + query[0] * self.grid[1] + query[1]
        if isinstance(query, (int, np.integer)) and 0 <= query < self.tokens:
            return int(query)
        has = " 'cls'," if self.class_token else ""
        raise ValueError(
            f"query must be{has} a patch (row, column) of the {self.grid[0]} x {self.grid[1]} grid, or a token number"
            f" below {self.tokens}, not {query!r}"
        )

    @property
    def readout(self) -> np.ndarray:
        """The weight (T,) of each token in what the classifier reads, summing to 1."""
        patches = self.tokens - self.prefix
        weights = {"cls": np.eye(self.tokens)[0], "dist": np.eye(self.tokens)[min(1, self.tokens - 1)]}
        weights["mean"] = np.repeat([0.0, 1 / patches], [self.prefix, patches])
        return np.mean([weights[part] for part in self.pool.split("+")], axis=0)

    def describe(self, query: Query = None) -> str:
        """What `image_map(a, query)` shows, in words."""
        if query is not None:
            return f"Where {self.names[self.token(query)]} looks"
        return {"cls": "What the class token reads", "mean": "What the mean of all patches reads"}.get(
            self.pool, "What the classifier's tokens read, on average"
        )

    def image_map(self, a: np.ndarray, query: Query = None) -> np.ndarray:
        """The row of one token laid out as patches: a (N, T, T) -> (N, rows, columns).

        query: see `token`; None: what the classifier reads, the class token's row or the mean of all patches' rows.
        Shares that go to extra tokens are left out, so that a map sums to 1 only without such tokens.
        """
        row = self.readout @ a if query is None else a[:, self.token(query)]
        return row[:, self.prefix :].reshape(-1, *self.grid)
