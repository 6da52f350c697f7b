"""The ways to run a network that the benchmarks compare: stock, as peers exit early, and with the wrapper."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from measuring import Way, synchronise
from networks import Network
from torch import Tensor

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.inputs import InputBatch
from seenn_plugin.policies import ConfidencePolicy, Decision

# -- exits that are drawn -----------------------------------------------------------------------------------------

_MARK = 16.0


@dataclass(frozen=True)
class DrawnExits(ConfidencePolicy):
    """Scores the logits as the confidence policy does, then stops each row where it was drawn to stop.

    So the mean exit is known, and the cost of deciding is paid all the same. A row's exit is written in its own first
    value (:func:`marked`): whatever batch or slot it is in, and whenever it joins, it leaves at its timestep.
    """

    temperature: float | None = 1.0

    def start(self, inputs: InputBatch, timesteps: int, classes: int) -> Tensor:
        return exits_of(inputs.frame(0))

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        return Decision(timestep >= policy_state, self.scaled_score(logits), policy_state)


def draw(histogram: Sequence[int], rows: int) -> Tensor:
    """Exit timesteps, long ``[rows]``, in random order. ``histogram``: how many of its sum exit at t = 1, 2, ..."""
    few = [t for t, count in enumerate(histogram, start=1) for _ in range(count)]
    exits = torch.tensor([few[i * len(few) // rows] if rows >= len(few) else few[i] for i in range(rows)])
    return exits[torch.randperm(rows, generator=torch.Generator().manual_seed(2))]


def marked(inputs: Tensor, exits: Tensor) -> Tensor:
    """The rows ``[N, ...]`` with their exits written into their first values."""
    inputs = inputs.clone()
    inputs[_first(inputs)] = exits.to(inputs) / _MARK
    return inputs


def exits_of(rows: Tensor) -> Tensor:
    """The exits, long ``[N]``, that :func:`marked` wrote."""
    return (rows[_first(rows)] * _MARK).round().long()


def _first(rows: Tensor) -> tuple[slice | int, ...]:
    return (slice(None), *(0,) * (rows.dim() - 1))


# -- options ------------------------------------------------------------------------------------------------------


def options(name: str, batch: int) -> dict[str, Any]:
    """Arguments of the wrapper: ``defaults``, ``exact`` (float32), ``bf16``; the fastest for so many rows at a time.

    In float32 a compiled step is worth its while for single rows only, whose weights it lays out beforehand. Without a
    C++ compiler it is left out.
    """
    copied = {"fold": True, "channels_last": True}
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "cl"))
    compiled = {"compile": (1,) if batch == 1 else (64, 32, 16, 8)}
    return {
        "defaults": {},
        "exact": compiled if compiler and batch == 1 else copied,
        "bf16": {**(compiled if compiler else copied), "autocast": torch.bfloat16},
    }[name]


def wrapped(network: Network, policy: ConfidencePolicy, timesteps: int, **chosen: Any) -> EarlyExitWrapper:
    return EarlyExitWrapper(network.model, policy, timesteps=timesteps, readout=network.readout, **chosen)


# -- a piece of work ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Samples to be answered.

    Attributes:
        network: by which.
        samples: ``[S, ...]``.
        batch: rows at a time; for a stream, slots.
        timesteps: T.
        policy: when a row stops.
    """

    network: Network
    samples: Tensor
    batch: int
    timesteps: int
    policy: ConfidencePolicy

    @property
    def batches(self) -> tuple[Tensor, ...]:
        return self.samples.split(self.batch)

    def first(self, samples: int) -> Work:
        return replace(self, samples=self.samples[:samples])


def stock(work: Work, timesteps: int | None = None) -> Way:
    """The framework's own run of all timesteps; or of fewer."""
    steps = work.timesteps if timesteps is None else timesteps
    return _by_batch(work, lambda x: work.network.full(x, steps))


def stepped(work: Work) -> Way:
    """The stock network in its user's own loop."""
    way = _by_batch(work, lambda x: list(work.network.steps(x, work.timesteps)))
    return replace(way, around=work.network.stepped)


def picked_afterwards(work: Work) -> Way:
    """A peer's way: all timesteps are computed, and the exits are picked from the outputs."""
    return _by_batch(work, lambda x: pick(work, x))


