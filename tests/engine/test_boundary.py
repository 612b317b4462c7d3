"""Tensors in Python's hands: numbers of every kind beside them, conversions, comparisons, updates by hand."""

import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tinybitvit as tb
from tinybitvit import Tensor, nn
from tinybitvit import functional as F

# --- numbers beside Tensors -------------------------------------------------------------------------------------------

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
NUMPY_KINDS = ["float64", "float32", "int64", "int32", "uint8"]


@settings(deadline=None)
@given(
    dtype=st.sampled_from(["float32", "float64"]),
    kind=st.sampled_from([None, *NUMPY_KINDS]),
    number=st.integers(1, 4),
    values=st.lists(st.floats(0.25, 4, width=32), min_size=1, max_size=4),
    operation=st.sampled_from(OPERATORS),
    swapped=st.booleans(),
)
def test_a_number_beside_a_tensor_is_as_in_torch(dtype, kind, number, values, operation, swapped):
    """Value, dtype and gradient, for Python's and NumPy's numbers on either side."""
    scalar = number if kind is None else np.dtype(kind).type(number)
    ours = Tensor(np.array(values, dtype), requires_grad=True)
    theirs = torch.tensor(np.array(values, dtype), requires_grad=True)
    y = operation(scalar, ours) if swapped else operation(ours, scalar)
    z = operation(number, theirs) if swapped else operation(theirs, number)
    assert type(y) is Tensor and y.dtype == dtype
    weights = np.cos(np.arange(len(values))).astype(dtype)
    y.backward(weights)
    z.backward(torch.tensor(weights))
    tolerance = {"rtol": 1e-5 if dtype == "float32" else 1e-12, "atol": 1e-7}
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), **tolerance)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), **tolerance)
    assert ours.grad.dtype == dtype


@settings(deadline=None)
@given(
    base=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5]), min_size=3, max_size=3),
    exponent=st.lists(st.sampled_from([0.0, 1.0, 2.0, 0.5]), min_size=3, max_size=3),
)
def test_a_tensor_to_the_power_of_a_tensor_is_as_in_torch(base, exponent):
    ours = [Tensor(np.array(v), requires_grad=True) for v in (base, exponent)]
    theirs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (base, exponent)]
    y, z = ours[0] ** ours[1], theirs[0] ** theirs[1]
    with np.errstate(divide="ignore"):
        y.sum().backward()
    z.sum().backward()
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-13)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-13)


def test_a_whole_number_beside_bytes_must_fit_them():
    x = Tensor(np.array([1, 200], "uint8"))
    assert (x + np.int64(1)).dtype == "uint8"
    with pytest.raises(OverflowError, match=r"^300 is no uint8: make the Tensor beside it with dtype='int64'"):
        x + 300


@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int64", "uint64"])
@pytest.mark.parametrize("number", [-1, 300, -(2**15) - 1, 2**63, -(2**63) - 1, 2**70, -(2**2000), 100, 16777216.5])
def test_any_number_can_be_compared_with_whole_ones(compare, dtype, number):
    values = np.array([1, 100, np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    found = compare(Tensor(values), number)
    assert found.dtype == bool
    if isinstance(number, int) or dtype in ("uint8", "int8", "int16"):
        assert found.numpy().tolist() == [compare(int(v), number) for v in values]


def test_a_fraction_beside_whole_numbers_keeps_its_digits():
    assert (Tensor([3]) * 0.1).item() == 3 * 0.1
    assert not (Tensor([16777216]) == 16777216.5).item()
    assert (Tensor(np.array([3], "uint8")) * 0.1).dtype == "float32"  # images stay as small as they were


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">u2"])
def test_the_byte_order_of_other_machines_is_turned_around(dtype):
    values = np.array([[1.0, 2.0, 3.0, 5.0]]).astype(dtype)
    for x in (Tensor(values), Tensor(np.zeros(1), dtype=dtype), tb.functional.as_tensor(values) + 0):
        assert x.dtype.isnative
    assert Tensor(values).numpy().tolist() == values.tolist()
    if dtype == ">f4":
        assert np.array_equal(F.absmax(Tensor(values)).numpy(), F.absmax(Tensor(values.astype("float32"))).numpy())


def test_what_learns_keeps_to_fractions():
    p = nn.Parameter(np.ones(3, "float32"))
    with pytest.raises(TypeError, match="only floating point Tensors can have a gradient, not int64"):
        p.data = [1, 2, 3]
    assert p.dtype == "float32"


# --- conversions ------------------------------------------------------------------------------------------------------


