"""What the first inspection of a model concludes, what it leaves alone, and when it is made again."""

from __future__ import annotations

from collections import Counter

import pytest
import snntorch
import torch
from spikingjelly.activation_based import layer, monitor, neuron
from torch import nn

from seenn_plugin import EarlyExitWrapper, evaluate
from seenn_plugin.errors import CalibrationError
from seenn_plugin.policies import FixedPolicy
from seenn_plugin.state.hooks import only_observes

FEATURES, WIDTH, CLASSES, T = 6, 20, 3, 5
num_steps = 7


def sequential():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), snntorch.Leaky(0.9, init_hidden=True), nn.Linear(WIDTH, CLASSES)
    ).eval()


def multi_step():
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Linear(FEATURES, WIDTH, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        layer.Linear(WIDTH, CLASSES, step_mode="m"),
    ).eval()


class Loop(nn.Module):
    """A loop in ``forward``; subclasses say over what."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif, self.head = nn.Linear(FEATURES, WIDTH), snntorch.Leaky(0.9), nn.Linear(WIDTH, CLASSES)
        self.num_steps = T


class ByAttribute(Loop):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(self.num_steps):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk))
        return torch.stack(out)


class More(Loop):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(self.num_steps + 5):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk))
        return torch.stack(out)


class Fewer(Loop):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(self.num_steps - 3):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk))
        return torch.stack(out)


class Literal(Loop):
    """``T`` is a softmax temperature here."""

    def __init__(self):
        super().__init__()
        self.T = 2

    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(12):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk) / self.T)
        return torch.stack(out)


class ByGlobal(Loop):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(num_steps):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk))
        return torch.stack(out)


def by_closure(steps):
    class ByClosure(Loop):
        def forward(self, x):
            mem, out = self.lif.init_leaky(), []
            for _ in range(steps):
                spk, mem = self.lif(self.fc(x), mem)
                out.append(self.head(spk))
            return torch.stack(out)

    def change(value):
        nonlocal steps
        steps = value

    return ByClosure(), change


@pytest.fixture
def x():
    return 4 * torch.rand(8, FEATURES)


# -- how many timesteps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "timesteps"), [(ByAttribute, 5), (More, 10), (Fewer, 2), (Literal, 12), (ByGlobal, 7)]
)
def test_the_loop_counts_for_more_than_an_attribute(kind, timesteps, x):
    model = kind().eval()
    snn = EarlyExitWrapper(model)
    own = model(x)
    assert own.shape[0] == timesteps
    assert not torch.equal(own[0], own[-1])
    torch.testing.assert_close(snn.trace(x), own.cumsum(0) / torch.arange(1, timesteps + 1).view(-1, 1, 1))
    fact = snn.explain(x).facts["input"]
    said = {Literal: 2, More: 5, Fewer: 5, ByGlobal: 5}.get(kind)
    assert (f"its attribute says {said}, which is not used" in fact) if said else ("attribute" not in fact)


def test_a_longer_run_than_the_loop_makes_is_still_refused(x):
    with pytest.raises(ValueError, match="makes 5 by itself"):
        EarlyExitWrapper(ByAttribute(), timesteps=6).infer(x)


def test_a_changed_number_of_timesteps_is_noticed(x, monkeypatch):
    model = ByAttribute()
    snn = EarlyExitWrapper(model)
    assert len(snn.trace(x)) == 5
    model.num_steps = 9
    assert len(snn.trace(x)) == len(model(x)) == 9

    snn = EarlyExitWrapper(ByGlobal())
    assert len(snn.trace(x)) == 7
    monkeypatch.setitem(globals(), "num_steps", 4)
    assert len(snn.trace(x)) == len(snn.model(x)) == 4

    model, change = by_closure(6)
    snn = EarlyExitWrapper(model)
    assert len(snn.trace(x)) == 6
    change(3)
    assert len(snn.trace(x)) == len(model(x)) == 3


def test_an_attribute_without_a_loop_is_read_at_each_call(x):
    model = sequential()
    model.T = 3
    snn = EarlyExitWrapper(model)
    assert snn.timesteps == len(snn.trace(x)) == 3
    model.T = 6
    assert snn.timesteps == len(snn.trace(x)) == 6
    snn.timesteps = 4
    assert len(snn.trace(x)) == 4


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sequential, multi_step, ByAttribute])
@pytest.mark.parametrize("options", [{}, {"check": False}, {"chunk": "auto"}, {"fold": True}])
def test_a_hook_sees_the_row_steps_executed_and_nothing_else(make, options, x):
    model = make()
    node = next(m for m in model.modules() if isinstance(m, snntorch.Leaky | neuron.LIFNode))
    seen = Counter()

    def count(_module, arguments, output):
        seen["row-steps"] += (output[0] if isinstance(output, tuple) else output).numel() // WIDTH

    node.register_forward_hook(count)
    node.register_forward_pre_hook(lambda module, arguments: None)
    snn = EarlyExitWrapper(model, "patience", timesteps=T, **options)
    executed = sum(snn.infer(x).steps_executed for _ in range(2))
    assert 0 < seen["row-steps"] == executed
    assert executed < 2 * T * len(x) or "chunk" in options


def test_a_monitor_of_firing_rates_is_right_from_the_first_call_on(x):
    model = multi_step()
    rates = monitor.OutputMonitor(model, neuron.LIFNode, lambda spikes: spikes.sum())
    snn = EarlyExitWrapper(model, FixedPolicy(T), timesteps=T)
    with torch.no_grad():
        snn.infer(x)
        first = sum(map(float, rates.records))
        rates.clear_recorded_data()
        snn.infer(x)
        assert first == sum(map(float, rates.records)) > 0


def test_a_hook_that_changes_the_answer_is_part_of_the_model(x):
    model = sequential()
    model[1].register_forward_hook(lambda module, arguments, output: output * 0.5)
    model[2].register_forward_hook(lambda module, arguments, output: output.clamp_(max=0.1))
    snn = EarlyExitWrapper(model, FixedPolicy(T), timesteps=T)
    result = snn.infer(x)
    assert (result.logits <= 0.1 + 1e-6).all()
    model[1].reset_mem()
    own = torch.stack([model(x).clone() for _ in range(T)])
    torch.testing.assert_close(result.logits, own.mean(0))


class Recorder:
    def __init__(self):
        self.records, self.count = [], 0

    def __call__(self, module, arguments, output):
        self.count += 1
        self.records.append(output.detach().mean())

    def method(self, module, arguments, output):
        self.records.append(output.sum())

    def scale(self, module, arguments, output):
        return output * 2


def _clamps(module, arguments, output):
    output.clamp_(0, 1)


def _writes_into(module, arguments, output):
    output[:, 0] = 0


def _writes_to_the_module(module, arguments, output):
    module.seen = output


def _adds(module, arguments, output):
    output += 1


def _records(module, arguments, output):
    if output.requires_grad:
        return
    Recorder().records.append(output)


@pytest.mark.parametrize("hook", [_records, Recorder(), Recorder().method, lambda module, arguments: None])
def test_these_only_observe(hook):
    assert only_observes(hook)


@pytest.mark.parametrize(
    "hook",
    [
        _clamps,
        _writes_into,
        _writes_to_the_module,
        _adds,
        Recorder().scale,
        lambda module, arguments, output: output + 1,
        torch.nn.utils.parametrizations.weight_norm,
        print,
    ],
)
def test_these_may_change_the_answer(hook):
    assert not only_observes(hook)


class HandsOn(nn.Module):
    """Features of a layer are noted by a hook, and read by a later one, as feature extractors do."""

    def __init__(self):
        super().__init__()
        self.net, self.features = sequential(), []
        self.net[1].register_forward_hook(self.note)

    def note(self, module, arguments, output):
        self.features.append(output)

    def forward(self, x):
        self.features.clear()
        return self.net(x) + self.features[0][:, :CLASSES]


def test_a_hook_that_hands_something_to_the_model_is_part_of_it(x):
    model = HandsOn()
    result = EarlyExitWrapper(model, FixedPolicy(), timesteps=T, readout="sum").infer(x)
    model.net[1].reset_mem()
    own = torch.stack([model(x).clone() for _ in range(T)]).sum(0)
    torch.testing.assert_close(result.logits, own)
    assert len(own.unique(dim=0)) > 1
    notes = model.features

    def closure(module, arguments, output):
        notes.append(output)

    assert only_observes(closure)
    assert not only_observes(closure, own={id(notes)})


# -- counters ----------------------------------------------------------------------------------------------------------


class Total(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.register_buffer("total", torch.full((), 3.0))
        self.in_place = in_place

    def forward(self, x):
        if self.in_place:
            self.total += x.sum()
        else:
            self.total = self.total + x.sum()
        return x


@pytest.mark.parametrize("in_place", [True, False])
def test_a_counter_in_the_network_is_left_as_it_was(in_place, x):
    model = nn.Sequential(*sequential()[:2], Total(in_place), nn.Linear(WIDTH, CLASSES))
    snn = EarlyExitWrapper(model, timesteps=T)
    for _ in range(2):
        snn.infer(x)
        assert model[2].total == 3
    assert "written and never read, left as it was: 2.total" in snn.explain(x).facts["state"]
    model(x)
    assert model[2].total > 3


# -- the readout of output neurons that are silent at first ------------------------------------------------------------


def with_membrane():
    torch.manual_seed(1)
    hidden, last = snntorch.Leaky(0.9, init_hidden=True), snntorch.Leaky(0.9, init_hidden=True, output=True)
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), hidden, nn.Linear(WIDTH, CLASSES), last).eval()


WEAK, STRONG = 0.05 * torch.ones(4, FEATURES), 6 * torch.rand(40, FEATURES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("call", ["infer", "trace"])
def test_the_first_batch_does_not_fix_the_readout(call):
    fresh = EarlyExitWrapper(with_membrane(), FixedPolicy(), timesteps=6)
    wanted = fresh.infer(STRONG).logits
    assert fresh.explain(STRONG).facts["readout"].startswith("sum: ")
    assert wanted.max() >= 1
    snn = EarlyExitWrapper(with_membrane(), FixedPolicy(), timesteps=6)
    logits = snn.infer(WEAK).logits
    assert "have not spiked so far" in snn.explain(WEAK).facts["readout"]
    assert not torch.equal(logits, logits.round())
    found = getattr(snn, call)(STRONG)
    assert torch.equal(found[-1] if call == "trace" else found.logits, wanted)
    assert "the first of which came after the first batch" in snn.explain(WEAK).facts["readout"]
    assert snn.policy_for(STRONG) == fresh.policy_for(STRONG)
    assert not snn.infer(WEAK).logits.any()


def test_all_rows_of_the_first_batch_are_looked_at_for_spikes():
    snn = EarlyExitWrapper(with_membrane(), timesteps=6)
    snn.infer(torch.cat([WEAK, STRONG]))
    assert snn.explain(WEAK).facts["readout"] == "sum: the outputs are spikes (0 or 1): their count"


def test_a_stream_says_that_a_silent_output_has_spiked():
    snn = EarlyExitWrapper(with_membrane(), timesteps=6)
    snn.infer(WEAK)
    with pytest.warns(UserWarning, match="pass readout='sum' or readout='membrane'"):
        list(snn.stream(STRONG))


def test_a_pass_over_data_is_read_in_one_way():
    """Accuracies of the membrane potential and of the spike count do not go together."""
    labels = torch.zeros(40, dtype=torch.long)
    for work in (lambda snn, data: evaluate(snn, data), lambda snn, data: snn.calibrate(data, average_timesteps=3)):
        snn = EarlyExitWrapper(with_membrane(), timesteps=6)
        data = [(WEAK, labels[:4]), (STRONG, labels), (STRONG, labels)]
        with pytest.raises(CalibrationError, match=r"spiked for the first time in this pass .* Call it again"):
            work(snn, data)
        work(snn, data)
        assert snn.explain(WEAK).facts["readout"].startswith("sum")


def test_a_layer_that_is_not_used_is_not_said_to_be_silent(x):
    class Spare(Loop):
        def __init__(self):
            super().__init__()
            self.spare = snntorch.Leaky(0.9)

        forward = ByAttribute.forward

    snn = EarlyExitWrapper(Spare())
    snn.infer(x)  # a warning is an error here
    assert "spare" not in snn.explain(x).facts["firing rates"]


def test_fixed_without_a_number_is_all_timesteps(x):
    result = EarlyExitWrapper(sequential(), "fixed", timesteps=T).infer(x)
    assert result.timesteps.tolist() == [T] * len(x)
    assert result.score.tolist() == [1.0] * len(x)
