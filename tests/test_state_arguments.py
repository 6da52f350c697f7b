"""One-step networks that take all their states in one argument: a tuple, a list, a dictionary, nested."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import InputError, SeennError

T, N = 5, 8
States = namedtuple("States", "first second")


class Net(nn.Module):
    """Two layers; subclasses say how their states come and go."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(7, 12), snntorch.Leaky(0.8, threshold=0.4)
        self.fc2, self.lif2 = nn.Linear(12, 3), snntorch.Leaky(0.9)

    def layers(self, x: Tensor, first: Any, second: Any) -> tuple[Tensor, Tensor, Tensor]:
        spikes, first = self.lif1(self.fc1(x), first)
        _, second = self.lif2(self.fc2(spikes), second)
        return second, first, second


class Unpacked(Net):
    def forward(self, x: Tensor, states: Any) -> Any:
        first, second = states
        out, *states = self.layers(x, first, second)
        return out, tuple(states)


class Indexed(Net):
    def forward(self, x: Tensor, states: Any) -> Any:
        out, *states = self.layers(x, states[0], states[1])
        return out, states


class ByName(Net):
    def forward(self, x: Tensor, states: Any) -> Any:
        out, first, second = self.layers(x, states["first"], states["second"])
        return out, {"second": second, "first": first}


class Nested(Net):
    def forward(self, x: Tensor, states: Any) -> Any:
        (first,), second = states["hidden"], states["out"]
        out, first, second = self.layers(x, first, second)
        return out, {"hidden": [first], "out": second}


class Attributes(Net):
    def forward(self, x: Tensor, states: Any = None) -> Any:
        if states is None:
            states = States(self.lif1.init_leaky(), self.lif2.init_leaky())
        out, first, second = self.layers(x, states.first, states.second)
        return out, States(first, second)


def own_outputs(x: Tensor) -> Tensor:
    model, outputs = Net().eval(), []
    first, second = model.lif1.init_leaky(), model.lif2.init_leaky()
    for _ in range(T):
        out, first, second = model.layers(x, first, second)
        outputs.append(out)
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", [Unpacked, Indexed, ByName, Attributes])
@torch.no_grad()
def test_states_in_one_argument(kind):
    x = 2 * torch.rand(N, 7)
    wanted = own_outputs(x)
    assert wanted.std(0).max() > 0.1, "nothing changes over time"
    assert wanted.std(1).max() > 0.1, "the rows are alike"
    snn = EarlyExitWrapper(kind().eval(), timesteps=T, readout="last")
    assert torch.equal(snn.trace(x), wanted)
    for item in snn.stream(x, slots=3):
        torch.testing.assert_close(item.logits, wanted[item.timesteps - 1, item.position])


@torch.no_grad()
def test_a_nested_state_is_refused_or_right():
    x = 2 * torch.rand(N, 7)
    snn = EarlyExitWrapper(Nested().eval(), timesteps=T, readout="last")
    try:
        found = snn.trace(x)
    except SeennError as error:
        assert "forward() requires states" in str(error)  # noqa: PT017
    else:
        assert torch.equal(found, own_outputs(x))


def test_an_argument_that_is_no_state_is_named():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(7, 3), snntorch.Leaky(0.8, init_hidden=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.lif(self.fc(x)) * mask.view(1, 3)

    snn = EarlyExitWrapper(Masked().eval(), timesteps=T)
    with pytest.raises(InputError, match=r"requires mask: .* what is no state is given a default"), torch.no_grad():
        snn.infer(torch.rand(N, 7))
