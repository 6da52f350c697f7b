"""The stem: layers that see nothing but the input and the weights, and need to be computed only once for each row.

A static input is shown at every timestep, so what comes before the first neuron is the same at every one of them. The
outputs of these layers are carried with the rows, like any state; while the model makes a timestep, the layers are lent
a ``forward`` that hands them out.

Nothing here is assumed of the model. A layer hands out what it carries only if it is given the very frame (or what the
layer before it handed out): the same memory, in the same shape, not written since. In every other case it computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from .discovery import PROBED_ROWS
from .errors import ModelRefused
from .module_state import ABSENT, isolated, random_state, same, to_float64
from .observation import Observation, Observer
from .stepper import Outputs, OwnRun, Stepper
from .tolerance import rows_agree

if TYPE_CHECKING:
    from .module_adapter import ModuleAdapter

_SEED: Final = 20230401
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NAN: Final = float("nan")


@dataclass(frozen=True)
class _Shape:
    """The shape of a tensor with rows: that of one batch, and the dimension that follows the number of rows."""

    sizes: tuple[int, ...]
    row_dim: int

    def of(self, n: int) -> tuple[int, ...]:
        return (*self.sizes[: self.row_dim], n, *self.sizes[self.row_dim + 1 :])

    def rows(self, tensor: Tensor) -> int:
        """The number of rows of a tensor of this shape."""
        return tensor.shape[self.row_dim]

    def in_chunk(self, n: int, steps: int) -> tuple[int, ...]:
        """Of several timesteps at a time, ``[steps, n, ...]``; a single one is ``[n, ...]`` or ``[1, n, ...]``."""
        single = self.of(n)
        return single if steps == 1 else (steps, *single[self.row_dim :])


@dataclass(frozen=True)
class _Layer:
    """One layer of the stem.

    Attributes:
        name: its qualified name.
        module: the layer.
        source: the position of the layer whose output it is given; below 0, of what is still (``-1 - i``).
        given, made: the shapes of its input and its output in a single timestep.
        is_read: whether something outside the stem reads its output, which then is carried.
        is_written: whether something writes to its output in place, and so is given a copy.
    """

    name: str
    module: nn.Module
    source: int
    given: _Shape
    made: _Shape
    is_read: bool = True
    is_written: bool = False


@dataclass(frozen=True)
class _Handed:
    """A tensor that the stem may be given again: the frame, or what a layer handed out."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Handed:
        return cls(tensor, _version(tensor))

    def is_start_of(self, x: Tensor) -> bool:
        """Whether ``x`` lies where this tensor does, which was not written since."""
        return x.data_ptr() == self.tensor.data_ptr() and x.dtype == self.tensor.dtype and _version(x) == self.version

    def is_all_of(self, x: Tensor) -> bool:
        """Whether ``x`` is this tensor, not written since, or a view of all of it."""
        return self.is_start_of(x) and x.numel() == self.tensor.numel()


class _Around(Stepper):
    """A stepper that leaves everything to another one, and to its subclass to change some of it."""

    def __init__(self, inner: Stepper) -> None:
        self.inner = inner
        self.answer, self.cumulative, self.timesteps = inner.answer, inner.cumulative, inner.timesteps
        self.one_at_a_time, self.takes_frames = inner.one_at_a_time, inner.takes_frames

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    def start(self, inputs: Tensor) -> list[Any]:
        return self.inner.start(inputs)

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        return self.inner.advance(frames, steps, values)

    def own_run(self, inputs: Tensor, sequence: bool, timesteps: int) -> OwnRun:
        return self.inner.own_run(inputs, sequence, timesteps)

    def do_without(self, name: str, few: Tensor) -> bool:
        return self.inner.do_without(name, few)

    def explain(self) -> dict[str, str]:
        return self.inner.explain()


