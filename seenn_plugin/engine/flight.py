"""Rows in flight: those that have answered leave, fresh ones take their places, and nobody else notices.

The one path of every early-exit run. A row leaves the input, every state, and the memories of readout and policy, so
that what is left in flight is what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..adapter import Adapter, Rows
from ..policies import Policy
from ..readout import Readout, read
from .leaving import Asked, Leaving, leaving
from .memory import RowMemory, can_mix


@dataclass(frozen=True)
class Way:
    """How rows are run.

    Attributes:
        timesteps: T, the most timesteps that a row may take.
        chunk: timesteps that the adapter makes at a time.
        check_every: timesteps after which the host looks who has stopped. Decisions are made at every timestep all the
            same; a row that stops between two looks is computed on until the next, which ``steps_executed`` counts.
            Where all exits are planned beforehand, the host looks exactly where a plan ends.
    """

    adapter: Adapter
    readout: Readout
    policy: Policy
    sequence: bool
    timesteps: int
    chunk: int = 1
    check_every: int = 1

    def read(self, memory: Any, rows: Any) -> tuple[tuple[Tensor], Any]:
        """One timestep of the readout; ``rows``: the timestep, then the outputs."""
        logits, memory = read(self.readout, tuple(rows[1:]), rows[0], memory)
        return (logits,), memory

    def can_mix(self, memory: Any, timesteps: Sequence[tuple[Tensor, ...]]) -> bool:
        """Whether rows of different clocks can be kept side by side, as far as readout and policy are concerned.

        Args:
            memory: what the policy knows of one row before its first timestep.
            timesteps: outputs of one row, each ``[1, ...]``, at its first timesteps.
        """
        timestep = [torch.full((1,), t, device=timesteps[0][0].device) for t in range(1, len(timesteps) + 1)]
        seen = [(t, *outputs) for t, outputs in zip(timestep, timesteps, strict=True)]
        if not can_mix(self.read, None, seen):
            return False
        asked = leaving(self.policy, memory)
        if not isinstance(asked, Asked):
            return True
        readout = RowMemory(None)
        logits = [(readout.update(self.read, rows)[0], rows[0]) for rows in seen]
        return can_mix(asked.consult, memory, logits)


class Fresh(NamedTuple):
    """Rows before their first timestep.

    Attributes:
        tickets: long ``[m]`` on the CPU: by which their answers are known.
        inputs: ``[m, ...]``, or ``[T, m, ...]`` for a sequence.
        memory: what the policy knows of them (:meth:`Policy.start`).
    """

    tickets: Tensor
    inputs: Tensor
    memory: Any


class Exits(NamedTuple):
    """Rows that have answered.

    Attributes:
        tickets: long ``[m]`` on the CPU.
        logits: decision logits ``[m, C]``.
        timesteps: long ``[m]``.
        score: float ``[m]``.
    """

    tickets: Tensor
    logits: Tensor
    timesteps: Tensor
    score: Tensor


class _Answer(NamedTuple):
    """What the rows in flight would answer: logits ``[n, C]``, timesteps ``[n]`` and scores ``[n]``."""

    logits: Tensor
    timesteps: Tensor
    score: Tensor


class Source(Protocol):
    """Where fresh rows come from."""

    def take(self, most: int) -> Fresh | None:
        """At most so many rows; ``None`` if there are no more."""
        ...


class Flight:
    """Rows in flight, each with a clock of its own.

    Attributes:
        tickets: long ``[n]`` on the CPU, of the rows in flight.
        steps_executed: row-steps that the network has computed so far.
        unsure: rows that ran to the last timestep and had NaN or infinite logits there.
    """

    _rows: Rows
    _readout: RowMemory
    _leaving: Leaving
    _clock: Tensor  # long [n] on the CPU
    _gone: Tensor  # long: the places of those who have just left, if not everybody has
    _timestep: Tensor  # the same where the rows are; one tensor if they are on the CPU

    def __init__(self, way: Way) -> None:
        self.way = way
        self.tickets = torch.zeros(0, dtype=torch.long)
        self.steps_executed = 0
        self.unsure = 0
        self._stopped: Tensor | None = None  # bool [n]: who has just left; None: everybody

    def __len__(self) -> int:
        return self.tickets.numel()

    def begin(self, fresh: Fresh) -> None:
        """Start with these rows, where none is in flight."""
        self._rows = self.way.adapter.begin(fresh.inputs, self.way.sequence)
        self._readout = RowMemory(None)
        self._leaving = leaving(self.way.policy, fresh.memory)
        self._set_clock(torch.zeros(len(self._rows), dtype=torch.long), fresh.inputs.device)
        self.tickets = fresh.tickets

    def tick(self) -> Exits | None:
        """Advance all rows until the host looks again; those that have answered, which :meth:`settle` removes."""
        way, n = self.way, len(self)
        limit = way.timesteps - int(self._clock.max())
        steps = min(limit, self._leaving.next_end(self._clock) or max(way.chunk, way.check_every))
        stopped: Tensor | None = None  # on the device, like all that is known of rows between two looks
        answer: _Answer | None = None
        made = 0
        while made < steps:
            k = min(way.chunk, steps - made)
            padded = self._rows.padded
            outputs = way.adapter.advance(self._rows, k)
            self.steps_executed += k * n + self._rows.padded - padded
            made += k
            for step in range(k):
                now, stop = self._decide(tuple(output[step] for output in outputs))
                answer = now if stopped is None or answer is None else _held(stopped, answer, now)
                if stop is not None:
                    stopped = stop if stopped is None else stopped | stop
        assert answer is not None
        if steps == limit:
            over = self._clock >= way.timesteps
            at_end = over.to(answer.logits.device, non_blocking=True)
            undecided = at_end if stopped is None else at_end & ~stopped
            self.unsure += int((undecided & ~answer.logits.isfinite().all(1)).sum())
            if bool(over.all()):
                return self._leave(None, answer)
            stopped = at_end if stopped is None else stopped | at_end
        return None if stopped is None else self._leave(stopped, answer)

    def settle(self, fresh: Fresh | None) -> None:
        """Let those go that have answered at the last tick, and fresh rows take their places.

        Args:
            fresh: no more than have left; none if nobody stays, or if the rows of this model share a clock.
        """
        if self._stopped is None:
            assert fresh is None
            self.tickets = self.tickets[:0]
            return
        gone = self._gone
        # A second nonzero() would let the host wait for the device once more.
        stay = self._stopped.to(torch.uint8).argsort(stable=True)[: len(self) - gone.numel()]
        self._readout.keep(stay)
        self._leaving.keep(stay)
        if fresh is None:
            self._keep(stay)
            return
        arriving = fresh.tickets.numel()
        if arriving < gone.numel():  # the fresh ones first, then those who stay
            self._keep(torch.cat([gone[:arriving], stay]))
            gone = torch.arange(arriving, device=gone.device)
            stay = torch.arange(arriving, len(self), device=gone.device)
        self.way.adapter.place(self._rows, gone, fresh.inputs)
        self._readout.join(gone, stay, None)
        self._leaving.join(gone, stay, fresh.memory)
        places = gone.cpu()
        self.tickets = self.tickets.index_copy(0, places, fresh.tickets)
        self._set_clock(self._clock.index_fill(0, places, 0), gone.device)

    def _decide(self, outputs: tuple[Tensor, ...]) -> tuple[_Answer, Tensor | None]:
        """One timestep of readout and policy: what every row would answer, and who stops."""
        self._clock = self._clock + 1
        self._timestep = self._clock if outputs[0].device == self._clock.device else self._timestep + 1
        (logits,) = self._readout.update(self.way.read, (self._timestep, *outputs))
        stop, score = self._leaving.after(logits, self._timestep, self._clock)
        return _Answer(logits, self._timestep, score), stop

    def _leave(self, stopped: Tensor | None, answer: _Answer) -> Exits | None:
        """The answers of those who have stopped; everybody's for ``None``."""
        self._stopped = stopped
        if stopped is None:
            return Exits(self.tickets, *answer)
        self._gone = index = stopped.nonzero().squeeze(1)  # here the host waits for the device
        if not index.numel():
            return None
        if index.numel() == len(self):
            return self._leave(None, answer)
        return Exits(self.tickets[index.cpu()], *(tensor.index_select(0, index) for tensor in answer))

    def _keep(self, index: Tensor) -> None:
        self.way.adapter.keep(self._rows, index)
        places = index.cpu()
        self.tickets = self.tickets[places]
        self._set_clock(self._clock[places], index.device)

    def _set_clock(self, clock: Tensor, device: torch.device) -> None:
        self._clock = clock
        self._timestep = clock.to(device, non_blocking=True)  # to a GPU: else the host would wait for it


def _held(stopped: Tensor, held: _Answer, now: _Answer) -> _Answer:
    """What was, for those who have stopped; what is now, for the others."""
    pairs = zip(held, now, strict=True)
    return _Answer(*(torch.where(stopped.view(-1, *[1] * (b.ndim - 1)), a, b) for a, b in pairs))


def fly(flight: Flight, source: Source, slots: int, refill: bool) -> Iterator[Exits]:
    """Run all rows of ``source``, at most ``slots`` of them at a time; the answers as they are found.

    Nothing is taken from the source before the answers found so far have been taken over.

    Args:
        refill: whether fresh rows take the places of those that have answered; else they wait until all have.
    """
    while (fresh := source.take(slots)) is not None:
        flight.begin(fresh)
        while len(flight):
            exits = flight.tick()
            if exits is None:
                continue
            yield exits
            left = exits.tickets.numel()
            flight.settle(source.take(left) if refill and left < len(flight) else None)
