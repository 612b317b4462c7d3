"""A model, its images and its tokens' places, made ready for recording; hooks; and what covering a patch does."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import autograd, backend
from ..nn import Module
from ..ops.norm import softmax_array
from ..tensor import Tensor
from .layout import Layout


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and what it is asked about.

    images: X as it was given, (N, H, W, C); prepared: as the network takes it. classes: the labels of a `tb.ViT`, None
    for a bare network, whose classes are numbers.
    """

    network: Module
    images: np.ndarray
    prepared: np.ndarray
    classes: list | None
    layout: Layout

    def class_numbers(self, target: Any) -> Any:
        """None, 'predicted', or the class number (N,) of each image, from one label or N labels."""
        if target is None or (isinstance(target, str) and target == "predicted"):
            return target
        labels, n = np.asarray(target), len(self.images)
        if labels.shape not in ((), (n,)):
            raise ValueError(
                f"target must be 'predicted', one class, or one class for each of the {n} images, not shape"
                f" {labels.shape}"
            )
        labels = np.broadcast_to(labels, n)
        if self.classes is not None:
            unknown = [label for label in labels.tolist() if label not in self.classes]
            if unknown:
                raise ValueError(f"target {unknown[0]!r} is not among the model's classes: {self.classes[:20]}")
            return np.array([self.classes.index(label) for label in labels.tolist()])
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"target must be 'predicted' or class numbers for a network without labels, not {target!r}"
            )
        return labels


def check_labels(y: Any, classes: Any, count: int) -> np.ndarray:
    """True labels (N,) as an array. ValueError unless there is one for each image, of the kind of the classes."""
    y = np.asarray(y)
    if y.shape != (count,):
        raise ValueError(f"y must hold one label for each of the {count} images, not shape {y.shape}")
    check_kinds(y, classes)
    return y


def check_kinds(labels: Any, others: Any) -> None:
    """ValueError where some labels are text and the others numbers: none would equal another."""
    if not same_kind(labels, others):
        one, other = (np.asarray(some).ravel()[0] for some in (labels, others))
        raise ValueError(
            f"labels such as {one!r} cannot be compared with such as {other!r}: give all as text, or all as numbers"
        )


def same_kind(labels: Any, others: Any) -> bool:
    """Whether labels are text where others are, too."""
    kinds = {isinstance(label, str) for some in (labels, others) for label in np.asarray(some).ravel()[:1].tolist()}
    return len(kinds) < 2


def check_numbers(target: np.ndarray, classes: int) -> None:
    """ValueError unless all are numbers of classes."""
    wrong = target[(target < 0) | (target >= classes)]
    if len(wrong):
        raise ValueError(f"target must hold class numbers from 0 to {classes - 1}, not {wrong[0]}")


def subject_of(model: Any, X: Any, layout: Layout | None) -> Subject:
    """A fitted `tb.ViT` with X as for `predict`, or a network with normalised floats X (N, H, W, C)."""
    X = X if hasattr(X, "shape") else np.asarray(X)
    if hasattr(model, "prepare"):
        prepared, network, classes = model.prepare(X), model.model_, model.classes_.tolist()
    else:
        prepared, network, classes = np.asarray(backend.to_numpy(X)), model, None
        if prepared.dtype.kind != "f":
            raise ValueError(
                f"a {type(model).__name__} takes normalised floats, not {prepared.dtype}: apply its Normalize, or"
                " pass a fitted tb.ViT"
            )
    if not len(prepared):
        raise ValueError("X holds no image, at least one is needed")
    layout = Layout.of(network) if layout is None else layout
    return Subject(network, backend.to_numpy(X).reshape(prepared.shape), prepared, classes, layout)


@contextmanager
def observed(network: Module, kind: type[Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """Within the block the network is in evaluation mode, and each call of a module of that kind adds (its name, its
    output) to the list.
    """
    seen: list[tuple[str, Tensor]] = []
    with ExitStack() as stack:
        stack.enter_context(network.evaluating())
        for name, module in network.named_modules():
            if isinstance(module, kind):
                hook = lambda _, inputs, output, name=name: seen.append((name, output))  # noqa: E731
                stack.enter_context(module.register_forward_hook(hook))
        yield seen


def answers(subject: Subject, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Probabilities (n, classes), float64, for prepared images."""
    network = subject.network
    if getattr(network, "head", network) is None:
        raise RuntimeError("the network has no classification head, so covering a patch changes no prediction")
    device = next((p.device for p in network.parameters()), "cpu")
    with network.evaluating(), autograd.no_grad():
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        logits = [network(Tensor(batch, device=device)).numpy() for batch in batches]
    return softmax_array(np, np.concatenate(logits).astype(np.float64))


def occluded(subject: Subject, target: np.ndarray, batch_size: int) -> np.ndarray:
    """P(c | x) - P(c | x without patch p) for every patch of every image: (N, rows, columns); target: the classes c.

    A patch is covered with 0, the mean colour of the training images, for the network's images are normalised.
    """
    rows, columns = subject.layout.grid
    height, width = subject.prepared.shape[1:3]
    whole = answers(subject, subject.prepared, batch_size)
    drops = []
    for image, number, before in zip(subject.prepared, target, whole, strict=True):
        covered = np.repeat(image[None], rows * columns, axis=0)
        for p, patch in enumerate(covered):
            row, column = divmod(p, columns)
            here = slice(row * height // rows, (row + 1) * height // rows)
            patch[here, column * width // columns : (column + 1) * width // columns] = 0
        drops.append(before[number] - answers(subject, covered, batch_size)[:, number])
    return np.stack(drops).reshape(-1, rows, columns)
