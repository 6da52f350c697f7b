"""What an exit policy is: after every timestep it says, row by row, who stops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..errors import PolicyError
from ..module_state import row_misfit
from .temperature import reachable_temperature

if TYPE_CHECKING:
    from .combined import AllPolicy, AnyPolicy


@dataclass(frozen=True)
class Decision:
    """One decision for ``n`` rows.

    Attributes:
        stop: bool ``[n]``: the row answers now.
        score: float ``[n]``: how sure the row is; higher is surer. Reported as ``ExitResult.score``.
        memory: what the policy wants to see again at the next timestep, in tensors of ``n`` rows (dimension 0).
    """

    stop: Tensor
    score: Tensor
    memory: Any = None


class Policy(ABC):
    """When does a row stop?

    A policy is a value: it is not changed by being used. What it has to remember of a row travels in
    :attr:`Decision.memory`, which the engine keeps in step with the rows.

    Policies compose: ``a | b`` stops a row as soon as either says so, ``a & b`` when both say so at one timestep.
    """

    def start(self, inputs: Tensor, sequence: bool, timesteps: int, classes: int) -> Any:
        """What the policy knows of ``n`` rows before their first timestep; ``None`` if it decides on logits alone.

        Args:
            inputs: ``[n, ...]``, or ``[T, n, ...]`` for a sequence.
            sequence: whether ``inputs`` has a time axis.
            timesteps: T, the most timesteps that a row may take.
            classes: C, the number of decision logits.

        Returns:
            Memory as in :attr:`Decision.memory`, handed to the first :meth:`decide`.
        """
        return None

    @abstractmethod
    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        """Decide for ``n`` rows.

        Args:
            logits: decision logits ``[n, C]`` after ``timestep`` steps.
            timestep: long ``[n]``, counted from 1.
            memory: ``Decision.memory`` of the previous timestep for these very rows; at the first what :meth:`start`
                gave, ``None`` unless the policy defines it.
        """

    def settle(self, classes: int, lead: float | None) -> Policy:
        """The policy with what it leaves open settled for one network; itself if it leaves nothing open.

        Args:
            classes: C, the number of decision logits.
            lead: how far ahead a class is that alone spikes half of the time; ``None`` if the logits count no spikes.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """The settings of a dataclass policy that are plain values, for saving."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} if is_dataclass(self) else {}
        return {name: value for name, value in values.items() if isinstance(value, int | float | str | None)}

    def with_settings(self, settings: dict[str, Any]) -> Policy:
        """This policy with saved :meth:`settings`.

        Raises:
            PolicyError: they do not fit this policy.
        """
        if not is_dataclass(self):
            return self
        known = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in settings.items() if name in known})

    def __or__(self, other: Policy) -> AnyPolicy:
        from .combined import AnyPolicy

        return AnyPolicy((self, other)) if isinstance(other, Policy) else NotImplemented

    def __and__(self, other: Policy) -> AllPolicy:
        from .combined import AllPolicy

        return AllPolicy((self, other)) if isinstance(other, Policy) else NotImplemented

    def dial_settings(self, timesteps: int) -> Sequence[Self] | None:
        """The settings among which ``calibrate`` chooses, from early exits to late; ``None`` if there is no dial.

        Raises:
            CalibrationError: the policy is set in another way, which the message names.
        """
        return None


@dataclass(frozen=True)
class ThresholdPolicy(Policy):
    """Stop when a score of the decision logits is above a threshold.

    A subclass defines :meth:`score`; ``calibrate`` then finds threshold and temperature by itself.

    Args:
        threshold: a row stops when its score is strictly greater.
        temperature: the logits are divided by it before they are scored. ``None`` counts as 1; a wrapper settles it
            at first use, for spike counts at a value that lets the threshold be reached within its timesteps
            (:func:`~seenn_plugin.policies.temperature.reachable_temperature`).
    """

    threshold: float = 0.9
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or self.threshold != self.threshold:
            raise PolicyError(f"threshold must be a number, not {self.threshold!r}.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise PolicyError(f"temperature must be a positive finite number, not {self.temperature!r}.")

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """Score float32 logits ``[..., C]``, already divided by the temperature: float ``[...]``, higher is surer."""

    def scaled_score(self, logits: Tensor) -> Tensor:
        """:meth:`score` of the logits divided by the temperature."""
        if logits.shape[-1] < 2:
            raise PolicyError(
                f"{type(self).__name__} needs logits of at least 2 classes, not [..., {logits.shape[-1]}]; for a "
                "single "
                "output use policy='fixed', or a readout that returns one logit per class."
            )
        return self.score(logits.to(torch.promote_types(logits.dtype, torch.float32)) / (self.temperature or 1.0))

    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        score = self.scaled_score(logits)
        return Decision(score > self.threshold, score)

    def settle(self, classes: int, lead: float | None) -> Self:
        if self.temperature is not None:
            return self
        temperature = 1.0 if lead is None else reachable_temperature(self, lead, classes)
        return replace(self, temperature=temperature)


def start_rows(policy: Policy, inputs: Tensor, sequence: bool, timesteps: int, classes: int) -> Any:
    """:meth:`Policy.start`, held to the contract.

    Raises:
        PolicyError: the memory is not made of tensors with one row for each row of the input.
    """
    memory = policy.start(inputs, sequence, timesteps, classes)
    _check_memory(policy, "start", memory, inputs.shape[1 if sequence else 0])
    return memory


def consult(policy: Policy, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
    """Ask a policy, and hold its answer to the contract. NaN and infinite logits are never counted as sure.

    Raises:
        PolicyError: the decision has the wrong type, shape or dtype.
    """
    decision = policy.decide(logits, timestep, memory)
    n, name = logits.shape[0], type(policy).__name__
    if not isinstance(decision, Decision):
        raise PolicyError(f"{name}.decide must return a Decision(stop, score, memory), not {type(decision).__name__}.")
    for label, value, dtypes in (("stop", decision.stop, "bool"), ("score", decision.score, "floating point")):
        fits = isinstance(value, Tensor) and (
            value.dtype == torch.bool if dtypes == "bool" else value.is_floating_point()
        )
        if not fits or value.shape != (n,):
            seen = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PolicyError(f"{name}.decide gave {label} as {seen}; it must be a {dtypes} tensor of shape ({n},).")
    _check_memory(policy, "decide", decision.memory, n)
    finite = logits.isfinite().all(1)
    return replace(decision, stop=decision.stop & finite)


def _check_memory(policy: Policy, method: str, memory: Any, n: int) -> None:
    misfit = row_misfit(memory, n)
    if misfit:
        raise PolicyError(
            f"{type(policy).__name__}.{method} keeps memory of {misfit}; it must be tensors with {n} rows on dim 0."
        )


def exit_timesteps(policy: Policy, trace: Tensor, memory: Any = None) -> Tensor:
    """The timestep at which each row of a trace ``[T, N, C]`` stops under ``policy``: long ``[N]``.

    A row that never stops exits at T.

    Args:
        memory: what the policy knew of the rows before the first timestep (:meth:`Policy.start`).
    """
    timesteps, n = trace.shape[:2]
    exits = torch.full((n,), timesteps, dtype=torch.long, device=trace.device)
    running = torch.ones(n, dtype=torch.bool, device=trace.device)
    for t, logits in enumerate(trace, start=1):
        decision = consult(policy, logits, torch.full_like(exits, t), memory)
        memory = decision.memory
        exits[running & decision.stop] = t
        running &= ~decision.stop
    return exits
