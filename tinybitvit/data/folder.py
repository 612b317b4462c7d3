"""Any folder of pictures as a data set: one sub-folder a class."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .datasets import Dataset, stratified_split
from .download import DataError, check_file
from .images import Ground, border_mean

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # whatever a file is called: Pillow's rarer decoders are less guarded

MAX_FILE_BYTES = 1 << 29
# An image of more pixels than this needs a byte of file for so many of them: a file of some kB that claims more is made
# to fill the memory, and no photo.
FREE_PIXELS, PIXELS_A_BYTE = 1 << 23, 256

LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601), as Pillow's mode "L" weighs them


def load_image_folder(
    path: str | os.PathLike, size: int | tuple[int, int] | None = None, test_size: float = 0.25, seed: int = 0
) -> Dataset:
    """Read ``path/CLASS/*.png`` (or jpg, jpeg, bmp, gif, webp) and hold out ``test_size`` of every class.

    Where ``path/train/CLASS`` and ``path/test/CLASS`` exist, or ``val`` in place of ``test``, that split is kept. With
    all three ``val`` counts as training images. ``size`` is the side or (height, width) to which all images are
    stretched; it may be left out where all have one size already. Images become RGB, or grey (C = 1) if all are;
    transparent pixels are shown on white. Hidden files and links that lead outside are skipped. Raises DataError that
    names the file for anything that cannot be read.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: pass one that holds a sub-folder of images for each class")
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and not (
        isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise ValueError(f"size must be a positive side or (height, width), got {size!r}")
    top = Path(os.path.realpath(root))  # also turns "." into a name
    splits = [root / name for name in ("train", "val", "test") if _subfolders(root / name, top)]
    if len(splits) > 1 and splits[0].name == "train":
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
        classes[sub.name] = [f for f in _visible(sub, top) if f.suffix.lower() in SUFFIXES and f.is_file()]
        if not classes[sub.name]:
            images = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{sub} holds no {images} (links that lead outside do not count): remove the folder")
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
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    if shape is not None:
        image = image.resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)
