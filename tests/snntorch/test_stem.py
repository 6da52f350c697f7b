"""Stems of snnTorch networks: hidden states, and states that are passed in and handed back."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import Tensor, nn

from ..snntorch_nets import FORMS, NEURONS, STATES, NetSpec, build
from ..test_stem import counting, no_stem, stem_of, wrap

T, N = 5, 4


def rows(n: int = N) -> Tensor:
    return torch.randn((n, 7), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("neuron", ["Leaky", "RLeaky", "RSynaptic", "Synaptic"])
def test_the_first_layer_alone(form, neuron):
    """Whatever is recurrent in the neuron: its own layers are given spikes, and are no part of the stem."""
    assert neuron in NEURONS
    assert neuron in STATES
    frames = torch.randn((8, 16, 7), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = build(NetSpec("fc", neuron, form, membrane=False, seed=0), frames)
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    name = next(name for name, module in model.named_modules() if module is first)
    snn = wrap(model, timesteps=T)
    assert stem_of(snn, rows()) == name
    with counting(first.weight) as computed, torch.no_grad():
        found = snn.trace(rows())
    assert computed == [N]
    with no_stem(), torch.no_grad():
        assert torch.equal(found, wrap(model, timesteps=T).trace(rows()))
    assert found.diff(dim=0).abs().amax() > 0


class Feedback(nn.Module):
    """Its spikes come back into the input of the first layer."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.fc1, self.back, self.fc2 = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 5)
        self.lif = snntorch.Leaky(beta=0.8, threshold=0.1)
        self.beside = beside

    def forward(self, x: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> tuple[Tensor, ...]:
        spk = torch.zeros_like(x) if spk is None else spk
        mem = torch.zeros_like(x) if mem is None else mem
        current = self.fc1(x) + self.back(spk) if self.beside else self.fc1(x + self.back(spk))
        spk, mem = self.lif(current, mem)
        return self.fc2(spk), spk, mem


@pytest.mark.parametrize("beside", [True, False])
def test_recurrent_input(beside):
    torch.manual_seed(0)
    model, x = Feedback(beside).eval(), rows().float()
    snn = wrap(model, timesteps=T)
    assert stem_of(snn, x) == ("fc1" if beside else "")
    with counting(model.back.weight) as computed, torch.no_grad():
        found = snn.trace(x)
    assert computed == [N] * T
    with no_stem(), torch.no_grad():
        assert torch.equal(found, wrap(model, timesteps=T).trace(x))
    assert found.diff(dim=0).abs().amax() > 0
