"""Spikformer (SpikingJelly 2.0) on CIFAR-10 that stops at every image as soon as it knows the answer.

    python examples/cifar10_spikformer.py --data DIR --pretrained   # numbers in a minute
    python examples/cifar10_spikformer.py --data DIR                # train it: wants a GPU

Training goes on where it was interrupted, after the last whole epoch. DIR holds CIFAR-10 as torchvision downloads it
(it does, if nothing is there), or ``train/<class>/`` and ``test/<class>/`` of image files.
"""

from __future__ import annotations

from functools import partial

from common import Example, Stage, cifar10_card, main
from seenn_spikingjelly.networks import run, spikformer

from seenn_plugin.training import Recipe

TIMESTEPS = 4

EXAMPLE = Example(
    name="cifar10-spikformer",
    card=cifar10_card("Spikformer-4-256 on CIFAR-10", "seenn_spikingjelly.networks:spikformer", TIMESTEPS),
    build=spikformer,
    stages=[
        # After arXiv 2209.15425, which trains for 300 epochs and asks the mean over time alone for the answer.
        Stage(
            "all-timesteps",
            Recipe(
                epochs=100,
                optimizer="adamw",
                learning_rate=5e-4,
                weight_decay=0.06,
                warmup=7,
                label_smoothing=0.1,
                cutmix=0.5,
            ),
            partial(run, timesteps=TIMESTEPS),
            {"augment": "auto"},
        )
    ],
)

if __name__ == "__main__":
    main(EXAMPLE)
