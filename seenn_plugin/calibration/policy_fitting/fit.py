"""Fitting a policy: record traces, fit a network for each setting of the reward, choose the one for a target."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..._arguments import check, loader_mistake, target_mistakes
from ..._files import locked
from ..._operations import count_operations
from ...errors import CalibrationError, PolicyError
from ...policies import RLPolicy
from ...policies.networks import is_default
from ...training_loop.checkpoint import Checkpoint
from ...training_loop.monitor import Monitor
from ..traces import TraceSource, device_of
from .fitter import Fitter
from .recording import Recording, record
from .report import FitPoint, PolicyFit
from .rewards import REWARDS
from .search import Target, search
from .settings import FitSettings


def fit_policy(
    source: TraceSource,
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
    """Fit a policy network for one of two targets, or for a given parameter of the reward.

    Exactly one of ``max_accuracy_drop``, ``average_timesteps``, ``beta`` and ``step_cost`` is given.

    Args:
        source: computes the traces of the spiking network, which is not trained unless ``settings.finetune`` is set.
        policy: supplies candidates and frames, and a custom policy network if it has one; that network is copied.
        train_loader: yields pairs ``(x, labels)`` with labels ``[N]``, preferably of samples that the spiking network
            was not trained on.
        val_loader: yields pairs ``(x, labels)`` of other samples, on which the setting is chosen.
        settings: the options of the fit.
        max_accuracy_drop: target: the fewest mean timesteps with an accuracy at most this much (a fraction) below that
            at full T.
        average_timesteps: target: the highest accuracy with at most this many mean timesteps.
        beta: the parameter of the reward for ``cost="exponential"``.
        step_cost: the parameter of the reward for ``cost="linear"``.
        progress: whether to show progress bars.
        log_dir: a folder for TensorBoard scalars, with one run for each setting of the reward.
        checkpoint: a file from which an interrupted fit continues with the same result. One process at a time can use
            it.

    Returns:
        The chosen policy, and the results of all settings that were fitted.

    Raises:
        PolicyError: not exactly one target is given or it is out of range, an option is invalid, the parameter belongs
            to another cost, or the policy network is invalid.
        CalibrationError: the data cannot be used, or no policy meets the target.
        InputError: the checkpoint is of another fit, damaged, in use by another process, or cannot be written.
        TrainingError: the loss of an epoch is NaN or infinite.
        OptionalDependencyError: ``log_dir`` is given and TensorBoard is not installed.

    Warns:
        RuntimeWarning: the policy gives all validation samples the same exit, the default policy network exceeds
            ``max_operations``, or fine-tuning misses the target.
    """
    settings.check()
    kind = REWARDS[settings.cost]
    parameters = {"beta": beta, "step_cost": step_cost}
    given = parameters.pop(kind.parameter)
    foreign = [name for name, value in parameters.items() if value is not None]
    if foreign:
        raise PolicyError(f"cost={settings.cost!r} has the parameter {kind.parameter}, not {foreign[0]}.")
    if sum(target is not None for target in (given, average_timesteps, max_accuracy_drop)) != 1:
        raise PolicyError(
            "give exactly one target: max_accuracy_drop=..., average_timesteps=..., or the parameter of the reward, "
            f"{kind.parameter}=..."
        )
    reward = None if given is None else kind(given)  # checks the value before the expensive work
    check(PolicyError, *target_mistakes(max_accuracy_drop, average_timesteps))
    check(CalibrationError, loader_mistake("train_loader", train_loader), loader_mistake("val_loader", val_loader))
    _check_rereading(train_loader, val_loader, settings)
    monitor = Monitor("policy", progress, log_dir)
    device = device_of(source)
    with (
        locked(checkpoint),
        torch.enable_grad(),
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        saved = Checkpoint(checkpoint)
        torch.manual_seed(settings.seed)
        train, validation = (
            record(source, policy, loader, progress, f"{name} traces", settings.memory_limit, Path(folder))
            for loader, name in ((train_loader, "training"), (val_loader, "validation"))
        )
        _check(train, validation, policy)
        network_operations = count_operations(lambda: source.trace(validation.example.to(device)))
        loaders = train_loader, val_loader
        fitter = Fitter(source, policy, loaders, train, validation, settings, monitor, network_operations, saved)
        _warn_if_costly(fitter, network_operations)
        goal = Target(max_accuracy_drop, average_timesteps, validation.accuracy[-1])
        if reward is not None:
            points = [fitter.point(reward)]
            chosen, target = points[0], reward.name
        else:
            accuracy = [train.accuracy[t - 1] for t in fitter.candidates]
            points = search(fitter.point, kind.grid(accuracy, fitter.candidates), goal, settings.refinements)
            chosen, target = goal.best(points), str(goal)
        finetuned = fitter.finetuned(chosen) if settings.finetune else None
        if finetuned is not None and reward is None and not goal.is_met(finetuned):
            _warn(
                f"after fine-tuning the target, {target}, is missed: {100 * finetuned.accuracy:.2f} % at "
                f"{finetuned.mean_timesteps:.3f} mean timesteps. Lower finetune_epochs or finetune_learning_rate, or "
                "set finetune=False."
            )
    _warn_if_collapsed(finetuned or chosen)
    return PolicyFit(
        chosen=chosen,
        frontier=tuple(sorted(points, key=lambda point: (point.mean_timesteps, point.accuracy))),
        full_accuracy=goal.full_accuracy,
        target=target,
        samples=len(validation),
        policy_operations=fitter.policy_operations,
        network_operations=network_operations,
        settings=settings,
        finetuned=finetuned,
    )


def _check_rereading(train_loader: Iterable[Any], val_loader: Iterable[Any], settings: FitSettings) -> None:
    """Raise a CalibrationError if a loader that is read more than once can be read only once."""
    again = {"train_loader": settings.augmented or settings.finetune, "val_loader": settings.finetune}
    for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
        if again[name] and isinstance(loader, Iterator):
            raise CalibrationError(
                f"{name} is read more than once, and a {type(loader).__name__} yields nothing when it is iterated "
                "again: give a list or a DataLoader."
            )


def _check(train: Recording, validation: Recording, policy: RLPolicy) -> None:
    """Raise a CalibrationError if no policy can be fitted or evaluated on the recordings."""
    layouts = [(tuple(r.frames.shape[1:]), r.timesteps, r.classes) for r in (train, validation)]
    if layouts[0] != layouts[1]:
        raise CalibrationError(
            "the loaders differ in the shape of a row, T or the number of classes: "
            f"{layouts[0]} for training, {layouts[1]} for validation."
        )
    classes = validation.labels.unique()
    if classes.numel() < 2:
        raise CalibrationError(
            f"all {len(validation)} validation samples are of class {int(classes[0])}: accuracy and timesteps on "
            "one class do not represent the others; shuffle the data before splitting them."
        )
    columns = torch.tensor(policy.candidates_for(train.timesteps)) - 1
    for name, recording in (("training", train), ("validation", validation)):
        if not bool(recording.correct[:, columns].any()):
            raise CalibrationError(
                f"the spiking network is wrong on all {len(recording)} {name} samples at every candidate timestep, so "
                "that no choice is better than another. Check the labels, and the weights of the network."
            )


def _warn_if_costly(fitter: Fitter, network_operations: int) -> None:
    share, allowed = fitter.policy_operations / max(network_operations, 1), fitter.settings.max_operations
    if is_default(fitter.initial_network) and share > allowed:
        _warn(
            f"the smallest policy network takes {100 * share:.1f} % of the operations of the spiking network at full "
            f"T, more than the {100 * allowed:g} % that max_operations allows. For a network this small, "
            "policy='confidence' saves more."
        )


def _warn_if_collapsed(point: FitPoint) -> None:
    if point.collapsed_to is not None:
        _warn(
            f"the policy has collapsed: it plans {point.collapsed_to} timesteps for every validation sample, as "
            f"FixedPolicy({point.collapsed_to}) does without a policy network. Try another target, entropy_bonus=0.01, "
            "more epochs, or training samples that the spiking network was not trained on: where it is always correct, "
            "there is nothing to learn."
        )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
