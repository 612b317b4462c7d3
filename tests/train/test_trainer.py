"""Trainer: a step on several threads is torch's step on the whole batch, and it always gives the same bits."""

import gc
import hashlib
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_reference as reference
from devices import fetch, slack
from threadpoolctl import threadpool_info, threadpool_limits
from torch_reference import assert_close, copy_weights, randomize

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.models import VisionTransformer
from tinybitvit.nn import Linear
from tinybitvit.optim import SGD, AdamW, decay_groups, one_after_another
from tinybitvit.tensor import apply
from tinybitvit.train import Trainer, single_threaded_blas

WORKERS = pytest.mark.parametrize("workers", [1, 2, 3])
WORKERS_AND_DEVICES = pytest.mark.parametrize(
    ("workers", "device"),
    [(1, "cpu"), (2, "cpu"), (3, "cpu"), (2, "simulated"), pytest.param(1, "cuda", marks=pytest.mark.gpu)],
    indirect=["device"],
)
CONFIG = {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 12, "depth": 1, "heads": 2, "mlp_ratio": 2}


def network(seed=1, dtype="float32", device="cpu", **options):
    """A small Vision Transformer whose weights depend on the seed alone."""
    rng = np.random.default_rng(seed)
    return randomize(VisionTransformer(**CONFIG | options, rng=rng), rng, dtype).to(device)


def batch(rng, n=13, dtype="float32"):
    """13 rows: no number of workers from 2 up divides it."""
    return rng.standard_normal((n, 8, 8, 3)).astype(dtype), rng.integers(0, 5, n)


def weights_of(model):
    return {name: fetch(p.data.copy()) for name, p in model.named_parameters()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def trained(workers, steps=4, seed=7, dropout=0.0, rng=3, **options):
    """Weights of a fresh network after a few steps; everything follows from the arguments."""
    model, data = network(dropout=dropout, **options), np.random.default_rng(seed)
    trainer = Trainer(model, AdamW(model.parameters(), lr=0.01), workers=workers, max_norm=1.0, rng=rng)
    losses = [trainer.step(*batch(data)) for _ in range(steps)]
    return weights_of(model) | {"losses": np.array(losses)}


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def three_blas_threads():
    """A number of BLAS threads that is neither 1 nor the default of this machine."""
    with threadpool_limits(3, user_api="blas"):
        assert set(blas_threads()) == {3}
        yield


# --- against torch ----------------------------------------------------------------------------------------------------


def torch_step(theirs, optimizer, x, y, weight=None, max_norm=None):
    """One whole-batch update; the loss before it."""
    losses = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y), reduction="none")
    if weight is None:
        loss = losses.mean()
    else:
        loss = (losses * torch.tensor(weight)).sum() / weight.sum()
    optimizer.zero_grad()
    loss.backward()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    optimizer.step()
    return loss.item()


def assert_equal_training(trainer, theirs, optimizer, batches, tolerance, max_norm=None):
    for step, (x, y, weight) in enumerate(batches):
        loss = trainer.step(x, y, weight)
        expected = torch_step(theirs, optimizer, x, y, weight, max_norm)
        allowed = 10 * tolerance * slack(trainer.device)
        assert isinstance(loss, float) and loss == pytest.approx(expected, rel=allowed), f"loss of step {step}"
        for (name, p), t in zip(trainer.model.named_parameters(), theirs.parameters(), strict=True):
            assert p.grad is None
            assert_close(p.data, t, f"{name} after step {step}", tolerance)


def counterpart(model):
    """The torch network with the same weights, its parameters in the same order."""
    theirs = copy_weights(model, reference.VisionTransformer(**model.config))
    by_name = dict(theirs.named_parameters())
    ordered = [by_name[name] for name, _ in model.named_parameters()]
    theirs.parameters = lambda: iter(ordered)
    return theirs


@WORKERS_AND_DEVICES
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_steps_equal_whole_batch_steps_of_torch(workers, max_norm, device, rng):
    model = network(dtype="float64", device=device)
    theirs = counterpart(model)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.2, momentum=0.9), workers=workers, max_norm=max_norm)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.2, momentum=0.9)
    batches = [(*batch(rng, n, "float64"), None) for n in (13, 12, 3, 2, 1)]  # also fewer rows than workers
    assert_equal_training(trainer, theirs, optimizer, batches, 1e-9, max_norm)


