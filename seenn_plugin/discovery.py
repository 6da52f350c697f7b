"""Find the state of a model, and the dimension of its rows, by running a few timesteps and looking.

A model is run for a few steps with two rows and with three. What a step writes may be state; the dimension whose
size follows the number of rows is the batch dimension; what has none is shared by all rows and must be the same in
both runs (a clock). Everything happens in isolation: the caller's model is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from .errors import InputError, ModelRefused, SeennError
from .module_state import (
    ABSENT,
    Cell,
    cells,
    hides_tensors,
    is_plain,
    isolated,
    leaves,
    map_tensors,
    same,
    stores,
    tensors,
)

if TYPE_CHECKING:
    from .module_adapter import ModuleAdapter

_SMALL, _LARGE, _STEPS = 2, 3, 3
_PROBE_SEED: Final = 20230401


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
        written: store and key of every cell that a timestep or a reset writes: the carried ones, then the scratch.
        watched: the stores in which nothing else may be written.
        spots: one for each carried cell, then one for each state argument.
        scratch: labels of what is written anew at every timestep before it is read.
        calls: how often one timestep calls the module that holds state (the largest count).
        not_refillable: why fresh rows cannot join rows in flight; empty if they can.
        output_shape: shape of one row of the first output.
    """

    carried: tuple[Cell, ...]
    written: tuple[tuple[dict[Any, Any], Any], ...]
    watched: tuple[dict[Any, Any], ...]
    spots: tuple[Spot, ...]
    scratch: tuple[str, ...]
    calls: int
    not_refillable: str
    output_shape: tuple[int, ...]

    def describe(self) -> str:
        rows = [f"{s.label} (rows on dim {s.row_dim})" for s in self.spots if s.row_dim is not None]
        shared = [s.label for s in self.spots if s.row_dim is None]
        text = f"{len(rows)} held per row: {', '.join(rows) or 'none'}"
        return text + (f"; shared by all rows: {', '.join(shared)}" if shared else "")


@dataclass
class _Observation:
    """Values of every candidate cell before and after each of a few timesteps."""

    fresh: dict[Cell, Any]
    after: list[dict[Cell, Any]] = field(default_factory=list)
    written: set[Cell] = field(default_factory=set)
    arguments: list[list[Any]] = field(default_factory=list)
    outputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    calls: int = 0


def probe_rows(inputs: Tensor, sequence: bool, rows: int) -> Tensor:
    """A few rows of the caller's batch (repeated if it has fewer); noise if it has none."""
    dim = 1 if sequence else 0
    n = inputs.shape[dim]
    if n:
        return inputs.index_select(dim, torch.arange(rows, device=inputs.device) % n)
    return _noise(inputs, (*inputs.shape[:dim], rows, *inputs.shape[dim + 1 :]))


def _noise(like: Tensor, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(like)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(like)


def discover(adapter: ModuleAdapter, inputs: Tensor, sequence: bool) -> StateMap:
    """Run a few timesteps of a few rows and find what is state.

    Raises:
        ModelRefused: the model carries no state, or carries some that cannot be split into rows.
        InputError: the model cannot run on rows of this shape at all.
    """
    model, name = adapter.model, type(adapter.model).__name__
    with isolated(model):
        adapter.choose_mode(probe_rows(inputs, sequence, _SMALL), sequence)
    small_rows, large_rows = probe_rows(inputs, sequence, _SMALL), probe_rows(inputs, sequence, _LARGE)
    small = _try_observe(adapter, small_rows, sequence)
    if not _carries_something(adapter, small, small_rows, sequence):
        noise = _noise(small_rows, small_rows.shape)  # an all-zero batch leaves a network at rest
        if not _carries_something(adapter, _try_observe(adapter, noise, sequence), noise, sequence):
            raise ModelRefused(
                f"{name} carries no spiking state from one timestep to the next: a second call answers as a fresh "
                "one does.",
                "Either it has no spiking neuron, or it runs all its timesteps inside forward() and resets in between; "
                "wrap the module that makes one step.",
            )
    large = _try_observe(adapter, large_rows, sequence, count_calls_of={cell.module for cell in small.written})
    if large.calls > 1 and not adapter.state_arguments and not adapter.takes_time():
        raise ModelRefused(
            f"one call of {name} calls a module that holds state {large.calls} times: it runs its time loop "
            "inside forward().",
            "One call must be one timestep; a loop inside forward() is not taken yet. Wrap the module that makes "
            "one step.",
        )
    return _build(adapter, small, large, small_rows, sequence)


def _try_observe(adapter: ModuleAdapter, rows: Tensor, sequence: bool, **options: Any) -> _Observation:
    try:
        return _observe(adapter, rows, sequence, **options)
    except SeennError:
        raise
    except Exception as error:
        shape = tuple(rows.shape[2:] if sequence else rows.shape[1:])
        kind = "sequence [T, N, ...] (time_dim=1 for [N, T, ...])" if sequence else "static input [N, ...]"
        raise InputError(
            f"{type(adapter.model).__name__} cannot make one timestep on rows of shape {shape}: "
            f"{type(error).__name__}: {error}. The input was read as {kind}; check its rank, input= and time_dim=. "
            "A model that works on all its timesteps at once only cannot be stepped."
        ) from error


def _frame(rows: Tensor, sequence: bool, step: int) -> Tensor:
    """Input of one timestep, ``[1, n, ...]``; a short sequence repeats its last frame."""
    return rows[min(step, rows.shape[0] - 1)].unsqueeze(0) if sequence else rows.unsqueeze(0)


def _observe(
    adapter: ModuleAdapter,
    rows: Tensor,
    sequence: bool,
    first: int = 0,
    steps: int = _STEPS,
    pinned: Sequence[Cell] = (),
    start: dict[Cell, Any] | None = None,
    start_arguments: list[Any] | None = None,
    count_calls_of: set[nn.Module] | None = None,
) -> _Observation:
    """Run ``steps`` timesteps from frame ``first`` on, from fresh state or from ``start``.

    ``pinned`` cells are put back to their fresh value before every timestep.
    """
    model = adapter.model
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, *_: Any) -> None:
        calls[module] = calls.get(module, 0) + 1

    with isolated(model):
        adapter.reset()
        seen = _Observation(_copy(_read(cells(model))))
        arguments = adapter.fresh_arguments() if start_arguments is None else start_arguments
        for cell, value in (start or {}).items():
            cell.write(value)
        handles = [module.register_forward_pre_hook(count) for module in count_calls_of or ()]
        try:
            for step in range(steps):
                for cell in pinned:
                    cell.write(map_tensors(Tensor.clone, seen.fresh.get(cell, ABSENT)))
                before = _read(cells(model))
                copied = _copy(before)
                outputs, arguments = adapter.run(_frame(rows, sequence, first + step), arguments)
                after = _read(cells(model))
                seen.written |= _written(before, copied, after)
                seen.after.append(_copy(after))
                seen.arguments.append(map_tensors(Tensor.clone, arguments))
                seen.outputs.append(outputs)
                if step == 0:
                    seen.calls = max(calls.values(), default=0)
        finally:
            for handle in handles:
                handle.remove()
    return seen


