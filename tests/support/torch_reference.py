"""The networks of TinyBitViT as plain PyTorch modules, written from the formulas, and `compare`, which runs both.

Every module here has the parameter names of its counterpart, so that weights and gradients are copied and compared by
name. Straight-through estimators are written the usual way, `w + (q(w) - w).detach()`: autograd sees no rounding.
"""

import numpy as np
import torch
from devices import fetch, send, slack
from torch import nn
from torch.nn import functional as F

from tinybitvit import Tensor, backend

TOLERANCE = {"float64": 1e-11, "float32": 2e-5}  # of the largest element of an array

# --- copying and comparing --------------------------------------------------------------------------------------------


def randomize(module, rng, dtype="float64"):
    """Give every parameter of a TinyBitViT module random values of a dtype; returns the module.

    Fresh networks have zeros (biases, class token) and ones (norms), behind which a wrong gradient can hide.
    """
    for name, p in module.named_parameters():
        spread = 1.0 if name.endswith("gamma") or p.ndim != 2 else 1 / p.shape[1] ** 0.5
        p.data = (spread * rng.standard_normal(p.shape)).astype(dtype)
    return module


def copy_weights(module, reference):
    """Put the weights of a TinyBitViT module into the torch module with the same names; returns the latter."""
    state = {name: torch.tensor(fetch(p.data)) for name, p in module.named_parameters()}
    reference.to(next(iter(state.values())).dtype).load_state_dict(state)
    return reference


def assert_close(actual, expected, what="", tolerance=None):
    """Same shape and dtype, no element further off than `tolerance` of the largest (or of 0.01, where all cancel)."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    actual, rounding = fetch(actual), slack(backend.device_of(actual))
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, torch has {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, torch has {expected.dtype}"
    if expected.size:
        tolerance = TOLERANCE[expected.dtype.name] if tolerance is None else tolerance
        allowed = rounding * tolerance * max(float(np.abs(expected).max()), 0.01)
        error = float(np.abs(actual - expected).max())
        assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"  # a NaN fails, too


def compare(module, reference, x, rng, tolerance=None, device="cpu"):
    """Equal output and, for one random upstream gradient, equal gradients of the input and of every parameter.

    module: of TinyBitViT, moved to the device; reference: its torch counterpart (gets the weights copied); x: array.
    """
    copy_weights(module, reference)
    kept = x.copy()
    ours, theirs = Tensor(x, requires_grad=True, device=device), torch.tensor(x, requires_grad=True)
    module.to(device)
    y, expected = module(ours), reference(theirs)
    assert_close(y.data, expected, "output", tolerance)
    g = rng.standard_normal(y.shape).astype(y.dtype)
    module.zero_grad()
    reference.zero_grad()
    y.backward(send(g, device))
    expected.backward(torch.tensor(g))
    assert (fetch(ours.data) == kept).all(), "the input was changed in place"
    assert_close(ours.grad, theirs.grad, "gradient of the input", tolerance)
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in module.named_parameters():
        assert p.grad is not None, f"{name} got no gradient"
        assert_close(p.grad, gradients.pop(name), f"gradient of {name}", tolerance)
    assert not gradients, f"parameters that only torch has: {list(gradients)}"


# --- quantisers -------------------------------------------------------------------------------------------------------


def sign(x):
    """+1 or -1; unlike torch.sign never 0."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def paper_binary(w):
    """BitNet, arXiv 2310.11453, as in its authors' code: (w - mean w).sign() mean|w|, one scale for the tensor."""
    return sign(w - w.mean()) * w.abs().mean()


def paper_ternary(w):
    """BitNet b1.58, arXiv 2402.17764, its authors' weight_quant."""
    s = 1.0 / w.abs().mean().clamp(min=1e-5)
    return (w * s).round().clamp(-1, 1) / s


def paper_activations(x):
    """BitNet b1.58, its authors' activation_quant: 8 bits, one scale per token."""
    s = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    return (x * s).round().clamp(-128, 127) / s


