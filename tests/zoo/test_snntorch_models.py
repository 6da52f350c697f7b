"""snnTorch models with the time loop inside ``forward``, through every invariant; and those that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import snntorch
import torch
from torch import Tensor

from seenn_plugin import EarlyExitWrapper

from ..closeness import assert_close
from ..invariants import FIRING, Case, check_refused, firing_rate, prescribed
from ..reference import run_snntorch
from .entry import Entry
from .scaffolding import (
    ROWS,
    InvariantTests,
    RefillableTests,
    confidence,
    each,
    exits_under,
    mixed,
    refused_case,
)
from .snntorch_models import ENTRIES, RANDOM_ENCODERS, as_outputs, own
from .snntorch_refused import REFUSED

each_model = each(ENTRIES)
each_encoder = each(RANDOM_ENCODERS)


@cache
def _case(name: str) -> Case:
    return next(entry for entry in ENTRIES if entry.name == name).case(ROWS, seed=5)


@pytest.fixture
def case(entry: Entry) -> Case:
    """The model's case, with one wrapper for all tests: every new one inspects the model again."""
    case = _case(entry.name)
    if case.wrapper is None:
        case.wrapper = case.wrap(mixed(case.timesteps))
    return case


def _decision(outputs: Tensor, readout: str) -> Tensor:
    """What a readout makes of the answer of all timesteps ``[T, n, C]``."""
    return {"sum": outputs.sum(0), "mean": outputs.mean(0), "last": outputs[-1]}[readout]


# -- the models themselves ------------------------------------------------------------------------------------------


@each([*ENTRIES, *RANDOM_ENCODERS])
def test_every_neuron_fires(entry):
    case = entry.case(16, seed=7)
    neurons = [case.model.get_submodule(name) for name in entry.neurons]
    rates = firing_rate(
        case.model, neurons, lambda model, x: own(model, x, entry.timesteps), case.as_given(case.inputs)
    )
    spiking = [module for module in case.model.modules() if isinstance(module, snntorch.SpikingNeuron)]
    assert set(spiking) <= set(neurons), "a spiking module is not listed"
    assert all(FIRING[0] <= rate <= FIRING[1] for rate in rates), dict(zip(entry.neurons, rates, strict=True))


@each_model
def test_the_reference_ends_at_the_models_own_answer(entry):
    case = _case(entry.name)
    with torch.no_grad():
        for row in range(case.n):
            alone = as_outputs(own(case.model, case.as_given(case.rows([row])), entry.timesteps))[0]
            if entry.readout_asked != "auto":  # all timesteps: on dimension 0, or on dimension 1 after the row's
                alone = _decision(alone.flatten(0, 1), entry.readout)
            torch.testing.assert_close(case.trace[-1, row], alone.squeeze(0) if alone.ndim > 1 else alone)


@each_model
def test_rows_together_answer_as_rows_alone(entry):
    case = _case(entry.name)
    for rows in ([4, 0, 2, 1], [1, 1, 3]):
        with torch.no_grad():
            together = entry.prefix(case.model, case.as_given(case.rows(rows)), entry.timesteps)
        for t, outputs in enumerate(together):
            for place, output in enumerate(outputs):
                wanted = torch.cat([case.answers[row][t][place] for row in rows])
                assert_close(output, wanted)


@each([entry for entry in ENTRIES if entry.sequence])
def test_the_reference_does_not_look_ahead(entry):
    """What is taken for the answer after t timesteps holds whatever frames come later."""
    case, other = _case(entry.name), entry.case(ROWS, seed=6)
    with torch.no_grad():
        for t in range(1, entry.timesteps):
            frames = torch.cat([case.inputs[:t], other.inputs[t:]])
            outputs = entry.prefix(case.model, case.as_given(frames), entry.timesteps)
            for place, output in enumerate(outputs[t - 1]):
                wanted = torch.cat([case.answers[row][t - 1][place] for row in range(ROWS)])
                assert_close(output, wanted)


# -- the invariants -------------------------------------------------------------------------------------------------


@each_model
class TestInvariants(InvariantTests):
    def other_models(self, case):
        other = _case(ENTRIES[0].name)
        with torch.no_grad():
            other.run(other.model, torch.stack([other.inputs] * 2))
        return [other.model] if case is not other else []


@each([entry for entry in ENTRIES if entry.refillable])
class TestRefillable(RefillableTests):
    pass


# -- what must be refused -------------------------------------------------------------------------------------------


def _refused_case(entry) -> Case:
    return refused_case(entry, run_snntorch, seed=8)  # no row alone is run


@each(REFUSED)
def test_what_is_refused_runs_and_fires(entry):
    """A model that does not even run would be refused for the wrong reason."""
    case = _refused_case(entry)
    neurons = [module for module in case.model.modules() if isinstance(module, snntorch.SpikingNeuron)]
    rates = firing_rate(case.model, neurons, lambda model, x: model(x), case.as_given(case.inputs))
    assert all(FIRING[0] <= rate <= FIRING[1] for rate in rates), rates


@each(REFUSED)
def test_refuses(entry):
    check_refused(_refused_case(entry), entry.match)


# -- models that draw their input in forward ------------------------------------------------------------------------


def _seeded(call: Callable[[], Tensor | tuple]) -> Tensor | tuple:
    """The draws depend on the seed and on the batch, which is the same here in every call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return call()


@each_encoder
def test_the_reference_of_an_encoder_ends_at_the_models_own_answer(entry):
    case = entry.case(ROWS)
    answer = as_outputs(_seeded(lambda: own(case.model, case.inputs, entry.timesteps)))[0]
    wanted = answer if entry.readout_asked == "auto" else _decision(answer, entry.readout)
    made = _seeded(lambda: entry.prefix(case.model, case.inputs, entry.timesteps))
    found = torch.stack([outputs[0] for outputs in made])
    torch.testing.assert_close(_decision(found, entry.readout), wanted)


@each_encoder
def test_whole_under_a_seed(entry):
    case = entry.case(ROWS)
    snn = case.wrap(prescribed(*[case.timesteps] * ROWS))
    answer = as_outputs(_seeded(lambda: own(case.model, case.inputs, entry.timesteps)))[0]
    wanted = answer if entry.readout_asked == "auto" else _decision(answer, entry.readout)
    _seeded(lambda: snn.infer(case.inputs))  # the first look may draw
    torch.testing.assert_close(_seeded(lambda: snn(case.inputs)), wanted)
    torch.testing.assert_close(_seeded(lambda: snn.infer(case.inputs)).logits, wanted)


@each_encoder
def test_prefix_under_a_seed(entry):
    case = entry.case(ROWS)
    snn: EarlyExitWrapper = case.wrap(mixed(case.timesteps))
    _seeded(lambda: snn.infer(case.inputs))
    trace = _seeded(lambda: snn.trace(case.inputs))
    made = _seeded(lambda: entry.prefix(case.model, case.inputs, entry.timesteps))
    outputs = torch.stack([step[0] for step in made])
    wanted = torch.stack([_decision(outputs[: t + 1], entry.readout) for t in range(case.timesteps)])
    torch.testing.assert_close(trace, wanted)
    for rule in (mixed(case.timesteps), confidence(trace)):
        snn.policy = rule.policy()
        result = _seeded(lambda: snn.infer(case.inputs))
        exits = exits_under(rule, trace)
        assert result.timesteps.tolist() == exits
        torch.testing.assert_close(result.logits, torch.stack([trace[t - 1, row] for row, t in enumerate(exits)]))
