"""Early exit for a batch: every row with as few timesteps as the policy lets it take."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..module_state import map_tensors
from .flight import Exits, Flight, Fresh, Way, fly
from .result import ExitResult


class _Batch:
    """The rows of a batch, in their order; their places are their tickets."""

    def __init__(self, inputs: Tensor, memory: Any, row_dim: int) -> None:
        self._inputs, self._memory, self._row_dim = inputs, memory, row_dim
        self._taken, self._n = 0, inputs.shape[row_dim]

    def take(self, most: int) -> Fresh | None:
        start, stop = self._taken, min(self._taken + most, self._n)
        if start == stop:
            return None
        self._taken = stop
        inputs, memory = self._inputs, self._memory
        if stop - start < self._n:
            inputs = inputs.narrow(self._row_dim, start, stop - start)
            memory = map_tensors(lambda rows: rows[start:stop], memory)
        return Fresh(torch.arange(start, stop), inputs, memory)


def infer(way: Way, memory: Any, inputs: Tensor, slots: int, refill: bool) -> ExitResult:
    """Run a batch of ``N >= 1`` rows, each until the policy stops it or all timesteps are made.

    Args:
        memory: what the policy knows of the rows before their first timestep (:meth:`Policy.start`).
        inputs: ``[N, ...]``, or ``[T, N, ...]`` for a sequence.
        slots: rows in flight at most.
        refill: whether rows can join others in flight.
    """
    row_dim = 1 if way.sequence else 0
    n = inputs.shape[row_dim]
    flight = Flight(way)
    exits = list(fly(flight, _Batch(inputs, memory, row_dim), slots, refill))
    if flight.unsure:
        warn_unsure(flight.unsure, n, way.timesteps)
    return _in_order(exits, flight.steps_executed if way.adapter.saves else way.timesteps * n)


def warn_unsure(unsure: int, rows: int, timesteps: int, stacklevel: int = 4) -> None:
    warnings.warn(
        f"{unsure} of {rows} rows had NaN or infinite logits; they were never counted as sure and ran all {timesteps} "
        "timesteps. Look for an overflow in the network or for bad values in the input.",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def no_rows(no_logits: Tensor) -> ExitResult:
    """The result of an empty batch, from logits ``[0, C]``."""
    return ExitResult(no_logits, torch.zeros(0, dtype=torch.long, device=no_logits.device), no_logits.new_zeros(0), 0)


def _in_order(exits: list[Exits], steps_executed: int) -> ExitResult:
    """Rows back in the order of the caller's batch."""
    if len(exits) == 1:  # all left together, and in order
        (_, logits, timesteps, score) = exits[0]
        return ExitResult(logits, timesteps, score, steps_executed)
    order = torch.cat([part.tickets for part in exits]).argsort().to(exits[0].logits.device)
    logits, timesteps, score = (
        torch.cat(parts)[order]
        for parts in zip(*((part.logits, part.timesteps, part.score) for part in exits), strict=True)
    )
    return ExitResult(logits, timesteps, score, steps_executed)
