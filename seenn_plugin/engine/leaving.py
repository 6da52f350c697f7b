"""Which rows leave after a timestep: asked of the policy each time, or read from a plan made beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..policies import Plan, PlanPolicy, Policy, consult
from .memory import RowMemory, merged


class Leaving(ABC):
    """Who leaves when, of the rows in flight."""

    @abstractmethod
    def after(self, logits: Tensor, timestep: Tensor, clock: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which rows leave after a timestep.

        Args:
            logits: decision logits ``[n, C]``.
            timestep: long ``[n]``: the timesteps that each row has made.
            clock: the same on the CPU.

        Returns:
            bool ``[n]``, ``None`` if none leaves; and the scores, float ``[n]``.
        """

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keep the rows at ``index``."""

    @abstractmethod
    def join(self, places: Tensor, others: Tensor, memory: Any) -> None:
        """Fresh rows at ``places``, with what the policy knows of them; the rows so far are now at ``others``."""

    @abstractmethod
    def next_end(self, clock: Tensor) -> int | None:
        """How many timesteps no row leaves before, from now on; ``None`` if that is not known.

        Args:
            clock: long ``[n]`` on the CPU: the timesteps that each row has made.
        """


class Asked(Leaving):
    """The policy is asked after every timestep."""

    def __init__(self, policy: Policy, memory: Any) -> None:
        self._policy = policy
        self._memory = RowMemory(memory)

    def after(self, logits: Tensor, timestep: Tensor, clock: Tensor) -> tuple[Tensor | None, Tensor]:
        stop, score = self._memory.update(self.consult, (logits, timestep))
        return stop, score

    def consult(self, memory: Any, rows: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], Any]:
        decision = consult(self._policy, rows[0], rows[1], memory)
        return (decision.stop, decision.score), decision.memory

    def keep(self, index: Tensor) -> None:
        self._memory.keep(index)

    def join(self, places: Tensor, others: Tensor, memory: Any) -> None:
        self._memory.join(places, others, memory)

    def next_end(self, clock: Tensor) -> int | None:
        return None


class Planned(Leaving):
    """All is known beforehand: logits are looked at only where a plan ends, for NaN."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ends = plan.timesteps.cpu()  # the one transfer from the device
        self._overdue = False  # whether rows that are not finite stayed beyond the end of their plan

    def after(self, logits: Tensor, timestep: Tensor, clock: Tensor) -> tuple[Tensor | None, Tensor]:
        if not self._overdue and not bool((self._ends <= clock).any()):
            return None, self._plan.score
        due = self._plan.timesteps <= timestep
        finite = logits.isfinite().all(1)
        self._overdue = bool((due & ~finite).any())
        return due & finite, self._plan.score

    def keep(self, index: Tensor) -> None:
        self._plan = Plan(*(values.index_select(0, index) for values in self._plan))
        self._ends = self._ends.index_select(0, index.cpu())

    def join(self, places: Tensor, others: Tensor, memory: Plan) -> None:
        self._plan = Plan(*merged(others, tuple(self._plan), places, tuple(memory)))
        self._ends = self._plan.timesteps.cpu()

    def next_end(self, clock: Tensor) -> int | None:
        left = self._ends - clock
        left = left[left > 0]
        return int(left.min()) if left.numel() else None


def leaving(policy: Policy, memory: Any) -> Leaving:
    """Who leaves when under ``policy``, whose rows start with ``memory`` (:meth:`Policy.start`)."""
    return Planned(memory) if isinstance(policy, PlanPolicy) and isinstance(memory, Plan) else Asked(policy, memory)
