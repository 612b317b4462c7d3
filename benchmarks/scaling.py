"""How time grows with depth, width, tokens and batch: a training step and inference, on one core.

CPU seconds of one thread, the least of some repetitions, so that other programs disturb little. The exponent is the
slope of a straight line through log(time) against log(size).
"""

import time

import numpy as np

from tinybitvit.models import VisionTransformer
from tinybitvit.optim import AdamW, decay_groups
from tinybitvit.train import Trainer

BASE = {"depth": 6, "width": 192, "tokens": 64, "batch": 32}
SIZES = {
    "depth": (2, 4, 6, 8, 12),
    "width": (64, 128, 192, 384, 576),
    "tokens": (16, 64, 144, 256, 576),
    "batch": (1, 4, 16, 32, 64, 128),
}
PATCH, HEAD = 4, 64


def seconds(function, least=0.5):
    """The least CPU time of a call, of at least three and as many as take `least` seconds."""
    function()
    times = []
    while len(times) < 3 or sum(times) < least:
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return min(times)


def measure(bits, depth, width, tokens, batch):
    """(seconds of a training step, seconds of inference)."""
    side, rng = PATCH * round(tokens**0.5), np.random.default_rng(0)
    shape = {"dim": width, "depth": depth, "heads": max(1, width // HEAD), "mlp_ratio": 4}
    model = VisionTransformer(side, PATCH, **shape, bits=bits, rng=rng)
    trainer = Trainer(model, AdamW(decay_groups(model, 0.05), lr=1e-4), workers=1)
    x, y = rng.standard_normal((batch, side, side, 3)).astype("float32"), rng.integers(0, 10, batch)
    return seconds(lambda: trainer.step(x, y)), seconds(lambda: trainer.predict(x))


def exponent(sizes, times):
    """The slope of log(time) against log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def main():
    rows = []
    for bits in (32, 1.58):
        for what, sizes in SIZES.items():
            times = [measure(bits, **{**BASE, what: size}) for size in sizes]
            for kind, column in zip(("train", "infer"), zip(*times, strict=True), strict=True):
                slopes = {"exponent": exponent(sizes, column), "upper_exponent": exponent(sizes[-3:], column[-3:])}
                ms = [1000 * t for t in column]
                rows.append({"bits": bits, "kind": kind, "what": what, "sizes": sizes, "ms": ms, **slopes})
                figures = "  ".join(f"{size}: {t:.1f}" for size, t in zip(sizes, ms, strict=True))
                print(f"{bits:>4} bits  {kind}  {what:6}  {figures} ms  ~ {what}^{slopes['exponent']:.2f}", flush=True)
    return rows
