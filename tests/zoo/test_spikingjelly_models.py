"""The zoo of SpikingJelly models, through every invariant; and models that must be refused, with the reason."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from ..invariants import (
    FIRING,
    Case,
    Rule,
    check_alone,
    check_guest,
    check_prefix,
    check_refused,
    check_saved,
    check_slots,
    check_whole,
    counting,
    firing_rate,
    prescribed,
)
from ..reference import Outputs
from .entry import Refused
from .spikingjelly_models import ENTRIES, SpikingJellyEntry, answer, attribute
from .spikingjelly_refused import REFUSED

N = 5
ORDER = (3, 0, 1, 1)
"""Rows of a batch in another order; some are missing, one comes twice."""

each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
each_refillable = pytest.mark.parametrize("entry", [e for e in ENTRIES if e.refillable], ids=lambda entry: entry.name)
each_refused = pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)


@cache
def _case(name: str) -> Case:
    return next(entry for entry in ENTRIES if entry.name == name).case(N)


@pytest.fixture
def case(entry) -> Case:
    """The case of this entry; its model is the test's own, what the reference said of it is computed once."""
    shared = _case(entry.name)
    _ = shared.trace
    own = copy.copy(shared)
    own.model = copy.deepcopy(shared.model)
    own.layers = [own.model.get_submodule(name) for name in entry.layers]
    return own


def _spread(timesteps: int) -> Rule:
    """Exits at the first timestep, at the last, and in between."""
    return prescribed(2, timesteps, 1, 3, 2)


def _confidence(case: Case) -> Rule:
    """The confidence rule with the most exit timesteps, and of those the one with no score near its threshold."""
    scores = case.trace.div(0.5).softmax(-1).amax(-1)[:-1].flatten().sort().values.tolist()
    gaps = sorted(((high - low, (low + high) / 2) for low, high in pairwise(scores)), reverse=True)
    rules = [Rule("confidence", {"threshold": middle, "temperature": 0.5}) for gap, middle in gaps if gap > 1e-3]
    return max(rules, key=lambda rule: len(set(case.exits(rule))))


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
    for row in range(N):
        x = case.as_given(case.rows([row]))
        with torch.no_grad():
            own = entry.own(case.model, x, entry.timesteps)
        torch.testing.assert_close(case.trace[-1, row : row + 1], own, rtol=1e-12, atol=1e-12)


@each_entry
def test_counted_layers_run_once_in_every_timestep(entry, case):
    with torch.no_grad(), counting(case.layers) as counts:
        entry.own(case.model, case.as_given(case.inputs), entry.timesteps)
    assert counts == [entry.timesteps * N] * len(entry.layers)


@each_entry
def test_answers_change_and_rows_part(case):
    """An answer that stays shows nothing of how it was come by, nor do rows that all leave together."""
    assert sum(not torch.equal(before, after) for before, after in pairwise(case.trace)) >= 2
    assert len(set(case.exits(_confidence(case)))) > 1


# -- the invariants -------------------------------------------------------------------------------------------------


@each_entry
def test_whole(case):
    check_whole(case)


@each_entry
def test_prefix(case):
    check_prefix(case, _confidence(case))
    check_prefix(case, _spread(case.timesteps))


@each_entry
def test_alone(case):
    check_alone(case, _confidence(case), ORDER)
    check_alone(case, _spread(case.timesteps), ORDER)


@each_refillable
def test_alone_in_places_that_others_had(case):
    check_slots(case, _spread(case.timesteps), slots=2)


@each_entry
def test_guest(case):
    other = _case("repeated, head on the mean")
    used = copy.deepcopy(other.model)
    with torch.no_grad():
        used(other.inputs)
    check_guest(replace(case, wrapper=None), _spread(case.timesteps), failing_call=2, others=[used])


@each_entry
def test_saved(case):
    check_saved(case, _spread(case.timesteps))


# -- what must be refused -------------------------------------------------------------------------------------------


def _refused_case(refused: Refused) -> Case:
    generator = torch.Generator().manual_seed(0)
    shape = (refused.timesteps, N, *refused.row) if refused.sequence else (N, *refused.row)
    return Case(
        refused.build(),
        lambda model, frames: [],
        torch.rand(shape, generator=generator),
        refused.timesteps,
        layers=[],
        sequence=refused.sequence,
        time_dim=refused.time_dim,
        options={"readout": "auto", **refused.options},
    )


@each_refused
def test_runs_by_itself(refused):
    """What is refused is a network that works."""
    case = _refused_case(refused)
    with torch.no_grad():
        found = answer(case.model, case.as_given(case.inputs))
    assert found.shape == (N, 5)
    assert bool(found.isfinite().all())
    assert float(found.std()) > 0


@pytest.mark.parametrize(
    "refused", [r for r in REFUSED if r.name != "a while loop"], ids=lambda refused: refused.name
)  # that one could be stepped, but not by anyone who does not know when it ends
def test_has_reason_to_be_refused(refused):
    """Asked twice, row by row, or timestep by timestep with its state left in place, it answers differently."""
    case = _refused_case(refused)
    model, x = case.model, case.as_given(case.inputs)
    with torch.no_grad():
        own = answer(model, x)
        try:
            again = answer(model, x)
            rows = torch.cat([answer(model, case.as_given(case.rows([row]))) for row in range(N)])
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
