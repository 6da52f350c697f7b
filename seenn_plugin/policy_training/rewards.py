"""What a choice of timesteps is worth, and the dial that trades accuracy for time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import PolicyError

_AROUND = (-2, -1, 0, 1, 2)
"""Powers of 4 that are tried around the dial at which the last candidate is worth as much as the first."""


@dataclass(frozen=True)
class Reward(ABC):
    """The reward of every choice, with one dial.

    Args:
        dial: finite, at least 0.
    """

    dial: float
    dial_name: ClassVar[str]

    def __post_init__(self) -> None:
        number = isinstance(self.dial, int | float) and not isinstance(self.dial, bool)
        if not number or not isfinite(self.dial) or self.dial < 0:
            raise PolicyError(f"{self.dial_name} must be a finite number of at least 0, not {self.dial!r}.")

    def __str__(self) -> str:
        return f"{self.dial_name}={self.dial:g}"

    @property
    def name(self) -> str:
        """The setting in full, for files and logs."""
        return f"{self.dial_name}={self.dial!r}"

    def __call__(self, right: Tensor, candidates: Sequence[int]) -> Tensor:
        """Rewards float32 ``[N, K]`` of choosing each of K candidate timesteps.

        Args:
            right: bool ``[N, K]``: whether a row is right at each candidate.
            candidates: the timesteps t_1..t_K.

        Raises:
            PolicyError: a reward is not finite.
        """
        rewards = self.of(right, torch.tensor(candidates, dtype=torch.float32, device=right.device))
        if not bool(rewards.isfinite().all()):
            raise PolicyError(
                f"the reward with {self} is NaN or infinite for some row; choose another {self.dial_name}."
            )
        return rewards

    @abstractmethod
    def of(self, right: Tensor, timesteps: Tensor) -> Tensor:
        """Rewards ``[N, K]`` from bool ``[N, K]`` and float ``[K]``."""

    @classmethod
    @abstractmethod
    def dials(cls, accuracy: Sequence[float], candidates: Sequence[int]) -> list[Self]:
        """Settings worth trying, from early exits to late ones.

        Args:
            accuracy: of the spiking network at each candidate, as fractions.
            candidates: the timesteps.
        """

    @abstractmethod
    def later(self) -> Self:
        """A setting with later exits."""

    def between(self, later: Self) -> Self:
        """A setting between this one and one with later exits."""
        low, high = sorted((self.dial, later.dial))
        return type(self)((low * high) ** 0.5 if low > 0 else high / 4)


@dataclass(frozen=True)
class ExponentialReward(Reward):
    """``2 ** -t`` if the answer after t timesteps is right, else ``-beta``: the reward of SEENN-II.

    Nearly flat beyond t = 6: for long horizons take :class:`LinearReward`.
    """

    dial_name: ClassVar[str] = "beta"

    def of(self, right: Tensor, timesteps: Tensor) -> Tensor:
        return torch.where(right, torch.exp2(-timesteps), torch.tensor(-self.dial, dtype=torch.float32))

    @classmethod
    def dials(cls, accuracy: Sequence[float], candidates: Sequence[int]) -> list[Self]:
        # Taken for all rows alike, the last candidate is worth more than the first from this beta on.
        gain = accuracy[-1] - accuracy[0]
        centre = (accuracy[0] * 2.0 ** -candidates[0] - accuracy[-1] * 2.0 ** -candidates[-1]) / gain if gain > 0 else 1
        centre = min(max(centre, 0.1), 100.0)
        return [cls(0.0), *(cls(centre * 4.0**power) for power in _AROUND)]

    def later(self) -> Self:
        return type(self)(4 * self.dial)


@dataclass(frozen=True)
class LinearReward(Reward):
    """1 if the answer after t timesteps is right, else 0, less ``step_cost`` for each of the t timesteps."""

    dial_name: ClassVar[str] = "step_cost"

    def of(self, right: Tensor, timesteps: Tensor) -> Tensor:
        return right.float() - self.dial * timesteps

    @classmethod
    def dials(cls, accuracy: Sequence[float], candidates: Sequence[int]) -> list[Self]:
        gain, steps = accuracy[-1] - accuracy[0], candidates[-1] - candidates[0]
        centre = min(max(gain / steps if steps else 1.0, 1e-3), 0.1)
        return [cls(1.0), *(cls(centre * 4.0**-power) for power in _AROUND)]

    def later(self) -> Self:
        return type(self)(self.dial / 4)


REWARDS: dict[str, type[Reward]] = {"exponential": ExponentialReward, "linear": LinearReward}
