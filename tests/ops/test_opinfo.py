"""Every operation on the samples with which PyTorch tests its own: value, shape, dtype and gradients.

`torch.testing` keeps generators of inputs for each of its operations (OpInfo). A translation says how a sample reads
here. Three things may come of a sample: the same numbers; a call that is not offered here, which says so by `offered`;
or one of DIFFERENCES, each with the reason why it stays.
"""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import ops

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # samples with nan and inf warn, as they should

DTYPES = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 4e-3}


class NotOffered(Exception):
    """What a sample asks for that the library does not have."""


def offered(holds, what):
    if not holds:
        raise NotOffered(what)


@cache
def info(name, variant=""):
    """PyTorch's OpInfo; the import takes seconds, which a run without the slow tests should not."""
    from torch.testing._internal.common_methods_invocations import op_db

    return next(op for op in op_db if (op.name, op.variant_test_name) == (name, variant))


# --- how a call of PyTorch reads here ---------------------------------------------------------------------------------


def unary(name):
    return lambda x: getattr(F, name)(x)


def binary(name):
    def call(a, b, alpha=1, rounding_mode=None):
        offered(alpha == 1, "alpha")
        offered(rounding_mode is None, "rounding")
        return getattr(F, name)(a, b)

    return call


def power(x, exponent):
    return F.power(x, exponent) if isinstance(exponent, tb.Tensor) else F.pow(x, exponent)


def gelu(x, approximate="none"):
    return F.gelu(x, approximate)


def clamp(x, low, high):
    return F.clip(x, low, high)


def reduction(name):
    def call(x, dim=None, keepdim=False, dtype=None, **parameters):
        offered(dtype is None, "another dtype of the result")
        # An empty tuple is all axes for PyTorch, and none for NumPy
        return getattr(F, name)(x, axis=None if dim in ((), []) else dim, keepdims=keepdim, **parameters)

    return call


def var(x, dim=None, unbiased=True, keepdim=False, correction=None):
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return reduction("var")(x, dim, keepdim, ddof=int(unbiased) if correction is None else correction)


def permute(x, dims):
    return F.transpose(x, dims)


def transpose(x, a, b):
    axes = list(range(x.ndim))
    if axes:
        axes[a], axes[b] = axes[b], axes[a]
    return F.transpose(x, axes)


def reshape(x, shape):
    return F.reshape(x, tuple(shape))


def broadcast_to(x, shape):
    old = (1,) * (len(shape) - x.ndim) + x.shape
    return F.broadcast_to(x, [o if n == -1 else n for n, o in zip(shape, old, strict=True)])


def getitem(x, index):
    return x[index]


def cat(tensors, dim=0):
    return F.concatenate(tensors, dim)


def pad(x, pad, mode="constant", value=None):
    widths = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    offered(min(pad, default=0) >= 0, "a negative border, which cuts")
    return F.pad(x, widths, 0.0 if value is None else value)


def softmax(name):
    def call(x, dim, dtype=None):
        offered(dtype is None, "another dtype of the result")
        return getattr(F, name)(x, dim)

    return call


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    offered(len(normalized_shape) == 1, "more than one axis to normalise")
    offered(bias is None or weight is not None, "a bias without a weight")
    return F.layer_norm(x, weight, bias, eps)


def rms_norm(x, normalized_shape, weight=None, eps=None):
    offered(len(normalized_shape) == 1, "more than one axis to normalise")
    return F.rms_norm(x, weight, float(np.finfo(x.dtype).eps) if eps is None else eps)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    offered(attn_mask is None and not is_causal, "a mask")
    offered(not dropout_p, "dropout of probabilities")
    offered(not enable_gqa, "grouped queries")
    return F.scaled_dot_product_attention(q, k, v, scale)


def cross_entropy(x, target, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0):
    offered(reduction == "mean", "another reduction")
    offered(weight is None, "a weight for each class")
    offered(x.ndim == 2, "logits with axes besides rows and classes")
    offered(not (target.numpy() == ignore_index).any(), "labels to ignore")
    target.requires_grad = False
    return F.cross_entropy(x, target, label_smoothing=label_smoothing)


def mse_loss(x, target, reduction="mean"):
    offered(reduction == "mean", "another reduction")
    return F.mse_loss(x, target)


def kl_div(x, target, reduction="mean", log_target=False):
    offered(reduction == "batchmean", "another reduction")
    offered(not log_target, "logarithms as targets")
    target.requires_grad = False
    return F.kl_div(x, target)


def dropout(x, p=0.5, training=True):
    offered(p == 0 or not training, "PyTorch's random numbers")
    return F.dropout(x, p, training)


