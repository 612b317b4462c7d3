"""ONNX files: checked by onnx, run by onnxruntime, equal to the model."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.data import Normalize
from tinybitvit.io import CheckpointError, export, export_onnx
from tinybitvit.ops.ste import absmax_codes, binary_codes
from tinybitvit.quant import PackedLinear
from tinybitvit.quant.integer import input_codes, smallest_size

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


LEVELS = ort.GraphOptimizationLevel.__members__


def run(path, x, level="ORT_ENABLE_ALL", outputs=None, optimized=""):
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3  # a warning that an optimised file is for this machine only
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
    close(run(tmp_path / "m.onnx", x, "ORT_DISABLE_ALL"), expected)
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
    """Of every MatMulInteger: the names of what was quantised, its codes, their zero point, weight codes and sums.

    The file is changed to give them out.
    """
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    rows = []
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            codes, weight, *zero = node.input
            quantise = makers[codes]
            whole = {constants[name].item() for name in (*zero, quantise.input[2])}
            assert quantise.op_type == "QuantizeLinear" and constants[quantise.input[1]] == 1 and len(whole) == 1
            v = makers[quantise.input[0]].input[0]  # of Less or of the product with top / size
            v = makers[v].input[0] if makers[v].op_type == "Less" else v
            rows.append((v, codes, whole.pop(), weight, *node.output))
    kinds = {"v": "FLOAT", "weight": "INT8", "sums": "INT32"}
    for v, codes, zero, weight, sums in rows:
        for name, kind in (v, kinds["v"]), (codes, "UINT8" if zero else "INT8"), (weight, "INT8"), (sums, "INT32"):
            kind = getattr(onnx.TensorProto, kind)
            if name not in {o.name for o in model.graph.output} | {*constants}:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    onnx.save(model, path)
    return rows, constants


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("activation_bits", [8, 4, 1])
@pytest.mark.parametrize("bits", [1, 1.58, 2, 3, 4, 8])
def test_codes_and_integer_sums_are_the_same_to_the_bit(tmp_path, rng, bits, activation_bits, int8):
    """What a layer of the runtime quantises, quantised by NumPy, gives its codes; our packed bytes give its sums."""
    model, x = make_model(rng, bits, activation_bits), images(rng)
    model.blocks[0].norm2.weight.data[...] = model.blocks[0].norm2.bias.data[...] = 0  # tokens of zeros
    export_onnx(model, tmp_path / "m.onnx", PIXELS, int8=int8)
    rows, values = inner_values(tmp_path / "m.onnx")
    names = sorted({name for row in rows for name in row if isinstance(name, str)} - {*values})
    values |= dict(zip(names, run(tmp_path / "m.onnx", x, outputs=names), strict=True))
    packed = [m for m in model.pack().modules() if isinstance(m, PackedLinear)]
    assert len(rows) == len(packed) == 8
    for (v, codes, zero, weight, sums), layer in zip(rows, packed, strict=True):
        assert (zero, values[codes].dtype) == ((0, "int8") if bits == 8 else (128, "uint8"))
        c, q = values[codes].astype("int64") - zero, layer.codes()[0].astype("int64")
        smallest = smallest_size(layer.norm)
        if activation_bits == 1:
            expected = binary_codes(np, values[v], centre=False, eps=smallest)[0]
        else:
            expected = absmax_codes(np, values[v], activation_bits, eps=smallest)[0]
        assert np.array_equal(c, expected)
        assert np.array_equal(values[weight].T, q)
        assert np.array_equal(values[sums], c @ q.T)
        assert np.abs(c).max() == (max(1, 2 ** (activation_bits - 1) - 1) if values[v].any() else activation_bits == 1)


@pytest.mark.parametrize("bits", [1, 1.58, 4, 8])
def test_same_logits_where_the_codes_are_the_same(tmp_path, rng, monkeypatch, bits):
    """A difference in the last digit of a float is one in the last digits of the logits, unless it moves a code."""
    model, x, ours = make_model(rng, bits, depth=3, dim=48), images(rng, 64), []

    def recorded(*args):
        codes, step = input_codes(*args)
        ours.append(codes.copy())
        return codes, step

    monkeypatch.setattr(tb.quant.integer, "input_codes", recorded)
    expected = logits(model, x)
    export_onnx(model, tmp_path / "m.onnx", PIXELS)
    theirs = run(tmp_path / "m.onnx", x)  # before the file is changed: what is given out is not fused
    rows, _ = inner_values(tmp_path / "m.onnx")
    found = run(tmp_path / "m.onnx", x, outputs=[row[1] for row in rows])
    equal = np.ones(len(x), bool)
    for codes, (_, _, zero, *_), own in zip(found, rows, ours, strict=True):
        equal &= (codes.astype("int64") - zero == own).reshape(len(x), -1).all(axis=1)
    assert equal.mean() > 0.5
    far = np.abs(theirs - expected).max(axis=1) > 1e-5
    assert (far & equal).sum() <= 1  # where fusing moved a code that was equal without


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("bits", [1.58, 4, 8])
@pytest.mark.parametrize("level", LEVELS)
def test_no_optimisation_changes_the_arithmetic(tmp_path, rng, level, bits, activation_bits):
    """onnxruntime may fuse what lies between; it must not quantise again: the mean error would be some per cent."""
    model, x = make_model(rng, bits, activation_bits, dim=96, heads=3), images(rng, 16)
    export_onnx(model, tmp_path / "m.onnx", PIXELS)
    found = run(tmp_path / "m.onnx", x, level, optimized=tmp_path / "optimized.onnx")
    same = np.abs(found - logits(model, x)).max(axis=1) < 1e-5
    assert same.mean() > 0.6  # in the others a code is at a half, and was rounded to the other side
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("MatMulInteger") == (8 if activation_bits else 0)
    assert not [kind for kind in kinds if kind.startswith(("Dynamic", "QLinear", "MatMulNBits", "QMoE"))]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == kinds.count("MatMulInteger")


def test_weights_are_unpacked_once(tmp_path, rng):
    """When the file is loaded: what is left for every call is the cast of the pixels, and a norm is one operator."""
    for activation_bits in (8, None):
        export_onnx(make_model(rng, 1.58, activation_bits), tmp_path / "m.onnx", PIXELS)
        run(tmp_path / "m.onnx", images(rng), optimized=tmp_path / "optimized.onnx")
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert kinds.count("Cast") == 1
        assert kinds.count("LayerNormalization") == 5
        assert kinds.count("SimplifiedLayerNormalization") == (0 if activation_bits else 4)


@pytest.mark.parametrize("what", [1e30, np.inf, np.nan])
def test_what_is_not_finite_stays_so(tmp_path, rng, what):
    """Codes are whole numbers and know no NaN, but the logits must not look like an answer."""
    x = np.full((2, 8, 8, 3), 0.5, "float32")
    x[1, 3, 3] = what
    export_onnx(make_model(rng), tmp_path / "m.onnx", {"mean": [0.0], "std": [1e-9]}, float_images=True)
    found = run(tmp_path / "m.onnx", x)
    assert np.isfinite(found[0]).all() and not np.isfinite(found[1]).any()


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


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest onnxruntime has no wheel for this Python")
def test_the_oldest_runtime_that_the_docs_name(tmp_path, rng):
    """INT8 files of every width, in an environment of its own."""
    page = (Path(__file__).parents[2] / "docs" / "use.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"INT8 \(`int8=True`\) \| ([\d.]+)", page)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "-q", "install", f"onnxruntime=={version}.0", "numpy<2"], check=True)
    x = images(rng)
    np.save(tmp_path / "x.npy", x)
    for bits in ALL_BITS:
        for activation_bits in (8, 4, 1, None):
            model = make_model(rng, bits, activation_bits)
            export_onnx(model, tmp_path / "m.onnx", PIXELS, int8=True)
            program = (
                "import numpy, onnxruntime\n"
                "session = onnxruntime.InferenceSession('m.onnx', providers=['CPUExecutionProvider'])\n"
                "numpy.save('y.npy', session.run(None, {'images': numpy.load('x.npy')})[0])"
            )
            subprocess.run([python, "-c", program], check=True, cwd=tmp_path)
            close(np.load(tmp_path / "y.npy"), logits(model, x))


def test_what_cannot_be_written(tmp_path, rng, monkeypatch):
    with pytest.raises(CheckpointError, match="cannot write"):
        export_onnx(make_model(rng), tmp_path / "none" / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'needs the package onnx: pip install "tinybitvit\[onnx\]"'):
        export_onnx(make_model(rng), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
