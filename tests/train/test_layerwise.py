"""Rounding by coordinate descent: the cost against torch, the codes against trying all, whole networks against data."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from devices import each_device
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

import tinybitvit as tb
from tinybitvit.models import VisionTransformer, start_from
from tinybitvit.quant import find_quantizer
from tinybitvit.quant.watch import low_bit_layers
from tinybitvit.train.convert import descent, layerwise

SHAPE = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2}


def problem(rng, m=5, k=12, correlated=3.0):
    """A weight, and covariances of inputs and gradients with a few large directions."""
    x, d = rng.standard_normal((200, k)), rng.standard_normal((200, m))
    x += correlated * rng.standard_normal((200, 2)) @ rng.standard_normal((2, k))
    d += correlated * rng.standard_normal((200, 1)) @ rng.standard_normal((1, m))
    return rng.standard_normal((m, k)), x.T @ x / 200, d.T @ d / 200, x, d


# --- one layer --------------------------------------------------------------------------------------------------------


def test_the_cost_is_what_torch_finds_on_samples(rng):
    weight, second, metric, x, d = problem(rng)
    effect = torch.einsum("am,mk,bk->ab", *map(torch.from_numpy, (d, weight, x)))
    np.testing.assert_allclose(descent.cost(weight, second, metric), float((effect**2).mean()) / 2, rtol=1e-10)


def test_the_best_weight_is_ridge_regression(rng):
    start, _, _, x, _ = problem(rng)
    y = rng.standard_normal((200, 5))
    second, cross = x.T @ x / 200, y.T @ x / 200
    ridge = Ridge(alpha=200 * 0.1 * np.diag(second).mean(), fit_intercept=False).fit(x, y - x @ start.T)
    np.testing.assert_allclose(descent.best_weight(second, cross, start, pull=0.1), start + ridge.coef_, rtol=1e-8)


@pytest.mark.parametrize("bits", [1, 1.58, 3])
def test_a_sweep_ends_where_no_single_code_can_be_bettered(bits, rng):
    weight, second, metric, *_ = problem(rng)
    scale = np.full((5, 1), 0.7)
    quantizer = find_quantizer(bits)
    codes = quantizer.nearest(np, weight / scale)
    costs = [descent.cost(scale * codes - weight, second, metric)]
    for _ in range(20):
        codes = descent.sweep(codes, scale, weight, second, metric, quantizer, rng)
        costs.append(descent.cost(scale * codes - weight, second, metric))
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.8 * costs[0]
    values = quantizer.levels
    assert set(codes.ravel()) <= set(values)
    for i, j, value in product(range(5), range(12), values):
        other = codes.copy()
        other[i, j] = value
        assert descent.cost(scale * other - weight, second, metric) > costs[-1] - 1e-9


@pytest.mark.parametrize("bits", [1, 1.58])
def test_one_row_comes_near_the_best_of_all_codes(bits, rng):
    """Descent ends at a local minimum: within half of the least of all costs, where nearest codes cost thrice that."""
    costs, quantizer = [], find_quantizer(bits)
    for _ in range(20):
        weight, second, _, *_ = problem(rng, m=1, k=8)
        metric, scale = np.ones((1, 1)), np.abs(weight).mean(keepdims=True)
        tries = product((-1.0, 1.0) if bits == 1 else (-1.0, 0.0, 1.0), repeat=8)
        best = min(descent.cost(scale * np.array([b]) - weight, second, metric) for b in tries)
        codes = descent.feed_forward(weight, scale, second, quantizer)
        for _ in range(3):
            codes = descent.sweep(codes, scale, weight, second, metric, quantizer, rng)
        found = [codes, quantizer.nearest(np, weight / scale)]
        costs.append([best, *(descent.cost(scale * c - weight, second, metric) for c in found)])
    best, ours, nearest = np.sum(costs, axis=0)
    assert best <= ours < 1.5 * best and nearest > 3 * best


def test_feeding_errors_forward_is_better_than_the_nearest_codes(rng):
    weight, second, *_ = problem(rng, m=40, k=64)
    scale = np.abs(weight).mean(axis=1, keepdims=True)
    signs = find_quantizer(1)
    ours, nearest = descent.feed_forward(weight, scale, second, signs), signs.nearest(np, weight)
    eye = np.eye(40)
    assert descent.cost(scale * ours - weight, second, eye) < 0.5 * descent.cost(scale * nearest - weight, second, eye)


def test_the_best_scales_have_no_gradient(rng):
    weight, second, metric, *_ = problem(rng)
    codes, start = find_quantizer(1).nearest(np, weight), np.full((5, 1), 0.01)
    scale = torch.from_numpy(descent.best_scale(codes, start, weight, second, metric)).requires_grad_()
    error = scale * torch.from_numpy(codes) - torch.from_numpy(weight)
    (torch.from_numpy(metric) @ error @ torch.from_numpy(second) * error).sum().backward()
    assert (scale > 0.003).all() and scale.grad.abs().max() < 1e-9


# --- the metric -------------------------------------------------------------------------------------------------------


def test_the_metric_is_the_hessian_of_the_divergence(rng):
    """At the last layer, of a model that reads its class token alone, against torch's Hessian in the layer's output."""
    teacher = VisionTransformer(**SHAPE, pool="cls", layer_scale=0.5, rng=rng)
    x = rng.standard_normal((4, 8, 8, 1)).astype("float32")
    metrics = layerwise.output_metrics(teacher, [x] * 400, rng, hidden=0.0)
    with tb.no_grad():
        h = teacher.tokens(x)
        h = teacher.blocks[0](h)
        h = (h + teacher.blocks[1].attention_branch(h)).numpy()[:, 0].astype("float64")
        out = teacher.blocks[1].mlp(teacher.blocks[1].norm2(tb.Tensor(h.astype("float32")))).numpy()
    gamma, norm, head = teacher.blocks[1].ls2.gamma, teacher.norm, teacher.head
    t = [torch.from_numpy(p.numpy().astype("float64")) for p in (gamma, norm.weight, norm.bias, head.weight, head.bias)]

    def divergence(y, tokens, p):
        z = torch.nn.functional.layer_norm(tokens + t[0] * y, (8,), t[1], t[2], norm.eps) @ t[3].T + t[4]
        return 4 * torch.nn.functional.kl_div(torch.log_softmax(z / 2, -1), p, reduction="sum")

    total = 0
    for y, tokens in zip(torch.from_numpy(out.astype("float64")), torch.from_numpy(h), strict=True):
        z = torch.nn.functional.layer_norm(tokens + t[0] * y, (8,), t[1], t[2], norm.eps) @ t[3].T + t[4]
        total = total + torch.autograd.functional.hessian(lambda v: divergence(v, tokens, torch.softmax(z / 2, -1)), y)  # noqa: B023
    expected = (total / total.diagonal().mean()).numpy()
    assert np.abs(expected - np.eye(8)).max() > 0.5  # or nothing would be shown
    np.testing.assert_allclose(metrics[-1], expected, atol=0.15)
    assert len(metrics) == 8 and all(abs(np.diag(m).mean() - 1) < 1e-6 for m in metrics)


# --- whole networks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = (X.reshape(-1, 8, 8, 1) * 15).astype("uint8")
    teacher = tb.ViT(bits=32, epochs=12, random_state=0, verbose=0, augment="auto", label_smoothing=0.0)
    return teacher.fit(X[:1200], y[:1200]), X[:1200], X[1200:]


def distance(student, teacher, X):
    """KL of the probabilities from the teacher's."""
    p, q = teacher.predict_proba(X), student.predict_proba(X)
    return float((p * np.log(p / q)).sum(axis=1).mean())


