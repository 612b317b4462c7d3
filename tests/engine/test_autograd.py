"""The engine: depth, sharing, lifetime, aliasing, threads, and what it refuses."""

import gc
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from op_cases import of_op

import tinybitvit as tb
from tinybitvit import Tensor, autograd
from tinybitvit import functional as F
from tinybitvit.ops import Function
from tinybitvit.tensor import apply


def leaf(rng, *shape, dtype="float64"):
    return Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)


class Returns(Function):
    """A sum of the inputs whose backward hands out what `gradients(ctx, g)` says: for tests of the engine alone."""

    gradients = None

    @staticmethod
    def forward(ctx, *arrays):
        ctx.save(*arrays)
        return sum(arrays[1:], arrays[0] * 1)

    @classmethod
    def backward(cls, ctx, g):
        return cls.gradients(ctx, g)

    @classmethod
    def that_give(cls, gradients):
        return type("Custom", (cls,), {"gradients": staticmethod(gradients)})


# --- values -----------------------------------------------------------------------------------------------------------


def test_gradient_of_a_formula(rng):
    x, w = leaf(rng, 3, 4), leaf(rng, 4)
    g = rng.standard_normal((3, 4))
    (F.tanh(x * w) * x).backward(g)
    t = np.tanh(x.data * w.data)
    np.testing.assert_allclose(x.grad, g * (t + x.data * w.data * (1 - t**2)), rtol=1e-12)
    np.testing.assert_allclose(w.grad, (g * x.data**2 * (1 - t**2)).sum(0), rtol=1e-12)


