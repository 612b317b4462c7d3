"""Every operation against PyTorch: value, shape, dtype and every gradient, for every case of `op_cases.TABLE`.

Each case runs as the Function itself (`forward`, `backward` on plain arrays) and as the public call on Tensors, in
float64 with a tight tolerance and in float32 once more, always with a random upstream gradient. The oracle is torch in
float64, from the same numbers. On a GPU (a real one, or the stand-in) float32 alone runs, as it does in practice.
"""

from contextlib import nullcontext

import hypothesis.extra.numpy as some
import numpy as np
import pytest
import torch
from devices import each_device, each_run, fetch, send, slack
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import FUNCTIONS, REFUSED, TABLE, of_op
from scipy.special import ndtr

import tinybitvit as tb
from tinybitvit import backend
from tinybitvit.ops import Context, activation

RTOL = {"float64": 1e-10, "float32": 1e-5}
ATOL = {"float64": 1e-13, "float32": 1e-6}  # of the largest number in the array: sums cancel

each_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)
each_op = pytest.mark.parametrize("op", FUNCTIONS)


# --- the two ways to run a case ---------------------------------------------------------------------------------------


def run_function(case, arrays, g, needs):
    """(y, gradients) of the Function on arrays; asserts that backward keeps the contract, whatever the numbers."""
    kept = [a.copy() for a in (*arrays, g)]
    ctx = Context(backend.array_module(*arrays), tuple(needs))
    y = case.function.forward(ctx, *arrays, **case.params)
    grads = case.function.backward(ctx, g)
    assert isinstance(grads, tuple) and len(grads) == len(arrays)
    for now, before in zip((*arrays, g), kept, strict=True):
        assert_same(now, before, f"{case.id} changed it in place")
    return y, grads


def run_public(case, arrays, g, wanted):
    """(y, gradients) of the call in tb.functional on Tensors, those at `wanted` requiring a gradient."""
    kept = [a.copy() for a in (*arrays, g)]
    tensors = [tb.Tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
    y = case.public(*tensors, **case.params)
    y.backward(g)
    for now, before in zip((*(t.data for t in tensors), g), kept, strict=True):
        assert_same(now, before, f"{case.id} changed it in place")
    return y.data, [t.grad for t in tensors]


def assert_same(a, b, what):
    assert np.array_equal(fetch(a), fetch(b)), what


def assert_close(case, actual, expected, dtype, what):
    """Equal shape, dtype and, to the tolerance of the dtype, numbers."""
    what = f"{case.id}, {what}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, torch has {expected.shape}"
    assert actual.dtype == dtype, f"{what}: {actual.dtype} from inputs of {dtype}"
    loose = (case.loose if dtype == "float32" else 1.0) * slack(backend.device_of(actual))
    rtol, atol = loose * RTOL[dtype], loose * ATOL[dtype] * abs(expected).max(initial=0)
    atol = max(atol, case.atol, np.finfo(dtype).tiny)
    np.testing.assert_allclose(backend.to_numpy(actual), expected, rtol=rtol, atol=atol, err_msg=what)


# --- the tests --------------------------------------------------------------------------------------------------------


@each_run
@each_case
def test_value_and_gradients(case, dtype, device):
    check_value_and_gradients(case, dtype, device)


def check_value_and_gradients(case, dtype, device):
    value, g, expected = case.oracle(dtype)
    *arrays, g = send([*case.arrays(dtype), g], device)
    wanted = case.differentiable()
    needs = [i in wanted for i in range(len(arrays))]
    for way, (y, grads) in {
        "Function": run_function(case, arrays, g, needs),
        "tb.functional": run_public(case, arrays, g, wanted),
    }.items():
        assert_close(case, y, value, dtype, f"{way}: value")
        for i, (grad, reference) in enumerate(zip(grads, expected, strict=True)):
            if reference is None:
                assert grad is None, f"{way}: input {i} has no gradient"
            else:
                assert_close(case, grad, reference, dtype, f"{way}: gradient of input {i}")


@each_device
@each_op
def test_one_gradient_at_a_time(op, device):
    """Where only one input asks for a gradient it gets the same one; the others get none, or at least no wrong one."""
    for case in of_op(op):
        if len(case.differentiable()) > 1:
            check_one_gradient_at_a_time(case, device)


def check_one_gradient_at_a_time(case, device):
    _, g, expected = case.oracle("float64")
    *arrays, g = send([*case.arrays("float64"), g], device)
    for i in case.differentiable():
        _, grads = run_function(case, arrays, g, [i == j for j in range(len(arrays))])
        assert grads[i] is not None
        for grad, reference in zip(grads, expected, strict=True):
            if grad is not None:
                assert_close(case, grad, reference, "float64", f"gradient with only input {i} asking")
        _, grads = run_public(case, arrays, g, {i})
        assert [j for j, grad in enumerate(grads) if grad is not None] == [i], case.id
        assert_close(case, grads[i], expected[i], "float64", f"gradient of input {i} alone")


def transposed(a):
    """The same numbers, the first axis running fastest in memory."""
    return a.T.copy().T


def strided(a):
    """The same numbers, every second of a larger array along each axis."""
    large = np.full([2 * n for n in a.shape], 77, dtype=a.dtype)
    view = large[(*[slice(None, None, 2)] * a.ndim, ...)]
    view[...] = a
    return view


def backwards(a):
    """The same numbers, each axis running down in memory."""
    flip = (*[slice(None, None, -1)] * a.ndim, ...)
    return a[flip].copy()[flip]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@each_device
@each_op
def test_memory_layout(op, device):
    """How inputs and g lie in memory makes no difference."""
    for case in of_op(op):
        check_memory_layout(case, device)


def check_memory_layout(case, device):
    value, g, expected = case.oracle("float64")
    made = [*case.arrays("float64"), g]
    wanted = case.differentiable()
    for layout in (transposed, strided, backwards, read_only):
        *arrays, g = send([layout(a) for a in made], device)
        y, grads = run_function(case, arrays, g, [i in wanted for i in range(len(arrays))])
        assert_close(case, y, value, "float64", f"{layout.__name__}: value")
        for i in wanted:
            assert_close(case, grads[i], expected[i], "float64", f"{layout.__name__}: gradient of input {i}")


@each_device
@each_op
def test_small_blocks(op, device, monkeypatch):
    """Some ops work through their rows in blocks that fit the cache: with blocks of a row or two, the numbers stay."""
    monkeypatch.setattr(backend, "BLOCK", 10)
    for case in of_op(op):
        check_value_and_gradients(case, "float64", device)


def test_row_blocks():
    """Blocks cover the rows once, in order; a block is as large as BLOCK allows, but at least one row; one on a GPU."""
    another_module = object()
    assert backend.row_blocks((100_000, 7), another_module) == [slice(0, 100_000)]
    assert backend.row_blocks((0, 7), another_module) == []
    for rows, columns in [(100, 7), (100_000, 7), (600_000, 1), (3, 10**6), (5, 0), (0, 3), (1, 1)]:
        blocks = backend.row_blocks((rows, columns))
        assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(rows))
        for block in blocks:
            n = block.stop - block.start
            assert n == 1 or n * columns <= backend.BLOCK
            assert block.stop == rows or (n + 1) * columns > backend.BLOCK


