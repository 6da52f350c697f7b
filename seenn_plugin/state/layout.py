"""What is known of the state of a model: which cells hold it, on which dimension its rows are, its fresh value.

Found by :mod:`seenn_plugin.discovery`, used by :mod:`seenn_plugin.adapter.module_adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .cells import Cell
from .memory_format import select
from .values import leaves

Place = tuple[dict[Any, Any], Any]
"""A dictionary of a module, and a key in it."""


@dataclass(frozen=True)
class StateSpec:
    """The specification of one value that rows carry.

    Attributes:
        label: its name in reports.
        row_dim: the dimension that holds the rows; ``None`` if all rows share the value.
        ndims: the ranks of its tensors after the first timestep.
        owned: whether the framework's reset sets it to its fresh value.
        counts: which of its leaves are the number of rows.
        fresh: its value before the first timestep, as the framework's reset leaves it.
    """

    label: str
    row_dim: int | None
    ndims: frozenset[int]
    owned: bool
    counts: frozenset[int]
    fresh: Any

    def row_tensors(self, value: Any) -> list[Tensor]:
        """The tensors in ``value`` that hold rows; none before the first timestep has created them."""
        return [leaf for leaf in leaves(value) if self._has_rows(leaf)]

    def _has_rows(self, leaf: Any) -> bool:
        return self.row_dim is not None and isinstance(leaf, Tensor) and leaf.ndim in self.ndims and leaf.numel() > 0

    def seen_by_rows(self, value: Any, n: int) -> list[Tensor]:
        """``value`` as tensors with ``n`` rows on dimension 0; what all rows share is repeated."""
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
        parts, treespec = pytree.tree_flatten(value)
        for i, part in enumerate(parts):
            if self._has_rows(part):
                parts[i] = select(part, self.row_dim or 0, index)
            elif i in self.counts:
                parts[i] = index.numel()
        return pytree.tree_unflatten(parts, treespec)

    def refill(self, value: Any, index: Tensor, fresh: Any) -> Any:
        """``value`` with ``fresh`` rows at ``index``.

        Args:
            value: of the active rows.
            index: long ``[m]``.
            fresh: the value of ``m`` new rows, or of one; frameworks start from 0 where it holds nothing yet.
        """
        if self.row_dim is None:
            return value
        parts, treespec = pytree.tree_flatten(value)
        new = leaves(fresh)
        if len(new) != len(parts):
            new = [new[0] if len(new) == 1 else None] * len(parts)
        parts = [self._refill(a, index, b) if self._has_rows(a) else a for a, b in zip(parts, new, strict=True)]
        return pytree.tree_unflatten(parts, treespec)

    def _refill(self, tensor: Tensor, index: Tensor, fresh: Any) -> Tensor:
        dim = self.row_dim or 0
        if isinstance(fresh, Tensor) and fresh.numel():
            shape = [*tensor.shape[:dim], index.numel(), *tensor.shape[dim + 1 :]]
            return tensor.clone().index_copy_(dim, index, fresh.to(tensor).expand(shape))  # keeps the memory format
        # One pass over memory; index_fill needs two, for the copy and for the rows.
        places = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device).index_fill_(0, index, True)
        value = tensor.new_full((), float(fresh) if isinstance(fresh, int | float) else 0.0)
        return torch.where(places.view(-1, *[1] * (tensor.ndim - dim - 1)), value, tensor)


@dataclass(frozen=True)
class StateLayout:
    """Where the state of a model is.

    Attributes:
        carried: the cells whose values belong to the active rows.
        written: the places of all cells that a timestep or a reset writes: the carried ones first.
        unread: places that are written and never read, with their value before the first timestep if the start of a run
            sets it, and the NaN that is put there later. If such a place is read after all, the answer is NaN, and not
            silently another row's.
        watched: the stores in which nothing else may be written.
        specs: one for each carried cell, then one for each value of the stepper.
        changed_in_place: for each carried cell, whether the model changes its value in place.
        monitors: labels of the places that are written and never read.
        refill_blocker: why new rows cannot join active rows; empty if they can.
    """

    carried: tuple[Cell, ...]
    written: tuple[Place, ...]
    unread: tuple[tuple[Place, Any, Any], ...]
    watched: tuple[dict[Any, Any], ...]
    specs: tuple[StateSpec, ...]
    changed_in_place: tuple[bool, ...]
    monitors: tuple[str, ...]
    refill_blocker: str

    def describe(self) -> str:
        rows = [f"{s.label} (rows on dim {s.row_dim})" for s in self.specs if s.row_dim is not None]
        shared = [s.label for s in self.specs if s.row_dim is None]
        text = f"{len(rows)} held per row: {', '.join(rows) or 'none'}"
        text += f"; shared by all rows: {', '.join(shared)}" if shared else ""
        return text + (f"; written and never read, left as it was: {', '.join(self.monitors)}" if self.monitors else "")
