"""Recording the predictions of a frozen spiking network at every timestep, and evaluating plans on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...inputs import InputBatch
from ...policies import RLPolicy
from ...policies.planned import first_frames
from ..traces import TraceSource, batches, check_labels, check_lengths, class_count, row_dim

_PLANNING_BATCH = 1024
"""Rows for which the policy network plans at a time."""
NO_PREDICTION = -1
"""The prediction where decision logits are NaN or infinite. It is never correct, and a row does not exit there."""


@dataclass(frozen=True)
class Recording:
    """M rows of a data set with their predictions, on the CPU or in memory-mapped files.

    Attributes:
        frames: the inputs of the policy network, ``[M, ...]``.
        predictions: long ``[M, T]``: the predicted class at every timestep, or :data:`NO_PREDICTION`.
        labels: long ``[M]``.
        classes: C, the number of decision logits.
        example: the input of the spiking network for one row, with the dimension of the rows.
    """

    frames: Tensor
    predictions: Tensor
    labels: Tensor
    classes: int
    example: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def timesteps(self) -> int:
        """T."""
        return self.predictions.shape[1]

    @property
    def correct(self) -> Tensor:
        """Whether the prediction at each timestep is correct, bool ``[M, T]``."""
        return self.predictions == self.labels.unsqueeze(1)

    @property
    def accuracy(self) -> list[float]:
        """The accuracy at timesteps 1..T, as fractions."""
        return self.correct.double().mean(0).tolist()


def traced_batches(
    source: TraceSource, loader: Iterable[Any], progress: bool, title: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, for each batch of a loader, the input, the trace ``[T, n, C]`` and the labels, on the model's device.

    The traces are differentiable if gradients are enabled.

    Raises:
        CalibrationError: an item is no pair ``(x, labels)``, or its labels are no class indices.
    """
    for x, labels in batches(source, loader, progress, title):
        if labels.numel():
            trace = source.trace(x)
            check_labels(labels, class_count(trace))
            yield x, trace, labels


def policy_input(source: TraceSource, policy: RLPolicy, x: Tensor) -> Tensor:
    """Return the input of the policy network, ``[n, ...]``, for an input ``x`` of the spiking network."""
    sequence = source.input == "sequence"
    return first_frames(InputBatch(x.transpose(0, source.time_dim) if sequence else x, sequence), policy.frames)


def predictions_of(trace: Tensor) -> Tensor:
    """Return the predictions, long ``[n, T]``, of a trace ``[T, n, C]``.

    They are :data:`NO_PREDICTION` where the logits of a row are NaN or infinite.
    """
    return trace.argmax(2).masked_fill(~trace.isfinite().all(2), NO_PREDICTION).T


@torch.no_grad()
def record(
    source: TraceSource,
    policy: RLPolicy,
    loader: Iterable[Any],
    progress: bool = False,
    title: str = "traces",
    memory_limit: float = float("inf"),
    folder: Path | None = None,
) -> Recording:
    """Run the spiking network for all T timesteps on every sample of a loader, in one pass.

    Args:
        source: computes the traces.
        policy: determines the inputs of the policy network.
        loader: yields pairs ``(x, labels)`` with labels ``[N]``; sequences must all have the same length.
        progress: whether to show a progress bar.
        title: the description of the progress bar, and the name of the file.
        memory_limit: bytes of ``frames``; above this they are kept in a memory-mapped file in ``folder``.
        folder: where that file is written; ``None`` keeps everything in memory.

    Raises:
        CalibrationError: the loader yields no sample, an item that is no pair, labels that are no class indices, or
            sequences of different lengths.
    """
    frames, predictions, all_labels = _RowBuffer(memory_limit, folder, title), [], []
    classes, example = 0, None
    for x, trace, labels in traced_batches(source, loader, progress, title):
        frames.add(policy_input(source, policy, x).cpu())
        predictions.append(predictions_of(trace).cpu())
        all_labels.append(labels.cpu())
        if example is None:
            classes, example = trace.shape[2], x.narrow(row_dim(source), 0, 1).cpu()
    check_lengths({batch.shape[1] for batch in predictions})
    assert example is not None
    return Recording(frames.joined(), torch.cat(predictions), torch.cat(all_labels), classes, example)


class _RowBuffer:
    """Collects batches of equal row shape in memory, or in a file if they exceed a limit.

    Args:
        limit: bytes to keep in memory.
        folder: where the file is written; ``None`` keeps everything in memory.
        name: the name of the file without its suffix.
    """

    def __init__(self, limit: float, folder: Path | None, name: str) -> None:
        self._limit = limit
        self._path = folder / f"{name}.bin" if folder else None
        self._batches: list[Tensor] = []
        self._rows = 0

    def add(self, rows: Tensor) -> None:
        """Append rows ``[n, ...]``."""
        self._batches.append(rows)
        self._rows += rows.shape[0]
        if self._path and (self._path.exists() or sum(batch.nbytes for batch in self._batches) > self._limit):
            with self._path.open("ab") as file:
                for batch in self._batches:
                    file.write(batch.contiguous().view(torch.uint8).numpy().data)
            self._batches = [rows[:0]]

    def joined(self) -> Tensor:
        """Return all rows as one tensor, memory-mapped if they are in the file."""
        if not (self._path and self._path.exists()):
            return torch.cat(self._batches)
        like = self._batches[0]
        size = self._rows * prod(like.shape[1:])
        return torch.from_file(str(self._path), size=size, dtype=like.dtype).view(self._rows, *like.shape[1:])


@torch.no_grad()
def plan_all(policy: RLPolicy, recording: Recording) -> Tensor:
    """Return the planned exit of every row of a recording, long ``[M]`` on the CPU.

    The plan is computed on the device of the policy network.
    """
    assert policy.network is not None
    device = next((parameter.device for parameter in policy.network.parameters()), torch.device("cpu"))
    parts = recording.frames.split(_PLANNING_BATCH)
    return torch.cat([policy.plan(frames.to(device), recording.timesteps).timesteps.cpu() for frames in parts])


def outcome(plan: Tensor, recording: Recording) -> tuple[Tensor, Tensor]:
    """Evaluate a plan on a recording.

    A row without a prediction at its planned exit continues until it has one, or to T, as in the engine.

    Args:
        plan: the planned exits, long ``[M]``.
        recording: M rows.

    Returns:
        The exits, long ``[M]``, and whether the predictions there are correct, bool ``[M]``.
    """
    time = torch.arange(1, recording.timesteps + 1)
    can_exit = (recording.predictions != NO_PREDICTION) & (time >= plan.unsqueeze(1))
    exits = torch.where(can_exit.any(1), can_exit.int().argmax(1) + 1, recording.timesteps)
    return exits, recording.correct.gather(1, (exits - 1).unsqueeze(1)).squeeze(1)
