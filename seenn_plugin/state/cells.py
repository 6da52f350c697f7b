"""Cells: the places in the modules of a network that a timestep may write.

A cell is a buffer, an attribute, or an entry of a dictionary attribute (SpikingJelly keeps membrane potentials in
``module._memories``). Its value may be a tensor, a number, ``None`` or a container of those. This module knows nothing
of time or rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, Final

from torch import nn

from .values import ABSENT, PLAIN, leaves

OCCUPIED: Final = "_seenn_occupied_by"
MODULE_INTERNALS = (frozenset(vars(nn.Module())) - {"_buffers"}) | {OCCUPIED}


@dataclass(frozen=True)
class Cell:
    """One place in the model where a timestep may write.

    Attributes:
        label: qualified name in reports, ``"layer1.0.sn1.v"``.
        module: the module that owns it.
        path: the keys to follow from ``vars(module)``: ``()`` for an attribute, ``("_buffers",)`` for a buffer, ...
        key: the key in the last dictionary.
    """

    label: str
    module: nn.Module
    path: tuple[str, ...]
    key: Any

    @property
    def store(self) -> dict[Any, Any]:
        return reduce(getitem, self.path, vars(self.module))

    def read(self) -> Any:
        return self.store.get(self.key, ABSENT)

    def write(self, value: Any) -> None:
        write(self.store, self.key, value)


def write(store: dict[Any, Any], key: Any, value: Any) -> None:
    """Put a value under a key; :data:`ABSENT` removes it."""
    if value is ABSENT:
        store.pop(key, None)
    else:
        store[key] = value


def modules_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of ``model``, in another order than ``model.modules()``, in a quarter of the time."""
    met: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in met:
            met[module] = None
            waiting.extend(module._modules.values())
    return tuple(met)


def every_module(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of ``model`` by name, including those in plain lists and dictionaries, which ``modules()`` misses."""
    met: set[int] = set()
    waiting = list(model.named_modules())
    while waiting:
        name, module = waiting.pop(0)
        if id(module) in met:
            continue
        met.add(id(module))
        yield name, module
        for key, value in vars(module).items():
            if key not in MODULE_INTERNALS and key != "_buffers" and isinstance(value, list | tuple | dict):
                waiting += [(f"{name}.{key}", leaf) for leaf in leaves(value) if isinstance(leaf, nn.Module)]


def stores(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """The dictionaries of one module that may hold state: its attributes, its buffers, dictionary attributes."""
    attributes = vars(module)
    yield attributes
    yield from (value for key, value in attributes.items() if key not in MODULE_INTERNALS and type(value) is dict)


def cells(model: nn.Module, registers: Sequence[str]) -> list[Cell]:
    """Every cell of every module of ``model``: the candidates for state.

    Args:
        registers: names of the dictionary attributes whose entries are cells of their own. Any other dictionary is one
            value.
    """
    found = []
    for prefix, module in every_module(model):
        attributes = vars(module)
        paths = [((), attributes), *(((name,), attributes[name]) for name in registers if name in attributes)]
        for path, store in paths:
            for key, value in store.items():
                internal = path == () and (key in MODULE_INTERNALS or key in registers)
                if not internal and not any(isinstance(leaf, nn.Parameter | nn.Module) for leaf in leaves(value)):
                    found.append(Cell(f"{prefix}.{key}" if prefix else str(key), module, path, key))
    return found


def objects_of(modules: Sequence[nn.Module]) -> Iterator[Any]:
    """Objects of other classes in the attributes of modules. They may hold state too."""
    for module in modules:
        for key, value in vars(module).items():
            if key not in MODULE_INTERNALS and not isinstance(value, PLAIN):
                for leaf in leaves(value):
                    if not isinstance(leaf, (*PLAIN, nn.Module, type)) and hasattr(leaf, "__dict__"):
                        yield leaf
