"""Synaptic operations against slow references, by hand, and what is done where rows cannot be told apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn import functional as F

from seenn_plugin import EarlyExitWrapper, measure_energy
from seenn_plugin._operations import count_operations
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import CalibrationError, InputError, ModelRefused
from seenn_plugin.evaluation.synaptic import SynapticCounter
from seenn_plugin.policies import ConfidencePolicy, FixedPolicy, RLPolicy

T = 4


def counted(run, rows: int, weights=()) -> SynapticCounter:
    counter = SynapticCounter(rows, weights)
    with torch.no_grad(), counter:
        run()
    return counter


def labelled(x: Tensor, row_dim: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.zeros(x.shape[row_dim], dtype=torch.long))]


# -- one operation ----------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel, dilation, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    padding, transposed = draw(st.integers(0, 2)), draw(st.booleans())
    kind = {
        False: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    }[transposed][dims - 1]
    layer = kind(2 * groups, 4 * groups, kernel, stride, padding, dilation=dilation, groups=groups)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    sizes = [draw(st.integers(6, 8)) for _ in range(dims)]
    x = torch.randint(-1, 3, (3, 2 * groups, *sizes), generator=generator).float()
    x[torch.rand(x.shape, generator=generator) < 0.7] = 0
    return layer, x


@given(convolutions())
def test_a_convolution_accumulates_once_for_every_connection(case):
    layer, x = case
    counter = counted(lambda: layer(x), 3, layer.parameters())
    ones = type(layer)(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
    ).double()
    with torch.no_grad():
        ones.weight.fill_(1)
        expected = ones(x.abs().double()).flatten(1).sum(1)
    assert torch.equal(counter.acs, expected)
    assert not counter.macs.any()


@given(convolutions())
def test_analog_rows_cost_the_dense_convolution(case):
    layer, x = case
    x[1] += 0.25 * torch.rand(x[1].shape)
    counter = counted(lambda: layer(x), 3, layer.parameters())
    dense = count_operations(lambda: layer(x[:1]))
    assert counter.macs.tolist() == [0, dense, 0]
    assert counter.acs[1] == 0


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5), (3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(shape, bias):
    layer, x = nn.Linear(5, 7, bias), torch.randint(0, 3, shape).float()
    x[0] = 0
    counter = counted(lambda: layer(x), 3, layer.parameters())
    assert torch.equal(counter.acs, 7 * x.flatten(1).sum(1).double())
    counter = counted(lambda: layer(x + 0.5), 3, layer.parameters())
    assert counter.macs.tolist() == [7 * x[0].numel()] * 3


def test_inference_mode_hides_nothing():
    layer, x = nn.Linear(5, 7), torch.ones(3, 2, 5)
    with torch.inference_mode():
        counter = counted(lambda: layer(x), 3, layer.parameters())
    assert counter.acs.tolist() == [70] * 3


@given(st.integers(0, 1000))
def test_where_two_activations_meet_the_smaller_integer_is_the_number_of_accumulates(seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randint(0, 4, shape, generator=generator).float() for shape in ((2, 3, 4, 5), (2, 3, 5, 6)))
    if seed % 3:
        k[1] += 0.5
    counter = counted(lambda: q @ k, 2)
    meetings = torch.minimum(q.unsqueeze(-1), k.unsqueeze(2)).flatten(1).sum(1).double()
    assert counter.acs[0] == meetings[0]
    assert counter.acs[1] == (6 * q[1].sum() if seed % 3 else meetings[1])  # the analog side plays the weights
    counter = counted(lambda: (q + 0.5) @ (k + 0.1), 2)
    assert counter.macs.tolist() == [3 * 4 * 5 * 6] * 2


@pytest.mark.parametrize("name", ["addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_", "mv", "bmm", "dot"])
def test_products_by_other_names(name):
    x = torch.tensor([[1.0, 0, 2], [0, 0, 1]])
    w = torch.rand(3, 4)
    run, rows, expected = {
        "addmm": (lambda: torch.addmm(torch.zeros(4), x, w), 2, [12, 4]),
        "addmm_": (lambda: torch.zeros(2, 4).addmm_(x, w), 2, [12, 4]),
        "baddbmm": (lambda: torch.baddbmm(torch.zeros(4), x[:, None], w.expand(2, 3, 4)), 2, [12, 4]),
        "baddbmm_": (lambda: torch.zeros(2, 1, 4).baddbmm_(x[:, None], w.expand(2, 3, 4)), 2, [12, 4]),
        "addmv": (lambda: torch.addmv(torch.zeros(2), x, w[:, 0]), 2, [3, 1]),
        "addmv_": (lambda: torch.zeros(2).addmv_(x, w[:, 0]), 2, [3, 1]),
        "mv": (lambda: torch.mv(x, w[:, 0]), 2, [3, 1]),
        "bmm": (lambda: torch.bmm(x[:, None], w.expand(2, 3, 4)), 2, [12, 4]),
        "dot": (lambda: torch.dot(x[0], w[:, 0]), 1, [3]),
    }[name]
    counter = counted(run, rows, [w])
    assert (counter.acs.tolist(), counter.calls) == (expected, 1)


def test_weights_may_stand_on_the_left():
    w, x = torch.rand(4, 3), torch.tensor([[1.0, 0], [0, 0], [2, 1]])
    assert counted(lambda: w @ x, 2, [w]).acs.tolist() == [12, 4]


def test_values_of_weights_play_no_part():
    layer, x = nn.Linear(5, 7, bias=False), torch.ones(2, 5)
    with torch.no_grad():
        layer.weight.zero_()
    assert counted(lambda: layer(x), 2, layer.parameters()).acs.tolist() == [35, 35]
    assert counted(lambda: layer(x + 0.5), 2, layer.parameters()).macs.tolist() == [35, 35]


def test_large_integers_are_multiplied():
    layer, pixels = nn.Linear(5, 7), torch.tensor([[255.0] * 5, [0, 0, 0, 0, 9]])
    counter = counted(lambda: layer(pixels), 2, layer.parameters())
    assert (counter.acs.tolist(), counter.macs.tolist()) == ([0, 63], [35, 0])


def test_nan_is_analog():
    layer = nn.Linear(2, 3)
    x = torch.tensor([[float("nan"), 1], [float("inf"), 0], [1, 0]])
    counter = counted(lambda: layer(x), 3, layer.parameters())
    assert (counter.acs.tolist(), counter.macs.tolist()) == ([0, 0, 3], [6, 6, 0])


# -- by hand ----------------------------------------------------------------------------------------------------------


def three_layers() -> nn.Sequential:
    """Convolution, neurons, linear head: the first channel spikes where its pixel is, the second never does."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), neuron.IFNode(), nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
        net[0].weight[0, 0, 1, 1] = 1
    return net.eval()


