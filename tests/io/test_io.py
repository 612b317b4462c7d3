"""Model files: what comes back, what is refused, and that nothing is ever half-written."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import tinybitvit as tb
from tinybitvit import files
from tinybitvit.io import FORMATS, CheckpointError, export, load_model, read_safetensors, save_model, write_safetensors
from tinybitvit.quant import PackedLinear

ALL_BITS = [32, 8, 4, 3, 2, 1.58, 1]
ARRAYS = {
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "strided": np.arange(10, dtype="uint8")[::2],
    "broadcast": np.broadcast_to(np.float32(2), (3, 2)),
    "big endian": np.array([1, 2, 3], ">i4"),
    "number": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float16"),
    "bools": np.array([True, False]),
}


def make_model(rng, bits=1.58, **options):
    settings = {"dim": 32, "depth": 2, "heads": 2, "num_classes": 5, **options}
    return tb.models.VisionTransformer(8, 4, bits=bits, rng=rng, **settings)


def logits(model, x):
    with tb.no_grad():
        return model(x).data


def images(rng, n=3):
    return rng.standard_normal((n, 8, 8, 3)).astype("float32")


# Arrays and metadata


def test_arrays_come_back(tmp_path):
    metadata = {"classes": ["cat", "chien à poil"], "n": 3, "deep": {"a": [1.5, None, True]}}
    write_safetensors(tmp_path / "a.safetensors", ARRAYS, metadata)
    arrays, back = read_safetensors(tmp_path / "a.safetensors")
    assert back == metadata
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("=") and arrays[name].shape == array.shape
        assert np.array_equal(arrays[name], array)
        assert arrays[name].flags.writeable


def test_other_programs_can_read_the_file(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", ARRAYS, {})
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert all(np.array_equal(theirs[name], array) for name, array in ARRAYS.items())


def test_bfloat16_is_read_as_float32(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"x": x}, tmp_path / "x.safetensors")
    assert np.array_equal(files.read_arrays(tmp_path / "x.safetensors")["x"], x.float().numpy())


def test_what_a_file_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="z has dtype complex64"):
        write_safetensors(tmp_path / "a", {"z": np.zeros(2, "complex64")}, {})
    with pytest.raises(ValueError, match="s has dtype <U3"):
        write_safetensors(tmp_path / "a", {"s": np.array(["cat"])}, {})
    for metadata, fault in (
        ({"loss": [0.5, float("nan")]}, r"metadata\['loss'\]\[1\] is nan"),
        ({"deep": {"score": -np.inf}}, r"metadata\['deep'\]\['score'\] is -inf"),
        ({"array": np.zeros(2)}, r"metadata\['array'\] is a numpy.ndarray"),
        ({"number": np.float32(1)}, r"metadata\['number'\] is a numpy.float32"),
        ({"size": (1, 2)}, r"metadata\['size'\] is a tuple"),
        ({1: "a", "1": "b"}, r"metadata has the key 1"),
        ({"deep": [{None: 1}]}, r"metadata\['deep'\]\[0\] has the key None"),
    ):
        with pytest.raises(ValueError, match=f"^{fault}, which JSON would not give back: put it into finite numbers"):
            write_safetensors(tmp_path / "a", {}, metadata)
    assert list(tmp_path.iterdir()) == []


# Writing is atomic


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": np.arange(3)}, {"old": True})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    if step == "open":
        monkeypatch.setattr("builtins.open", full)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(CheckpointError, match=r"cannot write .*safetensors: No space left on device; free space"):
        write_safetensors(path, {"x": np.arange(300)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": np.arange(3)}, {})
    before = path.read_bytes()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, {"x": np.arange(4)}, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_new_file_has_the_usual_rights(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_safetensors(tmp_path / "model", {}, {})
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file or directory"):
        write_safetensors(tmp_path / "none" / "a.safetensors", {}, {})


@pytest.fixture
def any_file(tmp_path):
    """A folder with a file `old` of mode 0640 that is to be written again."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o640)
    return tmp_path / "old"


