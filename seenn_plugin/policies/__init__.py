"""Exit policies: when does a row stop?"""

from __future__ import annotations

from ..errors import PolicyError
from ..naming import unknown_name
from .base import Decision, Policy, ThresholdPolicy, consult, exit_timesteps
from .logits import ConfidencePolicy, EntropyPolicy, FixedPolicy, MarginPolicy, PatiencePolicy

__all__ = [
    "ALIASES",
    "ConfidencePolicy",
    "Decision",
    "EntropyPolicy",
    "FixedPolicy",
    "MarginPolicy",
    "PatiencePolicy",
    "Policy",
    "ThresholdPolicy",
    "consult",
    "exit_timesteps",
    "make_policy",
]

ALIASES: dict[str, type[Policy]] = {
    "confidence": ConfidencePolicy,
    "entropy": EntropyPolicy,
    "fixed": FixedPolicy,
    "margin": MarginPolicy,
    "patience": PatiencePolicy,
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
