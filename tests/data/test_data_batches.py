"""What happens to images on their way to the network: normalisation, augmentation, batches."""

import json
import threading
import time
import tracemalloc

import numpy as np
import pytest

from tinybitvit.data import Loader, Normalize, cutout, make_augment, random_crop, random_flip, random_shift, transforms


def images(rng, *shape, dtype=np.uint8):
    X = rng.integers(0, 256, shape, dtype=np.uint8)
    return X if dtype == np.uint8 else (X / 255).astype(dtype)


# ---- Normalize


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_the_formula(dtype, channels, rng):
    X = images(rng, 5, 7, 6, channels, dtype=dtype)
    mean, std = rng.random(channels), rng.random(channels) + 0.1
    out = Normalize(mean, std)(X)
    unit = 255 if dtype == np.uint8 else 1
    assert out.dtype == np.float32 and out.shape == X.shape
    np.testing.assert_allclose(out, (X.astype(np.float64) / unit - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(Normalize(mean, std)(X[:, ::2, ::-1]), out[:, ::2, ::-1])  # not contiguous
    assert Normalize(mean, std)(X[:0]).shape == (0, 7, 6, channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_normalize_fit(dtype, rng):
    X = images(rng, 50, 6, 7, 3, dtype=dtype) if dtype != np.int64 else rng.integers(-9, 9, (50, 6, 7, 3))
    X[..., 1][X[..., 1] > X.max() / 2] = 0  # channels differ
    unit = 255 if dtype == np.uint8 else 1
    fitted = Normalize.fit(X)
    assert fitted.mean.dtype == fitted.std.dtype == np.float32 and fitted.mean.shape == (3,)
    np.testing.assert_allclose(fitted.mean, X.astype(np.float64).mean((0, 1, 2)) / unit, rtol=1e-6)
    np.testing.assert_allclose(fitted.std, X.astype(np.float64).std((0, 1, 2)) / unit, rtol=1e-6)
    out = fitted(X).astype(np.float64)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize_fit_over_many_blocks(dtype, rng):
    X = images(rng, 700, 32, 32, 3, dtype=dtype)  # two million values: more than one block
    X[:300][X[:300] > X.max() / 3] = 0
    unit = 255 if dtype == np.uint8 else 1
    np.testing.assert_allclose(Normalize.fit(X).mean, X.mean((0, 1, 2), dtype=np.float64) / unit, rtol=1e-6)
    np.testing.assert_allclose(Normalize.fit(X).std, X.std((0, 1, 2), dtype=np.float64) / unit, rtol=1e-6)


def test_normalize_fit_makes_no_float_copy(rng):
    X = np.tile(images(rng, 1, 64, 64, 3), (5000, 1, 1, 1))  # 61 MB
    tracemalloc.start()
    Normalize.fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 2


@pytest.mark.parametrize("value", [np.uint8(0), np.uint8(200), np.float32(0.1), np.float64(1e9)])
def test_normalize_constant_images(value):
    fitted = Normalize.fit(np.full((70, 5, 5, 3), value))
    assert fitted.std.tolist() == [1.0] * 3
    out = fitted(np.full((2, 5, 5, 3), value))
    np.testing.assert_allclose(out, 0, atol=1e-5)


def test_normalize_to_dict_is_json_and_exact(rng):
    a = Normalize(rng.random(3), rng.random(3) + 0.01)
    b = Normalize.from_dict(json.loads(json.dumps(a.to_dict())))
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.std, b.std)
    assert Normalize(0.5, 2.0).to_dict() == {"mean": [0.5], "std": [2.0]}


def test_normalize_refuses(rng):
    X = images(rng, 2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"X of shape \(2, 8, 8, 3\) has 3 channels \(the last axis\), not 2"):
        Normalize([0, 0], [1, 1])(X)
    with pytest.raises(ValueError, match=r"mean and std need one value a channel, got \(2,\) and \(1,\)"):
        Normalize([0, 0], 1)
    for std in ([0.0], [-1.0], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="finite and std above zero"):
            Normalize([0.0], std)
    with pytest.raises(ValueError, match="at least one pixel"):
        Normalize.fit(X[:0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        Normalize.fit(np.full((2, 3, 3, 1), np.nan))
    for call in (Normalize([0], [1]), Normalize.fit, lambda x: random_flip(x, rng)):
        with pytest.raises(ValueError, match=r"X must be a batch of images \(N, H, W, C\), got shape \(8, 8, 3\)"):
            call(X[0])


# ---- augmentation

AUGMENTATIONS = [
    random_flip,
    lambda X, rng: random_shift(X, rng, 2),
    lambda X, rng: random_crop(X, rng, 3),
    lambda X, rng: cutout(X, rng, 4),
]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_augmentation_contract(augment, dtype, rng):
    """New array of the same shape and dtype; X untouched; the generator's state alone decides."""
    X = images(rng, 9, 8, 6, 3, dtype=dtype)
    before = X.copy()
    X.flags.writeable = False
    out = augment(X, np.random.default_rng(1))
    assert out.shape == X.shape and out.dtype == X.dtype and not np.shares_memory(out, X) and out.flags.writeable
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(out, augment(X, np.random.default_rng(1)))
    assert not np.array_equal(out, augment(X, np.random.default_rng(2)))
    view = np.ascontiguousarray(X.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    np.testing.assert_allclose(out, augment(view, np.random.default_rng(1)), rtol=1e-5)  # cutout's mean may round
    assert augment(X[:0], rng).shape == (0, 8, 6, 3)
    assert augment(X[..., :1], np.random.default_rng(1)).shape == (9, 8, 6, 1)


def test_random_flip(rng):
    X = images(rng, 400, 3, 4, 2)
    out = random_flip(X, rng)
    same = (out == X).all((1, 2, 3))
    mirrored = (out == X[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250


@pytest.mark.parametrize(("function", "fill"), [(random_shift, "edge"), (random_crop, "constant")])
def test_shift_and_crop(function, fill, rng):
    """Every image is one of the (2 r + 1)^2 moves of itself, and every move occurs."""
    reach = 2
    X = images(rng, 300, 7, 5, 3)
    out = function(X, rng, reach)
    seen = set()
    for before, after in zip(X, out, strict=True):
        padded = np.pad(before, ((reach, reach), (reach, reach), (0, 0)), mode=fill)
        moves = {
            (dy, dx)
            for dy in range(2 * reach + 1)
            for dx in range(2 * reach + 1)
            if np.array_equal(after, padded[dy : dy + 7, dx : dx + 5])
        }
        assert len(moves) == 1
        seen |= moves
    assert len(seen) == 25
    np.testing.assert_array_equal(function(X, rng, 0), X)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        function(X, rng, -1)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout(size, rng):
    X = images(rng, 500, 9, 7, 3, dtype=np.float64)
    out = cutout(X, rng, size)
    full, centres = 0, set()
    for before, after in zip(X, out, strict=True):
        changed = (before != after).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert 1 <= len(rows) <= size and 1 <= len(columns) <= size
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert changed.sum() == len(rows) * len(columns)  # one rectangle
        np.testing.assert_allclose(after[changed], np.broadcast_to(before.mean((0, 1)), after[changed].shape))
        full += changed.sum() == size * size
        centres.add((rows[0], columns[0]))
    inside = (9 - size + 1) * (7 - size + 1) / 63
    assert abs(full / 500 - inside) < 0.1
    assert len(centres) > 0.9 * min(63, inside * 63)


@pytest.fixture
def recorded(monkeypatch):
    """Replaces every augmentation by one that records (name, arguments)."""
    calls = []

    def recorder(name):
        def record(X, rng, *amount):
            calls.append((name, *amount))
            return X

        return record

    for name, (_, share) in list(transforms.AUGMENTATIONS.items()):
        monkeypatch.setitem(transforms.AUGMENTATIONS, name, (recorder(name), share))
    return calls


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (None, (32, 32, 3), []),
        ("auto", (32, 32, 3), [("flip",), ("crop", 4)]),
        ("auto", (64, 48, 3), [("flip",), ("crop", 6)]),
        ("auto", (16, 20, 1), [("shift", 1)]),
        ("auto", (8, 8, 1), []),
        ("auto", (28, 28, 1), [("shift", 2)]),
        ("auto", (7, 40, 1), []),
        ("auto", (4, 4, 3), []),
        ("auto", (1, 1, 1), []),
        ("shift", (28, 28, 1), [("shift", 2)]),
        ("shift", (3, 3, 1), [("shift", 1)]),
        ("shift", (70, 83, 3), [("shift", 5)]),
        ("flip, crop ,cutout", (32, 32, 3), [("flip",), ("crop", 4), ("cutout", 8)]),
        ("cutout:5,shift:3,flip", (8, 8, 1), [("cutout", 5), ("shift", 3), ("flip",)]),
    ],
)
def test_make_augment(spec, shape, expected, recorded, rng):
    X = np.zeros((2, *shape), np.uint8)
    assert make_augment(spec, shape)(X, rng) is X
    assert recorded == expected


def test_make_augment_composes_the_functions(rng):
    X = images(rng, 20, 16, 16, 3)
    a, b = np.random.default_rng(7), np.random.default_rng(7)
    expected = cutout(random_shift(random_crop(random_flip(X, a), a, 2), a, 1), a, 4)
    np.testing.assert_array_equal(make_augment("flip,crop,shift,cutout", X.shape[1:])(X, b), expected)

    def own(X, rng):
        return X

    assert make_augment(own, X.shape[1:]) is own


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rotate", r"unknown augmentation 'rotate': choose from flip, shift, crop, cutout, auto or None"),
        ("flip,", r"unknown augmentation ''"),
        ("", r"unknown augmentation ''"),
        ("flip:1", r"augmentation 'flip' takes no number"),
        ("shift:0", r"augmentation 'shift:0' needs a number of pixels from 1 to 7"),
        ("crop:8", r"needs a number of pixels from 1 to 7"),
        ("cutout:x", r"augmentation 'cutout:x' needs a number"),
        ("shift:", r"augmentation 'shift:' needs a number"),
        ("shift:-1", r"augmentation 'shift:-1' needs a number"),
    ],
)
def test_make_augment_refuses(spec, message):
    with pytest.raises(ValueError, match=message):
        make_augment(spec, (8, 9, 1))


def test_make_augment_refuses_other_types():
    with pytest.raises(TypeError, match=r"augment must be None, a function or text such as 'flip,crop:4', got 5"):
        make_augment(5, (8, 8, 1))


# ---- Loader


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("tinybitvit-loader")]


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert not loader_threads()


def numbered(n, *shape):
    return np.broadcast_to(np.arange(n, dtype=np.float32).reshape(n, *[1] * len(shape)), (n, *shape)), np.arange(n)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_every_image_once(prefetch, shuffle):
    X, y = numbered(23, 4, 4, 1)
    weight = y / 2
    loader = Loader(X, y, 5, shuffle=shuffle, rng=np.random.default_rng(0), sample_weight=weight, prefetch=prefetch)
    assert len(loader) == 5
    for _ in range(2):
        batches = list(loader)
        assert [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
        seen = np.concatenate([b[1] for b in batches])
        assert sorted(seen) == list(range(23)) and (list(seen) == list(range(23))) != shuffle
        for x, labels, w in batches:
            np.testing.assert_array_equal(x, X[labels])
            np.testing.assert_array_equal(w, weight[labels])


def test_pairs_without_weights_and_drop_last():
    X, y = numbered(23, 2)
    loader = Loader(X, y, 5, rng=0, drop_last=True)
    assert len(loader) == 4 and [len(b) for b in loader] == [2, 2, 2, 2]
    assert all(len(x) == 5 for x, _ in loader)
    assert [len(x) for x, _ in Loader(X, y, 100, drop_last=False)] == [23]
    with pytest.raises(ValueError, match="23 images give no batch of 24"):
        Loader(X, y, 24, drop_last=True)


def test_prefetch_changes_no_bit(rng):
    """Also where the consumer draws from the same generator between batches."""
    X, y = images(rng, 64, 16, 16, 3), np.arange(64)
    augment, transform = make_augment("flip,crop,cutout", X.shape[1:]), Normalize.fit(X)
    results = []
    for prefetch in (0, 1, 4):
        shared = np.random.default_rng(3)
        loader = Loader(X, y, 10, rng=shared, augment=augment, transform=transform, prefetch=prefetch)
        out = []
        for _ in range(3):
            for i, (x, labels) in enumerate(loader):
                out += [x, labels, shared.random(3)]
                if i == 4:
                    break  # an abandoned epoch leaves the generator in the same state, too
        results.append(out)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert results[0][0].dtype == np.float32
    assert not np.array_equal(results[0][1], results[0][16])  # epochs differ


def test_generator_state_decides(rng):
    X, y = images(rng, 30, 8, 8, 1), np.arange(30)
    saved = np.random.default_rng(5)
    list(Loader(X, y, 8, rng=saved))
    state = saved.bit_generator.state
    later = np.concatenate([labels for _, labels in Loader(X, y, 8, rng=saved)])
    saved.bit_generator.state = state  # as after reading a checkpoint
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in Loader(X, y, 8, rng=saved)]), later)


