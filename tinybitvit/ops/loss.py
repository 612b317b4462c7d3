"""Losses. Each returns one number, the (weighted) mean over the rows of its input."""

from typing import Any

from .. import backend
from ..backend import Array
from .base import Context, Function, Gradients, as_floats, floating
from .norm import log_softmax_array


class CrossEntropy(Function, name="cross_entropy"):
    """L = sum_n w_n l_n / sum_n w_n with l_n = -sum_c t_nc ln p_nc, p = softmax(logits), for logits (N, C)

    target: (N,) class numbers, or (N, C) probabilities t. Label smoothing e replaces t by (1 - e) t + e / C.
    weight: (N,) weights of the rows (None: all 1). A class of t = 0 adds nothing, even where p is 0.
    Since every row of t sums to 1, dl_n/dlogits_nc = p_nc - t_nc; dl_n/dtarget_nc = -(1 - e) ln p_nc.
    Plainly: `cross_entropy` in tests/ops/test_compositions.py.
    """

    @staticmethod
    def forward(
        ctx: Context, logits: Array, target: Array, weight: Array | None = None, *, label_smoothing: float = 0.0
    ) -> Array:
        xp, dtype, logits = ctx.xp, logits.dtype, floating(logits)
        if logits.ndim != 2:
            raise ValueError(f"cross_entropy: logits must be (N, C), not {logits.shape}")
        _check_not_empty("cross_entropy", logits)
        n, classes = logits.shape
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"cross_entropy: label_smoothing must lie in 0..1, not {label_smoothing}")
        log_p = log_softmax_array(xp, logits)
        t = _soft_targets(xp, target, n, classes, logits.dtype)
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing / classes
        share = _shares(xp, weight, n, logits.dtype)
        ctx.kept = 1 - label_smoothing
        ctx.save(log_p, t, share)
        return -(share * (t * xp.where(t == 0, 0, log_p)).sum(axis=1)).sum().astype(dtype)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        log_p, t, share = ctx.saved
        # sum(t) is 1 for probabilities; keeping it makes the gradient right for any t
        d = ctx.xp.exp(log_p) * t.sum(axis=1, keepdims=True) - t
        d *= (g * share)[:, None]
        dt = log_p * (g * share * -ctx.kept)[:, None] if ctx.needs_input_grad[1] else None
        return (d, dt, None)[: len(ctx.needs_input_grad)]


def _soft_targets(xp: Any, target: Array, n: int, classes: int, dtype: Any) -> Array:
    """The probabilities t (N, C) of a target."""
    if target.shape == (n, classes):
        return target.astype(dtype, copy=False)
    if target.shape != (n,) or target.dtype.kind not in "iu":
        raise ValueError(
            f"cross_entropy: target must hold {n} integer class numbers or be a ({n}, {classes}) array of"
            f" probabilities, not shape {target.shape} of {target.dtype}"
        )
    if xp is backend.host:
        check_classes(target, classes)
    t = (target[:, None] == xp.arange(classes)).astype(dtype)
    # To look at labels on a GPU would be to wait for it: there a row without its class becomes 0/0, and the loss NaN
    return t if xp is backend.host else t / t.sum(axis=1, keepdims=True)


def _shares(xp: Any, weight: Array | None, n: int, dtype: Any) -> Array:
    """What part each of n rows has in the mean: w_n / sum w."""
    if weight is None:
        return xp.full((n,), 1 / n, dtype=dtype)
    if weight.shape != (n,):
        raise ValueError(f"cross_entropy: weight must hold a number for each of {n} rows, not shape {weight.shape}")
    return (weight / weight.sum()).astype(dtype)


def check_classes(target: Array, classes: int) -> None:
    """ValueError unless the class numbers, an array on the host, lie in 0..classes-1."""
    if target.size and not 0 <= target.min() <= target.max() < classes:
        raise ValueError(
            f"cross_entropy: class numbers must lie in 0..{classes - 1}, found {target.min()}..{target.max()}"
        )


def _check_not_empty(name: str, x: Array) -> None:
    if not x.size:
        raise ValueError(
            f"{name}: the mean over an empty array of shape {x.shape} is undefined; leave out empty batches"
        )


def _check_alike(name: str, x: Array, target: Array) -> None:
    """ValueError unless the shapes are equal: (N,) against (N, 1) would compare each element with every other."""
    _check_not_empty(name, x)
    if x.shape != target.shape:
        raise ValueError(f"{name}: input has shape {x.shape} and target {target.shape}; they must be equal")


class MSE(Function, name="mse_loss"):
    """L = mean((x - t)^2) over all elements

    dL/dx = 2 (x - t) / n and dL/dt = -dL/dx.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, target: Array) -> Array:
        _check_alike("mse_loss", x, target)
        difference = as_floats(x) - as_floats(target)
        ctx.save(difference)
        return (difference * difference).mean()

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (difference,) = ctx.saved
        d = difference * (g * (2 / difference.size))
        return d, -d


class KLDiv(Function, name="kl_div"):
    """L = (1/N) sum_nc t_nc (ln t_nc - x_nc) for log-probabilities x (N, C) and probabilities t (N, C), 0 ln 0 = 0

    dL/dx = -t / N. The target gets no gradient. (torch: kl_div(x, t, reduction="batchmean").)
    """

    @staticmethod
    def forward(ctx: Context, x: Array, target: Array) -> Array:
        _check_alike("kl_div", x, target)
        target = as_floats(target)
        ctx.save(target)
        log_t = ctx.xp.log(ctx.xp.where(target > 0, target, target.dtype.type(1)))
        return (target * (log_t - x)).sum() / len(x)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        (target,) = ctx.saved
        return target * (-g / len(target)), None
