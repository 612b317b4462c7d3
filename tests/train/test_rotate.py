"""Rotations inside heads: the network stays what it was, its quantised weights come nearer."""

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.models import VisionTransformer, start_from
from tinybitvit.train.convert.rotate import rotate_heads

SHAPE = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "dim": 24, "depth": 2, "heads": 3}


def networks(rng, bits, **options):
    network = VisionTransformer(**SHAPE, layer_scale=0.5, rng=rng)
    for p in network.parameters():  # also biases, which start as 0
        p.data[...] += 0.2 * rng.standard_normal(p.shape).astype("float32")
    return network, VisionTransformer(**SHAPE, layer_scale=0.5, bits=bits, sub_norm=False, **options, rng=rng)


def error(low_bit, network):
    """The relative error of the deployed weights of attention."""
    start_from(low_bit, network)
    lost = total = 0.0
    for block in low_bit.blocks:
        for layer in (block.attn.qkv, block.attn.proj):
            w = layer.weight.numpy()
            lost, total = lost + ((layer.quantized_weight() - w) ** 2).sum(), total + (w**2).sum()
    return lost / total


def looked_at(network, x):
    """(logits, maps of attention) of a network."""
    maps = []
    hooks = [b.attn.attend.register_forward_hook(lambda *call: maps.append(call[2].numpy())) for b in network.blocks]
    with tb.no_grad():
        logits = network(x).numpy()
    for hook in hooks:
        hook.remove()
    return logits, np.array(maps)


@pytest.mark.parametrize(
    ("bits", "options"), [(1, {}), (1.58, {"scale": "twn"}), (1.58, {"granularity": "tensor"}), (2, {})]
)
def test_outputs_and_maps_stay_and_errors_shrink(bits, options, rng):
    network, low_bit = networks(rng, bits, **options)
    x = rng.standard_normal((5, 8, 8, 1)).astype("float32")
    found = []
    for _ in range(2):
        logits, maps = looked_at(network, x)
        found.append((logits, maps, network.blocks[0].attn.qkv.weight.numpy().copy(), error(low_bit, network)))
        rotate_heads(network, low_bit)
    before, after = found
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-5, atol=1e-5)
    assert np.abs(after[2] - before[2]).max() > 0.1
    assert after[3] < 0.92 * before[3]


def test_each_part_of_a_head_turns_by_an_orthogonal_matrix(rng):
    """Lengths of columns stay within q, k and v of a head, and those of rows within proj's columns of a head."""
    network, low_bit = networks(rng, 1)
    attention = network.blocks[0].attn
    parts = [
        attention.qkv.weight.numpy().reshape(3, 3, 8, 24).copy(),
        attention.proj.weight.numpy().reshape(24, 3, 8).copy(),
    ]
    rotate_heads(network, low_bit)
    now = attention.qkv.weight.numpy().reshape(3, 3, 8, 24), attention.proj.weight.numpy().reshape(24, 3, 8)
    for old, new in zip(parts, now, strict=True):
        axis = 2
        np.testing.assert_allclose((new**2).sum(axis), (old**2).sum(axis), rtol=1e-5)
    turned = np.linalg.lstsq(parts[0][0, 1].T, now[0][0, 1].T, rcond=None)[0]  # P of head 1, from q alone
    np.testing.assert_allclose(turned.T @ parts[0][1, 1], now[0][1, 1], atol=1e-5)  # turns k, too
