"""What a frozen spiking network answers after every timestep, recorded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import calibration
from ..errors import CalibrationError
from ..policies import RLPolicy
from ..policies.planned import first_frames

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper

_PLANNED_AT_A_TIME = 1024
NO_ANSWER = -1
"""Where decision logits are NaN or infinite: never counted as right, and a row does not leave on it."""


@dataclass(frozen=True)
class Recording:
    """Rows on the CPU, or in files that are mapped into memory.

    Attributes:
        frames: what the policy network sees, ``[M, ...]``.
        answers: long ``[M, T]``: the class answered after every timestep, or :data:`NO_ANSWER`.
        labels: long ``[M]``.
        classes: C, the number of decision logits.
        example: one row as the wrapper takes it.
    """

    frames: Tensor
    answers: Tensor
    labels: Tensor
    classes: int
    example: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def timesteps(self) -> int:
        return self.answers.shape[1]

    @property
    def right(self) -> Tensor:
        """Bool ``[M, T]``."""
        return self.answers == self.labels.unsqueeze(1)

    @property
    def accuracy(self) -> list[float]:
        """Of the network with 1..T timesteps, as fractions."""
        return self.right.double().mean(0).tolist()


def observe(
    snn: EarlyExitWrapper, loader: Iterable[Any], progress: bool, title: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of a loader: x, decision logits ``[T, n, C]`` and labels, on the model's device.

    Gradients of the logits are as the caller has set them.

    Raises:
        CalibrationError: an item that is no pair ``(x, labels)``, or labels that are no classes of the model.
    """
    for x, labels in calibration.batches(snn, loader, progress, title):
        if labels.numel():
            trace = snn.trace(x)
            calibration.check_labels(labels, trace.shape[2])
            yield x, trace, labels


def seen(snn: EarlyExitWrapper, policy: RLPolicy, x: Tensor) -> Tensor:
    """What the policy network sees of an input, ``[n, ...]``."""
    sequence = snn.input == "sequence"
    return first_frames(x.transpose(0, snn.time_dim) if sequence else x, sequence, policy.frames)


def answers_of(trace: Tensor) -> Tensor:
    """Answers long ``[n, T]`` of decision logits ``[T, n, C]``."""
    return trace.argmax(2).masked_fill(~trace.isfinite().all(2), NO_ANSWER).T


@torch.no_grad()
def record(
    snn: EarlyExitWrapper,
    policy: RLPolicy,
    loader: Iterable[Any],
    progress: bool = False,
    title: str = "traces",
    memory_limit: float = float("inf"),
    folder: Path | None = None,
) -> Recording:
    """Run the spiking network in full on every sample of a loader, once.

    Args:
        memory_limit: bytes of ``frames`` above which they are kept in a file of ``folder``, mapped into memory.

    Raises:
        CalibrationError: no sample, labels that do not fit, or sequences of different lengths.
    """
    frames, answers, all_labels = _Spool(memory_limit, folder, title), [], []
    classes, example = 0, None
    for x, trace, labels in observe(snn, loader, progress, title):
        frames.add(seen(snn, policy, x).cpu())
        answers.append(answers_of(trace).cpu())
        all_labels.append(labels.cpu())
        if example is None:
            classes, example = trace.shape[2], x.narrow(snn.time_dim ^ 1 if snn.input == "sequence" else 0, 0, 1).cpu()
    if example is None:
        raise CalibrationError("the loader yielded no sample.")
    lengths = {batch.shape[1] for batch in answers}
    if len(lengths) > 1:
        raise CalibrationError(f"the batches have sequences of different lengths ({sorted(lengths)}); pad them to one.")
    return Recording(frames.joined(), torch.cat(answers), torch.cat(all_labels), classes, example)


class _Spool:
    """Batches of one kind, joined at the end: in memory, or above a limit in a file."""

    def __init__(self, limit: float, folder: Path | None, name: str) -> None:
        self._limit = limit
        self._path = folder / f"{name}.bin" if folder else None
        self._held: list[Tensor] = []
        self._rows = 0

    def add(self, batch: Tensor) -> None:
        self._held.append(batch)
        self._rows += batch.shape[0]
        if self._path and (self._path.exists() or sum(held.nbytes for held in self._held) > self._limit):
            with self._path.open("ab") as file:
                for held in self._held:
                    file.write(held.contiguous().view(torch.uint8).numpy().data)
            self._held = [batch[:0]]

    def joined(self) -> Tensor:
        if not (self._path and self._path.exists()):
            return torch.cat(self._held)
        like = self._held[0]
        size = self._rows * prod(like.shape[1:])
        return torch.from_file(str(self._path), size=size, dtype=like.dtype).view(self._rows, *like.shape[1:])


@torch.no_grad()
def plan_all(policy: RLPolicy, recording: Recording) -> Tensor:
    """The plan of every row of a recording, long ``[M]`` on the CPU; made where the policy network is."""
    assert policy.network is not None
    device = next((parameter.device for parameter in policy.network.parameters()), torch.device("cpu"))
    batches = recording.frames.split(_PLANNED_AT_A_TIME)
    return torch.cat([policy.plan(frames.to(device), recording.timesteps).timesteps.cpu() for frames in batches])


def outcome(plan: Tensor, recording: Recording) -> tuple[Tensor, Tensor]:
    """Exits long ``[M]`` and whether they are right, bool ``[M]``, of rows that follow a plan.

    A row that has no answer when its plan ends goes on until it has one, to T at most: as in the engine.
    """
    time = torch.arange(1, recording.timesteps + 1)
    can_leave = (recording.answers != NO_ANSWER) & (time >= plan.unsqueeze(1))
    exits = torch.where(can_leave.any(1), can_leave.int().argmax(1) + 1, recording.timesteps)
    return exits, recording.right.gather(1, (exits - 1).unsqueeze(1)).squeeze(1)
