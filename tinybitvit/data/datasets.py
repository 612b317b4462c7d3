"""The data sets of the experiments as arrays: images (N, H, W, C) uint8, labels (N,) int64, class names."""

import gzip
import math
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from .download import DataError, Remote, check_file, data_root, fetch, sha256

Root = str | os.PathLike | None


class Dataset(NamedTuple):
    """Training and test images with their labels; unpacks as ``X_train, y_train, X_test, y_test, *_ = dataset``."""

    X_train: np.ndarray  # (N, H, W, C) uint8, channels last; C = 1 for grey
    y_train: np.ndarray  # (N,) int64, indices into classes
    X_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    name: str

    @property
    def groups(self) -> tuple[str, ...]:
        """What each class is a kind of: CIFAR-100's superclasses; () for other data sets."""
        return tuple(KIND_OF[name] for name in self.classes) if self.classes == CIFAR100.classes else ()

    def named(self) -> "Dataset":
        """The same images with class names for labels: a model fitted on them answers with names."""
        names = np.array(self.classes)
        return self._replace(y_train=names[self.y_train], y_test=names[self.y_test])

    def __repr__(self) -> str:
        counts = f"{len(self.X_train)} training and {len(self.X_test)} test images"
        height, width, channels = self.X_train.shape[1:]
        return f"Dataset({self.name}: {counts}, {height} x {width} x {channels}, {len(self.classes)} classes)"


class Cifar(NamedTuple):
    """One of the official binary archives (Krizhevsky, 2009): records of label bytes, then R, G and B planes."""

    name: str
    remote: Remote
    folder: str  # as the archive unpacks
    files: dict[str, int]  # records by base name; the training files in order, then the test file
    label_bytes: int  # the last one counts: CIFAR-100 has coarse, then fine
    classes: tuple[str, ...]

    @property
    def record(self) -> int:
        return self.label_bytes + 3 * 32 * 32


