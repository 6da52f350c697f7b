"""The search for the setting that meets a target, on known curves of accuracy and mean timesteps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seenn_plugin.calibration.policy_fitting.rewards import ExponentialReward
from seenn_plugin.calibration.policy_fitting.search import Target, search
from seenn_plugin.calibration.thresholds import OperatingPoint
from seenn_plugin.errors import CalibrationError
from seenn_plugin.policies import FixedPolicy

FULL, T = 0.9, 8.0
SETTINGS = [ExponentialReward(beta) for beta in (0.0, 0.25, 1.0, 4.0, 16.0)]


def point(reward: ExponentialReward, scale: float = 1.0) -> OperatingPoint:
    """Accuracy and mean timesteps increase with beta, and saturate."""
    share = reward.value / (reward.value + scale)
    return OperatingPoint(FixedPolicy(), 0.5 + 0.4 * share, 1 + 7 * share)


@given(st.floats(1.05, 7.5), st.integers(0, 12))
def test_the_target_is_approached_from_both_sides(limit, refinements):
    tried = []

    def fit(reward):
        tried.append(reward.value)
        return point(reward)

    target = Target(None, limit, FULL)
    points = search(fit, SETTINGS, target, refinements)
    assert len(points) == len(tried) <= len(SETTINGS) + refinements
    means = [found.mean_timesteps for found in points]
    assert means == sorted(means), "from early exits to late"
    best = target.best(points)
    assert best.mean_timesteps <= limit
    assert best.accuracy == max(found.accuracy for found in points if found.mean_timesteps <= limit)
    if refinements == 12 and limit < means[-1]:
        assert best.mean_timesteps > limit - 0.1


@pytest.mark.parametrize("scale", [1.0, 50.0, 2000.0])
def test_later_exits_are_tried_while_the_accuracy_is_too_low(scale):
    target = Target(0.1, None, FULL)
    points = search(lambda reward: point(reward, scale), SETTINGS, target, 8)
    assert target.best(points).accuracy >= FULL - 0.1
    with pytest.raises(CalibrationError, match=r"at most 0\.1 below .*More refinements"):
        target.best(search(lambda reward: point(reward, 1e9), SETTINGS, target, 3))


def test_a_target_that_all_or_no_settings_meet_is_not_refined():
    everything = search(point, SETTINGS, Target(0.5, None, FULL), 9)
    nothing = search(point, SETTINGS, Target(None, 0.5, FULL), 9)
    assert len(everything) == len(nothing) == len(SETTINGS)
    assert Target(0.5, None, FULL).best(everything).mean_timesteps == 1
    with pytest.raises(CalibrationError, match=r"at most 0\.5 mean timesteps.*cost='linear'"):
        Target(None, 0.5, FULL).best(nothing)


def test_of_equal_accuracies_the_fewest_timesteps_are_chosen():
    points = [OperatingPoint(FixedPolicy(), 0.8, mean) for mean in (2.0, 1.5, 3.0)]
    assert Target(None, 4.0, FULL).best(points).mean_timesteps == 1.5
    assert Target(0.2, None, FULL).best(points).mean_timesteps == 1.5
