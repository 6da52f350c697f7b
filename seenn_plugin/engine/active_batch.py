"""The active batch: the one path of every early-exit run.

Rows that have answered leave the input, every state, and the state of readout and policy, so that only active rows are
computed. New rows take their places, or the batch is compacted. Neither affects the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..adapter import Adapter, Rows
from ..inputs import InputBatch
from ..policies import Policy
from ..policies.base import finite_rows
from ..readout import Outputs, Readout, read
from .exit_decisions import ExitDecisions, PerStepExits, exit_decisions
from .row_state import RowState, can_mix


@dataclass(frozen=True)
class RunConfig:
    """All that a run needs beside its input.

    Attributes:
        adapter: advances the network.
        readout: from outputs to decision logits.
        policy: decides when rows stop; with nothing left open (:meth:`Policy.settle`).
        timesteps: T, the most timesteps that a row may take.
        chunk: timesteps computed by one call of the adapter.
        check_every: timesteps between two synchronisations with the host. Decisions are made at every timestep all the
            same. A row that stops in between is computed on until the next synchronisation, which ``steps_executed``
            counts. Under a plan the host synchronises exactly where a row's plan ends.
    """

    adapter: Adapter
    readout: Readout
    policy: Policy
    timesteps: int
    chunk: int = 1
    check_every: int = 1

    def read(self, accumulator: Any, rows: Sequence[Tensor]) -> tuple[tuple[Tensor], Any]:
        """One timestep of the readout. ``rows``: the timestep, long ``[n]``, then the outputs, each ``[n, ...]``."""
        logits, accumulator = read(self.readout, tuple(rows[1:]), rows[0], accumulator)
        return (logits,), accumulator

    def can_mix(self, policy_state: Any, steps: Sequence[Outputs]) -> bool:
        """Whether readout and policy allow rows with different clocks side by side.

        Args:
            policy_state: of one row before its first timestep.
            steps: outputs of one row, each ``[1, ...]``, at its first timesteps.
        """
        timesteps = [torch.full((1,), t, device=steps[0][0].device) for t in range(1, len(steps) + 1)]
        seen = [(t, *outputs) for t, outputs in zip(timesteps, steps, strict=True)]
        if not can_mix(self.read, None, seen):
            return False
        decisions = exit_decisions(self.policy, policy_state)
        if not isinstance(decisions, PerStepExits):
            return True
        accumulator = RowState(None)
        logits = [(accumulator.update(self.read, rows)[0], rows[0]) for rows in seen]
        return can_mix(decisions.consult, policy_state, logits)


class NewRows(NamedTuple):
    """Rows before their first timestep.

    Attributes:
        row_ids: long ``[m]`` on the CPU: identify the rows in the answers.
        inputs: of ``m`` rows.
        policy_state: what the policy knows of them (:meth:`Policy.start`).
    """

    row_ids: Tensor
    inputs: InputBatch
    policy_state: Any


class FinishedRows(NamedTuple):
    """Rows that have answered.

    Attributes:
        row_ids: long ``[m]`` on the CPU.
        logits: decision logits ``[m, C]``.
        timesteps: long ``[m]``.
        score: float ``[m]``.
    """

    row_ids: Tensor
    logits: Tensor
    timesteps: Tensor
    score: Tensor


class _Answer(NamedTuple):
    """The present answer of the active rows: logits ``[n, C]``, timesteps ``[n]`` and scores ``[n]``."""

    logits: Tensor
    timesteps: Tensor
    score: Tensor


class Source(Protocol):
    """Where new rows come from."""

    def take(self, most: int) -> NewRows | None:
        """At most ``most`` rows; ``None`` if there are no more."""
        ...


class ActiveBatch:
    """The active rows, each with its own clock.

    Attributes:
        row_ids: long ``[n]`` on the CPU, of the active rows.
        steps_executed: row-steps that the network has computed so far.
        nonfinite_rows: rows that ran to the last timestep and had NaN or infinite logits there.
    """

    _rows: Rows
    _accumulator: RowState
    _decisions: ExitDecisions
    _clock: Tensor  # long [n] on the CPU
    _timestep: Tensor  # the same on the device of the rows; the same tensor if that is the CPU
    _finished: Tensor  # long: the places of the rows that have just finished, unless all have

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.row_ids = torch.zeros(0, dtype=torch.long)
        self.steps_executed = 0
        self.nonfinite_rows = 0
        self._stopped: Tensor | None = None  # bool [n]: the rows that have just finished; None: all of them

    def __len__(self) -> int:
        return self.row_ids.numel()

    def begin(self, new: NewRows) -> None:
        """Start with these rows. No row may be active."""
        self._rows = self.config.adapter.begin(new.inputs)
        self._accumulator = RowState(None)
        self._decisions = exit_decisions(self.config.policy, new.policy_state)
        self._set_clock(torch.zeros(len(self._rows), dtype=torch.long), new.inputs.device)
        self.row_ids = new.row_ids

    def step(self) -> FinishedRows | None:
        """Advance all rows up to the next synchronisation with the host.

        Returns:
            The rows that have finished, which :meth:`compact_and_refill` then removes; ``None`` if there are none.
        """
        config, n = self.config, len(self)
        limit = config.timesteps - int(self._clock.max())
        steps = min(limit, self._decisions.next_end(self._clock) or max(config.chunk, config.check_every))
        stopped: Tensor | None = None  # stays on the device between two synchronisations, like the answer
        answer: _Answer | None = None
        made = 0
        while made < steps:
            k = min(config.chunk, steps - made)
            padded = self._rows.padded
            outputs = config.adapter.advance(self._rows, k)
            self.steps_executed += k * n + self._rows.padded - padded
            made += k
            for step in range(k):
                now, stop = self._decide(tuple(output[step] for output in outputs))
                answer = now if stopped is None or answer is None else _held(stopped, answer, now)
                if stop is not None:
                    stopped = stop if stopped is None else stopped | stop
        assert answer is not None
        if steps == limit:
            over = self._clock >= config.timesteps
            at_end = over.to(answer.logits.device, non_blocking=True)
            undecided = at_end if stopped is None else at_end & ~stopped
            self.nonfinite_rows += int((undecided & ~finite_rows(answer.logits)).sum())
            if bool(over.all()):
                return self._finish(None, answer)
            stopped = at_end if stopped is None else stopped | at_end
        return None if stopped is None else self._finish(stopped, answer)

    def compact_and_refill(self, new: NewRows | None) -> None:
        """Remove the rows that finished in the last :meth:`step`, and let new rows take their places.

        Args:
            new: no more rows than have finished; ``None`` if all have, or if the rows of this model share a clock.
        """
        if self._stopped is None:
            assert new is None
            self.row_ids = self.row_ids[:0]
            return
        free = self._finished
        # Not a second nonzero(), which would synchronise with the host once more.
        stay = self._stopped.to(torch.uint8).argsort(stable=True)[: len(self) - free.numel()]
        self._accumulator.keep(stay)
        self._decisions.keep(stay)
        if new is None:
            self._keep(stay)
            return
        arriving = new.row_ids.numel()
        if arriving < free.numel():  # compact: the places for new rows first, then the rows that stay
            self._keep(torch.cat([free[:arriving], stay]))
            free = torch.arange(arriving, device=free.device)
            stay = torch.arange(arriving, len(self), device=free.device)
        self.config.adapter.place(self._rows, free, new.inputs)
        self._accumulator.join(free, stay, None)
        self._decisions.join(free, stay, new.policy_state)
        places = free.cpu()
        self.row_ids = self.row_ids.index_copy(0, places, new.row_ids)
        self._set_clock(self._clock.index_fill(0, places, 0), free.device)

    def _decide(self, outputs: Outputs) -> tuple[_Answer, Tensor | None]:
        """One timestep of readout and policy: the answer of every row, and which rows stop."""
        self._clock = self._clock + 1
        self._timestep = self._clock if outputs[0].device == self._clock.device else self._timestep + 1
        (logits,) = self._accumulator.update(self.config.read, (self._timestep, *outputs))
        stop, score = self._decisions.after(logits, self._timestep, self._clock)
        return _Answer(logits, self._timestep, score), stop

    def _finish(self, stopped: Tensor | None, answer: _Answer) -> FinishedRows | None:
        """The answers of the rows that have stopped; of all rows for ``None``."""
        self._stopped = stopped
        if stopped is None:
            return FinishedRows(self.row_ids, *answer)
        self._finished = index = stopped.nonzero().squeeze(1)  # synchronises with the host
        if not index.numel():
            return None
        if index.numel() == len(self):
            return self._finish(None, answer)
        return FinishedRows(self.row_ids[index.cpu()], *(tensor.index_select(0, index) for tensor in answer))

    def _keep(self, index: Tensor) -> None:
        self.config.adapter.keep(self._rows, index)
        places = index.cpu()
        self.row_ids = self.row_ids[places]
        self._set_clock(self._clock[places], index.device)

    def _set_clock(self, clock: Tensor, device: torch.device) -> None:
        self._clock = clock
        self._timestep = clock.to(device, non_blocking=True)  # without waiting for a GPU


def _held(stopped: Tensor, held: _Answer, now: _Answer) -> _Answer:
    """The earlier answer for rows that have stopped, the present one for the others."""
    pairs = zip(held, now, strict=True)
    return _Answer(*(torch.where(stopped.view(-1, *[1] * (b.ndim - 1)), a, b) for a, b in pairs))


def run(active: ActiveBatch, source: Source, slots: int, refill: bool) -> Iterator[FinishedRows]:
    """Run all rows of ``source``, at most ``slots`` of them at a time, and yield answers as they are found.

    Nothing is taken from the source before the caller has received the answers found so far.

    Args:
        active: an empty batch.
        source: gives the rows.
        slots: the most rows that are active at a time.
        refill: whether new rows take the places of finished ones. If not, they wait until all have finished.
    """
    while (new := source.take(slots)) is not None:
        active.begin(new)
        while len(active):
            finished = active.step()
            if finished is None:
                continue
            yield finished
            free = finished.row_ids.numel()
            active.compact_and_refill(source.take(free) if refill and free < len(active) else None)
