"""Letting a network go on from where it is, whatever it does in ``forward`` to forget."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Final

from torch import Tensor, nn


@contextmanager
def going_on(model: nn.Module, resets: list[str] | None = None) -> Iterator[None]:
    """Let the network go on from where it is: ``reset_net`` in ``forward`` does nothing, recurrent layers remember.

    Args:
        resets: takes the names of the modules that were asked to reset.
    """
    held: list[tuple[dict[str, Any], str, Any]] = []

    def lend(module: nn.Module, name: str, value: Any) -> None:
        held.append((vars(module), name, vars(module).get(name)))
        vars(module)[name] = value

    recurrent = recurrent_classes()
    try:
        for name, module in model.named_modules():
            if callable(getattr(module, "reset", None)):
                lend(module, "reset", lambda name=name: resets.append(name) if resets is not None else None)
            # One that runs backwards too needs the whole sequence: it is left alone, and found out.
            if isinstance(module, recurrent) and not getattr(module, "bidirectional", False):
                lend(module, "forward", MethodType(_remembering, module))
        yield
    finally:
        for attributes, name, value in reversed(held):
            if value is None:
                attributes.pop(name, None)
            else:
                attributes[name] = value


RECURRENT_STATE: Final = "_seenn_states"
"""Under this name a recurrent layer's states lie in it while they are lent; else nothing lies there."""


def recurrent_classes() -> tuple[type, ...]:
    """SpikingJelly's LSTM and GRU, which hold their states in no module but return them, ``[layers, N, ...]``."""
    found = (sys.modules.get(f"spikingjelly.{age}.rnn") for age in ("activation_based", "clock_driven"))
    return tuple(module.SpikingRNNBase for module in found if module is not None)


def _remembering(layer: nn.Module, x: Tensor, states: Any = None) -> Any:
    """``forward`` of a recurrent layer that starts from the states of its last call."""
    forward = type(layer).forward
    output, states = forward(layer, x, vars(layer).get(RECURRENT_STATE) if states is None else states)
    if isinstance(states, tuple):  # 0.0.0.0.14 returns them with one dimension more than it takes
        states = tuple(state.squeeze(0) if state.ndim == 4 else state for state in states)
    vars(layer)[RECURRENT_STATE] = states
    return output, states
