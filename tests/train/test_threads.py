"""One network in many threads, no thread at all, and questions to a network batch by batch."""

import threading
import tracemalloc

import numpy as np
import pytest
from joblib import Parallel, delayed
from test_trainer import batch, network, weights_of

import tinybitvit as tb
from tinybitvit.data import Loader
from tinybitvit.optim import SGD
from tinybitvit.train import Run, Trainer, evaluate
from tinybitvit.train.shards import Threads


def in_threads(*work):
    """Call all at once; what each returned."""
    found, start = [None] * len(work), threading.Barrier(len(work))

    def call(i):
        start.wait(10)
        found[i] = work[i]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


# --- many threads -----------------------------------------------------------------------------------------------------


def test_evaluation_mode_belongs_to_its_thread(rng):
    """While another thread evaluates, this one trains the same network; and the other way round."""
    model, inside, go_on = network(dropout=0.5), threading.Event(), threading.Event()

    def evaluate():
        with model.evaluating():
            inside.set()
            assert go_on.wait(10)
            return [m.training for m in model.modules()]

    seen = []
    thread = threading.Thread(target=lambda: seen.append(evaluate()))
    thread.start()
    assert inside.wait(10)
    assert all(m.training for m in model.modules())
    with model.blocks[0].evaluating():
        assert not model.blocks[0].drop.training and model.training
    assert all(m.training for m in model.modules())
    model.eval()
    model.train()
    go_on.set()
    thread.join(10)
    assert seen == [[False] * len(list(model.modules()))]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_network_answers_alike_in_many_threads_in_any_mode(workers, mode, rng):
    model = network(dropout=0.5, bits=1.58).train(mode)
    x, _ = batch(rng, 40)
    expected = Trainer(model, workers=workers).predict(x)
    shared = Trainer(model, workers=workers)
    for found in in_threads(*[lambda: [shared.predict(x, batch_size=3) for _ in range(5)]] * 6):
        for answer in found:
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    assert model.training is mode


def test_answers_beside_a_training_leave_its_dropout_on(rng):
    """The same bits as a training that nobody disturbed, while four threads ask the network without a pause."""

    def trained(ask):
        model, data = network(dropout=0.5), np.random.default_rng(1)
        trainer, asker, over = Trainer(model, SGD(model.parameters(), lr=0.0), rng=3), Trainer(model), threading.Event()
        x, losses = batch(data)[0], []

        def train():
            losses.extend(trainer.step(*batch(data)) for _ in range(40))
            over.set()

        def keep_asking():
            while not over.is_set():
                asker.predict(x)

        in_threads(train, *[keep_asking] * (4 if ask else 0))
        return losses

    assert trained(ask=True) == trained(ask=False)


def test_an_estimator_in_joblibs_threads(rng):
    X, y = rng.random((60, 8, 8, 1), dtype="float32"), np.arange(60) % 3
    model = tb.ViT(dim=16, depth=1, heads=2, epochs=1, verbose=0, random_state=0).fit(X, y)
    model.model_.train()
    expected = model.decision_function(X)
    for found in Parallel(n_jobs=6, backend="threading")(delayed(model.decision_function)(X) for _ in range(24)):
        np.testing.assert_array_equal(found, expected)


# --- no threads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_where_no_thread_can_start_one_does_it_all(no_threads, monkeypatch):
    """With the bits of as many shards as workers were asked for."""

    def trained():
        model, data = network(dropout=0.2), np.random.default_rng(1)
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), workers=3, rng=0)
        return [trainer.step(*batch(data)) for _ in range(3)], weights_of(model), trainer.predict(batch(data)[0])

    alone = trained()
    monkeypatch.undo()
    together = trained()
    assert alone[0] == together[0]
    for name, w in together[1].items():
        np.testing.assert_array_equal(alone[1][name], w, err_msg=name)
    np.testing.assert_array_equal(alone[2], together[2])


def test_an_estimator_without_threads(no_threads, rng):
    X, y = rng.random((40, 8, 8, 1), dtype="float32"), np.arange(40) % 2
    model = tb.ViT(dim=16, depth=1, heads=2, epochs=2, workers=2, verbose=0, random_state=0).fit(X, y)
    assert model.predict(X).shape == (40,)


