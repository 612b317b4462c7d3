"""Data sets: what the readers return, and that damaged, foreign or hostile files cost one clear DataError."""

import contextlib
import gzip
import hashlib
import io
import os
import struct
import tarfile
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tinybitvit import data
from tinybitvit.data import DataError, datasets, download
from tinybitvit.data.download import Remote, fetch


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test reaches the network or the user's data folder by accident."""
    monkeypatch.setenv("TINYBITVIT_DATA", str(tmp_path / "nothing-here"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    unreachable = "http://127.0.0.1:9/"  # the discard port: nothing listens
    for name in ("CIFAR10", "CIFAR100"):
        source = getattr(datasets, name)
        remote = source.remote._replace(url=unreachable + source.remote.name)
        monkeypatch.setattr(datasets, name, source._replace(remote=remote))
    remotes = [remote._replace(url=unreachable + remote.name) for remote in datasets.FASHION_REMOTES]
    monkeypatch.setattr(datasets, "FASHION_REMOTES", remotes)


# ---- digits and the container


def test_digits():
    from sklearn.datasets import load_digits

    digits = data.load_digits()
    X_train, y_train, X_test, y_test, classes, name = digits
    assert X_train.shape == (1347, 8, 8, 1) and X_test.shape == (450, 8, 8, 1)
    assert X_train.dtype == np.uint8 and y_train.dtype == np.int64 and X_train.max() == 255 and X_train.min() == 0
    assert classes == tuple("0123456789") and name == "digits"
    bundled = load_digits()
    expected = sorted((im.tobytes(), label) for im, label in zip(bundled.images, bundled.target, strict=True))
    X, y = np.concatenate([X_train, X_test]), np.concatenate([y_train, y_test])
    found = sorted(((im[..., 0] / 255.0 * 16).round().tobytes(), label) for im, label in zip(X, y, strict=True))
    assert found == expected  # every image once, with its label, and no grey level lost
    shares = np.bincount(y_test) / np.bincount(bundled.target)
    assert np.abs(shares - 0.25).max() < 0.01


def test_digits_split_follows_the_seed():
    a, b, c = data.load_digits(seed=3), data.load_digits(seed=3), data.load_digits(seed=4)
    np.testing.assert_array_equal(a.X_train, b.X_train)
    assert not np.array_equal(a.y_test, c.y_test)
    assert len(data.load_digits(test_size=0.5).X_test) == 899
    with pytest.raises(DataError, match=r"test_size=5 must leave"):
        data.load_digits(test_size=5)


def test_repr_is_one_line():
    text = repr(data.load_digits())
    assert text == "Dataset(digits: 1347 training and 450 test images, 8 x 8 x 1, 10 classes)"


def test_official_names_and_sizes():
    """Facts of the published files that no synthetic archive below can check."""
    assert datasets.CIFAR10.files == {**{f"data_batch_{i}.bin": 10000 for i in range(1, 6)}, "test_batch.bin": 10000}
    assert (datasets.CIFAR10.record, datasets.CIFAR100.record) == (3073, 3074)
    assert datasets.CIFAR100.files == {"train.bin": 50000, "test.bin": 10000}
    assert len(datasets.CIFAR10.classes) == 10
    assert len(set(datasets.CIFAR100.classes)) == 100
    assert datasets.CIFAR100.classes == tuple(sorted(datasets.CIFAR100.classes))
    remotes = [datasets.CIFAR10.remote, datasets.CIFAR100.remote, *datasets.FASHION_REMOTES]
    assert [r.size for r in remotes] == [170052171, 168513733, 26421880, 29515, 4422102, 5148]
    assert all(len(bytes.fromhex(r.sha256)) == 32 for r in remotes)


@pytest.mark.data("cifar-10-batches-bin")
def test_real_cifar10(data_root):
    cifar = data.load_cifar10(root=data_root)
    assert cifar.X_train.shape == (50_000, 32, 32, 3) and cifar.X_test.shape == (10_000, 32, 32, 3)
    assert cifar.X_train.dtype == np.uint8 and cifar.y_test.dtype == np.int64
    assert np.bincount(cifar.y_train).tolist() == [5000] * 10 and np.bincount(cifar.y_test).tolist() == [1000] * 10
    assert [cifar.classes[i] for i in cifar.y_train[:3]] == ["frog", "truck", "truck"]
    mean = cifar.X_train.reshape(-1, 96).sum(0, dtype=np.int64).reshape(-1, 3).sum(0) / (255 * 50_000 * 1024)
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-7)  # published values


@pytest.mark.data("cifar-100-binary")
def test_real_cifar100_has_the_kinds_of_its_files(data_root):
    folder, cifar = data_root / "cifar-100-binary", data.load_cifar100(root=data_root)
    names = (folder / "coarse_label_names.txt").read_text().replace("medium_mammals", "medium-sized_mammals").split()
    records = np.frombuffer((folder / "test.bin").read_bytes(), np.uint8).reshape(-1, datasets.CIFAR100.record)
    for kind, fine in np.unique(records[:, :2], axis=0):
        assert cifar.groups[fine] == names[kind].replace("_", " ").replace("man made", "man-made")
    assert len(set(cifar.groups)) == 20 and data.load_digits().groups == ()


@pytest.mark.data("fashion-mnist")
def test_real_fashion_mnist(data_root):
    fashion = data.load("fashion-mnist", root=data_root)
    assert fashion.X_train.shape == (60_000, 28, 28, 1) and fashion.X_test.shape == (10_000, 28, 28, 1)
    assert np.bincount(fashion.y_train).tolist() == [6000] * 10 and fashion.y_train.dtype == np.int64
    assert fashion.classes[fashion.y_train[0]] == "Ankle boot" and fashion.classes[fashion.y_test[0]] == "Ankle boot"
    np.testing.assert_allclose(fashion.X_train.mean() / 255, 0.2860, atol=1e-4)  # published value
    fashion.X_train[0] = 0  # the arrays are the caller's own


# ---- CIFAR, in a small synthetic edition


def cifar_bytes(images, *labels):
    """Records as the data set's page describes them, pixel by pixel."""
    out = bytearray()
    for image, *own in zip(images, *labels, strict=True):
        out += bytes(own)
        for channel in range(3):
            out += bytes(image[:, :, channel].flatten().tolist())
    return bytes(out)


def tar_bytes(members, kind="w:gz"):
    """A tar of (name, bytes) or ready TarInfo entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=kind) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def small_cifar(monkeypatch, name, rng, records=(3, 2, 4)):
    """Replace a source by one with few records; returns (files, images, labels)."""
    source = getattr(datasets, name)
    names = [*list(source.files)[: len(records) - 1], list(source.files)[-1]]
    source = source._replace(files=dict(zip(names, records, strict=True)))
    monkeypatch.setattr(datasets, name, source)
    images = rng.integers(0, 256, (sum(records), 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, len(source.classes), sum(records), dtype=np.uint8)
    coarse = [rng.integers(0, 20, sum(records), dtype=np.uint8)] * (source.label_bytes - 1)
    files, start = {}, 0
    for file, n in source.files.items():
        rows = slice(start, start + n)
        files[file] = cifar_bytes(images[rows], *(c[rows].tolist() for c in coarse), labels[rows].tolist())
        start += n
    return files, images, labels


def publish(monkeypatch, name, content):
    """Make ``content`` the official archive of a source."""
    source = getattr(datasets, name)
    remote = source.remote._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(datasets, name, source._replace(remote=remote))
    return source.remote.name


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def files_in(folder):
    return sorted(p.name for p in folder.iterdir())


def assert_holds(dataset, images, labels, n_test):
    np.testing.assert_array_equal(np.concatenate([dataset.X_train, dataset.X_test]), images)
    np.testing.assert_array_equal(np.concatenate([dataset.y_train, dataset.y_test]), labels)
    assert len(dataset.X_test) == len(dataset.y_test) == n_test
    assert dataset.X_train.dtype == np.uint8 and dataset.y_train.dtype == np.int64


@pytest.mark.parametrize(("name", "records"), [("CIFAR10", (3, 2, 4)), ("CIFAR100", (5, 4))])
def test_cifar_from_folder_and_archive(name, records, monkeypatch, tmp_path, rng):
    files, images, labels = small_cifar(monkeypatch, name, rng, records)
    load = {"CIFAR10": data.load_cifar10, "CIFAR100": data.load_cifar100}[name]
    source = getattr(datasets, name)
    folder = write_folder(tmp_path / "a" / source.folder, files)
    assert_holds(load(root=tmp_path / "a"), images, labels, 4)
    assert_holds(load(root=folder), images, labels, 4)  # the folder itself
    # the archive: members in any order, between things that are not data
    members = [("x/readme.html", b"hello"), *((f"x/{file}", files[file]) for file in reversed(files))]
    content = tar_bytes(members)
    archive = publish(monkeypatch, name, content)
    write_folder(tmp_path / "b", {archive: content})
    assert_holds(load(root=tmp_path / "b"), images, labels, 4)
    assert files_in(tmp_path / "b") == [archive]  # nothing was extracted


def test_where_data_are_looked_for(monkeypatch, tmp_path, rng):
    files, images, labels = small_cifar(monkeypatch, "CIFAR10", rng)
    write_folder(tmp_path / "env" / "cifar-10-batches-bin", files)
    monkeypatch.setenv("TINYBITVIT_DATA", str(tmp_path / "env"))
    assert_holds(data.load("cifar10"), images, labels, 4)
    with pytest.raises(DataError, match=r"is missing: put cifar-10-binary.tar.gz into .*other, pass root="):
        data.load("cifar10", root=tmp_path / "other", download=False)  # root goes before the environment
    monkeypatch.delenv("TINYBITVIT_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_folder(tmp_path / "home" / ".cache" / "tinybitvit" / "cifar-10-batches-bin", files)
    assert_holds(data.load_cifar10(download=False), images, labels, 4)
    (tmp_path / "home" / ".cache" / "tinybitvit" / "cifar-10-binary.tar.gz").write_bytes(b"the folder goes first")
    assert_holds(data.load_cifar10(download=False), images, labels, 4)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file is a file: root="):
        data.load_cifar10(root=tmp_path / "file")


FOLDER_FAULTS = {
    "truncated": (lambda c: c[:-1], r"data_batch_2.bin has 6145 bytes instead of 6146: delete"),
    "oversized": (lambda c: c + b"0", r"data_batch_2.bin has 6147 bytes instead of 6146: delete"),
    "empty": (lambda c: b"", r"data_batch_2.bin has 0 bytes"),
    "label": (lambda c: b"\x0a" + c[1:], r"data_batch_2.bin holds label 10 of 10 classes: delete"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_damaged_cifar_folder(fault, monkeypatch, tmp_path, rng):
    files, _, _ = small_cifar(monkeypatch, "CIFAR10", rng)
    change, message = FOLDER_FAULTS[fault]
    write_folder(tmp_path / "cifar-10-batches-bin", {**files, "data_batch_2.bin": change(files["data_batch_2.bin"])})
    with pytest.raises(DataError, match=message):
        data.load_cifar10(root=tmp_path)


def test_incomplete_cifar_folder(monkeypatch, tmp_path, rng):
    files, _, _ = small_cifar(monkeypatch, "CIFAR10", rng)
    folder = write_folder(tmp_path / "cifar-10-batches-bin", files)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch.bin cannot be read \(No such file"):
        data.load_cifar10(root=tmp_path)
    (folder / "test_batch.bin").mkdir()
    with pytest.raises(DataError, match=r"test_batch.bin has"):
        data.load_cifar10(root=tmp_path)


def test_size_is_checked_before_memory_is_taken(monkeypatch, tmp_path, rng):
    files, _, _ = small_cifar(monkeypatch, "CIFAR10", rng)
    folder = write_folder(tmp_path / "cifar-10-batches-bin", files)
    with open(folder / "data_batch_1.bin", "wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    with pytest.raises(DataError, match=r"data_batch_1.bin has 1099511627776 bytes"):
        data.load_cifar10(root=tmp_path)


def test_sha256_is_checked_before_an_archive_is_read(monkeypatch, tmp_path, rng):
    files, _, _ = small_cifar(monkeypatch, "CIFAR10", rng)
    content = bytearray(tar_bytes(files.items()))
    archive = tmp_path / publish(monkeypatch, "CIFAR10", bytes(content))
    content[len(content) // 2] ^= 1
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("read before it was checked"))
    for wrong in (bytes(content), bytes(content[:-1]), b"", b"<html>not found</html>"):
        archive.write_bytes(wrong)
        with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is not the official file .* fetch it again"):
            data.load_cifar10(root=tmp_path)


def entry(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_hostile_archive_members_are_never_touched(monkeypatch, tmp_path, rng):
    files, images, labels = small_cifar(monkeypatch, "CIFAR10", rng)
    (tmp_path / "secret").write_bytes(files["test_batch.bin"])
    hostile = [
        ("../escaped.txt", b"x"),
        (f"{tmp_path}/absolute.txt", b"x"),
        entry("x/test_batch.bin", tarfile.SYMTYPE, str(tmp_path / "secret")),
        entry("x/data_batch_1.bin", tarfile.LNKTYPE, "x/readme"),
        entry("x/data_batch_2.bin", tarfile.DIRTYPE),
        entry("data_batch_1.bin", tarfile.FIFOTYPE),
        entry("data_batch_1.bin", tarfile.CHRTYPE),
    ]
    root = tmp_path / "root"
    root.mkdir()

    def load(members):
        content = tar_bytes(members)
        archive = publish(monkeypatch, "CIFAR10", content)
        (root / archive).write_bytes(content)
        return data.load_cifar10(root=root)

    assert_holds(load([*hostile, *files.items()]), images, labels, 4)
    assert_holds(load([*files.items(), ("y/test_batch.bin", b"second")]), images, labels, 4)
    with pytest.raises(DataError, match=r"holds no data_batch_1.bin, data_batch_2.bin, test_batch.bin"):
        load(hostile)
    with pytest.raises(DataError, match=r"holds test_batch.bin of a wrong size \(3 bytes\)"):
        load([("test_batch.bin", b"abc"), *files.items()])
    with pytest.raises(DataError, match=r"holds label"):
        load([(name, b"\xff" * len(content)) for name, content in files.items()])
    assert {p.name for p in tmp_path.rglob("*")} == {"secret", "root", "cifar-10-binary.tar.gz"}


# ---- Fashion-MNIST, in a small synthetic edition


def test_pipes_are_refused_at_once(monkeypatch, tmp_path, rng):
    small_cifar(monkeypatch, "CIFAR10", rng)
    (tmp_path / "fashion-mnist").mkdir()
    names = ["cifar-10-binary.tar.gz", *(f"fashion-mnist/{remote.name}" for remote in datasets.FASHION_REMOTES)]
    for name in names:
        os.mkfifo(tmp_path / name)
    for load in (data.load_cifar10, data.load_fashion_mnist):
        with pytest.raises(DataError, match="is a pipe or a device"):
            load(tmp_path, download=False)


def idx_bytes(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def small_fashion(monkeypatch, folder, rng, train=6, test=4):
    monkeypatch.setattr(datasets, "FASHION_COUNTS", {"train": train, "t10k": test})
    arrays, files = [], {}
    for part, n in (("train", train), ("t10k", test)):
        arrays += [rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)]
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx_bytes(arrays[-2]))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx_bytes(arrays[-1]))
    write_folder(folder / "fashion-mnist", files)
    return arrays, files


def test_fashion_mnist(monkeypatch, tmp_path, rng):
    arrays, _ = small_fashion(monkeypatch, tmp_path, rng)
    fashion = data.load_fashion_mnist(root=tmp_path)
    for found, expected in zip(
        fashion, [arrays[0][..., None], arrays[1], arrays[2][..., None], arrays[3]], strict=False
    ):
        np.testing.assert_array_equal(found, expected)
    assert fashion.X_test.dtype == np.uint8 and fashion.y_test.dtype == np.int64
    assert fashion.classes[9] == "Ankle boot"


def test_missing_fashion_mnist_names_folder_and_file(monkeypatch, tmp_path, rng, capsys):
    small_fashion(monkeypatch, tmp_path, rng)
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"put t10k-labels-idx1-ubyte.gz into .*fashion-mnist"):
        data.load_fashion_mnist(root=tmp_path, download=False)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz could not be fetched .*by hand"):
        data.load_fashion_mnist(root=tmp_path)
    assert "next try" in capsys.readouterr().out


def test_damaged_fashion_mnist(monkeypatch, tmp_path, rng):
    arrays, files = small_fashion(monkeypatch, tmp_path, rng)
    name = "train-images-idx3-ubyte.gz"
    raw = gzip.decompress(files[name])
    bad_crc = bytearray(files[name])
    bad_crc[-8] ^= 1
    damaged = r"damaged or no gzip file .*delete it and fetch it again"
    foreign = r"is not an idx file of 6 x 28 x 28 bytes: delete it"
    for content, message in [
        (files[name][:-10], damaged),
        (bytes(bad_crc), damaged),
        (raw, damaged),
        (b"<html>moved</html>", damaged),
        (files[name] + b"more", damaged),
        (b"", foreign),
        (gzip.compress(raw[:-1]), foreign),
        (gzip.compress(raw + b"0"), foreign),
        (gzip.compress(idx_bytes(arrays[0].astype(">u2"))), foreign),
        (gzip.compress(idx_bytes(arrays[0].reshape(3, 56, 28))), foreign),
        (gzip.compress(raw[:2] + b"\x09" + raw[3:]), foreign),
        (files["train-labels-idx1-ubyte.gz"], foreign),
    ]:
        (tmp_path / "fashion-mnist" / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            data.load_fashion_mnist(root=tmp_path)
    (tmp_path / "fashion-mnist" / name).write_bytes(files[name])
    labels = tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 2, 10], np.uint8))))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz holds label 10 of 10 classes"):
        data.load_fashion_mnist(root=tmp_path)


def test_gzip_bomb_takes_no_memory(monkeypatch, tmp_path, rng):
    _, files = small_fashion(monkeypatch, tmp_path, rng)
    name = "train-images-idx3-ubyte.gz"
    header = gzip.decompress(files[name])[:16]
    (tmp_path / "fashion-mnist" / name).write_bytes(gzip.compress(header + bytes(1 << 25), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match="not an idx file"):
        data.load_fashion_mnist(root=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 21


# ---- mutations: whatever happens to a file, only DataError comes out


def mutate(content, rng):
    """Flip, cut, insert or repeat a few bytes."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(content))) if rng.random() < 0.7 else int(rng.integers(min(len(content), 600)))
        kind = rng.integers(4)
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at : at + 1] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 2:
            content = content[: max(at, 1)]
        else:
            content[at:at] = content[at : at + int(rng.integers(1, 600))]
    return bytes(content)


