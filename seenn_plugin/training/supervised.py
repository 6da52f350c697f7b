"""Train a spiking network on a data set, as a recipe says; what is interrupted goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm  # tqdm.auto calls iter() twice, and a DataLoader then starts its workers twice

from .._arguments import check, integer_mistake
from .._files import locked
from ..calibration.traces import check_labels
from ..errors import CalibrationError, InputError, OptionalDependencyError
from ..tolerance import agree
from ..training_loop.checkpoint import Checkpoint
from ..training_loop.monitor import Monitor
from ..training_loop.run import Losses, Precision, Run, Stateful
from .average import MovingAverage
from .losses import tet_loss
from .recipe import Recipe

Forward = Callable[[nn.Module, Tensor], Tensor]
"""The framework's own run from a fresh state: a model and a batch of inputs to the outputs of all timesteps
``[T, N, C]``."""

_CHECKPOINT = "training.pt"
_NO_RESET = (
    "forward must start from a fresh state, and this one goes on where the last call has stopped: reset the network in "
    "it, before its first timestep (SpikingJelly: functional.reset_net(model); snnTorch: utils.reset(model), or new "
    "states)."
)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        loss: mean over the epoch's samples.
        accuracy: on the validation data, of the mean output over the first t = 1..T timesteps; empty without such data.
    """

    loss: float
    accuracy: tuple[float, ...]


def train(
    model: nn.Module,
    forward: Forward,
    data: Dataset[Any],
    recipe: Recipe,
    *,
    validation: Dataset[Any] | None = None,
    folder: str | Path | None = None,
    name: str = "network",
    workers: int = 0,
    progress: bool = True,
    log_dir: str | Path | None = None,
) -> list[Epoch]:
    """Train a network in place, on the device that it is on, and leave it in evaluation mode.

    PyTorch's random numbers are those of the recipe's seed, and the caller's afterwards as they were. What the data
    draws otherwise (``random``, NumPy) in this process is neither seeded nor kept.

    Args:
        model: the network.
        forward: the framework's own run, from a fresh state, of the model and a batch of inputs.
        data: pairs of an input and a class index, with a length. The first is checked before training, and the labels
            of every batch.
        recipe: how.
        validation: pairs like ``data``, for the accuracies of every epoch; nothing is chosen on them.
        folder: after each epoch all that is needed to go on is written there, and read from there if it is there:
            called again with the same arguments, training continues as if it had not been interrupted. One process at
            a time can train in a folder.
        name: for the progress bar and the log.
        workers: processes that load data.
        progress: whether to show progress bars.
        log_dir: write TensorBoard scalars there.

    Returns:
        The epochs.

    Raises:
        InputError: an argument is invalid, ``folder`` holds the training of another network or recipe, is in use by
            another process or cannot be written to, ``forward`` returns no ``[T, N, C]`` or does not start from a fresh
            state, ``data`` or ``validation`` does not hold such pairs, or the inputs are no images and the recipe has
            CutMix.
        CalibrationError: ``data`` or ``validation`` holds no sample, or labels that are no classes of the network.
        TrainingError: the loss of an epoch is NaN or infinite.
        OptionalDependencyError: TensorBoard is asked for, or torchvision for CutMix, and not installed.
    """
    check(
        InputError,
        None if isinstance(model, nn.Module) else f"model must be a torch.nn.Module, not {type(model).__name__}.",
        None if callable(forward) else f"forward must be a function of model and inputs, not {forward!r}.",
        None if isinstance(recipe, Recipe) else f"recipe must be a Recipe, not {type(recipe).__name__}.",
        None if isinstance(name, str) and name else f"name must be a text, not {name!r}.",
        integer_mistake("workers", workers, 0),
    )
    monitor = Monitor("train", progress, log_dir)
    device = _device_of(model)
    path = None if folder is None else Path(folder) / _CHECKPOINT
    with (
        locked(path),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
    ):
        checkpoint = Checkpoint(path)
        torch.manual_seed(recipe.seed)
        first, outputs = _first(model, forward, data)
        if validation is not None:
            _check_pairs(validation, "validation")
        facts = {
            **asdict(recipe),
            "network": type(model).__name__,
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "samples": _size(data),
            "timesteps": len(outputs),
            "classes": outputs.shape[2],
        }
        checkpoint.require(facts)
        finished = checkpoint.finished(name)
        if finished is None:
            mix = _cutmix(first, outputs.shape[2]) if recipe.cutmix else None
            training = _Training(model, forward, data, validation, recipe, outputs.shape[2], mix, workers, progress)
            with _naming_a_missing_reset():
                history = training.run(name).train(training.losses, checkpoint, monitor, training.accuracies)
            finished = {"model": training.result, "history": history}
            checkpoint.finish(name, finished)
    model.load_state_dict(finished["model"])
    model.eval()
    return [_epoch(**scalars) for scalars in finished["history"]]


