"""Training: one step on worker threads, the loop around it."""

from .loop import evaluate, run, soft_targets, train_epoch
from .trainer import Trainer, cores, single_threaded_blas

__all__ = ["Trainer", "cores", "evaluate", "run", "single_threaded_blas", "soft_targets", "train_epoch"]
