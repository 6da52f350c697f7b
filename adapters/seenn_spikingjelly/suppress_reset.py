"""Letting a network continue from its present state, although its ``forward`` resets it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Final

from torch import Tensor, nn

from seenn_plugin.state.patching import patched


def suppress_reset(model: nn.Module, resets: list[str] | None = None) -> AbstractContextManager[None]:
    """Let the network continue from its state: ``reset_net`` in ``forward`` does nothing, recurrent layers keep theirs.

    Args:
        model: the network.
        resets: receives the names of the modules whose ``reset`` was called.
    """
    return patched(_replacements(model, resets))


def _replacements(model: nn.Module, resets: list[str] | None) -> Iterator[tuple[dict[str, Any], str, Any]]:
    recurrent = recurrent_classes()
    for name, module in model.named_modules():
        if callable(getattr(module, "reset", None)):
            yield vars(module), "reset", lambda name=name: resets.append(name) if resets is not None else None
        # A bidirectional layer needs the whole sequence. It is left alone, and the checks refuse it.
        if isinstance(module, recurrent) and not getattr(module, "bidirectional", False):
            yield vars(module), "forward", MethodType(_remembering, module)


RECURRENT_STATE: Final = "_seenn_states"
"""The attribute that holds the states of a recurrent layer while it runs for some rows; otherwise absent."""


def recurrent_classes() -> tuple[type, ...]:
    """SpikingJelly's LSTM and GRU, which do not keep their states ``[layers, N, ...]`` but return them."""
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
