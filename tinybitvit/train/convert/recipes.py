"""Recipes: a training in stages, what is learnt, from whom, and how fast; some by name.

'paper' is the poster's way to low bits, 'best' the best that we found; what each ingredient is worth was measured:
docs/results.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ... import backend
from ...backend import check_number
from ...models import VisionTransformer, ViTConfig
from ...optim import warmup_cosine
from ...quant.watch import low_bit_layers
from ..step import Trainer
from .objectives import Distill, Reconstruct

LEARNS = ("labels", "outputs", "blocks")
AVERAGE = 0.5  # of a rate that rises and falls along a cosine, in units of its peak


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    The learning rate rises to its peak and then falls to 0 along half a cosine. A peak in units of the mean size of the
    low-bit weights suits them, because only their ratio counts for a sign (Quist et al. 2023, arXiv 2303.02452).
    """

    share: float = 1.0  # of all updates, relative to the other stages
    learns: str = "labels"  # 'labels', or of a teacher: 'blocks', each by itself, or 'outputs', end to end
    relative_lr: float | None = None  # peak, in units of the low-bit weights' mean size (None: that of the optimiser)
    path: float | None = None  # lowers that peak so that all rates add up to at most so many mean sizes
    others: float | None = None  # peak of all other parameters, in units of the optimiser's own (None: as low-bit ones)
    factor: float = 1.0  # of the peak
    weight_decay: float = 1.0  # in units of the optimiser's own
    warmup: float = 0.0  # the fraction of the stage in which the rate rises
    centre: bool = False  # begin with every low-bit weight in the middle of its code (see `BitLinear.centre`)

    def __post_init__(self):
        if self.learns not in LEARNS:
            raise ValueError(f"a stage learns {', '.join(map(repr, LEARNS))}, not {self.learns!r}")
        for name in ("share", "relative_lr", "path", "others", "factor", "weight_decay", "warmup"):
            if (value := getattr(self, name)) is not None:
                check_number(f"the {name} of a stage", value, 0, 1 if name == "warmup" else math.inf)
        if not self.share:
            raise ValueError(f"the share of a stage must be above 0, not {self.share!r}")
        if self.path is not None and self.relative_lr is None:
            raise ValueError("path limits the rates of a stage in units of relative_lr: give both")


@dataclass(frozen=True)
class Recipe:
    """How a low-bit network is built and trained."""

    network: dict[str, Any] = field(default_factory=dict)  # arguments of VisionTransformer
    stages: tuple[Stage, ...] = (Stage(),)  # of the training, in this order
    distillation: dict[str, float] = field(default_factory=dict)  # arguments of `objectives.Distill`
    goes_on: bool = False  # for a low-bit network that is there already

    def __post_init__(self):
        if not self.stages or not all(isinstance(stage, Stage) for stage in self.stages):
            raise ValueError(f"the stages of a recipe must be some tb.train.Stage, not {self.stages!r}")
        known = {field.name for field in fields(ViTConfig)}
        for what, given, names in (
            ("network", self.network, known),
            ("distillation", self.distillation, Distill.OPTIONS),
        ):
            if unknown := [name for name in given if name not in names]:
                raise ValueError(
                    f"the {what} of a recipe has no option {unknown[0]!r}; it has {', '.join(sorted(names))}"
                )