class PaperBitLinear(nn.Linear):
    """The forward pass of the two BitNet papers: straight-through on both sides, one weight scale for the tensor."""

    def __init__(self, in_features, out_features, bits, bias=True, norm=False):
        super().__init__(in_features, out_features, bias)
        self.quantise_weight = {1: paper_binary, 1.58: paper_ternary}[bits]
        self.norm = nn.RMSNorm(in_features, eps=1e-6) if norm else None

    def forward(self, x):
        x = x if self.norm is None else self.norm(x)
        x = x + (paper_activations(x) - x).detach()
        w = self.weight + (self.quantise_weight(self.weight) - self.weight).detach()
        return F.linear(x, w, self.bias)


def magnitude(w, granularity, scale):
    """Mean, median or largest absolute value, of each row or of all."""
    size = w.abs() if granularity == "row" else w.abs().reshape(1, -1)
    if scale == "absmax":
        return size.amax(dim=-1, keepdim=True)
    # torch.median takes the lower of the two middle elements; the 0.5 quantile is half way between them
    return size.mean(dim=-1, keepdim=True) if scale == "absmean" else size.quantile(0.5, dim=-1, keepdim=True)


def stand_in(v, ste, width, temperature):
    """The smooth function of v whose slope a straight-through estimator uses: the integral of a(v) in ops/ste.py."""
    if ste == "identity":
        return v
    if ste == "clipped":
        return v.clamp(-width, width)
    if ste == "approx_sign":
        u = (v / width).clamp(-1, 1)
        return 2 * u - u * u.abs()
    return max(1 / temperature, 1.0) * torch.tanh(temperature * v)


class BitLinear(nn.Linear):
    """All widths, granularities, scales and estimators: y = Q_a(norm(x)) Q_w(W)^T + b."""

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        *,
        bits,
        activation_bits=8,
        granularity="row",
        scale="absmean",
        ste="identity",
        norm=False,
        temperature=1.0,
    ):
        super().__init__(in_features, out_features, bias)
        self.bits, self.activation_bits, self.granularity, self.scale = bits, activation_bits, granularity, scale
        self.ste, self.temperature = ste, temperature
        self.norm = nn.RMSNorm(in_features, eps=1e-6) if norm else None

    def forward(self, x):
        x = x if self.norm is None else self.norm(x)
        return F.linear(self.quantise_input(x), self.quantise_weight(self.weight), self.bias)

    def quantise_input(self, x):
        if self.activation_bits is None:
            return x
        if self.activation_bits == 1:
            beta = magnitude(x, "row", "absmean").clamp(min=1e-5).detach()
            surrogate = beta * stand_in(x / beta, "approx_sign", 2.0, None)
            return surrogate + (beta * sign(x) - surrogate).detach()
        top = 2 ** (self.activation_bits - 1) - 1
        s = top / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        return x + ((x * s).round().clamp(-top - 1, top) / s - x).detach()

    def quantise_weight(self, w):
        codes, beta, surrogate = self._parts(w)
        return surrogate + (beta * codes - surrogate).detach()

    def _parts(self, w):
        """Codes, scale, and what the backward pass differentiates in place of their product."""
        if self.bits == 1:
            mu = (w.mean(dim=-1, keepdim=True) if self.granularity == "row" else w.mean()).detach()
            # row-wise the least-squares scale, of the centred weight; per tensor the paper's, of the weight itself
            beta = magnitude(w - mu if self.granularity == "row" else w, self.granularity, self.scale)
            beta = beta.clamp(min=1e-5).detach()
            return sign(w - mu), beta, beta * stand_in((w - mu) / beta, self.ste, 3.0, self.temperature)
        if self.bits == 1.58:
            if self.scale == "twn":
                rows = w if self.granularity == "row" else w.reshape(1, -1)
                codes = torch.sign(w) * (w.abs() > 0.7 * rows.abs().mean(-1, keepdim=True))
                large = codes.abs().reshape(rows.shape)
                beta = (rows.abs() * large).sum(-1, keepdim=True) / large.sum(-1, keepdim=True)
                return codes.detach(), beta.detach(), w
            beta = magnitude(w, self.granularity, self.scale).clamp(min=1e-5).detach()
            return (w / beta).round().clamp(-1, 1), beta, beta * self._ternary_stand_in(w / beta)
        top = 2 ** (self.bits - 1) - 1
        factor = 1 / top if self.scale == "absmax" else 2 / top**0.5
        step = (magnitude(w, self.granularity, self.scale) * factor).clamp(min=1e-5).detach()
        inside = w / step if self.ste == "identity" else (w / step).clamp(-top - 1, top)
        return (w / step).round().clamp(-top - 1, top), step, step * inside

    def _ternary_stand_in(self, v):
        if self.ste in ("identity", "clipped"):
            return stand_in(v, self.ste, 3.0, None)
        parts = [stand_in(v + shift, self.ste, 1.0, self.temperature) for shift in (-0.5, 0.5)]
        return (parts[0] + parts[1]) / 2


