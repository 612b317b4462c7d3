"""tb.probe: a new head on the features of a trained network."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from ..backend import check_number
from ..models import source_of
from .vit import ViT


def probe(
    source: Any, X: Any, y: Any, C: float = 150.0, class_weight: Any = None, device: str = "auto", workers: Any = "auto"
) -> ViT:
    """A tb.ViT with the blocks of `source` as they are and the best linear head on their features: a linear probe.

    source: what `ViT(init_from=source)` takes, of any bit width. X: images of the shape that it takes, and y: their
    labels, of any classes. The head is scikit-learn's LogisticRegression on standardised features, which minimises the
    mean cross-entropy + |W|^2 / (2 C). It tells in minutes what the features are worth, and is where a training should
    start from (`init_from`): a random head bends them first (Kumar et al. 2022, arXiv 2202.10054). ValueError where
    the images are of another shape.
    """
    check_number("C", C, 1e-9, 1e9)
    config = getattr(getattr(source, "model_", source), "config", {"bits": 32, "activation_bits": 8})  # else of a file
    width = "quantizer" if "quantizer" in config else "bits"  # its own quantiser knows its bits
    known = {name: config[name] for name in (width, "activation_bits")}
    model = ViT(**known, init_from=source, class_weight=class_weight, device=device, workers=workers, verbose=0)
    epochs = model.epochs
    model.set_params(epochs=0, random_state=0).fit(X, y).set_params(epochs=epochs)
    _check_embedding(model, source)
    z = model.features(X)
    mean, deviation = z.mean(axis=0), np.maximum(z.std(axis=0), 1e-6)
    fitted = LogisticRegression(C=C / len(z), max_iter=1000, class_weight=class_weight)
    fitted.fit((z - mean) / deviation, y)
    weight, bias = fitted.coef_ / deviation, fitted.intercept_ - fitted.coef_ @ (mean / deviation)
    if len(weight) == 1:  # of two classes scikit-learn keeps the difference of their logits
        weight, bias = (np.concatenate([-a, a]) / 2 for a in (weight, bias))
    head = {"head.weight": weight.astype(np.float32), "head.bias": bias.astype(np.float32)}
    model.model_.load_state_dict(model.model_.state_dict() | head)
    return model


def _check_embedding(model: ViT, source: Any) -> None:
    """ValueError where a weight that looks at the images is new, because that of the source has another shape."""
    theirs = source_of(source, model.image_shape_[:2]).state_dict()
    for name, array in model.model_.state_dict().items():
        if name.startswith("embed.") and array.shape != theirs[name].shape:
            shape = " x ".join(map(str, model.image_shape_))
            raise ValueError(f"the model to probe takes images of another shape than {shape}: its {name} does not fit")
