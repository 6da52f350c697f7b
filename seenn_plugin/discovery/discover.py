"""Finds the state of a model, and the dimension of its rows, by running a few timesteps.

A model is run for a few steps with two rows and with three. What a step writes may be state. The dimension whose size
equals the number of rows is the batch dimension. A value without one is shared by all rows and must be equal in both
runs (a clock). Everything happens in isolation: the caller's model does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import ModelRefused
from ..inputs import InputBatch
from ..state.cells import Cell
from ..state.layout import StateLayout, StateSpec
from ..state.values import ABSENT, POISONS, close, hides_tensors, is_plain, leaves, map_tensors, poisoned, same, tensors
from ..stepping.model_access import ModelAccess
from ..stepping.stepper import Stepper
from .observation import Observation, Observer, left_over, values_after_own_reset

PROBED_ROWS: Final = (2, 3)
_SMALL, _LARGE = PROBED_ROWS


def discover(adapter: ModelAccess, stepper: Stepper, few: InputBatch, more: InputBatch) -> StateLayout:
    """Run a few timesteps of a few rows and find the state.

    Args:
        adapter: the adapter of the model.
        stepper: how its timesteps are made.
        few, more: input of 2 rows and of 3.

    Raises:
        ModelRefused: the model carries no state, or carries some that cannot be split into rows.
        InputError: the model cannot run on rows of this shape at all.
    """
    needed: set[str] = set()  # values of the stepper that the answer depends on
    while True:
        try:
            return _discover(adapter, stepper, few, more, needed)
        except _Misfit as misfit:
            if not stepper.do_without(misfit.name, few):
                if misfit.refusal is not None:
                    raise misfit.refusal from None
                needed.add(misfit.name)


class _Misfit(Exception):
    """A value of the stepper cannot be split into rows. Without a refusal, it may depend on several rows."""

    def __init__(self, name: str, refusal: ModelRefused | None) -> None:
        super().__init__(name)
        self.name, self.refusal = name, refusal


def _discover(
    adapter: ModelAccess, stepper: Stepper, few: InputBatch, more: InputBatch, needed: set[str]
) -> StateLayout:
    name = type(adapter.model).__name__
    observer = Observer(adapter, stepper, values_after_own_reset(adapter))
    small = observer.try_observe(few)
    if stepper.takes_frames and not observer.carries_something(small, few):
        raise ModelRefused(
            f"{name} carries no spiking state from one timestep to the next: a second call answers as a fresh one "
            "does.",
            "Either it has no spiking neuron, or it runs all its timesteps inside forward() and resets in between; "
            "wrap the module that makes one step.",
        )
    large = observer.try_observe(more, count_calls_of={cell.module for cell in small.written})
    if large.calls > 1 and stepper.takes_frames and not adapter.state_arguments and not adapter.takes_time():
        raise ModelRefused(
            f"one call of {name} calls a module that holds state {large.calls} times: it runs its time loop inside "
            "forward(), where it was not found.",
            "One call must be one timestep, or all of them in one plain for loop in forward().",
        )
    return _build(observer, small, large, few, needed)


# -- drawing conclusions -----------------------------------------------------------------------------------------------


@dataclass
class _Kind:
    """The result of the two runs for one value: where its rows are, or what is wrong with it."""

    row_dim: int | None = None
    ndims: frozenset[int] = frozenset()
    counts: frozenset[int] = frozenset()
    misfit: str = ""


def _classify(small: Sequence[Any], large: Sequence[Any], start: tuple[Any, Any] = (ABSENT, ABSENT)) -> _Kind:
    """Compare the values of one cell with two rows and with three: after each step, and at the start.

    The value at the start may have no rows, and be broadcast by the first timestep.
    """
    dims: set[int] = set()
    ndims: set[int] = set()
    counts: set[int] = set()
    shared_tensor = False
    for step, (left, right) in enumerate([start, *zip(small, large, strict=True)]):
        left_leaves, right_leaves = leaves(left), leaves(right)
        if len(left_leaves) != len(right_leaves):
            return _Kind(misfit="its length depends on the number of rows")
        for i, (a, b) in enumerate(zip(left_leaves, right_leaves, strict=True)):
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                if a.ndim != b.ndim:
                    return _Kind(misfit=f"its rank changes with the number of rows ({a.ndim}, {b.ndim})")
                varying = [d for d in range(a.ndim) if a.shape[d] != b.shape[d]]
                if not varying:
                    if step and not same(a, b):
                        return _Kind(misfit=f"it has no row dimension (shape {tuple(a.shape)}) and depends on the rows")
                    shared_tensor = shared_tensor or bool(step and a.numel())
                elif len(varying) == 1 and (a.shape[varying[0]], b.shape[varying[0]]) == (_SMALL, _LARGE):
                    dims.add(varying[0])
                    ndims.add(a.ndim)
                else:
                    return _Kind(
                        misfit=f"rows are mixed into its shape ({tuple(a.shape)} for 2 rows, {tuple(b.shape)} for 3)"
                    )
            elif not same(a, b) and not _same_function(a, b):
                if (a, b) != (_SMALL, _LARGE) or isinstance(a, bool):
                    return _Kind(misfit=f"it depends on the rows ({a!r}, {b!r})")
                counts.add(i)
    if len(dims) > 1 or (dims and shared_tensor):
        return _Kind(misfit="it holds values with rows on several dimensions, or beside others without rows")
    return _Kind(next(iter(dims), None), frozenset(ndims), frozenset(counts))


def _same_function(a: Any, b: Any) -> bool:
    """Whether two functions come from one definition. Their closures are checked elsewhere."""
    return isinstance(a, FunctionType) and isinstance(b, FunctionType) and a.__code__ is b.__code__


def _build(
    observer: Observer, small: Observation, large: Observation, rows: InputBatch, needed: set[str]
) -> StateLayout:
    adapter = observer.adapter
    registered = set(adapter.model.modules())
    carried: dict[Cell, _Kind] = {}
    rewritten: list[Cell] = []
    unread: dict[Cell, Any] = {}
    made_at_start: set[Cell] = set()
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
        # A count of the spikes of all rows is equal for two rows and for three if no row spikes.
        shared = kind.row_dim is None and tensors(values[-1]) and not same(small.fresh.get(cell, ABSENT), values[-1])
        if shared and _is_never_read(observer, cell, small, rows):
            unread[cell] = poisoned(values[-1])
            continue
        leftover = kind.row_dim is not None and observer.is_leftover(cell)
        if leftover and cell in small.written_at_start and _is_made_at_start(observer, cell, small, rows):
            made_at_start.add(cell)
            leftover = False
        if not kind.misfit and not leftover:
            carried[cell] = kind
        elif _is_never_read(observer, cell, small, rows):
            unread[cell] = poisoned(values[-1])
        elif leftover:
            raise left_over(cell.label, tensors(cell.read())[0])
        else:
            raise ModelRefused(
                f"the state {cell.label} cannot be split into rows: {kind.misfit}.",
                "Rows that share state cannot leave one by one; keep one value per row, on one dimension.",
            )
    specs = [
        StateSpec(
            cell.label,
            k.row_dim,
            k.ndims,
            adapter.owns(cell) or cell in made_at_start or cell in observer.reset_values,
            k.counts,
            small.fresh.get(cell, ABSENT),
        )
        for cell, k in carried.items()
    ] + _stepper_specs(observer.stepper, small, large, needed)
    rewritten += sorted(small.written_after_loop | large.written_after_loop, key=lambda cell: cell.label)
    written = [*carried, *rewritten, *unread]
    return StateLayout(
        carried=tuple(carried),
        written=tuple((cell.store, cell.key) for cell in written),
        unread=tuple(
            ((cell.store, cell.key), small.fresh[cell] if cell in small.written_at_start else ABSENT, poison)
            for cell, poison in unread.items()
        ),
        watched=_watched(adapter),
        specs=tuple(specs),
        changed_in_place=tuple(cell in small.changed_in_place for cell in carried),
        monitors=tuple(cell.label for cell in unread),
        refill_blocker=_refill_blocker(observer, specs, list(carried), small, rows),
    )


def _watched(adapter: ModelAccess) -> tuple[dict[Any, Any], ...]:
    """The attributes and registers of every module that may write to them."""
    attributes = [vars(module) for module in adapter.model.modules() if not adapter.writes_nothing(module)]
    return (*attributes, *(a[name] for a in attributes for name in adapter.registers if a.get(name)))


def _stepper_specs(stepper: Stepper, small: Observation, large: Observation, needed: set[str]) -> list[StateSpec]:
    specs = []
    for position, name in enumerate(stepper.names):
        values, more_rows = [[step[position] for step in seen.arguments] for seen in (small, large)]
        opaque = _opaque(leaves(small.start[position]) + leaves(values))
        k = _classify(values, more_rows, (small.start[position], large.start[position]))
        if k.misfit or opaque:
            refusal = ModelRefused(
                f"the state {name} cannot be split into rows: {k.misfit or opaque}.",
                "Keep one value per row, on one dimension, in tensors, tuples, lists or dictionaries.",
            )
            raise _Misfit(name, refusal)
        # A count of the spikes of all rows is the same for two rows and for three if none of them spikes.
        shared = k.row_dim is None and tensors(values[-1]) and not same(small.start[position], values[-1])
        if shared and name not in needed:
            raise _Misfit(name, None)
        specs.append(StateSpec(name, k.row_dim, k.ndims, True, k.counts, small.start[position]))
    return specs


def _opaque(values: Sequence[Any]) -> str:
    """Which of ``values`` may hide rows, in words; empty if none does."""
    for value in values:
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            if any(tensors(c) or (not is_plain(c) and not isinstance(c, nn.Module)) for c in cells):
                return f"the function {value.__qualname__} keeps values of its own"
        elif isinstance(value, MethodType):
            if not isinstance(value.__self__, nn.Module):
                return f"it is a method of a {type(value.__self__).__name__}"
        elif not is_plain(value) and not isinstance(value, nn.Module | ModuleType | type | BuiltinFunctionType):
            return f"it is a {type(value).__name__}"
    return ""


def _is_made_at_start(observer: Observer, cell: Cell, seen: Observation, rows: InputBatch) -> bool:
    """Whether the start of a run sets this cell, whatever its value was before."""
    return all(
        observer.answers_the_same(seen, rows, cell, before_start={cell: poisoned(cell.read(), number)})
        for number in POISONS
    )


def _is_never_read(observer: Observer, cell: Cell, seen: Observation, rows: InputBatch) -> bool:
    """Whether the answers are equal with absurd numbers in this cell, which is then only written, as by a monitor."""
    return all(observer.answers_the_same(seen, rows, cell, poison=(cell, number)) for number in POISONS)


def _refill_blocker(
    observer: Observer, specs: Sequence[StateSpec], carried: Sequence[Cell], seen: Observation, rows: InputBatch
) -> str:
    """Why a new row cannot join active rows; empty if it can. Found by running one."""
    history = [[step.get(cell, ABSENT) for step in seen.after] for cell in carried]
    history += [[step[position] for step in seen.arguments] for position in range(len(observer.stepper.names))]
    for spec, values in zip(specs, history, strict=True):
        if spec.row_dim is None and not spec.counts and not same(values[0], values[-1]):
            return f"{spec.label} is a clock that all rows share"
        if [tuple(t.shape) for t in tensors(values[0])] != [tuple(t.shape) for t in tensors(values[-1])]:
            return f"{spec.label} grows with time"
    everyone = torch.arange(_SMALL, device=rows.device)
    cut = len(carried)
    fresh = [*(spec.fresh for spec in specs[:cut]), *seen.start]
    with torch.inference_mode(False), torch.no_grad():  # as the run that they start
        start = [
            spec.refill(map_tensors(Tensor.clone, values[0]), everyone, new)
            for spec, values, new in zip(specs, history, fresh, strict=True)
        ]
    try:
        placed = observer.observe(
            rows, steps=1, instead_of_fresh=(dict(zip(carried, start[:cut], strict=True)), start[cut:])
        )
    except Exception as error:
        return f"a fresh value written by hand is not accepted ({type(error).__name__}: {error})"
    right = close(list(placed.outputs[0]), list(seen.outputs[0])) and all(
        close(placed.after[0].get(cell), seen.after[0].get(cell)) for cell in carried
    )
    return "" if right else "the fresh value of its state is not known"
