"""What the core asks of a framework: one spiking network as a machine that is advanced in time, row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import InputBatch
from ..state.change_detection import StructureVersion
from ..state.memory_format import select
from ..stepping.stepper import Outputs


@dataclass
class Rows:
    """The rows of a run, with everything that they need to go on. The engine holds it, the adapter advances it.

    Attributes:
        inputs: the input; see :class:`~seenn_plugin.inputs.InputBatch`.
        state: what the adapter carries for these rows (membrane potentials, recurrent spikes, ...).
        now: timesteps made since the first rows began.
        born: long ``[n]`` on the CPU: the value of ``now`` when each row began; ``None`` while all rows began at 0, so
            that rows with one clock need no arithmetic.
        where: long ``[n]``: the place of each row in ``inputs``; ``None`` if row i is at place i. A sequence is not
            copied when rows finish, because most of it has been read already.
        padded: row-steps computed beside those of the rows, to fill up the batch size of a compiled step.
    """

    inputs: InputBatch
    state: Any = None
    now: int = 0
    born: Tensor | None = None
    where: Tensor | None = None
    padded: int = 0

    def __len__(self) -> int:
        return len(self.inputs) if self.where is None else self.where.numel()

    @property
    def clock(self) -> Tensor:
        """Long ``[n]`` on the CPU: the timesteps that each row has made."""
        return torch.full((len(self),), self.now) if self.born is None else self.now - self.born

    @property
    def youngest(self) -> int:
        """The fewest timesteps that any row has made."""
        return self.now if self.born is None else int(self.clock.min())

    def frames(self, steps: int) -> Tensor:
        """Input of the next ``steps`` timesteps of every row, ``[steps, n, ...]``."""
        values = self.inputs.values
        if not self.inputs.sequence:
            frame = values.unsqueeze(0)
            return frame if steps == 1 else frame.expand(steps, *values.shape)
        if self.born is None:
            frames = values[self.now : self.now + steps]
            return frames if self.where is None else frames.index_select(1, self.where)
        time = (self.clock + torch.arange(steps).unsqueeze(1)).to(values.device, non_blocking=True)
        where = torch.arange(len(self), device=values.device) if self.where is None else self.where
        return values[time, where]

    def keep(self, index: Tensor) -> None:
        """Keep input and clock of the rows at ``index``. The adapter keeps ``state``."""
        if self.born is not None:
            self.born = self.born[index.cpu()]
        if self.inputs.sequence:
            self.where = index if self.where is None else self.where[index]
        else:
            self.inputs = self.inputs.with_values(select(self.inputs.values, 0, index))

    def place(self, index: Tensor, inputs: InputBatch) -> None:
        """Put input and clock of new rows at the places ``index``. The adapter fills ``state``.

        Raises:
            InputError: ``inputs`` does not fit the places, or the other rows.
        """
        own = self.inputs
        if (inputs.row_shape, inputs.length) != (own.row_shape, own.length) or len(inputs) != index.numel():
            raise InputError(
                f"cannot place {tuple(inputs.values.shape)} at {index.numel()} of the rows of "
                f"{tuple(own.values.shape)}."
            )
        born = torch.zeros(len(self), dtype=torch.long) if self.born is None else self.born
        self.born = born.index_fill(0, index.cpu(), self.now)
        values = own.values
        if self.where is not None:
            values, self.where = values.index_select(1, self.where), None
        # clone() keeps the memory format.
        self.inputs = own.with_values(values.clone().index_copy_(own.row_dim, index, inputs.values))


@dataclass(frozen=True)
class Reference:
    """What a model answers in its own run.

    Attributes:
        outputs: each output, with the way in which it is made of the outputs of the timesteps: ``"stack"``
            (``[T, n, ...]``, all of them) or the name of a readout (``[n, ...]``, one answer).
        timesteps: the timesteps that the model made.
        state: :meth:`Adapter.state_tensors` at its end; ``None`` if the model does not leave its state behind.
    """

    outputs: tuple[tuple[Tensor, str], ...]
    timesteps: int
    state: list[Tensor] | None


class Adapter(ABC):
    """One spiking network as a machine that is advanced in time, row by row.

    An adapter has four abilities over an explicit :class:`Rows` object, so that two runs on one model can interleave:
    begin rows, advance all rows, keep some of them, place new ones. It knows nothing of policies and readouts, and a
    run changes nothing in it. Between calls the caller's model is exactly as the caller left it.

    A third party ships an adapter by registering a subclass under the entry-point group ``seenn_plugin.adapters``.
    ``seenn_plugin.testing.AdapterConformance`` tests it.

    Args:
        model: the caller's network.
    """

    name: ClassVar[str]
    """The name by which users ask for it: ``EarlyExitWrapper(model, adapter=name)``."""
    framework: ClassVar[str | None] = None
    """The import package that must be installed, if any."""
    extra: ClassVar[str | None] = None
    """The extra of this distribution that installs the framework, if any."""

    skips_finished_rows: ClassVar[bool] = True
    """Whether a row that has finished costs nothing more."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._structure = StructureVersion()

    @classmethod
    @abstractmethod
    def claims(cls, model: nn.Module) -> bool:
        """Whether this adapter is made for ``model``. Must be cheap and must import no framework."""

    @abstractmethod
    def begin(self, inputs: InputBatch) -> Rows:
        """New rows, before their first timestep."""

    @abstractmethod
    def advance(self, rows: Rows, steps: int = 1) -> Outputs:
        """Advance every row by ``steps`` timesteps and return the outputs, each ``[steps, n, ...]``.

        The first output is what the network answers with. Further ones, such as a membrane potential returned beside
        the spikes, may follow. If the model raises, ``rows`` is unchanged.
        """

    @abstractmethod
    def keep(self, rows: Rows, index: Tensor) -> None:
        """Keep the rows at ``index`` (long ``[m]``, any order, repeats allowed) and drop all others, in place."""

    @abstractmethod
    def place(self, rows: Rows, index: Tensor, inputs: InputBatch) -> None:
        """Put new rows with ``inputs`` at the places ``index`` (long ``[m]``), in place.

        Raises:
            ModelRefused: the rows of this model share a clock, so that a new row cannot join them.
        """

    def refill_blocker(self, rows: Rows) -> str:
        """Why :meth:`place` refuses new rows among ``rows``; empty if it accepts them."""
        return ""

    def state_tensors(self, rows: Rows) -> list[Tensor]:
        """All that the rows carry, in tensors with rows on dimension 0. The checks compare them. May be empty."""
        return []

    def reference(self, inputs: InputBatch, timesteps: int) -> Reference | None:
        """The model's own run over ``timesteps`` timesteps, as its users call it; ``None`` if it has none."""
        return None

    def answer(self, inputs: InputBatch) -> str | None:
        """The name of the readout by which the model makes one answer of its timesteps.

        ``"last"`` if the output of a timestep is the answer to all timesteps so far; ``None`` if the model leaves the
        readout to its users.
        """
        return None

    def makes_chunks(self, inputs: InputBatch) -> bool:
        """Whether several timesteps at a time take less time than the same ones by one."""
        return False

    def own_timesteps(self, inputs: InputBatch) -> int | None:
        """How many timesteps the model makes of such input by itself; ``None`` if its users say."""
        return None

    def runs_whole(self, inputs: InputBatch) -> bool:
        """Whether the model is known to take this input in one call, in the layout of the caller."""
        return False

    def neuron_layers(self) -> Collection[nn.Module]:
        """The modules of the model that are known to be spiking neurons; empty if none are known.

        The checks count their spikes, and make them answer with made-up values.
        """
        return ()

    def can_fire(self, neuron: nn.Module) -> bool:
        """Whether this neuron layer is made to fire; some are made to integrate only."""
        return True

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All modules of the model at the last :meth:`structure_version`."""
        return self._structure.modules

    def structure_version(self) -> int:
        """A number that changes when the modules of the model, or :meth:`run_settings`, have changed.

        What was found out about the model holds for one version.
        """
        return self._structure.update(self.model, self.run_settings)

    def run_settings(self, modules: tuple[nn.Module, ...]) -> Any:
        """What decides how the model runs, beside its ``modules``. Compared by equality."""
        return None

    def explain(self) -> dict[str, str]:
        """Facts that :meth:`EarlyExitWrapper.explain` prints: step mode, state found, ..."""
        return {}
