"""What a student learns from a teacher, against the same formulas in torch."""

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
    """The relative error of the tokens after every block, and both models' last tokens."""
    h = mine = teacher.embed(x).detach()
    if not forced:
        mine = student.embed(x).detach()
    errors, w = [], weight[:, None, None]
    for block, theirs in zip(student.blocks, teacher.blocks, strict=True):
        target = theirs(h).detach()
        mine = block(h if forced else mine)
        errors.append((w * (mine - target) ** 2).mean() / (w * (target - h) ** 2).mean())
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
