"""The objectives of the policy network compared with enumerated expectations, and rewards of known cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seenn_plugin.calibration.policy_fitting.objectives import (
    exact_loss,
    first_step_weights,
    joint_loss,
    mean_entropy,
    reinforce_loss,
)
from seenn_plugin.calibration.policy_fitting.rewards import ExponentialReward, LinearReward
from seenn_plugin.errors import PolicyError


def case(seed: int, n: int = 4, k: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) * 2
    rewards = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), rewards, torch.rand(n, generator=generator, dtype=torch.float64)


def enumerated_gradient(logits: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """The gradient of ``-mean_i w_i E_z[R_iz]``, summed over all choices of all rows.

    By the score function, ``sum_z v_z R_z d log v_z / d logit_j``, with ``d log v_z / d logit_j = [z = j] - v_j``.
    """
    n, k = logits.shape
    gradient = torch.zeros(n, k, dtype=torch.float64)
    for i in range(n):
        values = [math.exp(float(value)) for value in logits[i]]
        v = [value / sum(values) for value in values]
        for z in range(k):
            for j in range(k):
                gradient[i, j] -= weights[i] / n * v[z] * rewards[i, z] * ((z == j) - v[j])
    return gradient


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_the_exact_gradient_is_the_enumerated_expectation(seed, n, k):
    logits, rewards, weights = case(seed, n, k)
    loss = exact_loss(logits, rewards, weights)
    v = logits.detach().softmax(1)
    expected = -sum(float(weights[i] * v[i, z] * rewards[i, z]) for i in range(n) for z in range(k)) / n
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, enumerated_gradient(logits.detach(), rewards, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_average_of_reinforce_is_the_exact_gradient(seed):
    """Over many samples, each entry of the mean gradient lies within 4.5 standard errors of the exact one."""
    logits, rewards, weights = case(seed)
    (exact,) = torch.autograd.grad(exact_loss(logits, rewards, weights), logits)
    samples, n = 20_000, len(logits)
    many = logits.detach().repeat(samples, 1).requires_grad_()
    loss = reinforce_loss(many, rewards.repeat(samples, 1), weights.repeat(samples))
    (gradient,) = torch.autograd.grad(loss * samples, many)  # undo the mean over samples
    gradient = gradient.view(samples, n, -1)
    error = gradient.std(0) / samples**0.5
    assert bool(((gradient.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())
    assert float(error.max()) < 0.02 * float(exact.abs().max()), "the standard error is small enough for the test"


def test_reinforce_has_no_gradient_where_the_greedy_choice_is_sampled():
    logits = torch.tensor([[50.0, 0.0]], requires_grad=True)
    reinforce_loss(logits, torch.tensor([[-3.0, 1.0]]), torch.ones(1)).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


@pytest.mark.parametrize("objective", [exact_loss, reinforce_loss])
def test_joint_loss_trains_policy_and_spiking_network(objective):
    logits, rewards, weights = case(1)
    cost = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    loss = joint_loss(objective, logits, rewards, weights, cost)
    by_policy, by_network = torch.autograd.grad(loss, (logits, cost))
    torch.testing.assert_close(by_network, weights[:, None] * logits.detach().softmax(1) / 4)
    if objective is exact_loss:  # E_z[-R + CE]
        (expected,) = torch.autograd.grad(exact_loss(logits, rewards - cost.detach(), weights), logits)
        torch.testing.assert_close(by_policy, expected)


def test_rewards_of_known_cases():
    correct = torch.tensor([[False, True, True], [False, False, False]])
    assert ExponentialReward(0.5)(correct, [1, 2, 4]).tolist() == [[-0.5, 0.25, 0.0625], [-0.5] * 3]
    linear = LinearReward(0.1)(correct, [1, 2, 4])
    torch.testing.assert_close(linear, torch.tensor([[-0.1, 0.8, 0.6], [-0.1, -0.2, -0.4]]))


@pytest.mark.parametrize("kind", [ExponentialReward, LinearReward])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "much", True])
def test_a_value_out_of_range_is_refused(kind, value):
    with pytest.raises(PolicyError, match=f"{kind.parameter} must be a finite number of at least 0"):
        kind(value)


def test_rewards_that_overflow_are_refused():
    with pytest.raises(PolicyError, match="NaN or infinite"):
        ExponentialReward(1e300)(torch.tensor([[False]]), [1])


@given(st.integers(0, 10**6))
def test_settings_are_tried_from_early_exits_to_late(seed):
    """A row with a given probability of a correct prediction at each candidate exits no earlier at a later setting."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(4, generator=generator, dtype=torch.float64).sort().values
    candidates = [1, 2, 3, 5]
    for kind in (ExponentialReward, LinearReward):
        settings = kind.grid(p.tolist(), candidates)
        settings = [*settings, settings[-1].later()]
        settings.insert(2, settings[1].between(settings[2]))
        best = []
        for reward in settings:
            if_correct, if_wrong = (reward(torch.full((1, 4), correct), candidates)[0] for correct in (True, False))
            best.append(int((p * if_correct + (1 - p) * if_wrong).argmax()))
        assert best == sorted(best)
        assert len({reward.value for reward in settings}) == len(settings)


def test_reweighting_is_rate_over_one_minus_rate():
    assert first_step_weights(torch.tensor([True, True, True, False])).tolist() == [1, 1, 1, pytest.approx(3.0)]
    assert first_step_weights(torch.tensor([True, True])).tolist() == [1, 1]
    assert first_step_weights(torch.tensor([False, False])).tolist() == [1, 1]


def test_entropy_is_in_nats():
    assert float(mean_entropy(torch.zeros(3, 4))) == pytest.approx(math.log(4))
