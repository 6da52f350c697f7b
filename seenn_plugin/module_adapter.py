"""The adapter for networks whose state lies in their modules, or is passed in and handed back as arguments.

Both framework adapters, and a third party's, are a few lines on top of :class:`ModuleAdapter`: how the framework
resets its state, and how the model takes time. What is state, and which dimension holds the rows, is found by
looking (:mod:`seenn_plugin.discovery`), not by a list of classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, Reference, Rows
from .captured_step import CapturedSteps
from .discovery import PROBED_ROWS, discover, left_over
from .errors import InputError, ModelRefused
from .loop_stepper import find_loop_stepper
from .module_state import (
    ABSENT,
    Cell,
    is_occupied,
    isolated,
    map_tensors,
    modules_of,
    occupied,
    tensors,
    undo,
    write,
)
from .probing import probe_rows
from .signature import REQUIRED, call_keywords, state_arguments
from .state_map import Place, StateMap
from .stem_discovery import with_stem
from .stepper import CallStepper, Stepper


@dataclass
class _Kind:
    """How rows of one kind are stepped, and where their state lies."""

    stepper: Stepper
    state_map: StateMap
    captured: CapturedSteps = field(default_factory=CapturedSteps)
    otherwise: _Kind | None = None  # the same while the model does not lie as it did when it was looked at

    def as_it_lies(self) -> _Kind:
        """The same for the model as it lies at this moment: the caller may have registered a hook since."""
        stepper = self.stepper.as_it_lies()
        if stepper is self.stepper:
            return self
        if self.otherwise is None or self.otherwise.stepper is not stepper:
            spots = self.state_map.spots[: len(self.state_map.carried) + len(stepper.names)]
            self.otherwise = _Kind(stepper, replace(self.state_map, spots=spots))
        return self.otherwise


@dataclass
class _Memory:
    """State of some rows: one value for each carried cell of the map, then one for each value of the stepper."""

    kind: _Kind
    values: list[Any]

    @property
    def state_map(self) -> StateMap:
        return self.kind.state_map

    def go_on(self) -> Stepper:
        """How the rows are stepped from here on; what is no longer needed is dropped."""
        self.kind = self.kind.as_it_lies()
        self.values = self.values[: len(self.state_map.spots)]
        return self.kind.stepper


class ModuleAdapter(Adapter):
    """Steps a model by lending it the state of the rows in flight, and taking the state back afterwards.

    Subclasses define :meth:`reset`, :meth:`owns`, and where needed :meth:`run`.
    """

    registers: ClassVar[tuple[str, ...]] = ("_buffers",)
    """Names of the dictionary attributes in which modules register state, entry by entry."""
    is_private: bool = False
    """Whether the model is a copy that nobody else can change."""
    neurons: Collection[nn.Module] = ()
    """The modules of the model that hold state, where :meth:`meet` finds them: by their calls a time loop is found."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.state_arguments = state_arguments(model)
        self._modules: tuple[nn.Module, ...] = ()
        self._fingerprint: Any = None
        self._kinds: dict[Any, _Kind] = {}
        self._advancing = False
        self.fingerprint(modules_of(model))

    def __getstate__(self) -> dict[str, Any]:
        # What was found belongs to the very modules it was found in: a copy looks again.
        return {**self.__dict__, "_modules": (), "_fingerprint": None, "_kinds": {}, "_advancing": False}

    # -- what a framework's adapter fills in ---------------------------------------------------------------------

    def meet(self, modules: tuple[nn.Module, ...]) -> None:
        """Called with all modules of the model, first and whenever they have changed: note those that matter."""

    def reset(self) -> None:
        """Bring the state that lies in the model to its fresh value, as the framework does between two batches."""

    def owns(self, cell: Cell) -> bool:
        """Whether :meth:`reset` may write this cell."""
        return False

    def is_scratch(self, cell: Cell) -> bool:
        """Whether the framework writes this cell anew at every timestep before it reads it."""
        return False

    def writes_nothing(self, module: nn.Module) -> bool:
        """Whether a timestep is known to write no attribute of this module, which then need not be watched."""
        return type(module).__module__.startswith("torch.nn.modules.")

    def fresh_argument(self, default: Any) -> Any:
        """What to pass for a state argument before the first timestep; ``default`` is its default, if it has one."""
        return default

    def step(self, frame: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        """One timestep of the model as it lies: frame ``[n, ...]`` in, outputs ``[n, ...]`` out."""
        result = self.model(frame, **dict(zip(self.state_arguments, arguments, strict=True)))
        return self.split(result, frame.shape[0])

    def run(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        """``k`` timesteps: frames ``[k, n, ...]`` in, outputs ``[k, n, ...]`` out. The state lies in the model.

        May differ from :meth:`run_own` in how, never in what.
        """
        return self.run_own(frames, arguments)

    def run_own(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        """``k`` timesteps as the caller runs the model: here, in a loop of single steps."""
        made = []
        for frame in frames:
            outputs, arguments = self.step(frame, arguments)
            made.append(tuple(output.clone() for output in outputs))  # it may be a state that the model overwrites
        if len(made) == 1:
            return tuple(output.unsqueeze(0) for output in made[0]), arguments
        return tuple(torch.stack(output) for output in zip(*made, strict=True)), arguments

    def quickened(self) -> AbstractContextManager[None]:
        """A context in which the neurons do the same in less time."""
        return nullcontext()

    def takes_time(self) -> bool:
        """Whether the model itself takes a time axis, so that its own full run can be compared with single steps."""
        return False

    def choose_mode(self, inputs: Tensor, sequence: bool) -> None:
        """Called before discovery, in isolation, with a few rows: decide how single steps are made."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All modules of the model, as they were when rows began last."""
        return self._modules

    # -- the four abilities ---------------------------------------------------------------------------------------

    def begin(self, inputs: Tensor, sequence: bool) -> Rows:
        kind = self._kind(inputs, sequence)
        values = self._fresh(kind, inputs)
        if not kind.stepper.takes_frames:  # the rows carry what the loop reads of the input: do not keep it twice
            inputs, sequence = inputs.new_empty(()).expand(inputs.shape[1 if sequence else 0]), False
        return Rows(inputs, sequence, _Memory(kind, values))

    def advance(self, rows: Rows, steps: int = 1) -> tuple[Tensor, ...]:
        stepper: Stepper = rows.memory.go_on()
        if steps == 1 or not stepper.one_at_a_time:
            return self._advance(rows, steps)
        now, memory, capture = rows.now, rows.memory.values, self.capture
        self.capture = None  # the state of a captured step may be written over, and then there is no way back
        try:
            return tuple(map(torch.cat, zip(*(self._advance(rows, 1) for _ in range(steps)), strict=True)))
        except Exception:
            rows.now, rows.memory.values = now, memory
            raise
        finally:
            self.capture = capture

    def _advance(self, rows: Rows, steps: int) -> tuple[Tensor, ...]:
        memory: _Memory = rows.memory
        self._assert_rows(rows)
        frames = rows.frames(steps) if memory.kind.stepper.takes_frames else None
        outputs = None
        # What lies in a model that somebody holds already may be copies: nothing is captured that is only looked at.
        if self.capture is not None and steps == 1 and not is_occupied(self.model):
            with occupied(self.model):
                outputs = memory.kind.captured.advance(self, rows, frames)
        if outputs is None:
            started = rows.youngest > 0
            outputs, values = self.explicit_steps(memory.kind, frames, steps, memory.values, started)
            n = len(rows)
            if any(output.shape[:2] != (steps, n) for output in outputs):
                shapes = [tuple(output.shape) for output in outputs]
                raise ModelRefused(
                    f"{type(self.model).__name__} answered {steps} timestep(s) of {n} rows with outputs of shape "
                    f"{shapes}.",
                    f"An output must be [{steps}, {n}, ...].",
                )
            memory.values = values
        rows.now += steps
        return outputs

    def explicit_steps(
        self, kind: _Kind, frames: Tensor | None, steps: int, values: list[Any], started: bool, quickened: bool = True
    ) -> tuple[tuple[Tensor, ...], list[Any]]:
        """``steps`` timesteps as a function of what the rows carry, which stays as it is.

        Args:
            frames: ``[steps, n, ...]``, if a timestep takes any.
            values: what the rows carry.
            started: whether all of them have made a timestep.
            quickened: whether the neurons may take their short way.

        Returns:
            The outputs, each ``[steps, n, ...]``, and what the rows carry afterwards.
        """
        state_map, stepper = kind.state_map, kind.stepper
        cut = len(state_map.carried)
        lent = [  # what the model changes in place it gets a copy of, so that the rows are whole if it raises
            map_tensors(Tensor.clone, value) if changed else value
            for value, changed in zip(values, state_map.changed_in_place, strict=False)
        ]
        with occupied(self.model), self._lent(state_map, lent, started, watched=state_map.watched):
            with self.quickened() if quickened else nullcontext():
                finish, arguments = stepper.advance(frames, steps, values[cut:])
            after = [store.get(key, ABSENT) for store, key in state_map.written[:cut]]
            outputs = finish()
        return outputs, [*after, *arguments]

    def keep(self, rows: Rows, index: Tensor) -> None:
        memory: _Memory = rows.memory
        # A local variable of a time loop and a buffer of a neuron are often one tensor: it stays one.
        kept: dict[int, Tensor] = {}
        values = []
        for spot, value in zip(memory.state_map.spots, memory.values, strict=True):
            new = kept[id(value)] if id(value) in kept else spot.keep(value, index)
            if isinstance(value, Tensor):
                kept[id(value)] = new
            values.append(new)
        rows.keep(index)
        memory.values = values

    def place(self, rows: Rows, index: Tensor, inputs: Tensor) -> None:
        memory: _Memory = rows.memory
        stepper = memory.go_on()
        if self.why_not_refillable(rows):
            raise ModelRefused(
                f"fresh rows cannot join rows in flight: {self.why_not_refillable(rows)}.",
                "Run them as a batch of their own.",
            )
        fresh = self._fresh(memory.kind, inputs) if stepper.starts_from_input else []
        if not stepper.takes_frames:
            inputs = inputs.new_empty(()).expand(index.numel())
        rows.place(index, inputs)
        memory.values = [
            spot.refill(value, index, fresh[i] if fresh else spot.fresh)
            for i, (spot, value) in enumerate(zip(memory.state_map.spots, memory.values, strict=True))
        ]

    def why_not_refillable(self, rows: Rows) -> str:
        memory: _Memory = rows.memory
        return memory.state_map.not_refillable

    def inspect(self, rows: Rows) -> list[Tensor]:
        memory: _Memory = rows.memory
        seen = self._seen(memory.state_map, memory.values, len(rows))
        return [tensor.clone() for tensor in seen]  # a captured step may write its memory anew

    def reference(self, inputs: Tensor, sequence: bool, timesteps: int) -> Reference:
        kind, n = self._kind(inputs, sequence), inputs.shape[1 if sequence else 0]
        with isolated(self.model):
            self.reset()
            own = kind.stepper.own_run(inputs, sequence, timesteps)
            values = [*(cell.read() for cell in kind.state_map.carried), *own.arguments]
            state = self._seen(kind.state_map, values, n) if own.keeps_state else None
        return Reference(own.outputs, own.timesteps, state)

    def state(self, rows: Rows) -> dict[str, list[Tensor]]:
        """The state of the rows, by name; what is carried only so as not to be computed again is none."""
        memory: _Memory = rows.memory
        derived = memory.kind.stepper.derived
        pairs = zip(memory.state_map.spots, memory.values, strict=True)
        return {spot.label: tensors(value) for spot, value in pairs if spot.label not in derived}

    @staticmethod
    def _seen(state_map: StateMap, values: list[Any], n: int) -> list[Tensor]:
        return [t for spot, v in zip(state_map.spots, values, strict=True) for t in spot.seen_by_rows(v, n)]

    def answer(self, inputs: Tensor, sequence: bool) -> str | None:
        return self._kind(inputs, sequence).stepper.answer

    def own_timesteps(self, inputs: Tensor, sequence: bool) -> int | None:
        return self._kind(inputs, sequence).stepper.timesteps

    def explain(self) -> dict[str, str]:
        if not self._kinds:
            return {}
        found = next(reversed(self._kinds.values())).as_it_lies()
        not_refillable = found.state_map.not_refillable
        return {
            **found.stepper.explain(),
            "state": found.state_map.describe(),
            "fresh rows": not_refillable or "can join rows in flight",
            **({"captured steps": found.captured.describe(self.capture)} if self.capture is not None else {}),
        }

    def forget(self) -> None:
        """Look at the model again before it is next used: it was changed in a way that a fingerprint does not show."""
        self._fingerprint = None

    def places_of_state(self) -> list[Place]:
        """The places that a timestep or a reset writes, in all kinds of rows that were looked at."""
        maps = [kind.state_map for kind in self._kinds.values()]
        return [place for m in maps for place in (*m.written, *(place for place, _, _ in m.unread))]

    # -- how ------------------------------------------------------------------------------------------------------

    def choose_stepper(self, few: Tensor, more: Tensor, sequence: bool) -> Stepper:
        """How this kind of input is stepped, found on two small batches with different numbers of rows."""
        one_step = any(default is REQUIRED for default in self.state_arguments.values())
        if not self.neurons or one_step or self.takes_time():
            return CallStepper(self)
        return find_loop_stepper(self, few, more, sequence) or CallStepper(self)

    def _kind(self, inputs: Tensor, sequence: bool) -> _Kind:
        """What is known of rows of this shape; looked for once, and again if the model changed."""
        row = inputs.shape[2:] if sequence else inputs.shape[1:]
        modules = modules_of(self.model)
        fingerprint = (modules, self.fingerprint(modules))
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._kinds.clear()
        key = (row, inputs.dtype, inputs.device, sequence, self.timesteps, self.time_dim)
        found = self._kinds.get(key)
        if found is not None and sequence and found.stepper.timesteps not in (None, len(inputs)):
            key = (*key, len(inputs))  # a loop over the time axis is made for one length of it
            found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = self._look_at(inputs, sequence)
        return found.as_it_lies()

    def _look_at(self, inputs: Tensor, sequence: bool) -> _Kind:
        few, more = (probe_rows(inputs, sequence, rows) for rows in PROBED_ROWS)
        with isolated(self.model):
            self.choose_mode(few, sequence)
        stepper = self.choose_stepper(few, more, sequence)
        if not sequence:
            stepper = with_stem(self, stepper, few, more)
        try:
            return _Kind(stepper, discover(self, stepper, few, more, sequence))
        except InputError as error:
            if sequence and self.runs_whole(few, sequence):
                raise ModelRefused(
                    f"{type(self.model).__name__} runs on whole sequences, not on single timesteps: {error}",
                    "Use neurons and layers that make one timestep at a time.",
                ) from error
            raise

    def runs_whole(self, inputs: Tensor, sequence: bool) -> bool:
        x = inputs.transpose(0, self.time_dim) if sequence else inputs
        try:
            with isolated(self.model):
                self.reset()
                self.model(x, **call_keywords(self.model, x, len(inputs) if sequence else self.timesteps))
        except Exception:
            return False
        return True

    def fingerprint(self, modules: tuple[nn.Module, ...]) -> Any:
        if modules != self._modules:
            self._modules = modules
            self.meet(modules)
        return None

    def split(self, result: Any, n: int) -> tuple[tuple[Tensor, ...], list[Any]]:
        """Tell the outputs of one step from the states that it hands back."""
        states, name = len(self.state_arguments), type(self.model).__name__
        items = list(result) if isinstance(result, tuple | list) else [result]
        arguments: list[Any] = []
        if states:
            if len(items) == 2 and isinstance(items[1], tuple | list) and len(items[1]) == states:
                arguments = list(items[1])
            elif len(items) >= states and isinstance(result, tuple | list):
                arguments = items[len(items) - states :]
            else:
                raise ModelRefused(
                    f"{name}.forward takes the states {list(self.state_arguments)} and hands back {len(items)} "
                    "value(s).",
                    "Return the output followed by the states, in the order in which forward takes them.",
                )
        outputs = [item for item in items if isinstance(item, Tensor)]
        if not outputs or not isinstance(items[0], Tensor):
            raise ModelRefused(
                f"{name} returned {type(items[0]).__name__}.",
                "Its first output must be a tensor with one row per sample.",
            )
        if outputs[0].ndim < 2 or outputs[0].shape[0] != n:
            raise ModelRefused(
                f"one timestep of {n} rows made {name} return {tuple(outputs[0].shape)}, which does not start "
                f"with [{n}, ...].",
                "One call must be one timestep. A model that runs its whole time loop inside forward() is not "
                "taken yet: "
                "wrap the module that makes one step.",
            )
        return tuple(output for output in outputs if output.ndim >= 1 and output.shape[0] == n), arguments

    def fresh_arguments(self) -> list[Any]:
        return [self.fresh_argument(default) for default in self.state_arguments.values()]

    def _fresh(self, kind: _Kind, inputs: Tensor) -> list[Any]:
        """Fresh values for the carried cells and for the stepper."""
        state_map = kind.state_map
        with occupied(self.model):
            # Lend copies: reset() may write in place. What it owns it need not see: a large leftover is not copied.
            before = [
                spot.fresh if spot.owned else cell.read()
                for spot, cell in zip(state_map.spots, state_map.carried, strict=False)
            ]
            copies = [map_tensors(lambda t: t.detach().clone(), value) for value in before]
            watched = state_map.watched if kind.stepper.starts_from_input else ()
            with self._lent(state_map, copies, started=False, watched=watched):
                self.reset()
                arguments = kind.stepper.start(inputs)
                values = [*(cell.read() for cell in state_map.carried), *arguments]
        for spot, value in zip(state_map.spots, values, strict=True):
            if not spot.owned and spot.row_tensors(value):
                raise left_over(spot.label, spot.row_tensors(value)[0])
        return values

    @contextmanager
    def _lent(
        self, state_map: StateMap, values: list[Any], started: bool, watched: Sequence[dict[Any, Any]]
    ) -> Iterator[None]:
        """Put ``values`` into the carried cells; whatever happens, give the caller's own values back.

        Raises:
            ModelRefused: something else was written in the ``watched`` stores.
        """
        if self._advancing:
            raise RuntimeError("this model is being advanced already: by itself, or by one of its forward hooks")
        own = [(store, key, store.get(key, ABSENT)) for store, key in state_map.written]
        before = [dict(store) for store in watched]
        self._advancing = True
        failed = True
        try:
            for (store, key), value in zip(state_map.written[: len(values)], values, strict=True):
                write(store, key, value)
            for store, key, value in own[len(values) :]:
                if isinstance(value, list | dict):  # a log that is appended to: to a copy, and not to the caller's
                    write(store, key, map_tensors(_itself, value))
            for (store, key), fresh, poison in state_map.unread:
                if started:
                    store[key] = poison
                elif fresh is not ABSENT:
                    store[key] = map_tensors(Tensor.clone, fresh)
            yield
            failed = False
        finally:
            self._advancing = False
            for store, key, value in own:
                write(store, key, value)
            strays = [key for store, saved in zip(watched, before, strict=True) for key in undo(store, saved)]
            if strays and not failed:
                raise ModelRefused(
                    f"{type(self.model).__name__} wrote {strays}, which it did not write in the timesteps that "
                    "were looked "
                    "at first, so that its rows cannot be followed.",
                    "Keep all state in places that every timestep writes.",
                )

    def _assert_rows(self, rows: Rows) -> None:
        # The frameworks silently re-initialise a state whose shape does not match: never let that happen.
        memory: _Memory = rows.memory
        started = rows.now > 0
        for spot, value in zip(memory.state_map.spots, memory.values, strict=True):
            for size in spot.row_counts(value):
                if size != len(rows) and (started or size != 1):
                    raise AssertionError(f"{spot.label} holds {size} rows, not {len(rows)}")


def _itself(value: Any) -> Any:
    return value
