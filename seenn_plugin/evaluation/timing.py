"""Wall clock of several variants of a run, interleaved, so that a busy moment of the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Wall clock of one variant of a run.

    Attributes:
        rounds: seconds per sample, one value for each round.
        speedup: median over the rounds of (seconds of the first variant) / (seconds of this variant).
    """

    rounds: list[float]
    speedup: float

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the interquartile range."""
        low, _, high = self.quartiles
        return (high - low) / 2

    @property
    def quartiles(self) -> list[float]:
        return quantiles(self.rounds, n=4, method="inclusive") if len(self.rounds) > 1 else self.rounds * 3

    def to_dict(self) -> dict[str, Any]:
        return {
            "median_seconds_per_sample": self.median,
            "quartiles_seconds_per_sample": self.quartiles,
            "speedup": self.speedup,
            "rounds": self.rounds,
        }


@torch.no_grad()
def interleaved(
    variants: Mapping[str, Callable[[Tensor], object]],
    rounds: Sequence[Sequence[Tensor]],
    done: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every variant on every batch, one after the other.

    Args:
        variants: by name; the first is what speed-ups are relative to.
        rounds: batches ``[n, ...]``, in rounds; each round gives one value per variant.
        done: called after every round.
    """
    for variant in variants.values():  # at first use a network is inspected, and memory allocated
        variant(rounds[0][0])
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    turn = 0
    for batches in rounds:
        spent = dict.fromkeys(names, 0.0)
        for batch in batches:
            turn = (turn + 1) % len(names)
            for name in names[turn:] + names[:turn]:  # no variant always runs first, in a cold cache
                start = perf_counter()
                variants[name](batch)
                spent[name] += perf_counter() - start
        samples = sum(len(batch) for batch in batches)
        for name in names:
            seconds[name].append(spent[name] / samples)
        done()
    first = seconds[names[0]]
    return {
        name: Timing(values, median(a / b for a, b in zip(first, values, strict=True)))
        for name, values in seconds.items()
    }
