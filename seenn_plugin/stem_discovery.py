"""Find the stem of a network on static input, by watching which layers it calls in a few timesteps, and with what.

The steps are those of every discovery here: run a few timesteps in isolation and look; conclude; run again with the
conclusion put to use, and take it only if nothing at all differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from .discovery import PROBED_ROWS
from .module_state import ABSENT, isolated, random_state, same
from .observation import Observation, Observer
from .stem import (
    Around,
    Handed,
    Layer,
    Shape,
    StemStepper,
    global_hooks,
    is_untouched,
    lent,
    unchanged,
    version_of,
    what_may_be_still,
)
from .stepper import Outputs, Stepper
from .tolerance import rows_agree

if TYPE_CHECKING:
    from .module_adapter import ModuleAdapter

_SEED: Final = 20230401


def with_stem(adapter: ModuleAdapter, stepper: Stepper, few: Tensor, more: Tensor) -> Stepper:
    """``stepper`` for static input, which computes the stem of the model once for each row, if the model has one.

    Args:
        adapter: the adapter of the model.
        stepper: how its timesteps are made.
        few, more: input of 2 rows and of 3.
    """
    if global_hooks() or any(map(_is_compiled, adapter.model.modules())):
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
    layers: list[Layer] = []
    for a, b in zip(small, large, strict=False):
        given, made = _shape(a.given, b.given), _shape(a.output.shape, b.output.shape)
        if a.module is not b.module or given is None or made is None:
            break
        source = small.index(a.source) if isinstance(a.source, _Call) else -1 - a.source
        layers.append(Layer(names[a.module], a.module, source, given, made, is_written=a.is_written))

    def is_right(layers: Sequence[Layer]) -> bool:
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
    handed: Handed
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
    still: dict[int, Handed] = field(default_factory=dict)

    def call_of(self, module: nn.Module) -> _Call | None:
        """The only call of a module; ``None`` if there were none or several."""
        calls = [call for call in self.calls if call.module is module]
        return calls[0] if calls and self.times[module] == 1 else None


class _Watching(Around):
    """Notes the calls of layers that hold no state, while another stepper makes timesteps of the model."""

    def __init__(self, inner: Stepper, adapter: ModuleAdapter) -> None:
        super().__init__(inner)
        self.modules = tuple(adapter.model.modules())
        leaves = [module for module in self.modules if not module._modules]
        self.layers = [module for module in leaves if adapter.writes_nothing(module) and is_untouched(module)]
        self.made: list[_Timestep] = []

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        now = _Timestep(still=what_may_be_still(frames, values))
        self.made.append(now)

        def enter(module: nn.Module, _: Any) -> None:
            now.entered.append(module)

        handles = [module.register_forward_pre_hook(enter) for module in self.modules]
        try:
            with lent({layer: self._noting(layer, now) for layer in self.layers}):
                finish, after = self.inner.advance(frames, steps, values)
        finally:
            for handle in handles:
                handle.remove()
        if frames is None:
            now.still = unchanged(now.still, after)
        return finish, after

    @staticmethod
    def _noting(layer: nn.Module, now: _Timestep) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            now.times[layer] += 1
            x = arguments[0] if len(arguments) == 1 and not named else None
            if type(x) is not Tensor or not x.numel():
                return type(layer).forward(layer, *arguments, **named)
            before, given = version_of(x), x.shape
            sources: list[_Call | int] = [call for call in reversed(now.calls) if call.handed.is_all_of(x)]
            sources += [i for i, handed in now.still.items() if handed.is_all_of(x)]
            source = sources[0] if sources else None
            random = random_state(x)
            output = type(layer).forward(layer, x)
            changes = not torch.equal(random, random_state(x)) or (isinstance(source, int) and version_of(x) != before)
            if source is None or changes or type(output) is not Tensor or not output.is_floating_point():
                return output
            handed = Handed.of(output)
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


def _shape(small: torch.Size, large: torch.Size) -> Shape | None:
    """The shape of a tensor that is ``small`` with two rows and ``large`` with three."""
    varying = [d for d, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
    if len(small) != len(large) or len(varying) != 1 or (small[varying[0]], large[varying[0]]) != PROBED_ROWS:
        return None
    return Shape(tuple(small), varying[0])


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
