"""Answers that are no single class: numbers (regression), and a class at every position (segmentation)."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, evaluate
from seenn_plugin.errors import CalibrationError, PolicyError, ReadoutError
from seenn_plugin.policies import FixedPolicy, PatiencePolicy, Policy, StabilityPolicy
from seenn_plugin.policies.base import exit_timesteps

T, N, CLASSES, SIZE = 8, 10, 3, 4


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    fire = snntorch.Leaky(0.8, threshold=0.3, init_hidden=True)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), fire, nn.Conv2d(6, CLASSES, 1)).eval()


def regressor(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), snntorch.Leaky(0.8, threshold=0.3, init_hidden=True), nn.Linear(16, outputs))


def images() -> Tensor:
    strength = torch.linspace(0.3, 3, N).view(N, 1, 1, 1)
    return strength * torch.rand(N, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def patience_alone(trace: Tensor, patience: int, share: float) -> int:
    """The exit of one row of a trace ``[T, C, ...]``, written out."""
    predictions = trace.argmax(1).flatten(1)
    for t in range(1, len(trace) + 1):
        kept = [
            t >= patience and len(set(predictions[t - patience : t, position].tolist())) == 1
            for position in range(predictions.shape[1])
        ]
        if sum(kept) / len(kept) >= share:
            return t
    return len(trace)


def stability_alone(trace: Tensor, tolerance: float, patience: int) -> int:
    """The exit of one row of a trace ``[T, ...]``, written out."""
    stable, largest = 0, float(trace[0].abs().max())
    for t in range(2, len(trace) + 1):
        largest = max(largest, float(trace[t - 1].abs().max()))
        change = float((trace[t - 1] - trace[t - 2]).abs().max())
        stable = stable + 1 if largest > 0 and change <= tolerance * largest else 0
        if stable >= patience:
            return t
    return len(trace)


@given(st.data())
def test_the_share_of_the_positions_that_kept_their_class(data):
    trace = data.draw(st.integers(0, 999)) and torch.randint(0, 2, (T, N, 2, 2, 2), dtype=torch.float64)
    patience, share = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([0.25, 0.5, 0.6, 1.0]))
    if not isinstance(trace, Tensor):
        trace = torch.zeros(T, N, 2, 2, 2, dtype=torch.float64)
    wanted = [patience_alone(trace[:, row], patience, share) for row in range(N)]
    assert exit_timesteps(PatiencePolicy(patience, share), trace).tolist() == wanted


@given(st.integers(0, 999), st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.5]))
def test_how_long_an_answer_has_hardly_changed(seed, patience, tolerance):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-1, 2, (T, N, 2), generator=generator, dtype=torch.float64)
    trace = steps.cumsum(0)
    trace[:3, 0] = 0  # silent at first
    trace[:, 1] = 0  # silent throughout
    wanted = [stability_alone(trace[:, row], tolerance, patience) for row in range(N)]
    assert exit_timesteps(StabilityPolicy(tolerance, patience), trace).tolist() == wanted
    assert wanted[1] == T


def test_a_number_that_is_not_finite_is_not_stable_and_is_forgotten():
    trace = torch.ones(6, 1, 1)
    trace[1] = float("nan")
    assert exit_timesteps(StabilityPolicy(0.01, 2), trace).tolist() == [5]


@pytest.mark.parametrize(
    "policy",
    [PatiencePolicy(3, 0.95), PatiencePolicy(4, 0.9) | FixedPolicy(6), StabilityPolicy(0.3, 1), FixedPolicy(3)],
    ids=["patience", "combined", "stability", "fixed"],
)
@pytest.mark.parametrize("readout", ["sum", "mean", "last", "max"])
@torch.no_grad()
def test_a_class_at_every_position(policy: Policy, readout):
    x = images()
    snn = EarlyExitWrapper(segmenter(), policy, timesteps=T, readout=readout)
    trace = snn.trace(x)
    assert trace.shape == (T, N, CLASSES, SIZE, SIZE)
    assert trace.std(1).max() > 0, "the rows are alike"
    exits = exit_timesteps(policy, trace)
    if not isinstance(policy, FixedPolicy) and readout in ("sum", "mean"):
        assert len(set(exits.tolist())) > 1, "all rows leave at once"
    wanted = trace[exits - 1, torch.arange(N)]
    result = snn.infer(x)
    assert torch.equal(result.timesteps, exits)
    torch.testing.assert_close(result.logits, wanted)
    assert result.predictions.shape == (N, SIZE, SIZE)
    for item in snn.stream(x, slots=3):
        assert item.timesteps == int(exits[item.position])
        torch.testing.assert_close(item.logits, wanted[item.position])
        with pytest.raises(ValueError, match=r"logits.argmax\(0\)"):
            _ = item.prediction
    assert snn.infer(x[:0]).logits.shape == (0, CLASSES, SIZE, SIZE)
    assert snn.trace(x[:0]).shape == (T, 0, CLASSES, SIZE, SIZE)
    assert torch.equal(torch.stack(list(snn.steps(x))), trace)


@torch.no_grad()
def test_a_copy_agrees_on_a_row_if_it_does_at_every_position():
    snn = EarlyExitWrapper(segmenter(), PatiencePolicy(3, 0.9), timesteps=T, readout="mean", autocast=torch.bfloat16)
    assert f"of {N} rows give the same class" in str(snn.explain(images()))


@pytest.mark.parametrize("outputs", [1, 4])
@torch.no_grad()
def test_numbers(outputs):
    x = 2 * torch.rand(N, 5, generator=torch.Generator().manual_seed(1))
    snn = EarlyExitWrapper(regressor(outputs).eval(), "stability", timesteps=T, readout="mean")
    snn.policy = StabilityPolicy(0.1, 1)
    trace = snn.trace(x)
    exits = exit_timesteps(snn.policy, trace)
    assert len(set(exits.tolist())) > 1, "all rows leave at once"
    result = snn.infer(x)
    assert torch.equal(result.timesteps, exits)
    torch.testing.assert_close(result.logits, trace[exits - 1, torch.arange(N)])
    saved = snn.state_dict()
    other = EarlyExitWrapper(regressor(outputs).eval(), "stability", timesteps=T, readout="mean")
    other.load_state_dict(saved)
    assert other.policy == StabilityPolicy(0.1, 1)


@pytest.mark.parametrize("policy", ["confidence", "entropy", "margin"])
def test_other_policies_say_what_suits(policy):
    snn = EarlyExitWrapper(segmenter(), policy, timesteps=T, readout="mean")
    for call in (snn.infer, snn.trace, lambda x: list(snn.stream(x))):
        with pytest.raises(ReadoutError, match=r"\[N, 3, 4, 4\].*input='sequence'.*share=0.99.*StabilityPolicy"):
            call(images())


def test_accuracy_is_of_one_class_for_each_row():
    snn = EarlyExitWrapper(segmenter(), "patience", timesteps=T, readout="mean")
    pairs = [(images(), torch.zeros(N, dtype=torch.long))]
    calls: list[Any] = [lambda: snn.calibrate(pairs, average_timesteps=3), lambda: evaluate(snn, pairs)]
    for call in calls:
        with pytest.raises(CalibrationError, match=r"accuracy is of one class for each row"):
            call()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PatiencePolicy(2, 0.0),
        lambda: PatiencePolicy(2, 1.5),
        lambda: StabilityPolicy(-1.0),
        lambda: StabilityPolicy(float("nan")),
        lambda: StabilityPolicy(0.1, 0),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(PolicyError, match="must be"):
        make()
