"""Fitting one network after the other, on the same recordings, from the same first weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..operations import count_operations
from ..policies import RLPolicy
from ..policies.networks import default_network
from ..policies.rl import FittedFor, in_evaluation_mode, policy_logits
from .checkpoint import Checkpoint
from .monitor import Monitor
from .objectives import OBJECTIVES, first_step_weights, joint_loss, mean_entropy
from .recording import Recording, answers_of, observe, outcome, record, seen
from .report import FitPoint
from .rewards import Reward
from .run import Losses, Precision, Run
from .settings import FitSettings

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper

_PLANNED_AT_A_TIME = 1024


class Fitter:
    """One network after the other, on the same recordings, from the same first weights."""

    def __init__(
        self,
        snn: EarlyExitWrapper,
        policy: RLPolicy,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        train: Recording,
        validation: Recording,
        settings: FitSettings,
        monitor: Monitor,
        device: torch.device,
    ) -> None:
        self.snn = snn
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.train = train
        self.validation = validation
        self.settings = settings
        self.monitor = monitor
        self.device = device
        self.candidates = policy.candidates_for(train.timesteps)
        self.columns = torch.tensor(self.candidates) - 1
        self.policy = replace(
            policy,
            candidates=self.candidates,
            fitted_for=FittedFor(train.timesteps, train.classes, tuple(train.frames.shape[1:])),
        )
        self.objective = OBJECTIVES[settings.objective]
        self.weights = torch.ones(len(train))
        if settings.reweight:
            self.weights = first_step_weights(train.right[:, self.columns[0]])
        self.precision = Precision.of(settings.amp, device)

    def prepare(self, network_operations: int, checkpoint: str | Path | None) -> None:
        """The first weights, what they cost, and the checkpoint."""
        torch.manual_seed(self.settings.seed)
        row = self.train.frames[:1].to(self.device)
        self.made_network = self.policy.network is None
        if self.policy.network is not None:
            self.first = self.policy.network
        else:
            limit = self.settings.max_operations * network_operations
            self.first, _ = default_network(row.shape[1:], len(self.candidates), limit)
            self.first.to(self.device, row.dtype if row.is_floating_point() else torch.float32)
        with in_evaluation_mode(self.first):
            self.policy_operations = count_operations(lambda: policy_logits(self.first, row, len(self.candidates)))
        facts = {name: value for name, value in asdict(self.settings).items() if name != "memory_limit"}
        facts |= {
            "candidates": list(self.candidates),
            "frames": self.policy.frames,
            "inputs": list(self.train.frames.shape),
            "labels": [int(self.train.labels.sum()), int(self.validation.labels.sum())],
            "validation samples": len(self.validation),
            "weights": sum(p.numel() for p in self.first.parameters()),
        }
        self.checkpoint = Checkpoint(checkpoint, facts)

    # -- one setting of the dial ----------------------------------------------------------------------------------

    def point(self, reward: Reward) -> FitPoint:
        """Fit a network for one reward, and see what it does on the validation data."""
        network = copy.deepcopy(self.first)
        finished = self.checkpoint.finished(reward.name)
        if finished is not None:
            network.load_state_dict(finished)
            return self._point_of(network, reward, self.validation)
        torch.manual_seed(self.settings.seed)
        run = Run(
            reward.name,
            {"policy": network},
            {"policy": self.settings.learning_rate},
            self.settings.weight_decay,
            self.settings.epochs,
            self.precision,
        )
        losses = self._live_losses if self.settings.augmented else self._recorded_losses
        with _training(network):
            run.train(
                lambda: losses(network, reward),
                self.checkpoint,
                self.monitor,
                lambda: self._scalars(network, reward),
            )
        self.checkpoint.finish(reward.name, network.state_dict())
        return self._point_of(network, reward, self.validation)

    def _recorded_losses(self, network: nn.Module, reward: Reward) -> Losses:
        """All recorded rows once, in random order. A last batch of one row, which cannot be normalised, is left out."""
        rewards = reward(self.train.right[:, self.columns], self.candidates)
        for index in torch.randperm(len(self.train)).split(self.settings.batch_size):
            if len(index) > 1 or len(self.train) == 1:
                yield (
                    lambda index=index: self._loss(
                        network,
                        self.train.frames[index].to(self.device),
                        rewards[index].to(self.device),
                        self.weights[index].to(self.device),
                    ),
                    len(index),
                )

    def _live_losses(self, network: nn.Module, reward: Reward) -> Losses:
        """Every batch of the loader, with a new trace."""
        for frames, trace, labels in self._live_batches():
            right = (answers_of(trace) == labels.unsqueeze(1))[:, self.columns.to(labels.device)]
            weights = (
                first_step_weights(right[:, 0]) if self.settings.reweight else torch.ones_like(right[:, 0]).float()
            )
            rewards = reward(right, self.candidates)
            yield lambda f=frames, r=rewards, w=weights: self._loss(network, f, r, w), len(labels)

    @torch.no_grad()
    def _live_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, trace, labels in observe(self.snn, self.train_loader, False, "traces"):
            yield seen(self.snn, self.policy, x), trace, labels

    def _loss(self, network: nn.Module, frames: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
        logits = policy_logits(network, frames, len(self.candidates))
        loss = self.objective(logits, rewards, weights)
        if self.settings.entropy_bonus:
            loss = loss - self.settings.entropy_bonus * mean_entropy(logits)
        return loss

    # -- fine-tuning ----------------------------------------------------------------------------------------------

    def finetuned(self, chosen: FitPoint) -> FitPoint:
        """Train spiking network and policy together, starting from a fitted policy.

        An interruption gives the spiking network its weights back.
        """
        model, network = self.snn.model, copy.deepcopy(chosen.policy.network)
        assert network is not None
        before = copy.deepcopy(model.state_dict())
        name = f"finetune {chosen.reward.name}"
        try:
            finished = self.checkpoint.finished(name)
            if finished is not None:
                network.load_state_dict(finished["policy"])
                model.load_state_dict(finished["model"])
            else:
                self._finetune(name, model, network, chosen.reward)
            tuned = record(
                self.snn, self.policy, self.val_loader, self.monitor.progress, "validation traces, fine-tuned"
            )
            return self._point_of(network, chosen.reward, tuned)
        except BaseException:
            model.load_state_dict(before)
            raise

    def _finetune(self, name: str, model: nn.Module, network: nn.Module, reward: Reward) -> None:
        torch.manual_seed(self.settings.seed)
        run = Run(
            name,
            {"policy": network, "model": model},
            {"policy": self.settings.learning_rate, "model": self.settings.finetune_learning_rate},
            self.settings.weight_decay,
            self.settings.finetune_epochs,
            self.precision,
        )
        with _training(network):
            run.train(lambda: self._joint_losses(network, reward), self.checkpoint, self.monitor, dict)
        self.checkpoint.finish(name, {"policy": network.state_dict(), "model": model.state_dict()})

    def _joint_losses(self, network: nn.Module, reward: Reward) -> Losses:
        for x, trace, labels in observe(self.snn, self.train_loader, False, "fine-tune"):
            frames = seen(self.snn, self.policy, x)
            yield lambda f=frames, t=trace, y=labels: self._joint_loss(network, reward, f, t, y), len(labels)

    def _joint_loss(self, network: nn.Module, reward: Reward, frames: Tensor, trace: Tensor, labels: Tensor) -> Tensor:
        columns = self.columns.to(labels.device)
        rewards = reward((answers_of(trace.detach()) == labels.unsqueeze(1))[:, columns], self.candidates)
        entropy = torch.stack([cross_entropy(logits, labels, reduction="none") for logits in trace[columns]], 1)
        logits = policy_logits(network, frames, len(self.candidates))
        return joint_loss(self.objective, logits, rewards, torch.ones_like(entropy[:, 0]), entropy)

    # -- what a network does on the validation data ---------------------------------------------------------------

    def _point_of(self, network: nn.Module, reward: Reward, recording: Recording) -> FitPoint:
        policy = replace(self.policy, network=network)
        exits, right = outcome(plan_all(policy, recording, self.device), recording)
        return FitPoint(
            policy=policy,
            accuracy=float(right.double().mean()),
            mean_timesteps=float(exits.double().mean()),
            reward=reward,
            histogram=tuple(torch.bincount(exits - 1, minlength=recording.timesteps).tolist()),
        )

    def _scalars(self, network: nn.Module, reward: Reward) -> dict[str, float]:
        if not self.monitor.writes:
            return {}
        point = self._point_of(network, reward, self.validation)
        return {"validation/accuracy": point.accuracy, "validation/mean_timesteps": point.mean_timesteps}


@torch.no_grad()
def plan_all(policy: RLPolicy, recording: Recording, device: torch.device) -> Tensor:
    """The plan of every row of a recording, long ``[M]`` on the CPU."""
    batches = recording.frames.split(_PLANNED_AT_A_TIME)
    return torch.cat([policy.plan(frames.to(device), recording.timesteps).timesteps.cpu() for frames in batches])


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Training mode, and evaluation mode afterwards."""
    network.train()
    try:
        yield
    finally:
        network.eval()
