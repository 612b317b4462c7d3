"""What `import tinybitvit` costs on top of `import numpy`, each in fresh processes, best of ten."""

import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main():
    best = {name: 1e9 for name in ("numpy", "numpy, tinybitvit", "torch")}
    for _ in range(10):
        for name in best:
            done = subprocess.run([sys.executable, "-c", CODE.format(name)], capture_output=True, text=True, check=True)
            best[name] = min(best[name], float(done.stdout))
    rows = [{"import": name, "milliseconds": 1000 * s} for name, s in best.items()]
    for r in rows:
        print(f"import {r['import']:20} {r['milliseconds']:8.1f} ms")
    return rows
