"""python -m benchmarks train|infer|deploy|ops|packed|import|scaling|ranks [--json FILE] [--rounds N] [--all|--quick]"""

import argparse
import json
import os

from . import deploy, imports, operations, packed, ranks, scaling
from .engines import ENGINES, Job
from .race import race, show

ALONE = {"ops": operations, "packed": packed, "import": imports, "scaling": scaling, "ranks": ranks}  # race with nobody
TOKENS = {17: (16, 4), 65: (32, 4), 197: (56, 4)}


def jobs(kind, everything):
    """The sizes to measure: the headline ones, or with --all the whole grid."""
    threads = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    grid = [(192, 65, b, bits) for bits in (32, 1.58, 1) for b in ((128,) if kind == "train" else (1, 32))]
    if everything:
        batches = (32, 128) if kind == "train" else (1, 32, 128)
        grid = [
            (d, t, b, bits) for d in (64, 192, 384) for t in (17, 65, 197) for b in batches for bits in (32, 1.58, 1)
        ]
    for dim, tokens, batch, bits in grid:
        image, patch = TOKENS[tokens]
        yield Job(image, patch, dim, 6, max(1, dim // 64), bits, batch, threads)


def contestants(kind, bits, chosen):
    names = ["torch", "tinybitvit", "plain", "compile"]
    if kind == "infer" and bits != 32:
        names.append("packed")
    if bits == 32:
        names.append("jax")
    return [n for n in names if chosen is None or n in chosen]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=["train", "infer", "deploy", *ALONE])
    parser.add_argument("--json", help="write the rows to this file too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="the whole grid of sizes")
    parser.add_argument("--quick", action="store_true", help="deploy: one small size, to see that it works")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), help="only these contestants")
    args = parser.parse_args()
    if args.what == "deploy":
        rows = deploy.main(args.all, args.quick, args.rounds)
    elif args.what in ALONE:
        rows = ALONE[args.what].main()
    else:
        rows = []
        for job in jobs(args.what, args.all):
            count = max(1, round((2 if args.what == "train" else 4) * 128 / job.batch / (job.dim / 192) ** 2))
            new = race(args.what, job, contestants(args.what, job.bits, args.engines), args.rounds, min(count, 40))
            show(new)
            rows += new
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
