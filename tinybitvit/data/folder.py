"""Any folder of pictures as a data set: one sub-folder a class."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import check_number, is_number
from .datasets import Dataset, stratified_split
from .download import DataError, check_file
from .images import Ground, border_mean

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
OTHER_PICTURES = {".tif", ".tiff", ".heic", ".avif", ".ppm", ".pgm", ".pbm", ".jp2", ".ico", ".tga", ".psd", ".svg"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # whatever a file is called: Pillow's rarer decoders are less guarded

MAX_FILE_BYTES = 1 << 29
# An image of more pixels than this needs a byte of file for so many of them: a file of some kB that claims more is made
# to fill the memory, and no photo.
FREE_PIXELS, PIXELS_A_BYTE = 1 << 23, 256

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # folder -> its part

LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601), as Pillow's mode "L" weighs them


def load_image_folder(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    test_size: float = 0.25,
    seed: int = 0,
) -> Dataset:
    """Read ``path/CLASS/*.png`` (or jpg, jpeg, bmp, gif, webp) and hold out ``test_size`` of every class.

    Where ``path/train/CLASS`` and ``path/test/CLASS`` exist, or ``val`` (also ``valid`` or ``validation``) in place of
    ``test``, that split is kept. With all three ``val`` counts as training images. ``size`` is the side or (height,
    width) to which all images are stretched; it may be left out where all have one size already. Images become RGB, or
    grey (C = 1) if all are; transparent pixels are shown on white. Hidden files and links that lead outside are
    skipped. Raises DataError that names the file for anything that cannot be read, and for pictures that would be left
    out.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: pass one that holds a sub-folder of images for each class")
    shape = _size_pair(size)
    check_number("seed", seed, 0, 2**32 - 1, whole=True)
    check_number("test_size", test_size, 0)
    top = Path(os.path.realpath(root))  # also turns "." into a name
    splits = _find_splits(root, top)
    if splits:
        parts = [_class_files(split, top) for split in splits]
        for split, part in zip(splits[1:], parts[1:], strict=True):
            if unknown := set(part) - set(parts[0]):
                raise DataError(f"{split} holds classes that {splits[0]} lacks: {', '.join(sorted(unknown))}")
    else:
        parts = [_class_files(root, top)]
    classes = tuple(parts[0])
    if len(classes) < 2:
        raise DataError(f"{root} holds {len(classes)} class folder(s): classification needs two or more")
    X = _stack([file for part in parts for files in part.values() for file in files], shape)
    y = np.array([classes.index(name) for part in parts for name, files in part.items() for _ in files], np.int64)
    if len(parts) == 1:
        return stratified_split(top.name, X, y, classes, test_size, seed)
    held = sum(map(len, parts[-1].values()))
    return Dataset(X[:-held], y[:-held], X[-held:], y[-held:], classes, top.name)


def _size_pair(size: Any) -> tuple[int, int] | None:
    """The size that images are given, as (height, width)."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if size is None:
        return None
    if len(pair) != 2 or not all(is_number(n, 1, whole=True) for n in pair):
        raise ValueError(f"size must be a positive side or (height, width), got {size!r}")
    return int(pair[0]), int(pair[1])


def _find_splits(root: Path, top: Path) -> list[Path]:
    """The folders train, val and test, as many as there are, where the images are split already; else none.

    DataError where pictures in other folders would be left out.
    """
    folders = _subfolders(root, top)
    parts: dict[str, Path] = {}
    for folder in folders:
        name = SPLITS.get(folder.name.lower())
        if name and _subfolders(folder, top):
            if name in parts:
                raise DataError(f"{parts[name]} and {folder} are the same part of a split: move one of them elsewhere")
            parts[name] = folder
    if "train" not in parts or len(parts) < 2:
        return []
    if others := [folder.name for folder in folders if folder not in parts.values() and _holds_pictures(folder)]:
        raise DataError(
            f"{root} is split into {', '.join(parts)}, and the pictures in {', '.join(others)} would be left out: name"
            " the folders train, val and test, or pass the folder that holds the classes"
        )
    return [parts[name] for name in ("train", "val", "test") if name in parts]


def _holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder or below it."""
    return any(
        path.suffix.lower() in SUFFIXES | OTHER_PICTURES and path.is_file()
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _visible(folder: Path, top: Path) -> list[Path]:
    """Entries in the order of their names, without hidden ones and links that leave ``top``."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): check its permissions") from error
    return [e for e in entries if not e.is_symlink() or Path(os.path.realpath(e)).is_relative_to(top)]


def _subfolders(folder: Path, top: Path) -> list[Path]:
    return [entry for entry in _visible(folder, top) if entry.is_dir()] if folder.is_dir() else []


def _class_files(folder: Path, top: Path) -> dict[str, list[Path]]:
    """The image files of each class, by class name."""
    classes = {}
    for sub in _subfolders(folder, top):
        entries, images = _visible(sub, top), ", ".join(sorted(SUFFIXES))
        if nested := [entry.name for entry in entries if entry.is_dir() and _holds_pictures(entry)]:
            raise DataError(
                f"{sub} holds pictures in folders of its own ({', '.join(nested)}), which would be left out: name the"
                " folders of a split train and test (or val), or pass the folder that holds the classes"
            )
        if other := [entry.name for entry in entries if entry.suffix.lower() in OTHER_PICTURES]:
            raise DataError(f"{sub / other[0]} is a picture, but none of {images}: save it as one of them")
        classes[sub.name] = [f for f in entries if f.suffix.lower() in SUFFIXES and f.is_file()]
        if not classes[sub.name]:
            raise DataError(
                f"{sub} holds no {images} (links that lead outside do not count): put pictures of this class into it,"
                " or pass the folder that holds the classes"
            )
    return classes


def _stack(files: list[Path], shape: tuple[int, int] | None) -> np.ndarray:
    """All images as one array (N, H, W, 1 or 3) uint8."""
    images = []
    for file in files:
        images.append(_decode(file, shape))
        if images[-1].shape[:2] != images[0].shape[:2]:
            (h0, w0), (h, w) = images[0].shape[:2], images[-1].shape[:2]
            raise DataError(f"{files[0]} is {h0} x {w0} but {file} is {h} x {w}: pass size= to bring all to one size")
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def read_image(path: str | os.PathLike, image_shape: tuple[int, int, int], ground: Ground | None = None) -> np.ndarray:
    """An image file as a model takes it: uint8 (H, W, C), stretched to H x W, made grey (C = 1) or RGB (C = 3).

    Upright by its EXIF tag; of an animation the first picture; transparent pixels are white. ground: 'dark' or 'light'
    where all grey images of a training have such borders: a picture that has the other is a drawing of the other
    polarity, and is inverted. Raises DataError for a file that is missing or no image.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"a picture becomes 1 or 3 channels, and the model takes {channels}: give arrays to it")
    image = _decode(Path(path), (height, width))
    if channels == 1 and image.shape[2] == 3:
        image = np.rint(image @ LUMA).astype(np.uint8)[..., None]
    if channels == 1 and ground is not None and (border_mean(image) > 127.5) != (ground == "light"):
        image = 255 - image
    return np.ascontiguousarray(np.broadcast_to(image, (height, width, channels)))


def _decode(file: Path, shape: tuple[int, int] | None) -> np.ndarray:
    """One image as (H, W, 1) or (H, W, 3) uint8, upright by its EXIF tag."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    check_file(file)
    try:
        with warnings.catch_warnings(), _strictly():
            warnings.simplefilter("ignore")  # remarks on metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if file.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
            # From memory: a damaged PNG can make Pillow ask an open file for gigabytes, which Python then reserves.
            with Image.open(io.BytesIO(file.read_bytes()), formats=FORMATS) as image:
                if image.width * image.height > max(FREE_PIXELS, PIXELS_A_BYTE * file.stat().st_size):
                    raise ValueError(
                        f"it claims {image.width} x {image.height} pixels, too many for a file of its size"
                    )
                ImageOps.exif_transpose(image, in_place=True)
                return _pixels(image, shape)
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        if isinstance(error, UnidentifiedImageError):
            error = ValueError(f"{file.name} is not an image in PNG, JPEG, BMP, GIF or WebP")
        raise DataError(f"{file} cannot be read as an image ({error}): repair or remove it") from error


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Within the block Pillow refuses files that are cut short; packages such as timm tell it to fill in black."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _pixels(image, shape: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image

    mode = "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB"
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip at 255 instead of scaling
        grey = np.asarray(image)
        if (clear := image.info.get("transparency")) is not None:
            grey = np.where(grey == clear, 65535, grey)
        image = Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    if shape is not None:
        image = image.resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)
