"""tb.ViT: the Vision Transformer as a scikit-learn classifier."""

import copy
import math
import os
from functools import partial

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    check_random_state,
    column_or_1d,
    validate_data,
)

from . import backend, distributed
from . import functional as F
from .data import Loader, Normalize, make_augment
from .data.images import auto_patch, check_finite, check_images, encode_labels, flat_shape
from .io import load_classifier, save_classifier
from .models import VisionTransformer, start_from
from .ops.norm import softmax_array
from .optim import AdamW, WarmupCosine, decay_groups
from .train import Checkpoints, Trainer, check_options, describe_run, memory_advice, run, soft_targets


class ViT(ClassifierMixin, BaseEstimator):
    """A low-bit Vision Transformer that is trained with `fit` and asked with `predict`.

    X: images (n, H, W, C), channels last, or grey (n, H, W), or flat (n, F); uint8 or floats. Flat rows become square
    images (one or three channels) where F allows it, else strips of one-pixel patches. y: any labels.

    Parameters
    ----------
    bits : 32, 8, 4, 3, 2, 1.58 or 1, the width of the weights in attention and MLP.
    activation_bits : 8, 4, 1 or None (not quantised), the width of their inputs where bits < 32.
    patch_size : int or (height, width) in pixels, or 'auto' (2 for 8 x 8 images, 4 for 28 x 28 and 32 x 32).
    dim, depth, heads, mlp_ratio : size of the network: channels, blocks, attention heads, MLP width / dim.
    pool : 'mean' of the patch tokens, or 'cls' for a class token.
    epochs, batch_size, lr, weight_decay : of AdamW; lr is the peak of a schedule that warms up over the fraction
        `warmup` of all steps and then falls to 0 along a cosine. label_smoothing : share of each target spread over all
        classes.
    augment : None, 'auto', or steps such as 'flip,crop:4,cutout:8' (see `tb.data.make_augment`), or a function (X, rng)
    -> X.
    distill_from : a fitted ViT whose probabilities replace the labels (it must know the same classes).
    init_from : a fitted ViT, a VisionTransformer, or a file or folder for `tb.models.from_pretrained`, to start from:
        every weight whose name and shape fit is taken over.
    early_stopping : stop after `patience` epochs without a better accuracy on `eval_set`, or on a `validation_fraction`
        of X kept aside, and go back to the best weights.
    device : 'cpu', 'cuda' or 'auto'. workers : threads, or 'auto'. random_state : int for a run that repeats bit for
    bit.
    verbose : 1 prints a line per epoch, 0 nothing.

    Attributes
    ----------
    classes_ (labels in the order of the outputs), model_ (the `VisionTransformer`), history_ (dict of lists: loss,
    accuracy, val_loss, val_accuracy, lr, seconds; one entry per epoch), n_iter_ (epochs), n_features_in_ (pixels times
    channels), image_shape_ (H, W, C), normalize_, interrupted_ (whether Ctrl-C ended the training).
    """

    def __init__(
        self,
        *,
        bits=1.58,
        activation_bits=8,
        patch_size="auto",
        dim=64,
        depth=2,
        heads=4,
        mlp_ratio=2,
        pool="mean",
        epochs=30,
        batch_size=64,
        lr=3e-3,
        weight_decay=0.05,
        warmup=0.1,
        label_smoothing=0.1,
        augment="auto",
        distill_from=None,
        init_from=None,
        early_stopping=False,
        patience=10,
        validation_fraction=0.1,
        device="auto",
        workers="auto",
        random_state=None,
        verbose=1,
    ):
        self.bits = bits
        self.activation_bits = activation_bits
        self.patch_size = patch_size
        self.dim = dim
        self.depth = depth
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.pool = pool
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.label_smoothing = label_smoothing
        self.augment = augment
        self.distill_from = distill_from
        self.init_from = init_from
        self.early_stopping = early_stopping
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.device = device
        self.workers = workers
        self.random_state = random_state
        self.verbose = verbose

    # --- training -----------------------------------------------------------------------------------------------------

    def fit(self, X, y, eval_set=None, sample_weight=None, checkpoint=None, every=60.0, resume=False):
        """Train from the start. eval_set: a pair (X, y) to measure after every epoch. Returns self.

        checkpoint: a folder in which to save the run every so many seconds, or after every 'epoch', and on Ctrl-C. With
        resume=True and the same arguments it goes on from there, and ends with the bits of a run that was never cut.
        """
        X, codes, weight = self._check_training_data(X, y, sample_weight, reset=True)
        check_options(self)
        seed, checkpoints = self._draw_seed(), None
        if checkpoint is not None:
            run_of = describe_run(self.get_params(deep=False), X, codes, weight, *(eval_set or ()))
            checkpoints = Checkpoints(checkpoint, every, resume, run_of, {"seed": seed})
            seed = checkpoints.notes["seed"]
        self._build(X, seed)
        if eval_set is None and self.early_stopping:
            X, codes, weight, eval_set = self._hold_out(X, codes, weight)
        elif eval_set is not None:
            eval_set = self._prepare(eval_set[0]), encode_labels(eval_set[1], self.classes_)
        loader = self._loader(X, codes, weight)
        total = max(1, self.epochs * len(loader))
        schedule = WarmupCosine(self._optimizer, total, warmup=min(total, round(self.warmup * total)))
        self.history_, self.interrupted_ = run(
            self._trainer(),
            loader,
            self.epochs,
            schedule=schedule,
            targets=self._targets(),
            validation=eval_set,
            patience=self.patience if self.early_stopping else None,
            verbose=self.verbose,
            checkpoints=checkpoints,
        )
        self.n_iter_ = len(self.history_["loss"])
        self._optimizer = None  # twice the size of the weights, and only partial_fit could use it
        return self

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One epoch over X at the constant learning rate `lr`, going on from what was learnt before. Returns self.

        classes: all labels that will ever come, needed in the first call unless its y holds them all.
        """
        first = not hasattr(self, "model_")
        X, codes, weight = self._check_training_data(X, y, sample_weight, reset=first, classes=classes)
        if first:
            check_options(self)
            self._build(X, self._draw_seed())
            self.history_ = None
        if self._optimizer is None:
            self._optimizer = self._make_optimizer()
        self.history_, self.interrupted_ = run(
            self._trainer(),
            self._loader(X, codes, weight),
            1,
            targets=self._targets(),
            history=self.history_,
            verbose=self.verbose,
        )
        self.n_iter_ = len(self.history_["loss"])
        return self

    @memory_advice("the model")
    def _build(self, X, seed):
        """Everything that the shape of X and the classes decide."""
        self._start_random(seed)
        self.normalize_ = Normalize.fit(X)
        patch = auto_patch(self.image_shape_) if self.patch_size == "auto" else F.as_pair(self.patch_size)
        same = ("dim", "depth", "heads", "mlp_ratio", "bits", "activation_bits", "pool")
        options = {name: getattr(self, name) for name in same}
        (*size, channels), classes = self.image_shape_, len(self.classes_)
        self.model_ = VisionTransformer(tuple(size), patch, channels, classes, **options, rng=self._rng)
        if self.init_from is not None:
            start_from(self.model_, self._source())
        device = backend.resolve_device(self.device)
        if self.verbose and self.device == "auto" and device == "cuda":
            print("training on the GPU", flush=True)
        self.model_.to(device)
        self._optimizer = self._make_optimizer()

    def _draw_seed(self):
        return distributed.first(check_random_state(self.random_state).randint(2**31))

    def _start_random(self, seed):
        self._rng, self._optimizer = np.random.default_rng(seed), None

    def _source(self):
        source = self.init_from
        if isinstance(source, (str, os.PathLike)):
            from .models import from_pretrained

            return from_pretrained(source, image_size=self.image_shape_[:2])
        return getattr(source, "model_", source)

    def _make_optimizer(self):
        return AdamW(decay_groups(self.model_, self.weight_decay), lr=self.lr, betas=(0.9, 0.98))

    def _loader(self, X, codes, weight):
        return Loader(
            X,
            codes,
            min(self.batch_size, len(X)),
            rng=self._rng,
            augment=make_augment(self.augment, self.image_shape_),
            transform=self.normalize_,
            sample_weight=weight,
        )

    def _trainer(self):
        loss = partial(F.cross_entropy, label_smoothing=self.label_smoothing)
        return Trainer(self.model_, self._optimizer, loss, self.workers, rng=self._rng, group=distributed.current())

    def _targets(self):
        if self.distill_from is None:
            return None
        check_is_fitted(self.distill_from)
        if list(self.distill_from.classes_) != list(self.classes_):
            raise ValueError("distill_from was fitted on other classes than y has; fit the teacher on the same labels")
        return soft_targets(self.distill_from._trainer())

    def _hold_out(self, X, codes, weight):
        rows, seed = np.arange(len(X)), int(self._rng.integers(2**31))
        kept, held = train_test_split(rows, test_size=self.validation_fraction, random_state=seed, stratify=codes)
        held_out = self.normalize_(X[held]), codes[held]
        return X[kept], codes[kept], None if weight is None else weight[kept], held_out

    # --- asking -------------------------------------------------------------------------------------------------------

    def decision_function(self, X):
        """Logits (n, classes); for two classes their difference (n,), positive for the second."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X):
        """Probabilities (n, classes), in the order of `classes_`."""
        return softmax_array(np, self._logits(X).astype(np.float64))

    def predict(self, X):
        """The most probable label for each image (n,)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X):
        check_is_fitted(self)
        return self._trainer().predict(self._prepare(X))

    def _prepare(self, X):
        """Images as the network takes them: (n, H, W, C) float32, normalised as in training."""
        check_is_fitted(self)
        return self.normalize_(self._check_images(X, reset=False))

    # --- files --------------------------------------------------------------------------------------------------------

    def pack(self, layout=None):
        """A copy for prediction alone whose low-bit weights are packed bytes (see `VisionTransformer.pack`)."""
        check_is_fitted(self)
        packed = copy.copy(self)
        packed.model_, packed._optimizer = self.model_.pack(layout), None
        return packed

    def save(self, path, packed=False, half=False):
        """Write the fitted model to a .safetensors file, in one step: the old file or the new one, never half of it.

        packed: only what prediction needs, low-bit weights as packed bytes; without it `partial_fit` can go on from the
        loaded model. half, for packed files: round what stays in floats to float16. Raises `tb.io.CheckpointError`.
        """
        check_is_fitted(self)
        save_classifier(path, self, packed, half)

    def to_html(self, path=None, X=None):
        """One web page with the packed model inside, to draw or drop images on; see `tb.web.to_html`. X: examples."""
        from .web import to_html

        return to_html(self, path, X=X)

    # --- checking -----------------------------------------------------------------------------------------------------

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


def load(path, device="cpu"):
    """The fitted `ViT` from a file of `ViT.save`, on a device. Raises `tb.io.CheckpointError` for any other file.

    A packed file gives a model that predicts and cannot be trained.
    """
    loaded = load_classifier(path, ViT, backend.resolve_device(device))
    loaded._start_random(loaded._draw_seed())
    return loaded
