"""The networks of the snnTorch examples: taken as they are, through every invariant, and trained."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import snntorch
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.models.snntorch import ConvNet, RecurrentNet, run_sequence
from seenn_plugin.training import Recipe, train

from ..invariants import (
    FIRING,
    Case,
    Rule,
    check_alone,
    check_guest,
    check_prefix,
    check_saved,
    check_slots,
    check_stream,
    check_whole,
    firing_rate,
    prescribed,
)
from ..reference import Outputs, run_snntorch
from ..snntorch_nets import neurons_of

ROWS, T = 5, 6
MIXED = prescribed(2, T, 1, 3, 2)


def run_loop(model: nn.Module, frames: Tensor) -> list[Outputs]:
    """The loop is inside ``forward``, and shows the same image at every timestep."""
    return [(output,) for output in model(frames[0])]


def conv_case() -> Case:
    torch.manual_seed(1)
    model = ConvNet(num_steps=T, channels=(3, 4), beta=0.8, classes=4).eval()
    with torch.no_grad():
        model.conv2.weight.mul_(2)  # untrained, it would hardly fire
    layers = [model.lif1, model.conv2, model.lif2, model.fc, model.lif3]  # conv1 is computed once for each row
    return Case(model, run_loop, 2 * torch.rand(ROWS, 1, 28, 28), T, layers, readout="mean")


def recurrent_case() -> Case:
    torch.manual_seed(1)
    model = RecurrentNet(features=12, hidden=16, classes=4).eval()
    inputs = (torch.rand(T, ROWS, 12) < 0.5).float() * 3
    layers: list[nn.Module] = [model.fc1, model.lif1, model.fc2, model.lif2]
    return Case(model, run_snntorch, inputs, T, layers, sequence=True, time_dim=1, readout="mean")


CASES = {"ConvNet": conv_case, "RecurrentNet": recurrent_case}


@cache
def cached(name: str) -> Case:
    """With one wrapper for all tests: every new one looks at the model again."""
    case = CASES[name]()
    case.wrapper = case.wrap(MIXED)
    return case


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return cached(request.param)


def margin_rule(case: Case) -> Rule:
    """A margin rule under which some rows leave early and some do not, with no score near its threshold."""
    top = case.trace.softmax(-1).topk(2, -1).values
    margin = (top[..., 0] - top[..., 1])[:-1].flatten().sort().values
    inner = margin[margin.numel() // 3 :]
    gap = int(inner.diff().argmax())
    return Rule("margin", {"threshold": float(inner[gap : gap + 2].mean()), "temperature": 1.0})


# -- as they are ----------------------------------------------------------------------------------------------------


def test_hidden_neurons_fire(case):
    hidden = [neuron for neuron in neurons_of(case.model) if neuron is not neurons_of(case.model)[-1]]
    frames = case.inputs if case.sequence else torch.stack([case.inputs] * T)
    rates = firing_rate(case.model, hidden, case.run, frames)
    assert all(FIRING[0] <= rate <= FIRING[1] for rate in rates), rates


def test_the_convolutional_network_is_taken_as_it_is():
    case = conv_case()
    snn = EarlyExitWrapper(case.model, policy="margin")
    found = snn.explain(case.inputs)
    assert found.refused is None
    assert snn.infer(case.inputs).timesteps.max() <= T
    assert "for _ in range(self.num_steps)" in str(found)
    assert "conv1, pool1: computed once for each row" in str(found)
    assert "can join active rows" in str(found)
    assert "mean: the outputs are currents" in str(found)


def test_the_recurrent_network_is_taken_as_it_is():
    case = recurrent_case()
    snn = EarlyExitWrapper(case.model, policy="margin", input="sequence", time_dim=1)
    found = snn.explain(case.as_given(case.inputs))
    assert found.refused is None
    assert "lif1.spk (rows on dim 0)" in str(found)
    assert "can join active rows" in str(found)
    assert "mean: the outputs are currents" in str(found)


def test_the_wrappers_answer_is_the_networks_own(case):
    with torch.no_grad():
        own = run_sequence(case.model, case.inputs) if case.sequence else case.model(case.inputs)
    assert own.shape == (T, ROWS, 4)
    snn = case.wrap(MIXED)
    trace = snn.trace(case.as_given(case.inputs))
    torch.testing.assert_close(trace, own.cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1))


def test_the_output_neurons_of_the_recurrent_network_integrate():
    """Written out: no reset, however high the potential."""
    model = RecurrentNet(features=3, hidden=4, beta_out=0.5, classes=2).eval()
    with torch.no_grad():
        model.fc2.weight.fill_(5.0)
    frames = torch.rand(T, 2, 3) * 4
    seen: list[Tensor] = []
    model.lif2.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    outputs, potential = run_sequence(model, frames), torch.zeros(2, 2)
    for current, output in zip(seen, outputs, strict=True):
        potential = 0.5 * potential + current
        torch.testing.assert_close(output, potential)
    assert outputs.max() > 2, "above the threshold of 1"


def test_a_run_begins_fresh_and_leaves_other_networks_alone():
    model, other = (RecurrentNet(hidden=16).eval() for _ in range(2))
    frames = (torch.rand(T, 3, 12) < 0.5).float() * 3
    first = run_sequence(model, frames)
    states = [neuron.mem.clone() for neuron in neurons_of(model)]
    run_sequence(other, frames)
    assert all(torch.equal(neuron.mem, state) for neuron, state in zip(neurons_of(model), states, strict=True))
    assert torch.equal(run_sequence(model, frames), first)


# -- the invariants -------------------------------------------------------------------------------------------------


def test_whole(case):
    check_whole(case)


def test_prefix(case):
    check_prefix(case, MIXED)
    rule = margin_rule(case)
    assert len(set(case.exits(rule))) > 1, "all rows leave at the same timestep"
    check_prefix(case, rule)


def test_alone(case):
    check_alone(case, MIXED, [3, 0, 1])
    check_alone(case, margin_rule(case), [4, 2, 2, 0, 1])


def test_alone_in_places_that_others_had(case):
    check_slots(case, MIXED, slots=2)


def test_stream(case):
    check_stream(replace(case, wrapper=None), None, slots=2)


def test_guest(case):
    other = recurrent_case()
    with torch.no_grad():
        run_sequence(other.model, other.inputs)
    check_guest(replace(case, wrapper=None), MIXED, failing_call=2, others=[other.model])


def test_saved(case):
    check_saved(case, MIXED)


# -- training -------------------------------------------------------------------------------------------------------


def test_the_convolutional_network_learns():
    """Bright above or bright below."""
    labels = torch.arange(64) % 2
    images = torch.rand(64, 1, 28, 28) * 0.2
    for image, label in zip(images, labels, strict=True):
        image[:, 14 * int(label) : 14 * int(label) + 14] += 0.8
    model = ConvNet(num_steps=3, channels=(4, 4), classes=2)
    recipe = Recipe(epochs=6, batch_size=16, optimizer="adamw", learning_rate=5e-3, tet_lambda=0.0)
    data = TensorDataset(images, labels)
    epochs = train(model, lambda net, x: net(x), data, recipe, validation=data, progress=False)
    assert min(epochs[-1].accuracy) > 0.95
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_recurrent_network_learns():
    """Which of two features was there in the first frames: what comes later is the same for all."""
    labels = torch.arange(64) % 2
    recordings = torch.ones(64, 12, 4)
    recordings[:, :3] = 0
    recordings[torch.arange(64), :3, labels] = 3.0
    model = RecurrentNet(features=4, hidden=16, classes=2)
    recipe = Recipe(epochs=20, batch_size=16, optimizer="adamw", learning_rate=1e-2, tet_lambda=0.0, clip=1.0)
    data = TensorDataset(recordings, labels)
    epochs = train(
        model, lambda net, x: run_sequence(net, x.transpose(0, 1)), data, recipe, validation=data, progress=False
    )
    assert epochs[-1].accuracy[-1] > 0.95
    assert isinstance(model.lif1, snntorch.RLeaky)
    assert model.lif1.recurrent.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_wrapped_right_after_a_run_with_gradients(name):
    """Its neurons still hold membrane potentials that know where they come from."""
    case = CASES[name]()
    own = run_sequence(case.model, case.inputs) if case.sequence else case.model(case.inputs)
    own.mean().backward()
    assert any(neuron.mem.grad_fn is not None for neuron in neurons_of(case.model))
    with torch.no_grad():
        logits = case.wrap(prescribed(*[T] * ROWS))(case.as_given(case.inputs))
    torch.testing.assert_close(logits, own.detach().mean(0))
