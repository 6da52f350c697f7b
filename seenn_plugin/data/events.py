"""Event-camera data sets, found and read by SpikingJelly's own classes: frames of event counts with their classes.

A sample is float32 ``[T, 2, H, W]``: how many events of each polarity each pixel has had in each timestep. Counts are
not normalised, as is the custom; in frames smaller than the camera's, a pixel has the mean count of those that it is
made of (bilinear, antialiased). A recording is divided as a whole: its timesteps are known when it has ended.

Frames are made when a sample is read, and not stored: a read-only folder is enough, and no half-written copy
can be taken for the data.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, Subset

from .._naming import unknown_name
from ..errors import InputError, OptionalDependencyError
from .static import HELD_OUT, SPLITS, held_out

FOLDS = 5
_SPLIT_BY = ("time", "number")
_AUGMENTATIONS = ("none", "roll", "flip")
_DIGITS = tuple("0123456789")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def nmnist(
    root: str | Path,
    split: str = "test",
    *,
    timesteps: int = 10,
    split_by: str = "time",
    fold: int | None = None,
    augment: str = "none",
) -> Dataset[tuple[Tensor, int]]:
    """N-MNIST: frames float32 ``[T, 2, 34, 34]`` with their digits.

    Its recordings all take about 300 ms: of ten timesteps by time, each is about 30 ms.

    Args:
        root: a folder ``events_np/{train,test}/<digit>/*.npz`` of events, as ``spikingjelly.datasets.NMNIST`` makes it
            of the published archives in ``download/``, once; other numbers of recordings are as good.
        split: ``"train"``, ``"validation"`` (a tenth of the training data), or ``"test"``.
        timesteps: T.
        split_by: ``"time"``: timesteps are equally long; ``"number"``: they have equally many events.
        fold: 0 to 4, to cross-validate where the test data is small: ``"test"`` is that fifth of all recordings,
            ``"validation"`` a tenth of the others.
        augment: ``"none"``; ``"roll"``: frames are shifted by up to a tenth of their size, what leaves on one side
            coming in on the other.

    Raises:
        InputError: an option is none of these, or ``root`` holds something else, or unfinished data.
        OptionalDependencyError: a package that SpikingJelly's data sets need, or scikit-learn, is not installed.
    """
    source = _Source("n_mnist", "NMNIST", _DIGITS, 34, 70_000, ({"train": True}, {"train": False}))
    return _load(source, root, split, fold, timesteps, split_by, None, augment, _AUGMENTATIONS[:2])


def cifar10_dvs(
    root: str | Path,
    split: str = "test",
    *,
    timesteps: int = 10,
    split_by: str = "number",
    size: int = 48,
    fold: int | None = None,
    augment: str = "none",
) -> Dataset[tuple[Tensor, int]]:
    """CIFAR10-DVS: frames float32 ``[T, 2, size, size]`` with their classes.

    It has no test data of its own: the last tenth of every class is, as in SpikingJelly's ``split_to_train_test_set``.

    Args:
        root: a folder ``events_np/<class>/*.npz`` of events, as ``spikingjelly.datasets.CIFAR10DVS`` makes it, once,
            of what it downloads; other numbers of recordings are as good. (0.0.0.0.14 needs a NumPy of its own time for
            that, in which ``fromstring`` reads bytes; 2.0.0 makes the same.)
        split: ``"train"``, ``"validation"`` (a tenth of the training data), or ``"test"``.
        timesteps: T.
        split_by: ``"number"``: timesteps have equally many events; ``"time"``: they are equally long.
        size: height and width to which the 128 x 128 frames are averaged.
        fold: 0 to 4: ``"test"`` is that fifth of all recordings, ``"validation"`` a tenth of the others.
        augment: ``"none"``; ``"roll"``: frames are shifted by up to a tenth of their size, what leaves on one side
            coming in on the other; ``"flip"``: and mirrored half of the time.

    Raises:
        InputError: an option is none of these, or ``root`` holds something else, or unfinished data.
        OptionalDependencyError: a package that SpikingJelly's data sets need, or scikit-learn, is not installed.
    """
    source = _Source("cifar10_dvs", "CIFAR10DVS", _OBJECTS, 128, 10_000, ({},))
    return _load(source, root, split, fold, timesteps, split_by, size, augment, _AUGMENTATIONS)


def dvs128_gesture(
    root: str | Path,
    split: str = "test",
    *,
    timesteps: int = 10,
    split_by: str = "number",
    size: int = 48,
    fold: int | None = None,
    augment: str = "none",
) -> Dataset[tuple[Tensor, int]]:
    """DVS128 Gesture: frames float32 ``[T, 2, size, size]`` with their classes.

    Classes are numbered as SpikingJelly's loader does: by the names of the folders 0, 1, 10, 2, ..., 9.

    Args:
        root: a folder ``events_np/{train,test}/<gesture>/*.npz`` of events, as ``spikingjelly.datasets.DVS128Gesture``
            makes it of the published archive in ``download/``, once; other numbers of recordings are as good.
        split: ``"train"``, ``"validation"`` (a tenth of the training data), or ``"test"``.
        timesteps: T.
        split_by: ``"number"``: timesteps have equally many events; ``"time"``: they are equally long.
        size: height and width to which the 128 x 128 frames are averaged.
        fold: 0 to 4: ``"test"`` is that fifth of all recordings, ``"validation"`` a tenth of the others.
        augment: ``"none"``; ``"roll"``: frames are shifted by up to a tenth of their size, what leaves on one side
            coming in on the other. (Mirrored, the right hand would be the left.)

    Raises:
        InputError: an option is none of these, or ``root`` holds something else, or unfinished data.
        OptionalDependencyError: a package that SpikingJelly's data sets need, or scikit-learn, is not installed.
    """
    gestures = tuple(str(number) for number in range(11))
    source = _Source("dvs128_gesture", "DVS128Gesture", gestures, 128, 1_464, ({"train": True}, {"train": False}))
    return _load(source, root, split, fold, timesteps, split_by, size, augment, _AUGMENTATIONS[:2])


@dataclass(frozen=True)
class _Source:
    """One of SpikingJelly's data sets.

    Attributes:
        module: of ``spikingjelly.datasets``.
        name: of its class there.
        classes: folders of a part.
        size: height and width of its camera.
        samples: of the whole as published.
        parts: arguments of the class for each part; the last of several is the test data.
    """

    module: str
    name: str
    classes: tuple[str, ...]
    size: int
    samples: int
    parts: tuple[dict[str, bool], ...]


def _load(
    source: _Source,
    root: str | Path,
    split: str,
    fold: int | None,
    timesteps: int,
    split_by: str,
    size: int | None,
    augment: str,
    augmentations: tuple[str, ...],
) -> Dataset[tuple[Tensor, int]]:
    choices = (("split", split, SPLITS), ("split_by", split_by, _SPLIT_BY), ("augment", augment, augmentations))
    mistakes = [unknown_name(name, value, valid) for name, value, valid in choices if value not in valid]
    mistakes += [
        f"{name} must be positive, not {value}."
        for name, value in (("timesteps", timesteps), ("size", size))
        if value is not None and value < 1
    ]
    if fold is not None and fold not in range(FOLDS):
        mistakes.append(f"fold must be 0 to {FOLDS - 1}, not {fold}.")
    if mistakes:
        raise InputError(" ".join(mistakes))
    parts = _parts(source, Path(root))
    data = _EventFrames(parts, timesteps, split_by, source.size, size, augment)
    labels = [label for part in parts for label in part.targets]
    if fold is not None:
        test = _fold(labels, fold)
    elif len(parts) > 1:
        test = list(range(len(labels) - len(parts[-1]), len(labels)))
    else:
        test = _last_of_each(labels)
    if split == "test":
        return Subset(data, test)
    rest = sorted(set(range(len(labels))) - set(test))
    return held_out(Subset(data, rest), [labels[i] for i in rest], split)


class _EventFrames(Dataset[tuple[Tensor, int]]):
    """Recordings that SpikingJelly found, as frames that it makes."""

    def __init__(
        self, parts: Sequence[Any], timesteps: int, split_by: str, camera: int, size: int | None, augment: str
    ) -> None:
        self._samples = [(part.loader, path, label) for part in parts for path, label in part.samples]
        self._timesteps = timesteps
        self._split_by = split_by
        self._camera = camera
        self._size = size
        self._augment = augment
        self._integrate = _datasets().integrate_events_by_fixed_frames_number

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        load, path, label = self._samples[index]
        frames = torch.from_numpy(self._frames(load, path)).float()
        if self._size is not None:
            frames = interpolate(frames, (self._size, self._size), mode="bilinear", antialias=True)
        return self._augmented(frames), label

    def _frames(self, load: Any, path: str) -> np.ndarray:
        try:
            with open(path, "rb") as file:  # NumPy does not close it if it is no archive
                read = load(file)
                events = {name: read[name] for name in "txyp"}
        except Exception as error:  # what the reader raises depends on what is there instead
            raise InputError(f"{path} holds no events t, x, y and p: {error!r}") from error
        if not len(events["t"]) or max(events["x"].max(), events["y"].max()) >= self._camera:
            raise InputError(f"{path} holds no events, or some outside of {self._camera} x {self._camera} pixels.")
        try:
            return self._integrate(events, self._split_by, self._timesteps, self._camera, self._camera)
        except IndexError as error:  # of an empty timestep SpikingJelly asks the first event
            raise InputError(
                f"{path} has no events in one of {self._timesteps} timesteps of equal time: take fewer, or "
                "split_by='number'."
            ) from error

    def _augmented(self, frames: Tensor) -> Tensor:
        if self._augment == "none":
            return frames
        most = round(frames.shape[-1] / 10)
        frames = frames.roll(torch.randint(-most, most + 1, (2,)).tolist(), (2, 3))
        if self._augment == "flip" and torch.rand(()) < 0.5:
            frames = frames.flip(3)
        return frames


def _fold(labels: list[int], fold: int) -> list[int]:
    try:
        from sklearn.model_selection import StratifiedKFold
    except ImportError as error:
        raise OptionalDependencyError("scikit-learn", "train", "cross-validation") from error
    fewest = min(Counter(labels).values())
    if fewest < FOLDS:
        raise InputError(f"a class has {fewest} recordings, too few for {FOLDS} folds.")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels)
    return next(test for number, (_, test) in enumerate(folds) if number == fold).tolist()


def _last_of_each(labels: list[int]) -> list[int]:
    """The last tenth of each class."""
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    return [i for indices in of_class.values() for i in indices[math.ceil(len(indices) * (1 - HELD_OUT)) :]]


# -- finding the recordings -------------------------------------------------------------------------------------------


def _parts(source: _Source, root: Path) -> list[Any]:
    """The data sets of SpikingJelly over ``events_np``, which it makes if it is not there."""
    kind = getattr(_datasets(f".{source.module}"), source.name)
    _prepare(kind, source, root)
    parts = []
    for arguments in source.parts:
        try:
            part = kind(str(root), data_type="event", **arguments)
        except FileNotFoundError as error:
            raise InputError(f"{root / 'events_np'} is not laid out as {source.name} needs it: {error}") from error
        if part.classes != sorted(source.classes):
            raise InputError(
                f"{part.root} holds the classes {', '.join(part.classes)}; {source.name} has "
                f"{', '.join(sorted(source.classes))}."
            )
        parts.append(part)
    return parts


def _prepare(kind: Any, source: _Source, root: Path) -> None:
    """Let SpikingJelly make ``events_np``, so that an interrupted run does not leave a part that looks complete.

    0.0.0.0.14 takes any ``events_np`` as it is, and passes over recordings that it could not read or write.
    """
    events, unfinished = root / "events_np", root / "events_np.unfinished"
    markers = [path for path in (unfinished, root / "events_np.building") if path.exists()]  # ours, and that of 2.0.0
    if markers:
        names = ", ".join(str(path) for path in (root / "extract", events, *markers) if path.exists())
        raise InputError(f"the events in {events} are unfinished. Remove {names}, and try again.")
    if events.is_dir():
        return
    if not root.is_dir():
        raise InputError(f"there is no folder {root}.")
    if not kind.downloadable():
        _ask_for(kind, root)
    try:
        unfinished.touch()
        kind(str(root), data_type="event", **source.parts[0])
        found = sum(1 for _ in events.rglob("*.npz"))
    except Exception as error:  # of the network, the archives, the disk
        raise InputError(f"SpikingJelly's {source.name} cannot prepare {root}: {error!r}") from error
    if found != source.samples:
        raise InputError(
            f"SpikingJelly's {source.name} wrote {found} of {source.samples} recordings. Remove {root / 'extract'}, "
            f"{events} and {unfinished}, and try again."
        )
    unfinished.unlink()


def _ask_for(kind: Any, root: Path) -> None:
    missing = [(name, url) for name, url, _ in kind.resource_url_md5() if not (root / "download" / name).is_file()]
    if missing:
        files = ", ".join(name for name, _ in missing)
        raise InputError(f"{root} holds no events_np. Put {files} of {missing[0][1]} in {root / 'download'}.")


def _datasets(module: str = "") -> Any:
    try:
        return importlib.import_module(f"spikingjelly.datasets{module}")
    except ImportError as error:
        raise OptionalDependencyError(error.name or "spikingjelly", "spikingjelly", "event data") from error
