"""Every output of the package goes through the writer in `files`: no other call writes, and none leaves half a file."""

import ast
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinybitvit as tb
from tinybitvit import files

PACKAGE = Path(tb.__file__).parent

# Calls that write or may write, by the last name of what is called; `open` only in a mode that writes.
WRITING = {"write_text", "write_bytes", "touch", "savefig", "tofile", "savetxt", "savez", "savez_compressed", "imsave"}
WRITING |= {"to_csv", "to_json_file", "rename", "link", "symlink_to", "hardlink_to", "TemporaryFile", "mkstemp"}
WRITING |= {"NamedTemporaryFile", "copy2", "copyfile", "copytree", "move", "make_archive", "extractall"}
QUALIFIED = {"shutil.copy", "os.replace", "os.open", "json.dump", "np.save", "pickle.dump", "nbformat.write"}

# (file, call): reason.
ALLOWED = {
    ("files.py", "open"): "the writer",
    ("files.py", "os.replace"): "the writer",
    ("viz/figure.py", "super().savefig"): "into a file of the writer",
    ("viz/figure.py", "self.savefig"): "into memory",
    ("viz/files.py", "result.plot(images=range(len(X))).savefig"): "a Picture, which asks the writer",
    ("study/pictures.py", "figure.savefig"): "into memory",
    ("course/cage.py", "os.open"): "to name a folder, not to write",
    ("course/stage.py", "shutil.copytree"): "a copy of a submission to run, deleted after it",
    ("course/export.py", "shutil.copytree"): "the library, into an autograder that the same command makes anew",
    ("course/export.py", "shutil.make_archive"): "the zip of that autograder",
    ("course/kept.py", "path.replace"): "what a student kept before is moved aside",
    ("data/download.py", "open"): "a part of a download, resumed by the next call",
    ("data/download.py", "part.replace"): "that part, whole and checked, gets its name",
    ("train/resume.py", "tempfile.TemporaryFile"): "a trial, before hours of training",
    ("study/results.py", "tempfile.TemporaryFile"): "a trial, before hours of training",
}


def opens_to_write(call):
    """Whether a call of open has a mode with w, a, x or +, or one that cannot be known."""
    own = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    place = 1 if isinstance(call.func, ast.Name) or ast.unparse(call.func).partition(".")[0] in ("io", "gzip") else 0
    mode = (own or call.args[place : place + 1] or [ast.Constant("r")])[0]
    return not isinstance(mode, ast.Constant) or any(letter in str(mode.value) for letter in "wax+")


def writing_calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            moves = last == "replace" and len(node.args) == 1 and not node.keywords and name != "replace"
            opens = last == "open" and name not in ("os.open", "tarfile.open", "Image.open") and opens_to_write(node)
            null = "os.devnull" in ast.unparse(node)
            if (last in WRITING or name in QUALIFIED or moves or opens) and not null:
                yield node.lineno, name


def strangers(package):
    return [
        f"{path.relative_to(package)}:{line}: {name} writes past files.new_file"
        for path in sorted(package.rglob("*.py"))
        for line, name in writing_calls(ast.parse(path.read_text(encoding="utf-8")))
        if (path.relative_to(package).as_posix(), name) not in ALLOWED
    ]


def test_no_other_call_writes():
    assert not strangers(PACKAGE), "\n".join(strangers(PACKAGE))


@pytest.mark.parametrize(
    "code",
    [
        "Path(p).write_text('x')",
        "open(p, 'w')",
        "open(p, mode='ab')",
        "open(p, kind)",
        "p.open('x')",
        "gzip.open(p, 'wb')",
        "figure.savefig(p)",
        "json.dump(x, f)",
        "shutil.copy(a, b)",
        "a.replace(b)",
        "os.replace(a, b)",
        "np.save(p, a)",
    ],
)
def test_the_rule_finds(code, tmp_path):
    (tmp_path / "bad.py").write_text(f"def f(): {code}")
    assert len(strangers(tmp_path)) == 1
    (tmp_path / "bad.py").write_text("open(p); p.open(); gzip.open(p, 'rb'); a.replace('x', 'y'); d = open(p, 'rb')")
    assert strangers(tmp_path) == []


