"""Synaptic operations and energy of every sample, up to its own exit and at full T."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._arguments import check, price_mistakes, wrapped_mistake
from ..calibration import traces
from ..discovery.probing import check_rows
from ..errors import CalibrationError, InputError, ModelRefused
from ..inputs import InputBatch
from ..policies import exit_timesteps
from .synaptic import PICOJOULES_PER_AC, PICOJOULES_PER_MAC, HeightFinder, SynapticCounter

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper


@dataclass(frozen=True)
class EnergyReport:
    """Synaptic operations of ``M`` samples. An AC is an accumulate, a MAC a multiply-accumulate; energy in picojoules.

    Attributes:
        timesteps: the exit of each sample, long ``[M]``.
        acs_per_timestep: of the network, float64 ``[T, M]``: all timesteps, those after the exit too.
        macs_per_timestep: likewise.
        policy_acs: what the policy's own network takes before the first timestep, float64 ``[M]``.
        policy_macs: likewise.
        picojoules_per_ac: price of an accumulate.
        picojoules_per_mac: price of a multiply-accumulate.
        uncounted: operations that may do synaptic work and are not in the counts, by name, with their number of calls.
    """

    timesteps: Tensor
    acs_per_timestep: Tensor
    macs_per_timestep: Tensor
    policy_acs: Tensor
    policy_macs: Tensor
    picojoules_per_ac: float
    picojoules_per_mac: float
    uncounted: dict[str, int]

    @property
    def acs(self) -> Tensor:
        """Of each sample up to its exit, the policy's own included: ``[M]``."""
        return self._up_to_exit(self.acs_per_timestep) + self.policy_acs

    @property
    def macs(self) -> Tensor:
        """Of each sample up to its exit, the policy's own included: ``[M]``."""
        return self._up_to_exit(self.macs_per_timestep) + self.policy_macs

    @property
    def picojoules(self) -> Tensor:
        """Of each sample up to its exit, the policy's own included: ``[M]``."""
        return self._price(self.acs, self.macs)

    @property
    def policy_picojoules(self) -> Tensor:
        """The part of :attr:`picojoules` that is the policy's own: ``[M]``."""
        return self._price(self.policy_acs, self.policy_macs)

    @property
    def full_acs(self) -> Tensor:
        """Of each sample at full T, without a policy: ``[M]``."""
        return self.acs_per_timestep.sum(0)

    @property
    def full_macs(self) -> Tensor:
        """Of each sample at full T, without a policy: ``[M]``."""
        return self.macs_per_timestep.sum(0)

    @property
    def full_picojoules(self) -> Tensor:
        """Of each sample at full T, without a policy: ``[M]``."""
        return self._price(self.full_acs, self.full_macs)

    @property
    def static_picojoules(self) -> list[float]:
        """Mean of a sample in a network that always takes t = 1..T timesteps."""
        return self._price(self.acs_per_timestep, self.macs_per_timestep).cumsum(0).mean(1).tolist()

    @property
    def saving(self) -> float:
        """The fraction of the energy at full T that all samples together save; negative if the policy costs more."""
        full = float(self.full_picojoules.sum())
        return 1 - float(self.picojoules.sum()) / full if full else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Means of a sample, and totals."""
        per_sample = ("acs", "macs", "picojoules", "policy_picojoules", "full_acs", "full_macs", "full_picojoules")
        values = {name: getattr(self, name) for name in per_sample}
        return {
            "samples": self.timesteps.numel(),
            "mean_timesteps": float(self.timesteps.double().mean()),
            "picojoules_per_ac": self.picojoules_per_ac,
            "picojoules_per_mac": self.picojoules_per_mac,
            "mean": {name: float(value.mean()) for name, value in values.items()},
            "total": {name: float(value.sum()) for name, value in values.items()},
            "static_picojoules": self.static_picojoules,
            "saving": self.saving,
            "uncounted": self.uncounted,
        }

    def _up_to_exit(self, per_timestep: Tensor) -> Tensor:
        return per_timestep.cumsum(0).gather(0, (self.timesteps - 1).unsqueeze(0))[0]

    def _price(self, acs: Tensor, macs: Tensor) -> Tensor:
        return acs * self.picojoules_per_ac + macs * self.picojoules_per_mac


def measure_energy(
    snn: EarlyExitWrapper,
    loader: Iterable[Any],
    *,
    picojoules_per_ac: float = PICOJOULES_PER_AC,
    picojoules_per_mac: float = PICOJOULES_PER_MAC,
    progress: bool = False,
) -> EnergyReport:
    """Count the synaptic operations of every sample of a data set, and price them.

    Every sample is run once, for all T timesteps, and its operations up to its exit are added up. Convolutions and
    matrix products are counted as they are executed, so that a layer that runs once for all timesteps (the stem of a
    static image) counts once, at full T too.

    - An input of spikes, or of other integers k (sums of a SEW block, events per pixel), costs ``abs(k)`` accumulates
      for every connection of a nonzero value. Connections that a convolution's border cuts off do not exist. Spikes of
      one other height (converted networks) are counted in the same way: the height is folded into the weights.
    - Any other input costs the multiply-accumulates of the dense layer, its zeros and padding included. So do integers
      so large that a multiplication is cheaper, at 0.9 to 4.6 (pixels from 0 to 255).
    - Not counted, as is the custom of the field: biases, normalisation (folded into weights), pooling, the updates of
      the neurons, memory accesses, and a policy that has no network.

    The prices are those of 32-bit floating point at 45 nm (Horowitz, "Computing's energy problem", ISSCC 2014): an
    addition takes 0.9 pJ and a multiplication 3.7 pJ, which make an AC of 0.9 pJ and a MAC of 4.6 pJ.

    Operations are attributed to rows by their place in the batch. Whether that is correct for this network is tested on
    its first rows, which are run alone as well. If it is not, every sample is run alone, which is as exact, and slower.
    Timesteps that ``chunk`` or ``check_every`` compute after an exit are not counted. The model itself is run, without
    the options that make it faster.

    Args:
        snn: a wrapped network.
        loader: yields ``(x, labels)``, as for :func:`~seenn_plugin.evaluate`.
        picojoules_per_ac: price of an accumulate.
        picojoules_per_mac: price of a multiply-accumulate, its addition included.
        progress: show a progress bar.

    Raises:
        InputError: a price that is negative or not finite, or ``snn`` is no wrapped network.
        CalibrationError: no sample, or batches of different length in time.
        ModelRefused: the network is run whole (``full_run=True``), or nothing that it does can be counted.
    """
    prices = {"picojoules_per_ac": picojoules_per_ac, "picojoules_per_mac": picojoules_per_mac}
    check(InputError, *price_mistakes(prices), wrapped_mistake(snn))
    if not snn.adapter.skips_finished_rows:
        raise ModelRefused(
            "full_run=True computes all timesteps of every sample, so that none has an energy up to its exit.",
            "Measure a network that can be stepped.",
        )
    meter = _Meter(snn)
    parts = [
        _Counts(*(part.cpu() for part in meter.measure(x)))
        for x, labels in traces.batches(snn, loader, progress, "energy")
        if labels.numel()
    ]
    if not parts:
        raise CalibrationError("the loader yielded no sample.")
    if len({len(part.acs) for part in parts}) > 1:
        raise CalibrationError("the batches have sequences of different lengths; pad them to one.")
    return EnergyReport(*_joined(parts), picojoules_per_ac, picojoules_per_mac, dict(meter.uncounted))


class _Counts(NamedTuple):
    """Of some rows, as in :class:`EnergyReport`."""

    timesteps: Tensor
    acs: Tensor
    macs: Tensor
    policy_acs: Tensor
    policy_macs: Tensor


def _joined(parts: list[_Counts]) -> _Counts:
    return _Counts(*(torch.cat(tensors, -1) for tensors in zip(*parts, strict=True)))


class _Kind(NamedTuple):
    """What is known of input of one shape.

    Attributes:
        together: whether operations of rows that run together are attributed correctly.
        heights: of spikes, see :class:`~seenn_plugin.evaluation.synaptic.SynapticCounter`.
    """

    together: bool
    heights: dict[int, float]


class _Meter:
    """Runs batches of a wrapped network and counts.

    Attributes:
        uncounted: see :class:`EnergyReport`.
    """

    def __init__(self, snn: EarlyExitWrapper) -> None:
        self._snn = snn
        self._weights = list(snn.parameters())
        self._row_dim = snn.time_dim ^ 1 if snn.input == "sequence" else 0
        self._kinds: dict[Any, _Kind] = {}
        self.uncounted: Counter[str] = Counter()

    @torch.no_grad()
    def measure(self, x: Tensor) -> _Counts:
        kind = self._kind(x)
        counts = self._together(x, kind.heights) if kind.together else None
        return self._alone(x, kind.heights) if counts is None else counts

    def _kind(self, x: Tensor) -> _Kind:
        shape = list(x.shape)
        del shape[self._row_dim]
        key = (*shape, x.dtype)
        if key not in self._kinds:
            self._kinds[key] = self._inspect(x)
        return self._kinds[key]

    def _inspect(self, x: Tensor) -> _Kind:
        dim = self._snn.time_dim if self._snn.input == "sequence" else 0
        rows = check_rows(InputBatch(x.transpose(0, dim), self._snn.input == "sequence")).values.transpose(0, dim)
        finder = HeightFinder(self._weights)
        steps = self._snn.steps(rows)
        with finder:
            for _ in steps:
                pass
        if not finder.calls and not finder.uncounted:
            raise ModelRefused(
                f"no convolution or matrix product was seen in {type(self._snn.model).__name__}.",
                "Only what PyTorch dispatches can be counted: hand over the network as it was before it was compiled "
                "or exported.",
            )
        seen = self.uncounted.copy()  # these rows are not part of the data
        together, alone = self._together(rows, finder.heights), self._alone(rows, finder.heights)
        self.uncounted = seen
        equal = together is not None and all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
        return _Kind(equal, finder.heights)

    def _alone(self, x: Tensor, heights: dict[int, float]) -> _Counts:
        rows = (x.narrow(self._row_dim, row, 1) for row in range(x.shape[self._row_dim]))
        return _joined([part for row in rows if (part := self._together(row, heights)) is not None])

    def _together(self, x: Tensor, heights: dict[int, float]) -> _Counts | None:
        """``None`` if operations cannot be attributed to rows; those of a single row always can."""
        snn = self._snn
        steps = snn.steps(x)  # inspects a new kind of input now, and not while operations are counted
        counter = SynapticCounter(x.shape[self._row_dim], self._weights, heights)
        with counter:
            plan = snn.plan(x)
        marks, logits = [(counter.acs, counter.macs)], []
        while True:
            with counter:
                decision_logits = next(steps, None)
            if decision_logits is None:
                break
            logits.append(decision_logits)
            marks.append((counter.acs, counter.macs))
        if not counter.attributable:
            return None
        self.uncounted += counter.uncounted
        acs, macs = (torch.stack([total.to(x.device) for total in totals]) for totals in zip(*marks, strict=True))
        exits = exit_timesteps(snn.policy_for(x), torch.stack(logits), plan)
        return _Counts(exits, acs.diff(dim=0), macs.diff(dim=0), acs[0], macs[0])
