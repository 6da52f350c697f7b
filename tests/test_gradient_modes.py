"""The first call and every later one, under ``no_grad``, in inference mode and with gradients, in any order."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.policies import PatiencePolicy, exit_timesteps

STEPS, ROWS, FEATURES = 5, 4, 12
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "enable_grad": torch.enable_grad}


class Loop(nn.Module):
    """An snnTorch network with its time loop in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = STEPS
        self.fc1, self.lif1 = nn.Linear(FEATURES, 24), snntorch.Leaky(beta=0.9, threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(24, 4), snntorch.Leaky(beta=0.8, threshold=0.2)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


class SequenceLoop(Loop):
    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


def multi_step() -> nn.Module:
    model = nn.Sequential(
        layer.Linear(FEATURES, 24), neuron.LIFNode(v_threshold=0.2), layer.Linear(24, 4), neuron.IFNode(v_threshold=0.3)
    )
    functional.set_step_mode(model, "m")
    return model


NETWORKS: dict[str, tuple[Any, bool]] = {
    "snntorch-static": (Loop, False),
    "snntorch-sequence": (SequenceLoop, True),
    "spikingjelly-static": (multi_step, False),
    "spikingjelly-sequence": (multi_step, True),
}


def batch(sequence: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, ROWS, FEATURES) if sequence else (ROWS, FEATURES)
    return torch.linspace(0.3, 1.8, ROWS)[:, None] * torch.rand(shape, generator=generator)


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


def own_trace(model: nn.Module, sequence: bool) -> Tensor:
    """Spikes counted over the timesteps of the network's own run, ``[T, N, C]``."""
    x = batch(sequence)
    if not sequence and not isinstance(model, Loop):
        x = x.expand(STEPS, *x.shape)
    with torch.no_grad():
        spikes = model(x)
    functional.reset_net(model)
    assert 0.05 < spikes.mean() < 0.95
    assert len(torch.unique(spikes.sum(0), dim=0)) == ROWS
    return spikes.cumsum(0)


def wrap(model: nn.Module, sequence: bool) -> EarlyExitWrapper:
    given: dict[str, Any] = {"input": "sequence"} if sequence else {"timesteps": STEPS}
    return EarlyExitWrapper(model, PatiencePolicy(2), **given)


class Entries:
    """Each way to ask a wrapper, and whether its answer is the network's own."""

    NAMES = ("call", "infer", "trace", "steps", "stream", "explain", "plan")

    def __init__(self, snn: EarlyExitWrapper, own: Tensor, sequence: bool) -> None:
        self.snn, self.own, self.sequence = snn, own, sequence

    def ask(self, name: str) -> None:
        x = batch(self.sequence)
        getattr(self, name)(x)

    def answered(self, logits: Tensor, timesteps: Tensor) -> None:
        assert torch.equal(logits.detach(), self.own[timesteps - 1, torch.arange(ROWS)])
        assert timesteps.min() < STEPS

    def call(self, x: Tensor) -> None:
        exits = exit_timesteps(PatiencePolicy(2), self.own)
        self.answered(self.snn(x), exits)

    def infer(self, x: Tensor) -> None:
        result = self.snn.infer(x)
        self.answered(result.logits, result.timesteps)

    def trace(self, x: Tensor) -> None:
        trace = self.snn.trace(x)
        assert torch.equal(trace.detach(), self.own)
        assert trace.requires_grad == torch.is_grad_enabled()

    def steps(self, x: Tensor) -> None:
        assert torch.equal(torch.stack(list(self.snn.steps(x))).detach(), self.own)

    def stream(self, x: Tensor) -> None:
        found = list(self.snn.stream(x.unbind(1 if self.sequence else 0), slots=2))
        self.answered(torch.stack([item.logits for item in found]), torch.tensor([item.timesteps for item in found]))

    def explain(self, x: Tensor) -> None:
        assert not self.snn.explain(x).refused

    def plan(self, x: Tensor) -> None:
        assert self.snn.plan(x) is None


@pytest.mark.parametrize("first_entry", Entries.NAMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_entry_answers_in_every_mode_whatever_came_first(name, first_entry):
    sequence = NETWORKS[name][1]
    own = own_trace(make(name), sequence)
    for first_mode in MODES:
        model = make(name)
        before = Snapshot(model)
        entries = Entries(wrap(model, sequence), own, sequence)
        with MODES[first_mode]():
            entries.ask(first_entry)
        for mode in MODES:
            with MODES[mode]():
                for entry in Entries.NAMES:
                    entries.ask(entry)
        before.assert_unchanged()


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_that_were_made_in_inference_mode_are_answered_outside_it(name):
    sequence = NETWORKS[name][1]
    own = own_trace(make(name), sequence)
    with torch.inference_mode():
        model, x = make(name), batch(sequence)
    for mode in ("no_grad", "inference_mode"):
        snn = wrap(model, sequence)
        with MODES[mode]():
            assert torch.equal(snn.trace(x), own)
            assert torch.equal(snn(x), own[exit_timesteps(PatiencePolicy(2), own) - 1, torch.arange(ROWS)])


def test_options_are_prepared_in_inference_mode():
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(1, 6, 3),
        layer.BatchNorm2d(6),
        neuron.IFNode(v_threshold=0.3),
        layer.Flatten(),
        layer.Linear(216, 4),
    ).eval()
    images = torch.rand(ROWS, 1, 8, 8)
    plain = EarlyExitWrapper(model, timesteps=STEPS).trace(images)
    assert len(torch.unique(plain, dim=0)) == STEPS
    snn = EarlyExitWrapper(model, timesteps=STEPS, fold=True, channels_last=True)
    with torch.inference_mode():
        torch.testing.assert_close(snn.trace(images.clone()), plain, check_stride=False)
        assert "fold (1 pairs)" in snn.explain(images).facts["options"]
