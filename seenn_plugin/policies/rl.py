"""SEENN-II: a small network chooses the number of timesteps of every row from its input (arXiv 2304.01230)."""

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
from ..inputs import InputBatch
from .networks import build_network, is_default
from .planned import Plan, PlanPolicy
from .saving import load, save


@dataclass(frozen=True)
class FittedFor:
    """The task for which a policy network was fitted. The policy refuses any other.

    Attributes:
        timesteps: T, the largest number of timesteps of a row.
        classes: C, the number of decision logits.
        row_shape: the shape of the policy network's input for one row.
    """

    timesteps: int
    classes: int
    row_shape: tuple[int, ...]


@dataclass(frozen=True)
class RLPolicy(PlanPolicy):
    """SEENN-II: a policy network plans the exit of each row from its input (arXiv 2304.01230).

    A row exits at the candidate timestep with the largest policy logit. The score is the softmax probability of that
    candidate. A row whose policy logits are NaN or infinite is planned to run all T timesteps, with score 0 and a
    ``RuntimeWarning``.

    Args:
        network: maps ``[n, ...]`` to policy logits ``[n, len(candidates)]``. ``None``: ``fit_policy`` builds a default
            network for the input.
        candidates: the timesteps to choose from, increasing; by default all from ``frames`` to T.
        frames: the number of frames of a sequence that the network receives, concatenated on the dimension after that
            of the rows: ``[n, frames * C, ...]``. No row can exit earlier.
        fitted_for: the task for which ``fit_policy`` fitted the network.

    Raises:
        PolicyError: the network is no module, or ``candidates`` or ``frames`` are invalid.

    Example:
        >>> network = nn.Linear(4, 2)
        >>> policy = RLPolicy(network, candidates=(1, 4))
        >>> with torch.no_grad():
        ...     _ = network.weight.zero_(), network.bias.copy_(torch.tensor([2.0, 0.0]))
        >>> policy.plan(torch.rand(3, 4), timesteps=4).timesteps
        tensor([1, 1, 1])
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
            raise PolicyError(f"candidates must be increasing integers of at least 1, not {self.candidates!r}.")
        if candidates[0] < self.frames:
            raise PolicyError(
                f"candidate {candidates[0]} is earlier than the {self.frames} frames that the policy network receives; "
                f"start the candidates at {self.frames}, or lower frames."
            )
        object.__setattr__(self, "candidates", candidates)

    def candidates_for(self, timesteps: int) -> tuple[int, ...]:
        """Return the candidate timesteps for a network that runs at most ``timesteps``.

        Raises:
            PolicyError: a candidate is later than ``timesteps``.
        """
        candidates = self.candidates or tuple(range(self.frames, timesteps + 1))
        if not candidates or candidates[-1] > timesteps:
            raise PolicyError(
                f"the policy's candidates {candidates or f'from {self.frames} on'} lie beyond T={timesteps}; give "
                "candidates of at most T."
            )
        return candidates

    def start(self, inputs: InputBatch, timesteps: int, classes: int) -> Plan:
        """Return the plan of ``n`` rows; see :meth:`PlanPolicy.start`.

        Raises:
            PolicyError: there is no network, or it was fitted for another T, other classes or another input shape.
        """
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
                        f"this policy was fitted for {what.format(fitted)}, and this network has "
                        f"{what.format(found)}; fit a policy for it: fit_policy(...)."
                    )
        return super().start(inputs, timesteps, classes)

    @torch.no_grad()
    def plan(self, frames: Tensor, timesteps: int) -> Plan:
        assert self.network is not None
        if self.fitted_for is not None and tuple(frames.shape[1:]) != self.fitted_for.row_shape:
            raise PolicyError(
                f"this policy was fitted for inputs of shape {self.fitted_for.row_shape}, not "
                f"{tuple(frames.shape[1:])}; fit a policy for them: fit_policy(...)."
            )
        candidates = self.candidates_for(timesteps)
        with in_evaluation_mode(self.network):
            logits = policy_logits(self.network, frames, len(candidates))
        chosen = logits.softmax(1).max(1)
        planned = torch.tensor(candidates, device=frames.device)[chosen.indices]
        nonfinite_rows = ~logits.isfinite().all(1)
        if bool(nonfinite_rows.any()):
            warnings.warn(
                f"{int(nonfinite_rows.sum())} of {len(frames)} rows had NaN or infinite policy logits; they are "
                f"planned to run all {timesteps} timesteps. Check the input and the weights of the policy network.",
                RuntimeWarning,
                stacklevel=2,
            )
        return Plan(planned.masked_fill(nonfinite_rows, timesteps), chosen.values.masked_fill(nonfinite_rows, 0.0))

    def candidate_settings(self, timesteps: int) -> Sequence[Self] | None:
        raise CalibrationError(
            "the rl policy is fitted, not calibrated: fit_policy(train_loader, val_loader, max_accuracy_drop=...) or "
            "average_timesteps=...; the settings that were tried are then in .policy_fit.frontier."
        )

    # -- saving ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return everything but the weights, as values that JSON can hold."""
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
        """Return a copy of this policy with saved settings.

        If this policy has no network and the saved policy had a default one, the copy has a new network of the same
        architecture, whose weights are still to be loaded.

        Raises:
            PolicyError: the saved policy had a custom network and this one has none, or this one has a network and the
                saved policy had none.
        """
        fitted_for = settings["fitted_for"]
        network = self.network
        if network is None and settings["has_network"]:
            if settings["architecture"] is None:
                raise PolicyError(
                    "the saved policy has a custom network; pass an instance of it: RLPolicy(network=...)."
                )
            network = build_network(settings["architecture"])
        elif network is not None and not settings["has_network"]:
            raise PolicyError("the saved policy has no network, and this one has: it was saved before fit_policy().")
        return replace(
            self,
            network=network,
            candidates=settings["candidates"] and tuple(settings["candidates"]),
            frames=settings["frames"],
            fitted_for=fitted_for and FittedFor(**{**fitted_for, "row_shape": tuple(fitted_for["row_shape"])}),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``policy.json`` and ``policy.safetensors``.

        Args:
            folder: created if it does not exist.

        Raises:
            PolicyError: there is no network to save.
            InputError: the folder cannot be written to.
            OptionalDependencyError: safetensors is not installed.
        """
        save(self, self.network, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, network: nn.Module | None = None) -> Self:
        """Load a policy that :meth:`save` has written; its network is on the CPU.

        Args:
            folder: the folder that it was saved to.
            network: for a policy with a custom network, an instance of that network, which receives the weights.

        Raises:
            PolicyError: the folder contains no such policy, or its weights do not fit the network.
            OptionalDependencyError: safetensors is not installed.
        """
        return load(cls(network), Path(folder))


def policy_logits(network: nn.Module, frames: Tensor, candidates: int) -> Tensor:
    """Run a policy network, and check its output.

    Args:
        network: the policy network.
        frames: ``[n, ...]``. Floating point input is converted to the dtype of the network's weights; a default network
            also accepts integers.
        candidates: the number of candidate timesteps.

    Returns:
        Policy logits ``[n, candidates]``, at least float32.

    Raises:
        PolicyError: the network is on another device, or its output has the wrong type, dtype or shape.
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
    expected = (frames.shape[0], candidates)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or tuple(logits.shape) != expected:
        seen = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise PolicyError(
            f"the policy network {type(network).__name__} returned {seen}; it must return floating point logits "
            f"of shape {expected}, one for each row and candidate."
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode; afterwards each module has its previous mode again."""
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
