"""A training run that was cut short goes on from its checkpoint to the bits of a run that never was."""

import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.data import Loader
from tinybitvit.files import CheckpointError, read_safetensors, write_safetensors
from tinybitvit.optim import SGD, WarmupCosine
from tinybitvit.train import Checkpoints, Run, resume

ROOT = Path(__file__).resolve().parents[2]
# Five updates an epoch, the last batch smaller; random shifts, so that the batches themselves depend on the generator.
TINY = {"dim": 8, "depth": 1, "heads": 2, "epochs": 3, "lr": 1e-2, "batch_size": 20, "augment": "shift:1", "verbose": 0}
UPDATES = 15
EARLY = {"early_stopping": True, "patience": 1, "validation_fraction": 0.3, "epochs": 9}


def make_data():
    """90 grey 6 x 6 images: class k has a bright pair of rows 2k, 2k + 1."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.random((90, 6, 6)).astype(np.float32)
    for k in range(3):
        X[y == k, 2 * k : 2 * k + 2] += 1
    return X, y


@pytest.fixture(scope="module")
def data():
    return make_data()


def fit(data, folder=None, fit_options=None, **options):
    where = {} if folder is None else {"checkpoint": folder, "every": 0, "resume": True}
    return tb.ViT(**{**TINY, "random_state": 0, **options}).fit(*data, **{**where, **(fit_options or {})})


def result(model):
    """All that must be the same; the seconds cannot be."""
    history = {k: v for k, v in model.history_.items() if k != "seconds"}
    return {n: a.tobytes() for n, a in model.model_.state_dict().items()} | history


class Cut(BaseException):
    """What no handler in the library catches, as little as a power failure."""


def cut(monkeypatch, updates, error=Cut):
    """End the process, as it were, after the update with this number and before its checkpoint."""
    counted = iter(range(1, 10_000))

    def count(self, **sums):
        original(self, **sums)
        if next(counted) == updates:
            raise error

    monkeypatch.setattr(Run, "count", count)


original = Run.count


def files_in(folder):
    return sorted(folder.glob("*"))


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 5, 6, 10, 14, 15])
def test_cut_anywhere(at, data, monkeypatch, tmp_path):
    """Within an epoch, at its last update, at the first of the next one, at the last of all."""
    cut(monkeypatch, at)
    with pytest.raises(Cut):
        fit(data, tmp_path)
    monkeypatch.setattr(Run, "count", original)
    assert [int(path.stem[-9:]) for path in files_in(tmp_path)] == [n for n in (at - 2, at - 1) if n > 0]
    assert result(fit(data, tmp_path)) == result(fit(data))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 32},
        {"bits": 1, "pool": "cls"},
        {"augment": None},
        EARLY,
        {"workers": 2},
        {"epochs": 0},
    ],
    ids=str,
)
def test_cut_again_and_again(options, data, monkeypatch, tmp_path):
    expected = result(fit(data, **options))
    for _ in range(60):
        cut(monkeypatch, 4)
        try:
            model = fit(data, tmp_path, **options)
            break
        except Cut:
            pass
    assert result(model) == expected
    assert result(fit(data, tmp_path, **options)) == expected, "a run that was finished already"


def test_sample_weight_validation_and_teacher(data, monkeypatch, tmp_path):
    X, y = data
    teacher = fit(data, bits=32)
    extra = {"sample_weight": np.linspace(0, 1, 90), "eval_set": (X[:30], np.array(["a", "b", "c"], object)[y[:30]])}
    labels = np.array(["a", "b", "c"])[y]
    teacher.classes_ = np.array(["a", "b", "c"])
    expected = result(fit((X, labels), fit_options=extra, distill_from=teacher))
    cut(monkeypatch, 8)
    with pytest.raises(Cut):
        fit((X, labels), tmp_path, extra, distill_from=teacher)
    monkeypatch.setattr(Run, "count", original)
    assert result(fit((X, labels), tmp_path, extra, distill_from=teacher)) == expected
    with pytest.raises(CheckpointError, match="it had other data"):
        fit((X, labels), tmp_path, {**extra, "sample_weight": np.ones(90)}, distill_from=teacher)
    with pytest.raises(CheckpointError, match="distill_from was ViT "):
        fit((X, labels), tmp_path, extra, distill_from=fit((X, labels), bits=32, random_state=9))


def test_a_run_without_a_seed_keeps_the_one_it_had(data, monkeypatch, tmp_path):
    """random_state=None draws one: for the split, the first weights and the order of images."""
    seeds = iter([7, 8])
    monkeypatch.setattr(tb.ViT, "_draw_seed", lambda self: next(seeds))
    cut(monkeypatch, 7)
    with pytest.raises(Cut):
        fit(data, tmp_path, random_state=None, **EARLY)
    monkeypatch.setattr(Run, "count", original)
    resumed = fit(data, tmp_path, random_state=None, **EARLY)
    monkeypatch.setattr(tb.ViT, "_draw_seed", lambda self: 7)
    assert result(resumed) == result(fit(data, random_state=None, **EARLY))


def test_dropout_goes_on_with_its_own_numbers(data, monkeypatch, tmp_path):
    """tb.ViT has none, but the loop serves any model."""
    from tinybitvit.train import Trainer

    def train(folder=None):
        model = tb.models.VisionTransformer(6, 2, 1, 3, 8, 1, 2, dropout=0.3, rng=np.random.default_rng(1))
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1, momentum=0.9), rng=2, workers=2)
        loader = Loader(data[0][..., None], data[1], 20, rng=3)
        schedule = WarmupCosine(trainer.optimizer, UPDATES, warmup=3)
        checkpoints = None if folder is None else Checkpoints(folder, 0, resume=True)
        history, _ = Run(trainer, loader, schedule=schedule, checkpoints=checkpoints).train(3)
        return {n: a.tobytes() for n, a in model.state_dict().items()} | {"loss": history["loss"]}

    for at in (7, 3):
        cut(monkeypatch, at)
        with pytest.raises(Cut):
            train(tmp_path)
    monkeypatch.setattr(Run, "count", original)
    assert train(tmp_path) == train()


# --- properties -------------------------------------------------------------------------------------------------------


class Idle:
    """A trainer that only has what Run looks at."""

    def __init__(self, rng):
        self.rng, self.optimizer = rng, SimpleNamespace(param_groups=[{"lr": 0.0}])


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 12),
    prefetch=st.integers(0, 3),
    shuffle=st.booleans(),
    done=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    shared=st.booleans(),
)
def test_the_rest_of_any_epoch_is_dealt_again(n, batch, prefetch, shuffle, done, seed, shared):
    """Every image once an epoch; from a saved position the same batches, and the same numbers for dropout."""

    def start():
        rng = np.random.default_rng(seed)
        X = np.arange(n, dtype=np.float32)[:, None, None, None]
        noise = {"shuffle": shuffle, "augment": lambda X, rng: X + rng.random(X.shape, dtype=np.float32) / 2}
        loader = Loader(X, np.arange(n), min(batch, n), rng=rng, prefetch=prefetch, **noise)
        return Run(Idle(rng if shared else np.random.default_rng(seed)), loader)

    whole = start()
    seen, draws, saved = [], [], None
    at = round(done * len(whole.loader))
    for x, _ in whole.batches():
        if whole.done == at:
            saved = whole.rng, whole.loader_rng
        seen.append(x)
        draws.append(whole.trainer.rng.random())
        whole.count()
    assert sorted(np.concatenate(seen).ravel().astype(int)) == list(range(n))
    resumed = start()
    resumed.done = at if saved else whole.done
    resumed.rng, resumed.loader_rng = saved or (whole.rng, whole.loader_rng)
    rest = [(x, resumed.trainer.rng.random()) for x, _ in resumed.batches()]
    assert [draw for _, draw in rest] == draws[resumed.done :]
    assert all((x == y).all() for (x, _), y in zip(rest, seen[resumed.done :], strict=True))


@given(total=st.integers(1, 200), share=st.floats(0, 1), final=st.floats(0, 1), at=st.floats(0, 1))
def test_any_schedule_rises_then_falls_and_goes_on(total, share, final, at):
    def make():
        return WarmupCosine(SimpleNamespace(param_groups=[{"lr": 2.0}]), total, round(share * total), final)

    schedule, rates = make(), []
    for _ in range(total):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.step()
    warmup = schedule.warmup
    assert all(0 < rate <= 2 for rate in rates[:warmup]) and (np.diff(rates[:warmup]) > 0).all()
    assert all(2 * final - 1e-12 <= rate <= 2 for rate in rates[warmup:]) and (np.diff(rates[warmup:]) <= 1e-12).all()
    resumed = make()
    resumed.last = round(at * (total - 1)) - 1
    resumed.step()
    assert resumed.optimizer.param_groups[0]["lr"] == rates[resumed.last]


def arrays_to_hash(draw):
    """Images, labels and weights of any dtype and layout."""
    n, side = draw(st.integers(1, 200)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    X = rng.integers(0, 256, (n, side, side, 1)).astype(draw(st.sampled_from(["uint8", "float32", "float64", "int64"])))
    if draw(st.booleans()):
        X = np.asfortranarray(X)
    labels = draw(st.sampled_from(["int64", "U3", "O"]))
    return X, rng.integers(0, 9, n).astype("U3" if labels == "O" else labels).astype(labels), rng.random(n)


@given(data=st.data(), block=st.sampled_from([1, 50, 2**24]))
def test_any_change_of_any_data_is_noticed(data, block):
    """One element of one array, an image more or less, two rows exchanged, another shape, dtype or order of arrays."""
    arrays = arrays_to_hash(data.draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "BLOCK", block)
        mark = resume.fingerprint(*arrays)
        assert mark == resume.fingerprint(*(np.array(a, order="C") for a in arrays)), (
            "the layout in memory is no change"
        )
        which = data.draw(st.integers(0, 2))
        changed = [a.copy() for a in arrays]
        row = data.draw(st.integers(0, len(arrays[which]) - 1))
        old = changed[which][row].copy() if which == 0 else changed[which][row]
        changed[which][row] = "x" if changed[which].dtype.kind in "UO" else old + 1
        assert resume.fingerprint(*changed) != mark
        X, *rest = arrays
        for other in (X[:-1], X[..., 0], X.astype("int16"), np.concatenate([X, X[:1]])):
            assert resume.fingerprint(other, *rest) != mark
        assert resume.fingerprint(X, *rest[::-1]) != mark
        assert resume.fingerprint(X, *rest, None) != mark
        if (X[0] != X[-1]).any():
            assert resume.fingerprint(np.concatenate([X[-1:], X[1:-1], X[:1]]), *rest) != mark


def test_a_change_between_64_rows_is_another_run(data, monkeypatch, tmp_path):
    """Also of the teacher's weights and of the images that are only measured."""
    X, y = (np.concatenate([a] * 3) for a in data)
    extra = {"eval_set": (X, y)}
    cut(monkeypatch, 3)
    with pytest.raises(Cut):
        fit((X, y), tmp_path, extra)
    monkeypatch.setattr(Run, "count", original)
    other = X.copy()
    other[7, 0, 0] += 1e-3
    for images, validation in ((other, X), (X, other)):
        with pytest.raises(CheckpointError, match="it had other data; give what it was"):
            fit((images, y), tmp_path, {"eval_set": (validation, y)})
    one, two = np.zeros((200, 3)), np.zeros((200, 3))
    two[1, 1] = 1
    networks = [SimpleNamespace(state_dict=lambda w=w: {"w": w}) for w in (one, two)]
    assert resume.option_text(networks[0]) != resume.option_text(networks[1])


