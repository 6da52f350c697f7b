"""SpikingJelly networks that cannot be stopped early row by row: each has a true reason, which the refusal must name.

Some look at all timesteps at once, some begin anew with every call, some let rows see each other, some leave their
answer to chance, and some have no answer after t timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base, encoding, functional, layer, neuron, rnn
from torch import Tensor, nn

from .entry import Refused
from .spikingjelly_models import CLASSES, IMAGE, OLD, VECTOR, sequence, trunk

T = 4

# Several reasons are true of one model; which check finds one first is the library's own affair. Case is ignored.
ALL_AT_ONCE = r"timesteps? at once|one timestep|later timesteps|number of timesteps|whole|chunk|cannot be stepped"
ANEW = r"anew|every call|from one timestep to the next|carr(y|ies)|whole|chunk|cannot be stepped"
ROWS = r"other rows|alone|rows? .*(depend|share|mix)|batch statistics|split into rows"
CHANCE = r"random|chance|repeatable"
LOOP = r"loop|while"
MEAN = r"mean|average|read ?out"


class DelegatingStepper(nn.Module):
    """A network in multi-step mode that repeats its input, with a part under test in the middle."""

    def __init__(self, part: Callable[[Tensor], Tensor], width: int = 12) -> None:
        super().__init__()
        self.T = T
        self.fc1 = layer.Linear(*VECTOR, width)
        self.lif = neuron.LIFNode(tau=2.0, v_threshold=0.5)
        self.part = part
        self.out = neuron.LIFNode(tau=2.0, v_threshold=0.3)
        self.fc2 = layer.Linear(width, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1)
        return self.fc2(self.out(self.part(self.lif(self.fc1(x))))).mean(0)


class AroundImages(nn.Module):
    """The same for parts that take ``[T, N, C, H, W]``."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.T = T
        self.conv = layer.Conv2d(2, 4, 3, padding=1)
        self.part = part
        self.lif = neuron.LIFNode(tau=2.0, v_threshold=0.3)
        self.fc = layer.Linear(144, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.fc(self.lif(self.part(self.conv(x))).flatten(2)).mean(0)


class InALoop(nn.Module):
    """A loop of single steps, with a part under test in the middle."""

    def __init__(self, part: Callable[[Tensor], Tensor], width: int = 12) -> None:
        super().__init__()
        self.T = T
        self.fc1 = nn.Linear(*VECTOR, width)
        self.part = part
        self.lif = neuron.LIFNode(tau=2.0, v_threshold=0.3)
        self.fc2 = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = 0.0
        for _ in range(self.T):
            out = out + self.fc2(self.lif(self.part(self.fc1(x))))
        return out / self.T


# -- all timesteps at once ------------------------------------------------------------------------------------------


class MixesTimesteps(nn.Module):
    """A matrix over time, as in parallel spiking neurons: each timestep sees those after it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(T) + 0.5 * torch.rand(T, T))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.einsum("ts,s...->t...", self.weight, x) >= 0.6).to(x)


class AttendsToTime(nn.Module):
    """Attention whose tokens are the timesteps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        scores = (self.q(x) @ self.k(x).transpose(-2, -1)).softmax(-1)
        return (x + scores @ self.v(x)).transpose(0, 1)


class NormalisesOverTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True, unbiased=False) + 0.1)


class ScalesEachTimestep(nn.Module):
    """One learnt factor for each timestep: given one timestep of four, it silently makes four."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, T))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(-1, *(1,) * (x.ndim - 1))


class BothDirections(nn.Module):
    """One of its two recurrent layers runs from the last frame to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = neuron.LIFNode(tau=1.2, step_mode="m")
        self.rnn = rnn.SpikingLSTM(*VECTOR, 8, 1, bidirectional=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.lif(4.0 * x))[0].mean(0))


# -- anew with every call -------------------------------------------------------------------------------------------


