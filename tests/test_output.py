"""Which part of what ``forward`` returns is the answer: ``output=``."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import AdapterError, ModelRefused

T, N = 5, 8


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


Pair = namedtuple("Pair", "features logits")


@dataclass
class Only:
    logits: Tensor
    steps: int = T


FORMS: dict[str, tuple[Any, Any]] = {
    "dictionary": (lambda y, z: {"logits": y, "features": z}, "logits"),
    "dictionary, other order": (lambda y, z: {"features": z, "logits": y}, "logits"),
    "dictionary, by function": (lambda y, z: {"features": z, "logits": y}, lambda returned: returned["logits"]),
    "dictionary of one": (lambda y, z: {"logits": y, "name": "net"}, None),
    "dataclass": (lambda y, z: Answer(y, z), "logits"),
    "dataclass of one": (lambda y, z: Only(y), None),
    "named tuple": (lambda y, z: Pair(z, y), "logits"),
    "second of a tuple": (lambda y, z: (z, y), 1),
    "last of a list": (lambda y, z: [z, y], -1),
    "nested": (lambda y, z: {"heads": [z, y]}, lambda returned: returned["heads"][1]),
}


class OneStep(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.fc = form, nn.Linear(7, 12)
        self.lif, self.head = snntorch.Leaky(0.8, threshold=0.4, init_hidden=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        z = self.lif(self.fc(x))
        return self.form(self.head(z), z)


class Loop(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.fc, self.lif, self.head = (
            form,
            nn.Linear(7, 12),
            snntorch.Leaky(0.8, threshold=0.4),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Any:
        mem, logits, features = self.lif.init_leaky(), [], []
        for _ in range(T):
            z, mem = self.lif(self.fc(x), mem)
            features.append(z)
            logits.append(self.head(z))
        return self.form(torch.stack(logits), torch.stack(features))


class States(nn.Module):
    """A one-step network that takes its states and hands them back by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif, self.head = nn.Linear(7, 12), snntorch.Leaky(0.8, threshold=0.4), nn.Linear(12, 3)

    def forward(self, x: Tensor, mem: Tensor) -> dict[str, Tensor]:
        z, mem = self.lif(self.fc(x), mem)
        return {"mem": mem, "logits": self.head(z)}


def multi_step(form: Any) -> nn.Module:
    class MultiStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.lif, self.head = layer.Linear(7, 12), neuron.LIFNode(v_threshold=0.3), layer.Linear(12, 3)

        def forward(self, x: Tensor) -> Any:
            z = self.lif(self.fc(x))
            return form(self.head(z), z)

    model = MultiStep()
    functional.set_step_mode(model, "m")
    return model


def images() -> Tensor:
    return 2 * torch.rand(N, 7, generator=torch.Generator().manual_seed(1))


def plain(y: Tensor, z: Tensor) -> Tensor:
    return y


@pytest.mark.parametrize("make", [OneStep, Loop, multi_step])
@pytest.mark.parametrize("form", FORMS)
def test_the_named_part_is_the_answer(make, form):
    returned, output = FORMS[form]
    x = images()
    with torch.no_grad():
        wanted = EarlyExitWrapper(make(plain).eval(), timesteps=T, readout="mean").trace(x)
        model = make(returned).eval()
        before = Snapshot(model)
        snn = EarlyExitWrapper(model, timesteps=T, readout="mean", output=output)
        assert torch.equal(snn.trace(x), wanted)
        items = sorted(snn.stream(x, slots=3), key=lambda item: item.position)
    assert wanted.std(1).min() > 0, "the rows are alike"
    assert torch.equal(torch.stack([item.logits for item in items]), snn.infer(x).logits)
    before.assert_unchanged("all calls")


@pytest.mark.parametrize("options", [{}, {"fold": True}, {"full_run": True}])
def test_with_options(options):
    x = images()
    returned, output = FORMS["dictionary, other order"]
    snn = EarlyExitWrapper(multi_step(returned).eval(), timesteps=T, readout="mean", output=output, **options)
    with torch.no_grad():
        wanted = EarlyExitWrapper(multi_step(plain).eval(), timesteps=T, readout="mean").trace(x)
        assert torch.allclose(snn.trace(x), wanted)


def test_states_may_be_returned_by_name():
    x = images()
    model = States().eval()
    with torch.no_grad():
        trace = EarlyExitWrapper(model, timesteps=T, readout="last").trace(x)
        mem = model.lif.init_leaky()
        for t in range(T):
            made = model(x, mem)
            mem = made["mem"]
            assert torch.allclose(trace[t], made["logits"])
    assert trace.std(0).max() > 0, "nothing changes over time"


@pytest.mark.parametrize("make", [OneStep, Loop, multi_step])
def test_several_possible_answers_are_asked_for_by_name(make):
    snn = EarlyExitWrapper(make(FORMS["dictionary"][0]).eval(), timesteps=T)
    with pytest.raises(ModelRefused, match=r"dict with 'logits' .*, 'features' .*output='logits'"), torch.no_grad():
        snn.infer(images())


@pytest.mark.parametrize(("output", "message"), [("logit", "'logits', 'features'"), (2, "'logits', 'features'")])
def test_an_unknown_part_is_named(output, message):
    snn = EarlyExitWrapper(OneStep(FORMS["dictionary"][0]).eval(), timesteps=T, output=output)
    with pytest.raises(ModelRefused, match=message), torch.no_grad():
        snn.infer(images())


def test_whole_numbers_in_a_dictionary_are_refused():
    snn = EarlyExitWrapper(OneStep(lambda y, z: {"a": y.argmax(1), "b": z}).eval(), timesteps=T, output="a")
    with pytest.raises(ModelRefused, match="whole numbers"), torch.no_grad():
        snn.infer(images())


def test_another_adapter_says_that_it_has_no_output_option():
    from seenn_plugin.adapter import Adapter

    class Other(Adapter):
        name = "other"
        claims = begin = advance = keep = place = lambda *_: None

    Other.__abstractmethods__ = frozenset()
    with pytest.raises(AdapterError, match="output= is not offered by the adapter 'other'"):
        EarlyExitWrapper(OneStep(plain), timesteps=T, adapter=Other, output="logits")
