"""Finds the stem of a network on static input: records which layers are called in a few timesteps, and with what.

As in every discovery, a few timesteps are run in isolation and recorded. The conclusion is then tried in a second run,
and used only if nothing at all differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..inputs import InputBatch
from ..state.hooks import has_global_hooks
from ..state.isolation import isolated
from ..state.patching import patched_forward
from ..state.values import ABSENT, random_state, same
from ..stepping.model_access import ModelAccess
from ..stepping.stem import (
    DelegatingStepper,
    Layer,
    Shape,
    StaticTensor,
    StemStepper,
    may_be_skipped,
    possible_constants,
    unchanged,
    version_of,
)
from ..stepping.stepper import Outputs, Stepper
from ..tolerance import agree
from .discover import PROBED_ROWS
from .observation import Observation, Observer

_SEED: Final = 20230401


def with_stem(adapter: ModelAccess, stepper: Stepper, few: InputBatch, more: InputBatch) -> Stepper:
    """A stepper for static input that computes the stem once for each row; ``stepper`` itself if there is no stem.

    Args:
        adapter: the adapter of the model.
        stepper: how its timesteps are made.
        few, more: input of 2 rows and of 3.
    """
    if has_global_hooks(backward=True) or any(map(_is_compiled, adapter.model.modules())):
        return stepper
    try:
        return _find(adapter, stepper, few, more) or stepper
    except Exception:  # the discovery of state reports what is wrong with the model
        return stepper


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _find(adapter: ModelAccess, stepper: Stepper, few: InputBatch, more: InputBatch) -> StemStepper | None:
    recording = _RecordingStepper(stepper, adapter)
    plain = Observer(adapter, recording).observe(few)
    stateful = {*adapter.neurons, *(cell.module for cell in plain.written)}
    small, entered = recording.stem(stateful)
    if not small:
        return None
    recording = _RecordingStepper(stepper, adapter)
    Observer(adapter, recording).observe(more)
    large, _ = recording.stem(stateful)
    names = {module: name for name, module in adapter.model.named_modules()}
    layers: list[Layer] = []
    for a, b in zip(small, large, strict=False):
        given, made = _shape(a.given, b.given), _shape(a.output.shape, b.output.shape)
        if a.module is not b.module or given is None or made is None:
            break
        source = small.index(a.source) if isinstance(a.source, _Call) else -1 - a.source
        layers.append(Layer(names[a.module], a.module, source, given, made, is_written=a.is_written))

    def is_correct(layers: Sequence[Layer]) -> bool:
        seen = Observer(adapter, StemStepper(stepper, layers, entered)).observe(few)
        return _is_equal(plain, seen, len(stepper.names))

    if not layers or not is_correct(layers):
        return None
    for i, layer in enumerate(layers):  # an output that only other layers of the stem read is not carried
        fewer = [*layers[:i], replace(layer, is_read=False), *layers[i + 1 :]]
        if any(other.source == i for other in layers) and _try(is_correct, fewer):
            layers = fewer
    in_chunks = not stepper.one_at_a_time and _try(
        _agrees_in_chunks, adapter, StemStepper(stepper, layers, entered, in_chunks=True), few
    )
    return StemStepper(stepper, layers, entered, in_chunks)


@dataclass(eq=False)
class _Call:
    """One call of a layer whose only input was the frame, or the output of such a layer.

    Attributes:
        module: the layer.
        source: the call whose output was its input, or the position of the constant tensor.
        given: the shape of its input.
        entered: how many module calls had begun when it returned.
        output: its output.
        seen: its output with its version at that time.
        copy: its values at that time.
    """

    module: nn.Module
    source: _Call | int
    given: torch.Size
    entered: int
    output: Tensor
    seen: StaticTensor
    copy: Tensor

    @property
    def is_written(self) -> bool:
        return self.output._version != self.seen.version

    def is_like(self, other: _Call) -> bool:
        """Whether another timestep's call of the layer had an equal input and output."""
        sources = [c.source.module if isinstance(c.source, _Call) else c.source for c in (self, other)]
        return sources[0] == sources[1] and same(self.copy, other.copy)


