"""Calibration: the search compared with brute force, the temperature with a fine grid, and every error."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seenn_plugin import EarlyExitWrapper, evaluate
from seenn_plugin.calibration.policy_fitting import FitSettings, fit_policy
from seenn_plugin.calibration.thresholds import accuracy_per_timestep, calibrate, curve
from seenn_plugin.calibration.traces import TraceSource, record
from seenn_plugin.errors import CalibrationError, PolicyError
from seenn_plugin.policies import (
    ConfidencePolicy,
    Decision,
    EntropyPolicy,
    FixedPolicy,
    MarginPolicy,
    PatiencePolicy,
    Policy,
    RLPolicy,
    ThresholdPolicy,
)
from seenn_plugin.policies.base import exit_timesteps
from seenn_plugin.policies.threshold import fit_temperature

FEATURES, CLASSES, T = 6, 4, 6
THRESHOLDED = [ConfidencePolicy, EntropyPolicy, MarginPolicy]


def data(seed: int, timesteps: int = 5, n: int = 12, classes: int = 3, spikes: bool = False) -> tuple[Tensor, Tensor]:
    """A trace ``[T, N, C]`` whose confidence, and mostly its accuracy, grows with time; and its labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    signal = nn.functional.one_hot(labels, classes).float()
    noise = torch.randn(timesteps, n, classes, generator=generator)
    outputs = ((0.6 * signal + noise) > 0.4).float() if spikes else 0.8 * signal + noise
    return outputs.cumsum(0), labels


@st.composite
def recorded(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    return data(
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 14)),
        draw(st.integers(2, 4)),
        draw(st.booleans()),
    )


def accuracy_and_mean(policy: Policy, trace: Tensor, labels: Tensor) -> tuple[float, float]:
    exits = exit_timesteps(policy, trace)
    correct = [int(trace[int(t) - 1, i].argmax()) == int(labels[i]) for i, t in enumerate(exits)]
    return sum(correct) / len(correct), float(exits.double().mean())


def brute_force(
    policy: ThresholdPolicy, trace: Tensor, labels: Tensor, closest: float = 0.0
) -> list[tuple[float, float]]:
    """Accuracy and mean timesteps at a threshold below, at, and above every score that occurs.

    Args:
        closest: no threshold is put between scores that differ by less: rounding could move a row across it.
    """
    scores = sorted({float(value) for value in policy.scaled_score(trace).flatten().double()})
    between = [(a + b) / 2 for a, b in itertools.pairwise(scores) if b - a >= closest]
    thresholds = [scores[0] - 1, *between, scores[-1] + 1, *([] if closest else scores)]
    return [accuracy_and_mean(replace(policy, threshold=threshold), trace, labels) for threshold in thresholds]


@given(recorded(), st.sampled_from(THRESHOLDED), st.sampled_from([0.0, 0.05, 0.2, 0.5]))
def test_the_fewest_timesteps_down_to_which_accuracy_holds_are_those_of_brute_force(recording, kind, drop):
    """From full T downwards, up to the first setting that misses the target; none below it is taken."""
    trace, labels = recording
    found = calibrate(kind(), trace, labels, max_accuracy_drop=drop)
    full = float((trace[-1].argmax(1) == labels).double().mean())
    fewest = []
    for closest in (0.0, 1e-5):
        points = sorted(brute_force(found.policy, trace, labels, closest), key=lambda point: (-point[1], -point[0]))
        holding = itertools.takewhile(lambda point: point[0] >= full - drop - 1e-9, points)
        fewest.append(min(mean for _, mean in holding))
    assert min(fewest) - 1e-9 <= found.chosen.mean_timesteps <= max(fewest) + 1e-9
    assert found.chosen.accuracy >= full - drop - 1e-9
    assert found.full_accuracy == pytest.approx(full)


@given(recorded(), st.sampled_from(THRESHOLDED), st.floats(1.0, 6.0))
def test_the_highest_accuracy_within_mean_timesteps_is_that_of_brute_force(recording, kind, limit):
    trace, labels = recording
    found = calibrate(kind(), trace, labels, average_timesteps=limit)
    highest = [
        max(a for a, m in brute_force(found.policy, trace, labels, closest) if m <= limit + 1e-9)
        for closest in (0.0, 1e-5)
    ]
    assert highest[1] - 1e-9 <= found.chosen.accuracy <= highest[0] + 1e-9
    assert found.chosen.mean_timesteps <= limit + 1e-9