class Stages:
    """Schedule and objective of a Trainer with `total` updates to make, after a Recipe.

    The learning rates and weight decays of the optimiser's groups are what the stages multiply. teacher: a
    full-precision VisionTransformer with the model's blocks, where a stage learns from one.
    """

    def __init__(self, trainer: Trainer, total: int, recipe: Recipe, teacher: VisionTransformer | None = None):
        self.trainer, self.stages = trainer, recipe.stages
        self.layers = low_bit_layers(trainer.model)
        self.groups = [(g, g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups]
        self.size = mean_size(self.layers)
        self.objectives = {"labels": trainer.objective}
        if teacher is not None:
            check_same_shape(trainer.model, teacher)
            self.objectives["blocks"] = Reconstruct(teacher)
            self.objectives["outputs"] = Distill(teacher, loss=trainer.loss, **recipe.distillation)
        for stage in recipe.stages:
            if stage.learns not in self.objectives:
                raise ValueError(f"this recipe learns the {stage.learns} of a teacher: give one as distill_from")
        shares, so_far, self.ends = sum(s.share for s in recipe.stages), 0.0, []
        for stage in recipe.stages:
            so_far += stage.share
            self.ends.append(round(total * so_far / shares))
        self.resume(0)
        self._centre()

    def step(self) -> None:
        """Set everything for the next update."""
        self.resume(self.last + 1)
        self._centre()

    def resume(self, last: int) -> None:
        """Set everything for the update after the `last`-th."""
        self.last = last
        i = next((i for i, end in enumerate(self.ends) if last < end), len(self.ends) - 1)
        start = self.ends[i - 1] if i else 0
        self.stage, self.done, self.length = self.stages[i], last - start, self.ends[i] - start
        self.trainer.objective = self.objectives[self.stage.learns]
        self._set_rates()
        temperature = 0.1 * 100 ** (last / max(self.ends[-1], 1))  # of ste='ede': from 0.1 to 10, as in IR-Net
        for layer in self.layers:
            layer.temperature = temperature

    def _set_rates(self):
        stage = self.stage
        factor = stage.factor * warmup_cosine(self.done, self.length, round(stage.warmup * self.length))
        # without low-bit layers there is no size in whose units a rate could be: the optimiser's own stands
        peak = None if stage.relative_lr is None or not self.layers else stage.relative_lr * self.size
        if peak is not None and stage.path is not None:
            peak = min(peak, stage.path * self.size / (AVERAGE * max(self.length, 1)))
        for group, lr, decay in self.groups:
            apart = stage.others is not None and not group.get("low_bit")
            group["lr"] = (stage.others * lr if apart else lr if peak is None else peak) * factor
            group["weight_decay"] = decay * stage.weight_decay

    def _centre(self):
        """Where a stage begins, and not where a run resumes there: its weights are centred already.

        A stage too short for an update never begins.
        """
        if self.stage.centre and self.done == 0 < self.length:
            for layer in self.layers:
                layer.centre()


def check_same_shape(model: Any, teacher: VisionTransformer) -> None:
    """ValueError where a model cannot learn from a teacher block by block."""
    for name in ("depth", "dim"):
        mine, theirs = model.config[name], teacher.config[name]
        if mine != theirs:
            raise ValueError(
                f"the teacher has {name}={theirs} and the model {name}={mine}: this recipe needs two networks of one"
                " shape; without a recipe, distill_from takes any teacher"
            )


def mean_size(layers: list) -> float:
    """The mean |w| of all latent weights, 0 without any."""
    sums = backend.to_host([abs(layer.weight.data).sum() for layer in layers])
    return sum(map(float, sums)) / max(sum(layer.weight.size for layer in layers), 1)


# --- by name --------------------------------------------------------------------------------------------------------

# Without SubLN in all of them: a norm that the full-precision network lacks would first have to be undone.
TENSOR = {"granularity": "tensor", "sub_norm": False}
ROWS = {"granularity": "row", "sub_norm": False}
LABELS = Stage(warmup=0.1)
BLOCKS = Stage(0.3, "blocks", relative_lr=0.1, path=14.0, warmup=0.05, weight_decay=0.0)
# Centred, because the first stage gathers weights at their thresholds, where the other gradient would tip them all at
# once: 0.9 % of the codes in the first update, at a rate of 0.0003 (docs/results). A path of 1 is hardly enough to get
# from there to a threshold.
OUTPUTS = Stage(0.7, "outputs", relative_lr=0.02, path=11.0, others=0.1, warmup=0.05, weight_decay=0.0, centre=True)
# Faster, and not centred: the steps "+ blocks" and "+ median" of the ablation.
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
REFINE = Recipe({}, (GENTLY,), {"labels": 1.0}, goes_on=True)
# 1 bit: thresholds are farther, see SIGNS. Not compared with 0.01.
REFINE_SIGNS = replace(REFINE, stages=(replace(GENTLY, relative_lr=0.015),))
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