def pick(work: Work, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and exits long ``[N]`` from the stock run of all timesteps."""
    so_far = work.network.full(x, work.timesteps).cumsum(0)
    timesteps = torch.arange(1, work.timesteps + 1, device=x.device)
    if work.network.readout == "mean":
        so_far = so_far / timesteps.view(-1, 1, 1)
    sure = work.policy.scaled_score(so_far) > work.policy.threshold
    if isinstance(work.policy, DrawnExits):
        sure = timesteps.unsqueeze(1) >= exits_of(x)
    sure[-1] = True
    first = sure.int().argmax(0)  # the first of the largest
    return so_far[first, torch.arange(len(x), device=x.device)], first + 1


def loop_with_break(work: Work) -> Way:
    """The authors' throughput test: one sample at a time, stepped until it is sure."""
    network, policy = work.network, work.policy

    def answer(x: Tensor) -> Tensor:
        drawn = int(exits_of(x)) if isinstance(policy, DrawnExits) else None
        total: Tensor | float = 0.0
        logits = x
        steps = network.steps(x, work.timesteps)
        for t, output in enumerate(steps, start=1):
            total = total + output
            logits = total / t if network.readout == "mean" else total
            sure = bool(policy.scaled_score(logits) > policy.threshold)
            if sure if drawn is None else t >= drawn:
                break
        steps.close()
        return logits

    return replace(_by_batch(replace(work, batch=1), answer), around=network.stepped)


def infer(work: Work, snn: EarlyExitWrapper) -> Way:
    return _by_batch(work, snn.infer)


def stream(work: Work, snn: EarlyExitWrapper) -> Way:
    """Samples one by one through slots; a latency is the time from asking for a sample to handing out its answer."""
    samples = list(work.samples)
    asked = [0.0] * len(samples)

    def feed() -> Iterator[Tensor]:
        for i, sample in enumerate(samples):
            asked[i] = perf_counter()
            yield sample

    def run() -> list[float]:
        return [perf_counter() - asked[item.key] for item in snn.stream(feed(), slots=work.batch)]

    return Way(run, samples=len(samples))


def _by_batch(work: Work, answer: Callable[[Tensor], object]) -> Way:
    batches = work.batches
    device = work.samples.device

    def run() -> list[float]:
        latencies = []
        for x in batches:
            start = perf_counter()
            answer(x)
            synchronise(device)
            latencies.append(perf_counter() - start)
        return latencies

    return Way(run, samples=len(work.samples))


# -- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Logits ``[S, C]``, exits long ``[S]``, and the row-steps executed where they are known."""

    logits: Tensor
    exits: Tensor
    row_steps: int | None

    def to(self, device: torch.device) -> Answers:
        return Answers(self.logits.to(device), self.exits.to(device), self.row_steps)

    def agreement(self, other: Answers) -> dict[str, float]:
        """Fractions of rows with an equal answer, and with an equal exit."""
        return {
            "answers": float((self.logits.argmax(1) == other.logits.argmax(1)).double().mean()),
            "exits": float((self.exits == other.exits).double().mean()),
        }


@torch.no_grad()
def answers(kind: str, work: Work, snn: EarlyExitWrapper) -> Answers:
    """All answers to a piece of work, by ``"infer"`` or by ``"stream"``."""
    with policy_of(snn, work.policy):
        if kind == "infer":
            parts = [snn.infer(x) for x in work.batches]
            return Answers(
                torch.cat([part.logits for part in parts]),
                torch.cat([part.timesteps for part in parts]),
                sum(part.steps_executed for part in parts),
            )
        running = snn.stream(iter(work.samples), slots=work.batch)
        items = sorted(running, key=lambda item: item.key)
        return Answers(
            torch.stack([item.logits for item in items]),
            torch.tensor([item.timesteps for item in items], device=work.samples.device),
            running.steps_executed,
        )


@torch.no_grad()
def stock_answers(work: Work) -> Answers:
    """What the stock network answers when its exits are picked afterwards."""
    logits, exits = zip(*(pick(work, x) for x in work.batches), strict=True)
    return Answers(torch.cat(logits), torch.cat(exits), None)


@contextmanager
def policy_of(snn: EarlyExitWrapper, policy: ConfidencePolicy) -> Iterator[None]:
    """The wrapper with another policy for a while."""
    before, snn.policy = snn.policy, policy
    try:
        yield
    finally:
        snn.policy = before


@torch.no_grad()
def halfway_policy(snn: EarlyExitWrapper, x: Tensor) -> ConfidencePolicy:
    """A threshold that rows with made-up weights reach at different timesteps: the middle of all their scores."""
    scores = sorted(ConfidencePolicy(temperature=1.0).scaled_score(snn.trace(x)).flatten().tolist())
    middle = len(scores) // 2
    return ConfidencePolicy(threshold=median(scores[middle - 1 : middle + 1]), temperature=1.0)
