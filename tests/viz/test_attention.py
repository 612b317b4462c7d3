"""tb.viz.attention: what is recorded, that the model is left alone, and what is computed from the maps."""

import math

import numpy as np
import pytest
import torch

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import nn
from tinybitvit.models import VisionTransformer
from tinybitvit.viz import AttentionRecord, Layout, attention, measures

LAYOUTS = [
    {},
    {"class_token": True},
    {"pool": "cls", "registers": 3},
    {"registers": 2},
    {"bits": 1.58, "pool": "cls"},
    {"bits": 1},
    {"pool": "cls+mean"},
    {"pool": "cls+dist", "registers": 1},
]


def network(rng, *, image_size=(6, 8), patch_size=(3, 2), depth=3, classes=5, dtype="float32", **options):
    """A small network, 2 x 4 patches, whose heads look at something: attention from initial weights is nearly even."""
    model = VisionTransformer(
        image_size, patch_size, 2, num_classes=classes, dim=12, depth=depth, heads=3, mlp_ratio=2, rng=rng, **options
    )
    for name, p in model.named_parameters():
        if p.ndim == 2 and "qkv" in name:
            p.data *= 4
        p.data = (p.data + 0.05 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def images(rng, n=4, shape=(6, 8, 2), dtype="float32"):
    return rng.standard_normal((n, *shape)).astype(dtype)


def random_maps(rng, layers=3, n=2, heads=3, tokens=6):
    """Attention maps without a network: softmax of noise."""
    e = np.exp(2 * rng.standard_normal((layers, n, heads, tokens, tokens)))
    return list(e / e.sum(-1, keepdims=True))


def record_of(maps, layout=None, gradients=None):
    n, _, tokens, _ = maps[0].shape
    return AttentionRecord(
        maps, layout or Layout((1, tokens)), np.zeros((n, 1, tokens, 1)), np.zeros((n, 2)), [0, 1], gradients
    )


# --- recording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", LAYOUTS)
def test_maps_logits_and_layout(rng, options):
    model, X = network(rng, **options), images(rng)
    record = attention(model, X)
    prefix = (options.get("class_token", False) or "cls" in options.get("pool", "")) + options.get("registers", 0)
    assert record.layout.grid == (2, 4) and record.layout.patch_size == (3, 2)
    assert record.layout.prefix == prefix and record.layout.tokens == prefix + 8 == len(record.layout.names)
    assert [a.shape for a in record.maps] == [(4, 3, prefix + 8, prefix + 8)] * 3
    for a in record.maps:
        assert (a >= 0).all() and np.allclose(a.sum(-1), 1, atol=1e-6)
        assert a.std() > 0.01  # the heads do not all look everywhere
    with tb.no_grad():
        expected = model.eval()(X).numpy()
    np.testing.assert_allclose(record.logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(record.images, X)
    assert record.gradients is None and record.target is None


def test_maps_are_those_of_the_layers(rng):
    """Layer 1's map, recomputed by hand from what the block before it puts out."""
    model, X = network(rng, pool="cls"), images(rng)
    record = attention(model, X)
    with tb.no_grad():
        x = model.embed(F.as_tensor(X))
        block = model.blocks[1]
        q, k, _ = np.split(block.attn.qkv(block.norm1(model.blocks[0](x))).numpy(), 3, axis=-1)
    split = [a.reshape(4, 9, 3, 4).transpose(0, 2, 1, 3).astype("float64") for a in (q, k)]
    scores = np.exp(split[0] @ split[1].transpose(0, 1, 3, 2) / math.sqrt(4))
    np.testing.assert_allclose(record.maps[1], scores / scores.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", [None, "predicted"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_batch_equals_single_images(rng, target, batch_size):
    model, X = network(rng, bits=1.58), images(rng, 5)
    record = attention(model, X, target=target, batch_size=batch_size)
    for i in range(5):
        single = attention(model, X[i : i + 1], target=target)
        for layer in range(3):
            np.testing.assert_allclose(record.maps[layer][i], single.maps[layer][0], rtol=1e-4, atol=1e-6)
            if target:
                a, b = record.gradients[layer][i], single.gradients[layer][0]
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


def test_vit_estimator(rng):
    X = rng.integers(0, 255, (30, 6, 8, 2), dtype="uint8")
    y = np.array(["cat", "dog", "<eel>"])[np.arange(30) % 3]
    model = tb.ViT(bits=1.58, patch_size=(3, 2), dim=12, depth=2, heads=3, epochs=1, verbose=0, random_state=0).fit(
        X, y
    )
    record = attention(model, X[:4], target="dog")
    assert list(record.predictions) == list(model.predict(X[:4]))
    np.testing.assert_allclose(record.probabilities, model.predict_proba(X[:4]), atol=1e-5)
    assert record.classes == model.classes_.tolist() and list(record.target) == [record.classes.index("dog")] * 4
    np.testing.assert_array_equal(record.images, X[:4])
    same = attention(model.model_, model.prepare(X[:4]), target=1)
    np.testing.assert_array_equal(record.maps[1], same.maps[1])
    with pytest.raises(ValueError, match="'bird' is not among the model's classes"):
        attention(model, X[:4], target="bird")


def test_vit_estimator_with_flat_rows(rng):
    X = rng.random((20, 64))
    model = tb.ViT(dim=8, depth=1, heads=2, epochs=1, verbose=0).fit(X, np.arange(20) % 2)
    record = attention(model, X[:3])
    np.testing.assert_array_equal(record.images, X[:3].reshape(3, 8, 8, 1))
    assert record.layout.grid == (4, 4)


def test_packed_model(rng):
    model, X = network(rng, bits=1.58, pool="cls"), images(rng)
    before = attention(model, X)
    model = model.pack()
    packed = attention(model, X)
    for a, b in zip(before.maps, packed.maps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(RuntimeError, match="gradients need the unpacked model"):
        attention(model, X, target="predicted")


def test_a_network_without_a_head(rng):
    record = attention(network(rng, classes=0, pool="cls"), images(rng))
    assert record.logits is None and record.image_map("mean").shape == (4, 2, 4)
    with pytest.raises(RuntimeError, match="no classification head"):
        _ = record.predictions
    with pytest.raises(RuntimeError, match="no classification head"):
        attention(network(rng, classes=0), images(rng), target=0)


class Other(nn.Module):
    """A network that is no VisionTransformer: 2 x 3 pixels, each one a token."""

    def __init__(self, rng, attention_class=nn.MultiHeadAttention):
        super().__init__()
        self.lift = nn.Linear(1, 4, rng=rng)
        self.attn = attention_class(4, 2)
        self.head = nn.Linear(4, 3, rng=rng)

    def forward(self, x):
        return self.head(self.attn(self.lift(x.reshape(len(x), 6, 1))).mean(axis=1))


def test_a_network_of_ones_own(rng):
    X, model = images(rng, 2, (2, 3, 1)), Other(rng)
    with pytest.raises(ValueError, match="pass layout="):
        attention(model, X)
    record = attention(model, X, layout=Layout((2, 3)), target=2)
    assert record.maps[0].shape == (2, 2, 6, 6) and record.image_map("gradient").shape == (2, 2, 3)
    with pytest.raises(RuntimeError, match="the layout has 8 tokens"):
        attention(model, X, layout=Layout((2, 4)))


class Fused(nn.MultiHeadAttention):
    """Attention that never calls its `attend`, hooks or not."""

    def forward(self, x):
        return self.proj(F.multi_head_attention(self.qkv(x), self.heads))


def test_a_missing_map_is_an_error(rng):
    with pytest.raises(RuntimeError, match=r"no attention came from attn\.attend"):
        attention(Other(rng, Fused), images(rng, 2, (2, 3, 1)), layout=Layout((2, 3)))
    with pytest.raises(RuntimeError, match=r"no nn\.Attend module"):
        attention(nn.Linear(3, 3), images(rng, 2, (3,)), layout=Layout((1, 3)))


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("bad", [False, True])
def test_the_model_is_left_alone(rng, target, bad):
    model = network(rng, dropout=0.5)
    model.blocks[1].eval()
    model.parameters()[0].grad = np.ones(3)
    modes = [m.training for m in model.modules()]
    state = {k: v.copy() for k, v in model.state_dict().items()}
    X = images(rng, 4, (8, 6, 2) if bad else (6, 8, 2))
    if bad:
        with pytest.raises(ValueError, match="the images have shape"):
            attention(model, X, target=target)
    else:
        first, second = attention(model, X, target=target), attention(model, X, target=target)
        np.testing.assert_array_equal(first.maps[2], second.maps[2])  # no dropout
    assert [m.training for m in model.modules()] == modes and len(set(modes)) == 2
    assert not any(m.has_hooks for m in model.modules())
    assert all(np.array_equal(state[k], v) for k, v in model.state_dict().items())
    grads = [p.grad for p in model.parameters()]
    assert np.array_equal(grads[0], np.ones(3)) and all(g is None for g in grads[1:])


def test_hooks_of_others_stay_and_are_seen(rng):
    model, X = network(rng), images(rng)
    even = np.full((4, 3, 8, 8), 1 / 8, "float32")
    with model.blocks[0].attn.attend.register_forward_hook(lambda *_: F.as_tensor(even)):
        record = attention(model, X)
        assert model.blocks[0].attn.attend.has_hooks
    np.testing.assert_array_equal(record.maps[0], even)


@pytest.mark.parametrize(
    ("X", "target", "error", "text"),
    [
        (np.zeros((2, 6, 8, 2), "uint8"), None, ValueError, "normalised floats, not uint8"),
        (np.zeros((0, 6, 8, 2), "float32"), None, ValueError, "no image"),
        (np.zeros((2, 6, 8, 2), "float32"), 5, ValueError, "class numbers from 0 to 4, not 5"),
        (np.zeros((2, 6, 8, 2), "float32"), [0, -1], ValueError, "class numbers from 0 to 4, not -1"),
        (np.zeros((2, 6, 8, 2), "float32"), [0, 1, 2], ValueError, "one class for each of the 2 images"),
        (np.zeros((2, 6, 8, 2), "float32"), "cat", ValueError, "class numbers for a network without labels"),
    ],
)
def test_bad_input(rng, X, target, error, text):
    with pytest.raises(error, match=text):
        attention(network(rng), X, target=target)


def test_gradients_inside_no_grad(rng):
    with tb.no_grad(), pytest.raises(RuntimeError, match="inside no_grad"):
        attention(network(rng), images(rng), target=0)


# --- gradients --------------------------------------------------------------------------------------------------------


def torch_gradients(model, X, target):
    """The same network in torch, from copied weights: every layer's map and d(logit of the target)/d(map)."""
    w = {k: torch.from_numpy(v) for k, v in model.state_dict().items()}
    n, heads, dim = len(X), 3, 12
    patches = X.reshape(n, 2, 3, 4, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(n, 8, 12)
    x = torch.from_numpy(patches) @ w["embed.patch.proj.weight"].T + w["embed.patch.proj.bias"]
    x = torch.cat([w["embed.cls_token"].expand(n, 1, dim), x], dim=1) + w["embed.pos_embed"]
    norm = lambda x, name: torch.nn.functional.layer_norm(  # noqa: E731
        x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6
    )
    dense = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    maps = []
    for i in range(len(model.blocks)):
        b = f"blocks.{i}"
        q, k, v = (
            a.reshape(n, 9, heads, 4).transpose(1, 2)
            for a in dense(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").split(dim, -1)
        )
        p = torch.softmax(q @ k.transpose(2, 3) / 2, -1).requires_grad_()
        p.retain_grad()
        maps.append(p)
        x = x + dense((p @ v).transpose(1, 2).reshape(n, 9, dim), f"{b}.attn.proj")
        h = torch.nn.functional.gelu(dense(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1"), approximate="tanh")
        x = x + dense(h, f"{b}.mlp.fc2")
    logits = dense(norm(x, "norm")[:, 0], "head")
    logits[torch.arange(n), torch.as_tensor(target)].sum().backward()
    return [p.detach().numpy() for p in maps], [p.grad.numpy() for p in maps]


def test_each_layer_has_its_own_gradient(rng):
    """Against torch's autograd: a list of gradients in the wrong order (backward hooks fire last layer first) fails."""
    model, X = network(rng, pool="cls", dtype="float64"), images(rng, dtype="float64")
    target = np.array([3, 0, 0, 4])
    record = attention(model, X, target=target)
    maps, gradients = torch_gradients(model, X, target)
    for layer in range(3):
        np.testing.assert_allclose(record.maps[layer], maps[layer], atol=1e-10)
        g = gradients[layer]
        np.testing.assert_allclose(record.gradients[layer], g, atol=1e-9 * np.abs(g).max())
        assert not np.allclose(g, gradients[2 - layer], atol=0.1 * np.abs(g).max()) or layer == 1
    r = np.broadcast_to(np.eye(9), (4, 9, 9))
    for a, g in zip(maps, gradients, strict=True):
        r = r + (a * g).clip(0).mean(1) @ r
    expected = r - np.eye(9)
    positive = expected.sum(-1) > 0
    expected = expected / np.where(positive, expected.sum(-1), 1)[..., None]
    result = record.gradient_rollout()
    np.testing.assert_allclose(result[positive], expected[positive], atol=1e-9)
    np.testing.assert_allclose(result.sum(-1), 1)


def test_gradient_rollout_differs_between_classes(rng):
    model, X = network(rng, pool="cls"), images(rng)
    a, b = (attention(model, X, target=c).image_map("gradient") for c in (0, 1))
    assert (np.abs(a - b).max(axis=(1, 2)) > 0.01).all()
    predicted = attention(model, X, target="predicted")
    np.testing.assert_array_equal(predicted.target, predicted.logits.argmax(axis=1))


def test_gradient_rollout_of_one_layer(rng):
    maps = random_maps(rng, layers=1)
    gradients = [rng.standard_normal(maps[0].shape)]
    weighted = np.maximum(maps[0] * gradients[0], 0).mean(1)
    expected = weighted / weighted.sum(-1, keepdims=True)
    np.testing.assert_allclose(record_of(maps, gradients=gradients).gradient_rollout(), expected)


def test_gradient_rollout_without_gradients(rng):
    with pytest.raises(RuntimeError, match="record again with attention"):
        record_of(random_maps(rng)).gradient_rollout()
    nothing = record_of(random_maps(rng), gradients=[np.zeros_like(a) for a in random_maps(rng)])
    np.testing.assert_array_equal(nothing.gradient_rollout(), np.broadcast_to(np.eye(6), (2, 6, 6)))


# --- rollout ----------------------------------------------------------------------------------------------------------


def slow_rollout(maps, residual, discard, heads):
    """Rollout for one image in plain Python numbers: maps is a list of (heads, T, T)."""
    tokens = maps[0].shape[-1]
    r = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for a in maps:
        fused = []
        for i in range(tokens):
            columns = [[float(a[h, i, j]) for h in range(len(a))] for j in range(tokens)]
            pick = {"mean": lambda c: sum(c) / len(c), "max": max, "min": min}.get(heads, lambda c: c[heads])
            row = [pick(c) for c in columns]
            row = [v / sum(row) for v in row]
            for j in sorted(range(tokens), key=lambda j: row[j])[: int(discard * tokens)]:
                row[j] = 0.0
            fused.append([(1 - residual) * v / sum(row) + residual * (i == j) for j, v in enumerate(row)])
        r = [[sum(fused[i][k] * r[k][j] for k in range(tokens)) for j in range(tokens)] for i in range(tokens)]
    return np.array(r)


@pytest.mark.parametrize("heads", ["mean", "max", "min", 1])
@pytest.mark.parametrize(("residual", "discard"), [(0.5, 0.0), (0.2, 0.5), (0.0, 0.9), (0.5, 0.17)])
def test_rollout_against_plain_python(rng, heads, residual, discard):
    maps = random_maps(rng)
    record = record_of([a.astype("float32") for a in maps])
    result = record.rollout(residual=residual, discard=discard, heads=heads)
    assert result.dtype == "float64"
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-12)
    for i in range(2):
        expected = slow_rollout([a[i].astype("float32") for a in maps], residual, discard, heads)
        np.testing.assert_allclose(result[i], expected, atol=1e-12)


def test_rollout_of_a_range_of_layers(rng):
    maps = random_maps(rng, layers=4)
    record = record_of(maps)
    np.testing.assert_allclose(record.rollout(1, 3), record_of(maps[1:3]).rollout())
    np.testing.assert_allclose(record.rollout(-1), record_of(maps[3:]).rollout())
    np.testing.assert_allclose(record.matrix("rollout", layer=1), record.rollout(stop=2))
    np.testing.assert_allclose(record.matrix("rollout", layer=-1, residual=0.3), record.rollout(residual=0.3))
    with pytest.raises(ValueError, match="there are 4, counted from 0"):
        record.rollout(4)


def test_identity_rolls_out_to_identity():
    eye = np.broadcast_to(np.eye(5), (2, 3, 5, 5))
    record = record_of([eye] * 4, gradients=[eye] * 4)
    np.testing.assert_array_equal(record.rollout(), eye[:, 0])
    np.testing.assert_allclose(record.gradient_rollout(), eye[:, 0])


def test_one_layer_has_a_closed_form(rng):
    maps = random_maps(rng, layers=1)
    mean = maps[0].mean(1)
    np.testing.assert_allclose(record_of(maps).rollout(residual=0.5), 0.5 * np.eye(6) + 0.5 * mean)
    np.testing.assert_allclose(record_of(maps).rollout(residual=0), mean)
    np.testing.assert_array_equal(record_of(maps).rollout(residual=1), np.broadcast_to(np.eye(6), (2, 6, 6)))


@pytest.mark.parametrize("method", ["rollout", "gradient", "mean", "max", "min", 0, 2])
def test_rows_sum_to_one(rng, method):
    record = attention(network(rng, registers=2, pool="cls"), images(rng), target="predicted")
    for layer in (0, 2, -1):
        a = record.matrix(method, layer)
        assert a.shape == (4, 11, 11) and a.dtype == "float64" and (a >= 0).all()
        np.testing.assert_allclose(a.sum(-1), 1, atol=1e-12)


def test_options_out_of_range(rng):
    record = record_of(random_maps(rng))
    with pytest.raises(ValueError, match="residual is a weight between 0 and 1"):
        record.rollout(residual=1.5)
    with pytest.raises(ValueError, match="discard is the share"):
        record.rollout(discard=1.0)
    for heads in ("median", 3):
        with pytest.raises(ValueError, match="heads must be 'mean', 'max', 'min' or a number from 0 to 2"):
            record.layer(0, heads)


# --- numbers and places -----------------------------------------------------------------------------------------------


def test_entropy(rng):
    layout = Layout((2, 4), class_token=True, pool="cls")
    even, one = np.full((2, 1, 9, 9), 1 / 9), np.broadcast_to(np.eye(9), (2, 1, 9, 9))
    result = record_of([even, one], layout).entropy()
    np.testing.assert_allclose(result, [[[math.log2(9)], [0]]] * 2, atol=1e-12)
    half = np.zeros((1, 1, 9, 9))
    half[..., :2] = 0.5
    half[..., 0, :] = np.eye(9)[0]  # the class token's own row does not count
    np.testing.assert_allclose(record_of([half], layout).entropy(), 1)


def test_mean_distance():
    """Three patches: one looks at itself, one at a neighbour, one evenly at all (the register does not count)."""
    layout = Layout((1, 3), patch_size=(4, 8), registers=1)
    a = np.zeros((1, 1, 4, 4))
    a[0, 0] = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0.1, 0.3, 0.3, 0.3]]
    record = record_of([a], layout)
    np.testing.assert_allclose(record.distance(), (0 + 1 + 1) / 3)
    np.testing.assert_allclose(record.distance("pixels"), 8 * (0 + 1 + 1) / 3)
    with pytest.raises(ValueError, match="'patches' or 'pixels'"):
        record.distance("cm")
    d = measures.patch_distances((2, 2), (3, 4))
    np.testing.assert_allclose(d[0], [0, 4, 3, 5])


def test_layout_finds_tokens(rng):
    layout = Layout((2, 3), class_token=True, registers=2, pool="cls")
    assert layout.tokens == 9 and layout.names[:4] == ["class token", "register 0", "register 1", "row 0, column 0"]
    assert [layout.token(q) for q in ("cls", (0, 0), (1, 2), 4, np.int64(2))] == [0, 3, 8, 4, 2]
    assert layout.names[layout.token((1, 1))] == "row 1, column 1"
    a = rng.random((2, 9, 9))
    np.testing.assert_array_equal(layout.image_map(a), a[:, 0, 3:].reshape(2, 2, 3))
    np.testing.assert_array_equal(layout.image_map(a, (1, 0))[1, 1, 2], a[1, 6, 8])
    both = Layout((2, 3), class_token=True, registers=2, pool="cls+mean")
    expected = (a[:, 0] + a[:, 3:].mean(1)) / 2
    np.testing.assert_allclose(both.image_map(a), expected[:, 3:].reshape(2, 2, 3))
    two = Layout((2, 3), class_token=True, registers=2, pool="cls+dist")
    np.testing.assert_allclose(two.image_map(a), a[:, :2, 3:].mean(1).reshape(2, 2, 3))
    assert two.describe() == "What the classifier's tokens read, on average"
    even = Layout((2, 3), registers=1)
    np.testing.assert_allclose(even.image_map(a[:, :7, :7])[0, 0, 1], a[0, 1:7, 2].mean())
    for query in ((2, 0), 9, -1, "CLS"):
        with pytest.raises(ValueError, match="query must be 'cls', a patch"):
            layout.token(query)
    with pytest.raises(ValueError, match="query must be a patch"):
        even.token("cls")
    for pool in ("cls", "dist", "max", "cls+mean"):
        with pytest.raises(ValueError, match="pool names tokens that this layout has"):
            Layout((2, 3), pool=pool)


def test_repr(rng):
    record = attention(network(rng, registers=1), images(rng), target=0)
    assert repr(record) == "AttentionRecord(4 images, 3 layers, 3 heads, 2 x 4 patches, 1 extra tokens, gradients)"
    assert "Attention is not explanation" in AttentionRecord.__doc__