@WORKERS_AND_DEVICES
@pytest.mark.parametrize("bits", [32, 1.58, 1])
def test_adamw_steps_equal_those_of_torch(workers, bits, device, rng):
    model = network(dtype="float64", bits=bits, device=device)
    theirs = counterpart(model)
    # eps 1e-3: AdamW divides by the size of the gradient, which blows rounding errors up where that is next to 0
    trainer = Trainer(model, AdamW(model.parameters(), lr=0.01, eps=1e-3), workers=workers)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, eps=1e-3)
    assert_equal_training(trainer, theirs, optimizer, [(*batch(rng, 13, "float64"), None) for _ in range(3)], 1e-9)


@WORKERS_AND_DEVICES
def test_float32_steps_equal_those_of_torch(workers, device, rng):
    model = network(device=device)
    theirs = counterpart(model)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), workers=workers)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    assert_equal_training(trainer, theirs, optimizer, [(*batch(rng), None) for _ in range(3)], 2e-4)


ROW_WEIGHTS = {
    "all kinds": lambda rng: rng.uniform(0, 3, 13),
    "some zero": lambda rng: rng.integers(0, 3, 13).astype("float64"),
    "first worker's all zero": lambda rng: np.where(np.arange(13) < 7, 0.0, 2.0),
    "last worker's all zero": lambda rng: np.where(np.arange(13) < 5, 0.5, 0.0),
    "one row only": lambda rng: np.eye(13)[6],
    "tiny": lambda rng: rng.uniform(0, 3e-200, 13),
}


@WORKERS_AND_DEVICES
@pytest.mark.parametrize("kind", ROW_WEIGHTS)
def test_weighted_steps_equal_those_of_torch(kind, workers, device, rng):
    model = network(dtype="float64", device=device)
    theirs = counterpart(model)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.2), workers=workers)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.2)
    batches = [(*batch(rng, 13, "float64"), ROW_WEIGHTS[kind](rng)) for _ in range(2)]
    assert_equal_training(trainer, theirs, optimizer, batches, 1e-9)


@WORKERS_AND_DEVICES
def test_weights_that_are_all_zero_change_nothing(workers, device, rng):
    """A batch may have drawn only rows that do not count: no NaN, no update."""
    model = network(device=device)
    before = weights_of(model)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.2), workers=workers)
    x, y = batch(rng)
    assert trainer.step(x, y, np.zeros(13)) == 0
    assert_same_bits(weights_of(model), before)


@WORKERS
def test_integer_and_float32_weights(workers, rng):
    x, y = batch(rng)
    weight = rng.integers(0, 4, 13)
    results = []
    for kind in ("int64", "float32", "float64"):
        model = network()
        Trainer(model, SGD(model.parameters(), lr=0.2), workers=workers).step(x, y, weight.astype(kind))
        results.append(weights_of(model))
    for other in results[1:]:
        for name, w in results[0].items():
            assert_close(other[name], w, name, 1e-6)


@WORKERS_AND_DEVICES
def test_probabilities_as_targets_and_another_loss(workers, device, rng):
    x, _ = batch(rng, dtype="float64")
    t = rng.dirichlet(np.ones(5), 13)

    def loss(output, target):
        return F.cross_entropy(output, target, label_smoothing=0.1)

    model = network(dtype="float64", device=device)
    theirs = counterpart(model)
    got = Trainer(model, SGD(model.parameters(), lr=0.2), loss, workers=workers).step(x, t)
    expected = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(t), label_smoothing=0.1)
    assert got == pytest.approx(expected.item(), rel=1e-12)


@WORKERS_AND_DEVICES
def test_an_optimizer_over_a_part_trains_that_part(workers, device, rng):
    """Fine-tuning the head: the rest of the network stays as it is, bit for bit."""
    model = network(dtype="float64", device=device)
    theirs, before = counterpart(model), weights_of(model)
    trainer = Trainer(model, SGD(model.head.parameters(), lr=0.2), workers=workers, max_norm=0.1)
    x, y = batch(rng, dtype="float64")
    trainer.step(x, y)
    for p in theirs.parameters():
        p.requires_grad_(False)
    for p in theirs.head.parameters():
        p.requires_grad_(True)
    head = list(theirs.head.parameters())
    torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y)).backward()
    torch.nn.utils.clip_grad_norm_(head, 0.1)
    torch.optim.SGD(head, lr=0.2).step()
    after = weights_of(model)
    assert_close(after.pop("head.weight"), head[0], "head.weight", 1e-12)
    assert_close(after.pop("head.bias"), head[1], "head.bias", 1e-12)
    assert_same_bits(after, {name: before[name] for name in after})


