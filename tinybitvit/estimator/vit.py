"""tb.ViT: the Vision Transformer as a scikit-learn classifier."""

import copy
import inspect
from functools import partial

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, check_random_state

from .. import backend
from .. import functional as F
from ..data import Loader, Normalize, make_augment
from ..data.images import auto_patch, encode_labels
from ..models import VisionTransformer, shape_of, source_of, start_from
from ..ops.norm import softmax_array
from ..optim import AdamW, decay_groups
from ..quant.quantizer import bits_beside, own_options
from ..train import (
    Checkpoints,
    Run,
    Stages,
    Trainer,
    check_options,
    describe_run,
    empty_history,
    find_recipe,
    memory_advice,
    model_fingerprint,
    ranks,
    smoothing_floor,
    soft_targets,
)
from .files import load_classifier, save_classifier
from .inputs import ImageClassifier


class ViT(ImageClassifier):
    """A low-bit Vision Transformer that is trained with `fit` and asked with `predict`.

    X: images (n, H, W, C), channels last, or grey (n, H, W), or flat (n, F); uint8 or floats. Flat rows become square
    images (one or three channels) where F allows it, else strips of one-pixel patches. y: any labels.

    Parameters
    ----------
    bits : 32, 8, 4, 3, 2, 1.58 or 1, the width of the weights in attention and MLP. quantizer : your own, instead.
    activation_bits : 8, 4, 1 or None (not quantised), the width of their inputs where bits < 32.
    patch_size : int or (height, width) in pixels, or 'auto' (2 for 8 x 8 images, 4 for 28 x 28 and 32 x 32).
    dim, depth, heads, mlp_ratio : size of the network: channels, blocks, attention heads, MLP width / dim.
    pool : 'mean' of the patch tokens, or 'cls' for a class token.
    epochs, batch_size, lr, weight_decay : of AdamW; lr is the peak of a schedule that warms up over the fraction
        `warmup` of all steps and then falls to 0 along a cosine. label_smoothing : share of each target spread over all
        classes.
    augment : None, 'auto', or steps such as 'flip,crop:4,cutout:8' (see `tb.data.make_augment`), or a function
        (X, rng) -> X.
    distill_from : a fitted ViT whose probabilities replace the labels (it must know the same classes).
    init_from : a fitted ViT, a VisionTransformer, or a file or folder for `tb.models.from_pretrained`, to start from:
        its architecture (leave patch_size, dim, depth, heads and mlp_ratio out) and every weight that fits.
    recipe : for bits < 32. None: train on the labels, with scales per row; 'paper': with one scale a layer, as BitNet's
        papers do; 'best': start from `distill_from`, learn what it does block by block, then its outputs end to end
        (without a teacher: the labels, in two stages); 'imitate': go on from the low-bit model `init_from` with the
        outputs of `distill_from` alone; 'refine': with those and the labels; or a `tb.train.Recipe`. docs/results
        compares them.
    early_stopping : stop after `patience` epochs without a better accuracy on `eval_set`, or on a `validation_fraction`
        of X kept aside, and go back to the best weights.
    on_nan : 'stop' with an error where a loss is not finite, or 'skip' that update (at most 10 in a row).
    device : 'cpu', 'cuda' or 'auto'. workers : threads, or 'auto'. random_state : int for a run that repeats bit for
        bit; with the same one, the models of `init_from` and `distill_from` were dealt other batches.
    verbose : 1 prints a line per epoch, and one a minute within longer ones; 0 nothing; a text, where several models
        train side by side, at most one line a minute, which begins with it.

    Attributes
    ----------
    classes_ (labels in the order of the outputs), model_ (the `VisionTransformer`), history_ (dict of lists: loss,
    accuracy, val_loss, val_accuracy, lr, seconds, and for low bits flip_rate, zero_share and distance, see
    `tb.train.code_diagnostics`; one entry per epoch), n_iter_ (epochs), n_features_in_ (pixels times channels),
    image_shape_ (H, W, C), normalize_, interrupted_ (whether Ctrl-C ended the training).
    """

    def __init__(
        self,
        *,
        bits=1.58,
        quantizer=None,
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
        recipe=None,
        early_stopping=False,
        patience=10,
        validation_fraction=0.1,
        on_nan="stop",
        device="auto",
        workers="auto",
        random_state=None,
        verbose=1,
    ):
        self.bits = bits
        self.quantizer = quantizer
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
        self.recipe = recipe
        self.early_stopping = early_stopping
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.on_nan = on_nan
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
            X, codes, weight, eval_set = self._hold_out(X, codes, weight, seed)
        elif eval_set is not None:
            eval_set = self._prepare(eval_set[0]), encode_labels(eval_set[1], self.classes_)
        loader, trainer = self._loader(X, codes, weight), self._trainer()
        self.history_, self.interrupted_ = Run(
            trainer,
            loader,
            Stages(trainer, max(1, self.epochs * len(loader)), self._recipe, self._teacher),
            targets=self._targets(),
            validation=eval_set,
            patience=self.patience if self.early_stopping else None,
            checkpoints=checkpoints,
            verbose=self.verbose,
            floor=self._floor(),
        ).train(self.epochs)
        self.n_iter_ = len(self.history_["loss"])
        self._optimizer = self._teacher = None  # twice the size of the weights, and only partial_fit could use it
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
            self.history_ = empty_history()
        if self._optimizer is None:
            self._optimizer = self._make_optimizer()
        self.history_, self.interrupted_ = Run(
            self._trainer(),
            self._loader(X, codes, weight),
            targets=self._targets(),
            history=self.history_,
            verbose=self.verbose,
            floor=self._floor(),
        ).train(1)
        self.n_iter_ = len(self.history_["loss"])
        return self

    @memory_advice("the model")
    def _build(self, X, seed):
        """Everything that the shape of X and the classes decide."""
        self._start_random(seed)
        start = self.init_from
        bits = bits_beside(self.quantizer, self.bits, DEFAULTS["bits"])
        self._recipe = find_recipe(self.recipe, bits, self.distill_from is not None, self.warmup)
        taught = any(stage.learns != "labels" for stage in self._recipe.stages)
        teacher = self._check_teacher().model_ if taught or self.distill_from is not None else None
        self._teacher = teacher if taught else None
        if taught and start is None:
            start = self.distill_from
        source = None if start is None else source_of(start, self.image_shape_[:2])
        if self._recipe.goes_on and (source is None or source.config["bits"] == 32):
            raise ValueError("this recipe goes on with a low-bit model: give one as init_from")
        self.normalize_ = getattr(start, "normalize_", None) or Normalize.fit(X)
        options = {name: getattr(self, name) for name in NETWORK}
        if source is not None:
            given = {name: v for name, v in options.items() if v != DEFAULTS[name]}
            options |= shape_of(source, given | {"bits": bits})
        elif self.patch_size == "auto":
            options["patch_size"] = auto_patch(self.image_shape_)
        *size, channels = self.image_shape_
        options |= {"in_channels": channels, "num_classes": len(self.classes_), **self._recipe.network}
        self.model_ = VisionTransformer(tuple(size), **own_options(options, self.quantizer), rng=self._rng)
        if source is not None:
            start_from(self.model_, source)
        if before := {model_fingerprint(network) for network in (source, teacher) if network is not None}:
            # The same seed would repeat the batches that these networks were trained on: mix their weights in.
            self._rng = np.random.default_rng([seed, *sorted(int(text, 16) for text in before)])
        if self.verbose == 1 and self.device == "auto" and (note := backend.auto_note()):
            print(note, flush=True)
        self.model_.to(backend.resolve_device(self.device))
        self._optimizer = self._make_optimizer()

    def _draw_seed(self):
        seed = check_random_state(self.random_state).randint(2**31)
        return seed if ranks.group is None else ranks.group.first(seed)

    def _start_random(self, seed):
        self._rng, self._optimizer = np.random.default_rng(seed), None

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

    def _loss(self):
        return partial(F.cross_entropy, label_smoothing=self.label_smoothing)

    def _floor(self):
        """The least value of the loss where it is that of the labels, else 0."""
        learns = {stage.learns for stage in self._recipe.stages} if self._recipe else {"labels"}
        if self.distill_from is not None or learns != {"labels"}:
            return 0.0
        return smoothing_floor(self.label_smoothing, len(self.classes_))

    def _trainer(self):
        options = {"rng": self._rng, "group": ranks.group, "on_nan": self.on_nan}
        return Trainer(self.model_, self._optimizer, self._loss(), self.workers, **options)

    def _check_teacher(self):
        if self.distill_from is None:
            raise ValueError("this recipe learns from a teacher: give a fitted 32-bit ViT as distill_from")
        check_is_fitted(self.distill_from)
        if list(self.distill_from.classes_) != list(self.classes_):
            raise ValueError("distill_from was fitted on other classes than y has; fit the teacher on the same labels")
        return self.distill_from

    def _targets(self):
        """The teacher's probabilities as labels, unless the recipe has a better use for the teacher."""
        if self.distill_from is None or self._teacher is not None:
            return None
        return soft_targets(self._check_teacher()._trainer())

    def _hold_out(self, X, codes, weight, seed):
        rows = np.arange(len(X))
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
        return self._trainer().predict(self._check_images(X, reset=False), transform=self.normalize_)

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
        from ..web import to_html

        return to_html(self, path, X=X)


DEFAULTS = {name: p.default for name, p in inspect.signature(ViT).parameters.items()}
NETWORK = ("patch_size", "dim", "depth", "heads", "mlp_ratio", "bits", "activation_bits", "pool")


def load(path, device="cpu"):
    """The fitted `ViT` from a file of `ViT.save`, on a device. Raises `tb.io.CheckpointError` for any other file.

    A packed file gives a model that predicts; a training can start from it (`init_from`), not go on.
    """
    loaded = load_classifier(path, ViT, backend.resolve_device(device))
    loaded._start_random(loaded._draw_seed())
    return loaded
