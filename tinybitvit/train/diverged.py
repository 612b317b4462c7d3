"""Where a training diverged: the first layer whose output is not finite."""

import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from .. import backend
from ..ops.loss import check_classes


def divergence(trainer: Any, loss: float, shards: list[Any]) -> FloatingPointError:
    """The error that ends a training after a step of a `step.Trainer`, cut into shards.

    Its loss is not finite, or where it is, the gradient.
    """
    if math.isfinite(loss):
        return FloatingPointError(f"the gradient of a loss of {loss:.6g} is not finite at {_advice(trainer)}")
    y = shards[0].y
    if trainer.device != "cpu" and y.ndim == 1 and y.dtype.kind in "iu":  # which no operation on a GPU looks at
        check_classes(np.concatenate([shard.y for shard in shards]), trainer.outputs[0].shape[-1])
    layer = "the sum over the batch" if trainer.group is None else "the rows of another rank"
    for shard, part in zip(shards, trainer.losses, strict=True):
        if not math.isfinite(part):
            layer = first_not_finite(trainer, shard)
            break
    return FloatingPointError(f"the loss became {loss} at {_advice(trainer, f', first in {layer}')}")


def _advice(trainer: Any, where: str = "") -> str:
    return (
        f"update {trainer.optimizer.steps + 1}{where}; the weights are as before: lower the learning rate, lengthen the"
        " warm-up, or look for extreme values in the input"
    )


def first_not_finite(trainer: Any, shard: Any) -> str:
    """The name of the first layer whose output for a shard is not finite, found by running the model once more."""
    names: list[str] = []

    def look(name, module, inputs, output):
        if not names and not bool(backend.array_module(output.data).isfinite(output.data).all()):
            names.append(name or "the last operation")

    with ExitStack() as stack:
        for name, module in trainer.model.named_modules():
            stack.enter_context(module.register_forward_hook(partial(look, name)))
        stack.enter_context(backend.use_rng(shard.seed))
        stack.enter_context(np.errstate(all="ignore"))
        trainer._forward(shard.x)
    return names[0] if names else "the loss function"
