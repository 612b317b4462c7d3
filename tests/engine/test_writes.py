"""A backward pass after a saved array was changed: an error, or the gradient where the values were."""

import numpy as np
import pytest

from tinybitvit import Tensor, nn
from tinybitvit import functional as F
from tinybitvit.optim import SGD, AdamW

START = np.array([1.0, 2.0, 3.0], "float32")


def learner():
    """A parameter in the buffer of an optimiser, and that optimiser, with another parameter beside it."""
    p, other = nn.Parameter(START.copy()), nn.Parameter(np.full((2, 2), 5, "float32"))
    return p, other, SGD([p, other], lr=0.1)


def step(p, other, optimizer):
    p.grad = np.ones(3, "float32")
    optimizer.step()
    optimizer.zero_grad()


def shrink(p, other, optimizer):
    p.data -= 0.5


def load(p, other, optimizer):
    holder = nn.Module()
    holder.p = p
    holder.load_state_dict({"p": np.zeros(3, "float32")})


def replace_then_step(p, other, optimizer):
    p.data = np.zeros(3, "float32")
    step(p, other, optimizer)


CHANGES = [step, shrink, load, replace_then_step]
USES = {  # graphs that have saved the values, as themselves or as a view
    "p * p": lambda p: p * p,
    "a view": lambda p: p.reshape(3, 1) * p.reshape(1, 3),
    "a slice": lambda p: p[1:] * p[:2],
    "detached": lambda p: p.detach() * (p * 1.0),
    "linear": lambda p: F.linear(Tensor(np.ones((2, 3), "float32"), requires_grad=True), p.reshape(1, 3)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_array_is_noticed(change, use):
    p, other, optimizer = learner()
    y = use(p).sum()
    change(p, other, optimizer)
    with pytest.raises(RuntimeError, match=r"saved was changed since.*run the forward pass again"):
        y.backward()
    assert p.grad is None
    use(p).sum().backward()  # the next forward pass is as good as ever
    assert p.grad.shape == (3,)


@pytest.mark.parametrize("change", CHANGES)
def test_a_frozen_weight_is_watched_too(change):
    p, other, optimizer = learner()
    p.requires_grad = False
    x = Tensor(np.ones(3, "float32"), requires_grad=True)
    y = (x * p).sum()
    change(p, other, optimizer)
    with pytest.raises(RuntimeError, match="changed since"):
        y.backward()


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_not_saved_may_change(change):
    p, other, optimizer = learner()
    y = ((p + 1) * Tensor(START)).sum()
    change(p, other, optimizer)
    y.backward()
    assert p.grad.tolist() == START.tolist()


def test_a_neighbour_in_the_buffer_is_not_changed_by_a_step():
    p, other, optimizer = learner()
    y = (other * other).sum()
    step(p, other, optimizer)
    y.backward()
    assert other.grad.tolist() == [[10, 10], [10, 10]]


def test_new_data_leave_the_old_graph_right():
    p = nn.Parameter(START.copy())
    y = (p * p).sum()
    p.data = np.zeros(3, "float32")
    y.backward()
    assert p.grad.tolist() == (2 * START).tolist()


def test_one_graph_for_two_optimisers_is_refused_in_the_middle():
    """As a GAN that updates its critic between the two backward passes of one forward pass."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    x = Tensor(np.ones((2, 3), "float32"))
    hidden = first(x)
    optimizer = AdamW(second.parameters(), lr=0.1)
    second(hidden.detach()).sum().backward()
    late = second(hidden).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="Linear had saved was changed since"):
        late.backward()


def test_training_steps_are_not_disturbed():
    layer = nn.Linear(3, 1)
    optimizer = AdamW(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(layer(Tensor(np.eye(3, dtype="float32"))), np.ones((3, 1), "float32"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