# --- what a parameter is, as a text -----------------------------------------------------------------------------------


def shifted_by(amount, more=(1, 2)):
    def augment(X, rng, reach=3):
        return X + amount

    return augment


def counted():
    calls, seen = iter(range(9)), []

    def augment(X, rng):
        seen.append(next(calls))
        return X

    return augment


def recursive(n=3):
    def inner(X, rng):
        return X if n else inner(X, rng)

    return inner


class Adds:
    unit = 2

    def __init__(self, amount):
        self.amount = amount

    def __call__(self, X, rng):
        return X + self.amount * self.unit


class AddsMore(Adds):
    def __call__(self, X, rng):
        return X + self.amount * self.unit + 1


class Five(tb.quant.Quantizer):
    name, levels = "five", (-2, -1, 0, 1, 2)

    def codes(self, xp, w):
        scale = self.size(xp, w)
        return xp.clip(xp.rint(w / scale), -2, 2), scale


class Edited(Five):
    def codes(self, xp, w):
        scale = self.size(xp, w) * 2
        return xp.clip(xp.rint(w / scale), -2, 2), scale


class Wider(Five):
    width = 2.0


Edited.__name__ = Edited.__qualname__ = Wider.__name__ = Wider.__qualname__ = "Five"  # as after an edit of the file


