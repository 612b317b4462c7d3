"""Training: one step on worker threads, the loop around it."""

from .checkpoint import Checkpoints, Progress, delete_checkpoints, describe_run
from .loop import check_options, evaluate, run, soft_targets, train_epoch
from .trainer import Trainer, cores, memory_advice, single_threaded_blas

__all__ = [
    "Checkpoints",
    "Progress",
    "Trainer",
    "check_options",
    "cores",
    "delete_checkpoints",
    "describe_run",
    "evaluate",
    "memory_advice",
    "run",
    "single_threaded_blas",
    "soft_targets",
    "train_epoch",
]
