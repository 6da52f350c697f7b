"""What readouts and policies remember of the rows in flight, where some rows are fresh and some are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import PolicyError
from ..module_state import map_tensors

Update = Callable[[Any, Sequence[Tensor]], tuple[Sequence[Tensor], Any]]
"""From a memory and row tensors to results, tensors with one row each, and the memory afterwards."""


class RowMemory:
    """The memory of some rows, in tensors with rows on dimension 0.

    What readouts and policies remember has no form before the first timestep: it is ``None``, or whatever they like.
    Rows that join are therefore handled apart for one timestep, as if they were a batch of their own; then their memory
    has the form of the others', and is put among it.

    Args:
        start: what is known of the rows before their first timestep.
    """

    def __init__(self, start: Any) -> None:
        self._held = start
        self._joining: tuple[Tensor, Tensor, Any] | None = None

    def update(self, function: Update, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """One timestep of all rows: what ``function`` makes of the memory and of ``rows``, each ``[n, ...]``."""
        if self._joining is None:
            results, self._held = function(self._held, rows)
            return results
        (places, others, start), self._joining = self._joining, None
        of_others, held = function(self._held, [tensor.index_select(0, others) for tensor in rows])
        of_fresh, begun = function(start, [tensor.index_select(0, places) for tensor in rows])
        self._held = merged(others, held, places, begun)
        return merged(others, list(of_others), places, list(of_fresh))

    def keep(self, index: Tensor) -> None:
        """Keep the rows at ``index``."""
        assert self._joining is None, "rows that have just joined make a timestep first"
        self._held = map_tensors(lambda memory: memory.index_select(0, index), self._held)

    def join(self, places: Tensor, others: Tensor, start: Any) -> None:
        """Fresh rows at ``places``, of which ``start`` is known; the rows held so far are now at ``others``."""
        assert self._joining is None, "rows that have just joined make a timestep first"
        self._joining = (places, others, start)


def merged(others: Tensor, held: Any, places: Tensor, fresh: Any) -> Any:
    """One memory of the rows at ``others`` and of those at ``places``.

    Raises:
        PolicyError: the two have not the same form.
    """
    left, form = pytree.tree_flatten(held)
    right, other_form = pytree.tree_flatten(fresh)
    if form != other_form or not all(map(_alike, left, right)):
        raise PolicyError(
            "what a readout or policy remembers of a row changes its form with time, so that rows of different clocks "
            "cannot be kept side by side; give infer at most `slots` rows at once."
        )
    n = others.numel() + places.numel()

    def one(of_others: Any, of_fresh: Any) -> Any:
        if not isinstance(of_others, Tensor):
            return of_others
        both = of_others.new_empty(n, *of_others.shape[1:])
        return both.index_copy(0, others, of_others).index_copy_(0, places, of_fresh)

    return pytree.tree_unflatten([one(a, b) for a, b in zip(left, right, strict=True)], form)


def _alike(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape[1:] == right.shape[1:] and left.dtype == right.dtype
    return left is None and right is None


def can_mix(function: Update, start: Any, timesteps: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the memory of a row after its first timestep has the form that it has later.

    Args:
        function: what makes the memory.
        start: what is known of one row before its first timestep.
        timesteps: row tensors ``[1, ...]`` of two timesteps or more.
    """
    forms = []
    for rows in timesteps:
        _, start = function(start, rows)
        forms.append(pytree.tree_flatten(start))
    (first, form) = forms[0]
    return all(other == form and all(map(_alike, first, leaves)) for leaves, other in forms[1:])
