"""Early exit for a batch: every row takes as few timesteps as the policy allows."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..inputs import InputBatch
from ..state.values import map_tensors
from .active_batch import ActiveBatch, FinishedRows, NewRows, RunConfig, run
from .result import ExitResult


class _Batch:
    """The rows of a batch, in their order. Their ids are their places in it."""

    def __init__(self, inputs: InputBatch, policy_state: Any) -> None:
        self._inputs, self._policy_state = inputs, policy_state
        self._taken = 0

    def take(self, most: int) -> NewRows | None:
        n = len(self._inputs)
        start, stop = self._taken, min(self._taken + most, n)
        if start == stop:
            return None
        self._taken = stop
        inputs, policy_state = self._inputs, self._policy_state
        if stop - start < n:
            inputs = inputs.narrow(start, stop - start)
            policy_state = map_tensors(lambda rows: rows[start:stop], policy_state)
        return NewRows(torch.arange(start, stop), inputs, policy_state)


def infer(config: RunConfig, policy_state: Any, inputs: InputBatch, slots: int, refill: bool) -> ExitResult:
    """Run a batch of ``N >= 1`` rows, each until the policy stops it or all timesteps are made.

    Args:
        config: how they are run.
        policy_state: what the policy knows of the rows before their first timestep (:meth:`Policy.start`).
        inputs: their input.
        slots: the most rows that are active at a time.
        refill: whether new rows can join active ones.
    """
    active = ActiveBatch(config)
    finished = list(run(active, _Batch(inputs, policy_state), slots, refill))
    if active.nonfinite_rows:
        warn_nonfinite_rows(active.nonfinite_rows, len(inputs), config.timesteps)
    skips = config.adapter.skips_finished_rows
    return _in_order(finished, active.steps_executed if skips else config.timesteps * len(inputs))


def warn_nonfinite_rows(nonfinite_rows: int, rows: int, timesteps: int, stacklevel: int = 4) -> None:
    warnings.warn(
        f"{nonfinite_rows} of {rows} rows had NaN or infinite logits; they were never counted as sure and ran all "
        f"{timesteps} timesteps. Look for an overflow in the network or for bad values in the input.",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def no_rows(no_logits: Tensor) -> ExitResult:
    """The result of an empty batch, from logits ``[0, C]``."""
    return ExitResult(no_logits, torch.zeros(0, dtype=torch.long, device=no_logits.device), no_logits.new_zeros(0), 0)


def _in_order(finished: list[FinishedRows], steps_executed: int) -> ExitResult:
    """The answers in the order of the caller's batch."""
    if len(finished) == 1:  # all rows have finished together, and in order
        (_, logits, timesteps, score) = finished[0]
        return ExitResult(logits, timesteps, score, steps_executed)
    order = torch.cat([part.row_ids for part in finished]).argsort().to(finished[0].logits.device)
    logits, timesteps, score = (
        torch.cat(parts)[order]
        for parts in zip(*((part.logits, part.timesteps, part.score) for part in finished), strict=True)
    )
    return ExitResult(logits, timesteps, score, steps_executed)
