"""Small random snnTorch networks that fire, in each of the forms in which people write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from .invariants import FIRING, firing_rate
from .reference import run_snntorch

HIDDEN, CLASSES, CHANNELS = 8, 5, 3

NEURONS: dict[str, Callable[..., nn.Module]] = {
    "Leaky": lambda **k: snn.Leaky(beta=0.8, **k),
    "Leaky to zero": lambda **k: snn.Leaky(beta=0.8, reset_mechanism="zero", **k),
    "Leaky at once": lambda **k: snn.Leaky(beta=0.8, reset_delay=False, **k),
    "Leaky per neuron": lambda **k: snn.Leaky(beta=torch.linspace(0.5, 0.95, HIDDEN), **k),
    "Lapicque": lambda **k: snn.Lapicque(beta=0.7, **k),
    "Synaptic": lambda **k: snn.Synaptic(alpha=0.7, beta=0.8, **k),
    "Alpha": lambda **k: snn.Alpha(alpha=0.8, beta=0.6, **k),
    "RLeaky": lambda **k: snn.RLeaky(beta=0.8, linear_features=HIDDEN, **k),
    "RLeaky one to one": lambda **k: snn.RLeaky(beta=0.8, V=0.4, all_to_all=False, **k),
    "RSynaptic": lambda **k: snn.RSynaptic(alpha=0.6, beta=0.8, linear_features=HIDDEN, **k),
    "SLSTM": lambda **k: snn.SLSTM(HIDDEN, HIDDEN, **k),
    "SConv2dLSTM": lambda **k: snn.SConv2dLSTM(CHANNELS, CHANNELS, 3, **k),
}
STATES: dict[str, tuple[str, ...]] = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "Synaptic": ("syn", "mem"),
    "Alpha": ("syn_exc", "syn_inh", "mem"),
    "RLeaky": ("spk", "mem"),
    "RSynaptic": ("spk", "syn", "mem"),
    "SLSTM": ("syn", "mem"),
    "SConv2dLSTM": ("syn", "mem"),
}
FORMS = ("sequential", "hidden", "required", "optional")
"""In ``nn.Sequential``; a one-step module with hidden states; one whose forward takes states, with or without a
default of ``None``."""


@dataclass(frozen=True)
class NetSpec:
    """What a random network is made of.

    Attributes:
        kind: ``"fc"``, on rows of shape (7,), or ``"conv"``, on rows of shape (2, 6, 6).
        neuron: a key of :data:`NEURONS` for the hidden layer; the output layer is Leaky.
        form: one of :data:`FORMS`.
        membrane: whether the output layer returns its membrane potential beside its spikes.
    """

    kind: str
    neuron: str
    form: str
    membrane: bool
    seed: int
    dtype: torch.dtype = torch.float64

    @property
    def row(self) -> tuple[int, ...]:
        return (7,) if self.kind == "fc" else (2, 6, 6)


class Hidden(nn.Module):
    """One timestep, with states that the neurons keep."""

    def __init__(self, stem: nn.Module, neuron: nn.Module, head: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.stem, self.neuron, self.head, self.output = stem, neuron, head, output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.head(self.neuron(self.stem(x))))


class Explicit(nn.Module):
    """One timestep, with states that come in and go out. Subclasses write the signatures that people write."""

    def __init__(self, stem: nn.Module, neuron: nn.Module, head: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.stem, self.neuron, self.head, self.output = stem, neuron, head, output

    def fresh_states(self) -> tuple[Tensor, ...]:
        self.neuron.reset_mem()  # not all of them return what they have reset
        states = STATES[type(self.neuron).__name__]
        return (*(getattr(self.neuron, name) for name in states), self.output.reset_mem())

    def step(self, x: Tensor, states: tuple[Any, ...], mem: Any) -> tuple[Tensor, ...]:
        results = self.neuron(self.stem(x), *states)
        after = results[-len(states) :]  # the spikes of a recurrent neuron are its answer and a state
        out, mem = self.output(self.head(results[0]), mem)
        return (out, *after, mem)


class Required1(Explicit):
    def forward(self, x, mem1, mem2):
        return self.step(x, (mem1,), mem2)


class Required2(Explicit):
    def forward(self, x, syn1, mem1, mem2):
        return self.step(x, (syn1, mem1), mem2)


class Required3(Explicit):
    def forward(self, x, a, b, mem1, mem2):
        return self.step(x, (a, b, mem1), mem2)


class Optional1(Explicit):
    def forward(self, x, mem1=None, mem2=None):
        return self.step(x, (mem1,), mem2)


class Optional2(Explicit):
    def forward(self, x, syn1=None, mem1=None, mem2=None):
        return self.step(x, (syn1, mem1), mem2)


class Optional3(Explicit):
    def forward(self, x, spk1=None, syn1=None, mem1=None, mem2=None):
        return self.step(x, (spk1, syn1, mem1), mem2)


EXPLICIT: dict[tuple[str, int], type[Explicit]] = {
    ("required", 1): Required1,
    ("required", 2): Required2,
    ("required", 3): Required3,
    ("optional", 1): Optional1,
    ("optional", 2): Optional2,
    ("optional", 3): Optional3,
}


def heaviside(x: Tensor) -> Tensor:
    """Spikes of the membrane's own dtype: snnTorch's surrogates make float32 spikes of whatever comes in."""
    return (x > 0).to(x.dtype) + (x - x.detach())  # a straight-through gradient


def neurons_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, snn.SpikingNeuron)]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers at which rows are counted; what is inside a neuron is the neuron's own affair."""
    neurons = neurons_of(model)
    inside = {inner for neuron in neurons for inner in neuron.modules() if inner is not neuron}
    return [m for m in model.modules() if isinstance(m, snn.SpikingNeuron | nn.Linear | nn.Conv2d) and m not in inside]


