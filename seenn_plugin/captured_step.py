"""Captured steps: one timestep of a fixed number of rows, compiled or recorded, in place of the eager one.

A timestep is made a function of tensors by lending the state to the model, running it and taking the state out again,
as in every timestep; the function is traced once, and from then on no Python runs. That is the same for every
framework. It is used where the number of rows fits and nothing that was baked in has changed; in every other case the
model makes its timestep itself.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .adapter import Rows
from .captured_check import Disagrees, check_captured
from .cuda_graph import CudaRecorder, GraphStep, Holder, Recorder
from .errors import InputError
from .module_state import OWN_HOOK, is_plain, same, tensors
from .state_map import Spot
from .tracing import Function, compiled, trace
from .watch import Watch

if TYPE_CHECKING:
    from .module_adapter import ModuleAdapter, _Kind

logger = logging.getLogger("seenn_plugin")

_PARTS: Final = (1, 2, 4, 8)
# How many rows are computed for one that there is, at most. On a GPU launches cost more than rows; on a CPU a compiled
# step is not much faster than the model's own, unless it computes in less precision.
_PADDING: Final = 1.1
_PADDING_IF_FAST: Final = 2.0

_NOT_CAPTURED: Final = "not captured, and run as they are"

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class CaptureSettings:
    """Which timesteps are captured, and how.

    Attributes:
        rows: the numbers of rows, rising; none until the slots are known that they depend on.
        compile: whether they are compiled.
        recorder: what replays them as CUDA graphs; ``None`` if they are not.
    """

    rows: tuple[int, ...]
    compile: bool
    recorder: Recorder | None = None

    @classmethod
    def of(cls, compile: bool | Sequence[int], cuda_graphs: bool) -> Self | None:
        """From what the user says; ``None`` if nothing is to be captured.

        Args:
            compile: whether to compile, or for which numbers of rows.
            cuda_graphs: whether to replay CUDA graphs.

        Raises:
            InputError: ``compile`` is neither a bool nor positive integers.
        """
        if isinstance(compile, bool):
            rows = set()
        else:
            given = list(compile) if isinstance(compile, Sequence) and not isinstance(compile, str) else []
            if not given or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in given):
                raise InputError(f"compile must be True, False or numbers of rows, such as (64, 1), not {compile!r}.")
            rows = set(given)
        if compile is False and not cuda_graphs:
            return None
        return cls(tuple(sorted(rows)), compile is not False, CudaRecorder() if cuda_graphs else None)

    def for_slots(self, slots: int) -> Self:
        """With numbers of rows, if the user has named none: ``slots``, a half, a quarter, an eighth of it, and one.

        Args:
            slots: rows in flight at most.
        """
        rows = self.rows or sorted({max(1, slots // part) for part in _PARTS} | {1})
        return replace(self, rows=tuple(rows))

    def rows_for(self, n: int, device: torch.device) -> int | None:
        """On how many rows ``n`` are computed; ``None`` if too many would be computed in vain."""
        fast = device.type == "cuda" or torch.is_autocast_enabled(device.type)
        at_most = n * (_PADDING_IF_FAST if fast else _PADDING)
        return next((rows for rows in self.rows if n <= rows <= at_most), None)


class CapturedSteps:
    """The captured steps of one kind of rows."""

    def __init__(self) -> None:
        self._steps: dict[Any, _CapturedStep] = {}
        self._watch: Watch | None = None
        self._refused = ""  # why nothing is captured any more
        self._said: list[str] = []

    def advance(self, adapter: ModuleAdapter, rows: Rows, frames: Tensor | None) -> Outputs | None:
        """One timestep of ``rows``, captured; ``None`` if the model is to make it, and nothing has happened.

        Args:
            adapter: the adapter of the model, which holds the settings.
            frames: ``[1, n, ...]``, if a timestep takes any.
        """
        settings, kind, device = adapter.capture, rows.memory.kind, rows.inputs.device
        if settings is None or self._refused or torch.is_grad_enabled() or _get_current_dispatch_mode() is not None:
            return None
        size = settings.rows_for(len(rows), device)
        if size is None:
            return None
        why_not = _why_not(adapter, kind)
        if why_not:
            self._say(adapter, f"{_NOT_CAPTURED}: {why_not}")
            return None
        if settings.recorder is not None and (why_not := settings.recorder.why_not(device)):
            self._say(adapter, f"not replayed as CUDA graphs: {why_not}")
            if not settings.compile:
                return None
            settings = replace(settings, recorder=None)
        if rows.youngest == 0 and not adapter.is_private and self._watch is not None and self._watch.changed():
            self._steps, self._watch = {}, None
            logger.info("%s has changed: its captured steps are dropped", type(adapter.model).__name__)
        key = (size, settings.compile, settings.recorder, *_modes(device))
        try:
            with torch.inference_mode(False), torch.no_grad():
                if key not in self._steps:
                    watch = self._watch or Watch(adapter.model, adapter.places_of_state())
                    self._steps[key] = _capture(adapter, kind, settings, rows, frames, size)
                    self._watch = watch
                return self._steps[key].advance(rows, frames)
        except Exception as error:  # whatever it is, the model can make its timesteps itself
            message = str(error).strip().split("\n")[0]
            self._refused = message if isinstance(error, Disagrees | Misfit) else f"{type(error).__name__}: {message}"
            self._steps = {}
            self._say(adapter, f"{_NOT_CAPTURED}: {self._refused}")
            return None

    def describe(self, settings: CaptureSettings) -> str:
        """For :meth:`EarlyExitWrapper.explain`."""
        ways = [*(["compiled"] if settings.compile else []), *(["CUDA graph"] if settings.recorder else [])]
        text = (
            f"{' in a '.join(ways)} for {', '.join(map(str, settings.rows))} rows, when first needed, without gradients"
        )
        if self._refused:
            return f"none, though asked for: {self._refused}"
        made = [f"{step.rows} rows: {step.agreement}" for step in self._steps.values()]
        return "; ".join([text, *made, *(f"at times {what}" for what in self._said)])

    def _say(self, adapter: ModuleAdapter, what: str) -> None:
        if what not in self._said:
            self._said.append(what)
            name = type(adapter.model).__name__
            warnings.warn(f"the timesteps of {name} are {what}.", RuntimeWarning, stacklevel=7)


def _why_not(adapter: ModuleAdapter, kind: _Kind) -> str:
    """Why rows of a kind cannot be captured at all; empty if they may."""
    if kind.state_map.not_refillable:
        return f"its rows need more than tensors of their own ({kind.state_map.not_refillable})"
    if _has_hooks(adapter.modules):
        return "it has forward hooks, which would not be called"
    return ""


def _has_hooks(modules: Collection[nn.Module]) -> bool:
    """Whether a forward hook, of one module or of all, wants to be called in every timestep."""
    if _module._global_forward_hooks or _module._global_forward_pre_hooks:
        return True
    return any(key != OWN_HOOK for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks) for key in hooks)


# -- capturing --------------------------------------------------------------------------------------------------------


def _capture(
    adapter: ModuleAdapter, kind: _Kind, settings: CaptureSettings, rows: Rows, frames: Tensor | None, size: int
) -> _CapturedStep:
    """Capture a timestep of ``size`` rows, and see that it is right, on the rows at hand."""
    logger.info(
        "%s one timestep of %s for %d rows%s",
        "compiling" if settings.compile else "recording",
        type(adapter.model).__name__,
        size,
        ", which may take a minute" if settings.compile else "",
    )
    spots, n, device = kind.state_map.spots, len(rows), rows.inputs.device
    everyone = _first(size, n, device)
    values = [_padded(spot, value, everyone, n) for spot, value in zip(spots, rows.memory.values, strict=True)]
    given = [] if frames is None else [frames.index_select(1, everyone)]

    def timestep(frames: Sequence[Tensor], values: list[Any], started: bool = True) -> tuple[Outputs, list[Any]]:
        frame = frames[0] if frames else None
        return adapter.explicit_steps(kind, frame, 1, values, started, quickened=False)

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if rows.now == 0:  # what is full is seen after a timestep
            _, after = timestep(given, values, started=False)
            values = [
                spot.refill(a, _first(size, size, device), v) for spot, a, v in zip(spots, after, values, strict=True)
            ]
        form = _Form.of(spots, values)
        state = [torch.empty_like(tensor).copy_(tensor) for tensor in form.tensors(values)]  # each in memory of its own
        form = _Form.of(spots, form.put_together(state))

        def eager(frames: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Outputs, list[Tensor]]:
            outputs, after = timestep(frames, form.put_together(state))
            return outputs, form.laid_out(form.tensors(after))

        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs, after = eager(tensors[: len(given)], tensors[len(given) :])
            return [*outputs, *after]

        examples = [*given, *state]
        graph = trace(flat, examples)
        function: Function = graph
        if settings.compile:
            function = compiled(graph, examples)
        if torch.is_autocast_enabled(device.type):  # what it casts has been traced
            function = _without_autocast(function, device)
        step: Step = _plain(function, len(state))
        if settings.recorder is not None:
            step = GraphStep(function, given, state, settings.recorder)
        agreement = check_captured(
            eager, lambda frames, state: step(frames, state, _Nobody()), given, state, _least_precise(examples, device)
        )
    return _CapturedStep(spots, size, form, [Like.of(frame) for frame in given], step, agreement)


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


def _modes(device: torch.device) -> tuple[Any, ...]:
    """What else decides which operations are made, and how."""
    return (
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )


def _least_precise(tensors: Sequence[Tensor], device: torch.device) -> torch.dtype:
    """The least precise type that is computed in."""
    types = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    if torch.is_autocast_enabled(device.type):
        types.append(torch.get_autocast_dtype(device.type))
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.get_default_dtype())


def _first(size: int, n: int, device: torch.device) -> Tensor:
    """Places ``[size]`` among ``n`` rows: each of them, and the last again and again."""
    return torch.arange(size, device=device).clamp(max=n - 1)


def _padded(spot: Spot, value: Any, everyone: Tensor, n: int) -> Any:
    """``value`` of ``n`` rows for the rows ``everyone``; one that they all start with stays."""
    return value if any(size != n for size in spot.row_counts(value)) else spot.keep(value, everyone)


Step = Callable[[Sequence[Tensor], Sequence[Tensor], Holder], tuple[list[Tensor], list[Tensor]]]
"""From frames (at most one) and state to outputs and the state afterwards, for the holder of both states."""


class _Nobody:
    """Holds on to nothing."""

    def __init__(self) -> None:
        self.values: list[Any] = []


class _CapturedStep:
    """One timestep of ``rows`` rows, or of fewer, beside which copies of the last are computed.

    Args:
        spots: of the values that the rows carry.
        rows: how many rows are computed.
        form: how their values lie.
        frames: what the frames are like, of which there is at most one.
        step: the captured step.
        agreement: what the comparison with the eager step has shown.
    """

    def __init__(
        self, spots: tuple[Spot, ...], rows: int, form: _Form, frames: list[Like], step: Step, agreement: str
    ) -> None:
        self.rows, self.agreement = rows, agreement
        self._spots, self._form, self._frames, self._step = spots, form, frames, step
        self._fresh: dict[int, tuple[Any, Any]] = {}  # for values without tensors: what full rows of them are

    def advance(self, rows: Rows, frames: Tensor | None) -> Outputs | None:
        """One timestep of ``rows``; ``None`` if their values do not lie as those that it was captured with."""
        n, holder = len(rows), rows.memory
        everyone = None if n == self.rows else _first(self.rows, n, rows.inputs.device)
        given = [] if frames is None else [frames if everyone is None else frames.index_select(1, everyone)]
        if not all(map(Like.fits, self._frames, given)):
            return None
        values = holder.values
        if everyone is not None:
            values = [_padded(spot, value, everyone, n) for spot, value in zip(self._spots, values, strict=True)]
        try:
            state = self._fresh_state(values) if rows.now == 0 else self._form.tensors(values)
        except Misfit:
            return None
        given = list(map(Like.lay_out, self._frames, given))
        outputs, after = self._step(given, self._form.laid_out(state), holder)
        values = self._form.put_together(after)
        if everyone is not None:
            values = [spot.keep(value, everyone[:n]) for spot, value in zip(self._spots, values, strict=True)]
            outputs = [output[:, :n] for output in outputs]
            rows.padded += self.rows - n
        holder.values = values
        return tuple(outputs)

    def _fresh_state(self, values: list[Any]) -> list[Tensor]:
        """The tensors of ``values`` before the first timestep, in full. Mostly they start from numbers, all alike."""
        template: list[Any] = []
        full: list[Any] = []
        for i, (spot, value) in enumerate(zip(self._spots, values, strict=True)):
            known = self._fresh.get(i)
            if known is not None and same(known[0], value):
                full.append(known[1])
            elif spot.row_dim is None or spot.row_tensors(value):
                full.append(value)
            else:
                template = template or self._form.put_together([like.empty() for like in self._form.likes])
                everyone = _first(self.rows, self.rows, self._form.likes[0].device)
                full.append(spot.refill(template[i], everyone, value))
                if not any(tensor.numel() for tensor in tensors(value)):
                    self._fresh[i] = value, full[i]
        return self._form.laid_out(self._form.tensors(full))


# -- how values lie -------------------------------------------------------------------------------------------------


_TENSOR: Final = object()


class Misfit(Exception):
    """Values do not lie as those that a step was captured with."""


@dataclass(frozen=True)
class Like:
    """All of a tensor but its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Like:
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def fits(self, tensor: Tensor) -> bool:
        return tensor.shape == self.shape and tensor.dtype == self.dtype and tensor.device == self.device

    def lay_out(self, tensor: Tensor) -> Tensor:
        """``tensor``, in memory as the one that was captured."""
        own = tensor.stride()
        if own == self.stride or all(a == b or n == 1 for a, b, n in zip(own, self.stride, self.shape, strict=True)):
            return tensor
        return tensor.new_empty_strided(self.shape, self.stride).copy_(tensor)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class _Form:
    """How the values of rows are made of tensors and of constants.

    Attributes:
        specs: for each value, its containers; ``None`` where it is a tensor.
        constants: for each value, its leaves, with a mark where a tensor is.
        likes: what the tensors are like.
    """

    specs: tuple[Any, ...]
    constants: tuple[tuple[Any, ...], ...]
    likes: tuple[Like, ...]

    @classmethod
    def of(cls, spots: Sequence[Spot], values: Sequence[Any]) -> _Form:
        specs, constants, likes = [], [], []
        for spot, value in zip(spots, values, strict=True):
            leaves, spec = pytree.tree_flatten(value)
            if not all(is_plain(leaf) or callable(leaf) for leaf in leaves):
                raise Misfit(f"it carries {spot.label}, which holds more than tensors and numbers")
            specs.append(None if isinstance(value, Tensor) else spec)
            constants.append(tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves))
            likes += [Like.of(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        return cls(tuple(specs), tuple(constants), tuple(likes))

    def tensors(self, values: Sequence[Any]) -> list[Tensor]:
        """The tensors in ``values``.

        Raises:
            Misfit: something else has changed.
        """
        found: list[Tensor] = []
        for spec, constants, value in zip(self.specs, self.constants, values, strict=True):
            if spec is None and isinstance(value, Tensor):
                found.append(value)
                continue
            leaves, own = pytree.tree_flatten(value)
            if own != spec or not all(map(_is_constant, leaves, constants)):
                raise Misfit("what its rows carry changes from timestep to timestep in more than the values of tensors")
            found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if len(found) != len(self.likes) or not all(map(Like.fits, self.likes, found)):
            raise Misfit("what its rows carry changes its size or type from timestep to timestep")
        return found

    def laid_out(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(map(Like.lay_out, self.likes, tensors))

    def put_together(self, tensors: Sequence[Tensor]) -> list[Any]:
        following = iter(tensors)
        values = []
        for spec, constants in zip(self.specs, self.constants, strict=True):
            leaves = [next(following) if constant is _TENSOR else constant for constant in constants]
            values.append(leaves[0] if spec is None else pytree.tree_unflatten(leaves, spec))
        return values


def _is_constant(leaf: Any, constant: Any) -> bool:
    if isinstance(leaf, Tensor):
        return constant is _TENSOR
    return leaf is constant or (type(leaf) is type(constant) and is_plain(leaf) and leaf == constant)
