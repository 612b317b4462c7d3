"""The network that is pictured is the one that predicts: hooks on Attend change no bit of any output."""

from contextlib import ExitStack

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.nn import Attend
from tinybitvit.train import Trainer


def network(width, bits, rng, heads=2):
    """Heads of `width` channels; 2 blocks, 17 tokens."""
    sizes = {"patch_size": 4, "in_channels": 3, "num_classes": 5, "dim": heads * width, "depth": 2, "heads": heads}
    return tb.models.VisionTransformer(16, **sizes, bits=bits, rng=rng).eval()


@pytest.mark.parametrize("bits", [32, 1.58, 1])
@pytest.mark.parametrize("width", [4, 32, 48, 64, 80])
def test_a_hooked_network_predicts_the_same_bits(width, bits, rng):
    """1 / sqrt(d) is exact for width 4 and 64 alone; for any other it matters what it multiplies."""
    model = network(width, bits, rng)
    images = rng.standard_normal((19, 16, 16, 3), "float32")
    for batch in (1, 2, 7, 19):
        for workers in (1, 2, 3):
            trainer = Trainer(model, workers=workers)
            plain = trainer.predict(images, batch_size=batch)
            with ExitStack() as hooks:
                for module in model.modules():
                    if isinstance(module, Attend):
                        hooks.enter_context(module.register_forward_hook(lambda *_: None))
                hooked = trainer.predict(images, batch_size=batch)
            assert np.array_equal(plain, hooked), f"batch {batch}, {workers} workers: {abs(plain - hooked).max():.2g}"


@pytest.mark.parametrize("bits", [32, 1.58, 1])
@pytest.mark.parametrize("width", [32, 48, 64])
def test_a_record_holds_the_logits_of_predict(width, bits, rng):
    model = network(width, bits, rng)
    images = rng.standard_normal((6, 16, 16, 3), "float32")
    with tb.no_grad():
        plain = model(tb.Tensor(images)).numpy()
    assert np.array_equal(tb.viz.attention(model, images).logits, plain)
    if bits == 32:  # with a graph a low-bit layer multiplies scaled weights, without one whole numbers
        assert np.array_equal(tb.viz.attention(model, images, target="predicted").logits, plain)


def test_the_recorded_probabilities_are_those_of_the_fused_operation(rng):
    """p of the hook, bit for bit the p that the fused operation keeps for its backward."""
    module = tb.nn.MultiHeadAttention(96, 2)
    x, seen = tb.Tensor(rng.standard_normal((3, 17, 96), "float32")), []
    fused = module.qkv(x)
    kept = tb.functional.multi_head_attention(fused, 2).node.ctx.saved[1]
    with module.attend.register_forward_hook(lambda attend, inputs, p: seen.append(p.data)):
        module(x)
    assert np.array_equal(seen[0], kept)
