"""What optimisers and schedules make of half precision and of numbers that make no sense."""

import numpy as np
import pytest
import torch

from tinybitvit import nn
from tinybitvit.optim import SGD, WarmupCosine, clip_grad_norm


@pytest.mark.parametrize("norm", [1.0, 1000.0])
def test_clipping_half_precision_is_as_in_torch(norm):
    """The squares of 300 are beyond float16."""
    values = np.array([300, -300, 100], "float16")
    ours, theirs = nn.Parameter(np.zeros(3, "float16")), torch.zeros(3, dtype=torch.half, requires_grad=True)
    ours.grad, theirs.grad = values.copy(), torch.tensor(values)
    found, expected = clip_grad_norm([ours], norm), torch.nn.utils.clip_grad_norm_([theirs], norm)
    assert ours.grad.dtype == "float16"
    np.testing.assert_allclose(found, float(expected), rtol=2e-3)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=2e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"total": 10, "warmup": 0.1},
        {"total": 10, "warmup": True},
        {"total": 2.5},
        {"total": float("nan")},
        {"total": 10, "final": float("nan")},
    ],
)
def test_a_schedule_counts_in_whole_updates(given):
    with pytest.raises(ValueError, match="the schedule needs whole numbers total >= 1 and 0 <= warmup <= total, and"):
        WarmupCosine(SGD([nn.Parameter(np.ones(1, "float32"))], lr=1.0), **given)


def test_numbers_of_numpy_count_too():
    schedule = WarmupCosine(SGD([nn.Parameter(np.ones(1, "float32"))], lr=1.0), np.int64(10), np.int32(2))
    assert [schedule.factor(i) for i in range(2)] == [0.5, 1.0]
