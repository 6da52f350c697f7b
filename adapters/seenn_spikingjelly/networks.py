"""Networks of the field that SpikingJelly does not ship, each in multi-step mode: ``[T, N, ...]`` to ``[T, N, C]``.

Nothing here knows of early exit: the wrapper takes these networks as it takes anybody else's.
"""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn


def run(model: nn.Module, x: Tensor, timesteps: int) -> Tensor:
    """SpikingJelly's own run, from a fresh state: the same ``[N, ...]`` at every timestep to outputs ``[T, N, C]``."""
    return run_sequence(model, x.unsqueeze(0).expand(timesteps, *x.shape))


def run_sequence(model: nn.Module, frames: Tensor) -> Tensor:
    """SpikingJelly's own run, from a fresh state: one of ``[T, N, ...]`` at each timestep to outputs ``[T, N, C]``."""
    functional.reset_net(model)
    outputs = model(frames)
    functional.reset_net(model)  # or the membrane potentials would keep the graph of this run alive
    return outputs


class SEWBlock(nn.Module):
    """Spike-element-wise residual block, ADD: spikes of the branch plus those of the shortcut (arXiv 2102.04159)."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        same = stride == 1 and channels == width
        self.branch = nn.Sequential(
            *_convolution(channels, width, 3, stride), _lif(), *_convolution(width, width, 3), _lif()
        )
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, width, 1, stride), _lif())

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


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


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = layer.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, layer.BatchNorm2d(width)


def _lif(**options: Any) -> nn.Module:
    return neuron.LIFNode(**{"surrogate_function": surrogate.ATan(), "detach_reset": True, **options})
