"""Train a spiking network on a data set, as a recipe says; what is interrupted goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..errors import CalibrationError, InputError, OptionalDependencyError
from ..naming import unknown_name
from .checkpoint import Checkpoint
from .losses import tet_loss
from .monitor import Monitor
from .run import Losses, Precision, Run

Forward = Callable[[nn.Module, Tensor], Tensor]
"""The framework's own run from a fresh state: a model and a batch of inputs to the outputs of all timesteps
``[T, N, C]``."""

_OPTIMIZERS = ("sgd", "adamw")
_LOSSES = ("tet", "mean")
_AMP = ("auto", "off", "bf16", "fp16")
_CHECKPOINT = "training.pt"
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: over the training data.
        batch_size: samples of a step.
        optimizer: ``"sgd"``, with Nesterov momentum 0.9, or ``"adamw"``.
        learning_rate: the highest one; it falls to 0 along a cosine.
        weight_decay: of the optimizer, on weights; biases, normalisation and neurons are left alone.
        warmup: epochs over which the learning rate rises to its highest.
        loss: ``"tet"``: every timestep answers for itself (:func:`tet_loss`); ``"mean"``: cross entropy of the mean
            over timesteps.
        tet_lambda: weight of the regularizer in the TET loss; the authors use 1e-3.
        label_smoothing: of the cross entropy.
        cutmix: share of the batches in which images are cut and pasted into each other (CutMix, arXiv 1905.04899).
        ema: decay per step of an exponential moving average of the weights, which then is what is trained in the end.
        amp: mixed precision, ``"auto"``, ``"off"``, ``"bf16"`` or ``"fp16"`` (GPU only).
        clip: largest norm of a step's gradient.
        seed: of the order of the data and all that is drawn while training.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 0.0
    loss: str = "tet"
    tet_lambda: float = 1e-3
    label_smoothing: float = 0.0
    cutmix: float = 0.0
    ema: float | None = None
    amp: str = "auto"
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"optimizer": _OPTIMIZERS, "loss": _LOSSES, "amp": _AMP}
        mistakes = [
            unknown_name(name, getattr(self, name), valid)
            for name, valid in choices.items()
            if getattr(self, name) not in valid
        ]
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, math.inf),
            "batch_size": (1, math.inf),
            "weight_decay": (0, math.inf),
            "warmup": (0, self.epochs),
            "tet_lambda": (0, 1),
            "label_smoothing": (0, 1),
            "cutmix": (0, 1),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                mistakes.append(f"{name} must be between {least} and {most}, not {getattr(self, name)}.")
        if not self.learning_rate > 0:
            mistakes.append(f"learning_rate must be positive, not {self.learning_rate}.")
        if self.ema is not None and not 0 < self.ema < 1:
            mistakes.append(f"ema must be between 0 and 1, not {self.ema}.")
        if mistakes:
            raise InputError(f"recipe: {' '.join(mistakes)}")


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

    Args:
        model: the network.
        forward: the framework's own run, from a fresh state, of the model and a batch of inputs.
        data: pairs of an input and a class index.
        recipe: how.
        validation: pairs like ``data``, for the accuracies of every epoch; nothing is chosen on them.
        folder: after each epoch all that is needed to go on is written there, and read from there if it is there:
            called anew with the same arguments, training goes on as if it had not been interrupted.
        name: for the progress bar and the log.
        workers: processes that load data.
        progress: whether to show progress bars.
        log_dir: write TensorBoard scalars there.

    Returns:
        The epochs.

    Raises:
        InputError: ``folder`` holds the training of another network or recipe, or ``forward`` returns no ``[T, N, C]``.
        CalibrationError: ``data`` holds no batch.
        OptionalDependencyError: TensorBoard is asked for, or torchvision for CutMix, and not installed.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    facts = {**asdict(recipe), "network": type(model).__name__, "weights": weights, "samples": _size(data)}
    checkpoint = Checkpoint(None if folder is None else Path(folder) / _CHECKPOINT, facts)
    monitor = Monitor("train", progress, log_dir)
    finished = checkpoint.finished(name)
    if finished is None:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(recipe.seed)
            training = _Training(model, forward, data, validation, recipe, device, workers, progress)
            history = training.run(name).train(training.losses, checkpoint, monitor, training.accuracies)
        finished = {"model": training.result.state_dict(), "history": history}
        checkpoint.finish(name, finished)
    model.load_state_dict(finished["model"])
    model.eval()
    return [Epoch(facts.pop("loss"), tuple(facts.values())) for facts in map(dict, finished["history"])]


@torch.no_grad()
def accuracy(model: nn.Module, forward: Forward, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Of the mean output over the first t = 1..T timesteps, a fraction, for each t.

    Raises:
        InputError: ``forward`` returns no ``[T, N, C]``.
        CalibrationError: there is no batch.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    right = [
        _outputs(model, forward, inputs.to(device)).cumsum(0).argmax(2).cpu() == labels for inputs, labels in batches
    ]
    if not right:
        raise CalibrationError("the loader yielded no sample.")
    return torch.cat(right, 1).double().mean(1).tolist()


def _outputs(model: nn.Module, forward: Forward, inputs: Tensor) -> Tensor:
    outputs = forward(model, inputs)
    if outputs.ndim != 3 or outputs.shape[1] != len(inputs):
        raise InputError(f"forward must return outputs [T, N, C] of {len(inputs)} rows, not {tuple(outputs.shape)}.")
    return outputs.float()


def _size(data: Dataset[Any]) -> int:
    size = getattr(data, "__len__", None)
    if size is None or not size():
        raise CalibrationError("the training data must have a length, and hold samples.")
    return size()


class _Training:
    """A network, its data and its recipe."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        data: Dataset[Any],
        validation: Dataset[Any] | None,
        recipe: Recipe,
        device: torch.device,
        workers: int,
        progress: bool,
    ) -> None:
        self._model = model
        self._forward = forward
        self._recipe = recipe
        self._device = device
        self._progress = progress
        options: dict[str, Any] = {"batch_size": recipe.batch_size, "num_workers": workers}
        options["pin_memory"] = device.type == "cuda"
        # Batch normalisation cannot learn from a last batch of one row.
        self._batches = DataLoader(data, shuffle=True, drop_last=_size(data) > recipe.batch_size, **options)
        self._validation = None if validation is None else DataLoader(validation, **options)
        self._average = None if recipe.ema is None else _moving_average(model, recipe.ema)
        self._mix = _cutmix(self._classes(data)) if recipe.cutmix else None

    @property
    def result(self) -> nn.Module:
        """What is trained in the end: the model, or the moving average of it."""
        return self._model if self._average is None else self._average.module

    def run(self, name: str) -> Run:
        recipe, modules = self._recipe, {"model": self._model}
        if self._average is not None:
            modules["average"] = self._average
        optimizer = _optimizer(self._model, recipe)
        steps = len(self._batches)
        rate = partial(_learning_rate, warmup=recipe.warmup * steps, total=recipe.epochs * steps)
        return Run(
            name,
            modules,
            optimizer,
            LambdaLR(optimizer, rate),
            recipe.epochs,
            Precision.of(recipe.amp, self._device),
            schedule_every="step",
            clip=recipe.clip,
            after_step=self._follow,
        )

    def losses(self, epoch: int) -> Losses:
        self._model.train()
        bar = tqdm(self._batches, desc=f"epoch {epoch + 1}", unit="batch", leave=False, disable=not self._progress)
        for inputs, labels in bar:
            inputs, labels = inputs.to(self._device), labels.to(self._device)
            if self._mix is not None and float(torch.rand(())) < self._recipe.cutmix:
                inputs, labels = self._mix(inputs, labels)
            yield partial(self._loss, inputs, labels), len(inputs)

    def accuracies(self) -> dict[str, float]:
        if self._validation is None:
            return {}
        found = accuracy(self.result.eval(), self._forward, self._validation)
        return {f"accuracy/{t}": value for t, value in enumerate(found, start=1)}

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs, recipe = _outputs(self._model, self._forward, inputs), self._recipe
        if recipe.loss == "tet":
            return tet_loss(outputs, labels, recipe.tet_lambda, label_smoothing=recipe.label_smoothing)
        return cross_entropy(outputs.mean(0), labels, label_smoothing=recipe.label_smoothing)

    def _follow(self) -> None:
        if self._average is not None:
            self._average.update_parameters(self._model)

    @torch.no_grad()
    def _classes(self, data: Dataset[Any]) -> int:
        inputs, _ = next(iter(DataLoader(data, batch_size=1)))
        return _outputs(self._model.eval(), self._forward, inputs.to(self._device)).shape[2]


def _moving_average(model: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.learning_rate)
    return torch.optim.SGD(groups, recipe.learning_rate, momentum=_MOMENTUM, nesterov=True)


def _learning_rate(step: int, warmup: float, total: int) -> float:
    """Of the highest, after ``step`` steps."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2


def _cutmix(classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    try:
        from torchvision.transforms.v2 import CutMix
    except ImportError as error:
        raise OptionalDependencyError("torchvision", "train", "CutMix") from error
    return CutMix(num_classes=classes)
