"""Training steps on one and on two MPI ranks, one worker thread each, in turns; and their Allreduce alone."""

import json
import statistics
import subprocess
import sys
import time

import numpy as np

ROUNDS, STEPS = 5, 5
BATCHES = (64, 128)


def worker(batch):
    """On every rank: print (rank 0) the median seconds of a step and of the sum of all gradients."""
    from tinybitvit.models import VisionTransformer
    from tinybitvit.optim import AdamW, decay_groups
    from tinybitvit.train import Trainer
    from tinybitvit.train.ranks import data_parallel

    rng = np.random.default_rng(0)
    with data_parallel() as group:
        model = VisionTransformer(32, 4, dim=192, depth=6, heads=3, bits=1.58, rng=rng)
        optimizer = AdamW(decay_groups(model, 0.05), lr=1e-4)
        trainer = Trainer(model, optimizer, workers=1, rng=rng, group=group)
        x, y = rng.standard_normal((batch, 32, 32, 3)).astype("float32"), rng.integers(0, 10, batch)
        steps = median_seconds(lambda: trainer.step(x, y))
        sums = median_seconds(lambda: group.sum([buffer.grad for buffer in optimizer.buffers]))
        if group.rank == 0:
            print(json.dumps({"step": steps, "allreduce": sums}), flush=True)


def median_seconds(function):
    function()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(ranks, batch):
    command = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "benchmarks.ranks", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    rows = []
    for batch in BATCHES:
        pairs = [(run(1, batch), run(2, batch)) for _ in range(ROUNDS)]
        gains = [one["step"] / two["step"] for one, two in pairs]
        middle = [statistics.median(p[k]["step"] for p in pairs) for k in (0, 1)]
        sums = statistics.median(two["allreduce"] for _, two in pairs)
        rows.append({"batch": batch, "steps": middle, "gains": gains, "gain": statistics.median(gains), "sum": sums})
        times = f"one rank {middle[0]:.2f} s, two ranks {middle[1]:.2f} s a step; sum of gradients {1000 * sums:.1f} ms"
        each = ", ".join(f"{gain:.2f}" for gain in gains)
        print(f"batch {batch}: {times}; gain {rows[-1]['gain']:.2f} (of each round: {each})", flush=True)
    return rows


if __name__ == "__main__":
    worker(int(sys.argv[1]))
