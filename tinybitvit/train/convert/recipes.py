"""Recipes by name: 'paper', the poster's way to low bits, 'best', the best that we found, and the steps between them.

What each ingredient is worth was measured: docs/results.
"""

from dataclasses import replace

from .stages import Recipe, Stage

# Without SubLN in all of them: a norm that the full-precision network lacks would first have to be undone.
TENSOR = {"granularity": "tensor", "sub_norm": False}
ROWS = {"granularity": "row", "sub_norm": False}
LABELS = Stage(warmup=0.1)
BLOCKS = Stage(0.3, "blocks", relative_lr=0.1, path=14.0, warmup=0.05, weight_decay=0.0)
# Centred, because the first stage gathers weights at their thresholds, where the other gradient would tip them all at
# once: 0.9 % of the codes in the first update, at a rate of 0.0003 (docs/results). A path of 1 is hardly enough to get
# from there to a threshold.
OUTPUTS = Stage(0.7, "outputs", relative_lr=0.02, path=11.0, others=0.1, warmup=0.05, weight_decay=0.0, centre=True)
# Faster, and not centred: as most of docs/results was computed.
FAST_BLOCKS = Stage(0.5, "blocks", relative_lr=0.15, warmup=0.05, weight_decay=0.0)
FAST_OUTPUTS = Stage(0.5, "outputs", relative_lr=0.002, warmup=0.05, weight_decay=0.0)
END_TO_END = Stage(1.0, "outputs", relative_lr=0.03, warmup=0.05, weight_decay=0.0)

PAPER = Recipe(TENSOR, (LABELS,))
FAST = Recipe(ROWS, (FAST_BLOCKS, FAST_OUTPUTS))
BEST = Recipe(ROWS, (BLOCKS, OUTPUTS))
TERNARY = Recipe({**ROWS, "scale": "twn"}, BEST.stages)  # 'best' at 1.58 bits
# 'best' at 1 bit: a centred weight is a whole mean weight from its threshold, a ternary 0 only 0.7. At the same rate
# hardly any of them arrives (docs/results).
SIGNS = Recipe(ROWS, (BLOCKS, replace(OUTPUTS, relative_lr=0.03, path=24.0)))
# To go on with a low-bit network that is there, built as it is: its teacher's outputs and the labels at gentle rates,
# or the second stage of 'best' alone. No path: who goes on for longer wants to get farther.
GENTLY = Stage(1.0, "outputs", relative_lr=0.01, others=0.3, warmup=0.05, weight_decay=0.0, centre=True)
REFINE = Recipe({}, (GENTLY,), {"temperature": 1.0, "hidden": 0.1, "labels": 1.0}, goes_on=True)
REFINE_SIGNS = replace(REFINE, stages=(replace(GENTLY, relative_lr=0.02),))  # faster, like SIGNS
IMITATE, IMITATE_SIGNS = (Recipe({}, (replace(r.stages[1], path=None),), goes_on=True) for r in (BEST, SIGNS))
# Where there is no teacher: the norms have time to be learnt, and the rate and decay of BitNet's two stages.
SCRATCH = Recipe(
    {"granularity": "row", "sub_norm": True}, (Stage(0.5, warmup=0.2), Stage(0.5, factor=0.5, weight_decay=0.0))
)
# For `study --ablation`: from 'paper' to 'best', one ingredient more in each, and one step aside, which does not help.
ABLATION = {
    "paper": PAPER,
    "+ rows": Recipe(ROWS, (LABELS,)),
    "+ outputs": Recipe(ROWS, (END_TO_END,), {"hidden": 0.0}),
    "+ tokens": Recipe(ROWS, (END_TO_END,)),
    "+ blocks": FAST,
    "+ median": Recipe({**ROWS, "scale": "absmedian"}, FAST.stages),
    "+ centred": BEST,
}


def find_recipe(recipe: str | Recipe | None, bits: float, teacher: bool, warmup: float) -> Recipe:
    """The Recipe for what a user gave as `recipe` (None: one stage on the labels), with a teacher or without."""
    if isinstance(recipe, Recipe):
        return recipe
    names = ("best", "paper", "refine", "imitate")
    if recipe is not None and recipe not in names:
        raise ValueError(f"recipe must be {', '.join(map(repr, names))}, None or a tb.train.Recipe, not {recipe!r}")
    if recipe is None or bits == 32:
        return Recipe({}, (Stage(warmup=warmup),))
    if recipe == "best" and teacher:
        return {1.58: TERNARY, 1: SIGNS}.get(bits, BEST)
    if recipe == "best":
        return SCRATCH
    if recipe == "refine":
        return REFINE_SIGNS if bits == 1 else REFINE
    if recipe == "imitate":
        return IMITATE_SIGNS if bits == 1 else IMITATE
    return PAPER
