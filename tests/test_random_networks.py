"""No network that mixes rows or looks ahead is answered, at any firing rate, and no other is refused."""

from __future__ import annotations

import re
import warnings

import pytest
import snntorch
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.discovery.driven_neurons import DrivenNeurons, counting
from seenn_plugin.errors import ModelRefused

from .random_networks import AHEAD, CAUSAL, FEATURES, MIXING, ROWS, TIMESTEPS, Loop, MultiStep, draw, stock, verdict

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_is_right_or_refused(seed):
    drawn = draw(seed)
    assert verdict(drawn, seed) == ("right" if drawn.sound else "refused"), drawn.what


def test_the_seeds_are_of_every_kind():
    """Silent, saturated and lively layers; sound networks and others; of both frameworks."""
    kinds = set()
    for seed in SEEDS:
        drawn = draw(seed)
        with torch.no_grad(), counting(list(drawn.model.nodes)) as layers:
            stock_outputs = drawn.model(torch.rand(TIMESTEPS, ROWS, FEATURES))
        assert stock_outputs.std() > 0
        state = {"silent" if f.silent else "saturated" if f.saturated else "lively" for f in layers.values()}
        kinds |= {(type(drawn.model).__name__, one) for one in state} | {(drawn.sound, one) for one in state}
    assert len(kinds) == 12, kinds


@pytest.mark.parametrize("what", [*MIXING, *AHEAD])
def test_what_hardly_fires_is_refused_for_the_true_reason(what):
    torch.manual_seed(0)
    model = MultiStep([lambda: neuron.LIFNode(step_mode="m")] * 2, {**MIXING, **AHEAD}[what], at=1)
    x = torch.rand(TIMESTEPS, ROWS, FEATURES)
    with torch.no_grad(), counting(list(model.nodes)) as layers:
        stock_outputs = model(x)
    assert all(firing.rate < 0.2 for firing in layers.values())
    assert stock_outputs.isfinite().all()
    reason = "when other rows share its batch" if what in MIXING else "made one after the other"
    with pytest.raises(ModelRefused, match=reason):
        EarlyExitWrapper(model.eval(), input="sequence").infer(x)


@pytest.mark.parametrize("ahead", [1, 2, TIMESTEPS - 1])
@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_a_loop_that_looks_ahead_is_refused(ahead, gain):
    torch.manual_seed(0)
    model = Loop([lambda: snntorch.Leaky(0.9)], CAUSAL["nothing"], at=0, ahead=ahead)
    with torch.no_grad():
        model.linears[0].weight.mul_(gain)
    with pytest.raises(ModelRefused, match="when later frames of the input change"):
        EarlyExitWrapper(model, input="sequence").infer(torch.rand(TIMESTEPS, ROWS, FEATURES))


@pytest.mark.parametrize("at", range(1, 12))
def test_a_look_at_one_later_frame_by_one_earlier_answer_is_refused(at):
    """Every pair of an earlier answer and a later frame is looked at."""

    class OneLook(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.head = nn.Linear(FEATURES, 8), snntorch.Leaky(0.9), nn.Linear(8, 3)

        def forward(self, x):
            mem, out = self.lif.reset_mem(), []
            for t in range(x.shape[0]):
                spk, mem = self.lif(self.fc(x[at if t == at - 1 else t]), mem)
                out.append(self.head(spk))
            return torch.stack(out)

    torch.manual_seed(0)
    with pytest.raises(ModelRefused, match="when later frames of the input change"):
        EarlyExitWrapper(OneLook(), input="sequence").infer(0.1 * torch.rand(12, ROWS, FEATURES))


def saturated():
    torch.manual_seed(0)
    model = MultiStep([lambda: neuron.IFNode(step_mode="m")], CAUSAL["nothing"], at=0)
    with torch.no_grad():
        model.linears[0].weight.mul_(3)
        model.linears[0].bias.fill_(5.0)
    return model.eval()


def test_a_saturated_network_is_answered():
    """Every neuron fires at every timestep on the caller's input, and nothing is carried. It may be on other input."""
    model = saturated()
    x = torch.rand(TIMESTEPS, ROWS, FEATURES)
    with torch.no_grad(), counting(list(model.nodes)) as layers:
        model(x)
    assert all(firing.saturated for firing in layers.values())
    snn = EarlyExitWrapper(saturated(), input="sequence", readout="sum")
    torch.testing.assert_close(snn.trace(x), stock(model, x).cumsum(0))
    weak = -3 * x  # now it rests at some timesteps
    outputs = stock(model, weak)
    assert not torch.equal(outputs[0], outputs[-1])
    torch.testing.assert_close(snn.trace(weak), outputs.cumsum(0))


def test_explain_states_the_firing_rate_of_every_layer():
    torch.manual_seed(0)
    first, second = (snntorch.Leaky(0.9, init_hidden=True) for _ in range(2))
    model = nn.Sequential(nn.Linear(FEATURES, 8), first, nn.Linear(8, 3), second)
    page = EarlyExitWrapper(model, timesteps=TIMESTEPS).explain(3 * torch.rand(ROWS, FEATURES))
    rates = re.fullmatch(r"1 ([\d.]+) %, 3 ([\d.]+) % in the checks", page.facts["firing rates"])
    assert rates is not None
    assert 0 < float(rates[1]) < 100
    assert [line.split(":")[0] for line in page.checks] == [
        "repeatable", "whole", "alone", "whole, driven", "alone, driven",
    ]  # fmt: skip


class NeverFires(snntorch.Leaky):
    def forward(self, x, mem=None):
        return super().forward(1e-3 * x.clamp(max=0.5), mem)


def test_a_layer_that_cannot_be_made_to_fire_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 8), NeverFires(0.9, init_hidden=True), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match="never fired in the checks, however strong their input was made: 1"):
        EarlyExitWrapper(model, timesteps=TIMESTEPS).infer(torch.rand(ROWS, FEATURES))


def test_a_layer_made_only_to_integrate_is_not_named():
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Linear(FEATURES, 8), neuron.LIFNode(), layer.Linear(8, 3), neuron.LIFNode(v_threshold=float("inf"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyExitWrapper(model, timesteps=TIMESTEPS).infer(9 * torch.rand(ROWS, FEATURES))


def test_driven_neurons_fire_and_rest_whatever_their_threshold():
    torch.manual_seed(0)
    for threshold in (0.01, 1.0, 30.0):
        node = neuron.IFNode(v_threshold=threshold)
        model = nn.Sequential(nn.Linear(FEATURES, 8), node)
        x = 1e-3 * torch.rand(ROWS, FEATURES)
        driven = DrivenNeurons([node])

        def run(model=model, node=node, x=x):
            node.reset()
            return torch.stack([model(x) for _ in range(TIMESTEPS)])

        driven.adapt(run)
        with driven.applied():
            answers = run()
        assert 0 < driven.layers[node].rate < 1
        assert not driven.layers[node].saturated
        assert ((answers > 0) & (answers < 1)).all()
        assert answers.std() > 0.1
        assert not node._forward_hooks
        assert not node._forward_pre_hooks
