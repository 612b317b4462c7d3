"""Trainings in stages: what every stage sets, that it resumes, and the recipes of tb.ViT."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit import train
from tinybitvit.models import VisionTransformer
from tinybitvit.optim import AdamW, decay_groups
from tinybitvit.quant import watch
from tinybitvit.train import Recipe, Stage, Stages, find_recipe

SHAPE = {"image_size": 4, "patch_size": 2, "in_channels": 1, "num_classes": 2, "dim": 8, "depth": 2, "heads": 2}
FAST = {"dim": 16, "depth": 2, "heads": 2, "epochs": 6, "batch_size": 16, "verbose": 0, "random_state": 0}


def staged(stages, total=100, bits=1.58, **options):
    model = VisionTransformer(**SHAPE, bits=bits, rng=np.random.default_rng(0))
    optimizer = AdamW(decay_groups(model, 0.1), lr=1e-2)
    trainer = train.Trainer(model, optimizer, workers=1)
    return Stages(trainer, total, Recipe(stages=tuple(stages)), **options), optimizer, model


@pytest.fixture
def data():
    """Three kinds of 6 x 6 images: bright on the left, on the right, nowhere."""
    rng = np.random.default_rng(1)
    y = np.arange(90) % 3
    X = rng.random((90, 6, 6, 1)).astype("float32")
    X[y == 0, :, :3] += 1
    X[y == 1, :, 3:] += 1
    return X, y


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_a_single_stage_is_warmup_and_cosine():
    schedule, optimizer, model = staged([Stage(warmup=0.1)])
    usual = tb.optim.WarmupCosine(other := AdamW(model.parameters(), lr=1e-2), 100, warmup=10)
    for _ in range(101):
        assert [g["lr"] for g in optimizer.param_groups] == [other.param_groups[0]["lr"]] * 3
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.1, 0.0]
        schedule.step()
        usual.step()


def test_what_each_stage_sets():
    stages = [Stage(1, warmup=0.5), Stage(3, factor=0.1, weight_decay=0.0)]
    schedule, optimizer, _ = staged(stages, total=40)
    seen = []
    for _ in range(41):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["weight_decay"]))
        schedule.step()
    assert seen[0] == (pytest.approx(1e-2 / 5), 0.1) and seen[4][0] == pytest.approx(1e-2)
    assert seen[10] == (pytest.approx(1e-3), 0.0)
    assert seen[25][0] == pytest.approx(5e-4) and seen[40][0] == pytest.approx(0.0, abs=1e-12)


def test_a_rate_relative_to_the_weights():
    _, optimizer, model = staged([Stage(relative_lr=0.1)])
    layers = watch.low_bit_layers(model)
    mean = np.mean(np.concatenate([np.abs(m.weight.data).ravel() for m in layers]))
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * mean] * 3, rel=1e-6)
    _, optimizer, _ = staged([Stage(relative_lr=0.1, others=0.5)])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * mean, 5e-3, 5e-3], rel=1e-6)
    for total, expected in ((20, 0.1 * 20 / 2), (400, 2.0)):
        schedule, optimizer, _ = staged([Stage(relative_lr=0.1, path=2.0, warmup=0.1)], total=total)
        path = 0.0
        for _ in range(total):
            path += optimizer.param_groups[0]["lr"]
            schedule.step()
        assert path / mean == pytest.approx(expected, rel=0.12)


def test_a_rate_of_0_is_0():
    for options in ({"relative_lr": 0.0}, {"relative_lr": 0.1, "path": 0.0}, {"relative_lr": 0.1, "factor": 0.0}):
        _, optimizer, _ = staged([Stage(**options)])
        assert [g["lr"] for g in optimizer.param_groups] == [0.0] * 3


def test_without_low_bit_layers_the_rate_is_the_optimisers():
    _, optimizer, _ = staged([Stage(relative_lr=0.1, path=2.0, others=0.5)], bits=32)
    assert {g["lr"] for g in optimizer.param_groups} == {5e-3}
    _, optimizer, _ = staged([Stage(relative_lr=0.1, path=2.0)], bits=32)
    assert {g["lr"] for g in optimizer.param_groups} == {1e-2}


@pytest.mark.parametrize("total", [0, 1, 3])
def test_a_stage_too_short_for_an_update_centres_nothing(total):
    schedule, _, model = staged([Stage(1.0), Stage(0.1, centre=True)], total=total)
    before = [layer.weight.data.copy() for layer in watch.low_bit_layers(model)]
    for _ in range(total):
        schedule.step()
    for layer, weight in zip(watch.low_bit_layers(model), before, strict=True):
        assert np.array_equal(layer.weight.data, weight)


@pytest.mark.parametrize("first", [True, False])
def test_a_stage_that_centres_does_so_once_where_it_begins(first):
    stages = [Stage(centre=True), Stage()] if first else [Stage(), Stage(centre=True)]
    schedule, _, model = staged(stages, total=6)
    layer = model.blocks[0].mlp.fc1

    def sizes():
        return len(np.unique(np.abs(layer.weight.data[0]).round(6)))

    assert (sizes() <= 2) == first
    for update in range(1, 7):
        layer.weight.data += np.float32(1e-3) * np.arange(layer.weight.size, dtype="float32").reshape(
            layer.weight.shape
        )
        schedule.step()
        assert (sizes() <= 2) == (update == 3 and not first)
    jumped, _, model = staged(stages, total=6)
    w = model.blocks[0].mlp.fc1.weight.data
    w += 1e-3 * np.arange(w.size, dtype="float32").reshape(w.shape)
    before = w.copy()
    jumped.resume(3)  # as from a checkpoint, whose weights were centred when it was made
    np.testing.assert_array_equal(w, before)


def test_what_centring_is_for():
    """After a first stage weights sit at their thresholds; a second one with a tiny rate tips them, unless centred."""
    flips = []
    for centre in (False, True):
        schedule, optimizer, model = staged(
            [Stage(1, relative_lr=0.2), Stage(1, relative_lr=0.01, centre=centre)], total=160
        )
        trainer = train.Trainer(model, optimizer, workers=1)
        rng = np.random.default_rng(3)
        x, y = rng.standard_normal((64, 4, 4, 1)).astype("float32"), rng.integers(2, size=64)
        for update in range(81):
            before = watch.snapshot(model)
            trainer.step(x, y if update < 80 else 1 - y)
            schedule.step()
        flips.append(watch.flip_rate(before, watch.snapshot(model)))
    assert flips[1] == 0.0 < flips[0]


def test_resume_sets_what_stepping_sets():
    stages = [Stage(2, warmup=0.2), Stage(1, relative_lr=0.5, weight_decay=0.3)]
    for done in (0, 7, 13, 14, 20):
        walked, optimizer, model = staged(stages, total=20)
        jumped, other, model_too = staged(stages, total=20)
        for _ in range(done):
            walked.step()
        jumped.resume(done)
        for a, b in zip(optimizer.param_groups, other.param_groups, strict=True):
            assert (a["lr"], a["weight_decay"]) == (b["lr"], b["weight_decay"])
        a, b = (m.blocks[0].mlp.fc1 for m in (model, model_too))
        assert a.temperature == b.temperature


def test_the_temperature_of_ede_rises_from_a_tenth_to_ten():
    schedule, _, model = staged([Stage()], total=10)
    layer, seen = model.blocks[0].mlp.fc1, []
    for _ in range(11):
        seen.append(layer.temperature)
        schedule.step()
    np.testing.assert_allclose(seen, np.logspace(-1, 1, 11))


@pytest.mark.parametrize("name", ["share", "relative_lr", "path", "others", "factor", "weight_decay", "warmup"])
@pytest.mark.parametrize("value", [-1, "1", True, float("nan"), float("inf")])
def test_options_of_a_stage_are_checked_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} of a stage must be"):
        Stage(**{name: value})


def test_options_of_a_recipe_are_checked_by_name():
    assert Stage(relative_lr=np.float32(0.5), warmup=np.float64(0.1)).warmup == 0.1
    with pytest.raises(ValueError, match="path limits the rates of a stage in units of relative_lr: give both"):
        Stage(path=1.0)
    with pytest.raises(ValueError, match="warmup of a stage must be a number from 0 to 1, not 2"):
        Stage(warmup=2)
    for stages in ((), ("labels",), (Stage(), None)):
        with pytest.raises(ValueError, match=r"the stages of a recipe must be some tb\.train\.Stage"):
            Recipe(stages=stages)
    with pytest.raises(ValueError, match=r"the network of a recipe has no option 'granularty'; it has .*granularity"):
        Recipe({"granularty": "row"})
    with pytest.raises(
        ValueError, match="distillation of a recipe has no option 'attention'; it has hidden, labels, temp"
    ):
        Recipe(distillation={"attention": 1.0})


def test_stages_that_cannot_be():
    with pytest.raises(ValueError, match="a stage learns 'labels', 'outputs', 'blocks', not 'magic'"):
        Stage(learns="magic")
    with pytest.raises(ValueError, match="share of a stage must be above 0, not 0"):
        Stage(0)
    with pytest.raises(ValueError, match="learns the blocks of a teacher: give one as distill_from"):
        staged([Stage(learns="blocks")])


# --- what the codes do ------------------------------------------------------------------------------------------------


def test_counts_of_codes():
    model = VisionTransformer(**SHAPE, bits=1.58, rng=np.random.default_rng(0))
    before = watch.snapshot(model)
    assert all(a.dtype == "int8" for a in before) and watch.flip_rate(before, before) == 0
    total, zeros = sum(a.size for a in before), sum(int((a == 0).sum()) for a in before)
    assert watch.zero_share(before) == zeros / total
    w = model.blocks[1].mlp.fc2.weight.data
    w[0] = -w[0]
    changed = int(2 * (before[-1][0] != 0).sum()) // 2
    assert watch.flip_rate(before, watch.snapshot(model)) == changed / total


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("bits", [1, 1.58, 2, 3])
def test_distance_to_the_nearest_threshold(bits, granularity, rng):
    """A weight moved by a little less than its distance keeps its code, one way or the other changes it by more."""
    from tinybitvit.quant import find_quantizer, weight_codes

    w = rng.standard_normal((4, 50))
    distance = find_quantizer(bits, granularity).distance(np, w)
    codes, step = weight_codes(w, bits, granularity)
    mean = w.mean(axis=1, keepdims=True) if granularity == "row" else w.mean()

    def code(v):  # with scale and mean held
        if bits == 1:
            return np.where(v - mean >= 0, 1, -1)
        low, top = (-1, 1) if bits == 1.58 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return np.clip(np.rint(v / step), low, top)

    np.testing.assert_array_equal(code(w), codes)
    for sign in (-1, 1):
        np.testing.assert_array_equal(code(w + sign * 0.999 * distance * step), codes)
    moved = (code(w + 1.001 * distance * step) != codes) | (code(w - 1.001 * distance * step) != codes)
    assert moved.all()


class CutShort:
    """Ctrl-C at one batch, once."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, X, rng):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return X