def pixels() -> Tensor:
    x = torch.zeros(3, 1, 4, 4)
    x[0, 0, 0, 0] = x[0, 0, 0, 1] = x[0, 0, 1, 1] = 1  # a corner, an edge, the inside
    x[1, 0, 2, 2] = 0.5  # analog: its neuron fires at every second timestep
    return x  # and a row of nothing


def test_three_layers_by_hand():
    snn = EarlyExitWrapper(three_layers(), FixedPolicy(3), timesteps=T, readout="sum")
    before = Snapshot(snn.model)
    report = measure_energy(snn, labelled(pixels()))
    before.assert_unchanged()
    # Two channels; 4, 6 and 9 connections, once, as the input does not change; then three spikes to three classes.
    stem, head = 2 * (4 + 6 + 9), 3 * 3
    assert report.acs_per_timestep.T.tolist() == [[stem + head, head, head, head], [0, 3, 0, 3], [0] * T]
    dense = 4 * 4 * 2 * 9
    assert report.macs_per_timestep.T.tolist() == [[0] * T, [dense, 0, 0, 0], [0] * T]
    assert report.timesteps.tolist() == [3, 3, 3]
    assert report.acs.tolist() == [stem + 3 * head, 3, 0]
    assert report.macs.tolist() == [0, dense, 0]
    assert report.picojoules.tolist() == pytest.approx([0.9 * (stem + 3 * head), 0.9 * 3 + 4.6 * dense, 0])
    assert report.full_picojoules.tolist() == pytest.approx([0.9 * (stem + T * head), 0.9 * 6 + 4.6 * dense, 0])
    full = 0.9 * (stem + T * head + 6) + 4.6 * dense
    assert report.saving == pytest.approx(1 - (0.9 * (stem + 3 * head + 3) + 4.6 * dense) / full)
    assert report.static_picojoules[-1] == pytest.approx(full / 3)
    assert report.static_picojoules[0] == pytest.approx((0.9 * (stem + head) + 4.6 * dense) / 3)
    assert not report.policy_picojoules.any()
    assert report.uncounted == {}