def test_worker_counts_agree_with_each_other(rng):
    """Another number of workers changes the last digits only: in float64 next to nothing."""
    x, y = batch(rng, 12, "float64")
    results = []
    for workers in (1, 2, 3, 5, 12, 40):
        model = network(dtype="float64")
        trainer = Trainer(model, SGD(model.parameters(), lr=0.2), workers=workers)
        for _ in range(3):
            trainer.step(x, y)
        results.append(weights_of(model))
    for other in results[1:]:
        for name, w in results[0].items():
            assert_close(other[name], w, name, 1e-11)


# --- the same bits ----------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("bits", [32, 1.58])
def test_repetition_gives_the_same_bits(workers, bits, rng):
    """Whatever ran before: other models, other random numbers, another number of BLAS threads."""
    first = trained(workers, bits=bits)
    np.random.seed(int(rng.integers(1000)))  # noqa: NPY002
    tb.manual_seed(99)
    trained(workers % 3 + 1, seed=8, bits=1)
    network(seed=2)(batch(rng)[0]).backward(np.ones((13, 5), "float32"))
    assert_same_bits(first, trained(workers, bits=bits))
    with threadpool_limits(3, user_api="blas"):
        assert_same_bits(first, trained(workers, bits=bits))


def digest(result):
    return hashlib.sha256(b"".join(result[name].tobytes() for name in sorted(result))).hexdigest()


