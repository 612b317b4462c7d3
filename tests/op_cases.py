"""Every operation against PyTorch: one table of cases.

A case names an op of `tinybitvit.ops.OPS`, gives its inputs and parameters, and says the same
with torch. The table drives test_ops_torch (value, shape, dtype, every gradient), test_ops_complete, test_checker and
the mutation run of `tests/mutate.py`. The first case of an op is plain: no kink within 0.01 of its inputs, so that
finite differences make sense there.

To add an op: one call of `cases(name, reference, inputs, ..., **params)` below. Inputs are a list with one entry per
array: a shape (standard normal numbers) or one of the makers `positive`, `clear`, `integers`, ...
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as TF
from ste_reference import straight_through

from tinybitvit import functional as F
from tinybitvit import ops

FUNCTIONS = ops.OPS
TABLE = []


# --- makers of input arrays -------------------------------------------------------------------------------------------


def normal(*shape, size=1.0, offset=0.0):
    return lambda rng: offset + size * rng.standard_normal(shape)


def positive(*shape):
    return lambda rng: rng.uniform(0.3, 3.0, shape)


def clear(*shape, of=(0.0,), gap=0.05, size=1.0):
    """Normal numbers, none closer than `gap` to the points `of`, where the op has a kink or a pole."""

    def make(rng):
        x = size * rng.standard_normal(shape)
        for point in of:
            x = np.where(abs(x - point) < gap, point + np.where(x < point, -1, 1) * (gap + abs(x - point)), x)
        return x

    return make


def distinct(*shape):
    """The numbers 0.1, 0.2, ... in random order: no two are equal or close."""
    return lambda rng: rng.permutation(int(np.prod(shape))).reshape(shape) / 10 - 0.5


def integers(high, *shape):
    return lambda rng: rng.integers(0, high, shape)


def booleans(*shape):
    return lambda rng: rng.random(shape) < 0.5


def probabilities(*shape):
    return lambda rng: rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def given(values):
    return lambda rng: np.array(values)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OpCase:
    """One call of an op.

    wrt: which inputs have a gradient (None: all floating point ones); loose: factor on the float32 tolerances, where
    the op itself loses digits; atol: what rounding leaves of results that are 0; public: how `tb.functional` is called,
    where not by name with the inputs and the parameters.
    """

    op: str
    reference: Callable
    makers: tuple
    params: dict
    wrt: tuple | None
    loose: float
    atol: float
    public: Callable
    id: str
    cached: dict = field(default_factory=dict)

    @property
    def function(self):
        return FUNCTIONS[self.op]

    def rng(self, salt=""):
        return np.random.default_rng(zlib.crc32(f"{self.id} {salt}".encode()))

    def arrays(self, dtype):
        """The inputs; those with fractions in this dtype, the same numbers (to its precision) for every dtype."""
        rng = self.rng()
        made = [np.asarray(make(rng)) for make in self.makers]
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in made]

    def differentiable(self):
        """Positions of the inputs that have a gradient."""
        return [
            i
            for i, a in enumerate(self.arrays("float64"))
            if a.dtype.kind == "f" and (self.wrt is None or i in self.wrt)
        ]

    def oracle(self, dtype):
        """(y, g, gradients) by torch in float64 from the inputs of this dtype, g random; a gradient or None each."""
        if dtype not in self.cached:
            inputs = [torch.tensor(a.astype("float64") if a.dtype.kind == "f" else a) for a in self.arrays(dtype)]
            wanted = [inputs[i].requires_grad_() for i in self.differentiable()]
            y = self.reference(*inputs, **self.params)
            g = self.rng("g").standard_normal(tuple(y.shape)).astype(dtype)
            grads = iter(torch.autograd.grad(y, wanted, torch.tensor(g.astype("float64"))))
            grads = [next(grads).numpy() if i in self.differentiable() else None for i in range(len(inputs))]
            self.cached[dtype] = y.detach().numpy(), g, grads
        return self.cached[dtype]


def cases(op, reference, *inputs_of_each, wrt=None, loose=1.0, atol=0.0, public=None, **params):
    """Add one case for each list of inputs."""
    public = public or getattr(F, op)
    for inputs in inputs_of_each:
        makers = tuple(make if callable(make) else normal(*make) for make in inputs)
        number = sum(case.op == op for case in TABLE)
        TABLE.append(OpCase(op, reference, makers, params, wrt, loose, atol, public, f"{op}-{number}"))


def of_op(name):
    return [case for case in TABLE if case.op == name]


# --- elementwise ------------------------------------------------------------------------------------------------------

BROADCAST = [  # shapes of two operands
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((2, 3, 4), (3, 1)),
    ((1, 4), (3, 1)),
    ((), (2, 3)),
    ((2, 1, 3), ()),
    ((), ()),
    ((1, 1), (1,)),
    ((1, 1), (1, 4)),
    ((1, 1, 1), (1, 4, 1)),
    ((1,), (1, 4)),
    ((0, 3), (1, 3)),
    ((3,), (0, 3)),
    ((1,), (0,)),
]
SHAPES = [(3, 4), (), (1, 1), (0, 3), (2, 0, 3)]


def pairs(first=normal, second=normal):
    return [[first(*a), second(*b)] for a, b in BROADCAST]


def shapes(make=normal):
    return [[make(*shape)] for shape in SHAPES]


SMALL_AND_LARGE = [[normal(3, 4, size=1e-4)], [normal(3, 4, size=1e4)]]

for name, reference in {"add": torch.add, "sub": torch.sub, "mul": torch.mul}.items():
    cases(name, reference, *pairs(), [normal(3, 4, size=1e4), normal(4, size=1e-4)])
cases("div", torch.div, *pairs(second=clear), [normal(3, 4, size=1e-4), clear(4, size=1e4)])
cases("neg", torch.neg, *shapes(), *SMALL_AND_LARGE)


def power(x, exponent):
    return x**exponent


for exponent in (0.5, -0.5, 2.5, 1.7):
    cases("pow", power, *shapes(positive), exponent=exponent)
for exponent in (2, 3, -1, -2, 1, 0):
    cases("pow", power, *shapes(clear), exponent=exponent)
cases("pow", power, [given([0.0, -0.0, 2.0])], exponent=0)
cases("pow", power, [given([0.0, -0.0, 2.0])], exponent=1)
cases("pow", power, [given([0.0, -0.0, 2.0])], exponent=2)

cases("power", torch.pow, *pairs(first=positive), [given([0.0, 0.0, 2.0, 0.0]), given([0.0, 2.0, 0.0, 1.0])])

cases("exp", torch.exp, *shapes(), [given([-30.0, 10.0, 1e-4])])
cases("log", torch.log, *shapes(positive), [given([1e-4, 1e4, 1.0])])
cases("sqrt", torch.sqrt, *shapes(positive), [given([1e-4, 1e4, 1.0])])
cases("tanh", torch.tanh, *shapes(), *SMALL_AND_LARGE)
cases("sigmoid", torch.sigmoid, *shapes(), [given([-30.0, 30.0, 0.0, -100.0, 100.0])], *SMALL_AND_LARGE)
cases("relu", torch.relu, *shapes(clear), [given([0.0, -0.0, 1e-4, -1e-4, 1e4])])
for approximate in ("none", "tanh"):
    extremes = [given([0.0, -0.0, 1e-4, 5.0, -5.0, 40.0, -40.0])]
    cases("gelu", TF.gelu, *shapes(), extremes, *SMALL_AND_LARGE, approximate=approximate)
cases("gelu", TF.gelu, [(3, 4)])

cases("where", torch.where, *[[booleans(*a), normal(*a), normal(*b)] for a, b in BROADCAST])
cases("where", torch.where, [booleans(3, 1), (3, 4), (1,)], [booleans(2, 3, 4), (3, 4), ()], [booleans(), (2,), (2,)])
cases("abs", torch.abs, *shapes(clear), [given([0.0, -0.0, 1e-4, -1e4])])
cases("maximum", torch.maximum, [distinct(3, 4), normal(3, 4)], *pairs())
cases(
    "maximum",
    torch.maximum,
    [given([1.0, 2.0, 0.0]), given([1.0, 1.0, 0.0])],
    [given([[1.0], [2.0]]), given([1.0, 2.0])],
)


def clamp(x, low=None, high=None):
    return torch.clamp(x, low, high)


ends = [given([-0.5, 0.7, 0.0, 1.0, -1.0])]
cases("clip", clamp, *shapes(lambda *shape: clear(*shape, of=(-0.5, 0.7))), ends, *SMALL_AND_LARGE, low=-0.5, high=0.7)
cases("clip", clamp, [(3, 4)], ends, low=-0.5)
cases("clip", clamp, [(3, 4)], ends, high=0.7)
cases("clip", clamp, [(3, 4)], ends, low=-0.5, high=None)


# --- reductions -------------------------------------------------------------------------------------------------------


def dims(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis


def reduce_by(function):
    def reference(x, axis=None, keepdims=False):
        over = dims(x, axis)
        return function(x, over, keepdims) if over != () else x * 1

    return reference


def variance(x, axis=None, ddof=0, keepdims=False):
    over = dims(x, axis)
    if over == () or not x.numel():
        return ((x - x.sum(over, keepdim=True)) ** 2).sum(over, keepdim=keepdims) if over else x - x
    return torch.var(x, over, correction=ddof, keepdim=keepdims)


REDUCTIONS = {
    "sum": (reduce_by(lambda x, over, keep: torch.sum(x, over, keepdim=keep)), normal),
    "mean": (reduce_by(lambda x, over, keep: torch.mean(x, over, keepdim=keep)), normal),
    "max": (reduce_by(lambda x, over, keep: torch.amax(x, over, keepdim=keep)), distinct),
    "var": (variance, normal),
}
for name, (reference, make) in REDUCTIONS.items():
    plain = [[make(3, 4)], [make()], [make(1, 1)], [make(2, 1, 3)]]
    cases(name, reference, *plain)
    for axis in (0, 1, -1, (0, 2), (-1, 0), (0, 1, 2), ()):
        for keepdims in (False, True):
            cases(name, reference, [make(2, 3, 4)], axis=axis, keepdims=keepdims)
    cases(name, reference, [make(2, 3)], keepdims=True)
    cases(name, reference, [make(0, 3)], [make(2, 0, 3)], axis=-1)
    cases(name, reference, [make(4, 1, 3)], [make(4, 1)], axis=1)
    cases(name, reference, [normal(3, 4, size=1e-4)], [normal(3, 4, size=1e4)], axis=1, loose=10)
cases("sum", REDUCTIONS["sum"][0], [(0, 3)], [(2, 0, 3)], [(0,)])
cases("sum", REDUCTIONS["sum"][0], [(0, 3)], [(2, 0)], axis=0)
tied = [[1.0, 2.0, 2.0], [3.0, 3.0, 3.0], [0.0, -0.0, -1.0]]
cases("max", REDUCTIONS["max"][0], [given(tied)])
cases("max", REDUCTIONS["max"][0], [given(tied)], axis=1)
cases("max", REDUCTIONS["max"][0], [given(tied)], axis=0, keepdims=True)
cases("var", variance, [(3, 4)], [(2,)], ddof=1)
cases("var", variance, [(2, 3, 4)], axis=(0, 2), ddof=1, keepdims=True)
cases("var", variance, [given([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])], axis=-1)
cases("var", variance, [normal(3, 8, offset=100.0)], axis=-1, loose=100)


# --- shape ------------------------------------------------------------------------------------------------------------


def pick(x, index):
    """x[index] with NumPy's meaning of an index, of which torch has not all: pick the numbers of the positions."""
    positions = np.arange(x.numel()).reshape(tuple(x.shape))[index]
    return x.reshape(-1)[torch.as_tensor(np.array(positions))]


