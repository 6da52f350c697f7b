"""How good is it? Accuracy, timesteps and throughput of a wrapped network, and its accuracy curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._arguments import check, wrapped_mistake
from .._operations import count_operations
from ..calibration import thresholds as calibration
from ..calibration import traces
from ..calibration.policy_fitting import Recording, outcome, plan_all, record
from ..errors import CalibrationError, InputError, PolicyError
from ..policies import Policy, RLPolicy, ThresholdPolicy, exit_timesteps
from ..state.values import tensors
from ..tolerance import rows_agree

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper


@dataclass(frozen=True)
class PolicyCost:
    """The cost of planning, for a policy that plans from the input before the first timestep.

    Attributes:
        operations: multiply-accumulates of the plan for one row.
        network_operations: multiply-accumulates of the spiking network for one row at full T, counted densely.
        seconds: wall clock of planning for all samples, part of :attr:`Evaluation.seconds`.
        share_of_seconds: of the wall clock of the early-exit run.
    """

    operations: int
    network_operations: int
    seconds: float
    share_of_seconds: float

    @property
    def share_of_operations(self) -> float:
        """Of the spiking network's operations at full T."""
        return self.operations / self.network_operations if self.network_operations else float("inf")


@dataclass(frozen=True)
class Evaluation:
    """A wrapped network on a data set. Accuracies are fractions.

    Attributes:
        policy: that was in use, with nothing left open (:meth:`~seenn_plugin.EarlyExitWrapper.policy_for`).
        samples: number of samples.
        accuracy: of the early exits.
        mean_timesteps: mean exit.
        histogram: number of rows that exit at t = 1..T.
        row_steps: row-steps that the network computed in the early-exit run.
        seconds: wall clock of the early-exit run, data loading excluded.
        accuracy_per_timestep: of the static network with t = 1..T timesteps, from the full traces.
        average_exit_time: AET = (sum_t t (C_t - C_{t-1}) + T (N - C_T)) / N with C_t the number right at t: an oracle
            bound that uses the labels (SEENN, arXiv 2304.01230).
        empirical_average_exit_time: mean first right timestep, T for rows that are never right.
        agreement: fraction of rows whose exit and answer are those of the policy on the full trace. Below 1 only by
            rounding at a decision boundary.
        policy_cost: what planning costs; ``None`` for policies that decide on logits alone, within a timestep.
    """

    policy: Policy
    samples: int
    accuracy: float
    mean_timesteps: float
    histogram: list[int]
    row_steps: int
    seconds: float
    accuracy_per_timestep: list[float]
    average_exit_time: float
    empirical_average_exit_time: float
    agreement: float
    policy_cost: PolicyCost | None = None

    @property
    def throughput(self) -> float:
        """Samples per second of the early-exit run."""
        return self.samples / self.seconds if self.seconds > 0 else float("inf")

    @property
    def full_accuracy(self) -> float:
        return self.accuracy_per_timestep[-1]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, without the policy."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "policy"}
        numbers["policy_cost"] = self.policy_cost and asdict(self.policy_cost)
        return {**numbers, "throughput": self.throughput, "full_accuracy": self.full_accuracy}