@each_device
@each_op
def test_without_recording(op, device):
    """The value is the same, to the last bit, where nobody asks for a gradient."""
    for case in of_op(op):
        check_without_recording(case, device)


def check_without_recording(case, device):
    arrays = send(case.arrays("float32"), device)
    tensors = [tb.Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    with tb.no_grad():
        quiet = case.public(*tensors, **case.params)
    assert not quiet.requires_grad
    assert_same(quiet.data, case.public(*tensors, **case.params).data, f"{case.id}: value")


@each_device
@pytest.mark.parametrize("op, arrays, params, words", REFUSED, ids=[f"{row[0]}: {row[3]}" for row in REFUSED])
def test_bad_input_is_refused(op, arrays, params, words, device):
    arrays = send(arrays, device)
    ctx = Context(backend.array_module(*arrays), (True,) * len(arrays))
    if device != "cpu" and words.startswith("class numbers"):  # to look at them would be to wait for the GPU
        assert np.isnan(fetch(FUNCTIONS[op].forward(ctx, *arrays, **params)))
        return
    with pytest.raises(ValueError, match=words):
        FUNCTIONS[op].forward(ctx, *arrays, **params)


@each_device
def test_mean_of_nothing(device):
    """As NumPy has it: not a number, and a warning; the gradient has no elements."""
    x = tb.Tensor(np.ones((2, 0)), requires_grad=True, device=device)
    with pytest.warns(RuntimeWarning) if device == "cpu" else nullcontext():  # a GPU does not warn
        y = x.mean(axis=1)
    y.backward(send(np.ones(2), device))
    assert np.isnan(backend.to_numpy(y.data)).all() and x.grad.shape == (2, 0)


def largest_error_of_the_normal_cdf():
    x = np.linspace(-10, 10, 100_001, dtype="float32")
    return abs(activation._normal_cdf(np, x) - ndtr(x.astype("float64"))).max()


def test_every_coefficient_of_the_normal_cdf_is_needed(monkeypatch):
    assert largest_error_of_the_normal_cdf() < 1.2e-7, "two units of float32's last place below 1"
    exact = activation.CDF_BY_TANH
    for i, c in enumerate(exact):
        monkeypatch.setattr(activation, "CDF_BY_TANH", (*exact[:i], 1.02 * c, *exact[i + 1 :]))
        assert largest_error_of_the_normal_cdf() > 2e-7, f"2 % of coefficient {i}"


# --- shapes that nobody thought of ------------------------------------------------------------------------------------

searched = settings(max_examples=60, deadline=None, derandomize=True, database=None)
broadcasting = some.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3)
small_shapes = some.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@searched
@given(broadcasting)
def test_any_broadcasting(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape) for shape in shapes.input_shapes)
    g = rng.standard_normal(shapes.result_shape)
    x, y = tb.Tensor(a, requires_grad=True), tb.Tensor(b, requires_grad=True)
    (x * y).backward(g)
    tx, ty = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    (tx * ty).backward(torch.tensor(g))
    np.testing.assert_allclose(x.grad, tx.grad.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y.grad, ty.grad.numpy(), rtol=1e-12, atol=1e-12)


@searched
@given(small_shapes.flatmap(lambda shape: st.tuples(st.just(shape), some.basic_indices(shape, allow_newaxis=True))))
def test_any_basic_index(drawn):
    shape, index = drawn
    a = np.random.default_rng(0).standard_normal(shape)
    x = tb.Tensor(a, requires_grad=True)
    y = x[index]
    g = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(g)
    expected = np.zeros(shape)
    expected[index] = g
    assert np.array_equal(y.data, a[index]) and np.array_equal(x.grad, expected)
