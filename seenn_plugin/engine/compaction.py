"""One batch, early exit: after every timestep (or chunk) the rows that have answered are dropped.

Rows are dropped from the input, from every state, and from the memories of readout and policy, so that what is left
of the batch is what is computed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter
from ..module_state import map_tensors
from ..policies import Policy
from ..readout import Readout, read
from .leaving import leaving
from .result import ExitResult


def infer(
    adapter: Adapter,
    readout: Readout,
    policy: Policy,
    memory: Any,
    inputs: Tensor,
    sequence: bool,
    timesteps: int,
    chunk: int = 1,
) -> ExitResult:
    """Run a batch of ``N >= 1`` rows, each until ``policy`` stops it or ``timesteps`` are made.

    Args:
        memory: what the policy knows of the rows before their first timestep (:meth:`Policy.start`).
        inputs: ``[N, ...]``, or ``[T, N, ...]`` for a sequence.
        chunk: timesteps computed between two compactions. Decisions are made on every timestep inside a chunk;
            a row that stops inside one is computed to the chunk's end, which ``steps_executed`` counts. Where all
            exits are planned beforehand, chunks are cut at them, and nothing is computed in vain. Rows that are
            computed to make up the number of a captured step are counted too.
    """
    exiting = leaving(policy, memory)
    rows = adapter.begin(inputs, sequence)
    where = torch.arange(len(rows), device=inputs.device)  # the place of each running row in the caller's batch
    readout_memory: Any = None
    exits: list[tuple[Tensor, Tensor, Tensor, int]] = []
    steps_executed = t = unsure = 0
    while len(rows):
        steps = min(chunk, timesteps - t, exiting.steps(t) or chunk)
        outputs = adapter.advance(rows, steps)
        steps_executed += steps * len(rows)
        staying = None  # places, among the rows of this chunk, of those that have not stopped; None: all
        for step in range(steps):
            t += 1
            now = tuple(
                output[step] if staying is None else output[step].index_select(0, staying) for output in outputs
            )
            timestep = torch.full_like(where, t)
            logits, readout_memory = read(readout, now, timestep, readout_memory)
            stop, score = exiting.after(logits, timestep, t)
            if t == timesteps:
                unsure = int((~logits.isfinite().all(1)).sum())
                exits.append((where, logits, score, t))
                where = where[:0]
                break
            if stop is None:
                continue
            leave = stop.nonzero().squeeze(1)
            if not leave.numel():
                continue
            if leave.numel() == where.numel():  # the usual end of a small batch: nobody is left to be told apart
                exits.append((where, logits, score, t))
                where = where[:0]
                break
            exits.append((where[leave], logits[leave], score[leave], t))
            stay = (~stop).nonzero().squeeze(1)
            where = where[stay]
            staying = stay if staying is None else staying[stay]
            readout_memory = map_tensors(lambda memory, stay=stay: memory.index_select(0, stay), readout_memory)
            exiting.keep(stay)
        if not where.numel():
            break
        if staying is not None:
            adapter.keep(rows, staying)
    if unsure:
        warnings.warn(
            f"{unsure} of {inputs.shape[1 if sequence else 0]} rows had NaN or infinite logits; they were never "
            "counted as "
            f"sure and ran all {timesteps} timesteps. Look for an overflow in the network or for bad values in "
            "the input.",
            RuntimeWarning,
            stacklevel=3,
        )
    if not adapter.saves:
        steps_executed = timesteps * inputs.shape[1 if sequence else 0]
    return _in_order(exits, steps_executed + rows.padded)


def no_rows(no_logits: Tensor) -> ExitResult:
    """The result of an empty batch, from logits ``[0, C]``."""
    return ExitResult(no_logits, torch.zeros(0, dtype=torch.long, device=no_logits.device), no_logits.new_zeros(0), 0)


def _in_order(exits: list[tuple[Tensor, Tensor, Tensor, int]], steps_executed: int) -> ExitResult:
    """Rows back in the order of the caller's batch."""
    if len(exits) == 1:  # all left together, and in order
        where, logits, score, t = exits[0]
        return ExitResult(logits, torch.full_like(where, t), score, steps_executed)
    order = torch.cat([where for where, _, _, _ in exits]).argsort()
    timesteps = torch.cat([torch.full_like(where, t) for where, _, _, t in exits])
    return ExitResult(
        logits=torch.cat([logits for _, logits, _, _ in exits])[order],
        timesteps=timesteps[order],
        score=torch.cat([score for _, _, score, _ in exits])[order],
        steps_executed=steps_executed,
    )
