"""SEENN-II: a small network looks at the input once and chooses the timesteps of every row (arXiv 2304.01230)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, PolicyError
from .networks import build_network, is_default
from .planned import Plan, PlanPolicy


@dataclass(frozen=True)
class FittedFor:
    """What a policy network was fitted for: on anything else its plans mean nothing.

    Attributes:
        timesteps: T, the most timesteps that a row may take.
        classes: C, the number of decision logits.
        row_shape: the shape of what the network sees of one row.
    """

    timesteps: int
    classes: int
    row_shape: tuple[int, ...]


@dataclass(frozen=True)
class RLPolicy(PlanPolicy):
    """SEENN-II: a policy network sees the input once; a row takes the candidate with the largest policy logit.

    The score is the probability that the network gives to its choice. A row for which its logits are NaN or infinite is
    planned to take all T timesteps.

    Args:
        network: maps ``[n, ...]`` to policy logits ``[n, len(candidates)]``. By default ``fit_policy`` makes one that
            suits the input.
        candidates: the timesteps to choose among, rising; by default all from ``frames`` to T.
        frames: the number of timesteps of a sequence that the network sees, joined on the first dimension after that of
            the rows: ``[n, frames * C, ...]``. No row can leave earlier.
        fitted_for: what ``fit_policy`` fitted the network for; use on anything else is refused.
    """

    network: nn.Module | None = field(default=None, repr=False)
    candidates: tuple[int, ...] | None = None
    frames: int = 1
    fitted_for: FittedFor | None = None

    def __post_init__(self) -> None:
        if self.network is not None and not isinstance(self.network, nn.Module):
            raise PolicyError(f"the policy network must be a torch.nn.Module, not {type(self.network).__name__}.")
        if not _is_count(self.frames):
            raise PolicyError(f"frames must be an integer of at least 1, not {self.frames!r}.")
        if self.candidates is None:
            return
        candidates = tuple(self.candidates)
        if not candidates or not all(map(_is_count, candidates)) or list(candidates) != sorted(set(candidates)):
            raise PolicyError(f"candidates must be rising integers of at least 1, not {self.candidates!r}.")
        if candidates[0] < self.frames:
            raise PolicyError(
                f"candidate {candidates[0]} is earlier than the {self.frames} frames that the policy network sees."
            )
        object.__setattr__(self, "candidates", candidates)

    def candidates_for(self, timesteps: int) -> tuple[int, ...]:
        """The timesteps to choose among on a network that makes at most ``timesteps``.

        Raises:
            PolicyError: they do not fit.
        """
        candidates = self.candidates or tuple(range(self.frames, timesteps + 1))
        if not candidates or candidates[-1] > timesteps:
            raise PolicyError(
                f"the policy's candidates {candidates or f'from {self.frames} on'} lie beyond T={timesteps}."
            )
        return candidates

    def start(self, inputs: Tensor, sequence: bool, timesteps: int, classes: int) -> Plan:
        if self.network is None:
            raise PolicyError(
                "the rl policy has no network yet: call fit_policy(train_loader, val_loader, ...) first, or give one: "
                "policy=RLPolicy.load(folder) or RLPolicy(network)."
            )
        if self.fitted_for is not None:
            for what, fitted, found in (
                ("T={}", self.fitted_for.timesteps, timesteps),
                ("{} classes", self.fitted_for.classes, classes),
            ):
                if fitted != found:
                    raise PolicyError(
                        f"this policy was fitted for {what.format(fitted)}, and the network here has "
                        f"{what.format(found)}; fit one for it: fit_policy(...)."
                    )
        return super().start(inputs, sequence, timesteps, classes)

    @torch.no_grad()
    def plan(self, frames: Tensor, timesteps: int) -> Plan:
        assert self.network is not None
        if self.fitted_for is not None and tuple(frames.shape[1:]) != self.fitted_for.row_shape:
            raise PolicyError(
                f"this policy was fitted for inputs of shape {self.fitted_for.row_shape}, not "
                f"{tuple(frames.shape[1:])}; fit one for them: fit_policy(...)."
            )
        candidates = self.candidates_for(timesteps)
        with in_evaluation_mode(self.network):
            logits = policy_logits(self.network, frames, len(candidates))
        chosen = logits.softmax(1).max(1)
        planned = torch.tensor(candidates, device=frames.device)[chosen.indices]
        unsure = ~logits.isfinite().all(1)
        if bool(unsure.any()):
            warnings.warn(
                f"{int(unsure.sum())} of {len(frames)} rows had NaN or infinite policy logits; they were planned to "
                f"take all {timesteps} timesteps. Look for bad values in the input or in the policy network.",
                RuntimeWarning,
                stacklevel=2,
            )
        return Plan(planned.masked_fill(unsure, timesteps), chosen.values.masked_fill(unsure, 0.0))

    def dial_settings(self, timesteps: int) -> Sequence[Self] | None:
        raise CalibrationError(
            "the rl policy is fitted, not calibrated: fit_policy(train_loader, val_loader, max_accuracy_drop=...) or "
            "average_timesteps=...; its frontier is then in .policy_fit."
        )

    # -- saving ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Everything but the weights, in plain values."""
        return {
            "candidates": None if self.candidates is None else list(self.candidates),
            "frames": self.frames,
            "fitted_for": None
            if self.fitted_for is None
            else {**asdict(self.fitted_for), "row_shape": list(self.fitted_for.row_shape)},
            "architecture": self.network.architecture
            if self.network is not None and is_default(self.network)
            else None,
            "has_network": self.network is not None,
        }

    def with_settings(self, settings: dict[str, Any]) -> Self:
        """This policy with saved settings, and with a fresh default network if it has none of its own.

        Raises:
            PolicyError: the saved policy has a network of the caller's own, and this one has none; or a network where
                the saved one has none.
        """
        fitted_for = settings["fitted_for"]
        network = self.network
        if network is None and settings["has_network"]:
            if settings["architecture"] is None:
                raise PolicyError("the saved policy has a network of your own: give it, RLPolicy(network=...).")
            network = build_network(settings["architecture"])
        elif network is not None and not settings["has_network"]:
            raise PolicyError("the saved policy has no network, and this one has: it was saved before fit_policy.")
        return replace(
            self,
            network=network,
            candidates=settings["candidates"] and tuple(settings["candidates"]),
            frames=settings["frames"],
            fitted_for=fitted_for and FittedFor(**{**fitted_for, "row_shape": tuple(fitted_for["row_shape"])}),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``policy.json`` and ``policy.safetensors`` to a folder, which is made if it is missing.

        Raises:
            PolicyError: there is no network to save.
            OptionalDependencyError: safetensors is not installed.
        """
        from .saving import save

        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, network: nn.Module | None = None) -> Self:
        """A policy that :meth:`save` has written, on the CPU.

        Args:
            network: where the policy was saved with a network of your own: another instance of it.

        Raises:
            PolicyError: the folder holds no such policy, or its weights do not fit the network.
            OptionalDependencyError: safetensors is not installed.
        """
        from .saving import load

        return load(cls(network), Path(folder))


def policy_logits(network: nn.Module, frames: Tensor, candidates: int) -> Tensor:
    """Ask a policy network, and hold its answer to the contract.

    Args:
        frames: ``[n, ...]``; floats are converted to the network's dtype.
        candidates: the number of logits wanted.

    Returns:
        Policy logits ``[n, candidates]``, at least float32.

    Raises:
        PolicyError: the network is on another device, or its answer has the wrong type, dtype or shape.
    """
    weight = next((p for p in network.parameters() if p.is_floating_point()), None)
    if weight is not None:
        if weight.device != frames.device:
            raise PolicyError(
                f"the policy network is on {weight.device} and the input on {frames.device}; move it with the "
                f"wrapper: snn.to({str(frames.device)!r})."
            )
        if frames.is_floating_point() or is_default(network):
            frames = frames.to(weight.dtype)
    logits = network(frames)
    wanted = (frames.shape[0], candidates)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or tuple(logits.shape) != wanted:
        seen = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise PolicyError(
            f"the policy network {type(network).__name__} gave {seen}; it must give floating point logits {wanted}, "
            "one for each row and candidate."
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Lend a network evaluation mode; afterwards every module has its own mode again."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
