"""Choose a policy's setting on held-out data: record traces once, then search on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm  # tqdm.auto calls iter() twice, and a DataLoader then starts its workers twice

from .errors import CalibrationError
from .policies import Policy, ThresholdPolicy, exit_timesteps
from .policies.temperature import fit_temperature

if TYPE_CHECKING:
    from .wrapper import EarlyExitWrapper

MAX_SETTINGS = 512
"""Thresholds tried at most; where there are more gaps between scores, some of them evenly are tried."""
MIN_GAP = 1e-5
"""Thresholds are put between scores that are at least this far apart, so that rounding does not decide."""


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of a policy on some data: the policy, its accuracy (a fraction) and its mean timesteps."""

    policy: Policy
    accuracy: float
    mean_timesteps: float


@dataclass(frozen=True)
class Calibration:
    """A calibrated policy and its evidence.

    Attributes:
        chosen: the operating point that was chosen.
        curve: every setting tried, by rising mean timesteps.
        full_accuracy: accuracy at full T, on the same data.
        target: what was asked for, in words.
        samples: how many samples were used.
    """

    chosen: OperatingPoint
    curve: tuple[OperatingPoint, ...]
    full_accuracy: float
    target: str
    samples: int

    @property
    def policy(self) -> Policy:
        return self.chosen.policy


def batches(
    snn: EarlyExitWrapper, loader: Iterable[Any], progress: bool, title: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs ``(x, labels)`` of a loader, on the model's device.

    Raises:
        CalibrationError: an item that is no such pair, or labels that are not long ``[N]``.
    """
    weight = next(iter(snn.model.parameters()), None)
    rows_dim = snn.time_dim ^ 1 if snn.input == "sequence" else 0
    for item in tqdm(loader, desc=title, disable=not progress, leave=False):
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise CalibrationError(f"the loader must yield pairs (x, labels), not {type(item).__name__}.")
        x, labels = item[0], torch.as_tensor(item[1])
        if labels.is_floating_point() or labels.shape != (x.shape[rows_dim],):
            raise CalibrationError(
                f"labels must be class indices of shape ({x.shape[rows_dim]},), not {labels.dtype} "
                f"{tuple(labels.shape)}."
            )
        yield (x, labels.long()) if weight is None else (x.to(weight.device), labels.long().to(weight.device))


@torch.no_grad()
def record(snn: EarlyExitWrapper, loader: Iterable[Any], progress: bool = False) -> tuple[Tensor, Tensor]:
    """Traces ``[T, M, C]`` and labels ``[M]`` of all samples of a loader, on the CPU.

    Raises:
        CalibrationError: no sample, or labels out of range.
    """
    traces, all_labels = [], []
    for x, labels in batches(snn, loader, progress, "traces"):
        if labels.numel():
            traces.append(snn.trace(x).cpu())
            all_labels.append(labels.cpu())
    if not traces:
        raise CalibrationError("the loader yielded no sample.")
    lengths = {trace.shape[0] for trace in traces}
    if len(lengths) > 1:
        raise CalibrationError(f"the batches have sequences of different lengths ({sorted(lengths)}); pad them to one.")
    trace, labels = torch.cat(traces, 1), torch.cat(all_labels)
    check_labels(labels, trace.shape[2])
    return trace, labels


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise a CalibrationError if labels are no indices of ``classes`` classes."""
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise CalibrationError(
            f"labels range from {int(labels.min())} to {int(labels.max())}, but the model has {classes} classes "
            f"(0 to {classes - 1})."
        )


def calibrate(
    policy: Policy,
    trace: Tensor,
    labels: Tensor,
    max_accuracy_drop: float | None = None,
    average_timesteps: float | None = None,
) -> Calibration:
    """Search a policy's setting on recorded traces; see :meth:`EarlyExitWrapper.calibrate`."""
    if (max_accuracy_drop is None) == (average_timesteps is None):
        raise CalibrationError("give one target: max_accuracy_drop=... or average_timesteps=...")
    if isinstance(policy, ThresholdPolicy):
        policy = replace(policy, temperature=fit_temperature(trace, labels))
    points = curve(policy, trace, labels)
    full = accuracy_per_timestep(trace, labels)[-1]
    if max_accuracy_drop is not None:
        target = f"at most {max_accuracy_drop:g} below the accuracy at full T ({full:.4f})"
        # From full T downwards, up to the first setting that misses the target: a lucky one below it is luck.
        fitting = list(takewhile(lambda point: point.accuracy >= full - max_accuracy_drop - 1e-9, reversed(points)))
        best = max(points, key=lambda point: point.accuracy)
        chosen = fitting[-1] if fitting else None
        reached = f"the best is an accuracy of {best.accuracy:.4f} at {best.mean_timesteps:.3f} mean timesteps"
    else:
        assert average_timesteps is not None
        target = f"at most {average_timesteps:g} mean timesteps"
        fitting = [point for point in points if point.mean_timesteps <= average_timesteps + 1e-9]
        best = min(points, key=lambda point: point.mean_timesteps)
        chosen = max(fitting, key=lambda point: (point.accuracy, -point.mean_timesteps), default=None)
        reached = f"the best is {best.mean_timesteps:.3f} mean timesteps, with an accuracy of {best.accuracy:.4f}"
    if chosen is None:
        raise CalibrationError(f"no setting of {type(policy).__name__} meets the target, {target}: {reached}.")
    return Calibration(chosen, tuple(points), full, target, labels.numel())


def curve(policy: Policy, trace: Tensor, labels: Tensor) -> list[OperatingPoint]:
    """Accuracy and mean timesteps of a policy at every setting of its dial, by rising mean timesteps.

    Raises:
        CalibrationError: the policy has no dial.
    """
    timesteps = trace.shape[0]
    right = trace.argmax(2) == labels
    if isinstance(policy, ThresholdPolicy):
        settings, exits = _threshold_exits(policy, trace)
    else:
        dial = policy.dial_settings(timesteps)
        if dial is None:
            raise CalibrationError(
                f"{type(policy).__name__} has no dial to calibrate: derive it from ThresholdPolicy, or define "
                "dial_settings()."
            )
        settings, exits = list(dial), torch.stack([exit_timesteps(setting, trace) for setting in dial])
    accuracy = right.gather(0, exits - 1).double().mean(1)
    mean = exits.double().mean(1)
    points = [OperatingPoint(s, a, m) for s, a, m in zip(settings, accuracy.tolist(), mean.tolist(), strict=True)]
    return sorted(points, key=lambda point: (point.mean_timesteps, point.accuracy))


def _threshold_exits(policy: ThresholdPolicy, trace: Tensor) -> tuple[list[ThresholdPolicy], Tensor]:
    """Thresholds worth trying, and the exits ``[K, N]`` that each gives.

    They lie half-way between neighbouring scores, below all and above all.
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
    highest_so_far = early.cummax(0).values  # a row has stopped by t if any score up to t was above the threshold
    exits = torch.stack([1 + (highest_so_far <= threshold).sum(0) for threshold in thresholds])
    return [replace(policy, threshold=float(threshold)) for threshold in thresholds], exits


def accuracy_per_timestep(trace: Tensor, labels: Tensor) -> list[float]:
    """Accuracy of ``argmax a_t`` at every t: what a network with that many timesteps would score."""
    return (trace.argmax(2) == labels).double().mean(1).tolist()