def renamed(function):
    function.__qualname__ = "augment"
    return function


DIFFERENT = {
    "lambdas": [lambda X, rng: X, lambda X, rng: X[:, ::-1], lambda X, rng: X * 2, lambda X, rng: X * 3],
    "closures": [shifted_by(1), shifted_by(2), shifted_by((1, 2)), shifted_by("1"), shifted_by(np.ones(3))],
    "defaults": [renamed(lambda X, rng, a=1: X), renamed(lambda X, rng, a=2: X), renamed(lambda X, rng, *, a=1: X)],
    "partials": [partial(shifted_by(1), reach=1), partial(shifted_by(1), reach=2), partial(shifted_by(2), reach=2)],
    "names": [renamed(lambda X, rng: X.min()), renamed(lambda X, rng: X.max())],
    "objects": [Adds(1), Adds(2), AddsMore(1), Adds(1).__call__, Adds(2).__call__],
    "quantisers": [Five(), Edited(), Wider(), Five("tensor"), Five("row", "absmedian"), "five"],
    "generators": [np.random.RandomState(3), np.random.RandomState(4), None, 3],
}
ALIKE = {
    "closure": lambda: shifted_by(1.5),
    "counter": counted,
    "recursion": recursive,
    "partial": lambda: partial(shifted_by((1, 2)), reach=1),
    "object": lambda: Adds(2),
    "quantiser": Five,
    "generator": lambda: np.random.RandomState(3),
    "object without a text": lambda: SimpleNamespace(held=object()),
    "set": lambda: lambda X, rng: X if X.shape[0] in {1, 2, 3, "a", "b", "c"} else -X,
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_does_other_things_has_another_text(kind):
    texts = [resume.option_text(value) for value in DIFFERENT[kind]]
    assert len(set(texts)) == len(texts), texts
    assert not any("0x" in text or "\n" in text for text in texts)


@pytest.mark.parametrize("kind", ALIKE)
def test_what_does_the_same_has_the_same_text_in_any_process(kind):
    here = [resume.option_text(ALIKE[kind]()) for _ in range(3)]
    code = "import sys; sys.path[:0] = sys.argv[1:4]; import test_resume as t; "
    code += f"print(t.resume.option_text(t.ALIKE[{kind!r}]()))"
    paths = map(str, (Path(__file__).parent, ROOT / "tests" / "support", ROOT))
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert {*here, done.stdout.strip()} == {here[0]}


def test_what_counts_its_calls_may_go_on_with_its_run(data, tmp_path):
    class Stops:
        left = 7

        def __call__(self, X, rng):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return X

    stops = Stops()
    assert fit(data, tmp_path, {"every": 1e9}, augment=stops).interrupted_
    assert result(fit(data, tmp_path, {"every": 1e9}, augment=stops)) == result(fit(data, augment=None))


def test_a_model_is_its_sizes_and_its_normalisation_too(data, tmp_path):
    model = fit(data, bits=32)
    text = resume.option_text(model)
    model.save(tmp_path / "m")
    assert resume.option_text(tb.load(tmp_path / "m")) == text, "the same teacher, from a file"
    other = fit((data[0] * 2, data[1]), bits=32, epochs=0)
    other.model_.load_state_dict(model.model_.state_dict())
    more_heads = fit(data, bits=32, epochs=0, heads=4)
    more_heads.model_.load_state_dict(model.model_.state_dict())
    more_heads.normalize_ = model.normalize_
    networks = {resume.option_text(m.model_) for m in (model, other, more_heads)}
    assert len({resume.option_text(m) for m in (model, other, more_heads)}) == 3 and len(networks) == 2


def test_a_generator_goes_on_in_a_new_process(data, monkeypatch, tmp_path):
    """What it held at the start, not where it lay."""
    expected = result(fit(data, random_state=np.random.RandomState(3)))
    cut(monkeypatch, 8)
    with pytest.raises(Cut):
        fit(data, tmp_path, random_state=np.random.RandomState(3))
    monkeypatch.setattr(Run, "count", original)
    assert result(fit(data, tmp_path, random_state=np.random.RandomState(3))) == expected
    with pytest.raises(CheckpointError, match=r"random_state was RandomState .* and is now RandomState "):
        fit(data, tmp_path, random_state=np.random.RandomState(4))


def test_other_names_of_the_classes_are_another_run(data, half_done):
    with pytest.raises(CheckpointError, match=r"another run: classes was \[0, 1, 2\] \w+ and is now \['a', 'b', 'c'\]"):
        fit((data[0], np.array(["a", "b", "c"])[data[1]]), half_done)


def test_hashing_is_fast_and_makes_no_copy():
    images = np.zeros((50_000, 32, 32, 3), "uint8")  # CIFAR-10: 154 MB
    tracemalloc.start()
    try:
        start = time.process_time()
        resume.fingerprint(images)
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 2 and peak < 1e6


def test_checkpoints_of_earlier_versions_are_refused(data, half_done):
    """They say of their data only what 64 rows were."""
    for path in files_in(half_done):
        arrays, info = read_safetensors(path)
        info["run"]["data"] = info["run"].pop(resume.DATA)
        write_safetensors(path, arrays, info)
    with pytest.raises(CheckpointError, match=r"do not say what its images and labels .*another version of TinyBitViT"):
        fit(data, half_done)
    for path in files_in(half_done):
        arrays, info = read_safetensors(path)
        del info["run"][resume.KIND], info["run"]["classes"]
        write_safetensors(path, arrays, info)
    with pytest.raises(CheckpointError, match=r"do not say what the kind of run was: .* go on with that version"):
        fit(data, half_done)


def test_another_kind_of_run_is_called_that(data, half_done):
    """Whole files: nobody is told to delete them."""
    teacher = fit(data, bits=32)
    with pytest.raises(CheckpointError, match=r"the kind of run was fit and is now tb.quantize; give what it was"):
        tb.quantize(teacher, data[0], verbose=0, checkpoint=half_done, resume=True)
    folder = half_done / "rounding"
    tb.quantize(teacher, data[0], verbose=0, checkpoint=folder)
    with pytest.raises(CheckpointError, match=r"the kind of run was tb.quantize and is now fit; give what it was"):
        fit(data, folder)
    for change in ({"activation_bits": 4}, {"augment": "crop:1"}):
        before = teacher.get_params()
        with pytest.raises(CheckpointError, match=f"{next(iter(change))} was .* and is now"):
            tb.quantize(teacher.set_params(**change), data[0], verbose=0, checkpoint=folder, resume=True)
        teacher.set_params(**before)
    tb.quantize(teacher, data[0], verbose=0, checkpoint=folder, resume=True)


def test_a_newer_format_is_no_damage(data, half_done, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("tinybitvit.files.VERSION", 2)
        for path in files_in(half_done):
            write_safetensors(path, *read_safetensors_of(1, path, newer))
    with pytest.raises(CheckpointError, match=r"can be read: .*00007.* has format version 2, and .* install") as error:
        fit(data, half_done)
    assert "delete" not in str(error.value)


def read_safetensors_of(version, path, patch):
    with patch.context() as old:
        old.setattr("tinybitvit.files.VERSION", version)
        return read_safetensors(path)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, EARLY], ids=str)