def linear(x, weight, bias=None):
    return F.linear(x, weight, bias)


def where(x, condition, other):
    return F.where(condition, x, other)


# (name of the OpInfo, its variant) -> our operation and the call
TRANSLATIONS = {
    **{(name, ""): (name, unary(name)) for name in ("neg", "exp", "log", "sqrt", "tanh", "sigmoid", "abs")},
    **{(name, ""): (name, binary(name)) for name in ("add", "sub", "mul", "maximum", "matmul")},
    ("nn.functional.relu", ""): ("relu", unary("relu")),
    ("div", "no_rounding_mode"): ("div", binary("div")),
    ("pow", ""): ("power", power),
    ("nn.functional.gelu", ""): ("gelu", gelu),
    ("where", ""): ("where", where),
    ("clamp", ""): ("clip", clamp),
    ("sum", ""): ("sum", reduction("sum")),
    ("mean", ""): ("mean", reduction("mean")),
    ("amax", ""): ("max", reduction("max")),
    ("var", ""): ("var", var),
    ("var", "unbiased"): ("var", var),
    ("reshape", ""): ("reshape", reshape),
    ("permute", ""): ("transpose", permute),
    ("transpose", ""): ("transpose", transpose),
    ("broadcast_to", ""): ("broadcast_to", broadcast_to),
    ("expand", ""): ("broadcast_to", broadcast_to),
    ("__getitem__", ""): ("getitem", getitem),
    ("cat", ""): ("concatenate", cat),
    ("nn.functional.pad", "constant"): ("pad", pad),
    ("nn.functional.linear", ""): ("linear", linear),
    ("softmax", ""): ("softmax", softmax("softmax")),
    ("log_softmax", ""): ("log_softmax", softmax("log_softmax")),
    ("nn.functional.layer_norm", ""): ("layer_norm", layer_norm),
    ("nn.functional.rms_norm", ""): ("rms_norm", rms_norm),
    ("nn.functional.dropout", ""): ("dropout", dropout),
    ("nn.functional.scaled_dot_product_attention", ""): ("scaled_dot_product_attention", attention),
    ("nn.functional.cross_entropy", ""): ("cross_entropy", cross_entropy),
    ("nn.functional.mse_loss", ""): ("mse_loss", mse_loss),
    ("nn.functional.kl_div", ""): ("kl_div", kl_div),
}
WITHOUT_OPINFO = {
    "pow": "constant exponents are samples of pow, too",
    "multi_head_attention": "PyTorch has no such function of qkv; tests/op_cases.py holds it to attention by heads",
    "patchify": "PyTorch has no such function; tests/op_cases.py holds it to unfold",
    "unpatchify": "PyTorch has no such function; tests/op_cases.py holds it to fold",
    **dict.fromkeys(
        ops.ste.QUANTISERS, "PyTorch has no such function; tests/support/ste_reference.py has the formulas"
    ),
}
# Operation, words of what it says or gives instead, and why that stays
DIFFERENCES = [
    (
        ("sum", "mean", "max", "softmax", "log_softmax"),
        "out of range for an array with 0 dimensions",
        "a single number has no axis, as in NumPy; PyTorch takes 0 and -1 for it",
    ),
    (
        ("concatenate",),
        "axis 1 is out of range for an array with 1 dimensions",
        "shapes must fit, as in NumPy; PyTorch leaves out an empty (0,), for programs older than other empty shapes",
    ),
    (("dropout",), r"p must lie in \[0, 1\), not 1", "1 / (1 - p) has no value for p = 1; PyTorch returns zeros"),
]
# Operation -> why an input has no gradient here that has one in PyTorch
CONSTANT = {
    "cross_entropy": "the target is data or a teacher's, whose gradient nobody wants",
    "kl_div": "as for cross_entropy",
}


