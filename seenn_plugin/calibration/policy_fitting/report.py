"""The result of fitting a policy."""

from __future__ import annotations

from dataclasses import dataclass

from ...policies import RLPolicy
from ..thresholds import OperatingPoint
from .rewards import Reward
from .settings import FitSettings


@dataclass(frozen=True)
class FitPoint(OperatingPoint):
    """The policy that was fitted for one setting of the reward, and its result on the validation data.

    Attributes:
        policy: the fitted policy.
        accuracy: the fraction of rows whose prediction is correct at their exit.
        mean_timesteps: the mean exit timestep.
        reward: the reward that it was fitted for.
        histogram: the number of rows that exit at t = 1..T.
    """

    policy: RLPolicy
    reward: Reward
    histogram: tuple[int, ...]

    @property
    def collapsed_to(self) -> int | None:
        """The timestep at which all rows exit; ``None`` if they exit at different timesteps."""
        used = [t for t, count in enumerate(self.histogram, start=1) if count]
        return used[0] if len(used) == 1 else None


@dataclass(frozen=True)
class PolicyFit:
    """The result of ``fit_policy``. Its string is a table of all settings that were fitted.

    Attributes:
        chosen: the operating point that was chosen.
        frontier: the operating points of all settings of the reward that were fitted, by increasing mean timesteps.
        full_accuracy: the accuracy at full T on the validation data before fine-tuning, as a fraction.
        target: the target in words.
        samples: the number of validation samples.
        policy_operations: multiply-accumulates of the policy network for one row.
        network_operations: multiply-accumulates of the spiking network for one row at full T.
        settings: the options of the fit.
        finetuned: the chosen policy after fine-tuning together with the spiking network; ``None`` without fine-tuning.
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
        """The chosen policy, after fine-tuning if there was any."""
        return (self.finetuned or self.chosen).policy

    def __str__(self) -> str:
        share = self.policy_operations / max(self.network_operations, 1)
        lines = [
            f"target {self.target}; on {self.samples} validation samples, full T {100 * self.full_accuracy:.2f} %",
            f"the policy network takes {100 * share:.2f} % of the operations at full T",
        ]
        shown = [(point, "  <- chosen" if point is self.chosen else "") for point in self.frontier]
        if self.finetuned:
            shown.append((self.finetuned, "  <- chosen, after fine-tuning"))
        for point, note in shown:
            lines.append(
                f"  {point.reward!s:<20} {100 * point.accuracy:6.2f} %  {point.mean_timesteps:6.3f} timesteps  "
                f"{list(point.histogram)}{note}"
            )
        return "\n".join(lines)
