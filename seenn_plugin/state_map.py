"""What is known of the state of a model: where it lies, where its rows are, what is fresh.

Found by :mod:`seenn_plugin.discovery`, used by :mod:`seenn_plugin.module_adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .layout import select
from .module_state import Cell, leaves

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
        counts: which of its leaves are the number of rows itself.
        fresh: its value before the first timestep, as the framework's reset leaves it.
    """

    label: str
    row_dim: int | None
    ndims: frozenset[int]
    owned: bool
    counts: frozenset[int]
    fresh: Any

    def row_tensors(self, value: Any) -> list[Tensor]:
        """The tensors in ``value`` that hold rows; none before the first timestep has made them."""
        return [leaf for leaf in leaves(value) if self._has_rows(leaf)]

    def _has_rows(self, leaf: Any) -> bool:
        return self.row_dim is not None and isinstance(leaf, Tensor) and leaf.ndim in self.ndims and leaf.numel() > 0

    def seen_by_rows(self, value: Any, n: int) -> list[Tensor]:
        """What each of ``n`` rows sees of ``value``, in tensors with rows on dimension 0."""
        if self.row_dim is not None:
            return [t.movedim(self.row_dim, 0) for t in self.row_tensors(value)]
        shared = [
            v for i, v in enumerate(leaves(value)) if isinstance(v, Tensor | int | float) and i not in self.counts
        ]
        return [torch.as_tensor(v).flatten().expand(n, -1) for v in shared]

    def row_counts(self, value: Any) -> list[int]:
        """The number of rows of each of :meth:`row_tensors`."""
        return [t.shape[self.row_dim or 0] for t in self.row_tensors(value)]

    def keep(self, value: Any, index: Tensor) -> Any:
        """``value`` for the rows at ``index``."""
        if self.row_dim is None and not self.counts:
            return value
        if isinstance(value, Tensor):
            return select(value, self.row_dim or 0, index) if self._has_rows(value) else value
        parts, spec = pytree.tree_flatten(value)
        for i, part in enumerate(parts):
            if self._has_rows(part):
                parts[i] = select(part, self.row_dim or 0, index)
            elif i in self.counts:
                parts[i] = index.numel()
        return pytree.tree_unflatten(parts, spec)

    def refill(self, value: Any, index: Tensor, fresh: Any) -> Any:
        """``value`` with ``fresh`` rows at ``index``.

        Args:
            value: of the rows in flight.
            index: long ``[m]``.
            fresh: the same of ``m`` fresh rows, or of one; where it holds nothing yet, frameworks start from 0.
        """
        if self.row_dim is None:
            return value
        parts, spec = pytree.tree_flatten(value)
        new = leaves(fresh)
        if len(new) != len(parts):
            new = [new[0] if len(new) == 1 else None] * len(parts)
        parts = [self._refill(a, index, b) if self._has_rows(a) else a for a, b in zip(parts, new, strict=True)]
        return pytree.tree_unflatten(parts, spec)

    def _refill(self, tensor: Tensor, index: Tensor, fresh: Any) -> Tensor:
        dim = self.row_dim or 0
        if isinstance(fresh, Tensor) and fresh.numel():
            shape = [*tensor.shape[:dim], index.numel(), *tensor.shape[dim + 1 :]]
            return tensor.clone().index_copy_(dim, index, fresh.to(tensor).expand(shape))  # in its own layout
        # One pass over memory, where index_fill makes two: a copy, and the rows.
        places = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device).index_fill_(0, index, True)
        value = tensor.new_full((), float(fresh) if isinstance(fresh, int | float) else 0.0)
        return torch.where(places.view(-1, *[1] * (tensor.ndim - dim - 1)), value, tensor)


@dataclass(frozen=True)
class StateMap:
    """Where the state of a model lies.

    Attributes:
        carried: the cells whose values belong to the rows in flight.
        written: the places of all cells that a timestep or a reset writes: the carried ones first.
        unread: places that are written and never read, with what lies there before the first timestep if the start of
            a run sets it, and the NaN to put there later: should one be read after all, the answer is NaN and not
            silently another row's.
        watched: the stores in which nothing else may be written.
        spots: one for each carried cell, then one for each value of the stepper.
        changed_in_place: for each carried cell, whether the model changes its value rather than replacing it.
        monitors: labels of what is written and never read.
        not_refillable: why fresh rows cannot join rows in flight; empty if they can.
    """

    carried: tuple[Cell, ...]
    written: tuple[Place, ...]
    unread: tuple[tuple[Place, Any, Any], ...]
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
