"""Readouts: step by step, compared with their definition on all outputs at once."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.engine.trace import read_all
from seenn_plugin.errors import ReadoutError
from seenn_plugin.policies import Decision, Policy
from seenn_plugin.readout import (
    CallableReadout,
    FirstSpikeReadout,
    LastReadout,
    MaxReadout,
    MeanReadout,
    MembraneReadout,
    PopulationReadout,
    Readout,
    SumReadout,
    choose_readout,
    make_readout,
    read,
)

CLASSES = 4


def first_spike(history: Tensor) -> Tensor:
    t, n, c = history.shape
    logits = torch.empty(n, c, dtype=history.dtype)
    for row in range(n):
        for k in range(c):
            times = [step + 1 for step in range(t) if history[step, row, k] > 0]
            logits[row, k] = -min(times, default=t + 1)
    return logits


def population(history: Tensor) -> Tensor:
    n, neurons = history.shape[1:]
    block = neurons // 2
    return torch.stack([history[:, :, :block].sum((0, 2)), history[:, :, block:].sum((0, 2))], 1).reshape(n, 2)


DEFINITIONS: dict[str, tuple[Readout, Any]] = {
    "sum": (SumReadout(), lambda history: history.sum(0)),
    "mean": (MeanReadout(), lambda history: history.mean(0)),
    "last": (LastReadout(), lambda history: history[-1]),
    "max": (MaxReadout(), lambda history: history.amax(0)),
    "first_spike": (FirstSpikeReadout(), first_spike),
    "population": (PopulationReadout(2), population),
    "callable": (CallableReadout(lambda h: h.std(0, correction=0) + len(h)), lambda h: h.std(0, correction=0) + len(h)),
}


@st.composite
def histories(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 5)), draw(st.sampled_from([2, 4, 6])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    if draw(st.booleans()):
        return (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5]))).float()
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", DEFINITIONS)
@given(history=histories())
def test_a_readout_equals_its_definition_on_all_outputs_so_far(name, history):
    readout, definition = DEFINITIONS[name]
    found = read_all(readout, [(outputs,) for outputs in history])
    expected = torch.stack([definition(history[:t]) for t in range(1, len(history) + 1)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", DEFINITIONS)
@given(history=histories(), data=st.data())
def test_a_readout_continues_with_a_subset_of_rows(name, history, data):
    readout, definition = DEFINITIONS[name]
    rows, accumulator = torch.arange(history.shape[1]), None
    for t in range(1, len(history) + 1):
        timestep = torch.full_like(rows, t)
        logits, accumulator = read(readout, (history[t - 1, rows],), timestep, accumulator)
        torch.testing.assert_close(logits, definition(history[:t])[rows])
        stay = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))))
        rows = rows[stay]
        accumulator = None if accumulator is None else accumulator.index_select(0, stay)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_readout_does_not_modify_its_outputs_or_its_accumulator(name):
    readout, _ = DEFINITIONS[name]
    history = torch.randn(3, 2, 4)
    was, accumulator, timestep = history.clone(), None, torch.ones(2, dtype=torch.long)
    for t in range(3):
        before = None if accumulator is None else accumulator.clone()
        _, after = readout.step((history[t],), timestep + t, accumulator)
        if before is not None:
            assert torch.equal(accumulator, before)
        accumulator = after
    assert torch.equal(history, was)


def test_the_membrane_is_the_last_of_several_outputs():
    spikes, membrane = torch.zeros(3, 2, 4), torch.randn(3, 2, 4)
    found = read_all(MembraneReadout(), list(zip(spikes, membrane, strict=True)))
    assert torch.equal(found, membrane)
    with pytest.raises(ReadoutError, match=r"several outputs.*output=True.*readout='last'"):
        read_all(MembraneReadout(), [(spikes[0],)])


def test_the_class_that_spikes_first_is_the_answer():
    history = torch.zeros(4, 1, 3)
    history[2, 0, 1] = history[3, 0, 1] = history[3, 0, 0] = 1
    trace = read_all(FirstSpikeReadout(), [(outputs,) for outputs in history])[:, 0]
    assert trace.tolist() == [[-2, -2, -2], [-3, -3, -3], [-4, -3, -4], [-4, -3, -5]]


def test_names_instances_and_functions_make_readouts():
    for name, kind in {
        "sum": SumReadout,
        "mean": MeanReadout,
        "last": LastReadout,
        "max": MaxReadout,
        "membrane": MembraneReadout,
        "first_spike": FirstSpikeReadout,
    }.items():
        assert make_readout(name) == kind()
    instance = PopulationReadout(3)
    assert make_readout(instance) is instance
    assert make_readout("auto") is None
    assert isinstance(make_readout(lambda history: history.sum(0)), CallableReadout)


def steps(*outputs: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*outputs, strict=True))


def test_auto_counts_spikes_averages_currents_and_reads_the_membrane_of_silent_neurons():
    spikes, currents, membrane = (torch.rand(4, 3, 5) < 0.4).float(), torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    silent = torch.zeros(4, 3, 5)
    for outputs, kind, reason in (
        (steps(spikes), SumReadout, "spikes"),
        (steps(spikes, membrane), SumReadout, "spikes"),
        (steps(spikes * 0.5), SumReadout, "firing rates"),
        (steps(currents), MeanReadout, "currents"),
        (steps(currents, membrane), MeanReadout, "currents"),
        (steps(spikes * 3), MeanReadout, "currents"),
        (steps(silent, membrane), MembraneReadout, "membrane"),
    ):
        readout, why = choose_readout(outputs, None, None)
        assert isinstance(readout, kind)
        assert reason in why


class Custom(Readout):
    """A custom readout, whose accumulator the test computes."""

    name = "custom"

    def __init__(self, accumulator: Any) -> None:
        self.accumulator = accumulator

    def step(self, outputs: tuple[Tensor, ...], timestep: Tensor, accumulator: Any) -> tuple[Tensor, Any]:
        return outputs[0], self.accumulator(outputs[0])


class HalfStops(Policy):
    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        return Decision(torch.arange(len(logits)) >= (len(logits) + 1) // 2, timestep.float())


@pytest.mark.parametrize(
    "accumulator", [lambda o: o.T, lambda o: o.sum(), lambda o: o[:1]], ids=["transposed", "scalar", "one row"]
)
def test_a_readout_whose_accumulator_has_no_rows_is_refused(accumulator):
    """Removing rows from a transposed accumulator would remove classes; a scalar accumulator mixes rows."""
    model = nn.Sequential(nn.Linear(6, CLASSES), neuron.IFNode()).eval()
    snn = EarlyExitWrapper(model, HalfStops(), timesteps=3, readout=Custom(accumulator))
    with pytest.raises(ReadoutError, match=r"custom.*accumulator"):
        snn.infer(torch.rand(5, 6))


def nets() -> dict[str, nn.Module]:
    """An output layer in each framework, in which class 1 spikes at every timestep and the others never spike."""
    found: dict[str, nn.Module] = {}
    for framework in ("spikingjelly", "snntorch"):
        spiking = neuron.IFNode() if framework == "spikingjelly" else snntorch.Leaky(beta=0.9, init_hidden=True)
        model = nn.Sequential(nn.Linear(2, CLASSES), spiking).eval()
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.copy_(torch.tensor([-1.0, 2.5, -1.0, -1.0]))
        found[framework] = model
    return found


@pytest.mark.parametrize("policy", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("timesteps", range(2, 13))
def test_a_clear_prediction_stops_early_with_default_settings(framework, timesteps, policy):
    """With ``EarlyExitWrapper(model, policy, timesteps=T)`` spike counts can reach the default threshold."""
    snn = EarlyExitWrapper(nets()[framework], policy, timesteps=timesteps)
    result = snn.infer(torch.rand(2, 2))
    assert result.predictions.tolist() == [1, 1]
    assert result.timesteps.max() <= (timesteps + 1) // 2
    assert result.timesteps.min() >= 1


def test_rows_that_are_not_finite_do_not_choose_the_readout():
    """One row with NaN or infinity says nothing of what the outputs are: the others are spikes, and are counted."""
    spikes = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    for value in (float("nan"), float("inf")):
        steps = [(torch.cat([torch.full((1, 3), value), spikes]),)] * 3
        readout, reason = choose_readout(steps, None, None)
        assert isinstance(readout, SumReadout)
        assert "spikes" in reason
