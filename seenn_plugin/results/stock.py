"""The network without early exit, run as the users of its framework run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import SeennError
from ..module_adapter import ModuleAdapter
from ..policies import FixedPolicy
from ..signature import call_keywords
from ..stepper import results
from ..tolerance import rows_agree
from ..wrapper import EarlyExitWrapper

Run = Callable[[Tensor], object]
"""Runs a batch, rows on dimension 0."""

OWN = "the framework's own run"
WRAPPED = "every sample to the end, timestep by timestep"
"""Where the framework's own run has not the wanted length, or its answers cannot be compared."""


class Stock:
    """Runs of the network for a given number of timesteps.

    Args:
        snn: the wrapped network, whose model is the study's own: its state is reset, not lent.
        wrapper: the arguments with which it was wrapped.
        x: a few rows ``[N, ...]``, to find out how the framework runs the network: the way that gives the answers of
            :meth:`seenn_plugin.adapter.Adapter.reference` is taken.
    """

    @torch.no_grad()
    def __init__(self, snn: EarlyExitWrapper, wrapper: dict[str, object], x: Tensor) -> None:
        self._snn = snn
        self._wrapper = wrapper
        self._sequence = snn.input == "sequence"
        self._timesteps = len(snn.trace(x))
        self._way, self._any_length = self._find(x)

    def run(self, timesteps: int) -> tuple[Run, str]:
        """A run of so many timesteps, and what it is: :data:`OWN` or :data:`WRAPPED`."""
        if self._way is not None and (self._any_length or timesteps == self._timesteps):
            way = self._way
            return lambda x: self._fresh(way, x, timesteps), OWN
        arguments = {**self._wrapper, "policy": FixedPolicy(timesteps)}
        return EarlyExitWrapper(self._snn.model, **arguments).infer, WRAPPED  # pyright: ignore[reportArgumentType]

    def _find(self, x: Tensor) -> tuple[Callable[[Tensor, int], object] | None, bool]:
        adapter = self._snn.adapter
        if not isinstance(adapter, ModuleAdapter):
            return None, False
        inputs = x.transpose(0, 1) if self._sequence else x
        reference = adapter.reference(inputs, self._sequence, self._timesteps).outputs[0][0]
        for way, any_length in self._ways(adapter):
            try:
                outputs = results(self._fresh(way, x, self._timesteps))[0]
            except (SeennError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                adapter.reset()
                continue
            if outputs is not None and _equal(outputs, reference):
                return way, any_length
        return None, False

    def _ways(self, adapter: ModuleAdapter) -> Iterator[tuple[Callable[[Tensor, int], object], bool]]:
        """Ways to call the network, and whether they may take fewer timesteps than it makes."""
        model = adapter.model
        if adapter.takes_time():
            yield lambda x, t: model(self._frames(x, t)), True
        yield lambda x, t: model(self._as_the_caller_has_it(x), **call_keywords(model, x, t)), False
        yield lambda x, t: adapter.run_own(self._frames(x, t), adapter.fresh_arguments())[0], True

    def _fresh(self, way: Callable[[Tensor, int], object], x: Tensor, timesteps: int) -> object:
        adapter = self._snn.adapter
        assert isinstance(adapter, ModuleAdapter)
        adapter.reset()
        outputs = way(x, timesteps)
        adapter.reset()  # or the rows' state would lie in the model
        return outputs

    def _frames(self, x: Tensor, timesteps: int) -> Tensor:
        return x.transpose(0, 1)[:timesteps] if self._sequence else x.unsqueeze(0).expand(timesteps, *x.shape)

    def _as_the_caller_has_it(self, x: Tensor) -> Tensor:
        return x.transpose(0, self._snn.time_dim ^ 1) if self._sequence else x


def _equal(outputs: Tensor, reference: Tensor) -> bool:
    """Whether the outputs are the reference, perhaps ``[N, T, ...]`` for ``[T, N, ...]``."""
    arrangements = [outputs] if outputs.ndim < 3 else [outputs, outputs.transpose(0, 1)]
    return any(one.shape == reference.shape and bool(rows_agree(one, reference).all()) for one in arrangements)
