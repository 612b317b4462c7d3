"""What a fit of tb.ViT builds before it trains: recipe, network, optimiser, batches, targets."""

import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_random_state

from .. import backend
from .. import functional as F
from ..data import Loader, Normalize, make_augment
from ..data.images import auto_patch, encode_labels
from ..models import VisionTransformer, shape_of, source_of, start_from
from ..optim import AdamW, decay_groups
from ..quant.quantizer import bits_beside, own_options
from ..train import (
    Recipe,
    Trainer,
    find_recipe,
    memory_advice,
    model_fingerprint,
    ranks,
    smoothing_floor,
    soft_targets,
)
from .files import NETWORK, changed_options
from .inputs import ImageClassifier, check_options, plain


class TrainableClassifier(ImageClassifier):
    """An ImageClassifier with the parameters of tb.ViT; its methods check them and build what a training needs."""

    _rng: np.random.Generator
    _optimizer: AdamW | None = None  # while a training, or a series of partial_fit, goes on
    _recipe: Recipe = Recipe()
    _teacher: VisionTransformer | None = None  # where the recipe's stages learn from it

    def _options(self) -> SimpleNamespace:
        """All parameters as plain values. ValueError where one is none that a training can have."""
        return SimpleNamespace(**check_options(self.get_params(deep=False)))

    @memory_advice("the model")
    def _build(self, X, seed, options):
        """What X, the classes and the options decide: recipe, network, optimiser. Returns X in the model's units."""
        self._rng = np.random.default_rng(seed)
        defaults = inspect.signature(type(self)).parameters
        options.bits = bits_beside(options.quantizer, options.bits, defaults["bits"].default)
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
            defaults = inspect.signature(type(self)).parameters
            given = {name: v for name, v in shape.items() if v != defaults[name].default}
            shape |= shape_of(source, given | {"bits": options.bits})
        elif options.patch_size == "auto":
            shape["patch_size"] = auto_patch(self.image_shape_)
        *size, channels = self.image_shape_
        shape |= {"in_channels": channels, "num_classes": len(self.classes_), **self._recipe.network}
        self.model_ = VisionTransformer(tuple(size), **own_options(shape, self.quantizer), rng=self._rng)
        self.model_.preprocessing = self.normalize_.for_pictures()
        if source is not None:
            start_from(self.model_, source)
        device = backend.resolve_device(options.device)
        if options.verbose == 1 and options.device == "auto" and (note := backend.auto_note()):
            print(note, flush=True)
        self.model_.to(device)

    def _check_network(self, options):
        """ValueError where a parameter was set to what the fitted network is not."""
        defaults = inspect.signature(type(self)).parameters
        for name, value in changed_options(self).items():
            given = getattr(options, name)
            # A default may stand for what came from `init_from`
            if given != defaults[name].default or name in ("bits", "activation_bits"):
                raise ValueError(
                    f"{name} was set to {given!r}, but the network has {value!r}: call fit, or set it back"
                )

    def _draw_seed(self):
        seed = check_random_state(self.random_state).randint(2**31)
        return seed if ranks.group is None else ranks.group.first(seed)

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

    def _floor(self):
        """The least value of the loss where it is that of the labels, else 0."""
        if self.distill_from is not None or any(stage.learns != "labels" for stage in self._recipe.stages):
            return 0.0
        return smoothing_floor(self.label_smoothing, len(self.classes_))

    def _trainer(self):
        options = {"rng": self._rng, "group": ranks.group, "on_nan": self.on_nan}
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
