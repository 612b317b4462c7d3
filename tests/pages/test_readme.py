"""The README's promises: its example runs, its quotation is the source, its sizes are those of files.

Its commands and links are tested with those of all pages, in test_docs.py.
"""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tinybitvit.ops import OPS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_example_learns_the_digits(tmp_path):
    example = next(block for block in PYTHON if "import tinybitvit" in block)
    assert len(example.strip().splitlines()) <= 6
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert float(done.stdout.split("accuracy")[-1]) > 0.95
    assert (tmp_path / "digits.safetensors").stat().st_size < 100_000


def test_the_conversion_keeps_what_was_learnt():
    """The block as it stands, after the first lines of the example, with fewer epochs for both models."""
    import tinybitvit as tb

    names = {"tb": tb, "digits": tb.data.load_digits()}
    block = next(block for block in PYTHON if "recipe=" in block)
    exec(block.replace("tb.ViT(", "tb.ViT(epochs=12, verbose=0, random_state=0, "), names)
    full, one_bit = (names[name].score(names["digits"].X_test, names["digits"].y_test) for name in ("full", "one_bit"))
    assert full > 0.93 and one_bit > full - 0.05


def test_the_quotation_is_the_source():
    quoted = next(block for block in PYTHON if block.startswith("class Softmax"))
    assert quoted.strip() == inspect.getsource(OPS["softmax"]).strip()


def test_the_first_evening_has_at_most_2000_lines():
    section = README.partition("## A first evening")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \[`[^`]+`\]\(([^)]+)\)(?:: ([^|]*))? \|", section, re.M)
    assert len(rows) >= 15
    total = 0
    for file, objects in rows:
        source = (ROOT / file).read_text(encoding="utf-8")
        if names := re.findall(r"`(\w+)`", objects):
            found = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
            total += sum(found[name].end_lineno - found[name].lineno + 1 for name in names)
        else:
            total += len(source.splitlines())
    assert total <= 2000


def test_the_sizes_are_those_of_files(tmp_path):
    import numpy as np

    import tinybitvit as tb

    rows = re.findall(r"\| ([\d.]+) bits? \| ([\d,]+) \| ([\d.]+) \| ?([\d,]*)", README)
    assert len(rows) == 3
    for bits, size, effective, small in rows:
        net = {"dim": 192, "depth": 9, "heads": 3, "mlp_ratio": 2, "bits": float(bits)}
        model = tb.models.VisionTransformer(32, 4, **net, rng=np.random.default_rng(0))
        for half, promised in ((False, size), (True, small)):
            if promised:
                tb.io.save_model(tmp_path / "m", model, packed=bits != "32", half=half)
                found = (tmp_path / "m").stat().st_size
                assert found == pytest.approx(int(promised.replace(",", "")), rel=1e-3)
        tb.io.save_model(tmp_path / "m", model, packed=bits != "32")
        parameters = sum(p.size for p in model.parameters())
        assert 8 * (tmp_path / "m").stat().st_size / parameters == pytest.approx(float(effective), abs=0.05)


# --- the picture ------------------------------------------------------------------------------------------------------


def shown():
    """What the table in the README's picture says: columns, rows of texts, and the summary that they were made of."""
    with Image.open(ROOT / "docs" / "figures" / "study-digits.png") as image:
        return json.loads(image.text["table"])


def test_the_picture_has_the_columns_and_the_rounding_of_the_program():
    from tinybitvit.study import report

    content = shown()
    results = {"summary": content["summary"], "models": []}
    assert content["columns"] == report.columns(results) and content["columns"][:3] == ["model", "accuracy", "gap"]
    assert [[cell.removesuffix(" †") for cell in row] for row in content["rows"]] == report.rows(results), (
        "run python docs/make_report_figure.py"
    )
    assert [row[0] for row in content["rows"]] == ["32 bits", "1.58 bits", "1 bit"]
    assert "make_report_figure.py" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_picture_shows_what_the_program_does(tmp_path):
    """`tinybitvit study digits`, run again: bytes but for the seconds as text, accuracies within their intervals."""
    from tinybitvit import study

    results = study.run_study("digits", out=tmp_path)
    content = shown()
    assert len(results["summary"]) == len(content["summary"])
    for now, then in zip(results["summary"], content["summary"], strict=True):
        assert {key: now[key] for key in ("bits", "dim", "depth", "parameters", "weight_bytes")} == {
            key: then[key] for key in ("bits", "dim", "depth", "parameters", "weight_bytes")
        }
        assert now["bytes"] == pytest.approx(then["bytes"], abs=200)
        assert then["accuracy"]["low"] <= now["accuracy"]["mean"] <= then["accuracy"]["high"]
