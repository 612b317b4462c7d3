"""A training in stages: what is learnt, from whom, and how fast.

A `Stages` object is the schedule of a training (its `step` follows every update) and the objective of its Trainer. All
that it does follows from the number of updates made, so a training cut short resumes exactly.
"""

from dataclasses import dataclass, field
from typing import Any

from ... import backend
from ...optim import warmup_cosine
from ...quant.watch import low_bit_layers
from .objectives import Distill, Labels, Reconstruct

LEARNS = ("labels", "outputs", "blocks")


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    share: of all updates, relative to the other stages. learns: 'labels'; 'blocks', each block what the teacher's block
    does; 'outputs', the teacher's outputs, end to end (see `train.objectives`). lr: peak learning rate (None: that of
    the optimiser), times `factor`; it rises over the fraction `warmup` of the stage and then falls to 0 along half a
    cosine. relative_lr, instead of lr: the peak in units of the mean size of the low-bit weights at the start, because
    only their ratio counts for a sign (Quist et al. 2023, arXiv 2303.02452). path: lowers that peak in a long stage, so
    that the rates of all its updates add up to so many mean sizes at most (None: any number). others: with relative_lr,
    the peak for all other parameters in units of the optimiser's own (None: as for the low-bit weights). weight_decay:
    a factor. centre: begin with every low-bit weight in the middle of its code (see `quant.BitLinear.centre`).
    """

    share: float = 1.0
    learns: str = "labels"
    lr: float | None = None
    relative_lr: float | None = None
    path: float | None = None
    others: float | None = None
    factor: float = 1.0
    weight_decay: float = 1.0
    warmup: float = 0.0
    centre: bool = False

    def __post_init__(self):
        if self.learns not in LEARNS:
            raise ValueError(f"a stage learns {', '.join(map(repr, LEARNS))}, not {self.learns!r}")
        if not self.share > 0:
            raise ValueError(f"the share of a stage must be above 0, not {self.share!r}")


@dataclass(frozen=True)
class Recipe:
    """How a low-bit network is built and trained.

    network: arguments of VisionTransformer; stages: of the training, in this order; distillation: arguments of
    `train.objectives.Distill`, for stages that learn outputs; goes_on: for a low-bit network that is there already.
    """

    network: dict[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = (Stage(),)
    distillation: dict[str, float] = field(default_factory=dict)
    goes_on: bool = False


class Stages:
    """Schedule and objective of a training with `total` updates of a model, after a Recipe.

    The learning rates and weight decays of the optimiser's groups are what the stages multiply. loss: that of the
    labels. teacher: a full-precision VisionTransformer with the model's blocks, where a stage learns from one.
    """

    def __init__(self, model, optimizer, total, recipe, loss, teacher=None):
        self.model, self.optimizer, self.stages = model, optimizer, recipe.stages
        self.layers = low_bit_layers(model)
        self.groups = [(g, g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
        self.size = mean_size(self.layers)
        self.objectives = {"labels": Labels(loss)}
        if teacher is not None:
            check_same_shape(model, teacher)
            self.objectives["blocks"] = Reconstruct(teacher)
            self.objectives["outputs"] = Distill(teacher, loss=loss, **recipe.distillation)
        for stage in recipe.stages:
            if stage.learns not in self.objectives:
                raise ValueError(f"this recipe learns the {stage.learns} of a teacher: give one as distill_from")
        shares, so_far, self.ends = sum(s.share for s in recipe.stages), 0.0, []
        for stage in recipe.stages:
            so_far += stage.share
            self.ends.append(round(total * so_far / shares))
        self.resume(0)
        self._centre()

    def __call__(self, model, x, y, *weight):
        """The objective of the present stage: (output, loss)."""
        return self.objectives[self.stage.learns](model, x, y, *weight)

    def step(self):
        self._enter(self.last + 1)
        self._centre()

    def resume(self, last):
        """Set everything for the update after the `last`-th."""
        self._enter(last)

    def _enter(self, last):
        self.last = last
        i = next((i for i, end in enumerate(self.ends) if last < end), len(self.ends) - 1)
        start = self.ends[i - 1] if i else 0
        self.stage = stage = self.stages[i]
        self.done, self.length = last - start, self.ends[i] - start
        factor = stage.factor * warmup_cosine(self.done, self.length, round(stage.warmup * self.length))
        own = stage.lr if stage.relative_lr is None else stage.relative_lr * self.size
        if stage.path is not None:
            average = 0.5  # of warm-up and cosine
            own = min(own, stage.path * self.size / (average * max(self.length, 1)))
        for group, lr, decay in self.groups:
            apart = stage.others is not None and not group.get("low_bit")
            group["lr"] = (stage.others * lr if apart else own or lr) * factor
            group["weight_decay"] = decay * stage.weight_decay
        temperature = 0.1 * 100 ** (last / self.ends[-1])  # of ste='ede': from 0.1 to 10, as in IR-Net
        for layer in self.layers:
            layer.temperature = temperature

    def _centre(self):
        """Where a stage begins, and not where a run resumes there: its weights are centred already."""
        if self.stage.centre and self.done == 0:
            for layer in self.layers:
                layer.centre()


def check_same_shape(model, teacher):
    """ValueError where a model cannot learn from a teacher block by block."""
    for name in ("depth", "dim"):
        mine, theirs = model.config[name], teacher.config[name]
        if mine != theirs:
            raise ValueError(
                f"the teacher has {name}={theirs} and the model {name}={mine}: this recipe needs two networks of one"
                " shape; without a recipe, distill_from takes any teacher"
            )


def mean_size(layers):
    """The mean |w| of all latent weights, 0 without any."""
    sums = backend.to_host([abs(layer.weight.data).sum() for layer in layers])
    return sum(map(float, sums)) / max(sum(layer.weight.size for layer in layers), 1)
