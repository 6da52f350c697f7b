"""The network without early exit, run as the users of its framework run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..adapter.module_adapter import ModuleAdapter
from ..errors import SeennError
from ..inputs import InputBatch
from ..policies import FixedPolicy
from ..stepping.answer import picked, results
from ..stepping.signature import call_keywords
from ..tolerance import rows_agree
from ..wrapper import EarlyExitWrapper

Run = Callable[[Tensor], object]
"""Runs a batch, rows on dimension 0."""

OWN = "the framework's own run"
WRAPPED = "every sample to the end, timestep by timestep"
"""Used if the framework's own run does not have the wanted length, or its answers cannot be compared."""


class Baseline:
    """Runs of the network for a given number of timesteps.

    Args:
        snn: the wrapped network. Its model belongs to the study: its state is reset.
        wrapper: the arguments with which it was wrapped.
        x: a few rows ``[N, ...]``, to find out how the framework runs the network: the call that gives the answers of
            :meth:`seenn_plugin.adapter.Adapter.reference` is used.
    """

    @torch.no_grad()
    def __init__(self, snn: EarlyExitWrapper, wrapper: dict[str, object], x: Tensor) -> None:
        self._snn = snn
        self._wrapper = wrapper
        self._sequence = snn.input == "sequence"
        self._timesteps = len(snn.trace(x))
        self._variant, self._any_length = self._find(x)

    def run(self, timesteps: int) -> tuple[Run, str]:
        """A run of ``timesteps`` timesteps, and which it is: :data:`OWN` or :data:`WRAPPED`."""
        if self._variant is not None and (self._any_length or timesteps == self._timesteps):
            variant = self._variant
            return lambda x: self._fresh(variant, x, timesteps), OWN
        arguments = {**self._wrapper, "policy": FixedPolicy(timesteps)}
        return EarlyExitWrapper(self._snn.model, **arguments).infer, WRAPPED  # pyright: ignore[reportArgumentType]

    def _find(self, x: Tensor) -> tuple[Callable[[Tensor, int], object] | None, bool]:
        adapter = self._snn.adapter
        if not isinstance(adapter, ModuleAdapter):
            return None, False
        values = x.transpose(0, 1) if self._sequence else x
        inputs = InputBatch(values, self._sequence, self._snn.time_dim, self._snn.timesteps)
        reference = adapter.reference(inputs, self._timesteps).outputs[0][0]
        for variant, any_length in self._variants(adapter):
            try:
                outputs = results(self._fresh(variant, x, self._timesteps))[0]
            except (SeennError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                adapter.reset()
                continue
            if outputs is not None and _equal(outputs, reference):
                return variant, any_length
        return None, False

    def _variants(self, adapter: ModuleAdapter) -> Iterator[tuple[Callable[[Tensor, int], object], bool]]:
        """Calls of the network, and whether they accept fewer timesteps than it makes."""
        model = adapter.model
        if adapter.takes_time():
            yield lambda x, t: picked(model(self._frames(x, t)), adapter.output), True
        yield lambda x, t: picked(model(self._as_given(x), **call_keywords(model, x, t)), adapter.output), False
        yield lambda x, t: adapter.run_own(self._frames(x, t), adapter.fresh_arguments())[0], True

    def _fresh(self, variant: Callable[[Tensor, int], object], x: Tensor, timesteps: int) -> object:
        adapter = self._snn.adapter
        assert isinstance(adapter, ModuleAdapter)
        adapter.reset()
        outputs = variant(x, timesteps)
        adapter.reset()  # so that no state of these rows stays in the model
        return outputs

    def _frames(self, x: Tensor, timesteps: int) -> Tensor:
        return x.transpose(0, 1)[:timesteps] if self._sequence else x.unsqueeze(0).expand(timesteps, *x.shape)

    def _as_given(self, x: Tensor) -> Tensor:
        return x.transpose(0, self._snn.time_dim ^ 1) if self._sequence else x


def _equal(outputs: Tensor, reference: Tensor) -> bool:
    """Whether the outputs equal the reference, as ``[T, N, ...]`` or ``[N, T, ...]``."""
    arrangements = [outputs] if outputs.ndim < 3 else [outputs, outputs.transpose(0, 1)]
    return any(one.shape == reference.shape and bool(rows_agree(one, reference).all()) for one in arrangements)