CIFAR10 = Cifar(
    name="cifar10",
    remote=Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170052171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    files={**{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, "test_batch.bin": 10_000},
    label_bytes=1,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

FINE_LABELS = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm"""

SUPERCLASSES = """aquatic mammals: beaver dolphin otter seal whale
    fish: aquarium_fish flatfish ray shark trout
    flowers: orchid poppy rose sunflower tulip
    food containers: bottle bowl can cup plate
    fruit and vegetables: apple mushroom orange pear sweet_pepper
    household electrical devices: clock keyboard lamp telephone television
    household furniture: bed chair couch table wardrobe
    insects: bee beetle butterfly caterpillar cockroach
    large carnivores: bear leopard lion tiger wolf
    large man-made outdoor things: bridge castle house road skyscraper
    large natural outdoor scenes: cloud forest mountain plain sea
    large omnivores and herbivores: camel cattle chimpanzee elephant kangaroo
    medium-sized mammals: fox porcupine possum raccoon skunk
    non-insect invertebrates: crab lobster snail spider worm
    people: baby boy girl man woman
    reptiles: crocodile dinosaur lizard snake turtle
    small mammals: hamster mouse rabbit shrew squirrel
    trees: maple_tree oak_tree palm_tree pine_tree willow_tree
    vehicles 1: bicycle bus motorcycle pickup_truck train
    vehicles 2: lawn_mower rocket streetcar tank tractor"""
_KINDS = [line.strip().split(": ") for line in SUPERCLASSES.splitlines()]
KIND_OF = {name: kind for kind, names in _KINDS for name in names.split()}

CIFAR100 = Cifar(
    name="cifar100",
    remote=Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        168513733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    files={"train.bin": 50_000, "test.bin": 10_000},
    label_bytes=2,
    classes=tuple(FINE_LABELS.split()),
)

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_COUNTS = {"train": 60_000, "t10k": 10_000}
FASHION_REMOTES = [
    Remote(f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}-ubyte.gz", size, digest)
    for name, size, digest in (
        ("train-images-idx3", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
]


def load_digits(test_size: float = 0.25, seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 grey pixels that scikit-learn brings along, 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    classes = tuple(str(name) for name in digits.target_names)
    return stratified_split("digits", images, digits.target.astype(np.int64), classes, test_size, seed)


def load_cifar10(root: Root = None, download: bool = True) -> Dataset:
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 in 10 classes.

    Looks below ``root`` (default ``$TINYBITVIT_DATA``, else ``~/.cache/tinybitvit``) for the unpacked folder
    ``cifar-10-batches-bin``, then for ``cifar-10-binary.tar.gz``, and fetches that archive otherwise (170 MB).
    Raises DataError when the files are missing, damaged or not the official ones.
    """
    return _load_cifar(CIFAR10, root, download)


def load_cifar100(root: Root = None, download: bool = True) -> Dataset:
    """CIFAR-100 with its 100 fine labels; ``cifar-100-binary`` or its .tar.gz are found as by ``load_cifar10``."""
    return _load_cifar(CIFAR100, root, download)


def load_fashion_mnist(root: Root = None, download: bool = True) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28 in 10 classes.

    Reads the four official ``*-ubyte.gz`` files in ``fashion-mnist`` below ``root`` (see ``load_cifar10``); those
    that are missing are fetched (31 MB). Raises DataError.
    """
    folder = _folder(root, "fashion-mnist")
    for remote in FASHION_REMOTES:
        if not (folder / remote.name).exists():
            _fetch(remote, folder, download, folder / remote.name)
    arrays = []
    for part, count in FASHION_COUNTS.items():
        path = folder / f"{part}-labels-idx1-ubyte.gz"
        labels = _read_idx(path, (count,)).astype(np.int64)
        _check_labels(labels, len(FASHION_CLASSES), path)
        arrays += [_read_idx(folder / f"{part}-images-idx3-ubyte.gz", (count, 28, 28))[..., None], labels]
    X_train, y_train, X_test, y_test = arrays
    return Dataset(X_train, y_train, X_test, y_test, FASHION_CLASSES, "fashion-mnist")


def stratified_split(
    name: str, X: np.ndarray, y: np.ndarray, classes: tuple[str, ...], test_size: float, seed: int
) -> Dataset:
    """Hold out ``test_size`` of every class (a share, or a number of images in all), the same for the same seed."""
    from sklearn.model_selection import train_test_split

    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0..{2**32 - 1}, not {seed}")
    try:
        train, test = train_test_split(np.arange(len(y)), test_size=test_size, stratify=y, random_state=seed)
    except ValueError as error:
        fix = f"test_size={test_size} must leave at least one image of each of the {len(classes)} classes on both sides"
        raise DataError(f"{name}: {fix}; there are {np.bincount(y).tolist()} images a class") from error
    _keep_every_class(y, train, test)
    return Dataset(X[train], y[train], X[test], y[test], classes, name)


def _keep_every_class(y: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    """Exchange images between the two, in place, where a class has none on one side: rounding can leave it none there.

    For an image of that class goes one of the class with most of them, so that the sizes stay.
    """
    for here, there in ((test, train), (train, test)):
        for missing in np.setdiff1d(y[there], y[here]):
            given = np.flatnonzero(y[here] == np.bincount(y[here]).argmax())[0]
            taken = np.flatnonzero(y[there] == missing)[0]
            here[given], there[taken] = there[taken], here[given]


def _folder(root: Root, name: str) -> Path:
    """The data set's folder below the root; a root that *is* this folder is understood, too."""
    base = data_root(root)
    return base if base.name == name else base / name


def _fetch(remote: Remote, into: Path, download: bool, missing: Path) -> None:
    if not download:
        raise DataError(f"{missing} is missing: put {remote.name} into {into}, pass root=, or allow download=True")
    fetch(remote, into)


def _check_labels(labels: np.ndarray, classes: int, path: Path) -> None:
    if labels.max() >= classes:
        raise DataError(f"{path} holds label {labels.max()} of {classes} classes: delete the file and fetch it again")


def _load_cifar(source: Cifar, root: Root, download: bool) -> Dataset:
    folder = _folder(root, source.folder)
    archive = folder.parent / source.remote.name
    if folder.is_dir():
        members = _folder_members(folder, source)
    else:
        if not archive.exists():
            _fetch(source.remote, archive.parent, download, folder)
        members = _archive_members(archive, source)
    ends = np.cumsum(list(source.files.values()))
    stop = dict(zip(source.files, ends.tolist(), strict=True))
    X = np.empty((ends[-1], 32, 32, 3), np.uint8)
    y = np.empty(ends[-1], np.int64)
    for path, content in members:
        records = np.frombuffer(content, np.uint8).reshape(-1, source.record)
        rows = slice(stop[path.name] - len(records), stop[path.name])
        X[rows] = records[:, source.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        y[rows] = records[:, source.label_bytes - 1]
        _check_labels(y[rows], len(source.classes), path)
    split = ends[-2]
    return Dataset(X[:split], y[:split], X[split:], y[split:], source.classes, source.name)


def _folder_members(folder: Path, source: Cifar) -> Iterator[tuple[Path, bytes]]:
    """(path, content) of every file of the unpacked folder, its size checked before it is read."""
    for name, records in source.files.items():
        path, expected = folder / name, records * source.record
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size == expected else b""
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): complete or delete the folder") from error
        if len(content) != expected:
            raise DataError(f"{path} has {size} bytes instead of {expected}: delete the folder and fetch it again")
        yield path, content


def _archive_members(archive: Path, source: Cifar) -> Iterator[tuple[Path, bytes]]:
    """(path, content) of every data file in the archive, streamed; nothing is extracted to disk.

    The hash is checked first because tarfile stops before gzip's own checksum: half of all damage would go unseen.
    """
    missing = set(source.files)
    again = "delete it and fetch it again"
    check_file(archive)
    try:
        with open(archive, "rb") as file:
            if os.fstat(file.fileno()).st_size != source.remote.size or sha256(file) != source.remote.sha256:
                raise DataError(f"{archive} is not the official file (its size or sha256 differs): {again}")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r|gz") as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    if name not in missing or not member.isreg():
                        continue  # documentation, folders, links: never touched
                    if member.size != source.files[name] * source.record:
                        raise DataError(f"{archive} holds {member.name} of a wrong size ({member.size} bytes): {again}")
                    yield archive / name, tar.extractfile(member).read()  # type: ignore[union-attr]
                    missing.remove(name)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be read ({error}): {again}") from error
    if missing:
        raise DataError(f"{archive} holds no {', '.join(sorted(missing))}: {again}")


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes that must have exactly ``shape``.

    The format is 0, 0, 8 (unsigned byte), rank, then the sizes as big-endian uint32 and the bytes, row-major.
    """
    header = struct.pack(f">{len(shape) + 1}I", 0x800 + len(shape), *shape)
    expected = len(header) + math.prod(shape)
    check_file(path)
    try:
        with gzip.open(path) as file:
            content = file.read(expected + 1)  # one more: reaches the checksum, and never more memory than this
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or no gzip file ({error}): delete it and fetch it again") from error
    if len(content) != expected or not content.startswith(header):
        wanted = " x ".join(map(str, shape))
        raise DataError(f"{path} is not an idx file of {wanted} bytes: delete it and fetch it again")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()
