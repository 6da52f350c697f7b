"""Fitting a policy: record traces, fit a network for each setting of the dial, choose one for the target."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CalibrationError, PolicyError
from ..operations import count_operations
from ..policies import RLPolicy
from ..policies.networks import is_default
from ..training.monitor import Monitor
from .fitter import Fitter, device_of
from .recording import Recording, record
from .report import FitPoint, PolicyFit
from .rewards import REWARDS
from .search import Target, search
from .settings import FitSettings

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper


def fit_policy(
    snn: EarlyExitWrapper,
    policy: RLPolicy,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    settings: FitSettings,
    *,
    max_accuracy_drop: float | None = None,
    average_timesteps: float | None = None,
    beta: float | None = None,
    step_cost: float | None = None,
    progress: bool = False,
    log_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> PolicyFit:
    """Fit a policy network; see :meth:`EarlyExitWrapper.fit_policy`."""
    kind = REWARDS[settings.cost]
    dials = {"beta": beta, "step_cost": step_cost}
    fixed = dials.pop(kind.dial_name)
    foreign = [name for name, value in dials.items() if value is not None]
    if foreign:
        raise PolicyError(f"cost={settings.cost!r} has the dial {kind.dial_name}, not {foreign[0]}.")
    if sum(target is not None for target in (fixed, average_timesteps, max_accuracy_drop)) != 1:
        raise PolicyError(
            f"give one target: max_accuracy_drop=..., average_timesteps=..., or the dial itself, {kind.dial_name}=..."
        )
    reward = None if fixed is None else kind(fixed)  # before the work: it is cheap to get wrong
    monitor = Monitor("policy", progress, log_dir)
    device = device_of(snn)
    with (
        torch.enable_grad(),
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(settings.seed)
        train = record(snn, policy, train_loader, progress, "training traces", settings.memory_limit, Path(folder))
        validation = record(snn, policy, val_loader, progress, "validation traces", settings.memory_limit, Path(folder))
        _check(train, validation, policy)
        network_operations = count_operations(lambda: snn.trace(validation.example.to(device)))
        loaders = train_loader, val_loader
        fitter = Fitter(snn, policy, loaders, train, validation, settings, monitor, network_operations, checkpoint)
        _warn_if_costly(fitter, network_operations)
        wanted = Target(max_accuracy_drop, average_timesteps, validation.accuracy[-1])
        if reward is not None:
            points = [fitter.point(reward)]
            chosen, target = points[0], reward.name
        else:
            accuracy = [train.accuracy[t - 1] for t in fitter.candidates]
            dials_tried = kind.dials(accuracy, fitter.candidates)
            points = search(fitter.point, dials_tried, wanted, settings.refinements)
            chosen, target = wanted.best(points), str(wanted)
        finetuned = fitter.finetuned(chosen) if settings.finetune else None
        if finetuned is not None and reward is None and not wanted.is_met(finetuned):
            _warn(
                f"after fine-tuning the target, {target}, is missed: {100 * finetuned.accuracy:.2f} % at "
                f"{finetuned.mean_timesteps:.3f} mean timesteps. Fine-tune for less long, or not at all."
            )
    _warn_if_collapsed(finetuned or chosen)
    return PolicyFit(
        chosen=chosen,
        frontier=tuple(sorted(points, key=lambda point: (point.mean_timesteps, point.accuracy))),
        full_accuracy=wanted.full_accuracy,
        target=target,
        samples=len(validation),
        policy_operations=fitter.policy_operations,
        network_operations=network_operations,
        settings=settings,
        finetuned=finetuned,
    )


def _check(train: Recording, validation: Recording, policy: RLPolicy) -> None:
    """Raise a CalibrationError if nothing can be learnt, or nothing be told, from the recordings."""
    one_row = [(tuple(r.frames.shape[1:]), r.timesteps, r.classes) for r in (train, validation)]
    if one_row[0] != one_row[1]:
        raise CalibrationError(
            f"the loaders differ in the shape of a row, T or the classes: {one_row[0]} for training, {one_row[1]} for "
            "validation."
        )
    classes = validation.labels.unique()
    if classes.numel() < 2:
        raise CalibrationError(
            f"all {len(validation)} validation samples are of class {int(classes[0])}: neither accuracy nor time on "
            "one class says anything of the others; shuffle before splitting."
        )
    columns = torch.tensor(policy.candidates_for(train.timesteps)) - 1
    for name, recording in (("training", train), ("validation", validation)):
        if not bool(recording.right[:, columns].any()):
            raise CalibrationError(
                f"the spiking network is wrong on all {len(recording)} {name} samples at every candidate timestep: no "
                "choice is better than another. Are these its labels, and its weights?"
            )


def _warn_if_costly(fitter: Fitter, network_operations: int) -> None:
    share, allowed = fitter.policy_operations / max(network_operations, 1), fitter.settings.max_operations
    if is_default(fitter.first) and share > allowed:
        _warn(
            f"the smallest policy network takes {100 * share:.1f} % of the operations of the spiking network at full "
            f"T, more than the {100 * allowed:g} % that max_operations allows: a network as cheap as this one gains "
            "more from policy='confidence'."
        )


def _warn_if_collapsed(point: FitPoint) -> None:
    if point.collapsed_to is not None:
        _warn(
            f"the policy has collapsed: it lets every validation sample take {point.collapsed_to} timesteps, as "
            f"FixedPolicy({point.collapsed_to}) does at no cost. Try another target, entropy_bonus=0.01, more epochs, "
            "or training samples that the spiking network has not seen: on those that it has learnt by heart there is "
            "nothing to choose."
        )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
