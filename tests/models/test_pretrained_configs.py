"""What config files beside foreign weights say: honoured, the same logits as the original, or refused, never ignored.

Hugging Face comes first: what stands in for torchvision when timm is imported is no help to transformers.
"""

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from test_pretrained import SIZE, VIT, change_config, close, images, ours, randomize, theirs, timm_file
from test_pretrained import hf as hf  # a fixture
from test_pretrained import timm as timm  # a fixture

from tinybitvit.io import CheckpointError
from tinybitvit.models import from_pretrained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def vit_folder(hf, tmp_path):
    randomize(hf.ViTForImageClassification(hf.ViTConfig(**VIT, num_labels=7))).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


# Hugging Face


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "the activation 'quick_gelu'"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is not supported"),
        ({"hidden_size": 64}, "hidden_size=64, and the arrays have 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3, and the arrays have 2"),
        ({"intermediate_size": 128}, "intermediate_size=128, and the arrays have 64"),
        ({"num_channels": 1}, "num_channels=1, and the arrays have 3"),
        ({"patch_size": 8}, r"patch_size=8, and the arrays have \[4, 4\]"),
        ({"image_size": 32}, "images have 32 pixels, and 17 positions do not"),
        ({"qkv_bias": False}, "qkv_bias=False, and the arrays have True"),
        ({"id2label": {"0": "a"}}, "names 1 classes, and the head has 7"),
        ({"num_attention_heads": 4.5}, "4.5 heads"),
        ({"layer_norm_eps": "nan"}, "eps nan"),
    ],
)
def test_hugging_face_configs_that_are_refused(vit_folder, config, message):
    change_config(vit_folder, **config)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(vit_folder)


def test_arrays_of_hugging_face_alone(vit_folder):
    (vit_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"Hugging Face.s names: put their config.json beside the file"):
        from_pretrained(vit_folder)


def test_a_model_with_registers_has_none(hf, tmp_path):
    config = hf.Dinov2WithRegistersConfig(**SIZE, image_size=28, mlp_ratio=2, num_register_tokens=0)
    model = randomize(hf.Dinov2WithRegistersModel(config))
    model.save_pretrained(tmp_path)
    mine, x = from_pretrained(tmp_path), images(28, 28)
    assert mine.config["registers"] == 0
    close(ours(mine, x, features=True), theirs(model, x).last_hidden_state)


def test_registers_that_are_not_there(hf, tmp_path):
    config = hf.Dinov2WithRegistersConfig(**SIZE, image_size=28, mlp_ratio=2)
    hf.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    change_config(tmp_path, num_register_tokens=2)
    with pytest.raises(CheckpointError, match="num_register_tokens=2, and the arrays have 4"):
        from_pretrained(tmp_path)


# Pixels


