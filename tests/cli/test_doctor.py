"""`tinybitvit doctor`: it passes here, and it finds what is broken."""

import re

import cupy_standin
import pytest
from devices import each_gpu

from tinybitvit import ops, quant
from tinybitvit.cli import doctor, parity
from tinybitvit.cli import main as cli
from tinybitvit.ops import Function
from tinybitvit.train import Trainer


def failures(capsys):
    """Exit status, and the lines that say FAILED by the name of their check."""
    status = doctor.run()
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line for line in captured.out.splitlines() if line.startswith("  ") and "FAILED: " in line]
    return status, {line.partition("FAILED: ")[0].strip(): line.partition("FAILED: ")[2] for line in lines}


def spoiled(function, change):
    """The function with another backward: change(gradients) instead of the gradients."""

    class Spoiled(function):
        @staticmethod
        def backward(ctx, g):
            return change(function.backward(ctx, g))

    return Spoiled


def test_everything_passes(capsys):
    assert doctor.run() == 0
    out = capsys.readouterr().out
    for name in (*doctor.PACKAGES, "python", "BLAS", "cores", "device", "tinybitvit"):
        assert f"\n{name} " in f"\n{out}"
    for name in (*ops.OPS, *(f"packed layer ({bits:g} bits)" for bits in quant.WEIGHT_BITS[1:])):
        assert f"\n  {name} " in out
    checks = out.count("  ok\n")
    assert out.endswith(f"all {checks} checks passed\n") and checks > len(ops.OPS)


def test_every_operation_has_a_case():
    assert {doctor.operation_of(label) for label in doctor.operation_cases()} == set(ops.OPS) - set(ops.ste.QUANTISERS)


def test_an_operation_without_a_case_fails(monkeypatch, capsys):
    monkeypatch.setitem(ops.OPS, "new", Function)
    status, found = failures(capsys)
    assert status == 1 and list(found) == ["new"] and "operation_cases" in found["new"]


@pytest.mark.parametrize("name", ops.OPS)
def test_a_wrong_backward_is_found(name):
    """For each operation alone, because a wrong one would spoil the training check too."""
    for label, case in doctor.operation_cases().items():
        if doctor.operation_of(label) == name:
            wrong = spoiled(ops.OPS[name], lambda grads: tuple(None if d is None else d * 1.001 for d in grads))
            with pytest.raises(AssertionError, match="gradient of input"):
                doctor.check_operation(wrong, label, *case)


@pytest.mark.parametrize(
    ("name", "variant"), [(name, v) for name in ops.ste.QUANTISERS for v in doctor.QUANTISERS.get(name, doctor.ste.STE)]
)
@pytest.mark.parametrize("factor", [0.0, 1.001, -1.0])
def test_a_wrong_straight_through_gradient_is_found(name, variant, factor):
    doctor.check_quantiser(name, ops.ste.QUANTISERS[name], variant)
    wrong = spoiled(ops.ste.QUANTISERS[name], lambda grads: tuple(d * factor for d in grads))
    with pytest.raises(AssertionError, match="gradient of input 0"):
        doctor.check_quantiser(name, wrong, variant)


@pytest.mark.parametrize(("name", "variant"), [("binary", "clipped"), ("ternary", "ede"), ("nbit", "clipped")])
def test_another_variants_gradient_is_found(name, variant):
    """What looks right, and is the slope of another surrogate."""

    class Other(ops.ste.QUANTISERS[name]):
        @staticmethod
        def forward(ctx, w, *, ste, **params):
            return ops.ste.QUANTISERS[name].forward(ctx, w, ste="identity", **params)

    with pytest.raises(AssertionError, match="gradient of input 0"):
        doctor.check_quantiser(name, Other, variant)


def test_wrong_unpacking_is_found(monkeypatch, capsys):
    unpack = quant.unpack
    monkeypatch.setattr(quant, "unpack", lambda *arguments: -unpack(*arguments))
    status, found = failures(capsys)
    assert status == 1 and set(found) == {f"pack and unpack ({layout})" for layout in quant.LAYOUTS}


def test_a_wrong_packed_layer_is_found(monkeypatch, capsys):
    forward = quant.PackedLinear.forward
    monkeypatch.setattr(quant.PackedLinear, "forward", lambda self, x: forward(self, x) * 1.001)
    status, found = failures(capsys)
    assert status == 1 and set(found) == {f"packed layer ({bits:g} bits)" for bits in quant.WEIGHT_BITS[1:]}