def test_history_tells_what_the_codes_do(data):
    model = tb.ViT(bits=1.58, **FAST).fit(*data)
    for key in ("flip_rate", "zero_share", "distance"):
        values = model.history_[key]
        assert len(values) == 6 and 0 < values[0] < 1, (key, values)
    codes = watch.snapshot(model.model_)
    assert model.history_["zero_share"][-1] == watch.zero_share(codes)
    full = tb.ViT(bits=32, **{**FAST, "epochs": 1}).fit(*data)
    assert full.history_["flip_rate"] == [None]


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(data):
    return tb.ViT(bits=32, **{**FAST, "epochs": 12}, lr=1e-2).fit(*data)


@pytest.mark.parametrize("bits", [1, 1.58])
def test_the_best_recipe_converts_its_teacher_without_labels(bits, data, teacher):
    X, y = data
    student = tb.ViT(bits=bits, recipe="best", distill_from=teacher, epochs=20, verbose=0, random_state=0)
    student.fit(X, np.roll(y, 1))  # wrong labels, which it must not look at
    assert (student.predict(X) == teacher.predict(X)).mean() > 0.95
    assert student.model_.config["dim"] == 16 and student.model_.config["granularity"] == "row"
    assert {m.bits for m in watch.low_bit_layers(student.model_)} == {bits}
    assert student.pack().score(X, y) == student.score(X, y)


