"""Which adapter fits a model: found through entry points, or named by the caller."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points

from torch import nn

from .._naming import unknown_name
from ..errors import AdapterError
from .contract import Adapter

ENTRY_POINT_GROUP = "seenn_plugin.adapters"


AdapterChoice = str | Adapter | Callable[[nn.Module], Adapter]


def installed_adapters() -> tuple[dict[str, type[Adapter]], dict[str, Exception]]:
    """All installed adapters by name, in a fixed order, and the errors of those that are broken, which warn."""
    found: dict[str, type[Adapter]] = {}
    broken: dict[str, Exception] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        try:
            adapter = point.load()
            if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
                raise TypeError(f"{point.value} is not a subclass of seenn_plugin.adapter.Adapter")
            found.setdefault(point.name, adapter)
        except Exception as error:  # a third party's broken adapter must not take the others down
            broken[point.name] = error
            warnings.warn(
                f"adapter {point.name!r} ({point.value}) is broken and was skipped: {error!r}",
                RuntimeWarning,
                stacklevel=4,
            )
    return found, broken


def find_adapter(model: nn.Module, choice: AdapterChoice = "auto") -> Adapter:
    """The adapter for ``model``: the only one that claims it, or the caller's choice (a name, class or instance).

    Raises:
        AdapterError: none claims the model, several do, the name is unknown, or its framework is not installed.
    """
    if isinstance(choice, Adapter):
        if choice.model is not model:
            raise AdapterError(
                "the adapter given is bound to another model; pass its class, or one bound to this model."
            )
        return choice
    if not isinstance(choice, str):
        made = choice(model) if callable(choice) else None
        if not isinstance(made, Adapter):
            raise AdapterError(
                f"adapter must be a name, or an Adapter, its class or a function that makes it, not {choice!r}."
            )
        return made
    installed, broken = installed_adapters()
    if choice != "auto":
        if choice not in installed:
            raise AdapterError(unknown_name("adapter", choice, {*installed, "auto"}))
        if _is_missing(installed[choice]):
            raise AdapterError(f"adapter {choice!r} needs its framework: {_install_hint(installed[choice])}")
        return installed[choice](model)
    claiming = [adapter for name, adapter in installed.items() if _claims(name, adapter, model)]
    if len(claiming) == 1:
        return claiming[0](model)
    kind = type(model).__name__
    if claiming:
        names = ", ".join(repr(adapter.name) for adapter in claiming)
        raise AdapterError(
            f"{kind} is claimed by several adapters ({names}); choose one: adapter={claiming[0].name!r}."
        )
    missing = [f"{_install_hint(adapter)}" for adapter in installed.values() if _is_missing(adapter)]
    raise AdapterError(
        f"no adapter claims {kind}: it holds no neuron of a framework known here "
        f"(installed adapters: {', '.join(installed) or 'none'}). "
        + (f"Broken: {', '.join(f'{name} ({error!r})' for name, error in broken.items())}. " if broken else "")
        + (f"Not installed: {'; '.join(missing)}. " if missing else "")
        + "Name one with adapter=..., or write one (docs/architecture.md, seenn_plugin.adapter.Adapter)."
    )


def _claims(name: str, adapter: type[Adapter], model: nn.Module) -> bool:
    try:
        return bool(adapter.claims(model))
    except Exception as error:
        warnings.warn(
            f"adapter {name!r} cannot say whether it fits and was skipped: {error!r}", RuntimeWarning, stacklevel=5
        )
        return False


def _is_missing(adapter: type[Adapter]) -> bool:
    return adapter.framework is not None and importlib.util.find_spec(adapter.framework) is None


def _install_hint(adapter: type[Adapter]) -> str:
    package = f'"seenn-plugin[{adapter.extra}]"' if adapter.extra else str(adapter.framework)
    return f"pip install {package} ({adapter.framework})"
