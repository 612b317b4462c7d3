"""Losses. Each returns one number, the (weighted) mean over the rows of its input."""

from .. import backend
from .base import Function, unbroadcast
from .norm import log_softmax_array


def _check_not_empty(name, x):
    if not x.size:
        raise ValueError(
            f"{name}: the mean over an empty array of shape {x.shape} is undefined; leave out empty batches"
        )


class CrossEntropy(Function, name="cross_entropy"):
    """L = sum_n w_n l_n / sum_n w_n with l_n = -sum_c t_nc ln p_nc, p = softmax(logits), for logits (N, C)

    target: (N,) class numbers, or (N, C) probabilities t. Label smoothing e replaces t by (1 - e) t + e / C.
    weight: (N,) weights of the rows (None: all 1).
    Since every row of t sums to 1, dl_n/dlogits_nc = p_nc - t_nc.
    """

    @staticmethod
    def forward(ctx, logits, target, weight=None, *, label_smoothing=0.0):
        xp = ctx.xp
        _check_not_empty("cross_entropy", logits)
        n, classes = logits.shape
        log_p = log_softmax_array(xp, logits)
        t = _soft_targets(xp, target, n, classes, logits.dtype)
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing / classes
        share = (
            xp.full((n,), 1 / n, dtype=logits.dtype) if weight is None else (weight / weight.sum()).astype(logits.dtype)
        )
        ctx.inputs = 2 if weight is None else 3
        ctx.save(log_p, t, share)
        return -(share * (t * log_p).sum(axis=1)).sum()

    @staticmethod
    def backward(ctx, g):
        log_p, t, share = ctx.saved
        # sum(t) is 1 for probabilities; keeping it makes the gradient right for any t
        d = ctx.xp.exp(log_p) * t.sum(axis=1, keepdims=True) - t
        d *= (g * share)[:, None]
        return (d, None, None)[: ctx.inputs]


def _soft_targets(xp, target, n, classes, dtype):
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


def check_classes(target, classes):
    """ValueError unless the class numbers, an array on the host, lie in 0..classes-1."""
    if target.size and not 0 <= target.min() <= target.max() < classes:
        raise ValueError(
            f"cross_entropy: class numbers must lie in 0..{classes - 1}, found {target.min()}..{target.max()}"
        )


class MSE(Function, name="mse"):
    """L = mean((x - t)^2) over all elements

    dL/dx = 2 (x - t) / n and dL/dt = -dL/dx.
    """

    @staticmethod
    def forward(ctx, x, target):
        difference = x - target
        _check_not_empty("mse", difference)
        ctx.shapes = x.shape, target.shape
        ctx.save(difference)
        return (difference * difference).mean()

    @staticmethod
    def backward(ctx, g):
        (difference,) = ctx.saved
        d = difference * (g * (2 / difference.size))
        return unbroadcast(d, ctx.shapes[0]), unbroadcast(-d, ctx.shapes[1])


class KLDiv(Function, name="kl_div"):
    """L = (1/N) sum_nc t_nc (ln t_nc - x_nc) for log-probabilities x (N, C) and probabilities t (N, C), 0 ln 0 = 0

    dL/dx = -t / N. The target gets no gradient. (torch: kl_div(x, t, reduction="batchmean").)
    """

    @staticmethod
    def forward(ctx, x, target):
        if x.shape != target.shape:
            raise ValueError(f"kl_div: input has shape {x.shape} and target {target.shape}; they must be equal")
        _check_not_empty("kl_div", x)
        ctx.save(target)
        log_t = ctx.xp.log(ctx.xp.where(target > 0, target, target.dtype.type(1)))
        return (target * (log_t - x)).sum() / len(x)

    @staticmethod
    def backward(ctx, g):
        (target,) = ctx.saved
        return target * (-g / len(target)), None