# --- the Vision Transformer -------------------------------------------------------------------------------------------


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention, one head at a time."""

    def __init__(self, dim, heads, linear=nn.Linear, out=nn.Linear):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = linear(dim, 3 * dim), out(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        results = []
        for qh, kh, vh in zip(*(t.chunk(self.heads, dim=-1) for t in (q, k, v)), strict=True):
            results.append(F.softmax(qh @ kh.mT / qh.shape[-1] ** 0.5, dim=-1) @ vh)
        return self.proj(torch.cat(results, dim=-1))


class MLP(nn.Module):
    def __init__(self, dim, hidden, linear, out, gelu):
        super().__init__()
        self.fc1, self.fc2, self.gelu = linear(dim, hidden), out(hidden, dim), gelu

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class Block(nn.Module):
    """Pre-norm: x + ls1(attn(norm1 x)), then x + ls2(mlp(norm2 x))."""

    def __init__(self, dim, heads, hidden, linear=nn.Linear, out=nn.Linear, layer_scale=None, eps=1e-6, gelu="tanh"):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp = Attention(dim, heads, linear, out), MLP(dim, hidden, linear, out, gelu)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A convolution with kernel = stride = patch; its weight (dim, ph pw C) lies in (ph, pw, C) order."""

    def __init__(self, patch_size, in_channels, dim):
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        self.proj = nn.Linear(patch_size[0] * patch_size[1] * in_channels, dim)

    def forward(self, x):
        kernel = self.proj.weight.reshape(-1, *self.patch_size, self.in_channels).permute(0, 3, 1, 2)
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel, self.proj.bias, stride=self.patch_size)
        return y.flatten(2).mT


class TokenEmbed(nn.Module):
    """[class, registers, patches] tokens; positions on class and patch tokens only."""

    def __init__(self, image_size, patch_size, in_channels, dim, class_token, registers):
        super().__init__()
        self.patch = PatchEmbed(patch_size, in_channels, dim)
        patches = (image_size[0] // patch_size[0]) * (image_size[1] // patch_size[1])
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + class_token, dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None

    def forward(self, x):
        x = self.patch(x)
        first = 0 if self.cls_token is None else 1
        parts = [x + self.pos_embed[:, first:]]
        if self.reg_token is not None:
            parts.insert(0, self.reg_token.expand(len(x), -1, -1))
        if first:
            parts.insert(0, (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1))
        return torch.cat(parts, dim=1)


class VisionTransformer(nn.Module):
    """Takes the `config` of a tinybitvit.models.VisionTransformer as keywords."""

    def __init__(self, **config):
        super().__init__()
        c = self.config = config
        pair = {k: (c[k], c[k]) if isinstance(c[k], int) else tuple(c[k]) for k in ("image_size", "patch_size")}
        dim, hidden = c["dim"], int(c["dim"] * c["mlp_ratio"])
        linear = out = nn.Linear
        if c["bits"] != 32:
            options = {k: c[k] for k in ("bits", "activation_bits", "granularity", "scale", "ste")}

            def linear(i, o):
                return BitLinear(i, o, **options)

            def out(i, o):
                return BitLinear(i, o, **options, norm=c["sub_norm"])

        self.embed = TokenEmbed(
            pair["image_size"], pair["patch_size"], c["in_channels"], dim, c["class_token"], c["registers"]
        )
        self.blocks = nn.ModuleList(
            Block(dim, c["heads"], hidden, linear, out, c["layer_scale"], c["eps"], c["gelu"])
            for _ in range(c["depth"])
        )
        self.norm = nn.LayerNorm(dim, c["eps"])
        self.head = nn.Linear(dim, c["num_classes"]) if c["num_classes"] else nn.Identity()

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        prefix = self.config["class_token"] + self.config["registers"]
        return self.head(x[:, 0] if self.config["pool"] == "cls" else x[:, prefix:].mean(dim=1))
