"""A contestant's process: reads `KIND COUNT` lines, runs that many calls, answers with seconds and a check as JSON.

cpu: what all of its threads computed, which another program on the same core does not lengthen.
"""

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
        start, start_cpu, checks = time.perf_counter(), time.process_time(), []
        for _ in range(int(count)):
            out = engine.train() if kind == "train" else engine.infer()
            checks.append(float(out) if kind == "train" else float(np.abs(out).mean()))
        seconds, cpu = (time.perf_counter() - start) / int(count), (time.process_time() - start_cpu) / int(count)
        output = [] if kind == "train" else np.asarray(out, float).round(9).tolist()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"seconds": seconds, "cpu": cpu, "check": checks, "peak_mb": peak, "output": output}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
