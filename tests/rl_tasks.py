"""A task with a known best plan."""

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
    """Sequences that show the correct label from some timestep on, which is encoded in the first frame.

    A frame consists of T numbers, a noisy one-hot code of that timestep (in the first frame only), and of C numbers, a
    one-hot code of the label. Earlier frames show a wrong label.

    Attributes:
        frames: ``[T, N, T + C]``.
        labels: long ``[N]``.
        readable_from: long ``[N]``: the first timestep with the correct label, which is the best plan.
    """

    frames: Tensor
    labels: Tensor
    readable_from: Tensor

    def batches(self, size: int = 64) -> list[tuple[Tensor, Tensor]]:
        """Pairs ``(frames, labels)`` of at most ``size`` rows."""
        return list(zip(self.frames.split(size, 1), self.labels.split(size), strict=True))

    def best_reward(self) -> float:
        """The mean of ``2 ** -t`` under the best plan."""
        return float(torch.exp2(-self.readable_from.double()).mean())

    def reward(self, plan: Tensor, beta: float) -> float:
        """The mean reward of a plan, long ``[N]``."""
        correct = plan >= self.readable_from
        return float(torch.where(correct, torch.exp2(-plan.double()), -beta).mean())


def readable(n: int, seed: int) -> Readable:
    """Draw ``n`` sequences."""
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
    """A spiking network that outputs the label that the current frame shows."""
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES, bias=False), neuron.IFNode(v_threshold=0.5))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[:, T:] = torch.eye(CLASSES)
    return net.eval()


def policy_net(features: int = FEATURES, candidates: int = T, seed: int = 0) -> nn.Module:
    """A policy network with reproducible initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, candidates))


def wrapped(policy: Policy | str | None = None) -> EarlyExitWrapper:
    """The :func:`reader` with a policy, by default an rl policy that has not been fitted."""
    policy = RLPolicy(policy_net()) if policy is None else policy
    return EarlyExitWrapper(reader(), policy, input="sequence", timesteps=T, readout="last")
