"""Small random SpikingJelly networks that fire, for either generation of SpikingJelly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from .invariants import FIRING, firing_rate
from .reference import run_spikingjelly

NODES: dict[str, Callable[[], nn.Module]] = {
    "IF": lambda: neuron.IFNode(),
    "LIF": lambda: neuron.LIFNode(tau=2.0),
    "LIF soft reset": lambda: neuron.LIFNode(tau=3.0, v_reset=None, decay_input=False),
    "PLIF": lambda: neuron.ParametricLIFNode(init_tau=2.0),
    "recurrent": lambda: layer.LinearRecurrentContainer(neuron.LIFNode(tau=2.0), HIDDEN, HIDDEN),
}
HIDDEN, CLASSES = 10, 5


@dataclass(frozen=True)
class NetSpec:
    """What a random network is made of.

    Attributes:
        kind: ``"fc"``, on rows of shape (7,), or ``"conv"``, on rows of shape (2, 6, 6).
        nodes: keys of :data:`NODES`, one for each hidden layer; a recurrent one fits a fully connected layer only.
        spiking_head: whether the last layer spikes, or is linear.
        step_mode: ``"s"`` or ``"m"``.
    """

    kind: str
    nodes: tuple[str, ...]
    spiking_head: bool
    step_mode: str
    seed: int
    dtype: torch.dtype = torch.float64

    @property
    def row(self) -> tuple[int, ...]:
        return (7,) if self.kind == "fc" else (2, 6, 6)


def nodes_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, neuron.BaseNode)]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers at which rows are counted: those that know of step modes, but not inside a recurrent container."""
    inside = {m for c in model.modules() if isinstance(c, layer.LinearRecurrentContainer) for m in c.children()}
    kinds = (neuron.BaseNode, layer.Linear, layer.Conv2d, layer.BatchNorm2d, layer.LinearRecurrentContainer)
    return [m for m in model.modules() if isinstance(m, kinds) and m not in inside]


def make_fire(model: nn.Module, frames: Tensor, part: float = 0.3) -> None:
    """Set the thresholds of a network with random weights, layer by layer, so that part of each layer fires.

    Deep networks with random weights are silent; thresholds follow what reaches each layer.
    """

    def set_threshold(node: Any, arguments: tuple[Tensor, ...]) -> None:
        if not getattr(node, "_threshold_is_set", False):
            node._threshold_is_set = True
            x = arguments[0].detach().flatten()
            positive = x[x > 0]
            if positive.numel():
                share = positive.numel() / x.numel()
                node.v_threshold = max(float(positive.double().quantile(max(0.0, 1 - part / share))), 1e-3)

    nodes = nodes_of(model)
    handles = [node.register_forward_pre_hook(set_threshold) for node in nodes]
    modes = [node.step_mode for node in nodes]
    try:
        with torch.no_grad():
            run_spikingjelly(model, frames)
    finally:
        for handle in handles:
            handle.remove()
        for node in nodes:
            del node._threshold_is_set
    assert [node.step_mode for node in nodes] == modes


def build(spec: NetSpec, frames: Tensor) -> nn.Module:
    """A network of this kind that fires on ``frames`` ``[T, N, ...]``: neither silent nor saturated."""
    seen: list[Any] = []
    for attempt in range(30):
        model = _draw(spec, spec.seed + 1000 * attempt)
        make_fire(model, frames.to(spec.dtype), part=(0.3, 0.15, 0.5)[attempt % 3])
        seen = firing_rate(model, nodes_of(model), run_spikingjelly, frames.to(spec.dtype))
        if all(FIRING[0] <= rate <= FIRING[1] for rate in seen):
            return model
    raise AssertionError(f"no network of {spec} fires at a rate in {FIRING}; the last fired at {seen}")


def _draw(spec: NetSpec, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    if spec.kind == "fc":
        width = spec.row[0]
        for node in spec.nodes:
            layers += [layer.Linear(width, HIDDEN), NODES[node]()]
            width = HIDDEN
    else:
        channels, size = spec.row[:2]
        for node in spec.nodes:
            layers += [layer.Conv2d(channels, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), NODES[node]()]
            channels = 4
        layers += [layer.MaxPool2d(2, 2), layer.Flatten()]
        width = 4 * (size // 2) ** 2
    layers.append(layer.Linear(width, CLASSES))
    if spec.spiking_head:
        layers.append(NODES[spec.nodes[-1] if spec.nodes[-1] != "recurrent" else "LIF"]())
    model = nn.Sequential(*layers)
    randomise(model, generator)
    functional.set_step_mode(model, spec.step_mode)
    return model.to(spec.dtype).eval()


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights of a customary size, and running statistics as after some training."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.8, 1.2),
                (module.bias.data, -0.1, 0.3),
            ):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
