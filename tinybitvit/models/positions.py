"""Position embeddings for another image size: bicubic resampling of their grid, as PyTorch computes it."""

import math
from typing import Any

import numpy as np


def resize_positions(grid: Any, size: tuple[int, int], antialias: bool = False) -> Any:
    """Resample a grid (h, w, dim) of embeddings to `size` = (height, width), bicubically.

    Equal to `torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=antialias)`. A model must
    get the kind that it was trained with: timm and DINOv2 with registers antialias, the others do not.
    """
    rows, columns = (bicubic_matrix(n, m, antialias) for n, m in zip(grid.shape[:2], size, strict=True))
    return np.einsum("yh,hwd,xw->yxd", rows, grid.astype("float64"), columns, optimize=True).astype(grid.dtype)


def bicubic_matrix(n: int, m: int, antialias: bool = False) -> Any:
    """(m, n): output pixel i is the weighted sum of the input pixels near (i + 1/2) n / m - 1/2; Keys 1981.

    Without antialias four neighbours count, the edge pixel repeated beyond the edge. With it the kernel grows with the
    shrinking factor, so that every input pixel counts, and weights beyond the edge are left out.
    """
    weights, scale = np.zeros((m, n)), n / m
    for i in range(m):
        centre = (i + 0.5) * scale - 0.5
        if antialias:
            width = max(scale, 1.0)
            near = [j for j in range(n) if abs(j - centre) < 2 * width]
            row = [cubic((j - centre) / width, -0.5) for j in near]
            weights[i, near] = np.array(row) / sum(row)
        else:
            first = math.floor(centre) - 1
            for j in range(first, first + 4):
                weights[i, min(max(j, 0), n - 1)] += cubic(j - centre, -0.75)
    return weights


def cubic(x: float, a: float) -> float:
    """Keys' kernel: 1 at 0, 0 at the other whole numbers and beyond 2; `a` is its slope at 1."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