def test_a_loader_without_threads_deals_the_same_batches(no_threads, monkeypatch):
    def batches():
        return list(Loader(np.arange(10.0), np.arange(10), 3, rng=0, augment=lambda x, rng: x + rng.random(len(x))))

    alone = batches()
    monkeypatch.undo()
    assert len(alone) == 4
    for (x, y), (x_too, y_too) in zip(alone, batches(), strict=True):
        np.testing.assert_array_equal(x, x_too)
        np.testing.assert_array_equal(y, y_too)


# --- batch by batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_predict_transforms_batch_by_batch(workers, rng):
    model, sizes = network(dtype="float64"), []
    x = rng.integers(0, 256, (13, 8, 8, 3)).astype("uint8")

    def transform(rows):
        sizes.append(len(rows))
        return rows / 255.0

    found = Trainer(model, workers=workers).predict(x, batch_size=np.int64(4), transform=transform)
    np.testing.assert_allclose(found, model(x / 255.0).data, rtol=1e-12, atol=1e-12)
    assert sum(sizes) == 13 and max(sizes) <= 4


def test_predict_needs_the_memory_of_a_batch():
    """Not a float32 copy of all images, which would be 49 MB."""
    X, y = np.zeros((64, 32, 32, 3), "uint8"), np.arange(64) % 2
    X[:32] += 10
    model = tb.ViT(dim=16, depth=1, heads=1, patch_size=16, epochs=1, verbose=0, workers=1, device="cpu").fit(X, y)
    many = np.zeros((4000, 32, 32, 3), "uint8")
    tracemalloc.start()
    try:
        model.predict(many)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15e6, f"{peak / 1e6:.1f} MB"


def test_the_batch_follows_the_memory_of_attention():
    def images_at_once(model):
        return Threads(1, model, "cpu").images_at_once

    small = network()
    large = tb.models.VisionTransformer(224, 8, dim=48, depth=1, heads=12)
    assert images_at_once(small) == 256
    tokens = (224 // 8) ** 2
    n = images_at_once(large)
    assert 1 <= n < 10 and n * 12 * tokens**2 * 4 <= 2**27
    assert images_at_once(tb.nn.Linear(3, 2)) == 256


def test_outputs_that_are_not_finite_are_no_answer(rng):
    x = batch(rng, 13)[0]
    x[7] = 3e38
    model = network()
    trainer = Trainer(model, workers=2)
    with pytest.raises(ValueError, match="the output for image 7 is not finite: its pixels, or the weights"):
        trainer.predict(x, batch_size=5)
    y = np.zeros(13, int)
    assert evaluate(trainer, x, y)["accuracy"] <= 12 / 13, "what is no answer is no right one either"
    model.head.bias.data[:] = np.nan
    with pytest.raises(ValueError, match="the output for image 0 is not finite"):
        trainer.predict(x[:3])
    run = Run(Trainer(model, SGD(model.parameters(), lr=0.1), on_nan="skip"), [(x[:3], y[:3])], validation=(x, y))
    history, _ = run.train(1)
    assert history["val_loss"] == [None] and history["val_accuracy"] == [0.0]


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, None])
def test_impossible_options_are_named(value):
    model = network()
    if value is not None:
        with pytest.raises(ValueError, match="batch_size must be a whole number from 1"):
            Trainer(model).predict(np.zeros((2, 8, 8, 3), "float32"), batch_size=value)
    with pytest.raises(ValueError, match="workers must be 'auto' or a number from 1"):
        Trainer(model, workers=value)
    if value not in (0, 2.5, None):
        with pytest.raises(ValueError, match="max_norm must be a number from 0"):
            Trainer(model, max_norm=value)
    if value != 0:
        with pytest.raises(ValueError, match="patience must be a whole number from 0"):
            Run(Trainer(model, SGD(model.parameters(), lr=0.1)), [], patience="three" if value is None else value)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Loader(np.zeros(4), np.zeros(4), value)


def test_numpys_numbers_are_numbers(rng):
    model = network()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), workers=np.int64(2), max_norm=np.float32(1))
    assert np.isfinite(trainer.step(*batch(rng)))
    assert len(Loader(np.zeros(10), np.zeros(10), np.int32(4), prefetch=np.int64(2))) == 3
