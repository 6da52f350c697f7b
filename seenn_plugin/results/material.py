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

from .. import calibration
from ..pretrained import Pretrained
from ..wrapper import EarlyExitWrapper
from .effort import Effort


@dataclass(frozen=True)
class Trace:
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

    def rows(self, index: Tensor) -> Trace:
        return Trace(self.logits[:, index], self.labels[index])


class Material:
    """What a study works on.

    Args:
        net: the trained network.
        root: folder of its data.
        effort: how much of it is taken.
        seed: draws parts.
        progress: whether to show progress bars.
    """

    def __init__(self, net: Pretrained, root: Path, effort: Effort, seed: int, progress: bool) -> None:
        self.net = net
        self.effort = effort
        self.seed = seed
        self.progress = progress
        self.snn = EarlyExitWrapper(net.model, **net.card.wrapper)
        self._root = root

    @cached_property
    def validation(self) -> Trace:
        return self._trace(self.validation_data, "validation traces")

    @cached_property
    def test(self) -> Trace:
        return self._trace(self.test_data, "test traces")

    @cached_property
    def validation_data(self) -> Dataset[Any]:
        return self._split("validation")

    @cached_property
    def test_data(self) -> Dataset[Any]:
        return self._split("test")

    def training_data(self) -> Dataset[Any]:
        """As many training samples as an rl policy is fitted on, without augmentation."""
        data = self.net.data(self._root, "train")
        return subset(data, self.draw(size(data), self.effort.policy_samples))

    def draw(self, available: int, wanted: int) -> Tensor:
        """Places of some samples, rising; all, if there are not more."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(available, generator=generator)[:wanted].sort().values

    def batches(self, data: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(data, self.effort.batch_size)

    def weights(self) -> str:
        """Names the weights: equal for equal ones."""
        digest = hashlib.sha256()
        for name, value in self.net.model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _split(self, split: str) -> Dataset[Any]:
        data = self.net.data(self._root, split)
        return data if self.effort.samples is None else subset(data, self.draw(size(data), self.effort.samples))

    def _trace(self, data: Dataset[Any], title: str) -> Trace:
        return Trace(*calibration.record(self.snn, self.batches(data), self.progress))


def subset(data: Dataset[Any], places: Tensor) -> Subset[Any]:
    return Subset(data, places.tolist())


def size(data: Dataset[Any]) -> int:
    return len(cast(Sized, data))
