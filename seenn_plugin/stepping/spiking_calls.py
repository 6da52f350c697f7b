"""Finds the time loop of a ``forward`` by running it once and recording the lines from which neurons are called."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import unwrap
from types import CodeType, FrameType
from typing import Any, Final

import torch
from torch import nn

from ..errors import ModelRefused
from .time_loop import TimeLoop, loops_around, read_source

_TORCH: Final = torch.__file__.removesuffix("__init__.py")
_REMEDY: Final = "Write the timesteps as one plain for loop in forward(), or wrap the module that makes one timestep."


@dataclass(frozen=True)
class SpikingCall:
    """One call of a neuron.

    Attributes:
        neuron: the module.
        place: the instructions that led to it, from ``forward`` on; two calls written in one line have two places.
        line: its line.
        via: the function that ``forward`` called there, unless it was the neuron itself.
    """

    neuron: nn.Module
    place: tuple[int, ...]
    line: int
    via: CodeType | None


def most_from_one_place(calls: Sequence[SpikingCall]) -> int:
    """The largest number of calls of one neuron from one place."""
    return max(Counter((call.neuron, call.place) for call in calls).values(), default=0)


@contextmanager
def recording_calls(model: nn.Module, neurons: Collection[nn.Module]) -> Iterator[list[SpikingCall]]:
    """Record every call of a neuron, and the place in ``model.forward``, or in a part of it, that it came from."""
    calls: list[SpikingCall] = []
    code = getattr(unwrap(getattr(model.forward, "__func__", model.forward)), "__code__", None)
    root = (code.co_filename, code.co_name) if code is not None else None
    caller: FrameType | None = sys._getframe(2)  # beyond it may lie a forward() of the same file that holds the wrapper

    def note(neuron: nn.Module, *_: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        line, via, inner = 0, None, None
        steps: list[int] = []
        place: tuple[int, ...] = ()
        while frame is not None and frame is not caller:
            steps.append(frame.f_lasti)
            if (frame.f_code.co_filename, frame.f_code.co_name) == root:  # the outermost one is the model's own
                place, line, via = tuple(steps), frame.f_lineno, inner
            if not frame.f_code.co_filename.startswith(_TORCH):
                inner = frame.f_code
            frame = frame.f_back
        calls.append(SpikingCall(neuron, place, line, via))

    handles = [neuron.register_forward_pre_hook(note) for neuron in neurons]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_time_loop(model: nn.Module, neurons: Collection[nn.Module], call: Callable[[], Any]) -> TimeLoop | None:
    """The time loop inside ``model.forward``; ``None`` if one call of the model is one timestep, or takes them all.

    Args:
        model: the model.
        neurons: its modules that hold state.
        call: runs the model once; what it raises is raised.

    Raises:
        ModelRefused: neurons are called again and again, and not from one plain ``for`` loop in ``forward``.
    """
    with recording_calls(model, neurons) as calls:
        call()
    if most_from_one_place(calls) < 2:
        return None
    kind = type(model).__name__
    source = read_source(model)
    times = Counter((call.neuron, call.place) for call in calls)
    outermost: dict[ast.For | ast.While, None] = {}
    for one in calls:
        around = loops_around(source.tree, one.line)
        if around:
            outermost.setdefault(around[0])
        elif times[one.neuron, one.place] > 1:
            via = f", in {one.via.co_qualname} ({one.via.co_filename}:{one.via.co_firstlineno})" if one.via else ""
            inner = _module_with_loop(model, one.via)
            raise ModelRefused(
                f"line {one.line} of {kind}.forward calls a {type(one.neuron).__name__} "
                f"{times[one.neuron, one.place]} times{via}: its time loop is not in its own forward().",
                f"Wrap the module that runs the loop: model.{inner}." if inner else _REMEDY,
            )
    if len(outermost) > 1:
        lines = ", ".join(str(loop.lineno) for loop in outermost)
        raise ModelRefused(
            f"{kind}.forward calls its neurons in several loops (lines {lines}), which are not advanced together yet.",
            _REMEDY,
        )
    (loop,) = outermost
    if isinstance(loop, ast.While):
        raise ModelRefused(f"{kind}.forward runs its timesteps in a while loop (line {loop.lineno}).", _REMEDY)
    found = TimeLoop(source, loop)
    found.refuse_what_cannot_be_split(kind)
    return found


def _module_with_loop(model: nn.Module, via: CodeType | None) -> str:
    """The name of the only module of ``model`` that runs a loop in its own ``forward``; empty if there is none."""
    names = [name for name, module in model.named_modules() if name and _code_of(module) is via is not None]
    return names[0] if len(names) == 1 else ""


def _code_of(module: nn.Module) -> CodeType | None:
    return getattr(unwrap(getattr(module.forward, "__func__", module.forward)), "__code__", None)


def refuse_other_loops(model: nn.Module, loop: TimeLoop, passes: Sequence[Sequence[SpikingCall]]) -> None:
    """Refuse a loop of which a pass is no timestep: one over layers or over rows.

    Args:
        model: the model.
        passes: the calls of each pass through the loop.

    Raises:
        ModelRefused: a neuron is called several times from one place of one pass, or none is called in two passes.
    """
    kind = type(model).__name__
    if any(most_from_one_place(calls) > 1 for calls in passes):
        inner = _module_with_loop(model, next((call.via for calls in passes for call in calls if call.via), None))
        if inner:
            raise ModelRefused(
                f"the time loop of {kind} is not in its own forward().",
                f"Wrap the module that runs the loop: model.{inner}.",
            )
        raise ModelRefused(
            f"one pass through {loop} calls a neuron several times from one place, so that it is not one timestep of "
            f"{kind}.",
            _REMEDY,
        )
    met = Counter(neuron for calls in passes for neuron in {call.neuron for call in calls})
    if len(passes) > 1 and max(met.values(), default=0) < 2:
        raise ModelRefused(
            f"each pass through {loop} calls other neurons: it runs over layers, not over the timesteps of {kind}.",
            _REMEDY,
        )
