"""Which rows leave after a timestep: asked of the policy each time, or read from a plan made beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ..module_state import map_tensors
from ..policies import Plan, PlanPolicy, Policy, consult


class Leaving(ABC):
    """Who leaves when, for the rows of one batch that are still running."""

    @abstractmethod
    def after(self, logits: Tensor, timestep: Tensor, t: int) -> tuple[Tensor | None, Tensor]:
        """Which rows leave after a timestep.

        Args:
            logits: decision logits ``[n, C]`` of the running rows after ``t`` timesteps.
            timestep: long ``[n]``, all of them ``t``.

        Returns:
            bool ``[n]``, ``None`` if none leaves; and the scores, float ``[n]``.
        """

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keep the rows at ``index``."""

    @abstractmethod
    def steps(self, t: int) -> int | None:
        """How many timesteps after ``t`` it is known that no row leaves before; ``None`` if that is not known."""


class Asked(Leaving):
    """The policy is asked after every timestep."""

    def __init__(self, policy: Policy, memory: Any) -> None:
        self._policy = policy
        self._memory = memory

    def after(self, logits: Tensor, timestep: Tensor, t: int) -> tuple[Tensor | None, Tensor]:
        decision = consult(self._policy, logits, timestep, self._memory)
        self._memory = decision.memory
        return decision.stop, decision.score

    def keep(self, index: Tensor) -> None:
        self._memory = map_tensors(lambda memory: memory.index_select(0, index), self._memory)

    def steps(self, t: int) -> int | None:
        return None


class Planned(Leaving):
    """All is known beforehand: logits are looked at only where a plan ends, for NaN."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ends = sorted(set(plan.timesteps.tolist()))  # the one transfer from the device
        self._overdue = False  # whether rows that are not finite stayed beyond the end of their plan

    def after(self, logits: Tensor, timestep: Tensor, t: int) -> tuple[Tensor | None, Tensor]:
        if t not in self._ends and not self._overdue:
            return None, self._plan.score
        due = self._plan.timesteps <= t
        finite = logits.isfinite().all(1)
        self._overdue = bool((due & ~finite).any())
        return due & finite, self._plan.score

    def keep(self, index: Tensor) -> None:
        self._plan = Plan(*(values.index_select(0, index) for values in self._plan))

    def steps(self, t: int) -> int | None:
        return next((end - t for end in self._ends if end > t), None)


def leaving(policy: Policy, memory: Any) -> Leaving:
    """Who leaves when under ``policy``, whose rows start with ``memory`` (:meth:`Policy.start`)."""
    return Planned(memory) if isinstance(policy, PlanPolicy) and isinstance(memory, Plan) else Asked(policy, memory)
