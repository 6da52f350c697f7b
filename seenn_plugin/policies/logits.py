"""Policies that decide on the decision logits after each timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log
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

    The score is the number of consecutive timesteps with the current prediction. Where the model answers at several
    positions (segmentation, ``[N, C, H, W]``), each position has a prediction, and the score is the number of timesteps
    for which a share of the positions has kept theirs.

    Args:
        patience: an integer of at least 1; with 1 every row stops at the first timestep.
        share: of the positions, above 0 and at most 1.

    Raises:
        PolicyError: a setting is out of range; or, when it decides, there are fewer than 2 classes.

    Example:
        >>> from seenn_plugin.policies.base import exit_timesteps
        >>> trace = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])  # predictions 0, 1, 1
        >>> exit_timesteps(PatiencePolicy(2), trace)
        tensor([3])
    """

    patience: int = 2
    share: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 1:
            raise PolicyError(f"patience must be an integer of at least 1, not {self.patience!r}.")
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise PolicyError(f"share must be a number above 0 and at most 1, not {self.share!r}.")

    @property
    def takes_maps(self) -> bool:
        return True

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        if logits.shape[1] < 2:
            raise PolicyError(
                "PatiencePolicy needs logits of at least 2 classes: with a single output (regression) the prediction "
                "never changes. Use policy='stability', or policy='fixed'."
            )
        prediction = torch.where(logits.isfinite().all(1), logits.argmax(1), -1)  # -1: not finite, no prediction
        unchanged = torch.ones_like(prediction)
        if policy_state is not None:
            last_prediction, last_unchanged = policy_state
            unchanged = torch.where(prediction == last_prediction, last_unchanged + 1, unchanged)
        counts = unchanged.flatten(1) if unchanged.ndim > 1 else unchanged.unsqueeze(1)
        # The count that so many positions have reached: the smallest of the largest ones.
        reached = counts.topk(ceil(self.share * counts.shape[1]), dim=1).values[:, -1]
        return Decision(reached >= self.patience, reached.float(), (prediction, unchanged))

    def candidate_settings(self, timesteps: int) -> Sequence[Self]:
        return [replace(self, patience=patience) for patience in range(1, timesteps + 1)]


@dataclass(frozen=True)
class StabilityPolicy(Policy):
    """Stop when the answer has changed by at most ``tolerance`` for ``patience`` consecutive timesteps.

    For outputs that are no classes (regression, ``[N, D]`` with D of at least 1). The change at t is
    ``max |a_t - a_(t-1)| / max |a_s|``, the maximum over all numbers of the row, below the line also over the timesteps
    s up to t. An answer that has been 0 since the first timestep is not stable: the network has not spiked yet. The
    score is 1 minus the change where that is small enough, and 0 elsewhere.

    With readout ``"sum"`` the answer grows with t; ``"mean"`` or ``"last"`` come to rest.

    Args:
        tolerance: a fraction, 0 or more.
        patience: an integer of at least 1.

    Raises:
        PolicyError: a setting is out of range.

    Example:
        >>> from seenn_plugin.policies.base import exit_timesteps
        >>> trace = torch.tensor([[[0.0]], [[1.0]], [[0.99]], [[0.991]], [[0.5]]])
        >>> exit_timesteps(StabilityPolicy(tolerance=0.02, patience=2), trace)
        tensor([4])
    """

    tolerance: float = 0.01
    patience: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < float("inf"):
            raise PolicyError(f"tolerance must be a finite number of at least 0, not {self.tolerance!r}.")
        if not isinstance(self.patience, int) or self.patience < 1:
            raise PolicyError(f"patience must be an integer of at least 1, not {self.patience!r}.")

    @property
    def takes_maps(self) -> bool:
        return True

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        answer = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(1)
        largest = answer.nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
        if policy_state is None:
            stable = torch.zeros_like(timestep)
            return Decision(stable > 0, torch.zeros_like(largest), (answer, largest, stable))
        last, largest_so_far, stable = policy_state
        largest = torch.maximum(largest, largest_so_far)
        difference = (answer - last).abs().amax(1)  # NaN, which is within nothing, if a number is not finite
        within = (difference <= self.tolerance * largest) & (largest > 0)
        stable = torch.where(within, stable + 1, 0)
        score = torch.where(within, 1 - difference / largest, 0.0)
        return Decision(stable >= self.patience, score, (answer, largest, stable))


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

    @property
    def takes_maps(self) -> bool:
        return True

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