@pytest.fixture(scope="module")
def rounded(digits):
    teacher, X, _ = digits
    return {bits: tb.quantize(teacher, X, bits, images=1200, verbose=0) for bits in (1, 1.58, 4)}


@pytest.mark.parametrize("bits", [1, 1.58, 4])
def test_a_rounded_network_does_what_its_teacher_does(bits, digits, rounded):
    teacher, X, held_out = digits
    nearest = tb.ViT(bits=bits, init_from=teacher, epochs=0, verbose=0).fit(X[:10], np.arange(10))
    ours, theirs = (distance(m, teacher, held_out) for m in (rounded[bits], nearest))
    assert ours < 0.25 * theirs
    assert (rounded[bits].predict(held_out) == teacher.predict(held_out)).mean() > 0.93


def test_more_bits_come_nearer(digits, rounded):
    found = [distance(rounded[bits], digits[0], digits[2]) for bits in (1, 1.58, 4)]
    assert found == sorted(found, reverse=True)


def test_the_teacher_stays_as_it_was_and_the_copy_is_complete(digits, rounded, tmp_path):
    teacher, X, held_out = digits
    student, before = rounded[1], len(teacher.history_["loss"])
    assert teacher.bits == 32 and teacher.model_.config["bits"] == 32
    tb.quantize(teacher, X, 8, images=10, verbose=0).partial_fit(X[:10], teacher.predict(X[:10]))
    assert len(teacher.history_["loss"]) == before
    assert student.get_params()["bits"] == 1
    student.save(tmp_path / "m.safetensors", packed=True)
    expected = student.predict(held_out)
    assert np.array_equal(student.pack().predict(held_out), expected)
    assert np.array_equal(tb.load(tmp_path / "m.safetensors").predict(held_out), expected)
    options = {"epochs": 1, "verbose": 0, "random_state": 0}
    again = tb.ViT(bits=1, init_from=student, distill_from=teacher, recipe="imitate", **options)
    assert again.fit(X[:64], teacher.predict(X[:64])).score(held_out, expected) > 0.9


