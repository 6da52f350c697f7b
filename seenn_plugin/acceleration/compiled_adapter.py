"""An adapter whose single timesteps are compiled, or recorded as CUDA graphs, where that is possible.

A compiled step is used if the number of rows fits and nothing that it contains as a constant has changed. In every
other case the model makes its timestep itself.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..adapter.contract import Adapter, Reference, Rows
from ..adapter.module_adapter import ModuleAdapter, ModuleState, RowKind
from ..inputs import InputBatch
from ..state.change_detection import ModelFingerprint
from ..state.hooks import has_global_hooks, has_hooks
from ..state.isolation import is_occupied, occupied
from ..stepping.stepper import Outputs
from .compile_settings import CompileSettings
from .compiled_check import Disagrees
from .compiled_step import CompiledStep, compile_step
from .tensor_form import Misfit

logger = logging.getLogger("seenn_plugin")

_NOT_COMPILED: Final = "not compiled, and run as they are"

StepCache = WeakKeyDictionary[RowKind, "CompiledSteps"]
"""The compiled steps of each kind of rows. Outlives the runs that use it."""


class CompiledAdapter(Adapter):
    """Another adapter, with compiled single steps. Made for one run; the steps are kept in ``cache``.

    Args:
        inner: the adapter of the model.
        settings: which steps are compiled, with their batch sizes.
        cache: the steps made so far.
    """

    name = "compiled steps"

    def __init__(self, inner: ModuleAdapter, settings: CompileSettings, cache: StepCache) -> None:
        super().__init__(inner.model)
        self.inner, self.settings, self.cache = inner, settings, cache

    @classmethod
    def claims(cls, model: Any) -> bool:
        return False

    def begin(self, inputs: InputBatch) -> Rows:
        return self.inner.begin(inputs)

    def advance(self, rows: Rows, steps: int = 1) -> Outputs:
        state: ModuleState = rows.state
        kind = state.for_current_hooks()
        # While the model is occupied, its weights may be copies: nothing is compiled during discovery and checks.
        if steps == 1 and not is_occupied(self.model):
            self.inner.assert_row_counts(rows)
            frames = rows.frames(1) if kind.stepper.takes_frames else None
            with occupied(self.model):
                outputs = self._steps(kind).advance(self.inner, self.settings, rows, frames)
            if outputs is not None:
                rows.now += 1
                return outputs
        return self.inner.advance(rows, steps)

    def keep(self, rows: Rows, index: Tensor) -> None:
        self.inner.keep(rows, index)

    def place(self, rows: Rows, index: Tensor, inputs: InputBatch) -> None:
        self.inner.place(rows, index, inputs)

    def refill_blocker(self, rows: Rows) -> str:
        return self.inner.refill_blocker(rows)

    def state_tensors(self, rows: Rows) -> list[Tensor]:
        return self.inner.state_tensors(rows)

    def reference(self, inputs: InputBatch, timesteps: int) -> Reference | None:
        return self.inner.reference(inputs, timesteps)

    def answer(self, inputs: InputBatch) -> str | None:
        return self.inner.answer(inputs)

    def makes_chunks(self, inputs: InputBatch) -> bool:
        return self.inner.makes_chunks(inputs)

    def own_timesteps(self, inputs: InputBatch) -> int | None:
        return self.inner.own_timesteps(inputs)

    def runs_whole(self, inputs: InputBatch) -> bool:
        return self.inner.runs_whole(inputs)

    def structure_version(self) -> int:
        return self.inner.structure_version()

    def explain(self) -> dict[str, str]:
        facts, kind = self.inner.explain(), self.inner.latest_kind()
        return facts if kind is None else {**facts, "compiled steps": self._steps(kind).describe(self.settings)}

    def _steps(self, kind: RowKind) -> CompiledSteps:
        return self.cache.setdefault(kind, CompiledSteps())


class CompiledSteps:
    """The compiled steps of one kind of rows."""

    def __init__(self) -> None:
        self._steps: dict[Any, CompiledStep] = {}
        self._fingerprint: ModelFingerprint | None = None
        self._refused = ""  # why nothing is compiled any more
        self._warned: list[str] = []

    def advance(
        self, adapter: ModuleAdapter, settings: CompileSettings, rows: Rows, frames: Tensor | None
    ) -> Outputs | None:
        """One compiled timestep of ``rows``; ``None``, without any change, if the model must make it itself.

        Args:
            adapter: the adapter of the model.
            settings: which steps are compiled.
            rows: the rows.
            frames: ``[1, n, ...]``, if a timestep takes any.
        """
        kind, device = rows.state.kind, rows.inputs.device
        if self._refused or torch.is_grad_enabled() or _get_current_dispatch_mode() is not None:
            return None
        size = settings.rows_for(len(rows), device)
        if size is None:
            return None
        if blocker := _blocker(adapter, kind):
            self._warn(adapter, f"{_NOT_COMPILED}: {blocker}")
            return None
        if settings.recorder is not None and (blocker := settings.recorder.blocker(device)):
            self._warn(adapter, f"not replayed as CUDA graphs: {blocker}")
            if not settings.compile:
                return None
            settings = replace(settings, recorder=None)
        if rows.youngest == 0:
            self._drop_if_changed(adapter)
        key = (size, settings.compile, settings.recorder, *_modes(device))
        try:
            with torch.inference_mode(False), torch.no_grad():
                if key not in self._steps:
                    fingerprint = self._fingerprint or ModelFingerprint(adapter.model, adapter.places_of_state())
                    self._steps[key] = compile_step(adapter, kind, settings, rows, frames, size)
                    self._fingerprint = fingerprint
                return self._steps[key].advance(rows, frames)
        except Exception as error:  # in any case the model can make its timesteps itself
            message = str(error).strip().split("\n")[0]
            self._refused = message if isinstance(error, Disagrees | Misfit) else f"{type(error).__name__}: {message}"
            self._steps = {}
            self._warn(adapter, f"{_NOT_COMPILED}: {self._refused}")
            return None

    def describe(self, settings: CompileSettings) -> str:
        """For :meth:`EarlyExitWrapper.explain`."""
        how = [*(["compiled"] if settings.compile else []), *(["CUDA graph"] if settings.recorder else [])]
        text = (
            f"{' in a '.join(how)} for {', '.join(map(str, settings.rows))} rows, when first needed, without gradients"
        )
        if self._refused:
            return f"none, though asked for: {self._refused}"
        made = [f"{step.rows} rows: {step.agreement}" for step in self._steps.values()]
        return "; ".join([text, *made, *(f"at times {what}" for what in self._warned)])

    def _drop_if_changed(self, adapter: ModuleAdapter) -> None:
        if not adapter.is_private and self._fingerprint is not None and self._fingerprint.changed():
            self._steps, self._fingerprint = {}, None
            logger.info("%s has changed: its compiled steps are dropped", type(adapter.model).__name__)

    def _warn(self, adapter: ModuleAdapter, what: str) -> None:
        if what not in self._warned:
            self._warned.append(what)
            name = type(adapter.model).__name__
            warnings.warn(f"the timesteps of {name} are {what}.", RuntimeWarning, stacklevel=8)


def _blocker(adapter: ModuleAdapter, kind: RowKind) -> str:
    """Why no step of a kind of rows can be compiled; empty if one may be."""
    if kind.layout.refill_blocker:
        return f"its rows need more than tensors of their own ({kind.layout.refill_blocker})"
    if has_global_hooks() or any(map(has_hooks, adapter.modules)):
        return "it has forward hooks, which would not be called"
    return ""


def _modes(device: torch.device) -> tuple[Any, ...]:
    """Settings of PyTorch that decide which operations are executed, and how."""
    return (
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.get_default_dtype(),
    )
