"""What `attention` and `compare_attention` return: recorded data that can be plotted and written as a page."""

from typing import Any

from . import page
from .compare import ComparedMaps
from .record import RecordedMaps


class AttentionRecord(RecordedMaps):
    """The attention of every layer and head for a batch of N images; made by `attention`.

    maps: a list with one float array (N, heads, T, T) a layer; row i of a T x T map holds the shares with which token i
    draws on all tokens, and sums to 1. layout: which token is which patch. images: (N, H, W, C) as they were given.
    logits: (N, classes), or None where the network has no head. classes: the labels in the order of the logits.
    gradients: as maps, d(logit of the target class)/d(attention), or None. target: the class numbers (N,) of these
    gradients. tokens: (N, T, dim) after every layer, or None where layers are no `tb.models.Block`. occlusion: (N,
    rows, columns), by how much the probability of the predicted class falls without each patch, or
    None (see `occlusion`).

    Attention is not explanation. A map shows where a layer averaged values from; it does not show what these values
    held, what the MLPs made of them, or what the prediction would be without them. Other maps can give the same output
    (Jain & Wallace 2019, arXiv 1902.10186; Wiegreffe & Pinter 2019, arXiv 1908.04626). To claim that a patch matters,
    change it and measure.
    """

    to_html = page.to_html
    _repr_html_ = page.frame

    def plot(self, **options: Any) -> Any:
        """Images beside their maps, as a matplotlib Figure; see `plot_attention`."""
        from .attention_plots import plot_attention

        return plot_attention(self, **options)


class AttentionComparison(ComparedMaps):
    """The records of several models, the first of which is the reference; made by `compare_attention`.

    records: name -> `AttentionRecord`. y: true labels (N,) or None. matches: name -> int array (layers, heads); entry
    (l, i) is the model's head that is compared with the reference's head i of layer l. divergence: name -> (layers,
    heads), Jensen-Shannon divergence in bits between these two heads, mean over images and tokens: 0 the same, 1
    nothing shared.

    Attention is not explanation, and neither is its difference: heads can move without a change of the output, and the
    output can change while heads stay (see `AttentionRecord`). Read it beside `changed()` and the accuracy.
    """

    to_html = page.to_html
    _repr_html_ = page.frame

    def plot(self, **options: Any) -> Any:
        """Original, each model, differences, as a matplotlib Figure; see `plot_comparison`."""
        from .attention_plots import plot_comparison

        return plot_comparison(self, **options)
