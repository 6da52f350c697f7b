"""Fitting a policy network for each setting of the reward, from the same initial weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..._operations import count_operations
from ...policies import RLPolicy
from ...policies.networks import default_network, is_default
from ...policies.rl import FittedFor, in_evaluation_mode, policy_logits
from ...training_loop.checkpoint import Checkpoint
from ...training_loop.monitor import Monitor
from ...training_loop.run import Losses, Precision, Run
from ..traces import TraceSource, device_of
from .objectives import OBJECTIVES, first_step_weights, joint_loss, mean_entropy
from .recording import Recording, outcome, plan_all, policy_input, predictions_of, record, traced_batches
from .report import FitPoint
from .rewards import Reward
from .settings import FitSettings

_EXPLORATION_EPOCHS = 0.7
"""The fraction of the epochs after which the weight of ``exploration`` is 0."""


class Fitter:
    """Fits a policy network for each setting of the reward, on the same recordings and from the same initial weights.

    Args:
        source: computes traces where recordings do not suffice (``augmented``, ``finetune``).
        policy: supplies candidates and frames, and a custom policy network if it has one.
        loaders: training and validation data, as pairs ``(x, labels)``.
        train: the recording of the training data.
        validation: the recording of the validation data.
        settings: the options of the fit.
        monitor: shows progress.
        network_operations: multiply-accumulates of the spiking network for one row at full T.
        checkpoint: from which an interrupted fit continues.

    Attributes:
        initial_network: a custom network of the policy, or a new default network.
        policy_operations: multiply-accumulates of the policy network for one row.
        candidates: the timesteps to choose from.
    """

    def __init__(
        self,
        source: TraceSource,
        policy: RLPolicy,
        loaders: tuple[Iterable[Any], Iterable[Any]],
        train: Recording,
        validation: Recording,
        settings: FitSettings,
        monitor: Monitor,
        network_operations: int,
        checkpoint: Checkpoint,
    ) -> None:
        self.source = source
        self.train_loader, self.val_loader = loaders
        self.train = train
        self.validation = validation
        self.settings = settings
        self.monitor = monitor
        self.candidates = policy.candidates_for(train.timesteps)
        self.columns = torch.tensor(self.candidates) - 1
        self.objective = OBJECTIVES[settings.objective]
        self.weights = torch.ones(len(train))
        if settings.reweight:
            self.weights = first_step_weights(train.correct[:, self.columns[0]])
        self.device = device_of(source)
        self.precision = Precision.of(settings.amp, self.device)
        row = train.frames[:1].to(self.device)
        given = policy.network
        if given is None or is_default(given):
            given = self._default_network(row, network_operations)
        self.initial_network = given
        with in_evaluation_mode(self.initial_network):
            self.policy_operations = count_operations(
                lambda: policy_logits(self.initial_network, row, len(self.candidates))
            )
        fitted_for = FittedFor(train.timesteps, train.classes, tuple(train.frames.shape[1:]))
        self.policy = replace(policy, network=self.initial_network, fitted_for=fitted_for)
        self.checkpoint = checkpoint
        checkpoint.require(self._facts())

    def _default_network(self, row: Tensor, network_operations: int) -> nn.Module:
        torch.manual_seed(self.settings.seed)
        limit = self.settings.max_operations * network_operations
        network, _ = default_network(row.shape[1:], len(self.candidates), limit)
        return network.to(self.device, row.dtype if row.is_floating_point() else torch.float32)

    def _facts(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to be continued."""
        free = ("memory_limit", "refinements")
        return {name: value for name, value in asdict(self.settings).items() if name not in free} | {
            "candidates": list(self.candidates),
            "frames": self.policy.frames,
            "training inputs": list(self.train.frames.shape),
            "validation inputs": list(self.validation.frames.shape),
            "labels": [int(self.train.labels.sum()), int(self.validation.labels.sum())],
            "policy network": type(self.initial_network).__name__,
            "policy weights": sum(parameter.numel() for parameter in self.initial_network.parameters()),
        }

    # -- one setting of the reward --------------------------------------------------------------------------------

    def point(self, reward: Reward) -> FitPoint:
        """Fit a network for one setting of the reward, and evaluate it on the validation data."""
        network = copy.deepcopy(self.initial_network)
        finished = self.checkpoint.finished(reward.name)
        if finished is not None:
            network.load_state_dict(finished)
            return self._point_of(network, reward, self.validation)
        torch.manual_seed(self.settings.seed)
        run = self._run(reward.name, {"policy": (network, self.settings.learning_rate)}, self.settings.epochs)
        losses = self._augmented_losses if self.settings.augmented else self._recorded_losses
        with _training(network):
            run.train(
                lambda epoch: losses(network, reward, self._entropy_weight(reward, epoch)),
                self.checkpoint,
                self.monitor,
                lambda: self._scalars(network, reward),
            )
        self.checkpoint.finish(reward.name, network.state_dict())
        return self._point_of(network, reward, self.validation)

    def _run(self, name: str, trained: dict[str, tuple[nn.Module, float]], epochs: int) -> Run:
        """Return a run that trains modules with AdamW, each with its learning rate, which follows a cosine to 0."""
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr": learning_rate}
            for module, learning_rate in trained.values()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay)
        schedule = CosineAnnealingLR(optimizer, epochs)
        modules = {key: module for key, (module, _) in trained.items()}
        return Run(name, modules, optimizer, schedule, epochs, self.precision)

    def _entropy_weight(self, reward: Reward, epoch: int) -> float:
        """Return the weight of the entropy in an epoch, counted from 0."""
        deviation = float(reward(self.train.correct[:, self.columns], self.candidates).std())
        remaining = max(0.0, 1 - epoch / (_EXPLORATION_EPOCHS * self.settings.epochs))
        return self.settings.entropy_bonus + self.settings.exploration * deviation * remaining

    def _recorded_losses(self, network: nn.Module, reward: Reward, entropy_weight: float) -> Losses:
        """Yield the losses of one epoch over the recorded rows, in random order.

        A last batch of a single row is left out, because batch normalisation cannot be trained on it.
        """
        rewards = reward(self.train.correct[:, self.columns], self.candidates)
        for index in torch.randperm(len(self.train)).split(self.settings.batch_size):
            if len(index) > 1 or len(self.train) == 1:
                yield (
                    lambda index=index: self._loss(
                        network,
                        self.train.frames[index].to(self.device),
                        rewards[index].to(self.device),
                        self.weights[index].to(self.device),
                        entropy_weight,
                    ),
                    len(index),
                )

    def _augmented_losses(self, network: nn.Module, reward: Reward, entropy_weight: float) -> Losses:
        """Yield the losses of one epoch over the batches of the training loader, each with a new trace."""
        for frames, trace, labels in self._augmented_batches():
            correct = (predictions_of(trace) == labels.unsqueeze(1))[:, self.columns.to(labels.device)]
            first = correct[:, 0]
            weights = first_step_weights(first) if self.settings.reweight else torch.ones_like(first).float()
            rewards = reward(correct, self.candidates)
            yield lambda f=frames, r=rewards, w=weights: self._loss(network, f, r, w, entropy_weight), len(labels)

    @torch.no_grad()
    def _augmented_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, trace, labels in traced_batches(self.source, self.train_loader, False, "traces"):
            yield policy_input(self.source, self.policy, x), trace, labels

    def _loss(
        self, network: nn.Module, frames: Tensor, rewards: Tensor, weights: Tensor, entropy_weight: float
    ) -> Tensor:
        logits = policy_logits(network, frames, len(self.candidates))
        return self.objective(logits, rewards, weights) - entropy_weight * mean_entropy(logits)

    # -- fine-tuning ----------------------------------------------------------------------------------------------

    def finetuned(self, chosen: FitPoint) -> FitPoint:
        """Train the spiking network and the policy network together, starting from a fitted policy.

        The weights of the spiking network are changed in place. If an exception is raised they are restored.
        """
        model, network = self.source.model, copy.deepcopy(chosen.policy.network)
        assert network is not None
        initial_state = copy.deepcopy(model.state_dict())
        name = f"finetune {chosen.reward.name}"
        try:
            finished = self.checkpoint.finished(name)
            if finished is not None:
                network.load_state_dict(finished["policy"])
                model.load_state_dict(finished["model"])
            else:
                self._finetune(name, model, network, chosen.reward)
            limit, progress = self.settings.memory_limit, self.monitor.progress
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                title = "validation traces, fine-tuned"
                recording = record(self.source, self.policy, self.val_loader, progress, title, limit, Path(folder))
                return self._point_of(network, chosen.reward, recording)
        except BaseException:
            model.load_state_dict(initial_state)
            raise

    def _finetune(self, name: str, model: nn.Module, network: nn.Module, reward: Reward) -> None:
        torch.manual_seed(self.settings.seed)
        trained = {
            "policy": (network, self.settings.learning_rate),
            "model": (model, self.settings.finetune_learning_rate),
        }
        run = self._run(name, trained, self.settings.finetune_epochs)
        with _training(network):
            run.train(lambda epoch: self._joint_losses(network, reward), self.checkpoint, self.monitor, dict)
        self.checkpoint.finish(name, {"policy": network.state_dict(), "model": model.state_dict()})

    def _joint_losses(self, network: nn.Module, reward: Reward) -> Losses:
        for x, trace, labels in traced_batches(self.source, self.train_loader, False, "fine-tune"):
            frames = policy_input(self.source, self.policy, x)
            yield lambda f=frames, t=trace, y=labels: self._joint_loss(network, reward, f, t, y), len(labels)

    def _joint_loss(self, network: nn.Module, reward: Reward, frames: Tensor, trace: Tensor, labels: Tensor) -> Tensor:
        columns = self.columns.to(labels.device)
        rewards = reward((predictions_of(trace.detach()) == labels.unsqueeze(1))[:, columns], self.candidates)
        entropy = torch.stack([cross_entropy(logits, labels, reduction="none") for logits in trace[columns]], 1)
        logits = policy_logits(network, frames, len(self.candidates))
        return joint_loss(self.objective, logits, rewards, torch.ones_like(entropy[:, 0]), entropy)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def _point_of(self, network: nn.Module, reward: Reward, recording: Recording) -> FitPoint:
        policy = replace(self.policy, network=network)
        exits, correct = outcome(plan_all(policy, recording), recording)
        return FitPoint(
            policy=policy,
            accuracy=float(correct.double().mean()),
            mean_timesteps=float(exits.double().mean()),
            reward=reward,
            histogram=tuple(torch.bincount(exits - 1, minlength=recording.timesteps).tolist()),
        )

    def _scalars(self, network: nn.Module, reward: Reward) -> dict[str, float]:
        if not self.monitor.writes:
            return {}
        point = self._point_of(network, reward, self.validation)
        return {"validation/accuracy": point.accuracy, "validation/mean_timesteps": point.mean_timesteps}


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Put a network in training mode; afterwards it is in evaluation mode."""
    network.train()
    try:
        yield
    finally:
        network.eval()
