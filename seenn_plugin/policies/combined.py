"""Policies made of policies: stop when any of them says so, or when all do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, PolicyError
from .base import Decision, Policy, consult


@dataclass(frozen=True)
class CombinedPolicy(Policy):
    """Several policies asked at every timestep, each with a memory of its own.

    A row whose logits are NaN or infinite is never counted as sure, by any of them.

    Args:
        members: at least one; members that combine policies in the same way are taken apart.
    """

    members: tuple[Policy, ...]

    def __post_init__(self) -> None:
        flat: list[Policy] = []
        for member in self.members:
            if not isinstance(member, Policy):
                raise PolicyError(f"{type(self).__name__} is made of policies, not of {type(member).__name__}.")
            flat += member.members if isinstance(member, type(self)) else (member,)
        if not flat:
            raise PolicyError(f"{type(self).__name__} needs at least one policy.")
        object.__setattr__(self, "members", tuple(flat))

    @abstractmethod
    def combine(self, stops: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Stop ``[n]`` and score ``[n]`` from those of the members, ``[members, n]`` each."""

    def start(self, inputs: Tensor, sequence: bool, timesteps: int, classes: int) -> Any:
        return tuple(member.start(inputs, sequence, timesteps, classes) for member in self.members)

    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        memories = (None,) * len(self.members) if memory is None else memory
        decisions = [consult(member, logits, timestep, own) for member, own in zip(self.members, memories, strict=True)]
        stop, score = self.combine(
            torch.stack([decision.stop for decision in decisions]),
            torch.stack([decision.score.to(torch.float32) for decision in decisions]),
        )
        return Decision(stop, score, tuple(decision.memory for decision in decisions))

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

    def dial_settings(self, timesteps: int) -> Sequence[Self] | None:
        raise CalibrationError(
            f"{type(self).__name__} has a dial for each of its members, and one target cannot set them all: calibrate "
            "(or fit) each member on a wrapper of its own, then combine the results with | or &."
        )


@dataclass(frozen=True)
class AnyPolicy(CombinedPolicy):
    """``a | b``: stop as soon as any of the policies says so: at the earliest of their exits.

    The score is that of the first policy, in the order in which they are written, that stops the row; where none does,
    that of the first.
    """

    def combine(self, stops: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        first = stops.int().argmax(0, keepdim=True)  # 0 where none stops
        return stops.any(0), scores.gather(0, first).squeeze(0)


@dataclass(frozen=True)
class AllPolicy(CombinedPolicy):
    """``a & b``: stop at the first timestep at which all of the policies say so.

    That is never before the latest of their exits, and later where one has changed its mind: what counts is what each
    says now. The score is that of the first policy, in the order in which they are written.
    """

    def combine(self, stops: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return stops.all(0), scores[0]


def leaves(policy: Policy) -> Iterator[Policy]:
    """The policies that a policy is made of; itself if it combines none."""
    if isinstance(policy, CombinedPolicy):
        for member in policy.members:
            yield from leaves(member)
    else:
        yield policy


def map_leaves(function: Callable[[Policy], Policy], policy: Policy) -> Policy:
    """A policy with ``function`` applied to all that it is made of."""
    if isinstance(policy, CombinedPolicy):
        return replace(policy, members=tuple(map_leaves(function, member) for member in policy.members))
    return function(policy)


def networks(policy: Policy) -> list[nn.Module]:
    """The modules that the policies in a policy hold."""
    held = (value for leaf in leaves(policy) for value in vars(leaf).values())
    return [value for value in held if isinstance(value, nn.Module)]
