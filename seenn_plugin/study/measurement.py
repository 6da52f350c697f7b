"""A chosen policy, measured on the test data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..calibration import traces
from ..errors import ModelRefused
from ..evaluation.energy import EnergyReport, measure_energy
from ..evaluation.metrics import average_exit_time, empirical_average_exit_time, evaluate
from ..evaluation.timing import Timing, interleaved
from ..policies import FixedPolicy, Plan, Policy, RLPolicy, exit_timesteps
from .baseline import Baseline
from .study_data import StudyData, size, subset

BATCH_SIZES = (1, 64)
FULL, EARLY, STATIC = "full", "early_exit", "static"


class Meter:
    """Measures policies on the test data of a network.

    Accuracy, exits and histogram are those of the policy on traces of all test samples, which are recorded once. A part
    of the samples is run with early exit, to check that it does what the policy does on the trace.

    Args:
        study_data: the network and its data.
        prices: picojoules of an accumulate and of a multiply-accumulate.
    """

    def __init__(self, study_data: StudyData, prices: tuple[float, float]) -> None:
        self._data = study_data
        self._snn = study_data.snn
        self._prices = {"picojoules_per_ac": prices[0], "picojoules_per_mac": prices[1]}
        self._baseline: Baseline | None = None

    def static(self) -> dict[str, Any]:
        """The network without early exit, at every number of timesteps."""
        validation, test = self._data.validation, self._data.test
        return {
            "validation": validation.accuracy,
            "test": test.accuracy,
            "average_exit_time": average_exit_time(test.right),
            "empirical_average_exit_time": empirical_average_exit_time(test.right),
            "energy": self._static_energy(),
        }

    def measure(self, policy: Policy) -> dict[str, Any]:
        """A policy on the test data."""
        self._snn.policy = policy
        test = self._data.test
        exits = exit_timesteps(policy, test.logits, self._plan(policy))
        right = test.right.gather(0, exits.unsqueeze(0) - 1)[0]
        timesteps, mean = len(test.logits), float(exits.double().mean())
        nearest = max(1, round(mean))
        return {
            "test": {
                "samples": len(test),
                "accuracy": float(right.double().mean()),
                "mean_timesteps": mean,
                "histogram": torch.bincount(exits - 1, minlength=timesteps).tolist(),
                "static_timesteps": nearest,
                "static_accuracy": test.accuracy[nearest - 1],
            },
            "infer": evaluate(self._snn, self._some(self._data.budget.infer_samples)).to_dict(),
            "energy": self._energy(policy, exits),
            "wall_clock": self._wall_clock(nearest, timesteps),
        }

    def _plan(self, policy: Policy) -> Plan | None:
        """What the policy plans for all test samples, if it plans."""
        if not isinstance(policy, RLPolicy):
            return None
        study_data = self._data
        batches = traces.batches(self._snn, study_data.batches(study_data.test_data), study_data.progress, "plans")
        plans = [self._snn.plan(x) for x, _ in batches]
        return Plan(*(torch.cat(parts).cpu() for parts in zip(*plans, strict=True)))

    def _some(self, wanted: int) -> Any:
        return self._data.batches(self._part(wanted))

    def _part(self, wanted: int) -> Dataset[Any]:
        return subset(self._data.test_data, self._places(wanted))

    def _places(self, wanted: int) -> Tensor:
        return self._data.draw(size(self._data.test_data), wanted)

    # -- operations and energy ------------------------------------------------------------------------------------

    @cached_property
    def _full_energy(self) -> EnergyReport | str:
        """Operations of some samples at every timestep; or why they cannot be counted."""
        with self._temporary_policy(FixedPolicy(len(self._data.test.logits))):
            return self._count()

    def _count(self) -> EnergyReport | str:
        samples = self._some(self._data.budget.energy_samples)
        try:
            return measure_energy(self._snn, samples, progress=self._data.progress, **self._prices)
        except ModelRefused as error:
            return str(error)

    def _static_energy(self) -> dict[str, Any]:
        report = self._full_energy
        if isinstance(report, str):
            return {"refused": report}
        return {
            **report.to_dict(),
            "static_acs": report.acs_per_timestep.cumsum(0).mean(1).tolist(),
            "static_macs": report.macs_per_timestep.cumsum(0).mean(1).tolist(),
        }

    def _energy(self, policy: Policy, exits: Tensor) -> dict[str, Any]:
        # Only a policy that has a network of its own changes what is counted; for others only the exits differ.
        report = self._count() if isinstance(policy, RLPolicy) else self._full_energy
        if isinstance(report, str):
            return {"refused": report}
        own_exits = exits[self._places(self._data.budget.energy_samples)]
        return replace(report, timesteps=own_exits).to_dict()

    # -- wall clock -----------------------------------------------------------------------------------------------

    def _wall_clock(self, nearest: int, timesteps: int) -> dict[str, Any]:
        """Seconds per sample at each batch size, with the full run and the nearest static one in turns."""
        study_data, budget = self._data, self._data.budget
        samples = self._some(max(BATCH_SIZES) * budget.rounds)
        x = torch.cat([x for x, _ in traces.batches(self._snn, samples, False, "timing")])
        if self._baseline is None:
            self._baseline = Baseline(self._snn, study_data.net.card.wrapper, x[:2])
        full, full_is = self._baseline.run(timesteps)
        static, static_is = self._baseline.run(nearest)
        variants = {FULL: full, EARLY: self._snn.infer} | ({STATIC: static} if nearest < timesteps else {})
        found: dict[str, Any] = {"full_run": full_is, "static_run": static_is}
        for batch_size in BATCH_SIZES:
            batches = [x[at : at + batch_size] for at in range(0, len(x) - batch_size + 1, batch_size)]
            in_a_round = budget.singles if batch_size == 1 else 1
            rounds = [batches[at : at + in_a_round] for at in range(0, len(batches), in_a_round)][: budget.rounds]
            if not rounds:  # too few test samples
                continue
            title = f"time, batch {batch_size}"
            with tqdm(total=len(rounds), desc=title, disable=not study_data.progress, leave=False) as bar:
                timings = interleaved(
                    {name: _awaited(variant) for name, variant in variants.items()}, rounds, bar.update
                )
            found[str(batch_size)] = {name: _facts(timing) for name, timing in timings.items()}
        return found

    @contextmanager
    def _temporary_policy(self, policy: Policy) -> Iterator[None]:
        before, self._snn.policy = self._snn.policy, policy
        try:
            yield
        finally:
            self._snn.policy = before


def _facts(timing: Timing) -> dict[str, Any]:
    facts = timing.to_dict()
    return {**facts, "rounds": len(timing.rounds)}


def _awaited(variant: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """The same call, which also waits for a GPU."""

    def run(x: Tensor) -> object:
        answer = variant(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return answer

    return run
