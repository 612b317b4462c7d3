"""The profile of a training step, and a guard on what noise cannot touch: operations and bytes per step."""

import numpy as np
import pytest

from tinybitvit import ops
from tinybitvit.cli.main import main
from tinybitvit.cli.profiling import products, profile_step

TINY = {"image_size": 8, "patch_size": 2, "batch": 16, "dim": 16, "depth": 2, "heads": 2}


def test_every_operation_is_seen_and_left_as_it_was():
    before = {name: (function.forward, function.backward) for name, function in ops.OPS.items()}
    found = profile_step(**TINY, bits=1.58)
    assert {name: (function.forward, function.backward) for name, function in ops.OPS.items()} == before
    assert found["operations"]["quantize"]["calls"] == 8
    assert found["gemm_seconds"] > 0 and found["seconds"] > 0 and found["peak_bytes"] > 16 * 17 * 16 * 4


def test_matrix_products_of_a_linear_layer():
    class Context:
        needs_input_grad = (False, True, True)

    arrays = [np.zeros((2, 5, 3)), np.zeros((7, 3)), np.zeros(7)]
    assert products("linear", Context, arrays, {}) == [(1, 10, 3, 7), (1, 7, 10, 3)]


@pytest.mark.parametrize(
    ("bits", "calls", "made", "peak"),
    [(32, 28, 1.28e6, 0.86e6), (1.58, 48, 1.86e6, 1.11e6)],
)
def test_a_step_needs_no_more_operations_or_bytes_than_it_did(bits, calls, made, peak):
    """Raise a number only with a reason: each operation costs microseconds, each byte a trip through memory."""
    found = profile_step(**TINY, bits=bits)
    assert sum(r["calls"] for r in found["operations"].values()) <= calls
    assert sum(r["bytes"] for r in found["operations"].values()) <= made
    assert found["peak_bytes"] <= peak


def test_command(capsys):
    assert main(["profile", "--dim=16", "--depth=1", "--heads=2", "--image-size=8", "--patch-size=2", "--batch=8"]) == 0
    out, err = capsys.readouterr()
    assert "matrix products alone" in out and "multi_head_attention" in out and err == ""