def test_a_fresh_process_gives_the_same_bits():
    """This process has run other tests and loaded torch; a new one has not."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_trainer as t;"
        "print(t.digest(t.trained(2, bits=1.58, dropout=0.1)))"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(here), str(here.parent / "support"), str(here.parents[1])]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert fresh.stdout.strip() == digest(trained(2, bits=1.58, dropout=0.1))


@WORKERS
def test_dropout_follows_the_trainers_generator(workers):
    first = trained(workers, dropout=0.3)
    tb.manual_seed(5)  # the thread's own generator has no part in it
    assert_same_bits(first, trained(workers, dropout=0.3))
    assert_same_bits(first, trained(workers, dropout=0.3, rng=np.random.default_rng(3)))
    for other in (trained(workers, dropout=0.3, rng=4), trained(workers)):
        assert (other["head.weight"] != first["head.weight"]).any()


def test_every_shard_drops_other_elements():
    """Two workers, the same rows for both: with one mask for both, both would give the same output."""
    model = network(dropout=0.5)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.0), workers=2, rng=0)
    x, y = batch(np.random.default_rng(1), 4)
    trainer.step(np.concatenate([x, x]), np.concatenate([y, y]))
    first, second = trainer.outputs
    assert (first != second).any()
    trainer.step(np.concatenate([x, x]), np.concatenate([y, y]))
    assert (first != trainer.outputs[0]).any()  # and every step


def test_dropout_leaves_the_callers_generator_alone(rng):
    def after(steps):
        generator = tb.manual_seed(11)
        model = network(dropout=0.3)
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), workers=2, rng=1)
        for _ in range(steps):
            trainer.step(*batch(np.random.default_rng(1)))
        return generator.random()

    assert after(0) == after(3)


class Noting(AdamW):
    """Notes how much each thread updates; `alone` shares nothing out."""

    alone = False

    def step(self, spread):
        self.took = Counter()
        super().step(one_after_another if self.alone else spread)

    def update(self, xp, group, p, *rest):
        self.took[threading.get_ident()] += p.size
        super().update(xp, group, p, *rest)


def test_the_update_is_shared_out_and_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr("tinybitvit.optim.CHUNK", 50)

    def shared(workers, alone=False):
        model, data = network(), np.random.default_rng(7)
        optimizer = Noting(decay_groups(model, 0.1), lr=0.01)
        optimizer.alone = alone
        trainer = Trainer(model, optimizer, workers=workers)
        for _ in range(3):
            trainer.step(*batch(data))
        assert sum(optimizer.took.values()) == sum(p.size for p in model.parameters())
        return weights_of(model), optimizer.took

    (one, took), (other, alone) = shared(3), shared(3, alone=True)
    assert_same_bits(one, other)
    here = threading.get_ident()
    assert set(alone) == {here} == set(shared(1)[1])
    assert 0.2 < took[here] / sum(took.values()) < 0.5


# --- BLAS threads -----------------------------------------------------------------------------------------------------


def test_single_threaded_blas_nests(three_blas_threads):
    with single_threaded_blas():
        assert set(blas_threads()) == {1}
        with single_threaded_blas():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {3}
    with pytest.raises(KeyError), single_threaded_blas():
        raise KeyError
    assert set(blas_threads()) == {3}


def test_single_threaded_blas_from_overlapping_threads(three_blas_threads):
    """A enters, B enters, A leaves, B leaves: B must keep its one thread, and the last one out restores three."""
    seen, inside, a_left = {}, threading.Event(), threading.Event()

    def second():
        with single_threaded_blas():
            inside.set()
            assert a_left.wait(10)
            seen["b, after a left"] = set(blas_threads())

    with single_threaded_blas():
        b = threading.Thread(target=second)
        b.start()
        assert inside.wait(10)
    a_left.set()
    b.join(10)
    assert seen == {"b, after a left": {1}}
    assert set(blas_threads()) == {3}


@pytest.mark.parametrize("workers", [2, 3])
def test_blas_has_one_thread_during_a_step_and_its_own_number_after(workers, three_blas_threads, rng):
    seen = []

    def loss(output, y):
        seen.extend(blas_threads())
        return F.cross_entropy(output, y)

    model = network()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), loss, workers=workers)
    trainer.step(*batch(rng))
    assert set(seen) == {1} and set(blas_threads()) == {3}
    trainer.predict(batch(rng)[0])
    assert set(blas_threads()) == {3}


def test_auto_takes_one_worker_for_small_networks(rng):
    """Where a shard takes less time than handing it over, threads only cost."""
    model, threads = network(), set()

    def loss(output, y):
        threads.add(threading.current_thread().name)
        return F.cross_entropy(output, y)

    Trainer(model, SGD(model.parameters(), lr=0.1), loss).step(*batch(rng))
    assert threads == {threading.current_thread().name}


def test_every_worker_runs_at_once_also_after_a_smaller_batch(rng):
    """A first batch of two rows must not leave a pool too small for three shards."""
    model, together = network(), threading.Barrier(3)

    def loss(output, y):
        if len(y) > 1:
            together.wait(10)  # raises BrokenBarrierError unless all three are here
        return F.cross_entropy(output, y)

    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), loss, workers=3)
    for n in (2, 9):
        trainer.step(*batch(rng, n))


# --- errors -----------------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("bad_row", [0, 6, 12])
def test_an_error_in_any_worker_reaches_the_caller(bad_row, workers, three_blas_threads, rng):
    """With its message, all workers at rest, the weights untouched; and the next step is as if nothing had been."""
    x, y = batch(rng)
    model, twin = network(), network()
    trainer = Trainer(model, AdamW(model.parameters(), lr=0.01), workers=workers)
    untroubled = Trainer(twin, AdamW(twin.parameters(), lr=0.01), workers=workers)
    for t in (trainer, untroubled):
        t.step(x, y)
    before, wrong = weights_of(model), y.copy()
    wrong[bad_row] = 99
    with pytest.raises(ValueError, match=r"class numbers must lie in 0\.\.4, found .*99"):
        trainer.step(x, wrong)
    assert set(blas_threads()) == {3}
    assert_same_bits(weights_of(model), before)
    assert all(p.grad is None for p in model.parameters())
    assert trainer.step(x, y) == untroubled.step(x, y)
    assert_same_bits(weights_of(model), weights_of(twin))


def test_no_worker_runs_on_after_an_error(rng):
    """The caller's shard fails at once, the other one takes its time: step waits for it."""
    finished = threading.Event()

    def loss(output, y):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.1)
        finished.set()
        return F.cross_entropy(output, y)

    model = network()
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, SGD(model.parameters(), lr=0.1), loss, workers=2).step(*batch(rng))
    assert finished.is_set()


