"""Training: one step on worker threads, the loop around it."""

from .checkpoint import Checkpoints, Progress, delete_checkpoints, describe_run, model_fingerprint
from .convert.recipes import find_recipe
from .convert.stages import Recipe, Stage, Stages
from .loop import check_options, code_diagnostics, evaluate, run, soft_targets, train_epoch
from .meter import smoothing_floor, undertrained
from .trainer import Trainer, cores, memory_advice, single_threaded_blas

__all__ = [
    "Checkpoints",
    "Progress",
    "Recipe",
    "Stage",
    "Stages",
    "Trainer",
    "check_options",
    "code_diagnostics",
    "cores",
    "delete_checkpoints",
    "describe_run",
    "evaluate",
    "find_recipe",
    "memory_advice",
    "model_fingerprint",
    "run",
    "single_threaded_blas",
    "smoothing_floor",
    "soft_targets",
    "train_epoch",
    "undertrained",
]
