"""One number of bytes a model: whoever tells of its size says what its file has."""

import json
import re

import pytest

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.cli import main as cli
from tinybitvit.models import zoo
from tinybitvit.study import report

TINY = {"dim": 16, "depth": 1, "heads": 2, "epochs": 2, "train_size": 60, "test_size": 40}
WIDTHS = ("32-bits", "1.58-bits", "1-bit")


def page_bytes(page):
    """The sizes that a page shows below its networks, in their order."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    return [model["size"]["bytes"] for model in data["models"]]


def inspected(path, capsys):
    """(bytes of the file, bytes of the table's last row, bytes of the arrays) that `inspect` prints."""
    assert cli.main(["inspect", str(path)]) == 0
    *_, total, _, last = capsys.readouterr().out.splitlines()
    size, arrays = re.match(r"file: ([\d,]+) bytes; arrays: ([\d,]+)", last).groups()
    return [int(text.replace(",", "")) for text in (size, re.split(r"\s{2,}", total)[-3], arrays)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, study.run_study("digits", [32, 1.58, 1], out=folder, **TINY)


def test_a_study_names_the_bytes_of_its_files_everywhere(done, capsys):
    folder, results = done
    files = [folder / "models" / f"{name}-seed-0.safetensors" for name in WIDTHS]
    sizes = [path.stat().st_size for path in files]
    assert [model["bytes"] for model in results["models"]] == sizes
    assert [entry["bytes"] for entry in results["summary"]] == sizes
    place = report.columns(results).index("bytes")
    shown = [f"{size:,}" for size in sizes]
    assert [row[place] for row in report.rows(results)] == shown
    text, page = report.text_table(results), (folder / "report.html").read_text(encoding="utf-8")
    assert all(f" {size} " in text and f"<td>{size}</td>" in page for size in shown)
    assert page_bytes((folder / "try.html").read_text(encoding="utf-8")) == sizes
    assert [tb.io.file_bytes(tb.load(path)) for path in files] == sizes
    for path, model in zip(files, results["models"], strict=True):
        assert inspected(path, capsys) == [path.stat().st_size, model["weight_bytes"], model["weight_bytes"]]


@pytest.mark.parametrize("name", zoo.names())
def test_a_network_of_the_zoo_has_one_size(name, capsys):
    size = (zoo.FOLDER / f"{name}.safetensors").stat().st_size
    assert zoo.card(name).bytes == tb.io.file_bytes(tb.load(name)) == size
    assert cli.main(["zoo"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split("  ")[0] == name)
    assert line.endswith(f" {size:,}")
    assert cli.main(["zoo", name]) == 0
    assert f"{size:,} bytes" in capsys.readouterr().out
    assert inspected(name, capsys)[0] == size
    assert page_bytes(tb.web.to_html(tb.load(name))) == [size]


def test_a_file_of_half_floats_says_so(done, tmp_path, capsys):
    model = tb.load(done[0] / "models" / "1-bit-seed-0.safetensors")
    path = tmp_path / "half.safetensors"
    model.save(path, packed=True, half=True)
    size, table, arrays = inspected(path, capsys)
    assert size == path.stat().st_size == tb.io.file_bytes(tb.load(path)) and table == arrays
    assert cli.main(["inspect", str(path)]) == 0
    assert "in the file, where floats have 16 bits" in capsys.readouterr().out


def test_results_of_earlier_versions_name_what_they_count(done):
    old = json.loads(json.dumps(done[1]))
    for entry in (*old["models"], *old["summary"]):
        del entry["bytes"]
    assert "bytes of weights" in report.columns(old) and "bytes" not in report.columns(old)
    assert (
        report.rows(old)[1][report.columns(old).index("bytes of weights")] == f"{old['summary'][1]['weight_bytes']:,}"
    )