class StemStepper(_Around):
    """Makes the timesteps of another stepper, but for the layers of the stem.

    Args:
        inner: makes the timesteps of static input.
        layers: the stem, in the order in which its layers are called.
        entered: all modules that are entered before the last of them has answered: a caller's hook there must see
            every call.
        in_chunks: whether the layers take several timesteps at a time as rows side by side.
    """

    starts_from_input = True

    def __init__(
        self, inner: Stepper, layers: Sequence[_Layer], entered: Sequence[nn.Module], in_chunks: bool = False
    ) -> None:
        super().__init__(inner)
        self.layers, self.entered, self.in_chunks = tuple(layers), tuple(entered), in_chunks
        self._carried = [layer for layer in layers if layer.is_read]
        self.derived = tuple(f"stem {layer.name}" for layer in self._carried)
        self._given = {-1 - layer.source for layer in layers if layer.source < 0}
        self._modes = self._modes_now()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.inner.names, *self.derived)

    def as_it_lies(self) -> Stepper:
        unseen = all(map(_is_untouched, self.entered)) and not _global_hooks()
        return self if unseen and self._modes_now() == self._modes else self.inner

    def _modes_now(self) -> list[bool]:
        return [layer.module.training for layer in self.layers]

    def start(self, inputs: Tensor) -> list[Any]:
        values = self.inner.start(inputs)
        return [*values, *self._compute(inputs, values)]

    def _compute(self, inputs: Tensor, values: list[Any]) -> list[Tensor]:
        """What the layers of the stem answer: the model is run on the frame up to the last of them."""
        made: dict[nn.Module, Tensor] = {}
        with _lent({layer.module: self._noting(layer, made) for layer in self.layers}), suppress(_StemIsMade):
            self.inner.advance(inputs.unsqueeze(0) if self.takes_frames else None, 1, values)
        return [self._fitting(layer, made.get(layer.module), inputs) for layer in self._carried]

    def _noting(self, layer: _Layer, made: dict[nn.Module, Tensor]) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            output = type(layer.module).forward(layer.module, *arguments, **named)
            made[layer.module] = output.clone() if layer.is_written else output
            if layer is self.layers[-1]:
                raise _StemIsMade
            return output

        return forward

    def _fitting(self, layer: _Layer, made: Tensor | None, inputs: Tensor) -> Tensor:
        """The output of a layer; NaN where it does not fit single timesteps, because they were made in another mode."""
        shape = layer.made.of(inputs.shape[0])
        return made if made is not None and made.shape == shape else _absurd(shape, inputs)

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        cut = len(self.inner.names)
        carried = dict(zip((layer.module for layer in self._carried), values[cut:], strict=True))
        still = _still(frames, values[:cut])
        handed = {-1 - i: still[i] for i in self._given}
        versions = [_version(value) for value in carried.values()]
        rows = self._carried[-1].made.rows(values[-1])
        with _lent(
            {
                layer.module: _HandingOut(self, i, layer, carried.get(layer.module), rows, steps, handed)
                for i, layer in enumerate(self.layers)
            }
        ):
            finish, after = self.inner.advance(frames, steps, values[:cut])
        for layer, value, version in zip(self._carried, carried.values(), versions, strict=True):
            if _version(value) != version:
                raise ModelRefused(
                    f"the output of {layer.name} was changed in place, which did not happen in the timesteps that were "
                    "looked at first.",
                    "Assign a new tensor instead.",
                )
        if frames is None and any(not still[i].is_all_of(after[i]) for i in self._given):
            raise ModelRefused(
                "a variable that is the same at every timestep, as far as was looked at first, has changed.",
                "Give what changes over time another name.",
            )
        return finish, [*after, *values[cut:]]

    def own_run(self, inputs: Tensor, sequence: bool, timesteps: int) -> OwnRun:
        stem = self._compute(inputs, self.inner.start(inputs))
        own = self.inner.own_run(inputs, sequence, timesteps)
        return replace(own, arguments=[*own.arguments, *stem])

    def explain(self) -> dict[str, str]:
        names = ", ".join(layer.name for layer in self.layers)
        return {**self.inner.explain(), "stem": f"{names}: computed once for each row, not at every timestep"}


