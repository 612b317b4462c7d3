"""What the codes of low-bit layers do while they are trained: how many flip, how many are 0, how close to a flip.

A latent weight matters only through its code, and a code changes only where its weight crosses a threshold. A rate of
flips that does not fall means a learning rate too high for the weights to settle (Liu et al. 2021, arXiv 2106.11309).
"""

from .. import backend
from ..ops.ste import twn_codes
from .linear import BitLinear, weight_codes


def low_bit_layers(model):
    """The BitLinear layers of a model."""
    return [m for m in model.modules() if isinstance(m, BitLinear)]


def snapshot(model):
    """The codes of all low-bit layers as int8 arrays."""
    return [layer.codes()[0].astype("int8") for layer in low_bit_layers(model)]


def flip_rate(before, after):
    """The share of codes in which two snapshots differ."""
    counts = backend.to_host([(a != b).sum() for a, b in zip(before, after, strict=True)])
    return sum(map(int, counts)) / sum(a.size for a in after)


def zero_share(codes):
    """The share of codes in a snapshot that are 0."""
    return sum(map(int, backend.to_host([(a == 0).sum() for a in codes]))) / sum(a.size for a in codes)


def threshold_distance(w, bits, granularity="row", scale="absmean"):
    """How far each weight is from the nearest value at which its code would change, in units of its scale.

    Thresholds lie at the mean for 1 bit, at half-integers else, none of them beyond the outermost codes. With
    scale='twn' the unit is twice the threshold.
    """
    xp = backend.array_module(w)
    step = twn_codes(xp, w, granularity)[2] if scale == "twn" else weight_codes(w, bits, granularity, scale)[1]
    if bits == 1:
        return xp.abs(w - w.mean(axis=-1 if granularity == "row" else None, keepdims=True)) / step
    low, top = (-1, 1) if bits == 1.58 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    v = w / step
    nearest = xp.clip(xp.floor(v), low, top - 1) + 0.5
    return xp.abs(v - nearest)


def mean_distance(model):
    """The mean of `threshold_distance` over all low-bit weights of a model."""
    layers = low_bit_layers(model)
    weights = [(layer.weight.data, layer.bits, layer.granularity, layer.scale) for layer in layers]
    sums = backend.to_host([threshold_distance(*w).sum() for w in weights])
    return sum(map(float, sums)) / sum(layer.weight.size for layer in layers)


class Settle:
    """Freezes the weights whose codes swing to and fro, near the end of a training.

    `observe` counts the flips of every code; `freeze` takes those that flipped at least `limit` times, puts each
    latent weight in the middle of the code that it had most of the time, and `hold`, after every update, keeps it there
    (after Nagel et al. 2022, arXiv 2203.08807, section 4.2: a swinging weight never comes to rest by itself).
    arrays: what the property of that name gave, to go on from there.
    """

    def __init__(self, model, arrays=None, limit=2):
        self.model, self.layers, self.limit, self.frozen = model, low_bit_layers(model), limit, []
        if arrays is None:
            self.last, self.seen = snapshot(model), 1
            self.flips = [a.astype("uint16") * 0 for a in self.last]
            self.sums = [a.astype("int32") for a in self.last]
        elif "frozen.0" in arrays:
            masks = self._column(arrays, "frozen")
            self.frozen = [(mask, m.weight.data.copy()) for mask, m in zip(masks, self.layers, strict=True)]
        else:
            self.last, self.flips, self.sums = (self._column(arrays, name) for name in ("last", "flips", "sums"))
            self.seen = int(arrays["seen.0"][0])

    @property
    def arrays(self):
        """All there is to keep in a checkpoint, by name; the weights themselves are in the model."""
        if self.frozen:
            return {f"frozen.{i}": mask for i, (mask, _) in enumerate(self.frozen)}
        columns = {"last": self.last, "flips": self.flips, "sums": self.sums, "seen": [backend.host.array([self.seen])]}
        return {f"{name}.{i}": a for name, column in columns.items() for i, a in enumerate(column)}

    def _column(self, arrays, name):
        device = self.layers[0].weight.device
        return [backend.to_device(arrays[f"{name}.{i}"], device) for i in range(len(self.layers))]

    def observe(self):
        """Count what the last update flipped."""
        self.seen += 1
        for i, (before, codes) in enumerate(zip(self.last, snapshot(self.model), strict=True)):
            self.flips[i] += codes != before
            self.sums[i] += codes
            self.last[i] = codes

    def freeze(self):
        """Fix the swinging weights; returns their share."""
        for layer, flips, sums in zip(self.layers, self.flips, self.sums, strict=True):
            xp = backend.array_module(flips)
            w = layer.weight.data
            _, step = layer.codes()
            centre = w.mean(axis=-1 if layer.granularity == "row" else None, keepdims=True) if layer.bits == 1 else 0
            usual = xp.where(sums >= 0, 1, -1) if layer.bits == 1 else xp.rint(sums / w.dtype.type(self.seen))
            self.frozen.append((flips >= self.limit, (usual * step + centre).astype(w.dtype)))
        self.hold()
        counts = backend.to_host([mask.sum() for mask, _ in self.frozen])
        return sum(map(int, counts)) / sum(mask.size for mask, _ in self.frozen)

    def hold(self):
        """Put the fixed weights back to their values."""
        for layer, (mask, value) in zip(self.layers, self.frozen, strict=True):
            w = layer.weight.data
            w[...] = backend.array_module(w).where(mask, value, w)
