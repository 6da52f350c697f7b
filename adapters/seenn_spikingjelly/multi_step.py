"""Networks in multi-step mode that repeat the image, average the answer, or reset themselves inside ``forward``.

A plain multi-step network maps ``[T, N, ...]`` to ``[T, N, C]``. Published networks also take ``[N, T, ...]``, or
``[N, ...]``, which they repeat by themselves, answer once (``head(x.mean(0))``), or call ``reset_net`` in ``forward``.
All of them can be called with one timestep at a time, if their resets are suppressed. How their answer is made of the
answers to single timesteps is found by comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from seenn_plugin.errors import InputError, ModelRefused, SeennError
from seenn_plugin.inputs import InputBatch
from seenn_plugin.state.cells import cells
from seenn_plugin.state.isolation import isolated
from seenn_plugin.state.values import tensors
from seenn_plugin.stepping.aggregation import AGGREGATES, matching_aggregates
from seenn_plugin.stepping.answer import results
from seenn_plugin.stepping.model_access import ModelAccess
from seenn_plugin.stepping.signature import call_keywords
from seenn_plugin.stepping.stepper import MISFITS, Outputs, OwnRun, Stepper

from .suppress_reset import recurrent_classes, suppress_reset
from .timestep_override import TIMESTEP_OVERRIDES, TimestepOverride

_TRIED: Final = 4  # timesteps
_SCALES: Final = (1.0, 2.0, 4.0, 0.5)
_SEED: Final = 20230401
_SHARE: Final = 0.6  # of rows that must agree on an aggregate: rounding may move single spikes

_Shapes = tuple[list[torch.Size], list[torch.Size], list[int]]


@dataclass(frozen=True)
class Layout:
    """Where a network has its time axis.

    Attributes:
        time_dim: the time axis of its input; ``None`` if it takes one frame and repeats it.
        override: sets how often it repeats its input.
    """

    time_dim: int | None
    override: TimestepOverride | None = None

    def call(self, model: nn.Module, frames: Tensor) -> Any:
        """Call the model on frames ``[k, n, ...]``."""
        x = frames[0] if self.time_dim is None else frames.transpose(0, self.time_dim)
        with nullcontext() if self.override is None else self.override(len(frames)):
            return model(x, **call_keywords(model, x, len(frames)))

    def __str__(self) -> str:
        return {0: "[T, N, ...]", 1: "[N, T, ...]", None: "[N, ...], which it repeats"}[self.time_dim]


class MultiStepStepper(Stepper):
    """Calls a multi-step network with one timestep at a time.

    Args:
        adapter: the adapter of the network.
        layout: how it takes single timesteps.
        own: how its users call it.
        items: for each returned tensor that has rows: its position, its time axis (``None`` if it is one answer), and
            how it is made of the answers to single timesteps.
        timesteps: how often it repeats its input by itself.
    """

    one_at_a_time = True

    def __init__(
        self,
        adapter: ModelAccess,
        layout: Layout,
        own: Layout,
        items: Sequence[tuple[int, int | None, str]],
        timesteps: int | None,
    ) -> None:
        self.adapter, self.layout, self.own, self.items = adapter, layout, own, items
        self.timesteps = timesteps
        made_by = items[0][2]
        self.answer, self.cumulative = (None, False) if made_by == "stack" else (made_by, made_by == "last")

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def start(self, inputs: InputBatch) -> list[Any]:
        return []

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        assert frames is not None
        with suppress_reset(self.adapter.model):
            returned = results(self.layout.call(self.adapter.model, frames), self.adapter.output)
        outputs = tuple(
            tensor.unsqueeze(0) if time_dim is None else tensor.movedim(time_dim, 0)
            for position, time_dim, _ in self.items
            if (tensor := returned[position]) is not None
        )
        return lambda: outputs, values

    def own_run(self, inputs: InputBatch, timesteps: int) -> OwnRun:
        if self.own.time_dim is None:
            timesteps, x = self.timesteps or timesteps, inputs.values
            returned = self.adapter.model(x, **call_keywords(self.adapter.model, x, timesteps))
        else:
            returned = self.own.call(self.adapter.model, inputs.frames(timesteps))
        made = results(returned, self.adapter.output)
        outputs = [(made[position], time_dim, made_by) for position, time_dim, made_by in self.items]
        return OwnRun(
            tuple(
                (tensor if time_dim is None else tensor.movedim(time_dim, 0), made_by)
                for tensor, time_dim, made_by in outputs
                if tensor is not None
            ),
            timesteps,
            [],
            keeps_state=False,  # it may have reset itself
        )

    def explain(self) -> dict[str, str]:
        made_by = self.items[0][2]
        answer = "the outputs of all timesteps" if made_by == "stack" else f"one answer, the {made_by} of its timesteps"
        repeats = f", {self.timesteps} times" if self.own.time_dim is None else ""
        return {"takes": f"{self.own}{repeats}; stepped as {self.layout}", "what forward() returns": answer}


# -- finding out ----------------------------------------------------------------------------------------------------


def find_stepper(adapter: ModelAccess, few: InputBatch, more: InputBatch) -> MultiStepStepper | None:
    """How a multi-step network is stepped; ``None`` if it simply takes ``[T, N, ...]`` and returns ``[T, N, ...]``.

    Args:
        adapter: the adapter of the network.
        few, more: input of two and of three rows.

    Raises:
        ModelRefused: it takes such input, and its answer is not a simple function of the answers to single timesteps.
    """
    trial = _Trial(adapter, few, more, [])
    try:
        return _find(trial)
    except SeennError:
        raise
    except Exception as error:
        kind = type(adapter.model).__name__
        row = tuple(few.row_shape)
        raise InputError(f"{kind} cannot run on rows of shape {row}: {type(error).__name__}: {error}.") from error


def _find(trial: _Trial) -> MultiStepStepper | None:
    adapter, few = trial.adapter, trial.few
    if trial.is_plain():
        return None
    layouts = [layout for layout in map(Layout, _axes(few)) if trial.fits(layout)]
    repeats = 0 if few.sequence else trial.repetitions()
    if repeats:
        overrides = [override for find in TIMESTEP_OVERRIDES if (override := find(adapter.model, repeats)) is not None]
        repeating = [layout for layout in (Layout(None, override) for override in overrides) if trial.fits(layout)]
        layouts = [*repeating, *layouts]
        if not layouts:
            raise ModelRefused(
                f"{type(adapter.model).__name__} repeats its input {repeats} times and cannot be run with another "
                "number of timesteps: it works on all timesteps at once (a parallel neuron, attention or weights over "
                "time), or its code defines the number where it was not found.",
                "Use neurons and layers that make one timestep at a time, and read the number from an attribute "
                "(self.T).",
            )
    if not layouts and trial.folding:
        raise ModelRefused(
            f"a neuron of {type(adapter.model).__name__} is given [T * N, ...] and treats rows as timesteps: its state "
            "is passed from one row to the next.",
            "Give every multi-step neuron [T, N, ...].",
        )
    if not layouts:
        return None
    layout = layouts[0]
    own = Layout(None) if repeats else layout
    items = trial.items(layout, repeats or (_TRIED if few.length is None else max(few.length, 2)))
    return MultiStepStepper(adapter, layout, own, items, repeats or None)


def _axes(few: InputBatch) -> tuple[int, int]:
    return (few.time_dim, 1 - few.time_dim) if few.sequence else (0, 1)


@dataclass(frozen=True)
class _Trial:
    """Calls a network in several layouts, in isolation, on few rows.

    Attributes:
        adapter: the adapter of the network.
        few, more: input of two and of three rows.
        folding: filled if a neuron was given rows as timesteps.
    """

    adapter: ModelAccess
    few: InputBatch
    more: InputBatch
    folding: list[str]

    def is_plain(self) -> bool:
        """Whether it takes ``[T, N, ...]``, returns ``[T, N, ...]`` first, and keeps its state in its modules."""
        if any(isinstance(module, recurrent_classes()) for module in self.adapter.model.modules()):
            return False
        resets: list[str] = []
        for x in (self.few, self.more):
            frames = self._frames(x, 2)
            try:
                with self._fresh(), suppress_reset(self.adapter.model, resets):
                    first = results(Layout(0).call(self.adapter.model, frames), self.adapter.output)[0]
            except MISFITS:
                return False
            if first is None or first.ndim < 3 or first.shape[:2] != frames.shape[:2] or resets:
                return False
        return True

    def fits(self, layout: Layout) -> bool:
        """Whether the network runs on 2 and 3 timesteps in this layout, with rows in every state and in its answer."""
        try:
            seen = [[self._shapes(layout, self._frames(x, steps)) for x in (self.few, self.more)] for steps in (2, 3)]
        except MISFITS:
            return False
        for few, more in seen:
            self._note_folding(few, more)
            if few is None or more is None or not _differ_by_rows(few[0], more[0], required=True):
                return False
            if not _differ_by_rows(few[1][:1], more[1][:1], required=True):
                return False
        (two, _), (three, _) = seen
        return two is not None and three is not None and _timesteps_show(two[2], three[2])

    def repetitions(self) -> int:
        """How often the network repeats ``[N, ...]`` by itself; 0 if it does not take such input."""
        try:
            seen = [self._shapes(None, x.values.unsqueeze(0)) for x in (self.few, self.more)]
        except MISFITS:
            return 0
        few, more = seen
        self._note_folding(few, more)
        if few is None or more is None or not _differ_by_rows(few[0], more[0], required=True):
            return 0
        if not _differ_by_rows(few[1][:1], more[1][:1], required=True):
            return 0
        return few[2][0] if few[2] and few[2] == more[2] and len(set(few[2])) == 1 and few[2][0] > 1 else 0

    def _note_folding(self, few: _Shapes | None, more: _Shapes | None) -> None:
        """Note if some neurons were given timesteps, and others a number that grows with the rows."""
        if few and more and few[2] != more[2] and set(few[2]) & set(more[2]):
            self.folding.append("rows")

    def _shapes(self, layout: Layout | None, frames: Tensor) -> _Shapes | None:
        """Shapes of all states and of what is returned, and how many timesteps each neuron was given."""
        model = self.adapter.model
        with self._fresh(), suppress_reset(model), _timesteps_given(self.adapter.neurons) as given:
            before = self._states()
            versions = {id(tensor): tensor._version for tensor in before}
            if layout is None:
                x = frames[0]
                returned = self._results(model(x, **call_keywords(model, x, self.few.timesteps)))
            else:
                returned = self._results(layout.call(model, frames))
            states = [t.shape for t in self._states() if t.numel() and versions.get(id(t)) != t._version]
        if returned[0] is None:
            return None
        return states, [tensor.shape for tensor in returned if tensor is not None], given

    def _results(self, returned: Any) -> list[Tensor | None]:
        return results(returned, self.adapter.output)

    def _states(self) -> list[Tensor]:
        """All tensors with dimensions in the neurons, but for their parameters."""
        held = [cell for cell in cells(self.adapter.model, self.adapter.registers) if cell.module in self._neurons]
        return [tensor for cell in held for tensor in tensors(cell.read()) if tensor.ndim]

    @property
    def _neurons(self) -> set[nn.Module]:
        return set(self.adapter.neurons)

    def items(self, layout: Layout, timesteps: int) -> list[tuple[int, int | None, str]]:
        """What is returned, by position: its time axis, and how it is made of the answers to single timesteps."""
        whole, _ = self._whole_and_singles(layout, self.few, timesteps)
        of_more, _ = self._whole_and_singles(layout, self.more, timesteps)
        # One timestep fewer: a normalisation for each timestep has no more of them.
        shorter, _ = self._whole_and_singles(layout, self.few, timesteps - 1)
        found: list[tuple[int, int | None, str]] = []
        for position, (a, b, c) in enumerate(zip(whole, of_more, shorter, strict=True)):
            if a is None or b is None or c is None or a.ndim != b.ndim or a.ndim != c.ndim:
                continue
            row_dims = [d for d in range(a.ndim) if a.shape[d] != b.shape[d]]
            time_dims = [d for d in range(a.ndim) if a.shape[d] != c.shape[d]]
            if (
                time_dims
                and row_dims == [1 - time_dims[0]]
                and len(time_dims) == 1
                and a.shape[time_dims[0]] == timesteps
            ):
                found.append((position, time_dims[0], "stack"))
            elif not time_dims and row_dims == [0]:
                made_by = self._aggregate(layout, position, timesteps)
                if made_by is not None:
                    found.append((position, None, made_by))
            elif position == 0:
                raise ModelRefused(
                    f"{type(self.adapter.model).__name__} answers {len(self.few)} rows with {tuple(a.shape)}, which is "
                    "neither one output for each timestep nor one answer [N, C].",
                    "Return [T, N, C] or [N, C].",
                )
        if not found or found[0][0] != 0:
            raise ModelRefused(
                f"the answer of {type(self.adapter.model).__name__} to several timesteps at once is neither the last, "
                "the sum, the mean nor the maximum of its answers to them one by one: it is a nonlinear function of "
                "several, mixes timesteps (attention, normalisation or neurons over time), or starts fresh at every "
                "call.",
                "Apply what is nonlinear to each timestep before averaging, or return the outputs of all timesteps; "
                "use layers that depend on the past only and neurons that carry their state.",
            )
        return found

    def _aggregate(self, layout: Layout, position: int, timesteps: int) -> str | None:
        """How one answer is made of those to single timesteps; ``None`` if not simply.

        Raises:
            ModelRefused: the network is silent, so that all aggregates are equal.
        """
        possible = list(AGGREGATES)
        for scale in _SCALES:
            whole, singles = self._whole_and_singles(layout, self.more.with_values(self.more.values * scale), timesteps)
            answer, steps = whole[position], [single[position] for single in singles]
            if answer is None or any(step is None for step in steps):
                return None
            stacked = torch.stack([step for step in steps if step is not None])
            possible = matching_aggregates(stacked, answer, possible, _SHARE)
            if len(possible) < 2:
                return next(iter(possible), None)
        raise ModelRefused(
            f"{type(self.adapter.model).__name__} makes one answer of its timesteps, and it could not be seen how "
            f"({', '.join(possible)} are alike): its output hardly changes over time.",
            "Check first with input on which it fires, or return the outputs of all timesteps.",
        )

    def _whole_and_singles(
        self, layout: Layout, x: InputBatch, timesteps: int
    ) -> tuple[list[Tensor | None], list[list[Tensor | None]]]:
        model, frames = self.adapter.model, self._frames(x, timesteps, vary=layout.time_dim is not None)
        with self._fresh(), suppress_reset(model):
            whole = self._results(layout.call(model, frames))
        with self._fresh(), suppress_reset(model):
            singles = [self._results(layout.call(model, frame.unsqueeze(0))) for frame in frames]
        return whole, singles

    def _frames(self, x: InputBatch, steps: int, vary: bool = False) -> Tensor:
        """Frames ``[steps, n, ...]`` made of the input; all different if ``vary``."""
        values = x.values
        if x.length is not None:
            return values[torch.arange(steps, device=x.device) % x.length]
        return torch.stack(
            [values.roll(t, -1) * (0.5 + t / 2 if vary else 1) for t in range(steps)] if vary else [values] * steps
        )

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        with isolated(self.adapter.model):
            torch.manual_seed(_SEED)
            self.adapter.reset()
            yield


def _differ_by_rows(few: Sequence[torch.Size], more: Sequence[torch.Size], required: bool) -> bool:
    """Whether shapes with two rows and with three differ in one dimension each, which holds the rows."""
    if len(few) != len(more) or (required and not few):
        return False
    for a, b in zip(few, more, strict=True):
        differing = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
        if len(a) != len(b) or differing != [(2, 3)]:
            return False
    return True


def _timesteps_show(two: Sequence[int], three: Sequence[int]) -> bool:
    """Whether the neurons were given two timesteps, and three."""
    return bool(two) and set(two) == {2} and set(three) == {3}


@contextmanager
def _timesteps_given(neurons: Collection[nn.Module]) -> Iterator[list[int]]:
    """Note how many timesteps each multi-step neuron is given."""
    given: list[int] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if getattr(module, "step_mode", "m") == "m" and arguments and isinstance(arguments[0], Tensor):
            given.append(arguments[0].shape[0])

    handles = [node.register_forward_pre_hook(note) for node in neurons]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()
