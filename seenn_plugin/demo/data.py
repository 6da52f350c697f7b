"""Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: they come with the package, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_VALIDATION = 0.25
_TEST = 0.25
_BRIGHTEST = 16.0


@dataclass(frozen=True)
class Split:
    """Images float32 ``[N, 1, 8, 8]`` in [0, 1] and labels long ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """All samples, in order."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once, in random order."""
        for index in torch.randperm(len(self), generator=generator).split(size):
            yield self.images[index], self.labels[index]

    def noisy(self, copies: int, std: float, generator: torch.Generator) -> Split:
        """Copies of all samples with Gaussian noise on them."""
        images = self.images.repeat(copies, 1, 1, 1)
        noise = torch.randn(images.shape, generator=generator)
        return Split((images + std * noise).clamp(0, 1), self.labels.repeat(copies))


@dataclass(frozen=True)
class Digits:
    """Disjoint splits: the network learns on ``train``, the threshold on ``validation``; ``test`` is for the end."""

    train: Split
    validation: Split
    test: Split

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load(seed: int) -> Digits:
    """The digits, split by ``seed`` so that every split has all classes in the same proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, held_out = train_test_split(
        range(len(labels)), test_size=_VALIDATION + _TEST, stratify=labels, random_state=seed
    )
    validation, test = train_test_split(
        held_out, test_size=_TEST / (_VALIDATION + _TEST), stratify=labels[held_out], random_state=seed
    )
    all_images = torch.tensor(images / _BRIGHTEST, dtype=torch.float32).reshape(-1, 1, 8, 8)
    all_labels = torch.tensor(labels, dtype=torch.long)
    return Digits(*(Split(all_images[part], all_labels[part]) for part in (train, validation, test)))
