"""What happens to a batch of images (N, H, W, C) before the network sees it: augmentation, then normalisation.

An augmentation is a function ``f(X, rng, ...)`` that returns new images of the same shape and dtype, never changing
X, and draws from a host ``numpy.random.Generator``: the same state gives the same images on every device.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .images import DIM, Ground, Units, ground_of

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Normalize:
    """(x - mean) / std for each channel, as float32; uint8 images are divided by 255 first.

    ``mean`` and ``std`` are scalars or one value a channel; other dtypes than uint8 are taken as they are. ``units``
    are those of the images that it was fitted on (None: unknown); ``preparation`` converts others to them.
    """

    def __init__(self, mean, std, units: Units | None = None):
        self.mean, self.std = np.atleast_1d(np.asarray(mean, np.float32)), np.atleast_1d(np.asarray(std, np.float32))
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(f"mean and std need one value a channel, got {self.mean.shape} and {self.std.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise ValueError("mean and std must be finite and std above zero: are there NaN or infinite pixels?")
        self.units = units or self._guessed_units()

    @classmethod
    def fit(cls, X: np.ndarray, scaled: bool = False) -> "Normalize":
        """Mean and standard deviation of every channel of the training images X (N, H, W, C).

        A constant channel gets std 1 and so becomes 0. Two passes in float64 over blocks of images: no float copy of
        all of X is made, and nothing cancels. scaled: see `Units`.
        """
        X = np.asarray(X)
        _check_batch(X)
        if X.size == 0:
            raise ValueError(f"Normalize.fit needs at least one pixel, got X of shape {X.shape}")
        channels, pixels = X.shape[-1], math.prod(X.shape[1:])
        step = max(1, (1 << 20) // pixels)

        def channel_means(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            blocks = (X[i : i + step].reshape(-1, pixels) for i in range(0, len(X), step))
            total = sum(function(block).sum(0, dtype=np.float64) for block in blocks)
            return np.reshape(total, (-1, channels)).sum(0) / (X.size // channels)

        mean = channel_means(lambda block: block)
        center = np.resize(mean, pixels)
        std = np.sqrt(channel_means(lambda block: (block - center) ** 2))
        unit = 255.0 if X.dtype == np.uint8 else 1.0
        constant = std <= 1e-6 * np.abs(mean)  # up to rounding errors
        fitted = cls(mean / unit, np.where(constant, 1.0, std / unit))
        units = replace(Units.of(X), scaled=scaled)
        fitted.units = replace(units, ground=ground_of(X, units))
        return fitted

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Images (N, H, W, C) of any dtype to float32."""
        _check_batch(X)
        if len(self.mean) not in (1, X.shape[-1]):
            raise ValueError(f"X of shape {X.shape} has {X.shape[-1]} channels (the last axis), not {len(self.mean)}")
        unit = np.float32(255.0 if X.dtype == np.uint8 else 1.0)
        # Repeated to the length of an image: NumPy's inner loop over 3 channels alone is six times slower.
        pixels = math.prod(X.shape[1:])
        offset = np.resize(self.mean * unit, pixels)
        scale = np.resize(1 / (self.std * unit), pixels)
        out = np.subtract(X.reshape(len(X), pixels), offset, dtype=np.float32)
        out *= scale
        return out.reshape(X.shape)

    def preparation(self, X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The one rule for images X that a model is asked about: bring them into the units of the fit, then normalise.

        Returns the function for batches of X, because a batch alone may not tell its units. ValueError where they are
        not certain.
        """
        convert = self.units.conversion(X)
        return lambda batch: self(convert(batch))

    @property
    def ends(self) -> tuple[float, float]:
        """Black and white of a picture, as the numbers that are compared with the mean."""
        black, white = self.units.ends
        return black / self.units.divisor, white / self.units.divisor

    def for_pictures(self) -> dict[str, list[float]]:
        """{"mean", "std"} for pictures in 0..1, whose black and white become those of the training images."""
        black, white = self.ends
        return {"mean": ((self.mean - black) / (white - black)).tolist(), "std": (self.std / (white - black)).tolist()}

    def sight(self, other: "Normalize", X: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
        """The function from images as this normalises them to the same images as `other` does (None: no difference).

        X: some of them, in the units of this.
        """
        mean, std = self.mean.astype(np.float64), self.std.astype(np.float64)
        factor = other.units.factor(Units.of(X))
        scale, offset = std * factor / other.std, (mean * factor - other.mean) / other.std
        if (scale == 1).all() and (offset == 0).all():
            return None
        return lambda x: x * scale.astype(np.float32) + offset.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, exact: ``Normalize.from_dict(n.to_dict())`` has the same bits."""
        values = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        units = asdict(self.units)
        if not self.units.scaled:
            del units["scaled"]  # which earlier versions do not know
        return values | ({} if self.units == self._guessed_units() else {"units": units})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalize":
        return cls(values["mean"], values["std"], Units(**values["units"]) if values.get("units") else None)

    def _guessed_units(self) -> Units:
        """Those of pixels with this mean and std, sure for bytes and floats in 0..1 alone: here they are the same."""
        mean = float(self.mean.mean())
        high = 1.0 if self.mean.max() <= 1 else 16.0 if self.mean.max() <= 8 else 255.0
        ground: Ground | None = "dark" if len(self.mean) == 1 and mean < high / 2 else None
        sure = bool(high == 1 and self.mean.min() >= 0 and self.std.max() <= 0.5)
        return Units("float32", 0.0, high, False, ground, sure)


def random_flip(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror every second image or so left to right."""
    _check_batch(X)
    chosen = rng.random(len(X)) < 0.5
    out = X.copy()
    out[chosen] = X[chosen, :, ::-1]
    return out


def random_shift(X: np.ndarray, rng: np.random.Generator, max_shift: int) -> np.ndarray:
    """Move every image by up to ``max_shift`` pixels along both axes; its edge is continued.

    The edge, because it is a background for any pixel scale: zero is black in raw and grey in normalised images.
    """
    return _translate(X, rng, max_shift, "edge")


def random_crop(X: np.ndarray, rng: np.random.Generator, padding: int) -> np.ndarray:
    """Pad with ``padding`` zeros on each side and cut the old size out at random: the usual recipe for CIFAR."""
    return _translate(X, rng, padding, "constant")


def cutout(X: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Cover a square of ``size`` pixels, centred anywhere in the image, with the image's mean colour.

    DeVries and Taylor (2017) fill normalised images with zero; the mean is the same thing for raw pixels.
    """
    _check_batch(X, size)
    n, height, width, _ = X.shape

    def covered(length: int) -> np.ndarray:  # (n, length) bool
        from_start = np.arange(length) - (rng.integers(length, size=(n, 1)) - size // 2)
        return (from_start >= 0) & (from_start < size)

    square = covered(height)[:, :, None, None] & covered(width)[:, None, :, None]
    mean = X.mean(1, keepdims=True).mean(2, keepdims=True)
    # As a bool anything above 0 would be white
    return np.where(square, mean >= 0.5 if X.dtype == bool else mean.astype(X.dtype), X)


def augmented(X: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """augment(X, rng) as images of the shape and the units of X (N, H, W, C); ValueError where they are others.

    uint8 means 0..255 to `Normalize`, and any other dtype what the numbers say: an augmentation that computes in floats
    gets its bytes back, rounded and clipped.
    """
    out = np.asarray(augment(X, rng))
    if out.shape != X.shape or out.dtype.kind not in "biuf":
        got = f"{out.shape} of {out.dtype}" if out.ndim else type(out.item()).__name__
        raise ValueError(f"augment must return images of the shape that it gets, {X.shape}, not {got}")
    if X.dtype == out.dtype or np.uint8 not in (X.dtype, out.dtype):
        return out
    if X.dtype != np.uint8:
        return out.astype(np.float32)
    if not np.isfinite(out).all():
        raise ValueError("augment must return finite pixels: it was given bytes and returned NaN or inf")
    if 0 < out.max(initial=0) <= 1 and X.max(initial=0) > DIM:
        raise ValueError("augment was given bytes in 0..255 and returned numbers in 0..1: let it keep the range")
    return np.rint(out).clip(0, 255).astype(np.uint8)


def _translate(X: np.ndarray, rng: np.random.Generator, reach: int, fill: str) -> np.ndarray:
    _check_batch(X, reach)
    n, height, width, channels = X.shape
    down, right = rng.integers(2 * reach + 1, size=(2, n, 1))
    padded = np.pad(X, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode=fill)  # type: ignore[call-overload]
    # A row of an image is copied in one piece: a window of width * channels values on the padded row.
    padded_rows = padded.reshape(n, padded.shape[1], padded.shape[2] * channels)
    windows = sliding_window_view(padded_rows, width * channels, axis=2)
    rows = windows[np.arange(n)[:, None], down + np.arange(height), right * channels]
    return rows.reshape(X.shape)


def _check_batch(X: np.ndarray, amount: int = 0) -> None:
    if np.ndim(X) != 4:
        raise ValueError(f"X must be a batch of images (N, H, W, C), got shape {np.shape(X)}")
    if amount < 0:
        raise ValueError(f"the number of pixels must not be negative, got {amount}")


# name: function, and the share of the image's smaller side that is its default amount (None: it takes no amount)
AUGMENTATIONS: dict[str, tuple[Callable[..., np.ndarray], int | None]] = {
    "flip": (random_flip, None),
    "shift": (random_shift, 14),
    "crop": (random_crop, 8),
    "cutout": (cutout, 4),
}


def make_augment(spec: str | Augment | None, image_shape: tuple[int, int, int]) -> Augment:
    """A function ``(X, rng) -> X`` for images of ``image_shape`` (H, W, C).

    spec: None (nothing), a function (taken as it is), or steps such as ``"flip,crop:4,cutout:8"``: flip, shift, crop
    and cutout, each but flip with an optional number of pixels. Without one it is a share of the smaller side s, at
    least 1: shift s // 14 (2 for 28 x 28), crop s // 8 (4 for 32 x 32), cutout s // 4.
    ``"auto"`` is ``"flip,crop"`` for colour images and ``"shift"`` for grey ones, which are often digits and letters,
    that no mirror leaves alone; images with a side below 16, where one pixel is a large step, stay as they are.
    """
    if callable(spec):
        return spec
    if not isinstance(spec, str | None):
        raise TypeError(f"augment must be None, a function or text such as 'flip,crop:4', got {spec!r}")
    side = min(image_shape[:2])
    if spec == "auto" and side >= 16:
        spec = "flip,crop" if image_shape[2] >= 3 else "shift"
    steps = [] if spec is None or spec == "auto" else [_parse_step(text, side) for text in spec.split(",")]
    return partial(_apply, steps)


def _apply(steps: Iterable[Augment], X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for step in steps:
        X = step(X, rng)
    return X


def _parse_step(text: str, side: int) -> Augment:
    name, colon, number = text.strip().partition(":")
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"augment: unknown augmentation {name!r}: choose from {', '.join(AUGMENTATIONS)}, auto or None"
        )
    function, share = AUGMENTATIONS[name]
    if share is None:
        if colon:
            raise ValueError(f"augment: augmentation {name!r} takes no number, got {text.strip()!r}")
        return function
    amount = max(1, side // share) if not colon else int(number) if number.isdecimal() else 0
    if not 1 <= amount < side:
        raise ValueError(f"augment: augmentation {text.strip()!r} needs a number of pixels from 1 to {side - 1}")
    # max_shift, padding or size: the third parameter of each
    return lambda X, rng: function(X, rng, amount)