def test_training_that_does_not_learn_is_found(monkeypatch, capsys):
    losses = iter(range(10))
    monkeypatch.setattr(Trainer, "step", lambda self, x, y: float(next(losses)))
    status, found = failures(capsys)
    assert status == 1 and list(found) == ["training lowers the loss"]


def test_an_error_of_any_kind_becomes_one_line():
    def check():
        raise KeyError("two\nlines")

    assert doctor.problem(check) == r"KeyError: 'two\nlines'"


def test_environment_names_what_is_missing_or_slow(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.delenv("OPENBLAS_L2_SIZE", raising=False)
    lines = list(doctor.environment())
    assert ("no-such-package", "MISSING: pip install no-such-package") in lines
    (note,) = (text for name, text in lines if name == "note")
    assert note == "OPENBLAS_CORETYPE=Haswell is set and can halve the speed of NumPy: unset it"


@pytest.mark.parametrize("names", [(), doctor.SLOWING])
def test_environment_names_every_variable_that_slows(monkeypatch, names):
    for name in doctor.SLOWING:
        monkeypatch.delenv(name, raising=False)
    for name in names:
        monkeypatch.setenv(name, "512")
    notes = [text for name, text in doctor.environment() if name == "note"]
    assert [text.split("=")[0] for text in notes] == list(names)


def test_device_says_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(doctor.backend, "cuda_problem", lambda: "no driver")
    assert doctor.device() == "cpu (no GPU: no driver)"
    monkeypatch.undo()
    with cupy_standin.installed():
        assert doctor.device().startswith("cuda")


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def comparisons(capsys):
    """Exit status, and (difference, verdict) of every row of the table by the name of its check."""
    status = cli.main(["doctor", "--device", "cuda"])
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = re.findall(r"^  (\S.*?) +(\S+) +(\S+)  (ok|FAILED.*)$", captured.out, re.MULTILINE)
    return status, {name: (float(difference), verdict) for name, difference, _, verdict in rows}


@each_gpu
def test_every_calculation_is_compared(device, capsys):
    status, rows = comparisons(capsys)
    assert status == 0 and {verdict for _, verdict in rows.values()} == {"ok"}
    assert {*ops.OPS} <= {doctor.operation_of(name) for name in rows}
    packed = [f"packed layer ({bits:g} bits)" for bits in quant.WEIGHT_BITS[1:]]
    assert {*packed, *(f"training step ({bits} bits)" for bits in (32, 1.58, 1))} <= rows.keys()
    if cupy_standin.in_use():
        assert not any(difference for difference, _ in rows.values())


def wrong_on_the_gpu(function, change):
    class Wrong(function):
        @staticmethod
        def forward(ctx, *arrays, **params):
            y = function.forward(ctx, *arrays, **params)
            return change(y) if ctx.xp.__name__ == "cupy" else y

    return Wrong


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y * 1.001, "the numbers differ"),
        (lambda y: y * float("nan"), "the numbers differ"),
        (lambda y: y.astype("float64"), "float64 of shape"),
        (lambda y: y.reshape(-1), "ValueError: .*shapes"),
        (lambda y: y.no_such_method(), "AttributeError: .*no_such_method"),
    ],
)
def test_a_fault_on_the_gpu_alone_is_found(change, words, monkeypatch, capsys):
    monkeypatch.setitem(ops.OPS, "exp", wrong_on_the_gpu(ops.OPS["exp"], change))
    with cupy_standin.installed():
        status, rows = comparisons(capsys)
    (failed,) = [name for name, (_, verdict) in rows.items() if verdict != "ok"]
    assert status == 1 and failed == "exp"
    assert re.match(f"FAILED: .*{words}", rows["exp"][1])


def test_wrong_training_and_packing_on_the_gpu_are_found(monkeypatch):
    real = parity.backend.to_device
    with cupy_standin.installed():
        monkeypatch.setattr(parity.backend, "to_device", lambda a, device: real(a, device) * (1 + (device == "cuda")))
        rows = {row.name: row for row in parity.compare("cuda", {})}
    assert not rows["training step (32 bits)"].passed and not rows["packed layer (4 bits)"].passed


def test_without_a_gpu_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr(doctor.backend, "cuda_problem", lambda: "no driver")
    assert doctor.run("cuda") == 1
    assert capsys.readouterr().out.endswith("\ndevice 'cuda' is not usable: no driver\n")
