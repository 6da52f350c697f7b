"""The zoo of SpikingJelly models, through every invariant; and models that must be refused, with the reason."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from ..invariants import FIRING, Case, check_refused, counting, firing_rate
from ..reference import Outputs
from .scaffolding import ROWS, InvariantTests, RefillableTests, each, refused_case
from .spikingjelly_models import ENTRIES, SpikingJellyEntry, answer, attribute
from .spikingjelly_refused import REFUSED

each_entry = each(ENTRIES)
each_refused = each(REFUSED, "refused")


@cache
def _case(name: str) -> Case:
    return next(entry for entry in ENTRIES if entry.name == name).case(ROWS)


@pytest.fixture
def case(entry) -> Case:
    """The case of this entry; its model is the test's own, the reference's results are computed once."""
    shared = _case(entry.name)
    _ = shared.trace
    own = copy.copy(shared)
    own.model = copy.deepcopy(shared.model)
    own.layers = [own.model.get_submodule(name) for name in entry.layers]
    return own


# -- the models themselves ------------------------------------------------------------------------------------------


@each_entry
def test_fires(entry, case):
    """Every layer spikes when the model answers, and none does so all the time."""
    own = entry.own

    def run(model: nn.Module, x: Tensor) -> list[Outputs]:
        return [(own(model, x, entry.timesteps),)]

    neurons = [case.model.get_submodule(name) for name in entry.neurons]
    rates = firing_rate(case.model, neurons, run, case.as_given(case.inputs))
    assert neurons
    assert all(FIRING[0] <= rate <= FIRING[1] for rate in rates), dict(zip(entry.neurons, rates, strict=True))


@each_entry
def test_reference_at_full_length_is_the_models_own_answer(entry: SpikingJellyEntry, case):
    for row in range(ROWS):
        x = case.as_given(case.rows([row]))
        with torch.no_grad():
            own = entry.own(case.model, x, entry.timesteps)
        torch.testing.assert_close(case.trace[-1, row : row + 1], own, rtol=1e-12, atol=1e-12)


@each_entry
def test_counted_layers_run_once_in_every_timestep(entry, case):
    with torch.no_grad(), counting(case.layers) as counts:
        entry.own(case.model, case.as_given(case.inputs), entry.timesteps)
    assert counts == [entry.timesteps * ROWS] * len(entry.layers)


@each_entry
def test_answers_change(case):
    """An answer that stays the same shows nothing of how it was made."""
    assert sum(not torch.equal(before, after) for before, after in pairwise(case.trace)) >= 2


# -- the invariants -------------------------------------------------------------------------------------------------


@each_entry
class TestInvariants(InvariantTests):
    temperature = 0.5

    def other_models(self, case):
        other = _case("repeated, head on the mean")
        used = copy.deepcopy(other.model)
        with torch.no_grad():
            used(other.inputs)
        return [used]


@each([entry for entry in ENTRIES if entry.refillable])
class TestRefillable(RefillableTests):
    pass


# -- what must be refused -------------------------------------------------------------------------------------------


def _refused_case(refused) -> Case:
    return refused_case(refused, lambda model, frames: [], seed=0, readout="auto")


@each_refused
def test_runs_by_itself(refused):
    """What is refused is a network that works."""
    case = _refused_case(refused)
    with torch.no_grad():
        found = answer(case.model, case.as_given(case.inputs))
    assert found.shape == (ROWS, 5)
    assert bool(found.isfinite().all())
    assert float(found.std()) > 0


@each([r for r in REFUSED if r.name != "a while loop"], "refused")  # that one could be stepped if its end were known
def test_has_reason_to_be_refused(refused):
    """Asked twice, row by row, or timestep by timestep with its state left in place, it answers differently."""
    case = _refused_case(refused)
    model, x = case.model, case.as_given(case.inputs)
    with torch.no_grad():
        own = answer(model, x)
        try:
            again = answer(model, x)
            rows = torch.cat([answer(model, case.as_given(case.rows([row]))) for row in range(ROWS)])
            steps = _single_steps(model, case)
        except (AssertionError, IndexError, RuntimeError, ValueError):
            return  # it cannot even be asked so
    same = [
        any(found.shape == own.shape and torch.allclose(found, own, atol=1e-4) for found in way)
        for way in ([again], [rows], [steps.mean(0), steps.sum(0)])
    ]
    assert not all(same)


def _single_steps(model: nn.Module, case: Case) -> Tensor:
    functional.reset_net(model)
    if case.sequence:
        return torch.stack([model(case.inputs[t : t + 1]) for t in range(case.timesteps)])
    with attribute(model, "T", 1):
        return torch.stack([model(case.inputs) for _ in range(case.timesteps)])


@each_refused
def test_refused(refused):
    check_refused(_refused_case(refused), refused.match)
