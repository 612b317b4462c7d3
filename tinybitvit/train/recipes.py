"""Recipes by name: 'paper', the poster's way to low bits, and 'best', the best that we found (docs/results)."""

from .stages import Recipe, Stage

PAPER = Recipe({"granularity": "tensor", "sub_norm": False}, (Stage(warmup=0.1),))
# Without SubLN: a norm that the teacher does not have would first have to be undone.
CONVERT = Recipe(
    {"granularity": "row", "scale": "absmedian", "sub_norm": False},
    (
        Stage(0.6, "blocks", relative_lr=0.15, warmup=0.05, weight_decay=0.0),
        Stage(0.4, "outputs", relative_lr=0.01, warmup=0.05, weight_decay=0.0),
    ),
)
SCRATCH = Recipe(
    {"granularity": "row", "sub_norm": True},
    (Stage(0.5, warmup=0.2), Stage(0.5, factor=0.5, weight_decay=0.0)),
)
NAMES = ("paper", "best")


def find_recipe(recipe: str | Recipe | None, bits: float, teacher: bool, warmup: float) -> Recipe:
    """The Recipe for what a user gave as `recipe` (None: one stage on the labels), with a teacher or without."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is not None and recipe not in NAMES:
        raise ValueError(f"recipe must be {', '.join(map(repr, NAMES))}, None or a tb.train.Recipe, not {recipe!r}")
    if recipe is None or bits == 32:
        return Recipe({}, (Stage(warmup=warmup),))
    if recipe == "paper":
        return PAPER
    return CONVERT if teacher else SCRATCH