@given(recorded(), st.sampled_from([*THRESHOLDED, PatiencePolicy, FixedPolicy]))
def test_the_curve_is_sorted_complete_and_correct(recording, kind):
    """The policy of every point has the accuracy and the mean timesteps of that point."""
    trace, labels = recording
    points = curve(kind(), trace, labels)
    means = [point.mean_timesteps for point in points]
    assert means == sorted(means)
    if issubclass(kind, ThresholdPolicy):
        assert max(means) == len(trace)
        assert min(means) == 1
        found = {(round(point.accuracy, 9), round(point.mean_timesteps, 9)) for point in points}
        every, clear = (
            {(round(a, 9), round(m, 9)) for a, m in brute_force(kind(), trace, labels, closest)}
            for closest in (0.0, 1e-5)
        )
        assert clear <= found <= every
    else:
        assert len(points) == len(trace)
    for point in points:
        assert accuracy_and_mean(point.policy, trace, labels) == pytest.approx((point.accuracy, point.mean_timesteps))


@pytest.mark.parametrize("kind", THRESHOLDED)
@pytest.mark.parametrize("scale", [1.0, 4.0, 8.0, 12.0, 16.0, 30.0])
def test_points_are_correct_where_scores_are_as_close_as_floats_can_be(kind, scale):
    """Confident rows score 1 - 6e-8 and 1: no float32 lies between them."""
    trace, labels = data(3, n=300)
    policy = kind(temperature=1.0)
    for point in curve(policy, trace * scale, labels):
        found = accuracy_and_mean(point.policy, trace * scale, labels)
        assert found == pytest.approx((point.accuracy, point.mean_timesteps)), point.policy


def test_many_thresholds_are_thinned_out_except_the_first_and_the_last():
    trace, labels = data(1, n=2000)
    points = curve(ConfidencePolicy(temperature=1.0), trace, labels)
    assert 100 < len(points) <= 514
    assert points[0].mean_timesteps == 1
    assert points[-1].mean_timesteps == len(trace)
    for point in points[::50]:
        assert accuracy_and_mean(point.policy, trace, labels) == pytest.approx((point.accuracy, point.mean_timesteps))


def test_rows_that_are_not_finite_do_not_stop():
    trace, labels = data(5)
    trace[:, 2] = float("nan")
    trace[:2, 3, 0] = float("inf")
    for point in curve(ConfidencePolicy(temperature=1.0), trace, labels):
        exits = exit_timesteps(point.policy, trace)
        assert float(exits.double().mean()) == pytest.approx(point.mean_timesteps)
        assert exits[2] == len(trace)
        assert exits[3] > 2
    assert 0 < fit_temperature(trace, labels) < float("inf")


@given(recorded())
def test_the_fitted_temperature_minimises_the_cross_entropy(recording):
    trace, labels = recording

    def loss(temperature: float) -> float:
        targets = labels.expand(trace.shape[:2]).reshape(-1)
        return float(cross_entropy(trace.double().reshape(-1, trace.shape[2]) / temperature, targets))

    temperature = fit_temperature(trace, labels)
    spread = float(trace.double().std(-1).mean())
    if spread == 0:
        assert temperature == 1
        return
    grid = [spread * 10 ** (k / 100) for k in range(-199, 200)]
    assert loss(temperature) <= min(map(loss, grid)) + 1e-6


def test_calibration_fits_the_temperature_and_keeps_all_results():
    trace, labels = data(7, n=200)
    found = calibrate(ConfidencePolicy(), trace, labels, max_accuracy_drop=0.02)
    assert found.policy.temperature == pytest.approx(fit_temperature(trace, labels))
    assert found.samples == 200
    assert found.chosen in found.curve
    assert {point.policy.temperature for point in found.curve} == {found.policy.temperature}
    assert "0.02" in found.target


# -- what computes the traces ------------------------------------------------------------------------------------------


class Integrator:
    """A trace source that is no wrapper: its logits are the sum of the frames of an input ``[N, T, C]``."""

    input = "sequence"
    time_dim = 1
    readout_changes = 0

    def __init__(self) -> None:
        self.model = nn.Identity()

    def trace(self, x: Tensor, /) -> Tensor:
        return x.transpose(0, 1).cumsum(0)