@pytest.mark.parametrize("at", [1, 4, 5, 7])
def test_ctrl_c_saves_a_checkpoint(at, options, data, monkeypatch, tmp_path, capsys):
    cut(monkeypatch, at, KeyboardInterrupt)
    model = fit(data, tmp_path, {"every": 3600}, **options, verbose=1)
    assert model.interrupted_ and [path.name for path in files_in(tmp_path)] == [f"checkpoint-{at:09}.safetensors"]
    assert f"resume goes on from {tmp_path}" in capsys.readouterr().out
    monkeypatch.setattr(Run, "count", original)
    model = fit(data, tmp_path, {"every": 3600}, **options)
    assert not model.interrupted_ and result(model) == result(fit(data, **options))


def test_ctrl_c_waits_for_the_end_of_an_update(data, monkeypatch, tmp_path):
    """A real signal between two halves of an update: no half of it is saved."""
    step = tb.optim.AdamW.update
    updates = iter(range(1000))

    def interrupted(self, *arguments):
        step(self, *arguments)
        if next(updates) == 13:  # three parameter groups, so one update calls this three times
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(tb.optim.AdamW, "update", interrupted)
    model = fit(data, tmp_path, {"every": 3600})
    assert model.interrupted_ and files_in(tmp_path)[0].name == "checkpoint-000000005.safetensors"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert result(fit(data, tmp_path)) == result(fit(data))


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


