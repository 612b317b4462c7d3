"""tb.quantize: a low-bit copy of a trained tb.ViT without training."""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted, check_random_state

from ..data import make_augment
from ..models import VisionTransformer, shape_of, start_from
from ..train.convert.layerwise import BATCH, LayerByLayer, device_of, output_metrics
from ..train.convert.recipes import find_recipe


def quantize(
    teacher: Any, X: Any, bits: float = 1.58, images: int = 4096, random_state: Any = 0, verbose: int = 1
) -> Any:
    """A low-bit copy of a fitted 32-bit tb.ViT that does on images what the teacher does: rounded, not trained.

    X: images like those of its training, of which `images` are drawn and augmented as the teacher's `augment` says; the
    more, the better. No labels are needed. The copy can be asked, saved and packed, and a training can go on from it:
    ViT(bits=..., init_from=copy, distill_from=teacher, recipe="imitate"). Needs minutes where a training needs hours,
    and memory for the tokens of all the images. verbose: 0 says nothing.
    """
    check_is_fitted(teacher)
    if teacher.model_.config["bits"] != 32 or bits == 32:
        raise ValueError("quantize makes a low-bit copy of a 32-bit model: give a model of 32 bits, and bits below 32")
    rng = np.random.default_rng(check_random_state(random_state).randint(2**31))
    network = teacher.model_
    options = shape_of(network, {}) | {name: network.config[name] for name in ("in_channels", "num_classes")}
    options |= find_recipe("best", bits, True, 0.0).network | {"activation_bits": teacher.activation_bits}
    rounded = VisionTransformer(teacher.image_shape_[:2], bits=bits, **options, rng=rng)
    student = teacher.with_network(rounded, rng, bits=bits, recipe=None)
    start_from(student.model_, network)
    student.model_.to(device_of(network))
    X = teacher.check_images(X)
    X = X[rng.permutation(len(X))[:images]]
    augment = make_augment(teacher.augment, teacher.image_shape_)
    x = teacher.normalize_(X if augment is None else augment(X, rng))
    tell = (lambda line: print(line, flush=True)) if verbose else (lambda line: None)
    batches = (x[start : start + BATCH] for start in range(0, min(len(x), 20 * BATCH), BATCH))
    metrics = output_metrics(network, batches, rng)
    LayerByLayer(student.model_, network, x, metrics, rng).run(tell)
    return student