def test_links_are_followed_and_modes_kept(any_file, tmp_path):
    (tmp_path / "further").mkdir()
    link, chain, dangling = tmp_path / "link", tmp_path / "further" / "chain", tmp_path / "dangling"
    link.symlink_to("old")
    chain.symlink_to("../link")
    dangling.symlink_to("new")
    files.write_file(chain, b"through two links")
    files.write_file(dangling, "text: é, \udce8")
    assert link.is_symlink() and chain.is_symlink() and dangling.is_symlink()
    assert any_file.read_bytes() == b"through two links" and stat.S_IMODE(any_file.stat().st_mode) == 0o640
    assert (tmp_path / "new").read_text(encoding="utf-8") == "text: é, ?"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "further", "link", "new", "old"]


def test_a_file_that_may_not_be_written_is_not_replaced(any_file, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may be run by root, who may write anything
    with pytest.raises(PermissionError, match=r"cannot write .*old: Permission denied; free space on the disk, or"):
        files.write_file(any_file, b"new")
    assert any_file.read_bytes() == b"old"


def test_an_owner_stays(any_file, monkeypatch):
    given = []
    monkeypatch.setattr(os, "chown", lambda path, user, group: given.append((user, group)))
    files.write_file(any_file, b"new")
    assert given == [(any_file.stat().st_uid, any_file.stat().st_gid)]


def test_long_names(tmp_path):
    for name in ("n" * 255, "é" * 127):
        files.write_file(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    with pytest.raises(OSError, match="File name too long; choose a shorter name"):
        files.write_file(tmp_path / ("n" * 256), b"x")
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_and_missing_folders_are_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"cannot write .*: Is a directory; give the name of a file in it"):
        files.write_file(tmp_path, b"")
    with pytest.raises(FileNotFoundError, match="No such file or directory; make the folder first"):
        files.write_file(tmp_path / "none" / "a", b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"cannot write .*loop: Too many levels of symbolic links"):
        files.write_file(tmp_path / "loop", b"")


def test_devices_and_pipes_stay_what_they_are(tmp_path):
    files.write_file(os.devnull, b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_file(tmp_path / "pipe", b"through the pipe")
    assert os.read(reader, 100) == b"through the pipe" and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    os.close(reader)
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="cannot write /dev/full: No space left on device; free space"):
            files.write_file("/dev/full", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_standard_output_is_written_to(tmp_path):
    code = "import os; from tinybitvit import files; os.write(1, b'1'); files.write_file('/dev/stdout', b'2')"
    words = [sys.executable, "-c", f"{code}; os.write(1, b'3')"]
    assert subprocess.run(words, stdout=subprocess.PIPE, timeout=60).stdout == b"123"
    with open(tmp_path / "out", "ab") as out:
        assert subprocess.run(words, stdout=out, timeout=60).returncode == 0
    assert (tmp_path / "out").read_bytes() == b"123"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, OSError])
def test_an_unfinished_block_leaves_nothing(any_file, fault):
    with pytest.raises(fault), files.new_file(any_file) as file:
        file.write(b"half of it")
        raise fault
    assert any_file.read_bytes() == b"old" and len(list(any_file.parent.iterdir())) == 1


# What is refused


@pytest.mark.parametrize("read", [load_model, read_safetensors, tb.load, tb.models.from_pretrained])
def test_pipes_and_devices_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(CheckpointError, match="is a pipe or a device"):
            read(path)
    with pytest.raises(CheckpointError, match=r"there is no file .*below"):
        read(tmp_path / "pipe" / "below")


