"""Stems of snnTorch networks: hidden states, and states that are passed in and handed back."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import Tensor, nn

from seenn_plugin.errors import ModelRefused
from seenn_plugin.inputs import InputBatch

from ..invariants import prescribed
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


class LoopInside(nn.Module):
    """All timesteps in ``forward``; what it gives its first layers is said by a function of the variables."""

    def __init__(self, feedback: str) -> None:
        super().__init__()
        self.num_steps = 5
        self.fc1, self.norm, self.back, self.fc2 = nn.Linear(7, 7), nn.LayerNorm(7), nn.Linear(7, 7), nn.Linear(7, 4)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.8, threshold=0.2), snntorch.Leaky(beta=0.9)
        self.feedback = feedback

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk = torch.zeros_like(x)
        count = torch.zeros(len(x), 4)
        for _ in range(self.num_steps):
            y = self.norm(self.fc1(x))
            if self.feedback == "beside":
                y = y + self.back(spk)
            spk, mem1 = self.lif1(y, mem1)
            out, mem2 = self.lif2(self.fc2(spk), mem2)
            count = count + out + 0.1 * mem2
            if self.feedback == "input":
                x = x + 0.1 * spk
        return count


class Late(LoopInside):
    """Its input changes once, at a timestep that is not looked at."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = torch.zeros(len(x), 4)
        for step in range(self.num_steps):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            out, mem2 = self.lif2(self.fc2(spk), mem2)
            count = count + out + 0.1 * mem2
            if step == 3:
                x = -x
        return count


def test_a_variable_that_changes_late_is_refused():
    torch.manual_seed(0)
    with pytest.raises(ModelRefused, match="the same at every timestep"):
        wrap(Late("").eval(), timesteps=None, readout="auto").infer(rows().float())


@pytest.mark.parametrize(("feedback", "stem"), [("", "fc1, norm"), ("beside", "fc1, norm"), ("input", "")])
def test_a_loop_inside(feedback, stem):
    torch.manual_seed(0)
    model, x = LoopInside(feedback).eval(), rows().float()
    options = {"timesteps": None, "readout": "auto"}
    snn = wrap(model, **options)
    assert stem_of(snn, x) == stem
    with counting(model.fc1.weight) as computed, torch.no_grad():
        found = snn.trace(x)
    assert computed == ([N] if stem else [N] * T)
    with no_stem(), torch.no_grad():
        assert torch.equal(found, wrap(model, **options).trace(x))
    assert found.diff(dim=0).abs().amax() > 0
    snn.policy = prescribed(1, 5, 2, 5).policy()
    with torch.no_grad():
        result = snn.infer(x)
    for row, t in enumerate((1, 5, 2, 5)):
        torch.testing.assert_close(result.logits[row], found[t - 1, row])
    with torch.no_grad():  # fresh rows in the places of others
        in_flight = snn.adapter.begin(InputBatch(x[:2]))
        snn.adapter.advance(in_flight)
        snn.adapter.place(in_flight, torch.tensor([1]), InputBatch(x[3:]))
        snn.adapter.advance(in_flight)
        placed = snn.adapter.advance(in_flight)[0][0]
        torch.testing.assert_close(placed, torch.stack([found[2, 0], found[1, 3]]))
