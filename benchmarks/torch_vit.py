"""The same Vision Transformer as good PyTorch: fused attention, one qkv projection, names as in tinybitvit."""

import torch
import torch.nn.functional as F
from torch import nn


class BitLinear(nn.Linear):
    """Row-wise low-bit weights and 8-bit activations, straight through, as in tinybitvit.quant.BitLinear."""

    def __init__(self, i, o, bits, norm=False):
        super().__init__(i, o)
        self.bits, self.norm = bits, nn.RMSNorm(i, eps=1e-6) if norm else None

    def forward(self, x):
        if self.norm is not None:
            x = self.norm(x)
        w = self.weight
        if self.bits == 1:
            u = w - w.mean(-1, keepdim=True)
            q = torch.where(u >= 0, 1.0, -1.0) * u.abs().mean(-1, keepdim=True)
        else:
            beta = w.abs().mean(-1, keepdim=True).clamp(min=1e-5)
            q = (w / beta).round().clamp(-1, 1) * beta
        s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + ((x * s).round().clamp(-128, 127) / s - x).detach()
        return F.linear(x, w + (q - w).detach(), self.bias)


class Attention(nn.Module):
    def __init__(self, dim, heads, linear, out):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, linear(dim, 3 * dim), out(dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class MLP(nn.Module):
    def __init__(self, dim, hidden, linear, out):
        super().__init__()
        self.fc1, self.fc2 = linear(dim, hidden), out(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden, linear, out):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp = Attention(dim, heads, linear, out), MLP(dim, hidden, linear, out)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embed(nn.Module):
    def __init__(self, patch, channels, tokens, dim):
        super().__init__()
        self.size = patch
        self.patch = nn.ModuleDict({"proj": nn.Linear(patch * patch * channels, dim)})
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, tokens, dim))

    def forward(self, x):
        n, h, w, c = x.shape
        p = self.size
        x = x.view(n, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(n, -1, p * p * c)
        return torch.cat([self.cls_token.expand(n, -1, -1), self.patch["proj"](x)], 1) + self.pos_embed


class VisionTransformer(nn.Module):
    """Class-token ViT; keywords as `engines.Job`."""

    def __init__(self, image, patch, dim, depth, heads, bits):
        super().__init__()
        linear = out = nn.Linear
        if bits != 32:

            def linear(i, o):
                return BitLinear(i, o, bits)

            def out(i, o):
                return BitLinear(i, o, bits, norm=True)

        self.embed = Embed(patch, 3, (image // patch) ** 2 + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, 4 * dim, linear, out) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, 10)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
