"""Each tuned operation beside the plain composition of small ones that computes the same.

What is hot is one operation with one backward, written for speed. These are the formulas as a book has them, on
Tensors, with the gradients that automatic differentiation finds: the slow reference, to read first.
"""

import math

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import ops


def gelu_tanh(x):
    return x * (F.tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1) * 0.5


def softmax(x):
    powers = F.exp(x - F.max(x, axis=-1, keepdims=True))
    return powers / F.sum(powers, axis=-1, keepdims=True)


def log_softmax(x):
    below = x - F.max(x, axis=-1, keepdims=True)
    return below - F.log(F.sum(F.exp(below), axis=-1, keepdims=True))


def layer_norm(x, weight, bias):
    mean, variance = F.mean(x, axis=-1, keepdims=True), F.var(x, axis=-1, keepdims=True)
    return (x - mean) / F.sqrt(variance + 1e-5) * weight + bias


def rms_norm(x, weight):
    return x / F.sqrt(F.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight


def linear(x, weight, bias):
    return x @ weight.transpose(1, 0) + bias


def attention(q, k, v):
    return softmax(q @ k.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5) @ v


def multi_head_attention(qkv):
    """Three heads."""
    n, t, width = qkv.shape
    q, k, v = (qkv.reshape(n, t, 3, 3, width // 9).transpose(2, 0, 3, 1, 4)[i] for i in range(3))
    return attention(q, k, v).transpose(0, 2, 1, 3).reshape(n, t, width // 3)


LABELS = np.array([2, 0, 3, 3, 1])


def cross_entropy(logits):
    return -F.mean(log_softmax(logits)[np.arange(5), LABELS])


# Operation -> its call, the composition, the shapes of the inputs
PAIRS = {
    "gelu": (lambda x: F.gelu(x, "tanh"), gelu_tanh, [(3, 4)]),
    "softmax": (F.softmax, softmax, [(3, 4)]),
    "log_softmax": (F.log_softmax, log_softmax, [(3, 4)]),
    "layer_norm": (F.layer_norm, layer_norm, [(2, 3, 6), (6,), (6,)]),
    "rms_norm": (F.rms_norm, rms_norm, [(2, 3, 6), (6,)]),
    "linear": (F.linear, linear, [(2, 3, 4), (5, 4), (5,)]),
    "scaled_dot_product_attention": (
        F.scaled_dot_product_attention,
        attention,
        [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)],
    ),
    "multi_head_attention": (lambda x: F.multi_head_attention(x, 3), multi_head_attention, [(2, 5, 18)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), cross_entropy, [(5, 4)]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_tuned_operation_is_the_composition(name, rng):
    tuned, plain, shapes = PAIRS[name]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    results = []
    for call in (tuned, plain):
        tensors = [tb.Tensor(a, requires_grad=True) for a in arrays]
        y = call(*tensors)
        y.backward(np.random.default_rng(0).standard_normal(y.shape))
        results.append([y.numpy(), *(t.grad for t in tensors)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_the_docstring_names_the_composition(name):
    plain = PAIRS[name][1].__name__
    assert f"Plainly: `{plain}` in tests/ops/test_compositions.py" in " ".join(ops.OPS[name].__doc__.split())
