"""Energy of SpikingJelly networks: spikes looked at through hooks, step modes, and SpikingJelly's own totals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, measure_energy
from seenn_plugin.policies import FixedPolicy, PatiencePolicy

from ..reference import run_spikingjelly
from ..spikingjelly_nets import NetSpec, build, make_fire

T, N = 4, 5


def labelled(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.zeros(N, dtype=torch.long))]


def conv_net(step_mode: str) -> tuple[nn.Module, Tensor]:
    spec = NetSpec("conv", ("IF", "LIF"), False, step_mode, seed=3, dtype=torch.float32)
    x = torch.rand(N, *spec.row)
    return build(spec, x.expand(T, *x.shape)), x


def op_counter() -> Any:
    return pytest.importorskip("spikingjelly.activation_based.op_counter")


def own_totals(net: nn.Module, frames: Tensor) -> tuple[int, int]:
    """SynOps and MACs of the full run, normalisation left out, as SpikingJelly counts them."""
    counting = op_counter()
    acs = counting.SynOpCounter()
    macs = counting.MACCounter(extra_ignore_modules=[nn.BatchNorm2d, nn.AvgPool2d])
    with torch.no_grad(), counting.DispatchCounterMode([acs, macs]):
        run_spikingjelly(net, frames)
    functional.reset_net(net)
    return acs.get_total(), macs.get_total()


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_totals_of_a_full_run_are_those_of_spikingjelly(step_mode):
    net, x = conv_net(step_mode)
    frames = torch.rand(T, *x.shape)
    report = measure_energy(
        EarlyExitWrapper(net, PatiencePolicy(2), input="sequence"), [(frames, torch.zeros(N).long())]
    )
    acs, macs = own_totals(net, frames)
    assert acs > 0
    assert macs > 0
    assert (int(report.full_acs.sum()), int(report.full_macs.sum())) == (acs, macs)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_stem_of_a_still_image_is_counted_once_and_by_spikingjelly_at_every_timestep(step_mode):
    net, x = conv_net(step_mode)
    report = measure_energy(EarlyExitWrapper(net, PatiencePolicy(2), timesteps=T), labelled(x))
    acs, macs = own_totals(net, x.expand(T, *x.shape))
    assert (int(report.full_acs.sum()), T * int(report.full_macs.sum())) == (acs, macs)


def test_both_step_modes_count_the_same():
    net, x = conv_net("s")
    reports = []
    for step_mode in ("s", "m"):
        functional.set_step_mode(net, step_mode)
        reports.append(measure_energy(EarlyExitWrapper(net, PatiencePolicy(2), timesteps=T), labelled(x)))
    assert torch.equal(reports[0].acs_per_timestep, reports[1].acs_per_timestep)
    assert torch.equal(reports[0].macs_per_timestep, reports[1].macs_per_timestep)
    assert torch.equal(reports[0].timesteps, reports[1].timesteps)


def test_every_sample_is_what_its_spikes_say():
    """Against hooks on the layers of the caller's own run: convolutions by all-ones kernels, linear ones by fan-out."""
    net, x = conv_net("s")
    report = measure_energy(EarlyExitWrapper(net, FixedPolicy(T), timesteps=T), labelled(x))
    expected = torch.zeros(N, dtype=torch.float64)

    def count(module: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal expected
        spikes = inputs[0].double()
        assert bool(((spikes == 0) | (spikes == 1)).all())
        if isinstance(module, nn.Linear):
            expected = expected + spikes.flatten(1).sum(1) * module.out_features
        else:
            ones = torch.ones_like(module.weight, dtype=torch.float64)
            reached = nn.functional.conv2d(spikes, ones, None, module.stride, module.padding)
            expected = expected + reached.flatten(1).sum(1)

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_pre_hook(count) for m in layers[1:]]
    with torch.no_grad():
        run_spikingjelly(net, x.expand(T, *x.shape))
    for handle in handles:
        handle.remove()
    assert len(expected.unique()) > 1
    assert torch.equal(report.full_acs, expected)
    first = layers[0]
    assert report.full_macs.tolist() == [6 * 6 * first.weight.numel()] * N


class SewAdd(nn.Module):
    """A SEW block: what its head sees are sums of spikes, 0, 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = layer.Linear(7, 12), neuron.IFNode()
        self.inside, self.second = layer.Linear(12, 12), neuron.IFNode()
        self.head = layer.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.first(self.stem(x))
        return self.head(spikes + self.second(self.inside(spikes)))


def test_sums_of_spikes_are_accumulates():
    net, x = SewAdd().eval(), torch.rand(N, 7)
    make_fire(net, x.expand(T, *x.shape))
    report = measure_energy(EarlyExitWrapper(net, FixedPolicy(T), timesteps=T), labelled(x))
    sums: list[Tensor] = []
    spikes: list[Tensor] = []
    handles = [
        net.head.register_forward_pre_hook(lambda module, inputs: sums.append(inputs[0])),
        net.inside.register_forward_pre_hook(lambda module, inputs: spikes.append(inputs[0])),
    ]
    with torch.no_grad():
        run_spikingjelly(net, x.expand(T, *x.shape))
    for handle in handles:
        handle.remove()
    assert float(torch.cat(sums).max()) == 2
    assert torch.equal(report.full_acs, sum(12 * s.sum(1) + 3 * k.sum(1) for s, k in zip(spikes, sums, strict=True)))
    assert report.full_macs.tolist() == [7 * 12] * N


def test_where_spikingjelly_counts_sums_of_spikes_as_multiplications():
    net, frames = SewAdd().eval(), torch.rand(T, N, 7)
    make_fire(net, frames)
    report = measure_energy(EarlyExitWrapper(net, FixedPolicy(T), input="sequence"), [(frames, torch.zeros(N).long())])
    acs, macs = own_totals(net, frames)
    assert int(report.full_macs.sum()) == N * T * 7 * 12
    assert macs > int(report.full_macs.sum())  # the head, at every timestep at which any sum of the batch is 2
    assert acs < int(report.full_acs.sum())


class Repeats(nn.Module):
    """Repeats the image by itself, behind a stem that it runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(7, 12), nn.Sequential(neuron.IFNode(v_threshold=0.3), layer.Linear(12, 3))
        functional.set_step_mode(self, "m")
        self.T = T

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x).unsqueeze(0).repeat(self.T, 1, 1)).mean(0)


def test_networks_that_repeat_the_image_by_themselves():
    net, x = Repeats().eval(), torch.rand(N, 7)
    report = measure_energy(EarlyExitWrapper(net, FixedPolicy(2)), labelled(x))
    spikes: list[Tensor] = []
    handle = net.body[1].register_forward_pre_hook(lambda module, inputs: spikes.append(inputs[0]))
    net(x)
    handle.remove()
    functional.reset_net(net)
    assert spikes[0].any()
    assert torch.equal(report.acs_per_timestep, 3 * spikes[0].sum(2).double())
    assert report.macs_per_timestep.tolist() == [[84] * N] + [[0] * N] * (T - 1)
