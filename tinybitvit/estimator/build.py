"""What a training of tb.ViT is made of: recipe, network, optimiser, trainer and what it learns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.utils.validation import check_random_state

from .. import backend
from .. import functional as F
from ..data.images import auto_patch
from ..data.transforms import Normalize
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
from ..train.convert.recipes import check_same_shape
from .answers import Answers
from .inputs import GIVEN, NETWORK, default_of

# What the options of the estimator, the images and the labels decide, and no recipe may
DECIDED = {*GIVEN, "image_size", "in_channels", "num_classes", "layout"}


class Learner(Answers):
    """A classifier that can build what it trains."""

    _optimizer: AdamW | None = None  # while a training, or a series of partial_fit, goes on
    _recipe: Recipe = Recipe()
    _teacher: VisionTransformer | None = None  # where the recipe's stages learn from it
    quantizer: Any
    random_state: Any
    label_smoothing: Any

    @memory_advice("the model")
    def _build(self, X: np.ndarray, seed: int, options: Any) -> np.ndarray:
        """What X, the classes and the options decide: recipe, network, optimiser. Returns X in the model's units."""
        self._rng = np.random.default_rng(seed)
        self._given = {name: getattr(options, name) for name in GIVEN}
        options.bits = bits_beside(options.quantizer, options.bits, default_of(self, "bits"))
        self._recipe = find_recipe(options.recipe, options.bits, options.distill_from is not None, options.warmup)
        if taken := sorted(DECIDED & set(self._recipe.network)):
            raise ValueError(
                f"the network of a recipe must leave out {taken[0]!r}, which the options of tb.ViT, the images or the"
                " labels decide"
            )
        taught = any(stage.learns != "labels" for stage in self._recipe.stages)
        if taught and not options.depth:
            raise ValueError("depth=0 leaves no block that could learn from a teacher: take depth=1, or no recipe")
        teacher = self._check_teacher().model_ if taught or options.distill_from is not None else None
        self._teacher = teacher if taught else None
        start = options.distill_from if taught and options.init_from is None else options.init_from
        source = None if start is None else source_of(start, self.image_shape_[:2])
        if self._recipe.goes_on and (source is None or source.config["bits"] == 32):
            raise ValueError("this recipe goes on with a low-bit model: give one as init_from")
        self.normalize_ = getattr(start, "normalize_", None) or Normalize.fit(X, self._scaled)
        X = self.normalize_.units.conversion(X)(X)
        self._build_network(source, options)
        if before := {model_fingerprint(network) for network in (source, teacher) if network is not None}:
            # The same seed would repeat the batches that these networks were trained on: mix their weights in.
            self._rng = np.random.default_rng([seed, *sorted(int(text, 16) for text in before)])
        self._optimizer = self._make_optimizer(options)
        return X

    def _build_network(self, source: VisionTransformer | None, options: Any) -> None:
        """The network on its device, with the weights and the architecture of `source` where there is one."""
        shape = {name: getattr(options, name) for name in NETWORK}
        if source is not None:
            given = {name: v for name, v in shape.items() if v != default_of(self, name)}
            shape |= shape_of(source, given | {"bits": options.bits})
        elif options.patch_size == "auto":
            shape["patch_size"] = auto_patch(self.image_shape_)
        *size, channels = self.image_shape_
        shape |= {"in_channels": channels, "num_classes": len(self.classes_), **self._recipe.network}
        self.model_ = VisionTransformer(tuple(size), **own_options(shape, self.quantizer), rng=self._rng)
        self.model_.preprocessing = self.normalize_.for_pictures()
        if source is not None:
            if self._teacher not in (None, source):  # what the source lacks, such as a head for these classes
                check_same_shape(self.model_, self._teacher)
                start_from(self.model_, self._teacher)
            start_from(self.model_, source)
        device = backend.resolve_device(options.device)
        if options.verbose == 1 and options.device == "auto" and (note := backend.auto_note()):
            print(note, flush=True)
        self.model_.to(device)

    def _set_rates(self, optimizer: AdamW, options: Any) -> None:
        """The learning rate and the weight decay that the options have now, in an optimiser that goes on."""
        groups = [group for group in decay_groups(self.model_, options.weight_decay) if group["params"]]
        for group, fresh in zip(optimizer.param_groups, groups, strict=True):
            group["lr"], group["weight_decay"] = options.lr, fresh["weight_decay"]

    def _draw_seed(self) -> int:
        seed = check_random_state(self.random_state).randint(2**31)
        return seed if ranks.group is None else ranks.group.first(seed)

    def _make_optimizer(self, options: Any) -> AdamW:
        return AdamW(decay_groups(self.model_, options.weight_decay), lr=options.lr, betas=(0.9, 0.98))

    def _floor(self) -> float:
        """The least value of the loss where it is that of the labels, else 0."""
        if self.distill_from is not None or any(stage.learns != "labels" for stage in self._recipe.stages):
            return 0.0
        return smoothing_floor(self.label_smoothing, len(self.classes_))

    def _trainer(self, options: Any) -> Trainer:
        loss = partial(F.cross_entropy, label_smoothing=options.label_smoothing)
        more = {"rng": self._rng, "group": ranks.group, "on_nan": options.on_nan}
        return Trainer(self.model_, self._optimizer, loss, options.workers, **more)

    def _targets(self, X: np.ndarray) -> Callable | None:
        """The teacher's probabilities as labels, unless the recipe has a better use for the teacher. X: the images."""
        if self.distill_from is None:
            return None
        teacher = self._check_teacher()
        sight = self.normalize_.sight(teacher.normalize_, X)
        if self._teacher is None:
            targets = soft_targets(teacher._answerer())
            return targets if sight is None else lambda x, y: targets(sight(x), y)
        if sight is not None:
            raise ValueError("init_from and distill_from normalise images differently: this recipe needs them alike")
        return None