def make_fire(model: nn.Module, frames: Tensor, quantile: float) -> None:
    """Set the thresholds, layer by layer, at a quantile of the membrane potentials that the input leads to."""
    for neuron in neurons_of(model):
        seen: list[Tensor] = []
        neuron.threshold = torch.full_like(neuron.threshold, 1e6)
        handle = neuron.register_forward_hook(lambda module, *_, seen=seen: seen.append(module.mem.detach().flatten()))
        with torch.no_grad():
            run_snntorch(model, frames)
        handle.remove()
        level = float(torch.cat(seen).double().quantile(quantile))
        neuron.threshold = torch.full_like(neuron.threshold, max(level, 1e-2))


def build(spec: NetSpec, frames: Tensor) -> nn.Module:
    """A network of this kind that fires on ``frames`` ``[T, N, ...]``: neither silent nor saturated."""
    frames = frames.to(spec.dtype)
    rates: list[float] = []
    for attempt in range(30):
        torch.manual_seed(spec.seed + 1000 * attempt)
        model = _draw(spec).to(spec.dtype).eval()
        make_fire(model, frames, quantile=(0.75, 0.9, 0.5)[attempt % 3])
        rates = firing_rate(model, neurons_of(model), run_snntorch, frames)
        if all(FIRING[0] <= rate <= FIRING[1] for rate in rates):
            return model
    raise AssertionError(f"no network of {spec} fires at a rate in {FIRING}; the last fired at {rates}")


def _draw(spec: NetSpec) -> nn.Module:
    hidden = spec.form in ("sequential", "hidden")
    options: dict[str, Any] = {"init_hidden": True} if hidden else {}
    if spec.dtype == torch.float64:
        options["spike_grad"] = heaviside
    if spec.kind == "fc":
        stem: nn.Module = nn.Linear(7, HIDDEN)
        head: nn.Module = nn.Linear(HIDDEN, CLASSES)
    else:
        stem = nn.Conv2d(2, CHANNELS, 3, padding=1)
        head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(CHANNELS * 9, CLASSES))
    neuron = NEURONS[spec.neuron](**options)
    output = snn.Leaky(beta=0.9, output=spec.membrane and hidden, **options)
    if spec.form == "sequential":
        return nn.Sequential(stem, neuron, head, output)
    if spec.form == "hidden":
        return Hidden(stem, neuron, head, output)
    return EXPLICIT[spec.form, len(STATES[spec.neuron])](stem, neuron, head, output)
