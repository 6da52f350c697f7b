"""One compiled or recorded timestep of a fixed number of rows.

A timestep becomes a function of tensors by putting the state of the rows into the model, running it and taking the
state out again, as in every timestep. The function is captured once; from then on no Python code of the model runs.
This is the same for every framework.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ..adapter.contract import Rows
from ..adapter.module_adapter import ModuleAdapter, RowKind
from ..state.layout import StateSpec
from ..state.values import same, tensors
from ..stepping.stepper import Outputs
from .capture import Function, capture, compile_graph
from .compile_settings import CompileSettings
from .compiled_check import check_compiled
from .cuda_graph import GraphStep, Holder
from .tensor_form import Like, Misfit, TensorForm

_TF32: Final = 2.0**-10
"""Distance of neighbouring numbers in TF32, to which convolutions on a GPU round float32 unless told not to."""

logger = logging.getLogger("seenn_plugin")


def compile_step(
    adapter: ModuleAdapter, kind: RowKind, settings: CompileSettings, rows: Rows, frames: Tensor | None, size: int
) -> CompiledStep:
    """Compile or record a timestep of ``size`` rows, and check it on the given rows.

    Args:
        adapter: makes the timestep.
        kind: the kind of the rows.
        settings: whether it is compiled, and by what it is recorded.
        rows: rows before this timestep; at most ``size``.
        frames: ``[1, n, ...]``, if a timestep takes any.
        size: the batch size of the step.

    Raises:
        Disagrees: the step does not answer as the model does.
        Misfit: the state of the rows does not consist of tensors of fixed shapes.
    """
    logger.info(
        "%s one timestep of %s for %d rows%s",
        "compiling" if settings.compile else "recording",
        type(adapter.model).__name__,
        size,
        ", which may take a minute" if settings.compile else "",
    )
    specs, n, device = kind.layout.specs, len(rows), rows.inputs.device
    everyone = _first(size, n, device)
    values = [_padded(spec, value, everyone, n) for spec, value in zip(specs, rows.state.values, strict=True)]
    given = [] if frames is None else [frames.index_select(1, everyone)]

    def timestep(frames: Sequence[Tensor], values: list[Any], started: bool = True) -> tuple[Outputs, list[Any]]:
        frame = frames[0] if frames else None
        return adapter.explicit_steps(kind, frame, 1, values, started, fused=False)

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if rows.now == 0:  # only after a timestep do the values have their full shape
            _, after = timestep(given, values, started=False)
            values = [
                spec.refill(a, _first(size, size, device), v) for spec, a, v in zip(specs, after, values, strict=True)
            ]
        form = TensorForm.of(specs, values)
        state = [torch.empty_like(tensor).copy_(tensor) for tensor in form.tensors(values)]  # each in its own memory
        form = TensorForm.of(specs, form.values_of(state))

        def eager(frames: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Outputs, list[Tensor]]:
            outputs, after = timestep(frames, form.values_of(state))
            return outputs, form.with_strides(form.tensors(after))

        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs, after = eager(tensors[: len(given)], tensors[len(given) :])
            return [*outputs, *after]

        examples = [*given, *state]
        graph = capture(flat, examples)
        function: Function = graph
        if settings.compile:
            function = compile_graph(graph, examples)
        if torch.is_autocast_enabled(device.type):  # the graph contains its casts
            function = _without_autocast(function, device)
        step: Step = _plain(function, len(state))
        if settings.recorder is not None:
            step = GraphStep(function, given, state, settings.recorder)
        agreement = check_compiled(
            eager, lambda frames, state: step(frames, state, _NoHolder()), given, state, precision(examples, device)
        )
    return CompiledStep(specs, size, form, [Like.of(frame) for frame in given], step, agreement)


def _plain(function: Function, states: int) -> Step:
    def step(frames: Sequence[Tensor], state: Sequence[Tensor], holder: Holder) -> tuple[list[Tensor], list[Tensor]]:
        made = list(function(*frames, *state))
        return made[: len(made) - states], made[len(made) - states :]

    return step


def _without_autocast(function: Function, device: torch.device) -> Function:
    def inner(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.autocast(device.type, enabled=False):
            return function(*tensors)

    return inner


def precision(tensors: Sequence[Tensor], device: torch.device) -> float:
    """The relative distance of neighbouring numbers in the least precise arithmetic of the computation."""
    types = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    if torch.is_autocast_enabled(device.type):
        types.append(torch.get_autocast_dtype(device.type))
    found = max((torch.finfo(dtype).eps for dtype in types or [torch.get_default_dtype()]), default=0.0)
    tf32 = torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
    return max(found, _TF32) if device.type == "cuda" and tf32 and torch.float32 in types else found


def _first(size: int, n: int, device: torch.device) -> Tensor:
    """Places ``[size]`` among ``n`` rows: each row once, then the last one repeatedly."""
    return torch.arange(size, device=device).clamp(max=n - 1)


def _padded(spec: StateSpec, value: Any, everyone: Tensor, n: int) -> Any:
    """``value`` of ``n`` rows for the rows ``everyone``. A first value that all rows share stays as it is."""
    return value if any(size != n for size in spec.row_counts(value)) else spec.keep(value, everyone)


Step = Callable[[Sequence[Tensor], Sequence[Tensor], Holder], tuple[list[Tensor], list[Tensor]]]
"""From frames (at most one) and state to outputs and the state afterwards, for the holder of both states."""


class _NoHolder:
    """Stands for rows that do not keep the returned state."""

    def __init__(self) -> None:
        self.values: list[Any] = []


class CompiledStep:
    """One timestep of ``rows`` rows, or of fewer, filled up with copies of the last row.

    Args:
        specs: of the values that the rows carry.
        rows: the batch size.
        form: the form of their values.
        frames: shapes and strides of the frames, of which there is at most one.
        step: the compiled or recorded function.
        agreement: the result of the comparison with the eager step, in words.
    """

    def __init__(
        self, specs: tuple[StateSpec, ...], rows: int, form: TensorForm, frames: list[Like], step: Step, agreement: str
    ) -> None:
        self.rows, self.agreement = rows, agreement
        self._specs, self._form, self._frames, self._step = specs, form, frames, step
        self._fresh: dict[int, tuple[Any, Any]] = {}  # first values without tensors, and their full form

    def advance(self, rows: Rows, frames: Tensor | None) -> Outputs | None:
        """One timestep of ``rows``; ``None``, without any change, if their values have another form."""
        n, holder = len(rows), rows.state
        everyone = None if n == self.rows else _first(self.rows, n, rows.inputs.device)
        given = [] if frames is None else [frames if everyone is None else frames.index_select(1, everyone)]
        if not all(map(Like.fits, self._frames, given)):
            return None
        values = holder.values
        if everyone is not None:
            values = [_padded(spec, value, everyone, n) for spec, value in zip(self._specs, values, strict=True)]
        try:
            state = self._fresh_state(values) if rows.now == 0 else self._form.tensors(values)
        except Misfit:
            return None
        given = list(map(Like.with_strides, self._frames, given))
        outputs, after = self._step(given, self._form.with_strides(state), holder)
        values = self._form.values_of(after)
        if everyone is not None:
            values = [spec.keep(value, everyone[:n]) for spec, value in zip(self._specs, values, strict=True)]
            outputs = [output[:, :n] for output in outputs]
            rows.padded += self.rows - n
        holder.values = values
        return tuple(outputs)

    def _fresh_state(self, values: list[Any]) -> list[Tensor]:
        """The tensors of ``values`` before the first timestep, in full shape. Most values start from one number."""
        template: list[Any] = []
        full: list[Any] = []
        for i, (spec, value) in enumerate(zip(self._specs, values, strict=True)):
            known = self._fresh.get(i)
            if known is not None and same(known[0], value):
                full.append(known[1])
            elif spec.row_dim is None or spec.row_tensors(value):
                full.append(value)
            else:
                template = template or self._form.values_of([like.empty() for like in self._form.likes])
                everyone = _first(self.rows, self.rows, self._form.likes[0].device)
                full.append(spec.refill(template[i], everyone, value))
                if not any(tensor.numel() for tensor in tensors(value)):
                    self._fresh[i] = value, full[i]
        return self._form.with_strides(self._form.tensors(full))
