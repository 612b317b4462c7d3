"""Where a training step spends its time: per operation, beside what its matrix products alone would take.

`tinybitvit profile` prints the table. Times are of one thread that does the whole batch (thread time, so that other
programs disturb little), after a warm-up step.
"""

import time
import tracemalloc
from collections import Counter, defaultdict
from contextlib import contextmanager
from functools import partial

import numpy as np

from .. import functional as F
from .. import ops
from ..models import VisionTransformer
from ..optim import AdamW, decay_groups
from ..train import Trainer, single_threaded_blas


class Profile:
    """What was measured: seconds and bytes by operation, and the shapes of all matrix products."""

    def __init__(self):
        self.forward, self.backward, self.calls = Counter(), Counter(), Counter()
        self.bytes = Counter()
        self.products = Counter()  # (copies, rows, inner, columns) -> how often

    @contextmanager
    def recording(self):
        """Within the block the forwards and backwards of all operations are timed."""
        table = ops.OPS
        originals = {function: (function.forward, function.backward) for function in table.values()}
        for name, function in table.items():
            function.forward = staticmethod(partial(self._forward, name, function.forward))
            function.backward = staticmethod(partial(self._backward, name, function.backward))
        try:
            yield self
        finally:
            for function, (forward, backward) in originals.items():
                function.forward, function.backward = staticmethod(forward), staticmethod(backward)

    def _forward(self, name, call, ctx, *arrays, **params):
        start = time.thread_time()
        y = call(ctx, *arrays, **params)
        self.forward[name] += time.thread_time() - start
        self.calls[name] += 1
        self.bytes[name] += y.nbytes
        self.products.update(products(name, ctx, arrays, params))
        return y

    def _backward(self, name, call, ctx, g):
        start = time.thread_time()
        grads = call(ctx, g)
        self.backward[name] += time.thread_time() - start
        self.bytes[name] += sum(d.nbytes for d in grads if d is not None and d is not g)
        return grads


def products(name, ctx, arrays, params):
    """The matrix products (copies, rows, inner, columns) of a call and of its backward."""
    if name == "linear":
        rows, inner, out = arrays[0].size // arrays[0].shape[-1], arrays[0].shape[-1], arrays[1].shape[0]
        backward = [(1, rows, out, inner)] if ctx.needs_input_grad[0] else []
        return [(1, rows, inner, out), (1, out, rows, inner), *backward]
    if name == "multi_head_attention":
        n, t, width = arrays[0].shape
        copies, d = n * params["heads"], width // (3 * params["heads"])
        return [(copies, t, d, t)] * 2 + [(copies, t, t, d)] * 4
    return []


def product_seconds(counts):
    """What these products take alone, on random matrices: the best of three, times how often each occurs."""
    rng, total = np.random.default_rng(0), 0.0
    for (copies, rows, inner, columns), count in counts.items():
        a = rng.standard_normal((copies, rows, inner), dtype="float32")
        b = rng.standard_normal((copies, inner, columns), dtype="float32")
        best = float("inf")
        for _ in range(3):
            start = time.thread_time()
            np.matmul(a, b)
            best = min(best, time.thread_time() - start)
        total += count * best
    return total


def profile_step(image_size=32, patch_size=4, batch=64, **network):
    """Measure one training step of a VisionTransformer (keywords as there); returns a dict, see `report`."""
    rng = np.random.default_rng(0)
    model = VisionTransformer(image_size, patch_size, rng=rng, **network)
    trainer = Trainer(model, AdamW(decay_groups(model, 0.05)), F.cross_entropy, workers=1)
    x = rng.standard_normal((batch, *model.embed.patch.image_size, model.embed.patch.in_channels), dtype="float32")
    y = rng.integers(0, model.config["num_classes"], batch)
    trainer.step(x, y)
    with Profile().recording() as found:
        start = time.thread_time()
        trainer.step(x, y)
        seconds = time.thread_time() - start
    tracemalloc.start()
    trainer.step(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with single_threaded_blas():
        gemm = product_seconds(found.products)
    rows = defaultdict(dict)
    for name in found.calls:
        rows[name] = {
            "calls": found.calls[name],
            "forward_ms": 1000 * found.forward[name],
            "backward_ms": 1000 * found.backward[name],
            "bytes": found.bytes[name],
        }
    return {"seconds": seconds, "batch": batch, "gemm_seconds": gemm, "peak_bytes": peak, "operations": dict(rows)}


def report(found):
    """The measurements of `profile_step` as text."""
    total = 1000 * found["seconds"]
    lines = [f"{'operation':30} {'calls':>5} {'forward ms':>10} {'backward ms':>11} {'share':>6} {'MB made':>8}"]
    rows = sorted(found["operations"].items(), key=lambda r: -r[1]["forward_ms"] - r[1]["backward_ms"])
    for name, r in rows:
        both = r["forward_ms"] + r["backward_ms"]
        lines.append(
            f"{name:30} {r['calls']:5} {r['forward_ms']:10.2f} {r['backward_ms']:11.2f} {both / total:6.1%}"
            f" {r['bytes'] / 1e6:8.1f}"
        )
    rest = total - sum(r["forward_ms"] + r["backward_ms"] for _, r in rows)
    products = 1000 * found["gemm_seconds"]
    lines += [
        f"{'engine, optimiser':30} {'':5} {'':10} {rest:11.2f} {rest / total:6.1%}",
        "",
        f"step of {found['batch']} images: {total:.1f} ms on one thread",
        f"its matrix products alone: {products:.1f} ms, {products / total:.0%} of the step",
        f"peak memory of the step's arrays: {found['peak_bytes'] / 1e6:.0f} MB",
    ]
    return "\n".join(lines)