def test_batches_are_copies(rng):
    X, y = images(rng, 8, 4, 4, 1), np.arange(8)
    for x, labels in Loader(X, y, 4, shuffle=False):
        assert not np.shares_memory(x, X) and not np.shares_memory(labels, y)


def test_next_batch_is_prepared_meanwhile():
    X, y = numbered(12, 2)
    started = threading.Semaphore(0)

    def augment(x, rng):
        started.release()
        return x

    batches = iter(Loader(X, y, 4, augment=augment, prefetch=1))
    next(batches)
    assert started.acquire(timeout=5)
    assert started.acquire(timeout=5)  # the second batch is under way and nobody has asked for it
    assert not started.acquire(timeout=0.05)  # and not more than that
    batches.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_errors_reach_the_consumer(prefetch):
    X, y = numbered(12, 2)

    def fragile(x):
        if 8 in x:
            raise RuntimeError("a broken picture")
        return x

    seen = []
    with pytest.raises(RuntimeError, match="a broken picture"):
        for _, labels in Loader(X, y, 4, shuffle=False, transform=fragile, prefetch=prefetch):
            seen += labels.tolist()
    assert seen == list(range(8)) and not loader_threads()


@pytest.mark.parametrize("how", ["break", "close", "delete", "exception", "unused"])
def test_abandoned_iterator_leaves_no_thread(how):
    X, y = numbered(1000, 2)

    def slow(x):
        time.sleep(0.005)
        return x

    loader = Loader(X, y, 2, transform=slow, prefetch=3)
    batches = iter(loader)
    if how == "break":
        for _ in batches:
            assert len(loader_threads()) == 1
            break
        del batches
    elif how == "close":
        next(batches)
        batches.close()
    elif how == "delete":
        next(batches)
        del batches
    elif how == "exception":
        try:
            for _ in loader:
                raise KeyError
        except KeyError:
            pass
    assert not loader_threads()