def test_the_same_seed_gives_the_same_codes(digits):
    teacher, X, held_out = digits
    a, b, c = (tb.quantize(teacher, X, 1, images=64, random_state=seed, verbose=0) for seed in (1, 1, 2))
    assert np.array_equal(a.decision_function(held_out), b.decision_function(held_out))
    assert not np.array_equal(a.decision_function(held_out), c.decision_function(held_out))


def test_a_rounding_goes_on_from_its_last_block(digits, tmp_path, monkeypatch):
    teacher, X, held_out = digits
    options = {"images": 64, "random_state": 3}
    whole = tb.quantize(teacher, X, 1, **options, verbose=0)

    def cut(line, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", cut)
        with pytest.raises(KeyboardInterrupt):
            tb.quantize(teacher, X, 1, **options, checkpoint=tmp_path / "c")
    lines = []
    monkeypatch.setattr("builtins.print", lambda line, **options: lines.append(line))
    again = tb.quantize(teacher, X, 1, **options, checkpoint=tmp_path / "c", resume=True)
    assert [line[:9] for line in lines] == ["block 2/2"]
    assert np.array_equal(again.decision_function(held_out), whole.decision_function(held_out))
    with pytest.raises(tb.io.CheckpointError, match=r"bits was 1 and is now 1\.58"):
        tb.quantize(teacher, X, 1.58, **options, checkpoint=tmp_path / "c", resume=True)
    with pytest.raises(ValueError, match="give their folder as checkpoint"):
        tb.quantize(teacher, X, 1, resume=True)


@pytest.mark.parametrize("details", [{"sub_norm": True}, {"layer_scale": 0.3}, {"scale": "absmedian"}])
def test_every_kind_of_block_can_be_rounded(details, rng):
    """With SubLN the student has norms that the teacher lacks; without LayerScale the branches write as they are."""
    shared = {name: details[name] for name in ("layer_scale",) if name in details}
    teacher = VisionTransformer(**SHAPE, **shared, rng=rng)
    student = VisionTransformer(**SHAPE, bits=1, **{"sub_norm": False, **details}, rng=rng)
    start_from(student, teacher)
    x = rng.standard_normal((64, 8, 8, 1)).astype("float32")
    lines, metrics = [], [np.eye(layer.out_features) for layer in low_bit_layers(student)]
    with tb.no_grad(), student.evaluating():
        before = np.abs(student.forward_features(x).numpy() - teacher.forward_features(x).numpy()).mean()
        rounding = layerwise.LayerByLayer(student, teacher, x, metrics, rng)
        rounding.run(lines.append)
        after = np.abs(student.forward_features(x).numpy() - teacher.forward_features(x).numpy()).mean()
    assert after < 0.6 * before
    assert len(lines) == 2 and lines[1].startswith("block 2/2  lost in qkv, proj, fc1, fc2: 0.")
    assert len(rounding.costs) == 8 and all(0 < cost < 1 for cost in rounding.costs)


@each_device
def test_rounding_works_where_the_teacher_is(device, rng):
    teacher = VisionTransformer(**SHAPE, layer_scale=0.3, rng=rng).to(device)
    student = VisionTransformer(**SHAPE, bits=1, layer_scale=0.3, sub_norm=False, rng=rng)
    start_from(student, teacher)
    x = rng.standard_normal((64, 8, 8, 1)).astype("float32")
    rounding = layerwise.LayerByLayer(student.to(device), teacher, x, layerwise.output_metrics(teacher, [x], rng), rng)
    rounding.run()
    assert len(rounding.costs) == 8 and all(0 < cost < 1 for cost in rounding.costs)
    assert {p.device for p in student.parameters()} == {device}


def test_only_full_precision_can_be_rounded(digits, rounded):
    teacher, X, _ = digits
    for model, bits in ((rounded[1], 1.58), (teacher, 32)):
        with pytest.raises(ValueError, match="give a model of 32 bits, and bits below 32"):
            tb.quantize(model, X, bits)
    with pytest.raises(ValueError, match="bits must be one of"):
        tb.quantize(teacher, X, 5)


# --- networks with something missing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 1.58, 2, 4, 8])
def test_a_row_of_zeros_stays_and_the_others_are_rounded_as_well_as_without_it(bits, rng):
    weight, second, _, *_ = problem(rng)
    metric, quantizer = np.eye(5), find_quantizer(bits)
    weight[2] = 0
    codes, scale, _ = descent.round_weight(weight, second, metric, quantizer, rng=0)
    rest = [0, 1, 3, 4]
    alone = descent.round_weight(weight[rest], second, np.eye(4), quantizer, rng=0)
    assert np.array_equal(codes[rest], alone[0])
    np.testing.assert_allclose(scale[rest], alone[1], rtol=1e-4)
    assert bits == 1 or not codes[2].any()
    assert 0 < scale[2, 0] < 1e-4


def test_a_layer_of_zeros_is_rounded_to_zeros(rng):
    _, second, metric, *_ = problem(rng)
    codes, _, cost = descent.round_weight(np.zeros((5, 12)), second, metric, find_quantizer(1.58), rng=0)
    assert not codes.any() and cost == 0


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (64, 8, 8, 3), dtype="uint8"), rng.integers(0, 3, 64)
    options = {"patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "epochs": 1, "random_state": 0, "workers": 1}
    return tb.ViT(bits=32, verbose=0, **options).fit(X, y), X


def silence(block, part):
    """Take something out of a block as pruning would."""
    if part in ("a neuron", "a block"):
        rows = slice(3, 4) if part == "a neuron" else slice(None)
        for array in (block.mlp.fc1.weight.data, block.mlp.fc1.bias.data, block.mlp.fc2.weight.data.T):
            array[rows] = 0
    if part in ("a head", "a block"):
        d = block.attn.proj.weight.shape[0] // block.attn.heads
        rows = slice(-d, None) if part == "a head" else slice(None)
        for layer in (block.attn.qkv.weight.data, block.attn.qkv.bias.data, block.attn.proj.weight.data.T):
            layer[rows] = 0
    if part == "a block":
        block.attn.proj.bias.data[...] = block.mlp.fc2.bias.data[...] = 0


@pytest.mark.parametrize("bits", [1.58, 8])
@pytest.mark.parametrize("part", ["a neuron", "a head", "a block"])
def test_a_pruned_network_is_rounded(part, bits, small):
    teacher, X = small
    pruned = copy.deepcopy(teacher)
    silence(pruned.model_.blocks[0], part)
    assert distance(tb.quantize(pruned, X, bits=bits, verbose=0), pruned, X) < (0.05 if bits == 1.58 else 1e-3)


@pytest.mark.parametrize("level", [0, 200])
def test_images_that_are_all_alike_are_enough_for_themselves(level, small):
    teacher, X = small
    same = np.full_like(X[:32], level)
    assert distance(tb.quantize(teacher, same, bits=8, verbose=0), teacher, same) < 1e-3


def test_damping_makes_positive_definite_and_no_more():
    steep = np.diag([1.0, 2.0])
    assert np.array_equal(layerwise.damped(steep, 0.1), steep + 0.15 * np.eye(2))
    np.linalg.cholesky(layerwise.damped(np.diag([1e-4, -1e-4]), 0.003))
    assert np.array_equal(layerwise.damped(np.zeros((2, 2)), 0.003), 1e-12 * np.eye(2))
    assert np.isnan(layerwise.damped(np.full((2, 2), np.nan), 0.003)).all()
