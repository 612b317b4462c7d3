"""The layout of Hugging Face's BitNet, read back by transformers' own code."""

import json
import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

import tinybitvit as tb
from tinybitvit.io import CheckpointError, export, load_model
from tinybitvit.quant import BitLinear, Quantizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def bitnet():
    """transformers' BitNet code without torch.compile, which would look for a C++ compiler."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    pytest.importorskip("transformers")
    from transformers.integrations import bitnet

    was, torch._dynamo.config.disable = torch._dynamo.config.disable, True
    yield bitnet
    torch._dynamo.config.disable = was


def make_model(rng, bits=1.58, **options):
    settings = {"dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2, **options}
    model = tb.models.VisionTransformer(8, 4, bits=bits, rng=rng, **settings)
    for p in model.parameters():
        p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype("float32")
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("bits", [1.58, 1])
def test_transformers_reads_the_same_layers(bitnet, tmp_path, rng, bits, granularity, packed):
    model = make_model(rng, bits, granularity=granularity)
    export(model.pack() if packed else model, tmp_path / "m.safetensors", "hf")
    arrays = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    for name, layer in model.named_modules():
        if not isinstance(layer, BitLinear):
            continue
        weight = torch.from_numpy(arrays[f"{name}.weight"])
        codes, scale = layer.codes()
        assert np.array_equal(bitnet.unpack_weights(weight, dtype=torch.float32).numpy(), codes)
        weight_scale = arrays[f"{name}.weight_scale"]
        assert weight_scale.shape == ((1,) if granularity == "tensor" else (layer.out_features,))
        np.testing.assert_allclose(1 / weight_scale, scale[:, 0], rtol=1e-6)

        sizes = layer.in_features, layer.out_features
        theirs = bitnet.BitLinear(*sizes, bias=True, dtype=torch.float32, use_rms_norm=layer.norm is not None)
        theirs.weight_scale = torch.ones(weight_scale.shape)
        own = {n.removeprefix(f"{name}."): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(f"{name}.")}
        theirs.load_state_dict(own)
        x = rng.standard_normal((3, 5, layer.in_features)).astype("float32")
        # As in training, with the norm in front of the quantiser: without a graph its root goes into the step, and a
        # code between two numbers may tip.
        with torch.no_grad():
            np.testing.assert_allclose(layer(tb.Tensor(x)).data, theirs(torch.from_numpy(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("bits", [1.58, 1])
def test_one_scale_a_layer_loads_into_a_fresh_layer_of_transformers(bitnet, tmp_path, rng, bits, granularity):
    """Without touching its buffers; the scale is that of least squares, and exact where the model has one anyway."""
    model = make_model(rng, bits, granularity=granularity)
    export(model, tmp_path / "m.safetensors", "hf", per_tensor=True)
    arrays = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    for name, layer in model.named_modules():
        if not isinstance(layer, BitLinear):
            continue
        sizes = layer.in_features, layer.out_features
        theirs = bitnet.BitLinear(*sizes, bias=True, dtype=torch.float32, use_rms_norm=layer.norm is not None)
        own = {n.removeprefix(f"{name}."): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(f"{name}.")}
        theirs.load_state_dict(own)
        codes, _ = layer.codes()
        w, scale = layer.quantized_weight().astype("float64"), 1 / float(arrays[f"{name}.weight_scale"][0])
        best = np.linalg.lstsq(codes.reshape(-1, 1).astype("float64"), w.ravel(), rcond=None)[0][0]
        assert scale == pytest.approx(best, rel=1e-5)
        x = rng.standard_normal((3, 5, layer.in_features)).astype("float32")
        with tb.no_grad(), torch.no_grad():
            if granularity == "row":
                layer.weight.data[...] = codes * scale  # of one scale, that which the file has
                layer.quantizer = OneScale(codes, np.float32(scale))
            np.testing.assert_allclose(layer(tb.Tensor(x)).data, theirs(torch.from_numpy(x)).numpy(), atol=1e-5)


class OneScale(Quantizer):
    """Codes and scale that are given."""

    levels = (-1, 0, 1)

    def __init__(self, codes, scale):
        super().__init__()
        self.given = codes, np.full((1, 1), scale)

    def codes(self, xp, w):
        return self.given


def test_everything_is_in_the_file(tmp_path, rng):
    model = make_model(rng, pool="cls", registers=1)
    model.preprocessing = {"mean": [0.5], "std": [0.5]}
    export(model, tmp_path / "m", "hf")
    arrays = safetensors.numpy.load_file(tmp_path / "m")
    renamed = {
        name.replace("proj.norm", "proj.rms_norm").replace("fc2.norm", "fc2.rms_norm") for name in model.state_dict()
    }
    assert arrays.keys() == renamed | {
        n.replace("weight", "weight_scale") for n, a in arrays.items() if a.dtype == "u1"
    }
    for name in ("embed.patch.proj.weight", "embed.pos_embed", "embed.reg_token", "norm.bias", "head.weight"):
        assert np.array_equal(arrays[name], model.state_dict()[name])
    with safetensors.safe_open(tmp_path / "m", "np") as file:
        metadata = file.metadata()
    about = json.loads(metadata["tinybitvit_hf"])
    assert metadata["format"] == "pt" and "weight_scale divides" in about["convention"]
    assert about["config"]["dim"] == 16 and about["preprocessing"] == model.preprocessing
    with pytest.raises(CheckpointError, match="was not written by TinyBitViT"):
        load_model(tmp_path / "m")


def test_what_the_layout_cannot_hold(tmp_path, rng):
    refused = {
        r"blocks\.0\.mlp\.fc1 has 18 rows; .* multiple of 4": make_model(rng, dim=12, mlp_ratio=1.5),
        "weights of 1.58 or 1 bit, not 2": make_model(rng, 2),
        "weights of 1.58 or 1 bit, not 32": make_model(rng, 32),
        "inputs of 8 bits, not None": make_model(rng, activation_bits=None),
    }
    for message, model in refused.items():
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "m", "hf")
    with pytest.raises(ValueError, match="format must be one of onnx, hf, safetensors, not 'gguf'"):
        export(make_model(rng), tmp_path / "m", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_export_to_our_own_format(tmp_path, rng):
    for bits in (32, 1.58):
        model = make_model(rng, bits)
        export(model, tmp_path / "m", "safetensors", metadata={"a": 1})
        back, metadata, _ = load_model(tmp_path / "m")
        assert metadata == {"a": 1} and bool(back.config["layout"]) == (bits != 32)
