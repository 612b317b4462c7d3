"""Optimisers, the schedule and clipping against torch.optim with the same weights and the same gradients."""

import math

import numpy as np
import pytest
import torch
from devices import each_run, fetch, send
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybitvit import Tensor, optim
from tinybitvit.models import VisionTransformer
from tinybitvit.nn import Linear, Parameter
from tinybitvit.optim import SGD, AdamW, WarmupCosine, clip_grad_norm, decay_groups

SHAPES = [(7, 5), (5,), (1, 3, 4), (), (1,), (64, 9)]
TOLERANCE = {"float64": 1e-13, "float32": 2e-6}


def parameters(rng, shapes=SHAPES, dtype="float64", device="cpu"):
    """The same random weights as our Parameters, on the device, and as torch's."""
    arrays = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    return [Parameter(send(a.copy(), device)) for a in arrays], [torch.nn.Parameter(torch.tensor(a)) for a in arrays]


def set_gradients(rng, ours, theirs=(), size=1.0):
    gradients = [np.asarray(size * rng.standard_normal(p.shape), p.dtype) for p in ours]
    for p, g in zip(ours, gradients, strict=True):
        p.grad = send(g, p.device)
    for p, g in zip(theirs, gradients, strict=bool(theirs)):
        p.grad = torch.tensor(g)


def assert_equal_weights(ours, theirs, steps=1):
    for i, (p, t) in enumerate(zip(ours, theirs, strict=True)):
        expected = t.detach().numpy()
        assert p.data.dtype == expected.dtype and p.shape == expected.shape
        error = np.abs(fetch(p.data) - expected).max() / max(np.abs(expected).max(), 1)
        assert error <= steps * TOLERANCE[expected.dtype.name], f"parameter {i}: off by {error:.3g}"


def train_both(rng, ours, theirs, optimizer, reference, steps=50):
    """Steps with gradients of all magnitudes, the weights compared after each."""
    for step in range(1, steps + 1):
        set_gradients(rng, ours, theirs, size=10.0 ** rng.integers(-4, 3))
        optimizer.step()
        reference.step()
        assert_equal_weights(ours, theirs, step)


# --- against torch ----------------------------------------------------------------------------------------------------


@each_run
@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True), (0.5, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd(momentum, nesterov, weight_decay, dtype, device, rng):
    options = {"lr": 0.01, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    ours, theirs = parameters(rng, dtype=dtype, device=device)
    train_both(rng, ours, theirs, SGD(ours, **options), torch.optim.SGD(theirs, **options))


@each_run
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.0, 0.5)])
@pytest.mark.parametrize("weight_decay, eps", [(0.0, 1e-8), (0.01, 1e-8), (0.1, 1e-3)])
def test_adamw(betas, weight_decay, eps, dtype, device, rng):
    options = {"lr": 3e-3, "betas": betas, "weight_decay": weight_decay, "eps": eps}
    ours, theirs = parameters(rng, dtype=dtype, device=device)
    train_both(rng, ours, theirs, AdamW(ours, **options), torch.optim.AdamW(theirs, **options))


def test_default_values_are_torchs(rng):
    ours, theirs = parameters(rng)
    train_both(rng, ours, theirs, AdamW(ours), torch.optim.AdamW(theirs), steps=10)
    mine, torchs = AdamW(ours).param_groups[0], torch.optim.AdamW(theirs).param_groups[0]
    assert all(mine[k] == torchs[k] for k in ("lr", "betas", "eps", "weight_decay"))
    mine, torchs = SGD(ours, lr=1).param_groups[0], torch.optim.SGD(theirs, lr=1).param_groups[0]
    assert all(mine[k] == torchs[k] for k in ("lr", "momentum", "weight_decay", "nesterov"))


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_groups_with_their_own_values(kind, rng):
    ours, theirs = parameters(rng)

    def groups(params):
        return [
            {"params": params[:2], "weight_decay": 0.0},
            {"params": params[2:3], "lr": 0.5},
            {"params": params[3:]},
        ]

    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = getattr(optim, kind)(groups(ours), **options)
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.5, 0.01]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1, 0.1]
    train_both(rng, ours, theirs, optimizer, getattr(torch.optim, kind)(groups(theirs), **options), steps=20)


