"""Readouts: from the outputs of the timesteps so far to decision logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import ReadoutError
from .module_state import row_misfit
from .naming import unknown_name

Outputs = tuple[Tensor, ...]


class Readout(ABC):
    """How the outputs o_1..o_t of a row become its decision logits a_t.

    Works one timestep at a time, so that rows can leave and join: what it has to remember of the past is its memory,
    in tensors of ``n`` rows on dimension 0.
    """

    name: ClassVar[str]

    @abstractmethod
    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Decision logits ``[n, C]`` after this timestep, and the memory for the next.

        Args:
            outputs: the network's outputs at this timestep, each ``[n, ...]``; the first is its answer.
            timestep: long ``[n]``, counted from 1.
            memory: as returned at the previous timestep; ``None`` at the first.
        """


@dataclass(frozen=True)
class SumReadout(Readout):
    """a_t = o_1 + ... + o_t: spike counts; the readout of SEENN's authors."""

    name = "sum"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        total = outputs[0] if memory is None else memory + outputs[0]
        return total, total


@dataclass(frozen=True)
class MeanReadout(Readout):
    """a_t = (o_1 + ... + o_t) / t: firing rates; mean output currents."""

    name = "mean"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        total = outputs[0] if memory is None else memory + outputs[0]
        return total / _like(timestep, total).to(total.dtype), total


@dataclass(frozen=True)
class LastReadout(Readout):
    """a_t = o_t."""

    name = "last"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        return outputs[0], None


@dataclass(frozen=True)
class MembraneReadout(Readout):
    """a_t = the membrane potential at t: the last of several outputs, as snnTorch's ``(spk, mem)``."""

    name = "membrane"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        if len(outputs) < 2:
            raise ReadoutError(
                "readout 'membrane' reads the last of several outputs, and the model returns one; "
                "return (spikes, membrane) (snnTorch: output=True), or use readout='last'."
            )
        return outputs[-1], None


@dataclass(frozen=True)
class MaxReadout(Readout):
    """a_t = max(o_1, ..., o_t), class by class."""

    name = "max"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        highest = outputs[0] if memory is None else torch.maximum(memory, outputs[0])
        return highest, highest


@dataclass(frozen=True)
class FirstSpikeReadout(Readout):
    """a_t = -(time of the first spike), class by class; -(t + 1) for a class that has not spiked by t.

    The class that spikes first is the answer (time-to-first-spike code).
    """

    name = "first_spike"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        now = _like(timestep, outputs[0])
        never = torch.zeros_like(outputs[0], dtype=torch.long)  # 0: no spike yet
        first = never if memory is None else memory
        first = torch.where((first == 0) & (outputs[0] > 0), now, first)
        return -torch.where(first > 0, first, now + 1).to(outputs[0].dtype), first


