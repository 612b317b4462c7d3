"""The contract of a differentiable function, and the two helpers that every family of operations uses.

Notation in all files of `ops`: x, y arrays in and out; L the scalar loss; g = dL/dy, the gradient that arrives from
above; a backward returns dL/dx for every input x, in the order of the inputs.
"""


class Context:
    """What a forward leaves behind for its backward.

    xp                 numpy or cupy, the module of the input arrays
    saved              the arrays kept by `save`, in order
    needs_input_grad   one bool per array input: whether anybody asks for that gradient
    Parameters (an axis, a shape) are kept as plain attributes.
    """

    saved = ()

    def __init__(self, xp, needs_input_grad):
        self.xp = xp
        self.needs_input_grad = needs_input_grad

    def save(self, *arrays):
        self.saved = arrays


class Function:
    """A differentiable function on arrays: `forward(ctx, *arrays, **params)` and `backward(ctx, g)`.

    The same contract as `torch.autograd.Function`, with arrays where PyTorch has tensors. `backward` returns a tuple
    with one entry per array input, None where there is no gradient, each of its input's shape. Inputs and g are never
    changed in place. Gradients of gradients are not supported: a backward is plain array code, not a graph.
    """

    @staticmethod
    def forward(ctx, *arrays, **params):
        raise NotImplementedError

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError


def unbroadcast(g, shape):
    """Sum g over the axes along which an input of this shape was repeated.

    Broadcasting copies an element along an axis, y_i = x for all i, so dL/dx = sum_i g_i.
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    repeated = tuple(extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1)
    return g.sum(axis=(*range(extra), *repeated), keepdims=True).reshape(shape)


def normalize_axis(axis, ndim):
    """An axis (None, int or tuple, negative allowed) as a sorted tuple of ints from 0; ValueError if out of range."""
    if axis is None:
        return tuple(range(ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"axis {axis} is out of range for an array with {ndim} dimensions")
    return tuple(sorted(a % ndim for a in axes))
