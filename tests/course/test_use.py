"""`use`: a network that trains, predicts and packs on functions as a student writes them."""

import inspect
import math

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit import autograd, optim
from tinybitvit.course import plug
from tinybitvit.ops import OPS, base, elementwise, ste

pack_bytes, unpack_bytes = tb.quant.pack, tb.quant.unpack


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(g, p, x):
    return p * (g - (g * p).sum(axis=-1, keepdims=True))


def heads_of(qkv, heads):
    n, t, width = qkv.shape
    return qkv.reshape(n, t, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)


def attention(qkv, heads):
    q, k, v = heads_of(qkv, heads)
    y = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v
    return y.transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], -1)


def attention_backward(g, y, qkv, heads):
    (q, k, v), (n, t, _) = heads_of(qkv, heads), qkv.shape
    scale = 1 / math.sqrt(q.shape[-1])
    p = softmax(q @ k.swapaxes(-1, -2) * scale)
    g = g.reshape(n, t, heads, -1).transpose(0, 2, 1, 3)
    ds = softmax_backward(g @ v.swapaxes(-1, -2), p, None) * scale
    parts = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g])
    return parts.transpose(1, 3, 0, 2, 4).reshape(qkv.shape)


def layer_norm(x, weight, bias):
    u = x - x.mean(axis=-1, keepdims=True)
    return u / np.sqrt((u * u).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias


def layer_norm_backward(g, y, x, weight, bias):
    u = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt((u * u).mean(axis=-1, keepdims=True) + 1e-5)
    z, gz = u / s, g * weight
    dx = (gz - gz.mean(axis=-1, keepdims=True) - z * (gz * z).mean(axis=-1, keepdims=True)) / s
    return dx, g * z, g


def gelu(x):
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def gelu_backward(g, y, x):
    t = np.tanh(0.7978845608 * (x + 0.044715 * x**3))
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608 * (1 + 3 * 0.044715 * x * x))


def cross_entropy(logits, target):
    return -np.log(softmax(logits)[np.arange(len(target)), target]).mean()


def cross_entropy_backward(g, y, logits, target):
    return g * (softmax(logits) - np.eye(logits.shape[1])[target]) / len(target)


def patchify(x, patch_size):
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    x = x.reshape(n, height // ph, ph, width // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, -1, ph * pw * c)


def patchify_backward(g, y, x, patch_size):
    (n, height, width, c), (ph, pw) = x.shape, patch_size
    return g.reshape(n, height // ph, width // pw, ph, pw, c).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def linear(x, weight, bias):
    return x @ weight.T + bias


def linear_backward(g, y, x, weight, bias):
    rows = g.reshape(-1, g.shape[-1])
    return g @ weight, rows.T @ x.reshape(-1, x.shape[-1]), g


def matmul_backward(g, y, a, b):
    return g @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ g


def unbroadcast(g, shape):
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1)
    return g.sum(axis=axes, keepdims=True)


walks = []


def backward(output, g):
    waiting, stack = {output: 0}, [output]
    while stack:
        for parent in stack.pop().parents:
            if parent not in waiting:
                waiting[parent] = 0
                stack.append(parent)
            waiting[parent] += 1
    output.grad, ready = g, [output]
    while ready:
        value = ready.pop()
        for parent, part in zip(value.parents, value.rule(value.grad), strict=True):
            parent.grad = parent.grad + part
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    walks.append(len(waiting))


def binary_codes(w):
    u = w - w.mean(axis=-1, keepdims=True)
    return np.where(u >= 0, 1.0, -1.0), np.maximum(np.abs(u).mean(axis=-1, keepdims=True), 1e-5)


def ternary_codes(w):
    beta = np.maximum(np.abs(w).mean(axis=-1, keepdims=True), 1e-5)
    return np.clip(np.round(w / beta), -1, 1), beta


def absmax_codes(x):
    step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5) / 127
    return np.round(x / step), step


def slope(v):
    return np.abs(v) <= 1


