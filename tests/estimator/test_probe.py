"""tb.probe: the features of one network, a head for other classes."""

import numpy as np
import pytest
import torch
from devices import each_device
from sklearn.linear_model import LogisticRegression

import tinybitvit as tb
from tinybitvit.quant.quantizer import Ternary

TINY = {"dim": 16, "depth": 2, "heads": 2, "epochs": 4, "lr": 1e-2, "batch_size": 30, "verbose": 0, "random_state": 0}


class Wide(Ternary):
    """A quantiser that only this test knows: its zeros reach to 0.8 of the scale."""

    def codes(self, xp, w):
        scale = self.size(xp, w)
        return xp.where(xp.abs(w) > 0.8 * scale, xp.sign(w), 0), scale


@pytest.fixture(scope="module")
def data():
    """120 grey 6 x 6 images of four classes: two places of a bright bar, in two directions."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 4
    X = rng.random((120, 6, 6, 1)).astype(np.float32)
    for k in range(2):
        X[y == k, 3 * k : 3 * k + 2] += 1
        X[y == 2 + k, :, 3 * k : 3 * k + 2] += 1
    return X, y


def fitted(data, **options):
    return tb.ViT(**{**TINY, **options}).fit(*data)


@each_device
@pytest.mark.parametrize("bits", [32, 1.58, 1])
def test_the_head_is_the_logistic_regression_of_the_features(bits, data, device):
    X, y = data
    source = fitted((X, y // 2), bits=bits, device=device)
    probed = tb.probe(source, X, y, C=30.0, device=device)
    z = source.features(X)
    np.testing.assert_array_equal(probed.features(X), z)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    expected = LogisticRegression(C=30.0 / len(z), max_iter=1000).fit(z, y).decision_function(z)
    np.testing.assert_allclose(probed.decision_function(X), expected, atol=2e-3)
    assert probed.bits == bits and probed.score(X, y) > 0.9
    # A minimum of what the docstring says, by torch: no gradient is left.
    w = torch.tensor(probed.model_.head.weight.numpy() * source.features(X).std(axis=0), requires_grad=True)
    bias = torch.tensor(expected.mean(axis=0) - (z @ w.detach().numpy().T).mean(axis=0), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(torch.tensor(z) @ w.T + bias.float(), torch.tensor(y))
    (loss + (w**2).sum() / 60.0).backward()
    assert w.grad.abs().max() < 2e-3 and bias.grad.abs().max() < 2e-3


def test_two_classes_and_weights_of_classes(data):
    X, y = data
    source = fitted(data)
    keep = (y < 2) & (np.arange(120) < 90) | (y == 0)
    found = {}
    for weight in (None, "balanced"):
        probed = tb.probe(source, X[keep], np.array(["a", "b"])[y[keep]], class_weight=weight)
        assert probed.classes_.tolist() == ["a", "b"]
        z = source.features(X[keep])
        z = (z - z.mean(axis=0)) / z.std(axis=0)
        reference = LogisticRegression(C=150 / len(z), max_iter=1000, class_weight=weight).fit(z, y[keep])
        found[weight] = probed.predict_proba(X[keep])
        np.testing.assert_allclose(found[weight], reference.predict_proba(z), atol=2e-3)
    assert np.abs(found[None] - found["balanced"]).max() > 1e-3


def test_features_leave_the_model_as_it_was(data):
    X, _ = data
    model = fitted(data)
    before = model.decision_function(X)
    z = model.features(X[..., 0])
    assert z.shape == (120, 16) and z.dtype == np.float32
    head = model.model_.head
    np.testing.assert_allclose(z @ head.weight.numpy().T + head.bias.numpy(), before, atol=1e-5)
    with pytest.raises(ValueError, match="resize or crop the images"):
        model.features(X[:, :5])
    np.testing.assert_array_equal(model.decision_function(X), before)


@pytest.mark.parametrize(
    "kind",
    ["packed", "network", "own quantiser", "floats between", "4 bits between", "one scale", "network of its own"],
)
def test_every_source_keeps_its_blocks(kind, data, tmp_path):
    X, y = data
    options = {
        "own quantiser": {"quantizer": Wide()},
        "floats between": {"bits": 1, "activation_bits": None},
        "4 bits between": {"bits": 1, "activation_bits": 4},
        "network of its own": {"quantizer": Wide()},
        "one scale": {"bits": 1.58, "recipe": "paper"},
    }
    source = fitted((X, y // 2), **options.get(kind, {"bits": 1}))
    given = {"packed": source.pack(), "network": source.model_, "network of its own": source.model_}.get(kind, source)
    probed = tb.probe(given, X, y)
    ours, theirs = (m.model_.blocks[1].mlp.fc1.codes()[0] for m in (probed, source))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(probed.features(X), source.features(X), atol=1e-4)
    if "own" not in kind:
        probed.save(tmp_path / "probed.safetensors")
        loaded = tb.load(tmp_path / "probed.safetensors")
        np.testing.assert_array_equal(loaded.predict(X), probed.predict(X))


def test_a_training_starts_from_the_probe(data):
    X, y = data
    probed = tb.probe(fitted((X, y // 2), bits=32), X, y)
    assert probed.epochs == tb.ViT().epochs  # it can be fitted again
    started = tb.ViT(bits=32, init_from=probed, epochs=0, verbose=0).fit(X, y)
    np.testing.assert_array_equal(started.decision_function(X), probed.decision_function(X))


def test_what_a_probe_refuses(data):
    X, y = data
    source = fitted(data)
    for other in (np.repeat(X, 3, axis=-1), np.repeat(X, 2, axis=1)):
        with pytest.raises(ValueError, match=r"takes images of another shape than .*: its embed\.\S+ does not fit"):
            tb.probe(source, other, y)
    with pytest.raises(ValueError, match="C must"):
        tb.probe(source, X, y, C=0)
    with pytest.raises(ValueError, match="init_from"):
        tb.probe(3, X, y)