def test_the_paper_recipe_is_bitnet(data):
    config = tb.ViT(bits=1, recipe="paper", **{**FAST, "epochs": 0}).fit(*data).model_.config
    assert config["granularity"] == "tensor"


def test_the_best_recipe_without_a_teacher_learns_the_labels(data):
    assert tb.ViT(bits=1, recipe="best", **{**FAST, "epochs": 20}, lr=1e-2).fit(*data).score(*data) > 0.9


def test_a_teacher_of_another_shape_is_refused(data, teacher):
    start = tb.ViT(bits=32, **{**FAST, "depth": 1, "epochs": 0}).fit(*data)
    with pytest.raises(
        ValueError, match="the teacher has depth=2 and the model depth=1: this recipe needs two networks of one"
    ):
        tb.ViT(recipe="best", init_from=start, distill_from=teacher, verbose=0).fit(*data)


def test_refining_goes_on_from_a_low_bit_model_with_its_labels(data, teacher):
    """With the label smoothing of the model; the start, packed, gives its codes and scales."""
    X, y = data
    start = tb.ViT(bits=1.58, recipe="best", distill_from=teacher, **{**FAST, "epochs": 2}).fit(X, y).pack()
    options = {"bits": 1.58, "recipe": "refine", "distill_from": teacher, "init_from": start, "label_smoothing": 0.3}
    model = tb.ViT(**options, **{**FAST, "epochs": 0}).fit(X, y)
    assert model.model_.config["scale"] == "twn"
    np.testing.assert_allclose(model.decision_function(X), start.decision_function(X), rtol=1e-4, atol=1e-5)
    losses = [tb.ViT(**options | {"label_smoothing": s}, **FAST).fit(X, y).history_["loss"] for s in (0.3, 0.0)]
    assert losses[0][-1] < losses[0][0]
    assert losses[0][0] > losses[1][0] + 0.1
    one_bit = tb.ViT(**options | {"bits": 1}, **{**FAST, "epochs": 0}).fit(X, y).model_.config
    assert (one_bit["sub_norm"], one_bit["scale"]) == (False, "absmean")
    for recipe, source in product(("refine", "imitate"), (None, teacher)):
        with pytest.raises(ValueError, match="this recipe goes on with a low-bit model: give one as init_from"):
            tb.ViT(**options | {"recipe": recipe, "init_from": source}, **FAST).fit(X, y)


