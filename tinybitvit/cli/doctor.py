"""`tinybitvit doctor`: what is installed, what it runs on, and whether every operation works here."""

import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__, backend, gpu, gradcheck, ops, optim, quant
from ..ops import Function, ste
from ..train import Trainer, cores
from . import parity

PACKAGES = ("numpy", "scipy", "scikit-learn", "matplotlib", "safetensors", "threadpoolctl", "pillow")
# Forces OpenBLAS to code or to block sizes that were not chosen for this machine; NumPy may then run at half its speed.
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
QUANTISERS = {"absmax": ("identity",), "nbit": ("identity", "clipped")}  # the others know every variant of ste.STE


def run(device: str = "cpu") -> int:
    """Print the report; 0 if every check passed, else 1.

    device: 'cpu' checks every gradient there; 'cuda' compares every calculation on the GPU with the CPU.
    """
    width = max(map(len, PACKAGES))
    for name, text in environment():
        print(f"{name:{width}}  {text}")
    if device == "cpu":
        print("\nself-check: gradients against finite differences in float64")
        rows = [(name, "", problem(check)) for name, check in checks()]
    elif reason := backend.cuda_problem():
        print(f"\ndevice {device!r} is not usable: {reason}")
        return 1
    else:
        print("\nthe same numbers on the GPU and on the CPU, in float32: largest difference / largest number, allowed")
        rows = [(row.name, row.numbers, row.fault) for row in parity.compare(device, operation_cases())]
    width = max(len(name) for name, *_ in rows)
    for name, numbers, fault in rows:
        print(f"  {name:{width}}  {numbers}{'ok' if fault is None else f'FAILED: {fault}'}")
    failed = sum(fault is not None for *_, fault in rows)
    print(f"{failed} of {len(rows)} checks FAILED" if failed else f"all {len(rows)} checks passed")
    if failed or device != "cpu":
        print("please paste this whole text into an issue, whatever the result")
    return 1 if failed else 0


# --- what is installed ------------------------------------------------------------------------------------------------


def environment() -> Iterator[tuple[str, str]]:
    """(name, text) for every line of the first part."""
    yield "tinybitvit", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, f"MISSING: pip install {package}"
    yield "BLAS", blas()
    yield "cores", f"{cores()} for this process, {os.cpu_count()} in the machine"
    yield "device", device()
    if backend.cuda_problem() is None:
        yield from gpu.cuda_info()
    for name in SLOWING:
        if name in os.environ:
            yield "note", f"{name}={os.environ[name]} is set and can halve the speed of NumPy: unset it"


def blas() -> str:
    """The libraries behind NumPy's matrix product, with their threads."""
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    texts = {f"{p['internal_api']} {p['version']}, {p.get('architecture')}, {p['num_threads']} threads" for p in found}
    return "; ".join(sorted(texts)) or "not recognised by threadpoolctl"


def device() -> str:
    reason = backend.cuda_problem()
    return f"cpu (no GPU: {reason})" if reason else "cuda, and cpu"


# --- the checks -------------------------------------------------------------------------------------------------------


