"""Tensor: what it makes of its inputs, dtypes, operators, NumPy beside it, devices, and what it refuses."""

import numpy as np
import pytest
import torch
from devices import each_gpu
from op_cases import KeepWhere

import tinybitvit as tb
from tinybitvit import Tensor, backend
from tinybitvit import functional as F

OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "@": lambda a, b: a @ b,
}
COMPARISONS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def array(rng, *shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


# --- construction and dtype -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, dtype",
    [
        (2.0, "float32"),
        ([1.0, 2.0], "float32"),
        ([[1, 2.5]], "float32"),
        ([1, 2], "int64"),
        (True, "bool"),
        (np.ones(2), "float64"),
        (np.ones(2, dtype="float16"), "float16"),
        (np.ones(2, dtype="uint8"), "uint8"),
        (np.float64(2), "float64"),
        (np.float32(2), "float32"),
        (Tensor(np.ones(2)), "float64"),
    ],
)
def test_dtype_of_a_new_tensor(data, dtype):
    """Python's fractions become float32; arrays keep their dtype, integers and bytes above all."""
    assert Tensor(data).dtype == dtype


def test_dtype_can_be_given():
    assert Tensor([1, 2], dtype="float64").dtype == "float64"
    assert Tensor(np.ones(2), dtype="float32").dtype == "float32"


def test_an_array_is_not_copied(rng):
    a = array(rng, 3)
    assert Tensor(a).data is a and Tensor(a).numpy() is a and Tensor(Tensor(a)).data is a
    assert Tensor(a).detach().data is a and Tensor(a).to("cpu").data is a


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scalar", [2, 0.1, np.float64(0.1), np.float32(0.5)], ids=repr)
@pytest.mark.parametrize("sign", "+-*/")
def test_scalars_adopt_the_dtype(sign, scalar, dtype):
    if dtype == "float16" and isinstance(scalar, np.float32):
        return  # NumPy's float32 is an array without axes: it mixes, as the next test has it
    operator, x = OPERATORS[sign], Tensor(np.array([1.0, 3.0], dtype=dtype), requires_grad=True)
    for y, expected in [
        (operator(x, scalar), operator(x.data, float(scalar))),
        (operator(scalar, x), operator(float(scalar), x.data)),
    ]:
        assert y.dtype == dtype and np.array_equal(y.data, expected)
        y.backward(np.ones(2))
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("sign", OPERATORS)
def test_float32_with_float64_mixes(sign, rng):
    """The result is float64, and each gradient has its own input's dtype."""
    a = Tensor(array(rng, 3, 3), requires_grad=True)
    b = Tensor(array(rng, 3, 3, dtype="float64"), requires_grad=True)
    y = OPERATORS[sign](a, b)
    assert y.dtype == "float64"
    y.backward(array(rng, 3, 3))
    assert a.grad.dtype == "float32" and b.grad.dtype == "float64"


def test_integers_keep_to_integers():
    x = Tensor(np.array([1, 200], dtype="uint8"))
    assert (x + 1).dtype == "uint8" and (x + 1).data.tolist() == [2, 201]
    assert (x * 0.5).data.tolist() == [0.5, 100.0]  # a fraction is not cut off


def test_numbers_beside_a_mask():
    """The mask of `where` is bool, and must not make bools of the numbers."""
    mask = np.array([True, False])
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    assert F.where(mask, x, 5).data.tolist() == [1.0, 5.0]
    assert F.where(mask, 0.1, x).data.tolist() == [0.1, 2.0]  # as a float64: float32 would give 0.10000000149
    assert F.where(mask, 2, 3).data.tolist() == [2, 3]
    assert (Tensor(mask) * 2).data.tolist() == [2, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x ** np.float64(2),
        lambda x: F.clip(x, np.float64(-0.5), np.float64(0.5)),
        lambda x: F.layer_norm(x, eps=np.float64(1e-5)),
        lambda x: F.rms_norm(x, eps=np.float64(1e-5)),
        lambda x: F.scaled_dot_product_attention(x, x, x, scale=np.float64(0.5)),
        lambda x: F.cross_entropy(x, np.array([0, 1, 2]), label_smoothing=np.float64(0.1)),
        lambda x: F.pad(x, 1, value=np.float64(1)),
        lambda x: F.dropout(x, np.float64(0.5)),
        lambda x: F.binary(x, ste="ede", temperature=np.float64(2)),
        lambda x: F.ternary(x, ste="approx_sign", width=np.float64(2)),
        lambda x: x.var(axis=np.int64(1), ddof=np.int64(1)),
        lambda x: x.sum(axis=np.int64(0)),
        lambda x: x[np.int64(1)],
    ],
)
def test_parameters_may_be_numpy_scalars(call, rng):
    """As a search over hyperparameters passes them; they change no dtype."""
    x = Tensor(array(rng, 3, 3), requires_grad=True)
    y = call(x)
    assert y.dtype == "float32"
    y.backward(np.ones(y.shape))
    assert x.grad.dtype == "float32"