def test_imitating_is_the_second_stage_of_best_alone(data, teacher):
    """No label is asked for, and a longer one is no slower."""
    X, y = data
    start = tb.ViT(bits=1, recipe="best", distill_from=teacher, **{**FAST, "epochs": 2}).fit(X, y)
    options = {"bits": 1, "recipe": "imitate", "distill_from": teacher, "init_from": start}
    a, b = (tb.ViT(**options, **FAST).fit(X, labels) for labels in (y, np.roll(y, 1)))
    np.testing.assert_array_equal(a.decision_function(X), b.decision_function(X))
    assert a.history_["loss"][-1] < a.history_["loss"][0]
    for bits in (1, 2, 1.58):
        second, alone = (find_recipe(name, bits, True, 0.1) for name in ("best", "imitate"))
        assert alone == Recipe({}, (replace(second.stages[1], path=None),), second.distillation, goes_on=True)


def test_recipes_leave_full_precision_alone(data):
    a, b = (tb.ViT(bits=32, recipe=r, **{**FAST, "epochs": 2}).fit(*data) for r in (None, "best"))
    np.testing.assert_array_equal(a.decision_function(data[0]), b.decision_function(data[0]))


def test_explicit_arguments_win(data, teacher):
    with pytest.raises(ValueError, match=r"has dim=16, and dim=32 was given: leave it out"):
        tb.ViT(recipe="best", distill_from=teacher, dim=32, verbose=0).fit(*data)
    student = tb.ViT(recipe="best", distill_from=teacher, activation_bits=4, epochs=1, verbose=0).fit(*data)
    assert student.model_.config["activation_bits"] == 4


