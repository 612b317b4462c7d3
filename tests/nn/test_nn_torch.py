"""Modules against PyTorch with the same weights: outputs, and all gradients for a random upstream gradient.

float64 shows that the formulas are right; float32 once more, because it is what everybody runs.
"""

import numpy as np
import pytest
import torch
import torch_reference as reference
from devices import each_device, each_run
from sequential import Sequential
from torch import nn as torch_nn
from torch_reference import assert_close, compare, copy_weights, randomize

from tinybitvit import Tensor, nn
from tinybitvit.models import MLP, Block, VisionTransformer

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def array(rng, shape, dtype="float64"):
    return rng.standard_normal(shape).astype(dtype)


# --- layers -----------------------------------------------------------------------------------------------------------


@each_run
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 1, 3, 7), (0, 7)])
def test_linear(shape, bias, dtype, device, rng):
    module = randomize(nn.Linear(7, 4, bias=bias), rng, dtype)
    compare(module, torch_nn.Linear(7, 4, bias=bias), array(rng, shape, dtype), rng, device=device)


@each_run
@pytest.mark.parametrize("width, eps", [(1, 0.1), (2, 0.1), (3, 1e-5), (33, 1e-6), (33, 0.1), (192, 1e-5)])
def test_layer_norm(width, eps, dtype, device, rng):
    module = randomize(nn.LayerNorm(width, eps), rng, dtype)
    x = 3 * array(rng, (4, 5, width), dtype) + 1
    tolerance = 3e-4 if dtype == "float32" else None
    compare(module, torch_nn.LayerNorm(width, eps), x, rng, tolerance, device=device)


@each_run
@pytest.mark.parametrize("width, eps", [(1, 0.1), (2, 0.1), (3, 1e-5), (33, 1e-6), (33, 0.1), (192, 1e-5)])
def test_rms_norm(width, eps, dtype, device, rng):
    module = randomize(nn.RMSNorm(width, eps), rng, dtype)
    compare(module, torch_nn.RMSNorm(width, eps), 3 * array(rng, (4, 5, width), dtype) + 1, rng, device=device)


@each_device
@pytest.mark.parametrize("ours, theirs", [(nn.LayerNorm, torch_nn.LayerNorm), (nn.RMSNorm, torch_nn.RMSNorm)])
def test_norms_of_constant_and_zero_rows(ours, theirs, device, rng):
    """Where the variance is 0, eps alone keeps the result finite."""
    module = randomize(ours(6), rng)
    x = array(rng, (4, 6))
    x[1], x[2] = 0.0, 2.5
    compare(module, theirs(6, eps=module.eps), x, rng, device=device)


@DTYPES
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate, dtype, rng):
    x = np.concatenate([array(rng, 200, dtype) * 3, np.array([0, -0.0, 1e-8, -30, 30, -9, 9], dtype)])
    ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, expected = nn.GELU(approximate)(ours), torch_nn.GELU(approximate)(theirs)
    assert_close(y.data, expected, "output")
    g = array(rng, x.shape, dtype)
    y.backward(g)
    expected.backward(torch.tensor(g))
    assert_close(ours.grad, theirs.grad, "gradient")


@each_run
def test_layer_scale(dtype, device, rng):
    module = randomize(nn.LayerScale(6), rng, dtype)
    compare(module, reference.LayerScale(6), array(rng, (3, 4, 6), dtype), rng, device=device)


def test_layer_scale_starts_at_the_value_asked_for():
    assert (nn.LayerScale(3, 0.25).gamma.data == np.float32(0.25)).all()


