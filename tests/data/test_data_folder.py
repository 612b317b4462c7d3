"""Folders of pictures as data sets: every kind of pixel, every kind of broken file."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from tinybitvit import data
from tinybitvit.data import DataError, load_image_folder


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def colours(rng, height=6, width=5):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_folder(root, rng, classes=("cat", "dog"), per_class=4):
    """root/CLASS/i.png; returns {class: images}."""
    images = {name: [colours(rng) for _ in range(per_class)] for name in classes}
    for name, own in images.items():
        for i, image in enumerate(own):
            save(root / name / f"{i}.png", image)
    return images


def two_classes(tmp_path, first, *, name="a.png", **options):
    """A data set of one given image beside plain ones of the same size; returns what was read of it, (H, W, C)."""
    save(tmp_path / "train" / "a" / name, first, **options)
    with Image.open(tmp_path / "train" / "a" / name) as saved:
        for folder in ("train/b", "test/a", "test/b"):
            save(tmp_path / folder / "b.png", Image.new("L", saved.size))
    return load_image_folder(tmp_path).X_train[0]


def test_held_out_quarter(tmp_path, rng, monkeypatch):
    images = make_folder(tmp_path / "pets", rng, ("dog", "cat", "eel"), per_class=8)
    pets = load_image_folder(tmp_path / "pets")
    assert pets.name == "pets" and pets.classes == ("cat", "dog", "eel")
    assert pets.X_train.shape == (18, 6, 5, 3) and pets.X_train.dtype == np.uint8 and pets.y_train.dtype == np.int64
    assert np.bincount(pets.y_test).tolist() == [2, 2, 2]
    known = {image.tobytes(): name for name, own in images.items() for image in own}
    X, y = np.concatenate([pets.X_train, pets.X_test]), np.concatenate([pets.y_train, pets.y_test])
    assert {x.tobytes(): pets.classes[label] for x, label in zip(X, y, strict=True)} == known
    same = data.load(tmp_path / "pets", seed=0)
    np.testing.assert_array_equal(same.X_test, pets.X_test)
    other = data.load(str(tmp_path / "pets"), root="ignored", seed=1, test_size=0.5)
    assert len(other.X_test) == 12
    monkeypatch.chdir(tmp_path / "pets")
    assert load_image_folder(".").name == "pets"


def test_given_split(tmp_path, rng):
    train = make_folder(tmp_path / "train", rng, ("a", "b", "c"), 2)
    test = make_folder(tmp_path / "test", rng, ("a", "c"), 1)
    found = load_image_folder(tmp_path)
    np.testing.assert_array_equal(found.X_train, np.stack([image for own in train.values() for image in own]))
    np.testing.assert_array_equal(found.X_test, np.stack([image for own in test.values() for image in own]))
    assert found.y_train.tolist() == [0, 0, 1, 1, 2, 2] and found.y_test.tolist() == [0, 2]
    make_folder(tmp_path / "test", rng, ("zebra",), 1)
    with pytest.raises(DataError, match=r"test holds classes that .*train lacks: zebra"):
        load_image_folder(tmp_path)


def test_validation_folders(tmp_path, rng):
    train = make_folder(tmp_path / "train", rng, ("a", "b"), 2)
    val = make_folder(tmp_path / "val", rng, ("a", "b"), 1)
    found = load_image_folder(tmp_path)
    np.testing.assert_array_equal(found.X_test, np.stack([image for own in val.values() for image in own]))
    assert len(found.X_train) == 4 and found.y_test.tolist() == [0, 1]
    test = make_folder(tmp_path / "test", rng, ("a", "b"), 1)
    found = load_image_folder(tmp_path)
    both = [image for part in (train, val) for own in part.values() for image in own]
    np.testing.assert_array_equal(found.X_train, np.stack(both))
    np.testing.assert_array_equal(found.X_test, np.stack([image for own in test.values() for image in own]))
    assert found.y_train.tolist() == [0, 0, 1, 1, 0, 1]
    make_folder(tmp_path / "val", rng, ("zebra",), 1)
    with pytest.raises(DataError, match=r"val holds classes that .*train lacks: zebra"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("name", ["valid", "validation", "Test", "VAL"])
def test_other_names_of_a_split(name, tmp_path, rng):
    make_folder(tmp_path / "train", rng, ("a", "b"), 2)
    held = make_folder(tmp_path / name, rng, ("a", "b"), 1)
    np.testing.assert_array_equal(
        load_image_folder(tmp_path).X_test, np.stack([i for own in held.values() for i in own])
    )


@pytest.mark.parametrize("names", [("train",), ("train", "held out"), ("training", "test"), ("2023", "2024")])
def test_splits_that_are_none_are_named_and_stay(names, tmp_path, rng):
    for name in names:
        make_folder(tmp_path / name, rng, ("a", "b"), 2)
    with pytest.raises(
        DataError, match=r"pictures in folders of its own \(a, b\), .* name the folders of a split"
    ) as error:
        load_image_folder(tmp_path)
    assert "remove" not in str(error.value) and "delete" not in str(error.value)


def test_pictures_that_would_be_left_out(tmp_path, rng):
    make_folder(tmp_path / "train", rng, ("a", "b"), 4)
    make_folder(tmp_path / "test", rng, ("a", "b"), 1)
    make_folder(tmp_path / "extra", rng, ("a", "b"), 1)
    with pytest.raises(DataError, match=r"split into test, train, and the pictures in extra would be left out"):
        load_image_folder(tmp_path)
    (tmp_path / "extra").rename(tmp_path / "train" / "a" / "more")
    with pytest.raises(DataError, match=r"a holds pictures in folders of its own \(more\), which would be left out"):
        load_image_folder(tmp_path)
    (tmp_path / "train" / "a" / "more").rename(tmp_path / ".more")
    assert len(load_image_folder(tmp_path).X_train) == 8
    save(tmp_path / "train" / "b" / "9.tif", colours(rng))
    with pytest.raises(DataError, match=r"9.tif is a picture, but none of .bmp, .gif"):
        load_image_folder(tmp_path)
    (tmp_path / "train" / "b" / "9.tif").unlink()
    make_folder(tmp_path / "validation", rng, ("a", "b"), 1)
    make_folder(tmp_path / "val", rng, ("a", "b"), 1)
    with pytest.raises(DataError, match=r"val.* and .*validation are the same part of a split"):
        load_image_folder(tmp_path)


def test_arguments_of_folders(tmp_path, rng):
    make_folder(tmp_path, rng)
    for size in ([8, 8], (np.int64(8), 8), np.int64(8), 8):
        assert load_image_folder(tmp_path, size=size).X_train.shape[1:3] == (8, 8)
    for name, values in {"size": [True, (True, 8)], "seed": [1.5, None, -1, "0"], "test_size": ["a", None, -1]}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} must"):
                load_image_folder(tmp_path, **{name: value})


def test_models_of_other_channels_take_no_pictures(tmp_path, rng):
    save(tmp_path / "a.png", colours(rng))
    with pytest.raises(ValueError, match="1 or 3 channels, and the model takes 4"):
        data.read_image(tmp_path / "a.png", (6, 5, 4))


def test_labels_as_names(tmp_path, rng):
    make_folder(tmp_path / "train", rng, ("cat", "dog"), 2)
    make_folder(tmp_path / "test", rng, ("dog",), 1)
    found = load_image_folder(tmp_path).named()
    assert found.y_train.tolist() == ["cat", "cat", "dog", "dog"] and found.y_test.tolist() == ["dog"]


def test_classes_may_be_called_train_and_test(tmp_path, rng):
    make_folder(tmp_path, rng, ("test", "train"))
    assert load_image_folder(tmp_path).classes == ("test", "train")


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "JPG", "jpeg"])
def test_formats(suffix, tmp_path):
    blue = np.full((8, 8, 3), (10, 20, 200), np.uint8)
    found = two_classes(tmp_path, blue, name=f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - blue).max() <= (3 if suffix.lower().startswith("jp") else 0)


def test_grey_stays_grey_until_one_image_has_colour(tmp_path, rng):
    grey = rng.integers(0, 256, (4, 4), dtype=np.uint8)
    np.testing.assert_array_equal(two_classes(tmp_path, grey), grey[..., None])
    save(tmp_path / "train" / "b" / "c.png", colours(rng, 4, 4))
    found = load_image_folder(tmp_path).X_train
    assert found.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(found[0], np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 255, 256], [4095, 32768, 65535]], np.uint16)
    found = two_classes(tmp_path, levels)
    np.testing.assert_array_equal(found[..., 0], levels >> 8)


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 127]]], np.uint8)
    found = two_classes(tmp_path, rgba)
    np.testing.assert_array_equal(found, [[[255, 0, 0], [255, 255, 255], [128, 128, 128]]])


def test_the_transparent_level_of_sixteen_bits_is_white(tmp_path):
    levels = np.array([[0, 255, 256], [4095, 32768, 65535]], np.uint16)
    found = two_classes(tmp_path, levels, transparency=4095)
    np.testing.assert_array_equal(found[..., 0], np.where(levels == 4095, 255, levels >> 8))


def test_palettes_bits_and_cmyk(tmp_path, rng):
    few = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    for name, image, expected in [
        ("palette", Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE), few),
        ("bits", Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), [[[0], [255]]]),
        ("greyalpha", Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA"), [[[9], [255]]]),
    ]:
        np.testing.assert_array_equal(two_classes(tmp_path / name, image), expected)
    clear = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE)
    index = clear.getpixel((0, 0))
    found = two_classes(tmp_path / "clear", clear, transparency=index)
    np.testing.assert_array_equal(found, [[[255, 255, 255], [0, 0, 255]]])
    found = two_classes(tmp_path / "cmyk", Image.new("CMYK", (8, 8), (0, 0, 0, 0)), name="a.jpg")
    assert found.shape == (8, 8, 3) and found.min() >= 253


def test_exif_orientation(tmp_path):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turn by 90 degrees clockwise to see it
    save(tmp_path / "train" / "a" / "a.jpg", np.rot90(upright), exif=exif, quality=95)
    for folder in ("train/b", "test/a", "test/b"):
        save(tmp_path / folder / "b.png", upright)
    found = load_image_folder(tmp_path).X_train[0]
    assert found.shape == upright.shape and np.abs(found.astype(int) - upright).max() < 10


def test_sizes(tmp_path, rng):
    make_folder(tmp_path, rng)
    save(tmp_path / "dog" / "z.png", np.full((9, 9, 3), 77, np.uint8))
    with pytest.raises(DataError, match=r"0.png is 6 x 5 but .*z.png is 9 x 9: pass size="):
        load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, size=4).X_train.shape[1:] == (4, 4, 3)
    found = load_image_folder(tmp_path, size=(3, 7))
    assert found.X_train.shape[1:] == (3, 7, 3)
    assert any((image == 77).all() for image in [*found.X_train, *found.X_test])
    for size in (0, (4,), (4, -1), "8", 8.5, (4.0, 4)):
        with pytest.raises(ValueError, match=r"size must be a positive side or \(height, width\), got"):
            load_image_folder(tmp_path, size=size)


def test_what_is_skipped(tmp_path, rng):
    outside = tmp_path / "outside"
    make_folder(outside, rng, ("fox",))
    root = tmp_path / "root"
    make_folder(root, rng)
    for stray in (".hidden.png", "._0.png", "notes.txt", "Thumbs.db"):
        (root / "cat" / stray).write_bytes(b"not an image")
    (root / ".git").mkdir()
    (root / "labels.csv").write_bytes(b"")
    (root / "cat" / "sub.png").mkdir()
    (root / "cat" / "leak.png").symlink_to(outside / "fox" / "0.png")
    (root / "cat" / "loop.png").symlink_to(root / "cat" / "loop.png")
    (root / "leak").symlink_to(outside / "fox")
    (root / "cat" / "inside.png").symlink_to(root / "dog" / "0.png")
    found = load_image_folder(root)
    assert found.classes == ("cat", "dog") and len(found.X_train) + len(found.X_test) == 9
    (tmp_path / "link").symlink_to(root)  # the folder itself may be a link
    assert len(load_image_folder(tmp_path / "link").X_train) == len(found.X_train)


def test_folders_that_are_no_data_set(tmp_path, rng):
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds 0 class folder"):
        load_image_folder(tmp_path)
    make_folder(tmp_path, rng, ("cat",))
    with pytest.raises(DataError, match=r"holds 1 class folder.s.: classification needs two or more"):
        load_image_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog holds no .bmp, .gif, .jpeg, .jpg, .png, .webp"):
        load_image_folder(tmp_path)
    save(tmp_path / "dog" / "0.png", colours(rng))
    with pytest.raises(DataError, match=r"test_size=0.25 must leave at least one .* there are \[4, 1\] images a class"):
        load_image_folder(tmp_path)


def test_unlistable_folder(tmp_path, rng, monkeypatch):
    make_folder(tmp_path, rng)

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", denied)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\): check its permissions"):
        load_image_folder(tmp_path)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow warns of the first and refuses the second
def test_decompression_bombs(side, tmp_path, rng):
    make_folder(tmp_path, rng)
    (tmp_path / "cat" / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"bomb.png cannot be read as an image .*decompression bomb"):
        load_image_folder(tmp_path, size=8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_small_files_that_claim_much(tmp_path):
    """Refused by their headers; what a small file may hold costs less than 300 MB, too."""
    for name, size, kind in (("tall", (1, 80_000_000), 0), ("wide", (80_000_000, 1), 2), ("alpha", (8900, 8900), 6)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, kind, 0, 0, 0))
        content = header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for name in ("a.gif", "a.bmp", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    edits = {
        "a.gif": (6, "<HH", (65535, 1300)),
        "a.bmp": (18, "<ii", (9000, 9000)),
        "a.jpg": (163, ">HH", (1300, 65000)),
    }
    for name, (at, form, sizes) in edits.items():
        content = bytearray((tmp_path / name).read_bytes())
        assert struct.unpack_from(form, content, at) == (8, 8)
        struct.pack_into(form, content, at, *sizes)
        (tmp_path / name).write_bytes(content)
    claims = sorted(path.name for path in tmp_path.iterdir())
    for mode in ("RGBA", "CMYK", "P"):
        save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", Image.new(mode, (3840, 2160)))
    code = f"""
