"""The options of a VisionTransformer: one dataclass, which checks them, and a dict of them in every network."""

import inspect
import json
from dataclasses import fields

import numpy as np
import pytest

from tinybitvit.io import load_model, save_model
from tinybitvit.models import VisionTransformer, ViTConfig

SMALL = {"image_size": 8, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2}


def test_the_config_is_a_dict_of_all_options():
    model = VisionTransformer(8, (4, 2), 1, 3, 8, 1, 2, 2, 1.58, 8, "cls", registers=1, rng=np.random.default_rng(0))
    names = [field.name for field in fields(ViTConfig)]
    assert [*model.config, "quantizer"] == names, "a quantiser of one's own is there where there is one"
    given = {"image_size": 8, "patch_size": (4, 2), "in_channels": 1, "num_classes": 3, "bits": 1.58, "registers": 1}
    found = {"class_token": True, "sub_norm": True, "layout": None, "granularity": "row"}
    assert model.config.items() >= (given | found).items()
    assert VisionTransformer(**model.config).config == model.config
    assert vars(ViTConfig(**model.config)) == {**model.config, "quantizer": None}


def test_every_option_has_a_comment():
    lines = inspect.getsource(ViTConfig).splitlines()
    for field in fields(ViTConfig)[2:]:
        (line,) = [line for line in lines if line.startswith(f"    {field.name}: ")]
        assert "  # " in line, line


def test_numpys_numbers_can_be_saved(tmp_path):
    """A width that came out of a search is a NumPy integer."""
    options = {"dim": np.int64(8), "depth": np.int32(1), "heads": np.uint8(2), "num_classes": np.int64(3)}
    model = VisionTransformer(8, 4, mlp_ratio=np.float64(2), dropout=np.float32(0.5), **options)
    plain = VisionTransformer(8, 4, dim=8, depth=1, heads=2, num_classes=3, mlp_ratio=2, dropout=0.5)
    assert model.config == plain.config and json.dumps(model.config) == json.dumps({**plain.config, "mlp_ratio": 2.0})
    save_model(tmp_path / "model.safetensors", model)
    assert load_model(tmp_path / "model.safetensors").model.config == {**plain.config, "mlp_ratio": 2.0}


@pytest.mark.parametrize("value", ["8", None, 1.5, True, float("nan")])
@pytest.mark.parametrize("name", ["in_channels", "num_classes", "dim", "depth", "heads", "registers"])
def test_sizes_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        VisionTransformer(**SMALL | {name: value})


@pytest.mark.parametrize("value", ["1", None, -0.5, True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["mlp_ratio", "dropout", "eps"])
def test_fractions_are_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number from 0"):
        VisionTransformer(**SMALL | {name: value})


def test_unknown_options_are_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'dims'"):
        VisionTransformer(8, 4, dims=3)
    with pytest.raises(ValueError, match="layer_scale must be a number"):
        VisionTransformer(**SMALL, layer_scale="small")
