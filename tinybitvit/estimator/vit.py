"""tb.ViT: the Vision Transformer as a scikit-learn classifier."""

import copy
import inspect
import os
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

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
from ..train import (
    Checkpoints,
    Recipe,
    Stages,
    Trainer,
    describe_run,
    find_recipe,
    memory_advice,
    model_fingerprint,
    ranks,
    run,
    soft_targets,
)
from ..train.loop import HISTORY
from .files import NETWORK, changed_options, labels_to_json, load_classifier, save_classifier
from .inputs import FIT_RULES, ImageClassifier, check_options, plain


class ViT(ImageClassifier):
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
        classes. class_weight : None, 'balanced' (classes count alike, however rare) or a dict from labels to weights.
    augment : None, 'auto', or steps such as 'flip,crop:4,cutout:8' (see `tb.data.make_augment`), or a function
        (X, rng) -> X.
    distill_from : a fitted ViT whose probabilities replace the labels (it must know the same classes). It sees each
        image in its own units and normalisation.
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
    image_shape_ (H, W, C), normalize_ (`tb.data.Normalize`: mean, std and units of the pixels), interrupted_ (whether
    Ctrl-C or an error ended the training).
    """

    _optimizer: AdamW | None = None  # while a training, or a series of partial_fit, goes on
    _recipe: Recipe | None = None
    _teacher: VisionTransformer | None = None  # where the recipe's stages learn from it

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
        class_weight=None,
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
        self.class_weight = class_weight
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

    def fit(
        self,
        X: Any,
        y: Any,
        eval_set: tuple[Any, Any] | None = None,
        sample_weight: Any = None,
        checkpoint: str | os.PathLike | None = None,
        every: float | str = 60.0,
        resume: bool = False,
    ) -> "ViT":
        """Train from the start. eval_set: a pair (X, y) to measure after every epoch. Returns self.

        checkpoint: a folder in which to save the run every so many seconds, or after every 'epoch', and on Ctrl-C. With
        resume=True and the same arguments it goes on from there, and ends with the bits of a run that was never cut.
        What is refused, or interrupted before the training, leaves the model as it was.
        """
        check_options({"eval_set": eval_set, "checkpoint": checkpoint, "every": every, "resume": resume}, FIT_RULES)
        if resume and checkpoint is None:
            raise ValueError("resume=True goes on from checkpoints: give their folder as checkpoint")
        new = copy.copy(self)
        options = new._options()
        X, codes, weight = new._check_training_data(X, y, sample_weight)
        seed, checkpoints = new._draw_seed(), None
        if checkpoint is not None:
            labels_to_json(new.classes_)  # a model that cannot be saved is refused before its training
            run_of = describe_run(self.get_params(deep=False), X, codes, weight, *(eval_set or ()))
            checkpoints = Checkpoints(checkpoint, every, resume, run_of, {"seed": seed})
            seed = checkpoints.notes["seed"]
        X = new._build(X, seed, options)
        if eval_set is not None:
            eval_set = new._check_eval_set(*eval_set)
        elif options.early_stopping:
            X, codes, weight, eval_set = new._hold_out(X, codes, weight, seed)
        loader = new._loader(X, codes, weight, options)
        schedule = new._stages(max(1, options.epochs * len(loader)))
        new.history_ = {key: [] for key in HISTORY}
        train = partial(
            run,
            new._trainer(schedule),
            loader,
            options.epochs,
            schedule=schedule,
            targets=new._targets(X),
            validation=eval_set,
            history=new.history_,
            patience=options.patience if options.early_stopping else None,
            verbose=options.verbose,
            checkpoints=checkpoints,
        )
        try:
            self._train(new, train)
        finally:
            schedule.finish()
            self._optimizer = self._teacher = None  # twice the size of the weights, and only partial_fit could use it
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "ViT":
        """One epoch over X at the constant learning rate `lr`, going on from what was learnt before. Returns self.

        classes: all labels that will ever come, needed in the first call unless its y holds them all.
        """
        new, first = copy.copy(self), not hasattr(self, "model_")
        options = new._options()
        if options.class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs all labels at once: give partial_fit a dict of weights")
        X, codes, weight = new._check_training_data(X, y, sample_weight, classes, first)
        if first:
            X = new._build(X, new._draw_seed(), options)
            new.history_ = {key: [] for key in HISTORY}
        else:
            new._check_network(options)
            X = new.normalize_.units.conversion(X)(X)
        if new._optimizer is None:
            new._optimizer = new._make_optimizer(options)
        loader, trainer, targets = new._loader(X, codes, weight, options), new._trainer(), new._targets(X)
        for group in new._optimizer.param_groups:
            group["lr"] = options.lr
        return self._train(
            new,
            partial(run, trainer, loader, 1, targets=targets, history=new.history_, verbose=options.verbose),
        )

    def _train(self, new: "ViT", train: Callable[[], tuple[dict[str, list], bool]]) -> "ViT":
        """Become `new` and train: all that can be refused has been refused by now, and nothing had changed."""
        new.interrupted_ = True  # until the end is reached
        self.__dict__ = vars(new)
        _, self.interrupted_ = train()
        return self

    @property
    def n_iter_(self) -> int:
        return len(self.history_["loss"])

    def _options(self) -> SimpleNamespace:
        """All parameters as plain values. ValueError where one is none that a training can have."""
        return SimpleNamespace(**check_options(self.get_params(deep=False)))

    @memory_advice("the model")
    def _build(self, X, seed, options):
        """What X, the classes and the options decide: recipe, network, optimiser. Returns X in the model's units."""
        self._rng = np.random.default_rng(seed)
        self._recipe = find_recipe(options.recipe, options.bits, options.distill_from is not None, options.warmup)
        taught = any(stage.learns != "labels" for stage in self._recipe.stages)
        teacher = self._check_teacher().model_ if taught or options.distill_from is not None else None
        self._teacher = teacher if taught else None
        start = options.distill_from if taught and options.init_from is None else options.init_from
        source = None if start is None else source_of(start, self.image_shape_[:2])
        if self._recipe.goes_on and (source is None or source.config["bits"] == 32):
            raise ValueError("this recipe goes on with a low-bit model: give one as init_from")
        self.normalize_ = getattr(start, "normalize_", None) or Normalize.fit(X)
        X = self.normalize_.units.conversion(X)(X)
        self._build_network(source, options)
        if before := {model_fingerprint(network) for network in (source, teacher) if network is not None}:
            # The same seed would repeat the batches that these networks were trained on: mix their weights in.
            self._rng = np.random.default_rng([seed, *sorted(int(text, 16) for text in before)])
        self._optimizer = self._make_optimizer(options)
        return X

    def _build_network(self, source, options):
        """The network on its device, with the weights and the architecture of `source` where there is one."""
        shape = {name: getattr(options, name) for name in NETWORK}
        if source is not None:
            given = {name: v for name, v in shape.items() if v != DEFAULTS[name]}
            shape |= shape_of(source, given | {"bits": options.bits})
        elif options.patch_size == "auto":
            shape["patch_size"] = auto_patch(self.image_shape_)
        *size, channels = self.image_shape_
        shape |= {"in_channels": channels, "num_classes": len(self.classes_), **self._recipe.network}
        self.model_ = VisionTransformer(tuple(size), **shape, rng=self._rng)
        self.model_.preprocessing = self.normalize_.for_pictures()
        if source is not None:
            start_from(self.model_, source)
        device = backend.resolve_device(options.device)
        if options.verbose == 1 and options.device == "auto" and (note := backend.auto_note()):
            print(note, flush=True)
        self.model_.to(device)

    def _check_network(self, options):
        """ValueError where a parameter was set to what the fitted network is not."""
        for name, value in changed_options(self).items():
            given = getattr(options, name)
            if given != DEFAULTS[name] or name in ("bits", "activation_bits"):  # others may come from `init_from`
                raise ValueError(
                    f"{name} was set to {given!r}, but the network has {value!r}: call fit, or set it back"
                )

    def _draw_seed(self):
        return ranks.first(check_random_state(self.random_state).randint(2**31))

    def _make_optimizer(self, options):
        return AdamW(decay_groups(self.model_, options.weight_decay), lr=options.lr, betas=(0.9, 0.98))

    def _loader(self, X, codes, weight, options):
        return Loader(
            X,
            codes,
            min(options.batch_size, len(X)),
            rng=self._rng,
            augment=make_augment(options.augment, self.image_shape_),
            transform=self.normalize_,
            sample_weight=weight,
        )

    def _loss(self):
        return partial(F.cross_entropy, label_smoothing=float(self.label_smoothing))

    def _stages(self, total):
        return Stages(self.model_, self._optimizer, total, self._recipe, self._loss(), self._teacher)

    def _trainer(self, objective=None):
        options = {"rng": self._rng, "group": ranks.current(), "objective": objective}
        options["on_nan"] = self.on_nan
        return Trainer(self.model_, self._optimizer, self._loss(), plain(self.workers), **options)

    def _check_teacher(self):
        if self.distill_from is None:
            raise ValueError("this recipe learns from a teacher: give a fitted 32-bit ViT as distill_from")
        if list(self.distill_from.classes_) != list(self.classes_):
            raise ValueError("distill_from was fitted on other classes than y has; fit the teacher on the same labels")
        if self.distill_from.image_shape_ != self.image_shape_:
            raise ValueError(
                f"distill_from was fitted on images of shape {self.distill_from.image_shape_}, not {self.image_shape_}"
            )
        return self.distill_from

    def _targets(self, X):
        """The teacher's probabilities as labels, unless the recipe has a better use for the teacher. X: the images."""
        if self.distill_from is None:
            return None
        teacher = self._check_teacher()
        sight = self.normalize_.sight(teacher.normalize_, X)
        if self._teacher is None:
            targets = soft_targets(teacher._trainer())
            return targets if sight is None else lambda x, y: targets(sight(x), y)
        if sight is not None:
            raise ValueError("init_from and distill_from normalise images differently: this recipe needs them alike")
        return None

    def _check_eval_set(self, X, y):
        X = self.prepare(X)
        return X, encode_labels(self._check_labels(y, len(X)), self.classes_)

    def _hold_out(self, X, codes, weight, seed):
        rows, share = np.arange(len(X)), plain(self.validation_fraction)
        try:
            kept, held = train_test_split(rows, test_size=share, random_state=seed, stratify=codes)
        except ValueError as error:
            raise ValueError(f"validation_fraction={share} of {len(X)} images cannot be kept aside: {error}") from error
        held_out = self.normalize_(X[held]), codes[held]
        return X[kept], codes[kept], None if weight is None else weight[kept], held_out

    # --- asking -------------------------------------------------------------------------------------------------------

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (n, classes); for two classes their difference (n,), positive for the second."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes), in the order of `classes_`."""
        return softmax_array(np, self._logits(X).astype(np.float64))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label for each image (n,)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X):
        check_is_fitted(self)
        X, trainer = self._shaped(X), self._trainer()
        prepare, step = self.normalize_.preparation(X), 256
        return np.concatenate([trainer.predict(prepare(X[i : i + step])) for i in range(0, len(X), step)])

    # --- files --------------------------------------------------------------------------------------------------------

    def pack(self, layout: str | None = None) -> "ViT":
        """A copy for prediction alone whose low-bit weights are packed bytes (see `VisionTransformer.pack`)."""
        check_is_fitted(self)
        return self.with_network(self.model_.pack(layout), self._rng)

    def with_network(self, network: VisionTransformer, rng: np.random.Generator, **params: Any) -> "ViT":
        """A copy with another network for the same images and classes, and with other parameters."""
        other = copy.copy(self).set_params(**params)
        other.model_, other._optimizer, other._rng = network, None, rng
        network.preprocessing, other.history_ = self.model_.preprocessing, copy.deepcopy(self.history_)
        return other

    def save(self, path: str | os.PathLike, packed: bool = False, half: bool = False) -> None:
        """Write the fitted model to a .safetensors file, in one step: the old file or the new one, never half of it.

        packed: only what prediction needs, low-bit weights as packed bytes; without it `partial_fit` can go on from the
        loaded model. half, for packed files: round what stays in floats to float16. Raises `tb.io.CheckpointError`.
        """
        check_is_fitted(self)
        save_classifier(path, self, packed, half)

    def to_html(self, path: str | os.PathLike | None = None, X: Any = None) -> str:
        """One web page with the packed model inside, to draw or drop images on; see `tb.web.to_html`. X: examples."""
        from ..web import to_html

        return to_html(self, path, X=X)


DEFAULTS = {name: p.default for name, p in inspect.signature(ViT).parameters.items()}


def load(path: str | os.PathLike, device: str = "cpu") -> ViT:
    """The fitted `ViT` from a file of `ViT.save`, on a device. Raises `tb.io.CheckpointError` for any other file.

    A packed file gives a model that predicts; a training can start from it (`init_from`), not go on.
    """
    loaded = load_classifier(path, ViT, backend.resolve_device(device))
    loaded._rng = np.random.default_rng(loaded._draw_seed())
    return loaded