import os, resource
from tinybitvit import data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sorted(os.listdir()):
    try:
        data.read_image(name, (8, 8, 3))
        assert name not in {claims}, name
    except data.DataError as error:
        assert name in {claims} and ("too many for a file" in str(error) or "bomb" in str(error)), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300, f"{done.stdout} MB"


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (("pipe.png", "is a pipe or a device"), ("none.png", "there is no file .*none.png")):
        with pytest.raises(DataError, match=message):
            data.read_image(tmp_path / name, (8, 8, 3))
    with pytest.raises(DataError, match="is a folder"):
        data.read_image(tmp_path, (8, 8, 3))


def test_names_in_another_encoding(tmp_path, rng):
    name = os.fsdecode(b"caf\xe9")
    try:
        make_folder(tmp_path, rng, (name, "dog"))
    except OSError:
        pytest.skip("no such names on this file system")
    found = load_image_folder(tmp_path)
    assert found.classes == (name, "dog") or found.classes == ("dog", name)
    assert data.read_image(tmp_path / name / "0.png", (6, 5, 3)).shape == (6, 5, 3)


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(data.read_image(tmp_path / name, (4, 4, 3)), np.asarray(frames[0]))


def test_damaged_images(tmp_path, rng):
    make_folder(tmp_path, rng)
    good = (tmp_path / "cat" / "0.png").read_bytes()
    bad = tmp_path / "cat" / "bad.png"
    for content in (b"", b"<html>", good[:-40], good[:20], png_header(6, 5)):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad.png cannot be read as an image .*: repair or remove it"):
            load_image_folder(tmp_path)
    Image.fromarray(np.zeros((6, 5), np.float32)).save(bad, format="TIFF")  # readable, but not what it is called
    with pytest.raises(DataError, match=r"bad.png cannot be read as an image"):
        load_image_folder(tmp_path)