@WORKERS
def test_a_loss_that_is_not_finite_stops_before_the_update(workers, rng):
    model = network()
    before = weights_of(model)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), lambda output, y: output.mean() * float("nan"), workers)
    with pytest.raises(FloatingPointError, match="the loss became nan at update 1"):
        trainer.step(*batch(rng))
    assert_same_bits(weights_of(model), before)


@WORKERS
def test_a_gradient_that_is_not_finite_stops_before_the_update(workers, rng):
    """Such as that of a root at 0, where the loss itself is fine; it is noticed where the gradient is measured."""

    class NoSlope(tb.ops.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.shape, ctx.dtype = x.shape, x.dtype
            return np.zeros((), x.dtype)

        @staticmethod
        def backward(ctx, g):
            return (np.full(ctx.shape, np.nan, ctx.dtype),)

    model = network()
    before, x, y = weights_of(model), *batch(rng)
    for on_nan in ("skip", "stop"):
        options = {"workers": workers, "max_norm": 1.0, "on_nan": on_nan}
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), lambda output, y: apply(NoSlope, output), **options)
        if on_nan == "skip":
            assert trainer.step(x, y) == 0
        else:
            with pytest.raises(FloatingPointError, match="the gradient of a loss of 0 is not finite at update 1;"):
                trainer.step(x, y)
        assert_same_bits(weights_of(model), before)


@WORKERS_AND_DEVICES
def test_what_the_loss_does_not_reach_stays_and_starts_afresh_later(workers, device, rng):
    """As in torch: weight decay leaves the head alone while it has no gradient, and its first update is its first."""
    model = network(dtype="float64", device=device)
    theirs = counterpart(model)
    reach = {"head": False}

    def objective(model, x, y):
        h = model.norm(model.tokens(x))
        output = model.head(h.mean(axis=1))
        return output, F.cross_entropy(output, y) if reach["head"] else (h * h).mean()

    trainer = Trainer(model, AdamW(model.parameters(), lr=1e-2), workers=workers, objective=objective)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    x, y = batch(rng, dtype="float64")
    for update in range(6):
        reach["head"] = update >= 3
        trainer.step(x, y)
        optimizer.zero_grad()
        h = theirs.norm(theirs.embed(torch.tensor(x)))
        loss = (h * h).mean()
        if reach["head"]:
            loss = torch.nn.functional.cross_entropy(theirs.head(h.mean(dim=1)), torch.tensor(y))
        loss.backward()
        optimizer.step()
    for (name, mine), p in zip(model.named_parameters(), theirs.parameters(), strict=True):
        assert_close(mine.data, p, name, 1e-9)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "all", None])
def test_an_impossible_number_of_workers(workers):
    with pytest.raises(ValueError, match="workers must be 'auto' or a number from 1"):
        Trainer(network(), workers=workers)


def test_rows_that_do_not_match(rng):
    model = network()
    trainer, (x, y) = Trainer(model, SGD(model.parameters(), lr=0.1), workers=2), batch(rng)
    with pytest.raises(ValueError, match="x has 13 rows and y 12"):
        trainer.step(x, y[:-1])
    with pytest.raises(ValueError, match="x has 0 rows"):
        trainer.step(x[:0], y[:0])
    for n in (12, 14, 1):
        with pytest.raises(ValueError, match=f"x has 13 rows and weight {n}"):
            trainer.step(x, y, np.ones(n))


def test_a_trainer_without_an_optimizer_predicts_only(rng):
    trainer, (x, y) = Trainer(network(), workers=2), batch(rng)
    assert trainer.predict(x).shape == (13, 5)
    with pytest.raises(RuntimeError, match="without an optimizer"):
        trainer.step(x, y)


# --- predict ----------------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("n", [1, 2, 7, 13])
@pytest.mark.parametrize("batch_size", [1, 4, 13, 256])
def test_predict_is_the_model_in_batches_of_any_size(n, batch_size, workers, rng):
    model = network(dtype="float64", bits=1.58)
    x, _ = batch(rng, n, "float64")
    found = Trainer(model, workers=workers).predict(x, batch_size)
    assert isinstance(found, np.ndarray)
    assert_close(found, model(x).data, "outputs", 1e-12)


