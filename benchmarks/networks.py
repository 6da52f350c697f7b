"""The networks that the benchmarks run, with random weights: timing does not depend on what was learnt."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class SpikingJellyNetwork:
    """SEW-ResNet18 with a CIFAR stem (3x3, stride 1, no max-pool), in SpikingJelly's multi-step mode."""

    name = "SEW-ResNet18, CIFAR stem (SpikingJelly)"
    framework = "spikingjelly"

    def __init__(self) -> None:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate
        from spikingjelly.activation_based.model import sew_resnet

        self.functional = functional
        torch.manual_seed(0)
        self.model = sew_resnet.sew_resnet18(
            num_classes=10,
            cnf="ADD",
            spiking_neuron=neuron.LIFNode,  # pyright: ignore[reportArgumentType]
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
        )
        self.model.conv1 = layer.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        setattr(self.model, "maxpool", nn.Identity())  # noqa: B010 (declared as a MaxPool2d)
        functional.set_step_mode(self.model, "m")
        self.model.eval()

    def inputs(self, n: int) -> Tensor:
        return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def full(self, x: Tensor, timesteps: int) -> Any:
        """The stock full run: all timesteps in one multi-step call."""
        outputs = self.model(x.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1))
        self.functional.reset_net(self.model)
        return outputs

    def stepped(self, x: Tensor, timesteps: int) -> Any:
        """The stock network in single-step mode, in its user's own loop."""
        outputs = [self.model(x) for _ in range(timesteps)]
        self.functional.reset_net(self.model)
        return outputs

    def set_stepped(self, on: bool) -> None:
        """Switch the stock network to single-step mode and back, outside of what is timed."""
        self.functional.set_step_mode(self.model, "s" if on else "m")


class SnnTorchNetwork:
    """A convolutional net of snnTorch's usual form: ``nn.Sequential`` with hidden states, stepped by a loop."""

    name = "conv net 64-128-256 (snnTorch)"
    framework = "snntorch"

    def __init__(self) -> None:
        import snntorch

        torch.manual_seed(0)
        layers: list[nn.Module] = []
        channels = 3
        for width in (64, 128, 256):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers += [snntorch.Leaky(beta=0.5, init_hidden=True), nn.MaxPool2d(2)]
            channels = width
        layers += [nn.Flatten(), nn.Linear(256 * 16, 10), snntorch.Leaky(beta=0.5, init_hidden=True, output=True)]
        self.model = nn.Sequential(*layers).eval()
        self.neurons = [layer for layer in layers if isinstance(layer, snntorch.Leaky)]

    def inputs(self, n: int) -> Tensor:
        return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def full(self, x: Tensor, timesteps: int) -> Any:
        """The stock full run: the framework has no multi-step mode, so this is its user's loop."""
        for neuron in self.neurons:
            neuron.reset_mem()
        return [self.model(x) for _ in range(timesteps)]

    stepped = full

    def set_stepped(self, on: bool) -> None:
        """There is but one mode."""


class LoopInside(nn.Module):
    """The same conv net in the form of snnTorch's tutorials: explicit membranes, all timesteps inside ``forward``."""

    def __init__(self, timesteps: int) -> None:
        import snntorch

        super().__init__()
        torch.manual_seed(0)
        self.num_steps = timesteps
        widths = (3, 64, 128, 256)
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.lifs = nn.ModuleList(snntorch.Leaky(beta=0.5) for _ in pairs)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(256 * 16, 10)
        self.lif_out = snntorch.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        mems = [lif.init_leaky() for lif in self.lifs]  # pyright: ignore[reportCallIssue]
        mem_out = self.lif_out.init_leaky()
        spk_rec = []
        for _ in range(self.num_steps):
            y = x
            for i, (conv, norm, lif) in enumerate(zip(self.convs, self.norms, self.lifs, strict=True)):
                y, mems[i] = lif(norm(conv(y)), mems[i])
                y = self.pool(y)
            spk, mem_out = self.lif_out(self.fc(y.flatten(1)), mem_out)
            spk_rec.append(spk)
        return torch.stack(spk_rec)


NETWORKS = {network.framework: network for network in (SpikingJellyNetwork, SnnTorchNetwork)}
