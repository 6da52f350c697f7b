"""Energy of snnTorch networks: a loop inside forward, a layer before it, recurrent neurons."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, measure_energy
from seenn_plugin.policies import FixedPolicy, PatiencePolicy

T, N = 4, 5


def labelled(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.zeros(N, dtype=torch.long))]


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.fc1, self.lif1 = nn.Linear(7, 16), snntorch.Leaky(beta=0.9, threshold=0.4)
            self.fc2, self.lif2 = nn.Linear(16, 3), snntorch.Leaky(beta=0.9, threshold=0.4)
        self.eval()


class InTheLoop(Loop):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        record = []
        for _ in range(T):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(spk2)
        return torch.stack(record)


class BeforeTheLoop(Loop):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        record = []
        current = self.fc1(x)
        for _ in range(T):
            spk1, mem1 = self.lif1(current, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(spk2)
        return torch.stack(record)


def spikes_of(net: Loop, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = net.fc2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(x)
    handle.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("kind", [InTheLoop, BeforeTheLoop])
def test_a_loop_inside_forward(kind):
    net, x = kind(), torch.rand(N, 7)
    snn = EarlyExitWrapper(net, PatiencePolicy(2))
    report = measure_energy(snn, labelled(x))
    spikes = spikes_of(net, x)
    assert len(spikes.sum((0, 2)).unique()) > 1
    assert torch.equal(report.acs_per_timestep, 3 * spikes.sum(2).double())
    assert torch.equal(report.timesteps, snn.infer(x).timesteps)


@pytest.mark.parametrize("kind", [InTheLoop, BeforeTheLoop])
def test_what_sees_the_input_alone_runs_once(kind):
    x = torch.rand(N, 7)
    report = measure_energy(EarlyExitWrapper(kind(), FixedPolicy(3)), labelled(x))
    assert report.macs_per_timestep.tolist() == [[112.0] * N] + [[0.0] * N] * (T - 1)
    assert report.macs.tolist() == report.full_macs.tolist() == [112] * N


def test_recurrent_connections_are_counted():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(7, 8), snntorch.RLeaky(beta=0.9, linear_features=8, threshold=0.3, init_hidden=True), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(N, 7)
    report = measure_energy(EarlyExitWrapper(net, FixedPolicy(T), timesteps=T), labelled(x))
    spikes: list[Tensor] = []
    handle = net[2].register_forward_pre_hook(lambda module, inputs: spikes.append(inputs[0]))
    net[1].reset_mem()
    with torch.no_grad():
        for _ in range(T):
            net(x)
    handle.remove()
    out = torch.stack([s.sum(1) for s in spikes]).double()
    assert out.any()
    before = torch.cat([torch.zeros(1, N, dtype=torch.float64), out[:-1]])  # a spike comes back at the next timestep
    assert torch.equal(report.acs_per_timestep, 3 * out + 8 * before)
