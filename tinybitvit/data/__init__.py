"""Data sets as arrays, augmentation, and batches. Host NumPy only: nothing here knows of Tensors or devices."""

import os
from pathlib import Path

from .datasets import Dataset, load_cifar10, load_cifar100, load_digits, load_fashion_mnist
from .download import DataError
from .folder import load_image_folder, read_image
from .loader import Loader
from .transforms import Normalize, cutout, make_augment, random_crop, random_flip, random_shift

__all__ = [
    "DataError",
    "Dataset",
    "Loader",
    "Normalize",
    "cutout",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_image_folder",
    "read_image",
    "make_augment",
    "random_crop",
    "random_flip",
    "random_shift",
]

DOWNLOADED = {"fashion-mnist": load_fashion_mnist, "cifar10": load_cifar10, "cifar100": load_cifar100}


def load(name_or_folder: str | os.PathLike, root: str | os.PathLike | None = None, **options) -> Dataset:
    """A data set by name (digits, fashion-mnist, cifar10, cifar100), or a folder of images.

    ``root`` is where the downloaded data sets lie; ``options`` go to the ``load_*`` function behind the name.
    """
    name = os.fspath(name_or_folder)
    if name == "digits":
        return load_digits(**options)
    if name in DOWNLOADED:
        return DOWNLOADED[name](root, **options)
    if Path(name).expanduser().is_dir():
        return load_image_folder(name, **options)
    raise DataError(f"{name!r} is neither a data set (digits, {', '.join(DOWNLOADED)}) nor a folder of images")
