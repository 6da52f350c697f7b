"""The data sets of the field, from their standard loaders, split so that the test data is kept for the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .errors import InputError, OptionalDependencyError
from .naming import unknown_name

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1
"""The share of the training data on which thresholds, policies and epochs are chosen."""
AUGMENTATIONS = ("none", "crop", "auto")
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def held_out(data: Dataset[Any], labels: list[int], split: str) -> Subset[Any]:
    """The training or the validation part of training data: the same samples always, classes in equal proportion.

    Raises:
        InputError: there is no such split, or a class has too few samples.
        OptionalDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise OptionalDependencyError("scikit-learn", "train", "splitting data") from error
    try:
        parts = train_test_split(range(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"the training data cannot be split: {error}") from error
    return Subset(data, list(parts[("train", "validation").index(split)]))


def cifar10(root: str | Path, split: str = "test", augment: str = "none") -> Dataset[tuple[Tensor, int]]:
    """CIFAR-10: images float32 ``[3, 32, 32]``, normalised, with their classes.

    Args:
        root: a folder ``train/<class>/`` and ``test/<class>/`` of image files, as ``torchvision.datasets.ImageFolder``
            reads; or one where ``torchvision.datasets.CIFAR10`` finds the data, or downloads it to.
        split: ``"train"``, ``"validation"`` (a tenth of the training data), or ``"test"``.
        augment: ``"none"``; ``"crop"``: random crops and flips; ``"auto"``: those and AutoAugment (arXiv 1805.09501).

    Raises:
        InputError: there is no such split or augmentation, or ``root`` holds something else.
        OptionalDependencyError: torchvision is not installed.
    """
    for name, value, valid in (("split", split, SPLITS), ("augment", augment, AUGMENTATIONS)):
        if value not in valid:
            raise InputError(unknown_name(name, value, valid))
    datasets, v2 = _torchvision()
    drawn = [] if augment == "none" else [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    if augment == "auto":
        drawn.append(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    ready = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    transform = v2.Compose([*drawn, *ready])
    folder, is_test = Path(root), split == "test"
    if (folder / "train").is_dir():
        data = datasets.ImageFolder(folder / ("test" if is_test else "train"), transform)
    else:
        data = datasets.CIFAR10(folder, train=not is_test, transform=transform, download=True)
    return data if is_test else held_out(data, data.targets, split)


def _torchvision() -> tuple[Any, Any]:
    try:
        from torchvision import datasets
        from torchvision.transforms import v2
    except ImportError as error:
        raise OptionalDependencyError("torchvision", "train", "CIFAR-10") from error
    return datasets, v2
