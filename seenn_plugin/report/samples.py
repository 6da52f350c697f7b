"""Who was answered when: classes, and the samples that were easiest and hardest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from heapq import nsmallest
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from ..calibration import traces
from ..engine import ExitResult
from ..errors import InputError
from .pictures import Scale, pictures

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper

FEW = 12
"""Samples shown as the easiest, and as the hardest."""


class Sample(NamedTuple):
    """How one sample was answered.

    Attributes:
        position: its place in the data, counted from 0.
        label: its class.
        answer: the class that the network answered.
        timesteps: its exit.
        score: the policy's at the exit; higher is surer.
    """

    position: int
    label: int
    answer: int
    timesteps: int
    score: float

    @property
    def sureness(self) -> float:
        """The score, in an order: NaN is below all."""
        return float("-inf") if isnan(self.score) else self.score


class ClassFigures(NamedTuple):
    """The samples of one class; mean and accuracy (a fraction) are ``None`` if there are none."""

    samples: int
    mean_timesteps: float | None
    accuracy: float | None


class WatchedLoader:
    """Yields the batches of a loader, and records how each sample is answered.

    Only numbers are kept of every sample, and pictures of the few that are shown.

    Attributes:
        easiest: left first; the surest first among those that left together, then by position.
        hardest: left last; the least sure first among those that left together, then by position.
        shown: pictures ``[C, H, W]`` of both on the CPU, by position; empty if the inputs are no pictures.
        scale: of the pictures of all samples.
    """

    def __init__(self, snn: EarlyExitWrapper, loader: Iterable[Any], class_names: Sequence[str] | None) -> None:
        self._snn = snn
        self._loader = loader
        self._names = class_names
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # labels, answers, exits of each batch
        self._samples = 0
        self._classes = 0
        self.easiest: list[Sample] = []
        self.hardest: list[Sample] = []
        self.shown: dict[int, Tensor] = {}
        self.scale = Scale()

    def __len__(self) -> int:
        return len(cast(Sized, self._loader))  # progress bars do without where the loader has none

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, labels in traces.batches(self._snn, self._loader, progress=False, title=""):
            if labels.numel():
                with torch.no_grad():
                    self._see(x, labels, self._snn.infer(x))
            yield x, labels

    @property
    def class_names(self) -> list[str]:
        """As given; the numbers of the classes otherwise."""
        return [str(name) for name in (range(self._classes) if self._names is None else self._names)]

    def classes(self) -> list[ClassFigures]:
        """Of each of the model's classes."""
        labels, answers, exits = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        counts = labels.bincount(minlength=self._classes).tolist()
        right = labels[answers == labels].bincount(minlength=self._classes).tolist()
        timesteps = labels.bincount(exits.double(), minlength=self._classes).tolist()
        return [
            ClassFigures(n, total / n, hits / n) if n else ClassFigures(0, None, None)
            for n, total, hits in zip(counts, timesteps, right, strict=True)
        ]

    def _see(self, x: Tensor, labels: Tensor, result: ExitResult) -> None:
        self._classes = result.logits.shape[1]
        if self._names is not None and len(self._names) != self._classes:
            raise InputError(
                f"class_names has {len(self._names)} names, and the model {self._classes} classes; give one for each."
            )
        columns = (labels, result.predictions, result.timesteps, result.score)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        samples = [Sample(position, *row) for position, row in enumerate(rows, start=self._samples)]
        self.easiest = nsmallest(FEW, [*self.easiest, *samples], key=lambda s: (s.timesteps, -s.sureness, s.position))
        self.hardest = nsmallest(FEW, [*self.hardest, *samples], key=lambda s: (-s.timesteps, s.sureness, s.position))
        self._keep_pictures(pictures(x, self._snn.input == "sequence", self._snn.time_dim))
        self._seen.append((labels.cpu(), result.predictions.cpu(), result.timesteps.cpu()))
        self._samples += len(samples)

    def _keep_pictures(self, batch: Tensor | None) -> None:
        if batch is None:
            return
        self.scale.see(batch)
        wanted = {sample.position for sample in (*self.easiest, *self.hardest)}
        for position in wanted - self.shown.keys():
            self.shown[position] = batch[position - self._samples].cpu().clone()
        self.shown = {position: picture for position, picture in self.shown.items() if position in wanted}
