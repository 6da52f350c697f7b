"""What a policy that was chosen does on the test data."""

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

from .. import calibration
from ..energy import EnergyReport, measure_energy
from ..errors import ModelRefused
from ..metrics import average_exit_time, empirical_average_exit_time, evaluate
from ..policies import FixedPolicy, Plan, Policy, RLPolicy, exit_timesteps
from ..timing import Timing, interleaved
from .material import Material, size, subset
from .stock import Stock

BATCH_SIZES = (1, 64)
FULL, EARLY, STATIC = "full", "early_exit", "static"


class Meter:
    """Measures policies on the test data of a network.

    Accuracy, exits and histogram are those of the policy on traces of all test samples, which are recorded once. A part
    of them is really run with early exit, which says whether it does what the policy does on the trace.

    Args:
        material: the network and its data.
        prices: picojoules of an accumulate and of a multiply-accumulate.
    """

    def __init__(self, material: Material, prices: tuple[float, float]) -> None:
        self._material = material
        self._snn = material.snn
        self._prices = {"picojoules_per_ac": prices[0], "picojoules_per_mac": prices[1]}
        self._stock: Stock | None = None

    def static(self) -> dict[str, Any]:
        """The network without early exit, at every number of timesteps."""
        validation, test = self._material.validation, self._material.test
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
        test = self._material.test
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
            "infer": evaluate(self._snn, self._some(self._material.effort.infer_samples)).to_dict(),
            "energy": self._energy(policy, exits),
            "wall_clock": self._wall_clock(nearest, timesteps),
        }

    def _plan(self, policy: Policy) -> Plan | None:
        """What the policy plans for all test samples, if it plans."""
        if not isinstance(policy, RLPolicy):
            return None
        material = self._material
        batches = calibration.batches(self._snn, material.batches(material.test_data), material.progress, "plans")
        plans = [self._snn.plan(x) for x, _ in batches]
        return Plan(*(torch.cat(parts).cpu() for parts in zip(*plans, strict=True)))

    def _some(self, wanted: int) -> Any:
        return self._material.batches(self._part(wanted))

    def _part(self, wanted: int) -> Dataset[Any]:
        return subset(self._material.test_data, self._places(wanted))

    def _places(self, wanted: int) -> Tensor:
        return self._material.draw(size(self._material.test_data), wanted)

    # -- operations and energy ------------------------------------------------------------------------------------

    @cached_property
    def _full_energy(self) -> EnergyReport | str:
        """Operations of some samples at every timestep; or why they cannot be counted."""
        with self._lent_policy(FixedPolicy(len(self._material.test.logits))):
            return self._count()

    def _count(self) -> EnergyReport | str:
        samples = self._some(self._material.effort.energy_samples)
        try:
            return measure_energy(self._snn, samples, progress=self._material.progress, **self._prices)
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
        own_exits = exits[self._places(self._material.effort.energy_samples)]
        return replace(report, timesteps=own_exits).to_dict()

    # -- wall clock -----------------------------------------------------------------------------------------------

    def _wall_clock(self, nearest: int, timesteps: int) -> dict[str, Any]:
        """Seconds per sample at each batch size, with the full run and the nearest static one in turns."""
        material, effort = self._material, self._material.effort
        samples = self._some(max(BATCH_SIZES) * effort.rounds)
        x = torch.cat([x for x, _ in calibration.batches(self._snn, samples, False, "timing")])
        if self._stock is None:
            self._stock = Stock(self._snn, material.net.card.wrapper, x[:2])
        full, full_is = self._stock.run(timesteps)
        static, static_is = self._stock.run(nearest)
        ways = {FULL: full, EARLY: self._snn.infer} | ({STATIC: static} if nearest < timesteps else {})
        found: dict[str, Any] = {"full_run": full_is, "static_run": static_is}
        for batch_size in BATCH_SIZES:
            batches = [x[at : at + batch_size] for at in range(0, len(x) - batch_size + 1, batch_size)]
            in_a_round = effort.singles if batch_size == 1 else 1
            rounds = [batches[at : at + in_a_round] for at in range(0, len(batches), in_a_round)][: effort.rounds]
            if not rounds:  # there are not so many test samples
                continue
            title = f"time, batch {batch_size}"
            with tqdm(total=len(rounds), desc=title, disable=not material.progress, leave=False) as bar:
                timings = interleaved({name: _awaited(way) for name, way in ways.items()}, rounds, bar.update)
            found[str(batch_size)] = {name: _facts(timing) for name, timing in timings.items()}
        return found

    @contextmanager
    def _lent_policy(self, policy: Policy) -> Iterator[None]:
        before, self._snn.policy = self._snn.policy, policy
        try:
            yield
        finally:
            self._snn.policy = before


def _facts(timing: Timing) -> dict[str, Any]:
    facts = timing.to_dict()
    return {**facts, "rounds": len(timing.rounds)}


def _awaited(way: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """The same, until a GPU is done."""

    def run(x: Tensor) -> object:
        answer = way(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return answer

    return run
