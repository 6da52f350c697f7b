"""Metrics: average exit times by their formula and by hand, and every field of an evaluation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, accuracy_curve, evaluate
from seenn_plugin.calibration.thresholds import OperatingPoint
from seenn_plugin.errors import CalibrationError
from seenn_plugin.evaluation.metrics import AccuracyCurve, average_exit_time, empirical_average_exit_time
from seenn_plugin.policies import ConfidencePolicy, FixedPolicy, PatiencePolicy, exit_timesteps

FEATURES, CLASSES, T = 5, 3, 5


@st.composite
def who_is_right(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 12)))
    return torch.tensor(draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).view(
        shape
    )


@given(who_is_right())
def test_average_exit_time_is_the_formula(right):
    timesteps, n = right.shape
    counts = [0] + [sum(bool(value) for value in step) for step in right]
    total = 0
    for t in range(1, timesteps + 1):
        total += t * (counts[t] - counts[t - 1])
    total += timesteps * (n - counts[timesteps])
    assert average_exit_time(right) == pytest.approx(total / n)


@given(who_is_right())
def test_empirical_average_exit_time_is_the_mean_first_right_timestep(right):
    timesteps, n = right.shape
    first = [next((t + 1 for t in range(timesteps) if right[t, row]), timesteps) for row in range(n)]
    assert empirical_average_exit_time(right) == pytest.approx(sum(first) / n)


def test_average_exit_times_by_hand():
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()  # right from 1, from 2, from 3, never
    assert average_exit_time(right) == pytest.approx((1 + 2 + 3 + 3) / 4)
    assert empirical_average_exit_time(right) == pytest.approx((1 + 2 + 3 + 3) / 4)
    forgets = torch.tensor([[1, 1], [0, 1], [1, 0]]).bool()  # counts 2, 1, 1
    assert average_exit_time(forgets) == pytest.approx((1 * 2 + 2 * -1 + 0 + 3 * 1) / 2)
    assert empirical_average_exit_time(forgets) == pytest.approx(1.0)


@given(who_is_right())
def test_both_average_exit_times_agree_where_nothing_is_forgotten(right):
    kept = right.int().cummax(0).values.bool()
    assert average_exit_time(kept) == pytest.approx(empirical_average_exit_time(kept))


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 12), neuron.LIFNode(1.5), nn.Linear(12, CLASSES), neuron.LIFNode(1.5))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(3)
            layer.bias.abs_().add_(0.2)
    return net.eval()


@pytest.mark.parametrize("policy", [ConfidencePolicy(0.6, 1.0), PatiencePolicy(2), FixedPolicy(3)], ids=str)
@pytest.mark.parametrize("chunk", [1, 2])
def test_an_evaluation_says_what_happened(policy, chunk):
    snn = EarlyExitWrapper(network(), policy, timesteps=T, readout="sum", chunk=chunk)
    x, labels = torch.rand(23, FEATURES), torch.randint(0, CLASSES, (23,))
    loader = [(x[:10], labels[:10]), (x[:0], labels[:0]), (x[10:], labels[10:])]
    with torch.no_grad():
        trace = snn.trace(x)
    exits = exit_timesteps(policy, trace)
    answers = trace[exits - 1, torch.arange(23)].argmax(1)
    right = trace.argmax(2) == labels
    report = evaluate(snn, loader)
    assert report.samples == 23
    assert report.accuracy == pytest.approx(float((answers == labels).double().mean()))
    assert report.mean_timesteps == pytest.approx(float(exits.double().mean()))
    assert report.histogram == [int((exits == t).sum()) for t in range(1, T + 1)]
    overshoot = sum(min(-(-int(t) // chunk) * chunk, T) for t in exits)
    assert report.row_steps == overshoot  # rows that stop inside a chunk are computed to its end
    assert report.accuracy_per_timestep == pytest.approx([float(step.double().mean()) for step in right])
    assert report.full_accuracy == report.accuracy_per_timestep[-1]
    assert report.average_exit_time == pytest.approx(average_exit_time(right))
    assert report.empirical_average_exit_time == pytest.approx(empirical_average_exit_time(right))
    assert report.agreement == 1.0
    assert report.seconds > 0
    assert report.throughput == pytest.approx(23 / report.seconds)
    written = report.to_dict()
    assert written["throughput"] == report.throughput
    assert written["histogram"] == report.histogram


def test_an_evaluation_of_nothing_or_of_bad_labels_is_refused():
    snn = EarlyExitWrapper(network(), timesteps=T)
    x = torch.rand(4, FEATURES)
    with pytest.raises(CalibrationError, match="no sample"):
        evaluate(snn, [])
    with pytest.raises(CalibrationError, match="class indices"):
        evaluate(snn, [(x, torch.rand(4))])
    with pytest.raises(CalibrationError, match="3 classes"):
        evaluate(snn, [(x, torch.tensor([0, 1, 2, 3]))])


def test_the_accuracy_curve_holds_the_policies_points_and_the_static_network():
    snn = EarlyExitWrapper(network(), timesteps=T, readout="sum")
    x, labels = torch.rand(40, FEATURES), torch.randint(0, CLASSES, (40,))
    curve = accuracy_curve(snn, [(x, labels)])
    right = snn.trace(x).argmax(2) == labels
    assert list(curve.static) == pytest.approx(right.double().mean(1).tolist())
    means = [point.mean_timesteps for point in curve.points]
    assert means == sorted(means)
    assert (means[0], means[-1]) == (1.0, float(T))
    other = accuracy_curve(snn, [(x, labels)], PatiencePolicy(1))
    assert [point.policy for point in other.points] == [PatiencePolicy(k) for k in range(1, T + 1)]


def test_the_accuracy_curve_of_the_wrapper_is_at_the_temperature_that_infer_uses():
    """Its points are operating points of this wrapper: each can be had by setting the threshold alone."""
    snn = EarlyExitWrapper(network(), timesteps=T, readout="sum")
    x, labels = torch.rand(40, FEATURES), torch.randint(0, CLASSES, (40,))
    in_use = snn.policy_for(x).temperature
    assert in_use not in (None, 1.0)
    assert snn.policy.temperature is None, "a run has changed the policy of the wrapper"
    assert evaluate(snn, [(x, labels)]).policy.temperature == in_use
    fresh = EarlyExitWrapper(snn.model, timesteps=T, readout="sum")
    for wrapper in (snn, fresh):
        points = accuracy_curve(wrapper, [(x, labels)]).points
        assert {point.policy.temperature for point in points} == {in_use}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 8)), min_size=1, max_size=20))
def test_pareto_points_are_those_that_no_other_beats(pairs):
    points = tuple(OperatingPoint(FixedPolicy(), accuracy, mean) for accuracy, mean in pairs)
    found = AccuracyCurve(points, (1.0,)).pareto
    expected = {(a, m) for a, m in pairs if not any((b >= a and k <= m) and (b > a or k < m) for b, k in pairs)}
    assert {(p.accuracy, p.mean_timesteps) for p in found} == expected
    assert [p.mean_timesteps for p in found] == sorted(p.mean_timesteps for p in found)
