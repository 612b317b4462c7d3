"""Copies of Tensors, modules and optimisers go on learning like the original, and apart from it."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybitvit import Tensor, nn
from tinybitvit import functional as F
from tinybitvit.models import VisionTransformer
from tinybitvit.optim import SGD, AdamW, WarmupCosine
from tinybitvit.train import Trainer


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


WAYS = {"deepcopy": copy.deepcopy, "pickle": pickled, "twice": lambda thing: pickled(copy.deepcopy(thing))}
X = np.random.default_rng(0).standard_normal((8, 8, 8, 1), "float32")
Y = np.arange(8) % 3


def network(bits=32):
    sizes = {"patch_size": 4, "in_channels": 1, "num_classes": 3, "dim": 8, "depth": 1, "heads": 2}
    return VisionTransformer(8, **sizes, bits=bits, rng=np.random.default_rng(1))


def train(model, optimizer, schedule, steps):
    """The losses of some steps."""
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(Tensor(X)), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@settings(deadline=None, max_examples=25)
@given(
    way=st.sampled_from(list(WAYS)),
    make=st.sampled_from([lambda p: AdamW(p, lr=0.01), lambda p: SGD(p, lr=0.1, momentum=0.9)]),
    bits=st.sampled_from([32, 1.58, 1]),
    before=st.integers(0, 3),
    frozen=st.booleans(),
)
def test_a_copy_learns_on_bit_for_bit(way, make, bits, before, frozen):
    model = network(bits)
    model.head.bias.requires_grad = not frozen
    optimizer = make(model.parameters())
    whole = model, optimizer, WarmupCosine(optimizer, 20, warmup=2)
    train(*whole, before)
    twin = WAYS[way](whole)
    state = {name: a.copy() for name, a in model.state_dict().items()}
    losses = train(*twin, 4)
    assert all((a == state[name]).all() for name, a in model.state_dict().items())  # the original has not moved
    assert train(*whole, 4) == losses
    assert all((a == twin[0].state_dict()[name]).all() for name, a in model.state_dict().items())
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_of_an_optimiser_alone_brings_its_own_parameters(way):
    p = nn.Parameter([1.0, 2.0])
    optimizer = AdamW([p], lr=0.1)
    p.grad = np.ones(2, "float32")
    twin = way(optimizer)
    (q,) = twin.param_groups[0]["params"]
    assert type(q) is nn.Parameter and q is not p and q.grad.tolist() == [1, 1]
    twin.step()
    assert p.numpy().tolist() == [1, 2] and (q.numpy() < p.numpy()).all()
    assert twin.gradient_views().keys() == {q} and not np.shares_memory(twin.buffers[0].data, optimizer.buffers[0].data)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_works_in_a_trainer(way):
    """Which writes gradients straight into the optimiser's buffer."""
    model = network()
    pair = model, AdamW(model.parameters(), lr=0.01)
    Trainer(*pair, workers=1).step(X, Y)
    twin = way(pair)
    losses = [[Trainer(*both, workers=1).step(X, Y) for _ in range(3)] for both in (pair, twin)]
    assert losses[0] == losses[1] and losses[0][2] < losses[0][0]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_leaf_is_copied_with_its_gradient(way):
    for x in (Tensor([1.0, 2.0], requires_grad=True), nn.Parameter([1.0, 2.0])):
        (x * x).sum().backward()
        twin = way(x)
        assert type(twin) is type(x) and twin.requires_grad and twin.grad.tolist() == [2, 4]
        (twin * twin).sum().backward()
        assert twin.grad.tolist() == [4, 8] and x.grad.tolist() == [2, 4]
        assert not np.shares_memory(x.data, twin.data)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_graph_is_not_copied(way):
    y = Tensor([1.0], requires_grad=True) * 2
    with pytest.raises(TypeError, match=r"cannot be copied with its graph or pickled: use its .detach\(\)"):
        way(y)
    assert way(y.detach()).item() == 2
    assert copy.copy(y).requires_grad  # a shallow copy shares the graph


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_shared_parameters_stay_shared(way):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    one, two = way((first, second))
    assert one.weight is two.weight and one.bias is not two.bias


def double(module, inputs, output):
    return output * 2


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_hooks_go_with_a_copy_and_end_apart(way):
    """As in PyTorch: the copy computes the same; the handle of the original removes the original's hook only."""
    layer = nn.LayerScale(2, 1.0)
    handle = layer.register_forward_hook(double)
    twin, other = way((layer, handle))
    handle.remove()
    x = Tensor([1.0, 2.0])
    assert layer(x).numpy().tolist() == [1, 2] and twin(x).numpy().tolist() == [2, 4]
    other.remove()
    assert twin(x).numpy().tolist() == [1, 2]


def test_a_module_that_holds_a_lambda_is_deep_copied_with_it():
    layer = nn.LayerScale(1, 1.0)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    assert copy.deepcopy(layer)(Tensor([1.0])).item() == 2


def test_copies_hold_nothing_of_the_original():
    model = network()
    pair = copy.deepcopy((model, AdamW(model.parameters())))
    gone = [weakref.ref(p) for p in model.parameters()]
    del model
    gc.collect()
    assert pair and not any(ref() for ref in gone)
