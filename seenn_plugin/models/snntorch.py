"""Networks as snnTorch's tutorials write them, all timesteps inside ``forward``.

They contain no early exit.
"""

from __future__ import annotations

from collections.abc import Sequence

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn


class ConvNet(nn.Module):
    """A convolutional network of Leaky neurons, for images of 28 x 28 pixels, shown at every timestep.

    Images ``[N, 1, 28, 28]`` to the membrane potentials of the output neurons ``[T, N, classes]``.

    Args:
        num_steps: T.
        channels: of the first and of the second convolution.
        beta: decay of every membrane potential per timestep.
        classes: output neurons.
    """

    def __init__(
        self, num_steps: int = 8, channels: Sequence[int] = (12, 32), beta: float = 0.5, classes: int = 10
    ) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.pool1 = nn.MaxPool2d(2)
        self.lif1 = snn.Leaky(beta=beta)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.pool2 = nn.MaxPool2d(2)
        self.lif2 = snn.Leaky(beta=beta)
        self.fc = nn.Linear(channels[1] * 4 * 4, classes)
        self.lif3 = snn.Leaky(beta=beta)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        mem3_rec = []

        for _ in range(self.num_steps):
            cur1 = self.pool1(self.conv1(x))
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.pool2(self.conv2(spk1))
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc(spk2.flatten(1))
            _, mem3 = self.lif3(cur3, mem3)
            mem3_rec.append(mem3)

        return torch.stack(mem3_rec)


class RecurrentNet(nn.Module):
    """One timestep of a recurrent layer of RLeaky neurons, read out by leaky integrators that never spike.

    Features ``[N, features]`` to the membrane potentials of the output neurons, ``[N, classes]``; the neurons keep
    their states.

    Args:
        features: of the input.
        hidden: recurrent neurons, each connected to all.
        beta: decay of their membrane potentials per timestep.
        beta_out: decay of those of the output neurons.
        classes: output neurons.
    """

    def __init__(
        self, features: int = 12, hidden: int = 128, beta: float = 0.9, beta_out: float = 0.9, classes: int = 7
    ) -> None:
        super().__init__()
        spike_grad = surrogate.fast_sigmoid(slope=25)
        self.fc1 = nn.Linear(features, hidden)
        self.lif1 = snn.RLeaky(beta=beta, linear_features=hidden, spike_grad=spike_grad, init_hidden=True)
        self.fc2 = nn.Linear(hidden, classes)
        self.lif2 = snn.Leaky(beta=beta_out, reset_mechanism="none", init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        spk1 = self.lif1(self.fc1(x))
        _, mem2 = self.lif2(self.fc2(spk1))
        return mem2


def run_sequence(model: nn.Module, frames: Tensor) -> Tensor:
    """snnTorch's own run of a one-step network, from a fresh state: frames ``[T, N, ...]`` to outputs ``[T, N, C]``."""
    for module in model.modules():
        if isinstance(module, snn.SpikingNeuron):
            # Not utils.reset, which resets the neurons of every network of the process.
            module.reset_mem()  # pyright: ignore[reportCallIssue]
    return torch.stack([model(frame) for frame in frames])
