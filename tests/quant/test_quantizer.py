"""The one owner of codes: what the built-in quantisers say of themselves, and quantisers that a student wrote."""

import copy
import pickle
import threading

import numpy as np
import pytest
from devices import each_device
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

import tinybitvit as tb
from tinybitvit.models import VisionTransformer
from tinybitvit.optim import AdamW
from tinybitvit.quant import WEIGHT_BITS, BitLinear, PackedLinear, Quantizer, describe, find_quantizer, unpack, watch
from tinybitvit.train import Trainer

LOW_BITS = WEIGHT_BITS[1:]
SHAPE = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "dim": 16, "depth": 2, "heads": 2}


class WideZero(Quantizer):
    """Three levels, with a wider zero than BitNet's: 0 up to 0.8 mean |w|."""

    name, levels, thresholds = "wide zero", (-1, 0, 1), (-0.8, 0.8)

    def codes(self, xp, w):
        size = self.size(xp, w)
        return xp.where(xp.abs(w) > 0.8 * size, xp.sign(w), 0).astype(w.dtype), size


class Five(Quantizer):
    """Five levels: round(w / half the mean |w|), clipped at two."""

    name, levels = "five", (-2, -1, 0, 1, 2)

    def codes(self, xp, w):
        step = self.size(xp, w) / 2
        return xp.clip(xp.rint(w / step), -2, 2), step


class Squares(Five):
    """Levels that fit no layout."""

    name, levels = "squares", (-200, 0, 200)

    def codes(self, xp, w):
        return 200 * xp.clip(xp.rint(w), -1, 1), self.size(xp, w)


class Signs(Quantizer):
    """Two levels, and one scale for the whole weight, whatever the options say."""

    name, levels = "signs", (-1, 1)

    def codes(self, xp, w):
        return xp.where(w > 0, 1, -1).astype(w.dtype), xp.abs(w).mean(keepdims=True)


OWN = [(WideZero, "2bit", 1.58), (Five, "int4", 3), (Signs, "1bit", 1)]
each_own = pytest.mark.parametrize(("kind", "layout", "packed_bits"), OWN)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X.reshape(-1, 8, 8, 1) * 15).astype("uint8"), y


def no_graph(model, x):
    with tb.no_grad():
        return model(tb.Tensor(x)).data


# --- built in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "name", "count", "compute", "disk"),
    [
        (1, "binary", 2, "1bit", "1bit"),
        (1.58, "ternary", 3, "2bit", "base3"),
        (2, "int2", 4, "int2", "int2"),
        (3, "int3", 8, "int4", "int4"),
        (4, "int4", 16, "int4", "int4"),
        (8, "int8", 256, "int8", "int8"),
    ],
)
def test_built_in_quantisers_are_found_by_bits_and_by_name(bits, name, count, compute, disk):
    for found in (find_quantizer(bits), find_quantizer(name)):
        assert (found.name, found.bits, len(found.levels)) == (name, bits, count)
        assert type(found.bits) is type(bits) and found.packed_bits == bits and found.built_in
        assert (found.layout(), found.layout("disk")) == (compute, disk)
    assert find_quantizer("twn").name == find_quantizer(1.58, scale="twn").name == "twn"


@pytest.mark.parametrize("scalar", [np.float64, np.float32, np.float16])
def test_numpy_numbers_are_widths(scalar):
    layer = BitLinear(8, 4, bits=scalar(1.58) if scalar is not np.float16 else scalar(4), activation_bits=np.int64(8))
    assert layer.bits == (1.58 if scalar is not np.float16 else 4) and type(layer.activation_bits) is int
    assert PackedLinear(8, 4, bits=np.int8(4)).layout == "int4"
    assert VisionTransformer(**SHAPE, bits=np.int64(2)).config["bits"] == 2


@pytest.mark.parametrize("bits", LOW_BITS)
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_training_and_prediction_multiply_by_the_same_weight(bits, granularity, rng):
    layer = BitLinear(12, 7, bits, None, granularity=granularity, bias=False, rng=rng)
    eye = np.eye(12, dtype="float32")
    assert np.array_equal(layer(tb.Tensor(eye)).data, no_graph(layer, eye))


# --- a student's own --------------------------------------------------------------------------------------------------