@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracy against mean timesteps.

    Attributes:
        points: every setting of the policy, by rising mean timesteps.
        static: accuracy of the network that always takes t = 1..T timesteps.
    """

    points: tuple[calibration.OperatingPoint, ...]
    static: tuple[float, ...]

    @property
    def pareto(self) -> tuple[calibration.OperatingPoint, ...]:
        """The points that no other point beats in both accuracy and mean timesteps."""
        best: list[calibration.OperatingPoint] = []
        for point in sorted(self.points, key=lambda point: (point.mean_timesteps, -point.accuracy)):
            if not best or point.accuracy > best[-1].accuracy:
                best.append(point)
        return tuple(best)


@torch.no_grad()
def evaluate(snn: EarlyExitWrapper, loader: Iterable[Any], progress: bool = False) -> Evaluation:
    """Run a data set with early exit, and once more in full for the accuracy at every timestep.

    Args:
        snn: a wrapped network.
        loader: yields ``(x, labels)`` with labels long ``[N]``.
        progress: whether to show a progress bar.

    Raises:
        InputError: ``snn`` is no wrapped network.
        CalibrationError: no sample, labels that are no indices of the model's classes, or batches of different
            length in time.
    """
    check(InputError, wrapped_mistake(snn))
    right, exits, agreed, traces_right = [], [], [], []
    policy = snn.policy
    row_steps, seconds, planning, operations = 0, 0.0, 0.0, None
    for x, labels in traces.batches(snn, loader, progress, "evaluate"):
        if not labels.numel():
            continue
        trace = snn.trace(x)  # first, so that the inspection of a new kind of input is not timed
        traces.check_labels(labels, traces.class_count(trace))
        policy = snn.policy_for(x)
        plan, took = _timed(snn.plan, x)
        result, seconds_of_batch = _timed(snn.infer, x)
        planning += took
        seconds += seconds_of_batch
        if not right and tensors(plan):
            operations = _operations(snn, x, labels.numel())
        row_steps += result.steps_executed
        right.append((result.predictions == labels).cpu())
        exits.append(result.timesteps.cpu())
        agreed.append(_agrees(result.logits, result.timesteps, trace, policy, plan).cpu())
        traces_right.append((trace.argmax(2) == labels).cpu())
    if not right:
        raise CalibrationError("the loader yielded no sample.")
    if len({len(steps) for steps in traces_right}) > 1:
        raise CalibrationError("the batches have sequences of different lengths; pad them to one.")
    all_exits, per_step = torch.cat(exits), torch.cat(traces_right, 1)
    timesteps = per_step.shape[0]
    return Evaluation(
        policy=policy,
        samples=all_exits.numel(),
        accuracy=float(torch.cat(right).double().mean()),
        mean_timesteps=float(all_exits.double().mean()),
        histogram=torch.bincount(all_exits - 1, minlength=timesteps).tolist(),
        row_steps=row_steps,
        seconds=seconds,
        accuracy_per_timestep=per_step.double().mean(1).tolist(),
        average_exit_time=average_exit_time(per_step),
        empirical_average_exit_time=empirical_average_exit_time(per_step),
        agreement=float(torch.cat(agreed).double().mean()),
        policy_cost=operations and PolicyCost(*operations, planning, planning / max(seconds, 1e-12)),
    )


def _operations(snn: EarlyExitWrapper, x: Tensor, n: int) -> tuple[int, int]:
    """Multiply-accumulates for one row: of planning, and of the spiking network at full T."""
    one_row = x.narrow(snn.time_dim ^ 1 if snn.input == "sequence" else 0, 0, 1)
    return count_operations(lambda: snn.plan(x)) // n, count_operations(lambda: snn.trace(one_row))


def average_exit_time(right: Tensor) -> float:
    """AET from a bool ``[T, N]``: whether each sample is right at each timestep; see :class:`Evaluation`."""
    timesteps, n = right.shape
    counts = right.sum(1).tolist()
    gains = [now - before for now, before in zip(counts, [0, *counts], strict=False)]
    return (sum(t * gain for t, gain in enumerate(gains, start=1)) + timesteps * (n - counts[-1])) / n


def empirical_average_exit_time(right: Tensor) -> float:
    """Mean first timestep at which a row is right, T if never, of a bool ``[T, N]``."""
    timesteps = right.shape[0]
    first = torch.where(right.any(0), right.int().argmax(0) + 1, timesteps)
    return float(first.double().mean())


def accuracy_curve(
    snn: EarlyExitWrapper, loader: Iterable[Any], policy: Policy | None = None, progress: bool = False
) -> AccuracyCurve:
    """Accuracy against mean timesteps for every setting of a policy, from one pass over the data.

    Args:
        snn: a wrapped network.
        loader: yields ``(x, labels)`` with labels long ``[N]``.
        policy: the policy; by default the wrapper's own, at its temperature. The settings of a fitted ``"rl"`` policy
            are those of its frontier (``snn.policy_fit``).
        progress: whether to show a progress bar.

    Raises:
        InputError: ``snn`` is no wrapped network.
        PolicyError: ``policy`` is no policy.
        CalibrationError: the policy has no settings, or the data cannot be used, as for :func:`evaluate`.
    """
    check(InputError, wrapped_mistake(snn))
    if policy is not None and not isinstance(policy, Policy):
        raise PolicyError(f"policy must be a Policy, such as ConfidencePolicy(), not {policy!r}.")
    if policy is None and isinstance(snn.policy, RLPolicy) and snn.policy_fit is not None:
        recording = record(snn, snn.policy, loader, progress)
        points = [_on(recording, point.policy) for point in snn.policy_fit.frontier]
        return AccuracyCurve(tuple(sorted(points, key=lambda p: p.mean_timesteps)), tuple(recording.accuracy))
    if snn.timesteps is not None and not isinstance(policy or snn.policy, ThresholdPolicy):
        calibration.settings_of(policy or snn.policy, snn.timesteps)  # raises before anything is recorded
    source = _SettlingSource(snn)
    trace, labels = traces.record(source, loader, progress)
    points = calibration.curve(policy or source.policy or snn.policy, trace, labels)
    return AccuracyCurve(tuple(points), tuple(calibration.accuracy_per_timestep(trace, labels)))


class _SettlingSource:
    """A wrapped network as a source of traces that settles its policy on the first batch."""

    def __init__(self, snn: EarlyExitWrapper) -> None:
        self._snn = snn
        self.model, self.input, self.time_dim = snn.model, snn.input, snn.time_dim
        self.policy: Policy | None = None

    @property
    def readout_changes(self) -> int:
        return self._snn.readout_changes

    def trace(self, x: Tensor) -> Tensor:
        self.policy = self.policy or self._snn.policy_for(x)
        return self._snn.trace(x)


def _on(recording: Recording, policy: RLPolicy) -> calibration.OperatingPoint:
    exits, right = outcome(plan_all(policy, recording), recording)
    return calibration.OperatingPoint(policy, float(right.double().mean()), float(exits.double().mean()))


def _timed(call: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, float]:
    """What a call returns, and the seconds that it takes."""
    _synchronize(x)
    start = perf_counter()
    answer = call(x)
    _synchronize(x)
    return answer, perf_counter() - start


def _agrees(logits: Tensor, timesteps: Tensor, trace: Tensor, policy: Policy, plan: Any) -> Tensor:
    expected = trace.gather(0, (timesteps - 1).view(1, -1, 1).expand(1, -1, trace.shape[2]))[0]
    return (
        (exit_timesteps(policy, trace, plan) == timesteps)
        & (expected.argmax(1) == logits.argmax(1))
        & rows_agree(logits, expected)
    )


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
