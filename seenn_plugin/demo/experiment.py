"""One network through the whole job: train, calibrate on validation, report on test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..calibration.policy_fitting import PolicyFit
from ..calibration.thresholds import Calibration
from ..evaluation.metrics import AccuracyCurve, Evaluation, accuracy_curve, evaluate
from ..evaluation.timing import Timing, interleaved
from ..models.digits import Network
from ..policies import ALIASES, Policy, RLPolicy
from ..training import tet_loss
from ..wrapper import EarlyExitWrapper
from .data import Digits, Split

TIMESTEPS = 8
MAX_ACCURACY_DROP = 0.005
NOISY_COPIES = 4
NOISE = 0.2
"""A policy network learns nothing from digits that the spiking network has memorised: noise causes errors."""
BATCH_SIZES = (1, 64)


@dataclass(frozen=True)
class Budget:
    """How long to take.

    Attributes:
        epochs: a cap on the epochs of training.
        rounds: rounds of timing at batch 1; together they take every test image once if ``samples`` allows.
        samples: test images timed at batch 1.
        repeats: times that all full batches of the test split are timed.
        policy_epochs: epochs of a policy network, for each value of its reward's parameter.
    """

    epochs: int = 1000
    policy_epochs: int = 15
    rounds: int = 15
    samples: int = 1_000_000
    repeats: int = 3


QUICK = Budget(epochs=2, policy_epochs=1, rounds=3, samples=12, repeats=1)


@dataclass(frozen=True)
class Row:
    """One line of the table: a way to run a network, on the test split."""

    way: str
    accuracy: float
    mean_timesteps: float
    timings: dict[int, Timing]

    @property
    def ideal_speedup(self) -> float:
        return TIMESTEPS / self.mean_timesteps

    def to_dict(self) -> dict[str, Any]:
        return {
            "way": self.way,
            "accuracy": self.accuracy,
            "mean_timesteps": self.mean_timesteps,
            "ideal_speedup": self.ideal_speedup,
            "batch": {str(size): timing.to_dict() for size, timing in self.timings.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """What was found out about one network."""

    network: str
    parameters: int
    epochs: int
    rows: list[Row]
    calibration: Calibration | PolicyFit
    evaluation: Evaluation
    curve: AccuracyCurve

    def to_dict(self) -> dict[str, Any]:
        chosen = self.calibration.chosen
        return {
            "network": self.network,
            "parameters": self.parameters,
            "epochs": self.epochs,
            "rows": [row.to_dict() for row in self.rows],
            "histogram": self.evaluation.histogram,
            "evaluation": self.evaluation.to_dict(),
            "calibration": {
                **_settings(self.calibration.policy),
                "target": self.calibration.target,
                "samples": self.calibration.samples,
                "full_accuracy": self.calibration.full_accuracy,
                "accuracy": chosen.accuracy,
                "mean_timesteps": chosen.mean_timesteps,
            },
            "curve": {
                "early_exit": [
                    {**_settings(p.policy), "accuracy": p.accuracy, "mean_timesteps": p.mean_timesteps}
                    for p in self.curve.pareto
                ],
                "static": list(self.curve.static),
            },
        }


def _settings(policy: Policy) -> dict[str, Any]:
    alias = next(alias for alias, kind in ALIASES.items() if kind is type(policy))
    return {"policy": alias, **policy.settings()}


def conduct(network: Network, digits: Digits, seed: int, budget: Budget, policy: str) -> Outcome:
    """Train, calibrate (or fit) and measure one network. The test split is read after all choices."""
    epochs = min(network.epochs, budget.epochs)
    snn = EarlyExitWrapper(network.model, policy=policy, timesteps=TIMESTEPS)
    train(network, digits.train, epochs, seed)
    snn.eval()
    evidence = set_policy(snn, digits, seed, budget.policy_epochs)

    test = digits.test.batches(max(BATCH_SIZES))
    evaluation = evaluate(snn, test)
    nearest = max(1, round(evaluation.mean_timesteps))
    lengths = {"full T": TIMESTEPS, f"static T = {nearest}": nearest}
    own = {way: partial(_answer, network, timesteps=length) for way, length in lengths.items()}
    full, static = own
    ways: dict[str, Callable[[Tensor], object]] = {full: own[full], "early exit": snn.infer, static: own[static]}
    timings = measure(network.name, ways, digits.test, seed, budget)
    results = {way: (accuracy(own[way], test), float(length)) for way, length in lengths.items()}
    results["early exit"] = evaluation.accuracy, evaluation.mean_timesteps
    return Outcome(
        network=network.name,
        parameters=sum(parameter.numel() for parameter in network.model.parameters()),
        epochs=epochs,
        rows=[Row(way, *results[way], {size: timings[size][way] for size in BATCH_SIZES}) for way in ways],
        calibration=evidence,
        evaluation=evaluation,
        curve=accuracy_curve(snn, test),
    )


def set_policy(snn: EarlyExitWrapper, digits: Digits, seed: int, policy_epochs: int) -> Calibration | PolicyFit:
    """Fit an rl policy, calibrate any other, for the target of the demo."""
    validation = digits.validation.batches(max(BATCH_SIZES))
    if snn.policy != RLPolicy():
        snn.calibrate(validation, max_accuracy_drop=MAX_ACCURACY_DROP)
        assert snn.calibration is not None
        return snn.calibration
    noisy = digits.train.noisy(NOISY_COPIES, NOISE, torch.Generator().manual_seed(seed))
    snn.fit_policy(
        noisy.batches(max(BATCH_SIZES)),
        validation,
        max_accuracy_drop=MAX_ACCURACY_DROP,
        epochs=policy_epochs,
        seed=seed,
        progress=True,
    )
    assert snn.policy_fit is not None
    return snn.policy_fit


def train(network: Network, data: Split, epochs: int, seed: int) -> None:
    """Train with the TET loss. The first weights are drawn where the network is made."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=network.learning_rate, weight_decay=1e-2)
    steps = epochs * -(-len(data) // network.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.learning_rate, total_steps=steps)
    network.model.train()
    with tqdm(total=steps, desc=f"train {network.name}", unit="batch", mininterval=0.5) as bar:
        for _ in range(epochs):
            for images, labels in data.shuffled(network.batch_size, generator):
                loss = tet_loss(network.run(images, TIMESTEPS), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()


def measure(
    name: str, ways: dict[str, Callable[[Tensor], object]], data: Split, seed: int, budget: Budget
) -> dict[int, dict[str, Timing]]:
    """Wall clock of every way at every batch size."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    found = {}
    for size in BATCH_SIZES:
        if size == 1:
            groups = order[: budget.samples].tensor_split(budget.rounds)
            rounds = [[data.images[i : i + 1] for i in group.tolist()] for group in groups]
        else:
            full_batches = [batch for batch in data.images[order].split(size) if len(batch) == size]
            rounds = [[batch] for _ in range(budget.repeats) for batch in full_batches]
        with tqdm(total=len(rounds), desc=f"time {name}, batch {size}", unit="round", mininterval=0.5) as bar:
            found[size] = interleaved(ways, rounds, bar.update)
    return found


@torch.no_grad()
def accuracy(answer: Callable[[Tensor], Tensor], batches: list[tuple[Tensor, Tensor]]) -> float:
    """Accuracy (a fraction) of logits ``[N, C]``."""
    right = [(answer(images).argmax(1) == labels) for images, labels in batches]
    return float(torch.cat(right).double().mean())


def _answer(network: Network, images: Tensor, timesteps: int) -> Tensor:
    """The network's answer as its framework computes it: the mean of the outputs ``[T, N, C]``."""
    return network.run(images, timesteps).mean(0)