def problem(check: Callable[[], None]) -> str | None:
    """None where a check passes, else one line that says why not."""
    try:
        check()
    except Exception as error:  # whatever a broken installation raises belongs into the table
        return parity.in_a_line(error)
    return None


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, check) for every operation, straight-through quantiser and layout, a training run and packed layers."""
    cases = operation_cases()
    for name in ops.OPS:
        if name not in ste.QUANTISERS and name not in map(operation_of, cases):
            yield name, no_case
    for label, case in cases.items():
        yield label, partial(check_operation, ops.OPS[operation_of(label)], label, *case)
    for name, function in ste.QUANTISERS.items():
        for variant in QUANTISERS.get(name, ste.STE):
            label = name if variant == "identity" else f"{name} ({variant})"
            yield label, partial(check_quantiser, name, function, variant)
    for layout in quant.LAYOUTS:
        yield f"pack and unpack ({layout})", partial(check_layout, layout)
    yield "training lowers the loss", check_training
    for bits in quant.WEIGHT_BITS[1:]:
        yield f"packed layer ({bits:g} bits)", partial(check_packed, bits)


def operation_of(label: str) -> str:
    return label.partition(" ")[0]


def no_case() -> None:
    raise LookupError("this operation has no case in tinybitvit/cli/doctor.py: add one to operation_cases")


def check_operation(function: type[Function], label: str, arrays: list, params: dict[str, Any] | None = None) -> None:
    gradcheck.check_op(function, *arrays, name=label, **(params or {}))


def operation_cases() -> dict[str, tuple]:
    """The arrays of every operation, and parameters where it has some; no kink near them (see `gradcheck.check_op`)."""
    rng = backend.make_rng(0)
    normal = rng.standard_normal
    x, y, row, positive = normal((3, 4)), normal((3, 4)), normal(4), rng.uniform(0.5, 2, (3, 4))
    apart = rng.permutation(12).reshape(3, 4) / 10 - 0.55  # no two equal, none 0
    shares = positive / positive.sum(axis=1, keepdims=True)
    q, k, v, image = normal((2, 3, 4)), normal((2, 5, 4)), normal((2, 5, 6)), normal((2, 4, 6, 3))
    return {
        **{name: ([x, row],) for name in ("add", "sub", "mul")},
        **{name: ([x],) for name in ("neg", "exp", "tanh", "sigmoid", "gelu", "softmax", "log_softmax")},
        **{name: ([positive],) for name in ("log", "sqrt")},
        **{name: ([apart],) for name in ("relu", "abs")},
        "div": ([x, positive],),
        "pow": ([positive], {"exponent": 2.5}),
        "power": ([positive, row],),
        "gelu (tanh)": ([x], {"approximate": "tanh"}),
        "where": ([x > 0, x, row],),
        "maximum": ([apart, apart[::-1] + 0.03],),
        "clip": ([apart], {"low": -0.3, "high": 0.4}),
        "sum": ([x], {"axis": 1}),
        "mean": ([x], {"axis": 0, "keepdims": True}),
        "max": ([apart], {"axis": 1}),
        "var": ([x], {"axis": 1, "ddof": 1}),
        "reshape": ([x], {"shape": (2, 6)}),
        "transpose": ([q], {"axes": (1, 2, 0)}),
        "broadcast_to": ([row], {"shape": (3, 4)}),
        "getitem": ([x], {"index": ([0, 0, 2],)}),
        "concatenate": ([x, y], {"axis": 1}),
        "pad": ([x], {"pad_width": ((1, 0), (0, 2))}),
        "matmul": ([q, normal((4, 2))],),
        "linear": ([q, normal((5, 4)), normal(5)],),
        "layer_norm": ([x, row, normal(4)],),
        "rms_norm": ([x, row],),
        "dropout": ([x, 2.0 * (y > 0)], {"wrt": (0,)}),
        "scaled_dot_product_attention": ([q, k, v],),
        "multi_head_attention": ([normal((2, 3, 12))], {"heads": 2}),
        "cross_entropy": ([x, rng.integers(0, 4, 3), positive[:, 0]], {"label_smoothing": 0.1, "wrt": (0,)}),
        "mse_loss": ([x, y],),
        "kl_div": ([x, shares], {"wrt": (0,)}),
        "patchify": ([image], {"patch_size": (2, 3)}),
        "unpatchify": ([normal((2, 4, 18))], {"patch_size": (2, 3), "image_size": (4, 6)}),
    }


def check_quantiser(name: str, function: type[Function], variant: str) -> None:
    """The straight-through backward is the derivative of the surrogate, with the scale and the threshold held constant.

    Finite differences of the real forward would be 0: it is piecewise constant.
    """
    w = backend.make_rng(0).standard_normal((4, 6))
    surrogate = frozen_surrogate(name, w, variant)
    params: dict[str, Any] = {} if name == "absmax" else {"ste": variant}
    if name == "nbit":
        params["bits"] = 2

    class StraightThrough(Function):
        @staticmethod
        def forward(ctx, w, **params):
            function.forward(ctx, w, **params)
            return surrogate(w)

        backward = staticmethod(function.backward)

    gradcheck.check_op(StraightThrough, w, name=name, **params)


def frozen_surrogate(name: str, w: Any, variant: str) -> Callable[[Any], Any]:
    """The function of w that the backward of a quantiser differentiates (see the table in `ops.ste`)."""
    xp = backend.array_module(w)
    if name == "absmax":
        return lambda w: w
    if name == "nbit":
        step = ste.nbit_codes(xp, w, 2)[1]
        return lambda w: step * sign_surrogate(xp, w / step, variant, -2, 1)
    if name == "binary":
        _, beta, u = ste.binary_codes(xp, w)
        threshold = w - u
        return lambda w: beta * sign_surrogate(xp, (w - threshold) / beta, variant)
    beta = ste.ternary_codes(xp, w)[1]
    if variant in ("identity", "clipped"):
        return lambda w: beta * sign_surrogate(xp, w / beta, variant)
    return lambda w: beta * sum(sign_surrogate(xp, w / beta + shift, variant) for shift in (-0.5, 0.5)) / 2


def sign_surrogate(xp: Any, v: Any, variant: str, low: float = -1.0, high: float = 1.0) -> Any:
    """What stands in for the rounding of v, at width 1 and temperature 1."""
    if variant == "identity":
        return v
    if variant == "clipped":
        return xp.clip(v, low, high)
    if variant == "approx_sign":
        z = xp.clip(v, -1, 1)
        return 2 * z - z * xp.abs(z)
    return xp.tanh(v)


def check_layout(layout: str) -> None:
    codes, packed, unpacked = parity.packing(layout, "cpu")
    assert packed.nbytes == quant.packed_nbytes(codes.shape, layout), f"{packed.nbytes} bytes, expected another number"
    assert (unpacked == codes).all(), "the unpacked codes differ from the packed ones"


def check_training() -> None:
    model, x, y = parity.network(1.58, "cpu")
    trainer = Trainer(model, optim.AdamW(model.parameters(), lr=1e-2))
    losses = [trainer.step(x, y) for _ in range(10)]
    assert losses[-1] < losses[0], f"it went from {losses[0]:.4g} to {losses[-1]:.4g} in ten steps"


def check_packed(bits: float) -> None:
    """One layer, not a model: the next layer's rounding could make a whole step of a difference in the last digit."""
    packed, latent = parity.packed_layer(bits, "cpu")
    difference = parity.distance([latent], [packed])
    assert difference < 1e-5, f"its output differs from the unpacked layer's by {difference:.3g} of the largest number"
