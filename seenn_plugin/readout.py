"""Readouts: compute decision logits from the outputs of the timesteps so far."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._naming import unknown_name
from .errors import ReadoutError
from .state.values import row_misfit

Outputs = tuple[Tensor, ...]
"""What a model returns for one timestep: tensors ``[n, ...]``; the first is its prediction."""


class Readout(ABC):
    """Computes the decision logits a_t of each row from its outputs o_1..o_t, one timestep at a time.

    What a readout needs of earlier timesteps is its *accumulator*: tensors with ``n`` rows on dimension 0. The engine
    holds it, and removes and reorders its rows together with those of the batch.

    Attributes:
        name: the name in messages, and for built-in readouts the value of ``EarlyExitWrapper(model, readout=...)``.

    Example:
        >>> class LeakyReadout(Readout):
        ...     '''a_t = 0.5 a_(t-1) + o_t.'''
        ...
        ...     name = "leaky"
        ...
        ...     def step(self, outputs, timestep, accumulator):
        ...         total = outputs[0] if accumulator is None else 0.5 * accumulator + outputs[0]
        ...         return total, total
        >>> timestep = torch.tensor([1])
        >>> logits, accumulator = LeakyReadout().step((torch.tensor([[1.0, 0.0]]),), timestep, None)
        >>> logits, accumulator = LeakyReadout().step((torch.tensor([[1.0, 0.0]]),), timestep + 1, accumulator)
        >>> logits
        tensor([[1.5000, 0.0000]])
    """

    name: ClassVar[str]

    @abstractmethod
    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        """Compute the decision logits of ``n`` rows after a timestep. Must not modify its arguments in place.

        Args:
            outputs: the model's outputs at this timestep, each ``[n, ...]``; the first is its prediction.
            timestep: long ``[n]``: the number of timesteps that each row has run, from 1.
            accumulator: the one returned for the same rows at the previous timestep; ``None`` at the first.

        Returns:
            Decision logits ``[n, C]``, and the accumulator for the next timestep: ``None``, or tensors with ``n`` rows
            on dimension 0.
        """


@dataclass(frozen=True)
class SumReadout(Readout):
    """a_t = o_1 + ... + o_t: the spike count of each class. The authors of SEENN use it (arXiv 2304.01230)."""

    name = "sum"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        total = outputs[0] if accumulator is None else accumulator + outputs[0]
        return total, total


@dataclass(frozen=True)
class MeanReadout(Readout):
    """a_t = (o_1 + ... + o_t) / t: the firing rate, or the mean output current, of each class."""

    name = "mean"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        total = outputs[0] if accumulator is None else accumulator + outputs[0]
        return total / _like(timestep, total).to(total.dtype), total


@dataclass(frozen=True)
class LastReadout(Readout):
    """a_t = o_t: the output of the current timestep alone."""

    name = "last"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        return outputs[0], None


@dataclass(frozen=True)
class MembraneReadout(Readout):
    """a_t = the last of several outputs at t, which is the membrane potential in snnTorch's ``(spk, mem)``.

    Raises:
        ReadoutError: the model returns a single output (raised by :meth:`step`).
    """

    name = "membrane"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        if len(outputs) < 2:
            raise ReadoutError(
                "readout 'membrane' reads the last of several outputs, and the model returns one; "
                "return (spikes, membrane) (snnTorch: output=True), or use readout='last'."
            )
        return outputs[-1], None


class OutputFires(Exception):
    """Output neurons that had not spiked so far have spiked: their membrane potential may not be what to read."""


@dataclass(frozen=True)
class SilentOutputReadout(MembraneReadout):
    """:class:`MembraneReadout`, chosen because the output neurons have not spiked so far.

    Args:
        raises: whether :class:`OutputFires` is raised once they do. If not, a warning says so.

    Raises:
        OutputFires: an output neuron has spiked.
    """

    raises: bool = True

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        if bool(outputs[0].any()):
            if self.raises:
                raise OutputFires
            warnings.warn(
                "the output neurons spiked for the first time, and their membrane potential is read, because they were "
                "silent on the first batch; pass readout='sum' or readout='membrane'.",
                UserWarning,
                stacklevel=2,
            )
        return super().step(outputs, timestep, accumulator)


@dataclass(frozen=True)
class MaxReadout(Readout):
    """a_t = max(o_1, ..., o_t) for each class."""

    name = "max"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        highest = outputs[0] if accumulator is None else torch.maximum(accumulator, outputs[0])
        return highest, highest


@dataclass(frozen=True)
class FirstSpikeReadout(Readout):
    """a_t = -(timestep of the first spike) for each class; -(t + 1) for a class without a spike up to t.

    The prediction is the class that spikes first (time-to-first-spike code).
    """

    name = "first_spike"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        now = _like(timestep, outputs[0])
        no_spike = torch.zeros_like(outputs[0], dtype=torch.long)  # 0: no spike yet
        first = no_spike if accumulator is None else accumulator
        first = torch.where((first == 0) & (outputs[0] > 0), now, first)
        return -torch.where(first > 0, first, now + 1).to(outputs[0].dtype), first


@dataclass(frozen=True)
class PopulationReadout(Readout):
    """a_t = the spike count of the population of each class: a contiguous block of output neurons.

    Args:
        classes: C, the number of classes; must divide the number of output neurons.

    Raises:
        ReadoutError: the outputs are not ``[n, k * C]`` (raised by :meth:`step`).

    Example:
        >>> spikes = torch.tensor([[1.0, 1.0, 0.0, 1.0]])  # four neurons, two for each class
        >>> PopulationReadout(classes=2).step((spikes,), torch.tensor([1]), None)[0]
        tensor([[2., 1.]])
    """

    classes: int

    name = "population"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        n, neurons = outputs[0].shape[0], outputs[0].shape[-1]
        if outputs[0].ndim != 2 or neurons % self.classes:
            raise ReadoutError(
                f"PopulationReadout(classes={self.classes}) needs outputs of shape [N, k * {self.classes}], "
                f"not {tuple(outputs[0].shape)}."
            )
        counts = outputs[0].reshape(n, self.classes, neurons // self.classes).sum(2)
        total = counts if accumulator is None else accumulator + counts
        return total, total


@dataclass(frozen=True)
class CallableReadout(Readout):
    """a_t = a function of all outputs o_1..o_t so far. The accumulator grows with t.

    Args:
        function: maps the first outputs ``[t, n, ...]`` to decision logits ``[n, C]``, each row independently of the
            others.

    Example:
        >>> spread = CallableReadout(lambda history: history.amax(0) - history.amin(0))
        >>> spread.step((torch.tensor([[1.0, 3.0]]),), torch.tensor([1]), None)[0]
        tensor([[0., 0.]])
    """

    function: Callable[[Tensor], Tensor]

    name = "callable"

    def step(self, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        history = (
            outputs[0].unsqueeze(1) if accumulator is None else torch.cat([accumulator, outputs[0].unsqueeze(1)], 1)
        )
        return self.function(history.transpose(0, 1)), history


def _like(timestep: Tensor, outputs: Tensor) -> Tensor:
    """Reshape ``[n]`` to ``[n, 1, ...]``, with the rank of ``outputs``."""
    return timestep.view(-1, *[1] * (outputs.ndim - 1))


_BY_NAME: dict[str, type[Readout]] = {
    readout.name: readout
    for readout in (SumReadout, MeanReadout, LastReadout, MembraneReadout, MaxReadout, FirstSpikeReadout)
}
ReadoutChoice = str | Readout | Callable[[Tensor], Tensor]
"""What ``EarlyExitWrapper(model, readout=...)`` accepts."""


def make_readout(choice: ReadoutChoice) -> Readout | None:
    """Return the readout for a name, an instance or a function; ``None`` for ``"auto"``.

    Raises:
        ReadoutError: the name is unknown, or the object is no readout.

    Example:
        >>> make_readout("mean")
        MeanReadout()
    """
    if isinstance(choice, Readout):
        return choice
    if choice == "auto":
        return None
    if isinstance(choice, str):
        if choice == PopulationReadout.name:
            raise ReadoutError(
                "readout 'population' needs the number of classes; pass an instance: PopulationReadout(classes=10)."
            )
        if choice not in _BY_NAME:
            raise ReadoutError(unknown_name("readout", choice, {*_BY_NAME, "auto"}))
        return _BY_NAME[choice]()
    if callable(choice) and not isinstance(choice, type):
        return CallableReadout(choice)
    raise ReadoutError(f"readout must be a name, a Readout or a function [t, n, ...] -> [n, C], not {choice!r}.")


def choose_readout(steps: Sequence[Outputs], model_readout: str | None, chosen: Readout | None) -> tuple[Readout, str]:
    """Choose the readout of a model: the caller's, the model's own, or one chosen from its outputs.

    From the outputs: spikes are summed; real numbers are output currents, which are averaged, as is usual for a linear
    output layer. If no output neuron spikes and the model also returns a membrane potential, that is read, until one
    does (:class:`SilentOutputReadout`).

    Args:
        steps: the outputs of a few rows at all timesteps.
        model_readout: the name of the readout that the model itself applies to its timesteps; ``None`` if it applies
            none. ``"last"``: each output is the prediction for all timesteps so far.
        chosen: the caller's choice, or ``None``.

    Returns:
        The readout, and the reason in words, for ``explain``.

    Raises:
        ReadoutError: the caller's choice needs the outputs of single timesteps, and the model does not return them.

    Example:
        >>> choose_readout([(torch.tensor([[0.0, 1.0]]),)], None, None)
        (SumReadout(), 'the outputs are spikes (0 or 1): their count')
    """
    cumulative = model_readout == LastReadout.name
    if chosen is not None:
        if cumulative and not isinstance(chosen, LastReadout | MembraneReadout | CallableReadout):
            raise ReadoutError(
                f"readout {chosen.name!r} needs the outputs of single timesteps, and this model returns one prediction "
                "for all timesteps so far; use readout='auto'."
            )
        return chosen, "chosen by the caller"
    if cumulative:
        return LastReadout(), "the model returns its prediction for all timesteps so far"
    if model_readout is not None:
        readout = make_readout(model_readout)
        assert readout is not None
        return readout, "the model itself combines its timesteps this way"
    first = torch.stack([outputs[0] for outputs in steps])
    first = first[first.isfinite()]
    spiking = bool(((first >= 0) & (first <= 1)).all())
    if not spiking:
        return MeanReadout(), "the outputs are currents (real numbers): their mean over time"
    if len(steps[0]) > 1 and steps[0][-1].shape == steps[0][0].shape and not first.any():
        return (
            SilentOutputReadout(),
            "the output neurons have not spiked so far, and the model returns their membrane potential: its last value",
        )
    binary = bool(((first == 0) | (first == 1)).all())
    return SumReadout(), f"the outputs are {'spikes (0 or 1)' if binary else 'firing rates in [0, 1]'}: their count"


def spike_lead(readout: Readout, steps: Sequence[Outputs]) -> float | None:
    """Return the difference in decision logits at T between a class that spikes at half of the timesteps and a class
    that never spikes.

    Args:
        readout: the readout of the model.
        steps: the outputs of a few rows at all timesteps.

    Returns:
        The difference; ``None`` if the decision logits do not count spikes.
    """
    timesteps = len(steps)
    values = torch.stack([outputs[0] for outputs in steps])
    if isinstance(readout, SumReadout) and bool(((values >= 0) & (values <= 1)).all()):
        height = float(values.max())
        return timesteps / 2 * (height if height and _is_binary(values, height) else 1.0)
    if isinstance(readout, LastReadout):  # the model returns the count so far, or the count divided by T
        values = torch.cat([values[:1], values.diff(dim=0)])
        height = float(values.max())
        return timesteps / 2 * height if 0 < height <= 1 and _is_binary(values, height) else None
    if isinstance(readout, MeanReadout):
        return 0.5 if values.any() and _is_binary(values, 1.0) else None
    return None


def _is_binary(values: Tensor, height: float) -> bool:
    """Return whether all values are 0 or ``height``, up to rounding."""
    return bool((((values - height).abs() < 1e-5) | (values.abs() < 1e-5)).all())


def read(readout: Readout, outputs: Outputs, timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
    """Run one step of a readout, and check what it returns.

    Args:
        readout: computes the logits.
        outputs: the model's outputs at this timestep, each ``[n, ...]``.
        timestep: long ``[n]``, from 1.
        accumulator: that of the previous timestep.

    Returns:
        Decision logits ``[n, C]`` or ``[n, C, ...]``, and the accumulator for the next timestep.

    Raises:
        ReadoutError: the logits have another shape, or the accumulator has other rows.
    """
    logits, accumulator = readout.step(outputs, timestep, accumulator)
    n = outputs[0].shape[0]
    if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.shape[0] != n:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ReadoutError(
            f"readout {readout.name!r} returned logits of shape {seen} for outputs {tuple(outputs[0].shape)}; they "
            f"must be [{n}, C]. If the first dimension of the input is time, pass input='sequence'. A function maps "
            "[t, n, ...] to [n, C]."
        )
    misfit = row_misfit(accumulator, n)
    if misfit:
        raise ReadoutError(
            f"readout {readout.name!r} returned an accumulator of {misfit}; it must be made of tensors with {n} rows "
            "on dimension 0."
        )
    return logits, accumulator
