"""A student's operations in the place of the library's own."""

from collections.abc import Iterator
from contextlib import contextmanager

from .. import ops, quant
from ..ops import Function


@contextmanager
def use(**functions: type[Function]) -> Iterator[None]:
    """Within the block the library computes with these Functions: `with tb.course.use(gelu=MyGELU): model.fit(X, y)`.

    Names are those of `tb.ops.OPS` and `tb.quant.OPS`. A Function takes the keyword parameters that the library passes
    to its own (`**options` in the signature of `forward` accepts them all). ValueError for an unknown name.
    """
    tables = {name: table for table in (ops.OPS, quant.OPS) for name in table}
    if unknown := functions.keys() - tables.keys():
        raise ValueError(f"the library has no operation {min(unknown)!r}; it has {', '.join(sorted(tables))}")
    before = {name: tables[name][name] for name in functions}
    try:
        for name, function in functions.items():
            tables[name][name] = function
        yield
    finally:
        for name, function in before.items():
            tables[name][name] = function
