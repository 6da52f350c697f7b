"""How the timesteps of a model are made: by calling it, or by running a loop that it hides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .module_adapter import ModuleAdapter

Outputs = tuple[Tensor, ...]
MISFITS: Final = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError)
"""What a model raises on input of a shape that it does not take; anything else is an error of its own."""
AGGREGATES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "last": lambda steps: steps[-1],
    "sum": lambda steps: steps.sum(0),
    "mean": lambda steps: steps.mean(0),
    "max": lambda steps: steps.amax(0),
}
"""How one answer may be made of those to single timesteps ``[T, n, ...]``, by the name of the readout that does it."""


@dataclass(frozen=True)
class OwnRun:
    """What a model answers in a run of all its timesteps, as its owner makes it.

    Attributes:
        outputs: outputs, and how each is made of those of the timesteps: ``"stack"`` (``[T, n, ...]``: it is all of
            them) or the name of a readout (``[n, ...]``).
        timesteps: the timesteps made.
        arguments: values that it handed back, where the model takes and returns its states.
        keeps_state: whether the state that lies in the modules afterwards is that of the last timestep.
    """

    outputs: tuple[tuple[Tensor, str], ...]
    timesteps: int
    arguments: list[Any]
    keeps_state: bool


class Stepper(ABC):
    """Makes the timesteps of one kind of rows. The state that lies in the modules has been lent to them.

    Attributes:
        names: what the rows carry beside that, in the order of the values that :meth:`start` returns.
        answer: how the model itself makes its one answer of the timesteps, as the name of a readout; ``None`` if it
            returns the outputs of all timesteps.
        cumulative: whether the output of a timestep is already the answer to all timesteps so far.
        timesteps: how many timesteps the model makes by itself; ``None`` if its caller says.
        one_at_a_time: whether several timesteps must be made by several calls of :meth:`advance`.
        takes_frames: whether a timestep needs its frame of the input; else all of the input is given at the start.
        derived: those of ``names`` that are no state, but carried so as not to be computed again.
        starts_from_input: whether the values before the first timestep are made of the input.
    """

    answer: str | None = None
    cumulative: bool = False
    timesteps: int | None = None
    one_at_a_time: bool = False
    takes_frames: bool = True
    derived: tuple[str, ...] = ()
    starts_from_input: bool = False

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def start(self, inputs: Tensor) -> list[Any]:
        """Values before the first timestep. ``inputs``: ``[n, ...]``, or ``[T, n, ...]`` for a sequence."""

    @abstractmethod
    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        """Make ``steps`` timesteps of ``frames`` ``[steps, n, ...]``.

        Returns:
            A function that gives the outputs ``[steps, n, ...]``, to be called once the state has been taken out of
            the modules (it may overwrite it), and the values after the timesteps.
        """

    @abstractmethod
    def own_run(self, inputs: Tensor, sequence: bool, timesteps: int) -> OwnRun:
        """The model's own run from fresh state, as its users make it."""

    def do_without(self, name: str, few: Tensor) -> bool:
        """Stop carrying one of :attr:`names`, whose rows cannot be told apart, if no answer needs it.

        Args:
            name: its name.
            few: a small batch to find out with.
        """
        return False

    def as_it_lies(self) -> Stepper:
        """What steps the model as it lies at this moment: this stepper, or one that carries only its first values."""
        return self

    def explain(self) -> dict[str, str]:
        """Facts for :meth:`EarlyExitWrapper.explain`."""
        return {}


class CallStepper(Stepper):
    """Calls the model once for a timestep, or once for several of them where it takes a time axis."""

    def __init__(self, adapter: ModuleAdapter) -> None:
        self.adapter = adapter

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"argument {name}" for name in self.adapter.state_arguments)

    def start(self, inputs: Tensor) -> list[Any]:
        return self.adapter.fresh_arguments()

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        assert frames is not None
        outputs, values = self.adapter.run(frames, values)
        return lambda: outputs, values

    def own_run(self, inputs: Tensor, sequence: bool, timesteps: int) -> OwnRun:
        frames = inputs[:timesteps] if sequence else inputs.expand(timesteps, *inputs.shape)
        outputs, arguments = self.adapter.run_own(frames, self.adapter.fresh_arguments())
        return OwnRun(tuple((output, "stack") for output in outputs), timesteps, arguments, keeps_state=True)


def results(returned: Any) -> list[Tensor | None]:
    """The things that ``forward`` returns, each a tensor; a list of tensors, one for each timestep, is stacked."""
    items = returned if isinstance(returned, tuple) else (returned,)
    return [_as_tensor(item) for item in items]


def _as_tensor(item: Any) -> Tensor | None:
    if isinstance(item, list | tuple) and item and all(isinstance(one, Tensor) for one in item):
        return torch.stack(list(item)) if len({one.shape for one in item}) == 1 else None
    return item if isinstance(item, Tensor) else None