def train_and_get_killed(folder, kills, seed):
    """Fork runs that save after every update, kill each at a random moment; all files must be whole, all bits the same.

    Returns how many runs were finished meanwhile, and how many were killed while they were writing.
    """
    data, delays = make_data(), random.Random(seed)
    expected, finished, writing = result(fit(data)), 0, 0
    while kills:
        child = os.fork()
        if not child:
            same = result(fit(data, folder)) == expected
            os._exit(0 if same else 1)
        time.sleep(delays.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"other weights, or an error: {status}"
        for path in folder.glob("*.safetensors"):
            read_safetensors(path)
        writing += any(folder.glob("*.part"))
        if status == 0:
            finished += 1
            resume.delete_checkpoints(folder)
        else:
            kills -= 1
    assert result(fit(data, folder)) == expected
    assert len(files_in(folder)) <= resume.KEPT, "what a killed run had begun to write is gone"
    return finished, writing


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills, tmp_path):
    """In a process of its own, because this one has threads, which a fork would not take along."""
    script = "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:4]; import test_resume as t;"
    script += "print(*t.train_and_get_killed(Path(sys.argv[4]), int(sys.argv[5]), 1))"
    paths = Path(__file__).parent, ROOT / "tests" / "support", ROOT
    command = [sys.executable, "-c", script, *map(str, paths), str(tmp_path / "c"), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 6 * kills)
    assert done.returncode == 0, done.stderr
    print(f"{kills} kills: runs finished, killed while writing:", done.stdout)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def half_done(data, monkeypatch, tmp_path):
    """A folder with the checkpoints of updates 6 and 7."""
    cut(monkeypatch, 8)
    with pytest.raises(Cut):
        fit(data, tmp_path)
    monkeypatch.setattr(Run, "count", original)
    return tmp_path


