"""A trained network, wrapped, with its data: parts of a split by seed, and traces that are recorded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..calibration import thresholds as calibration
from ..calibration import traces
from ..checkpoints.pretrained import Pretrained
from ..wrapper import EarlyExitWrapper
from .budget import Budget


@dataclass(frozen=True)
class RecordedLogits:
    """Decision logits ``[T, M, C]`` of all samples of a split, and their labels ``[M]``."""

    logits: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> list[float]:
        """Of the static network with t = 1..T timesteps, as fractions."""
        return calibration.accuracy_per_timestep(self.logits, self.labels)

    @property
    def right(self) -> Tensor:
        """Bool ``[T, M]``."""
        return self.logits.argmax(2) == self.labels

    def __len__(self) -> int:
        return self.labels.numel()

    def rows(self, index: Tensor) -> RecordedLogits:
        return RecordedLogits(self.logits[:, index], self.labels[index])


class StudyData:
    """The trained network, wrapped, and its data.

    Args:
        net: the trained network.
        root: the folder of its data.
        budget: how much of the data is used.
        seed: draws the parts that are used.
        progress: whether to show progress bars.
    """

    def __init__(self, net: Pretrained, root: Path, budget: Budget, seed: int, progress: bool) -> None:
        self.net = net
        self.budget = budget
        self.seed = seed
        self.progress = progress
        self.snn = EarlyExitWrapper(net.model, **net.card.wrapper)
        self._root = root

    @cached_property
    def validation(self) -> RecordedLogits:
        return self._record(self.validation_data, "validation traces")

    @cached_property
    def test(self) -> RecordedLogits:
        return self._record(self.test_data, "test traces")

    @cached_property
    def validation_data(self) -> Dataset[Any]:
        return self._split("validation")

    @cached_property
    def test_data(self) -> Dataset[Any]:
        return self._split("test")

    def training_data(self) -> Dataset[Any]:
        """The training samples on which an rl policy is fitted, without augmentation."""
        data = self.net.data(self._root, "train")
        return subset(data, self.draw(size(data), self.budget.policy_samples))

    def draw(self, available: int, wanted: int) -> Tensor:
        """The places of ``wanted`` samples, rising; of all samples if there are no more."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(available, generator=generator)[:wanted].sort().values

    def batches(self, data: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(data, self.budget.batch_size)

    def weights(self) -> str:
        """A name of the weights; equal for equal weights."""
        digest = hashlib.sha256()
        for name, value in self.net.model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _split(self, split: str) -> Dataset[Any]:
        data = self.net.data(self._root, split)
        return data if self.budget.samples is None else subset(data, self.draw(size(data), self.budget.samples))

    def _record(self, data: Dataset[Any], title: str) -> RecordedLogits:
        return RecordedLogits(*traces.record(self.snn, self.batches(data), self.progress))


def subset(data: Dataset[Any], places: Tensor) -> Subset[Any]:
    return Subset(data, places.tolist())


def size(data: Dataset[Any]) -> int:
    return len(cast(Sized, data))
