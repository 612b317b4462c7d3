"""A mutation run: would the tests notice if a line of the calculus were wrong?

Every function of tinybitvit/ops, forward and backward, is changed in one place at a
time: a sign flipped, a term or a factor dropped, a constant moved by 1 %, a comparison turned, a call left out, two
gradients swapped. The cases of `op_cases` must notice each of these mutants. One that survives shows that a test is
missing, or else computes the same as the original: those are listed in EQUIVALENT, each with its reason.

    python tests/mutate.py                        all mutants; writes docs/mutation.md
    python tests/mutate.py --sample 40            a random sample; writes nothing
    python tests/mutate.py --only LayerNorm       the functions whose name contains this; writes nothing

A mutant runs in a forked child of this process, in which only the code object of one function is replaced; two children
at a time. The exit status is 1 if a mutant survived.
"""

import argparse
import ast
import copy
import functools
import importlib
import inspect
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ["tinybitvit/ops/*.py", "tinybitvit/backend.py"]
BACKEND = {"backend.row_blocks", "backend.add_at", "backend.erf"}  # what the ops compute with; the rest is not calculus
ON_GPU = {"cross_entropy", "getitem"}  # these have lines that only run there: their cases run on the stand-in, too
SECONDS_EACH = 60
CHILDREN = 2

