"""Module and Parameter: networks as objects that know their weights."""

import threading
from contextlib import contextmanager

from .. import backend
from ..tensor import Tensor


class _Evaluating(threading.local):
    modules: frozenset["Module"] = frozenset()


_evaluating = _Evaluating()


class Parameter(Tensor):
    """A Tensor that a Module learns: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data, *, dtype=None):
        super().__init__(data, requires_grad=True, dtype=dtype)


class Module:
    """A part of a network. Subclasses assign Parameters, Modules (also lists of them) and buffers in `__init__`,
    calling `super().__init__()` first, and define `forward`; calling the module runs it and then its hooks.
    """

    _training = True

    def __init__(self):
        self._buffers = []
        self._hooks = {}

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __call__(self, *inputs):
        output = self.forward(*inputs)
        for hook in list(self._hooks.values()):
            changed = hook(self, inputs, output)
            output = output if changed is None else changed
        return output

    def __repr__(self):
        inner = "".join(f"\n  ({name}): " + repr(m).replace("\n", "\n  ") for name, m in self.named_children())
        return f"{type(self).__name__}({self.extra_repr()}{inner + chr(10) if inner else ''})"

    def extra_repr(self):
        """What to print between the brackets, besides the children."""
        return ""

    # --- walking the tree ---------------------------------------------------------------------------------------------

    def named_children(self):
        """(name, Module) pairs one level down; the items of a list `blocks` are called blocks.0, blocks.1, ..."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def named_modules(self, prefix=""):
        """(name, Module) pairs for this module (name '') and everything below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self):
        return (m for _, m in self.named_modules())

    def named_parameters(self):
        """(name, Parameter) pairs, each Parameter once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self):
        return [p for _, p in self.named_parameters()]

    def named_buffers(self):
        """(name, array) pairs: arrays that belong to the state but are not learnt, such as packed weights."""
        for prefix, module in self.named_modules():
            for name in module._buffers:
                if getattr(module, name) is not None:
                    yield f"{prefix}.{name}" if prefix else name, getattr(module, name)

    def register_buffer(self, name, array):
        """Keep an array (any dtype, never turned into a Tensor) as part of the state."""
        if name not in self._buffers:
            self._buffers.append(name)
        setattr(self, name, array)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self):
        """name -> array for all Parameters and buffers (the arrays themselves, not copies)."""
        return {**{n: p.data for n, p in self.named_parameters()}, **dict(self.named_buffers())}

    def load_state_dict(self, state):
        """Copy arrays into this module. Every name, shape and dtype is checked first; ValueError changes nothing."""
        mine = self.state_dict()
        problems = [f"{n} is missing" for n in mine.keys() - state.keys()]
        problems += [f"{n} is unknown here" for n in state.keys() - mine.keys()]
        for name in mine.keys() & state.keys():
            old, new = mine[name], state[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                problems.append(f"{name} is {new.shape} {new.dtype}, needed {old.shape} {old.dtype}")
        if problems:
            shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ValueError(f"load_state_dict: the state does not fit this {type(self).__name__}: {shown}")
        for name, array in mine.items():
            array[...] = backend.to_device(state[name], backend.device_of(array))

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def train(self, mode=True):
        """Switch to training behaviour (dropout on)."""
        for m in self.modules():
            m.training = mode
        return self

    def eval(self):
        """Switch to evaluation behaviour."""
        return self.train(False)

    @property
    def training(self) -> bool:
        """Whether this is training behaviour: the mode that `train` and `eval` set, unless within `evaluating`."""
        return self._training and self not in _evaluating.modules

    @training.setter
    def training(self, mode):
        self._training = mode

    @contextmanager
    def evaluating(self):
        """Within the block every module is in evaluation mode, for this thread: others may train the same network."""
        before, _evaluating.modules = _evaluating.modules, _evaluating.modules.union(self.modules())
        try:
            yield self
        finally:
            _evaluating.modules = before

    def to(self, device):
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

    def register_forward_hook(self, hook):
        """Call hook(module, inputs, output) after every forward; what it returns, unless None, replaces the output.

        Returns a handle whose `remove()` ends it (also usable as a context manager).
        """
        handle = HookHandle(self._hooks)
        self._hooks[handle] = hook
        return handle

    @property
    def has_hooks(self):
        return bool(self._hooks)


class HookHandle:
    """Removes the hook that it was returned for."""

    def __init__(self, hooks):
        self._hooks = hooks

    def remove(self):
        self._hooks.pop(self, None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.remove()
