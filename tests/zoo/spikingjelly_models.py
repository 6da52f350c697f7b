"""Small SpikingJelly networks, each written in a way that published ones are: most of them hide their time.

The image is repeated inside ``forward``, or a loop runs there; the answer is averaged there; the state is reset
there. Every model runs on SpikingJelly 2.0.0 and 0.0.0.0.14, but for those at the end that need one of the two.

All run in float64: a spike threshold makes a large difference of a rounding error, and sums in another order are not
what is tested here.
"""

from __future__ import annotations

import copy
import importlib
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from spikingjelly.activation_based import ann2snn, base, encoding, functional, layer, neuron, rnn
from torch import Tensor, nn

from ..invariants import firing_rate
from ..reference import Outputs
from .entry import Entry

OLD = hasattr(functional, "set_backend")
"""Whether this is SpikingJelly 0.0.0.0.14."""
IMAGE, VECTOR, CLASSES = (2, 6, 6), (7,), 5
STEPS = 4
"""The number of timesteps of the model that reads it from its module."""

Prefix = Callable[[nn.Module, Tensor, int], list[Outputs]]
Own = Callable[[nn.Module, Tensor, int], Tensor]


@dataclass(frozen=True)
class SpikingJellyEntry(Entry):
    """An entry whose owner's own way of asking the model is known too, and is written without the reference.

    Attributes:
        own: from the model, the input as the model takes it, and T: the answer ``[N, C]`` that its owner gets.
    """

    own: Own = lambda model, x, timesteps: answer(model, x)


