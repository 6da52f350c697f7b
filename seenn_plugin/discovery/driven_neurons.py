"""Neurons while a network is checked: how often they fire, and runs in which each is driven to fire.

A comparison of two runs proves nothing about what is computed between neurons that do not fire. Attention over time,
batch statistics and a look at later frames are all equal on zeros, and on spikes at every timestep too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from ..state.hooks import DRIVING_HOOK

_STRONGER: Final = 3.0


@dataclass
class Firing:
    """How often a neuron layer fired.

    Attributes:
        spikes: answers that were not zero.
        answers: all answers.
        binary: whether every answer was 0 or one other value.
    """

    spikes: int = 0
    answers: int = 0
    binary: bool = True
    _value: float = 0.0

    def count(self, answers: Tensor) -> None:
        """Count the answers of one call."""
        fired = answers.detach()
        fired = fired[fired != 0]
        self.answers += answers.numel()
        self.spikes += fired.numel()
        if fired.numel():
            self._value = self._value or float(fired[0])
            self.binary = self.binary and bool((fired == self._value).all())

    @property
    def rate(self) -> float:
        """The share of answers that are spikes."""
        return self.spikes / max(1, self.answers)

    @property
    def silent(self) -> bool:
        """Whether it was called, and never spiked."""
        return self.answers > 0 and self.spikes == 0

    @property
    def saturated(self) -> bool:
        """Whether it has spiked at every timestep. Layers that answer with anything but spikes are never saturated."""
        return self.answers > 0 and self.binary and self.spikes == self.answers


@contextmanager
def counting(neurons: Collection[nn.Module]) -> Iterator[dict[nn.Module, Firing]]:
    """Count the spikes of every neuron layer within the block."""
    layers: dict[nn.Module, Firing] = {neuron: Firing() for neuron in innermost(neurons)}

    def hook(neuron: nn.Module, _: Any, output: Any) -> None:
        spikes = _first(output)
        if spikes is not None:
            layers[neuron].count(spikes)

    with _hooked(layers, forward=hook):
        yield layers


class DrivenNeurons:
    """Drives every neuron layer so that it fires, and makes it answer with a smooth function of its input.

    The input of a layer is shifted to mean 0 and scaled until some of its neurons fire, while others rest.
    Its answer is ``(1 + u / (1 + |u|)) / 2``, in ``(0, 1)``, with ``u`` the input in deviations. Whatever is computed
    between the neurons then shows in the answers of the network, at any threshold and any firing rate. Both functions
    are applied to each number alone, with constants found in the first run, so that they are the same in a run of all
    timesteps and in single timesteps, and in any batch.

    Args:
        neurons: the modules of the model that hold state.
    """

    def __init__(self, neurons: Collection[nn.Module]) -> None:
        self.layers: dict[nn.Module, Firing] = {neuron: Firing() for neuron in innermost(neurons)}
        """How often the neurons themselves have fired, driven."""
        self.replaced = 0
        """How many numbers were replaced."""
        self._constants: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # mean, deviation
        self._gains: dict[nn.Module, float] = {}
        self._adapting = False

    def adapt(self, run: Callable[[], Any]) -> None:
        """Find the constants. Call it once, before :meth:`applied`.

        Args:
            run: runs a few timesteps of the model.
        """
        self._adapting = True
        try:
            with self.applied():
                run()
        finally:
            self._adapting = False
        self.layers = {neuron: Firing() for neuron in self.layers}
        self.replaced = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the neurons are driven. One whose answer has not the shape of its input never is."""
        with _hooked(self.layers, forward=self._answer, pre=self._drive):
            yield

    def _drive(self, neuron: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        given = _first(arguments)
        if given is None:
            return None
        if self._adapting and neuron not in self._constants:
            finite = given[given.isfinite()]
            deviation = finite.std() if finite.numel() > 1 else given.new_zeros(())
            if deviation > 0:
                self._constants[neuron] = finite.mean(), deviation
                self._gains[neuron] = 1.0
        if neuron not in self._constants:
            return None
        mean, deviation = self._constants[neuron]
        return ((given - mean) * (self._gains[neuron] / deviation), *arguments[1:])

    def _answer(self, neuron: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        given, spikes = _first(arguments), _first(output)
        if given is None or spikes is None or given.shape != spikes.shape:
            self._constants.pop(neuron, None)
            return None
        if neuron not in self._constants:
            return None
        layer, gain = self.layers[neuron], self._gains[neuron]
        layer.count(spikes)
        if self._adapting and layer.silent:
            self._gains[neuron] = gain * _STRONGER
        self.replaced += spikes.numel()
        u = given / gain
        answer = ((1 + u / (1 + u.abs())) / 2).to(spikes.dtype)
        return type(output)((answer, *output[1:])) if isinstance(output, tuple | list) else answer


def innermost(neurons: Collection[nn.Module]) -> list[nn.Module]:
    """Those of ``neurons`` that hold no other: a recurrent container around a neuron answers with its spikes."""
    kept = set(neurons)
    return [n for n in neurons if not any(inner in kept for inner in n.modules() if inner is not n)]


def _first(values: Any) -> Tensor | None:
    """The floating-point tensor that ``values`` is, or begins with."""
    first = values[0] if isinstance(values, tuple | list) and values else values
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


@contextmanager
def _hooked(neurons: Collection[nn.Module], forward: Any, pre: Any = None) -> Iterator[None]:
    """Call hooks of this library on every neuron: ``pre`` before its call, ``forward`` after it."""
    try:
        for neuron in neurons:
            neuron._forward_hooks[DRIVING_HOOK] = forward
            if pre is not None:
                neuron._forward_pre_hooks[DRIVING_HOOK] = pre
        yield
    finally:
        for neuron in neurons:
            neuron._forward_hooks.pop(DRIVING_HOOK, None)
            neuron._forward_pre_hooks.pop(DRIVING_HOOK, None)
