"""A backward pass after a saved array was changed: an error, or the gradient where the values were."""

import threading

import numpy as np
import pytest
import torch
from devices import each_device, fetch

from tinybitvit import Tensor, nn
from tinybitvit import functional as F
from tinybitvit.autograd import _Writes
from tinybitvit.ops import Function
from tinybitvit.optim import SGD, AdamW
from tinybitvit.tensor import apply

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


@each_device
def test_a_bystander_in_the_same_buffer_may_change(device):
    """Two layers in one optimiser share a flat buffer: what happens to one of them is no business of the other."""
    first, second = nn.Linear(3, 3).to(device), nn.Linear(3, 3).to(device)
    SGD([*first.parameters(), *second.parameters()], lr=0.1)
    x = Tensor(np.ones((1, 3), "float32"), requires_grad=True, device=device)
    loss = (first(x) ** 2).sum()
    second.bias.data -= 1
    loss.backward()
    assert fetch(first.weight.grad).any()
    loss = (first(x) ** 2).sum()
    first.weight.data -= 1
    with pytest.raises(RuntimeError, match="changed since"):
        loss.backward()


def torch_memory(tmp_path):
    return torch.ones(3).numpy()


def mapped_file(tmp_path):
    array = np.memmap(tmp_path / "weights", dtype="float32", mode="w+", shape=3)
    array[:] = 1
    return array


def bytes_of_another(tmp_path):
    return np.frombuffer(bytearray(START.tobytes()), "float32")


@pytest.mark.parametrize("memory", [torch_memory, mapped_file, bytes_of_another])
def test_a_change_of_memory_that_belongs_to_others_is_noticed(memory, tmp_path):
    w = Tensor(memory(tmp_path), requires_grad=True)
    y = (w.reshape(3, 1) ** 2).sum()
    w.data -= 5
    with pytest.raises(RuntimeError, match="changed since"):
        y.backward()


@pytest.mark.parametrize("keep", [lambda x, w: (x, w), lambda x, w: [x, w]])
def test_what_a_forward_keeps_as_an_attribute_is_watched_and_not_written_into(keep):
    class Dot(Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.kept = keep(x, w)
            return (x * w).sum()

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.kept
            return w, x

    class Plain(Dot):
        @staticmethod
        def forward(ctx, x, w):
            ctx.x, ctx.w = x, w
            return (x * w).sum()

        @staticmethod
        def backward(ctx, g):
            return ctx.w, ctx.x

    for function in (Dot, Plain):
        x, w = Tensor(START.copy(), requires_grad=True), nn.Parameter(2 * START)
        (apply(function, x, w) + apply(function, x, w)).backward()
        assert x.data.tolist() == START.tolist() and w.data.tolist() == (2 * START).tolist()
        assert x.grad.tolist() == (4 * START).tolist() and w.grad.tolist() == (2 * START).tolist()
        y = apply(function, x, w)
        w.data -= 1
        with pytest.raises(RuntimeError, match="changed since"):
            y.backward()


def test_a_thread_may_write_while_another_looks():
    """Two trainings at the same time: what one notes does not disturb what the other looks up."""
    watch, arrays = _Writes(), [np.zeros(1) for _ in range(3)]
    writer = threading.Thread(target=lambda: watch.note(arrays[2]))

    class Slow(dict):
        def items(self):
            for n, pair in enumerate(super().items()):
                if n == 0 and writer.ident is None:
                    writer.start()
                    writer.join(0.1)
                yield pair

    watch.times = Slow()
    for array in arrays[:2]:
        watch.note(array)
    assert watch.touched([arrays[1]], 0)
    writer.join()
    assert watch.touched([arrays[2]], 2) and not watch.touched([START], 0)