def adamw(p, g, m, v, t, lr, b1, b2, eps, weight_decay):
    m += (1 - b1) * (g - m)
    v += (1 - b2) * (g * g - v)
    p *= 1 - lr * weight_decay
    p -= lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def packs(layout):
    return lambda codes: pack_bytes(codes, layout)


def unpacks(layout):
    return lambda packed, K: unpack_bytes(packed, layout, (*packed.shape[:-1], K), "int8")


EVERYTHING = {
    "softmax": (softmax, softmax_backward),
    "multi_head_attention": (attention, attention_backward),
    "layer_norm": (layer_norm, layer_norm_backward),
    "gelu": (gelu, gelu_backward),
    "cross_entropy": (cross_entropy, cross_entropy_backward),
    "patchify": (patchify, patchify_backward),
    "linear": (linear, linear_backward),
    "matmul": (None, matmul_backward),
    "mul": (lambda a, b: a * b, lambda g, y, a, b: (g * b, g * a)),
    "unbroadcast": unbroadcast,
    "walk": backward,
    "binary_codes": binary_codes,
    "ternary_codes": ternary_codes,
    "absmax_codes": absmax_codes,
    "slope": slope,
    "adamw": adamw,
    **{f"pack_{layout}": packs(layout) for layout in ("1bit", "2bit", "base3")},
    **{f"unpack_{layout}": unpacks(layout) for layout in ("1bit", "2bit", "base3")},
}


@pytest.fixture(autouse=True)
def library_afterwards():
    yield
    tb.course.unuse()


def trained(bits):
    rng = np.random.default_rng(0)
    X, y = rng.random((64, 8, 8)), np.arange(64) % 4
    kinds = {1: "binary", 1.58: "ternary"}
    quantizer = tb.quant.find_quantizer(kinds[bits], ste="clipped") if bits in kinds else None
    size = {"dim": 8, "depth": 1, "heads": 2, "epochs": 3, "workers": 1, "verbose": 0, "random_state": 0}
    size["label_smoothing"] = 0.0
    model = tb.ViT(quantizer=quantizer, **size) if quantizer else tb.ViT(**size, bits=bits)
    return model.fit(X, y), X


@pytest.mark.parametrize("bits", [32, 1.58, 1])
def test_a_network_on_a_students_functions_is_the_librarys(bits, tmp_path, capsys):
    theirs, X = trained(bits)
    tb.course.use(**EVERYTHING)
    assert plug.in_use
    walks.clear()
    mine, _ = trained(bits)
    assert walks, "the student's walk was used"
    assert "of the library is used" not in capsys.readouterr().out
    # a last digit may tip a code over its threshold, so that networks of few bits drift apart
    rtol, atol = (1e-3, 1e-2) if bits == 32 else (2e-2, 0.1)
    np.testing.assert_allclose(mine.history_["loss"], theirs.history_["loss"], rtol=rtol)
    np.testing.assert_allclose(mine.predict_proba(X), theirs.predict_proba(X), atol=atol)
    if bits != 32:
        mine.save(tmp_path / "m.safetensors", packed=True)
        assert np.array_equal(tb.load(tmp_path / "m.safetensors").predict(X), mine.predict(X))