def test_a_learning_rate_changed_between_steps(rng):
    ours, theirs = parameters(rng)
    optimizer, reference = AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    for lr in (0.01, 0.1, 0.0, 0.003):
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = lr
        train_both(rng, ours, theirs, optimizer, reference, steps=3)


def test_training_a_layer_end_to_end(rng):
    """Our gradients and our AdamW, against torch's gradients and torch's AdamW."""
    x, target = rng.standard_normal((20, 6)), rng.standard_normal((20, 3))
    ours, theirs = Linear(6, 3), torch.nn.Linear(6, 3).double()
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data = mine.data.astype("float64")
        torchs.data.copy_(torch.tensor(mine.data))
    optimizer = AdamW(ours.parameters(), lr=0.05)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.05)
    first = None
    for _ in range(50):
        difference = ours(Tensor(x)) - target
        loss = (difference * difference).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected = torch.nn.functional.mse_loss(theirs(torch.tensor(x)), torch.tensor(target))
        reference.zero_grad()
        expected.backward()
        reference.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-10)
        first = float(loss) if first is None else first
    assert float(loss) < first / 2


# --- the flat buffer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    "sizes",
    [
        (optim.CHUNK - 1,),
        (optim.CHUNK,),
        (optim.CHUNK + 1,),
        (optim.CHUNK - 1, 2, 2 * optim.CHUNK, 3),
        (3 * optim.CHUNK, 1),
    ],
    ids=str,
)
def test_sizes_around_the_stretch_that_stays_in_the_cache(kind, sizes, rng):
    ours, theirs = parameters(rng, [(n,) for n in sizes])
    optimizer = getattr(optim, kind)(ours, lr=0.01, weight_decay=0.1)
    train_both(rng, ours, theirs, optimizer, getattr(torch.optim, kind)(theirs, lr=0.01, weight_decay=0.1), steps=3)


@pytest.mark.parametrize("absent", [(0,), (2,), (5,), (0, 1), (1, 3, 4), (0, 1, 2, 3, 4)])
def test_a_parameter_without_a_gradient_is_left_alone(absent, rng):
    """Not even weight decay or momentum move it; the others are updated as if it were not there."""
    ours, theirs = parameters(rng)
    before = [p.data.copy() for p in ours]
    optimizer = AdamW(ours, lr=0.01, weight_decay=0.5)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.5)
    for _ in range(5):
        set_gradients(rng, ours, theirs)
        for i in absent:
            ours[i].grad = theirs[i].grad = None
        optimizer.step()
        reference.step()
    assert_equal_weights(ours, theirs, 5)
    assert all((ours[i].data == before[i]).all() for i in absent)


def test_momentum_rests_while_there_is_no_gradient(rng):
    ours, theirs = parameters(rng)
    optimizer, reference = SGD(ours, lr=0.1, momentum=0.9), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for step in range(8):
        set_gradients(rng, ours, theirs)
        if step in (3, 4):
            ours[1].grad = theirs[1].grad = None
        optimizer.step()
        reference.step()
        assert_equal_weights(ours, theirs, step + 1)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), kind=st.sampled_from(["SGD", "AdamW"]))
