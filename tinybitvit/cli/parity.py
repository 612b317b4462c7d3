"""The same calculations on the CPU and on another device, side by side: `tinybitvit doctor --device cuda`."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from .. import backend, models, ops, optim, quant
from ..ops import Context
from ..tensor import Tensor
from ..train import Trainer

Arrays = list[Any]
EXACT, OPERATION, NETWORK = 0.0, 1e-5, 1e-4
LOW_BIT = 2e-2  # the last digit of a sum may tip a rounding over, and one step of 127 is 1 %


class Row(NamedTuple):
    """What one comparison gave: the largest difference relative to the largest number, or the error that ended it."""

    name: str
    difference: float
    allowed: float
    error: str | None

    @property
    def passed(self) -> bool:
        return self.error is None and self.difference <= self.allowed  # a NaN fails, too

    @property
    def fault(self) -> str | None:
        return None if self.passed else self.error or "the numbers differ"

    @property
    def numbers(self) -> str:
        return f"{self.difference:10.1e}  {self.allowed:7.0e}  "


def compare(device: str, operations: Mapping[str, tuple]) -> Iterator[Row]:
    """A row for every operation, quantiser, layout, training step and packed layer, computed on 'cpu' and on `device`.

    operations: label -> (arrays, parameters) as `doctor.operation_cases` gives them.
    """
    for name, allowed, run in comparisons(operations):
        try:
            yield Row(name, distance(run("cpu"), run(device)), allowed, None)
        except Exception as error:  # whatever an untested device raises belongs into the table
            yield Row(name, float("nan"), allowed, in_a_line(error))


def in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def distance(expected: Arrays, found: Arrays) -> float:
    """The largest difference between arrays of two lists, each relative to the largest number of its array."""
    largest = 0.0
    for a, b in zip(map(backend.to_numpy, expected), map(backend.to_numpy, found), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(f"{b.dtype} of shape {b.shape} instead of {a.dtype} of shape {a.shape}")
        if a.size:
            a, b = a.astype("float64"), b.astype("float64")
            off = float(abs(a - b).max()) / (float(abs(a).max()) or 1.0)
            largest = off if off != off else max(largest, off)
    return largest


# --- what is compared: each runs on a device and returns arrays -------------------------------------------------------


def comparisons(operations: Mapping[str, tuple]) -> Iterator[tuple[str, float, Callable[[str], Arrays]]]:
    """(name, allowed difference, run) of everything that is compared."""
    for label, (arrays, *params) in operations.items():
        function = ops.OPS[label.partition(" ")[0]]
        yield label, OPERATION, partial(operation, function, arrays, params[0] if params else {})
    w = backend.make_rng(0).standard_normal((24, 40))
    for name, function in ops.ste.QUANTISERS.items():
        yield name, OPERATION, partial(operation, function, [w], {"bits": 2} if name == "nbit" else {})
    for layout in quant.LAYOUTS:
        yield f"pack and unpack ({layout})", EXACT, partial(packing, layout)
    yield "XNOR and count", EXACT, counting
    for bits in (32, 1.58, 1):
        yield f"training step ({bits:g} bits)", NETWORK if bits == 32 else LOW_BIT, partial(training, bits)
    for bits in quant.WEIGHT_BITS[1:]:
        yield f"packed layer ({bits:g} bits)", OPERATION, partial(packed_layer, bits)
    for bits in (1.58, 1):
        yield f"packed network ({bits:g} bits)", LOW_BIT, partial(packed_network, bits)


def operation(function: type[ops.Function], arrays: Arrays, params: dict[str, Any], device: str) -> Arrays:
    """Value and gradients of an operation in float32."""
    params = {k: v for k, v in params.items() if k != "wrt"}
    rng = backend.make_rng(1)
    sent = [backend.to_device(a.astype("float32") if a.dtype.kind == "f" else a, device) for a in arrays]
    ctx = Context(backend.array_module(*sent), (True,) * len(sent))
    y = function.forward(ctx, *sent, **params)
    g = backend.to_device(backend.host.asarray(rng.standard_normal(y.shape), dtype="float32"), device)
    return [y, *(d for d in function.backward(ctx, g) if d is not None)]


def packing(layout: str, device: str) -> Arrays:
    """Codes, packed, and unpacked again."""
    codes = backend.make_rng(0).choice(quant.LAYOUTS[layout].codes, (8, 13)).astype("float32")
    packed = quant.pack(backend.to_device(codes, device), layout)
    return [codes, packed, quant.unpack(packed, layout, codes.shape)]


def counting(device: str) -> Arrays:
    rng = backend.make_rng(0)
    x, w = (backend.to_device(rng.standard_normal((n, 77)).astype("float32"), device) for n in (5, 6))
    return [quant.binary_dot(quant.sign_bits(x), quant.sign_bits(w), 77)]


def network(bits: float, device: str) -> tuple[models.VisionTransformer, Any, Any]:
    """A small network on the device, and images and labels on the host."""
    rng = backend.make_rng(0)
    model = models.VisionTransformer(8, 4, 3, 5, dim=32, depth=2, heads=2, mlp_ratio=2, bits=bits, rng=rng)
    return model.to(device), rng.standard_normal((16, 8, 8, 3)).astype("float32"), rng.integers(0, 5, 16)


def training(bits: float, device: str) -> Arrays:
    """Loss, outputs and weights of one update; SGD, since AdamW divides by the size of a gradient next to 0."""
    model, x, y = network(bits, device)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1), workers=1, max_norm=1.0)
    loss = trainer.step(x, y)
    return [backend.host.asarray(loss), *trainer.outputs, *model.state_dict().values()]


def packed_layer(bits: float, device: str) -> Arrays:
    """The outputs of a layer, packed and not."""
    rng = backend.make_rng(0)
    layer = quant.BitLinear(40, 24, bits=bits, rng=rng).to(device)
    x = Tensor(rng.standard_normal((7, 40)).astype("float32"), device=device)
    return [quant.PackedLinear.from_bitlinear(layer)(x).data, layer(x).data]


def packed_network(bits: float, device: str) -> Arrays:
    model, x, _ = network(bits, device)
    return [Trainer(model.pack(), workers=1).predict(x)]