def test_a_network_on_the_solutions_of_all_lessons_is_the_librarys(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where nobody has kept anything
    theirs, X = trained(1.58)
    found = tb.course.everything()
    assert {"walk", "unbroadcast", "matmul", "patchify", "softmax", "multi_head_attention", "layer_norm", "gelu"} <= {
        *found
    }
    assert {"cross_entropy", "binary_codes", "slope", "ternary_codes", "absmax_codes", "adamw", "pack_2bit"} <= {*found}
    tb.course.use(**found)
    mine, _ = trained(1.58)
    assert "of the library is used" not in capsys.readouterr().out
    np.testing.assert_allclose(mine.history_["loss"], theirs.history_["loss"], rtol=2e-2)
    mine.save(tmp_path / "m.safetensors", packed=True)
    assert np.array_equal(tb.load(tmp_path / "m.safetensors").predict(X), mine.predict(X))


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_function_is_really_called(name, tmp_path):
    def broken(*arrays, **options):
        raise ArithmeticError("mine")

    pair = isinstance(EVERYTHING[name], tuple)
    tb.course.use(**{name: (None, broken) if pair else broken})
    with pytest.raises(ArithmeticError, match="mine"):
        if name == "softmax":
            x = tb.Tensor([1.0, 2.0], requires_grad=True)
            tb.functional.softmax(x).backward(np.ones(2, "float32"))
        elif name == "matmul":
            x = tb.Tensor([[1.0]], requires_grad=True)
            (x @ x).backward()
        elif name == "patchify":
            x = tb.Tensor(np.ones((1, 4, 4, 1), "float32"), requires_grad=True)
            tb.functional.patchify(x, 2).sum().backward()
        elif name == "mul":
            x = tb.Tensor([1.0], requires_grad=True)
            (x * x).backward()
        elif "pack_" in name:
            layout = name.partition("pack_")[2]
            tb.quant.unpack(tb.quant.pack(np.ones((1, 8)), layout), layout, (1, 8))
        else:
            trained(
                1 if name in ("binary_codes", "slope") else 1.58 if name in ("ternary_codes", "absmax_codes") else 32
            )


def test_unuse_leaves_the_library_as_it_was():
    before = dict(OPS), autograd.backpropagate, ste.ternary_codes, optim.AdamW.update, tb.quant.pack, base.unbroadcast
    first = tb.course.use(**EVERYTHING)
    tb.course.use(gelu=(gelu, gelu_backward), ternary_codes=ternary_codes)
    tb.course.unuse()
    assert not plug.in_use and not first.before
    after = dict(OPS), autograd.backpropagate, ste.ternary_codes, optim.AdamW.update, tb.quant.pack, base.unbroadcast
    assert before == after
    assert tb.quant.linear.binary_codes is ste.binary_codes and elementwise.unbroadcast is base.unbroadcast


def test_calls_with_options_that_a_student_does_not_know_stay_with_the_library(capsys):
    x = np.random.default_rng(0).standard_normal((3, 4))
    expected = tb.functional.softmax(x, axis=0).data
    weighted = tb.functional.cross_entropy(x, np.array([0, 1, 2]), np.array([1.0, 2.0, 3.0])).data
    tb.course.use(softmax=(softmax, softmax_backward), cross_entropy=(cross_entropy, cross_entropy_backward))
    t = tb.Tensor(x, requires_grad=True)
    y = tb.functional.softmax(t, axis=0)
    y.backward(x)
    assert np.array_equal(y.data, expected)
    assert np.abs(t.grad.sum(axis=0)).max() < 1e-12
    assert np.array_equal(tb.functional.cross_entropy(x, np.array([0, 1, 2]), np.array([1.0, 2.0, 3.0])).data, weighted)
    out = capsys.readouterr().out
    assert "yours knows no axis, so for a call with it Softmax of the library is used" in out
    assert "yours knows no weight" in out


def test_a_name_without_a_pair_is_refused():
    with pytest.raises(ValueError, match=r"use\(gelu=...\) needs a Function or a pair"):
        tb.course.use(gelu=gelu)
    assert not plug.in_use


@pytest.mark.parametrize("name", plug.HOOKS)
def test_what_is_put_in_takes_what_the_librarys_own_takes(name):
    owner, attribute, wrap = plug.HOOKS[name]
    own = getattr(owner, attribute)
    taken = inspect.signature(wrap(own, EVERYTHING[name])).parameters.values()
    given = inspect.signature(own).parameters.values()
    assert [p.kind for p in taken] == [p.kind for p in given]
    assert [p.default for p in taken] == [p.default for p in given]


@pytest.mark.parametrize("size", [1.0, 1e-7])
def test_a_students_activations_heed_the_smallest_size_in_front_of_a_norm(size):
    x = (size * np.random.default_rng(0).standard_normal((3, 8))).astype("float32")
    for eps in (ste.EPS, ste.EPS / 1000):
        expected = ste.absmax_codes(np, x, 8, None, eps)
        with tb.course.use(absmax_codes=absmax_codes):
            found = ste.absmax_codes(np, x, 8, None, eps)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
