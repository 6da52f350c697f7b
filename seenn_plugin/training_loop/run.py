"""One training run that can be put down after any epoch and taken up again with the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import CalibrationError, TrainingError
from .checkpoint import Checkpoint
from .monitor import Monitor

Losses = Iterator[tuple[Callable[[], Tensor], int]]
"""For every batch of an epoch a function that computes the mean loss, and the number of rows."""


class Stateful(Protocol):
    """What is kept in a checkpoint: a module, or something like one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> object: ...


@dataclass(frozen=True)
class Precision:
    """Automatic mixed precision on a device: its dtype, ``None`` if it is off."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def of(cls, amp: str, device: torch.device) -> Precision:
        """What ``"auto"``, ``"off"``, ``"bf16"`` or ``"fp16"`` (GPU only) mean on a device."""
        on_gpu = device.type == "cuda"
        if amp == "auto":
            amp = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "off"
        if amp == "fp16" and not on_gpu:
            amp = "off"  # a CPU computes half precision slowly, and gains nothing
        return cls(device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> GradScaler:
        """Only fp16 needs its gradients scaled: they would underflow."""
        return GradScaler(self.device.type, enabled=self.dtype == torch.float16)


class Run:
    """Trains some modules with an optimizer and a schedule.

    Args:
        name: of the run, in checkpoint and logs.
        modules: what is trained, or follows what is trained, by name.
        optimizer: of their parameters.
        schedule: of its learning rates.
        epochs: to train.
        precision: mixed precision.
        schedule_every: ``"epoch"`` or ``"step"`` of the optimizer: when the schedule moves on.
        clip: the largest norm of a gradient; ``None``: any.
        after_step: called after every step of the optimizer.
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, Stateful],
        optimizer: Optimizer,
        schedule: LRScheduler,
        epochs: int,
        precision: Precision,
        schedule_every: str = "epoch",
        clip: float | None = None,
        after_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        self.epochs = epochs
        self._modules = modules
        self._precision = precision
        self._optimizer = optimizer
        self._schedule = schedule
        self._schedule_every = schedule_every
        self._clip = clip
        self._after_step = after_step
        self._scaler = precision.scaler()
        self._epoch = 0
        self._history: list[dict[str, float]] = []

    def train(
        self,
        losses: Callable[[int], Losses],
        checkpoint: Checkpoint,
        monitor: Monitor,
        scalars: Callable[[], dict[str, float]],
    ) -> list[dict[str, float]]:
        """Train to the last epoch, from the checkpoint if this run was under way there.

        Args:
            losses: called for every epoch, with its number, counted from 0.
            scalars: further facts of an epoch, for the monitor.

        Returns:
            The mean loss and the further facts of every epoch.

        Raises:
            TrainingError: the loss of an epoch is NaN or infinite; the checkpoint holds the epoch before.
        """
        kept = checkpoint.running(self.name)
        if kept is not None:
            self._restore(kept)
        with monitor.run(self.name, self.epochs, self._epoch):
            while self._epoch < self.epochs:
                loss = self._one_epoch(losses(self._epoch))
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss of epoch {self._epoch + 1} of {self.name!r} is {loss}: lower the learning rate or "
                        "warm it up, clip the gradients, compute in full precision (amp='off'), or search the data for "
                        "NaN."
                    )
                self._epoch += 1
                self._history.append({"loss": loss, **scalars()})
                checkpoint.keep(self.name, self._state)
                monitor.epoch(self._epoch, self._history[-1])
        return self._history

    def _one_epoch(self, losses: Losses) -> float:
        total, rows, taken = torch.zeros((), device=self._precision.device), 0, 0
        for compute, n in losses:
            with self._precision.autocast():
                loss = compute()
            self._optimizer.zero_grad()
            self._scaler.scale(loss).backward()
            if self._clip is not None:
                self._scaler.unscale_(self._optimizer)
                trained = [p for group in self._optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(trained, self._clip)
            scale = self._scaler.get_scale()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            rows += n
            if self._scaler.get_scale() < scale:
                continue  # scaled gradients overflowed: the scaler took no step, and nothing follows one
            if self._schedule_every == "step":
                self._schedule.step()
            self._after_step()
            total, taken = total + loss.detach() * n, taken + n
        if not rows:
            raise CalibrationError(
                "the training loader yields nothing when it is iterated again: give a list or a DataLoader, not a "
                "generator."
            )
        if self._schedule_every == "epoch":
            self._schedule.step()
        return float(total) / taken if taken else math.nan

    def _state(self) -> dict[str, Any]:
        device = self._precision.device
        return {
            "epoch": self._epoch,
            "history": self._history,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        self._history = state["history"]
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_device"] is not None:
            torch.cuda.set_rng_state(state["random_device"], self._precision.device)
