"""Weights trained elsewhere: the same outputs as transformers and timm, which made the files."""

import importlib.abc
import importlib.machinery
import json
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file

import tinybitvit as tb
from tinybitvit.io import CheckpointError
from tinybitvit.models import from_pretrained, source_of
from tinybitvit.models.positions import bicubic_matrix, resize_positions
from tinybitvit.quant import BitLinear

# The oracles' own warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}


@pytest.fixture(scope="module")
def hf():
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


class Anything(type):
    """A class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `import torchvision...`, which does not work beside a CPU-only torch: timm needs no more than names."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module):
        module.__file__ = "stand-in"
        module.__getattr__ = lambda attribute: Anything(attribute, (), {})


@pytest.fixture(scope="module")
def timm():
    finder = StandIn()
    sys.meta_path.insert(0, finder)
    yield pytest.importorskip("timm")
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def randomize(model, seed=0):
    """Every weight, bias and token at random, so that none is 0 or 1 by chance of its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.15 * torch.randn(p.shape, generator=generator) + (p.mean() if p.ndim == 1 else 0))
    return model.eval()


def images(*size, channels=3, n=2):
    return np.random.default_rng(1).standard_normal((n, *size, channels)).astype("float32")


def theirs(function, x, **options):
    with torch.no_grad():
        return function(torch.from_numpy(x).permute(0, 3, 1, 2), **options)


def ours(model, x, features=False):
    with tb.no_grad():
        return (model.forward_features(x) if features else model(x)).data


def close(a, b):
    b = b.detach().numpy()
    assert a.shape == b.shape
    assert np.abs(b).max() > 0.1, "a comparison of nothing"
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


# Hugging Face