def damage(path):
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)


def test_a_damaged_newest_one_falls_back_to_the_one_before(data, half_done, capsys):
    damage(files_in(half_done)[1])
    assert result(fit(data, half_done)) == result(fit(data))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "000000007.safetensors is damaged" in out
    assert out.endswith("): trying the checkpoint before it\n")


def test_the_damaged_one_does_not_push_out_a_good_one(data, half_done, monkeypatch):
    """Its number is the highest, but of the last two good files none may go for it."""
    files_in(half_done)[1].rename(half_done / "checkpoint-000000099.safetensors")
    damage(half_done / "checkpoint-000000099.safetensors")
    cut(monkeypatch, 3)
    with pytest.raises(Cut):
        fit(data, half_done)
    assert [int(path.stem[-9:]) for path in files_in(half_done)] == [7, 8]


def test_nothing_whole_is_left(data, half_done):
    for path in files_in(half_done):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: delete the folder and start anew"):
        fit(data, half_done)


def test_a_model_file_is_no_checkpoint(data, half_done, capsys):
    fit(data).save(half_done / "checkpoint-000000999.safetensors")
    assert result(fit(data, half_done)) == result(fit(data))
    assert "is no checkpoint of a training run" in capsys.readouterr().out


def test_a_checkpoint_that_does_not_fit(data, half_done):
    path = files_in(half_done)[1]
    arrays, info = read_safetensors(path)
    for change in ({"optimizer": {}}, {"done": None, "rng": 3}, {"history": {}}):
        write_safetensors(path, arrays, {**info, **change})
        with pytest.raises(CheckpointError, match=r"does not fit this model .*choose another folder"):
            fit(data, half_done)
    arrays.pop("model.head.bias")
    write_safetensors(path, arrays, info)
    with pytest.raises(CheckpointError, match=r"does not fit this model .*head.bias is missing"):
        fit(data, half_done)
    model = fit(data, epochs=1)
    before = result(model)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        model.set_params(epochs=TINY["epochs"]).fit(*data, checkpoint=half_done, resume=True, every=0)
    assert result(model) == before, "a refused resume leaves the old model"


