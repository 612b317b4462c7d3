"""Images as people see them: from whatever a network takes to 8-bit RGB."""

import numpy as np


def display_images(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) of any dtype and number of channels as uint8 (N, H, W, 3).

    uint8 stays; other values are stretched from the smallest to the largest of the batch to 0..255, unless they lie in
    0..1. Three or four channels: the first three are red, green and blue; else the mean of the channels is grey.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        x = images.astype(np.float64)
        low, high = (0.0, 1.0) if x.size and x.min() >= 0 and x.max() <= 1 else (x.min(), x.max())
        images = np.rint((x - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    if images.shape[3] in (3, 4):
        return np.ascontiguousarray(images[..., :3])
    return np.repeat(np.rint(images.mean(axis=3, keepdims=True)).astype(np.uint8), 3, axis=3)
