"""A small SEW-ResNet (SpikingJelly) on CIFAR-10 that stops at every image as soon as it knows the answer.

    python examples/cifar10_sew_resnet.py --data DIR --pretrained   # numbers in a minute
    python examples/cifar10_sew_resnet.py --data DIR                # train it, an hour or two on two cores
    python examples/cifar10_sew_resnet.py --network sew_resnet18 --data DIR   # SpikingJelly's SEW-ResNet18: wants a GPU

Training compiles the network, which needs a C++ compiler (``--no-compile`` turns it off). Interrupted training
continues after the last complete epoch. DIR holds CIFAR-10 as torchvision downloads it (if DIR is empty, it does), or
image files in ``train/<class>/`` and ``test/<class>/``.
"""

from __future__ import annotations

from functools import partial

import torch
from common import Example, Stage, argument_parser, cifar10_card, run_example
from torch import Tensor, nn

from seenn_plugin.models.spikingjelly import run, sew_resnet18, small_sew_resnet
from seenn_plugin.training import Recipe

TIMESTEPS = 4
NETWORK = {"channels": 48}


def build() -> nn.Module:
    return small_sew_resnet(**NETWORK).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def forward(model: nn.Module, images: Tensor, timesteps: int) -> Tensor:
    return run(model, images.contiguous(memory_format=torch.channels_last), timesteps)


EXAMPLE = Example(
    name="cifar10-small-sew-resnet",
    card=cifar10_card(
        "Small SEW-ResNet on CIFAR-10", "seenn_plugin.models.spikingjelly:small_sew_resnet", TIMESTEPS, NETWORK
    ),
    build=build,
    stages=[
        # One timestep teaches most of it, at a quarter of the price.
        Stage(
            "one-timestep",
            Recipe(epochs=30, learning_rate=0.1, warmup=1, amp="bf16", compile=True),
            partial(forward, timesteps=1),
            {"augment": "crop"},
        ),
        Stage(
            "all-timesteps",
            Recipe(epochs=10, learning_rate=0.05, warmup=0.5, ema=0.999, amp="bf16", compile=True),
            partial(forward, timesteps=TIMESTEPS),
            {"augment": "crop"},
        ),
    ],
)

LARGE = Example(
    name="cifar10-sew-resnet18",
    card=cifar10_card("SEW-ResNet18 on CIFAR-10", "seenn_plugin.models.spikingjelly:sew_resnet18", TIMESTEPS),
    build=sew_resnet18,
    stages=[
        Stage(
            "all-timesteps",
            Recipe(epochs=100, learning_rate=0.1, warmup=5, cutmix=0.5),
            partial(run, timesteps=TIMESTEPS),
            {"augment": "auto"},
        )
    ],
)

EXAMPLES = {"small_sew_resnet": EXAMPLE, "sew_resnet18": LARGE}

if __name__ == "__main__":
    parser = argument_parser("SEW-ResNet on CIFAR-10")
    parser.add_argument("--network", choices=EXAMPLES, default="small_sew_resnet")
    asked = parser.parse_args()
    run_example(EXAMPLES[asked.network], asked)
