"""TinyBitViT: low-bit Vision Transformers from scratch, in NumPy or CuPy.

    import tinybitvit as tb
    model = tb.ViT(bits=1.58).fit(X, y)

To read the library, start at the bottom: backend, ops (the calculus), autograd and tensor (the engine), functional, nn,
quant (the low-bit part), models, optim, data, train, estimator (tb.ViT). Nothing is imported before it is used.
"""

import lazy_loader

__version__ = "0.1.0"

# The names and where they live are listed once, in __init__.pyi, which type checkers read too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
