"""Exit policies: each decides when a row of the batch stops.

``__all__`` is the public interface. The library itself imports its internals from ``policies.base`` and
``policies.registry``.
"""

from .base import AllPolicy, AnyPolicy, CombinedPolicy, Decision, Policy
from .base import consult as consult
from .base import exit_timesteps as exit_timesteps
from .base import start_rows as start_rows
from .logits import ConfidencePolicy, EntropyPolicy, FixedPolicy, MarginPolicy, PatiencePolicy, StabilityPolicy
from .planned import Plan, PlanPolicy
from .registry import ALIASES as ALIASES
from .registry import make_policy as make_policy
from .rl import RLPolicy
from .threshold import ThresholdPolicy

__all__ = [
    "AllPolicy",
    "AnyPolicy",
    "CombinedPolicy",
    "ConfidencePolicy",
    "Decision",
    "EntropyPolicy",
    "FixedPolicy",
    "MarginPolicy",
    "PatiencePolicy",
    "Plan",
    "PlanPolicy",
    "Policy",
    "RLPolicy",
    "StabilityPolicy",
    "ThresholdPolicy",
]