def test_recipes_that_cannot_be(data):
    with pytest.raises(
        ValueError, match=r"must be 'best', 'paper', 'refine', 'imitate', None or a .*Recipe, not '\+ blocks'"
    ):
        tb.ViT(recipe="+ blocks", **FAST).fit(*data)
    with pytest.raises(ValueError, match="learns from a teacher: give a fitted 32-bit ViT as distill_from"):
        tb.ViT(recipe=Recipe({}, (Stage(learns="outputs"),)), **FAST).fit(*data)
    assert find_recipe("best", 32, False, 0.1).stages == (Stage(warmup=0.1),)


def test_the_embedding_of_the_teacher_stays(data, teacher):
    options = {"distill_from": teacher, **FAST, "epochs": 2}
    start = tb.ViT(bits=1, recipe="best", **options).fit(*data)
    refined = tb.ViT(bits=1, recipe="refine", init_from=start, **options).fit(*data)
    was = dict(teacher.model_.named_parameters())
    for student in (start, refined):
        stayed = {name for name, p in student.model_.named_parameters() if np.array_equal(p.data, was[name].data)}
        assert stayed == {name for name in was if name.startswith("embed.")}


def test_refine_goes_farther_at_1_bit():
    signs, others = find_recipe("refine", 1, True, 0.1), find_recipe("refine", 1.58, True, 0.1)
    assert signs.stages[0].relative_lr > others.stages[0].relative_lr
    assert replace(signs, stages=others.stages) == others


def test_the_second_stage_of_best_goes_farther_at_1_bit():
    signs, ternary, two_bits = (find_recipe("best", bits, True, 0.1) for bits in (1, 1.58, 2))
    assert (signs.network, signs.stages[0]) == (two_bits.network, two_bits.stages[0])
    assert ternary.stages == two_bits.stages
    fast, slow = signs.stages[1], two_bits.stages[1]
    assert fast == replace(slow, relative_lr=0.03, path=24.0) and fast.path > 2 * slow.path


def test_a_conversion_cut_short_goes_on_with_the_same_bits(data, teacher, tmp_path):
    """Once while it learns blocks, once while it learns outputs."""
    options = {"bits": 1, "recipe": "best", "distill_from": teacher, "epochs": 4, "verbose": 0, "random_state": 0}
    whole = tb.ViT(**options, batch_size=16).fit(*data)
    for updates in (5, 20):
        model = tb.ViT(**options, batch_size=16, augment=CutShort(updates))
        assert model.fit(*data, checkpoint=tmp_path / str(updates), every=1e9).interrupted_
        model.fit(*data, checkpoint=tmp_path / str(updates), resume=True)
        np.testing.assert_array_equal(model.decision_function(data[0]), whole.decision_function(data[0]))


def test_the_names_are_public():
    assert {"Recipe", "Stage", "Stages"} <= set(train.__all__)