def _read(candidates: Sequence[Cell]) -> dict[Cell, Any]:
    return {cell: cell.read() for cell in candidates}


def _copy(values: dict[Cell, Any]) -> dict[Cell, Any]:
    return {cell: map_tensors(Tensor.clone, value) for cell, value in values.items()}


def _written(before: dict[Cell, Any], copied: dict[Cell, Any], after: dict[Cell, Any]) -> set[Cell]:
    """Cells that were assigned, changed in place, made or deleted."""
    changed = set()
    for cell in {**before, **after}:
        old, new = before.get(cell, ABSENT), after.get(cell, ABSENT)
        replaced = new is not old and bool(tensors(new) or tensors(old) or not is_plain(new))
        if replaced or not same(copied.get(cell, ABSENT), new):
            changed.add(cell)
    return changed


def _carries_something(adapter: ModuleAdapter, seen: _Observation, rows: Tensor, sequence: bool) -> bool:
    """Whether the second timestep depends on the first: else a fresh call would do, and nothing is carried."""
    anew = _observe(adapter, rows, sequence, first=1, steps=1)
    return not (
        same(list(seen.outputs[1]), list(anew.outputs[0]))
        and same(seen.arguments[1], anew.arguments[0])
        and all(same(seen.after[1].get(cell), anew.after[0].get(cell)) for cell in seen.written)
    )


@dataclass
class _Kind:
    """What the two runs say of one value: where its rows are, or what is wrong with it."""

    row_dim: int | None = None
    ndims: frozenset[int] = frozenset()
    counts_rows: bool = False
    misfit: str = ""


def _classify(small: Sequence[Any], large: Sequence[Any]) -> _Kind:
    """Compare the values that one place took after each step with two rows and with three."""
    dims: set[int] = set()
    ndims: set[int] = set()
    counts = shared_tensor = False
    for left, right in zip(small, large, strict=True):
        left_leaves, right_leaves = leaves(left), leaves(right)
        if len(left_leaves) != len(right_leaves):
            return _Kind(misfit="its length depends on the number of rows")
        for a, b in zip(left_leaves, right_leaves, strict=True):
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                if a.ndim != b.ndim:
                    return _Kind(misfit=f"its rank changes with the number of rows ({a.ndim}, {b.ndim})")
                varying = [d for d in range(a.ndim) if a.shape[d] != b.shape[d]]
                if not varying:
                    if not same(a, b):
                        return _Kind(misfit=f"it has no row dimension (shape {tuple(a.shape)}) and depends on the rows")
                    shared_tensor = shared_tensor or bool(a.numel())
                elif len(varying) == 1 and (a.shape[varying[0]], b.shape[varying[0]]) == (_SMALL, _LARGE):
                    dims.add(varying[0])
                    ndims.add(a.ndim)
                else:
                    return _Kind(
                        misfit=f"rows are mixed into its shape ({tuple(a.shape)} for 2 rows, {tuple(b.shape)} for 3)"
                    )
            elif not same(a, b):
                if (a, b) != (_SMALL, _LARGE) or isinstance(a, bool):
                    return _Kind(misfit=f"it depends on the rows ({a!r}, {b!r})")
                counts = True
    if len(dims) > 1 or (dims and (shared_tensor or counts)):
        return _Kind(misfit="it holds values with rows on several dimensions, or beside others without rows")
    return _Kind(next(iter(dims), None), frozenset(ndims), counts)


