"""A model that is changed between two calls answers as a wrapper of the changed model would: nothing is stale."""

from __future__ import annotations

import copy

import pytest
import snntorch
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn.utils import parametrize, prune

from seenn_plugin import EarlyExitWrapper

from .invariants import ReadOffPolicy

FEATURES, WIDTH, CLASSES, T = 6, 20, 3, 5
X = 4 * torch.rand(9, FEATURES, generator=torch.Generator().manual_seed(0))
factor = 1.0


class Net(nn.Module):
    """What all networks here have: settings of every kind that the code reads."""

    def __init__(self, linear, neuron_layer):
        super().__init__()
        self.fc, self.bn, self.neuron, self.head = linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), neuron_layer, None
        self.head = linear(WIDTH, CLASSES)
        self.gain, self.config, self.options, self.flag, self.steps = 1.0, {"gain": 1.0}, [1.0], False, T
        with torch.no_grad():
            self.fc.weight.mul_(4)
            self.head.weight.mul_(2)

    def scaled(self, x):
        return x * self.gain * factor * self.config["gain"] * self.options[0]


class Step(Net):
    def __init__(self):
        super().__init__(nn.Linear, snntorch.Leaky(0.9, init_hidden=True))

    def forward(self, x):
        return self.head(self.neuron(self.scaled(self.bn(self.fc(x)))))


class Loop(Net):
    def __init__(self):
        super().__init__(nn.Linear, snntorch.Leaky(0.9))

    def forward(self, x):
        mem, out = self.neuron.init_leaky(), []
        current = self.bn(self.fc(x))
        for t in range(self.steps):
            scaled = self.scaled(current)
            if self.flag:
                scaled = scaled * (1 + t)
            spikes, mem = self.neuron(scaled, mem)
            out.append(self.head(spikes))
        return torch.stack(out)


class Multi(Net):
    def __init__(self):
        super().__init__(lambda a, b: layer.Linear(a, b, step_mode="m"), neuron.LIFNode(step_mode="m"))

    def forward(self, x):
        current = self.fc(x)
        return self.head(self.neuron(self.scaled(self.bn(current.flatten(0, 1)).view(current.shape))))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def set_global(_):
    global factor
    factor = 3.0


def exchange_module(model):
    model.fc = copy.deepcopy(model.fc)
    model.fc.weight.mul_(2)


def exchange_neuron(model):
    leaky = isinstance(model.neuron, snntorch.Leaky)
    model.neuron = snntorch.Leaky(0.3, init_hidden=model.neuron.init_hidden) if leaky else neuron.IFNode(step_mode="m")


def set_threshold(model):
    if isinstance(model.neuron, snntorch.Leaky):
        model.neuron.threshold.fill_(0.3)
    else:
        model.neuron.v_threshold = 0.3


def set_decay(model):
    if isinstance(model.neuron, snntorch.Leaky):
        model.neuron.beta.fill_(0.2)
    else:
        model.neuron.tau = 5.0


def train_for_a_batch(model):
    model.bn.train()
    model.bn(5 + torch.rand(9, WIDTH))
    model.bn.eval()


def optimise(model):
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    torch.optim.SGD([model.fc.weight], 0.5).step()


def load_weights(model):
    values = {name: v * 1.5 if v.is_floating_point() else v for name, v in model.state_dict().items()}
    model.load_state_dict(values)


def replace_forward(model):
    fc = model.fc
    fc.forward = lambda x: 2 * nn.functional.linear(x, fc.weight, fc.bias)


def normalise_weight(model):
    nn.utils.parametrizations.weight_norm(model.fc)
    model.fc.parametrizations.weight.original0.mul_(2)


def assign_data(model):
    model.fc.weight.data = model.fc.weight.data * 2


def append_layer(model):
    more = layer.Linear(CLASSES, CLASSES, step_mode="m") if isinstance(model, Multi) else nn.Linear(CLASSES, CLASSES)
    model.head = nn.Sequential(model.head, more)


