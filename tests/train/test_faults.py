"""What a training survives: full disks, failing workers, diverging losses, too little memory, many steps."""

import errno
import gc
import os
import resource
import shutil
import tempfile
import threading
from contextlib import suppress

import numpy as np
import pytest
from sequential import Sequential
from test_io import mutate
from test_resume import Cut, cut, damage, files_in, fit, make_data, original, result

from tinybitvit import ViT, load, nn
from tinybitvit import functional as F
from tinybitvit.files import CheckpointError
from tinybitvit.optim import SGD
from tinybitvit.train import Checkpoints, Run, Trainer


@pytest.fixture(scope="module")
def data():
    return make_data()


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_full_disk_does_not_end_a_training(data, monkeypatch, tmp_path, capsys):
    """From the sixth write on there is no space, and then there is again."""
    fsync, calls = os.fsync, iter(range(1, 1000))

    def full(descriptor):
        if 6 <= next(calls) <= 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    kept = []
    count = Run.count

    def watch(self, **sums):
        kept.append([int(path.stem[-9:]) for path in files_in(tmp_path)])
        count(self, **sums)

    monkeypatch.setattr(Run, "count", watch)
    assert result(fit(data, tmp_path)) == result(fit(data))
    assert kept[8] == [4, 5] and kept[14] == [13, 14], "the last two that could be written, and then the new ones"
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and all("no checkpoint saved, the training goes on: cannot write" in line for line in out)


def test_a_file_that_may_not_grow(data, tmp_path, capsys):
    """A real limit of the operating system, met in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        model = fit(data, tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_in(tmp_path / "c") == [] and result(model) == result(fit(data))
    assert "File too large" in capsys.readouterr().out


def test_a_folder_that_vanishes(data, monkeypatch, tmp_path):
    counted = iter(range(100))
    count = Run.count

    def vanish(self, **sums):
        if next(counted) == 7:
            shutil.rmtree(tmp_path / "c")
        count(self, **sums)

    monkeypatch.setattr(Run, "count", vanish)
    assert result(fit(data, tmp_path / "c")) == result(fit(data))
    assert len(files_in(tmp_path / "c")) == 2


def no_training(*arguments):
    raise AssertionError("trained before it was known that nothing can be written")


def test_folders_that_cannot_be_written_are_refused_first(data, monkeypatch, tmp_path):
    monkeypatch.setattr(Trainer, "step", no_training)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot save checkpoints in .*: Not a directory; choose another folder"):
            fit(data, folder)

    def read_only(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)  # the tests may be run by root, who may write anywhere
    with pytest.raises(OSError, match="Read-only file system; choose another folder"):
        fit(data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_read_only_folder(data, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"cannot save checkpoints in .*: Permission denied"):
        fit(data, tmp_path)


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_checkpoints(count, data, monkeypatch, tmp_path, rng):
    """The newest file damaged in any way: the one before it is taken, or it is still the same."""
    cut(monkeypatch, 8)
    with pytest.raises(Cut):
        fit(data, tmp_path)
    monkeypatch.setattr(Run, "count", original)
    older, newest = files_in(tmp_path)
    raw = newest.read_bytes()
    whole = Checkpoints(tmp_path, resume=True).saved
    damage(newest)
    before = Checkpoints(tmp_path, resume=True).saved
    fell_back = 0
    for _ in range(count):
        newest.write_bytes(mutate(raw, rng))
        arrays, info = Checkpoints(tmp_path, resume=True).saved
        expected = before if info["optimizer"]["steps"] == 6 else whole
        fell_back += expected is before
        assert info == expected[1] and all((arrays[n] == a).all() for n, a in expected[0].items())
    assert fell_back > 0.9 * count
    older.write_bytes(raw[:100])
    newest.write_bytes(raw[:100])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        Checkpoints(tmp_path, resume=True)


# --- the training -----------------------------------------------------------------------------------------------------


def test_an_error_in_the_loaders_thread_costs_one_step(data, monkeypatch, tmp_path):
    """It arrives as it is, no thread is left, and the checkpoint before it serves."""
    calls = iter(range(1000))

    def augment(X, rng):
        if next(calls) == 8:
            raise LookupError("a picture of 9 x 9 pixels")
        return X + rng.random((*X.shape[:1], 1, 1, 1), dtype="float32")

    before = threading.active_count()
    with pytest.raises(LookupError, match="9 x 9"):
        fit(data, tmp_path, augment=augment)
    gc.collect()
    assert threading.active_count() == before
    assert files_in(tmp_path)[-1].name == "checkpoint-000000008.safetensors"
    resumed = fit(data, tmp_path, augment=augment)
    assert result(resumed) == result(fit(data, augment=augment))


class Overflow(nn.Module):
    """Passes numbers on, but one."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x if self.value is None else x * self.value


