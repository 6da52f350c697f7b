"""The names of the built-in policies, and the policy that a name, a class or an instance stands for."""

from __future__ import annotations

from .._naming import unknown_name
from ..errors import PolicyError
from .base import Policy
from .logits import ConfidencePolicy, EntropyPolicy, FixedPolicy, MarginPolicy, PatiencePolicy, StabilityPolicy
from .rl import RLPolicy

ALIASES: dict[str, type[Policy]] = {
    "confidence": ConfidencePolicy,
    "entropy": EntropyPolicy,
    "fixed": FixedPolicy,
    "margin": MarginPolicy,
    "patience": PatiencePolicy,
    "rl": RLPolicy,
    "stability": StabilityPolicy,
}
"""The class for each name that ``EarlyExitWrapper(model, policy=...)`` accepts."""


def make_policy(choice: str | type[Policy] | Policy) -> Policy:
    """Return the policy for an alias, a class or an instance.

    Args:
        choice: a key of :data:`ALIASES`, or a class: its policy with default settings; or a policy, returned as it is.

    Raises:
        PolicyError: the alias is unknown, or the object is neither a policy nor a policy class.

    Example:
        >>> make_policy("confidence")
        ConfidencePolicy(threshold=0.9, temperature=None)
        >>> make_policy(PatiencePolicy(3))
        PatiencePolicy(patience=3, share=1.0)
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