def test_diamond(rng):
    """Two ways from x to y, which meet again: both count, and the node they start from runs its backward once."""
    calls = []

    class Double(Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            calls.append(g.copy())
            return (2 * g,)

    x, g = leaf(rng, 3), rng.standard_normal(3)
    middle = apply(Double, x)
    (F.exp(middle) * F.tanh(middle)).backward(g)
    m = 2 * x.data
    np.testing.assert_allclose(x.grad, 2 * g * np.exp(m) * (np.tanh(m) + 1 - np.tanh(m) ** 2), rtol=1e-12)
    assert len(calls) == 1


def test_fan_out_and_uneven_paths(rng):
    """One Tensor with 50 consumers at different depths."""
    x, g = leaf(rng, 4), rng.standard_normal(4)
    total, deep = x * 0.0, x
    for _ in range(50):
        deep = deep * 1.01
        total = total + deep
    total.backward(g)
    np.testing.assert_allclose(x.grad, g * sum(1.01**i for i in range(1, 51)), rtol=1e-12)


def test_one_tensor_as_both_inputs(rng):
    x, g = leaf(rng, 3), rng.standard_normal(3)
    ((x + x) - (x * x)).backward(g)
    np.testing.assert_allclose(x.grad, g * (2 - 2 * x.data), rtol=1e-12)


def test_only_the_inputs_that_ask_get_a_gradient(rng):
    x, w = leaf(rng, 3), Tensor(rng.standard_normal(3))
    y = x * w
    y.backward(rng.standard_normal(3))
    assert x.grad is not None and w.grad is None and y.grad is None


def test_detach_cuts(rng):
    x, g = leaf(rng, 3), rng.standard_normal(3)
    (x * (2 * x).detach()).backward(g)
    np.testing.assert_allclose(x.grad, g * 2 * x.data, rtol=1e-12)


def test_gradient_without_g_is_that_of_one_number(rng):
    x = leaf(rng, 1, 1)
    (x * 3).backward()
    assert x.grad.tolist() == [[3.0]]


def test_g_may_be_a_list_or_a_tensor_and_takes_the_dtype_of_the_output():
    seen = []

    def gradients(ctx, g):
        seen.append(g.dtype)
        return (g * 3,)

    for g in ([1.0, 2.0], np.array([1.0, 2.0]), Tensor([1.0, 2.0]), np.array([1, 2])):
        x = Tensor(np.ones(2, dtype="float32"), requires_grad=True)
        apply(Returns.that_give(gradients), x).backward(g)
        assert x.grad.tolist() == [3.0, 6.0] and x.grad.dtype == "float32"
    assert seen == ["float32"] * 4


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_still_has_upstream_gradient_one(value):
    x = Tensor(value, requires_grad=True)
    (x + 1).backward()
    assert x.grad == 1


# --- depth ------------------------------------------------------------------------------------------------------------


def test_a_chain_of_100_000_ops():
    """Forward, backward and freeing without recursion, in time proportional to the length."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        x = Tensor(np.ones(2), requires_grad=True)
        y = x
        for _ in range(100_000):
            y = -y
        y.backward(np.array([1.0, -2.0]))
        assert x.grad.tolist() == [1.0, -2.0]
        del y
        unused = x
        for _ in range(100_000):
            unused = -unused
        del unused  # a graph that nobody called backward on
    finally:
        sys.setrecursionlimit(limit)


def test_60_nested_doublings_are_instant():
    """2^60 paths from y to x, but 60 nodes."""
    x = Tensor(np.array([1.0]), requires_grad=True)
    start, y = time.perf_counter(), x
    for _ in range(60):
        y = y + y
    y.backward(np.array([1.0]))
    assert time.perf_counter() - start < 1
    assert x.grad.tolist() == [2.0**60]


# --- lifetime ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def step(rng, results):
    """A small network's forward pass; weak references to every Tensor and Node go to `results`."""
    w, b = leaf(rng, 4, 3), leaf(rng, 4)
    x = Tensor(rng.standard_normal((5, 3)))
    h = F.layer_norm(F.gelu(F.linear(x, w, b)))
    loss = F.cross_entropy(h, np.array([0, 1, 2, 3, 0]))
    results += [weakref.ref(t) for t in (w, b, x, h, loss)]
    results += [weakref.ref(t.data) for t in (w, b, x, h)]
    return w, loss


def test_no_tensor_outlives_a_step(rng, no_garbage_collector):
    alive = []
    w, loss = step(rng, alive)
    loss.backward()
    assert w.grad.shape == (4, 3)
    del w, loss
    assert [ref() for ref in alive if ref() is not None] == []


def test_no_tensor_outlives_a_forward_pass_without_backward(rng, no_garbage_collector):
    alive = []
    step(rng, alive)
    assert [ref() for ref in alive if ref() is not None] == []


def test_no_node_outlives_a_step(rng, no_garbage_collector):
    def nodes():
        return sum(type(o) is autograd.Node for o in gc.get_objects())

    before = nodes()
    _, loss = step(rng, [])
    assert nodes() > before
    loss.backward()
    del loss, _
    assert nodes() == before


def test_backward_frees_the_saved_arrays(rng):
    """While the output is still held, the arrays that backward needed are let go as soon as it has used them."""
    x = leaf(rng, 3)
    y = F.exp(x)
    saved = weakref.ref(y.data)
    z = y * 2
    del y
    assert saved() is not None
    z.backward(rng.standard_normal(3))
    assert saved() is None and z.shape == (3,)


def test_nothing_is_recorded_where_nobody_asks(rng, no_garbage_collector):
    x = Tensor(rng.standard_normal(3))
    y = F.exp(x)
    assert y.node is None and not y.requires_grad
    with tb.no_grad():
        y = F.exp(leaf(rng, 3))
    assert y.node is None and not y.requires_grad


def test_a_function_is_told_which_gradients_are_asked_for(rng):
    told = []

    class Tell(Function):
        @staticmethod
        def forward(ctx, *arrays):
            told.append(ctx.needs_input_grad)
            return arrays[0] * 1

    x, plain = leaf(rng, 3), Tensor(np.ones(3))
    apply(Tell, x, plain, x * 2)
    apply(Tell, plain, plain, np.ones(3))
    with tb.no_grad():
        apply(Tell, x, plain, x)
    assert told == [(True, False, True), (False, False, False), (False, False, False)]


def test_no_grad_ends_with_its_block(rng):
    x = leaf(rng, 3)
    with pytest.raises(KeyError), tb.no_grad():
        with tb.no_grad():
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad  # the outer block still holds
        raise KeyError
    assert (x * 2).requires_grad


# --- accumulation -----------------------------------------------------------------------------------------------------


def test_gradients_of_two_backward_calls_add_up(rng):
    x, g1, g2 = leaf(rng, 3), rng.standard_normal(3), rng.standard_normal(3)
    (x * x).backward(g1)
    first = x.grad
    kept = first.copy()
    F.exp(x).backward(g2)
    np.testing.assert_allclose(x.grad, 2 * x.data * g1 + np.exp(x.data) * g2, rtol=1e-12)
    assert np.array_equal(first, kept)  # whoever holds the first gradient sees no change


def test_backward_on_a_leaf_adds_g(rng):
    x, g = leaf(rng, 3), rng.standard_normal(3)
    x.backward(g)
    x.backward(g)
    assert np.array_equal(x.grad, 2 * g) and not np.shares_memory(x.grad, g)


def test_grad_touches_no_grad(rng):
    x, w, g = leaf(rng, 3), leaf(rng, 3), rng.standard_normal(3)
    x.grad = kept = np.full(3, 7.0)
    dx, dw = tb.grad(x * w, [x, w], g)
    np.testing.assert_allclose(dx, g * w.data)
    np.testing.assert_allclose(dw, g * x.data)
    assert x.grad is kept and kept.tolist() == [7.0] * 3 and w.grad is None


def test_grad_of_intermediate_tensors(rng):
    x, g = leaf(rng, 3), rng.standard_normal(3)
    h = F.exp(x)
    y = h * h
    dy, dh, dx = tb.grad(y, [y, h, x], g)
    assert np.array_equal(dy, g) and not np.shares_memory(dy, g)
    np.testing.assert_allclose(dh, 2 * h.data * g, rtol=1e-12)
    np.testing.assert_allclose(dx, 2 * h.data**2 * g, rtol=1e-12)


def test_grad_of_an_unused_input_is_zeros(rng):
    x, unused = leaf(rng, 3), Tensor(np.array([[np.inf, np.nan]], dtype="float32"), requires_grad=True)
    dx, zeros = tb.grad((x * 2).sum(), [x, unused])
    assert dx.tolist() == [2.0] * 3
    assert zeros.tolist() == [[0.0, 0.0]] and zeros.dtype == "float32"


def test_grad_keeps_the_order_and_repetitions_of_its_inputs(rng):
    x, w = leaf(rng, 3), leaf(rng, 2)
    grads = tb.grad(x.sum() + 2 * w.sum(), [w, x, w])
    assert [d.tolist() for d in grads] == [[2.0] * 2, [1.0] * 3, [2.0] * 2]


@pytest.mark.parametrize("name", ["sum", "exp", "mul", "div", "maximum", "where", "pow", "add", "getitem"])
def test_gradients_are_arrays_even_of_single_numbers(name):
    """NumPy turns results without axes into its scalars, which no optimiser could update in place."""
    case = next(c for c in of_op(name) if all(a.shape == () for a in c.arrays("float64")))
    tensors = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in case.arrays("float64")]
    y = case.public(*tensors, **case.params)
    assert isinstance(y.data, np.ndarray) and y.shape == ()
    y.backward()
    for t in tensors:
        assert t.grad is None or (isinstance(t.grad, np.ndarray) and t.grad.flags.writeable)