CHANGES = {
    "in place": lambda model: model.fc.weight.mul_(2),
    "through .data": lambda model: model.fc.weight.data.mul_(2),
    "one number through .data": lambda model: model.fc.weight.data.view(-1).__setitem__(7, 9.0),
    "data assigned": assign_data,
    "another parameter": lambda model: setattr(model.fc, "weight", nn.Parameter(model.fc.weight.detach() * 2)),
    "no bias": lambda model: setattr(model.fc, "bias", None),
    "another module": exchange_module,
    "another neuron": exchange_neuron,
    "another layer appended": append_layer,
    "a buffer in place": lambda model: model.bn.running_mean.add_(1),
    "a buffer assigned": lambda model: setattr(model.bn, "running_var", model.bn.running_var * 4),
    "a setting of a layer": lambda model: setattr(model.bn, "eps", 10.0),
    "statistics of a batch": train_for_a_batch,
    "the decay": set_decay,
    "the threshold": set_threshold,
    "an attribute": lambda model: setattr(model, "gain", 2.5),
    "an entry of a dictionary": lambda model: model.config.__setitem__("gain", 2.5),
    "an entry of a list": lambda model: model.options.__setitem__(0, 2.5),
    "a global variable": set_global,
    "a hook": lambda model: model.fc.register_forward_hook(lambda module, arguments, output: 2 * output),
    "a hook before": lambda model: model.head.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],)),
    "pruning": lambda model: prune.l1_unstructured(model.fc, "weight", amount=0.5),
    "a parametrisation": lambda model: parametrize.register_parametrization(model.fc, "weight", Doubled()),
    "weight normalisation": normalise_weight,
    "loaded weights": load_weights,
    "another forward": replace_forward,
    "an optimiser": optimise,
}
OF_LOOPS = {
    "a flag": lambda model: setattr(model, "flag", True),
    "the number of timesteps": lambda model: setattr(model, "steps", 7),
}
OPTIONS = {"default": {}, "fold": {"fold": True}}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("change", [*CHANGES, *OF_LOOPS])
@pytest.mark.parametrize("kind", [Step, Loop, Multi])
@torch.no_grad()
def test_nothing_is_stale(kind, change, options, monkeypatch):
    if change in OF_LOOPS and kind is not Loop:
        pytest.skip("it has no loop")
    monkeypatch.setitem(globals(), "factor", 1.0)
    model = kind().eval()
    chosen = {**OPTIONS[options], **({} if kind is Loop else {"timesteps": T})}
    snn = EarlyExitWrapper(model, **chosen)
    snn.infer(X)
    before = snn.trace(X)
    (CHANGES | OF_LOOPS)[change](model)
    found, result = snn.trace(X), snn.infer(X)
    fresh = EarlyExitWrapper(model, **chosen)
    wanted, expected = fresh.trace(X), fresh.infer(X)
    assert before.shape != wanted.shape or not torch.allclose(before, wanted), "the change has no effect"
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(result.logits, expected.logits)
    assert torch.equal(result.timesteps, expected.timesteps)


@torch.no_grad()
def test_a_row_that_takes_a_place_starts_from_the_present_reset_value():
    """A sequence has no stem, which would reset the neurons for every new row."""
    torch.manual_seed(0)
    model = nn.Sequential(layer.Linear(7, 12), neuron.LIFNode(v_threshold=0.4), layer.Linear(12, 3)).eval()
    x = 2 * torch.rand(5, 12, 7)
    snn = EarlyExitWrapper(model, ReadOffPolicy(), input="sequence", readout="sum")
    before = snn.infer(x).logits
    model[1].set_reset_value("v", 0.3)
    fresh = EarlyExitWrapper(model, ReadOffPolicy(), input="sequence", readout="sum").infer(x).logits
    assert not torch.allclose(fresh, before), "the reset value makes no difference"
    assert len(set(snn.infer(x).timesteps.tolist())) > 2, "all rows leave at once"
    streamed = torch.stack([item.logits for item in snn.stream(x.unbind(1), slots=4)])
    torch.testing.assert_close(streamed, fresh)


@torch.no_grad()
def test_a_replaced_head_under_bfloat16_differs_by_rounding_alone():
    """It differs from float32 by several percent, and from a wrapper that has seen nothing else by nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(layer.Linear(7, 64), neuron.LIFNode(v_threshold=0.3), layer.Linear(64, 10)).eval()
    x = 2 * torch.rand(16, 7)
    options = {"timesteps": 4, "readout": "mean", "autocast": torch.bfloat16}
    snn = EarlyExitWrapper(model, **options)
    before = snn.trace(x)
    model[2] = layer.Linear(64, 10)
    after = snn.trace(x)
    assert not torch.allclose(after, before, atol=0.05)
    assert torch.equal(after, EarlyExitWrapper(model, **options).trace(x))
