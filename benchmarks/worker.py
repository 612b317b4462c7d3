"""A contestant's process: reads `KIND COUNT` lines, runs that many calls, answers with seconds and a check as JSON."""

import json
import resource
import sys
import time

import numpy as np

from .engines import ENGINES, Job


def main():
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    engine = ENGINES[name](job)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, count = line.split()
        start, checks = time.perf_counter(), []
        for _ in range(int(count)):
            out = engine.train() if kind == "train" else engine.infer()
            checks.append(float(out) if kind == "train" else float(np.abs(out).mean()))
        seconds = (time.perf_counter() - start) / int(count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "check": checks, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main()