def outcomes(mutants, load):
    """How often loading worked and how often it raised DataError; anything else propagates."""
    counts = {"read": 0, "DataError": 0}
    for mutant in mutants:
        try:
            load(mutant)
            counts["read"] += 1
        except DataError as error:
            assert str(error) and "\n" not in str(error)
            counts["DataError"] += 1
    return counts


def test_mutated_archives(monkeypatch, tmp_path, rng):
    """The hash is made to fit, so that the reader behind it is met as well."""
    files, *_ = small_cifar(monkeypatch, "CIFAR10", rng, records=(1, 1, 1))
    plain = tar_bytes(files.items(), "w:")
    compressed = gzip.compress(plain, 1)
    mutants = [mutate(compressed, rng) for _ in range(40)] + [gzip.compress(mutate(plain, rng), 1) for _ in range(40)]

    def load(content):
        (tmp_path / publish(monkeypatch, "CIFAR10", content)).write_bytes(content)
        assert data.load_cifar10(root=tmp_path).X_train.shape == (2, 32, 32, 3)

    counts = outcomes(mutants, load)
    assert counts["DataError"] > 20, counts


def test_mutated_idx_files(monkeypatch, tmp_path, rng):
    arrays, files = small_fashion(monkeypatch, tmp_path, rng)
    name = "train-images-idx3-ubyte.gz"

    def load(content):
        (tmp_path / "fashion-mnist" / name).write_bytes(content)
        found = data.load_fashion_mnist(root=tmp_path)
        np.testing.assert_array_equal(found.X_train[..., 0], arrays[0])  # gzip's checksum lets nothing else through

    counts = outcomes([mutate(files[name], rng) for _ in range(60)], load)
    assert counts["DataError"] > 40, counts


