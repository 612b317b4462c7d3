"""The study: Vision Transformers trained at several bit widths on the same images, and what that costs.

From the bottom: `presets` (data), `run` (one model), `results` (results.json and its statistics), `pictures`, and
`sweep` with the three programs, `run_study`, `run_sweep` and `run_ablation`.
"""

from .pictures import draw, figures, result_figures, table_figure, write_report
from .presets import PRESETS, check_split, chosen, load_data, preset, stretch, subset
from .results import open_folder, read_results
from .run import Run, Study, measure, settings, start_model, train_model, train_run
from .sweep import run_ablation, run_study, run_sweep

__all__ = [
    "PRESETS",
    "preset",
    "chosen",
    "check_split",
    "load_data",
    "subset",
    "stretch",
    "Study",
    "Run",
    "start_model",
    "train_model",
    "train_run",
    "measure",
    "settings",
    "open_folder",
    "read_results",
    "figures",
    "result_figures",
    "table_figure",
    "write_report",
    "draw",
    "run_study",
    "run_sweep",
    "run_ablation",
]
