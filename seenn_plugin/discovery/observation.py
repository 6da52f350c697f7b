"""Runs a few timesteps of a few rows in isolation, and records the value of every cell of the model after each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelRefused, SeennError
from ..inputs import InputBatch
from ..state.cells import Cell, cells
from ..state.isolation import isolated
from ..state.values import ABSENT, is_plain, map_tensors, poisoned, same, tensors
from ..stepping.model_access import ModelAccess
from ..stepping.spiking_calls import most_from_one_place, recording_calls
from ..stepping.stepper import CallStepper, Stepper
from .driven_neurons import DrivenNeurons

_STEPS: Final = 3
_SEED: Final = 20230401


@dataclass
class Observation:
    """The record of a run: values of every candidate cell and of the stepper, before and after each timestep.

    Attributes:
        fresh, start: values of cells, and of the stepper, at the start.
        after, arguments: the same after each timestep.
        outputs: of each timestep.
        written: cells that the start or a timestep writes.
        written_at_start: cells that the start writes.
        written_after_loop: cells that only the statements after the time loop write.
        changed_in_place: cells whose value a timestep changes in place.
        calls: the largest number of calls of one neuron from one place in the first timestep.
    """

    fresh: dict[Cell, Any] = field(default_factory=dict)
    start: list[Any] = field(default_factory=list)
    after: list[dict[Cell, Any]] = field(default_factory=list)
    arguments: list[list[Any]] = field(default_factory=list)
    outputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    written: set[Cell] = field(default_factory=set)
    written_at_start: set[Cell] = field(default_factory=set)
    written_after_loop: set[Cell] = field(default_factory=set)
    changed_in_place: set[Cell] = field(default_factory=set)
    calls: int = 0


@dataclass(frozen=True)
class Observer:
    """Runs a few timesteps of one kind of rows in isolation.

    Attributes:
        adapter: the adapter of the model.
        stepper: makes its timesteps.
        reset_values: cells in which an earlier run of the caller's has left a value, with what the model's own reset
            methods make of it.
    """

    adapter: ModelAccess
    stepper: Stepper
    reset_values: dict[Cell, Any] = field(default_factory=dict)

    def observe(
        self,
        rows: InputBatch,
        first: int = 0,
        steps: int = _STEPS,
        poison: tuple[Cell, float] | None = None,
        before_start: dict[Cell, Any] | None = None,
        instead_of_fresh: tuple[dict[Cell, Any], list[Any]] | None = None,
        count_calls_of: Collection[nn.Module] = (),
    ) -> Observation:
        """Run ``steps`` timesteps from frame ``first`` on, from fresh state.

        Args:
            rows: the input.
            poison: a cell, and an absurd number that replaces its numbers before every timestep but the first.
            before_start: values of cells after the framework's reset.
            instead_of_fresh: values of cells, and of the stepper, from which the first timestep starts.
            count_calls_of: modules whose calls are counted.
        """
        adapter, stepper, seen = self.adapter, self.stepper, Observation()
        with (
            isolated(adapter.model),
            _keeping_parameters(adapter.model),
            recording_calls(adapter.model, count_calls_of) as calls,
        ):
            torch.manual_seed(_SEED)
            adapter.reset()
            _write(_copy(self.reset_values) | (before_start or {}))
            before = self.read()
            copied = _copy(before)
            arguments = stepper.start(rows)
            seen.written_at_start = _written(before, copied, self.read())
            if instead_of_fresh is not None:
                _write(instead_of_fresh[0])
                arguments = instead_of_fresh[1]
            seen.fresh, seen.start = _copy(self.read()), map_tensors(Tensor.clone, arguments)
            seen.written |= seen.written_at_start
            for step in range(min(steps, stepper.timesteps or steps)):
                if poison is not None and step > 0:
                    _write({poison[0]: poisoned(poison[0].read(), poison[1])})
                before = self.read()
                copied, versions = _copy(before), _versions(before)
                calls.clear()
                finish, arguments = stepper.advance(self._frame(rows, first + step), 1, arguments)
                if step == 0:
                    seen.calls = most_from_one_place(calls)
                after = self.read()
                in_place = {cell for cell, version in _versions(before).items() if version != versions[cell]}
                in_place |= {cell for cell in before if not same(before[cell], copied[cell])}
                seen.written |= in_place | _written(before, copied, after)
                seen.changed_in_place |= in_place
                seen.after.append(_copy(after))
                seen.arguments.append(map_tensors(Tensor.clone, arguments))
                seen.outputs.append(finish())
                seen.written_after_loop |= self._undo_writes_after_loop(after, seen.after[-1], seen.written)
        seen.written_after_loop -= seen.written
        return seen

    def _undo_writes_after_loop(self, after: dict[Cell, Any], copied: dict[Cell, Any], state: set[Cell]) -> set[Cell]:
        """Restore the value that the timestep left in every cell. Returns the cells that had another value."""
        now = self.read()
        written = _written(after, copied, now)
        for cell in written:
            in_place = not same(after.get(cell, ABSENT), copied.get(cell, ABSENT))
            if in_place and cell in state:
                raise ModelRefused(
                    f"the statements after the time loop of {type(self.adapter.model).__name__} change {cell.label} in "
                    "place, which the next timestep would see.",
                    "Assign a new tensor instead.",
                )
            cell.write(map_tensors(Tensor.clone, copied[cell]) if in_place else after.get(cell, ABSENT))
        return written

    def try_observe(self, rows: InputBatch, **options: Any) -> Observation:
        """:meth:`observe`, with an error that names what is wrong with the input, or what an earlier run has left."""
        try:
            return self.observe(rows, **options)
        except SeennError:
            raise
        except Exception as error:
            leftovers = [cell for cell in self.read() if self.is_leftover(cell)]
            if leftovers and self._runs(rows, before_start=dict.fromkeys(leftovers)):
                raise left_over(leftovers[0].label, tensors(leftovers[0].read())[0]) from error
            if rows.sequence:
                kind = "a sequence [T, N, ...] (time_dim=1 for [N, T, ...])"
                hint = "for one input that is shown at every timestep, leave input= and time_dim= out"
            else:
                kind = "static input [N, ...]"
                hint = "if the batch dimension is missing, pass x[None]; for a time axis pass input='sequence'"
            raise InputError(
                f"{type(self.adapter.model).__name__} cannot make one timestep on rows of shape "
                f"{tuple(rows.row_shape)}: {type(error).__name__}: {error}. The input was read as {kind}: {hint}. "
                f"{self.adapter.failure_hint()}"
            ) from error

    def carries_something(self, seen: Observation, rows: InputBatch) -> bool:
        """Whether the second timestep depends on the first. If not, nothing is carried.

        Neurons that fire at every timestep carry nothing. They are therefore driven to rest at some as well.
        """
        if self._depends_on_first(seen, rows):
            return True
        driven = DrivenNeurons(self.adapter.neurons)
        try:
            driven.adapt(lambda: self.observe(rows))
            with driven.applied():
                return self._depends_on_first(self.observe(rows), rows)
        except Exception:  # what lies between the neurons takes nothing but spikes
            return False

    def _depends_on_first(self, seen: Observation, rows: InputBatch) -> bool:
        anew = self.observe(rows, first=1, steps=1)
        return not (
            same(list(seen.outputs[1]), list(anew.outputs[0]))
            and same(seen.arguments[1], anew.arguments[0])
            and all(same(seen.after[1].get(cell), anew.after[0].get(cell)) for cell in seen.written)
        )

    def is_leftover(self, cell: Cell) -> bool:
        """Whether an attribute holds a tensor that no reset sets to a fresh value."""
        known = self.adapter.owns(cell) or self.adapter.is_scratch(cell) or cell in self.reset_values
        return cell.path == () and not known and any(t.ndim and t.numel() for t in tensors(cell.read()))

    def answers_the_same(self, seen: Observation, rows: InputBatch, without: Cell, **options: Any) -> bool:
        """Whether a run with other ``options`` ends like ``seen``, except for the value of the cell ``without``."""
        try:
            again = self.observe(rows, **options)
        except Exception:
            return False
        return same([list(o) for o in seen.outputs], [list(o) for o in again.outputs]) and all(
            same(seen.after[-1].get(other), again.after[-1].get(other)) for other in seen.written if other != without
        )

    def read(self) -> dict[Cell, Any]:
        return {cell: cell.read() for cell in cells(self.adapter.model, self.adapter.registers)}

    def _runs(self, rows: InputBatch, **options: Any) -> bool:
        try:
            self.observe(rows, **options)
        except Exception:
            return False
        return True

    def _frame(self, rows: InputBatch, step: int) -> Tensor | None:
        """Input of one timestep, ``[1, n, ...]``; ``None`` if the stepper takes none."""
        return rows.frame(step).unsqueeze(0) if self.stepper.takes_frames else None


def values_after_own_reset(adapter: ModelAccess) -> dict[Cell, Any]:
    """The cells in which a run of the caller's has left a value, with what the model's own reset methods make of it.

    Zeros for the rows of that run are zeros for any rows. What a reset leaves otherwise is of no use for other rows.
    """
    observer = Observer(adapter, CallStepper(adapter))
    left = [cell for cell in observer.read() if observer.is_leftover(cell)]
    found: dict[Cell, Any] = {}
    if left:
        before = {cell: cell.read() for cell in left}
        with isolated(adapter.model), suppress(Exception):  # it may need what is not there: then nothing is known
            adapter.own_reset()
            for cell in left:
                value = cell.read()
                zeros = all(not tensor.any() for tensor in tensors(value))
                if zeros and is_plain(value) and not same(value, before[cell]):
                    found[cell] = map_tensors(lambda t: t.new_zeros(()), value)
    return found


def left_over(label: str, value: Tensor) -> ModelRefused:
    """The refusal of a model that still holds a value of an earlier run."""
    return ModelRefused(
        f"{label} still holds a value of shape {tuple(value.shape)} from an earlier run, and nothing resets it.",
        f"Set it to what it was before the first run ({label} = None, say) before the wrapper is used first, or give "
        "the model a method reset() that does so.",
    )


@contextmanager
def _keeping_parameters(model: nn.Module) -> Iterator[None]:
    """Refuse a model that assigns a parameter while it runs, after restoring the parameter."""
    before = [(module._parameters, dict(module._parameters)) for module in model.modules()]
    yield
    for parameters, own in before:
        changed = [name for name in {**own, **parameters} if parameters.get(name) is not own.get(name)]
        if changed:
            parameters.clear()
            parameters.update(own)
            raise ModelRefused(
                f"{type(model).__name__} assigns its parameter {changed[0]} in forward(), which all rows share.",
                "Keep what changes from timestep to timestep in tensors with one value per row.",
            )


def _write(values: dict[Cell, Any]) -> None:
    for cell, value in values.items():
        cell.write(value)


def _copy(values: dict[Cell, Any]) -> dict[Cell, Any]:
    return {cell: map_tensors(Tensor.clone, value) for cell, value in values.items()}


def _versions(values: dict[Cell, Any]) -> dict[Cell, list[int]]:
    """How often each tensor was written in place. A silent network may add zeros only."""
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