class Chain(nn.Module):
    def __init__(self, first=None, second=None):
        super().__init__()
        self.body = Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)), Overflow(first))
        self.head = Overflow(second)

    def forward(self, x):
        return self.head(self.body(x)) * 1.0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the overflow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (Chain(np.inf), r"body\.layers\.1"),
        (Chain(None, np.nan), "head"),
        (Chain(1e30, 1e30), "head"),
        (Chain(), "the loss function"),
    ],
    ids=["inf", "nan", "overflow", "loss"],
)
def test_a_loss_that_is_not_finite_names_the_layer(model, layer, workers, rng):
    def loss(output, y):
        return F.cross_entropy(output, y) * (np.nan if layer == "the loss function" else 1.0)

    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), loss, workers)
    x, y = rng.standard_normal((6, 4)).astype("float32"), np.array([0, 1, 2, 0, 1, 2])
    expected = rf"became (nan|inf) at update 1, first in {layer}; the weights are as before: lower the learning rate"
    with pytest.raises(FloatingPointError, match=expected):
        trainer.step(x, y)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.has_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverging_vit_names_a_layer_and_keeps_its_checkpoint(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"first in (blocks\.0|embed|norm|head)"):
        fit(data, tmp_path, lr=1e25, bits=32)
    assert files_in(tmp_path), "from before the loss was lost"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_updates_whose_loss_is_not_finite_can_be_skipped(data, capsys):
    """The bad batches leave no trace in weights, moments and history, and they are counted."""
    X, y = data
    bad, calls = {3, 4, 9}, iter(range(10**6))

    def spoil(X, rng):
        return X * np.inf if next(calls) in bad else X

    model = ViT(dim=8, depth=1, heads=2, epochs=3, batch_size=16, augment=spoil, on_nan="skip", random_state=0)
    model.fit(X, y)
    assert np.isfinite(model.history_["loss"]).all() and np.isfinite(model.decision_function(X)).all()
    skipped = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert sum(int(line.split()[0]) for line in skipped) == 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_epoch_without_an_update_has_no_loss(data, monkeypatch, tmp_path, capsys):
    """None in the history, not 0.0, which a file can hold; checkpoints go on."""
    X, y = data
    calls = iter(range(10**6))

    def spoil(X, rng):
        return X * np.inf if 6 <= next(calls) < 12 else X  # the second of three epochs

    model = ViT(dim=8, depth=1, heads=2, epochs=3, batch_size=16, augment=spoil, on_nan="skip", random_state=0)
    monkeypatch.setattr("tinybitvit.train.loop.evaluate", lambda *given: {"loss": np.inf, "accuracy": 0.5})
    model.fit(X, y, eval_set=(X, y), checkpoint=tmp_path / "c", every="epoch")
    for name in ("loss", "accuracy"):
        before, none, after = model.history_[name]
        assert none is None and before and after
    assert model.history_["val_loss"] == [None] * 3 and model.history_["val_accuracy"] == [0.5] * 3
    assert [int(path.stem[-9:]) for path in files_in(tmp_path / "c")] == [6, 12]
    assert "no checkpoint saved" not in (told := capsys.readouterr().out) and "epoch 2/3  loss –" in told
    model.save(tmp_path / "m")
    assert load(tmp_path / "m").history_ == model.history_


@pytest.mark.parametrize("weight", [1e-30, 1e-14, 1, 1e30])
def test_loss_and_accuracy_do_not_depend_on_the_size_of_weights(weight, data):
    one, other = (fit(data, None, {"sample_weight": np.full(90, w)}, epochs=2) for w in (1, weight))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(other.history_[name], one.history_[name], rtol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError, FloatingPointError, KeyboardInterrupt, SystemExit])