def test_loader_refuses():
    X, y = numbered(12, 2)
    with pytest.raises(ValueError, match=r"same length, got \[12, 11\]"):
        Loader(X, y[:11], 4)
    with pytest.raises(ValueError, match=r"same length, got \[12, 12, 3\]"):
        Loader(X, y, 4, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="0 images give no batch of 4"):
        Loader(X[:0], y[:0], 4)
    for batch_size, prefetch in ((0, 1), (4, -1)):
        with pytest.raises(ValueError, match="batch_size must be at least 1 and prefetch 0"):
            Loader(X, y, batch_size, prefetch=prefetch)


# ---- what an augmentation returns


def noise(X, rng):
    return X + rng.normal(0, 1, X.shape)


@pytest.mark.parametrize("change", [noise, lambda X, rng: X.astype(int), lambda X, rng: X.astype("float32") * 3 - 40])
def test_bytes_stay_bytes(change, rng):
    """Floats would be taken as they are, 255 times too large."""
    X = images(rng, 12, 5, 5, 1)
    (x, _) = next(iter(Loader(X, np.arange(12), 12, shuffle=False, rng=0, augment=change, transform=lambda x: x)))
    plain = change(X.astype(float), np.random.default_rng(np.random.default_rng(0).integers(2**63)))
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, np.rint(plain).clip(0, 255))


