"""What comes from outside and is wrong: one clear sentence each, from every entrance; and mutated files without end."""

import ast
import gzip
import io
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import test_cli
import test_data
import test_estimator
from PIL import Image
from test_data import publish, small_cifar, small_fashion, tar_bytes
from test_io import make_model, same_content
from test_io import mutate as mutate_safetensors

import tinybitvit as tb
from tinybitvit import data
from tinybitvit import functional as F
from tinybitvit.cli import main as cli
from tinybitvit.data import DataError
from tinybitvit.files import CheckpointError
from tinybitvit.optim import AdamW, WarmupCosine
from tinybitvit.train import Checkpoints, Trainer

# --- one sentence each ------------------------------------------------------------------------------------------------

X = np.zeros((4, 8, 8, 3), np.float32)
NET = {"image_size": 8, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "num_classes": 3}


def network(**options):
    return tb.models.VisionTransformer(**{**NET, **options}, rng=np.random.default_rng(0))


def trainer(**options):
    model = network()
    return Trainer(model, AdamW(model.parameters()), **options)


# What to call -> words of the sentence. tb.ViT.fit and the command line have tables of their own.
BAD = [
    (lambda: network()(X[..., :1]), "the images have shape"),
    (lambda: network()(X[0]), r"\(8, 8, 3\)"),
    (lambda: network()(X[:, :4]), "8"),
    (lambda: network(bits=7), "bits must be one of"),
    (lambda: network(heads=3), "heads must divide dim"),
    (lambda: network(patch_size=3), "choose a patch_size"),
    (lambda: network(pool="max"), "pool must be"),
    (lambda: network(bits=32).pack(), "no low-bit layers"),
    (lambda: network().load_state_dict({}), "the state does not fit .* is missing"),
    (lambda: tb.Tensor([1.0, 2.0], requires_grad=True).backward(), "backward"),
    (lambda: F.cross_entropy(np.zeros((2, 3), "float32"), np.array([0, 3])), r"class numbers must lie in 0\.\.2"),
    (lambda: F.cross_entropy(np.zeros((2, 3), "float32"), np.array([0])), "cross_entropy|rows|shape"),
    (lambda: tb.backend.resolve_device("tpu"), "device must be"),
    (lambda: AdamW([]), "got no parameters"),
    (lambda: WarmupCosine(AdamW(network().parameters()), 0), "total >= 1"),
    (lambda: trainer(workers=0), "workers must be"),
    (lambda: trainer().step(X, np.zeros(3, int)), "x has 4 rows and y 3"),
    (lambda: trainer().step(X[:0], np.zeros(0, int)), "not 0"),
    (lambda: trainer().step(X, np.array([0, 1, 2, 3])), "class numbers must lie in"),
    (lambda: Checkpoints("no/such/folder", every="hour"), "every must be"),
    (lambda: tb.load("missing.safetensors"), "there is no file missing.safetensors"),
    (lambda: tb.load("."), "is a folder"),
    (lambda: tb.models.from_pretrained("missing"), "missing"),
    (lambda: tb.io.save_model("no/such/folder/m", network()), "cannot write no/such/folder/m"),
    (lambda: tb.io.export(network(), "x", "zip"), "zip"),
    (lambda: data.load("no such data"), "neither a data set"),
    (lambda: data.load_image_folder("missing"), "missing"),
    (lambda: data.Loader(X, np.zeros(3), 2), "same length"),
    (lambda: data.Loader(X, np.zeros(4), 0), "batch_size must be at least 1"),
    (lambda: data.make_augment("spin", (8, 8, 3)), "unknown augmentation 'spin'"),
]
FIT = test_estimator.test_bad_input_gets_one_sentence.pytestmark[0].args[1]


def test_forty_bad_inputs_are_tried():
    """Here, in tb.ViT.fit and on the command line."""
    assert min(len(BAD) + len(FIT), len(test_cli.BAD)) >= 36 and len(BAD) + len(FIT) + len(test_cli.BAD) >= 80


