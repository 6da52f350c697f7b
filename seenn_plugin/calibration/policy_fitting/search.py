"""Searching the setting that meets a target on validation data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from ...errors import CalibrationError
from ..thresholds import OperatingPoint

_CLOSE = 1e-3
"""Between two settings whose mean timesteps differ by less than this, no further one is tried."""

S = TypeVar("S", bound="Setting")
P = TypeVar("P", bound=OperatingPoint)


@dataclass(frozen=True)
class Target:
    """A limit on either the loss of accuracy or the mean timesteps; the other limit is ``None``.

    Attributes:
        max_accuracy_drop: the largest difference to ``full_accuracy``, as a fraction.
        average_timesteps: the largest mean timesteps.
        full_accuracy: the accuracy at full T on the same data, as a fraction.
    """

    max_accuracy_drop: float | None
    average_timesteps: float | None
    full_accuracy: float

    def __str__(self) -> str:
        if self.max_accuracy_drop is not None:
            return f"at most {self.max_accuracy_drop:g} below the accuracy at full T ({self.full_accuracy:.4f})"
        return f"at most {self.average_timesteps:g} mean timesteps"

    def is_met(self, point: OperatingPoint) -> bool:
        """Return whether an operating point is within the limit."""
        if self.max_accuracy_drop is not None:
            return point.accuracy >= self.full_accuracy - self.max_accuracy_drop - 1e-9
        assert self.average_timesteps is not None
        return point.mean_timesteps <= self.average_timesteps + 1e-9

    def _advice(self) -> str:
        if self.average_timesteps is not None:
            return "cost='linear' reaches earlier exits than cost='exponential'."
        return "More refinements, more epochs, or more samples that are wrong at early timesteps may help."

    def best(self, points: list[P]) -> P:
        """Return the best of the points that meet the target.

        With ``max_accuracy_drop`` that is the point with the fewest mean timesteps, otherwise the most accurate one.

        Raises:
            CalibrationError: no point meets the target.
        """
        meeting = [point for point in points if self.is_met(point)]
        if not meeting:
            tried = "; ".join(f"{100 * p.accuracy:.2f} % at {p.mean_timesteps:.3f}" for p in points)
            raise CalibrationError(
                f"no policy meets the target, {self}. Accuracy and mean timesteps of the policies that were fitted: "
                f"{tried}. {self._advice()}"
            )
        if self.max_accuracy_drop is not None:
            return min(meeting, key=lambda point: (point.mean_timesteps, -point.accuracy))
        return max(meeting, key=lambda point: (point.accuracy, -point.mean_timesteps))


class Setting(Protocol):
    """What is searched: a :class:`~seenn_plugin.calibration.policy_fitting.Reward`."""

    def between(self, later: Self, /) -> Self:
        """Return a setting whose exits lie between this one's and those of ``later``."""
        ...

    def later(self) -> Self:
        """Return a setting with later exits."""
        ...


def search(fit: Callable[[S], P], settings: list[S], target: Target, refinements: int) -> list[P]:
    """Fit the given settings, then further ones close to where the target is just met.

    Args:
        fit: returns the operating point of a setting.
        settings: the initial settings, from early exits to late; all of them are fitted.
        target: the target to meet.
        refinements: the largest number of further settings. Each lies between two neighbouring settings of which one
            meets the target; or, if no setting reaches the accuracy, has later exits than all.

    Returns:
        The operating points of all settings that were fitted, from early exits to late.
    """
    tried = [(setting, fit(setting)) for setting in settings]
    for _ in range(refinements):
        # Accuracy and mean timesteps increase from early exits to late, up to noise. If the target changes between met
        # and missed at several places, the first has the fewest timesteps.
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
