"""The parts of zoo/cifar10.py: what the network begins with, how its matrices move, and a training of a moment."""

import sys
from pathlib import Path

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.data.datasets import Dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "zoo"))
import cifar10

SHAPE = {"patch_size": 2, "dim": 32, "depth": 2, "heads": 2}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(256) % 10
    X = rng.integers(0, 80, (256, 8, 8, 3)).astype(np.uint8)
    X[np.arange(256), y // 2, 1] += 75 + 75 * (y % 2)[:, None].astype(np.uint8)
    return Dataset(X, y, X[:10], y[:10], tuple("abcdefghij"), "spots")


def fitted(data, **options):
    return tb.ViT(**SHAPE, epochs=0, random_state=0, verbose=0, **options).fit(data.X_train, data.y_train)


def test_a_step_of_muon_is_nearly_orthogonal():
    for shape in ((6, 6), (4, 12), (12, 4)):
        found = np.linalg.svd(cifar10.orthogonal(np.random.default_rng(1).normal(size=shape)), compute_uv=False)
        assert (found > 0.6).all() and (found < 1.3).all()


def test_the_network_begins_with_whitened_patches_and_attention_to_itself(data):
    model = fitted(data, bits=32)
    x = model.normalize_(data.X_train)
    cifar10.begin(model.model_, x, np.random.default_rng(0))
    tokens = model.model_.embed.patch(x).numpy().reshape(-1, 32)
    variances = np.sort(np.linalg.eigvalsh(np.cov(tokens.T)))[-12:]  # of 2 x 2 pixels of 3 colours
    assert variances.max() < 1.01 and variances.min() > 0.5
    for block in model.model_.blocks:
        q, k, v = block.attn.qkv.weight.numpy().astype(float).reshape(3, 2, 16, 32)
        proj = block.attn.proj.weight.numpy().reshape(32, 2, 16)
        assert np.trace(proj[:, 0] @ v[0] + proj[:, 1] @ v[1]) == pytest.approx(-0.4 * 32, rel=0.25)
        assert all(np.trace(a.T @ b) > 5 for a, b in zip(q, k, strict=True))


def test_positions_are_waves_of_row_and_column():
    waves = cifar10.waves(4, 8).reshape(4, 4, 8)
    assert (waves[1, :, :4] == waves[1, 0, :4]).all() and (waves[:, 2, 4:] == waves[0, 2, 4:]).all()
    assert len(np.unique(waves.reshape(16, 8), axis=0)) == 16


@pytest.mark.parametrize("bits", [32, 1])
def test_it_learns_and_goes_on_from_its_checkpoints(data, bits, tmp_path, capsys):
    rng = np.random.default_rng(2)
    goals = np.hstack([np.eye(10)[data.y_train], rng.normal(size=(256, cifar10.COMPONENTS))]).astype(np.float32)
    model = fitted(data, bits=bits)
    cifar10.learn(model, data, goals, 4, 0.5, 2e-3, 0.0, tmp_path)
    losses = model.history_["loss"]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert model.model_.head.weight.shape == (10, 32)
    again = fitted(data, bits=bits)
    cifar10.learn(again, data, goals, 4, 0.5, 2e-3, 0.0, tmp_path)
    assert (again.predict(data.X_test) == model.predict(data.X_test)).all()
    assert "epoch 4/4" in capsys.readouterr().out
