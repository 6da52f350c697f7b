"""What an early-exit run gives back."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ExitResult:
    """Answers of ``N`` rows, each at its own exit.

    Attributes:
        logits: decision logits at the exit, ``[N, C]``; ``[N, C, ...]`` if the model answers at several positions.
        timesteps: long ``[N]``: the timesteps that each row took.
        score: float ``[N]``: the policy's score at the exit.
        steps_executed: row-steps that the network computed: the sum of ``timesteps``, plus the steps of rows that
            stopped between two synchronisations with the host (``chunk``, ``check_every``), plus the rows that fill up
            the batch size of a compiled step.
    """

    logits: Tensor
    timesteps: Tensor
    score: Tensor
    steps_executed: int

    def __len__(self) -> int:
        return self.timesteps.numel()

    @property
    def predictions(self) -> Tensor:
        """Long ``[N]``: the predicted class of each row; ``[N, ...]`` if the model answers at several positions."""
        return self.logits.argmax(1)


@dataclass(frozen=True)
class StreamItem:
    """The answer of one sample of a stream.

    Attributes:
        key: the caller's key; the position if there is none.
        position: the place of the sample in the stream, counted from 0.
        logits: decision logits at the exit, ``[C]``.
        timesteps: the timesteps that the sample took.
        score: the policy's score at the exit.
    """

    key: Any
    position: int
    logits: Tensor
    timesteps: int
    score: float

    @property
    def prediction(self) -> int:
        """The predicted class.

        Raises:
            ValueError: the model answers at several positions; take ``logits.argmax(0)``.
        """
        if self.logits.ndim > 1:
            raise ValueError("the answer has a class at every position: take logits.argmax(0).")
        return int(self.logits.argmax())