@each_device
def test_sequential_is_torchs(device, rng):
    module = randomize(Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)), rng)

    class Reference(torch_nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch_nn.Sequential(torch_nn.Linear(5, 8), torch_nn.GELU(), torch_nn.Linear(8, 3))

        def forward(self, x):
            return self.layers(x)

    compare(module, Reference(), array(rng, (6, 5)), rng, device=device)


# --- attention --------------------------------------------------------------------------------------------------------


def torch_attention(module, dim, heads):
    """torch.nn.MultiheadAttention with the weights of a TinyBitViT MultiHeadAttention."""
    theirs = torch_nn.MultiheadAttention(dim, heads, batch_first=True)
    theirs.to(torch.float64 if module.qkv.weight.dtype == "float64" else torch.float32)
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    names |= {"out_proj.weight": "proj.weight", "out_proj.bias": "proj.bias"}
    state = module.state_dict()
    theirs.load_state_dict({name: torch.tensor(state[mine]) for name, mine in names.items()})
    return theirs, names


def run_attention(module, x, g):
    """Output and gradients of one pass, by name."""
    module.zero_grad()
    t = Tensor(x, requires_grad=True)
    y = module(t)
    y.backward(g)
    return {"output": y.data, "x": t.grad, **{name: p.grad for name, p in module.named_parameters()}}


@DTYPES
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_attention_equals_torchs(heads, tokens, dtype, rng):
    dim = 12
    module = randomize(nn.MultiHeadAttention(dim, heads), rng, dtype)
    theirs, names = torch_attention(module, dim, heads)
    x, g = array(rng, (3, tokens, dim), dtype), array(rng, (3, tokens, dim), dtype)
    t = torch.tensor(x, requires_grad=True)
    expected, probabilities = theirs(t, t, t, need_weights=True, average_attn_weights=False)
    expected.backward(torch.tensor(g))
    gradients = dict(theirs.named_parameters())

    seen = []
    paths = {"fused": run_attention(module, x, g)}
    with module.attend.register_forward_hook(lambda attend, inputs, p: seen.append(p.data)):
        paths["with a hook"] = run_attention(module, x, g)
    for path, found in paths.items():
        assert_close(found["output"], expected, f"{path}: output")
        assert_close(found["x"], t.grad, f"{path}: gradient of x")
        for name, mine in names.items():
            assert_close(found[mine], gradients[name].grad, f"{path}: gradient of {mine}")
    (p,) = seen
    assert p.shape == (3, heads, tokens, tokens)
    assert_close(p, probabilities, "attention probabilities")


@DTYPES
def test_fused_and_hooked_attention_agree(dtype, rng):
    module = randomize(nn.MultiHeadAttention(16, 4), rng, dtype)
    x, g = array(rng, (2, 9, 16), dtype), array(rng, (2, 9, 16), dtype)
    fused = run_attention(module, x, g)
    with module.attend.register_forward_hook(lambda *_: None):
        hooked = run_attention(module, x, g)
    again = run_attention(module, x, g)
    assert (hooked["output"] == fused["output"]).all(), "the hook changed bits of the output"
    for name in fused:
        assert_close(hooked[name], fused[name], name, 1e-13 if dtype == "float64" else 2e-6)
        assert (again[name] == fused[name]).all(), f"{name}: a removed hook left a trace"


def test_a_hook_can_replace_the_attention_probabilities(rng):
    """Uniform attention: every token gets the mean of the values."""
    module = randomize(nn.MultiHeadAttention(6, 2), rng)
    x = array(rng, (2, 5, 6))
    with module.attend.register_forward_hook(lambda attend, inputs, p: p * 0 + 0.2):
        y = module(Tensor(x)).data
    v = x @ module.qkv.weight.data[12:].T + module.qkv.bias.data[12:]
    mean = np.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
    assert_close(y, mean @ module.proj.weight.data.T + module.proj.bias.data, "output", 1e-12)


def test_reference_attention_is_torchs(rng):
    """The one-head-at-a-time attention that the larger references are built from."""
    module = randomize(nn.MultiHeadAttention(12, 3), rng)
    theirs, _ = torch_attention(module, 12, 3)
    x = torch.tensor(array(rng, (2, 5, 12)))
    mine = copy_weights(module, reference.Attention(12, 3))
    assert_close(mine(x).detach().numpy(), theirs(x, x, x)[0], "output")


def test_attention_does_not_overflow(rng):
    """Scores of 1e4 and more: the row maximum is taken out before the exponential, on both paths."""
    module = randomize(nn.MultiHeadAttention(8, 2), rng, "float32")
    x, g = 300 * array(rng, (2, 6, 8), "float32"), array(rng, (2, 6, 8), "float32")
    fused = run_attention(module, x, g)
    with module.attend.register_forward_hook(lambda *_: None):
        hooked = run_attention(module, x, g)
    for found in (fused, hooked):
        assert all(np.isfinite(a).all() for a in found.values())


# --- embeddings -------------------------------------------------------------------------------------------------------


@each_run
@pytest.mark.parametrize("image, patch, channels", [((8, 8), 4, 3), ((6, 12), (3, 2), 1), ((4, 10), (4, 5), 2)])
def test_patch_embed_is_a_convolution(image, patch, channels, dtype, device, rng):
    module = randomize(nn.PatchEmbed(image, patch, channels, 5), rng, dtype)
    pair = (patch, patch) if isinstance(patch, int) else patch
    compare(
        module, reference.PatchEmbed(pair, channels, 5), array(rng, (3, *image, channels), dtype), rng, device=device
    )


def test_patch_embed_weight_as_a_convolution_kernel(rng):
    """What a reader of a checkpoint needs: (dim, ph pw C) reordered to (dim, C, ph, pw), for torch.nn.Conv2d."""
    module = randomize(nn.PatchEmbed((6, 8), (3, 4), 2, 5), rng)
    conv = torch_nn.Conv2d(2, 5, (3, 4), stride=(3, 4)).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(module.proj.weight.data.reshape(5, 3, 4, 2).transpose(0, 3, 1, 2).copy()))
        conv.bias.copy_(torch.tensor(module.proj.bias.data))
    x = array(rng, (2, 6, 8, 2))
    y = conv(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    assert_close(module(Tensor(x)).data, y.flatten(2).mT, "output")


@each_run
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("registers", [0, 1, 3])
def test_token_embed(class_token, registers, dtype, device, rng):
    patch = nn.PatchEmbed((6, 8), (3, 4), 2, 5)
    module = randomize(nn.TokenEmbed(patch, 5, class_token, registers), rng, dtype)
    theirs = reference.TokenEmbed((6, 8), (3, 4), 2, 5, class_token, registers)
    x = array(rng, (3, 6, 8, 2), dtype)
    compare(module, theirs, x, rng, device=device)
    assert module.prefix == class_token + registers
    assert module.tokens == 4 + class_token + registers == module(Tensor(x, device=device)).shape[1]


# --- blocks and the whole network -------------------------------------------------------------------------------------


@each_run
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_mlp(gelu, dtype, device, rng):
    module = randomize(MLP(6, 10, nn.Linear, gelu=gelu), rng, dtype)
    theirs = reference.MLP(6, 10, torch_nn.Linear, torch_nn.Linear, gelu)
    compare(module, theirs, array(rng, (2, 5, 6), dtype), rng, device=device)


@each_run
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_block(layer_scale, dtype, device, rng):
    module = randomize(Block(12, 3, 20, nn.Linear, nn.Linear, layer_scale), rng, dtype)
    theirs = reference.Block(12, 3, 20, layer_scale=layer_scale)
    compare(module, theirs, array(rng, (3, 7, 12), dtype), rng, 1e-4 if dtype == "float32" else None, device=device)


SMALL = {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 12, "depth": 2, "heads": 3, "mlp_ratio": 2}
NETWORKS = {
    "mean": {},
    "cls": {"pool": "cls"},
    "class token, mean of the patches": {"class_token": True},
    "registers": {"registers": 2},
    "cls, registers, layer scale": {"pool": "cls", "registers": 3, "layer_scale": 0.3},
    "not square": {"image_size": (6, 12), "patch_size": (3, 4), "in_channels": 1},
    "features only": {"num_classes": 0},
    "exact gelu, one head, uneven ratio": {"gelu": "none", "heads": 1, "mlp_ratio": 1.5, "eps": 1e-3},
    "no blocks": {"depth": 0},
}


def images(config, rng, dtype, n=3):
    size = config["image_size"]
    size = (size, size) if isinstance(size, int) else size
    return array(rng, (n, *size, config.get("in_channels", 3)), dtype)


@each_run
@pytest.mark.parametrize("name", NETWORKS)
def test_vision_transformer(name, dtype, device, rng):
    config = SMALL | NETWORKS[name]
    model = randomize(VisionTransformer(**config), rng, dtype)
    theirs = reference.VisionTransformer(**model.config)
    tolerance = 2e-4 if dtype == "float32" else 1e-10
    compare(model, theirs, images(config, rng, dtype), rng, tolerance, device=device)
    compare(model, theirs, images(config, rng, dtype, n=1), rng, tolerance, device=device)


# float64 only: in float32 the two libraries may round an activation to neighbouring codes.
@each_device
@pytest.mark.parametrize("bits, activation_bits", [(1.58, 8), (1, 8), (2, 4), (4, 8), (8, None), (1, 1)])
@pytest.mark.parametrize("extra", [{}, {"sub_norm": False, "granularity": "tensor", "scale": "absmedian"}])
def test_low_bit_vision_transformer(bits, activation_bits, extra, device, rng):
    config = SMALL | {"bits": bits, "activation_bits": activation_bits, "pool": "cls"} | extra
    model = randomize(VisionTransformer(**config), rng)
    compare(
        model, reference.VisionTransformer(**model.config), images(config, rng, "float64"), rng, 1e-9, device=device
    )


@each_device
def test_vision_transformer_with_a_hook_on_every_attention(device, rng):
    """What the visualizer does must change neither the output nor a gradient."""
    model = randomize(VisionTransformer(**SMALL), rng)
    seen = []
    for block in model.blocks:
        block.attn.attend.register_forward_hook(lambda attend, inputs, p: seen.append(p.shape))
    compare(
        model, reference.VisionTransformer(**model.config), images(SMALL, rng, "float64"), rng, 1e-10, device=device
    )
    assert seen == [(3, 3, 4, 4)] * 2


def test_an_empty_batch_gives_an_empty_result():
    model = VisionTransformer(**SMALL)
    assert model(np.zeros((0, 8, 8, 3), "float32")).shape == (0, 5)