def test_as_a_numpy_array():
    x = Tensor([1.0, 2.0])
    assert np.asarray(x).dtype == "float32" and np.asarray(x).tolist() == [1, 2]
    assert np.asarray(x, dtype="float64").dtype == "float64"
    assert np.array(x, copy=True) is not x.data and np.stack([x, x]).shape == (2, 2)
    with pytest.raises(TypeError, match=r"would drop the graph.*use its .numpy"):
        np.asarray(Tensor([1.0], requires_grad=True))
    with pytest.raises(TypeError):
        np.sqrt(x)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_made_from_tensors(dtype):
    one, two = Tensor(np.array([1, 2], dtype)), Tensor(np.array([3, 4], dtype))
    x = Tensor([one, two])
    assert x.dtype == dtype and x.numpy().tolist() == [[1, 2], [3, 4]]
    assert Tensor([one[0], one[1]]).numpy().tolist() == [1, 2]
    assert Tensor([[one[0], 5]]).numpy().tolist() == [[1, 5]]
    assert Tensor(one).data is one.data
    if dtype != "int64":
        p = nn.Parameter(Tensor([one, two]))
        assert type(p) is nn.Parameter and p.requires_grad and p.dtype == dtype


def test_a_list_of_tensors_that_learn_is_refused():
    """Their gradients would be lost without a word."""
    w = nn.Parameter([1.0, 2.0])
    for call in (lambda: Tensor([w, w]), lambda: Tensor([w[0], 3.0]), lambda: w * [w[0], w[1]]):
        with pytest.raises(TypeError, match="would drop the graph"):
            call()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("12", TypeError, "needs numbers, not str"),
        (None, TypeError, "needs numbers, not NoneType|unsupported operand"),
        ([None, 1.0], TypeError, "needs numbers, not list"),
        (np.array(["a"]), TypeError, "needs numbers, not ndarray"),
        (1j, TypeError, "needs numbers, not complex"),
        ([[1, 2], [3]], ValueError, "lists of equal length at each depth"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), TypeError, "would lose its mask: fill it first"),
    ],
    ids=str,
)
def test_what_is_no_array_of_numbers(data, error, words):
    for call in (lambda: Tensor(data), lambda: Tensor([1.0, 2.0]) * data):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_numpy_matrix_is_an_array_like_any_other():
    """Its own * would be a matrix product."""
    x = Tensor(np.matrix([[1.0, 2.0], [3.0, 4.0]]))
    assert type(x.data) is np.ndarray and (x * x).numpy().tolist() == [[1, 4], [9, 16]]


def test_formats():
    assert f"{Tensor(1.2345):.2f}" == "1.23" and f"{Tensor([7]):>4d}" == "   7"
    assert f"{Tensor([1.0, 2.0])}" == str(Tensor([1.0, 2.0])) == "Tensor([1. 2.])"
    with pytest.raises(ValueError, match=r"shape \(2,\) is not one number"):
        f"{Tensor([1.0, 2.0]):.2f}"


def test_one_number():
    for x in (Tensor(2.5), Tensor([2.5]), Tensor([[2.5]], requires_grad=True)):
        assert x.item() == float(x) == 2.5 and int(x) == 2 and bool(x)
    assert not Tensor([0.0])
    for call in (bool, float, int, Tensor.item):
        for x in (Tensor([1.0, 2.0]), Tensor(np.zeros((0, 2)))):
            with pytest.raises(ValueError, match="is not one number; pick one by an index, or reduce it"):
                call(x)


# --- iteration, membership, comparison --------------------------------------------------------------------------------


def test_iteration():
    x = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    rows = list(x)
    assert [row.numpy().tolist() for row in rows] == [[0, 1], [2, 3], [4, 5]]
    (rows[0] + 2 * rows[2]).sum().backward()
    assert x.grad.tolist() == [[1, 1], [0, 0], [2, 2]]
    first, *rest = Tensor([1.0, 2.0, 3.0])
    assert first.item() == 1 and len(rest) == 2
    for call in (list, sum, lambda x: [*x], lambda x: 1.0 in [*x]):
        with pytest.raises(TypeError, match="without axes cannot be iterated"):
            call(Tensor(3.0))


@settings(deadline=None)
@given(
    a=st.lists(st.integers(-2, 2), min_size=3, max_size=3),
    b=st.one_of(st.integers(-2, 2), st.lists(st.integers(-2, 2), min_size=3, max_size=3)),
)
def test_equality_is_element_by_element(a, b):
    for left, right in [(Tensor(a), b), (Tensor(a), Tensor(b)), (np.array(a), Tensor(b)), (Tensor(a), np.array(b))]:
        equal, other = left == right, left != right
        assert type(equal) is Tensor and equal.dtype == "bool" and not equal.requires_grad
        assert equal.numpy().tolist() == (np.array(a) == np.array(b)).tolist()
        assert other.numpy().tolist() == (np.array(a) != np.array(b)).tolist()
    assert all((number in Tensor(a)) == (number in a) for number in range(-3, 4))


