"""Recording: `attention(model, X)` runs a network once, with a hook on every head's softmax; `compare_attention` does
so with several networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import autograd, backend
from ..models import Block
from ..nn import Attend
from ..quant import PackedLinear
from ..tensor import Tensor
from .compare import paired_heads
from .layout import Layout
from .pictured import AttentionComparison, AttentionRecord
from .subject import check_kinds, check_labels, check_numbers, observed, occluded, subject_of


def attention(
    model: Any,
    X: Any,
    *,
    target: Any = None,
    occlude: bool = False,
    layout: Layout | None = None,
    batch_size: int = 32,
) -> AttentionRecord:
    """Record what every head of a model attends to in the images X, and the tokens after every layer.

    model: a fitted `tb.ViT` (X as for `predict`) or a network with `nn.Attend` modules such as `VisionTransformer` (X
    as the network takes it: normalised floats (N, H, W, C)), packed or not. target: record gradients too, of the logit
    of the 'predicted' class, of one class, or of one class for each image (labels of a tb.ViT, else class numbers).
    occlude: record, too, what covering each patch does, as `occlusion` does, at one forward pass a patch. layout: which
    token is which patch, for networks without a `TokenEmbed`. The network runs in evaluation mode, in batches, and is
    left as it was; NumPy computes it, whatever the model's engine.

    Raises RuntimeError where a layer hands out no map, or where gradients cannot be had (packed models).
    """
    subject = subject_of(model, X, layout)
    network, images = subject.network, subject.prepared
    target = subject.class_numbers(target)
    parts, tokens = [], []
    with observed(network, Attend) as seen, observed(network, Block) as blocks:
        if not any(isinstance(m, Attend) for m in network.modules()):
            kind = type(network).__name__
            raise RuntimeError(f"{kind} holds no nn.Attend module, so there is no attention to record")
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            wanted = target[rows] if isinstance(target, np.ndarray) else target
            blocks.clear()
            parts.append(_record_batch(network, seen, images[rows], subject.layout, wanted))
            tokens.append([output.numpy() for _, output in blocks])
    maps, logits, gradients, targets = zip(*parts, strict=True)
    headless = getattr(network, "head", network) is None
    return AttentionRecord(
        maps=_joined(maps),
        layout=subject.layout,
        images=subject.images,
        logits=None if headless else np.concatenate(logits),
        classes=list(range(logits[0].shape[-1])) if subject.classes is None else subject.classes,
        gradients=None if target is None else _joined(gradients),
        target=None if target is None else np.concatenate(targets),
        tokens=_joined(tokens) if len(tokens[0]) == len(maps[0]) else None,
        occlusion=occluded(subject, np.concatenate(logits).argmax(axis=1), batch_size) if occlude else None,
    )


def compare_attention(
    models: Mapping[str, Any], X: Any, y: Any = None, *, match: bool = True, **options: Any
) -> AttentionComparison:
    """Record several models on the images X (N, ...) and compare each with the first.

    models: name -> model, as `attention` takes them, all with the same patch grid, depth and number of heads; their
    predictions are compared where all know the same classes. y: true labels. options go to `attention` (target,
    occlude, batch_size).

    match: pair the heads of each layer so that the sum of their divergences is least (Hungarian method). Models that
    were trained apart number their heads at random: head 3 of one has nothing to do with head 3 of the other. Where one
    was trained from the other's weights, heads keep their places and match=False compares head i with head i.
    """
    if len(models) < 2:
        raise ValueError("compare_attention needs at least two models, as in {'32 bits': a, '1.58 bits': b}")
    if len({str(name) for name in models}) < len(models):
        raise ValueError(f"the models need names that differ as text, not {list(models)}")
    records = {str(name): attention(model, X, **options) for name, model in models.items()}
    reference, first = next(iter(records.items()))
    for name, record in records.items():
        if (record.layout, record.depth, record.heads) != (first.layout, first.depth, first.heads):
            raise ValueError(
                f"{name!r} and {reference!r} differ in patch grid, tokens, depth or heads; compare models of one shape:"
                f" {record!r}, {first!r}"
            )
        check_kinds(record.classes, first.classes)
    if y is not None:  # the classes of a bare network are numbers, and the labels may be their names, to be shown
        y = check_labels(y, first.classes if hasattr(next(iter(models.values())), "classes_") else y, len(first))
    matches, divergence = {}, {}
    for name, record in records.items():
        matches[name], divergence[name] = paired_heads(first, record, match and name != reference)
    return AttentionComparison(records, y, matches, divergence)


def _record_batch(network, seen, images, layout, target):
    """Maps, logits, gradients and target classes of one batch; the last two None without a target."""
    seen.clear()
    device = next((p.device for p in network.parameters()), "cpu")
    x = Tensor(images, requires_grad=target is not None, device=device)
    if target is None:
        with autograd.no_grad():
            logits = network(x)
    else:
        logits = network(x)
    _check_complete(network, seen, len(images), layout)
    maps = [output.numpy() for _, output in seen]
    if target is None:
        return maps, logits.numpy(), None, None
    target = logits.numpy().argmax(axis=1) if isinstance(target, str) else target
    return maps, logits.numpy(), _gradients(network, logits, [output for _, output in seen], target), target


def _check_complete(network, seen, n, layout):
    """RuntimeError unless every Attend was called and gave a map (n, heads, T, T) for the layout's T tokens."""
    called = {name for name, _ in seen}
    silent = [name for name, m in network.named_modules() if isinstance(m, Attend) and name not in called]
    if silent:
        raise RuntimeError(
            f"no attention came from {', '.join(silent)}: this network computes it without calling the module"
        )
    for name, output in seen:
        if output.ndim != 4 or output.shape[0] != n or output.shape[2:] != (layout.tokens, layout.tokens):
            raise RuntimeError(
                f"{name} gave a map of shape {output.shape}, but the layout has {layout.tokens} tokens: ({n}, heads,"
                f" {layout.tokens}, {layout.tokens}) was expected; pass the layout that fits"
            )


def _gradients(network, logits, maps, target):
    """d(logit of each image's class)/d(map) for every map; images do not interact, so one backward pass serves them
    all.
    """
    if getattr(network, "head", network) is None:
        raise RuntimeError("the network has no classification head, so no class has a gradient; leave out target")
    check_numbers(target, logits.shape[1])
    if any(isinstance(m, PackedLinear) for m in network.modules()):
        raise RuntimeError(
            "gradients need the unpacked model: packed layers have no backward; record it, or leave out target"
        )
    if not autograd.is_recording():
        raise RuntimeError(
            "gradients cannot be recorded inside no_grad(): call attention outside of it, or leave out target"
        )
    chosen = (np.arange(logits.shape[1]) == target[:, None]).astype(str(logits.dtype))
    grads = autograd.grad(logits, maps, backend.to_device(chosen, logits.device))
    return [backend.to_numpy(g) for g in grads]


def _joined(parts):
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]
