"""Policies that compare a score of the decision logits with a threshold, and how their temperature is chosen."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import PolicyError
from .base import Decision, Policy

_BISECTIONS = 50


@dataclass(frozen=True)
class ThresholdPolicy(Policy):
    """Stop a row when a score of its decision logits exceeds a threshold.

    A subclass defines :meth:`score`. ``calibrate`` then chooses threshold and temperature.

    Args:
        threshold: a row stops when its score is strictly greater.
        temperature: divides the logits before they are scored. With ``None`` the wrapper chooses it for its network: 1,
            or for spike counts a value at which they can reach the threshold within T timesteps
            (:func:`~seenn_plugin.policies.threshold.reachable_temperature`). Without a wrapper, ``None`` means 1.

    Raises:
        PolicyError: the threshold is not a number, or the temperature is not positive and finite.

    Example:
        >>> @dataclass(frozen=True)
        ... class LeadPolicy(ThresholdPolicy):
        ...     '''Stop when the two largest logits differ by more than the threshold.'''
        ...
        ...     threshold: float = 2.0
        ...
        ...     def score(self, logits):
        ...         top = logits.topk(2, dim=-1).values
        ...         return top[..., 0] - top[..., 1]
        >>> LeadPolicy(temperature=2.0).scaled_score(torch.tensor([[7.0, 1.0, 0.0]]))
        tensor([3.])
    """

    threshold: float = 0.9
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or self.threshold != self.threshold:
            raise PolicyError(f"threshold must be a number, not {self.threshold!r}.")
        if self.temperature is not None and not (_is_number(self.temperature) and 0 < self.temperature < float("inf")):
            raise PolicyError(f"temperature must be a positive finite number, not {self.temperature!r}.")

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """Return the score of each row, higher for more confident rows.

        Args:
            logits: at least float32 ``[..., C]``, already divided by the temperature.

        Returns:
            Float ``[...]``.
        """

    def scaled_score(self, logits: Tensor) -> Tensor:
        """Return :meth:`score` of logits ``[..., C]`` divided by the temperature: at least float32 ``[...]``.

        Raises:
            PolicyError: there are fewer than 2 classes.
        """
        if logits.shape[-1] < 2:
            raise PolicyError(
                f"{type(self).__name__} needs logits of at least 2 classes, not [..., {logits.shape[-1]}]; for a "
                "single output (regression) use policy='stability' or policy='fixed', or a readout that returns one "
                "logit per class."
            )
        return self.score(logits.to(torch.promote_types(logits.dtype, torch.float32)) / (self.temperature or 1.0))

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        score = self.scaled_score(logits)
        return Decision(score > self.threshold, score)

    def settle(self, classes: int, lead: float | None) -> Self:
        if self.temperature is not None:
            return self
        temperature = 1.0 if lead is None else reachable_temperature(self, lead, classes)
        return replace(self, temperature=temperature)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def reachable_temperature(policy: ThresholdPolicy, lead: float, classes: int) -> float:
    """Return the temperature at which a row whose largest logit exceeds all others by ``lead`` just stops.

    A spike count grows by at most 1 per timestep. For a small T, no count can reach a threshold such as 0.9 at
    temperature 1: the softmax of (4, 0, ..., 0) over 10 classes is 0.86.

    Args:
        policy: supplies score and threshold.
        lead: the difference between the largest logit and each of the others.
        classes: C, the number of logits.

    Returns:
        A temperature between 0.001 and 1. It is 1 if the row stops at temperature 1 or at no temperature in that range.

    Example:
        >>> from seenn_plugin.policies import ConfidencePolicy
        >>> round(reachable_temperature(ConfidencePolicy(0.9), lead=4.0, classes=10), 2)
        0.9
    """
    logits = torch.zeros(1, classes)
    logits[0, 0] = lead

    def stops(temperature: float) -> bool:
        return float(replace(policy, temperature=temperature).scaled_score(logits)) > policy.threshold

    low, high = 1e-3, 1.0
    if stops(high) or not stops(low):
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if stops(middle) else (low, middle)
    return 0.99 * low  # below the exact value, so that rounding errors do not keep the row from stopping


def fit_temperature(trace: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of ``softmax(a_t / temperature)``, averaged over rows
    and timesteps.

    This is temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599),
    extended over timesteps. The cross-entropy is convex in the inverse temperature; its derivative,
    ``mean(E_p[a] - a_label)``, is bisected.

    Args:
        trace: decision logits ``[T, N, C]``. Rows and timesteps with NaN or infinite logits are left out.
        labels: long ``[N]``.

    Returns:
        A temperature between 1/100 and 100 times the standard deviation of the logits over classes; 1 if that is 0.

    Example:
        >>> confident = torch.tensor([[[4.0, 0.0]] * 10])  # [T=1, N=10, C=2], all of class 0
        >>> labels = torch.tensor([0] * 9 + [1])  # 90 % of them correct: the logits should differ by log(9)
        >>> round(fit_temperature(confident, labels), 3) == round(4 / torch.log(torch.tensor(9.0)).item(), 3)
        True
    """
    logits = trace.double()
    usable = logits.isfinite().all(-1)
    logits, targets = logits[usable], labels.expand(trace.shape[:2])[usable]
    spread = float(logits.std(-1).mean()) if len(logits) else 0.0
    if not spread > 0:
        return 1.0
    label_logit = logits.gather(1, targets.unsqueeze(1)).squeeze(1)

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(1) * logits).sum(1)
        return float((expected - label_logit).mean())

    low, high = 0.01 / spread, 100.0 / spread
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1.0 / (low * high) ** 0.5