# ---- download


class Server:
    """A web server on this machine for one file, with the bad habits of real ones. ``ranges_seen``: one per request."""

    def __init__(self, content):
        self.content, self.status = content, 200
        self.honours_range, self.sends_length, self.range_offset = True, True, 0
        self.cuts = []  # bytes after which the next transfers end early
        self.ranges_seen = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/some/where/file.bin"

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.ranges_seen.append(wanted)
        start = int(wanted[len("bytes=") : -1]) if wanted and self.honours_range else 0
        handler.send_response(206 if start and self.status == 200 else self.status)
        body = self.content[start:]
        if start:
            at = start + self.range_offset
            handler.send_header("Content-Range", f"bytes {at}-{len(self.content) - 1}/{len(self.content)}")
        if self.sends_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may hang up early
            handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(rng):
    server = Server(rng.bytes(1_000_000))
    yield server
    server.close()


@pytest.fixture
def remote(server):
    return Remote(server.url, len(server.content), hashlib.sha256(server.content).hexdigest())


def test_fetch(server, remote, tmp_path, capsys):
    path = fetch(remote, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "file.bin" and path.read_bytes() == server.content
    assert files_in(path.parent) == ["file.bin"] and server.ranges_seen == [None]
    out, err = capsys.readouterr()
    assert "fetching 1.0 MB from http" in out and "file.bin: 1.0 MB" in out and err == ""


def test_cut_transfers_are_resumed(server, remote, tmp_path, capsys):
    server.cuts = [300_000, 250_000]
    assert fetch(remote, tmp_path).read_bytes() == server.content
    assert server.ranges_seen == [None, "bytes=300000-", "bytes=550000-"]
    assert files_in(tmp_path) == ["file.bin"]
    assert "the transfer was cut after 300000 of 1000000 bytes; next try" in capsys.readouterr().out


def test_the_next_call_goes_on_where_the_last_gave_up(server, remote, tmp_path):
    server.cuts = [100_000] * 4
    with pytest.raises(DataError, match=r"could not be fetched .*run again later .*file.bin.part .*by hand"):
        fetch(remote, tmp_path)
    assert files_in(tmp_path) == ["file.bin.part"]
    assert fetch(remote, tmp_path).read_bytes() == server.content
    assert server.ranges_seen[4] == "bytes=400000-"


def test_server_that_ignores_range(server, remote, tmp_path):
    server.honours_range, server.cuts = False, [300_000]
    assert fetch(remote, tmp_path).read_bytes() == server.content
    assert server.ranges_seen == [None, "bytes=300000-"]


def test_server_that_sends_another_range(server, remote, tmp_path):
    server.range_offset, server.cuts = 7, [300_000]
    assert fetch(remote, tmp_path).read_bytes() == server.content
    assert server.ranges_seen == [None, "bytes=300000-", None]


def test_server_without_length(server, remote, tmp_path):
    server.sends_length, server.cuts = False, [300_000]
    server.content += b"and more than was announced"
    assert fetch(remote, tmp_path).read_bytes() == server.content[: remote.size]


def test_wrong_content(server, remote, tmp_path):
    server.content = bytes(len(server.content))
    with pytest.raises(DataError, match=r"file.bin sent a file with another sha256 \(deleted again\): fetch again"):
        fetch(remote, tmp_path)
    assert files_in(tmp_path) == []


def test_wrong_length_leaves_what_was_there(server, remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(server.content[:500])
    good, server.content, server.honours_range = server.content, b"<html>please log in</html>", False
    with pytest.raises(DataError, match=r"is 26 bytes long instead of 1000000"):
        fetch(remote, tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == good[:500] and files_in(tmp_path) == ["file.bin.part"]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4)])
