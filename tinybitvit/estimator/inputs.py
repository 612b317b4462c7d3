"""What tb.ViT accepts: options, images and labels, checked and brought into one form, for training and for answers."""

import inspect
import math
import os
import reprlib
from collections.abc import Callable
from numbers import Number
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from ..backend import is_number, plain
from ..data import Loader, Normalize, make_augment, read_image
from ..data.images import check_finite, check_images, encode_labels, flat_shape, scaled_columns
from ..models import VisionTransformer
from ..models.vit import POOLS
from ..quant import Quantizer
from ..quant.quantizer import ACTIVATION_BITS, WEIGHT_BITS
from ..train import Recipe
from ..train.loop import History

# --- options ----------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What an option may be: `says` ends a sentence that begins with its name, holds(value) decides."""

    says: str
    holds: Callable[[Any], bool]


def is_whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def is_weight(value: Any) -> bool:
    return is_number(plain(value)) and value >= 0


def is_pair(value: Any, holds: Callable[[Any], bool] = is_whole) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(holds, value))


def whole(least: int) -> Rule:
    return Rule(f"must be a whole number from {least}", lambda v: is_whole(v, least))


def number(says: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(says, lambda v: is_number(v) and holds(v))


def one_of(*values: Any) -> Rule:
    *most, last = map(repr, values)
    says = f"must be {', '.join(most)} or {last}" if len(most) < 4 else f"must be one of {', '.join([*most, last])}"
    return Rule(says, lambda v: type(v) in (str, int, float, type(None)) and v in values)


FRACTION = number("is a fraction and must lie in 0..1", lambda v: 0 <= v <= 1)
FLAG = Rule("must be True or False", lambda v: isinstance(v, bool))
RULES = {
    "bits": one_of(*WEIGHT_BITS),
    "quantizer": Rule(
        "must be None, a tb.quant.Quantizer or the name of one", lambda v: v is None or isinstance(v, (str, Quantizer))
    ),
    "activation_bits": one_of(*ACTIVATION_BITS),
    "patch_size": Rule(
        "must be 'auto', a whole number of pixels or a pair (height, width) of them",
        lambda v: v == "auto" or is_whole(v) or is_pair(v),
    ),
    "dim": whole(1),
    "depth": whole(0),
    "heads": whole(1),
    "mlp_ratio": number("must be a number above 0", lambda v: v > 0),
    "pool": one_of(*POOLS),
    "epochs": whole(0),
    "batch_size": whole(1),
    "lr": number("must be a number above 0", lambda v: v > 0),
    "weight_decay": number("must be a number from 0", lambda v: v >= 0),
    "warmup": FRACTION,
    "label_smoothing": FRACTION,
    "class_weight": Rule(
        "must be None, 'balanced' or a dict from labels to weights from 0",
        lambda v: v is None or v == "balanced" or (isinstance(v, dict) and all(is_weight(w) for w in v.values())),
    ),
    "augment": Rule(
        "must be None, a function or text such as 'flip,crop:4'",
        lambda v: v is None or isinstance(v, str) or callable(v),
    ),
    "distill_from": Rule("must be None or a fitted tb.ViT", lambda v: v is None or hasattr(v, "model_")),
    "init_from": Rule(
        "must be None, a fitted tb.ViT, a VisionTransformer, or a file or folder that holds one",
        lambda v: v is None or isinstance(v, (str, os.PathLike, VisionTransformer)) or hasattr(v, "model_"),
    ),
    "recipe": Rule("must be None, a name or a tb.train.Recipe", lambda v: v is None or isinstance(v, (str, Recipe))),
    "early_stopping": FLAG,
    "patience": whole(1),
    "validation_fraction": number("is a fraction and must lie between 0 and 1", lambda v: 0 < v < 1),
    "on_nan": one_of("stop", "skip"),
    "device": one_of("cpu", "cuda", "auto"),
    "workers": Rule("must be 'auto' or a whole number from 1", lambda v: v == "auto" or is_whole(v)),
    "random_state": Rule(
        "must be None, a whole number below 2 ** 32 or a numpy.random.RandomState",
        lambda v: v is None or isinstance(v, np.random.RandomState) or (is_whole(v, 0) and v < 2**32),
    ),
    "verbose": Rule("must be 0, 1 or a text that begins each line", lambda v: isinstance(v, (bool, int, str))),
}
FIT_RULES = {
    "eval_set": Rule("must be None or a pair (X, y)", lambda v: v is None or is_pair(v, lambda part: part is not None)),
    "checkpoint": Rule("must be None or a folder", lambda v: v is None or isinstance(v, (str, os.PathLike))),
    "every": Rule("must be a number of seconds from 0, or 'epoch'", lambda v: v == "epoch" or is_weight(v)),
    "resume": FLAG,
}
DATA = ("eval_set",)  # arguments that are no option: their arrays are as large as those of a training
MODELS = ("distill_from", "init_from")
NETWORK = ("patch_size", "dim", "depth", "heads", "mlp_ratio", "bits", "activation_bits", "pool")
GIVEN = (*NETWORK, "quantizer")  # what a network is built from, which no later training can change


def check_options(values: dict[str, Any], rules: dict[str, Rule] = RULES) -> dict[str, Any]:
    """The options as plain Python values. ValueError with the name of the first that breaks its rule."""
    found = {name: value if name in DATA else plain(value) for name, value in values.items()}
    for name, value in found.items():
        if name in rules and not rules[name].holds(value):
            raise ValueError(f"{name} {rules[name].says}, not {short(value)}")
    return found


def short(value: Any) -> str:
    """A value as one short line."""
    return " ".join(reprlib.repr(value).split())


def default_of(estimator: Any, name: str) -> Any:
    """The value that a parameter of an estimator has unless one is given."""
    return inspect.signature(type(estimator)).parameters[name].default


# --- images and labels ------------------------------------------------------------------------------------------------


def as_array(values: Any, name: str) -> Any:
    """Anything array-like as an array; tables stay as they are. ValueError for masks and ragged lists."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise ValueError(f"{name} is a masked array, and a mask would be ignored: fill it, or leave those rows out")
        return values.data
    if hasattr(values, "columns") or hasattr(values, "toarray"):  # a table or a sparse matrix, for scikit-learn
        return values
    try:
        return np.asarray(values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be made one array ({error}): give images of one shape as an array") from error


def as_labels(values: Any, name: str) -> np.ndarray:
    """Labels as an array. ValueError for a list of text and other labels, of which NumPy would make text."""
    labels = np.asarray(as_array(values, name))
    if labels.dtype.kind in "US" and isinstance(values, (list, tuple)):
        other = [label for label in np.array(values, object).ravel() if not isinstance(label, (str, bytes))]
        if other:
            raise ValueError(f"{name} mixes text with other labels such as {other[0]!r}: make all of them text")
    if labels.dtype.kind == "O" and labels.ndim == 1 and all(isinstance(label, Number) for label in labels):
        return np.array(labels.tolist())
    return labels


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of images (n, H, W, C), grey images (n, H, W) or flat rows (n, F)."""

    classes_: np.ndarray
    image_shape_: tuple[int, int, int]
    normalize_: Normalize
    model_: VisionTransformer
    history_: History
    interrupted_: bool
    _rng: np.random.Generator
    _given: dict[str, Any]  # the options that the network was built from, as they were given
    _scaled = False  # whether the columns of X were each scaled for itself
    distill_from: Any
    workers: Any

    def check_images(self, X: Any) -> np.ndarray:
        """Images as in the fit: (n, H, W, C) of its shape, in its units, and those of X where they are the same."""
        check_is_fitted(self)
        X = self._shaped(X)
        return self.normalize_.units.conversion(X)(X)

    def prepare(self, X: Any) -> np.ndarray:
        """Images as the network takes them: (n, H, W, C) float32, in the units of the fit and normalised as there."""
        check_is_fitted(self)
        X = self._shaped(X)
        return self.normalize_.preparation(X)(X)

    def read_images(self, paths: Any) -> np.ndarray:
        """Image files, or one, as images to ask about: (n, H, W, C), units and polarity of drawings as in the fit."""
        check_is_fitted(self)
        units, paths = self.normalize_.units, [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if not paths:
            raise ValueError("read_images got no path: give the image files to read")
        return units.of_pictures(np.stack([read_image(path, self.image_shape_, units.ground) for path in paths]))

    def _shaped(self, X: Any, reset: bool = False) -> np.ndarray:
        """X as (n, H, W, C), its shape remembered (reset) or compared with the remembered one."""
        X = as_array(X, "X")
        flat = X.ndim not in (3, 4)
        if not flat:
            X = check_images(X, None if reset else self.image_shape_)
            if reset:
                self.image_shape_ = X.shape[1:]
                self.n_features_in_ = math.prod(self.image_shape_)
                self.__dict__.pop("feature_names_in_", None)
        else:
            X = validate_data(self, X, reset=reset, ensure_all_finite=False)
            if reset:
                self.image_shape_ = flat_shape(X.shape[1])
            X = X.reshape(len(X), *self.image_shape_)
        if reset:
            check_finite(X)
            self._scaled = flat and scaled_columns(X.reshape(len(X), -1))
        return X

    def _check_labels(self, y: Any, n: int) -> np.ndarray:
        """One label an image (n,)."""
        y = as_labels(y, "y")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if y.ndim != 1 or n != len(y):
            raise ValueError(f"X holds {n} images but y has the shape {y.shape}; they need one label per image")
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y contains NaN or inf; every image needs a label")
        check_classification_targets(y)
        return y

    def _check_training_data(
        self, X: Any, y: Any, sample_weight: Any, classes: Any = None, first: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Images, class numbers and weights (None: all alike). first: shape and classes are remembered."""
        if y is None:
            raise ValueError("fit requires y to be passed, but the target y is None: pass one label per image")
        X = self._shaped(X, reset=first)
        y = self._check_labels(y, len(X))
        known = None if classes is None else as_labels(classes, "classes")
        if known is not None:
            if known.ndim != 1:
                raise ValueError(f"classes must be a list of all labels, such as [0, 1, 2], not {short(classes)}")
            known = unique_labels(known)
        if first:
            self.classes_ = unique_labels(y) if known is None else known
            if len(self.classes_) < 2:
                raise ValueError(
                    "y holds only one class; a classifier needs images of at least two (the first partial_fit may"
                    " have fewer, with a list of all labels as classes)"
                )
        elif known is not None and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes are {self.classes_.tolist()} since the first call, not {known.tolist()}")
        codes = encode_labels(y, self.classes_)
        return X, codes, self._weights(X, y, codes, sample_weight)

    def _weights(self, X: np.ndarray, y: np.ndarray, codes: np.ndarray, sample_weight: Any) -> np.ndarray | None:
        """sample_weight times class_weight, float32 (n,), or None."""
        weight = None
        if sample_weight is not None:
            if not isinstance(sample_weight, Number):
                sample_weight = as_array(sample_weight, "sample_weight")
            weight = _check_sample_weight(sample_weight, X, dtype=np.float32)
            if (weight < 0).any():
                raise ValueError("sample_weight must not be negative")
        if self.class_weight is None:
            return weight
        of_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y).astype(np.float32)[codes]
        return of_class if weight is None else weight * of_class

    def _options(self) -> SimpleNamespace:
        """All parameters as plain values. ValueError where one is none that a training can have."""
        for name in MODELS:
            if getattr(self, name) is self:
                raise ValueError(f"{name} is the model itself, which its training changes: give copy.deepcopy(model)")
        return SimpleNamespace(**check_options(self.get_params(deep=False)))

    def _check_teacher(self) -> Any:
        if self.distill_from is None:
            raise ValueError("this recipe learns from a teacher: give a fitted 32-bit ViT as distill_from")
        if list(self.distill_from.classes_) != list(self.classes_):
            raise ValueError("distill_from was fitted on other classes than y has; fit the teacher on the same labels")
        if self.distill_from.image_shape_ != self.image_shape_:
            raise ValueError(
                f"distill_from was fitted on images of shape {self.distill_from.image_shape_}, not {self.image_shape_}"
            )
        return self.distill_from

    def _loader(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray | None, options: Any) -> Loader:
        return Loader(
            X,
            codes,
            min(options.batch_size, len(X)),
            rng=self._rng,
            augment=make_augment(options.augment, self.image_shape_),
            transform=self.normalize_,
            sample_weight=weight,
        )

    def _check_eval_set(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X = self.prepare(X)
        return X, encode_labels(self._check_labels(y, len(X)), self.classes_)

    def _hold_out(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray | None, seed: int) -> tuple:
        rows, share = np.arange(len(X)), plain(self.validation_fraction)
        try:
            kept, held = train_test_split(rows, test_size=share, random_state=seed, stratify=codes)
        except ValueError as error:
            raise ValueError(
                f"early_stopping cannot keep validation_fraction={share} of {len(X)} images aside: {error}"
            ) from error
        held_out = self.normalize_(X[held]), codes[held]
        return X[kept], codes[kept], None if weight is None else weight[kept], held_out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def unique_labels(y: np.ndarray) -> np.ndarray:
    """The different labels, sorted."""
    try:
        return np.unique(y)
    except TypeError as error:
        raise ValueError(f"y mixes labels that have no order ({error}): make all of them text or numbers") from error