# Mutants that no test can tell from the original: (function, mutated statement) -> why.
BLOCKS = "Blocks of any number of rows give the same rows; their size is a matter of speed."
TWO_AXES = "The arrays there have two axes, the last of which is axis 1."
EQUIVALENT = {
    **{
        (f"MultiHeadAttention.{way}", f"for block in backend.row_blocks((n, {size}), xp)"): BLOCKS
        for way in ("forward", "backward")
        for size in ("t", "heads * t", "t * t")
    },
    **{
        (
            "magnitude",
            f"rows = size if _axis(granularity) == -1 else size.reshape({shape})",
        ): "A scale of shape (1,) broadcasts like one of (1, 1); test_bitlinear.py holds its shape."
        for shape in ("(-1,)", "(1,) * (w.ndim - 2) + (-1,)")
    },
    ("_normal_cdf", "cdf = xp.clip(x, -6, 7)"): "From 6 on tanh u is 1 in float32; the clip is against overflow.",
    (
        "unbroadcast",
        "return widened(g).sum(axis=(*range(extra), *repeated), keepdims=False).reshape(shape)",
    ): "The reshape that follows gives the same shape.",
    (
        "normalize_axis",
        "axes = (axis,) if isinstance(axis, int) else axis",
    ): "An axis that is no int is a tuple; tuple(axis) is for callers who pass a list.",
    (
        "Sigmoid.forward",
        "y = ctx.xp.where(x > 0, x.dtype.type(1), z) / (1 + z)",
    ): "They differ at x = 0 only, where z = e^0 = 1 and either branch gives 1.",
    ("_soft_targets", "return target.astype(dtype, copy=True)"): "A copy has the same numbers.",
    **{
        (function, f"return {y}.astype({dtype}, copy=True)"): "A copy has the same numbers."
        for function, y, dtype in (
            ("Softmax.forward", "y", "x.dtype"),
            ("LogSoftmax.forward", "y", "x.dtype"),
            ("normalize", "y.reshape(x.shape)", "x.dtype"),
            ("Gelu.forward", "y.reshape(x.shape)", "x.dtype"),
            ("ScaledDotProductAttention.forward", "y", "q.dtype"),
            ("MultiHeadAttention.forward", "y.reshape(n, t, heads * d)", "dtype"),
        )
    },
    **{
        ("ScaledDotProductAttention.forward", f"parts = ({parts})"): "A product with one array of float32 is float32."
        for parts in ("q, floating(k), floating(v)", "floating(q), k, floating(v)", "floating(q), floating(k), v")
    },
    (
        "ScaledDotProductAttention.backward",
        "return tuple((unbroadcast(d, shape) for d, shape in zip(grads, ctx.shapes, strict=False)))",
    ): "There are three of each.",
    **{
        (function, mutant): "Computed in float16, the result stays within the tolerance of float16."
        for function, mutant in (
            ("MultiHeadAttention.forward", "xp, dtype, qkv = (ctx.xp, qkv.dtype, qkv)"),
            ("CrossEntropy.forward", "xp, dtype, logits = (ctx.xp, logits.dtype, logits)"),
            ("Linear.backward", "return (dx, dw, g.sum(axis=0) if need_bias[0] else None)"),
        )
    },
    (
        "CrossEntropy.forward",
        "return -(share * (t * xp.where(t == 0, 1, log_p)).sum(axis=1)).sum().astype(dtype)",
    ): "It is multiplied by t, which is 0 there.",
    ("_shares", "return weight / weight.sum()"): "The result is cast again where the loss is.",
    ("like", "return y.astype(x.dtype, copy=True) if x.dtype.kind == 'f' else y"): "A copy has the same numbers.",
    **{
        ("Power.backward", mutant): "The where around it takes another value there."
        for mutant in (
            "da = unbroadcast(xp.where(one, 0, g * (b * a ** xp.where(one, 2, b - 1))), a.shape)",
            "db = unbroadcast(g * xp.where(flat, 0, y * xp.log(xp.where(flat, 2, a))), b.shape)",
        )
    },
    **{
        (function, mutant): "The degrees of freedom are 0 or less only of 0 elements, whose variance is nan."
        for function, mutant in (
            ("Var.forward", "if ctx.degrees <= 0 <= ctx.count"),
            (
                "Var.forward",
                "return like(x, (centred * centred).sum(axis=ctx.axes, keepdims=keepdims) / ctx.degrees)",
            ),
            (
                "Var.forward",
                "return like(x, (centred * centred).sum(axis=ctx.axes, keepdims=keepdims) / max(ctx.degrees, 1))",
            ),
            ("Var.backward", "return (centred * (expand(ctx, g) * (2 / ctx.degrees)),)"),
        )
    },
    (
        "GetItem.forward",
        "ctx.index = backend.as_index(deepcopy(index) if ctx.basic else index, x)",
    ): "A copy of an index picks the same; the arrays that a caller may change are tested.",
    (
        "staircase_slope",
        "slopes = [height / 2 * slope(xp, v + place, ste, width, temperature) for place, height in steps]",
    ): "The steps lie symmetrically about 0, and every slope is even.",
    **{
        ("_finite", f"if {question}"): "Both ways give the same bits; which is taken is a matter of speed."
        for question in ("not backend.device_of(a) == 'cpu'", "backend.device_of(a) != 'cpu'")
    },
    ("largest", "return x.max(axis=axis, keepdims=True) if x.size else x"): "Nothing less nothing is nothing.",
    (
        "KLDiv.forward",
        "log_t = ctx.xp.log(ctx.xp.where(target > 0, target, target.dtype.type(2)))",
    ): "The logarithm is multiplied by the target, which is 0 there.",
    (
        "absmax_codes",
        "size = size.view(f'int{8 * x.itemsize}').max(axis=1, keepdims=True).view(x.dtype)",
    ): TWO_AXES,
    (
        "absmax_codes",
        "size = size.max(axis=-1, keepdims=True).view(x.dtype)",
    ): "Floats that are not negative order as their bits do; the view is there for speed.",
    ("mean_product", "return (xp.einsum('...i,...i->...', a, b) / a.shape[1])[..., None]"): TWO_AXES,
    (
        "GetItem.forward",
        "ctx.basic = all((part is None and part is Ellipsis and isinstance(part, (int, slice)) for part in parts))",
    ): "Never true, so that every index goes the general way, which adds up the same numbers more slowly.",
    (
        "Pad.forward",
        "pairs = [(pad_width, pad_width)] * x.ndim if isinstance(pad_width, int) else pad_width",
    ): "A list of the pairs is only there for callers who pass an iterator.",
    (
        "Pad.forward",
        "ctx.inner = tuple((slice(before, before + n) for (before, _), n in zip(pairs, x.shape, strict=False)))",
    ): "That the lengths are equal was checked two lines above.",
    ("binary_codes", "return (codes, beta, -u)"): "u enters the slope a(u / beta) alone, and every a is even.",
    (
        "twn_codes",
        "return (codes, xp.maximum(beta, EPS), -unit)",
    ): "The unit enters the slope of w / unit alone, and that is even.",
}

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
}
MODULES = {"xp", "ctx.xp", "backend", "backend.host", "math"}  # in `xp.exp(x)` these are not an operand


