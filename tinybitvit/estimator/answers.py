"""What a fitted tb.ViT answers, and what computes the answers: NumPy, or onnxruntime."""

import copy
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .. import backend
from ..autograd import writes
from ..backend import plain
from ..io.onnx_session import OnnxTrainer, check_onnxruntime, onnx_session
from ..models import VisionTransformer
from ..ops.norm import softmax_array
from ..train import Trainer
from ..train.resume import fingerprint
from .inputs import GIVEN, ImageClassifier, as_labels, check_options, one_of

ENGINES = ("numpy", "onnxruntime")


def check_engine(engine: Any) -> None:
    """ValueError where there is no such engine, ImportError where its packages are missing."""
    check_options({"engine": engine}, {"engine": one_of(*ENGINES)})
    if engine == "onnxruntime":
        check_onnxruntime()


class Session:
    """A network in onnxruntime, and what it was made of: it answers with the weights of that moment."""

    def __init__(self, network: VisionTransformer) -> None:
        self.network, self.arrays, self.made = network, [*network.state_dict().values()], writes.latest
        self.weights, self.onnx = self._hash(), onnx_session(network)

    def __reduce__(self) -> tuple:
        """A deep or pickled copy of a classifier has none, and makes its own."""
        return type(None), ()

    def _hash(self) -> str:
        return fingerprint(*map(backend.to_numpy, self.arrays))

    def is_of(self, network: VisionTransformer) -> bool:
        """Whether it still is what this network computes. The weights are read where any array was written to."""
        arrays, latest = network.state_dict().values(), writes.latest
        if network is not self.network or [*map(id, arrays)] != [*map(id, self.arrays)]:
            return False
        if latest != self.made and self.weights != self._hash():
            return False
        self.made = latest
        return True


class Answers(ImageClassifier):
    """A classifier that can be asked. engine_: what computes `predict` and its kin, 'numpy' or 'onnxruntime'.

    Training, attention maps and all else that looks into the network use NumPy with either.
    """

    engine_ = "numpy"
    _session: Session | None = None  # of onnxruntime; made when it is first needed, and again where the weights change

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

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of images whose label is predicted, each counted with its weight."""
        return super().score(X, as_labels(y, "y"), sample_weight)

    def features(self, X: Any) -> np.ndarray:
        """What the head gets of each image (n, dim): its pooled and normalised tokens."""
        check_is_fitted(self)
        X, headless = self._shaped(X), copy.copy(self.model_)  # the network itself may be answering another thread
        headless.head = None
        return Trainer(headless, workers=plain(self.workers)).predict(X, transform=self.normalize_.preparation(X))

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = self._shaped(X)
        return self._answerer().predict(X, transform=self.normalize_.preparation(X))

    def _answerer(self) -> Trainer:
        if self.engine_ == "numpy":
            return Trainer(self.model_, workers=plain(self.workers))
        session = self._session
        if session is None or not session.is_of(self.model_):
            self._session = session = Session(self.model_)
        return OnnxTrainer(self.model_, session.onnx, workers=plain(self.workers))

    def pack(self, layout: str | None = None, engine: str = "numpy") -> Any:
        """A copy for prediction alone whose low-bit weights are packed bytes (see `VisionTransformer.pack`).

        engine: what computes its answers. With 'onnxruntime', which needs `pip install "tinybitvit[onnx]"` and uses the
        CPU, a model that has nothing to pack, of 32 bits or packed already, is taken as it is.
        """
        check_is_fitted(self)
        check_engine(engine)
        config = self.model_.config
        if engine == "numpy" or (config["bits"] != 32 and not config["layout"]):
            network = self.model_.pack(layout)
        else:
            network = copy.deepcopy(self.model_)
        packed = self.with_network(network, self._rng)
        packed.engine_ = engine
        return packed

    def with_network(self, network: VisionTransformer, rng: np.random.Generator, **params: Any) -> Any:
        """A copy with another network for the same images and classes, and with other parameters."""
        other = copy.copy(self).set_params(**params)
        other._given = {**self._given, **{name: plain(value) for name, value in params.items() if name in GIVEN}}
        other.model_, other._optimizer, other._rng = network, None, rng
        network.preprocessing, other.history_ = self.model_.preprocessing, copy.deepcopy(self.history_)
        return other
