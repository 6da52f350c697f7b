"""Networks of the field for images of 32 x 32 pixels, each in multi-step mode: ``[T, N, ...]`` to ``[T, N, C]``.

They contain no early exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

from ..errors import OptionalDependencyError
from .blocks import SpikeAddBlock


def run(model: nn.Module, x: Tensor, timesteps: int) -> Tensor:
    """SpikingJelly's own run, from a fresh state: the same ``[N, ...]`` at every timestep to outputs ``[T, N, C]``."""
    return run_sequence(model, x.unsqueeze(0).expand(timesteps, *x.shape))


def run_sequence(model: nn.Module, frames: Tensor) -> Tensor:
    """SpikingJelly's own run, from a fresh state: one of ``[T, N, ...]`` at each timestep to outputs ``[T, N, C]``."""
    functional.reset_net(model)
    outputs = model(frames)
    functional.reset_net(model)  # or the membrane potentials would keep the graph of this run alive
    return outputs


class SEWBlock(SpikeAddBlock):
    """SEW block, ADD, of two convolutions (arXiv 2102.04159).

    Args:
        channels, width: channels of input and output.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        same = stride == 1 and channels == width
        branch = nn.Sequential(
            *_convolution(channels, width, 3, stride), _lif(), *_convolution(width, width, 3), _lif()
        )
        shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, width, 1, stride), _lif())
        super().__init__(branch, shortcut)


def small_sew_resnet(channels: int = 32, blocks: int = 1, classes: int = 10) -> nn.Module:
    """A SEW-ResNet for images of 32 x 32 pixels that a laptop can train: three stages of SEW blocks, ADD.

    The spikes of the stem are pooled to 16 x 16 at once, which is what makes it cheap.

    Args:
        channels: of the stem and the first stage; the others have two and four times as many.
        blocks: in each stage.
        classes: of the head.
    """
    layers = [*_convolution(3, channels, 3), _lif(), layer.MaxPool2d(2)]
    width = channels
    for stage in range(3):
        for block in range(blocks):
            first = stage and not block
            layers.append(SEWBlock(width, channels * 2**stage, stride=2 if first else 1))
            width = channels * 2**stage
    layers += [layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(width, classes)]
    model = nn.Sequential(*layers)
    functional.set_step_mode(model, "m")
    return model


def sew_resnet18(classes: int = 10) -> nn.Module:
    """SpikingJelly's SEW-ResNet18, ADD (arXiv 2102.04159), with a stem that leaves 32 x 32 pixels as they are.

    Args:
        classes: of the head.
    """
    model = sew_resnet.sew_resnet18(
        num_classes=classes,
        cnf="ADD",
        spiking_neuron=_lif,  # pyright: ignore[reportArgumentType]
    )
    model.conv1 = layer.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    setattr(model, "maxpool", nn.Identity())  # noqa: B010 (declared as a MaxPool2d)
    functional.set_step_mode(model, "m")
    return model


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, added up before the second neuron fires."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and channels == width
        self.branch = nn.Sequential(
            *_convolution(channels, width, 3, stride), _seenn_lif(), *_convolution(width, width, 3)
        )
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, width, 1, stride))
        self.neuron = _seenn_lif()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.branch(x) + self.shortcut(x))


def resnet19(
    widths: Sequence[int] = (128, 256, 512), blocks: Sequence[int] = (3, 3, 2), hidden: int = 256, classes: int = 10
) -> nn.Module:
    """The ResNet-19 of SEENN (arXiv 2304.01230), with a head of two layers.

    In multi-step mode, batch normalisation takes its statistics over timesteps and rows; before neurons with the
    threshold 1 that is threshold-dependent batch normalisation (tdBN, arXiv 2011.05280).

    Args:
        widths: channels of the stages.
        blocks: residual blocks of each.
        hidden: neurons of the head.
        classes: of the head.
    """
    width = widths[0]
    layers: list[nn.Module] = [*_convolution(3, width, 3), _seenn_lif()]
    for stage, (channels, number) in enumerate(zip(widths, blocks, strict=True)):
        for block in range(number):
            layers.append(ResidualBlock(width, channels, stride=2 if stage and not block else 1))
            width = channels
    layers += [layer.AdaptiveAvgPool2d(1), layer.Flatten()]
    layers += [layer.Linear(width, hidden), _seenn_lif(), layer.Linear(hidden, classes)]
    model = nn.Sequential(*layers)
    functional.set_step_mode(model, "m")
    return model


def spikformer(width: int = 256, depth: int = 4, heads: int = 8, classes: int = 10, **neuron_options: Any) -> nn.Module:
    """SpikingJelly's Spikformer (arXiv 2209.15425) for 32 x 32 pixels, in patches of 4 x 4.

    Args:
        width: of the embedding.
        depth: transformer blocks.
        heads: of the attention.
        classes: of the head.
        neuron_options: of all its LIF neurons, as ``tau`` and ``decay_input``.

    Raises:
        OptionalDependencyError: this SpikingJelly is too old to have one.
    """
    try:
        from spikingjelly.activation_based.model.spikformer import Spikformer
    except ImportError as error:
        raise OptionalDependencyError("SpikingJelly 2.0", "spikingjelly", "Spikformer") from error
    return Spikformer(
        img_size_h=32,
        img_size_w=32,
        patch_size=4,
        num_classes=classes,
        embed_dims=width,
        num_heads=heads,
        depths=depth,
        **neuron_options,
    )


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = layer.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, layer.BatchNorm2d(width)


def _lif() -> nn.Module:
    """``v <- v / 4 + x``, threshold 1, hard reset, a triangle for the gradient of the spike.

    Little of a potential outlives a timestep: the first timestep, which starts from nothing, fires nearly as the others
    do, and its answer is nearly as good.
    """
    return neuron.LIFNode(tau=4 / 3, decay_input=False, surrogate_function=_triangle(), detach_reset=True)


def _seenn_lif() -> nn.Module:
    """``v <- v / 2 + x``, threshold 1, hard reset, a triangle for the gradient of the spike, as SEENN trains it."""
    return neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=_triangle())


def _triangle() -> surrogate.PiecewiseQuadratic:
    return surrogate.PiecewiseQuadratic(alpha=1.0)