@each_device
@each_own
@pytest.mark.parametrize("ste", ["identity", "clipped", "approx_sign", "ede"])
def test_a_layer_of_ones_own_quantiser(kind, layout, packed_bits, ste, device, rng):
    layer = BitLinear(24, 6, quantizer=kind(ste=ste), rng=rng).to(device)
    x = tb.Tensor(rng.standard_normal((5, 24)).astype("float32")).to(device)
    y = layer(x)
    y.backward(y.data)
    assert (layer.weight.grad != 0).any()
    with tb.no_grad():
        alone = layer(x)
        packed = PackedLinear.from_bitlinear(layer)
        assert (packed(x).data == alone.data).all()
    np.testing.assert_allclose(y.numpy(), alone.numpy(), rtol=0, atol=1e-5)
    assert (packed.layout, packed.bits) == (layout, packed_bits)
    codes, scale = kind().codes(np, layer.weight.numpy())
    assert np.array_equal(tb.backend.to_numpy(packed.quantized_weight()), codes * scale)
    assert set(np.unique(codes)) <= set(kind.levels)


@pytest.mark.parametrize("kind", [WideZero, Five])
def test_the_straight_through_gradient_is_a_sum_over_the_steps(kind, rng):
    """approx_sign by the formula 2 (1 - |v - t|) a step of height 2, v = w / scale; identity passes g on."""
    w, g = rng.standard_normal((2, 3, 8)).astype("float32")
    gradients = {}
    for ste in ("identity", "approx_sign"):
        layer = BitLinear(8, 3, 1.58, None, bias=False, quantizer=kind(ste=ste), rng=rng)
        layer.weight.data[...] = w
        layer(tb.Tensor(np.eye(8, dtype="float32"))).backward(g.T.copy())
        gradients[ste] = layer.weight.grad
    v = w / kind().codes(np, w)[1]
    a = sum(np.maximum(1 - np.abs(v - t), 0) for t in kind().thresholds)
    np.testing.assert_allclose(gradients["identity"], g, rtol=1e-6)
    np.testing.assert_allclose(gradients["approx_sign"], g * a, rtol=1e-5, atol=1e-6)


