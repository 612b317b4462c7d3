"""What counts as a batch of images with labels: shapes, units of pixels, sizes that fit patches, known classes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Ground = Literal["dark", "light"]
DIM = 31  # whole numbers up to here may be dark bytes, but also 4-bit or other units, such as the 0..16 of the digits
REACH = 8  # ranges of the fit by which a pixel may lie beyond it, where each column was scaled for itself
MARGIN = 0.25  # of the range from black to white: how far resampled pixels may lie beyond it


def flat_shape(features: int) -> tuple[int, int, int]:
    """(H, W, C) for a flat row: a square image of one or three channels where that fits, else a strip (1, F, 1)."""
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side >= 4 and side * side * channels == features:
            return side, side, channels
    return 1, features, 1


def auto_patch(image_shape: tuple[int, ...]) -> tuple[int, int]:
    """A patch (ph, pw) that cuts the image into at most 8 patches a side; narrow strips (H = 1) into single pixels."""
    height, width = image_shape[:2]
    return _auto_side(height), 1 if height == 1 and width <= 64 else _auto_side(width)


def _auto_side(side: int) -> int:
    if side < 4:
        return 1
    patch = next(p for p in range(2, side + 1) if side % p == 0 and side // p <= 8)
    return 1 if side // patch < 3 and side <= 32 else patch  # a prime side would give a single patch


def check_images(X: np.ndarray, expected: tuple[int, ...] | None) -> np.ndarray:
    """X (n, H, W) or (n, H, W, C) as (n, H, W, C); ValueError unless it holds numbers, of shape `expected`."""
    if X.dtype.kind not in "uifb":
        raise ValueError(f"X must hold numbers, not {X.dtype}")
    if not len(X):
        raise ValueError("Found array with 0 sample(s): X holds no image, at least 1 is required")
    X = X[..., None] if X.ndim == 3 else X
    shape = X.shape[1:]
    if expected is None:
        if shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4) and shape[1] > 4:
            raise ValueError(
                f"X has shape {X.shape}, which looks like (N, C, H, W);"
                " channels come last here: pass X.transpose(0, 2, 3, 1)"
            )
    elif shape != expected:
        turned = (*shape[1:], shape[0]) == expected
        hint = ": channels come last, pass X.transpose(0, 2, 3, 1)" if turned else "; resize or crop the images to it"
        raise ValueError(f"X holds images of shape {shape}, but the model was fitted on {expected}{hint}")
    return X


@dataclass(frozen=True)
class Units:
    """What the pixels of images are: their dtype, their range, and whether they are whole numbers.

    ground: 'dark' or 'light' where nearly all of them are grey images with such a border, as drawings are. sure: False
    for what is only guessed, of a model whose file does not say. scaled: whether each column of flat rows was scaled
    for itself (see `scaled_columns`): no number is black or white then, and an unseen row may lie far beyond the range.

    Images in other units are converted where that is certain: uint8, and whole numbers up to 255 in any container, are
    bytes; floats in 0..1 are bytes divided by 255. All else must look like what there was, or is refused.
    """

    dtype: str
    low: float
    high: float
    whole: bool
    ground: Ground | None = None
    sure: bool = True
    scaled: bool = False

    def __post_init__(self) -> None:
        """ValueError or TypeError for what a file says and no images are."""
        kind, ground = np.dtype(self.dtype).kind, self.ground
        if (
            not -math.inf < self.low <= self.high < math.inf
            or kind not in "biuf"
            or ground not in (None, "dark", "light")
        ):
            raise ValueError(f"no images have {self.dtype} pixels from {self.low} to {self.high}, {ground}")

    @classmethod
    def of(cls, X: np.ndarray) -> "Units":
        """Those of images (N, H, W, C). ValueError where a pixel is not finite."""
        low, high = float(X.min()), float(X.max())
        if not math.isfinite(low) or not math.isfinite(high):
            check_finite(X)
        blocks = (X[start : start + 256] for start in range(0, len(X), 256))
        whole = X.dtype.kind != "f" or (low >= 0 and high <= 255 and all((x == np.rint(x)).all() for x in blocks))
        return cls(X.dtype.name, low, high, whole)

    def __str__(self) -> str:
        return f"{self.dtype} pixels from {self.low:.4g} to {self.high:.4g}"

    @property
    def bytes(self) -> bool:
        """Whether the pixels can be bytes, whatever holds them."""
        return self.whole and self.low >= 0 and self.high <= 255 and self.dtype != "bool"

    @property
    def white(self) -> float | None:
        """The number that is white, 255 or 1, where it is certain; black is 0 then."""
        if self.scaled:
            return None
        if self.bytes and self.high > DIM:
            return 255.0
        return 1.0 if self.low >= 0 and self.high <= 1 and self._kind in "fb" else None

    @property
    def ends(self) -> tuple[float, float]:
        """The numbers that stand for black and white in a picture."""
        if self.dtype == "uint8":
            return 0.0, 255.0
        low = min(self.low, 0.0)
        return low, self.white or max(self.high, low + 1)

    @property
    def divisor(self) -> float:
        """By what `Normalize` divides the pixels first."""
        return 255.0 if self.dtype == "uint8" else 1.0

    def of_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Bytes of pictures in these units: as they are where bytes are known, else from `ends` to `ends`."""
        if self.white or self.dtype == "uint8" or not self.sure:
            return pictures
        black, white = self.ends
        values = black + pictures * ((white - black) / 255)
        return np.rint(values).astype(self.dtype) if self.whole else values.astype(np.float32)

    def conversion(self, X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The function that brings X, or parts of it, into these units. ValueError where that is not certain."""
        if X.dtype == self.dtype == np.uint8 and self.white:
            return lambda part: part  # the usual case, without a look at the pixels
        asked = Units.of(X)
        factor = self.factor(asked)
        if factor == 1:
            return lambda part: part
        if (
            asked.bytes
            and factor in (255, 1 / 255)
            and self.dtype != asked.dtype
            and "uint8" in (self.dtype, asked.dtype)
        ):
            kind = np.uint8 if self.dtype == "uint8" else np.float32
            return lambda part: part.astype(kind)
        if factor < 1:
            return lambda part: np.divide(part, 1 / factor, dtype=np.float32)
        return lambda part: np.multiply(part, factor, dtype=np.float32)

    def factor(self, asked: "Units") -> float:
        """What the pixels that are asked about, divided by their divisor, are multiplied by to be as those of the fit.

        ValueError where that is not certain.
        """
        white = 255.0 if asked.dtype == "uint8" else asked.white
        fits, ratio = True, 1.0
        if not self.sure:
            return 1.0
        if self.white == 1 and self.whole and asked.whole and 0 <= asked.low <= asked.high <= 1:
            white = 1.0  # 0 and 1 are black and white here, whatever holds them
        if self.white is None:
            fits = self._resembles(asked)
        elif white is None:
            far = max(-asked.low, asked.high - self.white) > MARGIN * self.white
            near = self._kind == asked._kind and not far and (asked.whole or self.white == 1 or asked.high > 127)
            fits = near or asked.low == asked.high == 0  # black is 0 in all units
        elif (self.white, white) == (255, 1) and asked.bytes and asked.high:
            fits = False  # 0.0 and 1.0: the darkest bytes, or black and white?
        else:
            ratio = self.white / white
        if not fits:
            scaled = " whose columns were each scaled for itself" if self.scaled else ""
            bytes_too = ", or give bytes as uint8" if self.white and asked.dtype != "uint8" else ""
            raise ValueError(
                f"X holds {asked}, but the model was fitted on {self}{scaled}, and how to convert them is not certain:"
                f" scale X to the range of the fit{bytes_too}"
            )
        return ratio * asked.divisor / self.divisor

    @property
    def _kind(self) -> str:
        """What numbers are compared without a conversion: uint8, other whole numbers (i), floats (f), bools (b)."""
        return "uint8" if self.dtype == "uint8" else np.dtype(self.dtype).kind.replace("u", "i")

    def _resembles(self, asked: "Units") -> bool:
        """Whether pixels can be in these units, for which no conversion is known."""
        span = self.high - self.low or abs(self.high) or 1.0
        if self.scaled:
            span *= REACH
            if asked.whole and asked.high > 1:  # raw pixels: scaled ones are whole where all of them are 0 and 1
                return False
        # Where the least is 0, pixels begin there
        floor = self.low - (span if self.low or self.scaled else 0.005 * span)
        if asked.low < floor or asked.high > self.high + span:
            return False
        if self.whole and not asked.whole:
            return False
        if asked.dtype != self.dtype and (asked.high <= 255 < self.high or (asked.dtype == "uint8" and not self.whole)):
            return False
        looks_like_fractions = asked.white == 1 and asked.low == 0 and asked.high > 0.5
        return not looks_like_fractions or (self.low >= 0 and self.high <= 2)


def scaled_columns(X: np.ndarray) -> bool:
    """Whether each column of flat rows of floats (N, F) looks scaled for itself, as by scikit-learn's scalers.

    To 0..1 (MinMaxScaler), to at most 1 (MaxAbsScaler), or to mean 0 and std 1 (StandardScaler), constant columns
    apart. Not where all numbers are bytes / 255, or / 127.5 - 1: there, one scale for all gives the same.
    """
    if X.dtype.kind != "f":
        return False
    low, high = X.min(axis=0), X.max(axis=0)
    varies = low < high
    bytes_of = X[:256] * 255
    if not varies.any() or np.allclose(bytes_of, np.rint(bytes_of), rtol=0, atol=0.01):
        return False

    def all_are(values: np.ndarray, target: float) -> bool:
        return np.allclose(values[varies], target, rtol=0, atol=1e-3)

    if all_are(np.maximum(-low, high), 1):  # 0..1 included
        return True
    return all_are(X.mean(axis=0, dtype=np.float64), 0) and all_are(X.std(axis=0, dtype=np.float64), 1)


def ground_of(X: np.ndarray, units: Units) -> Ground | None:
    """'dark' or 'light' where nine of ten grey images (N, H, W, 1) have such a border."""
    if X.shape[3] != 1 or min(X.shape[1:3]) < 4:
        return None
    middle = sum(units.ends) / 2
    light = np.mean([border_mean(x) > middle for x in X[:: 1 + len(X) // 1000]])
    return "dark" if light <= 0.1 else "light" if light >= 0.9 else None


def border_mean(image: np.ndarray) -> float:
    """The mean of the outermost pixels of an image (H, W, 1)."""
    rows, columns = image[[0, -1]], image[1:-1, [0, -1]]
    return float(np.concatenate([rows.ravel(), columns.ravel()]).mean(dtype=np.float64))


def check_finite(X: np.ndarray) -> None:
    """ValueError where a pixel is NaN or infinite."""
    if X.dtype.kind == "f" and not np.isfinite(X).all():
        bad = int(np.argmin(np.isfinite(X).reshape(len(X), -1).all(axis=1)))
        raise ValueError(f"X contains NaN or inf pixels (first in image {bad}); remove or replace them")


def encode_labels(y, classes: np.ndarray) -> np.ndarray:
    """Labels (n,) as positions in the sorted `classes`; ValueError for a label that is not among them."""
    y = np.asarray(y)
    codes = np.searchsorted(classes, y)
    unseen = classes[np.minimum(codes, len(classes) - 1)] != y
    if unseen.any():
        raise ValueError(
            f"y holds the label {y[unseen].tolist()[0]!r}, which is not among the classes: {classes.tolist()[:20]}"
        )
    return codes
