"""Two small networks for handwritten digits of 8 x 8 pixels, written and run as users of their frameworks do.

They contain no early exit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import SpikeAddBlock

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """A network, the framework's own way to run it, and how it is trained.

    Attributes:
        name: for tables and figures.
        model: the network.
        run: the framework's own run from a fresh state: images ``[N, 1, 8, 8]`` and T to outputs ``[T, N, C]``.
    """

    name: str
    model: nn.Module
    run: Callable[[Tensor, int], Tensor]
    epochs: int
    batch_size: int
    learning_rate: float


def sew_resnet(channels: int = 24) -> Network:
    """A SEW-ResNet of two blocks in SpikingJelly, in multi-step mode, with its default LIF neurons."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def spiking_conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            layer.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            layer.BatchNorm2d(outputs),
            neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
        )

    wide = 2 * channels
    model = nn.Sequential(
        spiking_conv(1, channels),
        SpikeAddBlock(nn.Sequential(spiking_conv(channels, channels), spiking_conv(channels, channels)), nn.Identity()),
        SpikeAddBlock(
            nn.Sequential(spiking_conv(channels, wide, stride=2), spiking_conv(wide, wide)),
            spiking_conv(channels, wide, kernel=1, stride=2),
        ),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(wide, CLASSES),
    )
    functional.set_step_mode(model, "m")

    def run(images: Tensor, timesteps: int) -> Tensor:
        functional.reset_net(model)
        return model(images.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1))

    return Network("SEW-ResNet (SpikingJelly)", model, run, epochs=12, batch_size=64, learning_rate=1e-2)


def conv_net(channels: int = 32) -> Network:
    """A convolutional network of two layers in snnTorch, with hidden states; it answers with the head's currents."""
    import snntorch
    from snntorch import surrogate

    def leaky() -> snntorch.Leaky:
        return snntorch.Leaky(beta=0.9, spike_grad=surrogate.atan(), init_hidden=True)

    neurons = [leaky(), leaky()]
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        neurons[0],
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        neurons[1],
        nn.Flatten(),
        nn.Linear(2 * channels * 4 * 4, CLASSES),
    )

    def run(images: Tensor, timesteps: int) -> Tensor:
        for neuron in neurons:  # snntorch.utils.reset would reset the neurons of every other network as well
            neuron.reset_mem()
        return torch.stack([model(images) for _ in range(timesteps)])

    return Network("conv net (snnTorch)", model, run, epochs=15, batch_size=32, learning_rate=5e-3)