def plain(value, convert):
    """The tensors in an argument converted; lists and tuples of them, too."""
    if isinstance(value, torch.Tensor):
        return convert(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(plain(item, convert) for item in value)
    return value


def run_ours(call, sample):
    """(value, gradients) by the library; tensors become Tensors, those with a gradient leaves."""
    leaves = []

    def convert(t):
        leaf = tb.Tensor(t.detach().numpy(), requires_grad=t.requires_grad)
        leaves.append(leaf)
        return leaf

    arguments = [plain(a, convert) for a in (sample.input, *sample.args)]
    y = call(*arguments, **{name: plain(a, convert) for name, a in sample.kwargs.items()})
    return y, leaves


def run_torchs(op, sample):
    leaves = []

    def convert(t):
        leaf = t.detach().clone().requires_grad_(t.requires_grad)
        leaves.append(leaf)
        return leaf

    arguments = [plain(a, convert) for a in (sample.input, *sample.args)]
    y = op.op(*arguments, **{name: plain(a, convert) for name, a in sample.kwargs.items()})
    return y, leaves


def with_numbers(sample):
    """A sample of clamp with the first number of each bound in the place of its tensor."""
    bounds = [*sample.args, *(sample.kwargs.get(name) for name in ("min", "max")[len(sample.args) :])]
    numbers = [b if b is None else float(b.flatten()[0]) if b.numel() else 0.5 for b in bounds]
    return type(sample)(sample.input, args=tuple(numbers))


def compare(name, op, call, sample, tolerance):
    """None where value, shape, dtype and gradients agree, else what differs."""
    expected, theirs = run_torchs(op, sample)
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).to(expected.dtype)
    try:
        y, mine = run_ours(call, sample)
        if expected.requires_grad:
            y.backward(g.numpy())
    except (ValueError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    pairs = [("value", y.numpy(), expected.detach().numpy())]
    if expected.requires_grad:
        wanted = [i for i, t in enumerate(theirs) if t.requires_grad]
        grads = torch.autograd.grad(expected, [theirs[i] for i in wanted], g, allow_unused=True)
        for i, d in zip(wanted, grads, strict=True):
            if not mine[i].requires_grad:
                assert name in CONSTANT
                continue
            zero = np.zeros(mine[i].shape, mine[i].dtype)
            pairs.append(
                (f"gradient {i}", zero if mine[i].grad is None else mine[i].grad, zero if d is None else d.numpy())
            )
    for what, a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{what}: {a.shape} {a.dtype}, torch has {b.shape} {b.dtype}"
        scale = float(np.abs(b[np.isfinite(b)]).max(initial=1))  # sums cancel
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return f"{what}: {a.ravel()[:5]}, torch has {b.ravel()[:5]}"
    return None


def samples(op, dtype):
    """PyTorch's samples; of elementwise functions also the many more that it calls references."""
    yield from op.sample_inputs("cpu", dtype, requires_grad=True)
    if any(kind.__name__ in ("UnaryUfuncInfo", "BinaryUfuncInfo") for kind in type(op).__mro__):
        yield from op.reference_inputs("cpu", dtype, requires_grad=True)


def outcomes(key):
    """How often the samples of an OpInfo ended how: "equal", "not offered: ...", or what differs."""
    op = info(*key)
    name, call = TRANSLATIONS[key]
    found = Counter()
    for dtype, tolerance in DTYPES.items():
        for sample in samples(op, dtype):
            sample = with_numbers(sample) if op.name == "clamp" else sample
            try:
                found[compare(name, op, call, sample, tolerance) or "equal"] += 1
            except NotOffered as what:
                found[f"not offered: {what}"] += 1
    return found


def reason(name, outcome):
    """Why this outcome is right, or None."""
    if outcome == "equal" or outcome.startswith("not offered: "):
        return outcome
    return next((why for names, words, why in DIFFERENCES if name in names and re.search(words, outcome)), None)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", TRANSLATIONS, ids=" ".join)
def test_samples(key):
    name = TRANSLATIONS[key][0]
    found = outcomes(key)
    assert found["equal"] >= 6, found
    wrong = {outcome: count for outcome, count in found.items() if reason(name, outcome) is None}
    assert not wrong, wrong
    for names, words, _ in DIFFERENCES:
        assert name not in names or any(re.search(words, outcome) for outcome in found), f"no longer differs: {words}"


def test_a_difference_would_be_found():
    op = info("exp")
    sample = next(iter(op.sample_inputs("cpu", torch.float64, requires_grad=True)))
    assert compare("exp", op, lambda x: F.exp(x), sample, 1e-10) is None
    assert compare("exp", op, lambda x: F.exp(x) * (1 + 1e-9), sample, 1e-10).startswith("value")
    assert compare("exp", op, lambda x: F.exp(x) + x * 0 * 1e-9 + (x - x.detach()) * 1e-6, sample, 1e-10).startswith(
        "gradient 0"
    )
    assert compare("exp", op, lambda x: F.softmax(x, 9), sample, 1e-10).startswith("ValueError")


def test_the_tables_name_operations():
    translated = {name for name, _ in TRANSLATIONS.values()}
    assert translated | set(WITHOUT_OPINFO) <= set(ops.OPS) and not translated & set(WITHOUT_OPINFO)
