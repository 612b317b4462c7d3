"""A trained model as one web page that holds everything: the weights, the forward pass, and a canvas to draw on."""

from .export import to_html

__all__ = ["to_html"]