@dataclass(frozen=True)
class PopulationReadout(Readout):
    """a_t = spikes so far, summed over the contiguous block of outputs that stands for each class.

    Args:
        classes: number of classes; it must divide the number of outputs.
    """

    classes: int

    name = "population"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        n, neurons = outputs[0].shape[0], outputs[0].shape[-1]
        if outputs[0].ndim != 2 or neurons % self.classes:
            raise ReadoutError(
                f"a population code of {self.classes} classes needs outputs [N, k * {self.classes}], "
                f"not {tuple(outputs[0].shape)}."
            )
        votes = outputs[0].reshape(n, self.classes, neurons // self.classes).sum(2)
        total = votes if memory is None else memory + votes
        return total, total


@dataclass(frozen=True)
class CallableReadout(Readout):
    """a_t = the caller's function of all outputs so far, ``[t, n, ...] -> [n, C]``. It must treat rows alike."""

    function: Callable[[Tensor], Tensor]

    name = "callable"

    def step(self, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
        history = outputs[0].unsqueeze(1) if memory is None else torch.cat([memory, outputs[0].unsqueeze(1)], 1)
        return self.function(history.transpose(0, 1)), history


def _like(timestep: Tensor, outputs: Tensor) -> Tensor:
    """``[n]`` in the rank of ``[n, ...]``."""
    return timestep.view(-1, *[1] * (outputs.ndim - 1))


_BY_NAME: dict[str, type[Readout]] = {
    readout.name: readout
    for readout in (SumReadout, MeanReadout, LastReadout, MembraneReadout, MaxReadout, FirstSpikeReadout)
}
ReadoutChoice = str | Readout | Callable[[Tensor], Tensor]


def make_readout(choice: ReadoutChoice) -> Readout | None:
    """A readout from a name, an instance or a function; ``None`` for ``"auto"``.

    Raises:
        ReadoutError: the name is unknown, or the object is no readout.
    """
    if isinstance(choice, Readout):
        return choice
    if choice == "auto":
        return None
    if isinstance(choice, str):
        if choice == PopulationReadout.name:
            raise ReadoutError(
                "a population code must know the number of classes: readout=PopulationReadout(classes=10)."
            )
        if choice not in _BY_NAME:
            raise ReadoutError(unknown_name("readout", choice, {*_BY_NAME, "auto"}))
        return _BY_NAME[choice]()
    if callable(choice) and not isinstance(choice, type):
        return CallableReadout(choice)
    raise ReadoutError(f"readout must be a name, a Readout or a function [t, n, ...] -> [n, C], not {choice!r}.")


def choose_readout(steps: Sequence[Outputs], answer: str | None, chosen: Readout | None) -> tuple[Readout, str]:
    """The caller's readout, or the model's own, or one picked by looking at the outputs of a few rows; and why.

    Spikes are counted; membrane potentials are read as they are; currents are averaged, as the field does with the
    output of a linear head. Spikes of a silent output layer say nothing, so the membrane beside them is read.

    Args:
        steps: outputs of all timesteps of a few rows.
        answer: how the model makes one answer of its timesteps, as the name of a readout; ``None`` if it does not.
        chosen: the caller's choice, if there is one.

    Raises:
        ReadoutError: the caller's choice is for outputs of single timesteps, which this model does not give.
    """
    if chosen is not None:
        if answer == LastReadout.name and not isinstance(chosen, LastReadout | MembraneReadout | CallableReadout):
            raise ReadoutError(
                f"readout {chosen.name!r} reads the outputs of single timesteps, and this model returns one answer to "
                "all timesteps so far; use readout='auto'."
            )
        return chosen, "chosen by the caller"
    if answer is not None:
        readout = make_readout(answer)
        assert readout is not None
        how = "it is the model's answer to the timesteps so far" if answer == LastReadout.name else "as the model does"
        return readout, how
    first = torch.stack([outputs[0] for outputs in steps])
    first = first[first.isfinite()]
    spiking = bool(((first >= 0) & (first <= 1)).all())
    if not spiking:
        return MeanReadout(), "the outputs are currents (real numbers): their mean over time"
    if len(steps[0]) > 1 and steps[0][-1].shape == steps[0][0].shape and not first.any():
        return (
            MembraneReadout(),
            "the output neurons do not spike, and their membrane potential is returned: its last value",
        )
    binary = bool(((first == 0) | (first == 1)).all())
    return SumReadout(), f"the outputs are {'spikes (0 or 1)' if binary else 'firing rates in [0, 1]'}: their count"


def spike_lead(readout: Readout, steps: Sequence[Outputs]) -> float | None:
    """How far ahead in the decision logits a class is that alone spikes half of the time; ``None`` for currents.

    Args:
        steps: outputs of all timesteps of a few rows.
    """
    timesteps = len(steps)
    made = torch.stack([outputs[0] for outputs in steps])
    if isinstance(readout, SumReadout) and bool(((made >= 0) & (made <= 1)).all()):
        spike = float(made.max())
        return timesteps / 2 * (spike if spike and _is_binary(made, spike) else 1.0)
    if isinstance(readout, LastReadout):  # a count so far, or one divided by T
        made = torch.cat([made[:1], made.diff(dim=0)])
        spike = float(made.max())
        return timesteps / 2 * spike if 0 < spike <= 1 and _is_binary(made, spike) else None
    if isinstance(readout, MeanReadout):
        return 0.5 if made.any() and _is_binary(made, 1.0) else None
    return None


def _is_binary(values: Tensor, height: float) -> bool:
    return bool((((values - height).abs() < 1e-5) | (values.abs() < 1e-5)).all())


def read(readout: Readout, outputs: Outputs, timestep: Tensor, memory: Any) -> tuple[Tensor, Any]:
    """One step of a readout, held to its contract: logits ``[n, C]``.

    Raises:
        ReadoutError: the logits have another shape, or the memory has other rows.
    """
    logits, memory = readout.step(outputs, timestep, memory)
    n = outputs[0].shape[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != n:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ReadoutError(
            f"readout {readout.name!r} made logits of shape {seen} from outputs {tuple(outputs[0].shape)}; they "
            "must be "
            f"[{n}, C]. Pass readout=function, [t, n, ...] -> [n, C]."
        )
    misfit = row_misfit(memory, n)
    if misfit:
        raise ReadoutError(
            f"readout {readout.name!r} keeps memory of {misfit}; it must be tensors with {n} rows on dim 0."
        )
    return logits, memory
