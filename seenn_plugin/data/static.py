"""The data sets of the field, from their standard loaders, split so that the test data is kept for the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .._naming import unknown_name
from ..errors import InputError, OptionalDependencyError

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1
"""The share of the training data on which thresholds, policies and epochs are chosen."""
AUGMENTATIONS = ("none", "crop", "auto")
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_BRAILLE_HELD_OUT = 0.2
_BRAILLE_BINS, _TAXELS = 256, 12


def held_out(data: Dataset[Any], labels: Sequence[int], split: str, share: float = HELD_OUT) -> Subset[Any]:
    """The training or the validation part of training data: the same samples always, classes in equal proportion.

    Args:
        data: the training data.
        labels: the class of every sample.
        split: ``"train"`` or ``"validation"``.
        share: of the samples that are for validation.

    Raises:
        InputError: there is no such split, or a class has too few samples.
        OptionalDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise OptionalDependencyError("scikit-learn", "train", "splitting data") from error
    _check("split", split, SPLITS[:2])
    try:
        parts = train_test_split(range(len(labels)), test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"the training data cannot be split: {error}") from error
    return Subset(data, list(parts[SPLITS.index(split)]))


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
    _check("split", split, SPLITS)
    _check("augmentation", augment, AUGMENTATIONS)
    datasets, v2 = _torchvision("CIFAR-10")
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


def mnist(root: str | Path, split: str = "test", augment: str = "none") -> Dataset[tuple[Tensor, int]]:
    """MNIST: images float32 ``[1, 28, 28]``, from 0 to 1, with their classes.

    Args:
        root: a folder with ``mnist.npz`` (arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``; images uint8
            ``[n, 28, 28]``); or one where ``torchvision.datasets.MNIST`` finds the data, or downloads it to.
        split: ``"train"``, ``"validation"`` (a tenth of the training data), or ``"test"``.
        augment: ``"none"``; ``"crop"``: shifts of up to two pixels.

    Raises:
        InputError: there is no such split or augmentation, or the file holds something else.
        OptionalDependencyError: torchvision is not installed.
    """
    _check("split", split, SPLITS)
    _check("augmentation", augment, AUGMENTATIONS[:2])
    datasets, v2 = _torchvision("MNIST")
    file, is_test = Path(root) / "mnist.npz", split == "test"
    if file.is_file():
        part = "test" if is_test else "train"
        images, labels = map(torch.from_numpy, _arrays(file, f"x_{part}", f"y_{part}"))
    else:
        source = datasets.MNIST(root, train=not is_test, download=True)
        images, labels = source.data, source.targets
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise InputError(
            f"{file} must hold images uint8 [n, 28, 28] and n labels, not {images.dtype} {tuple(images.shape)} and "
            f"{tuple(labels.shape)}."
        )
    drawn = [] if augment == "none" else [v2.RandomCrop(28, padding=2)]
    transform = v2.Compose([*drawn, v2.ToDtype(torch.float32, scale=True)])
    data = _InMemory(images.unsqueeze(1), labels.tolist(), transform)
    return data if is_test else held_out(data, data.labels, split)


def braille(root: str | Path, split: str = "test", *, timesteps: int = _BRAILLE_BINS) -> Dataset[tuple[Tensor, int]]:
    """Braille letters read by a sliding artificial fingertip (Müller-Cleve et al. 2022, doi 10.3389/fnins.2022.951164).

    Events of 12 taxels over 1.28 s, float32 ``[timesteps, 12]``, with their classes.

    Args:
        root: a folder with ``braille7.npz``: arrays ``spikes`` uint8 ``[n, 256, 12]`` in bins of 5 ms, ``label``
            ``[n]``, ``split`` ``[n]`` (0: training, 1: test).
        split: ``"train"``, ``"validation"`` (a fifth of the training data, which is small), or ``"test"``.
        timesteps: a divisor of 256. Neighbouring bins are summed: 64 timesteps are counts of events in 20 ms.

    Raises:
        InputError: there is no such split or number of timesteps, there is no such file, or it holds something else.
        OptionalDependencyError: scikit-learn is not installed.
    """
    _check("split", split, SPLITS)
    if timesteps not in (valid := [k for k in range(1, _BRAILLE_BINS + 1) if _BRAILLE_BINS % k == 0]):
        raise InputError(f"timesteps must be one of {', '.join(map(str, valid))}, not {timesteps}.")
    file = Path(root) / "braille7.npz"
    spikes, label, part = map(torch.from_numpy, _arrays(file, "spikes", "label", "split"))
    if spikes.shape[1:] != (_BRAILLE_BINS, _TAXELS) or not label.shape == part.shape == spikes.shape[:1]:
        raise InputError(
            f"{file} must hold spikes [n, {_BRAILLE_BINS}, {_TAXELS}], n labels and n splits, not "
            f"{tuple(spikes.shape)}, {tuple(label.shape)} and {tuple(part.shape)}."
        )
    chosen = part == (1 if split == "test" else 0)
    counts = spikes[chosen].float().unflatten(1, (timesteps, -1)).sum(2)
    data = _InMemory(counts, label[chosen].tolist())
    return data if split == "test" else held_out(data, data.labels, split, _BRAILLE_HELD_OUT)


class _InMemory(Dataset[tuple[Tensor, int]]):
    """Inputs with their classes, each transformed, if at all, whenever it is taken."""

    def __init__(self, inputs: Tensor, labels: list[int], transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.inputs, self.labels, self.transform = inputs, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.inputs[index]
        return item if self.transform is None else self.transform(item), self.labels[index]


def _check(kind: str, name: str, valid: Sequence[str]) -> None:
    if name not in valid:
        raise InputError(unknown_name(kind, name, valid))


def _arrays(file: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a ``.npz`` file."""
    try:
        with file.open("rb") as stream, np.load(stream) as archive:
            return [archive[name] for name in names]
    except Exception as error:  # what the reader raises depends on what is there instead
        raise InputError(f"{file} is no .npz file with the arrays {', '.join(names)}: {error!r}") from error


def _torchvision(purpose: str) -> tuple[Any, Any]:
    try:
        from torchvision import datasets
        from torchvision.transforms import v2
    except ImportError as error:
        raise OptionalDependencyError("torchvision", "train", purpose) from error
    return datasets, v2