@dataclass
class _Timestep:
    """The record of one timestep: module calls begun, calls of layers, calls by layer, and constant tensors."""

    entered: list[nn.Module] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    times: Counter[nn.Module] = field(default_factory=Counter)
    constants: dict[int, StaticTensor] = field(default_factory=dict)

    def call_of(self, module: nn.Module) -> _Call | None:
        """The only call of a module; ``None`` if there were no or several calls."""
        calls = [call for call in self.calls if call.module is module]
        return calls[0] if calls and self.times[module] == 1 else None


class _RecordingStepper(DelegatingStepper):
    """Records the calls of layers without state, while another stepper makes timesteps of the model."""

    def __init__(self, inner: Stepper, adapter: ModelAccess) -> None:
        super().__init__(inner)
        self.modules = tuple(adapter.model.modules())
        leaves = [module for module in self.modules if not module._modules]
        self.layers = [module for module in leaves if adapter.writes_nothing(module) and may_be_skipped(module)]
        self.made: list[_Timestep] = []

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        now = _Timestep(constants=possible_constants(frames, values))
        self.made.append(now)

        def enter(module: nn.Module, _: Any) -> None:
            now.entered.append(module)

        handles = [module.register_forward_pre_hook(enter) for module in self.modules]
        try:
            with patched_forward({layer: self._recording_forward(layer, now) for layer in self.layers}):
                finish, after = self.inner.advance(frames, steps, values)
        finally:
            for handle in handles:
                handle.remove()
        if frames is None:
            now.constants = unchanged(now.constants, after)
        return finish, after

    @staticmethod
    def _recording_forward(layer: nn.Module, now: _Timestep) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            now.times[layer] += 1
            x = arguments[0] if len(arguments) == 1 and not named else None
            if type(x) is not Tensor or not x.numel():
                return type(layer).forward(layer, *arguments, **named)
            before, given = version_of(x), x.shape
            sources: list[_Call | int] = [call for call in reversed(now.calls) if call.seen.is_all_of(x)]
            sources += [i for i, seen in now.constants.items() if seen.is_all_of(x)]
            source = sources[0] if sources else None
            random = random_state(x)
            output = type(layer).forward(layer, x)
            changes = not torch.equal(random, random_state(x)) or (isinstance(source, int) and version_of(x) != before)
            if source is None or changes or type(output) is not Tensor or not output.is_floating_point():
                return output
            seen = StaticTensor.of(output)
            if not seen.is_start_of(x) or seen.version != before:  # else it computes nothing
                copied = output.detach().clone()
                now.calls.append(_Call(layer, source, given, len(now.entered), output, seen, copied))
            return output

        return forward

    def stem(self, stateful: Collection[nn.Module]) -> tuple[list[_Call], list[nn.Module]]:
        """The calls that belong to the stem, and the modules whose call begins before the last of them returns."""
        found: list[_Call] = []
        first = self.made[0]
        constants = set.intersection(*(set(timestep.constants) for timestep in self.made))
        for call in first.calls:
            entered = first.entered[: call.entered]
            if any(module in stateful and call.module not in set(module.modules()) for module in entered):
                break
            known = call.source in constants if isinstance(call.source, int) else call.source in found
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
    """Whether a run equals the plain one, bit by bit: outputs, all state, and the state after the start."""
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


def _agrees_in_chunks(adapter: ModelAccess, stem: StemStepper, few: InputBatch) -> bool:
    """Whether two timesteps at a time answer the same with the stem and without."""
    made: list[Outputs] = []
    for stepper in (stem.inner, stem):
        with isolated(adapter.model):
            torch.manual_seed(_SEED)
            adapter.reset()
            finish, _ = stepper.advance(few.frames(2), 2, stepper.start(few))
            made.append(finish())
    return all(map(agree, *made))


def _try(function: Callable[..., bool], *arguments: Any) -> bool:
    try:
        return function(*arguments)
    except Exception:  # a place that holds NaN is read
        return False