@WORKERS
def test_predict_of_no_rows_has_the_shape_of_an_empty_output(workers, rng):
    x, _ = batch(rng)
    found = Trainer(network(), workers=workers).predict(x[:0])
    assert found.shape == (0, 5) and found.dtype == "float32"


def test_predict_records_no_graph_and_touches_no_gradient(rng):
    model, recorded = network(), []
    model.head.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    Trainer(model, workers=2).predict(batch(rng)[0])
    assert recorded == [False, False] and all(p.grad is None for p in model.parameters())
    assert model(batch(rng)[0]).requires_grad  # the caller's own recording is on again


# --- threads and memory -----------------------------------------------------------------------------------------------


def worker_threads():
    return {t for t in threading.enumerate() if t.name.startswith("tinybitvit")}


def test_no_thread_outlives_its_trainer(rng):
    before = worker_threads()
    model = network()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), workers=3)
    trainer.step(*batch(rng))
    wrong = batch(rng)[0], np.full(13, 99)
    with pytest.raises(ValueError):
        trainer.step(*wrong)
    mine = worker_threads() - before
    assert 0 < len(mine) <= 2
    del trainer
    gc.collect()  # the error's traceback may still have held it
    for thread in mine:
        thread.join(10)
    assert not any(thread.is_alive() for thread in mine)


@pytest.mark.parametrize("workers", [2, 3])
def test_two_trainers_at_once_give_what_each_gives_alone(workers, three_blas_threads):
    alone = {bits: trained(workers, steps=8, dropout=0.2, bits=bits) for bits in (32, 1.58)}
    together, start = {}, threading.Barrier(2)

    def work(bits):
        start.wait(10)
        together[bits] = trained(workers, steps=8, dropout=0.2, bits=bits)

    threads = [threading.Thread(target=work, args=(bits,)) for bits in alone]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    for bits, result in alone.items():
        assert_same_bits(together[bits], result)
    assert set(blas_threads()) == {3}


def traced_memory():
    """Bytes held by Python objects, and the number of objects that only the garbage collector could free.

    Without what CPython keeps for itself: its stores of tuples and floats, which the collector empties, and the cache
    of attribute lookups. threadpoolctl puts the names of BLAS functions together anew at every call, and each of them
    stays in that cache for a while.
    """
    unreachable = gc.collect()
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # the former since Python 3.13
    clear()
    return tracemalloc.get_traced_memory()[0], unreachable


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_steps(workers, rng):
    """A step leaves nothing behind, not even in a cycle that waits for the garbage collector."""
    model = network(bits=1.58, dropout=0.1)
    trainer = Trainer(model, AdamW(model.parameters(), lr=1e-3), workers=workers, max_norm=1.0, rng=1)
    x, y = batch(rng, 4)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(20):
            trainer.step(x, y)
        before, _ = traced_memory()
        for _ in range(300):
            trainer.step(x, y)
        after, unreachable = traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert unreachable == 0, "objects in reference cycles"
    assert after - before < 5_000, f"{after - before} bytes after 300 steps"


def test_models_other_than_vision_transformers(rng):
    """Anything with parameters and a forward trains, here linear regression."""
    x = rng.standard_normal((40, 3)).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [0.5]], "float32") + 3
    model = Linear(3, 1)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.3), F.mse_loss, workers=2)
    for _ in range(100):
        loss = trainer.step(x, y)
    assert loss < 1e-8
    assert np.allclose(model.weight.data, [[1, -2, 0.5]], atol=1e-3) and np.allclose(model.bias.data, 3, atol=1e-3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_step():
    """Page faults per step, which no noise can touch: the arrays of a step must not come from the system anew."""
    code = """
import resource, sys
import numpy as np, tinybitvit as tb
model = tb.models.VisionTransformer(32, 4, dim=96, depth=3, heads=3, rng=np.random.default_rng(0))
trainer = tb.train.Trainer(model, tb.optim.AdamW(model.parameters()), workers=2)
x, y = np.zeros((64, 32, 32, 3), np.float32), np.zeros(64, int)
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    trainer.step(x, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3000  # 4 kB each; about 20,000 with the C library's defaults
