"""Policies that plan the exit of each row from its input, before the first timestep."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PolicyError
from ..inputs import InputBatch
from .base import Decision, Policy


class Plan(NamedTuple):
    """The planned exits of ``n`` rows.

    Attributes:
        timesteps: long ``[n]``: the timestep at which each row exits, from 1.
        score: float ``[n]``: the confidence of the plan, higher for more confident rows. Reported as
            ``ExitResult.score``.
    """

    timesteps: Tensor
    score: Tensor


class PlanPolicy(Policy):
    """Plan the exit of every row from the input, without using decision logits.

    A subclass defines :meth:`plan`. A row whose logits are NaN or infinite at its planned exit continues until they are
    finite, or to T, as under every other policy.

    Attributes:
        frames: the number of frames of a sequence that :meth:`plan` receives; no row can exit earlier.

    Example:
        >>> class BrightnessPolicy(PlanPolicy):
        ...     '''Two timesteps for bright images, all timesteps for dark ones.'''
        ...
        ...     def plan(self, frames, timesteps):
        ...         return torch.where(frames.flatten(1).mean(1) > 0.5, 2, timesteps)
        >>> images = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
        >>> BrightnessPolicy().start(InputBatch(images), timesteps=4, classes=10).timesteps
        tensor([4, 2])
    """

    frames: int = 1

    @abstractmethod
    def plan(self, frames: Tensor, timesteps: int) -> Plan | Tensor:
        """Plan the exits of ``n`` rows. Must treat each row independently of the others.

        Args:
            frames: the static input ``[n, ...]``, or the first frames of a sequence, concatenated on the dimension
                after that of the rows: ``[n, frames * C, ...]``.
            timesteps: T, the largest number of timesteps of a row.

        Returns:
            A :class:`Plan`, or only its timesteps, long ``[n]``; the score is then 1.
        """

    def start(self, inputs: InputBatch, timesteps: int, classes: int) -> Plan:
        """Return the plan of ``n`` rows, which is their policy state; see :meth:`Policy.start`.

        Raises:
            PolicyError: the sequence is shorter than ``frames``, or the plan has a wrong type, dtype, shape, device or
                range.
        """
        if inputs.length is not None and self.frames > inputs.length:
            raise PolicyError(
                f"{type(self).__name__} plans from the first {self.frames} frames, and the sequence has "
                f"{inputs.length}."
            )
        first = first_frames(inputs, self.frames)
        plan = self.plan(first, timesteps)
        if isinstance(plan, Tensor):
            plan = Plan(plan, torch.ones(plan.shape, device=plan.device))
        self._check(plan, first, timesteps, self.frames if inputs.sequence else 1)
        return plan

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        if policy_state is None:
            raise PolicyError(
                f"{type(self).__name__} plans from the input: call start() first, and pass its result as policy_state."
            )
        return Decision(timestep >= policy_state.timesteps, policy_state.score, policy_state)

    def _check(self, plan: Any, frames: Tensor, timesteps: int, earliest: int) -> None:
        """Raise a PolicyError unless the plan fits the rows of ``frames`` and lies in ``earliest`` to ``timesteps``."""
        name, n = type(self).__name__, frames.shape[0]
        if not isinstance(plan, Plan):
            raise PolicyError(f"{name}.plan must return a Plan or a long tensor, not {type(plan).__name__}.")
        planned, score = plan
        if planned.dtype != torch.long or planned.shape != (n,):
            raise PolicyError(
                f"{name}.plan returned timesteps as {planned.dtype} {tuple(planned.shape)}; they must be a long tensor "
                f"of shape ({n},)."
            )
        if not score.is_floating_point() or score.shape != (n,):
            raise PolicyError(
                f"{name}.plan returned the score as {score.dtype} {tuple(score.shape)}; it must be a floating point "
                f"tensor of shape ({n},)."
            )
        if planned.device != frames.device or score.device != frames.device:
            raise PolicyError(
                f"{name}.plan returned a plan on {planned.device} for an input on {frames.device}; it must be on the "
                "device of the input."
            )
        if n and not earliest <= int(planned.min()) <= int(planned.max()) <= timesteps:
            raise PolicyError(
                f"{name}.plan returned timesteps from {int(planned.min())} to {int(planned.max())}; they must lie "
                f"between {earliest} and {timesteps}."
            )


def first_frames(inputs: InputBatch, frames: int) -> Tensor:
    """Return the part of an input that a plan is made from.

    Args:
        inputs: of ``n`` rows; frames of a sequence are ``[n, C, ...]``.
        frames: the number of frames of a sequence.

    Returns:
        The static input ``[n, ...]`` unchanged; or the first frames of a sequence, ``[n, frames * C, ...]``.
    """
    return inputs.values[:frames].transpose(0, 1).flatten(1, 2) if inputs.sequence else inputs.values
