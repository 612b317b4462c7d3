"""What is computed from attention maps: fusion of heads, rollout, entropy, distance, divergence; and from tokens:
cosine similarity, principal components. Arrays in, arrays out.

A map A is (..., T, T): row i holds the shares with which token i draws on the tokens j, so that rows sum to 1.
Everything is computed in float64: a rollout multiplies a dozen such matrices.
"""

import math

import numpy as np


def normalize_rows(a: np.ndarray) -> np.ndarray:
    """Rows of a (..., T, T), none negative, divided by their sums; a row of zeros becomes the identity's (the token
    keeps itself).
    """
    a = np.asarray(a, np.float64)
    total = a.sum(-1, keepdims=True)
    return np.where(total > 0, a / np.where(total > 0, total, 1), np.eye(a.shape[-1]))


def fuse_heads(a: np.ndarray, heads: str | int = "mean") -> np.ndarray:
    """One map for all heads: a (N, h, T, T) -> (N, T, T), rows summing to 1.

    heads: 'mean', 'max' or 'min' over the heads (the last two are divided by their row sums), or the number of one
    head.
    """
    a = np.asarray(a, np.float64)
    if isinstance(heads, str) and heads in ("mean", "max", "min"):
        return normalize_rows(getattr(a, heads)(axis=1))
    if isinstance(heads, str) or not -a.shape[1] <= heads < a.shape[1]:
        raise ValueError(f"heads must be 'mean', 'max', 'min' or a number from 0 to {a.shape[1] - 1}, not {heads!r}")
    return normalize_rows(a[:, heads])


def discard_weakest(a: np.ndarray, ratio: float) -> np.ndarray:
    """a (..., T, T) without the smallest floor(ratio T) shares of every row, rows divided by their new sums."""
    if not 0 <= ratio < 1:
        raise ValueError(f"discard is the share of links to leave out and must lie in [0, 1), not {ratio!r}")
    count = math.floor(ratio * a.shape[-1])
    if count == 0:
        return a
    kept = a.copy()
    np.put_along_axis(kept, np.argsort(a, axis=-1, kind="stable")[..., :count], 0.0, axis=-1)
    return normalize_rows(kept)


def rollout(layers: list[np.ndarray], residual: float = 0.5) -> list[np.ndarray]:
    """R_l = (r I + (1 - r) A_l) R_(l-1) with R_0 = I, for maps A_l (N, T, T) from the first layer up; returns every
    R_l.

    Row i of R_l says from which input tokens token i draws after layer l, if layers did nothing but average. r: the
    weight of the residual connection. Abnar & Zuidema 2020 (arXiv 2005.00928), section 3, with r = 1/2.
    """
    if not 0 <= residual <= 1:
        raise ValueError(f"residual is a weight between 0 and 1, not {residual!r}")
    result: list[np.ndarray] = []
    for a in layers:
        step = (1 - residual) * a + residual * np.eye(a.shape[-1])
        result.append(step @ result[-1] if result else step)
    return result


def gradient_rollout(maps: list[np.ndarray], gradients: list[np.ndarray]) -> list[np.ndarray]:
    """R_l = R_(l-1) + mean_h max(dy/dA_l * A_l, 0) R_(l-1) with R_0 = I; returns R_l - I with rows divided by their
    sums.

    maps, gradients: A_l and dy/dA_l (N, h, T, T) from the first layer up, y the logit of one class for each image.
    Chefer et al. 2021 (arXiv 2103.15679), equations 5, 6 and 8. A token whose attention no gradient favours keeps
    itself.
    """
    result, r = [], np.eye(maps[0].shape[-1])
    for a, g in zip(maps, gradients, strict=True):
        weighted = np.maximum(np.asarray(a, np.float64) * g, 0).mean(axis=1)
        r = r + weighted @ r
        result.append(normalize_rows(np.maximum(r - np.eye(r.shape[-1]), 0)))
    return result


def entropy(p: np.ndarray) -> np.ndarray:
    """-sum_j p_j log2 p_j over the last axis, in bits: 0 for all on one token, log2 T for an even spread."""
    p = np.asarray(p, np.float64)
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def js_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence over the last axis, in bits: 0 for equal, 1 for disjoint distributions (Lin 1991)."""
    mixed = (np.asarray(p, np.float64) + q) / 2
    return np.maximum(entropy(mixed) - (entropy(p) + entropy(q)) / 2, 0)


def patch_distances(grid: tuple[int, int], size: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Euclidean distances between patch centres (P, P), P = rows * columns; size: a patch's (height, width) in the unit
    wanted.
    """
    places = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 2) * np.asarray(size)
    return np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))


def top_patches(a: np.ndarray, percent: float) -> np.ndarray:
    """Which patches are among the top `percent` of their image: a (N, P) -> bool (N, P), at least one an image."""
    if not 0 < percent <= 100:
        raise ValueError(f"top is a percentage above 0 and up to 100, not {percent!r}")
    count = max(1, round(a.shape[1] * percent / 100))
    best = np.argsort(-a, axis=1, kind="stable")[:, :count]
    mask = np.zeros(a.shape, bool)
    np.put_along_axis(mask, best, True, axis=1)
    return mask


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of masks (N, P) -> (N,)."""
    return (a & b).sum(1) / (a | b).sum(1)


def head_divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence between every head of a (N, h, T, T) and of b (N, k, T, T): (h, k), mean over images
    and rows.
    """
    own_a, own_b = (entropy(x).mean((0, 2)) for x in (a, b))
    mixed = [
        [entropy((a[:, i].astype(np.float64) + b[:, j]) / 2).mean() for j in range(b.shape[1])]
        for i in range(a.shape[1])
    ]
    return np.maximum(mixed - (own_a[:, None] + own_b) / 2, 0)


def cosine_similarity(x: np.ndarray) -> np.ndarray:
    """s_ij = x_i . x_j / (|x_i| |x_j|) for tokens x (..., T, D): (..., T, T), from -1 to 1.

    A token of zeros is similar to none.
    """
    x = np.asarray(x, np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return unit @ np.swapaxes(unit, -1, -2)


def principal_components(x: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Scores (x - mean x) V of vectors x (..., D) on the first components, and their shares (count,) of the variance.

    V holds the eigenvectors of the covariance of all vectors with the largest eigenvalues. Their signs are free: each
    one's largest entry is made positive. Beyond D components scores and shares are 0.
    """
    x = np.asarray(x, np.float64)
    flat = x.reshape(-1, x.shape[-1])
    centred = flat - flat.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    variances, vectors = variances[::-1][:count], vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0, keepdims=True), axis=0)
    missing = count - vectors.shape[1]
    scores = np.pad(centred @ (vectors * np.sign(largest)), ((0, 0), (0, missing)))
    shares = np.pad(np.maximum(variances, 0) / max((centred**2).sum(), 1e-12), (0, missing))
    return scores.reshape(*x.shape[:-1], count), shares


def component_colors(scores: np.ndarray) -> np.ndarray:
    """Scores (..., 3) as red, green and blue in 0..1: each component from its 1st to its 99th percentile, clipped.

    Percentiles, because a few tokens of large norm would otherwise leave one colour to all others.
    """
    flat = scores.reshape(-1, scores.shape[-1])
    low, high = np.percentile(flat, (1, 99), axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)


def match_heads(cost: np.ndarray) -> np.ndarray:
    """For each row (head) of a square cost (h, h) the column it is paired with, so that the sum of costs is least (Kuhn
    1955).
    """
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cost)[1]
