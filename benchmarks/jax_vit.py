"""The same Vision Transformer as a JAX function of a state dict (32 bits), with AdamW written out, all under jit."""

import jax
import jax.numpy as jnp


def layer_norm(x, s, name):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-6) * s[name + ".weight"] + s[name + ".bias"]


def linear(x, s, name):
    return x @ s[name + ".weight"].T + s[name + ".bias"]


def forward(s, x, patch, depth, heads):
    n, h, w, c = x.shape
    x = x.reshape(n, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, patch**2 * c)
    x = linear(x, s, "embed.patch.proj")
    cls = jnp.broadcast_to(s["embed.cls_token"], (n, 1, x.shape[-1]))
    x = jnp.concatenate([cls, x], 1) + s["embed.pos_embed"]
    t, d = x.shape[1:]
    for i in range(depth):
        b = f"blocks.{i}."
        qkv = linear(layer_norm(x, s, b + "norm1"), s, b + "attn.qkv").reshape(n, t, 3, heads, d // heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        p = jax.nn.softmax(q @ k.swapaxes(-1, -2) * (d // heads) ** -0.5, axis=-1)
        x = x + linear((p @ v).transpose(0, 2, 1, 3).reshape(n, t, d), s, b + "attn.proj")
        y = jax.nn.gelu(linear(layer_norm(x, s, b + "norm2"), s, b + "mlp.fc1"), approximate=True)
        x = x + linear(y, s, b + "mlp.fc2")
    return linear(layer_norm(x, s, "norm")[:, 0], s, "head")


def make_step(patch, depth, heads, lr=1e-3, decay=0.05):
    """A jitted (state, m, v, t, x, y) -> (state, m, v, loss): cross-entropy and one AdamW update."""

    def loss_of(s, x, y):
        log_p = jax.nn.log_softmax(forward(s, x, patch, depth, heads))
        return -log_p[jnp.arange(len(y)), y].mean()

    @jax.jit
    def step(s, m, v, t, x, y):
        loss, g = jax.value_and_grad(loss_of)(s, x, y)
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)

        def update(p, a, b):
            wd = decay if p.ndim == 2 else 0.0
            return p * (1 - lr * wd) - lr * (a / (1 - 0.9**t)) / (jnp.sqrt(b / (1 - 0.999**t)) + 1e-8)

        return jax.tree.map(update, s, m, v), m, v, loss

    return step
