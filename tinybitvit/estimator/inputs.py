"""What tb.ViT accepts as images and labels, checked and brought into one form."""

import math

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from ..data.images import check_finite, check_images, encode_labels, flat_shape


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier whose X may be images (n, H, W, C), grey images (n, H, W) or flat rows (n, F)."""

    def _check_training_data(self, X, y, sample_weight, reset, classes=None):
        if y is None:
            raise ValueError("fit requires y to be passed, but the target y is None: pass one label per image")
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        X = self._check_images(X, reset=reset)
        if y.ndim != 1 or len(X) != len(y):
            raise ValueError(f"X holds {len(X)} images but y has the shape {y.shape}; they need one label per image")
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y contains NaN or inf; every image needs a label")
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y if classes is None else np.asarray(classes))
            if len(self.classes_) < 2:
                raise ValueError("y holds only one class; a classifier needs images of at least two")
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float32)
        if weight is not None and (weight < 0).any():
            raise ValueError("sample_weight must not be negative")
        return X, encode_labels(y, self.classes_), weight

    def _check_images(self, X, reset):
        """X as (n, H, W, C), its shape remembered (reset) or compared with the remembered one."""
        if not hasattr(X, "shape"):
            X = np.asarray(X)
        if getattr(X, "ndim", None) in (3, 4):
            X = check_images(np.asarray(X), None if reset else self.image_shape_)
            if reset:
                self.image_shape_ = X.shape[1:]
                self.n_features_in_ = math.prod(self.image_shape_)
        else:
            X = validate_data(self, X, reset=reset, ensure_all_finite=False)
            if reset:
                self.image_shape_ = flat_shape(X.shape[1])
            X = X.reshape(len(X), *self.image_shape_)
        check_finite(X)
        return X

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