def test_equality_with_what_is_no_number():
    x = Tensor([1.0, 2.0])
    assert (x == None) is False and (x != None) is True and (x == "a") is False and "a" not in x  # noqa: E711
    with pytest.raises(TypeError, match="not supported between"):
        x < "a"  # noqa: B015
    with pytest.raises(ValueError, match="shapes"):
        x == Tensor([1.0, 2.0, 3.0])  # noqa: B015


def test_sets_and_dicts_go_by_identity():
    a, b = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert len({a, b, a}) == 2 and a in {a} and b not in {a} and {a: 1, b: 2}[b] == 2


# --- updates by hand --------------------------------------------------------------------------------------------------

UPDATES = [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.imatmul]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("recording", [True, False])
def test_a_parameter_is_not_replaced_by_an_update(update, recording):
    p = nn.Parameter([1.0, 2.0])
    with pytest.raises(TypeError, match=r"use p.data -= step"):
        if recording:
            update(p, np.ones(2))
        else:
            with tb.no_grad():
                update(p, np.ones(2))
    assert p.numpy().tolist() == [1, 2]


@pytest.mark.parametrize("update", UPDATES)
def test_a_leaf_is_not_replaced_by_an_update_within_no_grad(update):
    w = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"write p.data -= step"), tb.no_grad():
        update(w, np.ones(2))


@pytest.mark.parametrize("value", [Tensor([1.0]), np.ones((1, 2)), 3.0])
def test_what_replaces_a_parameter_of_a_module_must_learn(value):
    layer = nn.Linear(2, 1)
    weight = layer.weight
    with pytest.raises(TypeError, match=r"Linear.weight is a Parameter.*set weight.data"):
        layer.weight = value
    assert layer.weight is weight
    layer.weight, layer.bias = nn.Parameter(np.ones((1, 2))), None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_an_update_of_the_data():
    p = nn.Parameter([1.0, 2.0])
    p.data -= 0.5
    p.data = p.data * 2
    p.data = Tensor([7.0, 8.0])
    assert type(p.data) is np.ndarray and p.numpy().tolist() == [7, 8] and p.requires_grad


# --- what an operation cannot do --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: x @ x, r"Matmul of \(2, 3\) and \(2, 3\): "),
        (lambda x: x + np.ones(2), r"Add of \(2, 3\) and \(2,\): "),
        (lambda x: x.reshape(4, 2), r"Reshape of \(2, 3\): cannot reshape"),
        (lambda x: x.sum(axis=2), r"Sum of \(2, 3\): axis 2 is out of range"),
        (lambda x: F.softmax(x, axis=4), r"Softmax of \(2, 3\): axis 4 is out of range"),
        (lambda x: x.transpose(0, 2), r"Transpose of \(2, 3\): axis 2 is out of bounds"),
        (lambda x: x[5], r"GetItem of \(2, 3\): index 5 is out of bounds"),
        (lambda x: F.concatenate([x, x[0]]), r"Concatenate of \(2, 3\) and \(3,\): "),
        (lambda x: F.linear(x, np.ones((4, 2))), r"Linear of \(2, 3\) and \(4, 2\): "),
        (lambda x: F.layer_norm(x, np.ones(2)), r"LayerNorm of \(2, 3\) and \(2,\): "),
    ],
)
def test_a_refusal_names_the_operation_and_the_shapes(call, words):
    with pytest.raises((ValueError, IndexError), match=words):
        call(Tensor(np.ones((2, 3))))


@pytest.mark.parametrize("target", [np.ones(3), np.ones((1, 3)), np.ones((3, 3)), 1.0, np.array(1.0)])
def test_mse_loss_does_not_broadcast(target):
    with pytest.raises(ValueError, match=r"mse_loss: input has shape .* they must be equal"):
        F.mse_loss(Tensor(np.ones((3, 1))), target)


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", None])
def test_sizes_of_layers(size):
    for name, call in {
        "in_features": lambda: nn.Linear(size, 2),
        "out_features": lambda: nn.Linear(2, size),
        "dim": lambda: nn.LayerNorm(size),
        "height": lambda: nn.PatchEmbed((size, 4), 2, 3, 8),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be a whole number from 1, not {size!r}"):
            call()
    assert nn.Linear(np.int64(2), np.int32(3)).weight.shape == (3, 2)
    assert F.patchify(np.ones((1, 4, 4, 1)), np.int64(2)).shape == (1, 4, 4)
    with pytest.raises(ValueError, match="one number or a pair"):
        F.patchify(np.ones((1, 4, 4, 1)), (2, 2, 1))


@pytest.mark.parametrize("p", [1, -0.1, 2, float("nan"), "0.5", None])
def test_dropout_needs_a_share(p):
    for call in (lambda: nn.Dropout(p), lambda: F.dropout(Tensor([1.0]), p)):
        with pytest.raises(ValueError, match=r"p must lie in \[0, 1\), not"):
            call()
