"""The state that readouts and policies keep of the active rows, some of which may be new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import PolicyError
from ..state.values import map_tensors

Update = Callable[[Any, Sequence[Tensor]], tuple[Sequence[Tensor], Any]]
"""From state and row tensors to results, tensors with one row each, and the state afterwards."""


class RowState:
    """The state of some rows, in tensors with rows on dimension 0.

    The state of a readout or policy has no form before the first timestep: it is ``None``, or anything else. New rows
    are therefore handled separately for one timestep, as a batch of their own. After it their state has the form of the
    others' and is merged with it.

    Args:
        start: the state before the first timestep.
    """

    def __init__(self, start: Any) -> None:
        self._held = start
        self._joining: tuple[Tensor, Tensor, Any] | None = None

    def update(self, function: Update, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """One timestep of all rows: the results of ``function`` for the state and ``rows``, each ``[n, ...]``."""
        if self._joining is None:
            results, self._held = function(self._held, rows)
            return results
        (places, others, start), self._joining = self._joining, None
        of_others, held = function(self._held, [tensor.index_select(0, others) for tensor in rows])
        of_new, begun = function(start, [tensor.index_select(0, places) for tensor in rows])
        self._held = merged(others, held, places, begun)
        return merged(others, list(of_others), places, list(of_new))

    def keep(self, index: Tensor) -> None:
        """Keep the rows at ``index``."""
        assert self._joining is None, "new rows make a timestep before rows are dropped"
        self._held = map_tensors(lambda tensor: tensor.index_select(0, index), self._held)

    def join(self, places: Tensor, others: Tensor, start: Any) -> None:
        """New rows at ``places``, with the state ``start``. The rows held so far are now at ``others``."""
        assert self._joining is None, "new rows make a timestep before further rows join"
        self._joining = (places, others, start)


def merged(others: Tensor, held: Any, places: Tensor, new: Any) -> Any:
    """One state of the rows at ``others`` and of those at ``places``.

    Raises:
        PolicyError: the two do not have the same form.
    """
    left, form = pytree.tree_flatten(held)
    right, other_form = pytree.tree_flatten(new)
    if form != other_form or not all(map(_alike, left, right)):
        raise PolicyError(
            "the state of a readout or policy changes its form with time, so that rows with different clocks cannot be "
            "kept side by side; give infer at most `slots` rows at once."
        )
    n = others.numel() + places.numel()

    def one(of_others: Any, of_new: Any) -> Any:
        if not isinstance(of_others, Tensor):
            return of_others
        both = of_others.new_empty(n, *of_others.shape[1:])
        return both.index_copy(0, others, of_others).index_copy_(0, places, of_new)

    return pytree.tree_unflatten([one(a, b) for a, b in zip(left, right, strict=True)], form)


def _alike(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape[1:] == right.shape[1:] and left.dtype == right.dtype
    return left is None and right is None


def can_mix(function: Update, start: Any, timesteps: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the state of a row has the same form after its first timestep as later.

    Args:
        function: updates the state.
        start: the state of one row before its first timestep.
        timesteps: row tensors ``[1, ...]`` of two timesteps or more.
    """
    forms = []
    for rows in timesteps:
        _, start = function(start, rows)
        forms.append(pytree.tree_flatten(start))
    (first, form) = forms[0]
    return all(other == form and all(map(_alike, first, leaves)) for leaves, other in forms[1:])