def test_files_that_are_not_there_or_not_ours(tmp_path, rng):
    with pytest.raises(CheckpointError, match=r"there is no file .*check the name"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder: give the name"):
        load_model(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file .*download the file again"):
        load_model(tmp_path / "text")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(tmp_path / "empty")
    for start in (b"PK\3\4", b"\x80\2\x8a\x0al"):
        (tmp_path / "pytorch_model.bin").write_bytes(start + bytes(99))
        for read in (load_model, tb.load, tb.models.from_pretrained):
            with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle or .*: download the model"):
                read(tmp_path / "pytorch_model.bin")
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"was not written by TinyBitViT; .*from_pretrained"):
        load_model(tmp_path / "foreign")
    write_safetensors(tmp_path / "other", {"x": np.zeros(2)}, {"a": 1})
    with pytest.raises(CheckpointError, match="does not hold the model that it describes"):
        load_model(tmp_path / "other")


@pytest.mark.parametrize("version", ["0", "2", "1.0", ""])
def test_other_versions_are_refused_by_name(tmp_path, version):
    header = {"tinybitvit": f"{version} {files.digest({}, '{}')} {{}}"}
    (tmp_path / "a").write_bytes(files.tensor_bytes({}, header))
    with pytest.raises(
        CheckpointError, match=f"format version {version}, and this TinyBitViT reads version 1: install"
    ):
        read_safetensors(tmp_path / "a")


def test_a_flipped_bit_is_noticed(tmp_path, rng):
    save_model(tmp_path / "m", make_model(rng))
    raw = bytearray((tmp_path / "m").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"is damaged .*sha256"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 64},
        {"dim": 10**9},
        {"depth": 10**9},
        {"depth": 1},
        {"num_classes": 10**9},
        {"mlp_ratio": 1e9},
        {"image_size": 10**6},
        {"patch_size": 10**6},
        {"in_channels": 10**9},
        {"heads": 0},
        {"heads": 3},
        {"bits": 5},
        {"bits": "1"},
        {"pool": "max"},
        {"unknown": 1},
        {"dim": None},
        {"layer_scale": 1.0},
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_description_that_does_not_fit(tmp_path, rng, change, packed):
    """Well-formed files, their sha256 right, whose configuration is not that of their arrays."""
    save_model(tmp_path / "m", make_model(rng), packed=packed)
    arrays, info = read_safetensors(tmp_path / "m")
    info["config"] |= change
    write_safetensors(tmp_path / "m", arrays, info)
    with pytest.raises(CheckpointError, match="does not hold the model that it describes"):
        load_model(tmp_path / "m")


def test_packed_bytes_that_no_weights_pack_to(tmp_path, rng):
    save_model(tmp_path / "m", make_model(rng), packed=True)
    arrays, info = read_safetensors(tmp_path / "m")
    arrays["model.blocks.0.attn.qkv.packed"][0, 0] = 243
    write_safetensors(tmp_path / "m", arrays, info)
    with pytest.raises(CheckpointError, match="does not hold the model"):
        load_model(tmp_path / "m")


# Models


@pytest.mark.parametrize("bits", ALL_BITS)
def test_full_model_comes_back(tmp_path, rng, bits):
    model = make_model(rng, bits, pool="cls", registers=2, layer_scale=0.5, granularity="tensor")
    model.preprocessing = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    optimizer = {"optimizer.m": rng.standard_normal(9), "optimizer.step": np.array(3)}
    save_model(tmp_path / "m", model, {"classes": [1, 2], "epoch": 3}, arrays=optimizer)
    back, metadata, arrays = load_model(tmp_path / "m")
    assert metadata == {"classes": [1, 2], "epoch": 3}
    assert back.config == json.loads(json.dumps(model.config)) and back.preprocessing == model.preprocessing
    assert arrays.keys() == optimizer.keys() and np.array_equal(arrays["optimizer.m"], optimizer["optimizer.m"])
    for name, array in model.state_dict().items():
        assert np.array_equal(back.state_dict()[name], array)
    x = images(rng)
    assert np.array_equal(logits(back, x), logits(model, x))
    assert not back.training and all(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize("bits", [b for b in ALL_BITS if b < 32])
def test_packed_model_comes_back(tmp_path, rng, bits):
    model = make_model(rng, bits)
    save_model(tmp_path / "m", model, {"a": 1}, packed=True)
    save_model(tmp_path / "again", model.pack(), {"a": 1})
    back, metadata, _ = load_model(tmp_path / "m")
    x = images(rng)
    assert metadata == {"a": 1}
    assert np.array_equal(logits(back, x), logits(model.pack(), x))
    assert np.array_equal(logits(load_model(tmp_path / "again").model, x), logits(back, x))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    layouts = {m.layout for m in back.modules() if isinstance(m, PackedLinear)}
    assert layouts == {back.config["layout"]} == {model.pack().config["layout"]}, "the fastest layout"
    names = read_safetensors(tmp_path / "m")[0]
    assert "model.blocks.0.attn.qkv.packed" in names and "model.blocks.0.attn.qkv.weight" not in names


def test_loading_leaves_random_numbers_alone(tmp_path, rng):
    save_model(tmp_path / "m", make_model(rng))
    tb.manual_seed(5)
    expected = tb.backend.current_rng().random(3)
    tb.manual_seed(5)
    load_model(tmp_path / "m")
    assert np.array_equal(tb.backend.current_rng().random(3), expected)


def test_a_classifier_with_a_random_state_of_its_own(tmp_path, rng):
    X, y = rng.integers(0, 256, (20, 8, 8, 1), "uint8"), np.arange(20) % 2
    options = {"dim": 8, "depth": 1, "heads": 2, "epochs": 1, "verbose": 0, "workers": 1}
    model = tb.ViT(**options, random_state=np.random.RandomState(0)).fit(X, y)
    model.save(tmp_path / "m")
    back = tb.load(tmp_path / "m")
    assert back.random_state is None and (back.predict(X) == model.predict(X)).all()


def test_non_square_model_comes_back(tmp_path, rng):
    model = tb.models.VisionTransformer((8, 12), (4, 3), 1, dim=16, depth=1, heads=2, bits=1, num_classes=0, rng=rng)
    save_model(tmp_path / "m", model, packed=True)
    x = rng.standard_normal((2, 8, 12, 1)).astype("float32")
    assert np.array_equal(logits(load_model(tmp_path / "m").model, x), logits(model.pack(), x))


def test_what_cannot_be_saved(tmp_path, rng):
    with pytest.raises(ValueError, match="no low-bit layers"):
        save_model(tmp_path / "m", make_model(rng, 32), packed=True)
    with pytest.raises(ValueError, match="half=True is for packed files"):
        save_model(tmp_path / "m", make_model(rng), half=True)
    with pytest.raises(ValueError, match=r"model\.x must not begin with 'model\.'"):
        save_model(tmp_path / "m", make_model(rng), arrays={"model.x": np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_effective_bits_of_a_file(tmp_path, rng):
    """A ViT of 2.65 million weights in its blocks at 1 bit: 1.75 bits a weight in the file, 1.39 with half=True."""
    model = tb.models.VisionTransformer(32, 4, dim=192, depth=9, heads=3, mlp_ratio=2, bits=1, rng=rng)
    weights = sum(p.size for p in model.parameters())
    assert weights == pytest.approx(2.70e6, rel=1e-3)
    effective = {}
    for half in (False, True):
        save_model(tmp_path / "m", model, packed=True, half=half)
        effective[half] = 8 * (tmp_path / "m").stat().st_size / weights
    assert effective[False] < 1.8 and effective[True] <= 1.5
    back = load_model(tmp_path / "m").model
    assert all(p.dtype == np.float32 for p in back.parameters())
    x = rng.standard_normal((4, 32, 32, 3)).astype("float32")
    assert np.abs(logits(back, x) - logits(model.pack(), x)).max() < 0.05


def test_what_float16_cannot_hold(tmp_path, rng):
    """Too large: refused by name. So small that they would become 0: the array stays, and the others are halved."""
    model = make_model(rng, 1, layer_scale=1e-8)
    save_model(tmp_path / "m", model, packed=True, half=True)
    written = read_safetensors(tmp_path / "m")[0]
    assert {a.dtype.name for name, a in written.items() if ".ls" in name} == {"float32"}
    assert {a.dtype.name for name, a in written.items() if "norm" in name or "head" in name} == {"float16"}
    assert np.array_equal(load_model(tmp_path / "m").model.blocks[0].ls1.gamma.data, model.blocks[0].ls1.gamma.data)
    model.head.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"head\.weight holds numbers that float16 does not.*: save without half=True"):
        save_model(tmp_path / "m", model, packed=True, half=True)
    assert sorted(read_safetensors(tmp_path / "m")[0]) == sorted(written), "the old file stays"


def test_a_classifier_is_given_where_a_network_is(tmp_path, rng):
    """Exports take a tb.ViT, and what cannot says why."""
    X, y = rng.integers(0, 256, (20, 8, 8, 1), "uint8"), np.arange(20) % 2
    options = {"dim": 8, "depth": 1, "heads": 2, "epochs": 1, "verbose": 0, "workers": 1, "random_state": 0}
    model = tb.ViT(**options).fit(X, y)
    for format_ in ("onnx", "hf"):
        export(model, tmp_path / f"whole.{format_}", format_)
        export(model.model_, tmp_path / f"network.{format_}", format_)
    assert (tmp_path / "whole.onnx").read_bytes() == (tmp_path / "network.onnx").read_bytes()
    whole, network = tmp_path / "whole.hf", tmp_path / "network.hf"
    assert files.read_header(whole) == files.read_header(network)  # its entries have no fixed order
    assert whole.read_bytes()[-1000:] == network.read_bytes()[-1000:]
    export(model, tmp_path / "m", "safetensors")
    assert (tb.load(tmp_path / "m").predict(X) == model.predict(X)).all()
    with pytest.raises(ValueError, match=r"no place for the classes of a tb\.ViT: call its own save"):
        save_model(tmp_path / "m", model)
    for format_ in FORMATS:
        with pytest.raises(ValueError, match=r"only a fitted tb\.ViT or .* can be written, not ViT: call fit"):
            export(tb.ViT(), tmp_path / "m", format_)


# Mutated files


def mutate(raw, rng):
    """A copy of a file's bytes with one kind of damage."""
    data = bytearray(raw)
    header = 8 + int.from_bytes(raw[:8], "little")
    kind = rng.integers(7)
    if kind == 0:  # one flipped bit anywhere
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 1:  # some flipped bits in the header
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(header)] ^= 1 << rng.integers(8)
    elif kind == 2:  # cut off
        del data[rng.integers(len(data)) :]
    elif kind == 3:  # something in between or behind
        at = rng.integers(len(data) + 1)
        data[at:at] = rng.bytes(int(rng.integers(1, 20)))
    elif kind == 4:  # a piece left out
        at = rng.integers(len(data))
        del data[at : at + rng.integers(1, 50)]
    elif kind == 5:  # another digit in the header
        digits = [i for i in range(8, header) if chr(data[i]).isdigit()]
        data[digits[rng.integers(len(digits))]] = ord("0") + rng.integers(10)
    else:  # a block of other bytes
        at = rng.integers(len(data))
        data[at : at + 16] = rng.bytes(len(data[at : at + 16]))
    return bytes(data)


def same_content(one, two):
    return (
        one.metadata == two.metadata
        and one.model.config == two.model.config
        and one.model.state_dict().keys() == two.model.state_dict().keys()
        and all(np.array_equal(a, two.model.state_dict()[n]) for n, a in one.model.state_dict().items())
        and all(np.array_equal(a, two.arrays[n]) for n, a in one.arrays.items())
    )


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, True])
def test_mutated_files_raise_one_error(tmp_path, rng, packed, count):
    path = tmp_path / "m.safetensors"
    model = make_model(rng, 1.58, dim=16, depth=1)
    save_model(path, model, {"classes": ["a", "é"]}, packed=packed, arrays={"optimizer.m": np.arange(3.0)})
    original, raw = load_model(path), path.read_bytes()
    refused = 0
    for _ in range(count):
        changed = mutate(raw, rng)
        path.write_bytes(changed)
        try:
            loaded = load_model(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 1000
        else:
            assert same_content(loaded, original), "a changed file was taken for a whole one"
    assert refused > 0.9 * count
