"""The adapter for networks whose state lies in their modules, or is passed in and returned as arguments.

The adapters of the frameworks, and a third party's, are a few lines on top of :class:`ModuleAdapter`: how the framework
resets its state, and how the model takes time. What is state, and which dimension holds the rows, is found by running
the model (:mod:`seenn_plugin.discovery`), not by a list of classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import unwrap
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from ..discovery.discover import PROBED_ROWS, discover
from ..discovery.probing import probe_rows
from ..discovery.stem_discovery import with_stem
from ..errors import InputError, ModelRefused
from ..inputs import InputBatch
from ..state.cells import Cell, write
from ..state.change_detection import StructureVersion
from ..state.isolation import isolated, occupied, undo
from ..state.layout import Place, StateLayout
from ..state.settings import PlainSettings
from ..state.values import ABSENT, map_tensors, tensors
from ..stepping.answer import OutputChoice, picked, refuse_whole_numbers
from ..stepping.loop_stepper import find_loop_stepper
from ..stepping.signature import REQUIRED, call_keywords, own_resets, state_arguments
from ..stepping.stepper import CallStepper, Outputs, Stepper
from .contract import Adapter, Reference, Rows

_MOST_STATES: Final = 9


class _Anything(dict[Any, Tensor]):
    """A dictionary that holds the same tensor under any key, until others are known."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def __missing__(self, key: Any) -> Tensor:
        return self.tensor


@dataclass(eq=False)
class RowKind:
    """How rows of one kind are stepped, and where their state lies."""

    stepper: Stepper
    layout: StateLayout
    _for_current_hooks: RowKind | None = None

    def for_current_hooks(self) -> RowKind:
        """The kind to use with the hooks that the model has now: a hook of the caller may need to see every call."""
        stepper = self.stepper.for_current_hooks()
        if stepper is self.stepper:
            return self
        if self._for_current_hooks is None or self._for_current_hooks.stepper is not stepper:
            specs = self.layout.specs[: len(self.layout.carried) + len(stepper.names)]
            self._for_current_hooks = RowKind(stepper, replace(self.layout, specs=specs))
        return self._for_current_hooks


@dataclass
class ModuleState:
    """The state of some rows: one value for each carried cell of the layout, then one for each value of the stepper."""

    kind: RowKind
    values: list[Any]

    @property
    def layout(self) -> StateLayout:
        return self.kind.layout

    def for_current_hooks(self) -> RowKind:
        """How the rows are stepped from here on. Values that are no longer needed are dropped."""
        self.kind = self.kind.for_current_hooks()
        self.values = self.values[: len(self.layout.specs)]
        return self.kind


