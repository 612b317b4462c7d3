"""Trained networks that come with the library, a file and a card each: `tb.load("cifar10-1bit")`."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ...files import CheckpointError, read_safetensors

FOLDER = Path(__file__).parent
SUFFIX = ".safetensors"


class Card(NamedTuple):
    """What is known of a network of the zoo. What its file says is read from there, the rest from the card beside it.

    command: made the file, with this seed. confusion: images of the full test set, true classes down, predicted ones
    across. limits: what it is bad at beside what `confused` finds.
    """

    name: str
    data: str
    bits: float
    dim: int
    depth: int
    bytes: int
    image_shape: tuple[int, int, int]
    classes: list[str]
    command: str
    seed: int
    confusion: list[list[int]]
    limits: str

    @property
    def tested(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        return sum(row[i] for i, row in enumerate(self.confusion))

    def confused(self, most: int = 3) -> list[tuple[str, float, str]]:
        """The hardest classes, worst first: (class, share that is right, the class that it is most often taken for)."""
        rows = []
        for i, row in enumerate(self.confusion):
            other = max((j for j in range(len(row)) if j != i), key=row.__getitem__)
            rows.append((self.classes[i], row[i] / max(1, sum(row)), self.classes[other]))
        return sorted(rows, key=lambda item: item[1])[:most]


def names() -> list[str]:
    """The networks that are there: data set by data set, most bits first."""
    cards = [card(path.name.removesuffix(SUFFIX)) for path in FOLDER.glob(f"*{SUFFIX}")]
    return [c.name for c in sorted(cards, key=lambda c: (c.image_shape[::-1], c.data, -c.bits))]


def find(name: str | os.PathLike) -> Path:
    """The file of a network of the zoo, or any other file: where there is one of this name, it is meant.

    Raises CheckpointError for a word that is neither, with the names there are.
    """
    path, word = Path(name), os.fspath(name)
    if path.exists() or path.name != word or path.suffix == SUFFIX:
        return path
    if (FOLDER / f"{word}{SUFFIX}").is_file():
        return FOLDER / f"{word}{SUFFIX}"
    raise CheckpointError(f"there is no file {word}, and no network of that name in the zoo: {', '.join(names())}")


def card(name: str) -> Card:
    """The card of a network of the zoo. Raises CheckpointError for a name that is none."""
    path = FOLDER / f"{name}{SUFFIX}"
    if path not in FOLDER.glob(f"*{SUFFIX}"):
        raise CheckpointError(f"no network of the zoo has the name {name!r}: take one of {', '.join(names())}")
    _, info = read_safetensors(path)
    fitted = info["extra"]["classifier"]
    notes: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Card(
        name=name,
        **{key: info["config"][key] for key in ("bits", "dim", "depth")},
        bytes=path.stat().st_size,
        image_shape=tuple(fitted["image_shape"]),
        classes=[str(label) for label in fitted["classes"]],
        **notes,
    )
