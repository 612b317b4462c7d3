"""Starting one network from the weights of another."""

from .. import backend
from ..nn import Module


def start_from(model: Module, source: Module) -> int:
    """Copy every weight of `source` whose name and shape fit into `model`; returns how many fitted.

    A network of another bit width fits as it is: the latent weights of a low-bit layer are floats too. ValueError where
    not even the weights of a block fit.
    """
    theirs, mine = source.state_dict(), model.state_dict()
    fitting = {name: backend.to_numpy(a) for name, a in theirs.items() if name in mine and mine[name].shape == a.shape}
    if not any(name.startswith("blocks.") for name in fitting):
        raise ValueError("no block of the given model fits: choose the same dim, heads and mlp_ratio as it has")
    model.load_state_dict({**mine, **{name: a.astype(mine[name].dtype) for name, a in fitting.items()}})
    return len(fitting)