def test_a_cut_image_is_refused_whatever_other_packages_told_pillow(tmp_path, rng, monkeypatch):
    """timm sets this switch for the whole process, and Pillow then fills in black what is missing."""
    save(tmp_path / "whole.png", colours(rng))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="cannot be read as an image"):
        data.read_image(tmp_path / "cut.png", (6, 5, 3))
    assert ImageFile.LOAD_TRUNCATED_IMAGES, "the switch is left as it was"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_mutated_images(suffix, tmp_path, rng, capfd):
    make_folder(tmp_path, rng, per_class=2)
    save(tmp_path / "cat" / f"x.{suffix}", colours(rng))
    content = (tmp_path / "cat" / f"x.{suffix}").read_bytes()
    refused = 0
    for _ in range(40):
        mutant = bytearray(content)
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            mutant[at] = rng.integers(256)
        (tmp_path / "cat" / f"x.{suffix}").write_bytes(
            mutant[: rng.integers(len(content) + 1)] if refused % 2 else mutant
        )
        try:
            assert load_image_folder(tmp_path, size=4, test_size=2).X_train.dtype == np.uint8
        except DataError as error:
            assert f"x.{suffix} cannot be read" in str(error)
            refused += 1
    assert refused > 0
    assert capfd.readouterr().err == "", os.fspath(tmp_path)
