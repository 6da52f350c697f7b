"""A convolutional snnTorch network, its time loop inside ``forward``, that stops at every digit when it is sure.

    python examples/mnist_snntorch.py --data DIR --pretrained   # numbers in a minute
    python examples/mnist_snntorch.py --data DIR                # train it, a few minutes on one core

DIR holds ``mnist.npz``, or MNIST as torchvision downloads it (it does, if nothing is there).
"""

from __future__ import annotations

from common import Example, Stage, main
from torch import Tensor, nn

from seenn_plugin.checkpoints.pretrained import Card
from seenn_plugin.models.snntorch import ConvNet
from seenn_plugin.training import Recipe

NETWORK = {"num_steps": 8, "channels": [12, 32], "beta": 0.5}


def build() -> nn.Module:
    return ConvNet(**NETWORK)


def forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


EXAMPLE = Example(
    name="mnist-snntorch",
    card=Card(
        title="Convolutional snnTorch network on MNIST",
        network="seenn_plugin.models.snntorch:ConvNet",
        arguments=NETWORK,
        # The sum of the membrane potentials of the output neurons; as many timesteps as the loop makes.
        wrapper={"readout": "sum"},
        loader="seenn_plugin.data:mnist",
        loader_arguments={},
        data="MNIST",
        recipe=[],
        seed=0,
    ),
    build=build,
    stages=[
        # As in snnTorch's tutorials: the cross entropy of the membrane potentials, at every timestep.
        Stage(
            "train",
            Recipe(epochs=2, optimizer="adamw", learning_rate=5e-3, weight_decay=0.0, tet_lambda=0.0),
            forward,
        )
    ],
)

if __name__ == "__main__":
    main(EXAMPLE)
