"""What a model of the zoo is: how it is built, how its owner runs it, what is to be found out about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..invariants import Case
from ..reference import Outputs, Runner


@dataclass(frozen=True)
class Entry:
    """One model that must be taken, with per-row exit.

    Attributes:
        name: in words, unique.
        build: makes the model, in evaluation mode, with weights of a fixed seed scaled so that its neurons fire.
        row: shape of one row of the input (of one frame, for a sequence).
        timesteps: T; the model's own number of timesteps, or the length of the sequence.
        prefix: the reference: from the model and the input of ONE row as the model takes it (``[1, ...]``, or the whole
            sequence of length T in the model's own layout) what the model's own code, stopped after t timesteps,
            answers: the outputs of every timestep, each ``[1, ...]``. Where the model returns all timesteps these are
            its outputs, and ``readout`` says how they are read; where it returns one answer it is the answer that the
            model gives when its loop is stopped after t, and ``readout`` is ``"last"``.
        neurons: the names of the spiking modules, whose firing rate is asserted.
        layers: the names of modules that run once in every timestep, at which row-steps are counted.
        readout: ``"sum"``, ``"mean"`` or ``"last"``: how the reference reads the outputs of ``prefix``.
        readout_asked: the readout that the wrapper is told; ``"auto"`` where the model's own answer settles it.
        sequence: the input has a time axis.
        time_dim: 0 where the model takes ``[T, N, ...]``, 1 where it takes ``[N, T, ...]``.
        refillable: whether fresh rows can join active rows.
        sample: makes input from a shape and a generator, in [0, 1] by default.
        options: further arguments of the wrapper.
    """

    name: str
    build: Callable[[], nn.Module]
    row: tuple[int, ...]
    timesteps: int
    prefix: Callable[[nn.Module, Tensor, int], list[Outputs]]
    neurons: tuple[str, ...]
    layers: tuple[str, ...]
    readout: str = "last"
    readout_asked: str = "auto"
    sequence: bool = False
    time_dim: int = 0
    refillable: bool = True
    sample: Callable[[tuple[int, ...], torch.Generator], Tensor] = lambda shape, g: torch.rand(shape, generator=g)
    options: dict[str, Any] = field(default_factory=dict)

    def case(self, rows: int, seed: int = 0) -> Case:
        """The case of :mod:`tests.invariants` for this model and a random batch."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.timesteps, rows, *self.row) if self.sequence else (rows, *self.row)
        model = self.build().eval()
        return Case(
            model,
            self.runner(),
            self.sample(shape, generator),
            self.timesteps,
            layers=[model.get_submodule(name) for name in self.layers],
            sequence=self.sequence,
            time_dim=self.time_dim,
            readout=self.readout,
            options={"readout": self.readout_asked, **self.options},
        )

    def runner(self) -> Runner:
        """Runs the model as :mod:`tests.reference` wants it: from frames ``[T, n, ...]``."""

        def run(model: nn.Module, frames: Tensor) -> list[Outputs]:
            x = frames.transpose(0, self.time_dim) if self.sequence else frames[0]
            return self.prefix(model, x, frames.shape[0] if self.sequence else self.timesteps)

        return run


@dataclass(frozen=True)
class Refused:
    """One model that must be refused.

    Attributes:
        name: in words, unique.
        build: makes the model, in evaluation mode.
        row: shape of one row of the input (of one frame, for a sequence).
        timesteps: T.
        match: a regular expression that the refusal must match: the true reason, by name.
        sequence, time_dim, options: as in :class:`Entry`.
    """

    name: str
    build: Callable[[], nn.Module]
    row: tuple[int, ...]
    timesteps: int
    match: str
    sequence: bool = False
    time_dim: int = 0
    options: dict[str, Any] = field(default_factory=dict)
