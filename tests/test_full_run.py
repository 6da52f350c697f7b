"""What is left for a refused network: all timesteps computed, exits picked afterwards, and no saving claimed."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import ModelRefused
from seenn_plugin.evaluation.metrics import evaluate
from seenn_plugin.policies import ConfidencePolicy, exit_timesteps
from seenn_plugin.readout import SumReadout

from .zoo.snntorch_refused import REFUSED

STEPS, ROWS = 5, 6


class CentredInTime(nn.Module):
    """Subtracts the mean over all timesteps: its early answers look at later ones."""

    def __init__(self, average: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = layer.Linear(6, 12), layer.Linear(12, 3)
        self.lif1, self.lif2 = neuron.LIFNode(v_threshold=0.3), neuron.LIFNode(v_threshold=0.3)
        self.average = average
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.lif2(self.fc2(self.lif1(x - 0.8 * x.mean(0) + 0.3) * 4))
        return x.mean(0) if self.average else x


def make(average: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CentredInTime(average).eval()


def frames() -> Tensor:
    return 2 * torch.rand(STEPS, ROWS, 6, generator=torch.Generator().manual_seed(1))


def test_the_refusal_offers_it_and_the_exits_are_those_of_the_policy_on_the_models_own_run():
    model, x = make(), frames()
    with pytest.raises(ModelRefused, match="full_run=True"):
        EarlyExitWrapper(model, input="sequence").infer(x)
    before = Snapshot(model)
    policy = ConfidencePolicy(0.6, temperature=1.0)
    snn = EarlyExitWrapper(model, policy, input="sequence", full_run=True, readout=SumReadout())
    result = snn.infer(x)
    before.assert_unchanged("a full run")
    with torch.no_grad():
        trace = model(x).cumsum(0)
    assert len(set(result.timesteps.tolist())) > 1, "exits must be mixed, or nothing is tested"
    assert torch.equal(result.timesteps, exit_timesteps(policy, trace))
    assert torch.equal(result.logits, trace[result.timesteps - 1, torch.arange(ROWS)])
    assert torch.equal(snn.trace(x), trace)


def test_every_report_says_that_nothing_is_saved():
    snn = EarlyExitWrapper(make(), ConfidencePolicy(0.6, temperature=1.0), input="sequence", full_run=True)
    x = frames()
    assert snn.infer(x).steps_executed == STEPS * ROWS
    page = str(snn.explain(x))
    assert "nothing: all timesteps are computed" in page
    assert "REFUSED" not in page
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    evaluation = evaluate(snn, [(x, labels)])
    assert evaluation.mean_timesteps < STEPS
    assert evaluation.row_steps == STEPS * ROWS


def test_a_network_that_answers_once_has_no_timesteps_to_pick_from():
    snn = EarlyExitWrapper(make(average=True), input="sequence", full_run=True)
    with pytest.raises(ModelRefused, match="one output for each timestep"):
        snn.infer(frames())


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_a_refused_loop_that_returns_all_timesteps_is_run_whole(refused):
    model = refused.build().eval()
    n, shape = 5, refused.row
    x = torch.rand((refused.timesteps, n, *shape) if refused.sequence else (n, *shape))
    options = {"input": "sequence", "time_dim": refused.time_dim} if refused.sequence else {}
    x = x.transpose(0, refused.time_dim) if refused.sequence else x
    snn = EarlyExitWrapper(model, "fixed", timesteps=refused.timesteps, full_run=True, **{**options, **refused.options})
    torch.manual_seed(0)
    with torch.no_grad():
        try:
            own = model(x)
        except TypeError:  # told the number of timesteps by an argument, or by its user's loop
            pytest.skip("not called so")
    own = own[0] if isinstance(own, tuple) else own
    torch.manual_seed(0)
    if not isinstance(own, Tensor) or own.ndim < 3:
        with pytest.raises(ModelRefused, match="one output for each timestep"):
            snn.infer(x)
    else:
        assert snn.infer(x).steps_executed == refused.timesteps * n
