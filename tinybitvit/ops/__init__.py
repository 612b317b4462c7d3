"""Differentiable functions on plain arrays, forward and backward side by side.

`OPS` is the table of all of them by their public name; tests, documentation and `tinybitvit doctor` iterate over it.
"""

from . import activation, attention, elementwise, loss, matmul, norm, patch, reduce, shape, ste
from .base import Context, Function

OPS = {
    "add": elementwise.Add,
    "sub": elementwise.Sub,
    "mul": elementwise.Mul,
    "div": elementwise.Div,
    "neg": elementwise.Neg,
    "pow": elementwise.Pow,
    "power": elementwise.Power,
    "exp": elementwise.Exp,
    "log": elementwise.Log,
    "sqrt": elementwise.Sqrt,
    "tanh": activation.Tanh,
    "sigmoid": activation.Sigmoid,
    "relu": activation.Relu,
    "gelu": activation.Gelu,
    "where": elementwise.Where,
    "abs": elementwise.Abs,
    "maximum": elementwise.Maximum,
    "clip": elementwise.Clip,
    "sum": reduce.Sum,
    "mean": reduce.Mean,
    "max": reduce.Max,
    "var": reduce.Var,
    "reshape": shape.Reshape,
    "transpose": shape.Transpose,
    "broadcast_to": shape.BroadcastTo,
    "getitem": shape.GetItem,
    "concatenate": shape.Concatenate,
    "pad": shape.Pad,
    "matmul": matmul.Matmul,
    "linear": matmul.Linear,
    "softmax": norm.Softmax,
    "log_softmax": norm.LogSoftmax,
    "layer_norm": norm.LayerNorm,
    "rms_norm": norm.RMSNorm,
    "dropout": norm.Dropout,
    "scaled_dot_product_attention": attention.ScaledDotProductAttention,
    "multi_head_attention": attention.MultiHeadAttention,
    "cross_entropy": loss.CrossEntropy,
    "mse_loss": loss.MSE,
    "kl_div": loss.KLDiv,
    "patchify": patch.Patchify,
    "unpatchify": patch.Unpatchify,
    **ste.QUANTISERS,
}

__all__ = ["OPS", "Context", "Function"]