@pytest.mark.parametrize("number", range(len(BAD)))
def test_one_sentence(number, monkeypatch, tmp_path):
    call, words = BAD[number]
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, RuntimeError, OSError), match=words) as caught:
        call()
    assert "\n" not in cli.sentence(caught.value) and 20 < len(cli.sentence(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_the_package_runs_no_text():
    """What a file says is never run (that nothing imports pickle is a rule of test_structure).

    The exceptions are programs: the submission of a student (see SECURITY.md), and what a reader of the lessons wrote.
    """
    found, package = [], Path(tb.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(path.relative_to(package).as_posix())
    assert sorted(found) == ["course/kept.py", "course/submission.py"]


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_words_on_the_command_line(count, capsys):
    """The parser takes them or says no in one line; nothing is run."""
    draw = random.Random(count)
    words = ["study", "train", "predict", "attention", "inspect", "export", "doctor", "digits", "cifar10", "no"]
    words += ["--bits", "1.58", "32", "-1", "nan", "--epochs", "0", "--lr", "--format", "onnx"]
    words += [
        "1e999",
        "--dim",
        "--out",
        "",
        " ",
        "--",
        "-",
        "--bits=",
        "ü",
        "\x00",
        "%s",
        "9" * 400,
        "@file",
        "--resume",
    ]
    parser = cli.build_parser()
    for _ in range(count):
        try:
            parser.parse_args(draw.choices(words, k=draw.randrange(7)))
        except SystemExit as stop:
            err = capsys.readouterr().err
            assert stop.code == 2 and err.count("\n") == 1, err


# --- mutated files ----------------------------------------------------------------------------------------------------


def cifar_archive(monkeypatch, folder, rng):
    """The hash is made to fit, so that the reader behind it is met."""
    files, *_ = small_cifar(monkeypatch, "CIFAR10", rng, records=(1, 1, 1))

    def load(content):
        (folder / publish(monkeypatch, "CIFAR10", content)).write_bytes(content)
        assert data.load_cifar10(root=folder).X_train.shape == (2, 32, 32, 3)

    plain = tar_bytes(files.items(), "w:")

    def damage(rng):
        if rng.random() < 0.5:
            return test_data.mutate(gzip.compress(plain, 1), rng)
        return gzip.compress(test_data.mutate(plain, rng), 1)

    return load, gzip.compress(plain, 1), damage, DataError


def fashion_file(monkeypatch, folder, rng):
    arrays, files = small_fashion(monkeypatch, folder, rng)
    name = "train-images-idx3-ubyte.gz"
    plain = gzip.decompress(files[name])

    def load(content):
        (folder / "fashion-mnist" / name).write_bytes(content)
        assert data.load_fashion_mnist(root=folder).X_train.shape == (*arrays[0].shape, 1)

    def damage(rng):
        if rng.random() < 0.5:
            return test_data.mutate(files[name], rng)
        return gzip.compress(test_data.mutate(plain, rng), 1)

    return load, files[name], damage, DataError


def picture(suffix, mode="RGB"):
    def reader(monkeypatch, folder, rng):
        buffer = io.BytesIO()
        pixels = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        pixels.convert(mode).save(buffer, suffix)
        path = folder / f"x.{suffix}"

        def load(content):
            path.write_bytes(content)
            assert data.read_image(path, (8, 8, 3)).shape == (8, 8, 3)

        return load, buffer.getvalue(), lambda rng: test_data.mutate(buffer.getvalue(), rng), DataError

    return reader


def model_file(packed):
    def reader(monkeypatch, folder, rng):
        path = folder / "m.safetensors"
        tb.io.save_model(path, make_model(rng, 1.58, dim=16, depth=1), {"classes": ["a", "é"]}, packed=packed)
        raw, whole = path.read_bytes(), tb.io.load_model(path)

        def load(content):
            path.write_bytes(content)
            assert same_content(tb.io.load_model(path), whole), "a silently different model"

        return load, raw, lambda rng: mutate_safetensors(raw, rng), CheckpointError

    return reader


READERS = {
    "CIFAR archive": cifar_archive,
    "Fashion-MNIST file": fashion_file,
    **{f"{suffix} image": picture(suffix) for suffix in ("png", "jpeg", "gif", "bmp", "webp")},
    "png with a palette": picture("png", "P"),
    "png with alpha": picture("png", "RGBA"),
    "png of 16 bits": picture("png", "I;16"),
    "model": model_file(packed=False),
    "packed model": model_file(packed=True),
}


BUFFER = 2**21  # Pillow reads a damaged file by 1 MiB


def test_an_image_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(1 << 33)  # without blocks on the disk
    with pytest.raises(DataError, match="larger than 512 MiB"):
        data.read_image(tmp_path / "huge.png", (8, 8, 3))


def peak_of(call, *arguments):
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    call(*arguments)
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_mutated_files(name, count, monkeypatch, tmp_path, rng, capfd):
    """Only the documented error, no hang, nothing on stderr, and less than twice the memory of the whole file."""
    load, whole, damage, error = READERS[name](monkeypatch, tmp_path, rng)
    load(whole)  # imports what it needs
    refused, slowest, most = 0, 0.0, 0
    tracemalloc.start()
    try:
        usual = peak_of(load, whole)
        for _ in range(count):
            content, start = damage(rng), time.perf_counter()
            try:
                most = max(most, peak_of(load, content))
            except error as caught:
                assert str(caught) and "\n" not in str(caught)
                refused += 1
                most = max(most, tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0])
            slowest = max(slowest, time.perf_counter() - start)
    finally:
        tracemalloc.stop()
    print(f"{name}: {count} files, {refused} refused, slowest {slowest:.2f} s, memory {most / usual:.2f} of the usual")
    assert refused and slowest < 5 and most < 2 * usual + BUFFER
    assert capfd.readouterr().err == ""