def test_early_stopping_goes_back_to_the_best_weights_whatever_ends_it(error, data):
    X, y = data
    calls = iter(range(10**6))

    def break_off(X, rng):
        if (call := next(calls)) == 62:
            raise error("broken off")
        return rng.random(X.shape, dtype="float32") if call > 40 else X  # the last epochs unlearn

    model = ViT(dim=8, depth=1, heads=2, epochs=30, batch_size=20, lr=0.05, early_stopping=True, patience=30, verbose=0)
    with suppress(error):
        model.set_params(random_state=0, augment=break_off).fit(X, y, eval_set=(X, y))
    assert model.interrupted_ and len(model.history_["loss"]) < 30
    assert model.score(X, y) == max(model.history_["val_accuracy"]) > model.history_["val_accuracy"][-1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_skipping_ends_where_nothing_else_is_left(rng):
    model = nn.Linear(4, 3, rng=rng)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), on_nan="skip")
    x, y, before = rng.standard_normal((6, 4)), np.arange(6) % 3, model.weight.data.copy()
    for _ in range(10):
        assert np.isnan(trainer.step(x * np.nan, y))
    trainer.step(x, y)  # a good one starts the count anew
    assert (model.weight.data != before).any()
    for _ in range(10):
        trainer.step(x * np.nan, y)
    with pytest.raises(FloatingPointError, match="loss became nan"):
        trainer.step(x * np.nan, y)
    with pytest.raises(ValueError, match="on_nan must be 'stop' or 'skip', not 'ignore'"):
        Trainer(model, on_nan="ignore")


@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_memory_says_what_to_lower(workers, rng):
    """NumPy's own error, with its size, from any worker."""

    def loss(output, y):
        if 5 in y.data:
            np.empty((1 << 30, 1 << 20))
        return F.cross_entropy(output, y)

    model = nn.Linear(4, 6)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), loss, workers)
    for bad in range(4):
        y = np.arange(4)
        y[bad] = 5
        with pytest.raises(MemoryError, match=r"for 4 images at once \(Unable to allocate 8.00 PiB .*lower batch_size"):
            trainer.step(rng.standard_normal((4, 4)).astype("float32"), y)


def test_a_model_too_large_says_what_to_lower(data):
    with pytest.raises(MemoryError, match=r"memory for the model \(Unable to allocate .*\): .* smaller \(dim, depth"):
        fit(data, dim=1 << 21)


# --- for long, and side by side ---------------------------------------------------------------------------------------


def test_two_fits_in_two_threads_give_what_each_gives_alone(data, tmp_path):
    options = ({"bits": 32, "workers": 2}, {"bits": 1, **{"early_stopping": True, "epochs": 4}})
    alone, together = [result(fit(data, **o)) for o in options], [None, None]
    start = threading.Barrier(2)

    def work(i):
        start.wait(10)
        together[i] = result(fit(data, tmp_path / str(i), **options[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert together == alone


def resident():
    """Bytes of memory that the operating system has given to this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="counts memory and files by Linux's /proc")
@pytest.mark.parametrize("epochs", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_long_training_grows_by_nothing(epochs, data, tmp_path):
    """Five steps an epoch, 10,000 in all, with checkpoints: memory, threads and open files stay as they were."""
    seen, calls, warm = [], iter(range(1_000_000)), 5 * epochs // 4

    def augment(X, rng):
        if (call := next(calls)) == warm or call == 5 * epochs - 1:
            gc.collect()
            seen.append((resident(), threading.active_count(), len(os.listdir("/proc/self/fd"))))
        return X

    fit(data, tmp_path, {"every": 0.2}, epochs=epochs, augment=augment)
    (memory, threads, handles), (memory_then, threads_then, handles_then) = seen
    print(f"{5 * epochs} steps: {memory / 1e6:.1f} MB, then {memory_then / 1e6:.1f} MB")
    assert memory_then < 1.02 * memory
    assert threads_then <= threads and handles_then <= handles + 1
