"""Habits of published SpikingJelly networks in how they are told their timesteps, and what they do with them."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, rnn
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import ModelRefused
from seenn_plugin.policies import FixedPolicy

FEATURES, CLASSES, STEPS, ROWS = 6, 3, 4, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.fc = layer.Linear(FEATURES, 16, step_mode="m")
            self.head = layer.Linear(16, CLASSES, step_mode="m")
        self.lif = neuron.LIFNode(v_threshold=0.3, step_mode="m")
        self.double().eval()

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.lif(self.fc(x)))


class ToldByAnArgument(Net):
    def forward(self, x: Tensor, T: int) -> Tensor:
        return self.body(x.unsqueeze(0).repeat(T, 1, 1)).mean(0)


class ToldByALocal(Net):
    def forward(self, x: Tensor) -> Tensor:
        T = 4
        return self.body(x.unsqueeze(0).repeat(T, 1, 1)).mean(0)


class RecurrentAlone(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.rnn, self.head = rnn.SpikingLSTM(FEATURES, 16, 1), nn.Linear(16, CLASSES)
        self.last = last
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.head(y[-1] if self.last else y)


class RowsFoldedIntoTime(Net):
    """The second neuron is given ``[T * N, ...]``, as a published transformer does it."""

    def __init__(self) -> None:
        super().__init__()
        self.T = STEPS
        self.folded = neuron.LIFNode(v_threshold=0.3, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        y = self.lif(self.fc(x.unsqueeze(0).repeat(self.T, 1, 1)))
        y = self.folded(y.flatten(0, 1)).reshape(y.shape)
        return self.head(y.mean(0, keepdim=True))[0]


def rows(n: int = ROWS) -> Tensor:
    return 3 * torch.rand(n, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", [ToldByAnArgument, ToldByALocal])
def test_the_number_of_repetitions_may_be_an_argument_or_a_local_variable(kind):
    model, x = kind(), rows()
    before = Snapshot(model)
    snn = EarlyExitWrapper(model, FixedPolicy(STEPS), timesteps=STEPS)
    trace = snn.trace(x)
    before.assert_unchanged("a trace")
    with torch.no_grad():
        for t in range(1, STEPS + 1):
            functional.reset_net(model)
            assert torch.allclose(trace[t - 1], model.body(x.expand(t, *x.shape)).mean(0))
        functional.reset_net(model)


@pytest.mark.parametrize("last", [True, False])
def test_a_network_of_recurrent_layers_alone_is_taken(last):
    model = RecurrentAlone(last)
    x = torch.stack([rows() * (1 + t) for t in range(STEPS)])
    trace = EarlyExitWrapper(model, FixedPolicy(STEPS), input="sequence", readout="auto" if last else "last").trace(x)
    with torch.no_grad():
        for t in range(1, STEPS + 1):
            own = model(x[:t])
            assert torch.allclose(trace[t - 1], own if last else own[-1])
    assert "_seenn_states" not in vars(model.rnn)


def test_rows_folded_into_the_time_of_a_neuron_are_refused_by_that_name():
    with pytest.raises(ModelRefused, match="treats rows as timesteps"):
        EarlyExitWrapper(RowsFoldedIntoTime(), timesteps=STEPS).infer(rows())


def test_cifar10dvs_vgg_of_the_examples_is_taken():
    """``[N, T, ...]`` in, reset at the beginning of ``forward``."""
    models = pytest.importorskip("spikingjelly.activation_based.examples.memopt.models", reason="not in this version")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.CIFAR10DVSVGG(dropout=0.0).eval()
        x = (torch.rand(2, 2, 2, 48, 48) < 0.3).float()
    snn = EarlyExitWrapper(model, FixedPolicy(1), input="sequence", time_dim=1)
    assert snn.infer(x).steps_executed == 2
    with torch.no_grad():
        own = model(x).mean(0)  # [T, N, C]
        functional.reset_net(model)
    assert own.any()
    assert torch.allclose(snn.trace(x)[-1], own, rtol=1e-4, atol=1e-5)
