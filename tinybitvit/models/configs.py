"""What the config files beside other programs' weights say of a network: honoured or refused, never guessed."""

import math
import re
from collections.abc import Mapping
from typing import Any

from .. import functional as F

ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "none"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_tanh"), "tanh"),
}
OTHER = "it belongs to another model, so put the right one beside the weights"
TINY = 1e-30  # what float32 still holds, and its inverse
KINDS = ("vit", "deit", "dinov2", "dinov2_with_registers")

# What configs call a size that the arrays show, by the name that `sizes_of` has for it.
HUGGING_FACE_SIZES = {
    **{"hidden_size": "dim", "num_hidden_layers": "depth", "intermediate_size": "hidden", "patch_size": "patch"},
    **{"num_channels": "channels", "num_register_tokens": "registers", "qkv_bias": "qkv_bias", "mlp_ratio": "ratio"},
}
TIMM_SIZES = {
    **{"embed_dim": "dim", "num_features": "dim", "depth": "depth", "in_chans": "channels", "patch_size": "patch"},
    **{"num_classes": "classes", "reg_tokens": "registers", "qkv_bias": "qkv_bias", "mlp_ratio": "ratio"},
    **{"class_token": "class_token", "init_values": "layer_scale"},
}

# timm's sizes of ViT, DeiT and FlexiViT by name: dim and heads.
TIMM_NAMES = {
    **{"tiny": (192, 3), "small": (384, 6), "medium": (512, 8), "mediumd": (512, 8), "base": (768, 12)},
    **{"plus": (896, 14), "large": (1024, 16), "huge": (1280, 16), "giant": (1408, 16), "gigantic": (1664, 16)},
    **{"wee": (256, 4), "little": (320, 5), "betwixt": (640, 10), "so150m": (896, 14), "so150m2": (832, 13)},
}
# Other words of such names that change nothing which the arrays do not show. Not among them: siglip, clip, quickgelu
# (another activation or eps), rpn (norms behind the branches) and whatever is new.
TIMM_WORDS = re.compile(r"vit|deit|deit3|flexivit|distilled|patch\d+|reg\d+|gap|dinov2|miil|in21k|\d+|36x1")
ODD_HEADS = {"vit_base_patch16_gap_224": 16}

# Arguments of timm's VisionTransformer with the only value that a network here can have, and those without a say in
# what a trained network answers.
TIMM_PLAIN = {
    **dict.fromkeys(("pre_norm", "qk_norm", "pool_include_prefix", "scale_attn_norm", "scale_mlp_norm"), False),
    **dict.fromkeys(("block_fn", "attn_layer", "mlp_layer", "embed_layer", "embed_norm_layer"), None),
    **{"fc_norm": False, "final_norm": True, "proj_bias": True, "pos_embed": "learn", "norm_layer": "layernorm"},
}
TIMM_IDLE = re.compile(r".*drop.*|.*init|dynamic_img_\w+|strict_img_size|img_size|no_embed_class|global_pool|act_layer")


def sizes_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What arrays under this library's short names show of their network."""
    dim, channels, *patch = arrays["patch.weight"].shape
    hidden, taken = arrays["blocks.0.mlp.fc1.weight"].shape[0], arrays["blocks.0.mlp.fc2.weight"].shape[1]
    if hidden == 2 * taken:
        raise ValueError("its MLPs are gated (SwiGLU or GluMlp), which is not supported")
    return {
        "dim": dim,
        "channels": channels,
        "patch": patch,
        "depth": 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("blocks.")),
        "hidden": hidden,
        "ratio": hidden / dim,
        "classes": len(arrays["head.weight"]) if "head.weight" in arrays else 0,
        "registers": arrays["reg"].shape[1] if "reg" in arrays else 0,
        "class_token": "cls" in arrays,
        "layer_scale": "blocks.0.ls1.gamma" in arrays,
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays or "blocks.0.q.bias" in arrays,
    }


