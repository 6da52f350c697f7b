"""The interface of exit policies, combinations of policies, and the checks on what a policy returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, PolicyError
from ..inputs import InputBatch
from ..state.values import row_misfit


@dataclass(frozen=True)
class Decision:
    """The decision of a policy for ``n`` rows after one timestep.

    Attributes:
        stop: bool ``[n]``: whether the row exits at this timestep.
        score: float ``[n]``: the confidence of the decision, higher for more confident rows. Reported as
            ``ExitResult.score``.
        policy_state: passed to :meth:`Policy.decide` at the next timestep: ``None``, or tensors (also nested in tuples,
            lists and dictionaries) with ``n`` rows on dimension 0.
    """

    stop: Tensor
    score: Tensor
    policy_state: Any = None


class Policy(ABC):
    """Decides after each timestep which rows stop.

    A policy is immutable. What it needs of earlier timesteps is its *policy state*, which it returns in
    :attr:`Decision.policy_state`. The engine holds that state, and removes and reorders its rows together with those of
    the batch.

    ``a | b`` stops a row as soon as one of the two policies stops it, ``a & b`` once both stop it at the same timestep.

    Example:
        >>> class GrowingPolicy(Policy):
        ...     '''Stop when the largest logit has grown since the previous timestep.'''
        ...
        ...     def decide(self, logits, timestep, policy_state):
        ...         best = logits.amax(1)
        ...         grown = torch.zeros_like(best) if policy_state is None else best - policy_state
        ...         return Decision(stop=grown > 0, score=grown, policy_state=best)
        >>> trace = torch.tensor([[[1.0, 0.0]], [[0.5, 0.0]], [[2.0, 0.0]], [[3.0, 0.0]]])  # [T, N, C]
        >>> exit_timesteps(GrowingPolicy(), trace)
        tensor([3])
    """

    @property
    def takes_maps(self) -> bool:
        """Whether it decides on logits at several positions too, ``[n, C, ...]``, as of segmentation."""
        return False

    def start(self, inputs: InputBatch, timesteps: int, classes: int) -> Any:
        """Return the policy state of ``n`` rows before their first timestep; ``None`` by default.

        Args:
            inputs: of the ``n`` rows.
            timesteps: T, the largest number of timesteps of a row.
            classes: C, the number of decision logits.

        Returns:
            Policy state as in :attr:`Decision.policy_state`; the first call of :meth:`decide` receives it.
        """
        return None

    @abstractmethod
    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        """Decide for ``n`` rows after a timestep. Must treat each row independently of the others.

        Args:
            logits: decision logits ``[n, C]``.
            timestep: long ``[n]``: the number of timesteps that each row has run, from 1.
            policy_state: ``Decision.policy_state`` of the same rows at the previous timestep; at the first timestep the
                result of :meth:`start`.
        """

    def settle(self, classes: int, lead: float | None) -> Policy:
        """Return this policy with the settings that depend on the network filled in; ``self`` if there are none.

        The wrapper calls it before it runs a network.

        Args:
            classes: C, the number of decision logits.
            lead: the difference in decision logits at T between a class that spikes at half of the timesteps and the
                classes that never spike; ``None`` if the logits do not count spikes.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """Return the fields of a dataclass policy that are numbers, strings or ``None``, for saving."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} if is_dataclass(self) else {}
        return {name: value for name, value in values.items() if isinstance(value, int | float | str | None)}

    def with_settings(self, settings: dict[str, Any]) -> Self:
        """Return a copy of this policy with saved :meth:`settings`; unknown names are ignored.

        Raises:
            PolicyError: the settings are invalid for this policy.
        """
        if not is_dataclass(self):
            return self
        known = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in settings.items() if name in known})

    def __or__(self, other: Policy) -> AnyPolicy:
        return AnyPolicy((self, other)) if isinstance(other, Policy) else NotImplemented

    def __and__(self, other: Policy) -> AllPolicy:
        return AllPolicy((self, other)) if isinstance(other, Policy) else NotImplemented

    def candidate_settings(self, timesteps: int) -> Sequence[Self] | None:
        """Return the policies among which ``calibrate`` chooses, from early exits to late.

        Args:
            timesteps: T, the largest number of timesteps of a row.

        Returns:
            Copies of this policy with different settings; ``None`` if the policy has no setting to calibrate.

        Raises:
            CalibrationError: the policy is not calibrated; the message says how it is set instead.
        """
        return None


def start_rows(policy: Policy, inputs: InputBatch, timesteps: int, classes: int) -> Any:
    """Call :meth:`Policy.start` and check the policy state that it returns.

    Raises:
        PolicyError: the policy state is not made of tensors with one row for each row of the input.
    """
    policy_state = policy.start(inputs, timesteps, classes)
    _check_state(policy, "start", policy_state, len(inputs))
    return policy_state


def consult(policy: Policy, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
    """Call :meth:`Policy.decide` and check the decision. A row with NaN or infinite logits does not stop.

    Args:
        policy: makes the decision.
        logits: decision logits ``[n, C]``.
        timestep: long ``[n]``, from 1.
        policy_state: that of the previous timestep.

    Raises:
        PolicyError: the decision has the wrong type, shape or dtype.
    """
    decision = policy.decide(logits, timestep, policy_state)
    n, name = logits.shape[0], type(policy).__name__
    if not isinstance(decision, Decision):
        raise PolicyError(
            f"{name}.decide must return a Decision(stop, score, policy_state), not {type(decision).__name__}."
        )
    for label, value, dtypes in (("stop", decision.stop, "bool"), ("score", decision.score, "floating point")):
        fits = isinstance(value, Tensor) and (
            value.dtype == torch.bool if dtypes == "bool" else value.is_floating_point()
        )
        if not fits or value.shape != (n,):
            seen = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PolicyError(
                f"{name}.decide returned {label} as {seen}; it must be a {dtypes} tensor of shape ({n},)."
            )
    _check_state(policy, "decide", decision.policy_state, n)
    finite = finite_rows(logits)
    return replace(decision, stop=decision.stop & finite)


def finite_rows(logits: Tensor) -> Tensor:
    """Whether all logits of a row are finite: bool ``[n]``, from ``[n, C, ...]``."""
    return logits.isfinite().flatten(1).all(1)


def _check_state(policy: Policy, method: str, policy_state: Any, n: int) -> None:
    misfit = row_misfit(policy_state, n)
    if misfit:
        raise PolicyError(
            f"{type(policy).__name__}.{method} returned a policy state of {misfit}; it must be made of tensors with "
            f"{n} rows on dimension 0."
        )


def exit_timesteps(policy: Policy, trace: Tensor, policy_state: Any = None) -> Tensor:
    """Return the timestep at which a policy stops each row of a trace.

    Args:
        policy: decides after each timestep.
        trace: decision logits ``[T, N, C]``.
        policy_state: the policy state before the first timestep, as :meth:`Policy.start` returns it.

    Returns:
        Long ``[N]``, from 1 to T. A row that the policy never stops exits at T.
    """
    timesteps, n = trace.shape[:2]
    exits = torch.full((n,), timesteps, dtype=torch.long, device=trace.device)
    running = torch.ones(n, dtype=torch.bool, device=trace.device)
    for t, logits in enumerate(trace, start=1):
        decision = consult(policy, logits, torch.full_like(exits, t), policy_state)
        policy_state = decision.policy_state
        exits[running & decision.stop] = t
        running &= ~decision.stop
    return exits


# -- combinations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CombinedPolicy(Policy):
    """Several policies, each with its own policy state, and a rule that combines their decisions.

    Args:
        members: at least one policy. A member of the same class is replaced by its own members.
    """

    members: tuple[Policy, ...]

    def __post_init__(self) -> None:
        flat: list[Policy] = []
        for member in self.members:
            if not isinstance(member, Policy):
                raise PolicyError(f"{type(self).__name__} combines policies, not {type(member).__name__}.")
            flat += member.members if isinstance(member, type(self)) else (member,)
        if not flat:
            raise PolicyError(f"{type(self).__name__} needs at least one policy.")
        object.__setattr__(self, "members", tuple(flat))

    @abstractmethod
    def combine(self, stops: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return stop, bool ``[n]``, and score, float ``[n]``, from those of the members, ``[members, n]`` each."""

    @property
    def takes_maps(self) -> bool:
        return all(member.takes_maps for member in self.members)

    def start(self, inputs: InputBatch, timesteps: int, classes: int) -> Any:
        return tuple(member.start(inputs, timesteps, classes) for member in self.members)

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        states = (None,) * len(self.members) if policy_state is None else policy_state
        decisions = [consult(member, logits, timestep, own) for member, own in zip(self.members, states, strict=True)]
        stop, score = self.combine(
            torch.stack([decision.stop for decision in decisions]),
            torch.stack([decision.score.to(torch.float32) for decision in decisions]),
        )
        return Decision(stop, score, tuple(decision.policy_state for decision in decisions))

    def settle(self, classes: int, lead: float | None) -> Self:
        settled = tuple(member.settle(classes, lead) for member in self.members)
        if all(new is old for new, old in zip(settled, self.members, strict=True)):
            return self
        return replace(self, members=settled)

    def settings(self) -> dict[str, Any]:
        return {"members": [{"policy": type(m).__name__, "settings": m.settings()} for m in self.members]}

    def with_settings(self, settings: dict[str, Any]) -> Self:
        saved, own = [s["policy"] for s in settings["members"]], [type(m).__name__ for m in self.members]
        if saved != own:
            raise PolicyError(f"the saved policy combines {', '.join(saved)}, this one {', '.join(own)}.")
        return replace(
            self,
            members=tuple(
                member.with_settings(s["settings"]) for member, s in zip(self.members, settings["members"], strict=True)
            ),
        )

    def candidate_settings(self, timesteps: int) -> Sequence[Self] | None:
        raise CalibrationError(
            f"{type(self).__name__} has a setting for each of its members, and one target cannot determine them all: "
            "calibrate (or fit) each member on a wrapper of its own, then combine the results with | or &."
        )


