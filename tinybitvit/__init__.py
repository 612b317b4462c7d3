"""TinyBitViT: low-bit Vision Transformers from scratch."""
__version__ = "0.1.0"
from . import functional, ops, nn, quant, models, optim, train
from .autograd import grad, no_grad
from .tensor import Tensor
from .backend import manual_seed
