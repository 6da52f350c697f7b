"""Numbers, flags and names that a model's own code may read: attributes, global variables, closures.

``for t in range(self.num_steps)``, or ``range(num_steps)`` in a notebook, is read anew at every call of the model. What
was found with one value does not hold for another.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from .cells import MODULE_INTERNALS

_SCALARS = (bool, int, float, str, type(None))


class PlainSettings:
    """The plain values that the code of some modules may read.

    Args:
        modules: modules whose classes are the caller's own. A layer of torch or of a framework reads its settings when
            it runs, and nothing is concluded from them.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._attributes: list[dict[str, Any]] = []
        self._state: dict[int, set[Any]] = {}
        functions: dict[CodeType, FunctionType] = {}
        for module in modules:
            self._attributes.append(vars(module))
            forward = unwrap(getattr(module.forward, "__func__", module.forward))
            if isinstance(forward, FunctionType):
                functions[forward.__code__] = forward
        self._globals = [
            (function.__globals__, name) for code, function in functions.items() for name in _globals_read(code)
        ]
        self._cells = [cell for function in functions.values() for cell in function.__closure__ or ()]

    def leave_out(self, places: Iterable[tuple[dict[Any, Any], Any]]) -> None:
        """Leave out attributes that turned out to hold state: dictionaries and keys."""
        for store, key in places:
            self._state.setdefault(id(store), set()).add(key)

    def values(self) -> list[Any]:
        """The values as they are now; compared by equality."""
        found: list[Any] = []
        for attributes in self._attributes:
            skipped = MODULE_INTERNALS | self._state.get(id(attributes), set())
            found += [
                (name, value)
                for name, value in attributes.items()
                if isinstance(value, _SCALARS) and name not in skipped
            ]
        found += [value for space, name in self._globals if isinstance(value := space.get(name), _SCALARS)]
        for cell in self._cells:
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if isinstance(value, _SCALARS):
                found.append(value)
        return found


def _globals_read(code: CodeType) -> set[str]:
    """The global variables that a function reads, and those that functions inside it read."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals_read(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