# --- aliasing ---------------------------------------------------------------------------------------------------------


def assert_separate(*arrays):
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            assert not np.shares_memory(a, b)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: F.concatenate([a, b]).reshape(2, 2, 3).sum(axis=0),
        lambda a, b: a.reshape(3, 2).reshape(2, 3) + b.transpose().transpose(),
        lambda a, b: (a + b) + (a + b),
        lambda a, b: F.where(True, a, b) + F.maximum(a, b) * 0 + b,
    ],
)
def test_gradients_share_no_memory(f, rng):
    """Not with one another, not with g: a change of one in place, as clip_grad_norm makes it, changes nothing else."""
    a, b, g = leaf(rng, 2, 3), leaf(rng, 2, 3), rng.standard_normal((2, 3))
    kept = g.copy()
    f(a, b).backward(g)
    assert_separate(a.grad, b.grad, g, a.data, b.data)
    before = b.grad.copy()
    a.grad *= 100
    assert np.array_equal(b.grad, before) and np.array_equal(g, kept)


def test_gradients_of_grad_share_no_memory(rng):
    a, b, g = leaf(rng, 2, 3), leaf(rng, 2, 3), rng.standard_normal((2, 3))
    h = a + b
    assert_separate(*tb.grad(h + 0, [a, b, h], g), g)
    found = tb.grad((a + b) * 2, [a, b, a, a], g)
    assert_separate(*found, g)
    assert all(np.array_equal(d, 2 * g) for d in found)