class _HandingOut:
    """Stands in for the ``forward`` of one layer of the stem while timesteps are made.

    Args:
        stem: the stem.
        position: of the layer in it.
        layer: the layer.
        carried: its output, if it is carried.
        rows, steps: the number of rows, and of the timesteps that are made.
        handed: what has been handed out, by position of the layer; below 0, what is still.
    """

    def __init__(
        self,
        stem: StemStepper,
        position: int,
        layer: _Layer,
        carried: Tensor | None,
        rows: int,
        steps: int,
        handed: dict[int, _Handed],
    ) -> None:
        self.stem, self.position, self.layer, self.carried = stem, position, layer, carried
        self.rows, self.steps, self.handed = rows, steps, handed

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        layer = self.layer
        times = self._times(arguments[0]) if len(arguments) == 1 and not named else 0
        if not times:
            return type(layer.module).forward(layer.module, *arguments, **named)
        if self.carried is None:
            output = _absurd(layer.made.in_chunk(self.rows, times), arguments[0])
        elif times > 1:  # laid out, as kernels that make several timesteps expect it
            output = self.carried.expand(layer.made.in_chunk(self.rows, times)).contiguous()
        else:
            output = self.carried.clone() if layer.is_written else self.carried
        self.handed[self.position] = _Handed.of(output)
        return output

    def _times(self, x: Any) -> int:
        """How many timesteps of what the stem was computed for ``x`` is; 0 if it may be anything else."""
        source = self.handed.get(self.layer.source)
        if source is None or not isinstance(x, Tensor) or not source.is_start_of(x):
            return 0
        if x.shape == self.layer.given.of(self.rows):
            return 1
        in_chunk = self.stem.in_chunks and x.shape == self.layer.given.in_chunk(self.rows, self.steps)
        return self.steps if in_chunk else 0


class _StemIsMade(BaseException):
    """Ends a call of the model once the last layer of the stem has answered. No error, and nobody is to handle it."""


