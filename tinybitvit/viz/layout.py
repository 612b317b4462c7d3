"""Which token is which: the patch grid, and the extra tokens in front of it."""

from dataclasses import dataclass

import numpy as np

from ..nn import Module, TokenEmbed

Query = str | int | tuple[int, int] | None


@dataclass(frozen=True)
class Layout:
    """The order of a network's tokens: the class token if there is one, the registers, then the patches row by row.

    grid: (rows, columns) of patches; patch_size: (height, width) in pixels; pool: what the classifier reads, the 'mean'
    of the patches or the class token ('cls').
    """

    grid: tuple[int, int]
    patch_size: tuple[int, int] = (1, 1)
    class_token: bool = False
    registers: int = 0
    pool: str = "mean"

    def __post_init__(self):
        if self.pool not in ("mean", "cls") or (self.pool == "cls" and not self.class_token):
            raise ValueError(f"pool must be 'mean', or 'cls' where there is a class token, not {self.pool!r}")

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

    def image_map(self, a: np.ndarray, query: Query = None) -> np.ndarray:
        """The row of one token laid out as patches: a (N, T, T) -> (N, rows, columns).

        query: see `token`; None: what the classifier reads, the class token's row or the mean of all patches' rows.
        Shares that go to extra tokens are left out, so that a map sums to 1 only without such tokens.
        """
        if query is not None:
            row = a[:, self.token(query)]
        elif self.pool == "cls":
            row = a[:, 0]
        else:
            row = a[:, self.prefix :].mean(axis=1)
        return row[:, self.prefix :].reshape(-1, *self.grid)