# --- making mutants ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change of one function: `function` is "norm.Softmax.backward", `before` and `after` are the statement."""

    function: str
    line: int
    before: str
    after: str
    code: object  # the code object of the changed function


def swapped(operator):
    found = SWAPS.get(type(operator), ())
    return [new() for new in (found if isinstance(found, tuple) else (found,))]


def variants(node):
    """What to put in the place of a syntax node."""
    if isinstance(node, ast.BinOp):
        for op in swapped(node.op):
            yield ast.BinOp(node.left, op, node.right)
        if swapped(node.op):
            yield node.left
            if not isinstance(node.op, ast.Pow):
                yield node.right
    elif isinstance(node, ast.AugAssign):
        for op in swapped(node.op):
            yield ast.AugAssign(node.target, op, node.value)
        yield ast.Pass()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(swapped(node.op)[0], node.values)
    elif isinstance(node, ast.Compare):
        for i, old in enumerate(node.ops):
            for op in swapped(old):
                yield ast.Compare(node.left, [*node.ops[:i], op, *node.ops[i + 1 :]], node.comparators)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant):
        yield from constant_variants(node.value)
    elif isinstance(node, ast.Call):
        yield from call_variants(node)
    elif effect_only(node):
        yield ast.Pass()
    elif isinstance(node, ast.Return):
        yield from return_variants(node)


def effect_only(node):
    """A statement that calls something or fills a part of an array: it can be left out and the rest still runs."""
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Subscript)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def constant_variants(value):
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 1.01)


def call_variants(node):
    """f(x, ...) without f, and x.f(...) without f."""
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in MODULES:
        yield node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp | ast.Constant):
        yield node.args[0]


def return_variants(node):
    """Each returned value negated, and neighbours swapped."""
    if not isinstance(node.value, ast.Tuple):
        if node.value is not None:
            yield ast.Return(ast.UnaryOp(ast.USub(), node.value))
        return
    values = node.value.elts
    for i, value in enumerate(values):
        if not isinstance(value, ast.Constant | ast.Starred):
            yield ast.Return(ast.Tuple([*values[:i], ast.UnaryOp(ast.USub(), value), *values[i + 1 :]], ast.Load()))
    for i in range(len(values) - 1):
        yield ast.Return(ast.Tuple([*values[:i], values[i + 1], values[i], *values[i + 2 :]], ast.Load()))


def header(statement):
    """A statement as one line; of a compound one only what stands before its body."""
    if isinstance(statement, ast.If | ast.For | ast.While | ast.With):
        statement = copy.copy(statement)
        statement.body, statement.orelse = [ast.Pass()], []
        return ast.unparse(statement).removesuffix("\n    pass").removesuffix(":")
    return " ".join(ast.unparse(statement).split())


def places(statement):
    """(parent, field, index or None, node) of every node of a statement that is not in a nested body."""
    stack = [(statement, field) for field in reversed(statement._fields)]
    while stack:
        parent, field = stack.pop()
        value = getattr(parent, field, None)
        if isinstance(parent, ast.stmt) and field in ("body", "orelse"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST):
                yield parent, field, index, node
                stack.extend((node, name) for name in reversed(node._fields))


def statements(body):
    """(list it stands in, index, statement), nested ones too; without docstrings and what a `raise` says."""
    for index, statement in enumerate(body):
        if isinstance(statement, ast.Raise) or (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ):
            continue
        yield body, index, statement
        for nested in (getattr(statement, "body", []), getattr(statement, "orelse", [])):
            yield from statements(nested)


