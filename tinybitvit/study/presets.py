"""What a study is made on: the data sets, cut down and stretched as asked for, and the options that suit them."""

import math
from collections.abc import Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

import tinybitvit as tb

from ..data import DOWNLOADED, DataError, Dataset, load
from ..train.meter import say

# What differs from the defaults of tb.ViT, which are for the digits and serve any folder of small pictures.
LARGE = {"depth": 6, "patch_size": 4, "batch_size": 128, "epochs": 10, "lr": 1e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "fashion-mnist": {**LARGE, "dim": 128, "heads": 4},
    "cifar10": {**LARGE, "dim": 192, "heads": 3, "mlp_ratio": 4},
    "cifar100": {**LARGE, "dim": 192, "heads": 3, "mlp_ratio": 4},
}
# At least, unless the epochs are given. With fewer, small data sets show how slowly a width learns: of 135 pictures of
# shapes, 32 bits and 1 bit both get 62 % right after 90 updates, 100 and 98 % after 300, and both 100 % after 500.
UPDATES = 500
NONE_IS_A_CHOICE = ("augment", "activation_bits")  # other parameters that are None were not given
SHAPE = ("dim", "depth", "heads", "mlp_ratio", "patch_size")  # what a model to start from brings along


def preset(dataset: str | PathLike, init_from: Any = None) -> dict[str, Any]:
    """Options of tb.ViT for a data set; without those that the model to start from decides."""
    options = PRESETS.get(str(dataset), {})
    return {name: value for name, value in options.items() if init_from is None or name not in SHAPE}


def chosen(dataset: str | PathLike, images: int, given: dict[str, Any], start: Any = None) -> dict[str, Any]:
    """Options of tb.ViT: those given before those of the data set, for so many training images.

    None stands for what was not given, but in NONE_IS_A_CHOICE. Unless epochs are given, they are the usual ones or as
    many as make UPDATES updates. start: see `preset`.
    """
    given = {name: value for name, value in given.items() if value is not None or name in NONE_IS_A_CHOICE}
    options = {**preset(dataset, start), **given}
    usual = {name: options.get(name, default_of(name)) for name in ("epochs", "batch_size")}
    needed = math.ceil(UPDATES / math.ceil(images / usual["batch_size"]))
    if given.get("epochs") is None and needed > usual["epochs"]:
        say(f"{needed} epochs, so that there are {UPDATES} updates; give epochs to choose others")
        options["epochs"] = needed
    return options


def default_of(name: str) -> Any:
    """The default of a parameter of tb.ViT."""
    return tb.ViT().get_params()[name]


def load_data(
    dataset: str | PathLike,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> Dataset:
    """A data set by name or folder, cut down to so many training and test images (None: all), classes in proportion.

    The seed chooses these images, and the split where the data set has none of its own (digits, a folder without train/
    and test/). image_size: the side to which all images are stretched.
    """
    check_seed(seed)
    options: dict[str, Any] = {} if dataset in DOWNLOADED else {"seed": seed}
    if image_size is not None and dataset not in PRESETS:
        options["size"] = image_size  # the files of a folder can differ in size
    data = load(dataset, **options)
    rng = np.random.default_rng(seed)
    train = subset(data.y_train, train_size, rng, f"training images of {data.name}")
    test = subset(data.y_test, test_size, rng, f"test images of {data.name}")
    X_train, X_test = data.X_train[train], data.X_test[test]
    if image_size is not None:
        X_train, X_test = stretch(X_train, image_size), stretch(X_test, image_size)
    return data._replace(X_train=X_train, y_train=data.y_train[train], X_test=X_test, y_test=data.y_test[test])


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed must lie in 0..{2**32 - 1}, not {seed}")


def check_split(model: Any, name: str, dataset: str | PathLike, data: Dataset, seeds: Sequence[int]) -> None:
    """ValueError where a model, of this name, was trained on images that the seeds would put among the test images.

    Where the seed splits a data set, it must be the model's own: `random_state`, as `tinybitvit train` and a study have
    it. One line is printed where the model does not tell. A model of other classes has seen other images.
    """
    known = getattr(model, "classes_", None)
    if not split_by_seed(dataset) or known is None or sorted(map(str, known)) != sorted(data.classes):
        return
    if model.random_state is None:
        say(f"{name} does not say with which seed it was trained: test images of {data.name} may be some that it knows")
    elif {*seeds} != {model.random_state}:
        raise ValueError(
            f"{name} was trained with seed {model.random_state}, and another one would put images of its training among"
            f" the test images of {data.name}: give that seed, and one run of it"
        )


def split_by_seed(dataset: str | PathLike) -> bool:
    """Whether a data set has no test images of its own, so that the seed chooses them."""
    if dataset in DOWNLOADED:
        return False
    own = [name for name in ("train", "val", "test") if (Path(dataset).expanduser() / name).is_dir()]
    return "train" not in own or len(own) < 2


# The models of a study follow one another on the same images, which take seconds to read and stretch.
load_data_once = lru_cache(maxsize=1)(load_data)


def subset(y: np.ndarray, size: int | None, rng: np.random.Generator, what: str = "images") -> np.ndarray:
    """Positions of `size` random elements of the labels y, rising; classes in proportion, each at least once."""
    if size is None:
        return np.arange(len(y))
    classes = np.unique(y)
    if not len(classes) <= size <= len(y):
        raise DataError(
            f"{size} of the {len(y)} {what} were asked for: take {len(classes)} (one of each class) to {len(y)}"
        )
    order, place = rng.permutation(len(y)), np.empty(len(y))
    for c in classes:
        members = order[y[order] == c]
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
        place[members[0]] = -1.0
    return np.sort(np.argsort(place, kind="stable")[:size])


def stretch(X: np.ndarray, side: int) -> np.ndarray:
    """Images (N, H, W, C) uint8, C = 1 or 3, as (N, side, side, C) uint8, by Pillow's bicubic filter."""
    from PIL import Image

    if X.shape[1:3] == (side, side):
        return X
    stretched = np.empty((len(X), side, side, X.shape[3]), np.uint8)
    for i, image in enumerate(X):
        picture = Image.fromarray(image[..., 0] if X.shape[3] == 1 else image)
        stretched[i] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).reshape(side, side, -1)
    return stretched
