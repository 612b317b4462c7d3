"""tb.ViT in a file: the network of `checkpoint`, and beside it parameters, classes, normalisation and history."""

import json
import math
import os
from typing import Any, BinaryIO

import numpy as np

from .. import functional as F
from ..backend import plain
from ..data import Normalize
from ..data.images import auto_patch
from ..files import CheckpointError
from ..io.checkpoint import load_model, save_model
from ..models import zoo
from ..quant import Quantizer
from ..train.resume import option_text
from .inputs import GIVEN, NETWORK, check_options


def save_classifier(
    path: str | os.PathLike | BinaryIO, classifier: Any, packed: bool = False, half: bool = False
) -> None:
    """Write a fitted tb.ViT.

    The parameters of the network are written as the network has them. Of others that no file can hold (models,
    functions) a text such as '<ViT>' is kept, which a fit that needs them refuses. ValueError for such labels.
    """
    params = classifier.get_params(deep=False) | changed_options(classifier)
    if isinstance(params["quantizer"], Quantizer):  # packed bytes are of a built-in width
        params["bits"] = params["quantizer"].packed_bits
    names = getattr(classifier, "feature_names_in_", None)
    fitted = {
        "params": {name: to_json(value) for name, value in params.items()},
        "classes": labels_to_json(classifier.classes_),
        "classes_dtype": classifier.classes_.dtype.str,
        "image_shape": classifier.image_shape_,
        "feature_names": None if names is None else names.tolist(),
        "normalize": classifier.normalize_.to_dict(),
        "history": classifier.history_,
        "interrupted": classifier.interrupted_,
    }
    save_model(path, classifier.model_, {"classifier": fitted}, packed=packed, half=half)


def load_classifier(path: str | os.PathLike, cls: type, device: str = "cpu") -> Any:
    """A fitted `cls` (tb.ViT) from a file of `save_classifier` or the zoo, on a device. Raises CheckpointError."""
    path = zoo.find(path)
    model, metadata, _ = load_model(path)
    try:
        fitted = metadata["classifier"]
        loaded = cls(**{name: from_json(value) for name, value in fitted["params"].items()})
        check_options({name: getattr(loaded, name) for name in ("random_state", "workers")})
        loaded._given = {name: getattr(loaded, name) for name in GIVEN}
        loaded.classes_ = labels_from_json(fitted["classes"], fitted["classes_dtype"])
        loaded.image_shape_ = tuple(fitted["image_shape"])
        loaded.normalize_ = Normalize.from_dict(fitted["normalize"])
        loaded.history_ = fitted["history"]
        loaded.interrupted_ = bool(fitted.get("interrupted"))
        loaded.n_features_in_ = math.prod(loaded.image_shape_)
        if fitted.get("feature_names"):
            loaded.feature_names_in_ = np.array(fitted["feature_names"], object)
        shape = (*F.as_pair(model.config["image_size"]), model.config["in_channels"])
        if (
            shape != loaded.image_shape_
            or loaded.classes_.shape != (model.config["num_classes"],)
            or loaded.n_iter_ < 0
        ):
            raise ValueError(f"images {loaded.image_shape_} and classes {loaded.classes_.shape} are not the network's")
    except Exception as error:  # whatever a description with a right sha256 can do wrong
        raise CheckpointError(
            f"{path} holds a network but no tb.ViT ({error!r}); read it with tb.io.load_model"
        ) from error
    model.preprocessing = loaded.normalize_.for_pictures()
    loaded.model_ = model.to(device)
    return loaded


def changed_options(classifier: Any) -> dict[str, Any]:
    """The options of the network, as it has them, where the classifier's parameters say something else."""
    config, changed = classifier.model_.config, {}
    quantizer = classifier._given["quantizer"]
    if option_text(classifier.quantizer) != option_text(quantizer):
        changed["quantizer"] = quantizer
    for name in NETWORK:
        if name == "bits" and quantizer is not None:
            continue  # they are those of the quantiser
        value = plain(getattr(classifier, name))
        if name == "patch_size":
            value = auto_patch(classifier.image_shape_) if value == "auto" else F.as_pair(value)
        if value != (F.as_pair(config[name]) if name == "patch_size" else config[name]):
            changed[name] = config[name]
    return changed


def check_unchanged(classifier: Any, options: Any) -> None:
    """ValueError where an option was set, since the fit, to what the fitted network is not."""
    for name, value in changed_options(classifier).items():
        given = getattr(options, name)
        # What was given to the fit may differ from the network, too: a default stands for what came from `init_from`
        if name == "quantizer" or given != classifier._given[name]:
            raise ValueError(
                f"{name} was set to {given!r}, but the network was built with {value!r}: call fit, or set it back"
            )


def to_json(value: Any) -> Any:
    """A parameter as JSON holds it: tuples and dicts marked, anything else than numbers and text by its name in <>."""
    value = plain(value)
    if isinstance(value, (tuple, list)):
        values = [to_json(v) for v in value]
        return {"tuple": values} if isinstance(value, tuple) else values
    if isinstance(value, dict):
        return {"dict": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.random.RandomState):  # the loaded model draws a seed of its own
        return None
    plain_types = (str, int, float, bool, type(None))
    return value if isinstance(value, plain_types) else f"<{getattr(value, '__qualname__', type(value).__name__)}>"


def from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [from_json(v) for v in value]
    if isinstance(value, dict):
        ((kind, values),) = value.items()
        return {"tuple": tuple, "dict": dict}[kind](from_json(v) for v in values)
    return value


def labels_to_json(classes: np.ndarray) -> list:
    """Labels as JSON holds them. ValueError for such that would come back as something else."""
    found = (classes.view("i8") if classes.dtype.kind in "mM" else classes).tolist()
    try:
        back = labels_from_json(json.loads(json.dumps(found)), classes.dtype.str)
        same = back.dtype == classes.dtype and all(a == b for a, b in zip(back, classes, strict=True))
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f"a file cannot hold labels such as {classes[0]!r}: fit the model on numbers or text")
    return found


def labels_from_json(labels: list, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.itemsize * len(labels) > 1 << 26:
        raise ValueError(f"{len(labels)} labels of {kind.itemsize} bytes each")
    return np.array(labels, "i8").view(kind) if kind.kind in "mM" else np.array(labels, kind)
