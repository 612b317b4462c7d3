"""The quantisers once more, in torch and from their formulas: what they round to, and what they pretend to be.

A straight-through quantiser is two functions: the forward pass rounds, the backward pass differentiates a surrogate, a
smooth or at least sloping function that takes its place. `freeze` returns both, with the scale and the threshold of the
given weights held constant. No slope is written down here: torch differentiates the surrogates themselves.
"""

import torch

EPS = 1e-5


def over_row_or_all(function, w, granularity):
    """function(values) -> one number, of every row (last axis) or of the whole array; axes kept as 1."""
    if granularity == "row":
        return function(w).unsqueeze(-1)
    return function(w.reshape(1, -1)).reshape((1,) * w.ndim)


def mean(w):
    return w.mean(-1)


def middle(w):
    """The median as NumPy has it, the mean of the middle two for an even count (torch.median takes the lower one)."""
    ordered = w.sort(-1).values
    n = w.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def size_of(w, granularity, scale):
    return over_row_or_all({"absmean": mean, "absmedian": middle}[scale], w.abs(), granularity)


def sign_surrogate(v, ste, width, temperature):
    """What stands in for sign(v)."""
    if ste == "identity":
        return v
    if ste == "clipped":
        return v.clamp(-width, width)
    if ste == "approx_sign":  # a parabola on either side of 0, from -1 to 1 between -width and width
        z = (v / width).clamp(-1, 1)
        return 2 * z - z * z.abs()
    if ste == "ede":
        return max(1 / temperature, 1) * torch.tanh(temperature * v)
    raise NotImplementedError(ste)


def binary(w, granularity="row", scale="absmean", centre=True, ste="identity", width=1.0, temperature=1.0):
    threshold = over_row_or_all(mean, w, granularity) if centre else torch.zeros(())
    beta = size_of(w - threshold if granularity == "row" else w, granularity, scale).clamp(min=EPS)
    rounded = torch.where(w >= threshold, beta, -beta)
    return rounded, lambda w: beta * sign_surrogate((w - threshold) / beta, ste, width, temperature)


def ternary(w, granularity="row", scale="absmean", ste="identity", width=1.0, temperature=1.0):
    if scale == "twn":
        threshold = (0.7 * size_of(w, granularity, "absmean")).clamp(min=EPS / 2)
        large = w.abs() > threshold
        beta = over_row_or_all(lambda rows: rows.sum(-1), w.abs() * large, granularity)
        beta = (beta / over_row_or_all(lambda rows: rows.sum(-1), large.long(), granularity).clamp(min=1)).clamp(
            min=EPS
        )
        rounded, unit = beta * w.sign() * large, 2 * threshold
    else:
        unit = beta = size_of(w, granularity, scale).clamp(min=EPS)
        rounded = beta * (w / beta).round().clamp(-1, 1)

    def surrogate(w):
        v = w / unit
        if ste in ("identity", "clipped"):
            return unit * sign_surrogate(v, ste, width, temperature)
        steps = (sign_surrogate(v + shift, ste, width, temperature) for shift in (-0.5, 0.5))
        return unit * sum(steps) / 2

    return rounded, surrogate


def nbit(w, bits, granularity="row", scale="absmean", ste="identity"):
    low, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scale == "absmax":
        step = over_row_or_all(lambda rows: rows.amax(-1), w.abs(), granularity) / top
    else:
        step = 2 * size_of(w, granularity, scale) / top**0.5
    step = step.clamp(min=EPS)
    rounded = step * (w / step).round().clamp(low, top)
    clips = ste == "clipped" and scale != "absmax"  # the largest weight may lie just beyond top * (largest / top)
    return rounded, lambda w: step * (w / step).clamp(low, top) if clips else w


def absmax(x, bits=8):
    low, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    s = top / x.abs().amax(-1, keepdim=True).clamp(min=EPS)
    return (x * s).round().clamp(low, top) / s, lambda x: x


QUANTISERS = {"binary": binary, "ternary": ternary, "nbit": nbit, "absmax": absmax}


def freeze(name, w, **params):
    """(the rounded weights, surrogate(w)) of a quantiser for a torch tensor w."""
    return QUANTISERS[name](w.detach(), **params)


def straight_through(name):
    """The quantiser as a torch function: rounds forward, and backward is the derivative of the surrogate."""

    def reference(w, **params):
        rounded, surrogate = freeze(name, w, **params)
        smooth = surrogate(w)
        return smooth + (rounded - smooth).detach()

    return reference
