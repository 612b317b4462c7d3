"""tb.ViT: the Vision Transformer as a scikit-learn classifier."""

import copy
import os
from typing import Any, BinaryIO

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .. import backend
from ..data.transforms import Augment
from ..quant.quantizer import Quantizer
from ..train import Checkpoints, Recipe, Run, Stages, describe_run, empty_history
from .answers import check_engine
from .build import Learner
from .files import check_unchanged, labels_to_json, load_classifier, save_classifier
from .inputs import FIT_RULES, MODELS, check_options


class ViT(Learner):
    """A low-bit Vision Transformer that is trained with `fit` and asked with `predict`.

    X: images (n, H, W, C), channels last, or grey (n, H, W), or flat (n, F); uint8 or floats. Flat rows become square
    images (one or three channels, channels last) where F allows it, else strips of one-pixel patches. y: any labels.

    Parameters
    ----------
    bits : 32, 8, 4, 3, 2, 1.58 or 1, the width of the weights in attention and MLP. quantizer : your own, instead.
    activation_bits : 8, 4, 1 or None (not quantised), the width of their inputs where bits < 32.
    patch_size : int or (height, width) in pixels, or 'auto' (2 for 8 x 8 images, 4 for 28 x 28 and 32 x 32).
    dim, depth, heads, mlp_ratio : size of the network: channels, blocks, attention heads, MLP width / dim.
    pool : 'mean' of the patch tokens, or 'cls' for a class token.
    epochs, batch_size, lr, weight_decay : of AdamW; lr is the peak of a schedule that warms up over the fraction
        `warmup` of all steps and then falls to 0 along a cosine. label_smoothing : share of each target spread over all
        classes. class_weight : None, 'balanced' (classes count alike, however rare) or a dict from labels to weights.
    augment : None, 'auto', steps such as 'flip,crop:4' (see `tb.data.make_augment`), or a function (X, rng) -> X.
    distill_from : a fitted ViT whose probabilities replace the labels (it must know the same classes). It sees each
        image in its own units and normalisation.
    init_from : a fitted ViT, a VisionTransformer, or a file or folder for `tb.models.from_pretrained`, to start from:
        its architecture (leave patch_size, dim, depth, heads and mlp_ratio out) and every weight that fits. What it
        lacks (a head for these classes) comes from `distill_from`, where a recipe learns from that.
    recipe : for bits < 32. None: train on the labels, with scales per row; 'paper': with one scale a layer, as BitNet
        has it, without its extra norm; 'best': start from `distill_from`, learn what it does block by block, then its
        outputs end to end (without a teacher: the labels, in two stages); 'imitate': go on from the low-bit `init_from`
        with the outputs of `distill_from` alone; 'refine': with those and the labels; or a `tb.train.Recipe`.
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

    def __init__(
        self,
        *,
        bits: float = 1.58,
        quantizer: Quantizer | str | None = None,
        activation_bits: int | None = 8,
        patch_size: int | tuple[int, int] | str = "auto",
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2,
        pool: str = "mean",
        epochs: int = 30,
        batch_size: int = 64,
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        label_smoothing: float = 0.1,
        class_weight: dict | str | None = None,
        augment: str | Augment | None = "auto",
        distill_from: Any = None,
        init_from: Any = None,
        recipe: str | Recipe | None = None,
        early_stopping: bool = False,
        patience: int = 10,
        validation_fraction: float = 0.1,
        on_nan: str = "stop",
        device: str = "auto",
        workers: int | str = "auto",
        random_state: Any = None,
        verbose: int | str = 1,
    ) -> None:
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
        new, options = copy.copy(self), self._options()
        X, codes, weight = new._check_training_data(X, y, sample_weight)
        if checkpoint is not None:
            labels_to_json(new.classes_)  # a model that cannot be saved is refused before its training
            params = {"classes": new.classes_, **self.get_params()}
            run_of = describe_run(params, X, codes, weight, *(eval_set or ()))  # before a RandomState is drawn from
        seed, checkpoints = new._draw_seed(), None
        if checkpoint is not None:
            checkpoints = Checkpoints(checkpoint, every, resume, run_of, {"seed": seed})
            seed = checkpoints.notes["seed"]
        X = new._build(X, seed, options)
        if eval_set is not None:
            eval_set = new._check_eval_set(*eval_set)
        elif options.early_stopping:
            X, codes, weight, eval_set = new._hold_out(X, codes, weight, seed)
        loader, trainer = new._loader(X, codes, weight, options), new._trainer(options)
        run = Run(
            trainer,
            loader,
            Stages(trainer, max(1, options.epochs * len(loader)), new._recipe, new._teacher),
            targets=new._targets(X),
            validation=eval_set,
            patience=options.patience if options.early_stopping else None,
            checkpoints=checkpoints,
            verbose=options.verbose,
            floor=new._floor(),
        )
        try:
            self._train(new, run, options.epochs)
        finally:
            self._optimizer = self._teacher = None  # twice the size of the weights, and only partial_fit could use it
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "ViT":
        """One epoch over X at the constant learning rate `lr`, going on from what was learnt before. Returns self.

        classes: all labels that will ever come, needed in the first call unless its y holds them all.
        """
        new, options, first = copy.copy(self), self._options(), not hasattr(self, "model_")
        if options.class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs all labels at once: give partial_fit a dict of weights")
        X, codes, weight = new._check_training_data(X, y, sample_weight, classes, first)
        if first:
            X = new._build(X, new._draw_seed(), options)
            new._teacher = None  # there are no stages, so its probabilities are what is learnt
        else:
            check_unchanged(self, options)
            X = new.normalize_.units.conversion(X)(X)
        if new._optimizer is None:
            new._optimizer = new._make_optimizer(options)
        run = Run(
            new._trainer(options),
            new._loader(X, codes, weight, options),
            targets=new._targets(X),
            history=empty_history() if first else new.history_,
            verbose=options.verbose,
            floor=new._floor(),
        )
        new._set_rates(new._optimizer, options)
        self._train(new, run, 1)
        return self

    def _train(self, new: "ViT", run: Run, epochs: int) -> None:
        """Become the new model, and train it: all that can be refused has been, and nothing of this one has changed."""
        new.history_, new.interrupted_ = run.history, True  # until the end is reached
        self.__dict__ = new.__dict__
        try:
            _, self.interrupted_ = run.train(epochs)
        finally:
            self._session = None  # it has the weights of before

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name. Those of the fitted models among them are theirs, and not listed."""
        return super().get_params(deep=False)

    def __sklearn_clone__(self) -> "ViT":
        """An unfitted copy. The models to start and to learn from stay what they are: unfitted they were no use."""
        bare, kept = copy.copy(self), {name: getattr(self, name) for name in MODELS}
        bare.__dict__.update(dict.fromkeys(MODELS))
        other = BaseEstimator.__sklearn_clone__(bare)
        other.__dict__.update(kept)
        return other

    @property
    def n_iter_(self) -> int:
        return len(self.history_["loss"])

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike | BinaryIO, packed: bool = False, half: bool = False) -> None:
        """Write the fitted model to a .safetensors file, in one step, the old one or the new, or to an open file.

        packed: only what prediction needs, low-bit weights as packed bytes; without it `partial_fit` can go on from the
        loaded model. half, for packed files: round what stays in floats to float16. Raises `tb.io.CheckpointError`.
        """
        check_is_fitted(self)
        save_classifier(path, self, packed, half)

    def to_html(self, path: str | os.PathLike | None = None, X: Any = None) -> str:
        """One web page with the packed model inside, to draw or drop images on; see `tb.web.to_html`. X: examples."""
        from ..web import to_html

        return to_html(self, path, X=X)


def load(path: str | os.PathLike, device: str = "cpu", engine: str = "numpy") -> ViT:
    """The fitted `ViT` from a file of `ViT.save`, on a device. Raises `tb.io.CheckpointError` for any other file.

    path: or a name of `tinybitvit zoo`. A packed file predicts; a training can start from it (`init_from`), not go on.
    engine: what computes its answers: 'numpy', the code to read, or the faster 'onnxruntime', on the CPU (see `pack`).
    """
    check_engine(engine)
    device = backend.resolve_device(device)
    if engine != "numpy" and device != "cpu":
        raise ValueError(f"engine={engine!r} computes on the CPU: take device='cpu', or the engine 'numpy'")
    loaded = load_classifier(path, ViT, device)
    loaded.engine_ = engine
    loaded._rng = np.random.default_rng(loaded._draw_seed())
    return loaded
