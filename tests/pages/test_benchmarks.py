"""The benchmark that the pages quote runs, and its contestants compute the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]


def test_deploy(tmp_path):
    words = [sys.executable, "-m", "benchmarks", "deploy", "--quick", "--rounds", "1", "--json", tmp_path / "rows.json"]
    done = subprocess.run(words, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (where, *rows) = json.loads((tmp_path / "rows.json").read_text())
    assert where["processor"] in done.stdout and len(done.stdout.splitlines()) == len(rows) + 2
    found = {(row["engine"], row["bits"]): row for row in rows}
    assert len(found) == len(rows) == 5
    for (engine, bits), row in found.items():
        assert row["milliseconds"] > 0 and len(row["rounds_ms"]) == 1
        # int8 with one scale a tensor is no more than near; a code at a half moves logits of few bits a little
        assert row["error"] < (0.1 if engine == "torch-int8" else 0.02 if bits < 32 else 1e-5)
