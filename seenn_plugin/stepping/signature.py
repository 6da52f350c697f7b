"""Which arguments of a one-step ``forward`` are states that it takes and hands back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

REQUIRED: Final = inspect.Parameter.empty
"""Stands for the default of a state argument that has none."""

_STATE_NAME: Final = re.compile(
    r"((init|initial|prev|last)_)?"
    r"((mem|membrane|spk|spike|syn|state|hidden|carry)s?(\d+|_\w+)?|[hcuv]x?(\d+|_\w+)?)"
)

_RESET_NAME: Final = re.compile(
    r"reset|(re)?(init|reset|zero)_(all|hidden|mem|mems|membranes?|net|neurons?|spikes?|states?)"
)

_DEVICE: Final = "device"
_TIMESTEPS_NAME: Final = re.compile(
    r"T|time|time_?step|((num|n|nb|number_of|max|total|sim|simulation)_?)?(time_?)?steps|(num|n)_?timesteps?|time_?window|seq_?len(gth)?"
)


def call_keywords(model: nn.Module, x: Tensor, timesteps: int | None) -> dict[str, Any]:
    """The arguments by which a ``forward`` that makes all timesteps is told how many, or on which device.

    Args:
        x: the input.
        timesteps: their number; if ``None``, the argument keeps its default.
    """
    found: dict[str, Any] = {}
    for p in list(inspect.signature(model.forward).parameters.values())[1:]:
        if timesteps is not None and tells_timesteps(p.name):
            found[p.name] = timesteps
        elif p.name == _DEVICE and p.default is REQUIRED:
            found[p.name] = x.device
    return found


def tells_timesteps(name: str) -> bool:
    """Whether an argument or an attribute of this name is customarily the number of timesteps."""
    return _TIMESTEPS_NAME.fullmatch(name) is not None


def state_arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments of ``model.forward`` after the input that carry state, with their defaults.

    A required argument can only be a state (a one-step network is called with one input), or the number of timesteps
    (``num_steps``, ``T``, ...) of a network that makes them all. An argument that defaults to ``None`` is a state if it
    is named as states are (``mem1``, ``syn``, ``state``, ``hidden``, ``h_0``, ...).
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a forward without a signature (compiled, scripted) takes its input alone
        return {}
    named = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return {
        p.name: p.default
        for p in named[1:]
        if (p.default is REQUIRED and p.name != _DEVICE and not tells_timesteps(p.name))
        or (p.default is None and _STATE_NAME.fullmatch(p.name.lower()))
    }


def own_resets(module: nn.Module) -> list[Callable[[], Any]]:
    """The methods of a module that are named as those that reset its state customarily are, and need no arguments."""
    found = []
    for name in dir(type(module)):
        method = getattr(module, name, None) if _RESET_NAME.fullmatch(name) else None
        if callable(method) and all(
            p.default is not REQUIRED or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            for p in inspect.signature(method).parameters.values()
        ):
            found.append(method)
    return found
