"""Choosing the dial for a target, on validation data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from ..calibration import OperatingPoint
from ..errors import CalibrationError

_CLOSE = 1e-3
"""Neighbours whose mean timesteps differ by less have nothing between them worth a run."""

D = TypeVar("D", bound="Dial")
P = TypeVar("P", bound=OperatingPoint)


@dataclass(frozen=True)
class Target:
    """What is asked for: either the accuracy that may be lost, or the mean timesteps that may be taken.

    Attributes:
        max_accuracy_drop: as a fraction, from ``full_accuracy``.
        average_timesteps: at most these.
        full_accuracy: accuracy at full T, on the same data.
    """

    max_accuracy_drop: float | None
    average_timesteps: float | None
    full_accuracy: float

    def __str__(self) -> str:
        if self.max_accuracy_drop is not None:
            return f"at most {self.max_accuracy_drop:g} below the accuracy at full T ({self.full_accuracy:.4f})"
        return f"at most {self.average_timesteps:g} mean timesteps"

    def is_met(self, point: OperatingPoint) -> bool:
        if self.max_accuracy_drop is not None:
            return point.accuracy >= self.full_accuracy - self.max_accuracy_drop - 1e-9
        assert self.average_timesteps is not None
        return point.mean_timesteps <= self.average_timesteps + 1e-9

    def _advice(self) -> str:
        if self.average_timesteps is not None:
            return "cost='linear' reaches earlier exits than cost='exponential'."
        return "More refinements, more epochs, or samples that the network gets wrong at first may help."

    def best(self, points: list[P]) -> P:
        """The fewest mean timesteps that keep the accuracy, or the highest accuracy within the mean timesteps.

        Raises:
            CalibrationError: no point meets the target.
        """
        meeting = [point for point in points if self.is_met(point)]
        if not meeting:
            tried = "; ".join(f"{100 * p.accuracy:.2f} % at {p.mean_timesteps:.3f}" for p in points)
            raise CalibrationError(
                f"no policy that was tried meets the target, {self}. Accuracy and mean timesteps of those tried: "
                f"{tried}. {self._advice()}"
            )
        if self.max_accuracy_drop is not None:
            return min(meeting, key=lambda point: (point.mean_timesteps, -point.accuracy))
        return max(meeting, key=lambda point: (point.accuracy, -point.mean_timesteps))


class Dial(Protocol):
    """A setting that is tried: a :class:`~seenn_plugin.policy_training.Reward`."""

    def between(self, later: Self, /) -> Self: ...

    def later(self) -> Self: ...


def search(fit: Callable[[D], P], settings: list[D], target: Target, refinements: int) -> list[P]:
    """Try settings of a dial, then look closer where the target is met at last.

    Args:
        fit: makes the point of a setting.
        settings: tried in any case, from early exits to late.
        target: what is looked for.
        refinements: further settings tried at most: between two neighbours that enclose the target, or with exits later
            than all others while no accuracy is high enough.

    Returns:
        The points of all settings tried, from early exits to late.
    """
    tried = [(setting, fit(setting)) for setting in settings]
    for _ in range(refinements):
        # Accuracy and time both rise from early exits to late, but for noise; of several changes the first costs least.
        met = [target.is_met(point) for _, point in tried]
        gap = next((i for i in range(len(met) - 1) if met[i] != met[i + 1]), None)
        if gap is not None:
            (early, before), (late, after) = tried[gap : gap + 2]
            if abs(after.mean_timesteps - before.mean_timesteps) < _CLOSE:
                break
            setting, place = early.between(late), gap + 1
        elif not met[-1] and target.max_accuracy_drop is not None:
            setting, place = tried[-1][0].later(), len(tried)
        else:
            break
        tried.insert(place, (setting, fit(setting)))
    return [point for _, point in tried]
