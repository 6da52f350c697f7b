"""The networks that the benchmarks run, each as users of its framework write and run it.

Weights are random, because timing does not depend on what was learnt; but for the two of ``seenn demo``, which are
trained in seconds, so that their exits are real.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

CLASSES = 10
_GAIN = 2.0


class Network(ABC):
    """A network, and its framework's own ways to run it.

    Attributes:
        name: for tables.
        framework: whose modules it is made of.
        readout: how its answer is read from the outputs of the timesteps: ``"mean"`` or ``"sum"``.
        row: shape of one row of the input.
    """

    name: str
    framework: ClassVar[str]
    readout: str = "mean"
    row: tuple[int, ...] = (3, 32, 32)
    model: nn.Module

    def inputs(self, n: int) -> Tensor:
        """Made-up rows ``[n, ...]``, the same ones at every call: for images, coarse patterns under noise."""
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(n, *self.row, generator=generator)
        if len(self.row) != 3:
            return noise
        channels, height, width = self.row
        coarse = torch.randn(n, channels, 4, 4, generator=generator)
        return coarse.repeat_interleave(height // 4, 2).repeat_interleave(width // 4, 3) + noise / 2

    @abstractmethod
    def full(self, x: Tensor, timesteps: int) -> Tensor:
        """The stock run of all timesteps, as fast as the framework offers it: outputs ``[T, N, C]``."""

    @abstractmethod
    def steps(self, x: Tensor, timesteps: int) -> Generator[Tensor]:
        """The stock network in its user's own loop: outputs ``[N, C]``, one after the other; within :meth:`stepped`."""

    @contextmanager
    def stepped(self) -> Iterator[None]:
        """The stock network set up for :meth:`steps`."""
        yield

    @torch.no_grad()
    def prepare(self) -> None:
        """Make fresh weights fire, and tell rows apart, as trained ones do: silent networks answer all rows alike.

        What goes into the neurons, and what comes out of a head, gets the mean 0 and the deviation ``_GAIN`` on the
        made-up rows: by the statistics of the batch norms, and by weight and bias of the linear layers.
        """

        def centre(layer: nn.Linear, _: Any, output: Tensor) -> Tensor:
            rows = output.flatten(0, -2)
            mean, scale = rows.mean(0), _GAIN / rows.std(0).clamp_min(1e-3)
            layer.weight.mul_(scale.unsqueeze(1))
            layer.bias.sub_(mean).mul_(scale)
            hooks.pop(layer).remove()  # by the first timestep
            return (output - mean) * scale

        hooks = {m: m.register_forward_hook(centre) for m in self.model.modules() if isinstance(m, nn.Linear)}
        for norm in self.model.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.weight.fill_(_GAIN)
                norm.momentum = None  # plain mean
        self.model.train()
        self.full(self.inputs(16), 2)
        self.model.eval()

    def use_fastest_backend(self, device: torch.device) -> str:
        """Set, where there is a choice, the backend that makes :meth:`full` fastest, and name it."""
        return "torch"


# -- SpikingJelly -------------------------------------------------------------------------------------------------


class SpikingJellyNetwork(Network):
    """A network in multi-step mode: ``[T, N, ...]`` to ``[T, N, C]``."""

    framework = "spikingjelly"
    single_steps = True  # whether all of its layers know single-step mode

    def __init__(self) -> None:
        from spikingjelly.activation_based import functional

        self.functional: Any = functional
        torch.manual_seed(0)
        self.model = self.build()
        functional.set_step_mode(self.model, "m")
        self.model.eval()
        self.prepare()

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with weights from the seed that is set."""

    def full(self, x: Tensor, timesteps: int) -> Tensor:
        outputs = self.model(x.unsqueeze(0).repeat(timesteps, *(1,) * x.dim()))
        self.functional.reset_net(self.model)
        return outputs

    def steps(self, x: Tensor, timesteps: int) -> Generator[Tensor]:
        try:
            for _ in range(timesteps):
                yield self.model(x) if self.single_steps else self.model(x.unsqueeze(0))[0]
        finally:
            self.functional.reset_net(self.model)

    @contextmanager
    def stepped(self) -> Iterator[None]:
        if self.single_steps:
            self.functional.set_step_mode(self.model, "s")
        try:
            yield
        finally:
            self.functional.set_step_mode(self.model, "m")

    def use_fastest_backend(self, device: torch.device) -> str:
        if not hasattr(self.functional, "set_backend"):  # 2.0 chooses by itself
            return self.functional.neuron_implementation("lif", device)["implementation"]
        if device.type == "cuda":
            self.functional.set_backend(self.model, "cupy")
            return "cupy"
        return "torch"


class SEWResNet18(SpikingJellyNetwork):
    """SEW-ResNet18 with a CIFAR stem (3x3, stride 1, no max-pool)."""

    name = "SEW-ResNet18, CIFAR stem (SpikingJelly)"

    def build(self) -> nn.Module:
        from seenn_plugin.models.spikingjelly import sew_resnet18

        return sew_resnet18(CLASSES)


class ResNet19(SpikingJellyNetwork):
    """The ResNet-19 of SEENN: stages of 3, 3 and 2 blocks with 128, 256 and 512 channels, and a head of two layers."""

    name = "ResNet-19, 128-256-512 (SpikingJelly)"

    def build(self) -> nn.Module:
        from seenn_plugin.models.spikingjelly import resnet19

        return resnet19(classes=CLASSES)


class Tiny(SpikingJellyNetwork):
    """The same kind of network, small enough to rehearse with."""

    name = "a tiny ResNet (SpikingJelly)"
    row = (3, 8, 8)

    def build(self) -> nn.Module:
        from seenn_plugin.models.spikingjelly import resnet19

        return resnet19(widths=(8, 16), blocks=(1, 1), hidden=16, classes=CLASSES)


class Spikformer(SpikingJellyNetwork):
    """Spikformer-4-256 for CIFAR-10, as SpikingJelly 2.0 ships it."""

    name = "Spikformer-4-256 (SpikingJelly)"
    single_steps = False

    def build(self) -> nn.Module:
        from seenn_plugin.models.spikingjelly import spikformer

        return spikformer(classes=CLASSES)


# -- snnTorch -----------------------------------------------------------------------------------------------------


class SnnTorchNetwork(Network):
    """``nn.Sequential`` with hidden states, stepped by its user's loop: the framework has no multi-step mode."""

    framework = "snntorch"
    readout = "sum"

    def __init__(self) -> None:
        import snntorch

        torch.manual_seed(0)
        self.model = self.build().eval()
        self.neurons = [module for module in self.model.modules() if isinstance(module, snntorch.SpikingNeuron)]
        self.prepare()

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with weights from the seed that is set."""

    def full(self, x: Tensor, timesteps: int) -> Tensor:
        return torch.stack(list(self.steps(x, timesteps)))

    def steps(self, x: Tensor, timesteps: int) -> Generator[Tensor]:
        for neuron in self.neurons:  # snntorch.utils.reset would reset the neurons of other networks as well
            neuron.reset_mem()  # pyright: ignore[reportCallIssue]
        for _ in range(timesteps):
            output = self.model(x)
            yield output[0] if isinstance(output, tuple) else output


class SnnTorchConvNet(SnnTorchNetwork):
    """A convolutional net of snnTorch's usual form."""

    name = "conv net 64-128-256 (snnTorch)"

    def build(self) -> nn.Module:
        import snntorch

        layers: list[nn.Module] = []
        channels = 3
        for width in (64, 128, 256):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers += [snntorch.Leaky(beta=0.5, init_hidden=True), nn.MaxPool2d(2)]
            channels = width
        layers += [nn.Flatten(), nn.Linear(256 * 16, CLASSES)]
        return nn.Sequential(*layers, snntorch.Leaky(beta=0.5, init_hidden=True, output=True))


