"""Contestants in turns: A B C, A B C, ...: a busy spell of the machine meets all of them, and ratios stay fair."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict

from .engines import limit_threads

# Seconds between two turns: the threads of OpenMP and OpenBLAS go on spinning for a while when their work is done, and
# would take a core from whoever is next.
PAUSE = 0.5


class Contestant:
    """A contestant in a process of its own, idle unless asked."""

    def __init__(self, name, job):
        self.name, self.job = name, job
        command = [sys.executable, "-m", "benchmarks.worker", name, json.dumps(asdict(job))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=limit_threads(name, job.threads), **pipes)
        self.rounds, self.cpu, self.checks, self.peak_mb, self.output = [], [], [], 0.0, None
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"the contestant {name} did not start; its error stands above")

    def run(self, kind, count, keep=True):
        self.process.stdin.write(f"{kind} {count}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.checks += answer["check"]
        self.peak_mb, self.output = answer["peak_mb"], answer["output"]
        if keep:
            self.rounds.append(answer["seconds"])
            self.cpu.append(answer["cpu"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(runners, kind, rounds, count):
    """One warm-up round and then `rounds` more, after which the contestants are gone and their times are left."""
    try:
        for turn in range(rounds + 1):
            for runner in runners:
                time.sleep(PAUSE)
                runner.run(kind, count, keep=turn > 0)
    finally:
        for runner in runners:
            runner.close()


def race(kind, job, names, rounds=5, count=2):
    """Rows of a table: name, images a second (median), ratio to torch, peak memory; after one warm-up round.

    Raises SystemExit where the contestants' losses (or mean absolute logits) differ by more than 2 %.
    """
    runners = [Contestant(name, job) for name in names]
    take_turns(runners, kind, rounds, count)
    first = runners[0].checks[0]
    for runner in runners:
        if abs(runner.checks[0] - first) > 0.02 * abs(first):
            raise SystemExit(f"{runner.name} computes something else: {runner.checks[0]} instead of {first}")
    base = next((r for r in runners if r.name == "torch"), runners[0])
    return [row(r, base, job) for r in runners]


def row(runner, base, job):
    seconds = statistics.median(runner.rounds)
    # the ratio of each round on its own, so that drift of the machine cancels
    ratios = [b / a for a, b in zip(runner.rounds, base.rounds, strict=True)]
    return {
        **asdict(job),
        "engine": runner.name,
        "images_per_second": job.batch / seconds,
        "milliseconds": 1000 * seconds,
        "ratio_to_" + base.name: statistics.median(ratios),
        "rounds_ms": [1000 * s for s in runner.rounds],
        "peak_mb": runner.peak_mb,
        "last_check": runner.checks[-1],
    }


def show(rows):
    """Print rows as a table."""
    print(" dim tokens batch  bits      engine        ms  images/s  ratio  peak MB")
    for r in rows:
        ratio = next(v for k, v in r.items() if k.startswith("ratio_to_"))
        tokens = (r["image"] // r["patch"]) ** 2 + 1
        print(
            f"{r['dim']:4} {tokens:6} {r['batch']:5} {r['bits']:5g} {r['engine']:>11} {r['milliseconds']:9.2f}"
            f" {r['images_per_second']:9.1f} {ratio:6.2f} {r['peak_mb']:8.0f}",
            flush=True,
        )