def test_refusals(status, requests, server, remote, tmp_path):
    server.status = status
    with pytest.raises(DataError, match=rf"could not be fetched \(HTTP Error {status}"):
        fetch(remote, tmp_path)
    assert len(server.ranges_seen) == requests


def test_unwritable_folder_is_not_tried_again(server, remote, tmp_path, monkeypatch, capsys):
    def denied(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "mkdir", denied)
    with pytest.raises(DataError, match=r"could not be fetched .*Permission denied"):
        fetch(remote, tmp_path / "new")
    assert "next try" not in capsys.readouterr().out and server.ranges_seen == []


def test_old_parts(server, remote, tmp_path):
    part = tmp_path / "file.bin.part"
    part.write_bytes(server.content)
    assert fetch(remote, tmp_path).read_bytes() == server.content and server.ranges_seen == []
    part.write_bytes(server.content + b"too long")
    assert fetch(remote, tmp_path).read_bytes() == server.content and server.ranges_seen == [None]
    part.write_bytes(bytes(400_000))  # of another file: the hash notices
    with pytest.raises(DataError, match="another sha256"):
        fetch(remote, tmp_path)
    assert files_in(tmp_path) == ["file.bin"]


def test_no_room(server, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(DataError, match=r"has no room for file.bin \(1 MB\)"):
        fetch(remote, tmp_path)
    assert server.ranges_seen == []


def test_cifar_is_fetched_once(monkeypatch, tmp_path, rng, server, capsys):
    files, images, labels = small_cifar(monkeypatch, "CIFAR10", rng)
    server.content = tar_bytes(files.items())
    publish(monkeypatch, "CIFAR10", server.content)
    source = datasets.CIFAR10
    url = server.url.replace("file.bin", source.remote.name)
    monkeypatch.setattr(datasets, "CIFAR10", source._replace(remote=source.remote._replace(url=url)))
    for _ in range(2):
        assert_holds(data.load("cifar10", root=tmp_path), images, labels, 4)
    assert len(server.ranges_seen) == 1 and files_in(tmp_path) == ["cifar-10-binary.tar.gz"]


# ---- by name


def test_load_by_name():
    assert data.load("digits", seed=1).name == "digits"
    assert data.load("digits", root="ignored").name == "digits"
    with pytest.raises(
        DataError, match=r"'imagenet' is neither a data set \(digits, fashion-mnist, cifar10, cifar100\)"
    ):
        data.load("imagenet")