@torch.no_grad()
def accuracy(model: nn.Module, forward: Forward, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Of the mean output over the first t = 1..T timesteps, a fraction, for each t; in the mode that the model is in.

    Raises:
        InputError: ``forward`` returns no ``[T, N, C]``.
        CalibrationError: there is no batch, or labels are no class indices.
    """
    device = _device_of(model)
    right = []
    for inputs, labels in batches:
        outputs = _outputs(model, forward, inputs.to(device))
        right.append(outputs.cumsum(0).argmax(2) == _class_indices(labels, len(inputs), outputs.shape[2]).to(device))
    if not right:
        raise CalibrationError("the loader yielded no sample.")
    return torch.cat(right, 1).double().mean(1).tolist()


class _Training:
    """A network, its data and its recipe."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        data: Dataset[Any],
        validation: Dataset[Any] | None,
        recipe: Recipe,
        classes: int,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
        workers: int,
        progress: bool,
    ) -> None:
        self._model = model
        self._classes = classes
        self._trained = cast(nn.Module, torch.compile(model, dynamic=False)) if recipe.compile else model
        self._forward = forward
        self._recipe = recipe
        self._mix = mix
        self._device = _device_of(model)
        self._progress = progress
        options: dict[str, Any] = {"batch_size": recipe.batch_size, "num_workers": workers}
        options["pin_memory"] = self._device.type == "cuda"
        # Batch normalisation cannot learn from a last batch of one row.
        self._batches = DataLoader(data, shuffle=True, drop_last=_size(data) > recipe.batch_size, **options)
        self._validation = None if validation is None else DataLoader(validation, **options)
        self._average = None if recipe.ema is None else MovingAverage(recipe.ema)

    @property
    def result(self) -> dict[str, Tensor]:
        """What is trained in the end: the model's weights, or their moving average."""
        return (self._average or self._model).state_dict()

    def run(self, name: str) -> Run:
        modules: dict[str, Stateful] = {"model": self._model}
        if self._average is not None:
            modules["average"] = self._average
        optimizer = self._recipe.optimizer_of(self._model)
        return Run(
            name,
            modules,
            optimizer,
            LambdaLR(optimizer, partial(self._recipe.rate, steps=len(self._batches))),
            self._recipe.epochs,
            Precision.of(self._recipe.amp, self._device),
            schedule_every="step",
            clip=self._recipe.clip,
            after_step=self._follow,
        )

    def losses(self, epoch: int) -> Losses:
        self._model.train()
        bar = tqdm(self._batches, desc=f"epoch {epoch + 1}", unit="batch", leave=False, disable=not self._progress)
        for inputs, labels in bar:
            labels = _class_indices(labels, len(inputs), self._classes)
            inputs, labels = inputs.to(self._device), labels.to(self._device)
            if self._mix is not None and float(torch.rand(())) < self._recipe.cutmix:
                inputs, labels = self._mix(inputs, labels)
            yield partial(self._loss, inputs, labels), len(inputs)

    def accuracies(self) -> dict[str, float]:
        if self._validation is None:
            return {}
        with nullcontext() if self._average is None else self._average.applied_to(self._model):
            found = accuracy(self._model.eval(), self._forward, self._validation)
        return {f"accuracy/{t}": value for t, value in enumerate(found, start=1)}

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs, recipe = _outputs(self._trained, self._forward, inputs), self._recipe
        if recipe.loss == "tet":
            return tet_loss(outputs, labels, recipe.tet_lambda, label_smoothing=recipe.label_smoothing)
        return cross_entropy(outputs.mean(0), labels, label_smoothing=recipe.label_smoothing)

    def _follow(self) -> None:
        if self._average is not None:
            self._average.update(self._model)