def test_traces_are_recorded_from_any_source():
    source: TraceSource = Integrator()
    trace, labels = data(3, timesteps=4, n=10)
    frames = torch.cat([trace[:1], trace.diff(dim=0)]).transpose(0, 1)
    found, found_labels = record(source, [(frames[:6], labels[:6]), (frames[6:], labels[6:])])
    torch.testing.assert_close(found, trace)
    assert torch.equal(found_labels, labels)


def test_a_policy_is_fitted_on_any_source():
    trace, labels = data(3, timesteps=4, n=200)
    loader = [(torch.cat([trace[:1], trace.diff(dim=0)]).transpose(0, 1), labels)]
    network = nn.Linear(3, 4)
    settings = FitSettings.of({"epochs": 1})
    fit = fit_policy(Integrator(), RLPolicy(network), loader, loader, settings, beta=0.5)
    assert fit.full_accuracy == pytest.approx(float((trace[-1].argmax(1) == labels).double().mean()))
    assert sum(fit.chosen.histogram) == fit.samples == 200


# -- through the wrapper -----------------------------------------------------------------------------------------------


def model(framework: str = "spikingjelly") -> nn.Module:
    def spikes() -> nn.Module:
        return neuron.LIFNode(1.5) if framework == "spikingjelly" else snntorch.Leaky(beta=0.8, init_hidden=True)

    net = nn.Sequential(nn.Linear(FEATURES, 16), spikes(), nn.Linear(16, CLASSES), spikes()).eval()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(3)
            layer.bias.abs_().add_(0.2)
    return net


def batches(net: nn.Module, n: int = 60, size: int = 20, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Inputs labelled with the network's own predictions at full T, some of the labels changed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, FEATURES, generator=generator)
    with torch.no_grad():
        labels = EarlyExitWrapper(net, "fixed", timesteps=T, readout="sum").trace(x)[-1].argmax(1)
    labels[::7] = (labels[::7] + 1) % CLASSES
    return [(x[i : i + size], labels[i : i + size]) for i in range(0, n, size)]


@dataclass(frozen=True)
class LeadPolicy(ThresholdPolicy):
    """A custom score: the difference of the two largest logits."""

    threshold: float = 1.0

    def score(self, logits: Tensor) -> Tensor:
        top = logits.topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]


@dataclass(frozen=True)
class SteadyPolicy(Policy):
    """A custom policy with a state: stop when the largest logit has grown for some timesteps."""

    growth: int = 1

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        best = logits.amax(1)
        growing = torch.zeros_like(timestep)
        if policy_state is not None:
            growing = torch.where(best > policy_state["best"], policy_state["growing"] + 1, growing)
        return Decision(growing >= self.growth, growing.float(), {"best": best, "growing": growing})

    def candidate_settings(self, timesteps: int) -> list[SteadyPolicy]:
        return [SteadyPolicy(growth) for growth in range(timesteps + 1)]


POLICIES = ["confidence", "entropy", "margin", "patience", "fixed", LeadPolicy, SteadyPolicy]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_infer_after_calibrate_gives_the_calibrated_accuracy_and_timesteps(framework, policy):
    net = model(framework)
    loader = batches(net)
    snn = EarlyExitWrapper(net, policy, timesteps=T)
    assert snn.calibrate(loader, max_accuracy_drop=0.05) is snn
    point = snn.calibration.chosen
    assert snn.policy == point.policy
    results = [snn.infer(x) for x, _ in loader]
    correct = torch.cat([result.predictions == labels for result, (_, labels) in zip(results, loader, strict=True)])
    exits = torch.cat([result.timesteps for result in results])
    assert float(correct.double().mean()) == pytest.approx(point.accuracy)
    assert float(exits.double().mean()) == pytest.approx(point.mean_timesteps)
    assert evaluate(snn, loader).agreement == 1.0


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_target_of_mean_timesteps_is_kept(policy):
    net = model()
    snn = EarlyExitWrapper(net, policy, timesteps=T).calibrate(batches(net), average_timesteps=2.5)
    assert snn.calibration.chosen.mean_timesteps <= 2.5
    assert evaluate(snn, batches(net)).mean_timesteps == pytest.approx(snn.calibration.chosen.mean_timesteps)