# --- operators and methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", OPERATORS)
def test_operators_in_every_combination(sign, rng):
    """Tensor, array or (nested) list on either side: always a Tensor with NumPy's numbers and both gradients."""
    a, b = array(rng, 3, 3, dtype="float64"), array(rng, 3, 3, dtype="float64")
    operator = OPERATORS[sign]
    expected = operator(a, b)
    for left, right in [
        (Tensor(a), Tensor(b)),
        (Tensor(a), b),
        (a, Tensor(b)),
    ]:
        y = operator(left, right)
        assert type(y) is Tensor
        np.testing.assert_allclose(y.data, expected, rtol=1e-14)
    np.testing.assert_allclose(operator(a.tolist(), Tensor(b)).data, expected, rtol=1e-5)
    np.testing.assert_allclose(operator(Tensor(a), b.tolist()).data, expected, rtol=1e-5)


@pytest.mark.parametrize("sign", OPERATORS)
def test_an_array_on_the_left_gets_the_right_gradient(sign, rng):
    a, g = array(rng, 3, 3, dtype="float64"), array(rng, 3, 3, dtype="float64")
    x = Tensor(array(rng, 3, 3, dtype="float64"), requires_grad=True)
    OPERATORS[sign](a, x).backward(g)
    t = torch.tensor(x.data, requires_grad=True)
    OPERATORS[sign](torch.tensor(a), t).backward(torch.tensor(g))
    np.testing.assert_allclose(x.grad, t.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("sign", COMPARISONS)
def test_comparisons_give_masks(sign):
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    compare = COMPARISONS[sign]
    for left, right in [(Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b)), (Tensor(a, requires_grad=True), 2)]:
        mask = compare(left, right)
        assert type(mask) is Tensor and mask.dtype == "bool" and not mask.requires_grad
        assert mask.data.tolist() == compare(a, b).tolist()
    assert compare(2, Tensor(a)).data.tolist() == compare(2, a).tolist()


def test_methods_are_the_functions(rng):
    a = abs(array(rng, 2, 3, 4, dtype="float64")) + 0.1
    x = Tensor(a)
    for method, expected in [
        (x.sum(axis=1, keepdims=True), a.sum(axis=1, keepdims=True)),
        (x.mean(axis=(0, 2)), a.mean(axis=(0, 2))),
        (x.max(axis=-1, keepdims=True), a.max(axis=-1, keepdims=True)),
        (x.var(axis=0, ddof=1, keepdims=True), a.var(axis=0, ddof=1, keepdims=True)),
        (x.reshape(6, 4), a.reshape(6, 4)),
        (x.reshape((4, -1)), a.reshape(4, -1)),
        (x.transpose(2, 0, 1), a.transpose(2, 0, 1)),
        (x.transpose((1, 0, 2)), a.transpose(1, 0, 2)),
        (x.transpose(), a.T),
        (x.T, a.T),
        (x.exp(), np.exp(a)),
        (x.log(), np.log(a)),
        (x.sqrt(), np.sqrt(a)),
        (x.tanh(), np.tanh(a)),
        (-x, -a),
        (x**3, a**3),
        (x[0, 1:], a[0, 1:]),
        (x[Tensor(np.array([1, 0]))], a[[1, 0]]),
        (x[Tensor(np.array([1])), :, 2], a[[1], :, 2]),
        (x[x > 1], a[a > 1]),
        (abs(F.neg(x).data), a),
    ]:
        method = method.data if isinstance(method, Tensor) else method
        assert method.shape == expected.shape
        np.testing.assert_allclose(method, expected, rtol=1e-13)


def test_properties(rng):
    a = array(rng, 2, 3)
    x = Tensor(a)
    assert (x.shape, x.ndim, x.size, len(x), x.device) == ((2, 3), 2, 6, 2, "cpu")
    assert [row.data.tolist() for row in x] == a.tolist()
    assert Tensor(2.5).item() == float(Tensor(2.5)) == 2.5 and int(Tensor(3)) == 3
    assert type(Tensor(2.5).item()) is float
    assert bool(Tensor(1.0)) and not Tensor(0.0)
    assert repr(Tensor([1.0, 2.0], requires_grad=True)) == "Tensor([1. 2.], requires_grad=True)"
    assert repr(Tensor(np.zeros((20, 20)))) == "Tensor((20, 20), float64)"
    assert repr(Tensor(np.zeros(100))).startswith("Tensor([0. 0.") and repr(Tensor(np.zeros(101))).startswith(
        "Tensor((101,)"
    )


def test_a_tensor_is_a_key_by_identity():
    a, b = Tensor([1.0]), Tensor([1.0])
    assert {a: 1, b: 2}[b] == 2


# --- functional: what is more than a call of its op -------------------------------------------------------------------


def test_dropout_draws_its_mask(rng):
    x = Tensor(np.ones((200, 100), dtype="float32"), requires_grad=True)
    y = F.dropout(x, 0.25, rng=np.random.default_rng(1))
    assert set(np.unique(y.data)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y.data == 0).mean() == pytest.approx(0.25, abs=0.01)
    y.backward(np.ones(y.shape))
    assert np.array_equal(x.grad, y.data)
    assert np.array_equal(F.dropout(x, 0.25, rng=np.random.default_rng(1)).data, y.data)
    assert np.array_equal(F.dropout(x, 0.5, rng=KeepWhere(np.eye(200, 100))).data, 2 * np.eye(200, 100))


