"""A student's functions in the place of the library's own: `use`.

What can be replaced are the operations of `tb.ops.OPS` and the functions of `HOOKS`. The library needs no hook for it:
an operation is looked up in its table, and a function is exchanged in every module that holds it.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from .. import autograd, optim
from ..ops import OPS, Function, base, ste
from ..ops.base import Array
from ..quant import packed
from .cells import Unwritten

packing = sys.modules[packed.pack.__module__]  # the package has a function of the module's name
DETAILS = {"gelu": {"approximate"}, "layer_norm": {"eps"}}  # which a plain function need not know: they change little
PACKAGE = __name__.partition(".")[0]


class Pair(Function):
    """A Function from plain ones: forward(*arrays) -> y and backward(g, y, *arrays) -> the gradients.

    Along axes over which an array was broadcast its gradient is summed here.
    """

    own: type[Function]  # the library's
    forth: Callable | None
    back: Callable | None
    names: frozenset[str]  # the options that they know

    @classmethod
    def of(cls, name: str, forward: Any, backward: Any) -> "type[Pair]":
        own = OPS[name]
        names = _names(forward) | _names(backward) | DETAILS.get(name, set())
        plain = {"own": own, "forth": staticmethod(forward) if forward else None, "names": names}
        plain["back"] = staticmethod(backward) if backward else None
        made: Any = type(f"Your{own.__name__}", (cls,), plain)
        made.forward, made.backward = map(staticmethod, (made._forward, made._backward))
        return made

    @classmethod
    def _forward(cls, ctx, *arrays, **options):
        unknown = cls._unknown(arrays, options)
        ctx.inside = None
        if unknown or cls.forth is None:
            ctx.inside = type(ctx)(ctx.xp, ctx.needs_input_grad)
            y = cls.own.forward(ctx.inside, *arrays, **options)
            _say_once(cls, unknown)
        else:
            like = next((a for a in arrays if a.dtype.kind == "f"), None)
            y = ctx.xp.asarray(
                cls.forth(*arrays, **_known(cls.forth, options)), dtype=None if like is None else like.dtype
            )
        if cls.back is not None and not unknown:
            ctx.inside, ctx.given = None, _known(cls.back, options)
            ctx.save(y, *arrays)
        else:
            ctx.save(*ctx.inside.saved)
        return y

    @classmethod
    def _unknown(cls, arrays, options):
        """The options, and arrays too many, that plain functions do not know: such a call is the library's."""
        usual = _options(cls.own.forward)
        known = cls.names.union(*(_known(f, options) for f in (cls.forth, cls.back) if f is not None))
        unknown = [n for n, value in options.items() if n not in known and value != usual[n]]
        if cls.forth is not None:
            places = inspect.signature(cls.forth).parameters.values()
            room = sum(p.kind == p.POSITIONAL_OR_KEYWORD and p.name not in usual for p in places)
            all_names = [n for n in inspect.signature(cls.own.forward).parameters if n != "ctx" and n not in usual]
            if not any(p.kind == p.VAR_POSITIONAL for p in places):
                unknown += all_names[room : len(arrays)]
        return unknown

    @classmethod
    def _backward(cls, ctx, g):
        if ctx.inside is not None:
            return cls.own.backward(ctx.inside, g)
        y, *arrays = ctx.saved
        found = cls.back(g, y, *arrays, **ctx.given)
        found = found if isinstance(found, tuple) else (found,)
        fitted = [base.unbroadcast(part, a.shape) for part, a in zip(found, arrays, strict=False)]
        return (*fitted, *[None] * (len(arrays) - len(found)))


def _options(function):
    return {n: p.default for n, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY}


def _names(function):
    return frozenset(inspect.signature(function).parameters) if function else frozenset()


def _known(function, options):
    """The options that a function takes, all of them where it has **options."""
    anything = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    return {name: value for name, value in options.items() if anything or name in _names(function)}


def _say_once(cls, unknown):
    if unknown and cls.__dict__.get("said") is None:
        cls.said = True
        print(f"use: yours knows no {unknown[0]}, so for a call with it {cls.own.__name__} of the library is used")


# --- functions that are no operations ---------------------------------------------------------------------------------


class Vertex:
    """A node or leaf of the library's graph in the shape that a student's walk knows: parents, rule(g), grad."""

    def __init__(self, source: Any, known: dict):
        self.source, self.known, self.grad = source, known, 0.0
        known[source] = self

    @property
    def parents(self) -> "tuple[Vertex, ...]":
        below = self.source.inputs if isinstance(self.source, autograd.Node) else ()
        return tuple(self.known.get(s) or Vertex(s, self.known) for s in below if s is not None)

    def rule(self, g: Array) -> tuple[Array, ...]:
        """The gradients of the parents, none for a leaf."""
        node = self.source
        return tuple(part for _, part, _ in node.backward(g)) if isinstance(node, autograd.Node) else ()


def _walk(own, mine):
    def backpropagate(root, g, wanted=None):
        known: dict[Any, Vertex] = {}
        mine(Vertex(root, known), g)
        sources = [s for s in known if ((not isinstance(s, autograd.Node)) if wanted is None else s in wanted)]
        return {s: autograd.backend.as_array(known[s].grad).copy() for s in sources}

    return backpropagate


def _binary(own, mine):
    def binary_codes(xp, w, granularity="row", scale="absmean", centre=True, eps=ste.EPS):
        if (granularity, scale, centre, eps) != ("row", "absmean", True, ste.EPS):
            return own(xp, w, granularity, scale, centre, eps)
        codes, beta = mine(w)
        return codes.astype(w.dtype), beta.astype(w.dtype), w - ste.mean(xp, w, granularity)

    return binary_codes


