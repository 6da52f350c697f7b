"""The runs of a few rows that the checks of a model compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Final

import torch
from torch import Tensor, nn

from ..adapter.contract import Adapter, Reference, Rows
from ..discovery.driven_neurons import DrivenNeurons, Firing, counting
from ..discovery.probing import made_up
from ..inputs import InputBatch
from ..readout import Outputs
from ..state.values import random_state
from .trace import advance_to

_SEED: Final = 20230401
_ADAPTED: Final = 4  # timesteps
_WINDOW: Final = 64
_CUTS: Final = 31  # rows


class CheckRuns:
    """The runs of one model that its checks compare. Each is made once, when it is first needed.

    Args:
        adapter: the adapter of the model.
        inputs: the rows.
        timesteps: T.
        chunk: timesteps computed at a time.
        driven: drives the neurons in all runs; call :meth:`drive` first.
        compares_state: whether the state at the end of a run is compared, beside the outputs.
    """

    def __init__(
        self,
        adapter: Adapter,
        inputs: InputBatch,
        timesteps: int,
        chunk: int,
        driven: DrivenNeurons | None = None,
        compares_state: bool = True,
    ) -> None:
        self.adapter, self.inputs, self.timesteps, self.chunk = adapter, inputs, timesteps, chunk
        self.driven, self.compares_state = driven, compares_state
        self.firing: dict[nn.Module, Firing] = {}
        self.draws_in_timesteps = False
        self.window = min(timesteps, -(-_WINDOW // chunk) * chunk)
        """The timesteps that are compared between different batches: all, unless there are many."""
        self._states: dict[int, list[Tensor]] = {}

    def drive(self) -> None:
        """Find the constants of the driven neurons, if any."""
        if self.driven is not None:
            steps = min(self.timesteps, max(self.chunk, _ADAPTED))
            self.driven.adapt(lambda: advance_to(self.adapter, self.begin(self.inputs), steps, self.chunk))

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block the neurons answer as in all runs."""
        with nullcontext() if self.driven is None else self.driven.applied():
            yield

    def begin(self, inputs: InputBatch) -> Rows:
        torch.manual_seed(_SEED)
        return self.adapter.begin(inputs)

    def run(self, inputs: InputBatch, timesteps: int) -> tuple[list[Outputs], Rows]:
        """The outputs of ``timesteps`` timesteps from fresh state, and the rows afterwards."""
        with self.answering():
            rows = self.begin(inputs)
            return advance_to(self.adapter, rows, timesteps, self.chunk), rows

    @cached_property
    def base(self) -> list[Outputs]:
        """The outputs of every timestep of all rows. The other runs are compared with them."""
        with self.answering():
            rows = self.begin(self.inputs)
            before = random_state(self.inputs.values)
            with counting(() if self.driven else self.adapter.neuron_layers()) as self.firing:
                made = advance_to(self.adapter, rows, self.window, self.chunk)
                self._states[self.window] = self._state_of(rows)
                made += advance_to(self.adapter, rows, self.timesteps - self.window, self.chunk)
                self._states[self.timesteps] = self._state_of(rows)
        self.draws_in_timesteps = not torch.equal(before, random_state(self.inputs.values))
        return made

    def state(self, timesteps: int) -> list[Tensor]:
        """The state of the rows of :attr:`base` after all timesteps, or after those of :attr:`window`."""
        _ = self.base
        return self._states[timesteps]

    def _state_of(self, rows: Rows) -> list[Tensor]:
        return self.adapter.state_tensors(rows) if self.compares_state else []

    @cached_property
    def reference(self) -> tuple[Reference | None, Tensor]:
        """The model's own run of some of the rows, and which these are.

        It differs from :attr:`base` in its rows too. The reason of a difference is found afterwards.
        """
        n = len(self.inputs)
        if self.draws_at_start:
            chosen = torch.arange(n, device=self.inputs.device)
        elif self.driven is None:
            chosen = torch.arange(n - 1, -1, -2, device=self.inputs.device)
        else:  # continuous answers prove as much on one row
            chosen = torch.tensor([self._in_the_middle], device=self.inputs.device)
        return self.own_run(chosen), chosen

    @property
    def _in_the_middle(self) -> int:
        return len(self.inputs) // 2

    def own_run(self, chosen: Tensor) -> Reference | None:
        """The model's own run of the rows at ``chosen``; ``None`` if it has none."""
        with self.answering():
            torch.manual_seed(_SEED)
            return self.adapter.reference(self.inputs.select(chosen), self.timesteps)

    def why_unfit(self) -> str:
        """Why driven neurons prove nothing about this model; empty if they do."""
        assert self.driven is not None
        self.driven.replaced = 0
        _ = self.base
        in_steps, self.driven.replaced = self.driven.replaced, 0
        own, rows = self.reference
        in_own_run = self.driven.replaced
        if not any(output.isfinite().any() for outputs in self.base for output in outputs):
            return "its answers are not finite then"
        if not in_steps:
            return "no neuron answers in the shape of its input"
        row_steps = len(self.inputs) * self.timesteps
        if own is not None and in_own_run * row_steps != in_steps * len(rows) * own.timesteps:
            return "its own run does not call its neurons as modules, as its timesteps do"
        return ""

    @cached_property
    def draws_at_start(self) -> bool:
        """Whether rows are encoded at random when they begin, so that they must keep their place."""
        torch.manual_seed(_SEED)
        before = random_state(self.inputs.values)
        self.adapter.begin(self.inputs)
        return not torch.equal(before, random_state(self.inputs.values))

    # -- the same rows in a different batch ------------------------------------------------------------------------

    @cached_property
    def neighbours(self) -> Tensor:
        """Which row is at each place of :attr:`regrouped`: one half of the rows twice, so that its size is the same.

        Operations that sum over rows show by that; those that count rows, when half of them have been dropped.
        """
        n = len(self.inputs)
        half = torch.arange(n, device=self.inputs.device) % ((n + 1) // 2)
        if self.driven is None:
            return half
        return (n - 1 - half).flip(0) if self.draws_at_start else n - 1 - half

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """For each further row of :attr:`regrouped`, the timestep after which its input is another."""
        if not self.inputs.sequence:
            return ()
        possible = range(self.chunk, min(self.window + self.chunk, self.timesteps), self.chunk)
        if len(possible) <= _CUTS:
            return tuple(possible)
        ends, between = _CUTS // 3, _CUTS - 2 * (_CUTS // 3)
        middle = possible[ends:-ends]
        return (*possible[:ends], *(middle[i * len(middle) // between] for i in range(between)), *possible[-ends:])

    @cached_property
    def regrouped(self) -> tuple[list[Outputs], list[Tensor], list[Tensor], Tensor]:
        """A run of the rows at :attr:`neighbours`, of which half go on after a chunk, and of a row for each cut.

        Returns:
            The outputs of every timestep; for each timestep, which of the rows at the start these are; the state at
            the end of those that began as neighbours; and which these are.
        """
        n, cuts = len(self.inputs), () if self.draws_at_start else self.cuts
        device = self.inputs.device
        together = self.inputs.select(self.neighbours)
        if cuts:
            together = together.joined(self.with_other_future(cuts))
        later = (3 * torch.arange((n + 1) // 2, device=device) + 1) % n
        staying = torch.cat([later, torch.arange(n, n + len(cuts), device=device)])
        with self.answering():
            rows = self.begin(together)
            made = list(zip(*self.adapter.advance(rows, min(self.chunk, self.window)), strict=True))
            present = [torch.arange(n + len(cuts), device=device)] * len(made)
            self.adapter.keep(rows, staying)
            made += advance_to(self.adapter, rows, self.window - len(made), self.chunk)
            present += [staying] * (len(made) - len(present))
        return made, present, [tensor[: len(later)] for tensor in self._state_of(rows)], later

    def source(self, cut: int) -> int:
        """The row of the input that the row with this cut is made from."""
        return len(self.inputs) - 1 - self.cuts.index(cut) % len(self.inputs)

    def with_other_future(self, cuts: Sequence[int]) -> InputBatch:
        """A row for each cut, with the input of its source up to there, and another one afterwards."""
        sources = torch.tensor([self.source(cut) for cut in cuts], device=self.inputs.device)
        values, other = self.inputs.select(sources).values.clone(), self.other_values(len(cuts))
        for row, cut in enumerate(cuts):
            values[cut:, row] = other[cut:, row]
        return self.inputs.with_values(values)

    def with_one_other_future(self, cut: int) -> InputBatch:
        """All rows, with their input up to ``cut``, and another one afterwards."""
        values = self.inputs.values.clone()
        values[cut:] = self.other_values(len(self.inputs))[cut:]
        return self.inputs.with_values(values)

    def other_values(self, rows: int) -> Tensor:
        return made_up(self.inputs, rows, seed=_SEED + 1).values

    @property
    def every_cut(self) -> bool:
        """Whether :attr:`cuts` are all that there are."""
        return len(self.cuts) == len(range(self.chunk, self.timesteps, self.chunk))
