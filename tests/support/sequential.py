"""Modules one after another, for tests that need a network of two or three layers."""

from tinybitvit.nn import Module


class Sequential(Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