def save_v5(model, folder):
    """A folder with the names that transformers 5 gives the weights in memory."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")


@pytest.fixture(params=["v4 names", "v5 names"])
def save(request, tmp_path):
    def write(model):
        folder = tmp_path / "model"
        model.save_pretrained(folder) if request.param == "v4 names" else save_v5(model, folder)
        return folder

    return write


VIT = {**SIZE, "intermediate_size": 64, "image_size": 16}


@pytest.mark.parametrize("extra", [{}, {"qkv_bias": False}, {"layer_norm_eps": 1e-3}, {"hidden_act": "gelu_new"}])
def test_vit(hf, save, extra):
    model = randomize(hf.ViTForImageClassification(hf.ViTConfig(**VIT, num_labels=7, **extra)))
    mine, x = from_pretrained(save(model)), images(16, 16)
    close(ours(mine, x), theirs(model, x).logits)
    assert mine.config["eps"] == extra.get("layer_norm_eps", 1e-12)


def test_vit_without_head(hf, save):
    model = randomize(hf.ViTModel(hf.ViTConfig(**VIT)))
    mine, x = from_pretrained(save(model)), images(16, 16)
    hidden = theirs(model, x).last_hidden_state
    close(ours(mine, x, features=True), hidden)
    close(ours(mine, x), hidden[:, 0])


@pytest.mark.parametrize("size", [(24, 24), (8, 8), (12, 28)])
def test_vit_at_another_size(hf, save, size):
    model = randomize(hf.ViTForImageClassification(hf.ViTConfig(**VIT)))
    mine, x = from_pretrained(save(model), image_size=size), images(*size)
    close(ours(mine, x), theirs(model, x, interpolate_pos_encoding=True).logits)


def test_vit_of_a_non_square_image(hf, save):
    model = randomize(hf.ViTForImageClassification(hf.ViTConfig(**{**VIT, "image_size": (8, 20)}, num_channels=1)))
    mine, x = from_pretrained(save(model)), images(8, 20, channels=1)
    assert mine.config["image_size"] == (8, 20)
    close(ours(mine, x), theirs(model, x).logits)


@pytest.mark.parametrize("heads", ["one", "teacher", "none"])
@pytest.mark.parametrize("size", [16, 24])
def test_deit_with_distillation_token(hf, save, heads, size):
    kind = {
        "one": hf.DeiTForImageClassification,
        "teacher": hf.DeiTForImageClassificationWithTeacher,
        "none": hf.DeiTModel,
    }[heads]
    model = randomize(kind(hf.DeiTConfig(**VIT, num_labels=5)))
    mine, x = from_pretrained(save(model), image_size=size), images(size, size)
    result = theirs(model, x, interpolate_pos_encoding=True)
    if heads == "none":
        close(ours(mine, x, features=True), result.last_hidden_state)
    else:
        close(ours(mine, x), result.logits)
        assert mine.config["pool"] == ("cls+dist" if heads == "teacher" else "cls")


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("size", [(28, 28), (20, 12)])
def test_dinov2(hf, save, registers, head, size):
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(hf, f"{name}Config")(**SIZE, image_size=28, mlp_ratio=2, num_labels=6)
    model = randomize(getattr(hf, f"{name}ForImageClassification" if head else f"{name}Model")(config))
    mine, x = from_pretrained(save(model), image_size=size), images(*size)
    result = theirs(model, x)
    assert mine.config["registers"] == 4 * registers and mine.blocks[0].ls1 is not None
    if head:
        close(ours(mine, x), result.logits)
    else:
        close(ours(mine, x, features=True), result.last_hidden_state)


@pytest.mark.data("dinov2-small")
@pytest.mark.parametrize("size", [56, 98, 224])
def test_real_dinov2_small(hf, data_root, size):
    folder = data_root / "dinov2-small"
    model = hf.Dinov2Model.from_pretrained(folder).eval()
    mine, x = from_pretrained(folder, image_size=size), images(size, size, n=1)
    close(ours(mine, x, features=True), theirs(model, x).last_hidden_state)
    assert mine.preprocessing == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_preprocessing_is_kept(hf, tmp_path):
    hf.ViTForImageClassification(hf.ViTConfig(**VIT)).save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).preprocessing is None
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 2, 3]}')
    assert from_pretrained(tmp_path).preprocessing == {"mean": [0.5, 0.4, 0.3], "std": [1.0, 2.0, 3.0]}


# timm


def timm_file(model, path, config=None):
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    if config is not None:
        path.with_name("config.json").write_text(json.dumps(config))
    return path


TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_classes": 7}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"num_heads": 4},
        {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
        {"reg_tokens": 3},
        {"qkv_bias": False, "mlp_ratio": 2.5},
        {"img_size": (8, 20)},
    ],
)
def test_timm(timm, tmp_path, extra):
    from timm.models.vision_transformer import VisionTransformer

    arguments = {"num_heads": 1, **TIMM, **extra}
    model = randomize(VisionTransformer(**arguments))
    config = {"architecture": "vit", "model_args": {k: arguments[k] for k in ("num_heads", "img_size")}}
    size = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (16, 16)
    mine, x = from_pretrained(timm_file(model, tmp_path / "model.safetensors", config).parent), images(*size)
    close(ours(mine, x), theirs(model, x))


def test_timm_file_alone(timm, tmp_path):
    model = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=10))
    mine, x = from_pretrained(timm_file(model, tmp_path / "vit_tiny.safetensors")), images(224, 224, n=1)
    assert mine.config["heads"] == 3 and sum(p.size for p in mine.parameters()) == 5_526_346
    close(ours(mine, x), theirs(model, x))


def test_timm_heads_can_be_given(timm, tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    model = randomize(VisionTransformer(**TIMM, num_heads=8))
    path, x = timm_file(model, tmp_path / "m.safetensors"), images(16, 16)
    close(ours(from_pretrained(path, heads=8), x), theirs(model, x))
    assert np.abs(ours(from_pretrained(path), x) - theirs(model, x).numpy()).max() > 1e-3


@pytest.mark.parametrize("extra", [{}, {"reg_tokens": 4, "no_embed_class": True}])
@pytest.mark.parametrize("size", [(24, 24), (8, 12)])
def test_timm_at_another_size(timm, tmp_path, extra, size):
    from timm.models.vision_transformer import VisionTransformer

    model = randomize(VisionTransformer(**TIMM, num_heads=1, **extra))
    path = timm_file(model, tmp_path / "m.safetensors")
    mine, x = from_pretrained(path, image_size=size), images(*size)
    model.set_input_size(img_size=size)
    close(ours(mine, x), theirs(model, x))


def test_timm_deit_distilled(timm, tmp_path):
    from timm.models.deit import VisionTransformerDistilled

    model = randomize(VisionTransformerDistilled(**TIMM, num_heads=1))
    mine, x = from_pretrained(timm_file(model, tmp_path / "m.safetensors")), images(16, 16)
    close(ours(mine, x), theirs(model, x))


def test_timm_deit_distilled_without_heads(timm, tmp_path):
    """timm's features are the mean of both tokens, which no pooling here is."""
    from timm.models.deit import VisionTransformerDistilled

    model = randomize(VisionTransformerDistilled(**TIMM | {"num_classes": 0}, num_heads=1))
    path, x = timm_file(model, tmp_path / "m.safetensors"), images(16, 16)
    with pytest.raises(CheckpointError, match=r"a distilled DeiT without heads.*num_classes= for a new head on both"):
        from_pretrained(path)
    tokens = ours(from_pretrained(path, pool="cls"), x, features=True)
    close((tokens[:, 0] + tokens[:, 1]) / 2, theirs(model, x))
    headed = from_pretrained(path, num_classes=3)
    assert headed.config["pool"] == "cls+dist" and headed.head.weight.shape == (3, 128)


