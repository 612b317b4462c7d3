"""Files that are well-formed and wrong: each ends in a model that works or in a CheckpointError, soon and cheaply."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS, MEGABYTES = 2, 300

# Runs in a process of its own: its memory is then that of the files alone.
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
import tinybitvit as tb
from structured import change_arrays, change_json, write_foreign, write_ours
from tinybitvit.io import CheckpointError, read_safetensors

kind, count = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(count)
data = tb.data.load_digits()
model = tb.ViT(dim=16, depth=1, heads=2, epochs=1, bits=1.58, verbose=0, random_state=0)
model.fit(data.X_train[:100], data.y_train[:100])
if kind in ("full", "packed"):
    model.save("m", packed=kind == "packed")
    arrays, info = read_safetensors("m")
    write, read = (lambda a, i: write_ours(Path("m"), a, i)), (lambda: tb.load("m").predict(data.X_test[:2]))
else:
    shapes, info = json.loads(Path(f"{kind}.json").read_text())
    arrays = {name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
    write = lambda a, i: write_foreign(Path(), a, i)
    def read():
        network = tb.models.from_pretrained(".")
        (height, width), channels = network.embed.patch.image_size, network.embed.patch.in_channels
        with tb.no_grad():
            network(tb.Tensor(np.zeros((1, height, width, channels), "float32")))
        preprocessing = network.preprocessing
        assert preprocessing is None or tb.data.Normalize.from_dict(preprocessing)
write(arrays, info)
read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused, faults = 0, []
for i in range(count):
    a, described = arrays, info
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.3:
            a = change_arrays(a, rng)
        else:
            described = change_json(described, rng)
    write(a, described)
    start = time.process_time()
    try:
        read()
    except CheckpointError:
        refused += 1
    except Exception as error:
        if "how to convert them is not certain" in str(error):  # of pixels in other units than the file states
            continue
        faults.append(f"{type(error).__name__}: {error}"[:200] + f" for {json.dumps(described)[:600]}")
    if time.process_time() - start > SECONDS:
        faults.append(f"{time.process_time() - start:.1f} s for {json.dumps(described)[:600]}")
memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"refused": refused, "faults": faults, "memory": memory}))
""".replace("SECONDS", str(SECONDS))


def timm_file():
    """({name: shape}, config files) of a timm ViT of one block for 8 x 8 pixels."""
    dim, hidden, classes = 64, 128, 3
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 5, dim), "patch_embed.proj.weight": (dim, 3, 4, 4)}
    weights = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    weights |= {"norm1": (dim,), "norm2": (dim,)}
    weights = {f"blocks.0.{name}": shape for name, shape in weights.items()}
    weights |= {"norm": (dim,), "head": (classes, dim)}
    shapes |= {f"{name}.weight": shape for name, shape in weights.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in {**weights, "patch_embed.proj": (dim,)}.items()}
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": dim, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": classes, "global_pool": "token"}
    config |= {
        "model_args": arguments,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 8, 8]},
    }
    return shapes, {"config": config, "preprocessor_config": {}}


def hugging_face_file():
    """The same as Hugging Face writes it."""
    shapes, _ = timm_file()
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    parts |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    whole = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings", "norm": "layernorm"}
    whole |= {"patch_embed.proj": "embeddings.patch_embeddings.projection", "head": "classifier"}
    renamed = {}
    for name, shape in shapes.items():
        stem, dot, end = (name, "", "") if name in whole else name.rpartition(".")
        if stem.endswith("attn.qkv"):
            for part in ("query", "key", "value"):
                renamed[f"encoder.layer.0.attention.attention.{part}.{end}"] = (64, *shape[1:])
        elif stem.startswith("blocks.0."):
            renamed[f"encoder.layer.0.{parts[stem.removeprefix('blocks.0.')]}.{end}"] = shape
        else:
            renamed[whole[stem] + dot + end] = shape
    config = {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 128, "image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_act": "gelu"}
    config |= {"layer_norm_eps": 1e-6, "qkv_bias": True, "id2label": {"0": "a", "1": "b", "2": "c"}}
    pixels = {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5],
        "image_std": [0.5],
    }
    return renamed, {"config": config, "preprocessor_config": pixels}


FOREIGN = {"timm": timm_file, "hugging_face": hugging_face_file}


@pytest.mark.parametrize("count", [80, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["full", "packed", "timm", "hugging_face"])
def test_changed_structures(tmp_path, kind, count):
    if kind in FOREIGN:
        (tmp_path / f"{kind}.json").write_text(json.dumps(FOREIGN[kind]()))
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n{PROGRAM}"
    words = [sys.executable, "-W", "error", "-W", "ignore::RuntimeWarning", "-c", code, kind, str(count)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert not found["faults"], "\n".join(found["faults"])
    assert found["refused"] > count / 4 and found["memory"] < MEGABYTES