# -- running a model as its owner does, and stopped early -----------------------------------------------------------


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """One call from fresh state."""
    functional.reset_net(model)
    result = model(x)
    functional.reset_net(model)
    return result[0] if isinstance(result, tuple) else result


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def told(name: str) -> Prefix:
    """The answers of a model that is told to make t timesteps."""

    def prefix(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
        answers = []
        for t in range(1, timesteps + 1):
            with attribute(model, name, t):
                answers.append((answer(model, x),))
        return answers

    return prefix


def shown(time_dim: int) -> Prefix:
    """The answers of a model that is shown the first t frames."""

    def prefix(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
        return [(answer(model, x.narrow(time_dim, 0, t)),) for t in range(1, timesteps + 1)]

    return prefix


def each_step(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
    """The outputs of a model that returns those of all timesteps."""
    return [(output,) for output in answer(model, x)]


def mean_of_steps(model: nn.Module, x: Tensor, timesteps: int) -> Tensor:
    return answer(model, x).mean(0)


def sum_of_steps(model: nn.Module, x: Tensor, timesteps: int) -> Tensor:
    return answer(model, x).sum(0)


def called_each_step(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
    """The outputs of a one-step model in its user's loop on a static input."""
    functional.reset_net(model)
    outputs = [(model(x),) for _ in range(timesteps)]
    functional.reset_net(model)
    return outputs


def sum_of_calls(model: nn.Module, x: Tensor, timesteps: int) -> Tensor:
    functional.reset_net(model)
    total = model(x)
    for _ in range(timesteps - 1):
        total = total + model(x)
    functional.reset_net(model)
    return total


# -- neurons and layers that people write themselves ----------------------------------------------------------------


class Node(base.MemoryModule):
    """The memory module of 0.0.0.0.14, whose multi-step mode is a loop of single steps; in 2.0.0 it is not."""

    v_threshold = 1.0

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        return torch.stack([self.single_step_forward(x) for x in x_seq])


class SequenceNode(base.MemoryModule):
    """Takes sequences alone and registers all its potentials ``[T, N, ...]``, as the nodes of clock_driven do."""

    def __init__(self, tau: float = 2.0) -> None:
        super().__init__()
        self.tau, self.v_threshold = tau, 1.0
        self.register_memory("v", 0.0)
        self.register_memory("v_seq", None)
        self.step_mode = "m"

    def forward(self, x_seq: Tensor) -> Tensor:
        spikes, potentials = [], []
        for x in x_seq:
            self.v = self.v + (x - self.v) / self.tau
            spike = (self.v >= self.v_threshold).to(x)
            self.v = self.v * (1.0 - spike)
            spikes.append(spike)
            potentials.append(self.v)
        self.v_seq = torch.stack(potentials)
        return torch.stack(spikes)


class CountedPrecharge(Node):
    """A node of a converted network: half a threshold of charge before the first step, known by a registered count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("v", 0.0)
        self.register_memory("t", 0)

    def single_step_forward(self, x: Tensor) -> Tensor:
        if self.t == 0:
            self.v = torch.full_like(x, 0.5 * self.v_threshold)
        charge = self.v + x
        spike = (charge >= self.v_threshold).to(x)
        self.v = charge - self.v_threshold * spike
        self.t += 1
        return self.v_threshold * spike


class UncountedPrecharge(Node):
    """The same with a potential that is registered nowhere: where there is none, it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def reset(self) -> None:
        super().reset()
        self.v = None

    def single_step_forward(self, x: Tensor) -> Tensor:
        if self.v is None:
            self.v = torch.full_like(x, 0.5 * self.v_threshold)
        self.v = self.v + x
        spike = (self.v >= self.v_threshold).to(x)
        self.v = self.v - self.v_threshold * spike
        return self.v_threshold * spike


class GroupNode(Node):
    """Several members with thresholds of their own see one input: the state is ``[members, N, ...]``."""

    def __init__(self, members: int = 3) -> None:
        super().__init__()
        self.members = members
        self.register_memory("v", None)

    def single_step_forward(self, x: Tensor) -> Tensor:
        if self.v is None:
            self.v = x.new_zeros(self.members, *x.shape)
        charge = 0.5 * self.v + x
        shape = (self.members,) + (1,) * x.ndim
        thresholds = self.v_threshold * torch.arange(1, self.members + 1).to(x).view(shape)
        spikes = (charge >= thresholds).to(x)
        self.v = charge * (1.0 - spikes)
        return spikes.mean(0)


class TiringNode(Node):
    """Its threshold rises with the number of timesteps since reset: a clock that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("v", 0.0)
        self.register_memory("clock", 0)

    def single_step_forward(self, x: Tensor) -> Tensor:
        charge = 0.5 * self.v + x
        spike = (charge >= self.v_threshold * (1.0 + 0.2 * self.clock)).to(x)
        self.v = charge * (1.0 - spike)
        self.clock += 1
        return spike


class InPlaceNode(Node):
    """Keeps its potential in an attribute that nothing registers, and changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Tensor | None = None

    def reset(self) -> None:
        super().reset()
        self.potential = None

    def single_step_forward(self, x: Tensor) -> Tensor:
        if self.potential is None:
            self.potential = torch.zeros_like(x)
        self.potential.mul_(0.6).add_(x)
        spike = (self.potential >= self.v_threshold).to(x)
        self.potential.sub_(self.v_threshold * spike)
        return spike


class LeakyReadout(nn.Module):
    """A readout that does not spike, and no memory module: but reset_net calls every ``reset``."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def forward(self, x: Tensor) -> Tensor:
        self.v = x if self.v is None else 0.8 * self.v + x
        return self.v


class NormThroughTime(Node):
    """Batch normalisation with statistics of its own for every timestep."""

    def __init__(self, timesteps: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(timesteps)])
        self.register_memory("t", 0)

    def single_step_forward(self, x: Tensor) -> Tensor:
        y = self.norms[self.t](x)
        self.t += 1
        return y


def trunk(node: Callable[[], nn.Module] = neuron.LIFNode) -> nn.Sequential:
    """Two layers of spiking convolutions: ``[..., 2, 6, 6]`` to ``[..., 36]``. The nodes are 2 and 6."""
    return nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        node(),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(4, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        node(),
        layer.Flatten(),
    )


TRUNK = ("trunk.2, trunk.6", "trunk.0, trunk.2, trunk.4, trunk.6")
"""Its spiking modules, and the layers in which rows are counted."""


# -- the image is repeated inside forward, and multi-step modules see all timesteps at once -------------------------


class HeadOnMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = 4
        self.trunk = trunk()
        self.head = nn.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.trunk(x).mean(0))


class HeadThenMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_step = 5
        self.trunk = trunk(lambda: neuron.IFNode(v_reset=None))
        self.head = layer.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(self.time_step, 1, 1, 1, 1)
        x = self.head(self.trunk(x))
        return x.mean(dim=0)


class SpikesSummed(nn.Module):
    """Its last layer spikes, and the spikes are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps = 6
        self.trunk = trunk()
        self.fc = layer.Linear(36, CLASSES)
        self.out = neuron.LIFNode(tau=1.5)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.stack([x] * self.timesteps)
        return self.out(self.fc(self.trunk(frames))).sum(0)


class Voted(nn.Module):
    """Two spiking outputs vote for each class; the votes of all timesteps are added."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 4
        self.fc1 = layer.Linear(*VECTOR, 16)
        self.lif1 = neuron.ParametricLIFNode(init_tau=2.0)
        self.fc2 = layer.Linear(16, 2 * CLASSES)
        self.lif2 = neuron.ParametricLIFNode(init_tau=2.0)
        self.vote = layer.VotingLayer(2)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(self.T, 1, 1)
        x = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return self.vote(x).sum(0)


class LastOfFiltered(nn.Module):
    """A synapse filter gathers the spikes, so that the last timestep knows of all."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.trunk = trunk()
        self.filter = layer.SynapseFilter(tau=4.0)
        self.head = layer.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).expand(self.num_steps, -1, -1, -1, -1)
        return self.head(self.filter(self.trunk(x)))[-1]


class LastMembrane(nn.Module):
    """The answer is the potential of nodes that never spike, which the framework keeps for all timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 4
        self.trunk = trunk()
        self.fc = layer.Linear(36, CLASSES)
        self.readout = neuron.LIFNode(tau=3.0, v_threshold=1e9, store_v_seq=True)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.num_steps, 1, 1, 1, 1)
        self.readout(self.fc(self.trunk(x)))
        return self.readout.v_seq[-1]


class MaxOverSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.fc1 = layer.Linear(*VECTOR, 16)
        self.lif = neuron.KLIFNode(tau=2.0)
        self.fc2 = layer.Linear(16, CLASSES)
        self.filter = layer.SynapseFilter(tau=3.0, learnable=True)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1)
        x = self.fc2(self.filter(self.lif(self.fc1(x))))
        return x.max(0)[0]


class SelfAttention(nn.Module):
    """Spiking attention among the tokens of one timestep, without a softmax."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (layer.Linear(dim, dim, bias=False) for _ in range(4))
        self.q_lif, self.k_lif, self.v_lif, self.lif, self.proj_lif = (neuron.LIFNode(tau=2.0) for _ in range(5))

    def forward(self, x: Tensor, hook: dict[str, Tensor] | None = None) -> Tensor:
        q, k, v = self.q_lif(self.q(x)), self.k_lif(self.k(x)), self.v_lif(self.v(x))
        x = self.lif(q @ (k.transpose(-2, -1) @ v) * 0.25)
        if hook is not None:
            hook["attention"] = x.detach()
        return self.proj_lif(self.proj(x))


ATTENTION = "attention.q_lif, attention.k_lif, attention.v_lif, attention.lif, attention.proj_lif"


class TinySpikformer(nn.Module):
    """Images are repeated, event frames ``[T, N, ...]`` are taken as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 4
        self.patch = nn.Sequential(
            layer.Conv2d(2, 8, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(8), neuron.LIFNode(tau=2.0)
        )
        self.attention = SelfAttention(8)
        self.mlp = nn.Sequential(layer.Linear(8, 12), neuron.LIFNode(tau=2.0), layer.Linear(12, 8))
        self.mlp_lif = neuron.LIFNode(tau=2.0)
        self.head = nn.Linear(8, CLASSES)
        functional.set_step_mode(self, "m")

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(3).transpose(-1, -2)
        x = x + self.attention(x)
        x = x + self.mlp_lif(self.mlp(x))
        return x.mean(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.forward_features(x).mean(0))


SPIKFORMER = (f"patch.2, {ATTENTION}, mlp.1, mlp_lif", f"patch.0, patch.2, {ATTENTION}, mlp_lif")


class TinySpikeDriven(nn.Module):
    """Answers with a dictionary of what its layers did, or with None in its place."""

    def __init__(self, hooked: bool) -> None:
        super().__init__()
        self.T = 4
        self.hooked = hooked
        self.patch = nn.Sequential(
            layer.Conv2d(2, 8, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(8), neuron.LIFNode(tau=2.0)
        )
        self.attention = SelfAttention(8)
        self.head_lif = neuron.LIFNode(tau=2.0)
        self.head = layer.Linear(8, CLASSES)
        functional.set_step_mode(self, "m")

    def forward_features(self, x: Tensor, hook: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor] | None]:
        x = self.patch(x).flatten(3).transpose(-1, -2)
        if hook is not None:
            hook["patch"] = x.detach()
        return x + self.attention(x, hook), hook

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        hook: dict[str, Tensor] | None = {} if self.hooked else None
        if len(x.shape) < 5:
            x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        else:
            self.T = x.shape[0]
        x, hook = self.forward_features(x, hook)
        x = self.head_lif(x.mean(2))
        return self.head(x).mean(0), hook


SPIKE_DRIVEN = (f"patch.2, {ATTENTION}, head_lif", f"patch.0, patch.2, {ATTENTION}, head_lif, head")


class TinyMsResNet(nn.Module):
    """Shortcuts carry membrane currents: nodes come before convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 6
        self.stem = nn.Sequential(layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4))
        self.lif1, self.lif2, self.lif3 = (neuron.LIFNode(tau=2.0, decay_input=False) for _ in range(3))
        self.conv1, self.conv2 = (layer.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = (layer.BatchNorm2d(4) for _ in range(2))
        self.pool = layer.AdaptiveAvgPool2d((2, 2))
        self.fc = layer.Linear(16, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.repeat(self.T, 1, 1, 1, 1)
        x = self.stem(x)
        x = x + self.bn2(self.conv2(self.lif2(self.bn1(self.conv1(self.lif1(x))))))
        x = self.pool(self.lif3(x)).flatten(2)
        return self.fc(x).mean(0)


MS_RESNET = ("lif1, lif2, lif3", "lif1, conv1, bn1, lif2, conv2, lif3, fc")


class RepeatsALiteral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.head = nn.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(4, 1, 1, 1, 1)
        return self.head(self.trunk(x).mean(0))

    @staticmethod
    def prefix(model: Any, x: Tensor, timesteps: int) -> list[Outputs]:
        """The 4 cannot be told otherwise: forward() written once more, on t frames."""
        answers = []
        for t in range(1, timesteps + 1):
            functional.reset_net(model)
            answers.append((model.head(model.trunk(torch.stack([x] * t)).mean(0)),))
        functional.reset_net(model)
        return answers


class RepeatsAGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.head = layer.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)
        return self.head(self.trunk(x)).mean(0)

    @staticmethod
    def prefix(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
        answers = []
        for t in range(1, timesteps + 1):
            with attribute(sys.modules[__name__], "STEPS", t):
                answers.append((answer(model, x),))
        return answers


class StemOnce(nn.Module):
    """What the first convolution makes of a still image is the same at every timestep: it is computed once."""

    def __init__(self, all_steps: bool) -> None:
        super().__init__()
        self.T = 4
        self.all_steps = all_steps
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.body = nn.Sequential(
            neuron.LIFNode(tau=2.0),
            layer.AvgPool2d(2, 2),
            layer.Conv2d(4, 4, 3, padding=1, bias=False),
            layer.BatchNorm2d(4),
            neuron.LIFNode(tau=2.0),
            layer.Flatten(),
        )
        self.head = layer.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.head(self.body(x))
        return x if self.all_steps else x.mean(0)


class AllSteps(nn.Module):
    """Trained with a loss on every timestep, so it answers ``[T, N, C]``; layers without state see ``[T * N, ...]``."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 4
        self.conv = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.fc1 = layer.SeqToANNContainer(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 12))
        self.lif2 = neuron.IFNode()
        self.fc2 = layer.SeqToANNContainer(nn.Linear(12, CLASSES))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.fc2(self.lif2(self.fc1(self.lif1(self.conv(x)))))


class ResetsItselfAfterwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = 4
        self.trunk = trunk(neuron.ParametricLIFNode)
        self.head = nn.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.head(self.trunk(x).mean(0))
        functional.reset_net(self)
        return x


class RecurrentInside(nn.Module):
    """A recurrent layer whose output joins its next input, among layers that see all timesteps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.fc1 = layer.Linear(*VECTOR, 8)
        self.lif = neuron.LIFNode(tau=2.0)
        self.recurrent = layer.LinearRecurrentContainer(neuron.LIFNode(tau=2.0), 8, 8)
        self.head = nn.Linear(8, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(self.T, 1, 1)
        return self.head(self.recurrent(self.lif(self.fc1(x))).mean(0))


def with_feedback(before: Tensor, x: Tensor) -> Tensor:
    return x + 0.5 * before


class FeedbackInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.timesteps = 5
        self.fc1 = layer.Linear(*VECTOR, 12)
        self.feedback = layer.ElementWiseRecurrentContainer(neuron.IFNode(v_reset=None), with_feedback)
        self.fc2 = layer.Linear(12, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.timesteps, 1, 1)
        return self.fc2(self.feedback(self.fc1(x))).mean(0)


class OwnNodesInside(nn.Module):
    """Nodes written by the model's owner, in a network that repeats its image."""

    def __init__(self, node: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.T = 4
        self.trunk = trunk(node)
        self.head = nn.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.trunk(x).mean(0))


class NormThroughTimeInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.conv = layer.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = NormThroughTime(self.T, 4)
        self.lif = neuron.LIFNode(tau=2.0)
        self.head = nn.Linear(144, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.lif(self.norm(self.conv(x))).mean(0).flatten(1))


# -- sequences, averaged inside -------------------------------------------------------------------------------------


class BatchFirst(nn.Module):
    """Takes ``[N, T, ...]``, which data loaders give, and turns it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.head = nn.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.head(self.trunk(x).mean(0))


class BatchFirstThatResetsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk(lambda: neuron.IFNode(v_reset=None))
        self.head = layer.Linear(36, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x = x.permute(1, 0, 2, 3, 4)
        x = self.head(self.trunk(x))
        return x.permute(1, 0, 2).mean(1)


class TimeInTheBatch(nn.Module):
    """Convolutions see ``[N * T, ...]``; nodes see ``[T, N, ...]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.lif1 = neuron.LIFNode(tau=2.0, step_mode="m")
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.lif2 = neuron.LIFNode(tau=2.0, step_mode="m")
        self.head = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, steps = x.shape[:2]
        x = self.bn1(self.conv1(x.flatten(0, 1)))
        x = self.lif1(x.view(n, steps, *x.shape[1:]).transpose(0, 1))
        x = self.conv2(x.transpose(0, 1).flatten(0, 1))
        x = self.lif2(x.view(n, steps, *x.shape[1:]).transpose(0, 1))
        return self.head(x.flatten(2)).mean(0)


class SequenceOut(nn.Module):
    """``[T, N, ...]`` to ``[T, N, C]``, with nodes of the time before there were step modes.

    The linear layers know of step modes, so that the rows that enter them can be counted.
    """

    def __init__(self, node: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1 = layer.Linear(*VECTOR, 16, step_mode="m")
        self.node1 = node()
        self.fc2 = layer.Linear(16, CLASSES, step_mode="m")
        self.node2 = node()

    def forward(self, x: Tensor) -> Tensor:
        return self.node2(self.fc2(self.node1(self.fc1(x))))


class SequenceAveraged(nn.Module):
    def __init__(self, node: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.T = 4
        self.fc1 = layer.Linear(*VECTOR, 16, step_mode="m")
        self.node1 = node()
        self.fc2 = layer.Linear(16, 12, step_mode="m")
        self.node2 = node()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1)
        return self.head(self.node2(self.fc2(self.node1(self.fc1(x)))).mean(0))


class GatedRecurrent(nn.Module):
    """SpikingJelly's LSTM and GRU hold their state in no module: one call runs over the whole sequence."""

    def __init__(self, kind: type[rnn.SpikingRNNBase], layers: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.fc = layer.Linear(*VECTOR, 10)
        self.lif = neuron.LIFNode(tau=2.0)
        self.rnn = kind(10, 10, layers)
        self.head = nn.Linear(10, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.lif(self.fc(x)))
        return self.head(y[-1] if self.last else y.mean(0))


# -- loops inside forward -------------------------------------------------------------------------------------------


class LoopAndSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk(neuron.ParametricLIFNode)
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        for t in range(x.shape[1]):
            out += self.fc(self.trunk(x[:, t]))
        return out


class LoopAndRate(nn.Module):
    """Divides the spikes of its last layer by the number of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk(neuron.ParametricLIFNode)
        self.fc = nn.Linear(36, CLASSES)
        self.out = neuron.ParametricLIFNode()

    def forward(self, x: Tensor) -> Tensor:
        steps = x.size(1)
        out = torch.zeros(x.size(0), CLASSES, dtype=x.dtype, device=x.device)
        for t in range(steps):
            out = out + self.out(self.fc(self.trunk(x[:, t, :, :, :])))
        return out / steps


class LoopOverFrames(nn.Module):
    """Time comes first, and the loop goes over the tensor itself."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        outputs = []
        for frame in x:
            outputs.append(self.fc(self.trunk(frame)))
        return torch.stack(outputs).sum(0)


class LoopOverStill(nn.Module):
    def __init__(self, node: Callable[[], nn.Module] = neuron.LIFNode) -> None:
        super().__init__()
        self.T = 4
        self.trunk = trunk(node)
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out_spikes = 0
        for _ in range(self.T):
            out_spikes += self.fc(self.trunk(x))
        return out_spikes / self.T


class StemBeforeLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_step = 6
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.fc1 = nn.Linear(144, 12)
        self.lif2 = neuron.IFNode()
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        outputs = []
        for _ in range(self.time_step):
            spikes = self.lif1(x)
            spikes = self.lif2(self.fc1(spikes.flatten(1)))
            outputs.append(self.fc2(spikes))
        return torch.stack(outputs).mean(0)


class FirstStepBeforeLoop(nn.Module):
    """Stem and first timestep come before the loop, which makes the other T - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.static_conv = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.conv = nn.Sequential(
            neuron.IFNode(), nn.MaxPool2d(2, 2), nn.Conv2d(4, 4, 3, padding=1, bias=False), neuron.IFNode()
        )
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES), neuron.IFNode())

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_conv(x)
        out_spikes_counter = self.fc(self.conv(x))
        for _ in range(1, self.T):
            out_spikes_counter += self.fc(self.conv(x))
        return out_spikes_counter / self.T


class LoopAndStack(nn.Module):
    """Stacks its outputs beside the rows, not before them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk(lambda: neuron.LIFNode(tau=2.0, v_reset=None))
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for t in range(x.shape[1]):
            outputs.append(self.fc(self.trunk(x[:, t])))
        return torch.stack(outputs, dim=1).mean(dim=1)


class LoopThatReturnsAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 4
        self.fc1 = nn.Linear(*VECTOR, 16)
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.fc2 = nn.Linear(16, CLASSES)
        self.lif2 = neuron.LIFNode(tau=2.0)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        spikes = []
        for _step in range(self.num_steps):
            spikes.append(self.lif2(self.fc2(self.lif1(self.fc1(x)))))
        return torch.stack(spikes, dim=0)


class LoopThenReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.timesteps = 5
        self.fc1 = nn.Linear(*VECTOR, 16)
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.fc2 = nn.Linear(16, CLASSES)
        self.readout = LeakyReadout()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.timesteps):
            out = self.readout(self.fc2(self.lif1(self.fc1(x))))
        functional.reset_net(self)
        return out


class SpikesInALocal(nn.Module):
    """Recurrent spikes lie in a local variable of the loop; the last output is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(*VECTOR, 12)
        self.recurrent = nn.Linear(12, 12, bias=False)
        self.lif = neuron.LIFNode(tau=2.0)
        self.filter = layer.SynapseFilter(tau=4.0)
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.new_zeros(x.shape[0], 12)
        outputs = []
        for t in range(x.shape[1]):
            spikes = self.lif(self.fc1(x[:, t]) + self.recurrent(spikes))
            outputs.append(self.fc2(self.filter(spikes)))
        return outputs[-1]


class LargestInALocal(nn.Module):
    """Keeps the largest output so far in a local variable."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.fc1 = nn.Linear(*VECTOR, 12)
        self.node = InPlaceNode()
        self.fc2 = nn.Linear(12, CLASSES)
        self.readout = LeakyReadout()

    def forward(self, x: Tensor) -> Tensor:
        largest = torch.full((x.shape[0], CLASSES), -torch.inf, dtype=x.dtype, device=x.device)
        for _ in range(self.T):
            largest = torch.maximum(largest, self.readout(self.fc2(self.node(self.fc1(x)))))
        return largest


class RecurrentInALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(*VECTOR, 8)
        self.recurrent = layer.LinearRecurrentContainer(neuron.IFNode(), 8, 8)
        self.feedback = layer.ElementWiseRecurrentContainer(neuron.LIFNode(tau=2.0), with_feedback)
        self.fc2 = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for t in range(x.shape[1]):
            outputs.append(self.fc2(self.feedback(self.recurrent(self.fc1(x[:, t])))))
        return torch.stack(outputs).mean(0)


class DelayInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.fc1 = layer.Linear(*VECTOR, 12)
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.delay = layer.Delay(1)
        self.fc2 = layer.Linear(12, 12)
        self.lif2 = neuron.LIFNode(tau=2.0)
        self.head = nn.Linear(12, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.fc1(x.repeat(self.T, 1, 1)))
        return self.head(self.lif2(self.fc2(spikes + self.delay(spikes))).mean(0))


class DelayInALoop(nn.Module):
    """The delayed spikes lie in a list that fills up; spikes that come at once join them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(*VECTOR, 12)
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.delay = layer.Delay(2)
        self.fc2 = nn.Linear(12, 12)
        self.lif2 = neuron.LIFNode(tau=2.0)
        self.fc3 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = 0.0
        for t in range(x.shape[1]):
            spikes = self.lif1(self.fc1(x[:, t]))
            out = out + self.fc3(self.lif2(self.fc2(spikes + self.delay(spikes))))
        return out


class NormThroughTimeInALoop(nn.Module):
    def __init__(self, norm: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.T = 4
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = norm(self.T, 4)
        self.lif1 = neuron.LIFNode(tau=2.0)
        self.fc1 = nn.Linear(144, 12)
        self.lif2 = neuron.LIFNode(tau=2.0)
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        out = 0
        for _ in range(self.T):
            out = out + self.fc2(self.lif2(self.fc1(self.lif1(self.norm(self.conv(x))).flatten(1))))
        return out


class LatencyCoded(nn.Module):
    """Bright pixels spike early: the encoder holds the spikes of all timesteps, ``[T, N, ...]``, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 6
        self.encoder = encoding.LatencyEncoder(self.T)
        self.fc1 = nn.Linear(*VECTOR, 16)
        self.lif1 = neuron.LIFNode(tau=4.0)
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = 0.0
        for _ in range(self.T):
            out = out + self.fc2(self.lif1(self.fc1(self.encoder(x))))
        return out


# -- converted networks ---------------------------------------------------------------------------------------------


def converted() -> nn.Module:
    """A small ReLU network turned into a spiking one by SpikingJelly, scaled by 64 images."""
    ann = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    ).eval()
    randomise(ann)
    images = [(torch.rand(64, *IMAGE), torch.zeros(64))]
    if OLD:
        return ann2snn.Converter(mode="max", dataloader=images)(ann).eval()
    return ann2snn.Converter(ann2snn.RateCodingRecipe(images, mode="max")).convert(ann).eval()


CONVERTED_NODES = ("snn tailor.0.1", "snn tailor.1.1") if OLD else ("spiking_0.if_node", "spiking_1.if_node")
"""As the converter names them."""


class ConvertedInALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = 6
        self.snn = converted()

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.snn)
        out = 0.0
        for _ in range(self.T):
            out = out + self.snn(x)
        return out / self.T


def quantised(node: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(*VECTOR, 16), node(), nn.Linear(16, 12), node(), nn.Linear(12, CLASSES))


# -- weights with which neurons fire --------------------------------------------------------------------------------


def randomise(model: nn.Module) -> None:
    """Weights of a customary size, and running statistics as after some training."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.3)


def set_threshold(node: Any, value: float) -> None:
    node.v_threshold = value
    if "v_threshold" in getattr(node, "_memories", {}):  # in clock_driven it is one, and reset() sets it back
        node.set_reset_value("v_threshold", value)


def make_fire(model: nn.Module, names: tuple[str, ...], own: Own, x: Tensor, timesteps: int) -> None:
    """Move the thresholds, layer by layer, until a fifth of the neurons fires at a time, or about that."""

    def run(model: nn.Module, x: Tensor) -> list[Outputs]:
        return [(own(model, x, timesteps),)]

    for name in names:
        node: Any = model.get_submodule(name)
        low, high = 0.0, None
        for _ in range(20):
            [rate] = firing_rate(model, [node], run, x)
            if 0.12 <= rate <= 0.35 or not hasattr(node, "v_threshold"):
                break
            if rate > 0.35:
                low = node.v_threshold
            else:
                high = node.v_threshold
            set_threshold(node, 2.0 * low if high is None else (low + high) / 2)


def rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def entry(
    name: str,
    make: Callable[[], nn.Module],
    row: tuple[int, ...],
    timesteps: int,
    prefix: Prefix,
    neurons: str,
    layers: str,
    **rest: Any,
) -> Entry:
    """An entry for a model with random weights, the same ones whatever was built before.

    Args:
        neurons, layers: names with commas between them.
    """
    facts: dict[str, Any] = {
        "row": row,
        "timesteps": timesteps,
        "prefix": prefix,
        "neurons": tuple(neurons.split(", ")),
        "layers": tuple(layers.split(", ")),
        "sample": rand,
        **rest,
    }

    @cache
    def prepared() -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            seed = zlib.crc32(name.encode())
            torch.manual_seed(seed)
            model = make()
            if make not in (converted, ConvertedInALoop):  # their scales fit their weights
                randomise(model)
            model.double().eval()
            drawn = SpikingJellyEntry(name, make, **facts)
            many = (timesteps, 8, *row) if drawn.sequence else (8, *row)
            x = rand(many, torch.Generator().manual_seed(seed))
            x = x.transpose(0, drawn.time_dim) if drawn.sequence else x
            make_fire(model, drawn.neurons, drawn.own, x, timesteps)
            return model

    return SpikingJellyEntry(name, lambda: copy.deepcopy(prepared()), **facts)


def sequence(time_dim: int) -> dict[str, Any]:
    return {"sequence": True, "time_dim": time_dim}


TELLS_ALL_MEAN = {"readout": "mean", "readout_asked": "mean", "own": mean_of_steps}
TELLS_ALL_SUM = {"readout": "sum", "readout_asked": "sum", "own": sum_of_steps}
IS_CALLED_EACH_STEP = {"readout": "sum", "readout_asked": "sum", "own": sum_of_calls}
SHARED_CLOCK = {"refillable": False}
"""A fresh row cannot join rows that have made steps: what they share, or what they began with, would be wrong."""


# -- the zoo --------------------------------------------------------------------------------------------------------

REPEATED: list[Entry] = [
    entry("repeated, head on the mean", HeadOnMean, IMAGE, 4, told("T"), *TRUNK),
    entry("repeated, head then mean", HeadThenMean, IMAGE, 5, told("time_step"), *TRUNK),
    entry(
        "repeated, output spikes summed",
        SpikesSummed,
        IMAGE,
        6,
        told("timesteps"),
        f"{TRUNK[0]}, out",
        f"{TRUNK[1]}, out",
    ),
    entry("repeated, votes summed", Voted, VECTOR, 4, told("T"), "lif1, lif2", "fc1, lif1, fc2, lif2, vote"),
    entry("repeated, last filtered", LastOfFiltered, IMAGE, 5, told("num_steps"), TRUNK[0], f"{TRUNK[1]}, filter"),
    entry("repeated, last membrane", LastMembrane, IMAGE, 4, told("num_steps"), TRUNK[0], f"{TRUNK[1]}, readout"),
    entry("repeated, largest over time", MaxOverSteps, VECTOR, 5, told("T"), "lif", "fc1, lif, filter, fc2"),
    entry("tiny Spikformer", TinySpikformer, IMAGE, 4, told("T"), *SPIKFORMER),
    entry("tiny Spikformer on events", TinySpikformer, IMAGE, 5, shown(0), *SPIKFORMER, **sequence(0)),
    entry("spike-driven, None", lambda: TinySpikeDriven(False), IMAGE, 4, told("T"), *SPIKE_DRIVEN),
    entry("spike-driven, dictionary", lambda: TinySpikeDriven(True), IMAGE, 4, told("T"), *SPIKE_DRIVEN),
    entry(
        "spike-driven on events, notes how many",
        lambda: TinySpikeDriven(False),
        IMAGE,
        5,
        shown(0),
        *SPIKE_DRIVEN,
        **sequence(0),
    ),
    entry("tiny MS-ResNet", TinyMsResNet, IMAGE, 6, told("T"), *MS_RESNET),
    entry("tiny MS-ResNet on events", TinyMsResNet, IMAGE, 4, shown(0), *MS_RESNET, **sequence(0)),
    entry("repeats a literal", RepeatsALiteral, IMAGE, 4, RepeatsALiteral.prefix, *TRUNK),
    entry("repeats a global", RepeatsAGlobal, IMAGE, STEPS, RepeatsAGlobal.prefix, *TRUNK),
    entry("stem once, mean", lambda: StemOnce(False), IMAGE, 4, told("T"), "body.0, body.4", "body.0, body.2, body.4"),
    entry(
        "stem once, all timesteps",
        lambda: StemOnce(True),
        IMAGE,
        4,
        each_step,
        "body.0, body.4",
        "body.0, body.2, body.4, head",
        **TELLS_ALL_MEAN,
    ),
    entry("repeated, all timesteps", AllSteps, IMAGE, 4, each_step, "lif1, lif2", "lif1, lif2", **TELLS_ALL_MEAN),
    entry("repeated, resets itself afterwards", ResetsItselfAfterwards, IMAGE, 4, told("T"), *TRUNK),
    entry(
        "repeated, recurrent", RecurrentInside, VECTOR, 5, told("T"), "lif, recurrent.sub_module", "fc1, lif, recurrent"
    ),
    entry(
        "repeated, feedback", FeedbackInside, VECTOR, 5, told("timesteps"), "feedback.sub_module", "fc1, feedback, fc2"
    ),
    entry("repeated, groups of members", lambda: OwnNodesInside(GroupNode), IMAGE, 4, told("T"), *TRUNK),
    entry(
        "repeated, thresholds on a clock",
        lambda: OwnNodesInside(TiringNode),
        IMAGE,
        4,
        told("T"),
        *TRUNK,
        **SHARED_CLOCK,
    ),
    entry("repeated, unregistered in place", lambda: OwnNodesInside(InPlaceNode), IMAGE, 4, told("T"), *TRUNK),
    entry("repeated, Izhikevich", lambda: OwnNodesInside(neuron.IzhikevichNode), IMAGE, 4, told("T"), *TRUNK),
    entry(
        "repeated, norm through time",
        NormThroughTimeInside,
        IMAGE,
        5,
        told("T"),
        "lif",
        "conv, norm, lif",
        **SHARED_CLOCK,
    ),
]

SEQUENCES: list[Entry] = [
    entry("batch first, head on the mean", BatchFirst, IMAGE, 5, shown(1), *TRUNK, **sequence(1)),
    entry("batch first, resets itself before", BatchFirstThatResetsItself, IMAGE, 4, shown(1), *TRUNK, **sequence(1)),
    entry(
        "batch first, time in the batch", TimeInTheBatch, IMAGE, 4, shown(1), "lif1, lif2", "lif1, lif2", **sequence(1)
    ),
    entry(
        "registered histories, all timesteps",
        lambda: SequenceOut(SequenceNode),
        VECTOR,
        5,
        each_step,
        "node1, node2",
        "fc1, node1, fc2, node2",
        **TELLS_ALL_SUM,
        **sequence(0),
    ),
    entry(
        "registered histories, repeated, mean",
        lambda: SequenceAveraged(SequenceNode),
        VECTOR,
        4,
        told("T"),
        "node1, node2",
        "fc1, node1, fc2, node2",
    ),
    entry(
        "spiking LSTM, last",
        lambda: GatedRecurrent(rnn.SpikingLSTM, 2, last=True),
        VECTOR,
        5,
        shown(0),
        "lif, rnn",
        "lif, rnn.cells.0, rnn.cells.1",
        **sequence(0),
    ),
    entry(
        "spiking GRU, mean",
        lambda: GatedRecurrent(rnn.SpikingGRU, 1, last=False),
        VECTOR,
        5,
        shown(0),
        "lif, rnn",
        "lif, rnn.cells.0",
        **sequence(0),
    ),
]

LOOPS: list[Entry] = [
    entry(
        "loop over frames, sum",
        LoopAndSum,
        IMAGE,
        5,
        shown(1),
        TRUNK[0],
        f"{TRUNK[1]}, fc",
        **sequence(1),
        **SHARED_CLOCK,
    ),
    entry(
        "loop over frames, rate",
        LoopAndRate,
        IMAGE,
        6,
        shown(1),
        f"{TRUNK[0]}, out",
        f"{TRUNK[1]}, fc, out",
        **sequence(1),
        **SHARED_CLOCK,
    ),
    entry(
        "loop over time first, sum",
        LoopOverFrames,
        IMAGE,
        4,
        shown(0),
        TRUNK[0],
        f"{TRUNK[1]}, fc",
        **sequence(0),
        **SHARED_CLOCK,
    ),
    entry(
        "loop over a still image, mean", LoopOverStill, IMAGE, 4, told("T"), TRUNK[0], f"{TRUNK[1]}, fc", **SHARED_CLOCK
    ),
    entry("loop, groups of members", lambda: LoopOverStill(GroupNode), IMAGE, 4, told("T"), *TRUNK, **SHARED_CLOCK),
    entry(
        "loop, precharged",
        lambda: LoopOverStill(UncountedPrecharge),
        IMAGE,
        4,
        told("T"),
        *TRUNK,
        **SHARED_CLOCK,
    ),
    entry(
        "stem before the loop, mean", StemBeforeLoop, IMAGE, 6, told("time_step"), "lif1, lif2", "lif1, fc1, lif2, fc2"
    ),
    entry(
        "first timestep before the loop, rate",
        FirstStepBeforeLoop,
        IMAGE,
        5,
        told("T"),
        "conv.0, conv.3, fc.2",
        "conv.0, conv.2, conv.3, fc.1, fc.2",
        **SHARED_CLOCK,
    ),
    entry(
        "loop and stack, mean",
        LoopAndStack,
        IMAGE,
        4,
        shown(1),
        TRUNK[0],
        f"{TRUNK[1]}, fc",
        **sequence(1),
        **SHARED_CLOCK,
    ),
    entry(
        "loop, all timesteps",
        LoopThatReturnsAll,
        VECTOR,
        4,
        each_step,
        "lif1, lif2",
        "fc1, lif1, fc2, lif2",
        **TELLS_ALL_MEAN,
    ),
    entry("loop then reset, last", LoopThenReset, VECTOR, 5, told("timesteps"), "lif1", "fc1, lif1, fc2, readout"),
    entry(
        "loop, spikes in a local, last",
        SpikesInALocal,
        VECTOR,
        5,
        shown(1),
        "lif",
        "fc1, recurrent, lif, filter, fc2",
        **sequence(1),
        **SHARED_CLOCK,
    ),
    entry("loop, largest in a local", LargestInALocal, VECTOR, 5, told("T"), "node", "fc1, node, fc2, readout"),
    entry(
        "loop, recurrent containers",
        RecurrentInALoop,
        VECTOR,
        5,
        shown(1),
        "recurrent.sub_module, feedback.sub_module",
        "fc1, recurrent, feedback, fc2",
        **sequence(1),
        **SHARED_CLOCK,
    ),
    entry(
        "loop, delay",
        DelayInALoop,
        VECTOR,
        6,
        shown(1),
        "lif1, lif2",
        "fc1, lif1, delay, fc2, lif2, fc3",
        **SHARED_CLOCK,
        **sequence(1),
    ),
    entry(
        "loop, norm through time",
        lambda: NormThroughTimeInALoop(NormThroughTime),
        IMAGE,
        4,
        told("T"),
        "lif1, lif2",
        "conv, norm, lif1, lif2",
        **SHARED_CLOCK,
    ),
    entry(
        "loop, latency encoder", LatencyCoded, VECTOR, 6, told("T"), "lif1", "encoder, fc1, lif1, fc2", **SHARED_CLOCK
    ),
]

CONVERTED: list[Entry] = [
    entry(
        "converted, its user's loop",
        converted,
        IMAGE,
        6,
        called_each_step,
        ", ".join(CONVERTED_NODES),
        ", ".join(CONVERTED_NODES),
        **IS_CALLED_EACH_STEP,
    ),
    entry(
        "converted, loop inside",
        ConvertedInALoop,
        IMAGE,
        6,
        told("T"),
        ", ".join(f"snn.{name}" for name in CONVERTED_NODES),
        ", ".join(f"snn.{name}" for name in CONVERTED_NODES),
        **SHARED_CLOCK,
    ),
    entry(
        "precharged, counted",
        lambda: quantised(CountedPrecharge),
        VECTOR,
        5,
        called_each_step,
        "1, 3",
        "0, 1, 2, 3, 4",
        **SHARED_CLOCK,
        **IS_CALLED_EACH_STEP,
    ),
    entry(
        "precharged, unregistered",
        lambda: quantised(UncountedPrecharge),
        VECTOR,
        5,
        called_each_step,
        "1, 3",
        "0, 1, 2, 3, 4",
        **SHARED_CLOCK,
        **IS_CALLED_EACH_STEP,
    ),
]


def of_one_generation() -> list[Entry]:
    """What only one of the two has."""
    if OLD:
        old: Any = importlib.import_module("spikingjelly.clock_driven.neuron")
        return [
            entry(
                "clock_driven, all timesteps",
                lambda: SequenceOut(lambda: old.MultiStepLIFNode(tau=2.0, v_reset=None)),
                VECTOR,
                5,
                each_step,
                "node1, node2",
                "fc1, fc2",
                **TELLS_ALL_SUM,
                **sequence(0),
            ),
            entry(
                "clock_driven, repeated, mean",
                lambda: SequenceAveraged(lambda: old.MultiStepLIFNode(tau=2.0)),
                VECTOR,
                4,
                told("T"),
                "node1, node2",
                "fc1, fc2",
            ),
        ]
    return [
        entry(
            "loop, SpikingJelly's norm through time",
            lambda: NormThroughTimeInALoop(layer.BatchNormThroughTime2d),
            IMAGE,
            4,
            told("T"),
            "lif1, lif2",
            "conv, norm, lif1, lif2",
            **SHARED_CLOCK,
        ),
        entry(  # in multi-step mode of 0.0.0.0.14 it starts anew with every call
            "repeated, delay",
            DelayInside,
            VECTOR,
            5,
            told("T"),
            "lif1, lif2",
            "fc1, lif1, delay, fc2, lif2",
            **SHARED_CLOCK,
        ),
        entry("repeated, CUBA", lambda: OwnNodesInside(neuron.CUBALIFNode), IMAGE, 4, told("T"), *TRUNK),
    ]


ENTRIES: list[Entry] = [*REPEATED, *SEQUENCES, *LOOPS, *CONVERTED, *of_one_generation()]