@pytest.mark.parametrize("policy", [LeadPolicy(0.5), SteadyPolicy(1)], ids=["score", "state"])
def test_a_custom_policy_exits_as_it_decides_on_the_trace(policy):
    net = model()
    x = torch.rand(9, FEATURES)
    snn = EarlyExitWrapper(net, policy, timesteps=T, readout="sum")
    result, trace = snn.infer(x), snn.trace(x)
    assert result.timesteps.tolist() == exit_timesteps(snn.policy, trace).tolist()
    assert len(result.timesteps.unique()) > 1
    torch.testing.assert_close(result.logits, trace[result.timesteps - 1, torch.arange(9)])


def _refused(snn: EarlyExitWrapper, loader: Any, *fragments: str, **target: Any) -> None:
    before, kept = snn.policy, snn.calibration
    with pytest.raises(CalibrationError) as caught:
        snn.calibrate(loader, **(target or {"max_accuracy_drop": 0.01}))
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert snn.policy == replace(before, temperature=snn.policy.temperature) if hasattr(before, "threshold") else before
    assert snn.calibration is kept


def test_bad_data_and_bad_targets_are_refused_and_change_nothing():
    net = model()
    snn = EarlyExitWrapper(net, timesteps=T)
    x, labels = batches(net)[0]
    good = [(x, labels)]
    _refused(snn, [], "no sample")
    _refused(snn, [(x[:0], labels[:0])], "no sample")
    _refused(snn, [(x, torch.arange(20) % 5)], "0 to 4", "4 classes", "(0 to 3)")
    _refused(snn, [(x, torch.arange(20) % 4 - 1)], "-1 to 2", "4 classes")
    _refused(snn, [(x, labels.float())], "class indices", "float32")
    _refused(snn, [(x, labels[:, None])], "(20,)", "(20, 1)")
    _refused(snn, [(x, nn.functional.one_hot(labels))], "(20,)", "(20, 4)")
    _refused(snn, [(x, labels[:-1])], "(20,)", "(19,)")
    _refused(snn, [x], "pairs (x, labels)", "Tensor")
    _refused(snn, [(x, labels, x)], "pairs (x, labels)")
    for targets in ({"max_accuracy_drop": 0.1, "average_timesteps": 2.0}, {"max_accuracy_drop": None}):
        _refused(snn, good, "one target: max_accuracy_drop=... or average_timesteps=...", **targets)
    snn.calibrate(good, max_accuracy_drop=0.5)
    _refused(snn, [], "no sample")


def test_a_target_that_no_setting_meets_reports_the_best():
    net = model()
    loader = batches(net)

    @dataclass(frozen=True)
    class Some(FixedPolicy):
        """Fixed, at some timesteps only."""

        steps: tuple[int, ...] = ()

        def candidate_settings(self, timesteps: int) -> list[Some]:
            return [Some(t, self.steps) for t in self.steps]

    fragments = ("no setting of Some", "at most 1.5", "2.000 mean timesteps")
    _refused(EarlyExitWrapper(net, Some(steps=(2, 3)), timesteps=T), loader, *fragments, average_timesteps=1.5)
    trace, labels = record(EarlyExitWrapper(net, timesteps=T), loader)
    accuracy = accuracy_per_timestep(trace, labels)
    assert accuracy[0] < accuracy[-1]
    snn = EarlyExitWrapper(net, Some(steps=(1,)), timesteps=T)
    _refused(snn, loader, "no setting", f"the best is an accuracy of {accuracy[0]:.4f}", max_accuracy_drop=0.0)


def test_a_policy_without_a_setting_is_refused_with_the_two_ways_to_define_one():
    class NoSetting(Policy):
        def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
            return Decision(timestep >= 2, timestep.float())

    net = model()
    snn = EarlyExitWrapper(net, NoSetting, timesteps=T)
    _refused(snn, batches(net), "NoSetting has no setting", "ThresholdPolicy", "candidate_settings")


def test_a_model_in_training_mode_is_not_calibrated():
    net = nn.Sequential(nn.Dropout(0.5), *model())
    snn = EarlyExitWrapper(net, timesteps=T)
    loader = [(torch.rand(4, FEATURES), torch.zeros(4, dtype=torch.long))]
    net.train()
    with pytest.raises(TypeError, match="Dropout"):
        snn.calibrate(loader, max_accuracy_drop=0.1)


