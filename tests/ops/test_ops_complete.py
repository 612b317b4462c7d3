"""Nothing slips past the table: every op has cases, a public call, and a docstring that begins with its formula."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from op_cases import FUNCTIONS, TABLE, of_op

from tinybitvit import functional as F
from tinybitvit import ops
from tinybitvit.ops import Function

DOCSTRING_LINES = 6
LONGER = {"gelu": "two formulas, and two slopes"}  # op -> why its docstring needs more lines

each_op = pytest.mark.parametrize("name", FUNCTIONS)


def undocumented(function, longest=DOCSTRING_LINES):
    """What is wrong with the docstring of a Function, or None."""
    if "__doc__" not in vars(function) or not function.__doc__:
        return "no docstring"
    first, *others = [line for line in inspect.getdoc(function).splitlines() if line]
    if " = " not in first:
        return f"the first line has no formula: {first}"
    if not others:
        return "the derivation of the gradient is missing"
    if 1 + len(others) > longest:
        return f"{1 + len(others)} lines, at most {longest}"
    return None


def test_no_name_stands_for_two_ops():
    assert len(set(FUNCTIONS.values())) == len(FUNCTIONS)


def test_every_op_has_a_case_and_every_case_an_op():
    assert {case.op for case in TABLE} == set(FUNCTIONS)


def test_every_function_is_in_the_table_of_ops():
    """A Function that was written but not registered would escape all of these tests."""
    modules = [m for m in vars(ops).values() if inspect.ismodule(m)]
    written = {
        f
        for m in modules
        for f in vars(m).values()
        if inspect.isclass(f) and issubclass(f, Function) and "forward" in vars(f)
    }
    assert written - {Function} == set(FUNCTIONS.values())


@each_op
def test_cases_of_an_op(name):
    """An op is tried with several shapes, among them one with an axis of size 1 or 0."""
    found = [case.arrays("float64") for case in of_op(name)]
    assert len({tuple(a.shape for a in arrays) for arrays in found}) >= 3
    assert any(n in (0, 1) for arrays in found for a in arrays for n in a.shape)


@each_op
def test_every_optional_input_and_parameter_is_tried(name):
    """Each parameter of an op is given in one case and, where it has a default, left out in another."""
    inputs = [p for p in inspect.signature(FUNCTIONS[name].forward).parameters.values() if p.name != "ctx"]
    positional = [p for p in inputs if p.kind is p.POSITIONAL_OR_KEYWORD]
    counts = {len(case.makers) for case in of_op(name)}
    if all(p.kind is not p.VAR_POSITIONAL for p in inputs):
        required = sum(p.default is p.empty for p in positional)
        assert counts == set(range(required, len(positional) + 1))
    for p in (p for p in inputs if p.kind is p.KEYWORD_ONLY):
        given = {p.name in case.params for case in of_op(name)}
        assert True in given, f"no case gives {p.name}"
        assert p.default is p.empty or False in given, f"every case gives {p.name}: its default is never tried"


@each_op
def test_every_op_has_a_public_call(name):
    public = getattr(F, name)
    assert inspect.isfunction(public) and inspect.getdoc(public)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"dropout"}))  # it draws the mask that its Function is given
def test_public_call_has_every_parameter(name):
    """The wrapper in tb.functional takes what the Function takes, under the same names and with the same defaults."""
    public = inspect.signature(getattr(F, name)).parameters
    for p in inspect.signature(FUNCTIONS[name].forward).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            assert p.name in public, f"tb.functional.{name} lacks {p.name}"
            assert public[p.name].default == p.default, f"tb.functional.{name}: another default of {p.name}"


@each_op
def test_docstring_is_the_formula_and_the_derivation(name):
    longest = DOCSTRING_LINES + (2 if name in LONGER else 0)
    assert undocumented(FUNCTIONS[name], longest) is None


@pytest.mark.parametrize(
    "doc, fault",
    [
        (None, "no docstring"),
        ("Twice as much.\n\ndy/dx = 2", "no formula"),
        ("y = 2 x", "derivation"),
        ("y = 2 x\n\n" + "dy/dx = 2\n" * 6, "7 lines"),
        ("y = 2 x\n\ndy/dx = 2", None),
    ],
)
def test_the_docstring_rule_can_fail(doc, fault):
    found = undocumented(type("Double", (Function,), {"__doc__": doc} if doc else {}))
    assert found is None if fault is None else fault in found


@pytest.mark.slow
def test_a_sample_of_mutants_is_killed():
    """`python tests/mutate.py` tries all of them."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "tests/mutate.py", "--sample", "100"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 mutants, 0 survived" in done.stdout
