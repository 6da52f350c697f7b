"""Makes the timesteps of a model that runs its own time loop inside ``forward``.

The local variables at the start of a pass are state of the rows, as the tensors in the modules are: when a row
finishes, its part of both is dropped. After each pass the statements after the loop are run, on copies, as if the loop
ended there. What the model's own code then returns is the output of the timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import InputError, ModelRefused, SeennError
from ..inputs import InputBatch
from ..state.isolation import isolated
from ..state.values import ABSENT, POISONS, map_tensors, poisoned, same, tensors
from ..tolerance import agree
from .aggregation import matching_aggregates
from .answer import results
from .model_access import ModelAccess
from .signature import call_keywords
from .spiking_calls import find_time_loop, recording_calls, refuse_other_loops
from .stepper import MISFITS, Outputs, OwnRun, Stepper
from .time_loop import Locals, TimeLoop

_SEED: Final = 20230401


@dataclass(frozen=True)
class _Item:
    """One of the tensors that ``forward`` returns.

    Attributes:
        position: its place among them.
        time_dim: the dimension that holds the timesteps; ``None`` if the tensor is one answer to all timesteps.
        whole: whether that dimension has its full length from the start, so that timestep t is at t - 1.
        made_by: how it is made of the outputs of single timesteps: ``"stack"``, or the name of a readout.
    """

    position: int
    time_dim: int | None = None
    whole: bool = False
    made_by: str = "stack"

    def of_timestep(self, returned: Sequence[Tensor | None], t: int) -> Tensor:
        """The output ``[n, ...]`` of timestep ``t``, counted from 1, from what was returned when the loop ended."""
        tensor = returned[self.position]
        assert tensor is not None
        if self.time_dim is None:
            return tensor
        return tensor.select(self.time_dim, t - 1 if self.whole else -1)


class LoopStepper(Stepper):
    """Runs the time loop of a model's ``forward`` one pass at a time.

    Args:
        adapter: the adapter of the model.
        loop: its time loop.
        time_dim: the time axis in the layout in which the model takes sequences; ``None`` for static input.
    """

    one_at_a_time = True
    takes_frames = False
    starts_from_input = True

    def __init__(self, adapter: ModelAccess, loop: TimeLoop, time_dim: int | None) -> None:
        self.adapter = adapter
        self.model = adapter.model
        self.loop = loop
        self.time_dim = time_dim
        self._records: frozenset[str] = loop.appended
        self._items: list[_Item] = []
        self._changed_by_rest: frozenset[str] = frozenset()
        self._kept_out: frozenset[str] = frozenset()  # variables that no answer depends on: they keep their first value
        self._changed_by_pass: frozenset[str] = frozenset()
        self._starts_before = False  # the first timestep is made before the loop

    # -- stepping -------------------------------------------------------------------------------------------------

    def start(self, inputs: InputBatch) -> list[Any]:
        variables, items = self._enter(inputs)
        return [*([items, 0] if self._counts else []), *self._carried(variables)]

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        assert steps == 1
        head, before = self._split(values)
        after, returned = self._timestep(head, before)
        t = head[1] + 1 if head else 0
        values = [*([head[0], t] if head else []), *self._carried(after, before)]

        def outputs() -> Outputs:
            result = self._returned(returned, t)
            return tuple(item.of_timestep(result, t).unsqueeze(0) for item in self._items)

        return outputs, values

    def own_run(self, inputs: InputBatch, timesteps: int) -> OwnRun:
        returned = self._results(self._call(inputs))
        outputs = [(item, returned[item.position]) for item in self._items]
        return OwnRun(
            tuple(
                (tensor if item.time_dim is None else tensor.movedim(item.time_dim, 0), item.made_by)
                for item, tensor in outputs
                if tensor is not None
            ),
            self.timesteps or timesteps,
            [],
            keeps_state=False,
        )

    def explain(self) -> dict[str, str]:
        early = ", the first before the loop" if self._starts_before else ""
        records = f"; records {', '.join(sorted(self._records))}" if self._records else ""
        made_by = self._items[0].made_by
        answer = "the outputs of all timesteps" if made_by == "stack" else f"one answer, read as {made_by!r}"
        return {
            "time loop": f"{self.loop}; {self.timesteps} timesteps{early}{records}",
            "before the loop": "computed once for each row, and kept with it",
            "what forward() returns": answer + (", each the answer so far" if self.cumulative else ""),
        }

    @property
    def _counts(self) -> bool:
        """Whether the rows carry the number of the timestep, and therefore share a clock."""
        return self.loop.reads_item or self._starts_before or (self.loop.rest_counts and not self._records)

    def _carried(self, variables: Locals, before: Locals | None = None) -> list[Any]:
        kept = {} if before is None else {name: before[name] for name in self._kept_out}
        return [_plain({**variables, **kept}.get(name, ABSENT)) for name in self._variables]

    def _split(self, values: list[Any]) -> tuple[list[Any], Locals]:
        """The values of the rows: items of the loop and timestep, if :attr:`_counts`, and the local variables."""
        head = values[:2] if self._counts else []
        return head, dict(zip(self._variables, values[len(head) :], strict=True))

    def _timestep(self, head: list[Any], before: Locals) -> tuple[Locals, Locals]:
        """One timestep: the local variables after it, and those that the statements after the loop read."""
        passes = head[1] - self._starts_before if head else 0
        if passes < 0:  # it was made before the loop
            return before, {name: value for name, value in before.items() if value is not ABSENT}
        return self._pass(before, head[0][passes] if self.loop.reads_item else None)

    # -- the parts of forward() -----------------------------------------------------------------------------------

    def _arguments(self, inputs: InputBatch) -> tuple[Tensor, dict[str, Any]]:
        x = inputs.values if self.time_dim is None else inputs.values.transpose(0, self.time_dim)
        return x, call_keywords(self.model, x, inputs.length or inputs.timesteps)

    def _results(self, returned: Any) -> list[Tensor | None]:
        return results(returned, self.adapter.output)

    def _call(self, inputs: InputBatch) -> Any:
        x, keywords = self._arguments(inputs)
        return self.model(x, **keywords)

    def _enter(self, inputs: InputBatch) -> tuple[Locals, list[Any]]:
        x, keywords = self._arguments(inputs)
        entered = self.loop.enter((self.model, x), keywords)
        if entered is None:
            raise ModelRefused(
                f"{type(self.model).__name__}.forward returned before it came to its time loop, {self.loop}.",
                "Let every input run through the loop.",
            )
        variables, iterable = entered
        return variables, [_plain(item) for item in iterable]

    def _pass(self, before: Locals, item: Any) -> tuple[Locals, Locals]:
        """One pass: the local variables after it, and those that the statements after the loop read."""
        variables = {self._own_name: self.model}
        for name, value in before.items():
            if value is not ABSENT:
                variables[name] = map_tensors(Tensor.clone if name in self._changed_by_pass else _itself, value)
        records: dict[str, list[Any]] = {name: [] for name in self._records}
        after = self.loop.step({**variables, **records}, item)
        for name in self._records:
            if after.get(name) is not records[name] or len(records[name]) != 1:
                raise ModelRefused(
                    f"a pass through {self.loop} appended {len(records[name])} values to {name}, and one before.",
                    "Append to it once in every timestep.",
                )
        return {name: value for name, value in after.items() if name not in self._records}, after

    def _returned(self, variables: Locals, t: int) -> list[Tensor | None]:
        """What ``forward`` returns if the loop ends after timestep ``t``. Records hold this timestep only."""
        given = self._behind(variables)
        for name in self._changed_by_rest & given.keys():
            given[name] = map_tensors(Tensor.clone, given[name])
        return self._results(self.loop.leave(given, 1 if self._records else t - self._starts_before))

    def _behind(self, variables: Locals) -> Locals:
        """The variables that the statements after the loop read."""
        read = {name: value for name, value in variables.items() if name in self.loop.read_after}
        return {self._own_name: self.model, **read}

    @property
    def _variables(self) -> tuple[str, ...]:
        """The local variables that the rows carry."""
        code = self.loop.source.function.__code__
        local = {*code.co_varnames, *code.co_cellvars} - {self._own_name}
        return tuple(sorted(self.loop.carried & local - self._records))

    @property
    def names(self) -> tuple[str, ...]:
        return (*(("items", "timestep") if self._counts else ()), *self._variables)

    @property
    def _own_name(self) -> str:
        return self.loop.source.function.__code__.co_varnames[0]

    # -- the first look -------------------------------------------------------------------------------------------

    def study(self, few: InputBatch, more: InputBatch) -> bool:
        """Find out from two small batches what the loop carries, and how the answer is made of its timesteps.

        Returns:
            Whether the loop runs over the timesteps of input in this layout.

        Raises:
            ModelRefused: it is not a loop over timesteps, or its answers cannot be followed.
        """
        with self._fresh():
            counts = [self._watch(few)]
        with self._fresh():
            counts.append(len(self._enter(more)[1]) + self._starts_before)
        if self.time_dim is not None and counts != [few.length] * 2:
            return False
        if counts[0] != counts[1]:
            raise ModelRefused(
                f"the number of passes through {self.loop} depends on the input ({counts[0]} and {counts[1]}).",
                "If it runs over a time axis of the input, pass input='sequence' (and time_dim).",
            )
        self.timesteps = counts[0]
        found = self._find_items(few, more)
        if found is None:  # what is returned is not a simple function of the records: keep the whole records
            self._records = frozenset()
            found = self._find_items(few, more)
        kind = type(self.model).__name__
        if not found or found[0].position != 0:
            with self._fresh():
                returned = self._call(few)
            first = returned[0] if isinstance(returned, tuple) and returned else returned
            what = f"a tensor {tuple(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
            raise ModelRefused(
                f"what {kind}.forward returns first, {what}, is neither one output for each timestep, [T, N, ...] or "
                "[N, T, ...], nor one answer [N, ...] of the same shape for any number of timesteps.",
                "Return such a tensor first.",
            )
        self._items = found
        made_by = found[0].made_by
        self.answer, self.cumulative = (None, False) if made_by == "stack" else (made_by, made_by == "last")
        return True

    def do_without(self, name: str, few: InputBatch) -> bool:
        """Leave a variable at its first value, if the first tensor that ``forward`` returns does not depend on it.

        A count of all spikes, kept beside the answer, has no rows. Other returned tensors that depend on it are
        dropped.
        """
        if name not in self._variables:
            return False
        before, kept_out = self._items, self._kept_out
        _, wanted = self._try(few)
        self._kept_out |= {name}
        for poison in POISONS:
            _, found = self._try(few, (name, poison))
            self._items = [
                item
                for item in self._items
                if all(same(a[item.position], b[item.position]) for (a, _), (b, _) in zip(wanted, found, strict=True))
            ]
        if self._items and self._items[0].position == 0:
            return True
        self._items, self._kept_out = before, kept_out
        return False

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        with isolated(self.model):
            torch.manual_seed(_SEED)
            self.adapter.reset()
            yield

    def _watch(self, inputs: InputBatch) -> int:
        """Run the loop once and find the variables that it records in or changes in place; the number of its passes."""
        with recording_calls(self.model, self.adapter.neurons) as before:
            variables, items = self._enter(inputs)
        own = self._own_name
        passes = []
        records = {name for name in self._records if type(variables.get(name)) is list and not variables[name]}
        for t, item in enumerate(items, start=1):
            held = {name: tensors(value) for name, value in variables.items()}
            versions = {name: [tensor._version for tensor in value] for name, value in held.items()}
            with recording_calls(self.model, self.adapter.neurons) as calls:
                variables = self.loop.step({own: self.model, **variables}, item)
            passes.append(calls)
            self._changed_by_pass |= {n for n, v in held.items() if [tensor._version for tensor in v] != versions[n]}
            records = {name for name in records if len(variables[name]) == t}
        refuse_other_loops(self.model, self.loop, passes)
        in_loop = {call.neuron for calls in passes for call in calls}
        self._starts_before = bool(in_loop) and in_loop <= {call.neuron for call in before}
        self._records = frozenset() if self._starts_before else frozenset(records)
        return len(items) + self._starts_before

    def _find_items(self, few: InputBatch, more: InputBatch) -> list[_Item] | None:
        """How each returned tensor is made of the timesteps; ``None`` if the whole records must be kept."""
        own, steps = self._try(few)
        with self._fresh():
            own_of_more = self._results(self._call(more))
        found = []
        for position, (tensor, other) in enumerate(zip(own, own_of_more, strict=True)):
            if tensor is None or other is None or tensor.ndim != other.ndim:
                continue
            row_dims = [d for d in range(tensor.ndim) if tensor.shape[d] != other.shape[d]]
            if len(row_dims) == 1:
                item = self._make_item(position, tensor, row_dims[0], steps)
                if item is None:
                    return None
                if row_dims[0] == (1 if item.time_dim == 0 else 0):
                    found.append(item)
        return found

    def _make_item(
        self, position: int, own: Tensor, row_dim: int, steps: list[tuple[list[Tensor | None], Locals]]
    ) -> _Item | None:
        timesteps = len(steps)
        made = [returned[position] for returned, _ in steps]
        first, last = made[0], made[-1]
        if first is None or last is None or last.ndim != own.ndim:
            return None
        time_dims = [d for d in range(own.ndim) if d != row_dim and own.shape[d] == timesteps] if own.ndim > 2 else []
        for d in time_dims:  # a record of all timesteps, made before the loop and filled in it
            if all(
                m is not None and m.shape == own.shape and same(m.select(d, t), own.select(d, t))
                for t, m in enumerate(made)
            ):
                return _Item(position, d, whole=True)
        for d in time_dims:  # a record that grows, or that holds this timestep only
            if first.shape[d] == 1 and all(first.shape[e] == own.shape[e] for e in range(own.ndim) if e != d):
                return _Item(position, d)
        if last.shape != own.shape:
            return None
        if any(m is None or m.shape != own.shape for m in made):
            return None
        made_by = "last"
        if self._records:
            with self._fresh():
                made_by = self._aggregate(position, steps[-1][1])
            if made_by == "last" and not agree(last, own):
                return None  # it is made of something other than records, and depends on their number
        return _Item(position, made_by=made_by) if made_by else None

    def _aggregate(self, position: int, variables: Locals) -> str | None:
        """How an answer is made of those to single timesteps, found with made-up records; ``None`` if not simply."""
        timesteps = 5  # any number: the question is what the statements after the loop do with a list
        records = {n: [map_tensors(_made_up, variables[n][0]) for _ in range(timesteps)] for n in self._records}
        try:
            answer = self._answer({**variables, **records}, timesteps, position)
            singles = [
                self._answer({**variables, **{name: [record[t]] for name, record in records.items()}}, 1, position)
                for t in range(timesteps)
            ]
        except Exception:  # they depend on the length of the list
            return None
        if answer is None or any(single is None or single.shape != answer.shape for single in singles):
            return None
        stacked = torch.stack([single for single in singles if single is not None])
        return next(iter(matching_aggregates(stacked, answer)), None)

    def _answer(self, variables: Locals, passes: int, position: int) -> Tensor | None:
        """One of the returned tensors if the loop ends after ``passes``, from copies of the variables."""
        given = map_tensors(Tensor.clone, self._behind(variables))
        return self._results(self.loop.leave(given, passes))[position]

    def _try(
        self, inputs: InputBatch, poison: tuple[str, float] | None = None
    ) -> tuple[list[Tensor | None], list[tuple[list[Tensor | None], Locals]]]:
        """What the model returns, and what it would return after each pass, with the local variables at that point."""
        with self._fresh():
            own = self._results(self._call(inputs))
        steps = []
        with self._fresh():
            values = self.start(inputs)
            if poison is not None:
                place = self.names.index(poison[0])
                values[place] = poisoned(values[place], poison[1])
            for t in range(self.timesteps or 0):
                head, before = self._split(values)
                after, given = self._timestep(head, before)
                values = [*([head[0], t + 1] if head else []), *self._carried(after, before)]
                state = {name: map_tensors(Tensor.clone, given[name]) for name in given}
                with isolated(self.model):  # the statements after the loop may reset the neurons
                    steps.append((self._returned_watching(given, t + 1), state))
        return own, steps

    def _returned_watching(self, variables: Locals, t: int) -> list[Tensor | None]:
        """:meth:`_returned` after timestep ``t``, noting which variables the statements after the loop change."""
        given = {n: map_tensors(Tensor.clone, value) for n, value in variables.items() if n in self.loop.read_after}
        held = {name: tensors(value) for name, value in given.items()}
        try:
            returned = self._returned(given, t)
        except SeennError:
            raise
        except Exception as error:
            raise ModelRefused(
                f"the statements after {self.loop} cannot run if it ends after timestep {t}: "
                f"{type(error).__name__}: {error}.",
                "Write them so that they work for any number of timesteps. If the first ones are a warm-up, add the "
                "outputs up from zeros (out = out + spk), and let no row leave before: "
                "policy=FixedPolicy(first) & ConfidencePolicy().",
            ) from error
        self._changed_by_rest |= {name for name, value in held.items() if any(tensor._version for tensor in value)}
        return returned


def find_loop_stepper(adapter: ModelAccess, few: InputBatch, more: InputBatch) -> LoopStepper | None:
    """The stepper for a model with a time loop inside ``forward``; ``None`` if it has none.

    Args:
        adapter: the adapter of the model.
        few: a small batch.
        more: one with another number of rows.

    Raises:
        ModelRefused: it has a time loop that cannot be split into timesteps.
        InputError: the model raises an error that does not come from the shape of its input.
    """
    axes = (few.time_dim, 1 - few.time_dim) if few.sequence else (None,)
    for time_dim in axes:
        x = few.values if time_dim is None else few.values.transpose(0, time_dim)
        try:
            keywords = call_keywords(adapter.model, x, few.length or few.timesteps)
            with isolated(adapter.model):
                adapter.reset()
                loop = find_time_loop(adapter.model, adapter.neurons, lambda x=x, k=keywords: adapter.model(x, **k))
        except SeennError:
            raise
        except Exception as error:
            if isinstance(error, MISFITS):
                continue  # the model takes no such input in one call: it makes single timesteps, or has another layout
            kind, row = type(adapter.model).__name__, tuple(few.row_shape)
            raise InputError(f"{kind} cannot run on rows of shape {row}: {type(error).__name__}: {error}.") from error
        if loop is not None:
            stepper = LoopStepper(adapter, loop, time_dim)
            if stepper.study(few, more):
                return stepper
    return None


def _itself(value: Any) -> Any:
    return value


def _made_up(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn_like(tensor)
    return torch.randint_like(tensor, 0, 2)


def _plain(value: Any) -> Any:
    """``value`` as the rows carry it: a shape becomes a tuple of numbers, one of which may be the number of rows."""
    return tuple(value) if isinstance(value, torch.Size) else value
