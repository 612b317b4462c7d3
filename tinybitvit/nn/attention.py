"""Multi-head self-attention."""

from collections.abc import Callable

from .. import functional as F
from ..tensor import Tensor
from .layers import Linear
from .module import Module


class Attend(Module):
    """The attention probabilities p = softmax(q k^T / sqrt d): q, k (N, h, T, d) -> (N, h, T, T).

    A module of its own so that a forward hook on it sees the probabilities; see `tb.viz.attention`.
    """

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        return F.softmax((q @ k.transpose(0, 1, 3, 2)) * scale)


class MultiHeadAttention(Module):
    """Self-attention of `heads` heads: (N, T, dim) -> (N, T, dim); Vaswani et al. 2017, section 3.2.2.

    qkv: one projection for queries, keys and values (dim -> 3 dim); proj: the output projection. `linear(in, out)` and
    `proj` build them (default: Linear), so that low-bit layers can be put in.

    Without hooks on `attend` one fused operation computes all heads; with hooks the probabilities are computed as a
    Tensor of their own, the same numbers at the price of more memory.
    """

    def __init__(
        self, dim: int, heads: int, linear: Callable[[int, int], Module] = Linear, proj: Callable | None = None
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide dim: {dim} is not a multiple of {heads}")
        self.heads = heads
        self.qkv = linear(dim, 3 * dim)
        self.attend = Attend()
        self.proj = (proj or linear)(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        return self.proj(self._explicit(qkv) if self.attend.has_hooks else F.multi_head_attention(qkv, self.heads))

    def _explicit(self, qkv: Tensor) -> Tensor:
        n, t, width = qkv.shape
        split = qkv.reshape(n, t, 3, self.heads, width // (3 * self.heads)).transpose(2, 0, 3, 1, 4)  # (3, N, h, T, d)
        y = self.attend(split[0], split[1]) @ split[2]  # (N, h, T, d)
        return y.transpose(0, 2, 1, 3).reshape(n, t, width // 3)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
