"""Module and Parameter: networks as objects that know their weights."""

import threading
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any, NoReturn, Self

from .. import autograd, backend
from ..backend import Array
from ..tensor import Tensor


class _Mode(threading.local):
    evaluating: tuple[frozenset["Module"], ...] = ()  # the modules of each `Evaluating` that this thread is within


_mode = _Mode()


class Evaluating:
    """A context manager, for any number of threads: within it a module and all below are in evaluation mode."""

    def __init__(self, module: "Module"):
        self.module, self.modules = module, frozenset(module.modules())

    def __enter__(self) -> "Module":
        _mode.evaluating = (*_mode.evaluating, self.modules)
        return self.module

    def __exit__(self, *error: object) -> None:
        _mode.evaluating = _mode.evaluating[:-1]


class Parameter(Tensor):
    """A Tensor that a Module learns: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data: Any, *, dtype: Any = None) -> None:
        super().__init__(data, requires_grad=True, dtype=dtype)

    def _no_update(self, other: Any) -> NoReturn:
        raise TypeError("p -= step would put a Tensor that does not learn in the Parameter's place; use p.data -= step")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imatmul__ = _no_update


class Module:
    """A part of a network. Subclasses assign Parameters and Modules (also lists of them) and buffers in `__init__`,
    calling `super().__init__()` first, and define `forward`; calling the module runs it and then its hooks.

    A deep copy or a pickled copy goes on learning like the original, with hooks of its own.
    """

    _training = True

    def __init__(self) -> None:
        self._buffers: list[str] = []
        self._hooks: dict[HookHandle, Callable] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        kind = type(self).__name__
        if isinstance(value, (Parameter, Module)) and not hasattr(self, "_hooks"):
            raise AttributeError(f"{kind}.__init__ must call super().__init__() before it sets {name}")
        if isinstance(vars(self).get(name), Parameter) and not isinstance(value, (Parameter, NoneType)):
            raise TypeError(f"{kind}.{name} is a Parameter; what is put in its place would not learn: set {name}.data")
        super().__setattr__(name, value)

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __call__(self, *inputs: Any) -> Any:
        output = self.forward(*inputs)
        for hook in list(self._hooks.values()):
            changed = hook(self, inputs, output)
            output = output if changed is None else changed
        return output

    def __repr__(self) -> str:
        inner = "".join(f"\n  ({name}): " + repr(m).replace("\n", "\n  ") for name, m in self.named_children())
        return f"{type(self).__name__}({self.extra_repr()}{inner + chr(10) if inner else ''})"

    def extra_repr(self) -> str:
        """What to print between the brackets, besides the children."""
        return ""

    # --- walking the tree ---------------------------------------------------------------------------------------------

    def named_children(self) -> "Iterator[tuple[str, Module]]":
        """(name, Module) pairs one level down; the items of a list `blocks` are called blocks.0, blocks.1, ..."""
        return self._named(Module)

    def _named(self, kind: type) -> Iterator[tuple[str, Any]]:
        """(name, value) pairs for all of one kind that this module itself holds, alone or in a list."""
        for name, value in vars(self).items():
            if isinstance(value, kind):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, kind))

    def named_modules(self, prefix: str = "") -> "Iterator[tuple[str, Module]]":
        """(name, Module) pairs for this module (name '') and everything below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> "Iterator[Module]":
        """This module and everything below it."""
        yield self
        for _, child in self.named_children():
            yield from child.modules()

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, Parameter) pairs, each Parameter once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, value in module._named(Parameter):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self) -> list[Parameter]:
        return [p for _, p in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """(name, array) pairs: arrays that belong to the state but are not learnt, such as packed weights."""
        for prefix, module in self.named_modules():
            for name in module._buffers:
                if getattr(module, name) is not None:
                    yield f"{prefix}.{name}" if prefix else name, getattr(module, name)

    def register_buffer(self, name: str, array: Array | None) -> None:
        """Keep an array (any dtype, never turned into a Tensor) as part of the state."""
        setattr(self, name, array)
        if name not in self._buffers:
            self._buffers.append(name)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """name -> array for all Parameters and buffers (the arrays themselves, not copies)."""
        return {**{n: p.data for n, p in self.named_parameters()}, **dict(self.named_buffers())}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy arrays into this module. Every name, shape and dtype is checked first; ValueError changes nothing."""
        mine = self.state_dict()
        state = {n: backend.as_array(a.data if isinstance(a, Tensor) else a) for n, a in state.items()}
        problems = [f"{n} is missing" for n in mine.keys() - state.keys()]
        problems += [f"{n} is unknown here" for n in state.keys() - mine.keys()]
        for name in mine.keys() & state.keys():
            old, new = mine[name], state[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                problems.append(f"{name} is {new.shape} {new.dtype}, needed {old.shape} {old.dtype}")
            elif not getattr(old.flags, "writeable", True):  # CuPy's always are
                problems.append(f"{name} is read-only here: give the module a copy of it")
        if problems:
            shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ValueError(f"load_state_dict: the state does not fit this {type(self).__name__}: {shown}")
        for name, array in mine.items():
            autograd.writes.note(array)
            array[...] = backend.to_device(state[name], backend.device_of(array))

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    def train(self, mode: bool = True) -> Self:
        """Switch to training behaviour (dropout on)."""
        for m in self.modules():
            m.training = mode
        return self

    def eval(self) -> Self:
        """Switch to evaluation behaviour."""
        return self.train(False)

    @property
    def training(self) -> bool:
        """Whether this is training behaviour: the mode that `train` and `eval` set, unless within `evaluating`."""
        return self._training and not any(self in modules for modules in _mode.evaluating)

    @training.setter
    def training(self, mode: bool) -> None:
        self._training = mode

    def evaluating(self) -> Evaluating:
        """Within the block every module is in evaluation mode, for this thread: others may train the same network."""
        return Evaluating(self)

    def to(self, device: str) -> Self:
        """Move all Parameters and buffers to 'cpu' or 'cuda', in place; gradients are dropped."""
        device = backend.resolve_device(device)
        for m in self.modules():
            for name in m._buffers:
                if getattr(m, name) is not None:
                    setattr(m, name, backend.to_device(getattr(m, name), device))
        for p in self.parameters():
            p.data, p.grad = backend.to_device(p.data, device), None
        return self

    # --- hooks --------------------------------------------------------------------------------------------------------

    def register_forward_hook(self, hook: Callable) -> "HookHandle":
        """Call hook(module, inputs, output) after every forward; what it returns, unless None, replaces the output.

        Returns a handle whose `remove()` ends it (also usable as a context manager).
        """
        handle = HookHandle(self._hooks)
        self._hooks[handle] = hook
        return handle

    @property
    def has_hooks(self) -> bool:
        return bool(self._hooks)


class HookHandle:
    """Removes the hook that it was returned for."""

    def __init__(self, hooks: dict) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        self._hooks.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
