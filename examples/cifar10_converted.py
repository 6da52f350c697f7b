"""A conventional ResNet, trained on CIFAR-10, converted by SpikingJelly's ``ann2snn``, and stopped early.

    python examples/cifar10_converted.py --data DIR --pretrained   # numbers in some minutes
    python examples/cifar10_converted.py --data DIR                # train and convert it, half an hour on one core

DIR holds CIFAR-10 as torchvision downloads it (if DIR is empty, it does), or image files in ``train/<class>/`` and
``test/<class>/``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Example, Stage, cifar10_card, main
from torch import Tensor, nn

from seenn_plugin.checkpoints.pretrained import Pretrained
from seenn_plugin.models.converted import convert, run, small_quantised_resnet
from seenn_plugin.training import Recipe

TIMESTEPS = 32
NETWORK = {"channels": 32}


class ConvertedExample(Example):
    """Its stages train the conventional network; its card is that of the spiking one."""

    def trained(self, root: Path, out: Path, device: str, workers: int, **changes: Any) -> Pretrained:
        conventional = super().trained(root, out, device, workers, **changes)
        card = conventional.card
        conversion = {"name": "conversion", "accuracy before": card.accuracy}
        images, _ = next(iter(conventional.batches(root, "validation")))
        spiking = Pretrained(
            convert(conventional.model, images.to(device)), replace(card, recipe=[*card.recipe, conversion])
        )
        return spiking.measured(partial(run, timesteps=card.wrapper["timesteps"]), root)


def build() -> nn.Module:
    return small_quantised_resnet(**NETWORK).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """The conventional network, as the run of one timestep."""
    return model(images.contiguous(memory_format=torch.channels_last)).unsqueeze(0)


EXAMPLE = ConvertedExample(
    name="cifar10-converted",
    card=cifar10_card(
        "Small ResNet on CIFAR-10, converted",
        "seenn_plugin.models.converted:small_converted_resnet",
        TIMESTEPS,
        NETWORK,
    ),
    build=build,
    stages=[
        Stage(
            "conventional",
            Recipe(epochs=10, learning_rate=0.1, warmup=1, loss="mean", amp="bf16"),
            forward,
            {"augment": "crop"},
        )
    ],
)

if __name__ == "__main__":
    main(EXAMPLE)
