"""The VGG for event frames: its layers, and early exit on the frames as they are loaded."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import InputError
from seenn_plugin.models.events import event_vgg
from seenn_plugin.models.spikingjelly import run_sequence
from seenn_plugin.policies import ConfidencePolicy, FixedPolicy

from ..spikingjelly_nets import make_fire, randomise

T, N = 10, 6
SMALL = ((4,), (6, 6), (8,))


def frames() -> torch.Tensor:
    """``[N, T, 2, 34, 34]`` counts of events, as the loaders give them."""
    generator = torch.Generator().manual_seed(3)
    return torch.poisson(torch.full((N, T, 2, 34, 34), 0.3), generator=generator)


def small() -> nn.Module:
    model = event_vgg(SMALL, size=34, classes=5)
    randomise(model, torch.Generator().manual_seed(1))
    model.eval()
    make_fire(model, frames().transpose(0, 1))
    return model


def test_its_layers_are_those_of_the_paper():
    model = event_vgg()
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [64, 128, 256, 256, 512, 512, 512, 512]
    assert sum(isinstance(m, neuron.LIFNode) for m in model.modules()) == 8
    assert sum(isinstance(m, nn.AvgPool2d) for m in model.modules()) == 4
    assert next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features == 512 * 3 * 3


@pytest.mark.parametrize(
    ("stages", "size"), [(((2,),), 2), (((2,), (3, 3)), 7), (((2,), (3,), (2, 2)), 34), ([[2], [3]], 9)]
)
def test_it_fits_frames_of_any_size(stages, size):
    model = event_vgg(stages, size=size, classes=3).eval()
    with torch.no_grad():
        assert run_sequence(model, torch.rand(4, 5, 2, size, size)).shape == (4, 5, 3)


@pytest.mark.parametrize(("stages", "size"), [(((2,), (2,)), 3), ((), 8), (((2,), ()), 8), (((2,),), 0)])
def test_stages_that_do_not_fit_are_refused(stages, size):
    with pytest.raises(InputError, match=f"frames of {size} x {size} pixels"):
        event_vgg(stages, size=size)


def test_it_exits_early_where_the_policy_says_so_on_the_trace():
    model, x = small(), frames()
    with torch.no_grad():
        own = run_sequence(model, x.transpose(0, 1))
    options = {"timesteps": T, "input": "sequence", "time_dim": 1}
    snn = EarlyExitWrapper(model, FixedPolicy(T), **options)
    report = str(snn.explain(x))
    assert "spikingjelly" in report
    trace = snn.trace(x).detach()
    means = own.cumsum(0) / torch.arange(1, T + 1).view(T, 1, 1)
    torch.testing.assert_close(trace, means, rtol=1e-4, atol=1e-5)

    confidence = trace.softmax(2).amax(2)  # [T, N]
    threshold = float(confidence[:-1].amax(0).median())  # of those that some rows reach and some do not
    found = EarlyExitWrapper(model, ConfidencePolicy(threshold), **options).infer(x)
    for row in range(N):
        passed = [t for t in range(T) if confidence[t, row] > threshold]
        stop = passed[0] if passed else T - 1
        assert found.timesteps[row] == stop + 1
        torch.testing.assert_close(found.logits[row], trace[stop, row])
    assert found.steps_executed == int(found.timesteps.sum())
    assert len(found.timesteps.unique()) > 1
