from . import autograd as autograd
from . import backend as backend
from . import course as course
from . import data as data
from . import functional as functional
from . import gradcheck as gradcheck
from . import io as io
from . import models as models
from . import nn as nn
from . import ops as ops
from . import optim as optim
from . import quant as quant
from . import train as train
from . import viz as viz
from . import web as web
from .autograd import grad as grad
from .autograd import no_grad as no_grad
from .backend import manual_seed as manual_seed
from .estimator import ViT as ViT
from .estimator import load as load
from .estimator import probe as probe
from .estimator import quantize as quantize
from .tensor import Tensor as Tensor

__version__: str