def test_a_sequence_by_hand():
    snn = EarlyExitWrapper(three_layers(), FixedPolicy(3), input="sequence", readout="sum")
    report = measure_energy(snn, labelled(pixels().expand(T, 3, 1, 4, 4), row_dim=1))
    # Frames may differ, so that every layer runs at every timestep.
    assert report.acs_per_timestep.T.tolist() == [[47] * T, [0, 3, 0, 3], [0] * T]
    assert report.macs_per_timestep.T.tolist() == [[0] * T, [288] * T, [0] * T]
    assert report.macs.tolist() == [0, 3 * 288, 0]


def test_prices_are_the_callers():
    snn = EarlyExitWrapper(three_layers(), FixedPolicy(3), timesteps=T, readout="sum")
    report = measure_energy(snn, labelled(pixels()), picojoules_per_ac=2, picojoules_per_mac=0)
    assert report.picojoules.tolist() == [2 * (38 + 3 * 9), 2 * 3, 0]
    for price in (-1, float("nan"), float("inf"), "much"):
        with pytest.raises(InputError, match="picojoules_per_mac"):
            measure_energy(snn, labelled(pixels()), picojoules_per_mac=price)


def test_every_sample_is_counted_to_its_own_exit():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 12), neuron.IFNode(), nn.Linear(12, 3), neuron.IFNode()).eval()
    snn = EarlyExitWrapper(net, ConfidencePolicy(0.45, 1.0), timesteps=T, readout="sum")
    x = 3 * torch.randn(20, 6)
    report = measure_energy(snn, [(x[:9], torch.zeros(9).long()), (x[9:], torch.zeros(11).long())])
    exits = snn.infer(x).timesteps
    assert len(exits.unique()) > 1
    assert torch.equal(report.timesteps, exits)
    expected = [report.acs_per_timestep[:t, row].sum() for row, t in enumerate(exits.tolist())]
    assert report.acs.tolist() == expected
    assert report.macs.tolist() == [72] * 20  # the first layer, once
    facts = report.to_dict()
    assert facts["samples"] == 20
    assert facts["total"]["macs"] == 72 * 20
    assert facts["mean"]["picojoules"] == pytest.approx(float(report.picojoules.sum()) / 20)


def test_the_policys_network_is_part_of_the_price():
    torch.manual_seed(0)
    planner = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    snn = EarlyExitWrapper(three_layers(), RLPolicy(planner, candidates=(1, 4)), timesteps=T, readout="sum")
    x = pixels() + 0.1
    report = measure_energy(snn, labelled(x))
    macs = count_operations(lambda: planner(x[:1]))
    assert report.policy_macs.tolist() == [macs] * 3
    assert torch.equal(report.timesteps, snn.infer(x).timesteps)
    spent = report.macs_per_timestep.cumsum(0).gather(0, report.timesteps[None] - 1)[0]
    assert torch.equal(report.macs, spent + macs)
    assert torch.equal(report.full_macs, report.macs_per_timestep.sum(0))
    assert report.policy_picojoules.tolist() == pytest.approx([4.6 * macs] * 3)


