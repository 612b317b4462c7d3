"""The edges of the operations: numbers that are none, half precision, nothing at all, targets of probability 0."""

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as TF

import tinybitvit as tb
from tinybitvit import functional as F

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 1e30, -1e30, 1e-40, 3.4e38, -3.4e38]


def both(ours, theirs, arrays, g):
    """[(ours, torch's)] for the value and the gradient of each array; g: a number, or None for a random one."""
    mine = [tb.Tensor(a, requires_grad=True) for a in arrays]
    other = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours(*mine), theirs(*other)
    g = np.random.default_rng(0).standard_normal(y.shape) if g is None else np.full(y.shape, g)
    y.backward(g.astype(y.dtype))
    expected.backward(torch.tensor(g.astype(y.dtype)))
    pairs = [(y.numpy(), expected.detach().numpy())]
    return pairs + [(a.grad, b.grad.numpy()) for a, b in zip(mine, other, strict=True)]


# --- numbers that are none, infinite, huge or tiny --------------------------------------------------------------------

UNARY = {
    **{name: (getattr(F, name), getattr(torch, name)) for name in ("neg", "exp", "log", "sqrt", "tanh", "sigmoid")},
    **{name: (getattr(F, name), getattr(torch, name)) for name in ("relu", "abs")},
    "gelu": (F.gelu, TF.gelu),
    "gelu tanh": (lambda x: F.gelu(x, "tanh"), lambda x: TF.gelu(x, approximate="tanh")),
    **{f"pow {p}": (lambda x, p=p: F.pow(x, p), lambda x, p=p: x**p) for p in (0, 1, 2, 3, -1, 0.5, -0.5, 2.5)},
    **{
        f"clip {low} {high}": (
            lambda x, low=low, high=high: F.clip(x, low, high),
            lambda x, low=low, high=high: torch.clamp(x, low, high),
        )
        for low, high in ((-0.5, 0.5), (None, 0.5), (-0.5, None), (1.0, -1.0), (-np.inf, np.inf))
    },
}
BINARY = {
    **{name: (getattr(F, name), getattr(torch, name)) for name in ("add", "sub", "mul", "div", "maximum")},
    "power": (F.power, torch.pow),
    "where": (lambda a, b: F.where(a > b, a, b), lambda a, b: torch.where(a > b, a, b)),
}
# Function, the inputs at which it differs, and why that stays
DIFFERENT = [
    ("gelu", [np.inf, 3.4e38], "x P(X <= x) = x there; PyTorch's vectorised form has nan and inf"),
    ("pow 0.5|pow -0.5", [-np.inf, -0.0], "IEEE 754's pow; PyTorch takes sqrt, which keeps the sign of -0"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("g", [1.0, -2.5, np.inf, np.nan])
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_special_numbers_are_as_in_torch(name, g):
    columns = [(x,) for x in SPECIAL] if name in UNARY else list(itertools.product(SPECIAL, SPECIAL))
    arrays = [np.array(column, "float32") for column in zip(*columns, strict=True)]
    off = np.zeros(len(columns), bool)
    for ours, theirs in both(*(UNARY | BINARY)[name], arrays, g):
        off |= ~np.isclose(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    allowed = [x for names, at, _ in DIFFERENT if re.fullmatch(names, name) for x in at]
    assert {repr(float(x)) for x in arrays[0][off]} <= {repr(float(np.float32(x))) for x in allowed}


@pytest.mark.parametrize("axis", [0, 1, None])
def test_equal_largest_numbers_share_as_in_torch(axis):
    x = np.array([[1, 2, 2], [2, -np.inf, 2]], "float32")
    axes = (0, 1) if axis is None else axis
    for ours, theirs in both(lambda t: F.max(t, axis), lambda t: torch.amax(t, axes), [x], None):
        np.testing.assert_allclose(ours, theirs)


# --- half precision ---------------------------------------------------------------------------------------------------

ROW = np.linspace(-1, 2, 96)
HALF = {
    "layer_norm": (F.layer_norm, lambda x, w, b: TF.layer_norm(x, (96,), w, b), [(8, 96), ROW, ROW]),
    "rms_norm": (lambda x, w: F.rms_norm(x, w, 1e-5), lambda x, w: TF.rms_norm(x, (96,), w, 1e-5), [(8, 96), ROW]),
    "gelu": (F.gelu, TF.gelu, [(8, 96)]),
    "gelu tanh": (lambda x: F.gelu(x, "tanh"), lambda x: TF.gelu(x, approximate="tanh"), [(8, 96)]),
    "softmax": (F.softmax, lambda x: torch.softmax(x, -1), [(8, 96)]),
    "log_softmax": (F.log_softmax, lambda x: torch.log_softmax(x, -1), [(8, 96)]),
    "sum": (lambda x: F.sum(x, 0), lambda x: x.sum(0), [(8, 96)]),
    "mean": (lambda x: F.mean(x, 0), lambda x: x.mean(0), [(8, 96)]),
    "var": (lambda x: F.var(x, 1), lambda x: x.var(1, correction=0), [(8, 96)]),
}


@pytest.mark.parametrize("size, offset", [(1.0, 0.0), (0.01, 0.0), (30.0, 100.0), (1.0, 500.0)])
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_as_in_torch(name, size, offset, rng):
    """As near to the truth (float64's) as PyTorch or nearer, or within a unit of the largest number's last place."""
    ours, theirs, inputs = HALF[name]
    arrays = [a if isinstance(a, np.ndarray) else size * rng.standard_normal(a) + offset for a in inputs]
    arrays = [a.astype("float16") for a in arrays]
    exact = both(ours, theirs, [a.astype("float64") for a in arrays], None)
    for (found, torchs), (_, truth) in zip(both(ours, theirs, arrays, None), exact, strict=True):
        assert found.dtype == "float16"
        error, their_error = abs(found - truth).max(), abs(torchs - truth).max()
        assert error <= max(their_error, abs(truth).max() / 1024)


def test_half_precision_of_attention_and_cross_entropy_is_that_of_float32(rng):
    arrays = [rng.standard_normal((2, 5, 4)) for _ in range(3)]
    logits, labels = 8 * rng.standard_normal((6, 300)), rng.integers(0, 300, 6)
    for call, inputs in [
        (F.scaled_dot_product_attention, arrays),
        (lambda x: F.multi_head_attention(x, 2), [rng.standard_normal((2, 5, 12))]),
        (lambda x: F.cross_entropy(x, labels), [logits]),
    ]:
        half = [a.astype("float16") for a in inputs]
        results = []
        for dtype in ("float16", "float32"):
            tensors = [tb.Tensor(a.astype(dtype), requires_grad=True) for a in half]
            y = call(*tensors)
            assert y.dtype == dtype
            y.backward(np.ones(y.shape, dtype))
            results.append([y.numpy(), *(t.grad for t in tensors)])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a.astype("float32"), b, rtol=2e-3, atol=1e-3 * abs(b).max())


def test_half_precision_sums_of_many_are_exact():
    """A chain of additions in float16 stops at 2048."""
    x = tb.Tensor(np.ones((4096, 2), "float16"), requires_grad=True)
    assert (x.sum(axis=0).numpy() == 4096).all()
    bias = tb.Tensor(np.zeros(2, "float16"), requires_grad=True)
    (x + bias).backward(np.ones((4096, 2), "float16"))
    assert (bias.grad == 4096).all()


# --- nothing ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:var")
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (5, 0, 0)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sum", "mean", "max", "var"])
def test_reductions_of_nothing_are_as_in_torch(name, shape):
    for axis in range(-len(shape), len(shape)):
        theirs = {
            "max": lambda x, axis=axis: torch.amax(x, axis),
            "var": lambda x, axis=axis: torch.var(x, axis, correction=0),
        }.get(name, lambda x, axis=axis: getattr(torch, name)(x, axis))
        ours = lambda x, axis=axis: getattr(F, name)(x, axis=axis)  # noqa: E731
        if name == "max" and not shape[axis]:
            with pytest.raises(ValueError, match="no maximum over axis"):
                ours(tb.Tensor(np.ones(shape)))
            continue
        for found, expected in both(ours, theirs, [np.ones(shape)], None):
            assert found.shape == expected.shape and np.array_equal(found, expected, equal_nan=True)


def test_variance_of_nothing_warns_as_the_mean_does():
    with pytest.warns(RuntimeWarning):
        assert np.isnan(F.var(tb.Tensor(np.ones((2, 0))), axis=1).numpy()).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm", "gelu"])
def test_whole_numbers_are_refused_where_fractions_come_out(name):
    with pytest.raises(TypeError, match="needs floating point numbers, not int64: convert them to float32 first"):
        getattr(F, name)(tb.Tensor([[1, 2, 3]]))


# --- probability 0 ----------------------------------------------------------------------------------------------------


def test_a_class_of_probability_0_adds_nothing():
    """0 ln 0 = 0, as for class numbers; PyTorch has nan for probabilities."""
    logits = np.array([[0.0, -np.inf, 1.0], [-np.inf, 2.0, 0.5]], "float32")
    labels = np.array([2, 1])
    theirs = lambda x: TF.cross_entropy(x, torch.tensor(labels))  # noqa: E731
    by_number = both(lambda x: F.cross_entropy(x, labels), theirs, [logits], 1)
    shares = np.eye(3, dtype="float32")[labels]
    x = tb.Tensor(logits, requires_grad=True)
    loss = F.cross_entropy(x, shares)
    loss.backward()
    for (ours, expected), found in zip(by_number, (loss.numpy(), x.grad), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_smoothing_gives_every_class_a_share():
    """So that a class that cannot be has an infinite loss, as in PyTorch, and a finite gradient."""
    logits, labels = np.array([[0.0, -np.inf, 1.0]], "float32"), np.array([2])
    ours = lambda x: F.cross_entropy(x, labels, label_smoothing=0.1)  # noqa: E731
    theirs = lambda x: TF.cross_entropy(x, torch.tensor(labels), label_smoothing=0.1)  # noqa: E731
    for found, expected in both(ours, theirs, [logits], 1):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_an_index_that_is_changed_later_picks_what_it_picked():
    index, x = np.array([0, 1]), tb.Tensor(np.arange(4.0), requires_grad=True)
    y = x[index]
    index[:] = 3
    y.backward(np.ones(2))
    assert x.grad.tolist() == [1, 1, 0, 0]


# --- whole numbers ----------------------------------------------------------------------------------------------------

WHOLE = ["bool", "uint8", "int8", "int16", "int32", "int64"]


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sigmoid"])
def test_functions_of_whole_numbers_are_float32_as_in_torch(name, dtype):
    values = np.array([1, 3, 12, 80]).astype(dtype)
    found, expected = getattr(F, name)(tb.Tensor(values)), getattr(torch, name)(torch.tensor(values))
    assert found.dtype == "float32" and expected.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "bool"])
def test_losses_of_whole_numbers_do_not_wrap(dtype):
    x, target = np.array([[3, 1, 100]]).astype(dtype), np.array([[30, 0, 1]]).astype(dtype)
    theirs = torch.tensor(x).float(), torch.tensor(target).float()
    assert F.mse_loss(tb.Tensor(x), target).item() == pytest.approx(TF.mse_loss(*theirs).item(), rel=1e-6)
    expected = TF.kl_div(*theirs, reduction="batchmean").item()
    assert F.kl_div(tb.Tensor(x), target).item() == pytest.approx(expected, rel=1e-6)
    fractions = np.array([[0.5, 1.5, 2.5]], "float32")
    for loss in (F.mse_loss(fractions, target), F.mse_loss(x, fractions), F.kl_div(fractions, target)):
        assert loss.dtype == "float32"


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_dropout_of_whole_numbers_rescales_what_is_left(dtype):
    x = np.ones(1000, dtype)
    y, same = (F.dropout(tb.Tensor(a), 0.25, rng=np.random.default_rng(0)) for a in (x, x.astype("float32")))
    assert y.dtype == "float32" and np.array_equal(y.numpy(), same.numpy())
    assert set(y.numpy().tolist()) == {0.0, float(np.float32(1) / np.float32(0.75))}


# --- half precision: sums are made in float32 -------------------------------------------------------------------------


@pytest.mark.parametrize("rows, columns, size", [(5000, 4, 1), (2, 1000, 100)])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "log_softmax"])
def test_gradients_of_half_precision_are_summed_in_float32(name, rows, columns, size, rng):
    x, g = rng.standard_normal((rows, columns)).astype("float16"), np.full((rows, columns), size, "float16")
    weights = {"layer_norm": 2, "rms_norm": 1, "log_softmax": 0}[name]
    arrays = [x, np.ones(columns, "float16"), np.zeros(columns, "float16")][: 1 + weights]
    half = [tb.Tensor(a, requires_grad=True) for a in arrays]
    full = [torch.tensor(a.astype("float64"), requires_grad=True) for a in arrays]
    getattr(F, name)(*half).backward(g)
    functions = {
        "layer_norm": lambda x, w, b: TF.layer_norm(x, (columns,), w, b),
        "rms_norm": lambda x, w: TF.rms_norm(x, (columns,), w, eps=1e-6),
        "log_softmax": lambda x: torch.log_softmax(x, -1),
    }
    functions[name](*full).backward(torch.tensor(g.astype("float64")))
    for a, b in zip(half, full, strict=True):
        assert a.grad.dtype == "float16"
        np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=2e-3, atol=2e-3 * size)


# --- shapes at the edge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 0, 4)])
def test_quantisers_of_nothing_give_nothing(shape):
    x = np.ones(shape, "float32")
    assert F.absmax(x).shape == F.nbit(x, 4, scale="absmax").shape == shape


def test_concatenate_needs_one_axis():
    with pytest.raises(ValueError, match="concatenate needs one axis, a whole number, not None"):
        F.concatenate([tb.Tensor([[1.0]]), tb.Tensor([[2.0]])], axis=None)


def test_a_target_that_is_learnt_gets_its_gradient():
    """Of two networks that learn from each other, as in torch."""
    rng = np.random.default_rng(0)
    for a, b in both(
        lambda x, t: F.cross_entropy(x, F.softmax(t)),
        lambda x, t: TF.cross_entropy(x, torch.softmax(t, -1)),
        [rng.standard_normal((4, 3)) for _ in range(2)],
        1.0,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10)
