"""Other services' side of the graders that `tinybitvit course export` writes, as their documentation has it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Both services start from their own environment: nothing of this checkout is on the path.
CLEAN = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    **{name: os.environ[name] for name in ("HOME", "OPENBLAS_NUM_THREADS") if name in os.environ},
}


def gradescope(autograder, place, submission):
    """The results.json of one submission, a folder. autograder: what was exported."""
    shutil.copytree(autograder, place / "source")
    (place / "source" / "venv").symlink_to(sys.prefix)  # what setup.sh makes
    shutil.copy(place / "source" / "run_autograder", place)
    (place / "results").mkdir()
    shutil.copytree(submission, place / "submission", symlinks=True)
    done = subprocess.run(["./run_autograder"], cwd=place, env=CLEAN, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    results = json.loads((place / "results" / "results.json").read_text())
    assert set(results) <= {"score", "tests", "stdout_visibility"} and results["stdout_visibility"] == "hidden"
    for test in results["tests"]:
        assert 0 <= test["score"] <= test["max_score"] and test["status"] in ("passed", "failed")
        assert isinstance(test["name"], str) and isinstance(test["output"], str)
    assert results["score"] == sum(test["score"] for test in results["tests"])
    return results


def classroom50(exported, place, submission):
    """The result.json that the runner makes of tests.json for one submission, a folder that becomes the checkout."""
    bundle, checkout = place / "bundle", place / "checkout"
    shutil.copytree(exported / "bundle", bundle)
    shutil.copytree(submission, checkout, symlinks=True)
    specs = json.loads((exported / "tests.json").read_text())
    check_specs(specs)
    tests, logs = [], {}
    for spec in specs:
        environment = {**CLEAN, "CLASSROOM50_BUNDLE_DIR": str(bundle)}
        done = subprocess.run(
            spec["run"],
            shell=True,
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=spec["timeout"],
        )
        passed = done.returncode == spec.get("exit-code", 0)
        score = spec["points"] if passed else 0
        tests.append({"test-name": spec["name"], "passed": passed, "score": score, "max-score": spec["points"]})
        logs[spec["name"]] = done.stdout + done.stderr
    assert tests[0]["passed"], logs["setup"]
    return {"score": sum(t["score"] for t in tests), "max-score": sum(t["max-score"] for t in tests), "tests": tests}


def check_specs(specs):
    """classroom50/tests/v1: a list of at most 100 objects with these fields."""
    assert 0 < len(specs) <= 100 and len({spec["name"] for spec in specs}) == len(specs)
    for spec in specs:
        assert spec.keys() <= {"name", "type", "setup", "run", "timeout", "exit-code", "points", "show-output"}
        assert (
            spec["type"] == "run" and spec["run"] and len(spec["name"].encode()) <= 100 and spec["name"].isprintable()
        )
        assert isinstance(spec["timeout"], int) and 1 <= spec["timeout"] <= 600
        assert isinstance(spec["points"], int) and 0 <= spec["points"] <= 1000
