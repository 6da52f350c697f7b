"""A spiking VGG (SpikingJelly) on the frames of an event camera that stops as soon as it knows what it sees.

    python examples/event_vgg.py --data DIR --fold 0 --pretrained          # N-MNIST: numbers in a minute
    python examples/event_vgg.py --data DIR --fold 0                       # train it, some minutes on one core
    python examples/event_vgg.py --data DIR --dataset cifar10-dvs          # on a GPU
    python examples/event_vgg.py --data DIR --dataset dvs128-gesture

DIR has the layout of SpikingJelly's data sets: ``events_np/...``, or the archives that they unpack. With ``--fold`` k,
0 to 4, the test data is a fifth of all recordings: if the data set's own test data is small, five folds use all of it.
"""

from __future__ import annotations

from typing import Any

from common import Example, Stage, argument_parser, run_example
from torch import Tensor, nn

from seenn_plugin.checkpoints.pretrained import Card
from seenn_plugin.models.events import STAGES, event_vgg
from seenn_plugin.models.spikingjelly import run_sequence
from seenn_plugin.training import Recipe

TIMESTEPS = 10
SMALL = {"stages": ((16,), (32,), (64, 64)), "size": 34, "classes": 10}
DATASETS: dict[str, tuple[str, str, dict[str, Any], Recipe, str]] = {
    "nmnist": (
        "N-MNIST",
        "nmnist",
        SMALL,
        Recipe(20, 32, "adamw", learning_rate=2e-3, weight_decay=0.01, warmup=1, amp="bf16"),
        "roll",
    ),
    # As in TET (arXiv 2202.11946), in fewer epochs.
    "cifar10-dvs": (
        "CIFAR10-DVS",
        "cifar10_dvs",
        {"stages": STAGES, "size": 48, "classes": 10},
        Recipe(150, 64, "adamw", learning_rate=1e-3, weight_decay=0.01, warmup=5),
        "flip",
    ),
    "dvs128-gesture": (
        "DVS128 Gesture",
        "dvs128_gesture",
        {"stages": STAGES, "size": 48, "classes": 11},
        Recipe(150, 16, "adamw", learning_rate=1e-3, weight_decay=0.01, warmup=5),
        "roll",
    ),
}


def forward(model: nn.Module, frames: Tensor) -> Tensor:
    """Frames ``[N, T, 2, H, W]`` to outputs ``[T, N, C]``."""
    return run_sequence(model, frames.transpose(0, 1))


def example(dataset: str = "nmnist", fold: int | None = None) -> Example:
    title, loader, network, recipe, augment = DATASETS[dataset]
    loader_arguments: dict[str, Any] = {"timesteps": TIMESTEPS}
    name, data = f"{dataset}-vgg", title
    if fold is not None:
        loader_arguments["fold"] = fold
        name, data = f"{name}-fold{fold}", f"{title}, in 5 folds"
    return Example(
        name=name,
        card=Card(
            title=f"Spiking VGG on {title}",
            network="seenn_plugin.models.events:event_vgg",
            arguments=network,
            wrapper={"timesteps": TIMESTEPS, "input": "sequence", "time_dim": 1, "readout": "sum"},
            loader=f"seenn_plugin.data.events:{loader}",
            loader_arguments=loader_arguments,
            data=data,
            recipe=[],
            seed=0,
        ),
        build=lambda: event_vgg(**network),
        stages=[Stage("training", recipe, forward, {"augment": augment})],
    )


EXAMPLE = example()

if __name__ == "__main__":
    parser = argument_parser("Spiking VGG on event frames")
    parser.add_argument("--dataset", choices=DATASETS, default="nmnist")
    parser.add_argument("--fold", type=int, choices=range(5), help="which fifth of the recordings is for testing")
    asked = parser.parse_args()
    run_example(example(asked.dataset, asked.fold), asked)