@each_own
def test_a_network_of_ones_own_quantiser_trains(kind, layout, packed_bits, rng):
    model = VisionTransformer(**SHAPE, quantizer=kind(), rng=rng)
    assert model.config["bits"] == kind().bits and all(
        m.quantizer.name == kind.name for m in watch.low_bit_layers(model)
    )
    x, y = rng.standard_normal((32, 8, 8, 1)).astype("float32"), np.arange(32) % 3
    trainer = Trainer(model, AdamW(model.parameters(), lr=1e-2), workers=2)
    losses = [trainer.step(x, y) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert {*np.unique(np.concatenate([c.ravel() for c in watch.snapshot(model)]))} == {*kind.levels}
    assert 0 < watch.mean_distance(model) < 1
    small = model.pack()
    assert np.array_equal(no_graph(small, x), no_graph(model, x))
    assert small.config["bits"] == packed_bits and small.config["layout"] == layout and "quantizer" not in small.config
    rebuilt = VisionTransformer(**small.config)
    rebuilt.load_state_dict(small.state_dict())
    assert np.array_equal(no_graph(rebuilt, x), no_graph(model, x))
    assert describe(small)[-1].bytes < describe(model)[-1].bytes / 2


@each_own
def test_an_estimator_of_ones_own_quantiser(kind, layout, packed_bits, digits, tmp_path):
    X, y = digits
    model = tb.ViT(quantizer=kind(), epochs=8, verbose=0, random_state=0).fit(X[:1200], y[:1200])
    assert model.score(X[1200:], y[1200:]) > 0.8
    expected = model.decision_function(X[1200:])
    with pytest.raises(ValueError, match=f"cannot hold your quantizer '{kind.name}'.* packed=True"):
        model.save(tmp_path / "full")
    assert not (tmp_path / "full").exists()
    model.save(tmp_path / "packed", packed=True)
    for again in (model.pack(), tb.load(tmp_path / "packed"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(again.decision_function(X[1200:]), expected)
    loaded = tb.load(tmp_path / "packed")
    assert loaded.bits == loaded.model_.config["bits"] == packed_bits


@each_own
def test_exports_hold_the_codes_of_ones_own_quantiser(kind, layout, packed_bits, tmp_path, rng):
    """ONNX, for a runtime of another make; the page and transformers' layout, by the codes in their bytes."""
    runtime = pytest.importorskip("onnxruntime")
    model = VisionTransformer(**SHAPE, quantizer=kind(), rng=rng)
    tb.io.export(model, tmp_path / "m.onnx", float_images=True)
    x = rng.standard_normal((3, 8, 8, 1)).astype("float32")
    (logits,) = runtime.InferenceSession(tmp_path / "m.onnx").run(None, {"images": x})
    np.testing.assert_allclose(logits, no_graph(model, x), atol=1e-4)
    assert tb.web.to_html(model, tmp_path / "m.html")
    if packed_bits > 1.58:
        with pytest.raises(ValueError, match=r"weights of 1\.58 or 1 bit, not 3: export to ONNX"):
            tb.io.export(model, tmp_path / "m", "hf")
    else:
        tb.io.export(model, tmp_path / "m", "hf")
        weight = load_file(tmp_path / "m")["blocks.0.mlp.fc1.weight"]
        assert np.array_equal(unpack(weight, "hf", (64, 16)), model.blocks[0].mlp.fc1.codes()[0])


def test_names_are_quantisers_too(digits, tmp_path):
    X, y = digits
    options = {"epochs": 1, "verbose": 0, "random_state": 0}
    named = tb.ViT(quantizer="int4", **options).fit(X[:200], y[:200])
    usual = tb.ViT(bits=4, **options).fit(X[:200], y[:200])
    assert named.model_.config == usual.model_.config
    assert np.array_equal(named.decision_function(X[:50]), usual.decision_function(X[:50]))
    named.save(tmp_path / "m")
    assert np.array_equal(tb.load(tmp_path / "m").decision_function(X[:50]), usual.decision_function(X[:50]))


def test_levels_without_a_layout_train_and_say_so_when_packed(rng):
    layer = BitLinear(8, 4, quantizer=Squares(), rng=rng)
    assert layer(tb.Tensor(np.ones((1, 8), "float32"))).shape == (1, 4)
    with pytest.raises(ValueError, match=r"'squares' cannot be packed: its levels -200 \.\. 200 fit no layout"):
        PackedLinear.from_bitlinear(layer)


class HalfCodes(Five):
    def codes(self, xp, w):
        return super().codes(xp, w)[0] + xp.float32(0.5), self.size(xp, w)


class FlatScale(Five):
    def codes(self, xp, w):
        return super().codes(xp, w)[0], self.size(xp, w)[:, 0]


class Doubles(Five):
    def codes(self, xp, w):
        return super().codes(xp, w)[0].astype("int8"), self.size(xp, w)


class NoScale(Five):
    def codes(self, xp, w):
        return super().codes(xp, w)[0], 0 * self.size(xp, w)


class ManyThresholds(Five):
    thresholds = (0.0,)


class Descending(Five):
    levels = (2, 1, 0, -1, -2)


class NoCodes(Quantizer):
    levels = (0, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantizer": HalfCodes()}, "some codes are none of its levels"),
        ({"quantizer": NoScale()}, "a scale is not above 0"),
        ({"quantizer": FlatScale()}, r"their scale is \(4,\) of float32; needed .* \(4, 1\) or \(1, 1\)"),
        ({"quantizer": Doubles()}, "its codes are .* of int8"),
        ({"quantizer": ManyThresholds()}, "thresholds must be one number fewer than levels"),
        ({"quantizer": Descending()}, "levels must be whole numbers in ascending order"),
        ({"quantizer": "quaternary"}, "quantizer must be a Quantizer or one of binary, ternary, twn"),
        ({"quantizer": Five}, "quantizer must be an object such as Five"),
        ({"quantizer": Five(), "granularity": "tensor"}, r"granularity='tensor': a quantizer has its own"),
        ({"quantizer": Five(ste="straight")}, "ste must be one of"),
        ({"quantizer": Five(granularity="column")}, "granularity must be"),
        ({"granularity": None}, "granularity must be a text such as 'row', not None"),
        ({"scale": 3}, "scale must be a text such as 'absmean', not 3"),
        ({"ste": ["identity"]}, "ste must be a text such as 'identity'"),
        ({"bits": True}, "bits must be one of .*, not True"),
        ({"bits": 1.576}, "bits must be one of"),
        ({"bits": float("nan")}, "bits must be one of"),
        ({"activation_bits": "8"}, "activation_bits must be 8, 4, 1 or None"),
        ({"activation_bits": True}, "activation_bits must be 8, 4, 1 or None"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, says):
    with pytest.raises(ValueError, match=says) as error:
        BitLinear(8, 4, **options)
    assert "\n" not in str(error.value)


def test_a_quantiser_without_codes_says_so():
    with pytest.raises(NotImplementedError, match="NoCodes defines no codes"):
        BitLinear(8, 4, quantizer=NoCodes())


def test_bits_beside_another_quantiser_are_refused(digits):
    with pytest.raises(ValueError, match=r"bits=4 and quantizer=Five\(.*\) contradict"):
        VisionTransformer(**SHAPE, bits=4, quantizer=Five())
    with pytest.raises(ValueError, match=r"bits=4 and quantizer=Five\(.*\) contradict"):
        tb.ViT(bits=4, quantizer=Five(), verbose=0).fit(digits[0][:20], digits[1][:20])


def test_layers_do_not_share_the_temperature_of_a_quantiser():
    given = Five(ste="ede")
    a, b = BitLinear(8, 4, quantizer=given), BitLinear(8, 4, quantizer=given)
    a.temperature = 5.0
    assert (b.temperature, given.temperature) == (1.0, 1.0)


# --- copies and threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(
    "options", [{"bits": b, "ste": "clipped"} for b in LOW_BITS] + [{"quantizer": Five()}], ids=str
)
def test_copies_of_layers_answer_and_learn_alike(make, options, rng):
    layer = BitLinear(12, 6, **options, norm=True, rng=rng)
    x = tb.Tensor(rng.standard_normal((4, 12)).astype("float32"))
    twin = make(layer)
    for module in (layer, twin):
        y = module(x)
        y.backward(y.data)
    assert np.array_equal(layer.weight.grad, twin.weight.grad)
    packed = PackedLinear.from_bitlinear(layer)
    for a, b in ((layer, twin), (packed, make(packed))):
        assert np.array_equal(no_graph(a, x.data), no_graph(b, x.data)) and repr(a) == repr(b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_many_threads_get_the_answers_of_one(packed, training, rng):
    layer = BitLinear(64, 96, quantizer=Five(), norm=True, rng=rng)
    layer = (PackedLinear.from_bitlinear(layer) if packed else layer).train(training)
    inputs = [rng.standard_normal((n, 64)).astype("float32") for n in (3, 50, 200, 9)]
    expected, wrong = [no_graph(layer, x) for x in inputs], []

    def work(order):
        wrong.extend(i for i in order if not np.array_equal(no_graph(layer, inputs[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(rng.integers(0, 4, 100).tolist(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- huge numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize(
    ("bits", "scale"),
    [(b, s) for b in LOW_BITS for s in ("absmean", "absmedian")] + [(1.58, "twn"), (4, "absmax"), (8, "absmax")],
)
def test_huge_weights_have_the_codes_of_small_ones(bits, scale, granularity, rng):
    """Multiplied by a power of two nothing is rounded: the codes stay, and the scale is multiplied, too."""
    w = rng.uniform(-1, 1, (5, 300)).astype("float32")
    quantizer, factor = find_quantizer(bits, granularity, scale), np.float32(2.0**126)
    (codes, size), (same, larger) = quantizer.codes(np, w), quantizer.codes(np, w * factor)
    assert np.array_equal(codes, same) and np.array_equal(size * factor, larger)


@pytest.mark.parametrize("activation_bits", [8, 4, 1])
@pytest.mark.parametrize("bits", LOW_BITS)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_huge_inputs_have_the_outputs_of_small_ones(bits, activation_bits, rng):
    """Without a bias, 2^122 times the input is 2^122 times the output, bit for bit, packed or not."""
    layer = BitLinear(300, 16, bits, activation_bits, bias=False, rng=rng)
    layer.weight.data *= np.float32(0.1)
    x, factor = rng.uniform(-32, 32, (5, 300)).astype("float32"), np.float32(2.0**122)
    for module in (layer, PackedLinear.from_bitlinear(layer)):
        y, larger = no_graph(module, x), no_graph(module, x * factor)
        assert np.isfinite(larger).all() and np.array_equal(y * factor, larger)


def test_an_infinite_weight_stays_visible():
    w = np.array([[1.0, -np.inf, 2.0, 0.5]], "float32")
    for bits in (1, 1.58, 2):
        with np.errstate(all="ignore"):
            codes, scale = find_quantizer(bits).codes(np, w)
            assert not np.isfinite(codes * scale).all()
