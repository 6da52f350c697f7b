"""Policies: the exit of each row, compared with the formulas in plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seenn_plugin import policies
from seenn_plugin.errors import PolicyError
from seenn_plugin.policies import (
    ConfidencePolicy,
    Decision,
    EntropyPolicy,
    FixedPolicy,
    MarginPolicy,
    PatiencePolicy,
    Policy,
    ThresholdPolicy,
)
from seenn_plugin.policies.base import exit_timesteps
from seenn_plugin.policies.registry import ALIASES, make_policy
from seenn_plugin.policies.threshold import reachable_temperature

THRESHOLDED = {"confidence": ConfidencePolicy, "entropy": EntropyPolicy, "margin": MarginPolicy}


def score(rule: str, logits: list[float], temperature: float) -> float:
    """The score of one row, by its definition (SEENN arXiv 2304.01230, DT-SNN arXiv 2305.17346)."""
    highest = max(logits)
    weights = [math.exp((value - highest) / temperature) for value in logits]
    p = sorted((weight / sum(weights) for weight in weights), reverse=True)
    if rule == "confidence":
        return p[0]
    if rule == "margin":
        return p[0] - p[1]
    return 1 + sum(value * math.log(value) for value in p if value > 0) / math.log(len(p))


@st.composite
def outputs(draw: st.DrawFn) -> Tensor:
    """Outputs at every timestep, ``[T, N, C]``: spikes or currents."""
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(2, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    if draw(st.booleans()):
        return torch.randint(0, 2, shape, generator=generator).double()
    return torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.3, 1.0, 4.0]))


@given(
    outputs(),
    st.sampled_from(sorted(THRESHOLDED)),
    st.sampled_from(["sum", "mean"]),
    st.floats(0.05, 0.99),
    st.sampled_from([0.2, 0.5, 1.0, 3.0]),
)
def test_a_row_exits_at_the_first_score_above_the_threshold(o, rule, readout, threshold, temperature):
    policy = THRESHOLDED[rule](threshold, temperature)
    trace = o.cumsum(0)
    if readout == "mean":
        trace = trace / torch.arange(1, len(o) + 1).view(-1, 1, 1)
    exits = exit_timesteps(policy, trace)
    for row in range(o.shape[1]):
        scores = [score(rule, trace[t, row].tolist(), temperature) for t in range(len(o))]
        if min(abs(value - threshold) for value in scores) < 1e-9:
            continue
        expected = next((t for t, value in enumerate(scores, start=1) if value > threshold), len(o))
        assert int(exits[row]) == expected
        for t, value in enumerate(scores):
            assert float(policy.scaled_score(trace[t])[row]) == pytest.approx(value, abs=1e-9)


def test_scores_of_known_probabilities():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # p = (1/4, 3/4), (1/2, 1/2)
    assert ConfidencePolicy().scaled_score(logits).tolist() == pytest.approx([0.75, 0.5])
    assert MarginPolicy().scaled_score(logits).tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert EntropyPolicy().scaled_score(logits).tolist() == pytest.approx([1 - entropy, 0.0], abs=1e-6)
    assert ConfidencePolicy(temperature=0.5).scaled_score(logits).tolist() == pytest.approx([0.9, 0.5])


def test_the_threshold_is_strict():
    even = torch.zeros(3, 1, 2)
    assert exit_timesteps(ConfidencePolicy(0.5, 1.0), even).tolist() == [3]
    assert exit_timesteps(ConfidencePolicy(0.499, 1.0), even).tolist() == [1]


@pytest.mark.parametrize("rule", THRESHOLDED)
def test_one_hot_and_uniform_probabilities_have_the_extreme_scores(rule):
    policy = THRESHOLDED[rule](temperature=1.0)
    one_hot, uniform = policy.scaled_score(torch.tensor([[500.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    assert one_hot == pytest.approx(1.0)
    assert uniform == pytest.approx(1 / 3 if rule == "confidence" else 0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", THRESHOLDED)
def test_half_precision_logits_are_scored_in_float32(rule, dtype):
    logits = torch.tensor([[3.0, 1.0, 0.5], [0.25, 0.5, 0.0]])
    policy = THRESHOLDED[rule](temperature=0.7)
    found = policy.scaled_score(logits.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, policy.scaled_score(logits))


@pytest.mark.parametrize("rule", THRESHOLDED)
def test_a_single_class_cannot_be_scored(rule):
    with pytest.raises(PolicyError, match=r"at least 2 classes, not \[\.\.\., 1\].*policy='fixed'"):
        THRESHOLDED[rule]().scaled_score(torch.zeros(4, 1))


@given(outputs(), st.integers(1, 5))
def test_patience_counts_consecutive_equal_predictions(o, patience):
    predictions = o.argmax(2)
    exits = exit_timesteps(PatiencePolicy(patience), o)
    for row in range(o.shape[1]):
        expected = len(o)
        for t in range(patience, len(o) + 1):
            if len(set(predictions[t - patience : t, row].tolist())) == 1:
                expected = t
                break
        assert int(exits[row]) == expected


@given(st.integers(1, 9), st.integers(1, 9))
def test_fixed_stops_all_rows_at_the_same_timestep_or_at_the_end(timesteps, fixed):
    assert exit_timesteps(FixedPolicy(fixed), torch.zeros(timesteps, 3, 2)).tolist() == [min(fixed, timesteps)] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("policy", [*sorted(ALIASES.keys() - {"rl"}), "always"])
def test_rows_with_logits_that_are_not_finite_do_not_stop(policy, bad):
    class Always(Policy):
        def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
            return Decision(torch.ones(len(logits), dtype=torch.bool), logits[:, 0])

    trace = torch.tensor([9.0, 0.0, 0.0]).expand(4, 2, 3).clone()
    trace[:, 1, 2] = bad
    made = {"always": Always(), "fixed": FixedPolicy(1)}.get(policy) or make_policy(policy)
    exits = exit_timesteps(made, trace)
    assert exits[0] < 4
    assert exits[1] == 4


@pytest.mark.parametrize("rule", THRESHOLDED)
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("timesteps", range(1, 13))
def test_spike_counts_can_reach_the_default_threshold(rule, timesteps, classes):
    """A count that exceeds all others by half of the timesteps is enough, at a temperature of at most 1."""
    policy = THRESHOLDED[rule]()
    temperature = reachable_temperature(policy, timesteps / 2, classes)
    assert 0 < temperature <= 1
    ready = replace(policy, temperature=temperature)
    counts = torch.zeros(1, classes)
    counts[0, 3 % classes] = timesteps / 2
    assert ready.scaled_score(counts) > ready.threshold
    counts[0, 3 % classes] = timesteps
    assert ready.scaled_score(counts) > ready.threshold
    if temperature < 1:
        counts[0, 3 % classes] = 0.98 * timesteps / 2
        assert not ready.scaled_score(counts) > ready.threshold, "no lower temperature than needed"


def test_the_temperature_is_1_for_a_threshold_that_cannot_be_reached():
    assert reachable_temperature(ConfidencePolicy(1.0), 4, 10) == 1.0
    assert reachable_temperature(ConfidencePolicy(0.0), 4, 10) == 1.0


def test_names_classes_and_instances_make_policies():
    for name, kind in ALIASES.items():
        assert make_policy(name) == make_policy(kind) == kind()
    instance = PatiencePolicy(5)
    assert make_policy(instance) is instance


def test_an_unknown_name_lists_the_valid_ones_and_the_closest():
    with pytest.raises(PolicyError, match=r"'margn'; valid: confidence, entropy, fixed, margin, patience.*'margin'\?"):
        make_policy("margn")


def test_policies_are_immutable_and_hashable():
    """Using a policy does not change it; policies with equal settings are equal, and have equal hashes."""
    policy = PatiencePolicy(2)
    before = repr(policy)
    exit_timesteps(policy, torch.randn(5, 3, 4))
    assert repr(policy) == before
    assert policy == PatiencePolicy(2) != PatiencePolicy(3)
    assert len({ConfidencePolicy(0.9), ConfidencePolicy(0.9), ConfidencePolicy(0.8)}) == 2
    with pytest.raises(AttributeError):
        policy.patience = 3


@dataclass(frozen=True)
class LeadPolicy(ThresholdPolicy):
    """A custom score: the difference of the two largest logits."""

    threshold: float = 1.0

    def score(self, logits: Tensor) -> Tensor:
        top = logits.topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]


def test_the_logits_of_a_custom_score_are_divided_by_the_temperature():
    trace = torch.tensor([[[1.0, 0.5]], [[2.0, 0.5]]])
    assert exit_timesteps(LeadPolicy(1.0), trace).tolist() == [2]
    assert exit_timesteps(LeadPolicy(1.0, temperature=0.25), trace).tolist() == [1]
    assert float(LeadPolicy(1.0, temperature=0.25).scaled_score(trace[0])) == pytest.approx(2.0)


def test_the_public_interface_has_classes_only():
    """Internals stay importable from the package, and are not part of its interface."""
    public = [getattr(policies, name) for name in policies.__all__]
    assert all(isinstance(value, type) for value in public)
    assert {Policy, *ALIASES.values()} <= set(public)
    assert policies.exit_timesteps is exit_timesteps
    assert policies.make_policy is make_policy
