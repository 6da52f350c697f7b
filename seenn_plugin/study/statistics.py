"""How sure a number is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

_Z = 1.959964
"""Of 95 %, two-sided."""


def wilson(share: float, samples: int) -> tuple[float, float]:
    """The 95 % interval (Wilson's score interval) of a share that was found on so many samples, as fractions."""
    square = _Z**2 / samples
    middle = (share + square / 2) / (1 + square)
    half = _Z * sqrt(share * (1 - share) / samples + square / (4 * samples)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of a sample (n - 1); ``None`` for a single value, which has no spread."""
    return mean(values), stdev(values) if len(values) > 1 else None
