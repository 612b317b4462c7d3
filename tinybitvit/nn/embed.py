"""Images to tokens."""

from typing import Any

from .. import backend
from .. import functional as F
from ..backend import Generator
from ..tensor import Tensor
from .layers import Linear, normal, zeros
from .module import Module, Parameter


class PatchEmbed(Module):
    """Cut images into patches and project each linearly: (N, H, W, C) -> (N, T, dim), T = (H / ph) (W / pw).

    The convolution with kernel = stride = patch of other implementations, written as what it is: one matrix product.
    """

    def __init__(
        self, image_size: Any, patch_size: Any, in_channels: int, dim: int, rng: Generator | None = None
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size = F.as_pair(image_size), F.as_pair(patch_size)
        self.in_channels = in_channels
        self.grid = self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]
        self.proj = Linear(self.patch_size[0] * self.patch_size[1] * in_channels, dim, rng=rng)

    def forward(self, x: Any) -> Tensor:
        return self.proj(F.patchify(x, self.patch_size))

    def extra_repr(self) -> str:
        return f"image_size={self.image_size}, patch_size={self.patch_size}"


class TokenEmbed(Module):
    """Patch tokens with their positions, after `prefix` learnt extra tokens: (N, H, W, C) -> (N, prefix + T, dim).

    cls_token (1, 1, dim) and reg_token (1, registers, dim; Darcet et al. 2023, arXiv 2309.16588) come first; pos_embed
    (1, T or 1 + T, dim) is added to patches and class token, not to registers.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        dim: int,
        class_token: bool = False,
        registers: int = 0,
        rng: Generator | None = None,
    ) -> None:
        super().__init__()
        rng = backend.current_rng() if rng is None else rng
        tokens = patch_embed.grid[0] * patch_embed.grid[1] + class_token
        self.patch = patch_embed
        self.cls_token = Parameter(zeros(1, 1, dim)) if class_token else None
        self.reg_token = Parameter(normal(rng, (1, registers, dim))) if registers else None
        self.pos_embed = Parameter(normal(rng, (1, tokens, dim), std=0.2))
        self.prefix = class_token + registers
        self.tokens = tokens + registers

    def forward(self, x: Any) -> Tensor:
        x = self.patch(x)
        n, _, dim = x.shape
        if self.cls_token is None:
            x = x + self.pos_embed
            head = []
        else:
            x = F.concatenate([F.broadcast_to(self.cls_token, (n, 1, dim)), x], axis=1) + self.pos_embed
            head = [x[:, :1]]
        if self.reg_token is None:
            return x
        registers = F.broadcast_to(self.reg_token, (n, *self.reg_token.shape[1:]))
        return F.concatenate([*head, registers, x[:, len(head) :]], axis=1)
