"""Training: one step on worker threads, the loop around it."""

from .convert.recipes import Recipe, Stage, Stages, find_recipe
from .loop import Run, code_diagnostics, empty_history, evaluate, soft_targets
from .meter import undertrained
from .resume import Checkpoints, delete_checkpoints, describe_run, model_fingerprint
from .shards import cores, memory_advice, single_threaded_blas
from .step import Trainer, smoothing_floor

__all__ = [
    "Checkpoints",
    "Recipe",
    "Run",
    "Stage",
    "Stages",
    "Trainer",
    "code_diagnostics",
    "cores",
    "delete_checkpoints",
    "describe_run",
    "empty_history",
    "evaluate",
    "find_recipe",
    "memory_advice",
    "model_fingerprint",
    "single_threaded_blas",
    "smoothing_floor",
    "soft_targets",
    "undertrained",
]