def test_another_run_is_refused(data, half_done):
    X, y = data
    with pytest.raises(CheckpointError, match=r"another run: epochs was 3 and is now 4; give what it was, or choose"):
        fit(data, half_done, epochs=4)
    with pytest.raises(CheckpointError, match=r"augment was 'shift:1' and is now half_done"):
        fit(data, half_done, augment=half_done_augment)
    for other in ((X, (y + 1) % 3), (X * 2, y), (X[:60], y[:60])):
        with pytest.raises(CheckpointError, match="another run: it had other data"):
            fit(other, half_done)
    with pytest.raises(ValueError, match="holds the checkpoints of a run: resume it, choose another folder, or"):
        fit(data, half_done, {"resume": False})
    assert result(fit(data, half_done, workers=1, device="cpu")) == result(fit(data)), "these may be others"


def half_done_augment(X, rng):
    return X


half_done_augment.__qualname__ = "half_done"


@pytest.mark.parametrize("every", [-1, "minute", None, float("nan")])
def test_impossible_intervals(every, data, tmp_path):
    with pytest.raises(ValueError, match="every must be a number of seconds from 0, or 'epoch'"):
        fit(data, tmp_path / "new", {"every": every})
    assert not (tmp_path / "new").exists()


def test_how_often(data, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, run: saved.append(run.trainer.optimizer.steps))
    fit(data, tmp_path, {"every": "epoch"})
    assert saved == [5, 10, 15]
    fit(data, tmp_path, {"every": 3600})
    assert saved == [5, 10, 15]
    fit(data, tmp_path, {"every": 0})
    assert saved[3:] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, 13, 14, 15, 15]


# --- study and train --------------------------------------------------------------------------------------------------

SMALL = {"dim": 8, "depth": 1, "heads": 2, "epochs": 2, "train_size": 60, "test_size": 40}


def comparable(results):
    models = [
        {k: v for k, v in model.items() if k not in ("seconds", "history", "bytes")} for model in results["models"]
    ]
    return models, [model["history"]["loss"] for model in results["models"]]


@pytest.mark.parametrize("at", [1, 3])
def test_study_goes_on(at, monkeypatch, tmp_path):
    """Cut in the first model, and in the second one."""
    monkeypatch.setattr("tinybitvit.study.pictures.figures", lambda *arguments: [])
    cut(monkeypatch, at, KeyboardInterrupt)
    first = study.run_study("digits", [32, 1], out=tmp_path / "a", **SMALL)
    assert first["interrupted"]
    monkeypatch.setattr(Run, "count", original)
    with pytest.raises(ValueError, match="holds an unfinished study: resume it, or delete"):
        study.run_study("digits", [32, 1], out=tmp_path / "a", **SMALL)
    resumed = study.run_study("digits", [32, 1], out=tmp_path / "a", resume=True, **SMALL)
    assert not resumed["interrupted"] and not list((tmp_path / "a").glob("checkpoint*"))
    assert comparable(resumed) == comparable(study.run_study("digits", [32, 1], out=tmp_path / "b", **SMALL))


def test_train_goes_on(monkeypatch, tmp_path, capsys):
    from tinybitvit.cli import main as cli

    options = ["--dim=8", "--depth=1", "--heads=2", "--epochs=2", "--train-size=90", "--test-size=40"]

    def train(name, *more):
        return cli.main(["train", "digits", *options, "--out", str(tmp_path / f"{name}.safetensors"), *more])

    cut(monkeypatch, 3, KeyboardInterrupt)
    assert train("a") == 130
    monkeypatch.setattr(Run, "count", original)
    assert train("a") == 2 and "a.checkpoints holds the checkpoints of a run: resume it" in capsys.readouterr().err
    assert train("a", "--resume") == 0 and train("b") == 0
    assert [path.name for path in files_in(tmp_path)] == ["a.safetensors", "b.safetensors"]
    a, b = (tb.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert result(a) == result(b)
