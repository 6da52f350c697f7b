"""Which rows stop after a timestep: decided by the policy at every timestep, or read from a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..policies import Plan, PlanPolicy, Policy
from ..policies.base import consult, finite_rows
from .row_state import RowState, merged


class ExitDecisions(ABC):
    """The exits of the active rows."""

    @abstractmethod
    def after(self, logits: Tensor, timestep: Tensor, clock: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which rows stop after a timestep.

        Args:
            logits: decision logits ``[n, C]``.
            timestep: long ``[n]``: the timesteps that each row has made.
            clock: the same on the CPU.

        Returns:
            bool ``[n]``, or ``None`` if no row stops; and the scores, float ``[n]``.
        """

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keep the rows at ``index``."""

    @abstractmethod
    def join(self, places: Tensor, others: Tensor, policy_state: Any) -> None:
        """New rows at ``places``, with what the policy knows of them. The rows so far are now at ``others``."""

    @abstractmethod
    def next_end(self, clock: Tensor) -> int | None:
        """The number of timesteps from now on before which no row stops; ``None`` if that is not known.

        Args:
            clock: long ``[n]`` on the CPU: the timesteps that each row has made.
        """


class PerStepExits(ExitDecisions):
    """The policy decides after every timestep."""

    def __init__(self, policy: Policy, policy_state: Any) -> None:
        self._policy = policy
        self._state = RowState(policy_state)

    def after(self, logits: Tensor, timestep: Tensor, clock: Tensor) -> tuple[Tensor | None, Tensor]:
        stop, score = self._state.update(self.consult, (logits, timestep))
        return stop, score

    def consult(self, policy_state: Any, rows: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], Any]:
        decision = consult(self._policy, rows[0], rows[1], policy_state)
        return (decision.stop, decision.score), decision.policy_state

    def keep(self, index: Tensor) -> None:
        self._state.keep(index)

    def join(self, places: Tensor, others: Tensor, policy_state: Any) -> None:
        self._state.join(places, others, policy_state)

    def next_end(self, clock: Tensor) -> int | None:
        return None


class PlannedExits(ExitDecisions):
    """All exits are known before the first timestep. Logits are read where a plan ends only, to find NaN."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ends = plan.timesteps.cpu()  # the one transfer from the device

    def after(self, logits: Tensor, timestep: Tensor, clock: Tensor) -> tuple[Tensor | None, Tensor]:
        # A row whose logits are not finite where its plan ends goes on, so that it is due at later timesteps too.
        if not bool((self._ends <= clock).any()):
            return None, self._plan.score
        return (self._plan.timesteps <= timestep) & finite_rows(logits), self._plan.score

    def keep(self, index: Tensor) -> None:
        self._plan = Plan(*(values.index_select(0, index) for values in self._plan))
        self._ends = self._ends.index_select(0, index.cpu())

    def join(self, places: Tensor, others: Tensor, policy_state: Plan) -> None:
        self._plan = Plan(*merged(others, tuple(self._plan), places, tuple(policy_state)))
        self._ends = self._plan.timesteps.cpu()

    def next_end(self, clock: Tensor) -> int | None:
        left = self._ends - clock
        left = left[left > 0]
        return int(left.min()) if left.numel() else None


def exit_decisions(policy: Policy, policy_state: Any) -> ExitDecisions:
    """The exits under ``policy`` of rows that start with ``policy_state`` (:meth:`Policy.start`)."""
    planned = isinstance(policy, PlanPolicy) and isinstance(policy_state, Plan)
    return PlannedExits(policy_state) if planned else PerStepExits(policy, policy_state)
