"""Policies that decide on the decision logits after each timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import PolicyError
from .base import Decision, Policy
from .threshold import ThresholdPolicy


@dataclass(frozen=True)
class ConfidencePolicy(ThresholdPolicy):
    """SEENN-I: stop at the first t with ``max softmax(a_t / temperature) > threshold`` (arXiv 2304.01230).

    The score is the largest probability, in ``[1 / C, 1]``.

    Args:
        threshold: a row stops when its score is strictly greater.
        temperature: divides the logits; see :class:`~seenn_plugin.policies.ThresholdPolicy`.

    Example:
        >>> ConfidencePolicy(0.9).score(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        tensor([0.5000, 0.9526])
    """

    threshold: float = 0.9

    def score(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1).amax(-1)


@dataclass(frozen=True)
class EntropyPolicy(ThresholdPolicy):
    """Stop at the first t with ``1 - H(softmax(a_t / temperature)) / log C > threshold``.

    H is the entropy. This is the criterion of DT-SNN (arXiv 2305.17346), reversed so that higher is more confident. The
    score lies in ``[0, 1]``.

    Args:
        threshold: a row stops when its score is strictly greater.
        temperature: divides the logits; see :class:`~seenn_plugin.policies.ThresholdPolicy`.

    Example:
        >>> EntropyPolicy(0.75).score(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        tensor([0.0000, 0.7246])
    """

    threshold: float = 0.75

    def score(self, logits: Tensor) -> Tensor:
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
        return 1 - entropy / log(logits.shape[-1])


@dataclass(frozen=True)
class MarginPolicy(ThresholdPolicy):
    """Stop at the first t at which the two largest probabilities of ``softmax(a_t / temperature)`` differ by more than
    the threshold.

    The score is that difference, in ``[0, 1]``.

    Args:
        threshold: a row stops when its score is strictly greater.
        temperature: divides the logits; see :class:`~seenn_plugin.policies.ThresholdPolicy`.

    Example:
        >>> MarginPolicy(0.8).score(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        tensor([0.0000, 0.9051])
    """

    threshold: float = 0.8

    def score(self, logits: Tensor) -> Tensor:
        top = logits.softmax(-1).topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]


@dataclass(frozen=True)
class PatiencePolicy(Policy):
    """Stop when the prediction has been the same class for ``patience`` consecutive timesteps.

    The score is the number of consecutive timesteps with the current prediction.

    Args:
        patience: an integer of at least 1; with 1 every row stops at the first timestep.

    Raises:
        PolicyError: ``patience`` is no such integer; or, when it decides, there are fewer than 2 classes.

    Example:
        >>> from seenn_plugin.policies.base import exit_timesteps
        >>> trace = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])  # predictions 0, 1, 1
        >>> exit_timesteps(PatiencePolicy(2), trace)
        tensor([3])
    """

    patience: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 1:
            raise PolicyError(f"patience must be an integer of at least 1, not {self.patience!r}.")

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        if logits.shape[1] < 2:
            raise PolicyError(
                "PatiencePolicy needs logits of at least 2 classes: with a single output (regression) the prediction "
                "never changes. Use policy='fixed', or a policy of your own that stops when the output hardly changes."
            )
        prediction = torch.where(logits.isfinite().all(1), logits.argmax(1), -1)  # -1: not finite, no prediction
        unchanged = torch.ones_like(prediction)
        if policy_state is not None:
            last_prediction, last_unchanged = policy_state
            unchanged = torch.where(prediction == last_prediction, last_unchanged + 1, unchanged)
        return Decision(unchanged >= self.patience, unchanged.float(), (prediction, unchanged))

    def candidate_settings(self, timesteps: int) -> Sequence[Self]:
        return [replace(self, patience=patience) for patience in range(1, timesteps + 1)]


@dataclass(frozen=True)
class FixedPolicy(Policy):
    """Stop every row after the same number of timesteps. The score is 1 from that timestep on, 0 before.

    Args:
        timesteps: an integer of at least 1; by default T of the wrapper, with a score of 1 throughout.

    Raises:
        PolicyError: ``timesteps`` is no such integer.

    Example:
        >>> from seenn_plugin.policies.base import exit_timesteps
        >>> exit_timesteps(FixedPolicy(2), torch.zeros(4, 3, 10))
        tensor([2, 2, 2])
    """

    timesteps: int | None = None

    def __post_init__(self) -> None:
        if self.timesteps is not None and (not isinstance(self.timesteps, int) or self.timesteps < 1):
            raise PolicyError(f"timesteps must be an integer of at least 1, not {self.timesteps!r}.")

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        if self.timesteps is None:
            return Decision(torch.zeros_like(timestep, dtype=torch.bool), torch.ones_like(timestep, dtype=torch.float))
        stop = timestep >= self.timesteps
        return Decision(stop, stop.float())

    def candidate_settings(self, timesteps: int) -> Sequence[Self]:
        return [replace(self, timesteps=t) for t in range(1, timesteps + 1)]