def torch_pad(x, pad_width, value=0.0):
    pairs = [(pad_width, pad_width)] * x.ndim if isinstance(pad_width, int) else pad_width
    return TF.pad(x, [width for pair in reversed(pairs) for width in pair], value=value)


for old, new in [
    ((2, 6), (3, 4)),
    ((2, 6), (-1, 3)),
    ((2, 6), 12),
    ((), (1, 1)),
    ((1,), ()),
    ((0, 3), (3, 0)),
    ((2, 3), (2, 3)),
]:
    cases("reshape", lambda x, shape: x.reshape(shape), [old], shape=new)
for shape, axes in [
    ((2, 3, 4), (1, 2, 0)),
    ((2, 3, 4), None),
    ((2, 3, 4), (0, 2, 1)),
    ((2, 3, 4), (-1, 0, -2)),
    ((2, 3, 4, 5), (2, 0, 3, 1)),
    ((), None),
    ((3,), (0,)),
    ((0, 3), None),
    ((1, 3), (1, 0)),
]:
    cases("transpose", lambda x, axes=None: x.permute(axes or tuple(range(x.ndim))[::-1]), [shape], axes=axes)
cases("transpose", lambda x: x.permute(2, 1, 0), [(2, 3, 4)])
for old, new in [
    ((3, 1), (3, 4)),
    ((4,), (2, 3, 4)),
    ((), (2, 2)),
    ((1, 1), (3, 1)),
    ((2, 3), (2, 3)),
    ((1, 3), (0, 3)),
    ((1,), (0,)),
]:
    cases("broadcast_to", lambda x, shape: x.expand(shape), [old], shape=new)