class LoopsOverTimeItself(nn.Module):
    """A node whose potential is a local variable: it is gone when the call is over."""

    def forward(self, x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq:
            v = 0.5 * v + x
            spikes.append((v >= 1.2).to(x))
            v = v - 1.2 * spikes[-1]
        return torch.stack(spikes)


class DecodesMembrane(nn.Module):
    """SpikingJelly's non-spiking nodes set their potential to 0 when they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.T = T
        self.fc1 = layer.Linear(*VECTOR, 12)
        self.lif = neuron.LIFNode(tau=2.0)
        self.fc2 = layer.Linear(12, CLASSES)
        self.readout = neuron.NonSpikingLIFNode(tau=2.0, decode="mean-mem")
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1)
        return self.readout(self.fc2(self.lif(self.fc1(x))))


def temporal_norm() -> nn.Module:
    norm = layer.TemporalEffectiveBatchNorm1d(T, 12)
    norm.scale.data.copy_(torch.linspace(0.5, 2.0, T))
    return norm


def sliding_psn() -> nn.Module:
    """Where single steps keep a queue, many at once do not: the first of each call lacks the one before it."""
    node = neuron.SlidingPSN(2, step_mode="m")
    node.bias.data.fill_(-0.4)  # so that the input of the timestep before is enough for a spike
    return node


# -- rows that see each other ---------------------------------------------------------------------------------------


class MinusBatchMean(nn.Module):
    def __init__(self, row_dim: int) -> None:
        super().__init__()
        self.row_dim = row_dim

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.row_dim, keepdim=True)


class AttendsToRows(nn.Module):
    """A product over the batch: what similar rows have is added."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ x.transpose(-2, -1)).softmax(-1) @ x


class StopsAsABatch(nn.Module):
    """An early exit of its own: the loop ends when every row is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.T = T
        self.trunk = trunk(lambda: neuron.LIFNode(tau=2.0, v_threshold=0.3))
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc(self.trunk(x))
        t = 1
        while t < self.T and out.softmax(-1).amax(-1).min() < 0.6:
            out = out + self.fc(self.trunk(x))
            t += 1
        return out


# -- chance ---------------------------------------------------------------------------------------------------------


class PoissonCoded(nn.Module):
    """Draws the spikes of all timesteps before the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.T = T
        self.encoder = encoding.PoissonEncoder()
        self.fc1 = layer.Linear(*VECTOR, 12)
        self.lif = neuron.LIFNode(tau=2.0, v_threshold=0.3)
        self.fc2 = layer.Linear(12, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x.unsqueeze(0).repeat(self.T, 1, 1))
        return self.fc2(self.lif(self.fc1(x))).mean(0)


# -- no answer after t timesteps ------------------------------------------------------------------------------------


class TwoViews(nn.Module):
    """Shows the image and its mirror image, one after the other, for T timesteps each."""

    def __init__(self) -> None:
        super().__init__()
        self.T = T
        self.trunk = trunk(lambda: neuron.LIFNode(tau=2.0, v_threshold=0.3))
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = 0.0
        for view in (x, x.flip(-1)):
            functional.reset_net(self)
            for _ in range(self.T):
                out = out + self.fc(self.trunk(view))
        return out


class CountsDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.T = T
        self.trunk = trunk(lambda: neuron.LIFNode(tau=2.0, v_threshold=0.3))
        self.fc = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, left = 0.0, self.T
        while left > 0:
            out = out + self.fc(self.trunk(x))
            left -= 1
        return out


class NonlinearHeadOnMean(nn.Module):
    """The mean over time goes through a hidden layer: no mean of answers of single timesteps is this answer."""

    def __init__(self) -> None:
        super().__init__()
        self.T = T
        self.trunk = trunk(lambda: neuron.LIFNode(tau=2.0, v_threshold=0.3))
        self.fc1 = nn.Linear(36, 12)
        self.fc2 = nn.Linear(12, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.fc2(torch.relu(self.fc1(self.trunk(x).mean(0))))


class SharedLevel(base.MemoryModule):
    """Homeostasis: one level of activity for the whole batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_memory("level", torch.zeros(width))

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.level = 0.8 * self.level + 0.2 * x.mean(0)
        return x - self.level


def ready(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The model with weights of a fixed seed, and input currents that are large enough for spikes."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(7)
            model = make().eval()
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.weight.mul_(3.0)
        return model

    return build


def refused(
    name: str, make: Callable[[], nn.Module], match: str, row: tuple[int, ...] = VECTOR, **rest: Any
) -> Refused:
    return Refused(name, ready(make), row, T, f"(?i){match}", **rest)


def of_one_generation() -> list[Refused]:
    if OLD:
        return [
            refused("Delay in multi-step mode", lambda: DelegatingStepper(layer.Delay(1, step_mode="m")), ANEW),
        ]
    return [
        refused("PSN", lambda: DelegatingStepper(neuron.PSN(T)), ALL_AT_ONCE),
        refused(
            "MaskedPSN", lambda: DelegatingStepper(neuron.MaskedPSN(2, T, lambda_init=1.0, step_mode="m")), ALL_AT_ONCE
        ),
        refused("SlidingPSN", lambda: DelegatingStepper(sliding_psn()), f"{ANEW}|{ALL_AT_ONCE}"),
        refused("GatedLIF", lambda: AroundImages(neuron.GatedLIFNode(T, inplane=4)), ALL_AT_ONCE, IMAGE),
        refused("DSR", lambda: DelegatingStepper(neuron.DSRIFNode(T, v_threshold=1.5, alpha=0.8)), ANEW),
        # In 0.0.0.0.14 the two are no modules and cannot be called.
        refused("temporal attention", lambda: AroundImages(layer.TemporalWiseAttention(T, 2)), ALL_AT_ONCE, IMAGE),
        refused(
            "multi-dimensional attention",
            lambda: AroundImages(layer.MultiDimensionalAttention(T, 4, reduction_t=2, reduction_c=2)),
            ALL_AT_ONCE,
            IMAGE,
        ),
        refused("TEBN", lambda: DelegatingStepper(temporal_norm()), ALL_AT_ONCE),
        refused("non-spiking node that decodes", DecodesMembrane, ANEW),
    ]


REFUSED: list[Refused] = [
    refused("a matrix over time", lambda: DelegatingStepper(MixesTimesteps()), ALL_AT_ONCE),
    refused("attention over time", lambda: DelegatingStepper(AttendsToTime(12)), ALL_AT_ONCE),
    refused("normalisation over time", lambda: DelegatingStepper(NormalisesOverTime()), ALL_AT_ONCE),
    refused("a factor for each timestep", lambda: DelegatingStepper(ScalesEachTimestep()), ALL_AT_ONCE),
    refused("a layer in both directions", BothDirections, f"{ALL_AT_ONCE}|{ANEW}", **sequence(0)),
    refused("a node that loops over time itself", lambda: DelegatingStepper(LoopsOverTimeItself()), ANEW),
    refused("batch mean", lambda: DelegatingStepper(MinusBatchMean(1)), ROWS),
    refused("batch mean in a loop", lambda: InALoop(MinusBatchMean(0)), ROWS),
    refused("batch statistics", lambda: InALoop(nn.BatchNorm1d(12, track_running_stats=False)), ROWS),
    refused("attention over rows", lambda: DelegatingStepper(AttendsToRows()), ROWS),
    refused("attention over rows in a loop", lambda: InALoop(AttendsToRows()), ROWS),
    refused("a level that rows share", lambda: InALoop(SharedLevel(12)), ROWS),
    refused("Poisson encoder", lambda: InALoop(encoding.PoissonEncoder()), CHANCE),
    refused("Poisson encoder, repeated", PoissonCoded, CHANCE),
    refused("DropConnect", lambda: InALoop(layer.DropConnectLinear(12, 12, samples_num=4)), CHANCE),
    refused("an early exit of its own", StopsAsABatch, f"{LOOP}|{ROWS}", IMAGE),
    refused("a while loop", CountsDown, LOOP, IMAGE),
    refused("two loops, one in the other", TwoViews, LOOP, IMAGE),
    refused("a nonlinear head on the mean", NonlinearHeadOnMean, MEAN, IMAGE),
    *of_one_generation(),
]
