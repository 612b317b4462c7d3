"""Initial weights, always drawn on the host from a given numpy Generator, as float32 arrays."""

import math

from ..backend import Array, Generator


def xavier_uniform(rng: Generator, shape: tuple[int, int]) -> Array:
    """Uniform in +-sqrt(6 / (in + out)) for a weight (out, in); Glorot & Bengio 2010, equation 16."""
    bound = math.sqrt(6 / (shape[0] + shape[1]))
    return rng.uniform(-bound, bound, shape).astype("float32")


def normal(rng: Generator, shape: tuple[int, ...], std: float = 0.02) -> Array:
    """Normal with mean 0 and standard deviation `std`, values beyond two deviations drawn back to them."""
    return (rng.standard_normal(shape, dtype="float32") * std).clip(-2 * std, 2 * std)
