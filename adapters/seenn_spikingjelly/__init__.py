"""SpikingJelly networks, of 2.0.0 and of 0.0.0.0.14, in single-step and in multi-step mode.

Finds what it needs in ``sys.modules`` and imports no framework: a model of a framework that is not imported does
not exist. Both generations keep state in ``_memories``, so one adapter serves both.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seenn_plugin.adapter import Cell, ModelRefused, ModuleAdapter, Stepper, tensors
from seenn_plugin.discovery.driven_neurons import DrivenNeurons
from seenn_plugin.inputs import InputBatch
from seenn_plugin.state.patching import patched
from seenn_plugin.stepping.answer import picked
from seenn_plugin.tolerance import agree

from .fused_neurons import FusedNeurons
from .multi_step import find_stepper
from .suppress_reset import RECURRENT_STATE, recurrent_classes

StepMode = Literal["s", "m"]
_PACKAGE = "spikingjelly.activation_based"
_LEGACY = "spikingjelly.clock_driven"
_NEVER = 1e3
_FRAME_LAYERS = ("Conv", "BatchNorm", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")


def _memory_classes() -> tuple[type, ...]:
    """Those that hold state: the framework's, and that of the time before there were step modes."""
    bases = (sys.modules.get(f"{package}.base") for package in (_PACKAGE, _LEGACY))
    return tuple(base.MemoryModule for base in bases if base is not None)