HANDED_OUT = {  # what a backward may return without having made it for the engine alone
    "g twice": lambda ctx, g: (g, g),
    "one array twice": lambda ctx, g: ((new := g * 1), new),
    "a view of g": lambda ctx, g: (g[:], g[::-1][::-1]),
    "views of one array": lambda ctx, g: ((new := np.stack([g, g]))[0], new[1]),
    "one array and its view": lambda ctx, g: ((new := g * 1), new[:]),
    "a saved array": lambda ctx, g: (ctx.saved[0], g * 1),
    "read-only": lambda ctx, g: (np.broadcast_to(g, g.shape), g * 1),
}


@pytest.mark.parametrize("gradients", HANDED_OUT.values(), ids=HANDED_OUT)
def test_whatever_a_backward_returns_nothing_is_shared(gradients, rng):
    function = Returns.that_give(gradients)
    a, b, g = leaf(rng, 3), leaf(rng, 3), rng.standard_normal(3)
    kept = [x.copy() for x in (a.data, b.data, g)]
    y = apply(function, a * 1, b * 1) + apply(function, a, b)  # leaves and nodes, each fed twice: sums in place happen
    y.backward(g)
    expected = [2 * kept[0] if gradients is HANDED_OUT["a saved array"] else 2 * g, 2 * g]
    np.testing.assert_allclose(a.grad, expected[0])
    np.testing.assert_allclose(b.grad, expected[1])
    assert_separate(a.grad, b.grad, a.data, b.data, g)
    for now, before in zip((a.data, b.data, g), kept, strict=True):
        assert np.array_equal(now, before)


def test_one_array_for_two_of_three_inputs(rng):
    inputs, g = [leaf(rng, 3) for _ in range(3)], rng.standard_normal(3)
    apply(Returns.that_give(lambda ctx, g: ((new := g * 1), new, g * 2)), *inputs).backward(g)
    assert_separate(*(x.grad for x in inputs), g)


def test_a_gradient_that_nobody_else_holds_is_not_copied(rng):
    """Copies cost as much time as the elementwise operations themselves."""
    made = []

    def gradients(ctx, g):
        made.append(g * 2)
        return (made[-1],)

    x = leaf(rng, 3)
    apply(Returns.that_give(gradients), x).backward(np.ones(3))
    assert x.grad is made[0]


@pytest.mark.parametrize("gradients", HANDED_OUT.values(), ids=HANDED_OUT)
def test_a_gradient_that_arrives_once_is_not_shared_either(gradients, rng):
    a, b, g = leaf(rng, 3), leaf(rng, 3), rng.standard_normal(3)
    apply(Returns.that_give(gradients), a, b).backward(g)
    assert_separate(a.grad, b.grad, a.data, b.data, g)