@dataclass(frozen=True)
class AnyPolicy(CombinedPolicy):
    """``a | b``: stop a row as soon as one of the policies stops it, which is the earliest of their exits.

    The score is that of the first member that stops the row; if none does, that of the first member.

    Example:
        >>> from seenn_plugin.policies import ConfidencePolicy, FixedPolicy
        >>> trace = torch.tensor([[[0.0, 0.0], [5.0, 0.0]], [[0.0, 0.0], [5.0, 0.0]], [[5.0, 0.0], [5.0, 0.0]]])
        >>> exit_timesteps(ConfidencePolicy(0.9) | FixedPolicy(2), trace)
        tensor([2, 1])
    """

    def combine(self, stops: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        first = stops.int().argmax(0, keepdim=True)  # 0 where none stops
        return stops.any(0), scores.gather(0, first).squeeze(0)


@dataclass(frozen=True)
class AllPolicy(CombinedPolicy):
    """``a & b``: stop a row at the first timestep at which all of the policies stop it.

    That is not before the latest of their exits. It is later where a policy that would have stopped the row earlier no
    longer does. The score is that of the first member.

    Example:
        >>> from seenn_plugin.policies import ConfidencePolicy, FixedPolicy
        >>> trace = torch.tensor([[[0.0, 0.0], [5.0, 0.0]], [[0.0, 0.0], [5.0, 0.0]], [[5.0, 0.0], [5.0, 0.0]]])
        >>> exit_timesteps(ConfidencePolicy(0.9) & FixedPolicy(2), trace)
        tensor([3, 2])
    """

    def combine(self, stops: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return stops.all(0), scores[0]


def leaves(policy: Policy) -> Iterator[Policy]:
    """Yield the policies that a policy combines, recursively; the policy itself if it combines none."""
    if isinstance(policy, CombinedPolicy):
        for member in policy.members:
            yield from leaves(member)
    else:
        yield policy


def map_leaves(function: Callable[[Policy], Policy], policy: Policy) -> Policy:
    """Return a policy with ``function`` applied to each of its :func:`leaves`."""
    if isinstance(policy, CombinedPolicy):
        return replace(policy, members=tuple(map_leaves(function, member) for member in policy.members))
    return function(policy)


def networks(policy: Policy) -> list[nn.Module]:
    """Return the modules among the attributes of the :func:`leaves` of a policy."""
    attributes = (value for leaf in leaves(policy) for value in vars(leaf).values())
    return [value for value in attributes if isinstance(value, nn.Module)]
