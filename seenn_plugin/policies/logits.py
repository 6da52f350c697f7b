"""Policies that look at the decision logits after each timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import PolicyError
from .base import Decision, Policy, ThresholdPolicy


@dataclass(frozen=True)
class ConfidencePolicy(ThresholdPolicy):
    """SEENN-I: stop at the first t with ``max softmax(a_t / temperature) > threshold`` (arXiv 2304.01230)."""

    threshold: float = 0.9

    def score(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1).amax(-1)


@dataclass(frozen=True)
class EntropyPolicy(ThresholdPolicy):
    """Stop when ``1 - H(softmax(a_t / temperature)) / log C > threshold``, the DT-SNN criterion (arXiv 2305.17346)."""

    threshold: float = 0.75

    def score(self, logits: Tensor) -> Tensor:
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
        return 1 - entropy / log(logits.shape[-1])


@dataclass(frozen=True)
class MarginPolicy(ThresholdPolicy):
    """Stop when the two largest probabilities of ``softmax(a_t / temperature)`` are further apart than the "
    "threshold."""

    threshold: float = 0.8

    def score(self, logits: Tensor) -> Tensor:
        top = logits.softmax(-1).topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]


@dataclass(frozen=True)
class PatiencePolicy(Policy):
    """Stop when the same class has been the answer ``patience`` timesteps in a row. The score is that run's length."""

    patience: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 1:
            raise PolicyError(f"patience must be an integer of at least 1, not {self.patience!r}.")

    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        answer = torch.where(logits.isfinite().all(1), logits.argmax(1), -1)  # -1: no answer, which breaks a run
        run = torch.ones_like(answer)
        if memory is not None:
            last_answer, last_run = memory
            run = torch.where(answer == last_answer, last_run + 1, run)
        return Decision(run >= self.patience, run.float(), (answer, run))

    def dial_settings(self, timesteps: int) -> Sequence[Self]:
        return [replace(self, patience=patience) for patience in range(1, timesteps + 1)]


@dataclass(frozen=True)
class FixedPolicy(Policy):
    """Stop every row after the same number of timesteps. The score is 1 at that timestep, 0 before."""

    timesteps: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.timesteps, int) or self.timesteps < 1:
            raise PolicyError(f"timesteps must be an integer of at least 1, not {self.timesteps!r}.")

    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        stop = timestep >= self.timesteps
        return Decision(stop, stop.float())

    def dial_settings(self, timesteps: int) -> Sequence[Self]:
        return [replace(self, timesteps=t) for t in range(1, timesteps + 1)]
