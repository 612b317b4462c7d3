"""The Vision Transformer, Dosovitskiy et al. 2020 (arXiv 2010.11929), with low-bit linear layers."""

import copy
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from .. import backend
from .. import functional as F
from ..backend import check_number, plain
from ..nn import GELU, Dropout, LayerNorm, LayerScale, Linear, Module, MultiHeadAttention, PatchEmbed, TokenEmbed
from ..ops.patch import check_divides
from ..quant import BitLinear, PackedLinear, Quantizer, check_bits, choose_layout, find_quantizer
from ..quant.quantizer import OPTIONS, bits_beside
from ..tensor import Tensor

Builder = Callable[..., Module]  # (in_features, out_features) -> a linear layer


class MLP(Module):
    """fc2(gelu(fc1(x))): (..., dim) -> (..., hidden) -> (..., dim)."""

    def __init__(self, dim: int, hidden: int, linear: Builder = Linear, out: Builder | None = None, gelu: str = "tanh"):
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.act = GELU(gelu)
        self.fc2 = (out or linear)(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))): pre-norm, (N, T, dim) -> (N, T, dim).

    `linear(in, out)` builds qkv and fc1, `out(in, out)` builds proj and fc2, which for low bits have a norm of their
    own in front (SubLN).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        linear: Builder,
        out: Builder,
        layer_scale: float | None = None,
        dropout: float = 0.0,
        eps: float = 1e-6,
        gelu: str = "tanh",
    ):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps)
        self.attn = MultiHeadAttention(dim, heads, linear, out)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale is not None else None
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden, linear, out, gelu)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale is not None else None
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_branch(x)
        return x + self.mlp_branch(x)

    def attention_branch(self, x: Tensor) -> Tensor:
        """What attention adds to the tokens."""
        y = self.attn(self.norm1(x))
        return self.drop(y if self.ls1 is None else self.ls1(y))

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP adds to the tokens."""
        y = self.mlp(self.norm2(x))
        return self.drop(y if self.ls2 is None else self.ls2(y))


POOLS = ("mean", "cls", "cls+mean", "cls+dist")
LEAST = {"in_channels": 1, "num_classes": 0, "dim": 1, "depth": 0, "heads": 0, "registers": 0}
Size = int | tuple[int, int]  # one number, or (height, width)


@dataclass
class ViTConfig:
    """The options of a VisionTransformer. See `quant.BitLinear` for those of its low-bit layers."""

    image_size: Size
    patch_size: Size
    in_channels: int = 3  # colours of an image
    num_classes: int = 10  # 0 leaves out the head: the output is the pooled features (N, dim)
    dim: int = 192  # channels of a token
    depth: int = 6  # blocks
    heads: int = 3  # of attention, in every block
    mlp_ratio: float = 4  # width of the MLP / dim
    bits: float = 32  # of the weights of qkv, proj, fc1 and fc2; all others stay in full precision
    activation_bits: int | None = 8  # of the inputs of low-bit layers
    pool: str = "mean"  # of the patch tokens, or 'cls'; 'cls+mean' and 'cls+dist' (the first register) join two tokens
    _: KW_ONLY
    granularity: str = "row"  # one scale for each 'row' of a low-bit weight, or 'tensor'
    scale: str = "absmean"  # how the scale of a low-bit weight is found
    ste: str = "identity"  # gradient of the weights' quantiser
    sub_norm: bool | None = None  # a norm of its own before proj and fc2 (None: where bits < 32)
    layer_scale: float | None = None  # initial factor of a learnt scale per channel on each branch (None: without)
    class_token: bool | None = None  # (None: where `pool` reads it)
    registers: int = 0  # extra tokens that no image patch owns
    dropout: float = 0.0  # probability, after attention and MLP
    eps: float = 1e-6  # of the norms
    gelu: str = "tanh"  # or 'none', the exact one
    layout: str | None = None  # of PackedLinears, for inference only, to be filled by `load_state_dict` (see `pack`)
    quantizer: Quantizer | str | None = None  # of your own, or a built-in one's name: has bits and the like of its own

    def __post_init__(self):
        for name, value in vars(self).items():
            setattr(self, name, plain(value))
        if self.pool not in POOLS:
            raise ValueError(f"pool must be 'mean' or 'cls' (or, joined, 'cls+mean' or 'cls+dist'), not {self.pool!r}")
        if self.gelu not in ("none", "tanh"):
            raise ValueError(f"gelu must be 'tanh' or 'none' (the exact one), not {self.gelu!r}")
        for name, least in LEAST.items():
            check_number(name, getattr(self, name), whole=True)
            if getattr(self, name) < least:
                raise ValueError(f"{name} is too small for a network: choose a larger one")
        for name in ("mlp_ratio", "eps", "dropout"):
            check_number(name, getattr(self, name), 0, 1 if name == "dropout" else math.inf)
        if self.dim * self.mlp_ratio < 1:
            raise ValueError("mlp_ratio is too small for a network: choose a larger one")
        if self.layer_scale is not None:
            check_number("layer_scale", self.layer_scale)
        if self.quantizer is not None:
            self._take(find_quantizer(self.quantizer, self.granularity, self.scale, self.ste))
        self.bits, self.activation_bits = check_bits(self.bits, self.activation_bits, self.quantizer)
        check_divides(*F.as_pair(self.image_size), F.as_pair(self.patch_size))
        if self.class_token is None:
            self.class_token = "cls" in self.pool
        if ("cls" in self.pool and not self.class_token) or ("dist" in self.pool and not self.registers):
            raise ValueError(
                f"pool={self.pool!r} reads a token that this network lacks: add class_token=True or registers=1"
            )
        if self.sub_norm is None:
            self.sub_norm = self.bits != 32

    def _take(self, quantizer):
        """The options of a quantiser; a built-in one is nothing but them."""
        bits_beside(quantizer, self.bits, 32)
        for name in OPTIONS:
            setattr(self, name, getattr(quantizer, name))
        self.quantizer = None if quantizer.built_in else quantizer

    def linears(self, rng: backend.Generator) -> tuple[Builder, Builder]:
        """What builds qkv and fc1, and what builds proj and fc2, from (in_features, out_features)."""
        if self.bits == 32:
            return (partial(Linear, rng=rng),) * 2
        linear: Builder
        if self.layout is not None:
            options: Any = {"bits": self.bits, "granularity": self.granularity, "layout": self.layout}
            linear = partial(PackedLinear, activation_bits=self.activation_bits, **options)
        else:
            quantizer = self.quantizer or find_quantizer(self.bits, self.granularity, self.scale, self.ste)
            linear = partial(BitLinear, activation_bits=self.activation_bits, quantizer=quantizer, rng=rng)
        return linear, partial(linear, norm=self.sub_norm)


class VisionTransformer(Module):
    """Images (N, H, W, C), floats, channels last -> logits (N, num_classes).

    VisionTransformer(image_size, patch_size, in_channels, num_classes, ...): options are those of `ViTConfig`, and
    `config` is a dict of them. rng: numpy Generator for the initial weights (None: `tb.manual_seed`'s).
    """

    def __init__(self, *sizes: Any, rng: backend.Generator | None = None, **options: Any):
        super().__init__()
        config = ViTConfig(*sizes, **options)
        self.config = {name: value for name, value in vars(config).items() if name != "quantizer" or value is not None}
        rng = backend.current_rng() if rng is None else rng
        linear, out = config.linears(rng)
        patch = PatchEmbed(config.image_size, config.patch_size, config.in_channels, config.dim, rng)
        self.embed = TokenEmbed(patch, config.dim, bool(config.class_token), config.registers, rng)
        shape = config.dim, config.heads, int(config.dim * config.mlp_ratio)
        details: Any = config.layer_scale, config.dropout, config.eps, config.gelu
        self.blocks = [Block(*shape, linear, out, *details) for _ in range(config.depth)]
        self.norm = LayerNorm(config.dim, config.eps)
        width = config.dim * len(config.pool.split("+"))
        self.head = Linear(width, config.num_classes, rng=rng) if config.num_classes else None
        # {"mean": ..., "std": ...} of the images it was trained on, where known.
        self.preprocessing: dict[str, Any] | None = None
        self.file_bytes: int | None = None  # of the packed file that it came from

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.forward_features(x))

    def classify(self, x: Tensor) -> Tensor:
        """Pooling and head: tokens (N, prefix + T, dim) -> logits (N, num_classes)."""
        parts = [self._pooled(x, part) for part in self.config["pool"].split("+")]
        x = parts[0] if len(parts) == 1 else F.concatenate(parts, axis=1)
        return x if self.head is None else self.head(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last norm: (N, H, W, C) -> (N, prefix + T, dim)."""
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def tokens(self, x: Any) -> Tensor:
        """What the first block gets: (N, H, W, C) -> (N, prefix + T, dim)."""
        x = F.as_tensor(x)
        self._check_images(x)
        return self.embed(x)

    def _pooled(self, x, part):
        if part == "mean":
            return x[:, self.embed.prefix :].mean(axis=1)
        return x[:, ("cls", "dist").index(part)]

    def pack(self, layout: str | None = None) -> "VisionTransformer":
        """A copy for inference that holds packed bytes instead of latent weights (layout None: the fastest one).

        ValueError where there is nothing to pack: bits=32, or packed already.
        """
        bits = self.config["bits"]
        if bits == 32 or self.config["layout"]:
            state = "has no low-bit layers (bits=32)" if bits == 32 else "is packed already"
            raise ValueError(
                f"this model {state}: pack() needs a trained model with bits below 32 and its latent weights"
            )
        layers = [m for m in self.modules() if isinstance(m, BitLinear)]
        packed = copy.deepcopy(self, {id(layer): PackedLinear.from_bitlinear(layer, layout) for layer in layers})
        if quantizer := packed.config.pop("quantizer", None):  # its bytes are those of a built-in width
            bits = packed.config["bits"] = quantizer.packed_bits
            found = (m.granularity for m in packed.modules() if isinstance(m, PackedLinear))
            packed.config["granularity"] = next(found, "row")
        packed.config["layout"] = layout or choose_layout(bits)
        packed.zero_grad()
        return packed.eval()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights and buffers."""
        return sum(array.nbytes for array in self.state_dict().values())

    def _check_images(self, x):
        expected = (*self.embed.patch.image_size, self.embed.patch.in_channels)
        if x.shape[1:] == expected:
            return
        hint = ""
        if x.ndim == 4 and (*x.shape[2:], x.shape[1]) == expected:
            hint = ": channels come last here, use x.transpose(0, 2, 3, 1)"
        raise ValueError(f"the images have shape {tuple(x.shape)}, needed (N, {', '.join(map(str, expected))}){hint}")
