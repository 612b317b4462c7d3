"""Recipes by name: 'paper', the poster's way to low bits, 'best', the best that we found, and the steps between them.

What each ingredient is worth was measured: docs/results.
"""

from .stages import Recipe, Stage

# Without SubLN in all of them: a norm that the full-precision network lacks would first have to be undone.
TENSOR = {"granularity": "tensor", "sub_norm": False}
ROWS = {"granularity": "row", "sub_norm": False}
LABELS = Stage(warmup=0.1)
BLOCKS = Stage(0.5, "blocks", relative_lr=0.15, warmup=0.05, weight_decay=0.0)
# A high rate would first undo what the blocks have learnt; where nothing was learnt before, a low one learns little.
OUTPUTS = Stage(0.5, "outputs", relative_lr=0.002, warmup=0.05, weight_decay=0.0)
END_TO_END = Stage(1.0, "outputs", relative_lr=0.03, warmup=0.05, weight_decay=0.0)

PAPER = Recipe(TENSOR, (LABELS,))
BEST = Recipe(ROWS, (BLOCKS, OUTPUTS))
# Where there is no teacher: the norms have time to be learnt, and the rate and decay of BitNet's two stages.
SCRATCH = Recipe(
    {"granularity": "row", "sub_norm": True}, (Stage(0.5, warmup=0.2), Stage(0.5, factor=0.5, weight_decay=0.0))
)
# From 'paper' to 'best', one ingredient more in each, and one step beyond, which does not help.
ABLATION = {
    "paper": PAPER,
    "+ rows": Recipe(ROWS, (LABELS,)),
    "+ outputs": Recipe(ROWS, (END_TO_END,), {"hidden": 0.0}),
    "+ tokens": Recipe(ROWS, (END_TO_END,)),
    "+ blocks": BEST,
    "+ median": Recipe({**ROWS, "scale": "absmedian"}, BEST.stages),
}


def find_recipe(recipe: str | Recipe | None, bits: float, teacher: bool, warmup: float) -> Recipe:
    """The Recipe for what a user gave as `recipe` (None: one stage on the labels), with a teacher or without."""
    if isinstance(recipe, Recipe):
        return recipe
    names = ("best", *ABLATION)
    if recipe is not None and recipe not in names:
        raise ValueError(f"recipe must be {', '.join(map(repr, names))}, None or a tb.train.Recipe, not {recipe!r}")
    if recipe is None or bits == 32:
        return Recipe({}, (Stage(warmup=warmup),))
    if recipe == "best":
        return BEST if teacher else SCRATCH
    return ABLATION[recipe]
