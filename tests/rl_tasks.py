"""Tasks on which the best plan is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.policies import Policy, RLPolicy

T, CLASSES = 5, 3
FEATURES = T + CLASSES


@dataclass(frozen=True)
class Readable:
    """Sequences whose label can be read from a known timestep on, which the first frame announces.

    A frame is an announcement of T numbers and a label of C numbers. Before the known timestep another label is shown.

    Attributes:
        frames: ``[T, N, T + C]``.
        labels: long ``[N]``.
        readable_from: long ``[N]``: the best plan.
    """

    frames: Tensor
    labels: Tensor
    readable_from: Tensor

    def batches(self, size: int = 64) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.frames.split(size, 1), self.labels.split(size), strict=True))

    def best_reward(self) -> float:
        """The mean of ``2 ** -t`` under the best plan."""
        return float(torch.exp2(-self.readable_from.double()).mean())

    def reward(self, plan: Tensor, beta: float) -> float:
        right = plan >= self.readable_from
        return float(torch.where(right, torch.exp2(-plan.double()), -beta).mean())


def readable(n: int, seed: int) -> Readable:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    start = torch.randint(1, T + 1, (n,), generator=generator)
    frames = torch.zeros(T, n, FEATURES)
    frames[0, :, :T] = nn.functional.one_hot(start - 1, T) + 0.15 * torch.randn(n, T, generator=generator)
    for t in range(T):
        shown = torch.where(t + 1 >= start, labels, (labels + 1) % CLASSES)
        frames[t, :, T:] = nn.functional.one_hot(shown, CLASSES).float()
    return Readable(frames, labels, start)


def reader() -> nn.Module:
    """A spiking network that answers with the label that it is shown at this timestep."""
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES, bias=False), neuron.IFNode(v_threshold=0.5))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[:, T:] = torch.eye(CLASSES)
    return net.eval()


def policy_net(features: int = FEATURES, candidates: int = T, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, candidates))


def wrapped(policy: Policy | str | None = None) -> EarlyExitWrapper:
    policy = RLPolicy(policy_net()) if policy is None else policy
    return EarlyExitWrapper(reader(), policy, input="sequence", timesteps=T, readout="last")