def _ternary(own, mine):
    def ternary_codes(xp, w, granularity="row", scale="absmean"):
        if (granularity, scale) != ("row", "absmean"):
            return own(xp, w, granularity, scale)
        codes, beta = mine(w)
        return codes.astype(w.dtype), beta.astype(w.dtype)

    return ternary_codes


def _absmax(own, mine):
    def absmax_codes(xp, x, bits, out=None, eps=ste.EPS):
        if bits != 8:
            return own(xp, x, bits, out, eps)
        factor = x.dtype.type(ste.EPS / eps)  # a student's function knows one smallest size only
        codes, step = mine(x * factor)
        step = (step / factor).astype(x.dtype)
        if out is None:
            return codes.astype(x.dtype), step
        out[...] = codes
        return out, step

    return absmax_codes


def _slope(own, mine):
    def slope(xp, v, ste, width=1.0, temperature=1.0):
        return None if ste == "identity" else mine(v).astype(v.dtype)

    return slope


def _unbroadcast(own, mine):
    def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
        return mine(base.widened(g), shape)

    return unbroadcast


def _update(own, mine):
    def update(self, xp, group, p, g, count, *slots):
        b1, b2 = group["betas"]
        mine(p, g, *slots, count, group["lr"], b1, b2, group["eps"], group["weight_decay"])

    return update


def _packs(layout):
    def wrap(own, mine):
        def pack(codes, name):
            return mine(codes) if name == layout else own(codes, name)

        return pack

    return wrap


def _unpacks(layout):
    def wrap(own, mine):
        def unpack(packed, name, shape, dtype=None, out=None):
            if name != layout:
                return own(packed, name, shape, dtype, out)
            codes = mine(packed, shape[-1])
            if out is None:
                return codes.astype(dtype or "float32")
            out[...] = codes
            return out

        return unpack

    return wrap


# name -> (where the library keeps it, its name there, library's and student's function -> what is put in its place)
HOOKS: dict[str, tuple[Any, str, Callable]] = {
    "unbroadcast": (base, "unbroadcast", _unbroadcast),
    "walk": (autograd, "backpropagate", _walk),
    "binary_codes": (ste, "binary_codes", _binary),
    "ternary_codes": (ste, "ternary_codes", _ternary),
    "absmax_codes": (ste, "absmax_codes", _absmax),
    "slope": (ste, "slope", _slope),
    "adamw": (optim.AdamW, "update", _update),
    **{f"pack_{layout}": (packing, "pack", _packs(layout)) for layout in ("1bit", "2bit", "base3")},
    **{f"unpack_{layout}": (packing, "unpack", _unpacks(layout)) for layout in ("1bit", "2bit", "base3")},
}
in_use: list["use"] = []


class use:
    """The library computes with these from now on: `use(gelu=(gelu, gelu_backward))`; `unuse()` takes them out again.

    Names are those of `tb.ops.OPS`, for a Function or a pair of plain functions, forward(*arrays) -> y and
    backward(g, y, *arrays) -> gradient(s) (None: the library's own); or those of `HOOKS`, for a function. As a context
    manager, `with use(gelu=MyGELU): model.fit(X, y)`, until the end of the block. A Function takes the keyword
    parameters that the library passes to its own (`**options` in the signature of `forward` accepts them all); of plain
    functions, calls with parameters that they do not know stay with the library's. ValueError for an unknown name.
    """

    def __init__(self, **functions: Any) -> None:
        if unknown := functions.keys() - OPS.keys() - HOOKS.keys():
            known = ", ".join(sorted(OPS)) + "; and " + ", ".join(HOOKS)
            raise ValueError(f"the library has no operation {min(unknown)!r}; it has {known}")
        self.before: list[tuple[str, Any, Any]] = []
        for name, given in functions.items():
            for one in given if isinstance(given, tuple) else (given,):
                if isinstance(one, Unwritten):
                    one()
            self._put(name, given)
        in_use.append(self)

    def _put(self, name, given):
        if name in OPS:
            self.before.append((name, OPS[name], None))
            OPS[name] = given if isinstance(given, type) else Pair.of(name, *_two(name, given))
            return
        owner, attribute, wrap = HOOKS[name]
        own = getattr(owner, attribute)
        new = wrap(own, given)
        self.before.append((name, own, new))
        _exchange(owner, attribute, own, new)

    def close(self) -> None:
        """Put back what was there before."""
        for name, own, new in reversed(self.before):
            if name in OPS:
                OPS[name] = own
            else:
                _exchange(*HOOKS[name][:2], new, own)
        self.before = []
        if self in in_use:
            in_use.remove(self)

    def __repr__(self) -> str:
        return f"in the library now: {', '.join(name for name, *_ in self.before)}"

    def __enter__(self) -> "use":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def unuse() -> None:
    """Take out all that `use` has put into the library."""
    for one in reversed(in_use[:]):
        one.close()


def _two(name, given):
    if isinstance(given, tuple) and len(given) == 2:
        return given
    raise ValueError(f"use({name}=...) needs a Function or a pair (forward, backward), not {given!r:.80}")


def _exchange(owner, attribute, old, new):
    """In the owner and, where that is a module, in every module of the package that has imported the name."""
    setattr(owner, attribute, new)
    for name, module in list(sys.modules.items()) if inspect.ismodule(owner) else ():
        if name.split(".")[0] == PACKAGE and module is not None:
            for key in [k for k, value in vars(module).items() if value is old]:
                setattr(module, key, new)
