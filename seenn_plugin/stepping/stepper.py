"""How the timesteps of a model are made: by calling the model, or by running the loop inside its ``forward``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ..inputs import InputBatch
from .model_access import ModelAccess

Outputs = tuple[Tensor, ...]
MISFITS: Final = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError)
"""What a model raises on input of a shape that it does not take. Any other error is the model's own."""


@dataclass(frozen=True)
class OwnRun:
    """What a model answers when it is run for all timesteps, as its users call it.

    Attributes:
        outputs: each output, with the way in which it is made of the outputs of the timesteps: ``"stack"``
            (``[T, n, ...]``, all of them) or the name of a readout (``[n, ...]``).
        timesteps: the timesteps made.
        arguments: the states that the model returned, if it takes and returns them.
        keeps_state: whether the modules hold the state of the last timestep afterwards.
    """

    outputs: tuple[tuple[Tensor, str], ...]
    timesteps: int
    arguments: list[Any]
    keeps_state: bool


class Stepper(ABC):
    """Makes the timesteps of one kind of rows. While it does, the modules hold the state of these rows.

    Attributes:
        names: the values that the rows carry beside the state in the modules, in the order in which :meth:`start`
            returns them.
        answer: the name of the readout by which the model makes one answer of its timesteps; ``None`` if it returns
            the outputs of all timesteps.
        cumulative: whether the output of a timestep is already the answer to all timesteps so far.
        timesteps: how many timesteps the model makes by itself; ``None`` if its users say.
        one_at_a_time: whether several timesteps need several calls of :meth:`advance`.
        takes_frames: whether a timestep needs its frame of the input. If not, :meth:`start` takes the whole input.
        derived: those of ``names`` that are not state: they are carried so that they are computed once.
        starts_from_input: whether the values before the first timestep depend on the input.
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
    def start(self, inputs: InputBatch) -> list[Any]:
        """Values before the first timestep."""

    @abstractmethod
    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        """Make ``steps`` timesteps of ``frames`` ``[steps, n, ...]``.

        Returns:
            A function that returns the outputs ``[steps, n, ...]``, and the values after the timesteps. The function
            is called after the state has been read from the modules, because it may overwrite it.
        """

    @abstractmethod
    def own_run(self, inputs: InputBatch, timesteps: int) -> OwnRun:
        """The model's own run from fresh state, as its users call it."""

    def do_without(self, name: str, few: InputBatch) -> bool:
        """Stop carrying one of :attr:`names` that cannot be split into rows, if no answer depends on it.

        Args:
            name: its name.
            few: a small batch to find out with.

        Returns:
            Whether it is no longer carried.
        """
        return False

    def for_current_hooks(self) -> Stepper:
        """The stepper for the hooks that the model has now: this one, or one that carries only its first values."""
        return self

    def explain(self) -> dict[str, str]:
        """Facts for :meth:`EarlyExitWrapper.explain`."""
        return {}


class CallStepper(Stepper):
    """Calls the model once for a timestep, or once for several timesteps if the model takes a time axis."""

    def __init__(self, adapter: ModelAccess) -> None:
        self.adapter = adapter

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"argument {name}" for name in self.adapter.state_arguments)

    def start(self, inputs: InputBatch) -> list[Any]:
        return self.adapter.fresh_arguments()

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        assert frames is not None
        outputs, values = self.adapter.run(frames, values)
        return lambda: outputs, values

    def own_run(self, inputs: InputBatch, timesteps: int) -> OwnRun:
        frames = inputs.frames(timesteps)
        outputs, arguments = self.adapter.run_own(frames, self.adapter.fresh_arguments())
        return OwnRun(tuple((output, "stack") for output in outputs), timesteps, arguments, keeps_state=True)
