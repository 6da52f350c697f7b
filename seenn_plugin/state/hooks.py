"""Which hooks of the caller a call would run. Hooks of this library are left out."""

from __future__ import annotations

import dis
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

from torch import nn
from torch.nn.modules import module as _torch_module

OWN_HOOK: Final = -1
"""The key of a hook of this library that converts inputs. The keys of callers' hooks count from 0."""
DRIVING_HOOK: Final = -2
"""The key of the hooks by which neurons are driven or counted in checks."""
_FORWARD: Final = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD: Final = ("_backward_hooks", "_backward_pre_hooks")
_OPERANDS: Final = {"STORE_ATTR": 1, "DELETE_ATTR": 1, "STORE_SUBSCR": 2, "DELETE_SUBSCR": 2, "STORE_SLICE": 3}
"""Statements that write into an object, and how many values on the stack say into what."""


def has_hooks(module: nn.Module, backward: bool = False) -> bool:
    """Whether a caller's forward hook, or a backward hook if these count too, is registered on ``module``."""
    attributes = vars(module)
    names = _FORWARD + _BACKWARD if backward else _FORWARD
    return any(key >= 0 for name in names for key in attributes[name])


def has_global_hooks(backward: bool = False) -> bool:
    """Whether a hook is registered for all modules of the process."""
    names = _FORWARD + _BACKWARD if backward else _FORWARD
    return any(getattr(_torch_module, f"_global{name}") for name in names)


@contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Within the block, hooks of the caller that only observe are not called.

    A monitor of firing rates would count the runs of an inspection as answers. A hook that may change what the model
    computes stays: see :func:`only_observes`.
    """
    stores = [vars(module)[name] for module in model.modules() for name in _FORWARD]
    stores += [getattr(_torch_module, f"_global{name}") for name in _FORWARD]
    changed, own = [], None
    for store in filter(None, stores):
        if own is None:  # few models have hooks
            held = (value for module in model.modules() for value in vars(module).values())
            own = {id(value) for value in held if not isinstance(value, int | float | str | bool | None)}
        observers = [key for key, hook in store.items() if key >= 0 and only_observes(hook, own)]
        if observers:
            changed.append((store, dict(store)))
            for key in observers:
                del store[key]
    try:
        yield
    finally:
        for store, before in changed:
            before.update(store)
            store.clear()
            store.update(before)


def only_observes(hook: Callable[..., Any], own: Collection[int] = ()) -> bool:
    """Whether a hook can be seen to return nothing, and to write to nothing that the model reads.

    Seen in its code: what the functions that it calls do to their arguments is not looked at, but for methods that
    change a tensor in place (``clamp_``). Hooks of torch, which reparametrise weights, and those of this library never
    only observe. Nor does one that holds a module, or an object that the model holds too: it may hand on what it sees
    (features for a later layer).

    Args:
        hook: the hook.
        own: identities of the objects that the model holds.
    """
    function: Any = hook
    held: list[Any] = []
    while isinstance(function, partial):
        held += [*function.args, *function.keywords.values()]
        function = function.func
    is_method = not isinstance(function, FunctionType)
    if isinstance(function, MethodType):
        held.append(function.__self__)
    elif is_method:
        held.append(function)
        function = vars(type(function)).get("__call__")
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType) or function.__module__.startswith(("torch.", "seenn_")):
        return False
    held += [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    held += function.__defaults__ or ()
    held += [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    if any(isinstance(value, nn.Module) or id(value) in own for value in held):
        return False
    return _writes_to_no_argument(function.__code__, is_method)


@lru_cache(maxsize=256)
def _writes_to_no_argument(code: CodeType, is_method: bool) -> bool:
    """Whether a function returns nothing and writes to none of its arguments, but to the object it is a method of."""
    given = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    if is_method:
        given.discard(code.co_varnames[0] if code.co_varnames else "")
    instructions = list(dis.get_instructions(code))
    for position, here in enumerate(instructions):
        before = instructions[position - 1]
        if here.opname == "RETURN_VALUE" and not (before.opname == "LOAD_CONST" and before.argval is None):
            return False
        if here.opname == "RETURN_CONST" and here.argval is not None:
            return False
        if before.opname == "BINARY_OP" and before.argrepr.endswith("=") and here.argval in given:
            return False
        if here.opname in _OPERANDS and _base_of_what_is_written(instructions, position) in given:
            return False
    return not any(name.endswith("_") and not name.startswith("__") for name in code.co_names)


def _base_of_what_is_written(instructions: Sequence[dis.Instruction], position: int) -> Any:
    """``a`` of a statement ``a.b[c] = d`` or ``a.b.c = d``, whose last instruction is at ``position``."""
    first = position
    for _ in range(_OPERANDS[instructions[position].opname]):  # index or slice, then what is indexed
        depth = 0
        while depth != 1 and first > 0:
            first -= 1
            depth += dis.stack_effect(instructions[first].opcode, instructions[first].arg, jump=False)
    return instructions[first].argval