def test_dropout_without_rng_follows_manual_seed():
    x = np.ones((4, 5))
    tb.manual_seed(3)
    first = F.dropout(x).data
    second = F.dropout(x).data
    tb.manual_seed(3)
    assert np.array_equal(F.dropout(x).data, first) and not np.array_equal(first, second)


def test_dropout_does_nothing_in_evaluation():
    x = Tensor([1.0, 2.0])
    assert F.dropout(x, 0.9, training=False) is x and F.dropout(x, 0) is x


def test_patch_size_may_be_one_number(rng):
    x = array(rng, 2, 4, 4, 3)
    patches = F.patchify(x, 2)
    assert np.array_equal(patches.data, F.patchify(x, (2, 2)).data)
    assert np.array_equal(F.unpatchify(patches, 2, 4).data, x)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x: F.dropout(x, 1.0), ValueError, r"p must lie in \[0, 1\), not 1.0"),
        (lambda x: F.dropout(x, -0.1), ValueError, r"p must lie in \[0, 1\)"),
        (lambda x: F.layer_norm(x, bias=np.ones(2)), ValueError, "a bias without a weight; pass weight=ones"),
        (lambda x: F.concatenate([]), ValueError, "concatenate needs at least one Tensor"),
        (lambda x: F.softplus(x), AttributeError, "no attribute 'softplus'"),
        (lambda x: x ** "2", TypeError, "numbers"),
        (lambda x: x.__setitem__(0, 1.0), TypeError, "no in-place operations; build a new one with"),
        (lambda x: len(x.sum()), TypeError, "Tensor without axes"),
        (
            lambda x: Tensor([1, 2], requires_grad=True),
            TypeError,
            "only floating point Tensors.*not int64.*dtype='float32'",
        ),
        (lambda x: setattr(Tensor([1]), "requires_grad", True), TypeError, "only floating point Tensors"),
        (lambda x: setattr(x * 2, "requires_grad", False), RuntimeError, "leaves only; use .detach()"),
        (lambda x: x.to("gpu"), ValueError, "device must be 'cpu', 'cuda' or 'auto', not 'gpu'"),
        (lambda x: Tensor([1.0], device="tpu"), ValueError, "device must be"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(Tensor([1.0, 2.0], requires_grad=True))


def test_there_is_nothing_in_place():
    """x += 1 makes a new Tensor and leaves the old one, and the graph that holds it, as they were."""
    x = Tensor([1.0, 2.0], requires_grad=True)
    kept, data = x, x.data
    x += 1
    assert x is not kept and kept.data is data and data.tolist() == [1.0, 2.0]


def test_requires_grad_can_be_switched_on_leaves():
    x = Tensor([1.0])
    x.requires_grad = True
    assert (x * 2).requires_grad
    x.requires_grad = False
    assert not (x * 2).requires_grad


# --- devices ----------------------------------------------------------------------------------------------------------


@each_gpu
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("sign", OPERATORS)
def test_mixed_devices_are_refused(sign, swapped, device):
    here, there = Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2)), device=device)
    assert (here.device, there.device) == ("cpu", "cuda")
    a, b = (there, here) if swapped else (here, there)
    with pytest.raises(
        TypeError, match=r"on the CPU and on the GPU; move one of them with .to\('cpu'\) or .to\('cuda'\)"
    ):
        OPERATORS[sign](a, b)


@each_gpu
def test_mixed_devices_are_refused_by_functions_and_comparisons(device):
    here, there = Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2)), device=device)
    for call in (
        lambda: F.linear(here, there),
        lambda: F.concatenate([here, here, there]),
        lambda: F.where(there, here, here),
        lambda: here < there,
        lambda: there * np.ones(2),
    ):
        with pytest.raises(TypeError, match="on the CPU and on the GPU"):
            call()


@each_gpu
def test_moving_there_and_back(device):
    there = Tensor([1.0, 2.0], requires_grad=True, device=device)
    assert there.device == "cuda" and there.to("cuda") is there and "device='cuda'" in repr(there)
    here = there.to("cpu")
    assert here.device == "cpu" and here.requires_grad and here.data.tolist() == [1.0, 2.0]
    assert type(there.numpy()) is np.ndarray and there.numpy().tolist() == [1.0, 2.0]
    assert (there * 2).to("cpu").data.tolist() == [2.0, 4.0]


def test_cuda_without_a_gpu_says_why(monkeypatch):
    monkeypatch.setattr(backend, "cuda_problem", lambda: "no NVIDIA driver was found")
    with pytest.raises(RuntimeError, match="device 'cuda' is not usable: no NVIDIA driver was found"):
        Tensor([1.0]).to("cuda")
    x = Tensor([1.0])
    assert x.to("auto") is x and x.device == "cpu"
