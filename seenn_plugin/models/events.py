"""The VGG of the field for event frames, in multi-step mode: ``[T, N, 2, H, W]`` to ``[T, N, C]``.

It contains no early exit.
"""

from __future__ import annotations

from collections.abc import Sequence

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from ..errors import InputError

STAGES = ((64, 128), (256, 256), (512, 512), (512, 512))


def event_vgg(stages: Sequence[Sequence[int]] = STAGES, size: int = 48, classes: int = 10) -> nn.Module:
    """VGGSNN, on which CIFAR10-DVS is commonly measured: TET, arXiv 2202.11946, with its LIF neurons.

    Each convolution is followed by batch normalisation and LIF neurons, each stage by average pooling that halves the
    frame, and the last one by a linear head whose output currents are the answer. The neurons add their input to half
    of their potential.

    Args:
        stages: channels of the convolutions of each stage. Fewer and narrower ones make a network for small frames.
        size: height and width of a frame, in pixels.
        classes: of the head.

    Raises:
        InputError: so many stages leave nothing of the frame, or a stage is empty.
    """
    left = size >> len(stages)  # each pooling drops the odd row
    if not left or not stages or not all(stages):
        raise InputError(f"frames of {size} x {size} pixels cannot be halved by the stages {stages}.")
    layers: list[nn.Module] = []
    width = 2
    for stage in stages:
        for channels in stage:
            layers += [
                layer.Conv2d(width, channels, 3, padding=1, bias=False),
                layer.BatchNorm2d(channels),
                neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True),
            ]
            width = channels
        layers.append(layer.AvgPool2d(2))
    model = nn.Sequential(*layers, layer.Flatten(), layer.Linear(width * left**2, classes))
    functional.set_step_mode(model, "m")
    return model
