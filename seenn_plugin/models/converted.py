"""Conventional networks, trained with quantised activations, that SpikingJelly's ``ann2snn`` makes spiking ones of.

A neuron that integrates a constant current without leak, from half its threshold on, and fires whenever the threshold
is reached, has fired after t timesteps as often as a staircase with t steps says. A network that is trained with such a
staircase (QCFS) in the place of the ReLU is therefore used to what conversion does to it; what remains is that spikes
do not arrive evenly.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from spikingjelly.activation_based import ann2snn, functional, neuron
from spikingjelly.activation_based.ann2snn.modules import VoltageScaler
from torch import Tensor, fx, nn


class QCFS(nn.Module):
    """Quantisation, clip, floor, shift: ``threshold * clip(floor(levels * x / threshold + 1/2) / levels, 0, 1)``.

    Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks", ICLR 2022
    (arXiv 2303.04347). The gradient passes the staircase as if it were its slope; the threshold is learned.

    Args:
        levels: steps of the staircase.
        threshold: the highest value, to begin with.
    """

    def __init__(self, levels: int = 8, threshold: float = 4.0) -> None:
        super().__init__()
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        share = (x / self.threshold).clamp(0, 1)
        with torch.no_grad():
            rounding = torch.floor(share * self.levels + 0.5) / self.levels - share
        return (share + rounding) * self.threshold

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, added up before the second activation."""

    def __init__(self, channels: int, width: int, stride: int, levels: int) -> None:
        super().__init__()
        same = stride == 1 and channels == width
        self.branch = nn.Sequential(
            *_convolution(channels, width, 3, stride), QCFS(levels), *_convolution(width, width, 3)
        )
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, width, 1, stride))
        self.activation = QCFS(levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))


def small_quantised_resnet(channels: int = 32, blocks: int = 1, classes: int = 10, levels: int = 8) -> nn.Module:
    """A conventional ResNet for images of 32 x 32 pixels, to be converted: ``[N, 3, 32, 32]`` to ``[N, C]``.

    The stem is pooled to 16 x 16 before it is quantised, so that neurons pass on spikes and not means of spikes.

    Args:
        channels: of the stem and the first of three stages; the others have two and four times as many.
        blocks: in each stage.
        classes: of the head.
        levels: of every activation.
    """
    layers = [*_convolution(3, channels, 3), nn.AvgPool2d(2), QCFS(levels)]
    width = channels
    for stage in range(3):
        for block in range(blocks):
            first = stage and not block
            layers.append(ResidualBlock(width, channels * 2**stage, 2 if first else 1, levels))
            width = channels * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def small_converted_resnet(channels: int = 32, blocks: int = 1, classes: int = 10) -> nn.Module:
    """:func:`small_quantised_resnet`, converted: a call is a timestep, ``[N, 3, 32, 32]`` to currents ``[N, C]``."""
    return convert(small_quantised_resnet(channels, blocks, classes), torch.zeros(1, 3, 32, 32))


def convert(ann: nn.Module, example: Tensor) -> fx.GraphModule:
    """The spiking network that SpikingJelly makes of a network with QCFS activations, which stays as it is.

    Batch normalisation is folded into convolutions, and every activation becomes an integrate-and-fire neuron with soft
    reset, which has the learned threshold and begins at half of it, as the shift by 1/2 asks for.

    Args:
        ann: its activations are :class:`QCFS`.
        example: an input ``[N, ...]``. Its values do not matter.

    Returns:
        One call is one timestep. The names in its ``state_dict`` do not depend on SpikingJelly's version.
    """
    ann = copy.deepcopy(ann).eval()
    for name, module in list(ann.named_modules()):
        if isinstance(module, QCFS):
            ann.set_submodule(name, _showing(module.threshold.detach()))
    snn = _spiking(ann, [(example, None)])
    _rename(snn)
    for module in snn.modules():
        if isinstance(module, neuron.IFNode):
            module.set_reset_value("v", module.v_threshold / 2)
    functional.reset_net(snn)
    return snn


def run(model: nn.Module, x: Tensor, timesteps: int) -> Tensor:
    """SpikingJelly's own run, from a fresh state: the same ``[N, ...]`` at every timestep to outputs ``[T, N, C]``."""
    functional.reset_net(model)
    outputs = torch.stack([model(x) for _ in range(timesteps)])
    functional.reset_net(model)
    return outputs


def _showing(threshold: Tensor) -> nn.ReLU:
    """A ReLU that shows the converter, which makes a threshold of the largest activation that it sees, this one."""
    relu = nn.ReLU()

    def show(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.full_like(output, float(threshold))

    relu.register_forward_hook(show)
    return relu


def _spiking(ann: nn.Module, batches: list[tuple[Tensor, None]]) -> fx.GraphModule:
    converter: Any = ann2snn.Converter
    if hasattr(ann2snn, "RateCodingRecipe"):  # 2.0
        return converter(ann2snn.RateCodingRecipe(batches, mode="max")).convert(ann)
    return converter(batches, mode="max")(ann)


def _rename(snn: fx.GraphModule) -> None:
    """Call scaler, neuron, scaler of the k-th activation ``spiking.k.0`` to ``.2``: every version has its own names."""
    calls = [node for node in snn.graph.nodes if node.op == "call_module"]
    parts = [(node, snn.get_submodule(str(node.target))) for node in calls]
    spiking = [(node, part) for node, part in parts if isinstance(part, neuron.IFNode | VoltageScaler)]
    for position, (node, part) in enumerate(spiking):
        node.target = f"spiking.{position // 3}.{position % 3}"
        snn.add_submodule(node.target, part)
    snn.delete_all_unused_submodules()
    snn.recompile()


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(width)
