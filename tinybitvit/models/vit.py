"""The Vision Transformer, Dosovitskiy et al. 2020 (arXiv 2010.11929), with low-bit linear layers."""

import copy
from functools import partial

from .. import backend
from .. import functional as F
from ..nn import GELU, Dropout, LayerNorm, LayerScale, Linear, Module, MultiHeadAttention, PatchEmbed, TokenEmbed
from ..ops.patch import check_divides
from ..quant import BitLinear, PackedLinear, check_bits, choose_layout, find_quantizer


class MLP(Module):
    """fc2(gelu(fc1(x))): (..., dim) -> (..., hidden) -> (..., dim)."""

    def __init__(self, dim, hidden, linear=Linear, out=None, gelu="tanh"):
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.act = GELU(gelu)
        self.fc2 = (out or linear)(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))): pre-norm, (N, T, dim) -> (N, T, dim).

    `linear(in, out)` builds qkv and fc1, `out(in, out)` builds proj and fc2, which for low bits have a norm of their
    own in front (SubLN).
    """

    def __init__(self, dim, heads, hidden, linear, out, layer_scale=None, dropout=0.0, eps=1e-6, gelu="tanh"):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps)
        self.attn = MultiHeadAttention(dim, heads, linear, out)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale is not None else None
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden, linear, out, gelu)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale is not None else None
        self.drop = Dropout(dropout)

    def forward(self, x):
        x = x + self.attention_branch(x)
        return x + self.mlp_branch(x)

    def attention_branch(self, x):
        y = self.attn(self.norm1(x))
        return self.drop(y if self.ls1 is None else self.ls1(y))

    def mlp_branch(self, x):
        y = self.mlp(self.norm2(x))
        return self.drop(y if self.ls2 is None else self.ls2(y))


POOLS = ("mean", "cls", "cls+mean", "cls+dist")


class VisionTransformer(Module):
    """Images (N, H, W, C), floats, channels last -> logits (N, num_classes).

    image_size, patch_size: int or (height, width). num_classes=0 leaves out the head: the output is the pooled
    features (N, dim). bits, activation_bits, granularity, scale, ste: see `quant.BitLinear`; qkv, proj, fc1 and fc2
    of every block are low-bit, while patch embedding, norms, biases, positions and head stay in full precision. pool:
    'mean' over the patch tokens or 'cls'; 'cls+mean' and 'cls+dist' (the class token and the first register, DeiT's
    distillation token) join two of dim numbers each. sub_norm: an extra norm before proj and fc2 (None: where bits <
    32). layer_scale: initial factor of a learnt scale per channel on each branch (None: no such layer). registers:
    extra tokens that no image patch owns. layout: build `PackedLinear`s of this layout, for inference only, to be
    filled by `load_state_dict` (see `pack`). quantizer: a `quant.Quantizer` of your own or a built-in one's name,
    instead of bits. rng: numpy Generator for the initial weights (None: `tb.manual_seed`'s).
    """

    def __init__(
        self,
        image_size,
        patch_size,
        in_channels=3,
        num_classes=10,
        dim=192,
        depth=6,
        heads=3,
        mlp_ratio=4,
        bits=32,
        activation_bits=8,
        pool="mean",
        *,
        granularity="row",
        scale="absmean",
        ste="identity",
        sub_norm=None,
        layer_scale=None,
        class_token=None,
        registers=0,
        dropout=0.0,
        eps=1e-6,
        gelu="tanh",
        layout=None,
        quantizer=None,
        rng=None,
    ):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool must be 'mean' or 'cls' (or, joined, 'cls+mean' or 'cls+dist'), not {pool!r}")
        check_sizes(in_channels=in_channels, dim=dim, mlp_ratio=dim * mlp_ratio, depth=depth + 1)
        if quantizer is not None:
            quantizer, given = find_quantizer(quantizer, granularity, scale, ste), bits
            if given not in (32, quantizer.bits):
                raise ValueError(f"bits={given} and quantizer={quantizer!r} contradict each other: leave bits out")
            bits, granularity, scale, ste = (getattr(quantizer, n) for n in ("bits", "granularity", "scale", "ste"))
        else:
            bits, activation_bits = check_bits(bits, activation_bits)
        rng = backend.current_rng() if rng is None else rng
        class_token = "cls" in pool if class_token is None else class_token
        if ("cls" in pool and not class_token) or ("dist" in pool and not registers):
            raise ValueError(
                f"pool={pool!r} reads a token that this network lacks: add class_token=True or registers=1"
            )
        sub_norm = bits != 32 if sub_norm is None else sub_norm
        self.config = {k: v for k, v in locals().items() if k not in ("self", "rng", "quantizer", "given", "__class__")}
        if quantizer is not None and not quantizer.built_in:
            self.config["quantizer"] = quantizer
        check_divides(*F.as_pair(image_size), F.as_pair(patch_size))
        if bits == 32:
            linear = out = partial(Linear, rng=rng)
        elif layout is None:
            quantizer = quantizer or find_quantizer(bits, granularity, scale, ste)
            linear = partial(BitLinear, quantizer=quantizer, activation_bits=activation_bits, rng=rng)
        else:
            options = {"activation_bits": activation_bits, "granularity": granularity}
            linear = partial(PackedLinear, bits=bits, layout=layout, **options)
        if bits != 32:
            out = partial(linear, norm=sub_norm)

        patch = PatchEmbed(image_size, patch_size, in_channels, dim, rng)
        self.embed = TokenEmbed(patch, dim, class_token, registers, rng)
        self.blocks = [
            Block(dim, heads, int(dim * mlp_ratio), linear, out, layer_scale, dropout, eps, gelu) for _ in range(depth)
        ]
        self.norm = LayerNorm(dim, eps)
        self.head = Linear(dim * len(pool.split("+")), num_classes, rng=rng) if num_classes else None
        self.preprocessing = None  # {"mean": ..., "std": ...} of the images it was trained on, where known

    def forward(self, x):
        return self.classify(self.forward_features(x))

    def classify(self, x):
        """Pooling and head: tokens (N, prefix + T, dim) -> logits (N, num_classes)."""
        parts = [self._pooled(x, part) for part in self.config["pool"].split("+")]
        x = parts[0] if len(parts) == 1 else F.concatenate(parts, axis=1)
        return x if self.head is None else self.head(x)

    def forward_features(self, x):
        """All tokens after the last norm: (N, H, W, C) -> (N, prefix + T, dim)."""
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def tokens(self, x):
        """What the first block gets: (N, H, W, C) -> (N, prefix + T, dim)."""
        x = F.as_tensor(x)
        self._check_images(x)
        return self.embed(x)

    def _pooled(self, x, part):
        if part == "mean":
            return x[:, self.embed.prefix :].mean(axis=1)
        return x[:, ("cls", "dist").index(part)]

    def pack(self, layout=None):
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
        packed.config["layout"] = layout or choose_layout(bits)
        packed.zero_grad()
        return packed.eval()

    @property
    def nbytes(self):
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


def check_sizes(**sizes):
    """ValueError where a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is too small for a network: choose a larger one")