def test_timm_preprocessing(timm, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    cfg = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 224, 224]}}
    mine = from_pretrained(timm_file(model, tmp_path / "model.safetensors", cfg))
    assert mine.preprocessing == {"mean": [0.5] * 3, "std": [0.5] * 3} and mine.head is None
    del cfg["pretrained_cfg"]["std"]
    with pytest.raises(CheckpointError, match=r"config\.json lacks std, for the pixels: add it"):
        from_pretrained(timm_file(model, tmp_path / "model.safetensors", cfg))


def test_timm_average_pooling_is_refused(timm, tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    path = timm_file(VisionTransformer(**TIMM, num_heads=1, global_pool="avg"), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"no place for fc_norm\.(weight|bias)"):
        from_pretrained(path)


# What can be asked for


@pytest.fixture
def vit_folder(hf, tmp_path):
    randomize(hf.ViTForImageClassification(hf.ViTConfig(**VIT, num_labels=7))).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_new_head(vit_folder):
    whole = from_pretrained(vit_folder)
    tb.manual_seed(0)
    model = from_pretrained(vit_folder, num_classes=3)
    assert model.head.weight.shape == (3, 32) and model.head.weight.data.std() > 0.05
    body = from_pretrained(vit_folder, num_classes=0)
    x = images(16, 16)
    assert body.head is None and np.array_equal(ours(body, x, features=True), ours(whole, x, features=True))
    mean = from_pretrained(vit_folder, pool="mean", num_classes=7)
    assert not np.array_equal(mean.head.weight.data, whole.head.weight.data), "the file's head is for the class token"


def test_options_that_do_not_fit_a_file(vit_folder):
    for number in (None, 3):
        assert from_pretrained(vit_folder, pool="cls", num_classes=number).config["num_classes"] == (number or 7)
    with pytest.raises(ValueError, match=r"the head in .* is for pool='cls', not 'mean': give num_classes="):
        from_pretrained(vit_folder, pool="mean")
    assert from_pretrained(vit_folder, pool="mean", num_classes=0).head is None
    for name, value in {"registers": 2, "eps": 1e-3, "dim": 32}.items():
        with pytest.raises(ValueError, match=f"^{name} is .*, as its weights need it: leave {name} out"):
            from_pretrained(vit_folder, **{name: value})


@pytest.mark.parametrize("bits", [8, 1.58, 1])
def test_low_bit_start(vit_folder, bits):
    model, whole = from_pretrained(vit_folder, bits=bits, sub_norm=False), from_pretrained(vit_folder)
    layers = [m for m in model.modules() if isinstance(m, BitLinear)]
    assert len(layers) == 8 and layers[0].bits == bits
    assert all(np.array_equal(p, whole.state_dict()[n]) for n, p in model.state_dict().items())
    if bits == 8:
        both = ours(model, images(16, 16)).ravel(), ours(whole, images(16, 16)).ravel()
        assert np.corrcoef(both)[0, 1] > 0.98
    normed = from_pretrained(vit_folder, bits=bits)
    assert normed.blocks[0].mlp.fc2.norm is not None
    model.pack()


def test_half_precision_files(hf, vit_folder):
    whole = from_pretrained(vit_folder)
    for dtype in (torch.float16, torch.bfloat16):
        hf.ViTForImageClassification.from_pretrained(vit_folder, dtype=dtype).save_pretrained(vit_folder / "half")
        half = from_pretrained(vit_folder / "half")
        assert all(p.dtype == np.float32 for p in half.parameters())
        assert 0 < np.abs(half.state_dict()["head.weight"] - whole.state_dict()["head.weight"]).max() < 0.01


# Positions


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 1), (2, 7)])
@pytest.mark.parametrize("size", [(4, 4), (16, 16), (14, 14), (1, 2), (20, 13)])
def test_bicubic_equals_torch(grid, size, antialias):
    x = np.random.default_rng(0).standard_normal((*grid, 5)).astype("float32")
    options = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    expected = torch.nn.functional.interpolate(torch.from_numpy(x).permute(2, 0, 1)[None], size=size, **options)
    result = resize_positions(x, size, antialias)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_bicubic_weights_sum_to_one(antialias):
    for n, m in ((5, 3), (3, 5), (7, 7), (1, 4)):
        np.testing.assert_allclose(bicubic_matrix(n, m, antialias).sum(1), 1)
    assert np.array_equal(bicubic_matrix(6, 6, antialias), np.eye(6))


