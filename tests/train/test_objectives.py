"""What a student learns from a teacher, against the same formulas in torch."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
import torch_reference as reference
from torch_reference import assert_close, copy_weights, randomize

from tinybitvit import Tensor, autograd
from tinybitvit import functional as F
from tinybitvit.models import VisionTransformer, start_from
from tinybitvit.optim import SGD
from tinybitvit.train import Trainer
from tinybitvit.train.convert.objectives import Distill, Reconstruct

SHAPE = {"image_size": 8, "patch_size": 4, "in_channels": 2, "num_classes": 3, "dim": 8, "depth": 3, "heads": 2}


def pair(rng, bits):
    """A float64 student and a teacher, and their twins in torch."""
    student = randomize(VisionTransformer(**SHAPE, bits=bits, layer_scale=0.5, sub_norm=False), rng)
    teacher = randomize(VisionTransformer(**SHAPE, layer_scale=0.5), rng)
    twins = [reference.VisionTransformer(**m.config).double() for m in (student, teacher)]
    for model, twin in zip((student, teacher), twins, strict=True):
        copy_weights(model, twin)
    return student, teacher, *twins


def torch_errors(student, teacher, x, forced, weight):
    """The mean relative error of the images' tokens after every block, and both models' last tokens."""
    h = mine = teacher.embed(x).detach()
    if not forced:
        mine = student.embed(x).detach()
    errors = []
    for block, theirs in zip(student.blocks, teacher.blocks, strict=True):
        target = theirs(h).detach()
        mine = block(h if forced else mine)
        ratios = ((mine - target) ** 2).mean((1, 2)) / ((target - h) ** 2).mean((1, 2))
        errors.append((weight * ratios).sum() / weight.sum())
        h = target
    return errors, mine, h


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bits", [32, 1.58, 1])
@pytest.mark.parametrize("objective", ["blocks", "outputs", "all"])
def test_objective_and_gradients_equal_torch(objective, bits, weighted, rng):
    student, teacher, their_student, their_teacher = pair(rng, bits)
    x, y = rng.standard_normal((5, 8, 8, 2)), np.array([0, 2, 1, 1, 0])
    weight = rng.random(5) if weighted else np.ones(5)
    w, tx = torch.from_numpy(weight), torch.from_numpy(x)
    errors, mine, h = torch_errors(their_student, their_teacher, tx, objective == "blocks", w)
    if objective == "blocks":
        ours, expected = Reconstruct(teacher), sum(errors)
    else:
        options = {"hidden": 0.3} if objective == "outputs" else {"hidden": 0.0, "labels": 0.7}
        options["loss"] = partial(F.cross_entropy, label_smoothing=0.1)
        ours = Distill(teacher, temperature=1.7, **options)
        q = their_student.head(their_student.norm(mine).mean(dim=1))
        p = TF.softmax(their_teacher.head(their_teacher.norm(h).mean(dim=1)).detach() / 1.7, dim=-1)
        divergence = (p * (p.log() - TF.log_softmax(q / 1.7, dim=-1))).sum(dim=1)
        expected = 1.7**2 * (w * divergence).sum() / w.sum()
        if objective == "outputs":
            expected = expected + 0.3 * sum(errors) / 3
        else:
            labels = TF.cross_entropy(q, torch.from_numpy(y), reduction="none", label_smoothing=0.1)
            labels = (w * labels).sum() / w.sum()
            expected = expected + 0.7 * labels
    extra = (Tensor(weight),) if weighted else ()
    output, loss = ours(student, Tensor(x), Tensor(y), *extra)
    assert output.shape == (5, 3) and all(p.grad is None for p in teacher.parameters())
    assert_close(loss.data, expected)
    expected.backward()
    named = dict(student.named_parameters())
    theirs = dict(their_student.named_parameters())
    for (name, _), g in zip(named.items(), autograd.grad(loss, list(named.values())), strict=True):
        expected = theirs[name].grad
        assert_close(g, np.zeros_like(g) if expected is None else expected, name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("objective", [Reconstruct, Distill])
def test_the_number_of_shards_does_not_matter(objective, weighted, rng):
    """Also where images differ in contrast, and what a teacher's block does with them."""
    x, y = rng.standard_normal((12, 8, 8, 2)) * 10 ** rng.uniform(-1, 1, (12, 1, 1, 1)), rng.integers(0, 3, 12)
    weight = rng.random(12) if weighted else None
    student, teacher, *_ = pair(rng, 1.58)
    found = []
    for workers in (1, 2, 4):
        model = copy.deepcopy(student)
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), workers=workers, objective=objective(teacher))
        loss = trainer.step(x, y, weight)
        found.append((loss, [p.data for p in model.parameters()]))
    (loss, params), *others = found
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, rel=1e-12)
        for mine, theirs in zip(params, other, strict=True):
            assert_close(theirs, mine, "a parameter", 1e-9)


def test_a_block_of_the_teacher_that_does_nothing_leaves_the_loss_finite(rng):
    student, teacher, *_ = pair(rng, 1.58)
    for weight in (teacher.blocks[1].attn.proj, teacher.blocks[1].mlp.fc2):
        weight.weight.data[...], weight.bias.data[...] = 0, 0
    for objective in (Reconstruct(teacher), Distill(teacher)):
        _, loss = objective(student, Tensor(rng.standard_normal((2, 8, 8, 2))), np.array([0, 1]))
        assert np.isfinite(loss.item())


def test_a_copy_of_the_teacher_has_nothing_to_learn_from_its_blocks(rng):
    _, teacher, _, _ = pair(rng, 32)
    copy = pair(rng, 32)[0]
    start_from(copy, teacher)
    x = Tensor(rng.standard_normal((2, 8, 8, 2)))
    output, loss = Reconstruct(teacher)(copy, x, None)
    assert float(loss.data) == 0
    np.testing.assert_array_equal(output.data, teacher(x).data)


def test_no_gradient_crosses_a_block(rng):
    """A change of the first block leaves the gradients of all others as they are."""
    student, teacher, _, _ = pair(rng, 1)
    x, params = Tensor(rng.standard_normal((2, 8, 8, 2))), list(student.blocks[2].parameters())
    before = autograd.grad(Reconstruct(teacher)(student, x, None)[1], params)
    for p in student.blocks[0].parameters():
        p.data[...] = rng.standard_normal(p.shape)
    after = autograd.grad(Reconstruct(teacher)(student, x, None)[1], params)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
