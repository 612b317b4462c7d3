"""ONNX files: checked by onnx, run by onnxruntime, equal to the model."""

import sys

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.data import Normalize
from tinybitvit.io import CheckpointError, export, export_onnx
from tinybitvit.quant import PackedLinear

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
ALL_BITS = [32, 8, 4, 3, 2, 1.58, 1]


def make_model(rng, bits=1.58, activation_bits=8, **options):
    settings = {"dim": 24, "depth": 2, "heads": 3, "num_classes": 5, "gelu": "none", **options}
    model = tb.models.VisionTransformer(8, 4, bits=bits, activation_bits=activation_bits, rng=rng, **settings)
    for p in model.parameters():
        p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype("float32")
    return model


def images(rng, n=5, size=(8, 8), channels=3):
    return rng.integers(0, 256, (n, *size, channels), dtype="uint8")


def logits(model, x, preprocessing=PIXELS):
    x = Normalize(**preprocessing)(x)
    with tb.no_grad():
        return (model.pack() if model.config["bits"] != 32 and not model.config["layout"] else model)(x).data


def run(path, x, optimize=True, outputs=None):
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(outputs, {"images": x})
    return found[0] if outputs is None else found


def close(a, b):
    """Equal logits, but for rounding: a last digit may turn one activation to the next code, a whole step away.

    That happens in one run of many, to few images; exactness has its own test below, on the sums themselves.
    """
    assert a.shape == b.shape
    wrong = np.abs(a - b).max(axis=1) > 1e-4
    assert wrong.mean() <= 0.2 and np.abs(a - b).max() < 0.02
    assert np.abs(b).max() > 0.1


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("activation_bits", [8, 4, 1, None])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_same_logits(tmp_path, rng, bits, activation_bits, int8):
    model, x = make_model(rng, bits, activation_bits), images(rng)
    export(model, tmp_path / "m.onnx", preprocessing=PIXELS, int8=int8)
    result, expected = run(tmp_path / "m.onnx", x), logits(model, x)
    close(result, expected)
    if bits == 32 or activation_bits is None:
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    close(run(tmp_path / "m.onnx", x, optimize=False), expected)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "cls", "registers": 2, "layer_scale": 0.7},
        {"pool": "cls+mean"},
        {"pool": "cls+dist", "registers": 1},
        {"registers": 2, "class_token": False},
        {"num_classes": 0, "gelu": "tanh", "granularity": "tensor", "sub_norm": False, "eps": 1e-3},
    ],
)
@pytest.mark.parametrize("bits", [32, 1])
def test_every_part_of_the_model(tmp_path, rng, bits, options):
    model, x = make_model(rng, bits, None, **options), images(rng)
    export_onnx(model, tmp_path / "m.onnx", PIXELS)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x), logits(model, x), rtol=0, atol=1e-4)


def test_packed_models_give_the_same_file(tmp_path, rng):
    model = make_model(rng)
    export_onnx(model, tmp_path / "full.onnx")
    export_onnx(model.pack("base3"), tmp_path / "packed.onnx")
    assert (tmp_path / "full.onnx").read_bytes() == (tmp_path / "packed.onnx").read_bytes()


def test_batches_of_any_size_and_non_square_images(tmp_path, rng):
    model = tb.models.VisionTransformer(
        (8, 12), (4, 3), 1, dim=16, depth=1, heads=2, bits=1, activation_bits=None, rng=rng
    )
    export_onnx(model, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["N", 8, 12, 1]
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == ["N", 10]
    assert (graph.input[0].name, graph.output[0].name) == ("images", "logits")
    for n in (1, 3, 17):
        x = images(rng, n, (8, 12), 1)
        expected = logits(model, x, {"mean": [0.0], "std": [1.0]})
        np.testing.assert_allclose(run(tmp_path / "m.onnx", x), expected, rtol=0, atol=1e-4)


def test_the_models_own_preprocessing(tmp_path, rng):
    model, x = make_model(rng, activation_bits=None), images(rng)
    model.preprocessing = PIXELS
    export_onnx(model, tmp_path / "m.onnx")
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x), logits(model, x), rtol=0, atol=1e-4)


