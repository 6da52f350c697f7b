"""Choosing the setting of a policy on recorded traces of held-out data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from .._arguments import check, target_mistakes
from ..errors import CalibrationError
from ..policies import Policy, ThresholdPolicy
from ..policies.base import exit_timesteps
from ..policies.threshold import fit_temperature

MAX_SETTINGS = 512
"""The largest number of thresholds between scores that are tried; more are thinned out evenly."""
MIN_GAP = 1e-5
"""The smallest difference of two scores with a threshold between them; rounding could change the order of others."""


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of a policy, and its result on some data.

    Attributes:
        policy: the policy with that setting.
        accuracy: the fraction of rows whose prediction is correct at their exit.
        mean_timesteps: the mean exit timestep.
    """

    policy: Policy
    accuracy: float
    mean_timesteps: float


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        chosen: the operating point that was chosen.
        curve: the operating points of all settings that were tried, by increasing mean timesteps.
        full_accuracy: the accuracy at full T on the same data, as a fraction.
        target: the target in words.
        samples: the number of samples.
    """

    chosen: OperatingPoint
    curve: tuple[OperatingPoint, ...]
    full_accuracy: float
    target: str
    samples: int

    @property
    def policy(self) -> Policy:
        """The calibrated policy."""
        return self.chosen.policy


def calibrate(
    policy: Policy,
    trace: Tensor,
    labels: Tensor,
    max_accuracy_drop: float | None = None,
    average_timesteps: float | None = None,
) -> Calibration:
    """Choose the setting of a policy on recorded traces, for one of two targets.

    A :class:`~seenn_plugin.policies.ThresholdPolicy` gets a fitted temperature first, then a threshold. Other policies
    are chosen from their ``candidate_settings``.

    Args:
        policy: the policy to calibrate.
        trace: decision logits ``[T, N, C]`` of held-out data.
        labels: long ``[N]``.
        max_accuracy_drop: target: the fewest mean timesteps with an accuracy at most this much (a fraction) below that
            at full T.
        average_timesteps: target: the highest accuracy with at most this many mean timesteps.

    Raises:
        CalibrationError: not exactly one target is given, it is out of range, no setting meets it, or the policy has no
            setting to calibrate.

    Example:
        >>> from seenn_plugin.policies import ConfidencePolicy
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> correct = torch.nn.functional.one_hot(labels, 2).float()
        >>> first = correct * torch.tensor([[4.0], [3.0], [0.0], [0.0]])  # the last two rows are undecided at t = 1
        >>> trace = torch.stack([first, first + 5 * correct])  # [T=2, N=4, C=2]
        >>> found = calibrate(ConfidencePolicy(), trace, labels, max_accuracy_drop=0.0)
        >>> found.chosen.accuracy, found.chosen.mean_timesteps
        (1.0, 1.5)
    """
    check_request(policy, max_accuracy_drop, average_timesteps, trace.shape[0])
    if isinstance(policy, ThresholdPolicy):
        policy = replace(policy, temperature=fit_temperature(trace, labels))
    points = curve(policy, trace, labels)
    full = accuracy_per_timestep(trace, labels)[-1]
    if max_accuracy_drop is not None:
        target = f"at most {max_accuracy_drop:g} below the accuracy at full T ({full:.4f})"
        # From full T downwards, up to the first setting that misses the target. An earlier setting that meets it again
        # does so by chance, and may not on other data.
        meeting = list(takewhile(lambda point: point.accuracy >= full - max_accuracy_drop - 1e-9, reversed(points)))
        best = max(points, key=lambda point: point.accuracy)
        chosen = meeting[-1] if meeting else None
        reached = f"the best is an accuracy of {best.accuracy:.4f} at {best.mean_timesteps:.3f} mean timesteps"
    else:
        assert average_timesteps is not None
        target = f"at most {average_timesteps:g} mean timesteps"
        meeting = [point for point in points if point.mean_timesteps <= average_timesteps + 1e-9]
        best = min(points, key=lambda point: point.mean_timesteps)
        chosen = max(meeting, key=lambda point: (point.accuracy, -point.mean_timesteps), default=None)
        reached = f"the best is {best.mean_timesteps:.3f} mean timesteps, with an accuracy of {best.accuracy:.4f}"
    if chosen is None:
        raise CalibrationError(f"no setting of {type(policy).__name__} meets the target, {target}: {reached}.")
    return Calibration(chosen, tuple(points), full, target, labels.numel())


def check_request(
    policy: Policy, max_accuracy_drop: float | None, average_timesteps: float | None, timesteps: int | None
) -> None:
    """Check what can be checked of a calibration before anything is recorded.

    Args:
        timesteps: T, if it is known.

    Raises:
        CalibrationError: not exactly one target is given, a target is out of range, or the policy has no setting to
            calibrate.
    """
    if (max_accuracy_drop is None) == (average_timesteps is None):
        raise CalibrationError("give exactly one target: max_accuracy_drop=... or average_timesteps=...")
    check(CalibrationError, *target_mistakes(max_accuracy_drop, average_timesteps))
    if timesteps is not None and not isinstance(policy, ThresholdPolicy):
        settings_of(policy, timesteps)


def settings_of(policy: Policy, timesteps: int) -> list[Policy]:
    """The ``candidate_settings`` of a policy.

    Raises:
        CalibrationError: it has none.
    """
    candidates = policy.candidate_settings(timesteps)
    if candidates is None:
        raise CalibrationError(
            f"{type(policy).__name__} has no setting to calibrate: derive it from ThresholdPolicy, or define "
            "candidate_settings()."
        )
    return list(candidates)


def curve(policy: Policy, trace: Tensor, labels: Tensor) -> list[OperatingPoint]:
    """Compute accuracy and mean timesteps of a policy at each of its settings.

    Args:
        policy: for a :class:`~seenn_plugin.policies.ThresholdPolicy`, thresholds between the scores that occur, at its
            temperature, are tried; for another policy, its ``candidate_settings``.
        trace: decision logits ``[T, N, C]``.
        labels: long ``[N]``.

    Returns:
        The operating points, by increasing mean timesteps.

    Raises:
        CalibrationError: the policy has no setting to calibrate.
    """
    timesteps = trace.shape[0]
    correct = trace.argmax(2) == labels
    if isinstance(policy, ThresholdPolicy):
        settings, exits = _threshold_exits(policy, trace)
    else:
        settings = settings_of(policy, timesteps)
        exits = torch.stack([exit_timesteps(setting, trace) for setting in settings])
    accuracy = correct.gather(0, exits - 1).double().mean(1)
    mean = exits.double().mean(1)
    points = [OperatingPoint(s, a, m) for s, a, m in zip(settings, accuracy.tolist(), mean.tolist(), strict=True)]
    return sorted(points, key=lambda point: (point.mean_timesteps, point.accuracy))


def _threshold_exits(policy: ThresholdPolicy, trace: Tensor) -> tuple[list[ThresholdPolicy], Tensor]:
    """Return the policy at each threshold to try, and its exits, long ``[K, N]``.

    The thresholds are one below all scores, the midpoints of neighbouring scores, and one above all scores.
    """
    score = policy.scaled_score(trace)
    score[~trace.isfinite().all(-1)] = float("-inf")
    early = score[:-1]
    values = early[early.isfinite()].unique()
    if not values.numel():
        values = score.new_tensor([policy.threshold])
    gaps = (values.diff() >= MIN_GAP).nonzero().squeeze(1)
    if gaps.numel() > MAX_SETTINGS:
        gaps = gaps[torch.linspace(0, gaps.numel() - 1, MAX_SETTINGS).long()]
    ends = values[:1] - values[:1].abs().clamp(min=1e-3), values[-1:] + values[-1:].abs().clamp(min=1) * MIN_GAP
    thresholds = torch.cat([ends[0], (values[gaps] + values[gaps + 1]) / 2, ends[1]])
    highest_so_far = early.cummax(0).values  # a row stops by t if any score up to t exceeds the threshold
    exits = torch.stack([1 + (highest_so_far <= threshold).sum(0) for threshold in thresholds])
    return [replace(policy, threshold=float(threshold)) for threshold in thresholds], exits


def accuracy_per_timestep(trace: Tensor, labels: Tensor) -> list[float]:
    """Return the accuracy of the predictions ``argmax a_t`` at t = 1..T, as fractions.

    This is the accuracy of the same network run for t timesteps on every row.

    Args:
        trace: decision logits ``[T, N, C]``.
        labels: long ``[N]``.
    """
    return (trace.argmax(2) == labels).double().mean(1).tolist()