def test_parameters_learn_whenever_they_have_a_gradient(kind, data):
    """Each counts its own updates, as in torch, whichever have a gradient in a step."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ours, theirs = parameters(rng)
    options = {"lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.9} if kind == "SGD" else {})
    optimizer, reference = getattr(optim, kind)(ours, **options), getattr(torch.optim, kind)(theirs, **options)
    counts = [0] * len(ours)
    for _ in range(5):
        set_gradients(rng, ours, theirs)
        for i, p in enumerate(ours):
            if data.draw(st.booleans()):
                p.grad = theirs[i].grad = None
            else:
                counts[i] += 1
        optimizer.step()
        reference.step()
    assert_equal_weights(ours, theirs, 5)
    assert optimizer.state_dict()["counts"] == [counts] and optimizer.steps == 5


def test_a_state_without_counts_counts_alike_for_all(rng):
    """As states of earlier versions have it, in which all parameters had one count."""
    ours, theirs = parameters(rng)
    optimizer, reference = AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    train_both(rng, ours, theirs, optimizer, reference, steps=3)
    state = optimizer.state_dict()
    del state["counts"]
    optimizer.load_state_dict(state)
    train_both(rng, ours, theirs, optimizer, reference, steps=3)


def test_nothing_has_a_gradient(rng):
    ours, _ = parameters(rng)
    before = [p.data.copy() for p in ours]
    AdamW(ours, weight_decay=0.5).step()
    assert all((p.data == b).all() for p, b in zip(ours, before, strict=True))


def test_data_replaced_between_steps_is_what_gets_updated(rng):
    """`p.data = new array`, as loading and casting do, takes the Parameter out of the buffer; a step takes it back."""
    ours, theirs = parameters(rng)
    optimizer, reference = AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    train_both(rng, ours, theirs, optimizer, reference, steps=3)
    replacement = rng.standard_normal(SHAPES[2])
    kept = replacement.copy()
    ours[2].data = replacement
    theirs[2].data = torch.tensor(kept)
    train_both(rng, ours, theirs, optimizer, reference, steps=3)
    assert (replacement == kept).all()  # it belongs to the caller


def test_data_changed_in_place_between_steps(rng):
    ours, theirs = parameters(rng)
    optimizer, reference = SGD(ours, lr=0.01), torch.optim.SGD(theirs, lr=0.01)
    train_both(rng, ours, theirs, optimizer, reference, steps=2)
    ours[0].data[...] = 1.5
    theirs[0].data[...] = 1.5
    train_both(rng, ours, theirs, optimizer, reference, steps=2)


def test_making_an_optimiser_keeps_the_values_and_the_callers_arrays(rng):
    array = rng.standard_normal((3, 4))
    p, kept = Parameter(array), array.copy()
    optimizer = AdamW([p], lr=0.1)
    assert (p.data == kept).all()
    p.grad = rng.standard_normal((3, 4))
    gradient = p.grad.copy()
    given = p.grad
    optimizer.step()
    assert (p.data != kept).all() and (array == kept).all() and (given == gradient).all()


def test_two_optimisers_over_the_same_parameters(rng):
    """The second one must not leave the first with a stale copy."""
    ours, theirs = parameters(rng)
    first, second = SGD(ours, lr=0.1), SGD(ours, lr=0.01)
    reference = [torch.optim.SGD(theirs, lr=0.1), torch.optim.SGD(theirs, lr=0.01)]
    for mine, torchs in [(first, reference[0]), (second, reference[1])] * 3:
        train_both(rng, ours, theirs, mine, torchs, steps=1)


def test_gradient_views_need_no_copy(rng):
    """A gradient written to its place in the buffer gives the same update as one handed over in an array."""
    (ours, _), (twins, _) = parameters(np.random.default_rng(1)), parameters(np.random.default_rng(1))
    optimizer, other = AdamW(ours, lr=0.01), AdamW(twins, lr=0.01)
    views = optimizer.gradient_views()
    assert set(views) == set(ours)
    for _ in range(3):
        set_gradients(rng, twins)
        for p, twin in zip(ours, twins, strict=True):
            assert views[p].shape == p.shape
            views[p][...] = twin.grad
            p.grad = views[p]
        optimizer.step()
        other.step()
    assert all((p.data == twin.data).all() for p, twin in zip(ours, twins, strict=True))


def test_float32_stays_float32_with_numpy_scalars_as_options(rng):
    ours, _ = parameters(rng, dtype="float32")
    optimizer = AdamW(ours, lr=np.float64(0.01), weight_decay=np.float64(0.1))
    set_gradients(rng, ours)
    optimizer.step()
    assert all(p.data.dtype == "float32" for p in ours)


def test_zero_grad(rng):
    ours, _ = parameters(rng)
    optimizer = SGD(ours, lr=0.1)
    set_gradients(rng, ours)
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours)


def test_wrong_parameters_are_refused(rng):
    with pytest.raises(ValueError, match="got no parameters"):
        SGD([], lr=0.1)
    with pytest.raises(ValueError, match="one dtype"):
        SGD([Parameter(np.ones(2)), Parameter(np.ones(2, "float32"))], lr=0.1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[
            (name, value)
            for name in ("lr", "weight_decay")
            for value in (-0.1, float("nan"), float("inf"), "0.1", None)
        ],
        *[("betas", value) for value in ((0.9, 1.0), (-0.1, 0.9), (0.9,), (0.9, float("nan")))],
        ("eps", -1e-8),
        ("momentum", -0.5),
    ],
)
def test_options_that_make_no_sense_are_named(option, value):
    kind = SGD if option == "momentum" else AdamW
    with pytest.raises(ValueError, match=f"{option} must be"):
        kind([Parameter(np.ones(2))], **{"lr": 0.1, option: value})
    with pytest.raises(ValueError, match=f"{option} must be"):
        kind([{"params": [Parameter(np.ones(2))], option: value}], lr=0.1)


def test_what_is_no_list_of_parameters_is_refused():
    p = Parameter(np.ones((2, 2)))
    for params in (p, Linear(2, 2), {"params": [p]}):
        with pytest.raises(TypeError, match=r"such as model.parameters\(\)"):
            SGD(params, lr=0.1)
    for wrong in (np.ones(2), "weight", p * 2, Tensor([1, 2])):
        with pytest.raises(TypeError, match="an optimiser updates Parameters, not"):
            SGD([p, wrong], lr=0.1)
    for twice in ([p, p], [{"params": [p]}, {"params": [p]}]):
        with pytest.raises(ValueError, match="the same Parameter twice"):
            SGD(twice, lr=0.1)


def test_shapes_that_only_broadcast_are_refused():
    p = Parameter(np.ones((2, 2)))
    optimizer = SGD([p], lr=0.1)
    p.grad = np.ones(2)
    with pytest.raises(ValueError, match=r"of shape \(2, 2\) has shape \(2,\)"):
        optimizer.step()
    p.grad, p.data = np.ones((2, 2)), np.ones(2)
    with pytest.raises(RuntimeError, match=r"changed its shape from \(2, 2\) to \(2,\)"):
        optimizer.step()


@pytest.mark.parametrize("max_norm", [-1.0, float("nan")])
def test_gradients_are_not_clipped_to_nonsense(max_norm):
    with pytest.raises(ValueError, match="max_norm must be a number from 0"):
        clip_grad_norm([Parameter(np.ones(2))], max_norm)


def test_clipping_one_parameter():
    p = Parameter(np.ones((2, 2)))
    p.grad = np.full((2, 2), 2.0)
    assert clip_grad_norm(p, 1.0) == 4 and np.allclose(p.grad, 0.5)


def test_a_gradient_set_by_hand_may_be_a_tensor():
    """As it is in PyTorch."""
    p = Parameter(np.ones((2, 2)))
    p.grad = Tensor(np.full((2, 2), 2.0))
    clip_grad_norm([p], 1.0)
    SGD([p], lr=1.0).step()
    assert np.allclose(p.numpy(), 0.5)


def test_parameters_may_come_from_iterators(rng):
    ours, theirs = parameters(rng)
    optimizer = SGD([{"params": (p for p in ours[:2])}, {"params": iter(ours[2:])}, {"params": []}], lr=0.1)
    assert [len(g["params"]) for g in optimizer.param_groups] == [
        2,
        4,
    ]  # an empty group, as a model may give, is left out
    train_both(rng, ours, theirs, optimizer, torch.optim.SGD(theirs, lr=0.1), steps=2)
    ours, theirs = parameters(rng)
    train_both(rng, ours, theirs, SGD(iter(ours), lr=0.1), torch.optim.SGD(theirs, lr=0.1), steps=2)


# --- decay groups -----------------------------------------------------------------------------------------------------


def test_decay_groups_of_a_vision_transformer():
    """The matrices decay; biases, norms, LayerScale, tokens and positions do not."""
    model = VisionTransformer(8, 4, dim=8, depth=1, heads=2, bits=1.58, pool="cls", registers=1, layer_scale=0.1)
    low_bit, matrices, rest = decay_groups(model, 0.3)
    assert [g["weight_decay"] for g in (low_bit, matrices, rest)] == [0.3, 0.3, 0.0]
    assert [g.get("low_bit", False) for g in (low_bit, matrices, rest)] == [True, False, False]
    names = {p: name for name, p in model.named_parameters()}
    latent = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert [names[p] for p in low_bit["params"]] == [f"blocks.0.{name}.weight" for name in latent]
    assert [names[p] for p in matrices["params"]] == ["embed.patch.proj.weight", "head.weight"]
    decayed = [*low_bit["params"], *matrices["params"]]
    assert {names[p] for p in rest["params"]} == set(names.values()) - {names[p] for p in decayed}
    for name in ("embed.pos_embed", "embed.cls_token", "embed.reg_token", "blocks.0.attn.proj.norm.weight"):
        assert any(names[p] == name for p in rest["params"])


def test_decay_groups_of_a_model_without_the_one_or_the_other(rng):
    layer = Linear(3, 2, bias=False)
    optimizer = AdamW(decay_groups(layer, 0.1), lr=0.01)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1]
    set_gradients(rng, layer.parameters())
    optimizer.step()


# --- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total, warmup, final", [(50, 10, 0.0), (30, 1, 0.1), (20, 0, 0.0), (12, 5, 0.5), (7, 6, 0.0)])
def test_schedule_equals_torchs(total, warmup, final, rng):
    ours, theirs = parameters(rng)
    optimizer, reference = SGD(ours, lr=0.3), torch.optim.SGD(theirs, lr=0.3)
    schedule = WarmupCosine(optimizer, total, warmup, final)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=total - warmup, eta_min=final * 0.3)
    expected = cosine
    if warmup:
        ramp = torch.optim.lr_scheduler.LinearLR(reference, 1 / warmup, 1.0, total_iters=max(warmup - 1, 1))
        expected = torch.optim.lr_scheduler.SequentialLR(reference, [ramp, cosine], [warmup])
    for step in range(total + 1):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"], abs=1e-15), step
        reference.step()
        expected.step()
        schedule.step()


@pytest.mark.parametrize(
    "total, warmup, final", [(100, 20, 0.0), (100, 20, 0.2), (10, 10, 0.0), (1, 0, 0.0), (5, 0, 1.0)]
)
def test_schedule_formula(total, warmup, final, rng):
    """(t + 1) / warmup, then final + (1 - final) (1 + cos(pi (t - warmup) / (total - warmup))) / 2, then final."""
    ours, _ = parameters(rng)
    optimizer = AdamW([{"params": ours[:1]}, {"params": ours[1:], "lr": 0.5}], lr=0.1)
    schedule = WarmupCosine(optimizer, total, warmup, final)
    for t in range(total + 5 if warmup < total else total):
        if t < warmup:
            factor = (t + 1) / warmup
        elif t < total:
            factor = final + (1 - final) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
        else:
            factor = final
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.5 * factor], abs=1e-15)
        assert optimizer.param_groups[0]["lr"] >= 0
        schedule.step()


@pytest.mark.parametrize("total, warmup", [(0, 0), (-1, 0), (10, 11), (10, -1)])
def test_schedule_refuses_impossible_lengths(total, warmup, rng):
    ours, _ = parameters(rng)
    with pytest.raises(ValueError, match="total >= 1 and 0 <= warmup <= total"):
        WarmupCosine(SGD(ours, lr=0.1), total, warmup)


# --- clipping ---------------------------------------------------------------------------------------------------------


@each_run
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 20.0, 1e6])
def test_clip_grad_norm(max_norm, dtype, device, rng):
    ours, theirs = parameters(rng, dtype=dtype, device=device)
    set_gradients(rng, ours, theirs)
    ours[1].grad = theirs[1].grad = None
    norm = clip_grad_norm(ours, max_norm)
    expected = float(torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    assert float(norm) == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-13)
    for p, t in zip(ours, theirs, strict=True):
        if p.grad is None:
            assert t.grad is None
        else:
            assert p.grad.dtype == dtype
            assert np.allclose(fetch(p.grad), t.grad.numpy(), rtol=1e-6 if dtype == "float32" else 1e-12, atol=0)
    assert math.sqrt(sum(float((p.grad**2).sum()) for p in ours if p.grad is not None)) <= max(max_norm, 1e-3) * 1.0001


def test_gradients_below_the_limit_are_untouched(rng):
    ours, _ = parameters(rng)
    set_gradients(rng, ours)
    before = [p.grad.copy() for p in ours]
    clip_grad_norm(ours, 1e3)
    assert all((p.grad == b).all() for p, b in zip(ours, before, strict=True))
    assert clip_grad_norm([], 1.0) == 0
    for p in ours:
        p.grad *= 0
    assert clip_grad_norm(ours, 1.0) == 0 and not any(p.grad.any() for p in ours)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, options", [("SGD", {"momentum": 0.9, "nesterov": True}), ("AdamW", {"weight_decay": 0.1})]
)
def test_a_loaded_state_continues_bit_for_bit(kind, options, rng):
    def groups(params):
        return [{"params": params[:3], "lr": 0.02}, {"params": params[3:]}]

    straight, _ = parameters(np.random.default_rng(1))
    optimizer = getattr(optim, kind)(groups(straight), lr=0.01, **options)
    for _ in range(5):
        set_gradients(rng, straight)
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.005
    state, weights = optimizer.state_dict(), [p.data.copy() for p in straight]

    resumed = [Parameter(w) for w in weights]
    other = getattr(optim, kind)(groups(resumed), lr=0.7, **options)
    other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.02, 0.005]
    for _ in range(5):
        set_gradients(rng, straight)
        for p, q in zip(straight, resumed, strict=True):
            q.grad = p.grad.copy()
        optimizer.step()
        other.step()
    assert all((p.data == q.data).all() for p, q in zip(straight, resumed, strict=True))
    assert other.steps == optimizer.steps == 10


def test_state_dict_is_a_copy(rng):
    ours, _ = parameters(rng)
    optimizer = AdamW(ours, lr=0.01)
    set_gradients(rng, ours)
    optimizer.step()
    state = optimizer.state_dict()
    kept = {name: a.copy() for name, a in state["arrays"].items()}
    assert kept and all(a.any() for a in kept.values())
    set_gradients(rng, ours)
    optimizer.step()
    assert all((state["arrays"][name] == a).all() for name, a in kept.items()) and state["steps"] == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda ours: AdamW(ours[:-1]),  # other sizes
        lambda ours: SGD(ours, lr=0.1),  # another kind
        lambda ours: AdamW([{"params": ours[:2]}, {"params": ours[2:]}]),  # other groups
    ],
)
def test_a_foreign_state_changes_nothing(other, rng):
    ours, _ = parameters(rng)
    optimizer = AdamW(ours, lr=0.01)
    set_gradients(rng, ours)
    optimizer.step()
    before = optimizer.state_dict()
    foreign = other(parameters(rng)[0]).state_dict()
    with pytest.raises(ValueError, match="over other parameters"):
        optimizer.load_state_dict(foreign)
    after = optimizer.state_dict()
    assert after["steps"] == 1 and after["lr"] == before["lr"]
    assert all((after["arrays"][name] == a).all() for name, a in before["arrays"].items())