def hugging_face(arrays: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """heads, eps, gelu, pool, antialias and grid of a Hugging Face model. ValueError for what cannot be honoured."""
    kind, sizes = config["model_type"], sizes_of(arrays)
    if kind not in KINDS:
        raise ValueError(f"it holds a {kind!r} model; supported are {', '.join(KINDS)}")
    if config.get("use_swiglu_ffn"):
        raise ValueError("use_swiglu_ffn is not supported")
    if "blocks.0.q.weight" not in arrays:
        raise ValueError(f"the arrays have timm's names, and config.json is Hugging Face's: {OTHER}")
    _check(config, HUGGING_FACE_SIZES, sizes)
    labels = config.get("num_labels") or len(config.get("id2label") or ())
    if labels and sizes["classes"] not in (0, labels):
        raise ValueError(f"config.json names {labels} classes, and the head has {sizes['classes']}: {OTHER}")
    pool = "cls"
    if "head_dist.weight" in arrays:
        pool = "cls+dist"
    elif kind.startswith("dinov2") and "head.weight" in arrays:
        pool = "cls+mean"
    return {
        "heads": config["num_attention_heads"],
        "eps": float(config.get("layer_norm_eps", 1e-6 if kind.startswith("dinov2") else 1e-12)),
        "gelu": _gelu(config.get("hidden_act", "gelu")),
        "pool": pool,
        "antialias": kind == "dinov2_with_registers",
        "grid": grid_of(arrays, config.get("image_size")),
    }


def timm(arrays: Mapping[str, Any], config: Mapping[str, Any], heads: int | None) -> dict[str, Any]:
    """The same of a timm model; what its config leaves open is as in timm's architecture of that name.

    Without any config the heads are 64 channels wide, as in all of timm's models up to 1024 channels but one.
    """
    arguments, published = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    sizes, name = sizes_of(arrays), config.get("architecture", published.get("architecture"))
    if "blocks.0.q.weight" in arrays:
        raise ValueError("the arrays have Hugging Face's names: put their config.json beside the file")
    for key, value in arguments.items():
        if key in TIMM_PLAIN and value not in (None, TIMM_PLAIN[key]):
            raise ValueError(f"{key}={value!r} is not supported")
        if key not in TIMM_PLAIN and key not in ("num_heads", *TIMM_SIZES) and not TIMM_IDLE.fullmatch(key):
            raise ValueError(f"config.json has the argument {key}={value!r}, which is not known here")
    implied = _architecture(name) if name is not None else {}
    stated = {**published, **implied, **config, **arguments}
    _check(stated, TIMM_SIZES, sizes)
    heads = stated.get("num_heads") if heads is None else heads
    if heads is None:
        if name is not None or sizes["dim"] % 64 or sizes["dim"] > 1024:
            raise ValueError(f"the files do not tell the number of heads of {sizes['dim']} channels: give heads=")
        heads = sizes["dim"] // 64
    pool = stated.get("global_pool")
    if pool not in (None, "token", "avg") or (pool == "token" and not sizes["class_token"]):
        raise ValueError(f"global_pool={pool!r} is not supported, or not with these arrays")
    # A head for each of the two tokens, or none: DeiT's mean of both
    first = "cls+dist" if "dist" in arrays and ("head_dist.weight" in arrays or not sizes["classes"]) else "cls"
    return {
        "heads": heads,
        "eps": 1e-6,
        "gelu": _gelu(arguments.get("act_layer") or "gelu"),
        "pool": first if sizes["class_token"] and pool != "avg" else "mean",
        "antialias": True,
        "grid": grid_of(arrays, arguments.get("img_size"), (published.get("input_size") or ())[1:]),
    }


def _architecture(name: Any) -> dict[str, Any]:
    """What the name of one of timm's architectures implies, by the names of arguments."""
    words = str(name).partition(".")[0].split("_")
    if unknown := [word for word in words if word not in TIMM_NAMES and not TIMM_WORDS.fullmatch(word)]:
        raise ValueError(f"{unknown[0]!r} in the architecture {name!r} stands for something that is not known here")
    implied: dict[str, Any] = {"global_pool": "avg"} if "gap" in words else {}
    for word in words:
        if word.startswith("patch"):
            implied["patch_size"] = int(word[5:])
        elif word in TIMM_NAMES:
            implied["embed_dim"], implied["num_heads"] = TIMM_NAMES[word]
    return implied | ({"num_heads": ODD_HEADS[name]} if name in ODD_HEADS else {})


def _check(stated, names, sizes):
    """ValueError where a config states another size than the arrays have."""
    for key, name in names.items():
        value, found = stated.get(key), sizes[name]
        if value is None:
            continue
        if name == "patch":
            same = list(F.as_pair(value)) == found
        elif name == "ratio":
            same = abs(value * sizes["dim"] - sizes["hidden"]) < 1
        else:
            same = bool(value) == found if isinstance(found, bool) else value == found
        if not same:
            raise ValueError(f"config.json says {key}={value!r}, and the arrays have {found}: {OTHER}")


def _gelu(name):
    if name not in ACTIVATIONS:
        raise ValueError(f"it uses the activation {name!r}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def prefix_of(arrays: Mapping[str, Any]) -> int:
    """How many tokens come before the patches."""
    return ("cls" in arrays) + ("dist" in arrays) + (arrays["reg"].shape[1] if "reg" in arrays else 0)


def grid_of(arrays: Mapping[str, Any], stated: Any = None, hint: Any = None) -> tuple[int, int]:
    """(rows, columns) of the position grid: that of the stated image size, of the hint where it fits, else a square."""
    patch, count = arrays["patch.weight"].shape[2:], arrays["pos"].shape[1]
    prefixes = {prefix_of(arrays), int("cls" in arrays), 0}
    for size in filter(None, (stated, hint)):
        rows, columns = (int(n) // p for n, p in zip(F.as_pair(size), patch, strict=True))
        if rows > 0 and columns > 0 and count - rows * columns in prefixes:
            return rows, columns
        if size is stated:
            raise ValueError(f"config.json says that images have {size} pixels, and {count} positions do not: {OTHER}")
    for prefix in sorted(prefixes, reverse=True):
        side = math.isqrt(max(0, count - prefix))
        if side and side * side == count - prefix:
            return side, side
    raise ValueError(f"{count} positions are no square grid: put the model's config.json beside the file")


def check_room(dim: int, hidden: int, depth: int, others: int, arrays: Mapping[str, Any]) -> None:
    """ValueError where arrays cannot fill a network of these sizes: known before memory is taken for one.

    others: rows of `dim` numbers outside of the blocks, for classes, pixels of a patch and tokens. arrays: by name. A
    byte of theirs holds the weights of eight bits at most, and a block has eight arrays at least.
    """
    numbers, room = depth * (4 * dim * dim + 2 * dim * hidden) + dim * others, sum(a.nbytes for a in arrays.values())
    if min(dim, hidden, depth, others) < 0 or 8 * depth > len(arrays) or numbers > 8 * room:
        raise ValueError(f"a network of {depth} blocks, {dim} wide, holds more than the arrays do")


def preprocessing(
    config: Mapping[str, Any], processor: Mapping[str, Any], channels: int
) -> dict[str, list[float]] | None:
    """mean and std of pixels in 0..1, from config.json and preprocessor_config.json; None: they do not tell.

    Other factors than 1/255 of the bytes are part of both numbers. How images come to their size is the caller's part.
    """
    stated = {**(config.get("pretrained_cfg") or {}), **config, **processor}
    for key in ("do_normalize", "do_rescale"):
        if stated.get(key) not in (True, False, None):
            raise ValueError(f"{key} must be true or false, not {stated[key]!r}")
    factor = 1 if stated.get("do_rescale") is False else stated.get("rescale_factor", 1 / 255)
    unit = 255 * float(factor)
    if not 0 < unit < math.inf or stated.get("rescale_offset"):
        raise ValueError(f"a rescale_factor of {factor!r}, or a rescale_offset, is not supported")
    mean, std = (stated.get(f"image_{name}", stated.get(name)) for name in ("mean", "std"))
    if stated.get("do_normalize") is False:
        mean, std = 0, 1
    elif mean is None and std is None and unit == 1:
        return None
    for name, values in {"mean": mean, "std": std}.items():
        if values is None:
            lacking = f"preprocessor_config.json lacks image_{name}" if processor else f"config.json lacks {name}"
            raise ValueError(f'{lacking}, for the pixels: add it, or "do_normalize": false')
    mean, std = (_per_channel(values, channels) for values in (mean, std))
    mean, std = [m / unit for m in mean], [s / unit for s in std]
    if min(std) < TINY or max(map(abs, mean + std)) > 1 / TINY:
        raise ValueError(f"mean {mean} and std {std} are out of range: a std must be above zero")
    return {"mean": mean, "std": std}


def _per_channel(values, channels):
    numbers = [float(v) for v in values] if isinstance(values, (list, tuple)) else [float(values)]
    numbers = numbers * channels if len(numbers) == 1 else numbers
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise ValueError(f"mean and std must be {channels} finite numbers, for {channels} channels, not {values!r}")
    return numbers
