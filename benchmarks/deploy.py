"""What answers fastest: this library, its ONNX files in onnxruntime, PyTorch, JAX; and predict with scaling.

All contestants of a size take turns, whatever their bits. With one thread a time is the CPU time of the process, which
other programs lengthen least; with more it is that of the clock on the wall. error: how far the logits are from those
of the network that the contestant was made from, root mean squares of the difference over those of the logits.
"""

import platform
import statistics
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tinybitvit.train.shards import cores

from .engines import Job
from .race import Contestant, take_turns

# (engine, bits) in the order of the table: whose logits it should have
CONTESTANTS = {
    ("onnx", 32): ("torch", 32),
    ("onnx", 1.58): ("packed", 1.58),
    ("onnx", 1): ("packed", 1),
    ("tinybitvit", 32): ("torch", 32),
    ("packed", 1.58): ("packed", 1.58),
    ("packed", 1): ("packed", 1),
    ("torch", 32): ("torch", 32),
    ("compile", 32): ("torch", 32),
    ("torch-int8", 32): ("torch", 32),
    ("jax", 32): ("torch", 32),
    ("predict", 32): ("predict", 32),
    ("predict", 1.58): ("predict", 1.58),
    ("predict-onnx", 32): ("predict", 32),
    ("predict-onnx", 1.58): ("predict", 1.58),
}
QUICK = [("onnx", 32), ("onnx", 1.58), ("packed", 1.58), ("torch", 32), ("torch-int8", 32)]


def sizes(everything, quick):
    """(dim, batch, threads): a small one, the headline ones, or all."""
    if quick:
        return [(64, 2, 1)]
    dims, threads = ((192, 384, 768), {1, cores()}) if everything else ((192, 384), {1})
    return [(dim, batch, n) for n in sorted(threads) for dim in dims for batch in (1, 32)]


def processor():
    """Its name, and the instructions that multiply bytes, where Linux tells."""
    try:
        facts = dict(
            map(str.strip, line.split(":", 1)) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
        )
    except OSError:
        return platform.processor()
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    family = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts.get('model name', platform.machine())} ({family}; {', '.join(f for f in known if f in flags)})"


def race(dim, batch, threads, names, rounds):
    """The rows of one size."""
    runners = {}
    for engine, bits in names:
        job = Job(dim=dim, depth=6, heads=max(1, dim // 64), bits=bits, batch=batch, threads=threads)
        runners[engine, bits] = Contestant(engine, job)
    take_turns([*runners.values()], "infer", rounds, max(1, round(64 / batch / (dim / 192) ** 2)))
    base = seconds(runners["onnx", 32])
    return [row(runner, runners[CONTESTANTS[key]], base) for key, runner in runners.items()]


def seconds(runner):
    return runner.cpu if runner.job.threads == 1 else runner.rounds


def row(runner, reference, base):
    expected = np.array(reference.output)
    difference = np.array(runner.output) - expected
    own = seconds(runner)
    return {
        **asdict(runner.job),
        "engine": runner.name,
        "milliseconds": 1000 * statistics.median(own),
        "ratio_to_onnx_32": statistics.median(b / a for a, b in zip(own, base, strict=True)),
        "error": float(np.sqrt((difference**2).mean() / (expected**2).mean())),
        "largest_difference": float(np.abs(difference).max()),
        "rounds_ms": [1000 * s for s in own],
        "peak_mb": runner.peak_mb,
    }


def show(rows):
    print(" dim batch threads       engine  bits        ms  times 32-bit ONNX    error  peak MB")
    for r in rows:
        print(
            f"{r['dim']:4} {r['batch']:5} {r['threads']:7} {r['engine']:>12} {r['bits']:5g} {r['milliseconds']:9.2f}"
            f" {r['ratio_to_onnx_32']:18.2f} {r['error']:8.1e} {r['peak_mb']:8.0f}",
            flush=True,
        )


def main(everything=False, quick=False, rounds=5):
    """Rows for a JSON file; the first says on which processor."""
    rows = [{"processor": processor()}]
    print(rows[0]["processor"])
    for size in sizes(everything, quick):
        names = [*CONTESTANTS] if find_spec("jax") else [key for key in CONTESTANTS if key[0] != "jax"]
        new = race(*size, QUICK if quick else names, rounds)
        show(new)
        rows += new
    return rows
