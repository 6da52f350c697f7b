"""Policies that plan from the input, before the first timestep, how many timesteps each row takes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PolicyError
from .base import Decision, Policy


class Plan(NamedTuple):
    """A plan for ``n`` rows.

    Attributes:
        timesteps: long ``[n]``: the timestep after which each row answers.
        score: float ``[n]``: how sure the plan is; higher is surer. Reported as ``ExitResult.score``.
    """

    timesteps: Tensor
    score: Tensor


class PlanPolicy(Policy):
    """Look at the input once, plan the timesteps of every row, and look at no logits.

    A subclass defines :meth:`plan`. A row whose logits are NaN or infinite when its plan ends goes on, to T at most, as
    under every other policy.

    Attributes:
        frames: the number of timesteps of a sequence that the plan looks at; no row can leave earlier.
    """

    frames: int = 1

    @abstractmethod
    def plan(self, frames: Tensor, timesteps: int) -> Plan | Tensor:
        """Plan ``n`` rows.

        Args:
            frames: the static input ``[n, ...]``, or the first frames of a sequence, ``[n, frames * C, ...]``: joined
                on the first dimension after that of the rows.
            timesteps: T, the most timesteps that a row may take.

        Returns:
            A :class:`Plan`, or its timesteps alone (the score is then 1).
        """

    def start(self, inputs: Tensor, sequence: bool, timesteps: int, classes: int) -> Plan:
        if sequence and self.frames > inputs.shape[0]:
            raise PolicyError(
                f"{type(self).__name__} looks at the first {self.frames} frames, and the sequence has "
                f"{inputs.shape[0]}."
            )
        first = first_frames(inputs, sequence, self.frames)
        plan = self.plan(first, timesteps)
        if isinstance(plan, Tensor):
            plan = Plan(plan, torch.ones(plan.shape, device=plan.device))
        self._check(plan, first, timesteps, self.frames if sequence else 1)
        return plan

    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        if memory is None:
            raise PolicyError(f"{type(self).__name__} plans from the input: ask start() first, and hand its memory on.")
        return Decision(timestep >= memory.timesteps, memory.score, memory)

    def _check(self, plan: Any, frames: Tensor, timesteps: int, earliest: int) -> None:
        """Raise a PolicyError if the plan is not one of these rows for these timesteps."""
        name, n = type(self).__name__, frames.shape[0]
        if not isinstance(plan, Plan):
            raise PolicyError(f"{name}.plan must return a Plan or long timesteps, not {type(plan).__name__}.")
        planned, score = plan
        if planned.dtype != torch.long or planned.shape != (n,):
            raise PolicyError(
                f"{name}.plan gave timesteps as {planned.dtype} {tuple(planned.shape)}; they must be a long tensor of "
                f"shape ({n},)."
            )
        if not score.is_floating_point() or score.shape != (n,):
            raise PolicyError(
                f"{name}.plan gave the score as {score.dtype} {tuple(score.shape)}; it must be a floating point tensor "
                f"of shape ({n},)."
            )
        if planned.device != frames.device or score.device != frames.device:
            raise PolicyError(f"{name}.plan gave a plan on {planned.device} for an input on {frames.device}.")
        if n and not earliest <= int(planned.min()) <= int(planned.max()) <= timesteps:
            raise PolicyError(
                f"{name}.plan gave timesteps from {int(planned.min())} to {int(planned.max())}; they must lie between "
                f"{earliest} and {timesteps}."
            )


def first_frames(inputs: Tensor, sequence: bool, frames: int) -> Tensor:
    """What a plan looks at: static input ``[n, ...]`` as it is; of ``[T, n, C, ...]`` the first ``frames`` frames.

    Returns:
        ``[n, ...]``, or ``[n, frames * C, ...]`` for a sequence.
    """
    return inputs[:frames].transpose(0, 1).flatten(1, 2) if sequence else inputs