# --- killed while writing ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    X, y = tb.data.load_digits()[:2]
    options = {"dim": 32, "depth": 2, "heads": 2, "epochs": 1, "verbose": 0, "workers": 1, "bits": 1.58}
    return [tb.ViT(**options, random_state=i).fit(X[:100], y[:100]) for i in range(2)]


@pytest.fixture(scope="module")
def outputs(models, tmp_path_factory):
    """{name: write(path, which)}: everything that a command writes, in two versions each."""
    place = tmp_path_factory.mktemp("outputs")
    for i in range(2):
        Image.fromarray(np.full((8, 8), 99 * i, np.uint8)).save(place / f"{i}.png")
    pictures = [place / "0.png", place / "1.png"]

    def attention(path, which):
        tb.viz.attention_files(models[which], pictures, path)

    def grades(path, which):
        from tinybitvit.course import gradebook

        gradebook._write_csv(path, ["student", "points"], [{"student": f"s{i}", "points": which} for i in range(9000)])

    def export(kind):
        return lambda path, which: tb.io.export(models[which].model_, path, kind)

    return {
        "full.safetensors": lambda path, which: models[which].save(path),
        "packed.safetensors": lambda path, which: models[which].save(path, packed=True),
        "model.onnx": export("onnx"),
        "model.hf": export("hf"),
        "page.html": lambda path, which: models[which].to_html(path),
        "attention.html": attention,
        "attention.png": attention,
        "attention.pdf": attention,
        "grades.csv": grades,
        "large.bin": lambda path, which: files.write_file(path, bytes([which]) * 5_000_000),
    }


def content(path):
    """The bytes of a file; of Hugging Face's layout, whose two texts stand in any order, what is in it."""
    if path.suffix != ".hf":
        return path.read_bytes()
    return {name: a.tobytes() for name, a in files.read_arrays(path).items()}, files.read_header(path)


QUICK = ("full.safetensors", "page.html", "attention.png", "grades.csv", "large.bin")


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment(outputs, tmp_path, monkeypatch, kills):
    """A child writes one version over the other without end and is killed: one of the two is there, and whole."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # a PDF holds the time
    chance = random.Random(kills)
    for name in outputs if kills > 4 else QUICK:
        path, write = tmp_path / name, outputs[name]
        versions = []
        for which in range(2):
            start = time.monotonic()
            write(path, which)
            seconds = time.monotonic() - start
            versions.append(content(path))
        assert versions[0] != versions[1]
        for _ in range(kills):
            child = os.fork()
            if not child:
                while True:
                    write(path, 0)
                    write(path, 1)
            time.sleep(chance.uniform(0, 3 * seconds + 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert content(path) in versions, name
        assert all(other.suffix == ".part" for other in tmp_path.iterdir() if other != path)
        for other in tmp_path.iterdir():
            other.unlink()


def test_pictures_are_written_whole(models, tmp_path):
    figure = tb.viz.attention(models[0], np.zeros((1, 8, 8, 1), np.uint8)).plot()
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("target")
    figure.savefig(tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "target").read_bytes()[:4] == b"\x89PNG"
    figure.savefig(str(tmp_path / "plain"), dpi=20)
    figure.savefig(tmp_path / "vector", format="svg")
    with pytest.raises(ValueError, match="not supported"):
        figure.savefig(tmp_path / "picture.txt1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "plain.png", "target", "vector"]


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_one_sentence(outputs, tmp_path):
    """A real limit of the operating system: the old file stays, nothing is left, the sentence says what to do."""
    import resource

    for name, write in outputs.items():
        path = tmp_path / name
        path.write_bytes(b"old")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises((OSError, tb.io.CheckpointError), match=r"cannot write .*: File too large; free space"):
                write(path, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path], name
        path.unlink()
