"""What a fit found."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration import OperatingPoint
from ..policies import RLPolicy
from .rewards import Reward
from .settings import FitSettings


@dataclass(frozen=True)
class FitPoint(OperatingPoint):
    """A policy that was fitted for one setting of the dial, on the validation data.

    Attributes:
        policy: an :class:`~seenn_plugin.policies.RLPolicy`.
        accuracy: a fraction.
        mean_timesteps: mean exit.
        reward: what it was fitted to earn.
        histogram: number of rows that exit at t = 1..T.
    """

    policy: RLPolicy
    reward: Reward
    histogram: tuple[int, ...]

    @property
    def collapsed_to(self) -> int | None:
        """The timestep at which every row exits, if there is but one."""
        used = [t for t, count in enumerate(self.histogram, start=1) if count]
        return used[0] if len(used) == 1 else None


@dataclass(frozen=True)
class PolicyFit:
    """A fitted policy and its evidence.

    Attributes:
        chosen: the point that was chosen.
        frontier: every setting of the dial that was tried, by rising mean timesteps.
        full_accuracy: accuracy at full T, on the validation data, before any fine-tuning.
        target: what was asked for, in words.
        samples: validation samples.
        policy_operations: multiply-accumulates of the policy network for one row.
        network_operations: multiply-accumulates of the spiking network for one row at full T.
        settings: how it was fitted.
        finetuned: the chosen policy after joint fine-tuning of policy and spiking network.
    """

    chosen: FitPoint
    frontier: tuple[FitPoint, ...]
    full_accuracy: float
    target: str
    samples: int
    policy_operations: int
    network_operations: int
    settings: FitSettings
    finetuned: FitPoint | None = None

    @property
    def policy(self) -> RLPolicy:
        return (self.finetuned or self.chosen).policy

    def __str__(self) -> str:
        share = self.policy_operations / max(self.network_operations, 1)
        lines = [
            f"target {self.target}; on {self.samples} validation samples, full T {100 * self.full_accuracy:.2f} %",
            f"the policy network takes {100 * share:.2f} % of the operations at full T",
        ]
        shown = [(point, "  <- chosen" if point is self.chosen else "") for point in self.frontier]
        if self.finetuned:
            shown.append((self.finetuned, "  <- the chosen one after fine-tuning"))
        for point, note in shown:
            lines.append(
                f"  {point.reward!s:<20} {100 * point.accuracy:6.2f} %  {point.mean_timesteps:6.3f} timesteps  "
                f"{list(point.histogram)}{note}"
            )
        return "\n".join(lines)