@pytest.mark.parametrize(
    "stated",
    [
        {"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 127.5},
        {"image_mean": [99, 88, 77], "image_std": [55, 44, 33], "do_rescale": False},
        {"do_normalize": False, "do_rescale": False},
        {"image_mean": [0.5], "image_std": [0.5]},
    ],
)
def test_pixels_are_prepared_as_by_transformers(vit_folder, stated):
    """(x / 255 - mean) / std of `preprocessing` against what the file says, in the order of transformers."""
    (vit_folder / "preprocessor_config.json").write_text(json.dumps(stated))
    found = from_pretrained(vit_folder).preprocessing
    pixels = np.arange(0, 255, 17.0)[:, None]
    x = pixels * (stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1)
    if stated.get("do_normalize", True):
        x = (x - stated["image_mean"]) / stated["image_std"]
    np.testing.assert_allclose((pixels / 255 - found["mean"]) / found["std"], np.broadcast_to(x, (15, 3)), atol=1e-12)


@pytest.mark.parametrize(
    ("stated", "lacking"),
    [
        ({"image_mean": [0.5] * 3}, "image_std"),
        ({"image_std": [0.5] * 3}, "image_mean"),
        ({"do_rescale": False}, "image_mean"),
    ],
)
def test_numbers_of_pixels_that_are_missing_are_named(vit_folder, stated, lacking):
    (vit_folder / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=f'preprocessor_config.json lacks {lacking}, .*: add it, or "do_'):
        from_pretrained(vit_folder)


@pytest.mark.parametrize(
    "stated",
    [
        {"image_mean": [0.5] * 2, "image_std": [0.5] * 2},
        {"image_mean": [0.5] * 4, "image_std": [0.5] * 4},
        {"image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]},
        {"image_mean": ["a"] * 3, "image_std": [0.5] * 3},
        {"image_mean": [1e999] * 3, "image_std": [0.5] * 3},
        {"do_normalize": "no"},
        {"rescale_factor": 0, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"rescale_factor": "1/255"},
        {"rescale_offset": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ],
)
def test_pixels_that_cannot_be_prepared(vit_folder, stated):
    (vit_folder / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError):
        from_pretrained(vit_folder)


# Models in parts


@pytest.fixture
def parts(hf, tmp_path):
    """(folder, model): a model in several files with an index, as transformers writes it."""
    model = randomize(hf.ViTForImageClassification(hf.ViTConfig(**VIT, num_labels=7)))
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    return tmp_path / "parts", model


def test_a_model_in_parts(parts):
    folder, model = parts
    x = images(16, 16)
    close(ours(from_pretrained(folder), x), theirs(model, x).logits)


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_faults_of_parts_are_named(parts):
    folder, _ = parts
    index = (folder / "model.safetensors.index.json").read_text()
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    for file, what in ((first, "one part of a model"), (folder / "model.safetensors.index.json", "JSON, not weights")):
        with pytest.raises(CheckpointError, match=f"{file.name} is {what}: give the folder that it lies in"):
            from_pretrained(file)
    one = min(safetensors.numpy.load_file(first))

    def refused(message):
        with pytest.raises(CheckpointError, match=message):
            from_pretrained(folder)
        (folder / "model.safetensors.index.json").write_text(index)

    for outside in (f"../{folder.name}/{first.name}", str(first), "..\\x", "a/b"):
        change_index(folder, lambda places, outside=outside: places.update({one: outside}))
        refused("names the file .*: the parts of a model must lie beside it")
    change_index(folder, lambda places: places.update({one: ".."}))
    refused("is a folder")
    change_index(folder, lambda places: places.update({one: second.name}))
    refused(f"{first.name} holds {one}, which .* finds in {second.name}")
    change_index(folder, lambda places: places.pop(one))
    refused(f"{first.name} holds {one}, which .* finds in None")
    change_index(folder, lambda places: places.update(more=second.name))
    refused(f"{second.name} lacks more: download that file again")
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "{", "[" * 100_000):
        (folder / "model.safetensors.index.json").write_text(content)
        refused("index.json")
    arrays = safetensors.numpy.load_file(second)
    safetensors.numpy.save_file({**arrays, one: np.zeros(3, "float32")}, second)
    refused(f"{second.name} holds {one}, which .* finds in {first.name}")
    second.unlink()
    refused(f"there is no file .*{second.name}")
    os.mkfifo(second)
    refused("is a pipe")


def test_a_config_that_is_a_pipe(vit_folder):
    (vit_folder / "config.json").unlink()
    os.mkfifo(vit_folder / "config.json")
    with pytest.raises(CheckpointError, match=r"config.json is a pipe or a device"):
        from_pretrained(vit_folder)


# timm: what the name of an architecture implies


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_huge_patch14_224", {"depth": 1, "img_size": 28}),
        ("vit_base_patch16_gap_224", {"depth": 1, "img_size": 32, "global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1, "img_size": 32}),
        ("deit3_small_patch16_224", {"depth": 1, "img_size": 32}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "act_layer": "gelu_tanh"}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "num_heads": 6}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "num_heads": 2, "embed_dim": 64, "patch_size": 8}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_timm_architectures(timm, tmp_path, name, arguments):
    model = randomize(timm.create_model(name, num_classes=5, **arguments))
    given = {key: value for key, value in arguments.items() if "gap" not in name or key != "global_pool"}
    config = {"architecture": name, "num_classes": 5, "model_args": given}
    x = images(*(2 * [arguments["img_size"]]), n=1)
    mine = from_pretrained(timm_file(model, tmp_path / "model.safetensors", config).parent)
    expected = theirs(model, x)
    np.testing.assert_allclose(ours(mine, x), expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture
def timm_folder(timm, tmp_path):
    """A tiny ViT of 192 channels with patches of 16 and 32 x 32 pixels; returns a function of its config."""
    model = randomize(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5))

    def write(config):
        usual = {"architecture": "vit_tiny_patch16_224", "num_classes": 5}
        return timm_file(model, tmp_path / "model.safetensors", {**usual, **config}).parent

    return write


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "vit_small_patch16_224"}, "embed_dim=384, and the arrays have 192: it belongs to another"),
        ({"architecture": "vit_tiny_patch8_224"}, r"patch_size=8, and the arrays have \[16, 16\]"),
        ({"architecture": "vit_tiny_patch16_siglip_gap_224"}, "'siglip' in the architecture .* not known here"),
        ({"architecture": "vit_tiny_patch16_clip_quickgelu_224"}, "'clip' in the architecture"),
        ({"architecture": "vit_tiny_patch16_rpn_224"}, "'rpn' in the architecture"),
        ({"architecture": "swin_tiny"}, "'swin' in the architecture"),
        ({"architecture": "vit"}, "do not tell the number of heads of 192 channels: give heads="),
        ({"architecture": ["vit"]}, "cannot be read as a ViT"),
        ({"num_classes": 6}, "num_classes=6, and the arrays have 5"),
        ({"num_features": 100}, "num_features=100, and the arrays have 192"),
        ({"global_pool": "map"}, "global_pool='map' is not supported"),
        ({"global_pool": ""}, "global_pool='' is not supported"),
        ({"model_args": {"global_pool": "max"}}, "global_pool='max' is not supported"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "the activation 'quick_gelu'; supported are gelu"),
        ({"model_args": {"act_layer": "relu"}}, "the activation 'relu'"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer='rmsnorm' is not supported"),
        ({"model_args": {"block_fn": "ResPostBlock"}}, "block_fn='ResPostBlock' is not supported"),
        ({"model_args": {"pool_include_prefix": True}}, "pool_include_prefix=True is not supported"),
        ({"model_args": {"rope": True}}, "the argument rope=True, which is not known here"),
        ({"model_args": {"depth": 2}}, "depth=2, and the arrays have 1"),
        ({"model_args": {"in_chans": 1}}, "in_chans=1, and the arrays have 3"),
        ({"model_args": {"mlp_ratio": 3}}, "mlp_ratio=3, and the arrays have 4.0"),
        ({"model_args": {"reg_tokens": 1}}, "reg_tokens=1, and the arrays have 0"),
        ({"model_args": {"qkv_bias": False}}, "qkv_bias=False, and the arrays have True"),
        ({"model_args": {"class_token": False}}, "class_token=False, and the arrays have True"),
        ({"model_args": {"init_values": 1e-5}}, "init_values=1e-05, and the arrays have False"),
        ({"model_args": {"img_size": 48}}, "images have 48 pixels, and 5 positions do not"),
        ({"model_args": {"num_heads": 0}}, "0 heads for 192 channels"),
        ({"model_args": {"num_heads": 2.5}}, "2.5 heads for 192 channels"),
        ({"model_args": {"num_heads": True}}, "True heads for 192 channels"),
        ({"model_args": 7}, "cannot be read as a ViT"),
        ({"model_type": "vit", "num_attention_heads": 3}, "the arrays have timm's names, and config.json is Hugging"),
    ],
)
def test_timm_configs_that_are_refused(timm_folder, config, message):
    assert from_pretrained(timm_folder({})).config["heads"] == 3
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(timm_folder(config))


@pytest.mark.parametrize("kind", ["GluMlp", "SwiGLUPacked"])
def test_gated_mlps_are_named(timm, tmp_path, kind):
    """Also where the size that another architecture of the name has is the first to differ: giant, of DINOv2."""
    import timm.layers
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 0}
    model = VisionTransformer(**sizes, mlp_layer=getattr(timm.layers, kind))
    for config in (None, {"architecture": "vit_giant_patch14_dinov2", "num_features": 64}):
        path = timm_file(model, tmp_path / "model.safetensors", config)
        with pytest.raises(CheckpointError, match=r"its MLPs are gated \(SwiGLU or GluMlp\), which is not supported"):
            from_pretrained(path)


def test_heads_that_nobody_tells(timm, tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    for dim in (1280, 100):
        model = VisionTransformer(img_size=16, patch_size=8, embed_dim=dim, depth=1, num_heads=4, num_classes=2)
        path = timm_file(model, tmp_path / f"{dim}.safetensors")
        with pytest.raises(CheckpointError, match=f"number of heads of {dim} channels: give heads="):
            from_pretrained(path)
        assert from_pretrained(path, heads=4).config["heads"] == 4