def mutants_of(name, function, path):
    """Every Mutant of one function definition (its decorators and defaults are not mutated)."""
    function = copy.deepcopy(function)
    function.decorator_list = []

    def mutant(before, after, line):
        module = ast.fix_missing_locations(ast.Module([function], []))
        code = next(c for c in compile(module, str(path), "exec").co_consts if inspect.iscode(c))
        return Mutant(name, line, before, after, code)

    for body, index, statement in list(statements(function.body)):
        before = header(statement)
        for new in list(variants(statement)):
            body[index] = new
            yield mutant(before, header(new), statement.lineno)
            body[index] = statement
        for parent, field, place, node in list(places(statement)):
            if isinstance(parent, ast.UnaryOp) and isinstance(node, ast.Constant):
                continue  # -1 becomes 1; to try -2 too would say no more about an axis, and nothing about reshape(-1)
            for new in variants(node):
                put(parent, field, place, new)
                yield mutant(before, header(statement), statement.lineno)
                put(parent, field, place, node)


def put(parent, field, index, node):
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def functions_of(path):
    """(name, syntax of a function, the function object that runs) for every function and method of a module file."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield f"{path.stem}.{node.name}", node, getattr(module, node.name)
        elif isinstance(node, ast.ClassDef):
            for method in (n for n in node.body if isinstance(n, ast.FunctionDef)):
                found = vars(getattr(module, node.name))[method.name]
                yield f"{path.stem}.{node.name}.{method.name}", method, getattr(found, "__func__", found)


# --- running them -----------------------------------------------------------------------------------------------------


def load_checks():
    """op -> the checks of the test files on it, cheapest first. The oracle's answers are computed here, once."""
    import cupy_standin
    import numpy as np
    import op_cases
    import test_ops_edges as edges
    import test_ops_torch as checks

    from tinybitvit import backend

    def small_blocks(case):
        backend.BLOCK, before = 10, backend.BLOCK
        try:
            checks.check_value_and_gradients(case, "float64", "cpu")
        finally:
            backend.BLOCK = before

    def simulated(check, *arguments):
        with cupy_standin.installed():
            check(*arguments, "cuda")

    more = {"mean": [lambda: checks.test_mean_of_nothing("cpu")], "gelu": [checks.test_row_blocks]}
    for name in edges.HALF:
        check = functools.partial(edges.test_half_precision_is_as_in_torch, name, 30.0, 100.0)
        more.setdefault(name.partition(" ")[0], []).append(lambda check=check: check(np.random.default_rng(0)))
    for op in ("softmax", "log_softmax", "layer_norm", "rms_norm", "gelu"):
        refused = edges.test_whole_numbers_are_refused_where_fractions_come_out
        more[op].append(functools.partial(refused, op))
    for op in ("scaled_dot_product_attention", "multi_head_attention", "cross_entropy"):
        half = edges.test_half_precision_of_attention_and_cross_entropy_is_that_of_float32
        more.setdefault(op, []).append(lambda half=half: half(np.random.default_rng(0)))
    more.setdefault("getitem", []).append(edges.test_an_index_that_is_changed_later_picks_what_it_picked)
    for name in (*edges.UNARY, *edges.BINARY):
        more.setdefault(name.partition(" ")[0], []).append(lambda name=name: special_numbers(edges, name))
    for op in ("sum", "linear", "add"):
        more.setdefault(op, []).append(edges.test_half_precision_sums_of_many_are_exact)
    for op in ("binary", "ternary"):
        more.setdefault(op, []).append(lambda op=op: huge_weights(np, op))
    for op in ("exp", "log", "sqrt", "tanh", "sigmoid"):
        whole = functools.partial(edges.test_functions_of_whole_numbers_are_float32_as_in_torch, op, "uint8")
        more.setdefault(op, []).append(whole)
    for dtype in ("uint8", "int64"):
        for op in ("mse_loss", "kl_div"):
            losses = functools.partial(edges.test_losses_of_whole_numbers_do_not_wrap, dtype)
            more.setdefault(op, []).append(losses)
        dropout = functools.partial(edges.test_dropout_of_whole_numbers_rescales_what_is_left, dtype)
        more.setdefault("dropout", []).append(dropout)
    more.setdefault("absmax", []).append(lambda: codes_in_place(np))
    for op in ("layer_norm", "rms_norm", "log_softmax"):
        for sizes in ((5000, 4, 1), (2, 1000, 100)):
            half = functools.partial(edges.test_gradients_of_half_precision_are_summed_in_float32, op, *sizes)
            more.setdefault(op, []).append(lambda half=half: half(np.random.default_rng(0)))
    by_op = {}
    for op in op_cases.FUNCTIONS:
        cases, refused = op_cases.of_op(op), [row for row in op_cases.REFUSED if row[0] == op]
        for case in cases:
            case.oracle("float64"), case.oracle("float32")
        by_op[op] = [
            *(lambda c=c: checks.check_value_and_gradients(c, "float64", "cpu") for c in cases),
            *(lambda r=r: checks.test_bad_input_is_refused(*r, "cpu") for r in refused),
            *more.get(op, []),
            *(lambda c=c: simulated(checks.check_value_and_gradients, c, "float32") for c in cases if op in ON_GPU),
            *(lambda r=r: simulated(checks.test_bad_input_is_refused, *r) for r in refused if op in ON_GPU),
            *(lambda c=c: checks.check_one_gradient_at_a_time(c, "cpu") for c in cases if len(c.differentiable()) > 1),
            *(lambda c=c: small_blocks(c) for c in cases),
            *(lambda c=c: checks.check_value_and_gradients(c, "float32", "cpu") for c in cases),
            *(lambda c=c: checks.check_memory_layout(c, "cpu") for c in cases),
            *(lambda c=c: checks.check_without_recording(c, "cpu") for c in cases),
        ]
    return by_op