def test_floats_stay_floats(rng):
    X = rng.random((6, 5, 5, 1))
    out = transforms.augmented(X * 255, lambda X, rng: X.astype("uint8"), rng)
    assert out.dtype == np.float32
    assert transforms.augmented(X, noise, rng).dtype == np.float64
    bits = X > 0.5
    assert transforms.augmented(bits, lambda X, rng: X * 1.0, rng).dtype == np.float64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X, rng: None, r"augment must return images of the shape that it gets, \(4, 6, 6, 3\), not NoneType"),
        (lambda X, rng: X[:-1], r"augment .*not \(3, 6, 6, 3\) of uint8"),
        (lambda X, rng: X[:, ::2], r"augment .*not \(4, 3, 6, 3\) of uint8"),
        (lambda X, rng: X.astype(str), r"augment .* of <U3"),
        (lambda X, rng: X / 255, r"augment was given bytes in 0\.\.255 and returned numbers in 0\.\.1"),
        (lambda X, rng: X * np.nan, "augment must return finite pixels"),
    ],
)
def test_what_an_augmentation_may_not_return(change, words, rng):
    X = images(rng, 4, 6, 6, 3)
    with pytest.raises(ValueError, match=words):
        list(Loader(X, np.arange(4), 4, augment=change))


def test_cutout_of_bits_is_their_mean_rounded(rng):
    """White only where most of the image is white."""
    few = np.zeros((40, 8, 8, 1), bool)
    few[:, 0, 0] = True
    assert cutout(few, rng, 4).sum() <= 40
    assert cutout(~few, rng, 4).mean() >= 63 / 64


def test_normalize_fit_takes_a_list(rng):
    X = images(rng, 5, 4, 4, 1)
    np.testing.assert_array_equal(Normalize.fit(X.astype(int).tolist()).mean, Normalize.fit(X.astype(int)).mean)
