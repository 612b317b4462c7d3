"""PackedLinear and packed models: the same whole numbers as the layer they come from, in far fewer bytes."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tinybitvit as tb
from tinybitvit.ops.norm import inverse_root, mean_product
from tinybitvit.quant import BitLinear, PackedLinear, describe, integer, packed
from tinybitvit.train import Trainer

LAYOUTS_OF = {
    1: ["1bit", "2bit", "base3", "int2", "int4", "int8"],
    1.58: ["2bit", "base3", "int2", "int4", "int8"],
    2: ["int2", "int4", "int8"],
    3: ["int4", "int8"],
    4: ["int4", "int8"],
    8: ["int8"],
}
CASES = [(bits, layout) for bits, layouts in LAYOUTS_OF.items() for layout in layouts]


def make_layer(rng, K, out, bits=1.58, activation_bits=8, **options):
    layer = BitLinear(K, out, bits, activation_bits, rng=rng, **options)
    layer.weight.data = rng.standard_normal((out, K)).astype("float32")
    if layer.bias is not None:
        layer.bias.data = rng.standard_normal(out).astype("float32")
    if layer.norm is not None:
        layer.norm.weight.data = rng.uniform(0.5, 2, K).astype("float32")
    return layer


def forward(layer, x):
    with tb.no_grad():
        return layer(tb.Tensor(x)).data


def integer_forward(layer, x):
    """y = s_x s_w (c Q^T) + b of a BitLinear with whole numbers from beginning to end, in int64."""
    q, scale = layer.codes()
    if layer.activation_bits is None:
        x = x if layer.norm is None else forward(layer.norm, x)
        return (x.astype("float64") @ q.astype("float64").T * scale[:, 0] + layer.bias.data).astype("float32")
    codes, step = layer.input_codes(x if layer.norm is None else x * layer.norm.weight.data)
    if layer.norm is not None:
        step = step * inverse_root(np, mean_product(np, x, x), layer.norm.eps)
    y = (codes.astype("int64") @ q.astype("int64").T).astype("float32")
    y *= step
    y *= scale[:, 0]
    y += layer.bias.data
    return y


# One layer


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CASES),
    st.sampled_from([8, 4, 1]),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(0, 20),
    st.sampled_from(["row", "tensor"]),
    st.booleans(),
    st.integers(0, 2**32),
)
@example((1, "1bit"), 1, 64, 9, 3, "row", True, 0)
@example((8, "int8"), 8, 3000, 2, 2, "row", False, 1)  # its sums are too long for float32 and are split
def test_layer_is_exact_in_code_space(case, activation_bits, K, out, tokens, granularity, norm, seed):
    bits, layout = case
    rng = np.random.default_rng(seed)
    layer = make_layer(rng, K, out, bits, activation_bits, granularity=granularity, norm=norm)
    pack = PackedLinear.from_bitlinear(layer, layout)
    codes, scale = layer.codes()
    packed_codes, packed_scale = pack.codes()
    assert np.array_equal(packed_codes, codes)
    assert np.array_equal(np.broadcast_to(packed_scale, scale.shape), scale)
    assert np.array_equal(pack.quantized_weight(), layer.quantized_weight())
    x = (rng.standard_normal((tokens, K)) * 3).astype("float32")
    y = forward(pack, x)
    assert y.dtype == np.float32
    assert np.array_equal(y, integer_forward(layer, x))
    reference = forward(layer, x)
    size = np.abs(layer.quantized_weight()).sum(1).max() * max(1, np.abs(x).max(initial=1))
    np.testing.assert_allclose(y, reference, rtol=0, atol=1e-6 * max(1, size))


@pytest.mark.parametrize("bits", [1, 1.58, 2, 4])
@pytest.mark.parametrize("norm", [False, True])
def test_activations_may_stay_floats(rng, bits, norm):
    layer = make_layer(rng, 37, 11, bits, None, norm=norm)
    x = rng.standard_normal((2, 5, 37)).astype("float32")
    y = forward(PackedLinear.from_bitlinear(layer), x)
    assert y.shape == (2, 5, 11)
    np.testing.assert_allclose(y, forward(layer, x), rtol=0, atol=1e-5)
    np.testing.assert_allclose(y, integer_forward(layer, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation_bits", [8, 4, 1])
def test_the_root_of_the_norm_cancels_in_the_codes(rng, activation_bits):
    """So a power of 2 in front of the norm changes no bit of them, and what is behind it is as training has it."""
    layer = make_layer(rng, 96, 8, activation_bits=activation_bits, norm=True)
    x = rng.standard_normal((200, 96)).astype("float32")
    codes, step = (a.copy() for a in integer.input_codes(np, x, activation_bits, layer.norm))
    for factor in (2.0**-5, 2.0**20):
        assert np.array_equal(integer.input_codes(np, x * np.float32(factor), activation_bits, layer.norm)[0], codes)
    trained, trained_step = layer.input_codes(forward(layer.norm, x))
    assert np.abs(trained - codes).max() <= 1
    assert (trained != codes).mean() < 1e-4
    np.testing.assert_allclose(step, trained_step, rtol=1e-6)


@pytest.mark.parametrize("activation_bits", [8, 4, 1])
@pytest.mark.parametrize("size", [0, 1e-12, 1e-8, 1e-6, 1e-3, 1e10])
def test_tokens_of_any_size_are_quantised_as_in_training(rng, activation_bits, size):
    """Also those that the smallest steps of the quantiser, or the eps of the norm, do more to than their own size."""
    layer = make_layer(rng, 96, 8, activation_bits=activation_bits, norm=True)
    x = (size * rng.standard_normal((5, 96))).astype("float32")
    codes, step = integer.input_codes(np, x, activation_bits, layer.norm)
    trained, trained_step = layer.input_codes(forward(layer.norm, x))
    assert np.isfinite(codes).all() and (step > 0).all()
    assert np.abs(trained - codes).max() <= (activation_bits > 1)
    np.testing.assert_allclose(codes * step, trained * trained_step, rtol=0, atol=1.01 * trained_step.max())
    np.testing.assert_allclose(step, trained_step, rtol=1e-5)


def test_layer_without_a_bias(rng):
    layer = make_layer(rng, 16, 8, bias=False)
    x = rng.standard_normal((4, 16)).astype("float32")
    np.testing.assert_allclose(forward(PackedLinear.from_bitlinear(layer), x), forward(layer, x), atol=1e-5)


@pytest.mark.parametrize(("bits", "K"), [(1.58, 132_104), (4, 16_513), (8, 40_000)])
def test_largest_sums_do_not_overflow(bits, K):
    """Inputs all +127 or -127 and weights all of one sign: the longest sum there is."""
    layer = BitLinear(K, 2, bits, 8, rng=np.random.default_rng(0))
    layer.weight.data[0], layer.weight.data[1] = 1.0, -1.0
    pack = PackedLinear.from_bitlinear(layer)
    x = np.full((2, K), 3.0, "float32")
    x[1] *= -1
    q, scale = layer.codes()
    sums = 127 * q.astype("int64").sum(1) * np.array([[1], [-1]])
    accumulators = forward(pack, x) / (np.float32(3 / 127) * scale[:, 0])
    np.testing.assert_allclose(accumulators, sums, rtol=3e-7)
    assert np.array_equal(forward(pack, x), integer_forward(layer, x))


@pytest.mark.parametrize(("bits", "K"), [(1.58, 384), (1.58, 1032), (1, 1000), (2, 516)])
@pytest.mark.parametrize("out", [384, 385, 386])
def test_three_sums_in_one_are_exact(rng, monkeypatch, bits, K, out):
    """Also the longest there are, of either sign, side by side."""
    layer = make_layer(rng, K, out, bits)
    layer.weight.data[::2] = rng.choice([-1, 1], (len(layer.weight.data[::2]), 1))
    x = rng.standard_normal((300, K)).astype("float32")
    x[:20] = rng.choice([-1, 1], (20, 1))
    calls, three = [], integer.accumulate_three
    monkeypatch.setattr(integer, "accumulate_three", lambda *a: calls.append(three(*a)))
    assert np.array_equal(forward(PackedLinear.from_bitlinear(layer), x), integer_forward(layer, x))
    assert np.array_equal(forward(layer, x), integer_forward(layer, x))
    assert len(calls) == 2


@pytest.mark.parametrize(("tile", "rows", "block"), [(1, 1, 1), (64, 3, 100), (2**22, 4096, 2**16)])
def test_tiles_and_blocks_do_not_change_a_bit(monkeypatch, rng, tile, rows, block):
    layer = make_layer(rng, 50, 30, 1.58, 8, norm=True)
    pack = PackedLinear.from_bitlinear(layer)
    x = rng.standard_normal((7, 9, 50)).astype("float32")
    expected = forward(pack, x)
    monkeypatch.setattr(packed, "TILE", tile)
    monkeypatch.setattr(integer, "ROWS", rows)
    monkeypatch.setattr(integer, "BLOCK", block)
    assert np.array_equal(forward(pack, x), expected)


@pytest.mark.parametrize("n", [0, 1, 5, 16, 17])
@pytest.mark.parametrize("size", [0, 1, 4, 16])
def test_even_slices_cover_everything_once(n, size):
    slices = integer.even_slices(n, size)
    assert [i for s in slices for i in range(n)[s]] == list(range(n))
    lengths = [s.stop - s.start for s in slices]
    assert not slices or (max(lengths) <= max(1, size) and max(lengths) - min(lengths) <= 1)


def test_input_is_not_changed(rng):
    for activation_bits in (8, 1, None):
        layer = make_layer(rng, 12, 5, 1, activation_bits, norm=activation_bits is None)
        x = rng.standard_normal((3, 12)).astype("float32")
        x.flags.writeable = False
        forward(PackedLinear.from_bitlinear(layer), x)


def test_few_rows_of_signs_are_counted_and_many_multiplied(rng, monkeypatch):
    layer = make_layer(rng, 83, 7, 1, 1)
    small, counted = PackedLinear.from_bitlinear(layer, "1bit"), []
    monkeypatch.setattr(packed, "binary_dot", lambda *bits: counted.append(len(bits[0])) or tb.quant.binary_dot(*bits))
    for n in (1, packed.MOST_COUNTED, packed.MOST_COUNTED + 1):
        x = rng.standard_normal((n, 83)).astype("float32")
        assert np.array_equal(forward(small, x), forward(layer, x))
    assert counted == [1, packed.MOST_COUNTED]


def test_threads_do_not_share_their_tile(rng):
    layers = [make_layer(rng, 64, 96, bits, a) for bits in (1, 1.58, 4) for a in (8, None)]
    packs = [PackedLinear.from_bitlinear(layer) for layer in layers]
    x = rng.standard_normal((50, 64)).astype("float32")
    expected = [forward(p, x) for p in packs]
    wrong = []

    def work(order):
        for i in order:
            if not np.array_equal(forward(packs[i], x), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(rng.permutation(6).tolist() * 20,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_gradient_comes_back(rng):
    pack = PackedLinear.from_bitlinear(make_layer(rng, 8, 4))
    assert not any(p.data.ndim == 2 for p in pack.parameters()), "the weight is not a Parameter"
    y = pack(tb.Tensor(rng.standard_normal((2, 8)).astype("float32"), requires_grad=True))
    with pytest.raises(RuntimeError, match="packed model cannot be trained"):
        y.backward(np.ones((2, 4), "float32"))


def test_bad_calls_are_refused(rng):
    layer = make_layer(rng, 8, 4, 4)
    with pytest.raises(ValueError, match="'2bit' cannot hold weights of 4 bits; use 'int4'"):
        PackedLinear.from_bitlinear(layer, "2bit")
    with pytest.raises(ValueError, match="'hf' is for files"):
        PackedLinear(8, 4, layout="hf")
    with pytest.raises(ValueError, match="layout must be one of"):
        PackedLinear(8, 4, layout="3bit")
    with pytest.raises(ValueError, match=r"'1bit' cannot hold weights of 1\.58 bits"):
        PackedLinear(8, 4, layout="1bit")
    with pytest.raises(ValueError, match="has 9 features, needed 8"):
        PackedLinear(8, 4)(tb.Tensor(np.zeros((2, 9), "float32")))


def test_state_travels(rng):
    layer = make_layer(rng, 21, 6, 1.58, norm=True)
    one, two = PackedLinear.from_bitlinear(layer, "base3"), PackedLinear(21, 6, 1.58, norm=True, layout="base3")
    two.load_state_dict(one.state_dict())
    x = rng.standard_normal((4, 21)).astype("float32")
    assert np.array_equal(forward(one, x), forward(two, x))
    assert one.packed.shape == (6, 5) and one.packed.dtype == np.uint8
    assert one.nbytes == 6 * 5 + 4 * 6 + 4 * 6 + 4 * 21


# A whole model


def make_model(rng, bits=1.58, **options):
    settings = {"dim": 32, "depth": 2, "heads": 2, "num_classes": 5, **options}
    model = tb.models.VisionTransformer(8, 4, bits=bits, rng=rng, **settings)
    for p in model.parameters():
        p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype("float32")
    return model


@pytest.mark.parametrize(("bits", "layout"), CASES)
@pytest.mark.parametrize("activation_bits", [8, 1, None])
def test_model_logits(rng, bits, layout, activation_bits):
    model = make_model(rng, bits, activation_bits=activation_bits)
    small = model.pack(layout)
    x = rng.standard_normal((3, 8, 8, 3)).astype("float32")
    atol = 1e-5 if activation_bits is None else 0  # sums of whole numbers have no last digit to differ in
    np.testing.assert_allclose(forward(small, x), forward(model, x), rtol=0, atol=atol)


def test_packed_model_has_no_latent_weight(rng):
    model = make_model(rng, 1)
    model.blocks[0].attn.register_forward_hook(lambda *_: None)
    before = {n: a.copy() for n, a in model.state_dict().items()}
    small = model.pack()
    assert not any(isinstance(m, BitLinear) for m in small.modules())
    assert sum(isinstance(m, PackedLinear) for m in small.modules()) == 8
    assert all(np.array_equal(a, before[n]) for n, a in model.state_dict().items())
    mine = {id(a) for a in model.state_dict().values()}
    assert not any(id(a) in mine for a in small.state_dict().values()), "nothing is shared with the model"
    assert small.config == {**model.config, "layout": "1bit"} and model.config["layout"] is None
    assert small.nbytes < model.nbytes / 3 and not small.training
    rebuilt = tb.models.VisionTransformer(**small.config)
    rebuilt.load_state_dict(small.state_dict())
    x = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    assert np.array_equal(forward(rebuilt, x), forward(small, x))


def test_what_cannot_be_packed(rng):
    with pytest.raises(ValueError, match="no low-bit layers"):
        make_model(rng, 32).pack()
    with pytest.raises(ValueError, match="packed already"):
        make_model(rng, 2).pack().pack()


def test_predict_on_worker_threads(rng):
    small = make_model(rng, 1.58, activation_bits=None).pack()
    x = rng.standard_normal((24, 8, 8, 3)).astype("float32")
    alone = Trainer(small, workers=1).predict(x, batch_size=8)
    np.testing.assert_allclose(Trainer(small, workers=3).predict(x, batch_size=8), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bits", "layout", "ratio"), [(1.58, "2bit", 15.5), (1.58, "base3", 19.4), (1, "1bit", 31)])
@pytest.mark.parametrize("dim", [192, 384])
def test_bytes_of_packed_weights(rng, bits, layout, ratio, dim):
    model = tb.models.VisionTransformer(8, 4, dim=dim, depth=1, heads=3, bits=bits, rng=rng)
    for layer in model.pack(layout).modules():
        if isinstance(layer, PackedLinear):
            assert 4 * layer.in_features * layer.out_features / layer.packed.nbytes >= ratio


def test_no_float_copy_while_predicting(rng):
    model = tb.models.VisionTransformer(8, 4, dim=192, depth=6, heads=3, bits=1.58, rng=rng).pack()
    x = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    floats = sum(4 * m.in_features * m.out_features for m in model.modules() if isinstance(m, PackedLinear))
    tile = max(4 * m.in_features * m.out_features for m in model.modules() if isinstance(m, PackedLinear))
    integer.scratch.buffers.clear()
    tracemalloc.start()
    forward(model, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tile < peak < 3 * tile < floats / 3


def test_describe(rng):
    model = make_model(rng, 1.58)
    small = model.pack("base3")
    rows = {row.name: row for row in describe(small)}
    fc2 = rows["blocks.1.mlp.fc2"]
    assert (fc2.shape, fc2.bits, fc2.layout) == ((32, 128), 1.58, "base3")
    assert fc2.bytes == 32 * 26 + 4 * 32 + 4 * 32
    assert fc2.weights == 32 * 128 + 32
    assert fc2.effective_bits == pytest.approx(8 * fc2.bytes / fc2.weights)
    codes = small.blocks[1].mlp.fc2.codes()[0]
    assert fc2.zeros == pytest.approx((codes == 0).mean())
    assert 0.2 < fc2.zeros < 0.5
    assert rows["total"].bytes == small.nbytes == sum(r.bytes for n, r in rows.items() if n != "total")
    assert rows["total"].weights == sum(p.size for p in model.parameters())
    dense = {row.name: row for row in describe(model)}
    assert dense["blocks.1.mlp.fc2"].bytes == 4 * (32 * 128 + 32) and dense["blocks.1.mlp.fc2"].layout == "float32"
    assert dense["blocks.1.mlp.fc2"].zeros == fc2.zeros and dense["head"].bits == 32
