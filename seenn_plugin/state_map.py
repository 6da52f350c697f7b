"""What is known of the state of a model: where it lies, where its rows are, what is fresh.

Found by :mod:`seenn_plugin.discovery`, used by :mod:`seenn_plugin.module_adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .module_state import Cell, leaves, map_tensors

Place = tuple[dict[Any, Any], Any]
"""A dictionary of a module, and a key in it."""


@dataclass(frozen=True)
class Spot:
    """What is known of one carried value.

    Attributes:
        label: name for people.
        row_dim: the dimension that holds the rows; ``None`` if all rows share the value.
        ndims: the ranks of its tensors once the first timestep is made.
        owned: whether the framework's reset brings it to its fresh value.
        counts_rows: whether it is the number of rows itself.
        fresh: its value before the first timestep, as the framework's reset leaves it.
    """

    label: str
    row_dim: int | None
    ndims: frozenset[int]
    owned: bool
    counts_rows: bool
    fresh: Any

    @property
    def fill(self) -> Any:
        """The fresh value of one row: what the framework starts from, or 0 where it starts from nothing."""
        if isinstance(self.fresh, Tensor):
            return self.fresh if self.fresh.numel() else 0.0
        return float(self.fresh) if isinstance(self.fresh, int | float) else 0.0

    def row_tensors(self, value: Any) -> list[Tensor]:
        """The tensors in ``value`` that hold rows; none before the first timestep has made them."""
        if self.row_dim is None:
            return []
        return [t for t in leaves(value) if isinstance(t, Tensor) and t.ndim in self.ndims and t.numel()]

    def seen_by_rows(self, value: Any, n: int) -> list[Tensor]:
        """What each of ``n`` rows sees of ``value``, in tensors with rows on dimension 0."""
        if self.row_dim is not None:
            return [t.movedim(self.row_dim, 0) for t in self.row_tensors(value)]
        shared = [] if self.counts_rows else [v for v in leaves(value) if isinstance(v, Tensor | int | float)]
        return [torch.as_tensor(v).flatten().expand(n, -1) for v in shared]

    def row_counts(self, value: Any) -> list[int]:
        """The number of rows of each of :meth:`row_tensors`."""
        return [] if self.row_dim is None else [t.shape[self.row_dim] for t in self.row_tensors(value)]

    def keep(self, value: Any, index: Tensor) -> Any:
        """``value`` for the rows at ``index``."""
        if self.counts_rows:
            return index.numel()
        if self.row_dim is None:
            return value
        dim = self.row_dim
        return map_tensors(lambda t: t.index_select(dim, index) if t.ndim in self.ndims and t.numel() else t, value)

    def refill(self, value: Any, index: Tensor) -> Any:
        """``value`` with fresh rows at ``index``."""
        if self.row_dim is None:
            return value
        dim, fill = self.row_dim, self.fill

        def fresh(tensor: Tensor) -> Tensor:
            if tensor.ndim not in self.ndims or not tensor.numel():
                return tensor
            if isinstance(fill, Tensor):
                shape = [*tensor.shape[:dim], index.numel(), *tensor.shape[dim + 1 :]]
                return tensor.index_copy(dim, index, fill.to(tensor).expand(shape))
            return tensor.index_fill(dim, index, fill)

        return map_tensors(fresh, value)


@dataclass(frozen=True)
class StateMap:
    """Where the state of a model lies.

    Attributes:
        carried: the cells whose values belong to the rows in flight.
        written: the places of all cells that a timestep or a reset writes: the carried ones first.
        unread: places that are written and never read, with the NaN to put there: should one be read after all, the
            answer is NaN and not silently another row's.
        watched: the stores in which nothing else may be written.
        spots: one for each carried cell, then one for each state argument.
        changed_in_place: for each carried cell, whether the model changes its value rather than replacing it.
        monitors: labels of what is written and never read.
        not_refillable: why fresh rows cannot join rows in flight; empty if they can.
    """

    carried: tuple[Cell, ...]
    written: tuple[Place, ...]
    unread: tuple[tuple[Place, Any], ...]
    watched: tuple[dict[Any, Any], ...]
    spots: tuple[Spot, ...]
    changed_in_place: tuple[bool, ...]
    monitors: tuple[str, ...]
    not_refillable: str

    def describe(self) -> str:
        rows = [f"{s.label} (rows on dim {s.row_dim})" for s in self.spots if s.row_dim is not None]
        shared = [s.label for s in self.spots if s.row_dim is None]
        text = f"{len(rows)} held per row: {', '.join(rows) or 'none'}"
        text += f"; shared by all rows: {', '.join(shared)}" if shared else ""
        return text + (f"; written and never read: {', '.join(self.monitors)}" if self.monitors else "")
