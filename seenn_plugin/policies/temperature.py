"""Temperatures: one at which spike counts can reach a threshold, and one fitted to held-out data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import ThresholdPolicy

_HALVINGS = 50


def reachable_temperature(policy: ThresholdPolicy, lead: float, classes: int) -> float:
    """A temperature, at most 1, at which a lead of one logit over all others is just enough to stop.

    Spike counts grow by at most 1 in a timestep, so that for a small T no count reaches a threshold such as 0.9 at
    temperature 1: softmax of (4, 0, ..., 0) over 10 classes is 0.86. Returns 1 if no temperature is small enough.
    """
    logits = torch.zeros(1, classes)
    logits[0, 0] = lead

    def stops(temperature: float) -> bool:
        return float(replace(policy, temperature=temperature).scaled_score(logits)) > policy.threshold

    low, high = 1e-3, 1.0
    if stops(high) or not stops(low):
        return 1.0
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if stops(middle) else (low, middle)
    return 0.99 * low  # a little below the border, so that rounding does not decide


def fit_temperature(trace: Tensor, labels: Tensor) -> float:
    """Temperature that minimises the cross-entropy of ``softmax(a_t / temperature)``, averaged over all timesteps.

    The cross-entropy is convex in the inverse temperature; its derivative, mean(E_p[a] - a_label), is bisected
    (Guo et al., "On Calibration of Modern Neural Networks", 2017, extended over timesteps). Rows with NaN or infinite
    logits are left out. The result lies within a factor of 100 of the spread of the logits.

    Args:
        trace: decision logits ``[T, N, C]``.
        labels: long ``[N]``.
    """
    logits = trace.double()
    usable = logits.isfinite().all(-1)
    logits, targets = logits[usable], labels.expand(trace.shape[:2])[usable]
    spread = float(logits.std(-1).mean()) if len(logits) else 0.0
    if not spread > 0:
        return 1.0
    right = logits.gather(1, targets.unsqueeze(1)).squeeze(1)

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(1) * logits).sum(1)
        return float((expected - right).mean())

    low, high = 0.01 / spread, 100.0 / spread
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1.0 / (low * high) ** 0.5