# Files that are no use


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "swin"}, "holds a 'swin' model; supported are vit"),
        ({"hidden_act": "relu"}, "the activation 'relu'; supported are gelu"),
        ({"num_attention_heads": 5}, "5 heads for 32 channels"),
        ({"num_attention_heads": 0}, "0 heads"),
        ({"num_attention_heads": None}, "cannot be read as a ViT"),
        ({"layer_norm_eps": -1}, "eps -1"),
        ({"image_size": "big"}, "cannot be read as a ViT"),
    ],
)
def test_wrong_config(vit_folder, config, message):
    change_config(vit_folder, **config)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(vit_folder)


def test_missing_and_broken_files(vit_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*nowhere.* check the name"):
        from_pretrained(tmp_path / "nowhere.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors: download"):
        from_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"config.json is JSON, not weights: give the folder that it lies in"):
        from_pretrained(vit_folder / "config.json")
    (vit_folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not readable JSON"):
        from_pretrained(vit_folder)
    (vit_folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="does not hold a JSON object"):
        from_pretrained(vit_folder)


@pytest.mark.parametrize("read", [from_pretrained, lambda path: source_of(path, (8, 8))])
def test_files_of_the_librarys_own(tmp_path, rng, read):
    network = tb.models.VisionTransformer(8, 4, 3, dim=8, depth=1, heads=1, bits=1, rng=rng)
    for packed in (False, True):
        tb.io.save_model(tmp_path / "m.safetensors", network, packed=packed)
        with pytest.raises(CheckpointError, match=r"one of TinyBitViT's own files: take tb\.load\('.*m.safetensors'\)"):
            read(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"is a network of the zoo: take tb\.load\('digits-1bit'\)"):
        read("digits-1bit")
    with pytest.raises(CheckpointError, match="there is no file digits-7bit"):
        read("digits-7bit")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit.encoder.layer.1.attention.output.dense.weight", None),
        ("vit.embeddings.position_embeddings", None),
        ("vit.layernorm.weight", (31,)),
        ("vit.embeddings.position_embeddings", (1, 15, 32)),
        ("vit.encoder.layer.0.attention.attention.key.weight", (32, 31)),
        ("vit.encoder.layer.900.layernorm_before.weight", (32,)),
        ("vit.rel_pos_bias", (2,)),
        ("vit.embeddings.patch_embeddings.projection.weight", (32, 48)),
        ("vit.embeddings.cls_token", (1,)),
        ("classifier.weight", (7,)),
    ],
)
def test_wrong_arrays(vit_folder, name, shape):
    path = vit_folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    arrays.pop(name, None)
    if shape is not None:
        arrays[name] = np.zeros(shape, "float32")
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(CheckpointError):
        from_pretrained(vit_folder)


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_raise_one_error(vit_folder, rng, count):
    """Foreign files have no checksum: a change of a value passes, but nothing else than a CheckpointError comes out."""
    from test_io import mutate

    refused = 0
    for file in (vit_folder / "model.safetensors", vit_folder / "config.json"):
        raw = file.read_bytes()
        for _ in range(count):
            if file.suffix == ".json":
                changed = bytearray(raw)
                for _ in range(3):
                    changed[rng.integers(len(raw))] = rng.integers(32, 127)
            else:
                changed = mutate(raw, rng)
            file.write_bytes(changed)
            try:
                from_pretrained(vit_folder)
            except CheckpointError:
                refused += 1
        file.write_bytes(raw)
    assert refused > count / 4