def test_float_images(tmp_path, rng):
    model, x = make_model(rng, activation_bits=None), rng.uniform(0, 16, (4, 8, 8, 3)).astype("float32")
    normal = {"mean": [4.0], "std": [5.0]}
    export_onnx(model, tmp_path / "m.onnx", normal, float_images=True)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x), logits(model, x, normal), rtol=0, atol=1e-4)


def inner_values(path):
    """The names (codes, weight codes, sums) at every MatMulInteger; the file is changed to give them out."""
    model = onnx.load(path)
    triples = [(*node.input, *node.output) for node in model.graph.node if node.op_type == "MatMulInteger"]
    kinds = onnx.TensorProto.INT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32
    for triple in triples:
        for name, kind in zip(triple, kinds, strict=True):
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    onnx.save(model, path)
    return triples


@pytest.mark.parametrize("activation_bits", [8, 4, 1])
@pytest.mark.parametrize("bits", [1, 1.58, 2, 3, 4])
def test_integer_sums_are_the_same_to_the_bit(tmp_path, rng, bits, activation_bits):
    """The runtime's own activations, quantised by our formula, give its codes; our packed bytes give its sums."""
    model, x = make_model(rng, bits, activation_bits), images(rng)
    export_onnx(model, tmp_path / "m.onnx", PIXELS)
    triples = inner_values(tmp_path / "m.onnx")
    names = sorted({name for triple in triples for name in triple})
    values = dict(zip(names, run(tmp_path / "m.onnx", x, outputs=names), strict=True))
    packed = [m for m in model.pack().modules() if isinstance(m, PackedLinear)]
    assert len(triples) == len(packed) == 8
    for (codes, weight, sums), layer in zip(triples, packed, strict=True):
        q = layer.codes()[0].astype("int64")
        assert np.array_equal(values[weight].T, q)
        assert np.array_equal(values[sums], values[codes].astype("int64") @ q.T)
        top = max(1, 2 ** (activation_bits - 1) - 1)
        assert np.abs(values[codes]).max() == top


def test_default_optimisation_changes_nothing(tmp_path, rng):
    """onnxruntime may fuse nodes, but must not quantise again: the mean error would be some per cent."""
    model, x = make_model(rng, 1.58, 8, dim=96, heads=3), images(rng, 16)
    export_onnx(model, tmp_path / "m.onnx", PIXELS)
    default, plain = run(tmp_path / "m.onnx", x), run(tmp_path / "m.onnx", x, optimize=False)
    assert np.median(np.abs(default - plain)) < 1e-5
    close(default, logits(model, x))


def test_reference_evaluator_agrees(tmp_path, rng):
    from onnx.reference import ReferenceEvaluator

    model, x = make_model(rng, 2, None, depth=1), images(rng, 2)
    export_onnx(model, tmp_path / "m.onnx", PIXELS)
    result = ReferenceEvaluator(str(tmp_path / "m.onnx")).run(None, {"images": x})[0]
    np.testing.assert_allclose(result, logits(model, x), rtol=0, atol=1e-4)


def test_size_and_operator_set(tmp_path, rng):
    model = make_model(rng, 1.58, dim=96, heads=3)
    weights = sum(m.packed.nbytes * 4 for m in model.pack("2bit").modules() if isinstance(m, PackedLinear))
    sizes = {}
    for int8 in (False, True):
        export_onnx(model, tmp_path / "m.onnx", int8=int8)
        sizes[int8] = (tmp_path / "m.onnx").stat().st_size
        assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == (20 if int8 else 25)
    assert sizes[True] - sizes[False] == pytest.approx(0.75 * weights, rel=0.02)


def test_what_cannot_be_written(tmp_path, rng, monkeypatch):
    with pytest.raises(CheckpointError, match="cannot write"):
        export_onnx(make_model(rng), tmp_path / "none" / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'needs the package onnx: pip install "tinybitvit\[onnx\]"'):
        export_onnx(make_model(rng), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
