"""Rotations inside the heads of attention, which the network does not notice and its quantisers do.

A head gives softmax(q k^T / sqrt d) v, and proj adds up what the heads give. With orthogonal R and P (d, d)

    W_v -> R W_v,  b_v -> R b_v,  W_proj -> W_proj R^T;    W_q -> P W_q,  b_q -> P b_q,  W_k -> P W_k,  b_k -> P b_k

nothing changes, neither outputs nor maps, while the codes of the rotated weights do: R and P are free to make the
error of quantisation small. For codes T = Q(R W) the best R is that of Procrustes' problem, for which there are new
codes, and so on: iterative quantisation, Gong and Lazebnik 2011, jointly for the two layers that share R as in
LittleBit-2 (arXiv 2603.00042).
"""

import numpy as np

from ... import backend

ROUNDS = 60


def rotate_heads(network, low_bit, rounds=ROUNDS):
    """Rotate all heads of a full-precision network, in place, towards the codes that a low-bit one would give."""
    for block, theirs in zip(network.blocks, low_bit.blocks, strict=True):
        rotate_block(block.attn, theirs.attn.qkv.quantizer, rounds)


def rotate_block(attention, quantizer, rounds=ROUNDS):
    """`rotate_heads` of one MultiHeadAttention."""
    heads, dim = attention.heads, attention.proj.weight.shape[0]
    qkv, bias, proj = attention.qkv.weight, attention.qkv.bias, attention.proj.weight
    w = qkv.numpy().astype(np.float64).reshape(3, heads, dim // heads, dim)  # (q k v, head, d, dim)
    out = proj.numpy().astype(np.float64).reshape(dim, heads, dim // heads)  # (dim, head, d)
    turn = np.broadcast_to(np.eye(dim // heads), (2, heads, dim // heads, dim // heads))  # P and R of every head
    for _ in range(rounds):
        t, u = deployed(quantizer, rotate(turn, w)), deployed(quantizer, rotate_columns(turn[1], out))
        fit = w @ t.swapaxes(2, 3)  # the best rotation is that with the largest trace of it times this
        left, _, right = np.linalg.svd(np.stack([fit[0] + fit[1], fit[2] + np.einsum("mhd,mhe->hde", out, u)]))
        turn = (left @ right).swapaxes(2, 3)
    store(qkv, rotate(turn, w))
    store(proj, rotate_columns(turn[1], out))
    if bias is not None:
        store(bias, rotate(turn, bias.numpy().astype(np.float64).reshape(3, heads, dim // heads, 1)))


def store(parameter, array):
    """Put a host array of as many numbers into a Parameter, where that is."""
    parameter.data[...] = backend.to_device(array.reshape(parameter.shape).astype(parameter.dtype), parameter.device)


def rotate(turn, w):
    """Rows of q and k times P, those of v times R: (3, head, d, any)."""
    return turn[[0, 0, 1]] @ w


def rotate_columns(r, out):
    """The weight of proj (m, head, d) times R^T, head by head."""
    return np.einsum("mhd,hed->mhe", out, r)


def deployed(quantizer, weight):
    """The deployed weight for a weight of any shape whose first axes are rows."""
    flat = weight.reshape(-1, weight.shape[-1]) if weight.ndim == 4 else weight.reshape(len(weight), -1)
    codes, scale = quantizer.codes(np, flat)
    return (codes * scale).reshape(weight.shape)
