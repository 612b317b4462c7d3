"""What counts as a batch of images with labels: shapes, finiteness, sizes that fit patches, known classes."""

import math

import numpy as np


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
        if shape[0] in (1, 3) and shape[2] not in (1, 3, 4) and shape[1] > 4:
            raise ValueError(
                f"X has shape {X.shape}, which looks like (N, C, H, W);"
                " channels come last here: pass X.transpose(0, 2, 3, 1)"
            )
    elif shape != expected:
        turned = (*shape[1:], shape[0]) == expected
        hint = ": channels come last, pass X.transpose(0, 2, 3, 1)" if turned else "; resize or crop the images to it"
        raise ValueError(f"X holds images of shape {shape}, but the model was fitted on {expected}{hint}")
    return X


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