@contextmanager
def _lent(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules run other functions for their ``forward``, so that hooks fire as ever."""
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _absurd(shape: Sequence[int], like: Tensor) -> Tensor:
    """What is never read: NaN, in the memory of one number."""
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.full((), _NAN, dtype=dtype, device=like.device).expand(*shape)


def _still(frames: Tensor | None, values: Sequence[Any]) -> dict[int, _Handed]:
    """What may be the same at every timestep, by position: the frame, or else a variable carried from pass to pass."""
    if frames is not None:
        return {0: _Handed.of(frames[0])}
    return {i: _Handed.of(value) for i, value in enumerate(values) if isinstance(value, Tensor) and value.numel()}


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_untouched(module: nn.Module) -> bool:
    """Whether calls of a module can be left out without anybody noticing."""
    attributes = vars(module)
    return "forward" not in attributes and all(
        hook is to_float64 for hooks in _HOOKS for hook in attributes[hooks].values()
    )


def _global_hooks() -> bool:
    return any(getattr(_torch_module, f"_global{hooks}") for hooks in _HOOKS)


# -- finding it -----------------------------------------------------------------------------------------------------


def with_stem(adapter: ModuleAdapter, stepper: Stepper, few: Tensor, more: Tensor) -> Stepper:
    """``stepper`` for static input, which computes the stem of the model once for each row, if the model has one.

    Args:
        adapter: the adapter of the model.
        stepper: how its timesteps are made.
        few, more: input of 2 rows and of 3.
    """
    if _global_hooks() or any(map(_is_compiled, adapter.model.modules())):
        return stepper
    try:
        return _find(adapter, stepper, few, more) or stepper
    except Exception:  # what is wrong with the model, discovery will say
        return stepper


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _find(adapter: ModuleAdapter, stepper: Stepper, few: Tensor, more: Tensor) -> StemStepper | None:
    watching = _Watching(stepper, adapter)
    plain = Observer(adapter, watching, False).observe(few)
    stateful = {*adapter.neurons, *(cell.module for cell in plain.written)}
    small, entered = watching.stem(stateful)
    if not small:
        return None
    watching = _Watching(stepper, adapter)
    Observer(adapter, watching, False).observe(more)
    large, _ = watching.stem(stateful)
    names = {module: name for name, module in adapter.model.named_modules()}
    layers: list[_Layer] = []
    for a, b in zip(small, large, strict=False):
        given, made = _shape(a.given, b.given), _shape(a.output.shape, b.output.shape)
        if a.module is not b.module or given is None or made is None:
            break
        source = small.index(a.source) if isinstance(a.source, _Call) else -1 - a.source
        layers.append(_Layer(names[a.module], a.module, source, given, made, is_written=a.is_written))

    def is_right(layers: Sequence[_Layer]) -> bool:
        seen = Observer(adapter, StemStepper(stepper, layers, entered), False).observe(few)
        return _is_equal(plain, seen, len(stepper.names))

    if not layers or not is_right(layers):
        return None
    for i, layer in enumerate(layers):  # one that only feeds others is not carried, if nothing else reads it
        fewer = [*layers[:i], replace(layer, is_read=False), *layers[i + 1 :]]
        if any(other.source == i for other in layers) and _try(is_right, fewer):
            layers = fewer
    in_chunks = not stepper.one_at_a_time and _try(
        _agrees_in_chunks, adapter, StemStepper(stepper, layers, entered, in_chunks=True), few
    )
    return StemStepper(stepper, layers, entered, in_chunks)


@dataclass(eq=False)
class _Call:
    """One call of a layer that was given the frame, or the output of such a layer, and nothing else.

    Attributes:
        module: the layer.
        source: the call whose output it was given, or the position of what is still.
        given: the shape of its input.
        entered: how many modules had been entered when it answered.
        output: its output, and as it was then.
    """

    module: nn.Module
    source: _Call | int
    given: torch.Size
    entered: int
    output: Tensor
    handed: _Handed
    copy: Tensor

    @property
    def is_written(self) -> bool:
        return self.output._version != self.handed.version

    def is_like(self, other: _Call) -> bool:
        """Whether another timestep's call of the layer was given the same and made the same."""
        sources = [c.source.module if isinstance(c.source, _Call) else c.source for c in (self, other)]
        return sources[0] == sources[1] and same(self.copy, other.copy)


@dataclass
class _Timestep:
    """What happened in one timestep: modules entered, calls of layers, how often each was called, what stayed still."""

    entered: list[nn.Module] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    times: Counter[nn.Module] = field(default_factory=Counter)
    still: dict[int, _Handed] = field(default_factory=dict)

    def call_of(self, module: nn.Module) -> _Call | None:
        """The only call of a module; ``None`` if there were none or several."""
        calls = [call for call in self.calls if call.module is module]
        return calls[0] if calls and self.times[module] == 1 else None


class _Watching(_Around):
    """Notes the calls of layers that hold no state, while another stepper makes timesteps of the model."""

    def __init__(self, inner: Stepper, adapter: ModuleAdapter) -> None:
        super().__init__(inner)
        self.modules = tuple(adapter.model.modules())
        leaves = [module for module in self.modules if not module._modules]
        self.layers = [module for module in leaves if adapter.writes_nothing(module) and _is_untouched(module)]
        self.made: list[_Timestep] = []

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        now = _Timestep(still=_still(frames, values))
        self.made.append(now)

        def enter(module: nn.Module, _: Any) -> None:
            now.entered.append(module)

        handles = [module.register_forward_pre_hook(enter) for module in self.modules]
        try:
            with _lent({layer: self._noting(layer, now) for layer in self.layers}):
                finish, after = self.inner.advance(frames, steps, values)
        finally:
            for handle in handles:
                handle.remove()
        if frames is None:
            kept = {i for i, handed in now.still.items() if isinstance(after[i], Tensor) and handed.is_all_of(after[i])}
            now.still = {i: now.still[i] for i in kept}
        return finish, after

    @staticmethod
    def _noting(layer: nn.Module, now: _Timestep) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            now.times[layer] += 1
            x = arguments[0] if len(arguments) == 1 and not named else None
            if type(x) is not Tensor or not x.numel():
                return type(layer).forward(layer, *arguments, **named)
            before, given = _version(x), x.shape
            sources: list[_Call | int] = [call for call in reversed(now.calls) if call.handed.is_all_of(x)]
            sources += [i for i, handed in now.still.items() if handed.is_all_of(x)]
            source = sources[0] if sources else None
            random = random_state(x)
            output = type(layer).forward(layer, x)
            changes = not torch.equal(random, random_state(x)) or (isinstance(source, int) and _version(x) != before)
            if source is None or changes or type(output) is not Tensor or not output.is_floating_point():
                return output
            handed = _Handed.of(output)
            if not handed.is_start_of(x) or handed.version != before:  # else it computes nothing
                copied = output.detach().clone()
                now.calls.append(_Call(layer, source, given, len(now.entered), output, handed, copied))
            return output

        return forward

    def stem(self, stateful: Collection[nn.Module]) -> tuple[list[_Call], list[nn.Module]]:
        """The calls that belong to the stem, and the modules that are entered before the last of them answers."""
        found: list[_Call] = []
        first = self.made[0]
        still = set.intersection(*(set(timestep.still) for timestep in self.made))
        for call in first.calls:
            entered = first.entered[: call.entered]
            if any(module in stateful and call.module not in set(module.modules()) for module in entered):
                break
            known = call.source in still if isinstance(call.source, int) else call.source in found
            alike = [timestep.call_of(call.module) for timestep in self.made]
            if known and all(one is not None and call.is_like(one) for one in alike):
                found.append(call)
        return found, first.entered[: found[-1].entered] if found else []


def _shape(small: torch.Size, large: torch.Size) -> _Shape | None:
    """The shape of a tensor that is ``small`` with two rows and ``large`` with three."""
    varying = [d for d, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
    if len(small) != len(large) or len(varying) != 1 or (small[varying[0]], large[varying[0]]) != PROBED_ROWS:
        return None
    return _Shape(tuple(small), varying[0])


def _is_equal(plain: Observation, seen: Observation, cut: int) -> bool:
    """Whether a run is equal to the plain one, bit by bit: outputs, all state, and what the start leaves behind."""
    return (
        same(plain.outputs, seen.outputs)
        and same(plain.arguments, [values[:cut] for values in seen.arguments])
        and plain.written_at_start == seen.written_at_start
        and all(
            same(a.get(cell, ABSENT), b.get(cell, ABSENT))
            for a, b in zip(plain.after, seen.after, strict=True)
            for cell in plain.written | seen.written
        )
    )


def _agrees_in_chunks(adapter: ModuleAdapter, stem: StemStepper, few: Tensor) -> bool:
    """Whether two timesteps at a time answer the same with the stem and without."""
    made: list[Outputs] = []
    for stepper in (stem.inner, stem):
        with isolated(adapter.model):
            torch.manual_seed(_SEED)
            adapter.reset()
            finish, _ = stepper.advance(few.expand(2, *few.shape), 2, stepper.start(few))
            made.append(finish())
    return all(bool(rows_agree(a, b, row_dim=1).all()) for a, b in zip(*made, strict=True))


def _try(function: Callable[..., bool], *arguments: Any) -> bool:
    try:
        return function(*arguments)
    except Exception:  # NaN in a place that is read, after all
        return False