class ModuleAdapter(Adapter):
    """Steps a model: puts the state of the rows into its modules, runs it, and takes the state out again.

    Subclasses define :meth:`reset`, :meth:`owns`, and where needed :meth:`run`.
    """

    registers: ClassVar[tuple[str, ...]] = ("_buffers",)
    """Names of the dictionary attributes of modules whose entries may be state."""
    is_private: bool = False
    """Whether the model is a copy that only this library can change."""
    neurons: Collection[nn.Module] = ()
    """The modules of the model that hold state, as :meth:`modules_changed` finds them. Their calls show a time loop."""
    output: OutputChoice | None = None
    """Which part of what the model returns is its answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.state_arguments: dict[str, Any] = state_arguments(model)
        self._argument_forms: dict[str, Any] = {}
        self._kinds: dict[Any, RowKind] = {}
        self._kinds_version = -1
        self._met: tuple[nn.Module, ...] = ()
        self._settings = PlainSettings(())
        self._advancing = False
        self.structure_version()

    def __getstate__(self) -> dict[str, Any]:
        # What was found holds for these modules only: a copy starts anew.
        new = {"_structure": StructureVersion(), "_kinds": {}, "_kinds_version": -1, "_met": (), "_advancing": False}
        return {**self.__dict__, **new, "_settings": PlainSettings(())}

    # -- what a framework's adapter fills in ---------------------------------------------------------------------

    def modules_changed(self, modules: tuple[nn.Module, ...]) -> None:
        """Called with all modules of the model, first and whenever they have changed: note those that matter."""

    def run_settings(self, modules: tuple[nn.Module, ...]) -> Any:
        if modules != self._met:
            _refuse_managed(modules)
            self._met = modules
            self.modules_changed(modules)
            known = ("torch.", f"{self.framework}.")
            self._settings = PlainSettings(m for m in modules if not type(m).__module__.startswith(known))
        # The code of forward() may be replaced while the model lives: by a notebook's autoreload, or by hand.
        code = getattr(unwrap(getattr(self.model.forward, "__func__", self.model.forward)), "__code__", None)
        return code, self._settings.values()

    def reset(self) -> None:
        """Bring the state in the model to its fresh value, as users of the framework do between two batches."""

    def own_reset(self) -> None:
        """Call the methods by which the model's own classes reset their state, if they have any."""
        known = ("torch.", f"{self.framework}.")
        for module in self.modules:
            if type(module).__module__.startswith(known):
                continue
            for method in own_resets(module):
                method()

    def owns(self, cell: Cell) -> bool:
        """Whether :meth:`reset` may write this cell."""
        return False

    def is_scratch(self, cell: Cell) -> bool:
        """Whether the framework writes this cell at every timestep before it reads it."""
        return False

    def writes_nothing(self, module: nn.Module) -> bool:
        """Whether a timestep is known to write no attribute of this module, so that it need not be watched."""
        return type(module).__module__.startswith("torch.nn.modules.")

    def fresh_argument(self, default: Any) -> Any:
        """The value of a state argument before the first timestep, from its default, or :data:`REQUIRED`."""
        return default

    def step(self, frame: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        """One timestep with the state that the modules hold: frame ``[n, ...]`` in, outputs ``[n, ...]`` out."""
        result = self.model(frame, **dict(zip(self.state_arguments, arguments, strict=True)))
        return self.split(result, frame.shape[0])

    def run(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        """``k`` timesteps with the state that the modules hold: frames ``[k, n, ...]`` in, outputs ``[k, n, ...]`` out.

        May compute in another way than :meth:`run_own`, with the same result.
        """
        return self.run_own(frames, arguments)

    def run_own(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        """``k`` timesteps as users run the model: here, in a loop of single steps."""
        made = []
        for frame in frames:
            outputs, arguments = self.step(frame, arguments)
            made.append(tuple(output.clone() for output in outputs))  # an output may be state that is overwritten
        if len(made) == 1:
            return tuple(output.unsqueeze(0) for output in made[0]), arguments
        return tuple(torch.stack(output) for output in zip(*made, strict=True)), arguments

    def failure_hint(self) -> str:
        """What may be the reason if the model cannot make one timestep, a sentence."""
        required = [name for name, default in self.state_arguments.items() if default is REQUIRED]
        if required:
            return (
                f"forward() requires {', '.join(required)}: states are tried as empty tensors, or tuples and "
                "dictionaries of them; what is no state is given a default, or filled in by a module around this one."
            )
        return "A model that can only compute all its timesteps at once cannot be stepped."

    def fused_neurons(self) -> AbstractContextManager[None]:
        """A context in which neurons compute the same in less time."""
        return nullcontext()

    def takes_time(self) -> bool:
        """Whether the model itself takes a time axis, so that its own full run can be compared with single steps."""
        return False

    def choose_mode(self, inputs: InputBatch) -> None:
        """Called before discovery, in isolation, with a few rows: decide how single steps are made."""

    # -- the four abilities ---------------------------------------------------------------------------------------

    def begin(self, inputs: InputBatch) -> Rows:
        kind = self._kind(inputs)
        values = self._fresh(kind, inputs)
        return Rows(inputs if kind.stepper.takes_frames else _rows_only(inputs), ModuleState(kind, values))

    def advance(self, rows: Rows, steps: int = 1) -> Outputs:
        state: ModuleState = rows.state
        kind = state.for_current_hooks()
        if steps == 1 or not kind.stepper.one_at_a_time:
            return self._advance(rows, steps)
        now, values = rows.now, state.values
        try:
            return tuple(map(torch.cat, zip(*(self._advance(rows, 1) for _ in range(steps)), strict=True)))
        except Exception:
            rows.now, state.values = now, values
            raise

    def _advance(self, rows: Rows, steps: int) -> Outputs:
        state: ModuleState = rows.state
        self.assert_row_counts(rows)
        frames = rows.frames(steps) if state.kind.stepper.takes_frames else None
        outputs, values = self.explicit_steps(state.kind, frames, steps, state.values, started=rows.youngest > 0)
        n = len(rows)
        if any(output.shape[:2] != (steps, n) for output in outputs):
            shapes = [tuple(output.shape) for output in outputs]
            raise ModelRefused(
                f"{type(self.model).__name__} answered {steps} timestep(s) of {n} rows with outputs of shape {shapes}.",
                f"An output must be [{steps}, {n}, ...].",
            )
        state.values = values
        rows.now += steps
        return outputs

    def explicit_steps(
        self, kind: RowKind, frames: Tensor | None, steps: int, values: list[Any], started: bool, fused: bool = True
    ) -> tuple[Outputs, list[Any]]:
        """``steps`` timesteps as a function of the rows' values, which it does not change.

        Args:
            kind: the kind of the rows.
            frames: ``[steps, n, ...]``, if a timestep takes any.
            values: the values of the rows' state.
            started: whether all rows have made a timestep.
            fused: whether neurons may use their fused step.

        Returns:
            The outputs, each ``[steps, n, ...]``, and the values afterwards.
        """
        layout, stepper = kind.layout, kind.stepper
        cut = len(layout.carried)
        own = [  # the model gets copies of what it changes in place, so that the rows stay valid if it raises
            map_tensors(Tensor.clone, value) if changed else value
            for value, changed in zip(values, layout.changed_in_place, strict=False)
        ]
        with occupied(self.model), self._state_in_model(layout, own, started, watched=layout.watched):
            with self.fused_neurons() if fused else nullcontext():
                finish, arguments = stepper.advance(frames, steps, values[cut:])
            after = [store.get(key, ABSENT) for store, key in layout.written[:cut]]
            outputs = finish()
        return outputs, [*after, *arguments]

    def keep(self, rows: Rows, index: Tensor) -> None:
        state: ModuleState = rows.state
        # A local variable of a time loop and a buffer of a neuron are often the same tensor. It stays the same.
        kept: dict[int, Tensor] = {}
        values = []
        for spec, value in zip(state.layout.specs, state.values, strict=True):
            new = kept[id(value)] if id(value) in kept else spec.keep(value, index)
            if isinstance(value, Tensor):
                kept[id(value)] = new
            values.append(new)
        rows.keep(index)
        state.values = values

    def place(self, rows: Rows, index: Tensor, inputs: InputBatch) -> None:
        state: ModuleState = rows.state
        kind = state.for_current_hooks()
        if blocker := self.refill_blocker(rows):
            raise ModelRefused(f"new rows cannot join active rows: {blocker}.", "Run them as a batch of their own.")
        fresh = self._fresh(kind, inputs) if kind.stepper.starts_from_input else []
        rows.place(index, inputs if kind.stepper.takes_frames else _rows_only(inputs))
        state.values = [
            spec.refill(value, index, fresh[i] if fresh else spec.fresh)
            for i, (spec, value) in enumerate(zip(state.layout.specs, state.values, strict=True))
        ]

    def refill_blocker(self, rows: Rows) -> str:
        state: ModuleState = rows.state
        return state.layout.refill_blocker

    def state_tensors(self, rows: Rows) -> list[Tensor]:
        state: ModuleState = rows.state
        seen = self._seen(state.layout, state.values, len(rows))
        return [tensor.clone() for tensor in seen]  # a compiled step may write its memory again

    def reference(self, inputs: InputBatch, timesteps: int) -> Reference:
        kind = self._kind(inputs)
        with isolated(self.model):
            self.reset()
            for spec, cell in zip(kind.layout.specs, kind.layout.carried, strict=False):
                if spec.row_tensors(
                    cell.read()
                ):  # left by an earlier run of the caller's, in a place of the model's own
                    cell.write(map_tensors(Tensor.clone, spec.fresh))
            own = kind.stepper.own_run(inputs, timesteps)
            values = [*(cell.read() for cell in kind.layout.carried), *own.arguments]
            state = self._seen(kind.layout, values, len(inputs)) if own.keeps_state else None
        return Reference(own.outputs, own.timesteps, state)

    def named_state(self, rows: Rows) -> dict[str, list[Tensor]]:
        """The state of the rows, by label. Values that are carried to be computed only once are left out."""
        state: ModuleState = rows.state
        derived = state.kind.stepper.derived
        pairs = zip(state.layout.specs, state.values, strict=True)
        return {spec.label: tensors(value) for spec, value in pairs if spec.label not in derived}

    @staticmethod
    def _seen(layout: StateLayout, values: list[Any], n: int) -> list[Tensor]:
        return [t for spec, v in zip(layout.specs, values, strict=True) for t in spec.seen_by_rows(v, n)]

    def answer(self, inputs: InputBatch) -> str | None:
        return self._kind(inputs).stepper.answer

    def neuron_layers(self) -> Collection[nn.Module]:
        if self.neurons:
            return self.neurons
        # A module that holds others does more than a neuron does.
        carried = {cell.module for kind in self._kinds.values() for cell in kind.layout.carried}
        return [module for module in self.model.modules() if module in carried and not any(module.children())]

    def makes_chunks(self, inputs: InputBatch) -> bool:
        return not self._kind(inputs).stepper.one_at_a_time

    def own_timesteps(self, inputs: InputBatch) -> int | None:
        return self._kind(inputs).stepper.timesteps

    def explain(self) -> dict[str, str]:
        kind = self.latest_kind()
        if kind is None:
            return {}
        return {
            **kind.stepper.explain(),
            "state": kind.layout.describe(),
            "new rows": kind.layout.refill_blocker or "can join active rows",
        }

    def latest_kind(self) -> RowKind | None:
        """The kind of rows that was found last; ``None`` before any was."""
        return next(reversed(self._kinds.values())).for_current_hooks() if self._kinds else None

    def forget(self) -> None:
        """Discover the model again before its next use: it was changed in a way that its structure does not show."""
        self._structure.bump()

    def places_of_state(self) -> list[Place]:
        """The places that a timestep or a reset writes, for all kinds of rows that were found."""
        maps = [kind.layout for kind in self._kinds.values()]
        return [place for m in maps for place in (*m.written, *(place for place, _, _ in m.unread))]

    # -- how ------------------------------------------------------------------------------------------------------

    def choose_stepper(self, few: InputBatch, more: InputBatch) -> Stepper:
        """How this kind of input is stepped, found on two small batches with different numbers of rows."""
        one_step = any(default is REQUIRED for default in self.state_arguments.values())
        if not self.neurons or one_step or self.takes_time():
            return CallStepper(self)
        return find_loop_stepper(self, few, more) or CallStepper(self)

    def _kind(self, inputs: InputBatch) -> RowKind:
        """What is known of rows of this kind; found once, and again if the model has changed."""
        version = self.structure_version()
        if version != self._kinds_version:
            self._kinds_version = version
            self._kinds.clear()
        key = inputs.kind
        found = self._kinds.get(key)
        if found is not None and found.stepper.timesteps not in (None, inputs.length or found.stepper.timesteps):
            key = (*key, inputs.length)  # a loop over the time axis is made for one length of it
            found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = self._discover_kind(inputs)
            self._settings.leave_out(self.places_of_state())
            self._structure.accept(self.run_settings)
        return found.for_current_hooks()

    def _discover_kind(self, inputs: InputBatch) -> RowKind:
        few, more = (probe_rows(inputs, rows) for rows in PROBED_ROWS)
        self._find_argument_forms(few)
        with isolated(self.model):
            self.choose_mode(few)
        stepper = self.choose_stepper(few, more)
        if not inputs.sequence:
            stepper = with_stem(self, stepper, few, more)
        try:
            return RowKind(stepper, discover(self, stepper, few, more))
        except InputError as error:
            if inputs.sequence and self.runs_whole(few):
                raise ModelRefused(
                    f"{type(self.model).__name__} runs on whole sequences, not on single timesteps: {error}",
                    "Use neurons and layers that make one timestep at a time.",
                ) from error
            raise

    def runs_whole(self, inputs: InputBatch) -> bool:
        x = inputs.as_given()
        try:
            with isolated(self.model):
                self.reset()
                self.model(x, **call_keywords(self.model, x, inputs.length or inputs.timesteps))
        except Exception:
            return False
        return True

    def split(self, result: Any, n: int) -> tuple[tuple[Tensor, ...], list[Any]]:
        """Separate the outputs of one step from the states that the model returns."""
        states, name = len(self.state_arguments), type(self.model).__name__
        arguments: list[Any] = []
        if states and isinstance(result, Mapping) and all(argument in result for argument in self.state_arguments):
            arguments = [result[argument] for argument in self.state_arguments]
            result = {key: value for key, value in result.items() if key not in self.state_arguments}
        elif states:
            items = list(result) if isinstance(result, tuple | list) else [result]
            if len(items) == 2 and isinstance(items[1], tuple | list) and len(items[1]) == states:
                arguments = list(items[1])
            elif len(items) >= states and isinstance(result, tuple | list):
                arguments = items[len(items) - states :]
            else:
                raise ModelRefused(
                    f"{name}.forward takes {list(self.state_arguments)} beside its input, as if they were states, and "
                    f"returns {len(items)} value(s).",
                    "Return the output followed by the states, in the order in which forward takes them, or a "
                    "dictionary that has them by name. What is no state (a mask, a flag) is given a default, or filled "
                    "in by a module around this one.",
                )
        answer = picked(result, self.output)
        items = list(answer) if isinstance(answer, tuple | list) else [answer]
        outputs = [item for item in items if isinstance(item, Tensor)]
        if not outputs or not isinstance(items[0], Tensor):
            raise ModelRefused(
                f"{name} returned {type(items[0]).__name__}.",
                "Its first output must be a tensor with one row per sample.",
            )
        refuse_whole_numbers(outputs[0])
        if outputs[0].ndim < 2 or outputs[0].shape[0] != n:
            raise ModelRefused(
                f"one timestep of {n} rows made {name} return {tuple(outputs[0].shape)}, which does not start "
                f"with [{n}, ...].",
                "One call must be one timestep, or run all timesteps in one plain for loop inside forward(). Wrap the "
                "module that makes one step.",
            )
        return tuple(output for output in outputs if output.ndim >= 1 and output.shape[0] == n), arguments

    def fresh_arguments(self) -> list[Any]:
        forms = {name: self.fresh_argument(default) for name, default in self.state_arguments.items()}
        return [map_tensors(Tensor.clone, value) for value in (forms | self._argument_forms).values()]

    def _find_argument_forms(self, inputs: InputBatch) -> None:
        """Find out whether a state that ``forward`` requires is one tensor, or a tuple, list or dictionary of several.

        Tried with empty tensors, of which neurons make their state. What the model returns shows the form.
        """
        required = [name for name, default in self.state_arguments.items() if default is REQUIRED]
        empty = self.fresh_argument(REQUIRED)
        if not required or not isinstance(empty, Tensor):
            return
        for form in (_Anything(empty), empty, *((empty,) * n for n in range(1, _MOST_STATES))):
            self._argument_forms = dict.fromkeys(required, form)
            try:
                with isolated(self.model):
                    self.reset()
                    _, arguments = self.step(inputs.frame(0), self.fresh_arguments())
            except Exception:  # it is of another form, or what is wrong shows in the next run
                continue
            found = dict(zip(self.state_arguments, arguments, strict=True))
            self._argument_forms = {name: map_tensors(lambda _: empty, found[name]) for name in required}
            return
        self._argument_forms = {}

    def _fresh(self, kind: RowKind, inputs: InputBatch) -> list[Any]:
        """Fresh values for the carried cells and for the stepper."""
        layout = kind.layout
        with occupied(self.model):
            # Copies, because reset() may write in place. What an earlier run of the caller's has left is not copied.
            before = [
                spec.fresh if spec.owned or spec.row_tensors(value := cell.read()) else value
                for spec, cell in zip(layout.specs, layout.carried, strict=False)
            ]
            copies = [map_tensors(lambda t: t.detach().clone(), value) for value in before]
            watched = layout.watched if kind.stepper.starts_from_input else ()
            with self._state_in_model(layout, copies, started=False, watched=watched):
                self.reset()
                arguments = kind.stepper.start(inputs)
                values = [*(cell.read() for cell in layout.carried), *arguments]
        return values

    @contextmanager
    def _state_in_model(
        self, layout: StateLayout, values: list[Any], started: bool, watched: Sequence[dict[Any, Any]]
    ) -> Iterator[None]:
        """Put ``values`` into the carried cells. Afterwards the model has the caller's own values again, in any case.

        Raises:
            ModelRefused: something else was written in the ``watched`` stores.
        """
        if self._advancing:
            raise RuntimeError("this model is being advanced already: by itself, or by one of its forward hooks")
        own = [(store, key, store.get(key, ABSENT)) for store, key in layout.written]
        before = [dict(store) for store in watched]
        self._advancing = True
        failed = True
        try:
            for (store, key), value in zip(layout.written[: len(values)], values, strict=True):
                write(store, key, value)
            for store, key, value in own[len(values) :]:
                if isinstance(value, list | dict):  # a log that is appended to: use a copy, not the caller's own
                    write(store, key, map_tensors(_itself, value))
            for (store, key), fresh, poison in layout.unread:
                if started:
                    store[key] = poison
                else:  # a copy, because a counter is increased in place
                    own_value = store.get(key, ABSENT) if fresh is ABSENT else fresh
                    write(store, key, map_tensors(Tensor.clone, own_value))
            yield
            failed = False
        finally:
            self._advancing = False
            for store, key, value in own:
                write(store, key, value)
            strays = [key for store, saved in zip(watched, before, strict=True) for key in undo(store, saved)]
            if strays and not failed:
                raise ModelRefused(
                    f"{type(self.model).__name__} wrote {strays}, which it did not write in the timesteps of the first "
                    "inspection, so that its rows cannot be followed.",
                    "Keep all state in places that every timestep writes.",
                )

    def assert_row_counts(self, rows: Rows) -> None:
        """Assert that every value holds the rows that the clock counts.

        The frameworks silently re-initialise a state whose shape does not match the input. This must never happen.
        """
        state: ModuleState = rows.state
        started = rows.now > 0
        for spec, value in zip(state.layout.specs, state.values, strict=True):
            for size in spec.row_counts(value):
                if size != len(rows) and (started or size != 1):
                    raise AssertionError(f"{spec.label} holds {size} rows, not {len(rows)}")


def _refuse_managed(modules: Sequence[nn.Module]) -> None:
    """Refuse modules whose parameters or code somebody else manages, before anything is done to them.

    Raises:
        ModelRefused: naming the first one.
    """
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelRefused(
                f"{type(module).__name__} ({getattr(module, 'original_name', 'unknown')}) is a scripted module, whose "
                "attributes cannot be set and restored.",
                "Use the module that it was scripted from.",
            )
        if any(kind.__module__.startswith("torch.distributed") for kind in type(module).__mro__):
            raise ModelRefused(
                f"{type(module).__name__} is managed by torch.distributed, which gathers its parameters around each "
                "call.",
                "Wrap the network before it is sharded, or one with the weights gathered (full_state_dict).",
            )


def _itself(value: Any) -> Any:
    return value


def _rows_only(inputs: InputBatch) -> InputBatch:
    """Rows without values, where the state holds what a time loop reads of the input."""
    return InputBatch(inputs.values.new_empty(()).expand(len(inputs)))
