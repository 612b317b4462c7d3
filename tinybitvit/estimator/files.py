"""tb.ViT in a file: the network of `checkpoint`, and beside it parameters, classes, normalisation and history."""

import math

import numpy as np

from ..data import Normalize
from ..files import CheckpointError
from ..io.checkpoint import load_model, save_model
from ..quant import Quantizer


def save_classifier(path, classifier, packed=False, half=False):
    """Write a fitted tb.ViT. Parameters that no file can hold (other models, functions) are left at their defaults."""
    plain = (str, int, float, bool, type(None), tuple, list)
    labels = classifier.classes_
    fitted = {
        "params": {k: v for k, v in classifier.get_params(deep=False).items() if isinstance(v, plain)},
        "classes": labels.tolist(),
        "classes_dtype": labels.dtype.str,
        "image_shape": classifier.image_shape_,
        "normalize": classifier.normalize_.to_dict(),
        "history": classifier.history_,
    }
    if isinstance(classifier.quantizer, Quantizer):  # the loaded model has none: its bytes are of a built-in width
        fitted["params"]["bits"] = classifier.quantizer.packed_bits
    save_model(path, classifier.model_, {"classifier": fitted}, packed=packed, half=half)


def load_classifier(path, cls, device="cpu"):
    """A fitted `cls` (tb.ViT) from a file of `save_classifier`, its network on a device. Raises CheckpointError."""
    model, metadata, _ = load_model(path)
    try:
        fitted = metadata["classifier"]
        loaded = cls(**fitted["params"])
        loaded.classes_ = np.asarray(fitted["classes"], dtype=fitted["classes_dtype"])
        loaded.image_shape_ = tuple(fitted["image_shape"])
        loaded.normalize_ = Normalize.from_dict(fitted["normalize"])
        loaded.history_ = fitted["history"]
        loaded.n_iter_ = len(loaded.history_["loss"])
        loaded.n_features_in_ = math.prod(loaded.image_shape_)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a network but no tb.ViT ({error!r}); read it with tb.io.load_model"
        ) from error
    loaded.model_ = model.to(device)
    loaded.interrupted_ = False
    return loaded
