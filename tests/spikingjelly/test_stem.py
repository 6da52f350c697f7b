"""Stems of SpikingJelly networks: both step modes, chunks, and networks that take their time in other ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seenn_spikingjelly.multi_step import MultiStepStepper
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin.stepping.stem import StemStepper

from ..invariants import Case, check_alone, check_saved, check_slots, check_whole, prescribed
from ..reference import run_spikingjelly
from ..spikingjelly_nets import make_fire, randomise
from ..test_stem import counting, no_stem, stem_of, wrap

T, N = 5, 4


def images() -> Tensor:
    return torch.rand((N, 2, 6, 6), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def fire(model: nn.Module, step_mode: str) -> Any:
    randomise(model, torch.Generator().manual_seed(1))
    functional.set_step_mode(model, step_mode)
    model.double().eval()
    make_fire(model, torch.stack([images()] * T))
    return model


def plain(step_mode: str) -> Any:
    layers = [layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(), layer.MaxPool2d(2)]
    return fire(nn.Sequential(*layers, layer.Flatten(), layer.Linear(36, 5)), step_mode)


class OfSequences(nn.Module):
    """Cannot be switched to single steps: it unpacks the time axis. Answers once if asked to."""

    def __init__(self, once: bool) -> None:
        super().__init__()
        self.conv, self.neuron = layer.Conv2d(2, 4, 3, padding=1), neuron.LIFNode()
        self.head = layer.Linear(144, 5)
        self.once = once

    def forward(self, x: Tensor) -> Tensor:
        steps, n, _, _, _ = x.shape
        y = self.head(self.neuron(self.conv(x)).view(steps, n, -1))
        return y.mean(0) if self.once else y


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
@pytest.mark.parametrize("build", [lambda: plain("s"), lambda: plain("m"), lambda: fire(OfSequences(False), "m")])
def test_once_for_each_row_however_many_timesteps_at_a_time(build, chunk):
    model, x = build(), images()
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    snn = wrap(model, chunk=chunk, timesteps=T)
    assert stem_of(snn, x) == ("0, 1" if isinstance(model, nn.Sequential) else "conv")
    with counting(conv.weight) as rows, torch.no_grad():
        found = snn.trace(x)
    assert rows == [N]
    with no_stem(), torch.no_grad():
        wanted = wrap(model, chunk=chunk, timesteps=T).trace(x)
    assert wanted.diff(dim=0).abs().amax() > 0
    if chunk == 1:
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    case = Case(model, run_spikingjelly, x, T, [conv], chunk=chunk)
    check_whole(case)
    check_alone(case, prescribed(2, 5, 1, 3), (3, 0, 1, 1))
    check_saved(case, prescribed(2, 5, 1, 3))
    if chunk == 1:
        check_slots(case, prescribed(2, 5, 1, 3), slots=2)


def test_time_folded_into_the_rows_is_computed_in_chunks():
    class Folding(OfSequences):
        def forward(self, x: Tensor) -> Tensor:
            steps, n = x.shape[:2]
            y = nn.Conv2d.forward(self.conv, x.flatten(0, 1)) if self.once else self.inner(x.flatten(0, 1))
            return self.head(self.neuron(y.view(steps, n, *y.shape[1:])).flatten(2))

    model = Folding(False)
    model.inner = nn.Conv2d(2, 4, 3, padding=1)
    fire(model, "m")
    for chunk, calls in ((1, [N]), (3, [N, 3 * N, 2 * N])):
        snn = wrap(model, chunk=chunk, timesteps=T)
        assert stem_of(snn, images()) == "inner"
        with counting(model.inner.weight) as rows, torch.no_grad():
            found = snn.trace(images())
        assert rows == calls
        with no_stem(), torch.no_grad():
            torch.testing.assert_close(found, wrap(model, chunk=chunk).trace(images()), rtol=1e-12, atol=1e-12)


def test_a_network_that_answers_once():
    model = fire(OfSequences(False), "m")
    model.once = True
    snn = wrap(model, readout="auto")
    assert stem_of(snn, images()) == "conv"
    stepper = next(iter(snn.adapter._kinds.values())).stepper  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(stepper, StemStepper)
    assert isinstance(stepper.inner, MultiStepStepper)
    with counting(model.conv.weight) as rows, torch.no_grad():
        found = snn.trace(images())
    assert rows == [N]
    with no_stem(), torch.no_grad():
        assert torch.equal(found, wrap(model, readout="auto").trace(images()))
