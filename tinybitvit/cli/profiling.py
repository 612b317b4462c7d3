"""Where a training step spends its time: per operation, beside what its matrix products alone would take.

`tinybitvit profile` prints the table. Times are of one thread that does the whole batch (thread time, so that other
programs disturb little), after a warm-up step.
"""

import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import functional as F
from .. import ops
from ..models import VisionTransformer
from ..optim import AdamW, decay_groups
from ..quant.quantizer import Quantize
from ..study.report import align
from ..train import Trainer, single_threaded_blas

Product = tuple[int, int, int, int]  # copies, rows, inner, columns
OPERATIONS: dict[str, Any] = {**ops.OPS, "quantize": Quantize}  # the last is a low-bit layer's, of its weight


class Profile:
    """What was measured: seconds and bytes by operation, and how often each matrix product occurs."""

    def __init__(self) -> None:
        self.forward: defaultdict[str, float] = defaultdict(float)
        self.backward: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.products: Counter[Product] = Counter()

    @contextmanager
    def recording(self) -> Iterator["Profile"]:
        """Within the block the forwards and backwards of all operations are timed."""
        originals = {function: (function.forward, function.backward) for function in OPERATIONS.values()}
        for name, function in OPERATIONS.items():
            forward, backward = originals[function]
            put(function, partial(self._forward, name, forward), partial(self._backward, name, backward))
        try:
            yield self
        finally:
            for function, (forward, backward) in originals.items():
                put(function, forward, backward)

    def _forward(self, name: str, call: Callable, ctx: Any, *arrays: Any, **params: Any) -> Any:
        start = time.thread_time()
        y = call(ctx, *arrays, **params)
        self.forward[name] += time.thread_time() - start
        self.calls[name] += 1
        self.bytes[name] += y.nbytes
        self.products.update(products(name, ctx, arrays, params))
        return y

    def _backward(self, name: str, call: Callable, ctx: Any, g: Any) -> tuple:
        start = time.thread_time()
        grads = call(ctx, g)
        self.backward[name] += time.thread_time() - start
        self.bytes[name] += sum(d.nbytes for d in grads if d is not None and d is not g)
        return grads


def put(function: Any, forward: Callable, backward: Callable) -> None:
    function.forward, function.backward = staticmethod(forward), staticmethod(backward)


def products(name: str, ctx: Any, arrays: Any, params: dict[str, Any]) -> list[Product]:
    """The matrix products of a call and of its backward."""
    if name == "linear":
        rows, inner, out = arrays[0].size // arrays[0].shape[-1], arrays[0].shape[-1], arrays[1].shape[0]
        backward = [(1, rows, out, inner)] if ctx.needs_input_grad[0] else []
        return [(1, rows, inner, out), (1, out, rows, inner), *backward]
    if name == "multi_head_attention":
        n, t, width = arrays[0].shape
        copies, d = n * params["heads"], width // (3 * params["heads"])
        return [(copies, t, d, t)] * 2 + [(copies, t, t, d)] * 4
    return []


def product_seconds(counts: Counter[Product]) -> float:
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


def profile_step(image_size: int = 32, patch_size: int = 4, batch: int = 64, **network: Any) -> dict[str, Any]:
    """Measure one training step of a VisionTransformer (keywords as there); see `report` for what is returned."""
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
    rows = {
        name: {"calls": n, "forward": found.forward[name], "backward": found.backward[name], "bytes": found.bytes[name]}
        for name, n in found.calls.items()
    }
    return {"seconds": seconds, "batch": batch, "gemm_seconds": gemm, "peak_bytes": peak, "operations": rows}


def report(found: dict[str, Any]) -> str:
    """The measurements of `profile_step` as text."""
    total, rest = found["seconds"], found["seconds"]
    cells = [["operation", "calls", "forward ms", "backward ms", "share", "MB made"]]
    for name, r in sorted(found["operations"].items(), key=lambda item: -item[1]["forward"] - item[1]["backward"]):
        both = r["forward"] + r["backward"]
        rest -= both
        times = f"{1000 * r['forward']:.2f}", f"{1000 * r['backward']:.2f}", f"{both / total:.1%}"
        cells.append([name, str(r["calls"]), *times, f"{r['bytes'] / 1e6:.1f}"])
    cells.append(["engine, optimiser", "", "", f"{1000 * rest:.2f}", f"{rest / total:.1%}", ""])
    return (
        f"{align(cells)}\n\nstep of {found['batch']} images: {1000 * total:.1f} ms on one thread\n"
        f"its matrix products alone: {1000 * found['gemm_seconds']:.1f} ms, {found['gemm_seconds'] / total:.0%} of the"
        f" step\npeak memory of the step's arrays: {found['peak_bytes'] / 1e6:.0f} MB"
    )