def special_numbers(edges, name):
    """0, infinities and NaN, as in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edges.test_special_numbers_are_as_in_torch(name, -2.5)


def codes_in_place(np):
    """Activations may become their own codes."""
    from tinybitvit.ops import ste

    x = np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    codes, step = ste.absmax_codes(np, x.copy(), 8)
    again, same = ste.absmax_codes(np, x, 8, out=x)
    assert again is x and np.array_equal(again, codes) and np.array_equal(same, step)


def huge_weights(np, op):
    """Multiplied by a power of two nothing is rounded: the codes stay, and the scale is multiplied, too."""
    from tinybitvit.ops import ste

    w, factor = np.random.default_rng(0).uniform(-1, 1, (5, 300)).astype("float32"), np.float32(2.0**126)
    for granularity in ("row", "tensor"):
        with np.errstate(over="ignore", invalid="ignore"):
            pairs = [getattr(ste, f"{op}_codes")(np, a, granularity)[:2] for a in (w, w * factor)]
        (codes, size), (same, larger) = pairs
        assert np.array_equal(codes, same) and np.array_equal(size * factor, larger)


def users(by_op):
    """code object -> the ops whose checks run it."""
    found = defaultdict(set)
    for op, checks in by_op.items():
        seen = set()
        sys.setprofile(lambda frame, event, arg, seen=seen: seen.add(frame.f_code) if event == "call" else None)
        try:
            for check in checks:
                check()
        finally:
            sys.setprofile(None)
        for code in seen:
            found[code].add(op)
    return found


def survives(function, mutant, checks):
    """In a child: whether all checks pass with the mutant in place of the function."""
    function.__code__ = mutant.code
    try:
        for check in checks:
            check()
    except BaseException:  # pytest's Failed is no Exception
        return False
    return True


def run(jobs):
    """Yield (job, survived) for jobs (function, mutant, checks), CHILDREN at a time."""
    waiting, running = list(reversed(jobs)), {}
    while waiting or running:
        while waiting and len(running) < CHILDREN:
            job = waiting.pop()
            child = os.fork()
            if not child:
                signal.alarm(SECONDS_EACH)  # an endless loop ends in death by SIGALRM: noticed
                os._exit(int(survives(*job)))
            running[child] = job
        child, status = os.wait()
        yield running.pop(child), os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1


# --- the report -------------------------------------------------------------------------------------------------------


def owner(mutant):
    """The op or helper that a row of the table stands for: forward and backward together."""
    return mutant.function.removesuffix(".forward").removesuffix(".backward")


def key(mutant):
    """As in EQUIVALENT: without the name of the file."""
    return mutant.function.partition(".")[2], mutant.after


def report(results, seconds):
    """docs/mutation.md: a row for each op and helper, the equivalent mutants with their reasons, the survivors."""
    rows = defaultdict(Counter)
    for mutant, survived in results:
        verdict = "killed" if not survived else "equivalent" if key(mutant) in EQUIVALENT else "survived"
        rows[owner(mutant)][verdict] += 1
    total = sum(rows.values(), Counter())
    lines = [
        "# Mutation run",
        "",
        "Would the tests notice a wrong line of calculus? `python tests/mutate.py` changes each function of",
        "`tinybitvit/ops` in one place at a time (a sign, a term, a factor, a constant",
        "by 1 %, a comparison, a call, the order of two gradients) and runs the cases of `tests/op_cases.py` on each.",
        "This page is its output.",
        "",
        f"{total.total()} mutants: **{total['killed']} killed, {total['survived']} survived**,"
        f" {total['equivalent']} are equivalent: they compute the same as the original (reasons below; two that are the"
        " same change share a line)."
        f" {seconds:.0f} seconds on two cores.",
        "",
        "| op or helper | mutants | killed | equivalent | survived |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| `{name}` | {row.total()} | {row['killed']} | {row['equivalent'] or ''} | {row['survived'] or ''} |"
            for name, row in rows.items()
        ),
        "",
        "## Equivalent mutants",
        "",
    ]
    lines += [
        f"- `{f}`: `{after}`  \n  {EQUIVALENT[f, after]}"
        for f, after in sorted({key(m) for m, s in results if s} & set(EQUIVALENT))
    ]
    left = sorted({(m.function, m.before, m.after) for m, s in results if s and key(m) not in EQUIVALENT})
    if left:
        lines += ["", "## Survivors", "", *(f"- `{f}`: `{before}` became `{after}`" for f, before, after in left)]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="run so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="functions whose name contains this")
    options = parser.parse_args()
    tests = Path(__file__).parent
    sys.path[:0] = [str(path) for path in (ROOT, tests, tests / "support", tests / "ops")]
    warnings.simplefilter("error")  # as pytest has it
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    by_op = load_checks()
    ops_of = users(by_op)
    jobs = []
    for path in [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]:
        for name, syntax, function in functions_of(path):
            if (path.stem == "backend" and name not in BACKEND) or name.endswith("__init_subclass__"):
                continue  # no calculus: names are entered once, before any mutant
            checks = [check for op in by_op if op in ops_of[function.__code__] for check in by_op[op]]
            if options.only in name:
                jobs += [(function, mutant, checks) for mutant in mutants_of(name, syntax, path)]
    stale = set(EQUIVALENT) - {key(mutant) for _, mutant, _ in jobs}
    if options.sample:
        jobs = random.Random(options.seed).sample(jobs, min(options.sample, len(jobs)))
    print(f"{len(jobs)} mutants, {time.perf_counter() - start:.0f} s to prepare", flush=True)
    results = []
    for (_, mutant, _), survived in run(jobs):
        results.append((mutant, survived))
        if survived and key(mutant) not in EQUIVALENT:
            print(f"survived: {mutant.function}, line {mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    survivors = [mutant for mutant, survived in results if survived and key(mutant) not in EQUIVALENT]
    seconds = time.perf_counter() - start
    print(f"{len(results)} mutants, {len(survivors)} survived, {seconds:.0f} s")
    if not options.sample and not options.only:
        for function, after in sorted(stale):
            print(f"EQUIVALENT names a mutant that does not exist any more: {function}: {after}")
        order = {mutant: i for i, (_, mutant, _) in enumerate(jobs)}
        results.sort(key=lambda result: order[result[0]])
        (ROOT / "docs/mutation.md").write_text(report(results, seconds), encoding="utf-8")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
