"""Replaying a timestep as one CUDA graph: no Python, and one launch.

A graph always reads and writes the same memory. The rows that ran last keep their state there, so that their next
timestep copies nothing. Before other rows run, this state is copied out.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ..state.values import map_tensors
from .capture import Function

_WARM_UP: Final = 3


class Holder(Protocol):
    """The holder of the state that a graph returned: the state of some rows."""

    values: list[Any]


class Recorder(ABC):
    """Records work on a device, and repeats it without its Python code."""

    @abstractmethod
    def blocker(self, device: torch.device) -> str:
        """Why work on ``device`` cannot be recorded; empty if it can."""

    @abstractmethod
    def record(self, work: Callable[[], list[Tensor]], device: torch.device) -> tuple[list[Tensor], Callable[[], None]]:
        """Do ``work`` a few times on ``device``, and record it.

        Returns:
            The tensors that it returned, and a function that does it again, into the same tensors.
        """


class CudaRecorder(Recorder):
    """Records CUDA graphs."""

    def blocker(self, device: torch.device) -> str:
        return "" if device.type == "cuda" else f"CUDA graphs need rows on a CUDA device, and these are on {device}"

    def record(self, work: Callable[[], list[Tensor]], device: torch.device) -> tuple[list[Tensor], Callable[[], None]]:
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # libraries choose algorithms and allocate workspaces in their first calls
                for _ in range(_WARM_UP):
                    work()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Only what this thread does is recorded, and only this thread must keep to what can be: others load data.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                made = work()
        return made, graph.replay


class GraphStep:
    """A recorded timestep.

    Args:
        function: from frames and state to outputs and the state afterwards.
        frames, state: examples, of the sizes, strides and types that every call has.
        recorder: what it is recorded with.
    """

    def __init__(
        self, function: Function, frames: Sequence[Tensor], state: Sequence[Tensor], recorder: Recorder
    ) -> None:
        self._frames = [torch.empty_like(frame).copy_(frame) for frame in frames]
        self._state = [torch.empty_like(tensor).copy_(tensor) for tensor in state]
        self._holder: Callable[[], Holder | None] = lambda: None

        self._place_of = {tensor.untyped_storage().data_ptr(): i for i, tensor in enumerate(self._state)}

        def work() -> list[Tensor]:
            made = function(*self._frames, *self._state)
            cut = len(made) - len(self._state)
            # State that a step returns unchanged, or moves from one place to the next, lies in this very memory.
            made = [self._separate(tensor, i - cut) for i, tensor in enumerate(made)]
            _copy(self._state, made[cut:])
            return made[:cut]

        self._outputs, self._replay = recorder.record(work, state[0].device)

    def __call__(
        self, frames: Sequence[Tensor], state: Sequence[Tensor], holder: Holder
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One timestep for ``holder``, whose present state is ``state`` and which takes the returned state."""
        self._copy_out(holder)
        sources = [self._separate(tensor, i) for i, tensor in enumerate(state)]
        _copy([*self._frames, *self._state], [*frames, *sources])
        self._holder = weakref.ref(holder)
        self._replay()
        return [output.clone() for output in self._outputs], list(self._state)

    def _copy_out(self, holder: Holder) -> None:
        """Copy the state of the rows that ran last out of the graph's memory, unless the same rows run now."""
        last = self._holder()
        if last is None or last is holder:
            return
        own = {id(buffer) for buffer in self._state}
        last.values = [map_tensors(lambda t: t.clone() if id(t) in own else t, value) for value in last.values]

    def _separate(self, tensor: Tensor, place: int) -> Tensor:
        """``tensor``, or a copy if it shares memory with the state at another place than ``place``."""
        found = self._place_of.get(tensor.untyped_storage().data_ptr())
        return tensor if found is None or (found == place and tensor is self._state[place]) else tensor.clone()


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy all values but those that are there already, on a GPU in few launches."""
    pairs = [(buffer, value) for buffer, value in zip(into, values, strict=True) if value is not buffer]
    if pairs:
        buffers, sources = (list(tensors) for tensors in zip(*pairs, strict=True))
        torch._foreach_copy_(buffers, sources)  # pyright: ignore[reportPrivateImportUsage]
