"""Spikformer (SpikingJelly 2.0) on CIFAR-10 that stops at every image as soon as it knows the answer.

    python examples/cifar10_spikformer.py --data DIR --pretrained   # numbers in a minute
    python examples/cifar10_spikformer.py --data DIR                # train a small one, half an hour on two cores
    python examples/cifar10_spikformer.py --network spikformer_4_256 --data DIR   # that of the paper: wants a GPU

Training compiles the network, which needs a C++ compiler (``--no-compile`` turns it off). Interrupted training
continues after the last complete epoch. DIR holds CIFAR-10 as torchvision downloads it (if DIR is empty, it does), or
image files in ``train/<class>/`` and ``test/<class>/``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from common import Example, Stage, argument_parser, cifar10_card, run_example

from seenn_plugin.models.spikingjelly import run, spikformer
from seenn_plugin.training import Recipe

TIMESTEPS = 4
# Neurons that keep a quarter of their potential: the first timestep fires nearly as the others do.
SMALL = {"width": 64, "depth": 2, "heads": 4, "tau": 4 / 3, "decay_input": False}

# One timestep teaches most of it, at a quarter of the price.
FIRST = Recipe(epochs=6, optimizer="adamw", learning_rate=3e-3, weight_decay=0.06, warmup=1, amp="bf16", compile=True)
SECOND = replace(FIRST, epochs=2, learning_rate=1e-3, warmup=0.5, ema=0.99)

EXAMPLE = Example(
    name="cifar10-small-spikformer",
    card=cifar10_card("Small Spikformer on CIFAR-10", "seenn_plugin.models.spikingjelly:spikformer", TIMESTEPS, SMALL),
    build=lambda: spikformer(**SMALL),
    stages=[
        Stage("one-timestep", FIRST, partial(run, timesteps=1), {"augment": "crop"}),
        Stage("all-timesteps", SECOND, partial(run, timesteps=TIMESTEPS), {"augment": "crop"}),
    ],
)

LARGE = Example(
    name="cifar10-spikformer-4-256",
    card=cifar10_card("Spikformer-4-256 on CIFAR-10", "seenn_plugin.models.spikingjelly:spikformer", TIMESTEPS),
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

EXAMPLES = {"small_spikformer": EXAMPLE, "spikformer_4_256": LARGE}

if __name__ == "__main__":
    parser = argument_parser("Spikformer on CIFAR-10")
    parser.add_argument("--network", choices=EXAMPLES, default="small_spikformer")
    asked = parser.parse_args()
    run_example(EXAMPLES[asked.network], asked)
