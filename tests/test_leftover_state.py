"""State that the caller's own runs leave in the model between two calls of the wrapper.

State of the framework's neurons is reset for the rows of the wrapper, and given back to the caller. State of the
caller's own is reset as the model does itself, or as the wrapper has seen it before; otherwise it is refused by name.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import ModelRefused
from seenn_plugin.policies import FixedPolicy

ROWS, FEATURES, T = 5, 6, 4


def spikingjelly_net() -> Any:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron

    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(FEATURES, 12), neuron.LIFNode(v_threshold=0.3), layer.Linear(12, 3)).eval()


def snntorch_net() -> Any:
    pytest.importorskip("snntorch")
    import snntorch

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 12), snntorch.Leaky(beta=0.9, threshold=0.3, init_hidden=True), nn.Linear(12, 3)
    ).eval()


def membrane(model: Any) -> Tensor:
    return model[1].mem if hasattr(model[1], "mem") else model[1].v


NETS = pytest.mark.parametrize("make", [spikingjelly_net, snntorch_net])


@torch.no_grad()
def fresh_trace(make: Any, x: Tensor) -> Tensor:
    """The network's own outputs from a fresh state, ``[T, N, C]``; asserts that it fires and that rows differ."""
    model, spikes = make(), []
    handle = model[1].register_forward_hook(lambda _, __, out: spikes.append(out.clone()))
    outputs = torch.stack([model(x) for _ in range(T)])
    handle.remove()
    rate = torch.stack(spikes).mean()
    assert 0.05 < rate < 0.95, f"the network proves nothing: firing rate {rate}"
    assert not torch.allclose(outputs[-1, 0], outputs[-1, 1]), "two rows are alike"
    return outputs


@NETS
@pytest.mark.parametrize("rows", [ROWS, 2], ids=["the same batch size", "another batch size"])
@torch.no_grad()
def test_state_of_the_frameworks_neurons_is_fresh_in_every_call(make, rows):
    x = torch.rand(ROWS, FEATURES)
    wanted = fresh_trace(make, x)
    model = make()
    snn = EarlyExitWrapper(model, FixedPolicy(T), timesteps=T, readout="sum")
    torch.testing.assert_close(snn.infer(x).logits, wanted.sum(0))
    for _ in range(3):
        model(5 * torch.rand(rows, FEATURES))
    left = membrane(model).clone()
    assert left.abs().max() > 0.01, "the caller's runs have left nothing"
    torch.testing.assert_close(snn.infer(x).logits, wanted.sum(0))
    torch.testing.assert_close(snn.trace(x), wanted.cumsum(0))
    assert torch.equal(membrane(model), left), "the caller's own state is gone"


class OwnState(nn.Module):
    """Keeps a trace of its input in an attribute that the framework's reset does not know."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.net = make()
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x if self.seen is None else 0.5 * self.seen + x
        return self.net(self.seen)


class ResetToNone(OwnState):
    def reset(self) -> None:
        self.seen = None


class ResetToZeros(OwnState):
    """Fails before the first run, and leaves zeros for the rows of the last one."""

    def reset_state(self) -> None:
        assert self.seen is not None
        self.seen = torch.zeros_like(self.seen)


class ResetsTheProcess(ResetToNone):
    """As snnTorch's users write it: ``utils.reset`` resets the neurons of all networks of the process."""

    def init_hidden(self) -> None:
        from snntorch import utils

        self.seen = None
        utils.reset(self.net)

    reset = None


@NETS
@torch.no_grad()
def test_state_of_the_models_own_is_fresh_in_every_call(make):
    """The wrapper has seen the model fresh: what the owner's runs leave afterwards is neither used nor lost."""
    x = torch.rand(ROWS, FEATURES)
    model = OwnState(make)
    snn = EarlyExitWrapper(model, FixedPolicy(T), timesteps=T)
    first = snn.infer(x).logits
    assert not torch.allclose(first[0], first[1]), "two rows are alike"
    for rows in (ROWS, 2):
        model.seen = None
        model(5 * torch.rand(rows, FEATURES))
        assert model.seen is not None
        left = model.seen.clone()
        assert torch.equal(snn.infer(x).logits, first)
        torch.testing.assert_close(torch.stack([item.logits for item in snn.stream(x, slots=2)]), first)
        assert torch.equal(model.seen, left)


@NETS
@pytest.mark.parametrize("kind", [ResetToNone, ResetToZeros, ResetsTheProcess])
@torch.no_grad()
def test_a_model_that_has_run_is_reset_by_its_own_method(make, kind):
    """The wrapper sees the model first after its owner has run it."""
    if make is spikingjelly_net and kind is ResetsTheProcess:
        pytest.skip("SpikingJelly has no register of all neurons")
    x, other = torch.rand(ROWS, FEATURES), make()
    wanted = EarlyExitWrapper(OwnState(make), FixedPolicy(T), timesteps=T).infer(x).logits
    assert not torch.allclose(wanted[0], wanted[1]), "two rows are alike"
    model = kind(make)
    for net in (other, model):
        net(torch.rand(7, FEATURES))
    assert model.seen is not None
    left, left_elsewhere = model.seen.clone(), membrane(other).clone()
    assert left_elsewhere.abs().max() > 0
    snn = EarlyExitWrapper(model, FixedPolicy(T), timesteps=T)
    torch.testing.assert_close(snn.infer(x).logits, wanted)
    torch.testing.assert_close(torch.stack([item.logits for item in snn.stream(x, slots=2)]), wanted)
    torch.testing.assert_close(snn.trace(x)[-1], wanted)
    assert torch.equal(model.seen, left)
    assert torch.equal(membrane(other), left_elsewhere), "another network was reset"


@NETS
@torch.no_grad()
def test_state_that_no_reset_brings_back_is_refused_with_advice_that_helps(make):
    x = torch.rand(ROWS, FEATURES)
    model = OwnState(make)
    model(torch.rand(7, FEATURES))
    snn = EarlyExitWrapper(model, FixedPolicy(T), timesteps=T)
    with pytest.raises(ModelRefused, match=r"seen still holds a value.*seen = None.*reset\(\)"):
        snn.infer(x)
    model.seen = None
    from_fresh = EarlyExitWrapper(OwnState(make), FixedPolicy(T), timesteps=T).infer(x).logits
    torch.testing.assert_close(snn.infer(x).logits, from_fresh)