class SpikingJellyAdapter(ModuleAdapter):
    """Steps SpikingJelly networks in the step mode that the caller has set, or faster in the other if that is equal.

    Args:
        model: the network.
        step_mode: how the network takes its input: ``"s"`` for ``[N, ...]``, ``"m"`` for ``[T, N, ...]``. By default
            read off its stateful modules.
    """

    name = "spikingjelly"
    framework = "spikingjelly"
    extra = "spikingjelly"
    registers: ClassVar[tuple[str, ...]] = ("_buffers", "_memories")

    def __init__(self, model: nn.Module, step_mode: StepMode | None = None) -> None:
        super().__init__(model)
        self._given_mode: StepMode | None = step_mode
        # For each step mode in which the network can run: attributes of modules, key and value, to set for it.
        self._switches: dict[StepMode, list[tuple[dict[str, Any], str, StepMode]]] = {}
        self._own_mode: StepMode = "s"
        self._chosen_for: Any = None

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        stateful = (*_memory_classes(), *recurrent_classes())
        return any(isinstance(module, stateful) for module in model.modules())

    def modules_changed(self, modules: tuple[nn.Module, ...]) -> None:
        recurrent = recurrent_classes()
        self.neurons: list[Any] = [m for m in modules if "_memories" in vars(m) or isinstance(m, recurrent)]
        self._resettable: list[Any] = [m for m in modules if callable(getattr(m, "reset", None))]
        self._recurrent = [m for m in modules if isinstance(m, recurrent)]
        self._step_mode_holders = [vars(module) for module in modules if "_step_mode" in vars(module)]
        self._fused_neurons = FusedNeurons(modules)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fused_neurons": FusedNeurons(), "_chosen_for": None}

    # -- state ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        # As functional.reset_net does, which also calls the reset() of modules that are not the framework's.
        for module in self._resettable:
            module.reset()
        for module in self._recurrent:
            vars(module).pop(RECURRENT_STATE, None)

    def owns(self, cell: Cell) -> bool:
        return cell.path == ("_memories",) or cell.key == RECURRENT_STATE

    def writes_nothing(self, module: nn.Module) -> bool:
        # The framework's layers without memory, and its surrogate functions.
        known = type(module).__module__.startswith((f"{_PACKAGE}.layer", f"{_PACKAGE}.surrogate"))
        return super().writes_nothing(module) or (known and "_memories" not in vars(module))

    def can_fire(self, neuron: nn.Module) -> bool:
        return _can_be_reached(getattr(neuron, "v_threshold", 0.0))

    def fused_neurons(self) -> AbstractContextManager[None]:
        return self._fused_neurons.patched()

    # -- time -----------------------------------------------------------------------------------------------------

    @property
    def step_mode(self) -> StepMode:
        """The mode in which the caller has set the network: that of its outermost modules that depend on it.

        Raises:
            ModelRefused: if some are in single-step and some in multi-step mode.
        """
        if self._given_mode is not None:
            return self._given_mode
        modes = set(_outermost_step_modes(self.model))
        if len(modes) > 1:
            raise ModelRefused(
                f"the stateful modules of {type(self.model).__name__} are in different step modes.",
                "Call functional.set_step_mode(net, 'm') (or 's'), or pass "
                "adapter=functools.partial(SpikingJellyAdapter, step_mode='m').",
            )
        return "m" if "m" in modes else "s"

    def takes_time(self) -> bool:
        return self.step_mode == "m"

    def failure_hint(self) -> str:
        if self.takes_time():
            for name, module in self.model.named_modules():
                kind = type(module)
                if kind.__module__.startswith("torch.nn") and kind.__name__.startswith(_FRAME_LAYERS):
                    return (
                        f"The network is in multi-step mode, and {name} is a torch.nn.{kind.__name__}, which takes "
                        f"single frames: use spikingjelly.activation_based.layer.{kind.__name__}(..., step_mode='m')."
                    )
        return super().failure_hint()

    def choose_stepper(self, few: InputBatch, more: InputBatch) -> Stepper:
        found = find_stepper(self, few, more) if self.takes_time() else None
        return found or super().choose_stepper(few, more)

    def run_settings(self, modules: tuple[nn.Module, ...]) -> Any:
        base = super().run_settings(modules)
        reset_values = [_comparable(v) for node in self.neurons for v in vars(node).get("_memories_rv", {}).values()]
        return (base, *(holder["_step_mode"] for holder in self._step_mode_holders), *reset_values)

    def choose_mode(self, inputs: InputBatch) -> None:
        """Find out whether the network answers the same in the step mode that the caller has not set.

        Single steps are faster in single-step mode, chunks in multi-step mode. Not every network can be switched: what
        lies between its neurons may take another dimension for the rows, which shows at any firing rate if the neurons
        are driven. A mode that was unequal for one kind of input is not used for another kind.
        """
        own: StepMode = self.step_mode
        other: StepMode = "s" if own == "m" else "m"
        version = self.structure_version()
        if self._chosen_for == version and other not in self._switches:
            return
        self._chosen_for, self._own_mode, self._switches = version, own, {own: []}
        holders = self._step_mode_holders
        before = [holder["_step_mode"] for holder in holders]
        values = inputs.values
        first, second = (values[0], values[-1]) if inputs.sequence else (values, values.flip(-1))
        frames = torch.stack([first, second])
        driven = DrivenNeurons(self.neurons)
        try:
            # set_step_mode() writes _step_mode; the entries are set to what they are, to be restored afterwards.
            with patched((holder, "_step_mode", mode) for holder, mode in zip(holders, before, strict=True)):
                driven.adapt(lambda: self._run_from_reset(frames, own))
                expected = self._run_both(frames, own, driven)
                sys.modules[f"{_PACKAGE}.functional"].set_step_mode(self.model, other)
                switch = [
                    (holder, "_step_mode", holder["_step_mode"])
                    for holder, mode in zip(holders, before, strict=True)
                    if holder["_step_mode"] != mode
                ]
                found = self._run_both(frames, other, driven)
            if len(expected) == len(found) and all(map(agree, expected, found)):
                self._switches[other] = switch
        except Exception:  # it cannot be switched (or not run at all, which discovery reports)
            return

    def _run_both(self, frames: Tensor, mode: StepMode, driven: DrivenNeurons) -> list[Tensor]:
        """What a run with the model's own spikes leaves, and one with driven neurons."""
        own = self._run_from_reset(frames, mode)
        with driven.applied():
            return [*own, *self._run_from_reset(frames, mode)]

    def _run_from_reset(self, frames: Tensor, mode: StepMode) -> list[Tensor]:
        """The outputs, and all memories afterwards: spikes may be alike by chance, or for lack of any."""
        self.reset()
        outputs, _ = self._run_in_mode(frames, self.fresh_arguments(), mode)
        return [*outputs, *tensors([vars(node).get("_memories") for node in self.neurons])]

    def run(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        preferred: StepMode = "s" if frames.shape[0] == 1 else "m"
        mode = preferred if preferred in self._switches else self._own_mode
        with patched(self._switches.get(mode, ())):
            return self._run_in_mode(frames, arguments, mode)

    def _run_in_mode(
        self, frames: Tensor, arguments: list[Any], mode: StepMode
    ) -> tuple[tuple[Tensor, ...], list[Any]]:
        if mode == "s":
            return super().run_own(frames, arguments)
        steps, n = frames.shape[:2]
        result = picked(self.model(frames), self.output)
        outputs = result if isinstance(result, tuple | list) else (result,)
        if not isinstance(outputs[0], Tensor) or outputs[0].ndim < 3 or outputs[0].shape[:2] != (steps, n):
            seen = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else type(outputs[0]).__name__
            raise ModelRefused(
                f"{type(self.model).__name__} answers [{steps}, {n}, ...] with {seen}, not with one output per "
                f"timestep, [{steps}, {n}, C].",
                "Return the outputs of all timesteps.",
            )
        return tuple(
            o for o in outputs if isinstance(o, Tensor) and o.ndim >= 3 and o.shape[:2] == (steps, n)
        ), arguments

    def run_own(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]:
        return self._run_in_mode(frames, arguments, self._own_mode)

    def explain(self) -> dict[str, str]:
        single = "s" if "s" in self._switches else self._own_mode
        return {
            "step mode": f"{self._own_mode!r} as set by the caller; single steps are made in {single!r}",
            **super().explain(),
        }


def _comparable(value: Any) -> Any:
    """A value that can be compared by equality: a tensor by its identity."""
    return id(value) if isinstance(value, Tensor) else value


def _can_be_reached(threshold: Any) -> bool:
    """Whether a threshold is one for spikes; an enormous one makes a neuron that only integrates."""
    return not isinstance(threshold, int | float) or threshold < _NEVER


def _outermost_step_modes(module: nn.Module) -> list[StepMode]:
    """Step modes of the stateful modules, or of the multi-step containers around them, met first from the root."""
    attributes = vars(module)
    if isinstance(module, recurrent_classes()):
        return ["m"]
    if "_memories" in attributes:
        # In clock_driven a node takes sequences or single frames by its name, and cannot be switched.
        legacy: StepMode = "m" if type(module).__name__.startswith("MultiStep") else "s"
        return [attributes.get("_step_mode", legacy)]
    takes_time = attributes.get("_step_mode") == "m" or _is_multi_step_only(module)
    if takes_time and any("_memories" in vars(inner) for inner in module.modules()):
        return ["m"]
    return [mode for child in module.children() for mode in _outermost_step_modes(child)]


def _is_multi_step_only(module: nn.Module) -> bool:
    supported: Any = getattr(module, "supported_step_mode", None)
    return callable(supported) and supported() == ("m",)
