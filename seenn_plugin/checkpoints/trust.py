"""Which functions a model card may name without being trusted: those that an installed package registers.

A card names a factory and a loader, ``package.module:function``. Importing a module runs its code, and the function is
called with arguments from the card. A card from a stranger could name any function of any installed module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Final

from ..errors import InputError, OptionalDependencyError

GROUP: Final = "seenn_plugin.factories"
"""The entry-point group in which a package registers factories of networks, and loaders of data."""


def registered_functions() -> frozenset[str]:
    """The functions that installed packages register, as ``package.module:function``. Nothing is imported."""
    return frozenset(point.value.replace(" ", "") for point in entry_points(group=GROUP))


def check_trusted(name: str, field: str) -> None:
    """Check that a function may be imported and called.

    Args:
        name: ``package.module:function``.
        field: of the card, for the message.

    Raises:
        InputError: no installed package registers it.
    """
    if name not in registered_functions():
        raise InputError(
            f"the card names {name!r} as its {field}, which no installed package registers in the entry-point group "
            f"{GROUP!r}. It would be imported and called: if you trust the card, pass trust_code=True, or --trust_code."
        )


def imported(name: str) -> Callable[..., Any]:
    """The function ``package.module:function``, imported.

    Raises:
        InputError: it cannot be imported.
        OptionalDependencyError: it needs a package that is not installed.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except OptionalDependencyError:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"the card names {name!r}, which cannot be imported: {error!r}. Install the package that it is in, or run "
            "where it can be found."
        ) from error
