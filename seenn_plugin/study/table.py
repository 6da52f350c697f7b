"""Numbers in tables."""

from __future__ import annotations

from collections.abc import Sequence

from .statistics import mean_and_deviation


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation if there are several values."""
    middle, deviation = mean_and_deviation(values)
    return f"{middle:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f} (n = {len(values)})")
