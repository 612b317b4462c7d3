"""Is a packed model as fast as a dense one? Inference on one core, packed bytes against float32 weights.

Three models of the same size, timed in turns so that a busy spell of the machine meets all of them:
    float    the 32-bit network: float32 weights, inputs not quantised, no extra norms
    dense    the low-bit network with its quantised weights written out as float32
    packed   the low-bit network computing from its packed bytes
dense / packed is what unpacking costs; float / packed is what low bits cost in all.
"""

import os
import statistics
import sys
import time
from functools import partial

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # set for an old core they halve NumPy's speed
ROUNDS = 15


def without_blas_settings():
    """Start this program again without the variables that hold OpenBLAS back (it reads them when it is loaded)."""
    if any(name in os.environ for name in SLOWING):
        clean = {k: v for k, v in os.environ.items() if k not in SLOWING}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], clean)


def models(dim, bits, activation_bits):
    """float, dense and packed networks of one size, 32 x 32 images, 65 tokens."""
    import copy

    import numpy as np

    import tinybitvit as tb
    from tinybitvit.quant import BitLinear

    rng = np.random.default_rng(0)
    size = {"dim": dim, "depth": 6 if dim < 500 else 2, "heads": dim // 64, "pool": "cls", "rng": rng}
    full = tb.models.VisionTransformer(32, 4, **size)
    low = tb.models.VisionTransformer(32, 4, bits=bits, activation_bits=activation_bits, **size)
    dense = copy.deepcopy(low)
    for layer in dense.modules():
        if isinstance(layer, BitLinear):
            layer.forward = partial(forward_dense, layer, layer.quantized_weight())
    return {"float": full, "dense": dense, "packed": low.pack()}


def forward_dense(layer, weight, x):
    """A BitLinear whose quantised weight is at hand as floats."""
    from tinybitvit import functional as F

    x = x if layer.norm is None else layer.norm(x)
    return F.linear(layer.quantize_input(x), weight, layer.bias)


def medians(functions, rounds=ROUNDS):
    """Median seconds that each function keeps its thread busy, called in turns."""
    times = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            if turn:  # the first turn warms up
                times[name].append(time.thread_time() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def measure(dim, batch, bits=1.58, activation_bits=8, rounds=ROUNDS):
    """Median milliseconds of float, dense and packed for one batch of images, on one core."""
    import numpy as np

    import tinybitvit as tb
    from tinybitvit.backend import keep_freed_memory
    from tinybitvit.train import single_threaded_blas

    keep_freed_memory()  # as a Trainer does, and so tb.ViT.predict
    x = np.random.default_rng(1).standard_normal((batch, 32, 32, 3), dtype="float32")
    nets = models(dim, bits, activation_bits)
    with single_threaded_blas(), tb.no_grad():
        seconds = medians({name: (lambda net=net: net(x)) for name, net in nets.items()}, rounds)
    return {name: 1000 * s for name, s in seconds.items()}


def main():
    without_blas_settings()
    print("inference, one core, 65 tokens, milliseconds (median of turns); goals for dense / packed")
    print(" dim batch  bits inputs    float    dense   packed  dense/packed  goal  float/packed")
    rows = []
    for dim in (192, 768):
        for batch, goal in ((1, 0.8), (32, 0.9)):
            for bits, activation_bits in ((1.58, 8), (1, 8), (1, 1)):
                ms = measure(dim, batch, bits, activation_bits, rounds=60 if batch == 1 and dim < 500 else ROUNDS)
                numbers = " ".join(f"{value:8.2f}" for value in ms.values())
                same, full = ms["dense"] / ms["packed"], ms["float"] / ms["packed"]
                print(
                    f"{dim:4} {batch:5} {bits:5g} {activation_bits:6} {numbers} {same:13.2f} {goal:5} {full:13.2f}",
                    flush=True,
                )
                rows.append({"dim": dim, "batch": batch, "bits": bits, "activation_bits": activation_bits, **ms})
    return rows


if __name__ == "__main__":
    main()
