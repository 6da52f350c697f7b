"""Find the state of a model, and the dimension of its rows, by running a few timesteps and looking.

A model is run for a few steps with two rows and with three. What a step writes may be state; the dimension whose
size follows the number of rows is the batch dimension; what has none is shared by all rows and must be the same in
both runs (a clock). Everything happens in isolation: the caller's model is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import InputError, ModelRefused, SeennError
from .module_state import (
    ABSENT,
    POISONS,
    Cell,
    cells,
    hides_tensors,
    is_plain,
    isolated,
    leaves,
    map_tensors,
    poisoned,
    same,
    tensors,
)
from .probing import probe_rows
from .state_map import Spot, StateMap

if TYPE_CHECKING:
    from .module_adapter import ModuleAdapter

_SMALL, _LARGE, _STEPS = 2, 3, 3


def discover(adapter: ModuleAdapter, inputs: Tensor, sequence: bool) -> StateMap:
    """Run a few timesteps of a few rows and find what is state.

    Raises:
        ModelRefused: the model carries no state, or carries some that cannot be split into rows.
        InputError: the model cannot run on rows of this shape at all.
    """
    name = type(adapter.model).__name__
    small_rows, large_rows = (probe_rows(inputs, sequence, rows) for rows in (_SMALL, _LARGE))
    with isolated(adapter.model):
        adapter.choose_mode(small_rows, sequence)
    small = _try_observe(adapter, small_rows, sequence)
    if not _carries_something(adapter, small, small_rows, sequence):
        raise ModelRefused(
            f"{name} carries no spiking state from one timestep to the next: a second call answers as a fresh one "
            "does.",
            "Either it has no spiking neuron, or it runs all its timesteps inside forward() and resets in between; "
            "wrap the module that makes one step.",
        )
    large = _try_observe(adapter, large_rows, sequence, count_calls_of={cell.module for cell in small.written})
    if large.calls > 1 and not adapter.state_arguments and not adapter.takes_time():
        raise ModelRefused(
            f"one call of {name} calls a module that holds state {large.calls} times: it runs its time loop inside "
            "forward().",
            "One call must be one timestep; a loop inside forward() is not taken yet. Wrap the module that makes one "
            "step.",
        )
    return _build(adapter, small, large, small_rows, sequence)


# -- observing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Observation:
    """Values of every candidate cell before and after each of a few timesteps."""

    fresh: dict[Cell, Any]
    after: list[dict[Cell, Any]] = field(default_factory=list)
    written: set[Cell] = field(default_factory=set)
    changed_in_place: set[Cell] = field(default_factory=set)
    arguments: list[list[Any]] = field(default_factory=list)
    outputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    calls: int = 0


def _observe(
    adapter: ModuleAdapter,
    rows: Tensor,
    sequence: bool,
    first: int = 0,
    steps: int = _STEPS,
    poison: tuple[Cell, float] | None = None,
    start: dict[Cell, Any] | None = None,
    start_arguments: list[Any] | None = None,
    count_calls_of: set[nn.Module] | None = None,
) -> _Observation:
    """Run ``steps`` timesteps from frame ``first`` on, from fresh state with ``start`` on top.

    Before every timestep but the first, what lies in the cell ``poison`` is replaced by absurd numbers.
    """
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, *_: Any) -> None:
        calls[module] = calls.get(module, 0) + 1

    with isolated(adapter.model):
        adapter.reset()
        seen = _Observation(_copy(_read(adapter)))
        arguments = adapter.fresh_arguments() if start_arguments is None else start_arguments
        for cell, value in (start or {}).items():
            cell.write(value)
        handles = [module.register_forward_pre_hook(count) for module in count_calls_of or ()]
        try:
            for step in range(steps):
                if poison is not None and step > 0:
                    cell, number = poison
                    cell.write(poisoned(cell.read(), number))
                before = _read(adapter)
                copied, versions = _copy(before), _versions(before)
                outputs, arguments = adapter.run(_frame(rows, sequence, first + step), arguments)
                after = _read(adapter)
                seen.written |= _written(before, copied, after)
                in_place = {cell for cell, version in _versions(before).items() if version != versions[cell]}
                in_place |= {cell for cell in before if not same(before[cell], copied[cell])}
                seen.written |= in_place
                seen.changed_in_place |= in_place
                seen.after.append(_copy(after))
                seen.arguments.append(map_tensors(Tensor.clone, arguments))
                seen.outputs.append(outputs)
                if step == 0:
                    seen.calls = max(calls.values(), default=0)
        finally:
            for handle in handles:
                handle.remove()
    return seen


def _frame(rows: Tensor, sequence: bool, step: int) -> Tensor:
    """Input of one timestep, ``[1, n, ...]``; a short sequence repeats its last frame."""
    return rows[min(step, rows.shape[0] - 1)].unsqueeze(0) if sequence else rows.unsqueeze(0)


def _read(adapter: ModuleAdapter) -> dict[Cell, Any]:
    return {cell: cell.read() for cell in cells(adapter.model, adapter.registers)}


def _copy(values: dict[Cell, Any]) -> dict[Cell, Any]:
    return {cell: map_tensors(Tensor.clone, value) for cell, value in values.items()}


def _versions(values: dict[Cell, Any]) -> dict[Cell, list[int]]:
    """How often each tensor was written in place; a silent network may add nothing but zeros."""
    return {cell: [t._version for t in tensors(value)] for cell, value in values.items()}


def _written(before: dict[Cell, Any], copied: dict[Cell, Any], after: dict[Cell, Any]) -> set[Cell]:
    """Cells that were assigned, changed in place, made or deleted."""
    changed = set()
    for cell in {**before, **after}:
        old, new = before.get(cell, ABSENT), after.get(cell, ABSENT)
        replaced = new is not old and bool(tensors(new) or tensors(old) or not is_plain(new))
        if replaced or not same(copied.get(cell, ABSENT), new):
            changed.add(cell)
    return changed


def _try_observe(adapter: ModuleAdapter, rows: Tensor, sequence: bool, **options: Any) -> _Observation:
    """Observe; if that fails, say what is wrong with the input, or with what an earlier run left behind."""
    try:
        return _observe(adapter, rows, sequence, **options)
    except SeennError:
        raise
    except Exception as error:
        leftovers = [cell for cell in _read(adapter) if _is_leftover(adapter, cell)]
        if leftovers and _runs_without(adapter, leftovers, rows, sequence):
            raise left_over(leftovers[0].label, tensors(leftovers[0].read())[0]) from error
        shape = tuple(rows.shape[2:] if sequence else rows.shape[1:])
        kind = "sequence [T, N, ...] (time_dim=1 for [N, T, ...])" if sequence else "static input [N, ...]"
        raise InputError(
            f"{type(adapter.model).__name__} cannot make one timestep on rows of shape {shape}: "
            f"{type(error).__name__}: {error}. The input was read as {kind}; check its rank, input= and time_dim=. "
            "A model that works on all its timesteps at once only cannot be stepped."
        ) from error


def _is_leftover(adapter: ModuleAdapter, cell: Cell) -> bool:
    """Whether an attribute holds a tensor that no reset brings to a fresh value."""
    known = adapter.owns(cell) or adapter.is_scratch(cell)
    return cell.path == () and not known and any(t.ndim for t in tensors(cell.read()))


def _runs_without(adapter: ModuleAdapter, leftovers: Sequence[Cell], rows: Tensor, sequence: bool) -> bool:
    try:
        _observe(adapter, rows, sequence, start=dict.fromkeys(leftovers))
    except Exception:
        return False
    return True


def left_over(label: str, value: Tensor) -> ModelRefused:
    """The refusal of a model that holds a value from an earlier run."""
    return ModelRefused(
        f"{label} still holds a value of shape {tuple(value.shape)} from an earlier run, and nothing resets it.",
        "Bring the model to its fresh state before it is wrapped, or register it as framework state.",
    )


def _carries_something(adapter: ModuleAdapter, seen: _Observation, rows: Tensor, sequence: bool) -> bool:
    """Whether the second timestep depends on the first: else a fresh call would do, and nothing is carried."""
    anew = _observe(adapter, rows, sequence, first=1, steps=1)
    return not (
        same(list(seen.outputs[1]), list(anew.outputs[0]))
        and same(seen.arguments[1], anew.arguments[0])
        and all(same(seen.after[1].get(cell), anew.after[0].get(cell)) for cell in seen.written)
    )


# -- drawing conclusions -----------------------------------------------------------------------------------------------


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
    registered = set(adapter.model.modules())
    carried: dict[Cell, _Kind] = {}
    rewritten: list[Cell] = []
    unread: dict[Cell, Any] = {}
    candidates = small.written | large.written | {cell for cell in small.fresh if adapter.owns(cell)}
    for cell in sorted(candidates, key=lambda cell: cell.label):
        values, more_rows = [[step.get(cell, ABSENT) for step in seen.after] for seen in (small, large)]
        if not all(is_plain(value) for value in values + more_rows):
            if any(hides_tensors(value) for value in values + more_rows):
                raise ModelRefused(
                    f"{cell.label} keeps state in a {type(values[-1]).__name__}, whose rows cannot be told apart.",
                    "Keep it in tensors, tuples, lists or dictionaries.",
                )
            continue  # a cache, a compiled kernel: no state
        if cell.module not in registered:
            raise ModelRefused(
                f"the module that holds the state {cell.label} lies in a plain list or dictionary, where neither reset "
                "nor .to() nor .eval() finds it.",
                "Use nn.ModuleList or nn.ModuleDict.",
            )
        if adapter.is_scratch(cell):
            rewritten.append(cell)
            continue
        kind = _classify(values, more_rows)
        leftover = kind.row_dim is not None and _is_leftover(adapter, cell)
        if not kind.misfit and not leftover:
            carried[cell] = kind
        elif _is_never_read(adapter, cell, small, rows, sequence):
            unread[cell] = poisoned(values[-1])
        elif leftover:
            raise left_over(cell.label, tensors(cell.read())[0])
        else:
            raise ModelRefused(
                f"the state {cell.label} cannot be split into rows: {kind.misfit}.",
                "Rows that share state cannot leave one by one; keep one value per row, on one dimension.",
            )
    spots = [
        Spot(cell.label, k.row_dim, k.ndims, adapter.owns(cell), k.counts_rows, small.fresh.get(cell, ABSENT))
        for cell, k in carried.items()
    ] + _argument_spots(adapter, small, large)
    written = [*carried, *rewritten, *unread]
    return StateMap(
        carried=tuple(carried),
        written=tuple((cell.store, cell.key) for cell in written),
        unread=tuple(((cell.store, cell.key), poison) for cell, poison in unread.items()),
        watched=_watched(adapter),
        spots=tuple(spots),
        changed_in_place=tuple(cell in small.changed_in_place for cell in carried),
        monitors=tuple(cell.label for cell in unread),
        not_refillable=_why_not_refillable(adapter, spots, list(carried), small, rows, sequence),
    )


def _watched(adapter: ModuleAdapter) -> tuple[dict[Any, Any], ...]:
    """The attributes and registers of every module that may write some."""
    attributes = [vars(module) for module in adapter.model.modules() if not adapter.writes_nothing(module)]
    return (*attributes, *(a[name] for a in attributes for name in adapter.registers if a.get(name)))


def _argument_spots(adapter: ModuleAdapter, small: _Observation, large: _Observation) -> list[Spot]:
    spots = []
    for position, (name, default) in enumerate(adapter.state_arguments.items()):
        k = _classify(*[[step[position] for step in seen.arguments] for seen in (small, large)])
        if k.misfit:
            raise ModelRefused(
                f"the state argument {name} cannot be split into rows: {k.misfit}.", "Hand back one value per row."
            )
        fresh = adapter.fresh_argument(default)
        spots.append(Spot(f"argument {name}", k.row_dim, k.ndims, True, k.counts_rows, fresh))
    return spots


def _is_never_read(adapter: ModuleAdapter, cell: Cell, seen: _Observation, rows: Tensor, sequence: bool) -> bool:
    """Whether the model answers the same with absurd numbers in this cell: it is only written, as by a monitor."""
    for number in POISONS:
        try:
            blind = _observe(adapter, rows, sequence, poison=(cell, number))
        except Exception:
            return False
        if not (
            same([list(outputs) for outputs in seen.outputs], [list(outputs) for outputs in blind.outputs])
            and all(
                same(seen.after[-1].get(other), blind.after[-1].get(other)) for other in seen.written if other != cell
            )
        ):
            return False
    return True


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
