"""The reward of a choice of timesteps, with a parameter that trades accuracy for time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...errors import PolicyError

_EXPONENTS = (-2, -1, 0, 1, 2)
"""The initial grid: these powers of 4, times a value at which first and last candidate are about equally good."""


@dataclass(frozen=True)
class Reward(ABC):
    """The reward of every candidate timestep of a row, with one parameter.

    Args:
        value: the value of the parameter: finite, at least 0.

    Attributes:
        parameter: the name of the parameter, as in ``fit_policy(..., beta=...)``.

    Raises:
        PolicyError: the value is not such a number.
    """

    value: float
    parameter: ClassVar[str]

    def __post_init__(self) -> None:
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not number or not isfinite(self.value) or self.value < 0:
            raise PolicyError(f"{self.parameter} must be a finite number of at least 0, not {self.value!r}.")

    def __str__(self) -> str:
        return f"{self.parameter}={self.value:g}"

    @property
    def name(self) -> str:
        """Parameter and value without rounding, for file names and logs."""
        return f"{self.parameter}={self.value!r}"

    def __call__(self, correct: Tensor, candidates: Sequence[int]) -> Tensor:
        """Compute the reward of each candidate timestep.

        Args:
            correct: bool ``[N, K]``: whether the prediction of a row is correct at each candidate.
            candidates: the timesteps t_1..t_K.

        Returns:
            Float32 ``[N, K]``.

        Raises:
            PolicyError: a reward is NaN or infinite.
        """
        rewards = self.of(correct, torch.tensor(candidates, dtype=torch.float32, device=correct.device))
        if not bool(rewards.isfinite().all()):
            raise PolicyError(
                f"the reward with {self} is NaN or infinite for some row; choose a smaller {self.parameter}."
            )
        return rewards

    @abstractmethod
    def of(self, correct: Tensor, timesteps: Tensor) -> Tensor:
        """Compute rewards ``[N, K]`` from correctness, bool ``[N, K]``, and timesteps, float ``[K]``."""

    @classmethod
    @abstractmethod
    def grid(cls, accuracy: Sequence[float], candidates: Sequence[int]) -> list[Self]:
        """Return the rewards to try first, from early exits to late.

        Args:
            accuracy: the accuracy of the spiking network at each candidate, as fractions.
            candidates: the timesteps t_1..t_K.
        """

    @abstractmethod
    def later(self) -> Self:
        """Return a reward with later exits than this one."""

    def between(self, later: Self) -> Self:
        """Return a reward whose exits lie between this one's and those of ``later``, by the geometric mean."""
        low, high = sorted((self.value, later.value))
        return type(self)((low * high) ** 0.5 if low > 0 else high / 4)


@dataclass(frozen=True)
class ExponentialReward(Reward):
    """``2 ** -t`` if the prediction at t is correct, else ``-beta``: the reward of SEENN-II (arXiv 2304.01230).

    It is nearly constant beyond t = 6. For a large T, prefer :class:`LinearReward`.

    Example:
        >>> ExponentialReward(0.5)(torch.tensor([[False, True]]), candidates=[1, 2])
        tensor([[-0.5000,  0.2500]])
    """

    parameter: ClassVar[str] = "beta"

    def of(self, correct: Tensor, timesteps: Tensor) -> Tensor:
        return torch.where(correct, torch.exp2(-timesteps), torch.tensor(-self.value, dtype=torch.float32))

    @classmethod
    def grid(cls, accuracy: Sequence[float], candidates: Sequence[int]) -> list[Self]:
        # From this beta on, choosing the last candidate for all rows has a higher mean reward than choosing the first.
        gain = accuracy[-1] - accuracy[0]
        centre = (accuracy[0] * 2.0 ** -candidates[0] - accuracy[-1] * 2.0 ** -candidates[-1]) / gain if gain > 0 else 1
        centre = min(max(centre, 0.1), 100.0)
        return [cls(0.0), *(cls(centre * 4.0**power) for power in _EXPONENTS)]

    def later(self) -> Self:
        return type(self)(4 * self.value)


@dataclass(frozen=True)
class LinearReward(Reward):
    """``1 - step_cost * t`` if the prediction at t is correct, else ``-step_cost * t``.

    Example:
        >>> LinearReward(0.25)(torch.tensor([[False, True]]), candidates=[1, 2])
        tensor([[-0.2500,  0.5000]])
    """

    parameter: ClassVar[str] = "step_cost"

    def of(self, correct: Tensor, timesteps: Tensor) -> Tensor:
        return correct.float() - self.value * timesteps

    @classmethod
    def grid(cls, accuracy: Sequence[float], candidates: Sequence[int]) -> list[Self]:
        gain, steps = accuracy[-1] - accuracy[0], candidates[-1] - candidates[0]
        centre = min(max(gain / steps if steps else 1.0, 1e-3), 0.1)
        return [cls(1.0), *(cls(centre * 4.0**-power) for power in _EXPONENTS)]

    def later(self) -> Self:
        return type(self)(self.value / 4)


REWARDS: dict[str, type[Reward]] = {"exponential": ExponentialReward, "linear": LinearReward}
"""The reward for each value of ``fit_policy(..., cost=...)``."""
