"""Rounding the weights of a trained layer: codes found by coordinate descent, not by gradients.

A layer that gave y = W x is to give y = S B x with whole codes B and one scale s_i a row (S = diag s). What that costs,
to the second order, is

    cost(B) = tr(M E H E^T) / 2,   E = S B - W,   H = E[x x^T],   M = E[d d^T],

x the inputs and d the gradients of the loss at the outputs (the Fisher information, in the factored form of Martens and
Grosse 2015, arXiv 1503.05671). Rounding every weight to the nearest code ignores H and M: errors add up along the few
directions in which the inputs are large, or in which the loss is steep. Here each code is chosen in view of all others,
so that errors cancel in just those directions.
"""

import numpy as np


def best_weight(second, cross, start, pull=0.01):
    """The W (m, k) with the least E|y - W x|^2 + pull mean(diag H) |W - start|^2.

    second: H = E[x x^T] (k, k); cross: E[y x^T] (m, k).
    """
    ridge = pull * np.diag(second).mean()
    return np.linalg.solve(second + ridge * np.eye(len(second)), (cross + ridge * start).T).T


def feed_forward(weight, scale, second, quantizer):
    """Codes of one column after the other, where the error of each is made good by the columns to come.

    GPTQ, Frantar et al. 2023 (arXiv 2210.17323), equations 2 and 3, through the Cholesky factor of H^-1; the columns
    with the largest inputs come first. weight (m, k), scale (m, 1), second H (k, k); returns the codes (m, k).
    """
    order = np.argsort(-np.diag(second))
    factor = np.linalg.cholesky(np.linalg.inv(second[np.ix_(order, order)])).T
    w, codes = weight[:, order], np.empty_like(weight)
    for j in range(len(second)):
        code = quantizer.nearest(np, w[:, j] / scale[:, 0])
        error = (w[:, j] - scale[:, 0] * code) / factor[j, j]
        w[:, j:] -= error[:, None] * factor[j, j:]
        codes[:, order[j]] = code
    return codes


def sweep(codes, scale, weight, second, metric, quantizer, rng):
    """One pass over all columns, each changed code by code while that lowers the cost. Returns the new codes.

    Only the gradient R = M E H is kept: a change c of E_ij costs c R_ij + c^2 M_ii H_jj / 2, and adds c M_:i H_j: to R.
    """
    two = len(quantizer.levels) == 2
    s, b, steep = scale[:, 0], np.ascontiguousarray(codes.T), np.diag(metric)
    gradient = np.ascontiguousarray((metric @ (scale * codes - weight) @ second).T)
    for j in rng.permutation(len(second)):
        column, r, h, change = b[j], gradient[j].copy(), second[j, j], np.zeros_like(s)
        for _ in range(1 + len(s) // 8):  # rarely reached; it bounds the time
            best = -column if two else quantizer.nearest(np, column - r / (steep * h * s))
            c = s * (best - column)
            cost = c * (r + 0.5 * h * steep * c)
            i = cost.argmin()
            if cost[i] >= 0:
                break
            column[i] = best[i]
            change[i] += c[i]
            r += c[i] * h * metric[i]
        if change.any():
            gradient += np.outer(second[j], metric @ change)
    return np.ascontiguousarray(b.T)


def best_scale(codes, scale, weight, second, metric):
    """The scales (m, 1) of the least cost for given codes: (M o B H B^T) s = diag(M W H B^T), o element by element.

    Never below 0.3 of `scale`: a scale of 0 would leave its row nothing to choose from. A row of zeros keeps its own,
    which no output depends on: there the system would have a row of zeros, too.
    """
    alive = codes.any(axis=1)
    system = (metric * (codes @ second @ codes.T))[np.ix_(alive, alive)]
    s = scale.copy()
    s[alive, 0] = np.linalg.solve(system, ((metric @ weight @ second) * codes).sum(axis=1)[alive])
    return np.maximum(s, 0.3 * scale)


def round_weight(weight, second, metric, quantizer, sweeps=5, rng=None):
    """Codes (m, k) and scales (m, 1) for a weight (m, k), and their relative cost: 1 is that of a layer that gives 0.

    second: H (k, k), positive definite; metric: M (m, m), positive definite; quantizer: gives the levels and the first
    scales.
    """
    rng = np.random.default_rng(rng)
    s = np.broadcast_to(quantizer.codes(np, weight)[1], (len(weight), 1))
    codes = feed_forward(weight, s, second, quantizer)
    weight, second, metric, codes, s = (a.astype(np.float32) for a in (weight, second, metric, codes, s))
    for _ in range(sweeps):
        codes = sweep(codes, s, weight, second, metric, quantizer, rng)
        s = best_scale(codes, s, weight, second, metric).astype(np.float32)
    return codes, s, cost(s * codes - weight, second, metric) / (cost(weight, second, metric) or 1.0)


def cost(error, second, metric):
    """tr(M E H E^T) / 2."""
    return 0.5 * float(((metric @ error) * (error @ second)).sum())