def test_labels_of_any_integer_type_are_accepted():
    net = model()
    loader = batches(net)
    expected = EarlyExitWrapper(net, timesteps=T).calibrate(loader, average_timesteps=2.0).policy
    for dtype in (torch.uint8, torch.int32):
        other = [(x, labels.to(dtype)) for x, labels in loader]
        assert EarlyExitWrapper(net, timesteps=T).calibrate(other, average_timesteps=2.0).policy == expected
    other = [(x, labels.tolist()) for x, labels in loader]
    assert EarlyExitWrapper(net, timesteps=T).calibrate(other, average_timesteps=2.0).policy == expected


def test_sequences_of_different_lengths_are_refused():
    net = model()
    snn = EarlyExitWrapper(net, input="sequence")
    labels = torch.zeros(3, dtype=torch.long)
    loader = [(torch.rand(t, 3, FEATURES), labels) for t in (3, 5)]
    _refused(snn, loader, "different lengths", "[3, 5]", "pad")


# -- saving and copying ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["confidence", "entropy", "margin", "patience", "fixed"])
def test_a_state_dict_restores_the_calibrated_policy(policy, tmp_path):
    net = model()
    loader = batches(net)
    snn = EarlyExitWrapper(net, policy, timesteps=T).calibrate(loader, average_timesteps=2.5)
    torch.save(snn.state_dict(), tmp_path / "snn.pt")
    other = EarlyExitWrapper(model(), policy, timesteps=T)
    other.load_state_dict(torch.load(tmp_path / "snn.pt", weights_only=True))
    assert other.policy == snn.policy
    x = loader[0][0]
    torch.testing.assert_close(other.infer(x).logits, snn.infer(x).logits)
    assert other.infer(x).timesteps.tolist() == snn.infer(x).timesteps.tolist()


def test_a_state_dict_of_another_policy_is_refused_by_name():
    snn, other = (EarlyExitWrapper(model(), policy, timesteps=T) for policy in ("confidence", "patience"))
    with pytest.raises((PolicyError, RuntimeError), match=r"ConfidencePolicy.*PatiencePolicy"):
        other.load_state_dict(snn.state_dict())
    assert other.policy == PatiencePolicy()


@pytest.mark.parametrize(
    ("framework", "how"), [("spikingjelly", "deepcopy"), ("spikingjelly", "pickle"), ("snntorch", "deepcopy")]
)
def test_a_copy_gives_equal_results_and_is_independent(framework, how):
    net = model(framework)
    loader = batches(net)
    snn = EarlyExitWrapper(net, timesteps=T).calibrate(loader, average_timesteps=2.5)
    x = loader[0][0]
    expected = snn.infer(x)
    twin = copy.deepcopy(snn) if how == "deepcopy" else pickle.loads(pickle.dumps(snn))
    assert twin.model is not snn.model
    assert twin.adapter.model is twin.model
    assert twin.policy == snn.policy
    found = twin.infer(x)
    assert torch.equal(found.logits, expected.logits)
    assert found.timesteps.tolist() == expected.timesteps.tolist()
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert not twin.infer(x).logits.any()
    assert torch.equal(snn.infer(x).logits, expected.logits)


def test_a_wrapper_can_be_moved_to_float64():
    net = model()
    x = torch.rand(7, FEATURES)
    snn = EarlyExitWrapper(net, ConfidencePolicy(0.6, 1.0), timesteps=T)
    expected = snn.infer(x)
    found = snn.to(torch.float64).infer(x.double())
    assert found.logits.dtype == torch.float64
    assert found.timesteps.tolist() == expected.timesteps.tolist()
    torch.testing.assert_close(found.logits, expected.logits.double())


def test_a_loader_is_iterated_once():
    class Loader(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    net = model("spikingjelly")
    loader = Loader(batches(net))
    EarlyExitWrapper(net, timesteps=T).calibrate(loader, average_timesteps=2.5)
    assert loader.passes == 1


@pytest.mark.parametrize("budget", [2.0, 3.0, 5.0])
def test_among_equal_accuracies_within_a_budget_the_fewest_timesteps_are_chosen(budget):
    labels = torch.tensor([0, 1, 2, 0])
    right = nn.functional.one_hot(labels, 3).float()
    wrong = nn.functional.one_hot((labels + 1) % 3, 3).float()
    trace = torch.stack([wrong, right, right, right, right])  # right from the second timestep on
    found = calibrate(FixedPolicy(), trace, labels, average_timesteps=budget)
    assert found.policy == FixedPolicy(2)
    assert found.chosen.accuracy == 1.0
