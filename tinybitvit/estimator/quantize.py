"""tb.quantize: a low-bit copy of a trained tb.ViT without training."""

import copy
import math
import os
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted, check_random_state

from ..backend import check_number
from ..data import make_augment
from ..data.transforms import augmented
from ..models import VisionTransformer, shape_of, start_from
from ..train import Checkpoints, describe_run
from ..train.convert.layerwise import BATCH, LayerByLayer, device_of, output_metrics
from ..train.convert.recipes import find_recipe
from ..train.convert.rotate import rotate_heads


def quantize(
    teacher: Any,
    X: Any,
    bits: float = 1.58,
    images: int = 4096,
    random_state: Any = 0,
    verbose: int = 1,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
) -> Any:
    """A low-bit copy of a fitted 32-bit tb.ViT that does on images what the teacher does: rounded, not trained.

    X: images like those of its training, of which `images` are drawn and augmented as the teacher's `augment` says; the
    more, the better. No labels are needed. The heads are turned first to where their codes fit best (`train.convert.
    rotate`). The copy can be asked, saved and packed, and a training can go on from it:
    ViT(bits=..., init_from=copy, distill_from=teacher, recipe="imitate"). Needs minutes where a training needs hours,
    and memory for the tokens of all the images, some six times. verbose: 0 says nothing. checkpoint: a folder in which
    to save what is done after every block; with resume=True and the same arguments it goes on from there.
    """
    check_number("images", images, 1, whole=True)
    check_is_fitted(teacher)
    if teacher.model_.config["bits"] != 32 or bits == 32:
        raise ValueError("quantize makes a low-bit copy of a 32-bit model: give a model of 32 bits, and bits below 32")
    if not teacher.model_.config["depth"]:
        raise ValueError("quantize rounds the blocks of a model, and this one has none (depth=0): train it as it is")
    if resume and checkpoint is None:
        raise ValueError("resume=True goes on from checkpoints: give their folder as checkpoint")
    X = teacher.check_images(X)
    if checkpoint is not None:
        params = {"teacher": teacher, "bits": bits, "images": images, "random_state": random_state}
        params |= {"activation_bits": teacher.activation_bits, "augment": teacher.augment}
        run = describe_run(params, X, kind="tb.quantize")  # before a RandomState is drawn from
    seed, checkpoints = check_random_state(random_state).randint(2**31), None
    if checkpoint is not None:
        checkpoints = Checkpoints(checkpoint, math.inf, resume, run, {"seed": int(seed)})
        seed = checkpoints.notes["seed"]
    rng = np.random.default_rng(seed)
    network = copy.deepcopy(teacher.model_)
    rounded = _low_bit(network, bits, teacher, rng)
    student = teacher.with_network(rounded, rng, bits=bits, recipe=None)
    X = X[rng.permutation(len(X))[:images]]
    x = teacher.normalize_(augmented(X, make_augment(teacher.augment, teacher.image_shape_), rng))
    tell = (lambda line: print(line, flush=True)) if verbose else (lambda line: None)
    batches = (x[start : start + BATCH] for start in range(0, min(len(x), 20 * BATCH), BATCH))
    metrics = output_metrics(network, batches, rng)
    LayerByLayer(rounded, network, x, metrics, rng, checkpoints=checkpoints).run(tell)
    return student


def _low_bit(network: VisionTransformer, bits: float, teacher: Any, rng: np.random.Generator) -> VisionTransformer:
    """A low-bit network with the weights of a full-precision one, whose heads are rotated for it."""
    options = shape_of(network, {}) | {name: network.config[name] for name in ("in_channels", "num_classes")}
    options |= find_recipe("best", bits, True, 0.0).network | {"activation_bits": teacher.activation_bits}
    rounded = VisionTransformer(teacher.image_shape_[:2], bits=bits, **options, rng=rng)
    rotate_heads(network, rounded)
    start_from(rounded, network)
    return rounded.to(device_of(network))
