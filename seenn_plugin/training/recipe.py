"""How a network is trained: plain values, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from .._arguments import MOST_SEED, flag_mistake, integer_mistake
from .._naming import unknown_name
from ..errors import InputError

_CHOICES = {"optimizer": ("sgd", "adamw"), "loss": ("tet", "mean"), "amp": ("auto", "off", "bf16", "fp16")}
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: over the training data.
        batch_size: samples of a step. Of more samples than that, a last smaller batch is left out.
        optimizer: ``"sgd"``, with Nesterov momentum 0.9, or ``"adamw"``.
        learning_rate: the highest one; it falls to 0 along a cosine, step by step.
        weight_decay: of the optimizer, on weights; biases, normalisation and neurons are left alone.
        warmup: epochs over which the learning rate rises to its highest.
        loss: ``"tet"``: every timestep answers for itself (:func:`tet_loss`); ``"mean"``: cross entropy of the mean
            over timesteps.
        tet_lambda: weight of the regularizer in the TET loss; the authors use 1e-3.
        label_smoothing: of the cross entropy.
        cutmix: share of the batches in which images are cut and pasted into each other (CutMix, arXiv 1905.04899).
        ema: decay per step of an exponential moving average of the weights, which then is what is trained in the end.
        amp: mixed precision: ``"auto"``: on a GPU bf16, or fp16 with a gradient scaler where it has no bf16; ``"off"``,
            ``"bf16"``, ``"fp16"`` (GPU only).
        clip: largest norm of a step's gradient; ``None``: any.
        compile: train through ``torch.compile``: the first step takes a minute, the others less; a C++ compiler, or
            on a GPU Triton, must be there.
        seed: of the order of the data and all that is drawn while training.

    Raises:
        InputError: with all mistakes at once.
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
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        mistakes = self._mistakes()
        if mistakes:
            raise InputError(f"recipe: {' '.join(mistakes)}")

    def _mistakes(self) -> list[str]:
        """What is wrong, a sentence for each."""
        found = [
            unknown_name(name, getattr(self, name), valid)
            for name, valid in _CHOICES.items()
            if getattr(self, name) not in valid
        ]
        integers = [integer_mistake(name, getattr(self, name), 1) for name in ("epochs", "batch_size")]
        integers.append(integer_mistake("seed", self.seed, 0, MOST_SEED))
        found += [mistake for mistake in integers if mistake is not None]
        for name in ("weight_decay", "warmup", "tet_lambda", "label_smoothing", "cutmix"):
            value, most = getattr(self, name), math.inf if name in ("weight_decay", "warmup") else 1
            if not _is_finite(value) or not 0 <= value <= most:
                found.append(
                    f"{name} must be a number of at least 0{' and at most 1' if most == 1 else ''}, not {value!r}."
                )
        for name in ("learning_rate", "clip", "ema"):
            value, most = getattr(self, name), 1 if name == "ema" else math.inf
            if name != "learning_rate" and value is None:
                continue
            if not _is_finite(value) or not 0 < value < most:
                found.append(f"{name} must be a number above 0{' and below 1' if most == 1 else ''}, not {value!r}.")
        mistake = flag_mistake("compile", self.compile)
        if mistake is not None:
            found.append(mistake)
        if not found and self.warmup > self.epochs:
            found.append(f"warmup must be at most epochs={self.epochs}, not {self.warmup!r}.")
        return found

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, as a share of the highest.

        With w = ``warmup * steps`` and n = ``epochs * steps``: ``(step + 1) / (w + 1)`` before w, and from there
        ``(1 + cos(pi * (step - w) / (n - w))) / 2``.

        Args:
            step: counted from 0, over all epochs.
            steps: of one epoch.
        """
        warmup, total = self.warmup * steps, self.epochs * steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2

    def optimizer_of(self, model: nn.Module) -> Optimizer:
        """The optimizer of a model's parameters."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "adamw":
            return AdamW(groups, self.learning_rate)
        return SGD(groups, self.learning_rate, momentum=_MOMENTUM, nesterov=True)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
