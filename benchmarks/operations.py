"""Single operations, forward and backward, against the same in PyTorch on one thread, in turns."""

import statistics
import time
from functools import partial

SIZES = {
    "linear": ([(64 * 65, 192), (768, 192), (768,)], {}),
    "layer_norm": ([(64 * 65, 192), (192,), (192,)], {}),
    "rms_norm": ([(64 * 65, 768), (768,)], {}),
    "gelu": ([(64 * 65, 768)], {"approximate": "tanh"}),
    "softmax": ([(64 * 3 * 65, 65)], {}),
    "scaled_dot_product_attention": ([(64, 3, 65, 64)] * 3, {}),
    "add": ([(64 * 65, 192)] * 2, {}),
}


def torch_call(torch, name):
    F = torch.nn.functional
    return {
        "linear": F.linear,
        "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        "rms_norm": lambda x, w: F.rms_norm(x, w.shape, w),
        "gelu": F.gelu,
        "softmax": lambda x: F.softmax(x, -1),
        "scaled_dot_product_attention": F.scaled_dot_product_attention,
        "add": torch.add,
    }[name]


def backward(grad, forward, inputs, g):
    grad(forward(), inputs, g)


def turns(ours, theirs, rounds):
    """Median milliseconds of two functions called in turns."""
    times = ([], [])
    for _ in range(rounds):
        for function, seconds in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [1000 * statistics.median(seconds) for seconds in times]


def main(rounds=15):
    import numpy as np
    import torch

    import tinybitvit as tb
    from tinybitvit.train import single_threaded_blas

    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    print(f"{'operation':30} {'ours ms':>8} {'torch ms':>8} {'ratio':>6}   (forward + backward, one thread)")
    with single_threaded_blas():
        for name, (shapes, params) in SIZES.items():
            arrays = [rng.standard_normal(s, dtype="float32") for s in shapes]
            ours = [tb.Tensor(a, requires_grad=True) for a in arrays]
            theirs = [torch.from_numpy(a).requires_grad_() for a in arrays]
            function, reference = getattr(tb.functional, name), torch_call(torch, name)
            g = rng.standard_normal(function(*ours, **params).shape, dtype="float32")
            mine, other = turns(
                partial(backward, tb.grad, partial(function, *ours, **params), ours, g),
                partial(backward, torch.autograd.grad, partial(reference, *theirs), theirs, torch.from_numpy(g)),
                rounds,
            )
            rows.append({"operation": name, "milliseconds": mine, "torch_milliseconds": other, "ratio": other / mine})
            print(f"{name:30} {mine:8.2f} {other:8.2f} {other / mine:6.2f}", flush=True)
    return rows