def _epoch(loss: float, **accuracies: float) -> Epoch:
    return Epoch(loss, tuple(accuracies.values()))


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def _first(model: nn.Module, forward: Forward, data: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """The first input as a batch, and its outputs."""
    inputs, labels = _check_pairs(data, "data")
    device = _device_of(model)
    on_device = inputs.to(device)
    outputs = _outputs(model.eval(), forward, on_device)
    _class_indices(labels, 1, outputs.shape[2])
    again = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for _ in range(2):
            torch.manual_seed(0)  # the input may be encoded at random
            again.append(_outputs(model, forward, on_device))
    if not agree(*again):
        raise InputError(_NO_RESET)
    return inputs, outputs


def _check_pairs(data: Dataset[Any], name: str) -> tuple[Tensor, Tensor]:
    """The first pair of a data set, as a batch.

    Raises:
        InputError: the data set holds something else, or is a loader.
        CalibrationError: it holds nothing.
    """
    if isinstance(data, DataLoader):
        raise InputError(f"{name} must be a data set, of which train() makes batches itself: pass loader.dataset.")
    _size(data, name)
    item = next(iter(DataLoader(data, batch_size=1)))
    if not isinstance(item, tuple | list) or len(item) != 2 or not all(isinstance(part, Tensor) for part in item):
        if isinstance(item, dict):
            seen = f"dictionaries with the keys {list(item)}"
        elif isinstance(item, tuple | list):
            seen = f"{len(item)} values, ({', '.join(type(part).__name__ for part in item)})"
        else:
            seen = f"a {type(item).__name__}"
        raise InputError(f"{name} must hold pairs of an input and a class index, not {seen}.")
    inputs, labels = item
    if not inputs.is_floating_point():
        raise InputError(
            f"the inputs of {name} are {inputs.dtype}; convert them to floating point, for images by "
            "torchvision.transforms.v2.ToDtype(torch.float32, scale=True)."
        )
    return inputs, labels


def _class_indices(labels: Tensor, n: int, classes: int) -> Tensor:
    """The labels of a batch of ``n`` inputs, long ``[n]``.

    Raises:
        CalibrationError: they are no indices of the network's classes.
    """
    if labels.is_floating_point() or labels.shape != (n,):
        one_hot = "; of one-hot labels take .argmax(1)" if labels.shape == (n, classes) else ""
        raise CalibrationError(
            f"labels must be class indices, long ({n},), not {labels.dtype} {tuple(labels.shape)}{one_hot}."
        )
    check_labels(labels, classes)
    return labels.long()


@contextmanager
def _naming_a_missing_reset() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise InputError(_NO_RESET) from error


def _outputs(model: nn.Module, forward: Forward, inputs: Tensor) -> Tensor:
    outputs = forward(model, inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or outputs.shape[1] != len(inputs):
        seen = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"forward must return the outputs of all timesteps, [T, N, C], of N = {len(inputs)} rows here, not {seen}."
        )
    return outputs.float()


def _size(data: Dataset[Any], name: str = "data") -> int:
    size = getattr(data, "__len__", None)
    if size is None or not size():
        raise CalibrationError(f"{name} has no length, or holds no sample.")
    return size()


def _cutmix(inputs: Tensor, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    try:
        from torchvision.transforms.v2 import CutMix
    except ImportError as error:
        raise OptionalDependencyError("torchvision", "train", "CutMix") from error
    if inputs.ndim != 4:
        raise InputError(f"cutmix needs images, in batches [N, C, H, W], not {tuple(inputs.shape)}; set cutmix=0.")
    return CutMix(num_classes=classes)
