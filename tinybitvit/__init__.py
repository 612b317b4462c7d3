"""TinyBitViT: low-bit Vision Transformers from scratch, in NumPy or CuPy.

    import tinybitvit as tb
    model = tb.ViT(bits=1.58).fit(X, y)

To read the library, start at the bottom: backend, ops (the calculus), autograd and tensor (the engine), functional, nn,
quant (the low-bit part), models, optim, data, train, estimator (tb.ViT). Nothing is imported before it is used.
"""

import importlib
import importlib.util
import sys

import lazy_loader

__version__ = "0.1.0"

# The names and where they live are listed once, in __init__.pyi, which type checkers read too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

MOVED = {
    "tinybitvit.distributed": "tinybitvit.train.ranks",
    "tinybitvit.quant.ste": "tinybitvit.ops.ste",
}


class OldNames:
    """Finds a module by the name that it had in earlier versions, so that notebooks written for them still run."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_loader(name, OldNames) if name in MOVED else None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


sys.meta_path.append(OldNames)
