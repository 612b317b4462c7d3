"""A student's operations in the place of the library's own."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..ops import OPS, Function


@contextmanager
def use(**functions: type[Function]) -> Iterator[None]:
    """Within the block the library computes with these Functions: `with tb.course.use(gelu=MyGELU): model.fit(X, y)`.

    Names are those of `tb.ops.OPS`. A Function takes the keyword parameters that the library passes
    to its own (`**options` in the signature of `forward` accepts them all). ValueError for an unknown name.
    """
    if unknown := functions.keys() - OPS.keys():
        raise ValueError(f"the library has no operation {min(unknown)!r}; it has {', '.join(sorted(OPS))}")
    before = {name: OPS[name] for name in functions}
    try:
        OPS.update(functions)
        yield
    finally:
        OPS.update(before)