for shape, index in [
    ((3, 4), (slice(0, 2), slice(1, None))),
    ((3, 4), 1),
    ((3, 4), -1),
    ((3, 4), (1, 2)),
    ((3, 4), slice(None, None, -2)),
    ((3, 4), (Ellipsis, slice(3, 0, -1))),
    ((3, 4), (None, slice(None), None, 0)),
    ((3, 4), slice(2, 2)),
    ((3, 4), ()),
    ((3, 4), None),
    ((3, 4), Ellipsis),
    ((5, 3), [0, 2, 2, 4]),
    ((5, 3), np.array([[0, 0], [-1, 2]])),
    ((5, 3), ([0, 1, 0], [2, 2, 2])),
    ((5, 3), (slice(1, 4), [0, 0, 1])),
    ((5, 3), (None, [1, 1], 0)),
    ((5, 3), np.array([True, False, True, True, False])),
    ((5, 3), np.zeros(5, dtype=bool)),
    ((2, 2), np.array([[True, False], [True, True]])),
    ((5, 3), np.array([], dtype=int)),
    ((5, 3), np.int64(2)),
    ((0, 3), slice(None)),
    ((), ()),
]:
    cases("getitem", pick, [shape], index=index)


def public_concatenate(*tensors, axis=0):
    return F.concatenate(tensors, axis)


def torch_concatenate(*tensors, axis=0):
    return torch.cat(tensors, axis)


