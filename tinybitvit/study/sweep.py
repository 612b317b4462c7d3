"""Many models: bit widths and seeds (`run_study`), and widths and depths (`run_sweep`) or recipes (`run_ablation`)."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

import tinybitvit as tb

from ..data import Dataset
from ..files import printable, write_file
from ..models import source_of
from ..quant import check_bits
from ..train import Recipe, find_recipe
from ..train.convert.recipes import ABLATION
from ..train.meter import clock, say
from . import report
from .pictures import write_report
from .presets import PRESETS, SHAPE, check_seed, check_split, chosen, default_of, load_data_once, preset
from .results import add_run, begin, close, made_of, open_folder
from .run import Run, Study, serve_parent, source_name, start_model, train_model, train_run


def run_study(
    dataset: str | PathLike = "digits",
    bits: Sequence[float] = (32, 1.58, 1),
    **options: Any,
) -> report.Results:
    """Train the same ViT at each width; write results.json, report.html, figures and models into the folder `out`.

    Keyword arguments and their defaults are those of `run_all`, and all of tb.ViT. dataset, train_size, test_size,
    image_size: see `load_data`. out: study-DATASET unless given. seeds: how many runs of everything, with the seeds
    seed, seed + 1, ...; each draws its own split and subset where there is a choice. Arguments of tb.ViT come before
    those of PRESETS. With a recipe that has a teacher, such as 'best', the low-bit models learn from the full-precision
    model of the same seed (distill_from), which is trained first, also where `bits` leaves it out. init_from: also a
    file of tb.ViT.save. teacher: such a file, of 32 bits, that takes the place of the full-precision models, so that
    none is trained; its sizes are taken over, and so are its weights, unless init_from gives the low-bit models others.
    command: what to write down as the command that made the results.

    jobs: models trained at the same time, each in a process and on a core of its own, by joblib (see `run_sweep`).
    results.json is written after every model; Ctrl-C ends the study early, and what is done is reported. Every minute
    the models in training are saved into `out`; with `resume` a study that was cut short goes on from there, and a
    finished one trains what more seeds or bit widths ask for. Without it the same study is made again, and another one
    in that folder refused. Where the seed splits the data set, the models of `init_from` and `teacher` must have it,
    too, or they would know the test images. Returns the content of results.json. Raises ValueError for impossible
    arguments and OSError where `out` cannot be written, before any training, and CheckpointError where it cannot be
    written later.
    """
    return run_all(dataset, bits, [{}], [], **options)


def run_sweep(
    dataset: str | PathLike = "digits",
    bits: Sequence[float] = (32, 1.58, 1),
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    **options: Any,
) -> report.Results:
    """Train ViTs at each bit width, width (`dim`) and depth: which of them gives most accuracy for its bytes?

    widths: half, once and twice that of the data set unless given; depths: half and once. Heads keep the number of
    channels that they have at the usual width, unless `heads` is given. out: sweep-DATASET unless given. The rest as in
    `run_study`; the report has the Pareto front instead of attention maps.

    jobs=None leaves the number of processes to joblib: one, or those of a cluster within
    `joblib.parallel_config(backend=...)`; their machines must see the data and the folder `out` under the same paths.
    """
    if options.get("init_from") is not None:
        raise ValueError("a sweep trains networks of other widths and depths than a model to start from has: leave out")
    usual = {**{name: default_of(name) for name in ("dim", "depth", "heads")}, **preset(dataset), **options}
    widths = widths or sorted({max(1, usual["dim"] // 2), usual["dim"], 2 * usual["dim"]})
    depths = depths or sorted({max(1, usual["depth"] // 2), usual["depth"]})
    per_head = usual["dim"] // usual["heads"]
    shapes = []
    for dim, depth in product(dict.fromkeys(widths), dict.fromkeys(depths)):
        heads = options.get("heads") or max(h for h in range(1, max(1, dim // per_head) + 1) if dim % h == 0)
        shapes.append({"dim": dim, "depth": depth, "heads": heads})
    options = {name: value for name, value in options.items() if name not in ("dim", "depth", "heads")}
    return run_all(dataset, bits, shapes, [], **options)


def run_ablation(
    dataset: str | PathLike = "digits",
    bits: Sequence[float] = (1,),
    **options: Any,
) -> report.Results:
    """Train ViTs by each recipe of `tinybitvit.train.recipes.ABLATION`: which ingredient saves the low-bit models?

    For every seed the full-precision model, and at each low bit width a model for each recipe, with the same images and
    epochs. They all start from the full-precision model; some learn from the labels, others from that model. out:
    ablation-DATASET unless given. The rest as in `run_study`; the report has the accuracy by recipe instead of
    attention maps.
    """
    if options.get("recipe") is not None or options.get("distill_from") is not None:
        raise ValueError("an ablation has recipes and a teacher of its own: leave recipe and distill_from out")
    if set(bits) <= {32}:
        raise ValueError("an ablation is of low-bit models: give a bit width below 32")
    return run_all(dataset, bits, [{}], ABLATION, **options)


# --- all --------------------------------------------------------------------------------------------------------------


def run_all(
    dataset: str | PathLike,
    bits: Sequence[float],
    shapes: Sequence[dict[str, int]],
    recipes: Iterable[str],
    *,
    out: str | PathLike | None = None,
    seed: int = 0,
    seeds: int = 1,
    train_size: int | None = None,
    test_size: int | None = None,
    image_size: int | None = None,
    resume: bool = False,
    jobs: int | None = None,
    command: str | None = None,
    teacher: str | PathLike | None = None,
    **options: Any,
) -> report.Results:
    """Train what is not yet trained, and report."""
    sizes = {"train_size": train_size, "test_size": test_size, "image_size": image_size}
    began, seeds_used = time.perf_counter(), range(seed, seed + seeds)
    data, study, runs = prepare(dataset, bits, shapes, recipes, out, seeds_used, sizes, teacher, options)
    results = begin(study, data, runs, resume, command)
    say(printable(data))
    data = data._replace(X_train=data.X_train[:0].copy())  # the report needs test images only
    done = {model["name"] for model in results["models"]}
    progress = Tally(
        [run for run in runs if run.name not in done or not study.model_file(run).exists()],
        total=len(runs),
        trains=study.trains,
    )
    try:
        for run, found in trained(study, runs, resume, jobs, progress):
            add_run(results, found, [r.name for r in runs])
            write_file(study.folder / "results.json", report.to_json(results))
            progress.count(run, found)
            if found["interrupted"]:
                break
            close(study, [run])
    except KeyboardInterrupt:
        results["interrupted"] = True
    finally:  # also where a later model fails or the disk is full: hours of training are not lost from sight
        load_data_once.cache_clear()
        if results["models"]:
            say(f"\n{report.text_table(results)}\n")
            write_report(study, results, data, runs)
        say(f"{time.perf_counter() - began:.0f} s in all")
    return results


def prepare(dataset, bits, shapes, recipes, out, seeds, sizes, teacher, options) -> tuple[Dataset, Study, list[Run]]:
    """Everything checked that can be before training: the images of the first seed, the study, its runs in order."""
    bits = list(dict.fromkeys(bits))
    for b in bits:
        check_bits(b)
    if not seeds:
        raise ValueError("seeds is the number of runs and must be at least 1")
    check_seed(seeds[-1])
    if dataset not in PRESETS and Path(dataset).is_dir():
        dataset = Path(dataset).absolute()  # a process on another machine may work in another folder
    images = {"dataset": dataset, **sizes}
    data = load_data_once(**images, seed=seeds[0])
    options = chosen(dataset, len(data.y_train), options, options.get("init_from") or teacher)
    networks = {}
    if "init_from" in options:
        if isinstance(options["init_from"], (str, PathLike)):
            options["init_from"] = Path(options["init_from"]).expanduser().absolute()
        start = start_model(options["init_from"])
        check_split(start, source_name(options["init_from"]), dataset, data, seeds)
        networks["init_from"] = source_of(start, data.X_train.shape[1:3])
    if low_bit_recipe(options.get("recipe"), bits).goes_on and (teacher is None or "init_from" not in options):
        raise ValueError("this recipe goes on with a low-bit model: give its file as init_from, and that of a teacher")
    if teacher is not None:
        teacher, model = checked_teacher(teacher, data, options, shapes, recipes)
        check_split(model, teacher.name, dataset, data, seeds)
        networks["teacher"] = model.model_
    runs = plan(bits, shapes, recipes, seeds, options, teacher)
    check_shapes(shapes, options, data)
    kind = "sweep" if shapes[0] else "ablation" if recipes else "study"
    folder = Path(out if out is not None else f"{kind}-{data.name}")
    open_folder(folder)
    made = made_of(kind, data, seeds[0], networks)
    return data, Study(folder.absolute(), images, options, teacher, made), runs


def check_shapes(shapes, options: dict[str, Any], data: Dataset) -> None:
    """ValueError where a network of a sweep cannot be: made, and not trained, on an image of each class."""
    few = np.unique(data.y_train, return_index=True)[1]
    data = data._replace(X_train=data.X_train[few], y_train=data.y_train[few])
    plain = {name: value for name, value in options.items() if name not in ("recipe", "distill_from")}
    for shape in filter(None, shapes):
        train_model(data, **{**plain, **shape, "bits": 32, "epochs": 0, "verbose": 0})


def checked_teacher(teacher, data: Dataset, options: dict[str, Any], shapes, recipes) -> tuple[Path, "tb.ViT"]:
    """The file of a teacher, if it can be one, and what it holds."""
    path = Path(teacher).expanduser().absolute()
    # The recipes of an ablation are compared from one start, the teacher.
    given = {"distill_from", *SHAPE, *(["init_from"] if recipes else [])} & set(options)
    if shapes[0] or given:
        unwanted = "the sweep" if shapes[0] else " and ".join(sorted(given))
        raise ValueError(f"a study with a teacher takes its sizes and weights from that: leave out {unwanted}")
    model = tb.load(path)
    if model.bits != 32:
        raise ValueError(f"the teacher must have 32 bits, and {teacher} has {model.bits:g}")
    if list(model.classes_) != sorted(data.classes) or model.image_shape_ != data.X_train.shape[1:]:
        raise ValueError(
            f"{teacher} was trained on other classes or on images of another size than {data.name}: give image_size and"
            " the data set as they were when it was trained"
        )
    return path, model


def plan(bits, shapes, recipes, seeds, options, teacher) -> list[Run]:
    """All runs in order, the full-precision model before those that learn or start from it.

    recipes: names in ABLATION, for a low-bit model each; without any they all have the recipe of the options.
    Where models learn from labels alone, those of an ablation or of a teacher start from the full-precision one.
    """
    from_twin = recipes or (teacher is not None and "init_from" not in options)

    def twin(recipe):
        if any(stage.learns != "labels" for stage in low_bit_recipe(recipe, bits).stages):
            return None if "distill_from" in options else "distill_from"
        return "init_from" if from_twin else None

    ways = [(twin(ABLATION[recipe]), recipe) for recipe in recipes] or [(twin(options.get("recipe")), None)]
    if any(argument for argument, _ in ways):
        bits = [32, *(b for b in bits if b != 32)]
    cells = product(shapes, seeds, bits)
    return [Run(b, s, shape, *way) for shape, s, b in cells for way in (ways if b != 32 else [(None, None)])]


def low_bit_recipe(recipe, bits) -> Recipe:
    """What the low-bit models among `bits` follow, if they have a teacher."""
    return find_recipe(recipe, min(bits, default=32), True, 0.0)


def trained(
    study: Study, runs: Sequence[Run], resume: bool, jobs: int | None, progress: "Tally"
) -> Iterator[tuple[Run, report.Results]]:
    """Train those of the runs that are to do, one after another or as many at a time as joblib has processes for."""
    from joblib import Parallel, delayed, effective_n_jobs

    if effective_n_jobs(jobs) == 1:
        yield from one_by_one(study, progress.todo, resume, progress)
        return
    free, waiting = ([run for run in progress.todo if (run.twin is not None) == waits] for waits in (False, True))
    # Where all others wait for a single run, the cores are its own. That must not hang on what is left of the runs: on
    # another number of threads a run that was cut short would not go on bit for bit.
    if jobs is not None and sum(run.twin is None for run in runs) == 1:
        yield from one_by_one(study, free, resume, progress)
        free = []
    for wave in (free, waiting):
        named = {run.name: run for run in sorted(wave, key=cost, reverse=True)}
        tasks = [delayed(train_run)(study, run, resume, shared=True) for run in named.values()]
        try:
            # Processes watch their parent from their start, not from their first task: it may be killed between.
            watch = {"initializer": serve_parent} if jobs is not None else {}
            parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", **watch)
        except ValueError:  # Ray's backend can only hand back all results together
            parallel = Parallel(n_jobs=jobs)
        with warnings.catch_warnings():
            # joblib replaces a process whose memory has grown, as it does with the models, between two of them
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
            for found in parallel(tasks) if tasks else ():
                yield named[found["name"]], found


def one_by_one(
    study: Study, runs: Iterable[Run], resume: bool, progress: "Tally"
) -> Iterator[tuple[Run, report.Results]]:
    """Train them in this process, each on all cores."""
    for run in runs:
        progress.announce(run)
        yield run, train_run(study, run, resume)


class Tally:
    """How far a study is, on stdout. trains: whether a run trains its model; others cost nothing."""

    def __init__(self, todo: Sequence[Run], total: int, trains: Callable[[Run], bool] = lambda run: True):
        self.todo, self.total, self.done, self.trains = todo, total, total - len(todo), trains
        self.began, self.cost = time.perf_counter(), 0.0

    def left(self) -> str:
        """A guess from what the models took that are done, larger ones longer."""
        rest = sum(cost(run) for run in self.todo if self.trains(run)) - self.cost
        seconds = rest * (time.perf_counter() - self.began) / self.cost if self.cost else None
        return "" if seconds is None else f", about {clock(seconds)} left"

    def announce(self, run: Run) -> None:
        say(f"\n{run.title} (model {self.done + 1} of {self.total}{self.left()})")

    def count(self, run: Run, found: report.Results) -> None:
        self.done, self.cost = self.done + 1, self.cost + (cost(run) if self.trains(run) else 0.0)
        took = f"accuracy {found['accuracy']:.4f}, {clock(found['seconds'])} of training"
        say(f"{run.title}: {took} ({self.done} of {self.total}{self.left()})")


def cost(run: Run) -> float:
    """What a model takes to train, in units of their own; below about 64 channels width hardly counts."""
    return run.shape.get("depth", 1) * (1 + (run.shape.get("dim", 0) / 64) ** 2)
