"""What a low-bit student learns of its full-precision teacher.

An objective is called with (model, x, y) or (model, x, y, weight), weight (N,) one number a row, and returns the
outputs (N, classes) and the loss, a Tensor with one number.
"""

from collections.abc import Callable
from typing import Any

from ... import functional as F
from ...autograd import no_grad
from ...models import VisionTransformer
from ...tensor import Tensor

LEAST_CHANGE = 1e-6  # of a teacher's block, as a share of the tokens' mean square: one that does nothing divides by it


class Reconstruct:
    """Block by block, each for itself: loss = sum_k mean (student_k(h_k) - h_(k+1))^2 / mean (h_(k+1) - h_k)^2.

    That is of one image; a batch's is the mean of its images.

    h_k are the tokens that reach the teacher's block k; the student's block k gets the same (teacher forcing), so an
    error is not handed on and no gradient crosses a block. 1 is the error of a block that does nothing. No labels are
    needed. The outputs returned are those of the last block on the teacher's tokens: nearly as good as the teacher's,
    and no measure of the student. After Li et al. 2021 (BRECQ, arXiv 2102.05426), with straight-through quantisers and
    all blocks in one pass.
    """

    def __init__(self, teacher: VisionTransformer):
        self.teacher = teacher

    def __call__(self, student: VisionTransformer, x: Tensor, y: Tensor, *weight: Tensor) -> tuple[Tensor, Tensor]:
        loss: Any = 0.0
        with no_grad():
            h = self.teacher.tokens(x)
        for block, theirs in zip(student.blocks, self.teacher.blocks, strict=True):
            with no_grad():
                target = theirs(h)
            output = block(h)
            loss = loss + relative_error(output, target, h, weight)
            h = target
        with no_grad():
            logits = student.classify(student.norm(output.detach()))
        return logits, loss


class Distill:
    """End to end: T^2 KL(p || q) + hidden x the mean over blocks of the relative error of the tokens.

    p, q = softmax(logits / T) of teacher and student (Hinton et al. 2015, arXiv 1503.02531). labels: weight of `loss`,
    the cross-entropy with the labels, which is added.

    The embedding gets no gradient: it has no low-bit weights to learn, and nothing is disturbed as easily. Pixels that
    are neighbours are alike, so the steps of a patch's weights add up (docs/results/pretrained.md#the-embedding-stays).
    """

    OPTIONS = ("temperature", "hidden", "labels")  # what a recipe may set

    def __init__(
        self,
        teacher: VisionTransformer,
        temperature: float = 2.0,
        hidden: float = 1.0,
        labels: float = 0.0,
        loss: Callable[..., Tensor] = F.cross_entropy,
    ):
        self.teacher, self.temperature, self.loss = teacher, temperature, loss
        self.hidden, self.labels = hidden, labels

    def __call__(self, student: VisionTransformer, x: Tensor, y: Tensor, *weight: Any) -> tuple[Tensor, Tensor]:
        t, n = self.temperature, len(student.blocks)
        with no_grad():
            h, mine = self.teacher.tokens(x), student.tokens(x)
        loss: Any = 0.0
        for block, theirs in zip(student.blocks, self.teacher.blocks, strict=True):
            with no_grad():
                target = theirs(h)
            mine = block(mine)
            if self.hidden:
                loss = loss + relative_error(mine, target, h, weight) * (self.hidden / n)
            h = target
        with no_grad():
            logits = self.teacher.classify(self.teacher.norm(h)) * (1 / t)
            p = F.softmax(logits)
            entropy = F.cross_entropy(logits, p, *weight)
        output = student.classify(student.norm(mine))
        loss = loss + (F.cross_entropy(output * (1 / t), p, *weight) - entropy) * (t * t)
        if self.labels:
            loss = loss + self.loss(output, y, *weight) * self.labels
        return output, loss


def relative_error(y: Tensor, target: Tensor, start: Tensor, weight: tuple[Tensor, ...] = ()) -> Tensor:
    """mean (y - target)^2 / mean (target - start)^2 of an image's tokens (N, T, dim), as a (weighted) mean over images.

    A ratio of each image, not of the batch: a batch is cut into shards, and a mean of their ratios would be another.
    """
    error, change, size = (mean_square(a) for a in (y - target, target - start, target))
    ratio = error / F.maximum(change, size * LEAST_CHANGE)
    if weight:
        (w,) = weight
        return (ratio * w).sum() / w.sum()
    return ratio.mean()


def mean_square(a: Tensor) -> Tensor:
    """(N, T, dim) -> (N,)."""
    return (a * a).mean(axis=(1, 2))
