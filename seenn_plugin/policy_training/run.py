"""One training run that can be put down after any epoch and taken up again with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..errors import CalibrationError
from .checkpoint import Checkpoint
from .monitor import Monitor

Losses = Iterator[tuple[Callable[[], Tensor], int]]
"""For every batch of an epoch a function that computes the mean loss, and the number of rows."""


@dataclass(frozen=True)
class Precision:
    """Automatic mixed precision on a device: its dtype, ``None`` if it is off."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def of(cls, amp: str, device: torch.device) -> Precision:
        """What ``FitSettings.amp`` means on a device."""
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
    """AdamW with a cosine schedule over some modules.

    Args:
        name: of the run, in checkpoint and logs.
        modules: what is trained, by name.
        learning_rates: one for each of the modules.
        weight_decay: of AdamW.
        epochs: to train.
        precision: mixed precision.
    """

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        learning_rates: dict[str, float],
        weight_decay: float,
        epochs: int,
        precision: Precision,
    ) -> None:
        self.name = name
        self.epochs = epochs
        self._modules = modules
        self._precision = precision
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr": learning_rates[key]}
            for key, module in modules.items()
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
        self._schedule = CosineAnnealingLR(self._optimizer, epochs)
        self._scaler = precision.scaler()
        self._epoch = 0

    def train(
        self,
        losses: Callable[[int], Losses],
        checkpoint: Checkpoint,
        monitor: Monitor,
        scalars: Callable[[], dict[str, float]],
    ) -> None:
        """Train to the last epoch, from the checkpoint if this run was under way there.

        Args:
            losses: called for every epoch, with its number, counted from 0.
            scalars: further facts of an epoch, for the monitor.
        """
        kept = checkpoint.running(self.name)
        if kept is not None:
            self._restore(kept)
        with monitor.run(self.name, self.epochs, self._epoch):
            while self._epoch < self.epochs:
                loss = self._one_epoch(losses(self._epoch))
                self._epoch += 1
                checkpoint.keep(self.name, self._state)
                monitor.epoch(self._epoch, {"loss": loss, **scalars()})

    def _one_epoch(self, losses: Losses) -> float:
        total, rows = torch.zeros((), device=self._precision.device), 0
        for compute, n in losses:
            with self._precision.autocast():
                loss = compute()
            self._optimizer.zero_grad()
            self._scaler.scale(loss).backward()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            total, rows = total + loss.detach() * n, rows + n
        if not rows:
            raise CalibrationError(
                "the training loader yields nothing when it is iterated again: give a list or a DataLoader, not a "
                "generator."
            )
        self._schedule.step()
        return float(total) / rows

    def _state(self) -> dict[str, Any]:
        device = self._precision.device
        return {
            "epoch": self._epoch,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_device"] is not None:
            torch.cuda.set_rng_state(state["random_device"], self._precision.device)