class LoopInside(nn.Module):
    """The same conv net with explicit membranes, all timesteps inside ``forward``."""

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
        self.fc = nn.Linear(256 * 16, CLASSES)
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


class FullyConnected(nn.Module):
    """784-1000-10 in the form of snnTorch's fifth tutorial: all timesteps inside ``forward``."""

    def __init__(self, timesteps: int) -> None:
        import snntorch

        super().__init__()
        self.num_steps = timesteps
        self.fc1 = nn.Linear(784, 1000)
        self.lif1 = snntorch.Leaky(beta=0.95)
        self.fc2 = nn.Linear(1000, CLASSES)
        self.lif2 = snntorch.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


class SnnTorchFullyConnected(Network):
    """:class:`FullyConnected`. Its user stops it earlier by setting ``num_steps``, or by writing the loop anew."""

    name = "784-1000-10, loop inside (snnTorch)"
    framework = "snntorch"
    readout = "sum"
    row = (784,)
    timesteps = 4

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: FullyConnected = FullyConnected(self.timesteps).eval()
        self.prepare()

    def full(self, x: Tensor, timesteps: int) -> Tensor:
        self.model.num_steps = timesteps
        try:
            return self.model(x)[0]
        finally:
            self.model.num_steps = self.timesteps

    def steps(self, x: Tensor, timesteps: int) -> Generator[Tensor]:
        net = self.model
        mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
        for _ in range(timesteps):
            spk1, mem1 = net.lif1(net.fc1(x), mem1)
            spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
            yield spk2


# -- trained ------------------------------------------------------------------------------------------------------

SEED = 0


class OnDigits(Network):
    """A network of ``seenn demo``, trained as there, on the test images."""

    row = (1, 8, 8)
    readout = "mean"

    def inputs(self, n: int) -> Tensor:
        from seenn_plugin.demo.data import load

        return load(SEED).test.images[:n]

    def prepare(self) -> None:
        """Trained weights stay as they are."""


class DemoSEWResNet(OnDigits, SpikingJellyNetwork):
    name = "SEW-ResNet of the demo, trained (SpikingJelly)"

    def build(self) -> nn.Module:
        from seenn_plugin.models.digits import sew_resnet

        return _trained(sew_resnet())


class DemoConvNet(OnDigits, SnnTorchNetwork):
    """Unlike the other snnTorch networks, it answers with the currents of its head."""

    name = "conv net of the demo, trained (snnTorch)"

    def build(self) -> nn.Module:
        from seenn_plugin.models.digits import conv_net

        return _trained(conv_net())


def _trained(network: Any) -> nn.Module:
    from seenn_plugin.demo.data import load
    from seenn_plugin.demo.experiment import train

    train(network, load(SEED).train, network.epochs, SEED)
    return network.model


NETWORKS: dict[str, type[Network]] = {
    "sew-resnet18": SEWResNet18,
    "resnet19": ResNet19,
    "spikformer": Spikformer,
    "snntorch-conv": SnnTorchConvNet,
    "snntorch-loop": SnnTorchFullyConnected,
    "demo-spikingjelly": DemoSEWResNet,
    "demo-snntorch": DemoConvNet,
    "tiny": Tiny,
}