def _build(adapter: ModuleAdapter, small: _Observation, large: _Observation, rows: Tensor, sequence: bool) -> StateMap:
    candidates = small.written | large.written | {cell for cell in small.fresh if adapter.owns(cell)}
    carried: dict[Cell, _Kind] = {}
    scratch: list[Cell] = []
    for cell in sorted(candidates, key=lambda cell: cell.label):
        before, after = [[step.get(cell, ABSENT) for step in seen.after] for seen in (small, large)]
        if not all(is_plain(value) for value in before + after):
            if any(hides_tensors(value) for value in before + after):
                raise ModelRefused(
                    f"{cell.label} keeps state in a {type(before[-1]).__name__}, whose rows cannot be told apart.",
                    "Keep it in tensors, tuples, lists or dictionaries.",
                )
            continue  # a cache, a compiled kernel: no state
        if adapter.is_scratch(cell):
            scratch.append(cell)
            continue
        kind = _classify(before, after)
        if not kind.misfit:
            carried[cell] = kind
        elif _is_never_read(adapter, cell, small, rows, sequence):
            scratch.append(cell)
        else:
            raise ModelRefused(
                f"the state {cell.label} cannot be split into rows: {kind.misfit}.",
                "Rows that share state cannot leave one by one; keep one value per row, on one dimension.",
            )
    spots = [
        Spot(
            cell.label,
            kind.row_dim,
            kind.ndims,
            adapter.owns(cell),
            kind.counts_rows,
            small.fresh.get(cell, ABSENT),
        )
        for cell, kind in carried.items()
    ]
    for position, (name, default) in enumerate(adapter.state_arguments.items()):
        kind = _classify(*[[step[position] for step in seen.arguments] for seen in (small, large)])
        if kind.misfit:
            raise ModelRefused(
                f"the state argument {name} cannot be split into rows: {kind.misfit}.", "Hand back one value per row."
            )
        spots.append(
            Spot(
                f"argument {name}",
                kind.row_dim,
                kind.ndims,
                True,
                kind.counts_rows,
                adapter.fresh_argument(default),
            )
        )
    owners = {cell.module: None for cell in [*carried, *scratch]}
    return StateMap(
        carried=tuple(carried),
        written=tuple((cell.store, cell.key) for cell in [*carried, *scratch]),
        watched=tuple(store for module in owners for _, store in stores(module)),
        spots=tuple(spots),
        scratch=tuple(cell.label for cell in scratch),
        calls=large.calls,
        not_refillable=_why_not_refillable(adapter, spots, list(carried), small, rows, sequence),
        output_shape=tuple(small.outputs[0][0].shape[2:]),
    )


def _is_never_read(adapter: ModuleAdapter, cell: Cell, seen: _Observation, rows: Tensor, sequence: bool) -> bool:
    """Whether the model answers the same if this cell is put back before every timestep: it is only written."""
    pinned = _observe(adapter, rows, sequence, pinned=[cell])
    return same([list(outputs) for outputs in seen.outputs], [list(outputs) for outputs in pinned.outputs]) and all(
        same(seen.after[-1].get(other), pinned.after[-1].get(other)) for other in seen.written if other != cell
    )


def _why_not_refillable(
    adapter: ModuleAdapter,
    spots: Sequence[Spot],
    carried: Sequence[Cell],
    seen: _Observation,
    rows: Tensor,
    sequence: bool,
) -> str:
    """Why a fresh row cannot take a place among rows in flight; empty if it can. Proved by running one."""
    history = [[step.get(cell, ABSENT) for step in seen.after] for cell in carried]
    history += [[step[position] for step in seen.arguments] for position in range(len(adapter.state_arguments))]
    for spot, values in zip(spots, history, strict=True):
        if spot.row_dim is None and not spot.counts_rows and not same(values[0], values[-1]):
            return f"{spot.label} is a clock that all rows share"
        if [tuple(t.shape) for t in tensors(values[0])] != [tuple(t.shape) for t in tensors(values[-1])]:
            return f"{spot.label} grows with time"
    everyone = torch.arange(_SMALL, device=rows.device)
    start = [
        spot.refill(map_tensors(Tensor.clone, values[0]), everyone) for spot, values in zip(spots, history, strict=True)
    ]
    cut = len(carried)
    try:
        placed = _observe(
            adapter,
            rows,
            sequence,
            steps=1,
            start=dict(zip(carried, start[:cut], strict=True)),
            start_arguments=start[cut:],
        )
    except Exception as error:
        return f"a fresh value written by hand is not accepted ({type(error).__name__}: {error})"
    right = same(list(placed.outputs[0]), list(seen.outputs[0])) and all(
        same(placed.after[0].get(cell), seen.after[0].get(cell)) for cell in carried
    )
    return "" if right else "the fresh value of its state is not known"
