"""How a model makes one answer of the outputs of its timesteps, found by comparing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from torch import Tensor

from ..tolerance import rows_agree

AGGREGATES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "last": lambda steps: steps[-1],
    "sum": lambda steps: steps.sum(0),
    "mean": lambda steps: steps.mean(0),
    "max": lambda steps: steps.amax(0),
}
"""From outputs of single timesteps ``[T, n, ...]`` to one answer ``[n, ...]``, by the name of the readout."""


def matching_aggregates(
    steps: Tensor, answer: Tensor, among: Iterable[str] = tuple(AGGREGATES), share: float = 1.0
) -> list[str]:
    """The names of the aggregates that make ``answer`` of ``steps``.

    Args:
        steps: outputs of single timesteps, ``[T, n, ...]``.
        answer: the model's answer to all of them, ``[n, ...]``.
        among: the aggregates to try.
        share: the share of the rows that must agree, a fraction. Below 1 where rounding may move single spikes.
    """
    if steps.shape[1:] != answer.shape:
        return []
    return [
        name for name in among if float(rows_agree(AGGREGATES[name](steps).to(answer), answer).double().mean()) >= share
    ]