# -- rows -------------------------------------------------------------------------------------------------------------


class RowsBehindPixels(nn.Module):
    """Puts the pixels before the rows, ``[16, n, 1]``, as sequence-first layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.spike, self.head = nn.Linear(1, 4), neuron.IFNode(0.3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.spike(self.embed(x.flatten(1).unsqueeze(2)))
        return self.head(spikes.transpose(0, 1).contiguous()).mean(0)


class OneKernelForEach(nn.Module):
    """A convolution whose kernel is computed from the row: rows are groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.spike, self.head = nn.Linear(16, 9), neuron.IFNode(0.3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        kernels = self.kernel(x.flatten(1)).view(n, 1, 3, 3)
        made = F.conv2d(x.transpose(0, 1), kernels, padding=1, groups=n).transpose(0, 1)
        return self.head(self.spike(made).flatten(1))


@pytest.mark.parametrize("kind", [three_layers, RowsBehindPixels, OneKernelForEach])
def test_a_samples_count_does_not_depend_on_its_company(kind):
    torch.manual_seed(3)
    snn = EarlyExitWrapper(kind().eval(), FixedPolicy(2), timesteps=T, readout="sum")
    x = torch.rand(4, 1, 4, 4).round(decimals=1)
    x[2] = x[2].round()
    together = measure_energy(snn, labelled(x))
    for row in range(4):
        alone = measure_energy(snn, labelled(x[row : row + 1]))
        for name in ("acs_per_timestep", "macs_per_timestep"):
            assert torch.equal(getattr(alone, name)[:, 0], getattr(together, name)[:, row])
    assert len(together.full_acs.unique()) > 1


@pytest.mark.parametrize(("kind", "together"), [(three_layers, True), (RowsBehindPixels, False)])
def test_rows_run_together_where_they_can_be_told_apart(kind, together):
    snn = EarlyExitWrapper(kind().eval(), FixedPolicy(2), timesteps=T, readout="sum")
    x = torch.rand(40, 1, 4, 4)
    snn.infer(x)
    batches: list[int] = []
    list(snn.model.modules())[-1].register_forward_hook(lambda module, inputs, output: batches.append(output.numel()))
    measure_energy(snn, labelled(x))
    one = min(batches)
    assert ((40 * one in batches), batches.count(one) > 40) == (together, not together)


def test_steps_are_the_trace():
    snn = EarlyExitWrapper(three_layers(), timesteps=T, readout="sum")
    steps = snn.steps(pixels())
    assert torch.equal(torch.stack([next(steps) for _ in range(T)]), snn.trace(pixels()))
    assert next(steps, None) is None
    assert [step.shape for step in snn.steps(pixels()[:0])] == [(0, 3)] * T


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.spike, self.head = nn.Linear(4, 12), neuron.IFNode(0.2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.spike(self.qkv(x.flatten(2).squeeze(1).reshape(-1, 4, 4))).chunk(3, -1)
        return self.head(((q @ k.transpose(1, 2)) @ v).flatten(1))


def test_products_of_spikes_are_seen():
    torch.manual_seed(0)
    net = Attention().eval()
    seen: list[Tensor] = []
    x = torch.rand(3, 1, 4, 4)
    snn = EarlyExitWrapper(net, FixedPolicy(1), timesteps=1, readout="sum")
    report = measure_energy(snn, labelled(x))
    net.spike.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(x)
    q, k, v = seen[0].chunk(3, -1)
    scores = q @ k.transpose(1, 2)
    expected = scores.sum((1, 2))  # spikes that meet
    expected += ((scores[..., None] > 0) & (v[:, None] > 0)).flatten(1).sum(1)  # a spike of v adds a number
    context = scores @ v
    expected += 3 * context.sum((1, 2))
    assert expected.min() > 0
    assert report.full_acs.tolist() == expected.tolist()
    assert report.full_macs.tolist() == [4 * 4 * 12] * 3


class SoftmaxAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.spike(self.qkv(x.reshape(-1, 1, 4, 4))).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


def test_what_is_not_counted_is_named():
    snn = EarlyExitWrapper(SoftmaxAttention().eval(), FixedPolicy(1), timesteps=2, readout="sum")
    report = measure_energy(snn, labelled(torch.rand(3, 1, 4, 4)))
    assert list(report.uncounted.values()) == [2]
    assert "attention" in next(iter(report.uncounted))


def test_spikes_of_another_height_are_spikes():
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.7 * x

    plain, scaled = three_layers(), three_layers()
    scaled.insert(2, Scaled())
    reports = [
        measure_energy(EarlyExitWrapper(net, FixedPolicy(3), timesteps=T, readout="sum"), labelled(pixels()))
        for net in (plain, scaled)
    ]
    assert torch.equal(reports[0].acs_per_timestep, reports[1].acs_per_timestep)
    assert torch.equal(reports[0].macs_per_timestep, reports[1].macs_per_timestep)


def test_an_analog_input_of_one_value_is_not_taken_for_a_spike():
    net = nn.Sequential(nn.Linear(1, 5), neuron.IFNode(), nn.Linear(5, 2)).eval()
    snn = EarlyExitWrapper(net, FixedPolicy(1), timesteps=2, readout="sum")
    assert measure_energy(snn, labelled(torch.full((3, 1), 0.999))).full_macs.tolist() == [5] * 3


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_no_sample():
    snn = EarlyExitWrapper(three_layers(), timesteps=T)
    with pytest.raises(CalibrationError, match="no sample"):
        measure_energy(snn, [])
    with pytest.raises(CalibrationError, match="no sample"):
        measure_energy(snn, labelled(torch.zeros(0, 1, 4, 4)))


def test_options_of_this_machine_change_no_count():
    net = three_layers()
    net.insert(1, nn.BatchNorm2d(2).eval())
    reports = [
        measure_energy(EarlyExitWrapper(net, FixedPolicy(2), timesteps=T, readout="sum", fold=fold), labelled(pixels()))
        for fold in (False, True)
    ]
    assert reports[0].to_dict() == reports[1].to_dict()


def test_a_full_run_has_no_energy_per_exit():
    snn = EarlyExitWrapper(three_layers(), timesteps=T, full_run=True)
    with pytest.raises(ModelRefused, match="full_run"):
        measure_energy(snn, labelled(pixels()))


def test_a_network_of_which_nothing_is_seen_is_refused():
    snn = EarlyExitWrapper(nn.Sequential(nn.Flatten(), neuron.IFNode()).eval(), timesteps=T, readout="sum")
    with pytest.raises(ModelRefused, match="no convolution or matrix product"):
        measure_energy(snn, labelled(pixels()))


@pytest.mark.parametrize("time_dim", [0, 1])
def test_sequences(time_dim):
    frames = torch.zeros(T, 3, 1, 4, 4)
    frames[0] = pixels()
    snn = EarlyExitWrapper(three_layers(), FixedPolicy(1), input="sequence", time_dim=time_dim, readout="sum")
    x = frames.transpose(0, time_dim)
    report = measure_energy(snn, labelled(x, row_dim=time_dim ^ 1))
    assert report.acs_per_timestep.T.tolist() == [[47, 0, 0, 0], [0] * T, [0] * T]
    assert report.macs_per_timestep.T.tolist() == [[0] * T, [288, 0, 0, 0], [0] * T]
    shorter = x.narrow(time_dim, 0, 2)
    with pytest.raises(CalibrationError, match="different lengths"):
        measure_energy(snn, [*labelled(x, time_dim ^ 1), *labelled(shorter, time_dim ^ 1)])
