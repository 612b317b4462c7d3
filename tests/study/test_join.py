"""docs/results/join.py: one study of the models of several."""

import json
import runpy
from pathlib import Path

import pytest

from tinybitvit import study

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PARTS = {
    "cifar10-pretrained": ("gentle-twelve-epochs", "gentle-refined-twice", "1-bit-imitated"),
    "cifar100-pretrained": ("six-epochs", "refined-thrice-1.58-bits", "refined-thrice-1-bit"),
}

join = runpy.run_path(str(RESULTS / "join.py"))["main"]


def parts(name):
    return [str(RESULTS / name / "series" / f"{part}.json") for part in PARTS[name]]


@pytest.mark.parametrize("name", PARTS)
def test_the_poster_s_tables_are_joined_from_their_parts(name, tmp_path):
    join(str(tmp_path), *parts(name))
    assert (tmp_path / "results.json").read_bytes() == (RESULTS / name / "results.json").read_bytes()
    joined = study.read_results(tmp_path)
    assert [model["bits"] for model in joined["models"]] == [32, 1.58, 1]
    teacher = joined["models"][0]["accuracy"]
    for entry in joined["summary"][1:]:
        assert entry["gap"]["mean"] == pytest.approx(teacher - entry["accuracy"]["mean"])


def test_studies_of_other_images_are_not_joined(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**study.read_results(parts("cifar10-pretrained")[0]), "test_size": 9}))
    with pytest.raises(SystemExit, match=r"other.json has another test_size than .*gentle-refined-twice.json: join"):
        join(str(tmp_path / "out"), parts("cifar10-pretrained")[1], str(path))
    assert not (tmp_path / "out").exists()