def test_a_saved_array_is_not_summed_into(rng):
    """d(x . c)/dx is c itself; another gradient that arrives for x must not be added into the caller's c."""
    c = rng.standard_normal(3)

    class DotConstant(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save(c)
            return (x * c).sum()

        @staticmethod
        def backward(ctx, g):
            return (ctx.saved[0],)

    kept, x = c.copy(), leaf(rng, 3)
    (apply(DotConstant, x) + apply(DotConstant, x) + x.sum()).backward()
    assert np.array_equal(c, kept)
    np.testing.assert_allclose(x.grad, 2 * c + 1)


# --- what is refused: one clear sentence each -------------------------------------------------------------------------


def refuses(error, words):
    return pytest.raises(error, match=words)


def test_second_backward(rng):
    x = leaf(rng, 3)
    y = (x * x).sum()
    y.backward()
    first = x.grad.copy()
    with refuses(RuntimeError, "already used by a backward pass.*run the forward pass again"):
        y.backward()
    with refuses(RuntimeError, "already used"):
        tb.grad(y, [x])
    assert np.array_equal(x.grad, first)


def test_second_backward_through_a_shared_part(rng):
    x = leaf(rng, 3)
    shared = F.exp(x)
    one, two = shared.sum(), (shared * 2).sum()
    one.backward()
    with refuses(RuntimeError, "already used"):
        two.backward()


def test_backward_of_many_numbers_without_g(rng):
    y = leaf(rng, 2, 3) * 2
    with refuses(RuntimeError, r"single number, not shape \(2, 3\).*pass dL/dy as g"):
        y.backward()


def test_backward_with_g_of_another_shape(rng):
    for g in (np.ones(3), 1.0, np.ones((1, 2, 3))):
        y = leaf(rng, 2, 3) * 2
        with refuses(ValueError, r"the gradient passed to backward has shape .*, the Tensor \(2, 3\)"):
            y.backward(g)


def test_backward_where_nothing_asks_for_a_gradient():
    for t in (Tensor([1.0]), Tensor([1.0]) * 2):
        with refuses(RuntimeError, "does not depend on any Tensor with requires_grad=True"):
            t.backward()
        with refuses(RuntimeError, "nothing to differentiate"):
            tb.grad(t, [])


def test_grad_of_an_input_without_requires_grad(rng):
    x = leaf(rng, 3)
    with refuses(ValueError, "every input must have requires_grad=True"):
        tb.grad((x * 2).sum(), [x, Tensor([1.0])])


@pytest.mark.parametrize(
    "gradients, error, words",
    [
        (lambda ctx, g: g, TypeError, "Custom.backward must return a tuple of 2 gradients"),
        (lambda ctx, g: [g, g], TypeError, "must return a tuple of 2 gradients"),
        (lambda ctx, g: (g,), TypeError, "must return a tuple of 2 gradients, one per array input"),
        (lambda ctx, g: (g, g, g), TypeError, "must return a tuple of 2 gradients"),
        (
            lambda ctx, g: (g, None),
            ValueError,
            r"returned None as the gradient of an input of shape \(3,\); pass that input as .detach\(\)",
        ),
        (lambda ctx, g: (g, g[:2]), ValueError, r"returned shape \(2,\) as the gradient of an input of shape \(3,\)"),
    ],
)
def test_a_backward_that_breaks_the_contract(gradients, error, words, rng):
    with refuses(error, words):
        apply(Returns.that_give(gradients), leaf(rng, 3), leaf(rng, 3)).backward(np.ones(3))


def test_a_gradient_that_nobody_asked_for_may_be_none(rng):
    x = leaf(rng, 3)
    apply(Returns.that_give(lambda ctx, g: (g, None)), x, Tensor(np.ones(3))).backward(np.ones(3))
    assert x.grad.tolist() == [1.0] * 3


def test_a_gradient_of_another_dtype_is_converted(rng):
    x = leaf(rng, 3, dtype="float32")
    apply(Returns.that_give(lambda ctx, g: (g.astype("float64"),)), x).backward(np.ones(3))
    assert x.grad.dtype == "float32"


# --- threads ----------------------------------------------------------------------------------------------------------


def test_no_grad_holds_for_its_own_thread_only(rng):
    """One thread records while another is inside no_grad, whichever came first."""
    inside, leave = threading.Event(), threading.Event()
    x = leaf(rng, 3)

    def evaluate():
        with tb.no_grad():
            inside.set()
            assert leave.wait(10)
            return (x * 2).requires_grad

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(evaluate)
        assert inside.wait(10)
        y = x * 2
        leave.set()
        assert y.requires_grad and autograd.is_recording()
        assert other.result() is False
        with tb.no_grad():
            assert pool.submit(autograd.is_recording).result() is True


def test_threads_build_and_use_graphs_at_the_same_time(rng):
    """Shared weights, one graph a thread: what each gets is what it would get alone."""
    w = leaf(rng, 6, 6)
    inputs = [rng.standard_normal((4, 6)) for _ in range(4)]
    barrier = threading.Barrier(len(inputs))

    def work(x, wait=barrier.wait):
        wait()
        for _ in range(20):
            y = Tensor(x)
            for _ in range(10):
                y = F.tanh(F.linear(y, w)) + y
            (dw,) = tb.grad(y, [w], x)
        return dw

    with ThreadPoolExecutor(len(inputs)) as pool:
        together = list(pool.map(work, inputs))
    alone = [work(x, wait=lambda: None) for x in inputs]
    assert w.grad is None
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
