"""Exit policies: when does a row stop?"""

from __future__ import annotations

from ..errors import PolicyError
from ..naming import unknown_name
from .base import Decision, Policy, ThresholdPolicy, consult, exit_timesteps, start_rows
from .combined import AllPolicy, AnyPolicy, CombinedPolicy
from .logits import ConfidencePolicy, EntropyPolicy, FixedPolicy, MarginPolicy, PatiencePolicy
from .planned import Plan, PlanPolicy
from .rl import RLPolicy

__all__ = [
    "ALIASES",
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
    "ThresholdPolicy",
    "consult",
    "exit_timesteps",
    "make_policy",
    "start_rows",
]

ALIASES: dict[str, type[Policy]] = {
    "confidence": ConfidencePolicy,
    "entropy": EntropyPolicy,
    "fixed": FixedPolicy,
    "margin": MarginPolicy,
    "patience": PatiencePolicy,
    "rl": RLPolicy,
}


def make_policy(choice: str | type[Policy] | Policy) -> Policy:
    """A policy from an alias, a class or an instance.

    Raises:
        PolicyError: the alias is unknown, or the object is no policy.
    """
    if isinstance(choice, str):
        if choice not in ALIASES:
            raise PolicyError(unknown_name("policy", choice, ALIASES))
        return ALIASES[choice]()
    if isinstance(choice, type) and issubclass(choice, Policy):
        return choice()
    if isinstance(choice, Policy):
        return choice
    raise PolicyError(
        f"policy must be a name ({', '.join(sorted(ALIASES))}), a Policy class or a Policy, not {choice!r}."
    )