for axis, *inputs in [
    (0, [(2, 3), (4, 3)], [(2, 3)], [(0, 3), (2, 3)], [(2,), (1,)]),
    (1, [(2, 1, 4), (2, 5, 4), (2, 0, 4), (2, 2, 4)]),
    (-1, [(2, 3, 4), (2, 3, 4), (2, 3, 1)]),
    (-3, [(2, 3, 4), (1, 3, 4), (2, 3, 4)]),
]:
    cases("concatenate", torch_concatenate, *inputs, public=public_concatenate, axis=axis)
cases("concatenate", torch_concatenate, [(2, 3), (4, 3)], public=public_concatenate)

for shape, width in [
    ((2, 3), ((1, 2), (0, 3))),
    ((2, 3), 1),
    ((3,), ((2, 0),)),
    ((2, 3), ((0, 0), (0, 0))),
    ((1, 2, 3), ((0, 1), (2, 0), (1, 1))),
    ((0, 3), ((1, 1), (0, 1))),
]:
    cases("pad", torch_pad, [shape], pad_width=width)
cases("pad", torch_pad, [(2, 3)], pad_width=((1, 0), (2, 1)), value=-1.5)


# --- matrix products --------------------------------------------------------------------------------------------------

for a, b in [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((4,), (4,)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((1, 1), (1, 1)),
    ((0, 4), (4, 5)),
    ((3, 0), (0, 5)),
    ((0, 3, 4), (4, 2)),
    ((3, 3), (3, 3)),
]:
    cases("matmul", torch.matmul, [a, b])
cases("matmul", torch.matmul, [normal(3, 4, size=1e4), normal(4, 5, size=1e-4)])

for x in [(5, 3), (2, 5, 3), (3,), (0, 3), (2, 0, 3), (1, 3), (2, 5, 0)]:
    cases("linear", TF.linear, [x, (4, x[-1]), (4,)], [x, (4, x[-1])])
cases("linear", TF.linear, [(3, 3), (3, 3), (3,)], [(2, 1), (1, 1), (1,)])
cases("linear", TF.linear, [normal(5, 3, size=1e4), normal(4, 3, size=1e-4), (4,)])


# --- softmax and normalisation ----------------------------------------------------------------------------------------

for name, function in {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.items():
    reference = lambda x, axis=-1, function=function: function(x, axis)  # noqa: E731
    cases(name, reference, [(3, 4)], [(2, 3, 4)], [(4,)], [(3, 1)], [(1, 1)], [(0, 4)])
    for axis in (0, 1, -2):
        cases(name, reference, [(2, 3, 4)], axis=axis)
    cases(name, reference, [(3, 0)], [(5, 0, 0)], axis=0)
    cases(name, reference, [(3, 0)], [(5, 0, 0)], axis=1)
    cases(name, reference, [(0, 3, 4)], [(5, 0, 0)], axis=-1)
    below = [[0.0, 1.0, 2.0], [-2000.0, -2001.0, -2002.0], [1e4, 0.0, -1e4]]  # rows far below the largest element
    cases(name, reference, [given(below)], *SMALL_AND_LARGE, [given([[1.0, 1.0], [0.0, 0.0]])], [normal(3, 4, size=30)])


def torch_layer_norm(x, weight=None, bias=None, eps=1e-5):
    return TF.layer_norm(x, x.shape[-1:], weight, bias, eps)


def torch_rms_norm(x, weight=None, eps=1e-6):
    return TF.rms_norm(x, x.shape[-1:], weight, eps)


for name, reference, most in (("layer_norm", torch_layer_norm, 3), ("rms_norm", torch_rms_norm, 2)):
    affine = [(6,), (6,)][: most - 1]
    for x in [(4, 6), (2, 3, 6), (6,), (0, 6)]:
        cases(name, reference, *[[x, *affine[:n]] for n in reversed(range(most))])
    cases(name, reference, [(4, 6), *affine], eps=0.1)
    cases(name, reference, [normal(4, 6, size=1e-4), *affine], [normal(4, 6, size=1e-3), *affine])
    cases(name, reference, [normal(4, 6, size=1e4), *affine], [normal(4, 6, size=1e4)], loose=10)
    cases(name, reference, [normal(4, 6, offset=100.0), *affine], loose=1000)
    cases(name, reference, [given([[0.5] * 4, [0.0] * 4]), (4,)], [given([[2.0, 2.0, 2.0, 2.25]]), (4,)])
    cases(name, reference, [(3, 1), (1,)], atol=1e-6)  # the gradient is 0 but for rounding


class KeepWhere:
    """Stands in for the Generator of dropout: draws that make it keep exactly where the mask is not 0."""

    def __init__(self, mask):
        self.mask = mask

    def random(self, shape, dtype):
        assert shape == self.mask.shape
        return (self.mask != 0).astype(dtype)


def public_dropout(x, mask):
    keep = mask.data
    return F.dropout(x, p=1 - 1 / float(keep.max()), rng=KeepWhere(keep)) if keep.any() else x * mask


def dropout_mask(*shape, p=0.5):
    return lambda rng: (rng.random(shape) >= p) / (1 - p)


for shape in [(3, 4), (), (0, 3), (2, 1, 3)]:
    cases("dropout", torch.mul, [shape, dropout_mask(*shape)], wrt=(0,), public=public_dropout)
cases("dropout", torch.mul, [(5, 6), dropout_mask(5, 6, p=0.25)], wrt=(0,), public=public_dropout)


# --- attention --------------------------------------------------------------------------------------------------------


def torch_attention(q, k, v, scale=None):
    return TF.scaled_dot_product_attention(q, k, v, scale=scale)


def torch_multi_head(qkv, heads, scale=None):
    n, t, width = qkv.shape
    q, k, v = (part.reshape(n, t, heads, width // 3 // heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return TF.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).reshape(n, t, width // 3)


for q, k, v in [
    ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    ((5, 4), (5, 4), (5, 4)),
    ((2, 1, 4), (2, 1, 4), (2, 1, 4)),
    ((3, 5, 1), (3, 2, 1), (3, 2, 1)),
    ((0, 5, 4), (0, 5, 4), (0, 5, 4)),
    ((4, 3, 8), (4, 4, 6, 8), (4, 4, 6, 8)),
    ((2, 3, 5, 4), (3, 2, 4), (2, 6)),
    ((5, 4), (2, 1, 3, 4), (3, 3, 2)),
    ((3, 4), (5, 4), (2, 5, 3)),
    ((2, 3, 4), (2, 0, 4), (2, 0, 5)),
    ((2, 3, 0), (2, 4, 0), (2, 4, 5)),
]:
    cases("scaled_dot_product_attention", torch_attention, [q, k, v])
    cases("scaled_dot_product_attention", torch_attention, [q, k, v], scale=0.7)
for size in (1e-4, 1e2):
    big = [normal(2, 5, 4, size=size), normal(2, 5, 4, size=size), (2, 5, 4)]
    cases("scaled_dot_product_attention", torch_attention, big, loose=100)
for shape, heads in [((2, 5, 18), 3), ((1, 3, 6), 1), ((2, 1, 12), 2), ((0, 4, 12), 4), ((2, 3, 6), 2), ((2, 0, 6), 2)]:
    cases("multi_head_attention", torch_multi_head, [shape], heads=heads)
    cases("multi_head_attention", torch_multi_head, [shape], heads=heads, scale=1.3)


# --- losses -----------------------------------------------------------------------------------------------------------


def torch_cross_entropy(logits, target, weight=None, label_smoothing=0.0):
    target = target.double() if target.ndim == 2 else target.long()
    rows = TF.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    return rows.mean() if weight is None else (rows * weight).sum() / weight.sum()


for smoothing in ({}, {"label_smoothing": 0.1}, {"label_smoothing": 1.0}):
    for target in (integers(4, 5), probabilities(5, 4), positive(5, 4)):  # the last: rows that do not sum to 1
        ce = [(5, 4), target]
        cases("cross_entropy", torch_cross_entropy, ce, [*ce, positive(5)], wrt=(0,), **smoothing)
    soft = [(5, 4), probabilities(5, 4)]
    cases("cross_entropy", torch_cross_entropy, soft, [*soft, positive(5)], wrt=(0, 1), **smoothing)
cases("cross_entropy", torch_cross_entropy, [(1, 3), given([2])], [(4, 1), given([0, 0, 0, 0])], wrt=(0,))
cases("cross_entropy", torch_cross_entropy, [(3, 4), given([0, 3, 1]), given([0.0, 2.0, 1.0])], wrt=(0,))
cases("cross_entropy", torch_cross_entropy, [(3, 4), given(np.array([0, 3, 1], dtype="uint8"))], wrt=(0,))
cases("cross_entropy", torch_cross_entropy, [(3, 3), given(np.eye(3, dtype=int))], wrt=(0,))
cases("cross_entropy", torch_cross_entropy, [(3, 4), given([0, 3, 1]), given([1, 2, 4])], wrt=(0,))
masked = given([[0.0, -np.inf, 1.0], [-np.inf, 0.5, -np.inf]])
cases("cross_entropy", torch_cross_entropy, [masked, given([0, 1])], [masked, given([2, 1]), positive(2)], wrt=(0,))
for size in (1e-4, 30.0, 1e4):
    cases("cross_entropy", torch_cross_entropy, [normal(5, 4, size=size), integers(4, 5)], wrt=(0,), loose=10)

for shape in [(3, 4), (), (1, 1), (4,), (2, 1, 3)]:
    cases("mse_loss", TF.mse_loss, [shape, shape])
cases("mse_loss", TF.mse_loss, [normal(3, 4, size=1e4), normal(3, 4)])
cases("mse_loss", TF.mse_loss, [normal(3, 4, size=1e-4), normal(3, 4, size=1e-4)])


def torch_kl_div(x, target):
    return TF.kl_div(x, target.double(), reduction="batchmean")


for shape in [(3, 4), (1, 4), (5, 1)]:
    cases("kl_div", torch_kl_div, [shape, probabilities(*shape)], wrt=(0,))
cases("kl_div", torch_kl_div, [(2, 3), given([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])], wrt=(0,))
cases("kl_div", torch_kl_div, [(3, 3), given(np.eye(3, dtype=int))], wrt=(0,))
cases("kl_div", torch_kl_div, [normal(2, 3, size=1e4), positive(2, 3)], wrt=(0,))


# --- patches ----------------------------------------------------------------------------------------------------------


def torch_patchify(x, patch_size):
    """torch's unfold gives (N, C ph pw, T) of an image with the channels first."""
    n, c = len(x), x.shape[-1]
    columns = TF.unfold(x.permute(0, 3, 1, 2), patch_size, stride=patch_size)
    return columns.reshape(n, c, patch_size[0] * patch_size[1], -1).permute(0, 3, 2, 1).flatten(2)


def torch_unpatchify(x, patch_size, image_size):
    pixels = patch_size[0] * patch_size[1]
    columns = x.reshape(len(x), x.shape[1], pixels, -1).permute(0, 3, 2, 1).flatten(1, 2)
    return TF.fold(columns, image_size, patch_size, stride=patch_size).permute(0, 2, 3, 1)


for n, image, patch, c in [
    (2, (4, 6), (2, 3), 3),
    (1, (4, 4), (2, 2), 1),
    (2, (6, 4), (3, 1), 2),
    (1, (3, 5), (3, 5), 2),
    (2, (2, 3), (1, 1), 1),
]:
    tokens = (n, image[0] * image[1] // (patch[0] * patch[1]), patch[0] * patch[1] * c)
    cases("patchify", torch_patchify, [(n, *image, c)], patch_size=patch)
    cases("unpatchify", torch_unpatchify, [tokens], patch_size=patch, image_size=image)


# --- straight-through quantisers --------------------------------------------------------------------------------------

WEIGHTS = [[(4, 6)], [(3, 5)], [(6,)], [(2, 3, 4)], [(1, 1)]]
ODD_ROWS = [  # all zero; smaller than the smallest scale; ties for rounding and for the sign of 0
    [given([[0.0] * 4, [1e-7, -2e-7, 3e-7, 0.0], [0.5, -0.5, 1.5, -1.5], [2.0, -2.0, 0.0, 0.0]])],
    [given([[-1.0, 0.0, 1.0], [3.0, 1.0, 2.0]])],
    [given([[-0.0, 1.0, -0.0, -1.0], [0.0, -0.0, 0.0, 0.0]])],
]
SLOPES = [
    {"ste": "clipped", "width": 1.0},
    {"ste": "clipped", "width": 1.5},
    {"ste": "approx_sign", "width": 1.0},
    {"ste": "approx_sign", "width": 1.5},
    {"ste": "ede", "temperature": 0.1},
    {"ste": "ede", "temperature": 1.0},
    {"ste": "ede", "temperature": 3.0},
]

for name in ("binary", "ternary"):
    reference = straight_through(name)
    cases(name, reference, *WEIGHTS, *ODD_ROWS, *SMALL_AND_LARGE, [(0, 4)])
    for granularity in ("row", "tensor"):
        for scale in ("absmean", "absmedian"):
            cases(name, reference, *WEIGHTS, *ODD_ROWS, granularity=granularity, scale=scale)
        for slope in SLOPES:
            cases(name, reference, *WEIGHTS[:3], granularity=granularity, **slope)
    on_the_edge = [[1.0, -1.0, 2.0, 0.0], [-1.0, 1.0, 0.0, -2.0]]  # their mean size is 1, and so is the width
    cases(name, reference, [given(on_the_edge)], ste="clipped", width=1.0)
for granularity in ("row", "tensor"):
    twn = {"scale": "twn", "granularity": granularity}
    cases("ternary", straight_through("ternary"), *WEIGHTS, *ODD_ROWS, *SMALL_AND_LARGE, **twn)
    for slope in SLOPES:
        cases("ternary", straight_through("ternary"), *WEIGHTS[:3], **twn, **slope)
cases("ternary", straight_through("ternary"), [(0, 4)], scale="twn")
tiny = given([[7e-6, -8e-6, 0.0, 0.0]])  # not rounded to 0, and yet below the least scale, 1e-5
cases("ternary", straight_through("ternary"), [tiny], scale="twn")
cases("binary", straight_through("binary"), *WEIGHTS, *ODD_ROWS, centre=False)
cases("binary", straight_through("binary"), *WEIGHTS, granularity="tensor", centre=False, ste="approx_sign", width=2.0)

for bits in (2, 3, 4, 8):
    for scale in ("absmean", "absmedian", "absmax"):
        for granularity in ("row", "tensor"):
            for ste in ("identity", "clipped"):
                options = {"bits": bits, "scale": scale, "granularity": granularity, "ste": ste}
                cases("nbit", straight_through("nbit"), [normal(4, 7, size=0.3)], **options)
    cases("nbit", straight_through("nbit"), *WEIGHTS, *ODD_ROWS, *SMALL_AND_LARGE, [(0, 4)], bits=bits)
    cases("nbit", straight_through("nbit"), *ODD_ROWS, bits=bits, scale="absmax", ste="clipped")
EDGES = [  # rows of mean size 1/2, and so of step 1 for 2 bits: on the ends -2 and 1 of the codes, and beyond
    [-2.0, 1.0, 0.25, 0.25, 0.25, 0.25, 0.0, 0.0],
    [-2.5, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
]
cases("nbit", straight_through("nbit"), [given(EDGES)], bits=2, ste="clipped")

for bits in ({}, {"bits": 8}, {"bits": 4}, {"bits": 2}):
    cases("absmax", straight_through("absmax"), *WEIGHTS, ODD_ROWS[0], *SMALL_AND_LARGE, [(0, 4)], **bits)


# --- what an op refuses -----------------------------------------------------------------------------------------------

A, B, ROW = np.ones((2, 3)), np.ones((3, 3)), np.ones(3)
IMAGES = np.ones((1, 4, 6, 1))
REFUSED = [  # op, inputs, parameters, words of the sentence
    ("gelu", [A], {"approximate": "erf"}, "approximate must be 'none' or 'tanh', not 'erf'"),
    ("clip", [A], {}, "clip needs low, high or both"),
    ("sum", [A], {"axis": 2}, "axis 2 is out of range for an array with 2 dimensions"),
    ("mean", [A], {"axis": -3}, "axis -3 is out of range"),
    ("max", [A], {"axis": (0, 2)}, r"axis \(0, 2\) is out of range"),
    ("sum", [A], {"axis": (0, -2)}, "duplicate value in 'axis'"),
    ("var", [A], {"axis": 1, "ddof": 3}, "3 elements with ddof=3"),
    ("transpose", [A], {"axes": (0, 0)}, "repeated axis"),
    ("transpose", [A], {"axes": (0,)}, "axes don't match"),
    ("transpose", [A], {"axes": (-3, 0)}, "axis -3 is out of bounds"),
    ("reshape", [A], {"shape": (4, 2)}, "cannot reshape array of size 6"),
    ("pad", [A], {"pad_width": ((1, 1),)}, "one .before, after. pair for each of the 2 axes, not 1"),
    ("matmul", [np.array(2.0), A], {}, "at least one axis; use [*]"),
    ("matmul", [A, np.array(2.0)], {}, "at least one axis; use [*]"),
    ("multi_head_attention", [np.ones((1, 2, 8))], {"heads": 2}, "8 columns, which 2 heads of q, k and v do not"),
    ("multi_head_attention", [np.ones((1, 2, 9))], {"heads": 2}, "9 columns, which 2 heads of q, k and v do not"),
    ("cross_entropy", [np.ones((0, 3)), np.ones(0, dtype=int)], {}, "empty array of shape .0, 3. is undefined"),
    ("cross_entropy", [A, np.array([0, 3])], {}, "class numbers must lie in 0..2, found 0..3"),
    ("cross_entropy", [A, np.array([-1, 2])], {}, "class numbers must lie in 0..2, found -1..2"),
    ("cross_entropy", [A, np.array([0.0, 1.0])], {}, "not shape .2,. of float64"),
    ("cross_entropy", [A, np.array([0, 1, 2])], {}, "not shape .3,. of int64"),
    ("cross_entropy", [A, B], {}, "not shape .3, 3. of float64"),
    ("mse_loss", [np.ones((0, 3)), np.ones((0, 3))], {}, "empty array of shape .0, 3. is undefined"),
    ("mse_loss", [np.ones((3, 1)), ROW], {}, r"input has shape \(3, 1\) and target \(3,\); they must be equal"),
    ("mse_loss", [A, np.array(0.0)], {}, r"input has shape \(2, 3\) and target \(\)"),
    ("kl_div", [np.ones((0, 3)), np.ones((0, 3))], {}, "empty array of shape .0, 3. is undefined"),
    ("kl_div", [A, ROW], {}, r"input has shape \(2, 3\) and target \(3,\)"),
    ("cross_entropy", [A, np.array([0, 1]), np.ones((2, 1))], {}, r"for each of 2 rows, not shape \(2, 1\)"),
    ("cross_entropy", [ROW, np.array(0)], {}, r"logits must be \(N, C\), not \(3,\)"),
    ("cross_entropy", [A, np.array([0, 1])], {"label_smoothing": 1.5}, "label_smoothing must lie in 0..1, not 1.5"),
    ("cross_entropy", [A, np.array([0, 1])], {"label_smoothing": -0.1}, "label_smoothing must lie in 0..1, not -0.1"),
    ("max", [np.ones((2, 0))], {"axis": 1}, r"shape \(2, 0\) has no maximum over axis 1"),
    ("max", [np.ones((2, 0))], {}, "no maximum over axis None"),
    ("softmax", [A], {"axis": 2}, "axis 2 is out of range"),
    ("log_softmax", [A], {"axis": -3}, "axis -3 is out of range"),
    ("concatenate", [A, A], {"axis": 2}, "axis 2 is out of range"),
    ("concatenate", [A, np.array(1.0)], {"axis": 0}, "axis 0 is out of range for an array with 0 dimensions"),
    ("pad", [A], {"pad_width": (1, 1)}, r"pair for each of the 2 axes, not 2: \(1, 1\)"),
    ("pad", [A], {"pad_width": ((1, 1), (1, 1, 1))}, "pair for each of the 2 axes"),
    ("pad", [A], {"pad_width": ((0, 0), (0, -1))}, r"is negative; cut a border off with x\[1:-1\]"),
    ("matmul", [A, A], {}, "rows of a have 3 numbers, the columns of b 2"),
    ("matmul", [ROW, A], {}, "rows of a have 3 numbers, the columns of b 2"),
    ("matmul", [A, np.ones(2)], {}, "rows of a have 3 numbers, the columns of b 2"),
    ("linear", [A, np.ones((4, 2))], {}, r"weight must be \(out, 3\) for this input, not \(4, 2\)"),
    ("linear", [A, ROW], {}, r"weight must be \(out, 3\) for this input, not \(3,\)"),
    ("linear", [A, B, np.ones(1)], {}, r"bias must be \(3,\) for this weight, not \(1,\)"),
    ("linear", [np.array(1.0), B], {}, "a single number; an array with at least one axis"),
    ("layer_norm", [A, np.ones(2)], {}, r"one number for each of 3 columns, not shape \(2,\)"),
    ("layer_norm", [A, ROW, np.ones(1)], {}, r"one number for each of 3 columns, not shape \(1,\)"),
    ("rms_norm", [A, np.ones((1, 3))], {}, r"one number for each of 3 columns, not shape \(1, 3\)"),
    ("rms_norm", [np.array(1.0)], {}, "a single number"),
    ("scaled_dot_product_attention", [ROW, ROW, ROW], {}, r"needs q \(..., T, d\).*, not q \(3,\)"),
    ("scaled_dot_product_attention", [A, np.ones((2, 2)), A], {}, r"not q \(2, 3\), k \(2, 2\) and v \(2, 3\)"),
    ("scaled_dot_product_attention", [A, A, B], {}, r"not q \(2, 3\), k \(2, 3\) and v \(3, 3\)"),
    ("scaled_dot_product_attention", [A, ROW, A], {}, r"not q \(2, 3\), k \(3,\) and v \(2, 3\)"),
    ("multi_head_attention", [A], {"heads": 1}, r"qkv must be \(N, T, 3 [*] heads [*] d\), not \(2, 3\)"),
    ("multi_head_attention", [np.ones((1, 2, 6))], {"heads": 0}, "6 columns, which 0 heads"),
    ("multi_head_attention", [np.ones((1, 2, 6))], {"heads": -1}, "6 columns, which -1 heads"),
    ("patchify", [IMAGES[0]], {"patch_size": (2, 2)}, r"images must be \(N, H, W, C\), not \(4, 6, 1\)"),
    ("patchify", [IMAGES], {"patch_size": (2,)}, r"one number or \(height, width\), not \(2,\)"),
    ("patchify", [IMAGES], {"patch_size": (0, 2)}, "patches of 0 x 2 pixels do not tile"),
    ("unpatchify", [np.ones((1, 3, 4))], {"patch_size": (2, 2), "image_size": (4, 4)}, r"must be \(N, 4, 2 [*] 2"),
    ("unpatchify", [np.ones((1, 4, 6))], {"patch_size": (2, 2), "image_size": (4, 4)}, r"not \(1, 4, 6\)"),
    ("unpatchify", [np.ones((4, 4))], {"patch_size": (2, 2), "image_size": (4, 4)}, r"not \(4, 4\)"),
    ("patchify", [IMAGES], {"patch_size": (3, 3)}, "patches of 3 x 3 pixels do not tile an image of 4 x 6"),
    ("patchify", [IMAGES], {"patch_size": (4, 4)}, "patches of 4 x 4 pixels do not tile an image of 4 x 6"),
    ("unpatchify", [np.ones((1, 2, 4))], {"patch_size": (2, 2), "image_size": (2, 5)}, "do not tile an image of 2 x 5"),
    ("binary", [A], {"ste": "steep"}, "ste must be one of identity, clipped, approx_sign, ede, not 'steep'"),
    ("ternary", [A], {"ste": "steep"}, "ste must be one of"),
    ("nbit", [A], {"bits": 2, "ste": "ede"}, "ste for 2 bits must be 'identity' or 'clipped', not 'ede'"),
    ("nbit", [A], {"bits": 1}, "at least 2 bits, not 1; the quantiser for 1 bit is binary"),
    ("absmax", [A], {"bits": 1}, "at least 2 bits, not 1"),
    ("absmax", [A], {"bits": 2.5}, "bits must be a whole number, not 2.5"),
    ("nbit", [A], {"bits": 2.5}, "bits must be a whole number, not 2.5"),
    ("absmax", [np.array(1.0)], {}, "a single number; an array with at least one axis is needed"),
    ("binary", [A], {"granularity": "column"}, "granularity must be 'row' or 'tensor', not 'column'"),
    (
        "ternary",
        [A],
        {"scale": "absmax"},
        "scale must be 'absmean' or 'absmedian' .or 'twn' for 1.58 bits., not 'absmax'",
    ),
    ("binary", [A], {"scale": "twn"}, "not 'twn'"),
    ("nbit", [A], {"bits": 4, "scale": "max"}, "scale must be"),
]
